"""Tails and rotation of log files, and lines of ``/proc/PID/stat``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.runtimes import logs, pump
from metaos.runtimes.process import Identity, identity, parse_stat


@given(
    st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"")), max_size=12),
    st.booleans(),
    st.integers(0, 14),
    st.integers(0, 80),
)
def test_the_tail_is_the_last_lines_of_both_files(lines: list[bytes], ended: bool, count: int, split: int) -> None:
    data = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    with tempfile.TemporaryDirectory() as place:
        Path(place, "log.1").write_bytes(data[:split])
        Path(place, "log").write_bytes(data[split:])
        assert b"".join(logs.read(place, None)) == data
        expected = b"".join(data.splitlines(keepends=True)[-count:]) if count else b""
        if b"\r" not in data and data[split:]:  # splitlines also splits there
            assert b"".join(logs.read(place, count)) == expected


def test_no_log_has_no_tail(tmp_path: Path) -> None:
    assert list(logs.read(str(tmp_path), 5)) == [] and logs.last_line(str(tmp_path)) == ""


class Writer:
    """A container's end of its pipe, and ours."""

    def __init__(self, place: Path) -> None:
        self._place = str(place)
        self._out = pump.make(self._place)
        self._pipe = os.open(place / "out", os.O_RDONLY | os.O_NONBLOCK)

    def write(self, data: bytes) -> None:
        os.write(self._out, data)
        while pump.move(self._pipe, self._place):
            pass

    def close(self) -> None:
        os.close(self._out)
        assert pump.move(self._pipe, self._place) == 0
        os.close(self._pipe)


@settings(deadline=None)
@given(st.integers(1, 50), st.lists(st.binary(max_size=120), max_size=12))
def test_no_byte_more_than_the_bound_and_the_newest_are_kept(bound: int, pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patched:
        patched.setattr(pump, "BOUND", bound)
        writer = Writer(Path(place))
        for piece in pieces:
            writer.write(piece)
            assert all(os.path.getsize(each) <= bound for each in Path(place).glob("log*"))
        writer.close()
        kept = b"".join(logs.read(place, None))
        written = b"".join(pieces)
        assert written.endswith(kept) and (len(kept) >= min(bound, len(written)))


def test_a_command_name_may_hold_anything() -> None:
    line = "7 (a) b) (c) S 1 7 9 0 -1 4194560 1 2 3 4 100 50 7 3 20 0 1 0 4242 8000 25 18446744073709551615\n"
    found = parse_stat(line)
    assert found is not None
    assert (found.pid, found.state, found.parent, found.session, found.start) == (7, "S", 1, 9, 4242)
    assert parse_stat("7 (x") is None


def test_identity_is_more_than_a_pid() -> None:
    me = identity(os.getpid())
    assert me is not None and me.alive()
    other = Identity(me.pid, me.start - 1)
    assert not other.alive()
    other.kill()  # hits nobody
    assert identity(2**22 + 1) is None


def test_what_is_surely_older_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path)
    writer = Writer(tmp_path)

    def since(time: float) -> bytes:
        return b"".join(logs.read(place, None, since=time))

    assert since(0) == b""
    logs.note(place, 10)
    writer.write(b"one\ntw")
    logs.note(place, 20)
    writer.write(b"o\nthree\n")
    for time in (30, 40, 50):
        logs.note(place, time)
    assert since(5) == since(15) == b"one\ntwo\nthree\n"
    # The line that was begun by then came to its end later.
    assert since(25) == b"two\nthree\n" and since(35) == since(60) == b""
    assert b"".join(logs.read(place, 1, since=15)) == b"three\n"
    writer.write(b"four\n")
    assert since(60) == b"four\n"
    logs.note(place, 70)
    monkeypatch.setattr(pump, "BOUND", 19)
    writer.write(b"five\n")
    writer.close()
    assert since(5) == b"one\ntwo\nthree\nfour\nfive\n"
    assert since(45) == since(55) == b"four\nfive\n" and since(75) == b"five\n"


def test_the_times_of_a_log_are_bounded(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for time in range(3 * logs.MAX_ENTRIES):
        writer.write(b"x\n")
        logs.note(str(tmp_path), time)
    writer.close()
    assert (tmp_path / "log.times").stat().st_size <= (logs.MAX_ENTRIES + 1) * 16
    assert b"".join(logs.read(str(tmp_path), None, since=3 * logs.MAX_ENTRIES - 10)).count(b"x") < 20
