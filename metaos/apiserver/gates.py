"""The gates that requests pass: seats of their level, bytes that are held for them, and how many may last.

What these decide by is in ``fairness``; here requests wait, and what happened is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from metaos.apiserver.fairness import LEVELS, Budget, FairQueue, Level
from metaos.apiserver.metrics import Histogram, labelled, lines_of
from metaos.clock import Clock
from metaos.resources import errors
from metaos.resources.errors import ApiError

#: So long a request waits for its seats.
QUEUE_SECONDS = 15.0
#: Bodies that are being received or sent, as far as they are larger than ``SMALL_BYTES``: of one caller, and of all.
SMALL_BYTES = 64 * 1024
BODIES_EACH, BODIES_TOTAL = 64 << 20, 512 << 20
#: Watches, logs and connections of one caller, and of all, at a time.
LONG_RUNNING_EACH, LONG_RUNNING_TOTAL = 1024, 8192

#: Connections of one caller, from wherever, and of those at one address who have not said who they are; see
#: ``listening`` for those of one address and of all.
CONNECTIONS_EACH, CONNECTIONS_UNKNOWN = 2048, 256


#: Bodies from this size on take the processor for so long that they are worked on one after another, with as much time
#: for all others in between; and so many bytes are worth a seat.
LARGE_BYTES, BYTES_PER_SEAT = 256 * 1024, 128 * 1024


@dataclass(slots=True, eq=False)
class Ticket:
    """One request that waits for ``seats``. ``gone``: its seats came when its caller had already left."""

    flow: str
    seats: int
    gone: bool = False
    #: Made where it has to wait.
    admitted: asyncio.Future[None] = field(init=False)


class Gate:
    """One level's seats."""

    def __init__(self, level: Level, clock: Clock) -> None:
        self.queue: FairQueue[Ticket] = FairQueue(level)
        self.dispatched = 0
        self.rejected = {"queue-full": 0, "time-out": 0}
        self.waited = Histogram()
        self._clock = clock

    @asynccontextmanager
    async def seats(self, flow: str, count: int) -> AsyncIterator[None]:
        """Raises ``ApiError`` 429 where there is no room, or the wait was too long."""
        await self.enter(flow, count)
        try:
            yield
        finally:
            self.leave(flow, count)

    @asynccontextmanager
    async def seats_at_first(self, flow: str, count: int, seconds: float) -> AsyncIterator[Callable[[], None]]:
        """:meth:`seats` for so many seconds, or until what this yields is called: who waits for others then takes no seat."""
        await self.enter(flow, count)
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                self.leave(flow, count)

        limit = asyncio.get_running_loop().call_later(seconds, leave)
        try:
            yield leave
        finally:
            limit.cancel()
            leave()

    async def enter(self, flow: str, count: int) -> None:
        """:meth:`seats`, until :meth:`leave`."""
        ticket = Ticket(flow, count)
        admitted = self.queue.arrive(flow, count, ticket)
        if admitted is None:
            self.rejected["queue-full"] += 1
            raise errors.too_many_requests(
                f"too many of your requests wait at priority level {self.queue.level.name}; send fewer at a time", 1
            )
        if not admitted:
            await self._wait(ticket)
        self.dispatched += 1

    def leave(self, flow: str, count: int) -> None:
        self.queue.leave(flow, count)
        self._dispatch()

    async def _wait(self, ticket: Ticket) -> None:
        ticket.admitted = asyncio.get_running_loop().create_future()
        started = self._clock.monotonic()
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                await ticket.admitted
        except BaseException as ended:
            self._abandon(ticket)
            if not isinstance(ended, TimeoutError):
                raise
            self.rejected["time-out"] += 1
            raise errors.too_many_requests(
                f"the request waited for {QUEUE_SECONDS:g} s at priority level {self.queue.level.name}; try again later", 5
            ) from None
        finally:
            self.waited.observe(self._clock.monotonic() - started)

    def _abandon(self, ticket: Ticket) -> None:
        if ticket.gone:
            return
        if ticket.admitted.done() and not ticket.admitted.cancelled():
            self.queue.leave(ticket.flow, ticket.seats)  # It was let in at the same moment.
        else:
            self.queue.give_up(ticket.flow, ticket)
        self._dispatch()

    def _dispatch(self) -> None:
        while (ticket := self.queue.next()) is not None:
            if ticket.admitted.done():
                ticket.gone = True
                self.queue.leave(ticket.flow, ticket.seats)
            else:
                ticket.admitted.set_result(None)


class TooManyConnections(ApiError):
    """The connection is closed with this answer."""

    def __init__(self, most: int) -> None:
        text = f"one caller may have {most} connections; close some, then try again"
        super().__init__(429, "TooManyRequests", text, details={"retryAfterSeconds": 5})


