"""One HTTP/1.1 exchange over a tunnel's stream: request and answer pass through as they come, in both directions at once.

Source: RFC 9110, section 7.6 (forwarding), section 7.8 (upgrade).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h11
from aiohttp import web

from metaos.tunnel import Stream, StreamReset

#: An answer must begin within this time after the request has been sent.
ANSWER_SECONDS = 60.0
#: Request bodies of known length up to this are read first, so that they can be sent again to another endpoint.
REPLAY_BYTES = 1 << 20
#: Of an upgraded connection: above this the client is not read from until the site has taken some.
INBOX_BYTES = 256 * 1024
_CHUNK = 64 * 1024

#: What counts for one connection only, or is the hub's own business.
_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "authorization",
        "host",
        "content-length",
        "expect",
    }
)


class Broken(Exception):
    """The endpoint failed before an answer began. ``sent``: whether it may have seen the request."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


@dataclass(slots=True)
class Sending:
    """A request's body: ``held`` where it was read at once, otherwise it streams and can be sent only once."""

    request: web.Request
    held: bytes | None

    @classmethod
    async def of(cls, request: web.Request) -> Sending:
        if not request.can_read_body:
            return cls(request, b"")
        length = request.content_length
        return cls(request, await request.read() if length is not None and length <= REPLAY_BYTES else None)

    @property
    def repeatable(self) -> bool:
        return self.held is not None

    def framing(self) -> list[tuple[str, str]]:
        """The headers that say how long the body is."""
        if self.held is not None:
            needed = self.held or self.request.method in ("POST", "PUT", "PATCH")
            return [("Content-Length", str(len(self.held)))] if needed else []
        length = self.request.content_length
        return [("Content-Length", str(length)) if length is not None else ("Transfer-Encoding", "chunked")]

    async def chunks(self) -> AsyncIterator[bytes]:
        if self.held is None:
            async for chunk in self.request.content.iter_chunked(_CHUNK):
                yield chunk
        elif self.held:
            yield self.held


