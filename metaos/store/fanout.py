"""Watchers of a store in this process: each has a bounded buffer of what it has not yet taken.

Lives in the event loop alone, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from metaos.store.log import Compacted, LogEvent

#: Events that a watcher may be behind before it is told to list again.
BUFFER = 1024
#: Events of history that are read at a time.
PAGE = 500


class Watcher:
    """What one watcher still has to take. ``overflown``: it fell too far behind and its buffer was dropped."""

    def __init__(self, prefix: str, bound: int) -> None:
        self.prefix = prefix
        self.bound = bound
        self.events: deque[LogEvent] = deque()
        self.overflown = False
        self.ended = False
        self._news = asyncio.Event()

    def offer(self, event: LogEvent) -> None:
        if self.overflown:
            return
        if len(self.events) >= self.bound:
            self.overflow()
            return
        self.events.append(event)
        self._news.set()

    def overflow(self) -> None:
        self.overflown = True
        self.events.clear()
        self._news.set()

    def end(self) -> None:
        self.ended = True
        self._news.set()

    async def wait(self) -> None:
        """Until there is an event, an overflow or the end."""
        while not (self.events or self.overflown or self.ended):
            self._news.clear()
            await self._news.wait()

    async def next(self, seen: int, latest: Callable[[], int]) -> LogEvent | None:
        """The next event above revision ``seen``; ``None`` at the end. Raises ``Compacted`` once it fell too far behind;
        ``latest`` says from which revision on to list then."""
        while True:
            await self.wait()
            if self.overflown:
                raise Compacted(seen, latest())
            if not self.events:
                return None
            event = self.events.popleft()
            if event.revision > seen:
                return event


class FanOut:
    """All watchers, told of each revision once, in order."""

    def __init__(self, bound: int = BUFFER) -> None:
        self._bound = bound
        #: In the order in which they came, so that they are told in one order.
        self._watchers: dict[Watcher, None] = {}
        self._ended = False

    def __len__(self) -> int:
        return len(self._watchers)

    def attach(self, prefix: str) -> Watcher:
        """A watcher of every event that is published from now on."""
        watcher = Watcher(prefix, self._bound)
        if self._ended:
            watcher.end()
        self._watchers[watcher] = None
        return watcher

    def detach(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)

    async def follow(
        self,
        prefix: str,
        after: int,
        history: Callable[[str, int], Awaitable[tuple[Sequence[LogEvent], int]]],
        latest: Callable[[], int],
    ) -> AsyncIterator[LogEvent]:
        """Every event on ``prefix`` above revision ``after``, in order: from the log first, then live, with no gap between.
        ``history`` reads at most :data:`PAGE` events above a revision, and up to which one that is all there is; ``latest`` is as
        for :meth:`Watcher.next`. Raises what ``history`` raises, and ``Compacted``."""
        seen = after
        watcher: Watcher | None = None
        try:
            while True:
                # Attached before the log is read, so what is committed meanwhile is in the log, the buffer, or both.
                watcher = self.attach(prefix)
                if self._ended:
                    return
                events, seen = await history(prefix, seen)
                for event in events:
                    yield event
                if len(events) < PAGE and not watcher.overflown:
                    break
                self.detach(watcher)
            while (live := await watcher.next(seen, latest)) is not None:
                seen = live.revision
                yield live
        finally:
            if watcher is not None:
                self.detach(watcher)

    def publish(self, events: Iterable[LogEvent]) -> None:
        for event in events:
            for watcher in self._watchers:
                if event.key.startswith(watcher.prefix):
                    watcher.offer(event)

    def overflow(self) -> None:
        """Events are missing: everybody is told to list again."""
        for watcher in self._watchers:
            watcher.overflow()

    def end(self) -> None:
        self._ended = True
        for watcher in self._watchers:
            watcher.end()
