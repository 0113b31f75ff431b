"""SPDY/3.1 as far as ``kubectl port-forward`` uses it, inside a WebSocket: streams in pairs (error, data) for each connection.

Source: SPDY Protocol Draft 3.1 (the Chromium Projects), with its header compression dictionary; the pairing of streams by
the headers ``streamType``, ``port`` and ``requestID`` follows ``k8s.io/kubelet`` and ``k8s.io/client-go``.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

from metaos.resources.errors import ApiError
from metaos.tunnel import Stream, StreamReset

PORTFORWARD = "SPDY/3.1+portforward.k8s.io"
VERSION = 3
SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 9
FLAG_FIN = 1
MAX_FRAME = 1 << 20
MAX_STREAMS = 512
CHUNK = 16 * 1024
#: Per stream; kubectl's side knows no flow control, so beyond it the whole connection waits, for a while.
INBOX_BYTES = 1 << 20
STALL_SECONDS = 10.0
#: Status codes of RST_STREAM.
REFUSED, CANCEL = 3, 5

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status"
)
_TAIL = (
    b"\x00\x00\x00\x06200 OK\x00\x00\x00\x07version\x00\x00\x00\x08HTTP/1.1\x00\x00\x00\x03url\x00\x00\x00\x06public"
    b"\x00\x00\x00\nset-cookie\x00\x00\x00\nkeep-alive\x00\x00\x00\x06origin"
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    b"203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    b"404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    b"Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    b"chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    b"publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
#: The draft's dictionary: each word with its length before it, then fragments.
DICTIONARY = b"".join(struct.pack(">I", len(w)) + w.encode() for w in _WORDS.split()) + _TAIL


class SpdyError(ValueError):
    """The peer broke the protocol."""


class Headers:
    """Both directions' header compression, which has a state over the life of a connection."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(
            9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY, DICTIONARY
        )

    def decode(self, block: bytes) -> dict[str, str]:
        try:
            raw = self._inflate.decompress(block, MAX_FRAME)
        except zlib.error as error:
            raise SpdyError(f"header block: {error}") from None
        found: dict[str, str] = {}
        position = 4
        try:
            for _ in range(struct.unpack_from(">I", raw)[0]):
                parts = []
                for _part in range(2):
                    (length,) = struct.unpack_from(">I", raw, position)
                    parts.append(raw[position + 4 : position + 4 + length].decode("latin-1"))
                    position += 4 + length
                found[parts[0].lower()] = parts[1].split("\0")[0]
        except struct.error:
            raise SpdyError("header block is cut short") from None
        return found

    def encode(self, headers: dict[str, str]) -> bytes:
        raw = struct.pack(">I", len(headers))
        for key, value in headers.items():
            for text in (key.encode("latin-1"), value.encode("latin-1")):
                raw += struct.pack(">I", len(text)) + text
        return self._deflate.compress(raw) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def control(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">HHI", 0x8000 | VERSION, kind, flags << 24 | len(payload)) + payload


def data_frame(stream: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">II", stream, flags << 24 | len(payload)) + payload


def frames(buffer: bytearray) -> list[tuple[int, int, int, bytes]]:
    """Takes whole frames from the buffer: (control type or 0, flags, stream or 0, payload). Raises :class:`SpdyError`."""
    found = []
    while len(buffer) >= 8:
        first, second = struct.unpack_from(">II", buffer)
        length, flags = second & 0xFFFFFF, second >> 24
        if length > MAX_FRAME:
            raise SpdyError(f"a frame of {length} bytes is longer than {MAX_FRAME}")
        if len(buffer) < 8 + length:
            break
        payload = bytes(buffer[8 : 8 + length])
        del buffer[: 8 + length]
        if first & 0x80000000:
            found.append((first & 0xFFFF, flags, 0, payload))
        else:
            found.append((0, flags, first, payload))
    return found


class Inbox:
    """What a client has sent on one stream and the site has not taken yet; bounded by ``INBOX_BYTES``."""

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._ended = self._closed = False
        self._changed = asyncio.Event()

    async def put(self, data: bytes) -> bool:
        """Waits for room, but no longer than ``STALL_SECONDS``: one stream that is stuck must not hold up the others for
        ever. ``False`` where it did not come. After :meth:`close` everything is dropped."""
        try:
            async with asyncio.timeout(STALL_SECONDS):
                while self._size > INBOX_BYTES and not self._closed:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        if not self._closed:
            self._parts.append(data)
            self._size += len(data)
            self._changed.set()
        return True

    def end(self) -> None:
        """The client sends no more."""
        self._ended = True
        self._changed.set()

    def close(self) -> None:
        """Nobody reads any more."""
        self._closed = True
        self._parts.clear()
        self._changed.set()

    async def get(self) -> bytes:
        """The next part; ``b""`` at the end."""
        while not self._parts:
            if self._ended or self._closed:
                return b""
            self._changed.clear()
            await self._changed.wait()
        part = self._parts.popleft()
        self._size -= len(part)
        self._changed.set()
        return part


