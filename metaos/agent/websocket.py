"""The client's end of one WebSocket (RFC 6455): whole binary messages and pings, by wsproto over asyncio streams."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, RejectConnection, RejectData, Request
from wsproto.utilities import ProtocolError

from metaos.http import keep_alive

READ_BYTES = 64 * 1024
MAX_REFUSAL = 4 * 1024


class Refused(Exception):
    """The server answered the request for a WebSocket with something else."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status, self.body = status, body


class WebSocket:
    """Made by :meth:`open`. A broken connection shows as ``OSError``, whoever broke it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_message: int) -> None:
        self._reader, self._writer, self._max = reader, writer, max_message
        self._machine = WSConnection(ConnectionType.CLIENT)
        self._pong = asyncio.Event()

    @classmethod
    async def open(
        cls,
        url: str,
        context: ssl.SSLContext | None,
        subprotocol: str,
        max_message: int,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        server_name: str = "",
    ) -> Self:
        """``url``: http or https; ``server_name``: what the certificate must say where that is not its host. Raises ``OSError``
        and ``Refused``; the caller sets the deadline."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if context else 80)
        shown = (server_name or host) if context else None
        streams = await asyncio.open_connection(host, port, ssl=context, server_hostname=shown)
        keep_alive(streams[1].get_extra_info("socket"))
        found = cls(*streams, max_message)
        try:
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            request = Request(host=parts.netloc, target=target, subprotocols=[subprotocol], extra_headers=list(headers))
            await found._write(found._machine.send(request))
            await found._accepted(subprotocol)
        except BaseException:
            found.abort()
            raise
        return found

    async def _accepted(self, subprotocol: str) -> None:
        status, body = 0, b""
        while True:
            ended = await self._receive()
            for event in self._machine.events():
                if isinstance(event, AcceptConnection):
                    if event.subprotocol != subprotocol:
                        raise ConnectionError(f"the server does not speak {subprotocol}")
                    return
                if isinstance(event, RejectConnection):
                    status, ended = event.status_code, ended or not event.has_body
                elif isinstance(event, RejectData):
                    body, ended = body + event.data, event.body_finished or len(body) > MAX_REFUSAL
            if ended and status:
                raise Refused(status, body[:MAX_REFUSAL])
            if ended:
                raise ConnectionResetError("the server closed the connection without an answer")

    async def _receive(self) -> bool:
        """Whether that was the end."""
        data = await self._reader.read(READ_BYTES)
        try:
            if data:
                self._machine.receive_data(data)
        except ProtocolError as error:
            raise ConnectionAbortedError(f"the server broke the protocol: {error}") from error
        return not data

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Until the server ends the connection, or it breaks. Pings are answered meanwhile."""
        whole = bytearray()
        while True:
            try:
                for event in self._machine.events():
                    if isinstance(event, BytesMessage):
                        whole += event.data
                        if len(whole) > self._max:
                            raise ConnectionAbortedError(f"the server sent a message of more than {self._max} bytes")
                        if event.message_finished:
                            yield bytes(whole)
                            whole.clear()
                    elif isinstance(event, Ping):
                        await self._write(self._machine.send(event.response()))
                    elif isinstance(event, Pong):
                        self._pong.set()
                    elif isinstance(event, CloseConnection):
                        with suppress(ProtocolError):
                            await self._write(self._machine.send(event.response()))
                        return
            except ProtocolError as error:
                raise ConnectionAbortedError(f"the server broke the protocol: {error}") from error
            if await self._receive():
                return

    async def send(self, message: bytes) -> None:
        """Waits where the transport is full."""
        try:
            data = self._machine.send(BytesMessage(data=message))
        except ProtocolError as error:
            raise ConnectionResetError("the server has closed the connection") from error
        await self._write(data)

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def ping(self) -> None:
        """Returns at the next pong; the caller sets the deadline."""
        self._pong.clear()
        with suppress(ProtocolError):
            await self._write(self._machine.send(Ping()))
        await self._pong.wait()

    def abort(self) -> None:
        """At once, without a goodbye."""
        self._writer.transport.abort()
