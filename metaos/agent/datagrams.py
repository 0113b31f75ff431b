"""Services by UDP: receives what a site's pods send at their gateways, and relays it to an endpoint and back.

Endpoints and NetworkPolicies are looked at when a flow begins, and again while it goes on, so a flow whose endpoint has gone,
or may not be reached any more, is led elsewhere or ends. See :mod:`metaos.agent.flows` for what is bounded.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

from metaos.agent.flows import BATCH, MAX_DATAGRAM, Counts, Flow, Flows, Link, Near, Way
from metaos.agent.routes import Listener, LocalEndpoint, RemoteEndpoint, Route
from metaos.plugins.points import Runtime
from metaos.tunnel import Stream

log = logging.getLogger(__name__)

Endpoint = LocalEndpoint | RemoteEndpoint
#: Endpoints that one flow tries before it gives up.
MAX_TRIES = 4
CONNECT_SECONDS = 5.0
#: How long a flow may go on before it is looked at again.
RECHECK_SECONDS = 1.0
PKTINFO = 8  # of ip(7); Python names it from 3.13 on
_INFO = struct.Struct("=i4s4s")

#: (pod's uid, address and port that it sends to, and from) → the route, and its endpoints in the order to try; an empty list
#: where none may be reached.
Choose = Callable[[str, Listener, Listener], tuple[Route, list[Endpoint]] | None]
#: A stream for the datagrams of a pod to an endpoint at another site: (pod's uid, whose they are, …). Raises ``OSError``.
Reach = Callable[[str, str, Route, RemoteEndpoint], Awaitable[Stream]]
#: By the address that datagrams come from: those of one have streams of their own.
Whose = Callable[[str], str]
_Key = tuple[Listener, tuple[str, int]]
#: Whose datagrams a stream carries, of which Service, and to where.
_Led = tuple[str, str, RemoteEndpoint]


class _Trunk:
    """All flows of one pod to one endpoint at another site."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.replies: dict[int, Callable[[bytes], None]] = {}
        self.ends: dict[int, Callable[[], None]] = {}
        self._next = 0

    def lead(self, received: Callable[[bytes], None], ended: Callable[[], None]) -> int:
        """A new flow's number. Raises ``ConnectionError``."""
        if self.link.over:  # since it was waited for
            raise ConnectionAbortedError("the stream has ended")
        self._next = (self._next + 1) % 2**32
        self.replies[self._next], self.ends[self._next] = received, ended
        return self._next

    def received(self, number: int, data: bytes) -> None:
        reply = self.replies.get(number)
        if reply is not None:
            reply(data)


class _Far:
    """To a pod of another site."""

    def __init__(self, trunk: _Trunk, number: int, unused: Callable[[], None]) -> None:
        self._trunk, self._number, self._unused = trunk, number, unused

    def send(self, data: bytes) -> None:
        self._trunk.link.send(self._number, data)

    def close(self) -> None:
        self._trunk.replies.pop(self._number, None)
        self._trunk.ends.pop(self._number, None)
        if not self._trunk.replies:
            self._unused()


class _Origin:
    """A pod that sends."""

    def __init__(self, uid: str, counts: Counts) -> None:
        self.uid = uid
        self.sockets: dict[int, socket.socket] = {}
        self.flows: Flows[_Key] = Flows(counts)
        self.trunks: dict[_Led, tuple[asyncio.Task[None], asyncio.Future[_Trunk]]] = {}


