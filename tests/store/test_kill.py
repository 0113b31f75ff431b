"""An acknowledged write survives ``kill -9`` at any moment, and so does the order of revisions."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from pathlib import Path
from random import Random

import pytest

from metaos.accounting.ledger import GENESIS, verify_chain
from metaos.store.log import EventType, LogEvent
from metaos.store.sqlite import SqliteStore
from tests import crashing
from tests.store import killed_writer

DEADLINE_SECONDS = 60.0


def write_until_killed(path: Path, seed: int, lines: int, *, kill_at: int = 0) -> list[list[str]]:
    """Starts the writer, kills it after about ``lines`` lines unless it does so itself before its step ``kill_at``, and returns
    every whole line that it printed."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = crashing.start(killed_writer.main, path, seed, kill_at=kill_at, output=writer)
    writer.close()
    told = []
    with os.fdopen(os.dup(reader.fileno()), "rb") as stream:
        reader.close()
        for line in stream:
            told.append(line)
            if len(told) == lines:
                child.kill()
    child.join(DEADLINE_SECONDS)
    assert child.exitcode == -signal.SIGKILL
    child.close()
    return [line.decode().split() for line in told if line.endswith(b"\n")]


async def history(store: SqliteStore, after: int) -> list[LogEvent]:
    events: list[LogEvent] = []
    latest = await store.revision()
    watch = store.watch("", after=after)
    while after < latest and (not events or events[-1].revision < latest):
        events.append(await anext(watch))
    await watch.aclose()  # type: ignore[attr-defined]
    return events


class Witness:
    """What was acknowledged over many lives of one store, and whether it is still so after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acknowledged: dict[int, tuple[str, str, str]] = {}
        self.highest = self.booked = 0

    async def check(self, told: list[list[str]]) -> None:
        before = self.highest
        for line in told:
            if line[0] == "ACK":
                revision, kind, key, value = int(line[1]), line[2], line[3], line[4]
                assert revision not in self.acknowledged, "one revision was given to two writes"
                self.acknowledged[revision] = (kind, key, value)
                assert revision > before, "revisions went back after a crash"
        watched = [int(line[1]) for line in told if line[0] == "SEE"]
        if watched:
            assert watched == list(range(watched[0], watched[0] + len(watched))), "the watch had a gap, or went back"

        store = await SqliteStore.open(self.path)
        self.highest = await store.revision()
        assert self.highest >= max([0, *self.acknowledged, *watched])
        events = await history(store, max(before, await oldest(store)))
        assert [e.revision for e in events] == list(range(self.highest - len(events) + 1, self.highest + 1))
        for event in events:
            if event.revision in self.acknowledged:
                kind, key, value = self.acknowledged[event.revision]
                assert (event.type, event.key) == (EventType(kind), key)
                assert kind == "DELETE" or event.value.hex() == value
        await self._check_current(store)
        await self._check_ledger(store, max((int(line[1]) for line in told if line[0] == "BOOK"), default=0))
        await store.close()

    async def _check_ledger(self, store: SqliteStore, booked: int) -> None:
        """What was booked is there once, in one chain; something that was not acknowledged yet may be."""
        self.booked = max(self.booked, booked)
        extent, after, head, sequences = await store.ledger.extent(), 0, GENESIS, []
        while page := await store.ledger.read(after):
            after, head = verify_chain([(row.entry(), row.hash) for row in page], after, head)
            sequences += [row.entry().header["sequence"] for row in page]
        assert (after, head) == (extent.last, extent.head) and sequences == list(range(1, after + 1))
        assert (await store.ledger.last("paris")).sequence == after >= self.booked

    async def _check_current(self, store: SqliteStore) -> None:
        """Every key holds what its last acknowledged write said, unless something later (not yet acknowledged) followed."""
        last = {key: revision for revision, (_, key, _) in sorted(self.acknowledged.items())}
        for key, revision in last.items():
            kind, _, value = self.acknowledged[revision]
            entry = await store.get(key)
            if entry is None:
                assert kind == "DELETE" or await deleted_later(store, key, revision)
            elif entry.revision == revision:
                assert entry.value.hex() == value
            else:
                assert entry.revision > revision


async def oldest(store: SqliteStore) -> int:
    """The child compacts too: from where on history is complete."""
    return int(await store._read(lambda db: db.execute("SELECT oldest FROM compaction").fetchone()[0]))


async def deleted_later(store: SqliteStore, key: str, revision: int) -> bool:
    events = await history(store, max(revision, await oldest(store)))
    return any(e.key == key and e.type is EventType.DELETE for e in events)


async def lives(path: Path, count: int, seed: int) -> int:
    """Kills a writer ``count`` times, every other time between two steps on the disk; how many writes it acknowledged."""
    witness, random = Witness(path), Random(seed)
    for life in range(count):
        kill_at = random.randrange(1, 3000) if life % 2 else 0
        lines = random.randrange(20, 1500) if not kill_at else -1
        told = await asyncio.to_thread(write_until_killed, path, seed * 1000 + life, lines, kill_at=kill_at)
        await witness.check(told)
    return len(witness.acknowledged)


async def every_step(directory: Path, steps: range) -> None:
    """Kills a writer of a new store before each of its first steps on the disk: of creating, migrating and writing it."""
    for kill_at in steps:
        path = directory / str(kill_at) / "state.db"
        witness = Witness(path)
        for seed in range(2):
            await witness.check(await asyncio.to_thread(write_until_killed, path, seed, -1, kill_at=kill_at))


@pytest.mark.system
async def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    assert await lives(tmp_path / "state.db", 30, 7) > 1000


@pytest.mark.system
async def test_a_new_store_survives_kill_9_at_its_first_steps(tmp_path: Path) -> None:
    await every_step(tmp_path, range(1, 100, 9))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_acknowledged_writes_survive_kill_9_by_the_hundred(tmp_path: Path) -> None:
    assert await lives(tmp_path / "state.db", 200, 11) > 10_000


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_new_store_survives_kill_9_at_every_step(tmp_path: Path) -> None:
    await every_step(tmp_path, range(1, 101))
