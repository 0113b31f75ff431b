"""Packets of MQTT 3.1.1, as far as the gateway says and hears them as a client (OASIS MQTT 3.1.1, chapters 2 and 3).

The library that reads and writes MQTT 5 for us knows no other version, and those that know this one bring a client along.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 1, 2, 3, 4, 5, 6, 7
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = 8, 9, 10, 11, 12, 13, 14

#: Of a fixed header: the type and up to four bytes of length.
HEADER_BYTES = 5
#: A subscription that was refused.
REFUSED = 0x80


@dataclass(frozen=True, slots=True)
class Frame:
    """A packet as it is on the wire: its type, the four flags of its first byte, and what follows the length."""

    type: int
    flags: int
    body: bytes

    def write(self) -> bytes:
        length, size = len(self.body), bytearray()
        while True:
            size.append(length & 0x7F | (0x80 if length > 0x7F else 0))
            length >>= 7
            if not length:
                return bytes([self.type << 4 | self.flags]) + bytes(size) + self.body

    def number(self) -> int:
        """The packet identifier at its begin. Raises ``ValueError``."""
        return _number(self.body, 0)

    def codes(self) -> bytes:
        """Of a SUBACK: one for each subscription."""
        return self.body[2:]


@dataclass(frozen=True, slots=True)
class Publish:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    #: 0 at QoS 0.
    number: int = 0
    again: bool = False

    def write(self) -> bytes:
        flags = (8 if self.again else 0) | self.qos << 1 | self.retain
        return Frame(
            PUBLISH, flags, _text(self.topic) + (struct.pack(">H", self.number) if self.qos else b"") + self.payload
        ).write()

    @classmethod
    def read(cls, frame: Frame) -> Publish:
        """Raises ``ValueError``."""
        qos, size = frame.flags >> 1 & 3, _number(frame.body, 0)
        end = 2 + size
        if end > len(frame.body) or qos == 3:
            raise ValueError("a PUBLISH packet is shorter than it says, or of QoS 3")
        number = _number(frame.body, end) if qos else 0
        payload = frame.body[end + (2 if qos else 0) :]
        return cls(frame.body[2:end].decode(), payload, qos, bool(frame.flags & 1), number, bool(frame.flags & 8))


def size(data: bytes | bytearray) -> int:
    """How long the packet is that ``data`` begins with; 0: too little is there to know. Raises ``ValueError``."""
    length = 0
    for at in range(1, HEADER_BYTES):
        if at >= len(data):
            return 0
        length |= (data[at] & 0x7F) << 7 * (at - 1)
        if not data[at] & 0x80:
            return at + 1 + length
    raise ValueError("the length of a packet has more than four bytes")


def read(data: bytes) -> Frame:
    """Of exactly one packet."""
    at = 1
    while data[at] & 0x80:
        at += 1
    return Frame(data[0] >> 4, data[0] & 15, bytes(data[at + 1 :]))


def level(data: bytes) -> int:
    """The protocol that a whole first packet asks for: 4 is 3.1.1, 5 is 5. Raises ``ValueError`` where it is no CONNECT."""
    frame = read(data)
    end = 2 + _number(frame.body, 0)
    if frame.type != CONNECT or end >= len(frame.body):
        raise ValueError("the first packet is no CONNECT")
    return frame.body[end]


def connect(client: str, user: str | None, password: bytes | None, clean: bool, keep_alive: int, will: Publish | None) -> bytes:
    flags = (0x80 if user is not None else 0) | (0x40 if password is not None else 0) | (2 if clean else 0)
    body = _text(client)
    if will is not None:
        flags |= 4 | will.qos << 3 | (0x20 if will.retain else 0)
        body += _text(will.topic) + _bytes(will.payload)
    body += (_text(user) if user is not None else b"") + (_bytes(password) if password is not None else b"")
    return Frame(CONNECT, 0, _text("MQTT") + bytes([4, flags]) + struct.pack(">H", keep_alive) + body).write()


def answer(type: int, number: int) -> bytes:
    """PUBACK, PUBREC, PUBREL or PUBCOMP."""
    return Frame(type, 2 if type == PUBREL else 0, struct.pack(">H", number)).write()


def subscribe(number: int, filters: Sequence[tuple[str, int]]) -> bytes:
    body = b"".join(_text(pattern) + bytes([qos]) for pattern, qos in filters)
    return Frame(SUBSCRIBE, 2, struct.pack(">H", number) + body).write()


def unsubscribe(number: int, filters: Sequence[str]) -> bytes:
    return Frame(UNSUBSCRIBE, 2, struct.pack(">H", number) + b"".join(map(_text, filters))).write()


def ping() -> bytes:
    return Frame(PINGREQ, 0, b"").write()


def disconnect() -> bytes:
    return Frame(DISCONNECT, 0, b"").write()


def _number(data: bytes, at: int) -> int:
    if at + 2 > len(data):
        raise ValueError("a packet is shorter than it says")
    return int.from_bytes(data[at : at + 2], "big")


def _text(text: str) -> bytes:
    return _bytes(text.encode())


def _bytes(data: bytes) -> bytes:
    if len(data) > 0xFFFF:
        raise ValueError(f"a field of a packet has {len(data)} bytes: 65535 is the most")
    return struct.pack(">H", len(data)) + data
