"""Volumes that come from another site: ``python -m metaos.volumes.receiving``, a process of its own for as long as it lasts.

The first line of standard input is the request as JSON (``Request``), with a connected socket as descriptor ``socket``; when
standard input ends, so does this process. On standard output it says how far it is, a JSON object on a line each: ``Progress``.

Nothing here is seen by a pod: all is assembled in ``directory``, a claim in a directory of its name each, and stays there
when the line breaks or this process dies; the next one reads what is there and goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from metaos import trees
from metaos.clock import SystemClock
from metaos.files import sync_directory
from metaos.volumes.chunks import decompress
from metaos.volumes.manifest import MAX_ENCODED_BYTES, HostileManifest, Manifest
from metaos.volumes.restoring import SPARE_BYTES, Assembly
from metaos.volumes.wire import BATCH, MAX_CLAIMS, Kind, Line, PeerError, secured

#: After so many rounds the rest is what it is: somebody writes faster than the line carries.
MAX_ROUNDS = 12
#: The rest is small once it would take so long to send, or is so few bytes.
CLOSE_SECONDS, CLOSE_BYTES = 0.5, 4 << 20
#: Of this process: manifests and blocks, which the other site makes.
MEMORY_BYTES = 2 << 30
#: Between two rounds while the writer is about to be stopped.
WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """``allowed``: names of claims, or beginnings of names (with ``*`` at the end, for numbers), that the sender may send."""

    socket: int
    identity: str
    peer: str
    directory: str
    allowed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """``bytes``: of blocks that came, as they are on disk; ``sent``: as they came over the line. ``rest``: bytes that the last
    round had to fetch; ``close``: it is small, and the writer may be stopped. ``complete``: everything is here and durable, of a
    volume that nobody writes; ``digests``: of each claim's state. ``cpu``: seconds of this process."""

    rounds: int
    bytes: int
    sent: int
    rest: int
    close: bool
    complete: bool = False
    size: int = 0
    cpu: float = 0.0
    digests: dict[str, str] | None = None


def is_close(rests: list[int], seconds: list[float]) -> bool:
    """Whether another round would not make the rest much smaller. ``rests``: bytes that each round fetched; ``seconds``: how long
    it took. Pure."""
    if len(rests) < 2:
        return False
    rest = rests[-1]
    rate = sum(rests) / max(1e-6, sum(seconds))
    if rest <= CLOSE_BYTES or rest / max(1.0, rate) <= CLOSE_SECONDS or len(rests) >= MAX_ROUNDS:
        return True
    # Each round has to be clearly shorter than the one before; otherwise the writer is as fast as the line.
    return len(rests) >= 3 and rest > 0.8 * rests[-2]


def permitted(name: str, allowed: Iterable[str]) -> bool:
    """Whether a sender may send a claim of this name."""
    if "/" in name or name in ("", ".", ".."):
        return False
    for word in allowed:
        if word.endswith("*"):
            number = name.removeprefix(word[:-1])
            if number != name and number.isascii() and number.isdigit():
                return True
        elif name == word:
            return True
    return False


