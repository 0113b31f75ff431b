"""A disk that refuses a step, once or for a while: what was acknowledged stays, what failed changed nothing, the rest goes on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from metaos.store.log import StoreFailed, StoreFull
from metaos.store.sqlite import SqliteStore
from tests.store.disk import FULL, IOERR_FSYNC, IOERR_WRITE, Kind, Step, watched

CODES = {Kind.WRITE: IOERR_WRITE, Kind.SYNC: IOERR_FSYNC, Kind.TRUNCATE: IOERR_WRITE}
RESERVE = 256 * 1024


class Refusing:
    """Refuses steps ``first`` to ``last`` (counted from when ``armed``) of those that it counts."""

    def __init__(self, first: int, last: int, code: int = 0) -> None:
        self.first, self.last, self.code = first, last, code
        self.count, self.armed, self.refused = 0, False, 0

    def __call__(self, step: Step) -> int:
        if not self.armed or step.kind not in CODES or (self.code == FULL and step.kind is not Kind.WRITE):
            return 0
        self.count += 1
        if self.first <= self.count <= self.last:
            self.refused += 1
            return self.code or CODES[step.kind]
        return 0


async def run(path: Path, disk: Refusing, failure: type[StoreFailed]) -> int:
    """Writes through the fault; how many writes failed. Checks that the store holds what it acknowledged, and only that."""
    failed = 0
    with watched(disk):
        store = await SqliteStore.open(path, reserve_bytes=RESERVE if failure is StoreFull else 0)
        store._connections[-1].execute("PRAGMA wal_autocheckpoint=20")
        disk.armed = True
        held: dict[str, bytes] = {}
        revision = 0
        for number in range(30):
            key, value = f"k/{number}", b"%d" % number * 1500
            try:
                now = await store.create(key, value)
                assert now == revision + 1, "a write that failed used a revision up"
                revision, held[key] = now, value
            except failure:
                failed += 1
            if number == 20:
                try:
                    await store.compact(revision)
                except failure:
                    failed += 1
        assert {e.key: e.value for e in (await store.list("")).entries} == held
        assert await store.create("after", b"") == revision + 1
        await store.close()
    store = await SqliteStore.open(path)
    assert {e.key: e.value for e in (await store.list("")).entries} == held | {"after": b""}
    await store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    return failed


async def test_an_io_error_at_any_step(tmp_path: Path) -> None:
    failed = 0
    for step in range(1, 160, 9):
        failed += await run(tmp_path / str(step) / "state.db", Refusing(step, step), StoreFailed)
    assert failed > 8


async def test_a_disk_that_refuses_for_a_while(tmp_path: Path) -> None:
    assert await run(tmp_path / "state.db", Refusing(20, 40), StoreFailed) > 3


@pytest.mark.parametrize("step", range(1, 100, 7))
async def test_a_full_disk_at_any_step_costs_the_reserve_and_nothing_else(tmp_path: Path, step: int) -> None:
    """The space that was set aside lets the very write go through at which the disk was found full."""
    disk = Refusing(step, step, FULL)
    assert await run(tmp_path / "state.db", disk, StoreFull) == 0
    assert disk.refused == 1
    assert (tmp_path / "state.db.reserve").exists()


async def test_without_room_only_deletes_and_what_is_vital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, path = Refusing(5, 5, FULL), tmp_path / "state.db"
    with watched(disk):
        store = await SqliteStore.open(path, reserve_bytes=RESERVE, vital=lambda key: key == "vital")
        vital = await store.create("vital", b"1")
        other = await store.create("other", b"1")
        monkeypatch.setattr(type(store._reserve), "take", lambda self: self.held)
        disk.armed = True
        with pytest.raises(StoreFull, match="delete something"):
            for number in range(10):
                await store.create(f"k/{number}", b"x" * 8000)
        assert store.full
        assert await store.update("vital", b"2", expected=vital) > other
        with pytest.raises(StoreFull):
            await store.update("other", b"2", expected=other)
        assert await store.delete("other", expected=other)
        monkeypatch.undo()
        await store.create("again", b"x")
        assert not store.full
        await store.close()
