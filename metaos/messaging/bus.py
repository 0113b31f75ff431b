"""The message bus: who says something on a subject is heard by all who listen there, or by a stream that keeps it.

Two ways, and no third. ``publish`` and ``subscribe``: at most once, for what is said again (a heartbeat, a twin's state).
``append`` and ``consume``: kept before it is acknowledged, and handed out until it is taken, so at least once; a key makes what
is appended twice count once. Subjects are in :mod:`metaos.messaging.subjects`; ``*`` stands for one word and a last ``>`` for one
or more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

#: Messages that wait for a subscriber; of more than that the oldest are lost, and counted.
WAITING = 1000
#: Of all messages that wait for one subscriber, in bytes; of more than that the oldest are lost, too.
WAITING_BYTES = 64 << 20
#: How long the second of two things with the same key is known as such, in seconds.
KEYS_SECONDS = 120.0
#: Longest message, in bytes, of a tenant's; a chunk of a program that is sent to a device fits.
PAYLOAD_BYTES = 256 << 10


class BusError(Exception):
    """What was asked of the bus did not happen, or nobody knows whether it did."""


class Unavailable(BusError):
    """No server can be reached, or none answered in time. Trying again later is right."""


class NoAnswer(BusError):
    """Nobody listens on the subject that was asked."""


class Full(BusError):
    """A stream that refuses what is beyond its bounds has no room."""


@dataclass(frozen=True, slots=True)
class Message:
    """``reply``: where an answer is expected; empty: nowhere."""

    subject: str
    data: bytes
    reply: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """Keeps what is said on ``subjects``, within all of its bounds. Beyond them the oldest goes, or, where it ``refuses``, the
    newest is not taken."""

    name: str
    subjects: tuple[str, ...]
    most_bytes: int
    most_messages: int = -1
    #: Of one subject; -1: no bound.
    most_of_subject: int = -1
    #: 0: no bound.
    most_seconds: float = 0.0
    refuses: bool = False
    #: Servers that hold a copy; 0: as many as the bus has for this, 1 or 3.
    copies: int = 0

    def __post_init__(self) -> None:
        if self.most_bytes <= 0:
            raise ValueError(f"stream {self.name}: most_bytes is {self.most_bytes}: say how many bytes it may keep, at least 1")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where something was kept: a number that counts up. ``known``: it had been kept already, under the same key."""

    number: int
    known: bool = False


class Delivery(Protocol):
    """What a consumer was handed. It comes again until it is taken."""

    @property
    def message(self) -> Message: ...

    @property
    def number(self) -> int:
        """Of the stream."""
        ...

    async def take(self) -> None:
        """It need not come again. Raises ``Unavailable``: then it may."""
        ...

    async def refuse(self) -> None:
        """It should come again soon."""
        ...


class Consumer(Protocol):
    """A place in a stream that the server remembers under a name, whoever reads."""

    async def fetch(self, most: int, seconds: float) -> Sequence[Delivery]:
        """Waits no longer than that for the first, and returns those that are there. Raises ``Unavailable``."""
        ...


class Subscription(Protocol):
    """What is heard, in the order of each who says it. Iterate; it ends when it is closed."""

    @property
    def lost(self) -> int:
        """How many messages nobody took in time."""
        ...

    def __aiter__(self) -> Subscription: ...

    async def __anext__(self) -> Message: ...

    async def close(self) -> None: ...


class Bus(Protocol):
    """A connection to the bus, as one of its accounts. It comes back by itself when the server does, with all subscriptions."""

    async def publish(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        """At most once. While no server is there a bounded amount waits; then it raises ``Unavailable``."""
        ...

    async def request(self, subject: str, data: bytes, *, seconds: float = 5.0) -> Message:
        """The first answer. Raises ``NoAnswer`` where nobody listens, ``Unavailable`` where none came in time."""
        ...

    async def subscribe(self, subject: str, *, group: str = "", waiting: int = WAITING) -> Subscription:
        """Of those who subscribe in a group, one hears each message."""
        ...

    async def keep(self, stream: Stream) -> None:
        """Makes a stream, or changes its bounds. Raises ``BusError``."""
        ...

    async def append(self, subject: str, data: bytes, *, key: str = "") -> Stored:
        """Returns when a stream has it: the death of a server loses it no more. Raises ``Full``, ``Unavailable`` (it may be
        kept nevertheless: append it again with the same key within ``KEYS_SECONDS``), ``BusError`` where no stream keeps this
        subject."""
        ...

    async def consume(self, stream: str, name: str, *, subject: str = ">", again_seconds: float = 30.0) -> Consumer:
        """The place called ``name``, made at the stream's beginning where there is none. What is not taken within
        ``again_seconds`` comes again."""
        ...

    async def close(self) -> None: ...


class Inbox:
    """A bounded subscription: of more than ``waiting`` messages, or ``most_bytes`` in all, the oldest are lost."""

    def __init__(self, waiting: int, close: Callable[[], Awaitable[None]], most_bytes: int = WAITING_BYTES) -> None:
        self._messages: deque[Message] = deque()
        self._waiting, self._most_bytes, self._bytes = waiting, most_bytes, 0
        self._news = asyncio.Event()
        self._close, self._closed = close, False
        self.lost = 0

    @property
    def waiting(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> None:
        self._messages.append(message)
        self._bytes += _bytes(message)
        while len(self._messages) > self._waiting or self._bytes > self._most_bytes:
            self._bytes -= _bytes(self._messages.popleft())
            self.lost += 1
        self._news.set()

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> Message:
        while not self._messages:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        message = self._messages.popleft()
        self._bytes -= _bytes(message)
        return message

    async def close(self) -> None:
        """What waits may still be read."""
        self.end()
        await self._close()

    def end(self) -> None:
        self._closed = True
        self._news.set()


def _bytes(message: Message) -> int:
    return len(message.subject) + len(message.data)
