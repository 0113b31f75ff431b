"""A clock for tests: time stands still until it is advanced."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class FakeClock:
    """Implements :class:`metaos.clock.Clock`. ``advance`` wakes sleepers in the order of their deadlines."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._epoch = now
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._epoch + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), woken))
        await woken

    @property
    def sleepers(self) -> int:
        """How many are asleep."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    async def settle(self, rounds: int = 50) -> None:
        """Let every task run until it waits (for tasks that wait on nothing outside the event loop)."""
        for _ in range(rounds):
            await asyncio.sleep(0)

    def elapse(self, seconds: float) -> None:
        """Time passes and nobody is woken: the process stands still."""
        self._elapsed += seconds

    async def advance(self, seconds: float) -> None:
        """Move time forward; between two deadlines whoever was woken runs, and may go to sleep again."""
        target = self._elapsed + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            deadline, _, woken = heapq.heappop(self._sleepers)
            if woken.done():
                continue
            self._elapsed = max(self._elapsed, deadline)
            woken.set_result(None)
            await self.settle()
        self._elapsed = target
        await self.settle()
