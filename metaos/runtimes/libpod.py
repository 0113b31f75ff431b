"""Podman's own API (libpod) over its unix socket: requests, streams and hijacked connections, on h11.

A connection for each request: on a socket of the same machine that costs less than keeping them. Answers are bounded. Raises
:class:`PodmanError` for what podman refuses, ``OSError`` where it cannot be asked. Source: Podman 4 ``docs/source/markdown``,
``pkg/api/server``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

import h11

API = "/v4.0.0/libpod"
MAX_ANSWER = 64 << 20
_CHUNK = 1 << 16
#: Of everything but streams.
REQUEST_SECONDS = 120.0


class PodmanError(Exception):
    """``status`` of HTTP and what podman said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Connection:
    """One exchange; after an upgrade, what comes and goes in it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._machine = h11.Connection(h11.CLIENT)
        self._left = b""

    @classmethod
    async def open(cls, path: str) -> Connection:
        return cls(*await asyncio.open_unix_connection(path))

    async def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | AsyncIterator[bytes]
    ) -> h11.Response | h11.InformationalResponse:
        framing = {"Content-Length": str(len(body))} if isinstance(body, bytes) else {"Transfer-Encoding": "chunked"}
        request = h11.Request(method=method, target=target, headers=list({"Host": "podman", **framing, **headers}.items()))
        self._put(self._machine.send(request))
        if isinstance(body, bytes):
            self._put(self._machine.send(h11.Data(data=body)))
        else:
            async for piece in body:
                self._put(self._machine.send(h11.Data(data=piece)))
                await self._writer.drain()
        self._put(self._machine.send(h11.EndOfMessage()))
        await self._writer.drain()
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                return event
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                self._left = self._machine.trailing_data[0]
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise ConnectionError("podman closed the connection without an answer")

    def _put(self, data: bytes | None) -> None:
        if data:
            self._writer.write(data)

    async def _event(self) -> Any:
        while True:
            try:
                event = self._machine.next_event()
            except h11.RemoteProtocolError as error:
                raise ConnectionError(f"podman does not speak HTTP: {error}") from error
            if event is not h11.NEED_DATA:
                return event
            self._machine.receive_data(await self._reader.read(_CHUNK))

    async def body(self) -> AsyncGenerator[bytes, None]:
        while True:
            event = await self._event()
            if not isinstance(event, h11.Data):
                return
            yield bytes(event.data)

    # -- after an upgrade

    async def read(self) -> bytes:
        """What comes next; empty at the end."""
        if self._left:
            left, self._left = self._left, b""
            return left
        return await self._reader.read(_CHUNK)

    async def write(self, data: bytes) -> None:
        """Empty bytes end the input."""
        if data:
            self._writer.write(data)
            await self._writer.drain()
        elif self._writer.can_write_eof():
            self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Libpod:
    """``path``: of the socket."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def call(
        self, method: str, path: str, body: Any = None, *, upload: AsyncIterator[bytes] | None = None, **query: Any
    ) -> Any:
        """The answer's JSON; ``None`` where it has none. ``body``: JSON; ``upload``: bytes instead."""
        async with asyncio.timeout(REQUEST_SECONDS if upload is None else None):
            connection = await Connection.open(self.path)
            try:
                headers = {"Content-Type": "application/json" if upload is None else "application/x-tar"}
                content = upload if upload is not None else b"" if body is None else json.dumps(body).encode()
                answer = await connection.send(method, _target(path, query), headers, content)
                data = bytearray()
                async for piece in connection.body():
                    data += piece
                    if len(data) > MAX_ANSWER:
                        raise PodmanError(answer.status_code, f"podman's answer has more than {MAX_ANSWER >> 20} MiB")
            finally:
                await connection.close()
        if answer.status_code >= 400:
            raise PodmanError(answer.status_code, _message(bytes(data)))
        try:
            return json.loads(data) if data else None
        except ValueError:
            return None

    async def stream(self, path: str, **query: Any) -> AsyncGenerator[bytes, None]:
        """The answer as it comes."""
        connection = await Connection.open(self.path)
        try:
            answer = await connection.send("GET", _target(path, query), {}, b"")
            if answer.status_code >= 400:
                raise PodmanError(answer.status_code, _message(b"".join([piece async for piece in connection.body()])))
            async for piece in connection.body():
                yield piece
        finally:
            await connection.close()

    async def hijack(self, path: str, body: Any = None, **query: Any) -> Connection:
        """A connection that carries a process's streams from then on."""
        connection = await Connection.open(self.path)
        try:
            headers = {"Content-Type": "application/json", "Upgrade": "tcp", "Connection": "Upgrade"}
            content = b"" if body is None else json.dumps(body).encode()
            answer = await connection.send("POST", _target(path, query), headers, content)
            if answer.status_code != 101:
                raise PodmanError(answer.status_code, _message(b"".join([piece async for piece in connection.body()])))
        except BaseException:
            await connection.close()
            raise
        return connection


def _target(path: str, query: Mapping[str, Any]) -> str:
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in query.items() if value is not None}
    return f"{API}{path}{'?' if words else ''}{urlencode(words)}"


def _message(data: bytes) -> str:
    try:
        found = json.loads(data)
        return str(found.get("message") or found.get("cause") or found)[:1000]
    except (ValueError, AttributeError):
        return data[:1000].decode(errors="replace")


class Frames:
    """Podman's framing of two streams in one: eight bytes (which, three zeros, length) before each piece."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        self._data += data
        found = []
        while len(self._data) >= 8:
            size = int.from_bytes(self._data[4:8], "big")
            if len(self._data) < 8 + size:
                break
            found.append((self._data[0], self._data[8 : 8 + size]))
            self._data = self._data[8 + size :]
        return found
