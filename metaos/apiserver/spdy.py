"""SPDY/3.1 as far as ``kubectl port-forward`` uses it, inside a WebSocket: streams in pairs (error, data) for each connection.

The pairing of streams by the headers ``streamType``, ``port`` and ``requestID`` follows ``k8s.io/kubelet`` and
``k8s.io/client-go``.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

from metaos.resources.errors import ApiError
from metaos.spdy import (
    FLAG_FIN,
    PING,
    RST_STREAM,
    SYN_REPLY,
    SYN_STREAM,
    WINDOW_UPDATE,
    Headers,
    SpdyError,
    control,
    data_frame,
    frames,
)
from metaos.tunnel import Stream, StreamReset

PORTFORWARD = "SPDY/3.1+portforward.k8s.io"
MAX_STREAMS = 512
CHUNK = 16 * 1024
#: Per stream; kubectl's side knows no flow control, so beyond it the whole connection waits, for a while.
INBOX_BYTES = 1 << 20
STALL_SECONDS = 10.0
#: Status codes of RST_STREAM.
REFUSED, CANCEL = 3, 5


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
