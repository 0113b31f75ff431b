"""What tells of changes waits for those that are on their way, and not for ever."""

from __future__ import annotations

import asyncio
from random import Random

from metaos.reconcile.manager import Manager
from metaos.reconcile.precedence import PATIENCE_SECONDS, QUIET_SECONDS, TURN_SECONDS, Precedence, Turn
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources.meta import ObjectRef
from tests.clock import FakeClock
from tests.fake_client import FakeClient


async def test_who_tells_goes_at_once_where_nothing_is_on_its_way() -> None:
    await asyncio.wait_for(Precedence(FakeClock()).after(), 1)


async def test_who_tells_waits_for_all_that_is_on_its_way_and_a_moment_more_in_order() -> None:
    clock = FakeClock()
    precedence, told = Precedence(clock), list[int]()

    async def tell(number: int) -> None:
        await precedence.after()
        told.append(number)

    with precedence.ahead():
        tasks = [asyncio.create_task(tell(number)) for number in range(3)]
        await clock.advance(PATIENCE_SECONDS / 2)
        with precedence.ahead():
            await clock.advance(QUIET_SECONDS)
        assert not told
    await clock.advance(QUIET_SECONDS / 2)
    assert not told
    await clock.advance(2 * QUIET_SECONDS)
    await asyncio.gather(*tasks)
    assert told == [0, 1, 2]


async def test_nobody_waits_for_ever_and_after_that_all_have_a_while() -> None:
    clock = FakeClock()
    precedence, told = Precedence(clock), list[float]()

    async def tell() -> None:
        while True:
            await precedence.after()
            told.append(clock.monotonic())
            await clock.sleep(TURN_SECONDS / 10)

    with precedence.ahead():
        started = clock.monotonic()
        task = asyncio.create_task(tell())
        for _ in range(200):
            await clock.advance((PATIENCE_SECONDS + TURN_SECONDS) / 50)
        task.cancel()
    assert min(told) - started >= PATIENCE_SECONDS
    share = len(told) * TURN_SECONDS / 10 / (clock.monotonic() - started)
    assert 0.1 < share < 0.4, "a fifth of the time, or so"


class Noting:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    async def reconcile(self, about: ObjectRef) -> Result:
        self._log.append(f"{self.name} {about.name}")
        await asyncio.sleep(0)
        return DONE


async def test_changes_meanwhile_become_one_look() -> None:
    clock, log = FakeClock(), list[str]()
    precedence = Precedence(clock)
    manager = Manager(FakeClient(clock), clock, Random(1), precedence)
    manager.add(Noting("first", log), [], turn=Turn.FIRST)
    manager.add(Noting("last", log), [], turn=Turn.LAST)
    await manager.start()
    one = ObjectRef("", "Pod", "shop", "one")
    with precedence.ahead():
        for _ in range(3):
            manager.enqueue("last", one)
            manager.enqueue("first", one)
            await clock.advance(QUIET_SECONDS)
        assert set(log) == {"first one"}
    await clock.advance(2 * QUIET_SECONDS)
    await clock.advance(2 * QUIET_SECONDS)
    assert log.count("last one") == 1
    await manager.stop()
