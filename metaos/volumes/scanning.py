"""Reading a volume: a tree in which strangers write, maybe at this moment, becomes a manifest and blocks.

What was read before is not read again where file number, size and times are the same. Times tick coarsely, so a file that was
touched less than ``RACY_SECONDS`` before it was read is not trusted. What a process writes through a mapping changes the times
only with the first store after the page was written back: a file is synced before it is read, so that such a store shows.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from metaos.trees import MAX_DEPTH
from metaos.volumes.chunks import Chunks, Form
from metaos.volumes.manifest import BLOCK_BYTES, MAX_ENTRIES, Entry, Kind, Manifest

RACY_SECONDS = 2.0
#: Names that are asked for at once.
BATCH = 256
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: File number, size, times of content and of the file in nanoseconds.
Mark = tuple[int, int, int, int]
#: Is told every block that was read and is not zeros: (digest, data).
Seen = Callable[[bytes, bytes], None]


class Unsupported(Exception):
    """A volume that cannot be told as a manifest; the message names the entry and why."""


class Unsettled(Exception):
    """Something changed while it was read, in a volume in which nothing should."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``time``: when the look began, seconds since the epoch. ``marks``: path → how its file was found. ``unsettled``: files that
    changed while they were read; ``read_bytes``: what was read for it."""

    manifest: Manifest
    time: float
    marks: Mapping[str, Mark]
    unsettled: tuple[str, ...] = ()
    read_bytes: int = 0


@dataclass(slots=True)
class _Scan:
    now: float
    before: Snapshot | None
    seen: Seen
    live: bool
    block_bytes: int
    entries: list[Entry] = field(default_factory=list)
    marks: dict[str, Mark] = field(default_factory=dict)
    unsettled: list[str] = field(default_factory=list)
    names: dict[tuple[int, int], str] = field(default_factory=dict)
    known: dict[str, Entry] = field(default_factory=dict)
    read_bytes: int = 0


def scan(
    root: Path,
    now: float,
    *,
    before: Snapshot | None = None,
    live: bool = False,
    seen: Seen = lambda digest, data: None,
    block_bytes: int = BLOCK_BYTES,
) -> Snapshot:
    """The volume at ``root``. ``now``: seconds since the epoch, by the clock that stamps its files. ``live``: somebody may be
    writing there.

    Raises :class:`Unsupported`, :class:`Unsettled` (not where it is ``live``), ``OSError``."""
    if before is not None and before.manifest.block_bytes != block_bytes:
        before = None
    found = _Scan(now, before, seen, live, block_bytes)
    if before is not None:
        found.known = {entry.path: entry for entry in before.manifest.entries}
    _walk(found, root)
    manifest = Manifest(tuple(found.entries), block_bytes)
    manifest.check()
    return Snapshot(manifest, now, found.marks, tuple(found.unsettled), found.read_bytes)


def save(
    root: Path,
    now: float,
    chunks: Chunks,
    form: Form,
    *,
    before: Snapshot | None = None,
    live: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Snapshot:
    """As :func:`scan`; on return every block is stored. At most ``BATCH`` MiB would wait for an answer, so blocks are put one by
    one, and only names are asked for together: those of ``before``, which may be gone from the store, first."""
    lacking = set() if before is None else _lacking(before.manifest, chunks, form)
    if lacking and before is not None:
        # Read again what the store has lost.
        marks = dict(before.marks)
        for digest, entry, _, _ in before.manifest.blocks():
            if digest in lacking:
                marks.pop(entry.path, None)
        before = Snapshot(before.manifest, before.time, marks)
    stored: set[bytes] = set() if before is None else {digest for digest, *_ in before.manifest.blocks()} - lacking

    def put(digest: bytes, data: bytes) -> None:
        if digest not in stored:
            name = form.name(digest)
            if not chunks.has((name,)):
                chunks.put(name, form.wrap(digest, data))
            stored.add(digest)

    return scan(root, now, before=before, live=live, seen=put, block_bytes=block_bytes)


def _lacking(manifest: Manifest, chunks: Chunks, form: Form) -> set[bytes]:
    lacking: set[bytes] = set()
    digests = list(dict.fromkeys(digest for digest, *_ in manifest.blocks()))
    for start in range(0, len(digests), BATCH):
        names = {form.name(digest): digest for digest in digests[start : start + BATCH]}
        lacking |= {names[name] for name in names.keys() - chunks.has(names.keys())}
    return lacking


def _walk(found: _Scan, root: Path) -> None:
    """Depth first, names in order, by descriptors alone: no directory can be swapped for a link meanwhile."""
    top = os.open(root, _DIRECTORY)
    stack: list[tuple[int, str, Iterator[str]]] = []
    try:
        found.entries.append(_about("", "directory", os.fstat(top), top))
        stack.append((top, "", iter(sorted(os.listdir(top)))))
        while stack:
            fd, path, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            if len(found.entries) >= MAX_ENTRIES:
                raise Unsupported(f"a volume may have {MAX_ENTRIES} entries: this one has more")
            below = f"{path}/{name}" if path else name
            try:
                inner = _entry(found, fd, name, below)
            except FileNotFoundError:
                _unsettled(found, below)
                continue
            if inner is not None:
                if len(stack) >= MAX_DEPTH:
                    os.close(inner)
                    raise Unsupported(f"{below[:200]!r} is nested deeper than {MAX_DEPTH} directories")
                stack.append((inner, below, iter(sorted(os.listdir(inner)))))
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def _entry(found: _Scan, fd: int, name: str, path: str) -> int | None:
    """Notes one entry; a directory's descriptor."""
    about = os.stat(name, dir_fd=fd, follow_symlinks=False)
    mode = about.st_mode
    if stat.S_ISDIR(mode):
        inner = _open(name, _DIRECTORY, fd, path)
        found.entries.append(_about(path, "directory", os.fstat(inner), inner))
        return inner
    if stat.S_ISREG(mode):
        file = _open(name, _FILE, fd, path)
        try:
            _file(found, file, path)
        finally:
            os.close(file)
    elif stat.S_ISLNK(mode):
        found.entries.append(_about(path, "link", about, None, target=os.readlink(name, dir_fd=fd)))
    elif stat.S_ISFIFO(mode):
        found.entries.append(_about(path, "fifo", about, None))
    elif not stat.S_ISSOCK(mode):  # a socket is nothing without the process that has bound it
        raise Unsupported(f"{path[:200]!r} is a device: volumes with devices in them are not taken along")
    return None