class Gates:
    """All levels, and what is bounded for each caller whatever its level."""

    def __init__(self, clock: Clock) -> None:
        self._gates = {level: Gate(level, clock) for level in LEVELS}
        self._bodies = Budget(BODIES_EACH, BODIES_TOTAL)
        self._lasting = Budget(LONG_RUNNING_EACH, LONG_RUNNING_TOTAL)
        self._connections: dict[str, WeakSet[Any]] = {}
        self._clock = clock
        self._large, self._rested = asyncio.Lock(), 0.0
        self.refused = {"bodies": 0, "long-running": 0, "connections": 0}

    def of(self, level: Level) -> Gate:
        return self._gates[level]

    def connected(self, flow: str, transport: Any, most: int = CONNECTIONS_EACH) -> None:
        """Notes whose connection this is. Raises :class:`TooManyConnections` where they have too many."""
        mine = self._connections.get(flow)
        if mine is None:
            for idle in [other for other, each in self._connections.items() if not each]:
                del self._connections[idle]
            mine = self._connections[flow] = WeakSet()
        if transport in mine:
            return
        if len(mine) >= most:
            self.refused["connections"] += 1
            raise TooManyConnections(most)
        mine.add(transport)

    @contextmanager
    def holding(self, flow: str, count: int) -> Iterator[None]:
        """Memory for a body. Raises ``ApiError`` 429."""
        if count <= SMALL_BYTES:
            yield
            return
        if not self._bodies.take(flow, count):
            self.refused["bodies"] += 1
            raise errors.too_many_requests("too many large bodies are on their way to or from you; one after another, please", 1)
        try:
            yield
        finally:
            self._bodies.give(flow, count)

    @asynccontextmanager
    async def one_by_one(self) -> AsyncIterator[None]:
        """The time in which a body or object of ``LARGE_BYTES`` or more is worked on."""
        async with self._large:
            await self._clock.sleep(max(0.0, self._rested - self._clock.monotonic()))
            started = self._clock.monotonic()
            try:
                yield
            finally:
                now = self._clock.monotonic()
                self._rested = now + (now - started)

    @contextmanager
    def lasting(self, flow: str) -> Iterator[None]:
        """Room for what lasts as long as its caller likes. Raises ``ApiError`` 429."""
        if not self._lasting.take(flow, 1):
            self.refused["long-running"] += 1
            raise errors.too_many_requests(
                f"one caller may have {LONG_RUNNING_EACH} watches, logs and connections at a time, "
                f"all together {LONG_RUNNING_TOTAL}; end some, then try again",
                5,
            )
        try:
            yield
        finally:
            self._lasting.give(flow, 1)

    def render(self) -> list[str]:
        """Lines of Prometheus' text form; names as Kubernetes has them."""
        gates = [(gate.queue.level.name, gate) for gate in self._gates.values()]
        prefix = "apiserver_flowcontrol"
        rejected = [
            labelled({"priority_level": name, "reason": why}, count) for name, g in gates for why, count in g.rejected.items()
        ]
        lines = lines_of(f"{prefix}_rejected_requests_total", "counter", "Requests refused with 429, by reason.", rejected)
        for what, kind, text, values in (
            ("dispatched_requests_total", "counter", "Requests let in.", [g.dispatched for _, g in gates]),
            ("current_inqueue_requests", "gauge", "Requests that wait.", [g.queue.waiting for _, g in gates]),
            ("current_executing_seats", "gauge", "Seats that are taken.", [g.queue.taken for _, g in gates]),
            ("nominal_limit_seats", "gauge", "Seats that there are.", [g.queue.level.seats for _, g in gates]),
            ("current_flows", "gauge", "Callers with something that runs or waits.", [g.queue.flows for _, g in gates]),
        ):
            samples = [labelled({"priority_level": name}, count) for (name, _), count in zip(gates, values, strict=True)]
            lines += lines_of(f"{prefix}_{what}", kind, text, samples)
        waits = [
            line
            for name, g in gates
            for line in g.waited.lines(f"{prefix}_request_wait_duration_seconds", {"priority_level": name})
        ]
        lines += [f"# TYPE {prefix}_request_wait_duration_seconds histogram", *waits]
        refused = [labelled({"reason": why}, count) for why, count in self.refused.items()]
        lines += lines_of("nemo_refused_requests_total", "counter", "Requests refused for a caller's own bounds.", refused)
        return [*lines, *lines_of("nemo_bodies_bytes", "gauge", "Held for large bodies.", [labelled({}, self._bodies.held)])]
