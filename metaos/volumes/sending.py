"""A site's volumes, sent to another: ``python -m metaos.volumes.sending``, a process of its own for as long as it lasts.

The first line of standard input is the request as JSON (``Request``), with a connected socket as descriptor ``socket``. A further
line ``stopped`` says that nobody writes the volumes any more: the next state is the last one. The agent says it only once the
last pod has ended here, and ends this process before it starts one again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaos.clock import SystemClock
from metaos.volumes.manifest import MAX_ENCODED_BYTES, MAX_ENTRIES
from metaos.volumes.scanning import Snapshot, Unsettled, Unsupported, scan
from metaos.volumes.wire import BATCH, MAX_FRAME, Kind, Line, PeerError, secured

#: A small block: a database that writes a page here and there has little sent again. Larger ones for large volumes, so that
#: their manifests stay small.
SMALL_BLOCK, LARGE_BLOCK, LARGE_BYTES = 256 << 10, 1 << 20, 32 << 30
MAX_WAIT_SECONDS = 5.0
_STEP = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Request:
    """``claims``: name → directory. ``rate``: bytes a second, 0 for no bound. ``identity``: the directory with this site's
    certificate."""

    socket: int
    identity: str
    peer: str
    claims: Mapping[str, str]
    rate: float = 0.0


class Throttle:
    """At most ``rate`` bytes a second on average, in bursts of a quarter of a second."""

    def __init__(self, rate: float, monotonic: Callable[[], float], sleep: Callable[[float], object]) -> None:
        self._rate, self._monotonic, self._sleep = rate, monotonic, sleep
        self._free = monotonic()

    def pass_(self, size: int) -> None:
        if not self._rate:
            return
        now = self._monotonic()
        self._free = max(self._free, now - 0.25) + size / self._rate
        if self._free > now:
            self._sleep(self._free - now)


class Sender:
    """Answers one receiver. ``stopped``: set once nobody writes."""

    def __init__(self, line: Line, claims: Mapping[str, str], stopped: threading.Event, throttle: Throttle) -> None:
        self._line, self._stopped, self._throttle = line, stopped, throttle
        self._claims = {name: Path(path) for name, path in sorted(claims.items())}
        self._snapshots: dict[str, Snapshot] = {}
        self._places: dict[bytes, tuple[Path, str, int, int]] = {}
        self._clock = SystemClock()

    def serve(self) -> None:
        """Until the receiver has all. Raises :class:`PeerError`, ``OSError``, what ``scan`` raises."""
        final = False
        while True:
            kind, data = self._line.receive()
            if kind is Kind.ROUND:
                said = json.loads(data)
                wait = said.get("wait") if isinstance(said, dict) else None
                if isinstance(wait, (int, float)) and wait > 0:
                    self._stopped.wait(min(wait, MAX_WAIT_SECONDS))
                final = self._stopped.is_set()
                self._round(final)
            elif kind is Kind.WANT:
                if len(data) % 32 or len(data) > BATCH * 32:
                    raise PeerError(f"the receiver wants {len(data)} bytes of digests: at most {BATCH} whole ones are taken")
                for start in range(0, len(data), 32):
                    self._block(data[start : start + 32])
            elif kind is Kind.DONE:
                digests = {name: snapshot.manifest.digest for name, snapshot in self._snapshots.items()}
                if not final or json.loads(data) != {"digests": digests}:
                    raise PeerError("the receiver has not what was sent last")
                self._line.say(Kind.DONE, {"digests": digests})
                return
            else:
                raise PeerError(f"a receiver does not say {kind.name}")

    def _round(self, final: bool) -> None:
        from backports import zstd

        self._places.clear()
        packed: list[tuple[str, bytes]] = []
        for name, path in self._claims.items():
            before = self._snapshots.get(name)
            if before is not None:
                size = before.manifest.block_bytes
            else:
                size = LARGE_BLOCK if _used(path) > LARGE_BYTES else SMALL_BLOCK
            now = self._clock.now()
            found = self._snapshots[name] = scan(path, now, before=before, live=not final, block_bytes=size)
            for digest, entry, offset, length in found.manifest.blocks():
                self._places.setdefault(digest, (path, entry.path, offset, length))
            encoded = found.manifest.encode()
            if len(encoded) > MAX_ENCODED_BYTES:
                raise Unsupported(f"claim {name!r} has too many entries and blocks: {len(encoded)} bytes of manifest")
            packed.append((name, zstd.compress(encoded, 1)))
        self._line.say(Kind.STATE, {"final": final, "claims": [[name, len(data)] for name, data in packed]})
        for _, data in packed:
            for start in range(0, len(data), MAX_FRAME):
                part = data[start : start + MAX_FRAME]
                self._throttle.pass_(len(part))
                self._line.send(Kind.MANIFEST, part)

    def _block(self, digest: bytes) -> None:
        from backports import zstd

        place = self._places.get(digest)
        data = None if place is None else _read(*place)
        if data is None or hashlib.sha256(data).digest() != digest:
            self._line.send(Kind.GONE)
            return
        packed = zstd.compress(data, 1)
        self._throttle.pass_(len(packed))
        self._line.send(Kind.BLOCK, packed)


def _used(path: Path) -> int:
    """About how much there is, without going into it all: the largest files decide."""
    total = 0
    for number, (here, _, files) in enumerate(os.walk(path)):
        if number > MAX_ENTRIES:
            break
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(here, name)).st_size
    return total


def _read(root: Path, relative: str, offset: int, length: int) -> bytes | None:
    """By descriptors alone: who writes there may have put a link in the way."""
    fd = os.open(root, _STEP)
    try:
        *directories, name = relative.split("/")
        for part in directories:
            below = os.open(part, _STEP, dir_fd=fd)
            os.close(fd)
            fd = below
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
        try:
            return os.pread(file, length, offset) if stat.S_ISREG(os.fstat(file).st_mode) else None
        finally:
            os.close(file)
    except OSError:
        return None
    finally:
        os.close(fd)


def _listen(stopped: threading.Event) -> None:
    """The agent's further words; at their end nobody waits for this process any more."""
    for word in sys.stdin:
        if word.strip() == "stopped":
            stopped.set()
    os._exit(1)


def main() -> int:
    """0: the receiver has all; otherwise the reason is on standard output."""
    request = Request(**json.loads(sys.stdin.readline()))
    stopped, clock = threading.Event(), SystemClock()
    threading.Thread(target=_listen, args=(stopped,), daemon=True).start()
    said: dict[str, Any] = {}
    line = None
    try:
        with socket.socket(fileno=request.socket) as plain:
            plain.setblocking(True)
            line = Line(secured(plain, Path(request.identity), request.peer, clock.now, server=True))
            throttle = Throttle(request.rate, clock.monotonic, threading.Event().wait)
            Sender(line, request.claims, stopped, throttle).serve()
    except (Unsupported, Unsettled, ValueError) as error:
        said["error"] = str(error)
        with contextlib.suppress(OSError):
            if line is not None:
                line.send(Kind.FAILED, str(error).encode()[:1000])
    except OSError as error:
        said["error"] = str(error) or type(error).__name__
    print(json.dumps(said), flush=True)
    return 1 if said else 0


if __name__ == "__main__":
    # Not as at the end of a script: a thread waits for standard input.
    os._exit(main())
