"""Flows of datagrams (UDP): what one socket exchanges with one endpoint. Nothing waits: what does not fit is dropped and counted.

A flow lives as long as datagrams pass. A stream of the tunnel carries many: each message is the flow's number (4 bytes, big
endian) and one datagram.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

from metaos.tunnel import Stream

log = logging.getLogger(__name__)

#: Flows that a site has at the same time, and those of one of its pods (or of a pod of another site to one endpoint here).
#: A pod that begins more loses the one that was quiet for longest; of a site that has too many, the pod with most loses one.
MAX_FLOWS = 1024
MAX_POD_FLOWS = 256
#: A flow without datagrams in either direction ends after this long.
IDLE_SECONDS = 60.0
#: What a UDP datagram can carry over IPv4.
MAX_DATAGRAM = 65_507
#: What may wait for a flow's way to be found, or for a stream's credit.
WAITING, WAITING_BYTES = 64, 256 * 1024
#: Of all flows and streams of a site together.
SITE_WAITING_BYTES = 4 * 1024 * 1024
#: Datagrams that one socket hands over before others have their turn.
BATCH = 32
#: What was dropped is said so often at most.
SAY_SECONDS = 60.0
_NUMBER = 4

K = TypeVar("K", bound=Hashable)


class Counts:
    """Of one site: flows that there are, and datagrams that were carried or dropped, by reason."""

    def __init__(self) -> None:
        self.flows = 0
        #: Who has any.
        self.holders: set[Flows[Any]] = set()
        self.carried = 0
        #: Bytes that wait.
        self.waiting = 0
        self.dropped: dict[str, int] = {}
        #: Bytes of pods (uid, or namespace and name) that left for other sites, by TCP and UDP, since somebody looked.
        self.left: dict[Hashable, int] = {}
        self._said = -SAY_SECONDS

    def leave(self, pod: Hashable, size: int) -> None:
        self.left[pod] = self.left.get(pod, 0) + size

    def drop(self, why: str, number: int = 1) -> None:
        if not number:
            return
        self.dropped[why] = self.dropped.get(why, 0) + number
        now = asyncio.get_running_loop().time()
        if now - self._said >= SAY_SECONDS:
            self._said = now
            log.info(
                "datagrams (UDP) dropped since the start, by reason: %s; carried: %d",
                ", ".join(f"{count} ({reason})" for reason, count in sorted(self.dropped.items())),
                self.carried,
            )


class Waiting:
    """A bounded queue of datagrams, with their flows' numbers."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._queue: deque[tuple[int, bytes]] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, number: int, data: bytes) -> None:
        full = len(self._queue) >= WAITING or self._bytes + len(data) > WAITING_BYTES
        if full or self._counts.waiting + len(data) > SITE_WAITING_BYTES:
            self._counts.drop("no room to wait")
            return
        self._queue.append((number, data))
        self._hold(len(data))

    def take(self) -> tuple[int, bytes]:
        number, data = self._queue.popleft()
        self._hold(-len(data))
        return number, data

    def drop(self, why: str) -> None:
        self._counts.drop(why, len(self._queue))
        self._queue.clear()
        self._hold(-self._bytes)

    def _hold(self, more: int) -> None:
        self._bytes += more
        self._counts.waiting += more


class Way(Protocol):
    """Where a flow leads."""

    def send(self, data: bytes) -> None:
        """Never waits. Raises ``OSError`` where nobody is there any more."""
        ...

    def close(self) -> None: ...


class Flow:
    """``find`` makes its way; until it is there a few datagrams wait. ``ended``: it cannot go on."""

    def __init__(self, find: Callable[[Flow], Awaitable[Way]], ended: Callable[[Flow], None], counts: Counts) -> None:
        self._ended, self._counts = ended, counts
        self._waiting = Waiting(counts)
        self._way: Way | None = None
        #: What its way leads to.
        self.endpoint: object = None
        #: Whose datagrams they are; ``None`` as long as it has no way.
        self.whose: str | None = None
        #: When it was last used, and when it was last looked at whether it may be.
        self.used = self.checked = asyncio.get_running_loop().time()
        self.task = asyncio.get_running_loop().create_task(self._begin(find))

    async def _begin(self, find: Callable[[Flow], Awaitable[Way]]) -> None:
        try:
            self._way = await find(self)
        except (OSError, LookupError, TimeoutError) as error:
            log.debug("a flow of datagrams comes to nothing: %s", error)
            self._ended(self)
            return
        while self._waiting and self._way is not None:
            self.send(self._waiting.take()[1])

    def send(self, data: bytes) -> None:
        if self._way is None:
            self._waiting.add(0, data)
            return
        try:
            self._way.send(data)
            self._counts.carried += 1
        except BlockingIOError:
            self._counts.drop("the receiver is slow")
        except OSError:
            # That nobody listens is known by the datagram before: the next one begins a flow anew.
            self._counts.drop("nobody listens")
            self._ended(self)

    def close(self) -> None:
        self.task.cancel()
        self._waiting.drop("the endpoint cannot be reached")
        if self._way is not None:
            self._way.close()
            self._way = None


