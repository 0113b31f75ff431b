"""An acknowledged write survives ``kill -9`` at any moment, and so does the order of revisions."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from metaos.store.log import EventType, LogEvent
from metaos.store.sqlite import SqliteStore

ROUNDS = 6


def write_until_killed(path: Path, seed: int, lines: int) -> list[list[str]]:
    """Start the writer, kill it after about ``lines`` lines, and return every whole line that it printed."""
    child = subprocess.Popen([sys.executable, "-m", "tests.store.killed_writer", str(path), str(seed)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    told = []
    try:
        for line in child.stdout:
            told.append(line)
            if len(told) == lines:
                child.kill()
    finally:
        child.kill()
        child.stdout.close()
    assert child.wait() == -9
    return [line.decode().split() for line in told if line.endswith(b"\n")]


async def history(store: SqliteStore, after: int) -> list[LogEvent]:
    events: list[LogEvent] = []
    latest = await store.revision()
    watch = store.watch("", after=after)
    while after < latest and (not events or events[-1].revision < latest):
        events.append(await anext(watch))
    await watch.aclose()  # type: ignore[attr-defined]
    return events


@pytest.mark.system
async def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    path, random = tmp_path / "state.db", Random(7)
    acknowledged: dict[int, tuple[str, str, str]] = {}
    highest = 0
    for seed in range(ROUNDS):
        told = await asyncio.to_thread(write_until_killed, path, seed, random.randrange(50, 1500))
        before = highest
        for line in told:
            if line[0] == "ACK":
                revision, kind, key, value = int(line[1]), line[2], line[3], line[4]
                assert revision not in acknowledged, "one revision was given to two writes"
                acknowledged[revision] = (kind, key, value)
                assert revision > before, "revisions went back after a crash"
        watched = [int(line[1]) for line in told if line[0] == "SEE"]
        assert watched == list(range(watched[0], watched[0] + len(watched))), "the watch had a gap, or went back"

        store = await SqliteStore.open(path)
        highest = await store.revision()
        assert highest >= max([*acknowledged, *watched])
        events = await history(store, max(before, (await oldest(store))))
        assert [e.revision for e in events] == list(range(events[0].revision, highest + 1))
        for event in events:
            if event.revision in acknowledged:
                kind, key, value = acknowledged[event.revision]
                assert (event.type, event.key) == (EventType(kind), key)
                assert kind == "DELETE" or event.value.hex() == value
        await check_current(store, acknowledged)
        await store.close()
    assert len(acknowledged) > 1000


async def oldest(store: SqliteStore) -> int:
    """The child compacts too: from where on history is complete."""
    return int(await store._read(lambda db: db.execute("SELECT oldest FROM compaction").fetchone()[0]))


async def check_current(store: SqliteStore, acknowledged: dict[int, tuple[str, str, str]]) -> None:
    """Every key holds what its last acknowledged write said, unless something later (not yet acknowledged) followed."""
    last = {key: revision for revision, (_, key, _) in sorted(acknowledged.items())}
    for key, revision in last.items():
        kind, _, value = acknowledged[revision]
        entry = await store.get(key)
        if entry is None:
            assert kind == "DELETE" or await deleted_later(store, key, revision)
        elif entry.revision == revision:
            assert entry.value.hex() == value
        else:
            assert entry.revision > revision


async def deleted_later(store: SqliteStore, key: str, revision: int) -> bool:
    events = await history(store, max(revision, await oldest(store)))
    return any(e.key == key and e.type is EventType.DELETE for e in events)
