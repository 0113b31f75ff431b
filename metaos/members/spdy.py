"""A command in a pod of a Kubernetes cluster, over SPDY/3.1: servers before 1.30 can only by it be told that standard input alone
has ended, which a program that reads until then (``kubectl cp``: tar) waits for.

Source: Kubernetes ``remotecommand`` (``v4.channel.k8s.io`` over SPDY: a stream for each of error, stdin, stdout, stderr, resize).
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit

import h11

from metaos.agent.websocket import MAX_REFUSAL, Refused
from metaos.http import HttpClient, Response, error_of, keep_alive
from metaos.members.callers import Headers
from metaos.members.status import MAX_MESSAGE
from metaos.resources.errors import ApiError, unavailable
from metaos.spdy import FLAG_FIN, PING, RST_STREAM, SYN_STREAM, SpdyError, control, data_frame, frames
from metaos.spdy import Headers as Compression

SPDY = "SPDY/3.1"
V4 = "v4.channel.k8s.io"
OPEN_SECONDS = 20.0
READ_BYTES, CHUNK = 64 * 1024, 32 * 1024
STDOUT, STDERR = 1, 2
#: A status on the error stream is no longer than this.
MAX_STATUS = 16 * MAX_MESSAGE


class SpdyExec:
    """Implements ``metaos.plugins.points.Exec``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, early: bytes) -> None:
        self._reader, self._writer, self._buffer = reader, writer, bytearray(early)
        self._compression = Compression()
        self._streams: dict[str, int] = {}
        self._status: bytes = b""

    @classmethod
    async def open(cls, client: HttpClient, path: str, headers: Headers, *, stdin: bool, tty: bool) -> Self:
        """``path`` with its query. Raises ``ApiError``: what the server said."""
        context, server_name, token = await client.upgrade()
        more = [*headers, *([("Authorization", f"Bearer {token}")] if token else [])]
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                found = cls(*await upgraded(client.url + path, context, more, server_name))
                try:
                    for kind in ("error", *(["stdin"] if stdin else []), "stdout", "resize" if tty else "stderr"):
                        await found._begin(kind)
                except BaseException:
                    await found.kill()
                    raise
                return found
        except Refused as error:
            raise error_of(Response(error.status, (), error.body)) from error
        except (OSError, TimeoutError) as error:
            raise unavailable(f"the cluster's API server does not open the stream: {error or 'no answer in time'}") from error

    async def _begin(self, kind: str) -> None:
        number = self._streams[kind] = 2 * len(self._streams) + 1
        block = self._compression.encode({"streamtype": kind})
        await self._send(control(SYN_STREAM, 0, struct.pack(">IIBB", number, 0, 0, 0) + block))

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def write(self, data: bytes) -> None:
        """To its stdin; empty bytes close it."""
        stream = self._streams.get("stdin")
        if stream is None:
            return
        for start in range(0, len(data), CHUNK):
            await self._send(data_frame(stream, data[start : start + CHUNK]))
        if not data:
            with suppress(OSError):
                await self._send(data_frame(stream, b"", FLAG_FIN))

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """(1, stdout) and (2, stderr) until both end; with a terminal all is 1."""
        numbers = {self._streams["stdout"]: STDOUT, self._streams.get("stderr", 0): STDERR}
        error = self._streams["error"]
        try:
            while True:
                for kind, flags, stream, payload in frames(self._buffer):
                    if kind == PING:
                        await self._send(control(PING, 0, payload))
                    elif kind == RST_STREAM and payload[:4] == struct.pack(">I", error):
                        return
                    elif kind:
                        continue
                    elif stream == error:
                        self._status = (self._status + payload)[:MAX_STATUS]
                        if flags & FLAG_FIN:
                            return
                    elif payload and stream in numbers:
                        yield numbers[stream], payload
                if not (data := await self._reader.read(READ_BYTES)):
                    return
                self._buffer += data
        except SpdyError as broken:
            raise ConnectionAbortedError(f"the server broke the protocol: {broken}") from broken

    async def resize(self, columns: int, rows: int) -> None:
        if (stream := self._streams.get("resize")) is not None:
            size = json.dumps({"Width": columns, "Height": rows}).encode()
            await self._send(data_frame(stream, size))

    async def wait(self) -> int:
        """The exit code, once the output has ended. Raises ``ApiError`` where the server says that it could not be run."""
        self._writer.close()
        try:
            return exit_code(json.loads(self._status) if self._status else None)
        except ValueError:
            raise unavailable(f"how the command ended cannot be read: {self._status[:200]!r}") from None

    async def kill(self) -> None:
        """The connection ends, and with it the command's input and output."""
        self._writer.transport.abort()


async def upgraded(
    url: str, context: ssl.SSLContext | None, headers: Sequence[tuple[str, str]], server_name: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """A connection that speaks SPDY from now on, and what came already. Raises ``OSError`` and ``Refused``."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if context else 80)
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname=(server_name or host) if context else None
    )
    try:
        keep_alive(writer.get_extra_info("socket"))
        machine = h11.Connection(h11.CLIENT)
        asked = {"Host": parts.netloc, "Connection": "Upgrade", "Upgrade": SPDY, "X-Stream-Protocol-Version": V4}
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        request = h11.Request(method="POST", target=target, headers=[*asked.items(), ("Content-Length", "0"), *headers])
        writer.write((machine.send(request) or b"") + (machine.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        status, body = 0, b""
        while True:
            event = machine.next_event()
            if event is h11.NEED_DATA:
                machine.receive_data(await reader.read(READ_BYTES))
            elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                return reader, writer, machine.trailing_data[0]
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
                if len(body) > MAX_REFUSAL:
                    raise Refused(status, body[:MAX_REFUSAL])
            elif isinstance(event, h11.EndOfMessage):
                raise Refused(status, body)
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                raise ConnectionResetError("the server closed the connection without an answer")
    except h11.RemoteProtocolError as error:
        writer.transport.abort()
        raise ConnectionAbortedError(f"the server broke the protocol: {error}") from error
    except BaseException:
        writer.transport.abort()
        raise


def exit_code(status: dict[str, Any] | None) -> int:
    """What a ``Status`` on the error channel says. Raises ``ApiError`` where it is no exit code."""
    if status is None:
        raise unavailable("the cluster's API server ended the stream without saying how the command ended")
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode" and str(cause.get("message")).isdigit():
            return int(cause["message"])
    raise ApiError.of(status)
