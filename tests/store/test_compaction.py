"""Compaction of much history goes on beside writes, and no write waits for it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from metaos.store.sqlite import SqliteStore

MOST_MS = 50.0


class Timed(SqliteStore):
    """``held``: milliseconds for which each transaction kept the writer thread, disk and locks included, without those in which
    the thread could run and the machine ran others: ``run_delay`` of ``/proc/PID/schedstat`` (sched-stats of Linux)."""

    held: list[float]

    def _commit(self, db: Any, calls: Sequence[Any]) -> Exception | None:
        before, began = _delayed(), time.perf_counter()
        failure = super()._commit(db, calls)
        self.held.append((time.perf_counter() - began) * 1000 - (_delayed() - before))
        return failure

    def longest(self) -> float:
        """Of two transactions in turn, since it was asked last: a write waits for the one that is under way, and its own."""
        found, self.held = self.held, []
        return max((one + other for one, other in pairwise(found)), default=0.0)


def _delayed() -> float:
    with open(f"/proc/self/task/{threading.get_native_id()}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[1]) / 1e6


async def busy(store: SqliteStore, revisions: dict[str, int], work: Awaitable[None]) -> float:
    """Eight writers go on while ``work`` is done; milliseconds of the slowest of their writes, as they see it."""
    keys, done = list(revisions), asyncio.Event()
    slowest = 0.0

    async def write(mine: list[str]) -> None:
        nonlocal slowest
        while not done.is_set():
            for key in mine:
                began = time.perf_counter()
                revisions[key] = await store.update(key, b"x" * 500, expected=revisions[key])
                slowest = max(slowest, (time.perf_counter() - began) * 1000)
                if done.is_set():
                    return

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(write(keys[number::8]))
        await work
        done.set()
    return slowest


@pytest.mark.slow
@pytest.mark.parametrize(("size", "history"), [(500, 100_000), (50_000, 4_000)])
async def test_no_write_waits_for_compaction(tmp_path: Path, size: int, history: int) -> None:
    Timed.held = []
    store = await Timed.open(tmp_path / "state.db")
    assert isinstance(store, Timed)
    revisions = {f"k/{n}": await store.create(f"k/{n}", b"x") for n in range(500)}
    for _ in range(history // len(revisions)):
        written = await asyncio.gather(*(store.update(k, os.urandom(size), expected=r) for k, r in revisions.items()))
        revisions = dict(zip(revisions, written, strict=True))
    store.longest()
    began = time.perf_counter()
    seen = await busy(store, revisions, store.compact(await store.revision()))
    took, during = time.perf_counter() - began, store.longest()
    # Other programs may have the disk: what they cost is seen without compaction too, in as long a time.
    await busy(store, revisions, asyncio.sleep(took))
    after = store.longest()
    await store.close()
    print(
        f"{history} revisions of {size} bytes in {took:.1f} s: the writer was held {during:.1f} ms at most, {after:.1f} ms after;"
    )
    print(f"the slowest write took {seen:.1f} ms, waiting for the processor included")
    assert during < max(MOST_MS, 2 * after)
