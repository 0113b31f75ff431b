"""A state is moved from SQLite to PostgreSQL and back, while it is written to, whenever it is interrupted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from bench.postgres import Postgres
from metaos.clock import SystemClock
from metaos.hubs import copy_shared, move_store
from metaos.store import migration
from metaos.store.database import Database
from metaos.store.keyfiles import KEY
from metaos.store.log import Store, StoreFailed
from metaos.store.postgres import PostgresStore
from metaos.store.sqlite import SqliteStore
from tests.store.conformance import close, take
from tests.store.ledger import all_of, booking, checkpoint

pytestmark = pytest.mark.system
CLOCK = SystemClock()


@pytest.fixture
def url(server: Postgres) -> str:
    return server.database()


async def written(store: Store, count: int, known: dict[str, int]) -> None:
    """Creates, updates, deletes; ``known`` is what is there."""
    for n in range(count):
        key = f"k/{n % 37}"
        if key not in known:
            known[key] = await store.create(key, b"%d" % n)
        elif n % 5 == 0:
            await store.delete(key, expected=known.pop(key))
        else:
            known[key] = await store.update(key, b"%d" % n * 20, expected=known[key])


async def contents(store: Store) -> list[object]:
    return list((await store.list("")).entries)


async def moving(store: SqliteStore, data: Path, url: str, known: dict[str, int]) -> dict[str, object]:
    """Moves it while it is written to and compacted, and stops it when that is asked for."""
    asked = asyncio.Event()
    move = asyncio.ensure_future(move_store(data, url, CLOCK, lambda text: asked.set() if "stop" in text else None, back=False))
    asking = asyncio.ensure_future(asked.wait())
    while not asking.done():
        assert not move.done(), move.result()
        await written(store, 40, known)
        await store.compact(await store.revision() - 50)
    await store.close()
    return await move


async def test_there_and_back(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "PAGE", 50)
    data, known = tmp_path / "hub", dict[str, int]()
    store = await SqliteStore.open(data / "state.db")
    await written(store, 500, known)
    for n in range(1, 6):
        await store.ledger.append(booking("paris", n))
    await checkpoint(store.ledger, 3)
    told = await moving(store, data, url, known)
    assert (data / "state.db.moved").exists() and (data / "store").read_text().startswith("postgresql://nemo@127.0.0.1")

    shared = await PostgresStore.open(Database.parse(url), CLOCK)
    revision = await shared.revision()
    assert revision == told["revision"] and {e.key: e.revision for e in (await shared.list("")).entries} == known
    events = shared.watch("", after=revision - 40)
    assert [event.revision for event in await take(events, 40)] == list(range(revision - 39, revision + 1)), "watches go on"
    await close(events)
    await written(shared, 60, known)
    assert (await shared.ledger.append(booking("paris", 6))).fresh and len(await all_of(shared.ledger)) == 6
    await shared.create(KEY, b'{"metadata":{"name":"hubs"}}')
    before, revision = await contents(shared), await shared.revision()
    with pytest.raises(ValueError, match="exists: name a data directory"):
        (data / "state.db").touch()
        await move_store(data, url, CLOCK, print, back=True)
    (data / "state.db").unlink()
    await shared.close()

    await move_store(data, url, CLOCK, print, back=True)
    with pytest.raises(StoreFailed, match="was moved to"):
        await PostgresStore.open(Database.parse(url), CLOCK)
    store = await SqliteStore.open(data / "state.db")
    assert await contents(store) == [entry for entry in before if entry.key != KEY]  # type: ignore[attr-defined]
    assert await store.revision() == revision + 1 and len(await all_of(store.ledger)) == 6
    await store.close()


async def test_an_interrupted_move_goes_on(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "PAGE", 50)
    data, known = tmp_path / "hub", dict[str, int]()
    store = await SqliteStore.open(data / "state.db")
    await written(store, 400, known)
    write, left = migration.PostgresSide.write, [3]

    async def breaking(self: migration.PostgresSide, *arguments: object) -> None:
        if not left[0]:
            raise ConnectionResetError
        left[0] -= 1
        await write(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(migration.PostgresSide, "write", breaking)
        with pytest.raises(ValueError, match="cannot be reached"):
            await move_store(data, url, CLOCK, print, back=False)
    with pytest.raises(StoreFailed, match="is being filled by 'nemo migrate-store'"):
        await PostgresStore.open(Database.parse(url), CLOCK)
    await moving(store, data, url, known)
    shared = await PostgresStore.open(Database.parse(url), CLOCK)
    assert {e.key: e.revision for e in (await shared.list("")).entries} == known
    await shared.close()


async def test_what_cannot_be_moved_is_said(tmp_path: Path, url: str) -> None:
    data, known = tmp_path / "hub", dict[str, int]()
    with pytest.raises(ValueError, match="does not exist: name the data directory"):
        await move_store(data, url, CLOCK, print, back=False)
    store = await SqliteStore.open(data / "state.db")
    await written(store, 10, known)
    await store.close()
    shared = await PostgresStore.open(Database.parse(url), CLOCK)
    with pytest.raises(ValueError, match="hubs use"):
        await move_store(data, url, CLOCK, print, back=False)
    await shared.create("other", b"1")
    await shared.close()
    with pytest.raises(ValueError, match="has a state already"):
        await move_store(data, url, CLOCK, print, back=False)
    admin = await asyncpg.connect(url)
    await admin.execute("INSERT INTO nemo.moved VALUES ('is being filled')")
    with pytest.raises(ValueError, match="holds something else than"):
        await move_store(data, url, CLOCK, print, back=False)
    await admin.close()


async def test_a_copy_is_of_one_revision_while_a_hub_writes_and_compacts(url: str, tmp_path: Path) -> None:
    store = await PostgresStore.open(Database.parse(url), CLOCK)
    await store.create(KEY, b"sealed")
    known: dict[str, int] = {}
    await written(store, 1500, known)
    await store.ledger.append(booking("paris", 1))
    await checkpoint(store.ledger)
    writing = asyncio.ensure_future(written(store, 3000, known))
    await copy_shared(url, tmp_path / "state.db")
    assert not writing.done()
    await writing
    file = await SqliteStore.open(tmp_path / "state.db")
    at = await file.revision() - 1  # The shared keys are taken out by the last one.
    there = [entry for entry in (await store.list("", revision=at)).entries if entry.key != KEY]
    assert there == await contents(file) and await file.get(KEY) is None
    assert await all_of(file.ledger) == await all_of(store.ledger)
    assert [path.name for path in tmp_path.iterdir() if "moving" in path.name] == []
    await store.compact(await store.revision() - 10)
    await copy_shared(url, tmp_path / "again")
    again = await SqliteStore.open(tmp_path / "again")
    assert await again.revision() > at
    for each in (file, again, store):
        await each.close()


async def test_a_database_that_is_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="cannot be reached"):
        await copy_shared("postgresql://nemo@127.0.0.1:1/nemo", tmp_path / "state.db")
    assert list(tmp_path.iterdir()) == []
