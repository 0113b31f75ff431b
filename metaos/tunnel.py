"""Many streams over one message transport (a WebSocket): the way from the hub to an agent that only dials out.

One message is one frame: type (1 byte), stream number (4 bytes, big endian), payload. Either side opens streams, the
client odd ones, the server even ones. Data flows under a credit per stream and direction, so that one slow reader
never holds up another; a DATA frame is one message and keeps its boundaries.

:class:`Multiplexer` is the protocol without I/O; :class:`Tunnel` and :class:`Stream` are its asyncio form. The scheme
is that of HTTP/2's flow control (RFC 9113, section 5.2) with messages instead of bytes.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

#: Credit per stream and direction, bytes. A frame costs its payload and ``OVERHEAD``, so that small messages are bounded too.
WINDOW = 256 * 1024
OVERHEAD = 32
#: The longest DATA payload: 64 KiB and a channel byte.
MAX_DATA = 64 * 1024 + 1
MAX_HEADER = 8 * 1024
MAX_REASON = 512
#: Streams that each side may have opened at the same time: neither uses up the other's share.
MAX_STREAMS = 512
#: Bytes that have arrived on all streams of a tunnel and were not read yet. Beyond it the stream goes whose reader is stuck.
MAX_UNREAD = 8 * 1024 * 1024
#: Control frames that may wait for the transport; a peer that makes more without reading is cut off.
MAX_CONTROL = 4 * MAX_STREAMS
SUBPROTOCOL = "tunnel.meta-os.eu"
#: How the reason of a reset begins where the site does not let the caller, rather than that something failed.
FORBIDDEN = "Forbidden: "


class Frame(IntEnum):
    OPEN = 1
    DATA = 2
    WINDOW = 3
    EOF = 4
    RESET = 5
    PING = 6
    PONG = 7


class TunnelError(ConnectionError):
    """The tunnel as a whole cannot go on, or has no room for another stream."""


class HeaderTooLong(TunnelError):
    """What a stream was to be opened for does not fit a header."""


class StreamReset(ConnectionError):
    """This stream was ended by the other side, or with the tunnel; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a received frame means. ``data``: payload of DATA, otherwise empty; ``header``: of OPEN; ``reason``: of RESET."""

    type: Frame
    stream: int
    data: bytes = b""
    header: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(slots=True)
class _Side:
    """Bookkeeping of one open stream."""

    credit: int = WINDOW  # what we may still send
    granted: int = WINDOW  # what the peer may still send
    consumed: int = 0  # read by us, not given back yet
    sent_eof: bool = False
    got_eof: bool = False


def _frame(kind: Frame, stream: int, payload: bytes = b"") -> bytes:
    return bytes((kind,)) + stream.to_bytes(4, "big") + payload


class Multiplexer:
    """The protocol without I/O: calls return the frames to send, ``receive`` returns what happened.

    ``outbox`` collects replies (refusals, pongs) that ``receive`` wants sent.
    """

    def __init__(self, *, client: bool, max_streams: int = MAX_STREAMS) -> None:
        self._next = 1 if client else 2
        self._peer_parity = 0 if client else 1
        self._max_streams = max_streams
        self._streams: dict[int, _Side] = {}
        self._opened_by_us = 0
        self.outbox: list[bytes] = []

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, header: dict[str, Any]) -> tuple[int, bytes]:
        """The new stream's number and its OPEN frame. Raises ``TunnelError`` where there is no room for it."""
        if self._opened_by_us >= self._max_streams:
            raise TunnelError(f"the tunnel carries {self._max_streams} streams already; close some, or try again later")
        payload = json.dumps(header, separators=(",", ":")).encode()
        if len(payload) > MAX_HEADER:
            raise HeaderTooLong(f"a stream's header may have {MAX_HEADER} bytes, this one has {len(payload)}")
        number = self._next
        if number >= 2**32:
            raise TunnelError("the tunnel has used up its stream numbers; it must be opened anew")
        self._next += 2
        self._opened_by_us += 1
        self._streams[number] = _Side()
        return number, _frame(Frame.OPEN, number, payload)

    def room(self, stream: int, size: int) -> bool:
        """Whether a DATA frame of ``size`` bytes may be sent now."""
        side = self._streams.get(stream)
        return side is not None and not side.sent_eof and side.credit >= size + OVERHEAD

    def data(self, stream: int, payload: bytes) -> bytes:
        """A DATA frame; only where there is ``room``."""
        if not 0 < len(payload) <= MAX_DATA or not self.room(stream, len(payload)):
            raise ValueError(f"stream {stream} has no room for {len(payload)} bytes")
        self._streams[stream].credit -= len(payload) + OVERHEAD
        return _frame(Frame.DATA, stream, payload)

    def consumed(self, stream: int, size: int) -> bytes | None:
        """Our reader took a message of ``size`` bytes. A WINDOW frame once half of the window is to be given back."""
        side = self._streams.get(stream)
        if side is None or side.got_eof:
            return None
        side.consumed += size + OVERHEAD
        if side.consumed < WINDOW // 2:
            return None
        back, side.consumed = side.consumed, 0
        side.granted += back
        return _frame(Frame.WINDOW, stream, back.to_bytes(4, "big"))

    def accept(self, stream: int) -> bytes | None:
        """An empty WINDOW frame: tells the opener that its stream is being served."""
        return _frame(Frame.WINDOW, stream, bytes(4)) if stream in self._streams else None

    def eof(self, stream: int) -> bytes | None:
        side = self._streams.get(stream)
        if side is None or side.sent_eof:
            return None
        side.sent_eof = True
        self._forget_if_done(stream, side)
        return _frame(Frame.EOF, stream)

    def reset(self, stream: int, reason: str) -> bytes | None:
        if stream not in self._streams:
            return None
        self._forget(stream)
        return _frame(Frame.RESET, stream, reason.encode()[:MAX_REASON])

    def ping(self, payload: bytes = bytes(8)) -> bytes:
        return _frame(Frame.PING, 0, payload[:8])

    def receive(self, message: bytes) -> Event | None:
        """What the frame means, ``None`` where nothing. Raises ``TunnelError`` where the peer breaks the protocol.

        Frames for streams that are gone are ignored: they crossed our RESET on the way.
        """
        if len(message) < 5 or len(message) > 5 + MAX_DATA:
            raise TunnelError(f"a frame has 5 to {5 + MAX_DATA} bytes, this one has {len(message)}")
        try:
            kind = Frame(message[0])
        except ValueError:
            raise TunnelError(f"unknown frame type {message[0]}") from None
        stream = int.from_bytes(message[1:5], "big")
        payload = message[5:]
        if kind is Frame.PING:
            self.outbox.append(_frame(Frame.PONG, 0, payload[:8]))
            return None
        if kind is Frame.PONG:
            return Event(kind, 0, payload[:8])
        if kind is Frame.OPEN:
            return self._opened(stream, payload)
        side = self._streams.get(stream)
        if side is None:
            return None
        if kind is Frame.RESET:
            self._forget(stream)
            return Event(kind, stream, reason=payload[:MAX_REASON].decode(errors="replace"))
        if kind is Frame.WINDOW:
            if len(payload) != 4:
                raise TunnelError("a WINDOW frame carries 4 bytes")
            side.credit += int.from_bytes(payload, "big")
            if side.credit > WINDOW:
                raise TunnelError(f"the peer gave stream {stream} more credit than its window")
            return Event(kind, stream)
        if side.got_eof:
            raise TunnelError(f"{kind.name} on stream {stream} after its end")
        if kind is Frame.EOF:
            side.got_eof = True
            self._forget_if_done(stream, side)
            return Event(kind, stream)
        side.granted -= len(payload) + OVERHEAD
        if not payload or side.granted < 0:
            raise TunnelError(f"the peer sent stream {stream} more than its window")
        return Event(kind, stream, payload)

    def _opened(self, stream: int, payload: bytes) -> Event | None:
        if stream == 0 or stream % 2 != self._peer_parity or stream in self._streams:
            raise TunnelError(f"the peer may not open stream {stream}")
        if len(payload) > MAX_HEADER:
            raise TunnelError(f"a stream's header may have {MAX_HEADER} bytes, this one has {len(payload)}")
        try:
            header = json.loads(payload)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise TunnelError("a stream's header is a JSON object")
        if len(self._streams) - self._opened_by_us >= self._max_streams:
            self.outbox.append(_frame(Frame.RESET, stream, b"too many streams"))
            return None
        self._streams[stream] = _Side()
        return Event(Frame.OPEN, stream, header=header)

    def _forget_if_done(self, stream: int, side: _Side) -> None:
        if side.sent_eof and side.got_eof:
            self._forget(stream)

    def _forget(self, stream: int) -> None:
        del self._streams[stream]
        if stream % 2 != self._peer_parity:
            self._opened_by_us -= 1


