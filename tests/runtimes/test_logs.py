"""Tails and rotation of log files, and lines of ``/proc/PID/stat``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from metaos.runtimes import logs
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
    assert logs.rotate(str(tmp_path)) is False


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    log = logs.open_log(str(tmp_path))
    os.write(log, b"old\n" * 100 + b"new\n")
    assert logs.rotate(str(tmp_path), bound=40)
    os.write(log, b"after\n")
    os.close(log)
    assert (tmp_path / "log").read_bytes() == b"after\n"
    assert (tmp_path / "log.1").read_bytes() == b"old\n" * 9 + b"new\n"
    assert not logs.rotate(str(tmp_path), bound=40)
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1"]


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


def test_what_is_surely_older_is_left_out(tmp_path: Path) -> None:
    place = str(tmp_path)
    log = logs.open_log(place)

    def since(time: float) -> bytes:
        return b"".join(logs.read(place, None, since=time))

    assert since(0) == b""
    logs.note(place, 10)
    os.write(log, b"one\ntw")
    logs.note(place, 20)
    os.write(log, b"o\nthree\n")
    for time in (30, 40, 50):
        logs.note(place, time)
    assert since(5) == since(15) == b"one\ntwo\nthree\n"
    # The line that was begun by then came to its end later.
    assert since(25) == b"two\nthree\n" and since(35) == since(60) == b""
    assert b"".join(logs.read(place, 1, since=15)) == b"three\n"
    os.write(log, b"four\n")
    assert since(60) == b"four\n"
    logs.note(place, 70)
    assert logs.rotate(place, bound=10)
    os.write(log, b"five\n")
    os.close(log)
    assert since(5) == b"hree\nfour\nfive\n"
    assert since(45) == since(55) == b"four\nfive\n" and since(75) == b"five\n"


def test_the_times_of_a_log_are_bounded(tmp_path: Path) -> None:
    log = logs.open_log(str(tmp_path))
    for time in range(3 * logs.MAX_ENTRIES):
        os.write(log, b"x\n")
        logs.note(str(tmp_path), time)
    os.close(log)
    assert (tmp_path / "log.times").stat().st_size <= (logs.MAX_ENTRIES + 1) * 16
    assert b"".join(logs.read(str(tmp_path), None, since=3 * logs.MAX_ENTRIES - 10)).count(b"x") < 20
