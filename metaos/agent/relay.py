"""Carrying bytes between two ends until both have ended; one direction may end before the other (half close).

A buffer of ``CHUNK`` per direction; whoever writes slower than the other reads holds it back.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from contextlib import suppress
from typing import Any

from metaos.agent.routes import RemoteEndpoint, Route
from metaos.tunnel import Stream

CHUNK = 32 * 1024
#: A stream through the tunnel, with this header; whether it is accepted is to be awaited.
Dial = Callable[[dict[str, Any]], Awaitable[Stream]]


class Relayed:
    """Connections that were accepted and are relayed, each in a task of its own. ``close`` ends them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._of: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(
        self, accepted: socket.socket, relay: Callable[[], Coroutine[Any, Any, None]], most: int, *shares: tuple[Hashable, int]
    ) -> None:
        """Runs ``relay`` and closes the socket then. It is refused where ``most`` go on at this time, or so many of somebody's:
        ``shares`` says whose it is and how many they may have."""
        if len(self._tasks) >= most or any(self._of[whose] >= few for whose, few in shares):
            refuse(accepted)
            return
        accepted.setblocking(False)
        self._of.update(whose for whose, _ in shares)
        task = asyncio.get_running_loop().create_task(relay())
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            accepted.close()
            self._of -= Counter(whose for whose, _ in shares)

        task.add_done_callback(ended)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def reach(dial: Dial, kind: str, route: Route, endpoint: RemoteEndpoint, source: dict[str, Any]) -> Stream:
    """A stream to another site's pod, accepted there. ``kind``: ``dial`` or ``datagrams``; ``source``: who calls, as the hub is
    told. Raises ``OSError``."""
    stream = await dial(
        {
            "type": kind,
            "cluster": endpoint.cluster,
            "namespace": route.namespace,
            "service": route.service,
            "pod": endpoint.pod,
            "port": endpoint.port,
            "source": source,
        }
    )
    try:
        await stream.accepted()
    except BaseException:
        await stream.reset("given up")
        raise
    return stream


async def relay_sockets(one: socket.socket, other: socket.socket) -> None:
    """Between two connected, non-blocking sockets; ``other`` is closed at the end, both are reset after an error."""
    try:
        if not await _both(_copy(one, other), _copy(other, one)):
            refuse(one)
            refuse(other)
    finally:
        other.close()


def _uncounted(size: int) -> None: ...


async def relay_stream(sock: socket.socket, stream: Stream, left: Callable[[int], None] = _uncounted, chunk: int = CHUNK) -> None:
    """Between a connected, non-blocking socket and a tunnel's stream; the stream is closed, or reset after an error. ``left``
    is told how many bytes went into the stream; ``chunk``: bytes of one message, at most ``MAX_DATA``."""
    try:
        clean = await _both(_from_socket(sock, stream, left, chunk), _to_socket(stream, sock))
    except BaseException:
        await stream.reset("the connection was given up")
        raise
    if clean:
        await stream.close()
    else:
        await stream.reset("the connection broke")
        refuse(sock)


async def _both(*directions: Coroutine[Any, Any, None]) -> bool:
    """Run to the end; a connection error in one ends the other. Whether there was none."""
    tasks = [asyncio.ensure_future(direction) for direction in directions]
    try:
        await asyncio.gather(*tasks)
        return True
    except OSError:
        return False
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def refuse(sock: socket.socket) -> None:
    """Close with a reset, so that the caller sees a failure and not an empty answer."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def _copy(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, CHUNK):
        await loop.sock_sendall(target, data)
    target.shutdown(socket.SHUT_WR)


async def _from_socket(sock: socket.socket, stream: Stream, left: Callable[[int], None], chunk: int) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, chunk):
        await stream.write(data)
        left(len(data))
    await stream.write_eof()


async def _to_socket(stream: Stream, sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await stream.read():
        await loop.sock_sendall(sock, data)
    sock.shutdown(socket.SHUT_WR)