class Datagrams:
    """Those that the pods of this site send to Services. ``runtime``: ``None`` where no endpoint is of this site."""

    def __init__(
        self, runtime: Runtime | None, choose: Choose, reach: Reach, counts: Counts, whose: Whose = lambda address: ""
    ) -> None:
        self._runtime: Any = runtime
        self._choose, self._reach, self._counts, self._whose = choose, reach, counts, whose
        self._origins: dict[str, _Origin] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ports(self, uid: str) -> set[int]:
        """On which a pod's datagrams are received."""
        origin = self._origins.get(uid)
        return set(origin.sockets) if origin else set()

    async def listen(self, uid: str, ports: set[int]) -> set[int]:
        """Receive what the pod sends to these ports, and no others; those that a flow to the pod has at the moment. Raises
        ``OSError``, ``LookupError``."""
        taken: set[int] = set()
        origin = self._origins.setdefault(uid, _Origin(uid, self._counts))
        for port in origin.sockets.keys() - ports:
            self._close(origin, port)
        for port in sorted(ports - origin.sockets.keys()):
            try:
                sock = await self._runtime.receive(uid, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                taken.add(port)
                continue
            if self._origins.get(uid) is not origin or port in origin.sockets:  # detached, or done by another, meanwhile
                sock.close()
                return taken
            self._read(origin, port, sock)
        return taken

    def take(self, uid: str, port: int, sock: socket.socket) -> None:
        """Receive by a socket that there is; it is closed by :meth:`release`."""
        self._read(self._origins.setdefault(uid, _Origin(uid, self._counts)), port, sock)

    def release(self, uid: str, port: int) -> None:
        """The last one of ``uid`` ends its flows."""
        origin = self._origins.get(uid)
        if origin is not None and port in origin.sockets:
            self._close(origin, port)
            if not origin.sockets:
                self.detach(uid)

    def _read(self, origin: _Origin, port: int, sock: socket.socket) -> None:
        origin.sockets[port] = sock
        asyncio.get_running_loop().add_reader(sock, self._arrived, origin, port, sock)

    def detach(self, uid: str) -> None:
        origin = self._origins.pop(uid, None)
        if origin is not None:
            origin.flows.close()
            for task, _ in list(origin.trunks.values()):
                task.cancel()
            for port in list(origin.sockets):
                self._close(origin, port)

    async def close(self) -> None:
        for uid in list(self._origins):
            self.detach(uid)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _close(self, origin: _Origin, port: int) -> None:
        sock = origin.sockets.pop(port)
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()

    # -- from a pod ------------------------------------------------------------------------------------------

    def _arrived(self, origin: _Origin, port: int, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data, more, _, source = sock.recvmsg(MAX_DATAGRAM + 1, socket.CMSG_SPACE(_INFO.size))
            except OSError:  # nothing more, or an answer that nobody took
                return
            found = [content for level, kind, content in more if (level, kind) == (socket.IPPROTO_IP, PKTINFO)]
            if found:
                address = socket.inet_ntoa(_INFO.unpack(found[0])[2])
                self._pass(origin, sock, ((address, port), source), data)

    def _pass(self, origin: _Origin, sock: socket.socket, key: _Key, data: bytes) -> None:
        flow = self._use(origin, key) or self._begin(origin, sock, key)
        if flow is not None:
            flow.send(data)

    def _use(self, origin: _Origin, key: _Key) -> Flow | None:
        """The flow that goes on, unless it may not any more: then it ends."""
        flow = origin.flows.use(key)
        if flow is not None and flow.used - flow.checked >= RECHECK_SECONDS:
            flow.checked = flow.used
            chosen = self._choose(origin.uid, *key)
            gone = chosen is None or (flow.endpoint is not None and flow.endpoint not in chosen[1])
            if gone or flow.whose not in (None, self._whose(key[1][0])):
                origin.flows.end(key)
                return None
        return flow

    def _begin(self, origin: _Origin, sock: socket.socket, key: _Key) -> Flow | None:
        chosen = self._choose(origin.uid, *key)
        if chosen is None or not chosen[1]:
            self._counts.drop("no endpoint that may be reached")
            return None
        route, endpoints = chosen
        (address, _), source = key

        def reply(data: bytes) -> None:
            if self._use(origin, key) is None:
                self._counts.drop("it may not be answered any more")
                return
            info = _INFO.pack(0, socket.inet_aton(address), bytes(4))
            try:
                sock.sendmsg([data], [(socket.IPPROTO_IP, PKTINFO, info)], 0, source)
                self._counts.carried += 1
            except OSError:
                self._counts.drop("the pod does not take the answer")

        def ended() -> None:
            origin.flows.end(key)

        async def find(flow: Flow) -> Way:
            why: BaseException | None = None
            whose = self._whose(source[0])
            for endpoint in endpoints[:MAX_TRIES]:
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        way = await self._way(origin, whose, route, endpoint, reply, ended)
                    flow.endpoint, flow.whose = endpoint, whose
                    return way
                except (OSError, LookupError, TimeoutError) as error:
                    why = error
            raise OSError(f"Service {route.service}: {why}")

        return origin.flows.begin(key, find)

    async def _way(
        self,
        origin: _Origin,
        whose: str,
        route: Route,
        endpoint: Endpoint,
        reply: Callable[[bytes], None],
        ended: Callable[[], None],
    ) -> Way:
        if isinstance(endpoint, LocalEndpoint):
            return Near(await self._runtime.datagrams(endpoint.pod, endpoint.port), reply, ended)
        led = whose, route.service, endpoint
        trunk = await self._trunk(origin, led, route)
        return _Far(trunk, trunk.lead(reply, ended), lambda: self._cut(origin, led, trunk))

    # -- to other sites --------------------------------------------------------------------------------------

    async def _trunk(self, origin: _Origin, led: _Led, route: Route) -> _Trunk:
        if led not in origin.trunks:
            ready: asyncio.Future[_Trunk] = asyncio.get_running_loop().create_future()
            task = asyncio.get_running_loop().create_task(self._carry(origin, led, route, ready))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            origin.trunks[led] = task, ready
        return await asyncio.shield(origin.trunks[led][1])

    async def _carry(self, origin: _Origin, led: _Led, route: Route, ready: asyncio.Future[_Trunk]) -> None:
        whose, _, endpoint = led
        trunk: _Trunk | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                stream = await self._reach(origin.uid, whose, route, endpoint)
            try:
                trunk = _Trunk(Link(stream, self._counts, origin.uid))
                ready.set_result(trunk)
                # Whoever waited for it has begun by then, or has given up.
                idle = asyncio.get_running_loop().call_later(CONNECT_SECONDS, self._cut, origin, led, trunk)
                try:
                    await trunk.link.run(trunk.received)
                finally:
                    idle.cancel()
            finally:
                await stream.close()
        except (OSError, LookupError, TimeoutError) as error:
            log.debug("datagrams of pod %s to %s: %s", origin.uid, endpoint, error)
            if not ready.done():
                ready.set_exception(ConnectionError(str(error) or "no answer"))
                ready.exception()  # where nobody waits for it any more
        finally:
            ready.cancel()
            if origin.trunks.get(led, (None, None))[1] is ready:
                del origin.trunks[led]
            for ended in list(trunk.ends.values()) if trunk else ():
                ended()

    def _cut(self, origin: _Origin, led: _Led, trunk: _Trunk) -> None:
        """Unless a flow uses it."""
        if trunk.replies:
            return
        found = origin.trunks.get(led)
        if found is not None and found[1].done() and not found[1].cancelled() and found[1].result() is trunk:
            del origin.trunks[led]
            trunk.link.over = True
            found[0].cancel()


async def deliver(
    stream: Stream, dial: Callable[[], Awaitable[socket.socket]], refusal: Callable[[], str | None], counts: Counts, pod: Hashable
) -> None:
    """What a pod of another site sends to one of this site (``pod``), and back. ``refusal``: why it may not any more. Raises
    ``ConnectionError``."""
    link = Link(stream, counts, pod)
    flows: Flows[int] = Flows(counts)
    loop = asyncio.get_running_loop()
    checked = loop.time()
    why: str | None = None

    def look() -> str | None:
        nonlocal checked, why
        if loop.time() - checked >= RECHECK_SECONDS:
            checked, why = loop.time(), refusal()
        return why

    def received(number: int, data: bytes) -> None:
        if look() is not None:
            raise ConnectionRefusedError(why)

        def back(answer: bytes) -> None:
            if look() is not None:
                counts.drop("it may not be answered any more")
                flows.end(number)
                return
            flows.use(number)
            link.send(number, answer)

        async def find(flow: Flow) -> Way:
            async with asyncio.timeout(CONNECT_SECONDS):
                return Near(await dial(), back, lambda: flows.end(number))

        (flows.use(number) or flows.begin(number, find)).send(data)

    await stream.accept()
    try:
        await link.run(received)
    finally:
        flows.close()
