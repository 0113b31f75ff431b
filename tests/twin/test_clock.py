"""Virtual time: nothing waits, nothing is left to chance, and what would leave the loop is done at once or refused."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest

from metaos.twin.clock import EPOCH, Stalled, VirtualClock, VirtualLoop, run


def test_a_day_takes_no_time_and_timers_come_in_order() -> None:
    async def main(loop: VirtualLoop) -> list[tuple[float, str]]:
        clock, found = VirtualClock(loop), []

        async def nap(name: str, seconds: float) -> None:
            await clock.sleep(seconds)
            found.append((clock.monotonic(), name))

        await asyncio.gather(nap("c", 86400), nap("a", 1), nap("b", 1), nap("d", 86400))
        assert clock.now() == EPOCH + 86400
        return found

    began = time.monotonic()
    assert run(main) == [(1, "a"), (1, "b"), (86400, "c"), (86400, "d")]
    # A thousandth of it, on however slow a machine.
    assert time.monotonic() - began < 86


def test_timeouts_go_by_it() -> None:
    async def main(loop: VirtualLoop) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(500):
                await asyncio.Event().wait()
        return loop.time()

    assert run(main) == 500


def test_a_thread_s_work_is_done_at_once() -> None:
    async def main(loop: VirtualLoop) -> tuple[int, float]:
        found = await asyncio.to_thread(lambda: 7)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return found, loop.time()

    assert run(main) == (7, 0.0)


def test_there_are_no_sockets_and_no_processes() -> None:
    async def main(loop: VirtualLoop) -> None:
        with pytest.raises(NotImplementedError):
            await asyncio.create_subprocess_exec("true")
        with pytest.raises(NotImplementedError):
            await asyncio.open_connection("127.0.0.1", 1)

    run(main)


def test_waiting_for_what_never_comes_is_an_error_and_not_for_ever() -> None:
    async def main(loop: VirtualLoop) -> None:
        await loop.create_future()

    with pytest.raises(Stalled):
        run(main)


def test_running_in_a_circle_is_an_error_and_not_for_ever() -> None:
    rounds = 0

    async def main(loop: VirtualLoop) -> None:
        nonlocal rounds
        loop.most_rounds = 1000
        await VirtualClock(loop).sleep(7)
        while True:
            rounds += 1
            await asyncio.sleep(0)

    with pytest.raises(Stalled, match="time stands still at 7 s"):
        run(main)
    assert 1000 <= rounds < 1100


def test_timers_of_one_moment_come_in_the_order_in_which_they_were_set() -> None:
    """Whatever was set and taken back before: the heap in which the loop keeps them knows no such order by itself."""

    async def main(loop: VirtualLoop) -> list[int]:
        found: list[int] = []
        random = Random(1)
        for number in range(2000):
            loop.call_later(7, found.append, number)
            for _ in range(random.randrange(4)):
                loop.call_later(random.choice((5, 7, 9)), found.append, -1).cancel()
        await asyncio.sleep(8)
        return found

    assert run(main) == list(range(2000))


def test_a_skewed_clock_differs_in_the_time_of_day_alone() -> None:
    async def main(loop: VirtualLoop) -> None:
        clock = VirtualClock(loop)
        other = clock.skewed(3600.0)
        await other.sleep(5)
        assert (clock.monotonic(), other.monotonic()) == (5, 5)
        assert other.now() - clock.now() == 3600
        other.offset = -60.0
        assert other.now() - clock.now() == -60

    run(main)
