"""Virtual time: an asyncio event loop in which nothing waits, and the ``Clock`` that goes by it.

When nothing is ready, time jumps to the next timer, so a day passes as fast as what happens in it can be computed. The loop
has no sockets, threads or processes; who asks for one is refused, and what is handed to a thread is done at once. So the
same program with the same seeds does the same things in the same order.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

#: When worlds begin unless told otherwise: 2022-01-01, the first hour of the public carbon traces.
EPOCH = 1_640_995_200.0


#: Cyclic garbage is collected after so many rounds of the loop: the young, those that have lived longer, and all. By itself the
#: interpreter would do it at moments that depend on what else this process did. To look at all takes seconds where there are a
#: thousand sites, and finds little that was not found before, but for a hub that has died: see :attr:`VirtualLoop.much_is_gone`.
YOUNG_ROUNDS, OLDER_ROUNDS, ALL_ROUNDS = 2_000, 20_000, 1_000_000


class Stalled(RuntimeError):
    """Time will never go on: nothing is ready and no timer is set, or what runs in one moment runs in a circle."""


class _Jump:
    """Stands where the loop has its selector: instead of waiting, time moves."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._rounds = self._since = 0

    def select(self, timeout: float | None) -> list[Any]:
        self._rounds += 1
        if self._rounds % OLDER_ROUNDS == 0:
            everything = self._loop.much_is_gone or self._rounds % ALL_ROUNDS == 0
            gc.collect(2 if everything else 1)
            self._loop.much_is_gone = False
        elif self._rounds % YOUNG_ROUNDS == 0:
            gc.collect(0)
        if timeout is None:
            raise Stalled("nothing is ready and no timer is set: what is awaited can never come")
        if timeout > 0:
            self._loop.jump()
            self._since = self._rounds
        elif self._rounds - self._since > self._loop.most_rounds:
            self._since = self._rounds
            raise Stalled(f"time stands still at {self._loop.time():g} s: something happens again and again there")
        return []

    def close(self) -> None: ...


class _Timer(asyncio.TimerHandle):
    """Of two for the same moment the one that was set first comes first: a heap alone knows no order among them, and what it
    makes of them depends on every timer before, so on the release of Python."""

    __slots__ = ("number",)
    _when: float

    def __init__(self, number: int, when: float, callback: Callable[..., Any], args: Sequence[Any], *more: Any) -> None:
        super().__init__(when, callback, args, *more)
        self.number = number

    def __lt__(self, other: Any) -> bool:
        when: float = other._when
        return self._when < when or (self._when == when and self.number < other.number)


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. ``time()`` begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self._elapsed = 0.0
        self._selector = _Jump(self)
        self._clock_resolution = 1e-9
        self._timers = 0
        #: To be set when a large part of the world has ended: all garbage is collected soon.
        self.much_is_gone = False
        #: After so many in one moment time will never go on: what runs there runs in a circle.
        self.most_rounds = 1_000_000

    def time(self) -> float:
        return self._elapsed

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """As the usual loop, with timers that have an order."""
        self._timers += 1
        timer = _Timer(self._timers, when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def jump(self) -> None:
        """To the next timer."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        self._elapsed = max(self._elapsed, scheduled[0].when())

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """There are no threads: it is done here and now."""
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    # A simulated runtime's listeners: nothing ever comes in at them.

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> Any: ...  # type: ignore[override]

    def remove_reader(self, fd: Any) -> bool:
        return True

    # What ``BaseEventLoop`` leaves to those who have real files.

    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...


class VirtualClock:
    """Implements :class:`metaos.clock.Clock` in a ``VirtualLoop``. ``offset``: how wrong this machine's wall clock is; it may be
    changed at any time, as a wrong time server does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, epoch: float = EPOCH, offset: float = 0.0) -> None:
        self._loop, self.epoch, self.offset = loop, epoch, offset
        self._busy = 0.0

    def now(self) -> float:
        return self.epoch + self._loop.time() + self.offset

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # noqa: TID251  (virtual seconds)
        # It may be held up again meanwhile.
        while (held := self.held) > 0:  # noqa: ASYNC110
            await asyncio.sleep(held)  # noqa: TID251

    @property
    def held(self) -> float:
        """Seconds until this machine's program goes on; 0: it does."""
        return max(0.0, self._busy - self._loop.time())

    def stall(self, seconds: float) -> None:
        """This machine's program is held up for so long, after what holds it up already: who sleeps in it wakes no sooner."""
        self._busy = max(self._busy, self._loop.time()) + seconds

    def skewed(self, offset: float) -> VirtualClock:
        """Another machine's: the same passing of time, another time of day."""
        return VirtualClock(self._loop, self.epoch, offset)


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Runs ``main(loop)`` in virtual time, to its end."""
    with set_aside(), virtual() as loop, collected_by_rounds():
        return loop.run_until_complete(main(loop))


@contextmanager
def set_aside() -> Iterator[None]:
    """What is there already is not looked through for cyclic garbage again and again."""
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


@contextmanager
def collected_by_rounds() -> Iterator[None]:
    """Cyclic garbage is the loop's business, while it runs."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def virtual() -> Iterator[VirtualLoop]:
    """A loop for as long as this lasts; what is left in it then is ended."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        yield loop
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in sorted(left, key=lambda task: task.get_name()):
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
