"""Compaction of much history goes on beside writes, and no write waits for it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from metaos.store.sqlite import SqliteStore

MOST_MS = 50.0


async def slowest_write(store: SqliteStore, revisions: dict[str, int], work: Awaitable[None]) -> float:
    """Eight writers go on while ``work`` is done; the slowest of their writes, in milliseconds."""
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
    store = await SqliteStore.open(tmp_path / "state.db")
    revisions = {f"k/{n}": await store.create(f"k/{n}", b"x") for n in range(500)}
    for _ in range(history // len(revisions)):
        written = await asyncio.gather(*(store.update(k, os.urandom(size), expected=r) for k, r in revisions.items()))
        revisions = dict(zip(revisions, written, strict=True))
    # Other programs may have the disk or the processor meanwhile: what they cost is seen without compaction too, in as long a
    # time on both sides of it. How long that is, is known afterwards.
    befores = [await slowest_write(store, revisions, asyncio.sleep(0.5)) for _ in range(12)]
    began = time.perf_counter()
    during = await slowest_write(store, revisions, store.compact(await store.revision()))
    took = time.perf_counter() - began
    before = max(befores[-max(1, min(len(befores), round(took / 0.5))) :])
    after = await slowest_write(store, revisions, asyncio.sleep(took))
    await store.close()
    print(f"{history} revisions of {size} bytes: slowest write {during:.1f} ms, without compaction {before:.1f}, {after:.1f} ms")
    assert during < max(MOST_MS, 2 * before, 2 * after)
