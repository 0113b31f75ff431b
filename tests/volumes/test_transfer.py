"""Sender and receiver over a socket: rounds while somebody writes, the last one after, a line that breaks, a peer that lies."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from metaos.security.identity import Authority, KeyPair
from metaos.volumes import scan
from metaos.volumes.receiving import Progress, Receiver, Request, is_close, permitted
from metaos.volumes.restoring import SPARE_BYTES
from metaos.volumes.sending import Sender, Throttle
from metaos.volumes.wire import Kind, Line, PeerError, secured

NOW = 1.8e9


class Pair:
    """A sender thread and this thread as the receiver, over a socket pair without TLS."""

    def __init__(self, tmp: Path) -> None:
        self.source, self.target = tmp / "data-db-0", tmp / "arriving"
        self.source.mkdir(exist_ok=True)
        self.target.mkdir(exist_ok=True)
        self.stopped = threading.Event()
        self.ours, theirs = socket.socketpair()
        self.theirs = theirs
        for each in (self.ours, theirs):
            each.settimeout(20)
        self.problem: BaseException | None = None
        claims = {"data-db-0": str(self.source)}
        sender = Sender(Line(theirs), claims, self.stopped, Throttle(0, lambda: 0.0, lambda seconds: None))

        def serve() -> None:
            try:
                sender.serve()
            except BaseException as error:
                self.problem = error
            finally:
                theirs.close()

        self.thread = threading.Thread(target=serve)
        self.thread.start()
        self.reports: list[Progress] = []

    def receive(self, *, each: object = None) -> None:
        request = Request(3, "", "a", str(self.target), ("data-db-*",))

        def report(progress: Progress) -> None:
            self.reports.append(progress)
            if callable(each):
                each(progress)

        ticks = iter(range(10**6))
        try:
            Receiver(Line(self.ours), request, report, lambda: float(next(ticks))).run()
        finally:
            self.ours.close()
            self.thread.join(10)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = Pair(tmp_path)
    yield found
    found.ours.close()
    found.theirs.close()
    found.thread.join(10)


def test_rounds_while_somebody_writes_and_one_after(pair: Pair) -> None:
    (pair.source / "big").write_bytes(os.urandom(6 << 20))

    def write(progress: Progress) -> None:
        if pair.stopped.is_set():
            return
        with (pair.source / "log").open("ab") as log:
            log.write(os.urandom(100_000))
        if progress.close:
            pair.stopped.set()

    pair.receive(each=write)
    assert pair.problem is None
    last = pair.reports[-1]
    assert last.complete and last.digests is not None
    assert last.digests["data-db-0"] == scan(pair.source, NOW, block_bytes=256 << 10).manifest.digest
    assert (pair.target / "data-db-0" / "log").read_bytes() == (pair.source / "log").read_bytes()
    assert last.bytes < (6 << 20) + len(pair.reports) * (1 << 20)
    assert [report.complete for report in pair.reports[:-1]] == [False] * (len(pair.reports) - 1)


def test_a_line_that_breaks_is_gone_on_from(tmp_path: Path) -> None:
    first = Pair(tmp_path)
    for number in range(8):
        (first.source / str(number)).write_bytes(os.urandom(1 << 20))
    line = Line(first.ours)
    received = line.receive

    def breaking() -> tuple[Kind, bytes]:
        if line.received > 4 << 20:
            first.ours.close()
        return received()

    line.receive = breaking  # type: ignore[method-assign]
    with pytest.raises(OSError):
        Receiver(line, Request(3, "", "a", str(first.target), ("data-db-0",)), lambda progress: None, lambda: 0.0).run()
    first.thread.join(10)
    second = Pair(tmp_path)
    second.stopped.set()
    second.receive()
    assert second.reports[-1].complete
    assert 0 < second.reports[-1].bytes <= 5 << 20
    assert scan(second.target / "data-db-0", NOW).manifest == scan(second.source, NOW).manifest


def test_a_receiver_cannot_end_it_early(pair: Pair) -> None:
    (pair.source / "a").write_bytes(b"x")
    line = Line(pair.ours)
    line.say(Kind.ROUND, {"wait": 0})
    assert line.hear(Kind.STATE)["final"] is False
    line.expect(Kind.MANIFEST)
    digest = scan(pair.source, NOW, block_bytes=256 << 10).manifest.digest
    line.say(Kind.DONE, {"digests": {"data-db-0": digest}})
    pair.thread.join(10)
    assert isinstance(pair.problem, PeerError)


def test_a_block_that_has_changed_since_is_gone(pair: Pair) -> None:
    (pair.source / "a").write_bytes(b"x" * 1000)
    line = Line(pair.ours)
    line.say(Kind.ROUND, {"wait": 0})
    line.hear(Kind.STATE)
    line.expect(Kind.MANIFEST)
    digest = scan(pair.source, NOW).manifest.entries[1].blocks[0]
    assert digest is not None
    line.send(Kind.WANT, digest)
    assert line.receive()[0] is Kind.BLOCK
    (pair.source / "a").unlink()
    (pair.source / "a").symlink_to("/etc/passwd")
    line.send(Kind.WANT, digest)
    assert line.receive() == (Kind.GONE, b"")


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"final": False, "claims": [["other", 5]]}, "none of this workload's"),
        ({"final": False, "claims": [["../x", 5]]}, "none of this workload's"),
        ({"final": False, "claims": [["data-db-0", -1]]}, "-1 bytes"),
        ({"final": False, "claims": [["data-db-0", 1 << 40]]}, "at most"),
        ({"final": False, "claims": "x"}, "up to 256"),
        ({"final": False, "claims": [[1, 2]]}, "a name and a length"),
        ([], "no JSON object"),
    ],
)
def test_a_sender_that_lies(tmp_path: Path, state: object, why: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes((Kind.STATE,)) + len(json.dumps(state)).to_bytes(4, "big") + json.dumps(state).encode())
        request = Request(3, "", "a", str(tmp_path), ("data-db-*",))
        with pytest.raises(PeerError, match=why):
            Receiver(Line(ours), request, lambda progress: None, lambda: 0.0).run()


def test_a_manifest_in_no_bytes_without_end_is_refused(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Line(theirs).say(Kind.STATE, {"final": False, "claims": [["data-db-0", 5]]})
        Line(theirs).send(Kind.MANIFEST)
        request = Request(3, "", "a", str(tmp_path), ("data-db-*",))
        with pytest.raises(PeerError, match="0 bytes: 1 to 5 are due"):
            Receiver(Line(ours), request, lambda progress: None, lambda: 0.0).run()


def test_what_has_no_room_is_not_begun(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that sends without end does not fill the disk of another one."""
    (pair.source / "a").write_bytes(os.urandom(2 << 20))
    room = SPARE_BYTES + (1 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=room))
    with pytest.raises(OSError, match="brings 2 MiB more, and this site has 65 MiB free: make room"):
        pair.receive()
    assert not (pair.target / "data-db-0" / "a").exists()


