"""A connection to a port of a pod, through the cluster's API server and the pod's kubelet: wherever the agent runs, it needs no
way to the pods.

Two channels to a port, data and errors; each begins with the port's number in two bytes, little endian. Source: Kubernetes
``kubelet/pkg/cri/streaming/portforward/websocket.go`` (``v4.channel.k8s.io``, all versions). Its limit: one direction cannot end
before the other, so a peer that waits for the end of what it is sent waits until the connection ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from urllib.parse import urlencode

from metaos.agent.relay import CHUNK
from metaos.agent.websocket import WebSocket
from metaos.http import HttpClient
from metaos.members.callers import Headers
from metaos.members.execution import opened
from metaos.members.spdy import V4

log = logging.getLogger(__name__)

DATA, ERROR = 0, 1
NUMBER_BYTES = 2
#: Connections at the same time; each takes one to the cluster's API server.
MAX_FORWARDS = 256


class Forwards:
    """The connections that are open."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, path: str, port: int, headers: Headers) -> socket.socket:
        """``path``: of the pod's ``portforward``. A connected, non-blocking socket that is the pod's port. Raises ``ApiError``
        where the cluster refuses, ``OSError`` where there are too many; what the pod itself refuses breaks the connection."""
        if len(self._tasks) >= MAX_FORWARDS:
            raise ConnectionRefusedError(f"{MAX_FORWARDS} connections to pods of this cluster are open already")
        channel = await opened(self._client, f"{path}?{urlencode({'ports': port})}", V4, headers)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        task = asyncio.create_task(_carry(ours, channel, f"{path}:{port}"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return theirs

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _carry(sock: socket.socket, channel: WebSocket, about: str) -> None:
    directions = [asyncio.create_task(_up(sock, channel)), asyncio.create_task(_down(channel, sock, about))]
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in directions:
            task.cancel()
        await asyncio.gather(*directions, return_exceptions=True)
        channel.abort()
        sock.close()


async def _up(sock: socket.socket, channel: WebSocket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, CHUNK):
        await channel.send(bytes((DATA,)) + data)


async def _down(channel: WebSocket, sock: socket.socket, about: str) -> None:
    """Ends by an error, so that the other direction ends, too."""
    loop = asyncio.get_running_loop()
    left = {DATA: NUMBER_BYTES, ERROR: NUMBER_BYTES}
    async for message in channel.messages():
        number, data = (message[0], message[1:]) if message else (DATA, b"")
        if number not in left:
            continue
        skipped = min(left[number], len(data))
        left[number] -= skipped
        data = data[skipped:]
        if number == ERROR and data:
            log.debug("%s: %s", about, data[:300].decode(errors="replace"))
            raise ConnectionResetError
        if data:
            await loop.sock_sendall(sock, data)
    raise ConnectionResetError
