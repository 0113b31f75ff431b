"""SPDY/3.1 framing, against the published dictionary and a peer that is written here."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.spdy import DICTIONARY, MAX_FRAME, SYN_STREAM, Headers, SpdyError, control, data_frame, frames

names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


def test_the_dictionary_is_the_published_one() -> None:
    # Of golang.org/x/net and moby/spdystream, spdy/dictionary.go; Adler-32 is what zlib itself checks (RFC 1950).
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


@given(st.lists(st.dictionaries(names, values, max_size=6), min_size=1, max_size=6))
def test_headers_keep_their_state(blocks: list[dict[str, str]]) -> None:
    here, there = Headers(), Headers()
    for block in blocks:
        assert there.decode(here.encode(block)) == block


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2**31 - 1), st.binary(max_size=40)), max_size=8), st.integers(1, 9))
def test_frames_come_out_however_they_are_cut(sent: list[tuple[bool, int, bytes]], size: int) -> None:
    stream = b"".join(
        control(SYN_STREAM, 0, data) if is_control else data_frame(number, data, 1) for is_control, number, data in sent
    )
    buffer, found = bytearray(), []
    for start in range(0, len(stream), size):
        buffer += stream[start : start + size]
        found += frames(buffer)
    assert not buffer
    assert found == [(SYN_STREAM, 0, 0, data) if is_control else (0, 1, number, data) for is_control, number, data in sent]


def test_what_is_too_long_or_damaged_is_refused() -> None:
    with pytest.raises(SpdyError):
        frames(bytearray(struct.pack(">II", 1, MAX_FRAME + 1)))
    with pytest.raises(SpdyError):
        Headers().decode(b"not zlib")