def _open(name: str, flags: int, fd: int, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):  # swapped for something else since it was looked at
            raise FileNotFoundError(error.errno, "it is another thing now", path) from None
        raise


def _about(path: str, kind: Kind, about: os.stat_result, fd: int | None, target: str = "") -> Entry:
    owner = None if (about.st_uid, about.st_gid) == (os.geteuid(), os.getegid()) else (about.st_uid, about.st_gid)
    attributes = () if fd is None else _attributes(fd)
    mode = 0 if kind == "link" else stat.S_IMODE(about.st_mode)
    return Entry(path, kind, mode, owner, about.st_mtime_ns, target=target, attributes=attributes)


def _attributes(fd: int) -> tuple[tuple[str, bytes], ...]:
    try:
        words = [word for word in os.listxattr(fd) if word.startswith("user.")]
        return tuple((word, os.getxattr(fd, word)) for word in sorted(words))
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA):
            return ()
        raise


def _mark(about: os.stat_result) -> Mark:
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _unsettled(found: _Scan, path: str) -> None:
    if not found.live:
        raise Unsettled(f"{path[:200]!r} changed while it was read, though nothing should write there")
    found.unsettled.append(path)


def _file(found: _Scan, fd: int, path: str) -> None:
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        raise FileNotFoundError(errno.ENOENT, "it is another thing now", path)
    if about.st_nlink > 1:
        first = found.names.setdefault((about.st_dev, about.st_ino), path)
        if first != path:
            found.entries.append(_about(path, "hardlink", about, None, target=first))
            return
    mark = _mark(about)
    known = found.known.get(path)
    before = found.before
    if known is not None and before is not None and before.marks.get(path) == mark and _settled(about, before.time):
        _note_file(found, fd, path, about, known.blocks, known.size)
        return
    if found.live:
        os.fdatasync(fd)
        about = os.fstat(fd)
    blocks, size = _read(found, fd, about.st_size)
    after = os.fstat(fd)
    if _mark(after) != _mark(about) or size != about.st_size:
        _unsettled(found, path)
    _note_file(found, fd, path, about, blocks, size)


def _settled(about: os.stat_result, time: float) -> bool:
    return about.st_ctime_ns / 1e9 < time - RACY_SECONDS


def _note_file(found: _Scan, fd: int, path: str, about: os.stat_result, blocks: tuple[bytes | None, ...], size: int) -> None:
    entry = _about(path, "file", about, fd)
    found.entries.append(
        Entry(path, "file", entry.mode, entry.owner, entry.modified, size, blocks=blocks, attributes=entry.attributes)
    )
    found.marks[path] = _mark(about)


def _read(found: _Scan, fd: int, size: int) -> tuple[tuple[bytes | None, ...], int]:
    """The digests of a file's blocks, and how long it was. Holes are not read."""
    blocks: list[bytes | None] = []
    offset, data_at = 0, -1
    while offset < size:
        length = min(found.block_bytes, size - offset)
        if data_at < offset:
            data_at = _next_data(fd, offset, size)
        if data_at >= offset + length:
            blocks.append(None)
            offset += length
            continue
        data = _full(fd, offset, length)
        found.read_bytes += len(data)
        if not any_set(data):
            blocks.append(None)
        else:
            digest = hashlib.sha256(data).digest()
            blocks.append(digest)
            found.seen(digest, data)
        offset += len(data)
        if len(data) < length:  # it was cut meanwhile
            break
    return tuple(blocks[: -(-offset // found.block_bytes)]), offset


def any_set(data: bytes) -> bool:
    """Whether any byte is not zero, at the speed of memory."""
    return any(data[:16]) or data.count(0) != len(data)


def _next_data(fd: int, offset: int, size: int) -> int:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole from here
            return size
        return offset  # a file system that cannot tell


def _full(fd: int, offset: int, length: int) -> bytes:
    parts: list[bytes] = []
    while length > 0:
        part = os.pread(fd, length, offset)
        if not part:
            break
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