class Flows(Generic[K]):
    """Those of one pod, the one that was quiet for longest first."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._flows: OrderedDict[K, Flow] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._flows)

    def use(self, key: K) -> Flow | None:
        flow = self._flows.get(key)
        if flow is not None:
            flow.used = asyncio.get_running_loop().time()
            self._flows.move_to_end(key)
        return flow

    def begin(self, key: K, find: Callable[[Flow], Awaitable[Way]]) -> Flow:
        if len(self._flows) >= MAX_POD_FLOWS:
            self._give_up()
        elif self._counts.flows >= MAX_FLOWS:
            # So few pods with many flows do not keep the others from having any.
            max(self._counts.holders, key=len)._give_up()
        flow = Flow(find, lambda ended: self.end(key, ended), self._counts)
        self._flows[key] = flow
        self._counts.flows += 1
        self._counts.holders.add(self)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._sweep)
        return flow

    def end(self, key: K, flow: Flow | None = None) -> None:
        """``flow``: only if it is still this one."""
        found = self._flows.get(key)
        if found is None or (flow is not None and found is not flow):
            return
        del self._flows[key]
        self._counts.flows -= 1
        if not self._flows:
            self._counts.holders.discard(self)
        found.close()

    def _give_up(self) -> None:
        """The one that was quiet for longest."""
        self.end(next(iter(self._flows)))

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._flows and now - next(iter(self._flows.values())).used >= IDLE_SECONDS:
            self.end(next(iter(self._flows)))
        self._timer = None
        if self._flows:
            left = IDLE_SECONDS - (now - next(iter(self._flows.values())).used)
            self._timer = asyncio.get_running_loop().call_later(left, self._sweep)

    def close(self) -> None:
        for key in list(self._flows):
            self.end(key)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Near:
    """To a pod of this site, by a connected socket."""

    def __init__(self, sock: socket.socket, received: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._sock, self._received, self._ended = sock, received, ended
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    def send(self, data: bytes) -> None:
        self._sock.send(data)

    def _read(self) -> None:
        for _ in range(BATCH):
            try:
                data = self._sock.recv(MAX_DATAGRAM + 1)
            except BlockingIOError:
                return
            except OSError:  # nobody listens
                self._ended()
                return
            self._received(data)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._sock.close()


class Link:
    """Datagrams of many flows over one stream; ``pod``: of this site, whose they are."""

    def __init__(self, stream: Stream, counts: Counts, pod: Hashable) -> None:
        self._stream, self._counts, self._pod = stream, counts, pod
        self._waiting = Waiting(counts)
        self._more = asyncio.Event()
        #: Nothing is carried any more.
        self.over = False

    def send(self, number: int, data: bytes) -> None:
        if self.over:
            self._counts.drop("the stream has ended")
            return
        self._waiting.add(number, data)
        self._more.set()

    async def run(self, received: Callable[[int, bytes], None]) -> None:
        """Until one end has had enough. Raises ``ConnectionError``."""
        tasks = [asyncio.ensure_future(self._write()), asyncio.ensure_future(self._read(received))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            self.over = True
            self._waiting.drop("the stream has ended")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            while self._waiting:
                number, data = self._waiting.take()
                await self._stream.write(number.to_bytes(_NUMBER, "big") + data)
                self._counts.leave(self._pod, len(data))
            self._more.clear()
            await self._more.wait()

    async def _read(self, received: Callable[[int, bytes], None]) -> None:
        while message := await self._stream.read():
            if not _NUMBER <= len(message) <= _NUMBER + MAX_DATAGRAM:
                raise ConnectionAbortedError(f"a message of {len(message)} bytes is no flow's datagram")
            received(int.from_bytes(message[:_NUMBER], "big"), message[_NUMBER:])
