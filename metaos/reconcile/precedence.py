"""What is on its way to sites goes before what is told of it: a hub has one processor for both.

Where many objects are applied at once, each brings several times as many reports: statuses, pods, events. What users ask for and
what carries it to sites is ``ahead``; who tells of it waits in :meth:`Precedence.after`, and meanwhile several changes become
one. Nothing starves: after ``PATIENCE_SECONDS`` all who wait have ``TURN_SECONDS``. Bound: who waits is held by its own caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from metaos.clock import Clock

#: A client sends its next request a moment after the answer to the last: for so long it counts as on its way.
QUIET_SECONDS = 0.02
PATIENCE_SECONDS, TURN_SECONDS = 1.0, 0.25


class Turn(Enum):
    """``FIRST``: it carries to sites what users asked for. ``LAST``: it tells of that."""

    FIRST = "first"
    ANY = "any"
    LAST = "last"


class Precedence:
    """One of a hub, for its API server and its controllers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead = 0
        self._ended = self._turn_ends = float("-inf")
        self._turn = asyncio.Lock()

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """The time in which something is on its way."""
        self._ahead += 1
        try:
            yield
        finally:
            self._ahead -= 1
            self._ended = self._clock.monotonic()

    async def after(self) -> None:
        """Returns when nothing is on its way, or others have been waited for long enough; in the order of the calls."""
        if not self._turn.locked() and not self._holds():
            return
        async with self._turn:
            since = self._clock.monotonic()
            while self._holds():
                if self._clock.monotonic() - since >= PATIENCE_SECONDS:
                    self._turn_ends = self._clock.monotonic() + TURN_SECONDS
                    return
                await self._clock.sleep(QUIET_SECONDS)

    def _holds(self) -> bool:
        now = self._clock.monotonic()
        return now >= self._turn_ends and (self._ahead > 0 or now < self._ended + QUIET_SECONDS)