@dataclass(slots=True)
class _Pair:
    """One forwarded connection."""

    port: int
    error: int = 0
    data: int = 0
    inbox: Inbox = field(default_factory=Inbox)


class SpdyForward:
    """Serves one WebSocket: each (error, data) pair of streams becomes one dialled connection."""

    def __init__(self, socket: web.WebSocketResponse, dial: Callable[[int], Awaitable[Stream]]) -> None:
        self._socket, self._dial = socket, dial
        self._headers = Headers()
        self._pairs: dict[str, _Pair] = {}
        self._by_stream: dict[int, _Pair] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        buffer = bytearray()
        try:
            async for message in self._socket:
                if message.type is not WSMsgType.BINARY:
                    continue
                buffer += message.data
                for kind, flags, stream, payload in frames(buffer):
                    await self._frame(kind, flags, stream, payload)
        except (SpdyError, ConnectionError):
            pass
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._socket.close()

    async def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == 0:
            pair = self._by_stream.get(stream)
            if pair is not None and stream == pair.data:
                if payload:
                    if not await pair.inbox.put(payload):
                        pair.inbox.close()
                        await self._socket.send_bytes(control(RST_STREAM, 0, struct.pack(">II", stream, CANCEL)))
                        return
                    await self._window(stream, len(payload))
                if flags & FLAG_FIN:
                    pair.inbox.end()
        elif kind == SYN_STREAM:
            await self._open(payload)
        elif kind == RST_STREAM:
            if len(payload) < 8:
                raise SpdyError("RST_STREAM is cut short")
            pair = self._by_stream.get(struct.unpack_from(">I", payload)[0] & 0x7FFFFFFF)
            if pair is not None:
                pair.inbox.close()
        elif kind == PING:
            await self._socket.send_bytes(control(PING, 0, payload))

    async def _window(self, stream: int, size: int) -> None:
        await self._socket.send_bytes(control(WINDOW_UPDATE, 0, struct.pack(">II", stream, size)))

    async def _open(self, payload: bytes) -> None:
        if len(payload) < 10:
            raise SpdyError("SYN_STREAM is cut short")
        stream = struct.unpack_from(">I", payload)[0] & 0x7FFFFFFF
        headers = self._headers.decode(payload[10:])
        if len(self._by_stream) >= 2 * MAX_STREAMS:
            await self._socket.send_bytes(control(RST_STREAM, 0, struct.pack(">II", stream, REFUSED)))
            return
        port = headers.get("port", "")
        if not port.isdecimal() or not 0 < int(port[:6]) < 65536:
            raise SpdyError(f"port {port!r} is no number from 1 to 65535")
        key = headers.get("requestid") or f"{port}/{stream // 4}"
        pair = self._pairs.setdefault(key, _Pair(int(port)))
        self._by_stream[stream] = pair
        await self._socket.send_bytes(control(SYN_REPLY, 0, struct.pack(">I", stream) + self._headers.encode({})))
        if headers.get("streamtype") == "error":
            pair.error = stream
        else:
            pair.data = stream
        if pair.error and pair.data:
            task = asyncio.create_task(self._serve(key, pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, key: str, pair: _Pair) -> None:
        problem = b""
        try:
            stream = await self._dial(pair.port)
        except ApiError as error:
            problem = error.message.encode()
        else:
            try:
                await self._relay(pair, stream)
            except StreamReset as error:
                problem = str(error).encode()
            finally:
                await stream.close()
        pair.inbox.close()
        with suppress(ConnectionError):
            if problem:
                await self._socket.send_bytes(data_frame(pair.error, problem))
            await self._socket.send_bytes(data_frame(pair.error, b"", FLAG_FIN))
            await self._socket.send_bytes(data_frame(pair.data, b"", FLAG_FIN))
        self._pairs.pop(key, None)
        self._by_stream.pop(pair.error, None)
        self._by_stream.pop(pair.data, None)

    async def _relay(self, pair: _Pair, stream: Stream) -> None:
        async def up() -> None:
            while data := await pair.inbox.get():
                await stream.write(data)
            await stream.write_eof()

        sending = asyncio.create_task(up())
        try:
            while data := await stream.read():
                for start in range(0, len(data), CHUNK):
                    await self._socket.send_bytes(data_frame(pair.data, data[start : start + CHUNK]))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
