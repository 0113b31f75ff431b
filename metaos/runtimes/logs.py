"""Log files of containers: standard output and error as written, in one file, bounded, with the tail and following.

A container writes with ``O_APPEND`` straight into the file, so nothing stands in its way and nothing is lost when the
agent restarts. Beyond :data:`BOUND` the file is copied to ``log.1`` and emptied (copytruncate): between the two steps a
line may be lost. Rotation happens when somebody looks (usage, states, logs), so a container may exceed the bound until then.

Lines carry no times. Whenever somebody looks, ``log.times`` gets the size and the time, so that what is older than a time can
be left out: exact to the pace at which sites measure, and rather too much than too little.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Iterator

from metaos.runtimes.process import readable

#: Bytes of the file, and of the one before it.
BOUND = 10 << 20
_CHUNK = 64 << 10
#: Of one entry of ``log.times``: seconds since the epoch, bytes in the log at that time.
_ENTRY = struct.Struct("<dQ")
#: Beyond so many entries every other one goes.
MAX_ENTRIES = 4096
_IN_MODIFY, _IN_CLOSE_WRITE, _IN_MOVE_SELF = 0x2, 0x8, 0x800
_IN_NONBLOCK, _IN_CLOEXEC = 0o4000, 0o2000000


def open_log(directory: str) -> int:
    """A descriptor to append to. The caller closes it."""
    return os.open(os.path.join(directory, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def rotate(directory: str, bound: int = BOUND) -> bool:
    """Whether it was time to. If it wrote much faster than we looked, only the newest ``bound`` bytes are kept."""
    path = os.path.join(directory, "log")
    try:
        if os.stat(path).st_size <= bound:
            return False
    except FileNotFoundError:
        return False
    with open(path, "rb") as old, open(path + ".new", "wb") as new:
        dropped = old.seek(max(0, os.fstat(old.fileno()).st_size - bound))
        while block := old.read(_CHUNK):
            new.write(block)
    os.truncate(path, 0)
    os.rename(path + ".new", path + ".1")
    if times := _times(path + ".times"):
        _write_times(path + ".times.1", [(when, size - dropped) for when, size in times if size >= dropped])
        _write_times(path + ".times", [])
    return True


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


async def follow(directory: str, tail: int | None, ended: asyncio.Event, since: float | None = None) -> AsyncIterator[bytes]:
    """What there is and what comes, until the container has ended. The kernel tells of changes (inotify)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    path = os.path.join(directory, "log")
    notify = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
    if notify < 0:
        raise OSError(ctypes.get_errno(), "this machine allows no more inotify instances (fs.inotify.max_user_instances)")
    finished: asyncio.Future[object] = asyncio.ensure_future(ended.wait())
    try:
        with open(path, "rb") as file:  # noqa: ASYNC230  a local file never blocks for long
            libc.inotify_add_watch(notify, os.fsencode(path), _IN_MODIFY)
            file.seek(0, os.SEEK_END)
            place = file.tell()
            for block in read(directory, tail, place, since):
                yield block
            while True:
                over = finished.done()
                if os.fstat(file.fileno()).st_size < place:
                    place = 0
                file.seek(place)
                while block := file.read(_CHUNK):
                    place += len(block)
                    yield block
                if over:
                    return
                changed = asyncio.ensure_future(readable(notify))
                try:
                    await asyncio.wait((changed, finished), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if changed.cancel():
                        await asyncio.wait((changed,))
                _drain(notify)
    finally:
        finished.cancel()
        os.close(notify)


def _drain(notify: int) -> None:
    try:
        while os.read(notify, _CHUNK):
            pass
    except BlockingIOError:
        return
