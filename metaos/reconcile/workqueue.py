"""Which objects are to be looked at: each once, never twice at a time, failures later and later.

Source: client-go ``util/workqueue`` (dirty and processing sets, delaying and rate limiting queue). Bounds: everything
is keyed by object, so the queue never holds more than there are objects; back-off doubles from 5 ms to 60 s.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Hashable
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Generic, TypeVar

from metaos.clock import Clock

K = TypeVar("K", bound=Hashable)

BASE_SECONDS = 0.005
MAX_SECONDS = 60.0


def backoff_seconds(failures: int, chance: float, base: float = BASE_SECONDS, most: float = MAX_SECONDS) -> float:
    """How long to wait after ``failures`` (1, 2, …) in a row: doubling, less up to a quarter by ``chance`` in [0, 1), so
    that those who failed together do not come back together."""
    return min(most, base * 2.0 ** min(failures - 1, 40)) * (1 - chance / 4)


class Closed(Exception):
    """The queue was closed."""


class WorkQueue(Generic[K]):
    """Life of a key: ``add`` → ``get`` → work → ``done``. A key that is added while it is worked on comes again after
    ``done``. Several workers may ``get`` from one queue."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self._clock = clock
        self._random = random
        self._ready: deque[K] = deque()
        #: To be worked on: in ``_ready``, or waiting for ``done``.
        self._dirty: set[K] = set()
        self._processing: set[K] = set()
        self._failures: dict[K, int] = {}
        #: The earliest time of each delayed key (monotonic seconds); the heap may hold outdated ones beside it.
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0
        self._getters: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        """Keys that wait for a worker or for their time."""
        return len(self._dirty | self._due.keys())

    def add(self, key: K) -> None:
        """Have ``key`` worked on as soon as possible."""
        if self._closed or key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._processing:
            self._ready.append(key)
            self._wake_getter()

    def add_after(self, key: K, seconds: float) -> None:
        """Have ``key`` worked on after ``seconds``; of several such wishes the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock.monotonic() + seconds
        if self._closed or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._heap, (due, self._order, key))
        if self._heap[0][1] == self._order:
            self._restart_timer()
        elif len(self._heap) > 2 * len(self._due) + 16:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def retry(self, key: K, least_seconds: float = 0.0) -> float:
        """Have ``key`` worked on again after a failure, and not before ``least_seconds``. Returns after how many seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = max(least_seconds, backoff_seconds(failures, self._random.random()))
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: K) -> None:
        """``key`` went well: its next failure starts from the shortest back-off."""
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """How often ``key`` failed in a row."""
        return self._failures.get(key, 0)

    async def get(self) -> K:
        """The next key; call ``done`` with it afterwards. Raises :class:`Closed`."""
        await self.wait()
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._processing.add(key)
        return key

    async def wait(self) -> None:
        """Returns when there is a next key. Raises :class:`Closed`."""
        while not self._ready:
            if self._closed:
                raise Closed
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(waiting)
            try:
                await waiting
            except asyncio.CancelledError:
                # Woken and cancelled at once: the wake-up belongs to the next one.
                if waiting.done() and not waiting.cancelled() and self._ready:
                    self._wake_getter()
                raise
        if self._closed:
            raise Closed

    def done(self, key: K) -> None:
        """The worker has finished with ``key``."""
        self._processing.discard(key)
        if key in self._dirty and not self._closed:
            self._ready.append(key)
            self._wake_getter()

    async def close(self) -> None:
        """Nothing is handed out any more; whoever waits in ``get`` gets :class:`Closed`."""
        self._closed = True
        self._ready.clear()
        self._dirty.clear()
        self._due.clear()
        self._heap.clear()
        self._failures.clear()
        while self._getters:
            self._wake_getter()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            await asyncio.gather(timer, return_exceptions=True)

    def _wake_getter(self) -> None:
        while self._getters:
            waiting = self._getters.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().create_task(self._run_timer())

    async def _run_timer(self) -> None:
        while self._heap:
            due, _, key = self._heap[0]
            wait = due - self._clock.monotonic()
            if wait > 0 and self._due.get(key) == due:
                await self._clock.sleep(wait)
                continue
            heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