def test_frames_are_bounded() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes((Kind.BLOCK,)) + (1 << 31).to_bytes(4, "big"))
        with pytest.raises(PeerError, match="at most"):
            Line(ours).receive()
        theirs.sendall(b"\xff" + bytes(4))
        with pytest.raises(PeerError, match="unknown kind"):
            Line(ours).receive()


def test_when_the_rest_is_small_enough() -> None:
    assert not is_close([10**9], [10.0])
    assert not is_close([10**9, 10**8], [10.0, 1.0])
    assert is_close([10**9, 10**7], [10.0, 0.1])
    assert is_close([10**9, 9 * 10**8, 9 * 10**8], [10.0, 9.0, 9.0])
    assert is_close([10**9, 100], [10.0, 9.0])


def test_which_claims_may_come() -> None:
    assert permitted("data-db-0", ["data-db-*"])
    assert permitted("data-db-12", ["data-db-*"])
    assert permitted("www", ["www"])
    for name in ("data-db-", "data-db-x", "data-db-0/..", "", "..", "www2", "data-db-*"):
        assert not permitted(name, ["data-db-*", "www"])


def test_a_throttle_keeps_its_rate() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    throttle = Throttle(1000.0, lambda: now[0], sleep)
    for _ in range(100):
        throttle.pass_(100)
    assert 9.5 <= now[0] <= 10.0
    now[0] += 60
    for _ in range(10):
        throttle.pass_(100)
    assert now[0] >= 70.4  # what was not used is not saved up


def _identity(directory: Path, authority: Authority, pair: KeyPair) -> Path:
    directory.mkdir()
    (directory / "agent.pem").write_bytes(pair.certificate + pair.key)
    (directory / "ca.pem").write_bytes(authority.pair.certificate)
    return directory


def _handshake(one: Path, other: Path, expected: tuple[str, str], now: float = NOW + 60) -> list[BaseException | None]:
    """Sender ``one`` expects ``expected[0]``, receiver ``other`` expects ``expected[1]``."""
    ours, theirs = socket.socketpair()
    found: list[BaseException | None] = [None, None]

    def end(number: int, sock: socket.socket, identity: Path, peer: str, server: bool) -> None:
        try:
            with secured(sock, identity, peer, lambda: now, server=server) as line:
                Line(line).send(Kind.DONE)
                Line(line).receive()
        except OSError as error:
            found[number] = error
        finally:
            sock.close()

    thread = threading.Thread(target=end, args=(0, theirs, one, expected[0], True))
    thread.start()
    end(1, ours, other, expected[1], False)
    thread.join(10)
    return found


def test_only_the_two_sites_talk(tmp_path: Path) -> None:
    import time

    now = time.time()
    authority, foreign = Authority.create(Random(1), now), Authority.create(Random(2), now)
    a = _identity(tmp_path / "a", authority, authority.issue_client("system:cluster:a", ("system:clusters",), now))
    b = _identity(tmp_path / "b", authority, authority.issue_client("system:cluster:b", ("system:clusters",), now))
    x = _identity(tmp_path / "x", authority, foreign.issue_client("system:cluster:a", ("system:clusters",), now))
    assert _handshake(a, b, ("b", "a"), now + 60) == [None, None]
    assert "not site 'c'" in str(_handshake(a, b, ("c", "a"), now + 60)[0])
    assert "not site 'c'" in str(_handshake(a, b, ("b", "c"), now + 60)[1])
    assert "does not know" in str(_handshake(x, b, ("b", "a"), now + 60)[1])
    assert _handshake(a, x, ("a", "a"), now + 60)[0] is not None
    assert "not valid now" in str(_handshake(a, b, ("b", "a"), now - 10 * 86400)[1])
