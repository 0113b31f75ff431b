"""What is particular to SQLite: files, versions, locks, full disks, big files."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from metaos.store import file
from metaos.store.log import Conflict, StoreFailed, StoreFull
from metaos.store.sqlite import SqliteStore


async def test_state_survives_and_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.db"
    store = await SqliteStore.open(path)
    await store.create("a", b"1")
    await store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["state.db", "state.db.lock"], "a clean close leaves no WAL"
    store = await SqliteStore.open(path)
    assert await store.revision() == 1
    assert await store.create("b", b"2") == 2
    await store.close()


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "state.db")
    with pytest.raises(StoreFailed, match="in use by another process"):
        await SqliteStore.open(tmp_path / "state.db")
    await store.close()
    await (await SqliteStore.open(tmp_path / "state.db")).close()


async def test_older_files_are_migrated_newer_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    store = await SqliteStore.open(path)
    await store.create("a", b"1")
    await store.close()
    before = file.MIGRATIONS
    monkeypatch.setattr(file, "MIGRATIONS", (*before, "CREATE TABLE later (x); INSERT INTO later VALUES (7);"))
    store = await SqliteStore.open(path)
    entry = await store.get("a")
    assert entry and entry.value == b"1"
    await store.close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT x FROM later").fetchall() == [(7,)]
    db.close()
    monkeypatch.setattr(file, "MIGRATIONS", before)
    with pytest.raises(StoreFailed, match=rf"newer NEMO .schema {len(before) + 1}, this one knows {len(before)}.: upgrade"):
        await SqliteStore.open(path)


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    await (await SqliteStore.open(path)).close()
    with monkeypatch.context() as patch:
        patch.setattr(file, "MIGRATIONS", (*file.MIGRATIONS, "CREATE TABLE later (x); INSERT INTO nowhere VALUES (1);"))
        with pytest.raises(StoreFailed, match="nowhere"):
            await SqliteStore.open(path)
    store = await SqliteStore.open(path)
    assert await store.create("a", b"1") == 1
    await store.close()


async def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(StoreFailed, match="another program"):
        await SqliteStore.open(other)
    (tmp_path / "text.db").write_text("this is no database at all, but long enough to look at" * 20)
    with pytest.raises(StoreFailed, match="cannot be opened"):
        await SqliteStore.open(tmp_path / "text.db")


async def test_a_full_disk_refuses_writes_and_breaks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = await SqliteStore.open(path)
    # What SQLite says then is the same as with no space on the disk: SQLITE_FULL.
    store._connections[-1].execute("PRAGMA max_page_count=64")
    written: list[str] = []
    with pytest.raises(StoreFull, match="no space is left"):
        for n in range(1000):
            await store.create(f"k/{n:04d}", os.urandom(4000))
            written.append(f"k/{n:04d}")
    assert 20 < len(written) < 64
    latest = await store.revision()
    assert latest == len(written)
    events = store.watch("", after=latest)
    following = asyncio.ensure_future(anext(events))
    results = await asyncio.gather(
        *(store.create(f"more/{n}", b"x" * 4000) for n in range(4)),
        store.update("k/0000", b"x", expected=9),
        return_exceptions=True,
    )
    assert all(isinstance(r, StoreFull | Conflict) for r in results) and isinstance(results[0], StoreFull)
    # One that fits goes down with the one that does not: they share a transaction.
    pair = (store.delete("k/0000", expected=1), store.create("big", b"x" * 400_000))
    assert all(isinstance(r, StoreFull) for r in await asyncio.gather(*pair, return_exceptions=True))
    assert [e.key for e in (await store.list("")).entries] == written
    # Room again: the next revision follows without a hole, and watchers saw nothing of what failed.
    store._connections[-1].execute("PRAGMA max_page_count=1000")
    assert await store.create("again", b"x" * 4000) == latest + 1
    assert (await following).key == "again"
    await events.aclose()  # type: ignore[attr-defined]
    await store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


async def test_at_its_limit_a_store_still_deletes(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "state.db", max_bytes=256 * 1024)
    with pytest.raises(StoreFull, match="limit of 262144 bytes: delete something"):
        for n in range(1000):
            await store.create(f"k/{n:04d}", b"x" * 4000)
    latest = await store.revision()
    with pytest.raises(StoreFull):
        await store.update("k/0001", b"x", expected=2)
    for n in range(10):
        await store.delete(f"k/{n:04d}", expected=n + 1)
    await store.compact(await store.revision())
    assert await store.create("again", b"x" * 4000) == latest + 11
    await store.close()


async def test_compaction_gives_pages_back_to_later_writes(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = await SqliteStore.open(path)
    revision = await store.create("k", b"")
    sizes = []
    for _ in range(4):
        for _ in range(300):
            revision = await store.update("k", b"x" * 2000, expected=revision)
        await store.compact(revision)
        sizes.append(path.stat().st_size)
    await store.close()
    assert path.stat().st_size < 1.5 * max(sizes[0], 700 * 1024)


async def test_an_interrupted_compaction_is_finished_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = await SqliteStore.open(path)
    for n in range(1200):
        await store.create(f"k/{n}", b"x")
        await store.delete(f"k/{n}", expected=2 * n + 1)
    running = asyncio.ensure_future(store.compact(2300))
    await asyncio.sleep(0)
    # The first of its steps is on its way to the writer, the others are not.
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.compact(2400)
    await store.close()
    assert running.cancelled()
    db = sqlite3.connect(path)
    assert db.execute("SELECT COUNT(*) FROM log").fetchone() == (0,)
    db.close()


async def test_an_abandoned_write_is_still_whole(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "state.db")
    tasks = [asyncio.ensure_future(store.create(f"k/{n}", b"x")) for n in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    revision = await store.create("last", b"x")
    assert revision == 51 and [r for r in results if isinstance(r, int)] == list(range(2, 51, 2))
    await store.close()


async def test_what_is_in_the_log_and_in_the_buffer_comes_once(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "state.db")
    await store.create("k/1", b"x")
    # Keep the readers busy, so that the watcher is attached long before it reads the log.
    gate, entered = threading.Event(), threading.Semaphore(0)

    def block(db: sqlite3.Connection) -> bool:
        entered.release()
        return gate.wait(10)

    busy = []
    for _ in range(file.READERS):
        busy.append(asyncio.ensure_future(store._read(block)))
        assert await asyncio.to_thread(entered.acquire, timeout=10)
    events = store.watch("k/", after=0)
    first = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    await store.create("k/2", b"x")
    gate.set()
    await asyncio.gather(*busy)
    await store.create("k/3", b"x")
    assert [(await first).revision, (await anext(events)).revision, (await anext(events)).revision] == [1, 2, 3]
    await events.aclose()  # type: ignore[attr-defined]
    await store.close()


async def test_the_log_beside_the_file_stays_short_however_large_the_values(tmp_path: Path) -> None:
    """On a small disk a long one takes the room that it needs itself to be copied."""
    path = tmp_path / "state.db"
    store = await SqliteStore.open(path)
    for number in range(60):
        await store.create(f"k/{number}", bytes(900_000))
    size = path.with_name("state.db-wal").stat().st_size
    await store.close()
    assert size < 20 << 20, size
