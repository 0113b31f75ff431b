"""Time as an argument: the ``Clock`` protocol, and the system's own for composition roots."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Wall-clock and monotonic seconds, and sleeping by them."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clock. Only composition roots make one. ``suspended``: monotonic seconds go on while the machine is."""

    def __init__(self, *, suspended: bool = False) -> None:
        self._monotonic = time.CLOCK_BOOTTIME if suspended else time.CLOCK_MONOTONIC

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.clock_gettime(self._monotonic)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def sleep_or(clock: Clock, seconds: float, event: asyncio.Event) -> None:
    """Sleep, but no longer than until ``event`` is set."""
    sleeping = asyncio.ensure_future(clock.sleep(seconds))
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((sleeping, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sleeping, waiting):
            task.cancel()
        await asyncio.gather(sleeping, waiting, return_exceptions=True)
