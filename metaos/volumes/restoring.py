"""Writing a volume from a manifest and blocks: into a fresh directory at once, or onto an earlier state of the same volume.

Everything is written where nobody else writes and nobody reads yet; a manifest is checked first, so every path lies below, in
directories that this code has made.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from metaos import trees
from metaos.files import sync_directory
from metaos.volumes.chunks import DamagedChunk, MissingChunk
from metaos.volumes.manifest import BLOCK_BYTES, Entry, Manifest, changed
from metaos.volumes.scanning import scan

#: Of the disk that must be free beside what is restored or received.
SPARE_BYTES = 64 << 20
#: Gives a block by its digest, verified; ``None``: it is not to be had now, and what is there stays (see :meth:`Assembly.apply`).
Fetch = Callable[[bytes], bytes | None]
#: Stands for a block that was left as it is: no content has this digest.
UNKNOWN = bytes(32)


class Assembly:
    """A directory that becomes one state of a volume after the other. Beside it ``NAME.aside`` is used meanwhile.

    After a crash at any moment it is read anew, in blocks of ``block_bytes``: what arrived whole need not be fetched again."""

    def __init__(self, directory: Path, block_bytes: int = BLOCK_BYTES) -> None:
        self.directory, self._block_bytes = directory, block_bytes
        self._aside = directory.with_name(f"{directory.name}.aside")
        trees.remove(str(self._aside))
        if not directory.is_dir() or directory.is_symlink():
            trees.remove(str(directory))
            directory.mkdir(mode=0o700, parents=True)
        self._state = self._look()

    def _look(self) -> Manifest:
        _open_up(self.directory)
        return scan(self.directory, 0.0, block_bytes=self._block_bytes).manifest

    def missing(self, manifest: Manifest) -> list[tuple[bytes, int]]:
        """(digest, length) of the blocks that :meth:`apply` will fetch, in that order; the same one twice where it lies twice."""
        kinds = {entry.path: entry.kind for entry in manifest.entries}
        known = {entry.path: entry for entry in self._known(manifest)[0] if entry.kind == kinds.get(entry.path)}
        return [(digest, length) for digest, _, _, length in changed(manifest, known)]

    def apply(self, manifest: Manifest, fetch: Fetch) -> int:
        """Makes the directory hold exactly this, apart from blocks for which ``fetch`` gave ``None``: they are missing until they
        are there; durable on return. How many bytes were written. What ``fetch`` raises leaves something in between, from which
        the next call goes on. What was written is read again and compared. Raises :class:`DamagedChunk` where it differs."""
        manifest.check()
        there, moves = self._known(manifest)
        try:
            self._clear(manifest, there, moves)
            kinds = {entry.path: entry.kind for entry in manifest.entries}
            known = {entry.path: entry for entry in there if entry.kind == kinds.get(entry.path)}
            wanted: dict[str, list[tuple[bytes, int]]] = {}
            for digest, entry, offset, _ in changed(manifest, known):
                wanted.setdefault(entry.path, []).append((digest, offset))
            written, touched = 0, set()
            left: dict[str, set[int]] = {}

            def fetched(entry: Entry, offset: int, digest: bytes) -> bytes | None:
                data = fetch(digest)
                if data is None:
                    left.setdefault(entry.path, set()).add(offset // manifest.block_bytes)
                elif len(data) != min(manifest.block_bytes, entry.size - offset):
                    raise ValueError(f"the block {digest.hex()} at {offset} of {entry.path[:200]!r} has {len(data)} bytes")
                return data

            for entry in manifest.entries:
                self._make(entry, moves)
                old = known.get(entry.path)
                if entry.kind == "file" and (old is None or (old.size, old.blocks) != (entry.size, entry.blocks)):
                    blocks = wanted.get(entry.path, ())
                    written += _write(self._path(entry), entry, old, blocks, fetched, manifest.block_bytes)
                    touched.add(entry.path)
            # From the deepest: what is made in a directory changes its times, and its mode may forbid it.
            for entry in reversed(manifest.entries):
                if entry.kind != "hardlink":
                    _describe(self._path(entry), entry, known.get(entry.path), entry.path in touched)
        except BaseException:
            with suppress(OSError):
                trees.remove(str(self._aside))
                self._state = self._look()
            raise
        trees.remove(str(self._aside))
        entries = [_without(entry, left[entry.path]) if entry.path in left else entry for entry in manifest.entries]
        self._state = Manifest(tuple(entries), manifest.block_bytes)
        return written

    def _known(self, manifest: Manifest) -> tuple[tuple[Entry, ...], dict[str, str]]:
        """What is there, and of it what only gets another name (to → from): logs are rotated, segments recycled. Such a file is
        given with its new name."""
        before = self._state
        if before.block_bytes != manifest.block_bytes:
            return (), {}
        wanted = {entry.path: entry for entry in manifest.entries}
        present = {entry.path: entry for entry in before.entries}
        free: dict[tuple[int, tuple[bytes | None, ...]], Entry] = {}
        for entry in before.entries:
            other = wanted.get(entry.path)
            if entry.kind == "file" and any(entry.blocks) and (other is None or other.blocks != entry.blocks):
                free[entry.size, entry.blocks] = entry
        moves: dict[str, str] = {}
        for entry in manifest.entries:
            old = present.get(entry.path)
            if entry.kind == "file" and (old is None or old.blocks != entry.blocks):
                found = free.pop((entry.size, entry.blocks), None)
                if found is not None:
                    moves[entry.path] = found.path
        if not moves:
            return before.entries, {}
        left = {path: entry for path, entry in present.items() if path not in moves.values()}
        return tuple({**left, **{to: replace(present[path], path=to) for to, path in moves.items()}}.values()), moves

    def _path(self, entry: Entry) -> str:
        return os.path.join(self.directory, entry.path) if entry.path else str(self.directory)

    def _clear(self, manifest: Manifest, there: Iterable[Entry], moves: dict[str, str]) -> None:
        """Puts aside what gets another name, and removes what it shall not have: other names of files in any case."""
        _open_up(self.directory)
        if moves:
            self._aside.mkdir(mode=0o700)
        for number, path in enumerate(moves.values()):
            os.rename(self.directory / path, self._aside / str(number))
        wanted = {entry.path: entry for entry in manifest.entries}
        known = {entry.path for entry in there}
        for entry in reversed(self._state.entries):
            other = wanted.get(entry.path)
            same = other is not None and other.kind == entry.kind and other.target == entry.target
            if entry.path and (not same or entry.kind == "hardlink" or entry.path not in known or entry.path in moves):
                trees.remove(self._path(entry))

    def _make(self, entry: Entry, moves: dict[str, str]) -> None:
        path = self._path(entry)
        if entry.path in moves:
            os.rename(self._aside / str(list(moves).index(entry.path)), path)
        elif os.path.lexists(path):
            return
        elif entry.kind == "directory":
            os.mkdir(path, 0o700)
        elif entry.kind == "link":
            os.symlink(entry.target, path)
        elif entry.kind == "hardlink":
            os.link(self.directory / entry.target, path, follow_symlinks=False)
        elif entry.kind == "fifo":
            os.mkfifo(path, 0o600)


def restore(manifest: Manifest, fetch: Fetch, target: Path) -> None:
    """The whole volume at ``target``, where nothing may be yet: there is all of it, verified and durable, or nothing.

    Raises :class:`HostileManifest`, ``FileExistsError``, what ``fetch`` raises, ``OSError`` (an owner cannot be set)."""
    manifest.check()
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists: a volume is restored where nothing is yet")
    staging = target.with_name(f".{target.name}.restoring")
    trees.remove(str(staging))

    def every(digest: bytes) -> bytes:
        data = fetch(digest)
        if data is None:
            raise MissingChunk(f"the block {digest.hex()} is not to be had")
        return data

    try:
        Assembly(staging).apply(manifest, every)
    except BaseException:
        _open_up(staging)
        trees.remove(str(staging))
        raise
    staging.rename(target)
    sync_directory(target.parent)


def _open_up(directory: Path) -> None:
    """So that this process, root or not, may read and write every file and directory of a tree that nobody else uses."""
    stack = [str(directory)]
    while stack:
        here = stack.pop()
        if os.stat(here).st_mode & 0o700 != 0o700:
            os.chmod(here, 0o700)
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mode & 0o600 != 0o600:
                    os.chmod(entry.path, 0o600)


def _without(entry: Entry, numbers: set[int]) -> Entry:
    blocks = (UNKNOWN if number in numbers else digest for number, digest in enumerate(entry.blocks))
    return replace(entry, blocks=tuple(blocks))


def _write(
    path: str,
    entry: Entry,
    old: Entry | None,
    blocks: Iterable[tuple[bytes, int]],
    fetched: Callable[[Entry, int, bytes], bytes | None],
    block_bytes: int,
) -> int:
    """Makes a file hold its blocks where it holds those of ``old``. How many bytes were written."""
    written = 0
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        present = min(os.fstat(fd).st_size, entry.size)
        os.ftruncate(fd, present)
        for number, (digest, was) in enumerate(zip(entry.blocks, old.blocks if old else (), strict=False)):
            if digest is None and was is not None:
                # Zeros where something was; what lies beyond the old end is a hole by itself.
                offset = number * block_bytes
                written += _put(fd, bytes(max(0, min(block_bytes, present - offset))), offset)
        for digest, offset in blocks:
            data = fetched(entry, offset, digest)
            if data is not None:
                written += _put(fd, data, offset)
                if hashlib.sha256(os.pread(fd, len(data), offset)).digest() != digest:
                    raise DamagedChunk(f"what was written at {offset} of {entry.path[:200]!r} is not there: look at the disk")
        os.ftruncate(fd, entry.size)
    finally:
        os.close(fd)
    return written


def _put(fd: int, data: bytes, offset: int) -> int:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        offset, view = offset + done, view[done:]
    return len(data)


def _describe(path: str, entry: Entry, old: Entry | None, touched: bool) -> None:
    """Owner, attributes, mode and time, in an order in which none undoes another; durable on return. What is right already is not
    touched. ``touched``: a file whose content was written."""
    if entry.kind in ("link", "fifo"):
        if entry.owner is not None:
            os.chown(path, *entry.owner, follow_symlinks=False)
        if entry.kind == "fifo":
            os.chmod(path, entry.mode)
        os.utime(path, ns=(entry.modified, entry.modified), follow_symlinks=False)
        return
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        about = os.fstat(fd)
        if entry.owner is not None and entry.owner != (about.st_uid, about.st_gid):
            os.fchown(fd, *entry.owner)
            touched = True
        if old is None or old.attributes != entry.attributes:
            words = {word for word, _ in old.attributes} if old else set()
            for word in words - {word for word, _ in entry.attributes}:
                os.removexattr(fd, word)
            for word, value in entry.attributes:
                os.setxattr(fd, word, value)
                touched = True
        if touched or about.st_mode & 0o7777 != entry.mode:
            os.fchmod(fd, entry.mode)
            touched = True
        if touched or about.st_mtime_ns != entry.modified:
            os.utime(fd, ns=(entry.modified, entry.modified))
            os.fsync(fd)
    finally:
        os.close(fd)