class Stream:
    """One stream of a :class:`Tunnel`. Reads and writes are messages; one reader and one writer at a time."""

    def __init__(self, tunnel: Tunnel, number: int, header: dict[str, Any]) -> None:
        self.header = header
        self._tunnel = tunnel
        self._number = number
        self._messages: deque[bytes] = deque()  # bounded by WINDOW
        #: Bytes in it; when (by the loop's clock) something was last read, and when anything last passed.
        self.unread = 0
        self.last_read = self.last_passed = asyncio.get_running_loop().time()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._answered = asyncio.Event()
        self._over = asyncio.Event()
        self._ended = False
        self._sent_eof = False
        self._failure: str | None = None

    async def read(self) -> bytes:
        """The next message, ``b""`` at the end. Raises ``StreamReset`` after what had arrived before it was read."""
        while not self._messages:
            if self._ended:
                return b""
            if self._failure is not None:
                raise StreamReset(self._failure)
            self._readable.clear()
            await self._readable.wait()
        message = self._messages.popleft()
        self.last_read = self._passed()
        self._tunnel._count(self, -len(message))
        await self._tunnel._reply(self._tunnel._core.consumed(self._number, len(message)))
        return message

    async def write(self, data: bytes) -> None:
        """Send a message; waits for credit. More than ``MAX_DATA`` bytes are sent as several messages; empty ones not at all.
        Raises ``StreamReset``, also after ``write_eof``."""
        core = self._tunnel._core
        for start in range(0, len(data), MAX_DATA):
            part = data[start : start + MAX_DATA]
            while not core.room(self._number, len(part)):
                if self._failure is not None or self._sent_eof:
                    raise StreamReset(self._failure or "this side has ended the stream")
                self._writable.clear()
                await self._writable.wait()
            await self._tunnel._transmit(core.data(self._number, part))
            self._passed()

    def _passed(self) -> float:
        self.last_passed = asyncio.get_running_loop().time()
        return self.last_passed

    async def write_eof(self) -> None:
        """Half close: nothing more will be written."""
        self._sent_eof = True
        self._writable.set()
        self._check_over()
        await self._tunnel._reply(self._tunnel._core.eof(self._number))

    async def accept(self) -> None:
        """Tell the opener that the stream is served (a dial that has connected)."""
        await self._tunnel._reply(self._tunnel._core.accept(self._number))

    async def accepted(self) -> None:
        """Returns at the peer's first frame. Raises ``StreamReset`` where it refused."""
        await self._answered.wait()
        if self._failure is not None and not self._messages and not self._ended:
            raise StreamReset(self._failure)

    async def close(self) -> None:
        """End both directions; what was written still arrives, what the peer still writes is refused. As ``reset`` it does
        not wait for the transport, which may be stuck."""
        self._sent_eof = True
        self._tunnel._queue(self._number, self._tunnel._core.eof(self._number))
        self._tunnel._queue(self._number, self._tunnel._core.reset(self._number, "closed by the other side"))
        self._fail("closed")
        self._drop()

    async def reset(self, reason: str) -> None:
        """End both directions at once; the peer's next read or write fails with ``reason``."""
        self._tunnel._queue(self._number, self._tunnel._core.reset(self._number, reason))
        self._fail(reason)
        self._drop()

    def _drop(self) -> None:
        """What arrived is not wanted any more."""
        self._messages.clear()
        self._tunnel._count(self, -self.unread)

    async def wait_closed(self) -> None:
        """Returns when the stream was reset or both sides have ended it."""
        await self._over.wait()

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
        self._over.set()
        self._wake()

    def _wake(self) -> None:
        for event in (self._readable, self._writable, self._answered):
            event.set()

    def _check_over(self) -> None:
        if self._ended and self._sent_eof:
            self._over.set()

    def _happened(self, event: Event) -> None:
        self._answered.set()
        if event.type is Frame.DATA:
            self._messages.append(event.data)
            self._passed()
            self._tunnel._count(self, len(event.data))
            self._readable.set()
        elif event.type is Frame.WINDOW:
            self._writable.set()
        elif event.type is Frame.EOF:
            self._ended = True
            self._readable.set()
            self._check_over()
        else:
            self._fail(event.reason)


