"""Sockets inside a pod's network namespace, used from outside.

A socket belongs to the namespace in which it was made, whoever holds it. A short-lived program enters the namespace,
makes a batch of unconnected sockets and passes them out; connecting, and listening on any loopback address and port,
is then done here. No privilege, no virtual network card. Each pod's pool is bounded by :data:`POOL`.
"""

from __future__ import annotations

import asyncio
import os
import socket

from metaos.runtimes import process
from metaos.runtimes.bubblewrap import enter_command

#: Sockets that a pod has in store at most (each 2 to 3 kB of kernel memory).
POOL = 16
_BACKLOG = 128


class Sockets:
    """The store of one pod. ``holder``: a process in the pod's network namespace."""

    def __init__(self, holder: process.Identity) -> None:
        self._holder = holder
        self._ready: list[socket.socket] = []
        self._filling = asyncio.Lock()
        self._closed = False

    async def take(self) -> socket.socket:
        """A fresh TCP socket, non-blocking. Raises ``OSError``."""
        async with self._filling:
            if not self._ready:
                self._ready = await self._fill()
            return self._ready.pop()

    async def _fill(self) -> list[socket.socket]:
        if self._closed or not self._holder.alive():
            raise ConnectionRefusedError("the pod has ended")
        ours, theirs = socket.socketpair()
        errors, complaint = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            ours.setblocking(False)
            with theirs:
                helper = process.spawn(
                    enter_command("sockets", str(theirs.fileno()), str(self._holder.pid), str(POOL)),
                    env={},
                    stderr=complaint,
                    pass_fds=(theirs.fileno(),),
                )
            os.close(complaint)
            complaint = -1
            await process.readable(ours.fileno())
            _, fds, _, _ = socket.recv_fds(ours, 1, POOL)
            await process.ended(helper)
            if not fds:
                said = await process.read_all(errors)
                raise OSError(f"no socket could be made in the pod's network: {said.decode(errors='replace').strip()}")
            return [socket.socket(fileno=fd) for fd in fds]
        finally:
            ours.close()
            os.close(errors)
            if complaint >= 0:
                os.close(complaint)

    async def connect(self, port: int) -> socket.socket:
        """To the pod's own loopback."""
        return await connected(await self.take(), port)

    async def listen(self, address: str, port: int) -> socket.socket:
        return listening(await self.take(), address, port)

    def close(self) -> None:
        self._closed = True
        for each in self._ready:
            each.close()
        self._ready.clear()


async def connected(made: socket.socket, port: int) -> socket.socket:
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    except BaseException:
        made.close()
        raise
    return made


def listening(made: socket.socket, address: str, port: int) -> socket.socket:
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"cannot listen on {address}:{port}: {error.strerror}") from error
    return made
