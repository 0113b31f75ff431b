"""The store on PostgreSQL: the conformance suite, several hubs on one database, and a database that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import asyncpg
import pytest

from bench.postgres import Postgres
from metaos.apiserver.registry import Registry
from metaos.clock import SystemClock
from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.security.authz import MASTERS, UserInfo
from metaos.security.identity import Authority
from metaos.store import postgres as module
from metaos.store.database import Database
from metaos.store.log import (
    CLAIM,
    GUARD,
    Claim,
    Compacted,
    Conflict,
    Entry,
    Fenced,
    Guard,
    Overtaken,
    Store,
    StoreFailed,
    StoreUnknown,
    StoreUnreachable,
)
from metaos.store.postgres import PostgresStore
from metaos.store.postgresschema import IN_USE, MIGRATIONS
from metaos.store.seal import Keyring, SealedStore
from tests.store.conformance import *  # noqa: F403
from tests.store.conformance import close, take
from tests.store.ledger import *  # noqa: F403

pytestmark = pytest.mark.system
CLOCK = SystemClock()


@pytest.fixture(scope="module")
def url(server: Postgres) -> str:
    return server.database()


@pytest.fixture
async def database(url: str) -> Database:
    admin = await asyncpg.connect(url)
    await admin.execute("SET client_min_messages = error; DROP SCHEMA IF EXISTS nemo CASCADE")
    await admin.close()
    return Database.parse(url)


@pytest.fixture(params=["plain", "sealed"])
async def store(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store = await PostgresStore.open(database, CLOCK)
    if request.param == "sealed":
        opened = SealedStore(opened, Keyring.open(tmp_path / "keys.json"), lambda key: not key.endswith("/1"))
    yield opened
    await opened.close()


@pytest.fixture
async def ledger(database: Database) -> AsyncIterator[object]:
    opened = await PostgresStore.open(database, CLOCK)
    yield opened.ledger
    await opened.close()


@pytest.fixture
async def pair(database: Database) -> AsyncIterator[tuple[PostgresStore, PostgresStore]]:
    one, other = await PostgresStore.open(database, CLOCK), await PostgresStore.open(database, CLOCK)
    yield one, other
    await one.close()
    await other.close()


async def test_two_hubs_have_one_history(pair: tuple[PostgresStore, PostgresStore]) -> None:
    events = [store.watch("k/", after=0) for store in pair]
    every = [asyncio.ensure_future(take(each, 600)) for each in events]
    revisions = await asyncio.gather(*(pair[n % 2].create(f"k/{n}", b"%d" % n) for n in range(600)))
    assert sorted(revisions) == list(range(1, 601))
    one, other = await asyncio.gather(*every)
    assert one == other and [event.revision for event in one] == list(range(1, 601))
    for each in events:
        await close(each)


async def test_a_revision_that_one_hub_acknowledged_is_known_to_the_other(pair: tuple[PostgresStore, PostgresStore]) -> None:
    one, other = pair
    for n in range(20):
        written = await one.create(f"k/{n}", b"x")
        assert await other.revision() >= written
        assert await other.get(f"k/{n}") == Entry(f"k/{n}", b"x", written, written)
    questions = [asyncio.ensure_future(other.revision()) for _ in range(50)]
    written = await one.create("last", b"x")
    assert await other.revision() >= written
    await asyncio.gather(*questions)


async def test_a_former_leaders_writes_do_not_count(pair: tuple[PostgresStore, PostgresStore]) -> None:
    one, other = pair
    first = await one.create("term", b"one")
    GUARD.set(Guard("term", first))
    await one.create("a", b"1")
    second = await asyncio.create_task(other.update("term", b"other", expected=first))
    for attempt in (one.create("b", b"1"), one.update("a", b"2", expected=2), one.delete("a", expected=2)):
        with pytest.raises(Fenced):
            await attempt
    GUARD.set(Guard("term", second))
    assert await one.update("a", b"2", expected=2) == second + 1
    GUARD.set(None)
    assert await one.create("b", b"anybody") == second + 2


async def test_a_write_that_was_decided_by_less_than_there_is_does_not_count(
    pair: tuple[PostgresStore, PostgresStore],
) -> None:
    one, other = pair

    async def claimed(store: PostgresStore, key: str, seen: int, name: str = "quota/a") -> int:
        CLAIM.set(Claim((name, f"service/{key}"), seen))
        return await store.create(key, b"x")

    await asyncio.create_task(claimed(one, "a", 0))
    for store in pair:
        with pytest.raises(Overtaken):
            await asyncio.create_task(claimed(store, "b", 0))
    assert await asyncio.create_task(claimed(other, "b", 0, "quota/b")) == 2
    assert await other.create("c", b"x") == 3, "who claims nothing keeps nobody from anything"
    assert await asyncio.create_task(claimed(other, "d", 1)) == 4
    with pytest.raises(Conflict):
        await asyncio.create_task(claimed(one, "d", 4))
    await one.compact(4)
    with pytest.raises(Overtaken):
        await asyncio.create_task(claimed(one, "e", 3, "quota/new"))
    assert await asyncio.create_task(claimed(one, "e", 4)) == 5


async def test_hubs_together_let_in_what_a_quota_allows(pair: tuple[PostgresStore, PostgresStore]) -> None:
    hubs = [Registry(store, CLOCK, Random(n), shared=True) for n, store in enumerate(pair)]
    for hub in hubs:
        await hub.start()
    admin = UserInfo("admin", (MASTERS,))
    await hubs[0].create(admin, scheme.NAMESPACE.empty("shop"))
    limit = scheme.RESOURCE_QUOTA.empty("q", "shop") | {"spec": {"hard": {"count/configmaps": "7"}}}
    await hubs[0].create(admin, limit)
    made = await asyncio.gather(
        *(hubs[n % 2].create(admin, scheme.CONFIG_MAP.empty(f"c{n}", "shop")) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(each, dict) for each in made) == 7
    assert all(isinstance(each, dict) or "exceeded quota" in str(each) for each in made)
    for hub in hubs:
        await hub.stop()


async def test_hubs_together_give_each_address_once(pair: tuple[PostgresStore, PostgresStore]) -> None:
    hubs = [Registry(store, CLOCK, Random(n), shared=True) for n, store in enumerate(pair)]
    for hub in hubs:
        await hub.start()
    admin = UserInfo("admin", (MASTERS,))

    def service(name: str, **spec: object) -> Obj:
        return scheme.SERVICE.empty(name, "default") | {"spec": {"type": "NodePort", "ports": [{"port": 80}], **spec}}

    wanted = [service(f"s{n}", clusterIP=f"100.64.0.{n % 4 + 1}") for n in range(16)] + [service(f"free{n}") for n in range(16)]
    made = await asyncio.gather(*(hubs[n // 4 % 2].create(admin, obj) for n, obj in enumerate(wanted)), return_exceptions=True)
    done = [each for each in made if isinstance(each, dict)]
    assert len({each["spec"]["clusterIP"] for each in done}) == len(done) == 20
    assert len({each["spec"]["ports"][0]["nodePort"] for each in done}) == 20
    assert all(isinstance(each, dict) or "provided IP is already allocated" in str(each) for each in made)
    for hub in hubs:
        await hub.stop()


async def test_a_batch_is_done_once_however_often_it_is_asked_for(database: Database) -> None:
    """The answer to each call is lost, and the call repeated: as when the connection breaks at the worst moment."""
    store = await PostgresStore.open(database, CLOCK)
    call = store._writer.call
    lost = 0

    async def losing(work: object, **more: object) -> object:
        nonlocal lost

        async def twice(db: object) -> object:
            nonlocal lost
            result = await work(db)  # type: ignore[operator]
            if lost % 2 == 0:
                lost += 1
                raise ConnectionResetError
            lost += 1
            return result

        return await call(twice, **more)  # type: ignore[arg-type]

    store._writer.call = losing  # type: ignore[assignment]
    assert await store.create("a", b"1") == 1
    assert await store.update("a", b"2", expected=1) == 2
    with pytest.raises(Conflict) as found:
        await store.update("a", b"3", expected=1)
    assert found.value.current == Entry("a", b"2", 2, 1)
    assert await store.delete("a", expected=2) == 3
    assert lost == 8 and await store.revision() == 3
    events = store.watch("", after=0)
    assert [event.revision for event in await take(events, 3)] == [1, 2, 3]
    await close(events)
    await store.close()


async def test_a_batch_that_comes_too_late_is_not_done(database: Database) -> None:
    """A call may wait in the server after its connection broke, and be overtaken by the next one on another."""
    await (await PostgresStore.open(database, CLOCK)).close()
    db = await asyncpg.connect(database.url)

    async def write(batch: int, type: str, key: str, expected: int) -> list[int]:
        values = ("hub", batch, [type], [key], [b"x"], [expected], [""], [0], [""], [0])
        return [row["outcome"] for row in await db.fetch(module._WRITE, *values)]

    assert await write(1, "CREATE", "a", 0) == [1]
    assert await write(3, "DELETE", "a", 1) == [2]
    assert await write(1, "CREATE", "a", 0) == [], "it was done, and is not done a second time"
    assert await write(2, "CREATE", "b", 0) == [] and await write(3, "DELETE", "a", 1) == [2]
    assert await db.fetchval("SELECT count(*) FROM nemo.log") == 2
    await db.close()


async def test_a_hub_that_was_cut_off_writes_nothing_to_a_state_that_is_moved(database: Database) -> None:
    store, mover = await PostgresStore.open(database, CLOCK), await asyncpg.connect(database.url)
    await store.create("a", b"1")
    assert not await mover.fetchval("SELECT pg_try_advisory_lock($1)", IN_USE)
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND application_name = 'nemo'"
    async with asyncio.timeout(10):
        while not await mover.fetchval("SELECT pg_try_advisory_lock($1)", IN_USE):
            await mover.execute(others)
    with pytest.raises(StoreFailed, match="being moved"):
        await store.create("b", b"2")
    await mover.execute("INSERT INTO nemo.moved VALUES ('was moved to a file'); SELECT pg_advisory_unlock_all()")
    for attempt in (store.create("c", b"3"), store.ledger.extent()):
        with pytest.raises(StoreFailed, match="was moved to a file"):
            await attempt
    assert await mover.fetchval("SELECT revision FROM nemo.state") == 1
    await mover.close()
    await store.close()


async def test_connections_that_break_are_made_again(database: Database) -> None:
    store = await PostgresStore.open(database, CLOCK)
    admin = await asyncpg.connect(database.url)
    events = store.watch("", after=0)
    rest = asyncio.ensure_future(take(events, 200))

    terminate = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"""

    known: dict[str, int] = {}
    for n in range(50):
        breaking = asyncio.ensure_future(admin.execute(terminate if n % 10 == 5 else "SELECT 1"))
        for key in ("a", "b", "c", "d"):
            known[key] = await (store.update(key, b"%d" % n, expected=known[key]) if key in known else store.create(key, b"0"))
        await breaking
    assert known["d"] == 200 and [event.revision for event in await rest] == list(range(1, 201))
    await close(events)
    await admin.close()
    await store.close()