class Receiver:
    """Takes one workload's volumes. ``report`` is told each :class:`Progress`; ``monotonic`` in seconds."""

    def __init__(self, line: Line, request: Request, report: Callable[[Progress], None], monotonic: Callable[[], float]) -> None:
        self._line, self._request, self._report, self._monotonic = line, request, report, monotonic
        self._directory = Path(request.directory)
        self._assemblies: dict[str, Assembly] = {}
        self._bytes = 0

    def run(self) -> None:
        """Until everything is here. Raises :class:`PeerError`, :class:`HostileManifest`, ``OSError``."""
        rests: list[int] = []
        seconds: list[float] = []
        close = False
        while True:
            began = self._monotonic()
            self._line.say(Kind.ROUND, {"wait": WAIT_SECONDS if close else 0})
            state = self._line.hear(Kind.STATE)
            manifests = self._manifests(state.get("claims"))
            final = state.get("final") is True
            rest = sum(self._fill(name, manifest, final) for name, manifest in manifests.items())
            rests.append(rest)
            seconds.append(self._monotonic() - began - (WAIT_SECONDS if close else 0))
            close = close or is_close(rests, seconds)
            size = sum(manifest.size for manifest in manifests.values())
            if final:
                break
            self._report(self._progress(len(rests), rest, close, size))
        for gone in self._directory.iterdir():
            if gone.name not in manifests:
                trees.remove(str(gone))
        sync_directory(self._directory)
        digests = {name: manifest.digest for name, manifest in manifests.items()}
        self._line.say(Kind.DONE, {"digests": digests})
        if self._line.hear(Kind.DONE).get("digests") != digests:
            raise PeerError("sender and receiver have not the same")
        self._report(self._progress(len(rests), rest, True, size, digests))

    def _progress(self, rounds: int, rest: int, close: bool, size: int, digests: dict[str, str] | None = None) -> Progress:
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = round(used.ru_utime + used.ru_stime, 2)
        return Progress(rounds, self._bytes, self._line.received, rest, close, digests is not None, size, cpu, digests)

    def _manifests(self, said: object) -> dict[str, Manifest]:
        if not isinstance(said, list) or len(said) > MAX_CLAIMS:
            raise PeerError(f"the sender must name up to {MAX_CLAIMS} claims")
        found: dict[str, Manifest] = {}
        for each in said:
            if not (isinstance(each, list) and len(each) == 2 and type(each[0]) is str and type(each[1]) is int):
                raise PeerError("a claim of the sender's has a name and a length")
            name, length = each
            if not permitted(name, self._request.allowed) or name in found:
                raise PeerError(f"the sender sends claim {name[:200]!r}, which is none of this workload's")
            if not 0 < length <= MAX_ENCODED_BYTES:
                raise PeerError(f"the manifest of claim {name!r} has {length} bytes: at most {MAX_ENCODED_BYTES} are taken")
            parts: list[bytes] = []
            while length > 0:
                parts.append(self._line.expect(Kind.MANIFEST)[1])
                if not 0 < len(parts[-1]) <= length:
                    raise PeerError(f"a part of the manifest of claim {name!r} has {len(parts[-1])} bytes: 1 to {length} are due")
                length -= len(parts[-1])
            data = decompress(b"".join(parts), MAX_ENCODED_BYTES)
            if data is None:
                raise HostileManifest(f"the manifest of claim {name!r} is damaged")
            found[name] = Manifest.decode(data)
        return found

    def _fill(self, name: str, manifest: Manifest, final: bool) -> int:
        """How many bytes had to be fetched."""
        assembly = self._assemblies.get(name)
        if assembly is None:
            assembly = self._assemblies[name] = Assembly(self._directory / name, manifest.block_bytes)
        wanted = assembly.missing(manifest)
        needed, free = sum(length for _, length in wanted), shutil.disk_usage(self._directory).free
        if needed and needed + SPARE_BYTES > free:
            text = f"claim {name} brings {needed >> 20} MiB more, and this site has {free >> 20} MiB free"
            raise OSError(f"{text}: make room, or keep the work where it is")
        asked = 0
        ahead: list[tuple[bytes, int]] = []

        def fetch(digest: bytes) -> bytes | None:
            nonlocal asked, ahead
            if not ahead:
                ahead = wanted[asked : asked + BATCH][::-1]
                asked += len(ahead)
                self._line.send(Kind.WANT, b"".join(each for each, _ in reversed(ahead)))
            due, length = ahead.pop()
            if due != digest:
                raise PeerError("blocks are written in another order than they were asked for")
            kind, packed = self._line.expect(Kind.BLOCK, Kind.GONE)
            if kind is Kind.GONE:
                if final:
                    raise PeerError(f"the sender has not got a block of its last state of claim {name!r}")
                return None
            data = decompress(packed, length)
            self._bytes += length
            return data if data is not None else b""

        assembly.apply(manifest, fetch)
        return needed


def main() -> int:
    """0: everything is here; otherwise the reason is on standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    said = json.loads(sys.stdin.readline())
    request = Request(**(said | {"allowed": tuple(said["allowed"])}))
    clock = SystemClock()

    def listen() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()

    def report(progress: Progress) -> None:
        print(json.dumps(asdict(progress)), flush=True)

    Path(request.directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with socket.socket(fileno=request.socket) as plain:
            plain.setblocking(True)
            line = Line(secured(plain, Path(request.identity), request.peer, clock.now, server=False))
            Receiver(line, request, report, clock.monotonic).run()
    except (HostileManifest, ValueError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    except MemoryError:
        print(
            json.dumps({"error": f"what the other site tells of takes more than {MEMORY_BYTES >> 20} MiB of memory"}), flush=True
        )
        return 1
    except OSError as error:
        with contextlib.suppress(OSError):
            print(json.dumps({"error": str(error) or type(error).__name__}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    # Not as at the end of a script: a thread waits for standard input.
    os._exit(main())
