"""Hubs of one store: what a database that was away does to them, and whose end they believe."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from metaos.apiserver import peers as module
from metaos.apiserver.dialling import DialRule
from metaos.apiserver.peers import FORGET_SECONDS, PREFIX, RENEW_SECONDS, Peers
from metaos.apiserver.registry import Registry
from metaos.apiserver.tunnels import Tunnels
from metaos.apiserver.upkeep import COMPACT_SECONDS, FULL_SECONDS, Upkeep
from metaos.reconcile.informer import Informer
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, format_time
from metaos.resources.scheme import LEASE
from metaos.security.authz import MASTERS, UserInfo
from metaos.store.log import StoreUnreachable
from metaos.store.memory import MemoryStore
from metaos.store.seal import Keyring, SealedStore
from metaos.tunnel import Stream, Tunnel
from tests.clock import FakeClock
from tests.fleet.site import ADMIN, station


class Away(MemoryStore):
    """A database that is away whenever ``away`` says so."""

    away = False

    async def revision(self) -> int:
        if self.away:
            raise StoreUnreachable("the database is away")
        return await super().revision()

    async def create(self, key: str, value: bytes) -> int:
        if self.away:
            raise StoreUnreachable("the database is away")
        return await super().create(key, value)


def context() -> ssl.SSLContext:
    return ssl.create_default_context()


async def test_a_hub_is_announced_as_soon_as_its_database_is_there() -> None:
    store, clock = Away(), FakeClock()
    registry = Registry(store, clock, Random(1))
    await registry.start()
    client = registry.client(UserInfo("hub", (MASTERS,)))
    tunnels = Tunnels(DialRule(Manager(client, clock, Random(1))))
    peers = Peers(client, clock, "https://here:6443", context, tunnels)
    store.away = True
    leases = Informer(client, clock, Random(1), LEASE, SYSTEM_NAMESPACE)
    running = asyncio.create_task(peers.run(leases))
    await clock.settle()
    assert not running.done() and peers.greeting()["hubs"] == []
    store.away = False
    await clock.advance(RENEW_SECONDS)
    assert peers.greeting()["hubs"] == ["https://here:6443"]
    assert (await client.get(LEASE, peers._name, SYSTEM_NAMESPACE))["spec"]["holderIdentity"] == "https://here:6443"
    running.cancel()
    await asyncio.wait([running])
    await tunnels.close()
    await registry.stop()


async def test_the_lease_of_a_hub_that_lives_is_not_taken_for_an_old_one() -> None:
    clock = FakeClock()
    registry = Registry(MemoryStore(), clock, Random(1))
    await registry.start()
    client = registry.client(UserInfo("hub", (MASTERS,)))
    tunnels = Tunnels(DialRule(Manager(client, clock, Random(1))))
    peers = Peers(client, clock, "https://here:6443", context, tunnels)
    spec = {"holderIdentity": "https://there:6443", "renewTime": format_time(clock.now(), micro=True)}
    lease = await client.create({**LEASE.empty(f"{PREFIX}there", SYSTEM_NAMESPACE), "spec": spec})
    peers._see(None, lease)
    await clock.advance(FORGET_SECONDS + 1)
    spec["renewTime"] = format_time(clock.now(), micro=True)
    renewed = await client.patch(LEASE, lease["metadata"]["name"], SYSTEM_NAMESPACE, {"spec": spec})
    await peers._look()  # The news of it is on its way.
    assert await client.get(LEASE, lease["metadata"]["name"], SYSTEM_NAMESPACE) == renewed
    peers._see(lease, renewed)
    await clock.advance(FORGET_SECONDS + 1)
    await peers._look()
    assert not [each for each in (await client.list(LEASE, SYSTEM_NAMESPACE)).items if each["metadata"]["name"].endswith("there")]
    await tunnels.close()
    await registry.stop()


async def test_upkeep_outlives_a_database_that_is_away(tmp_path: Path) -> None:
    store, clock = Away(), FakeClock()
    sealed = SealedStore(store, Keyring.open(tmp_path / "keys.json"), lambda key: False)
    running = asyncio.create_task(Upkeep(tmp_path, sealed, clock).run())
    store.away = True
    await clock.settle()
    await clock.advance(COMPACT_SECONDS + FULL_SECONDS)
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])


async def test_only_a_hub_that_was_reached_there_has_ended_where_nothing_listens() -> None:
    clock = FakeClock()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    peers = Peers(None, clock, "https://here:6443", context, None)  # type: ignore[arg-type]  # It dials, and nothing else.
    peers._seen[url] = ({}, math.inf)
    dialling = asyncio.create_task(peers._dial(url))
    async with asyncio.timeout(5):
        while not clock.sleepers:  # It was refused, and waits for the next time.
            await asyncio.sleep(0.001)
    assert not peers.gone(url)
    app = web.Application()
    app.router.add_get(module.PATH, peers.accept)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await clock.advance(module.RETRY_SECONDS)
    async with asyncio.timeout(5):
        while peers.linked != [url]:
            await asyncio.sleep(0.001)
    await runner.cleanup()
    async with asyncio.timeout(5):
        while not peers.gone(url):
            if clock.sleepers:
                await clock.advance(module.RETRY_SECONDS)
            await asyncio.sleep(0.001)
    dialling.cancel()
    await asyncio.wait([dialling])


class Linked:
    """Two hubs, of which ``near`` has a link to ``far``."""

    def __init__(self, tunnels: Any) -> None:
        clock = FakeClock()
        self.near, self.far = (Peers(None, clock, url, context, tunnels) for url in ("https://a", "https://b"))  # type: ignore[arg-type]
        self.here = Tunnel(self._to_far, self.near._relay, client=True)
        self.there = Tunnel(self._to_near, self.far._relay, client=False)
        self.near._links["https://b"] = self.here

    async def _to_far(self, data: bytes) -> None:
        await self.there.receive(data)

    async def _to_near(self, data: bytes) -> None:
        await self.here.receive(data)

    async def close(self) -> None:
        await self.here.close("the end")
        await self.there.close("the end")


@pytest.mark.parametrize("code", [403, 502, 503])
async def test_what_a_site_does_not_allow_is_said_at_every_hub(code: int) -> None:
    class Site:
        async def open_here(self, cluster: str, header: dict[str, Any]) -> Stream:
            raise ApiError(code, "No", f"site {cluster!r} says no")

    hubs = Linked(Site())
    with pytest.raises(ApiError, match="site 'paris' says no") as told:
        await hubs.near.open("paris", {"type": "exec"})
    assert told.value.code == (403 if code == 403 else 502)
    await hubs.close()


async def test_the_hub_that_leads_answers_about_devices_at_any_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hubs = Linked(None)
    with pytest.raises(ApiError, match="type site or desk") as told:
        await hubs.near.ask("https://b", "live", ("shop", "lamp"))
    assert told.value.code == 503
    async with station() as leading:
        hubs.far.desk = leading.registry.desk.answer_here
        follower = Registry(leading.registry._store, leading.clock, Random(1), shared=True)
        await follower.start()
        follower.desk.leader = lambda asked, given: hubs.near.ask("https://b", asked, given)
        await follower.create(ADMIN, scheme.DEVICE.empty("lamp", "shop") | {"spec": {}})
        made = await follower.create_subresource(ADMIN, scheme.DEVICE, "lamp", "shop", "credential", {})
        await leading.settle()
        assert made["status"]["password"] == f"{(await leading.device('lamp'))['metadata']['uid']}.1"
        assert (await follower.get(ADMIN, scheme.DEVICE, "lamp", "shop", subresource="live"))["status"]["online"] is False
        with pytest.raises(ApiError, match="device lamp is offline") as told:
            await follower.create_subresource(ADMIN, scheme.DEVICE, "lamp", "shop", "command", {"spec": {"action": "blink"}})
        assert told.value.code == 504
        many: Obj = scheme.DEVICE_BATCH.empty("", "shop") | {"spec": {"devices": [{"name": f"d{n}"} for n in range(500)]}}
        assert (await follower.create(ADMIN, many))["status"]["made"] == 500
        for wrong, said in (("https://c", "https://c, is not linked"), ("", "no hub leads")):
            with pytest.raises(ApiError, match=said):
                await hubs.near.ask(wrong, "live", ("shop", "lamp"))
        with pytest.raises(ApiError, match="a hub may ask for one of live, command"):
            await hubs.near.ask("https://b", "fleet", ())
        monkeypatch.setattr("metaos.apiserver.peers.MOST_ASKED", 10)
        with pytest.raises(ApiError, match="it is more than 10 bytes"):
            await hubs.near.ask("https://b", "live", ("shop", "lamp"))
        await follower.stop()
    await hubs.close()