async def test_a_database_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    # A server of its own.
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr("metaos.store.database.PATIENCE_SECONDS", 0.3)
    own = Postgres()
    try:
        own.start()
        store = await PostgresStore.open(Database.parse(own.database()), CLOCK)
        await store.create("a", b"1")
        own.kill()
        outcomes = await asyncio.gather(*(store.create(f"k/{n}", b"x") for n in range(20)), return_exceptions=True)
        assert all(isinstance(outcome, StoreUnreachable) for outcome in outcomes)
        with pytest.raises(StoreUnreachable, match="cannot be reached") as told:
            await store.get("a")
        assert not isinstance(told.value, StoreUnknown)
        own.start()
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 10.0)
        await store.create("b", b"2")
        assert (await store.get("a")) == Entry("a", b"1", 1, 1)
        await store.close()
    finally:
        own.stop()


async def test_whoever_was_away_for_longer_than_history_lists_again(pair: tuple[PostgresStore, PostgresStore]) -> None:
    one, other = pair
    events = one.watch("", after=0)
    await other.create("a", b"1")
    await take(events, 1)
    one._tasks[0].cancel()
    for n in range(1, 10):
        await other.update("a", b"x", expected=n)
    await other.compact(10)
    one._tasks[0] = asyncio.create_task(one._follow())
    with pytest.raises(Compacted):
        await take(events, 9)
    after = await one.revision()
    again = one.watch("", after=after)
    await other.update("a", b"y", expected=10)
    assert [event.revision for event in await take(again, 1)] == [11]
    await close(again)


