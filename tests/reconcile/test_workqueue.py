"""Work queues: each key once, never twice at a time, failures later and later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.reconcile.workqueue import BASE_SECONDS, MAX_SECONDS, Closed, WorkQueue, backoff_seconds
from tests.clock import FakeClock


@pytest.fixture
async def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def queue(clock: FakeClock) -> AsyncIterator[WorkQueue[str]]:
    made: WorkQueue[str] = WorkQueue(clock, Random(1))
    yield made
    await made.close()


async def ready(queue: WorkQueue[str]) -> list[str]:
    """What could be worked on now."""
    found = []
    while True:
        try:
            async with asyncio.timeout(0):
                found.append(await queue.get())
        except TimeoutError:
            return found


async def test_a_key_is_queued_once(queue: WorkQueue[str]) -> None:
    for key in ("a", "b", "a"):
        queue.add(key)
    assert len(queue) == 2
    assert await ready(queue) == ["a", "b"]


async def test_a_key_is_never_worked_on_twice_at_a_time(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert await ready(queue) == []
    queue.done("a")
    assert await ready(queue) == ["a"]
    queue.done("a")
    assert await ready(queue) == []


async def test_delayed_keys_come_in_time_and_the_earliest_wish_counts(queue: WorkQueue[str], clock: FakeClock) -> None:
    queue.add_after("late", 30)
    queue.add_after("a", 10)
    queue.add_after("a", 20)
    queue.add_after("a", 5)
    queue.add_after("now", 0)
    assert len(queue) == 3
    assert await ready(queue) == ["now"]
    await clock.advance(4.9)
    assert await ready(queue) == []
    await clock.advance(0.2)
    assert await ready(queue) == ["a"]
    queue.done("a")
    await clock.advance(20)
    assert await ready(queue) == []
    await clock.advance(5)
    assert await ready(queue) == ["late"]


async def test_many_wishes_for_one_key_do_not_pile_up(queue: WorkQueue[str]) -> None:
    queue.add_after("first", 0.5)
    for n in range(10_000):
        queue.add_after("a", 10_000 - n)
    assert len(queue) == 2
    assert len(queue._heap) < 50


async def test_failures_back_off_and_success_forgets(queue: WorkQueue[str], clock: FakeClock) -> None:
    waits = [queue.retry("a") for _ in range(16)]
    assert waits[0] <= BASE_SECONDS and waits[3] > 2 * waits[0]
    assert 0.75 * MAX_SECONDS <= waits[-1] <= MAX_SECONDS
    assert queue.failures("a") == 16
    queue.forget("a")
    assert queue.retry("a") <= BASE_SECONDS
    await clock.advance(MAX_SECONDS)
    assert await ready(queue) == ["a"]


async def test_close_releases_whoever_waits(queue: WorkQueue[str]) -> None:
    waiting = [asyncio.ensure_future(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.add_after("a", 5)
    await queue.close()
    assert [type(r) for r in await asyncio.gather(*waiting, return_exceptions=True)] == [Closed] * 3
    queue.add("a")
    queue.add_after("a", 1)
    assert len(queue) == 0


async def test_a_cancelled_worker_does_not_lose_a_key(queue: WorkQueue[str]) -> None:
    first, second = asyncio.ensure_future(queue.get()), asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    async with asyncio.timeout(5):
        assert await second == "a"


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_bounded_and_grows(failures: int, chance: float) -> None:
    seconds = backoff_seconds(failures, chance)
    assert BASE_SECONDS * 0.75 <= seconds <= MAX_SECONDS
    assert backoff_seconds(failures + 1, chance) >= seconds


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["add", "later", "get", "done", "advance"]), st.integers(0, 3)), max_size=60))
def test_every_wish_is_followed_by_work(steps: list[tuple[str, int]]) -> None:
    """Model: after any history, once all work is done, each key was taken at least once after its last wish."""

    async def run() -> None:
        clock = FakeClock()
        queue: WorkQueue[int] = WorkQueue(clock, Random(1))
        working: list[int] = []
        wanted: set[int] = set()

        async def take() -> bool:
            try:
                async with asyncio.timeout(0):
                    key = await queue.get()
            except TimeoutError:
                return False
            assert key not in working, "worked on twice at a time"
            working.append(key)
            wanted.discard(key)
            return True

        for step, key in steps:
            if step == "add":
                queue.add(key)
                wanted.add(key)
            elif step == "later":
                queue.add_after(key, key + 1)
                wanted.add(key)
            elif step == "get":
                await take()
            elif step == "done" and working:
                queue.done(working.pop(0))
            elif step == "advance":
                await clock.advance(1)
        await clock.advance(10)
        while working or await take():
            queue.done(working.pop())
        # A delayed wish may be met by an earlier look, but none may be left.
        assert not wanted and len(queue) == 0
        await queue.close()

    asyncio.run(run())
