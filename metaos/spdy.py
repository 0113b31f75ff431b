"""SPDY/3.1 framing: control and data frames, and the compression of headers, which has a state. No I/O.

Source: SPDY Protocol Draft 3.1 (the Chromium Projects), with its header compression dictionary. Kubernetes carries the streams of
``exec``, ``attach`` and ``portforward`` by it; their flow control is left out, as its clients and servers do.
"""

from __future__ import annotations

import struct
import zlib

VERSION = 3
SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 9
FLAG_FIN = 1
MAX_FRAME = 1 << 20

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
