"""Who may ask a hub for a backup or new keys, and what it says to mistakes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from aiohttp import ClientSession, web

from metaos.apiserver.app import make_app
from metaos.apiserver.authn import Identity
from metaos.apiserver.registry import Registry
from metaos.apiserver.upkeep import Upkeep
from metaos.clock import SystemClock
from metaos.security.authz import UserInfo
from metaos.store.seal import Keyring, SealedStore
from metaos.store.sqlite import SqliteStore


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[tuple[str, list[str], list[dict[str, object]], SealedStore]]:
    """A hub's URL, the groups that callers have, its audit log, and its store."""
    store = SealedStore(
        await SqliteStore.open(tmp_path / "state.db"), Keyring.open(tmp_path / "keys.json"), lambda k: k.startswith("secrets/")
    )
    clock, groups, audit = SystemClock(), ["system:masters"], []
    registry = Registry(store, clock, Random(1))
    await registry.start()

    class Anybody:
        async def authenticate(self, request: web.Request) -> Identity:
            return Identity(UserInfo("somebody", tuple(groups)), lambda: True)

    upkeep = Upkeep(tmp_path, store, clock)
    app = make_app(registry, authenticator=Anybody(), clock=clock, random=Random(2), audit=audit.append, upkeep=upkeep)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", groups, audit, store
    await runner.cleanup()
    await registry.stop()
    await store.close()


async def test_only_masters_may(hub: tuple[str, list[str], list[dict[str, object]], SealedStore], tmp_path: Path) -> None:
    url, groups, audit, store = hub
    async with ClientSession() as session:
        groups[:] = ["system:authenticated"]
        for method, path in (("POST", "/backup"), ("POST", "/keys/rotate"), ("GET", "/keys")):
            async with session.request(method, url + path) as answer:
                assert answer.status == 403 and "cannot" in (await answer.json())["message"]
        groups[:] = ["system:masters"]
        async with session.get(url + "/backup") as answer:
            assert answer.status == 405
        for body in (b"{", b"[]", b'{"key": 7, "salt": ""}', b'{"key": "AAAA", "salt": "AAAA"}'):
            async with session.post(url + "/backup", data=body) as answer:
                assert answer.status == 400 and "backup" in (await answer.json())["message"]
        async with session.post(url + "/backup") as answer:
            assert answer.status == 200 and (await answer.read()).startswith(b"SQLite format 3")
        assert not (tmp_path / "state.backup").exists()
        async with session.post(url + "/keys/rotate") as answer:
            assert (await answer.json())["current"] == "2" == store.current_key
    noted = [(line["verb"], line["path"], line["code"]) for line in audit]
    assert noted[:2] == [("create", "/backup", 403), ("create", "/keys/rotate", 403)]
    assert ("create", "/backup", 200) in noted and ("create", "/keys/rotate", 200) in noted