async def test_a_database_of_a_newer_release_or_encoding_is_refused(database: Database) -> None:
    await (await PostgresStore.open(database, CLOCK)).close()
    admin = await asyncpg.connect(database.url)
    await admin.execute("UPDATE nemo.version SET version = $1", len(MIGRATIONS) + 1)
    with pytest.raises(StoreFailed, match="newer NEMO"):
        await PostgresStore.open(database, CLOCK)
    await admin.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    with pytest.raises(StoreFailed, match="UTF8"):
        await PostgresStore.open(Database.parse(database.url.rpartition("/")[0] + "/latin"), CLOCK)
    await admin.close()


async def test_the_database_is_verified_and_a_password_comes_from_its_file(tmp_path: Path) -> None:
    """Over TLS, with a password, as on another machine."""
    authority, other = Authority.create(Random(1), CLOCK.now()), Authority.create(Random(2), CLOCK.now())
    pair = authority.issue_server(("127.0.0.1",), CLOCK.now())
    own = Postgres()
    try:
        files = {"server.crt": pair.certificate, "server.key": pair.key}
        for name, content in files.items():
            (own.directory / name).write_bytes(content)
            (own.directory / name).chmod(0o600)
            shutil.chown(own.directory / name, own.directory.owner())
        (own.data / "pg_hba.conf").write_text(
            "host postgres nemo 127.0.0.1/32 trust\nhostssl all nemo 127.0.0.1/32 scram-sha-256\n"
        )
        own.settings |= {"ssl": "on"} | {
            f"ssl_{name[-3:].replace('crt', 'cert')}_file": str(own.directory / name) for name in files
        }
        own.start()
        admin = await asyncpg.connect(f"postgresql://nemo@127.0.0.1:{own.port}/postgres")
        await admin.execute("ALTER USER nemo PASSWORD 'secret'")
        await admin.close()
        for name, each in (("ca", authority), ("other", other)):
            (tmp_path / f"{name}.pem").write_bytes(each.pair.certificate)
        (tmp_path / "passfile").touch(0o600)
        (tmp_path / "passfile").write_text(f"127.0.0.1:{own.port}:*:nemo:secret\n")
        where = f"postgresql://nemo@127.0.0.1:{own.port}/template1?passfile={tmp_path}/passfile"
        where += f"&sslmode=verify-full&sslrootcert={tmp_path}"
        store = await PostgresStore.open(Database.read(f"{where}/ca.pem"), CLOCK)
        assert await store.create("a", b"1") == 1
        await store.close()
        with pytest.raises(StoreFailed, match="certificate is not trusted: ") as told:
            await asyncio.wait_for(PostgresStore.open(Database.read(f"{where}/other.pem"), CLOCK), 30)
        assert "secret" not in str(told.value)
        (tmp_path / "passfile").write_text(f"127.0.0.1:{own.port}:*:nemo:wrong\n")
        with pytest.raises(StoreFailed, match="password authentication failed"):
            await PostgresStore.open(Database.read(f"{where}/ca.pem"), CLOCK)
    finally:
        own.stop()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mysql://db/nemo", "must begin with postgresql://"),
        ("postgresql://nemo:secret@127.0.0.1/nemo", "holds a password"),
        ("postgresql://nemo@127.0.0.1/nemo?password=secret", "holds a password"),
        ("postgresql://nemo@db.example.org/nemo", "another machine: say .sslmode=verify-full"),
        ("/does/not/exist", "cannot be read: No such file"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as told:
        Database.read(text)
    assert "secret" not in str(told.value)


def test_an_address_in_a_file_may_hold_a_password_and_never_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "store"
    file.write_text("secret\n")
    file.chmod(0o600)
    with pytest.raises(ValueError, match=r"must begin with postgresql://$"):
        Database.read(str(file))
    file.write_text("postgresql://nemo:secret@[::1]:5432/nemo\n")
    file.chmod(0o604)
    with pytest.raises(ValueError, match="chmod 600"):
        Database.read(str(file))
    file.chmod(0o600)
    found = Database.read(str(file))
    assert found.shown == "postgresql://nemo@[::1]:5432/nemo" and "secret" not in repr(found) and "secret" in found.url
    for host in ("localhost", "", "/run/postgresql", "127.0.0.9"):
        with contextlib.suppress(AttributeError):
            Database.parse(f"postgresql:///nemo?host={host}" if host.startswith("/") else f"postgresql://{host}/nemo")
    assert Database.parse("postgresql://db/nemo?sslmode=verify-full").shown == "postgresql://db/nemo"