class Exchange:
    """``authority`` is the endpoint's name for its ``Host`` header."""

    def __init__(self, stream: Stream, authority: str) -> None:
        self._stream, self._authority = stream, authority
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_CHUNK)

    async def run(self, request: web.Request, path: str, sending: Sending) -> web.StreamResponse:
        """The answer, sent. Raises :class:`Broken` before one has begun."""
        upgrade = request.headers.get("Upgrade", "")
        body = asyncio.ensure_future(self._request(request, path, sending, upgrade))
        try:
            answer = await self._begin(body)
            if answer.status_code == 101:
                await body
                return await self._upgraded(request, answer)
            return await self._pass_on(request, answer)
        finally:
            body.cancel()
            await asyncio.gather(body, return_exceptions=True)
            await self._stream.close()

    # -- towards the endpoint ------------------------------------------------------------------------------

    async def _request(self, request: web.Request, path: str, sending: Sending, upgrade: str) -> None:
        await self._send(h11.Request(method=request.method, target=path, headers=self._headers(request, sending, upgrade)))
        if not upgrade:
            async for chunk in sending.chunks():
                await self._send(h11.Data(data=chunk))
        await self._send(h11.EndOfMessage())

    def _headers(self, request: web.Request, sending: Sending, upgrade: str) -> list[tuple[bytes, bytes]]:
        named = {word.strip().lower() for value in request.headers.getall("Connection", ()) for word in value.split(",")}
        headers = [
            (key, value)
            for key, value in request.headers.items()
            if key.lower() not in _HOP and key.lower() not in named and not key.lower().startswith("impersonate-")
        ]
        headers += [("Host", self._authority), ("X-Forwarded-Host", request.headers.get("Host", ""))]
        headers += [("Connection", "Upgrade"), ("Upgrade", upgrade)] if upgrade else [("Connection", "close"), *sending.framing()]
        # As bytes: they go on as they came, whatever their encoding.
        return [(key.encode(), value.encode("utf-8", "surrogateescape")) for key, value in headers]

    async def _send(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            await self._stream.write(data)

    # -- from the endpoint ---------------------------------------------------------------------------------

    async def _begin(self, body: asyncio.Future[None]) -> Any:
        """The answer's head. It may come before the whole request has been sent; its time runs from then on."""
        answer = asyncio.ensure_future(self._answer())
        try:
            await asyncio.wait((body, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and body.exception() is not None and not isinstance(body.exception(), ConnectionError):
                await body  # Our own caller's request broke off, or we made a mistake.
            # Where the endpoint has stopped reading it may nonetheless have answered.
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except (StreamReset, h11.RemoteProtocolError) as error:
            raise Broken(str(error) or "the connection broke", sent=True) from None
        except TimeoutError:
            raise Broken(f"no answer within {ANSWER_SECONDS:g} s", sent=True) from None
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    async def _event(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._stream.read())

    async def _answer(self) -> Any:
        while True:
            event = await self._event()
            if isinstance(event, h11.Response) or (isinstance(event, h11.InformationalResponse) and event.status_code == 101):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the connection ended without an answer")

    async def _pass_on(self, request: web.Request, answer: Any) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status_code, reason=answer.reason.decode("latin-1"))
        headers = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in answer.headers]
        named = {word.strip().lower() for key, value in headers if key == "connection" for word in value.split(",")}
        for key, value in headers:
            if key == "content-length":
                response.content_length = int(value)
            elif key not in _HOP and key not in named:
                response.headers.add(key, value)
        await response.prepare(request)
        try:
            while not isinstance(event := await self._event(), h11.EndOfMessage | h11.ConnectionClosed):
                if isinstance(event, h11.Data):
                    await response.write(bytes(event.data))
        except (StreamReset, h11.RemoteProtocolError):
            # It broke off half way: the client must see that it is not whole.
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    # -- after an upgrade ----------------------------------------------------------------------------------

    async def _upgraded(self, request: web.Request, answer: Any) -> web.StreamResponse:
        """From now on bytes pass both ways as they come (WebSocket or anything else)."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client went away")
        head = [f"HTTP/1.1 101 {answer.reason.decode('latin-1') or 'Switching Protocols'}"]
        head += [f"{key.decode('latin-1')}: {value.decode('latin-1')}" for key, value in answer.headers]
        transport.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
        inbox = _Inbox(transport)
        # aiohttp hands raw bytes to whatever reads frames for it; here they stay raw.
        request.protocol.set_parser(inbox)  # type: ignore[arg-type]
        rest, _ = self._http.trailing_data
        if rest:
            transport.write(rest)

        async def up() -> None:
            with suppress(StreamReset):
                while data := await inbox.get():
                    await self._stream.write(data)
                await self._stream.write_eof()

        rising = asyncio.create_task(up())
        try:
            with suppress(StreamReset):
                while data := await self._stream.read():
                    transport.write(data)
                    # As StreamResponse does it: a slow reader holds the stream back.
                    await request.protocol._drain_helper()
        finally:
            rising.cancel()
            await asyncio.gather(rising, return_exceptions=True)
            transport.close()
        return web.Response(status=101)


class _Inbox:
    """What aiohttp's connection feeds with raw bytes after an upgrade. Beyond ``INBOX_BYTES`` the transport is paused."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._data = bytearray()
        self._ended = False
        self._paused = False
        self._news = asyncio.Event()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._data += data
        self._news.set()
        if len(self._data) > INBOX_BYTES and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()
        return False, b""

    def feed_eof(self) -> None:
        self._ended = True
        self._news.set()

    def set_exception(self, *_: object) -> None:
        self.feed_eof()

    async def get(self) -> bytes:
        """What has come; ``b""`` at the end."""
        while not self._data and not self._ended:
            self._news.clear()
            await self._news.wait()
        data = bytes(self._data)
        self._data.clear()
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        return data
