"""The bus in one process's memory, for the twin and for tests: the promises of the real one, but for a crash of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from metaos.messaging.bus import KEYS_SECONDS, WAITING, BusError, Full, Inbox, Message, NoAnswer, Stored, Stream, Unavailable
from metaos.messaging.subjects import matches


class MemoryBus:
    """All that have the same ``MemoryBus`` hear each other. ``monotonic`` tells seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._inboxes: list[tuple[str, str, Inbox]] = []
        self._streams: dict[str, _Kept] = {}
        self._turns, self._replies = count(), count()
        self._closed = False

    async def publish(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        self._say(Message(subject, data, reply, dict(headers or {})))

    async def request(self, subject: str, data: bytes, *, seconds: float = 5.0) -> Message:
        reply = f"_INBOX.{next(self._replies)}"
        inbox = await self.subscribe(reply)
        try:
            if not self._say(Message(subject, data, reply)):
                raise NoAnswer(f"nobody listens on {subject}")
            async with asyncio.timeout(seconds):
                return await anext(inbox)
        except TimeoutError:
            raise Unavailable(f"no answer on {subject} within {seconds:g} s") from None
        finally:
            await inbox.close()

    async def subscribe(self, subject: str, *, group: str = "", waiting: int = WAITING) -> Inbox:
        self._check()

        async def close() -> None:
            self._inboxes = [entry for entry in self._inboxes if entry[2] is not inbox]

        inbox = Inbox(waiting, close)
        self._inboxes.append((subject, group, inbox))
        return inbox

    async def keep(self, stream: Stream) -> None:
        self._check()
        if stream.name in self._streams:
            self._streams[stream.name].stream = stream
            self._streams[stream.name].trim(self._monotonic())
        else:
            self._streams[stream.name] = _Kept(stream)

    async def append(self, subject: str, data: bytes, *, key: str = "") -> Stored:
        self._check()
        for kept in self._streams.values():
            if any(matches(pattern, subject) for pattern in kept.stream.subjects):
                known = kept.known(key, self._monotonic())
                if known:
                    return Stored(known, True)
                self._say(Message(subject, data), key)
                return Stored(kept.last)
        raise BusError(f"no stream keeps {subject}")

    async def consume(self, stream: str, name: str, *, subject: str = ">", again_seconds: float = 30.0) -> MemoryConsumer:
        self._check()
        if stream not in self._streams:
            raise BusError(f"there is no stream {stream}")
        kept = self._streams[stream]
        place = kept.places.setdefault(name, _Place(subject, again_seconds))
        return MemoryConsumer(kept, place, self._monotonic)

    async def close(self) -> None:
        self._closed = True
        for _, _, inbox in self._inboxes:
            inbox.end()
        self._inboxes.clear()

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("this connection to the bus is closed")

    def _say(self, message: Message, key: str = "") -> int:
        """How many heard it."""
        self._check()
        for kept in self._streams.values():
            if any(matches(pattern, message.subject) for pattern in kept.stream.subjects):
                kept.add(message, key, self._monotonic())
        found = [entry for entry in self._inboxes if matches(entry[0], message.subject)]
        groups: dict[str, list[Inbox]] = {}
        for _, group, inbox in found:
            if group:
                groups.setdefault(group, []).append(inbox)
            else:
                inbox.put(message)
        for members in groups.values():
            members[next(self._turns) % len(members)].put(message)
        return len(found)


@dataclass
class _Place:
    subject: str
    again_seconds: float
    #: Numbers below this one were handed out.
    following: int = 1
    #: Handed out and not taken: when each comes again.
    pending: dict[int, float] = field(default_factory=dict)


class _Kept:
    """A stream: its messages by number."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.last = stream, 0
        self.messages: dict[int, tuple[Message, float]] = {}
        self.places: dict[str, _Place] = {}
        self.news = asyncio.Event()
        self._bytes = 0
        self._keys: dict[str, tuple[int, float]] = {}

    def known(self, key: str, now: float) -> int:
        """The number of what was kept under this key, not long ago; 0: none."""
        while self._keys and next(iter(self._keys.values()))[1] + KEYS_SECONDS < now:
            del self._keys[next(iter(self._keys))]
        return self._keys.get(key, (0, 0.0))[0] if key else 0

    def add(self, message: Message, key: str, now: float) -> None:
        """Raises ``Full``."""
        size = _size(message)
        if self.stream.refuses and (
            size + self._bytes > self.stream.most_bytes or 0 < self.stream.most_messages <= len(self.messages)
        ):
            raise Full(f"stream {self.stream.name} has no room: it keeps {self.stream.most_bytes} bytes")
        self.last += 1
        self.messages[self.last] = (replace(message, reply=""), now)
        self._bytes += size
        if key:
            self._keys[key] = (self.last, now)
        self.trim(now)
        self.news.set()

    def trim(self, now: float) -> None:
        bounds, newest = self.stream, self.messages.get(self.last)
        if bounds.most_of_subject > 0 and newest is not None:
            same = [number for number, (m, _) in self.messages.items() if m.subject == newest[0].subject]
            for number in same[: -bounds.most_of_subject]:
                self._drop(number)
        while self.messages:
            oldest = next(iter(self.messages))
            old = bounds.most_seconds > 0 and self.messages[oldest][1] + bounds.most_seconds < now
            many = 0 < bounds.most_messages < len(self.messages)
            if not old and not many and self._bytes <= bounds.most_bytes:
                break
            self._drop(oldest)

    def _drop(self, number: int) -> None:
        self._bytes -= _size(self.messages.pop(number)[0])


class MemoryDelivery:
    def __init__(self, place: _Place, number: int, message: Message) -> None:
        self._place, self.number, self.message = place, number, message

    async def take(self) -> None:
        self._place.pending.pop(self.number, None)

    async def refuse(self) -> None:
        if self.number in self._place.pending:
            self._place.pending[self.number] = float("-inf")


class MemoryConsumer:
    def __init__(self, kept: _Kept, place: _Place, monotonic: Callable[[], float]) -> None:
        self._kept, self._place, self._monotonic = kept, place, monotonic

    async def fetch(self, most: int, seconds: float) -> Sequence[MemoryDelivery]:
        end = self._monotonic() + seconds
        while True:
            found = self._ready(most)
            left = end - self._monotonic()
            if found or left <= 0:
                return found
            self._kept.news.clear()
            again = min(self._place.pending.values(), default=float("inf")) - self._monotonic()
            try:
                async with asyncio.timeout(max(0.0, min(left, again))):
                    await self._kept.news.wait()
            except TimeoutError:
                pass

    def _ready(self, most: int) -> list[MemoryDelivery]:
        now, place, messages = self._monotonic(), self._place, self._kept.messages
        self._kept.trim(now)
        # What the stream no longer has cannot come again.
        for number in [n for n in place.pending if n not in messages]:
            del place.pending[number]
        numbers = [n for n, due in place.pending.items() if due <= now]
        numbers += [n for n in messages if n >= place.following and matches(place.subject, messages[n][0].subject)]
        found = numbers[:most]
        for number in found:
            place.pending[number] = now + place.again_seconds
            place.following = max(place.following, number + 1)
        return [MemoryDelivery(place, n, messages[n][0]) for n in found]


def _size(message: Message) -> int:
    return len(message.subject) + len(message.data)
