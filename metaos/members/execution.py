"""A command in a pod of a Kubernetes cluster, over a WebSocket of its API server, or SPDY where that cannot end standard input.

Source: Kubernetes ``remotecommand`` (subprotocols ``v4.channel.k8s.io`` and, from 1.30, ``v5``, which can end standard input
alone).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from metaos.agent.remote import CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT
from metaos.agent.websocket import Refused, WebSocket
from metaos.http import HttpClient, Response, error_of
from metaos.members.callers import Headers
from metaos.members.spdy import OPEN_SECONDS, V4, SpdyExec, exit_code
from metaos.plugins.points import Exec
from metaos.resources.errors import unavailable

#: Servers send 32 KiB at a time.
MAX_MESSAGE = 1024 * 1024
#: The first minor version of Kubernetes 1 that speaks ``v5``.
V5_MINOR = 30
V5 = "v5.channel.k8s.io"


async def opened(client: HttpClient, path: str, subprotocol: str, more: Headers) -> WebSocket:
    """A WebSocket of the cluster's API server, with these headers ``more``. Raises ``ApiError``: what the server said."""
    context, server_name, token = await client.upgrade()
    headers = [(b"Authorization", f"Bearer {token}".encode())] if token else []
    headers += [(key.encode(), value.encode()) for key, value in more]
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            return await WebSocket.open(
                client.url + path, context, subprotocol, MAX_MESSAGE, headers=headers, server_name=server_name
            )
    except Refused as error:
        raise error_of(Response(error.status, (), error.body)) from error
    except (OSError, TimeoutError) as error:
        raise unavailable(f"the cluster's API server does not open the stream: {error or 'no answer in time'}") from error


async def run(client: HttpClient, path: str, minor: int, headers: Headers, *, stdin: bool, tty: bool) -> Exec:
    """``path`` of the pod's ``exec`` or ``attach``, with its query; ``minor``: of the server, 0 where it is not known. Raises
    ``ApiError``."""
    if minor >= V5_MINOR:
        return RemoteExec(await opened(client, path, V5, headers))
    if stdin:
        return await SpdyExec.open(client, path, headers, stdin=stdin, tty=tty)
    return RemoteExec(await opened(client, path, V4, headers))


class RemoteExec:
    """Implements ``metaos.plugins.points.Exec``."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._status: dict[str, Any] | None = None

    async def write(self, data: bytes) -> None:
        """To its stdin; empty bytes close it."""
        if data:
            await self._socket.send(bytes((STDIN,)) + data)
        else:
            with suppress(OSError):
                await self._socket.send(bytes((CLOSE, STDIN)))

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """(1, stdout) and (2, stderr) until both end; with a terminal all is 1."""
        async for message in self._socket.messages():
            channel, data = (message[0], message[1:]) if message else (CLOSE, b"")
            if channel in (STDOUT, STDERR) and data:
                yield channel, data
            elif channel == ERROR:
                self._status = json.loads(data)
                return

    async def resize(self, columns: int, rows: int) -> None:
        await self._socket.send(bytes((RESIZE,)) + json.dumps({"Width": columns, "Height": rows}).encode())

    async def wait(self) -> int:
        """The exit code, once the output has ended. Raises ``ApiError`` where the server says that it could not be run."""
        return exit_code(self._status)

    async def kill(self) -> None:
        """The connection ends, and with it the command's input and output."""
        self._socket.abort()
