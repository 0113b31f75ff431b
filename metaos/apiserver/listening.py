"""The hub's listening sockets, with bounds: so many connections in all, so many of one address, so many new ones at a time.

What is too much is closed before TLS begins, which is where connections become expensive.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from aiohttp import web

#: Connections at a time, where the process may have so many open files.
CONNECTIONS = 16_384
#: Taken in one turn of the event loop; others wait in the kernel's queue, so that handshakes hold nobody up.
ACCEPTED_AT_ONCE = 8
#: TLS must stand within this time.
HANDSHAKE_SECONDS = 15.0
#: Connections that may wait to be accepted.
BACKLOG = 1024
#: Open files that are for other things than connections.
_OTHER_FILES = 256
#: Reset instead of waiting for the other side.
_RESET = struct.pack("ii", 1, 0)


class Room:
    """How many connections there may be. Half of all for one address, as a site's machines may share one."""

    def __init__(self, total: int, of_address: int = 0) -> None:
        self.total, self.of_address = total, of_address or total // 2
        self.open = self.refused = 0
        self._of: Counter[str] = Counter()

    @classmethod
    def of_process(cls) -> Room:
        """As many as this process may have open files; it takes all that the machine's administrator allows."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = CONNECTIONS + _OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return cls(CONNECTIONS if soft == resource.RLIM_INFINITY else max(64, min(CONNECTIONS, soft - _OTHER_FILES)))

    def enter(self, source: str) -> bool:
        if self.open >= self.total or self._of[source] >= self.of_address:
            self.refused += 1
            return False
        self.open += 1
        self._of[source] += 1
        return True

    def leave(self, source: str) -> None:
        self.open -= 1
        self._of[source] -= 1
        if not self._of[source]:
            del self._of[source]


class Listener(socket.socket):
    """Accepts as many as the room has; for asyncio's servers."""

    def __init__(self, family: int, room: Room) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._room = room
        self._now = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if self._now >= ACCEPTED_AT_ONCE:
            raise BlockingIOError
        descriptor, address = self._accept()  # type: ignore[attr-defined]
        if not self._now:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._now += 1
        source = source_of(str(address[0]))
        if not self._room.enter(source):
            with socket.socket(self.family, self.type, self.proto, fileno=descriptor) as excess:
                excess.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            raise ConnectionAbortedError(f"too many connections of {source}")
        return _Accepted(self.family, self.type, self.proto, descriptor, lambda: self._room.leave(source)), address

    def _next_turn(self) -> None:
        self._now = 0


class _Accepted(socket.socket):
    """A connection that says when it has been closed."""

    def __init__(self, family: int, kind: int, proto: int, descriptor: int, closed: Callable[[], None]) -> None:
        super().__init__(family, kind, proto, fileno=descriptor)
        self._when_closed: Callable[[], None] | None = closed

    def _real_close(self, *args: Any) -> None:
        super()._real_close(*args)  # type: ignore[misc]
        closed, self._when_closed = self._when_closed, None
        if closed is not None:
            closed()


def source_of(address: str) -> str:
    """Whom an address stands for: of IPv6 the network, in which one machine may take any address."""
    if ":" not in address:
        return address
    return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:8] + bytes(8))


def listeners(host: str, port: int, room: Room) -> list[Listener]:
    """One for each address of ``host``, on the same port. Raises ``OSError``."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with ExitStack() as opened:
        made: list[Listener] = []
        for family, _, _, _, address in dict.fromkeys(found):
            listener = opened.enter_context(Listener(family, room))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port, *address[2:]))
            port = listener.getsockname()[1]
            made.append(listener)
        opened.pop_all()
    return made


class Site(web.SockSite):
    """aiohttp's site on a listener, with a bound on the time that TLS takes."""

    def __init__(self, runner: web.AppRunner, listener: Listener, context: ssl.SSLContext) -> None:
        super().__init__(runner, listener, ssl_context=context, backlog=BACKLOG)

    async def start(self) -> None:
        await web.BaseSite.start(self)
        server = self._runner.server
        assert server is not None
        self._server = await asyncio.get_running_loop().create_server(
            server, sock=self._sock, ssl=self._ssl_context, backlog=BACKLOG, ssl_handshake_timeout=HANDSHAKE_SECONDS
        )
