"""Logs of podman's containers, from the files that conmon writes: ``TIME STREAM F|P TEXT`` a line (``k8s-file``), where P is a
part of one that goes on. Reading them ourselves, what was written is there at once; podman's own API looks at them now and then.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from metaos.clock import Clock

#: How often a file that is followed is looked at.
LOOK_SECONDS = 0.05
_CHUNK = 1 << 18


class Lines:
    """Decodes a file as it grows."""

    def __init__(self, since: float | None = None) -> None:
        self._rest = b""
        self._since = "" if since is None else datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%S")

    def feed(self, data: bytes) -> list[bytes]:
        """What was written, a line or a part of one each."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        found = []
        for line in whole:
            time, _, rest = line.partition(b" ")
            _, _, rest = rest.partition(b" ")
            flag, _, text = rest.partition(b" ")
            if self._since and time[:19].decode(errors="replace") < self._since:
                continue
            found.append(text if flag == b"P" else text + b"\n")
        return found


def last(path: str, lines: int) -> list[bytes]:
    """The last lines of a log."""
    found: list[bytes] = []
    decoder, parts = Lines(), b""
    with open(path, "rb") as file:
        while data := file.read(_CHUNK):
            for piece in decoder.feed(data):
                parts += piece
                if parts.endswith(b"\n"):
                    found.append(parts)
                    parts = b""
            del found[:-lines]
    return ([*found, parts] if parts else found)[-lines:] if lines else []


async def read(
    path: str, clock: Clock, running: Callable[[], bool], *, follow: bool, tail: int | None, since: float | None
) -> AsyncIterator[bytes]:
    """``running``: whether anything may still be written. A file that conmon has begun anew, as it was full, is gone on with."""
    decoder = Lines(since)
    file = open(path, "rb")  # noqa: SIM115, ASYNC230  (closed below, as it may be replaced)
    try:
        if tail is not None:
            for line in last(path, tail):
                yield line
            file.seek(0, os.SEEK_END)
        while True:
            still = running()
            while data := file.read(_CHUNK):
                if pieces := decoder.feed(data):
                    yield b"".join(pieces)
            if not (follow and still):
                return
            if os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
                file.close()
                file = open(path, "rb")  # noqa: SIM115, ASYNC230
                continue
            await clock.sleep(LOOK_SECONDS)
    finally:
        file.close()
