"""Log files of containers: standard output and error as written, with the tail, by time and following.

They are written by :mod:`metaos.runtimes.pump`, which replaces ``log.1`` by a full ``log``.

Lines carry no times. Whenever somebody looks, ``log.times`` gets the size and the time, so that what is older than a time can
be left out: exact to the pace at which sites measure, and rather too much than too little.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO

_CHUNK = 64 << 10
#: Of one entry of ``log.times``: seconds since the epoch, bytes in the log at that time.
_ENTRY = struct.Struct("<dQ")
#: Beyond so many entries every other one goes.
MAX_ENTRIES = 4096


def _times(path: str) -> list[tuple[float, int]]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return []
    return list(_ENTRY.iter_unpack(data[: len(data) - len(data) % _ENTRY.size]))


def _write_times(path: str, entries: list[tuple[float, int]]) -> None:
    with open(path + ".new", "wb") as file:
        file.write(b"".join(_ENTRY.pack(*entry) for entry in entries))
    os.rename(path + ".new", path)


def note(directory: str, now: float) -> None:
    """Remembers how much there is by now, where that has changed."""
    path = os.path.join(directory, "log")
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        return
    with open(path + ".times", "a+b") as file:
        end = file.seek(0, os.SEEK_END) // _ENTRY.size * _ENTRY.size
        file.seek(max(0, end - 2 * _ENTRY.size))
        if [held for _, held in _ENTRY.iter_unpack(file.read(end - file.tell()))] == [size, size]:
            # Of one size only the first and the last time matter.
            end -= _ENTRY.size
        file.truncate(end)
        file.write(_ENTRY.pack(now, size))
    if end >= MAX_ENTRIES * _ENTRY.size:
        _write_times(path + ".times", _times(path + ".times")[::2])


def _start_of_time(files: list[str], since: float) -> tuple[int, int]:
    """(index of the file, offset) of the first line that may have been written after ``since``."""
    for index in range(len(files) - 1, -1, -1):
        times = os.path.join(os.path.dirname(files[index]), "log.times" + (".1" if files[index].endswith(".1") else ""))
        older = [size for when, size in _times(times) if when <= since]
        if older:
            # The line that was begun by then belongs to what came after.
            with open(files[index], "rb") as file:
                start = max(0, older[-1] - _CHUNK)
                file.seek(start)
                return index, start + file.read(older[-1] - start).rfind(b"\n") + 1
    return 0, 0


def start_of_tail(files: list[str], lines: int) -> tuple[int, int]:
    """(index of the file, offset) where the last ``lines`` lines of the files begin, reading from the end."""
    missing = lines + 1  # the newline before the first wanted line
    for index in range(len(files) - 1, -1, -1):
        with open(files[index], "rb") as file:
            end = file.seek(0, os.SEEK_END)
            if index == len(files) - 1 and end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    missing -= 1
            while end > 0:
                start = max(0, end - _CHUNK)
                file.seek(start)
                block = file.read(end - start)
                found = block.count(b"\n")
                if found >= missing:
                    place = len(block)
                    for _ in range(missing):
                        place = block.rfind(b"\n", 0, place)
                    return index, start + place + 1
                missing -= found
                end = start
    return 0, 0


def read(directory: str, tail: int | None, place: int | None = None, since: float | None = None) -> Iterator[bytes]:
    """What there is, oldest first, in pieces of at most 64 KiB; of the current file only the first ``place`` bytes. ``since``:
    seconds since the epoch; what is surely older is left out."""
    path = os.path.join(directory, "log")
    files = [each for each in (path + ".1", path) if os.path.exists(each)]
    if not files or tail == 0:
        return
    index, offset = (0, 0) if tail is None else start_of_tail(files, tail)
    if since is not None:
        index, offset = max((index, offset), _start_of_time(files, since))
    for number in range(index, len(files)):
        with open(files[number], "rb") as file:
            file.seek(offset if number == index else 0)
            left = place - file.tell() if place is not None and files[number] == path else None
            while (left is None or left > 0) and (block := file.read(_CHUNK if left is None else min(_CHUNK, left))):
                if left is not None:
                    left -= len(block)
                yield block


def last_line(directory: str) -> str:
    """Of the log, for a message; "" where there is none."""
    data = b"".join(read(directory, 1))
    return data[-1024:].decode(errors="replace").strip()


async def follow(
    directory: str, tail: int | None, ended: asyncio.Event, moved: asyncio.Event, since: float | None = None
) -> AsyncIterator[bytes]:
    """What there is and what comes, until the container has ended. ``moved`` is set whenever something has come. Who takes
    more slowly than two files are filled misses what was in between."""
    path = os.path.join(directory, "log")
    # Another file after each rotation; the first may be there before anything was written.
    file: BinaryIO = open(path, "a+b")  # noqa: SIM115, ASYNC230  a local file never blocks for long
    try:
        place = file.seek(0, os.SEEK_END)
        for block in read(directory, tail, place, since):
            yield block
        while True:
            moved.clear()
            over = ended.is_set()
            while block := file.read(_CHUNK):
                yield block
            if _rotated(file.fileno(), path):
                while block := file.read(_CHUNK):  # what came between our last look and the rotation
                    yield block
                file.close()
                file = open(path, "rb")  # noqa: SIM115, ASYNC230
                continue
            if over:
                return
            waiting = [asyncio.ensure_future(moved.wait()), asyncio.ensure_future(ended.wait())]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waiting:
                    if each.cancel():
                        await asyncio.wait((each,))
    finally:
        file.close()


def _rotated(fd: int, path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.fstat(fd).st_ino != os.stat(path).st_ino
    return False