class Tunnel:
    """The asyncio form. ``send`` puts one message on the transport; the owner feeds what arrives to :meth:`receive`.

    ``on_open`` runs as a task per stream that the peer opens; when it returns the stream is closed, when it raises the
    stream is reset with the error's text. At most ``max_streams`` of them run.
    """

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        on_open: Callable[[dict[str, Any], Stream], Awaitable[None]],
        *,
        client: bool,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        self._send = send
        self._on_open = on_open
        self._core = Multiplexer(client=client, max_streams=max_streams)
        self._max_streams = max_streams
        self._streams: dict[int, Stream] = {}
        self._served: set[asyncio.Task[None]] = set()
        self._control: deque[bytes] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._closed: str | None = None
        self._unread = 0
        self._pong = asyncio.Event()

    @property
    def closed(self) -> bool:
        return self._closed is not None

    @property
    def streams(self) -> int:
        """How many there are, of both sides."""
        return len(self._core)

    async def open(self, header: dict[str, Any]) -> Stream:
        """A new stream. Raises ``TunnelError`` where the tunnel is closed or full."""
        if self._closed is not None:
            raise TunnelError(self._closed)
        number, frame = self._core.open(header)
        stream = self._streams[number] = Stream(self, number, header)
        await self._transmit(frame)
        return stream

    async def receive(self, message: bytes) -> None:
        """Take one message from the transport; never waits for it. Raises ``TunnelError`` where the peer breaks the
        protocol or does not read, or where the tunnel was closed: close the transport then."""
        if self._closed is not None:
            raise TunnelError(self._closed)
        event = self._core.receive(message)
        self._control.extend(self._core.outbox)
        self._core.outbox.clear()
        if event is not None:
            self._dispatch(event)
        if len(self._control) > MAX_CONTROL:
            raise TunnelError("the other side does not read")
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._control and (self._flusher is None or self._flusher.done()):
            self._flusher = asyncio.create_task(self._flush())

    def _dispatch(self, event: Event) -> None:
        if event.type is Frame.PONG:
            self._pong.set()
        elif event.type is Frame.OPEN:
            if len(self._served) >= self._max_streams:
                refused = self._core.reset(event.stream, "too many streams")
                self._control.extend([refused] if refused else [])
                return
            stream = self._streams[event.stream] = Stream(self, event.stream, event.header)
            task = asyncio.create_task(self._serve(stream))
            self._served.add(task)
            task.add_done_callback(self._served.discard)
        else:
            found = self._streams.get(event.stream)
            if found is not None:
                found._happened(event)
                self._drop_finished(event.stream)
            if self._unread > MAX_UNREAD:
                self._drop_stuck()

    def _count(self, stream: Stream, size: int) -> None:
        stream.unread += size
        self._unread += size

    def _drop_stuck(self) -> None:
        """Of the streams that hold most, the one that was not read from for longest. A stream that both sides have ended is
        not known here any more, and may still hold what its reader has not taken: at most one window."""
        if any(stream.unread for stream in self._streams.values()):
            number, stuck = max(self._streams.items(), key=lambda item: (item[1].unread, -item[1].last_read))
            self._give_up(number, stuck, f"nobody reads it, and {MAX_UNREAD} bytes wait for readers on this tunnel")

    def end_idle(self, seconds: float, which: Callable[[dict[str, Any]], bool]) -> None:
        """Reset the streams on which nothing has passed for so long, of those whose header ``which`` accepts."""
        before = asyncio.get_running_loop().time() - seconds
        for number, stream in list(self._streams.items()):
            if stream.last_passed < before and which(stream.header):
                self._give_up(number, stream, f"nothing has passed for {seconds:g} s")

    def _give_up(self, number: int, stream: Stream, reason: str) -> None:
        self._queue(number, self._core.reset(number, reason))
        stream._fail(reason)
        stream._drop()

    def _queue(self, number: int, frame: bytes | None) -> None:
        """To be sent as soon as the transport takes it, after what was written before. At most two for each stream."""
        if frame is not None and self._closed is None:
            self._control.append(frame)
            self._drop_finished(number)
            self._flush_soon()

    async def ping(self) -> None:
        """Returns when the peer has answered; the caller sets the deadline."""
        self._pong.clear()
        await self._transmit(self._core.ping())
        await self._pong.wait()
        if self._closed is not None:
            raise TunnelError(self._closed)

    async def close(self, reason: str = "the tunnel was closed") -> None:
        """Fail every stream and stop serving. The transport is the owner's to close."""
        if self._closed is None:
            self._closed = reason
        for stream in self._streams.values():
            stream._fail(self._closed)
        self._streams.clear()
        self._control.clear()
        self._pong.set()
        tasks = [t for t in (*self._served, self._flusher) if t is not None and t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, stream: Stream) -> None:
        try:
            await self._on_open(stream.header, stream)
        except StreamReset:
            await stream.reset("closed by the other side")
        except Exception as error:
            await stream.reset(str(error) or type(error).__name__)
        else:
            await stream.close()

    def _drop_finished(self, number: int) -> None:
        if number not in self._core._streams:
            self._streams.pop(number, None)

    async def _reply(self, frame: bytes | None) -> None:
        if frame is not None:
            self._drop_finished(int.from_bytes(frame[1:5], "big"))
            await self._transmit(frame)

    async def _transmit(self, frame: bytes) -> None:
        """In the order of the calls: the lock is first come, first served."""
        async with self._lock:
            if self._closed is not None:
                raise TunnelError(self._closed)
            await self._send(frame)

    async def _flush(self) -> None:
        try:
            while self._control:
                await self._transmit(self._control.popleft())
        except (ConnectionError, OSError):
            self._control.clear()  # the owner learns of it where it reads
