"""Directory trees in which strangers write: entered, measured and removed without following a link of theirs.

However deep they are nested, however many entries they have and whatever permissions these have: nothing here recurses,
and no path is ever put together from names that a stranger chose. Tests make the worst of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass

#: Directories below directories that :func:`measure` goes into; what is deeper is a trick.
MAX_DEPTH = 100
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TooDeep(Exception):
    """Nested deeper than :data:`MAX_DEPTH`."""


@dataclass(slots=True)
class Size:
    """``bytes``: of blocks that the file system uses, not what files pretend to hold. Hard links count once."""

    bytes: int = 0
    entries: int = 0


def make_below(base: str, relative: str) -> str:
    """Makes the directories of ``relative`` below ``base``, whose path it returns. Raises ``NotADirectoryError`` or
    ``OSError`` (ELOOP) where one of them is a file or a link, ``ValueError`` for ``..``."""
    parts = [part for part in relative.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"path {relative!r} must not contain '..'")
    here = os.open(base, _DIRECTORY)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o777, dir_fd=here)
            below = os.open(part, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)
    return os.path.join(base, *parts)


def measure(path: str) -> Size:
    """What a tree takes. What vanishes or cannot be read meanwhile counts nothing. Raises :class:`TooDeep`."""
    found = Size()
    seen: set[tuple[int, int]] = set()
    try:
        first = os.lstat(path)
        found.bytes += first.st_blocks * 512
        if not stat.S_ISDIR(first.st_mode):
            return found
        stack = [_below(os.open(path, _DIRECTORY))]
    except OSError:
        return found
    try:
        while stack:
            fd, names = stack[-1]
            if not names:
                os.close(stack.pop()[0])
                continue
            name = names.pop()
            try:
                about = os.stat(name, dir_fd=fd, follow_symlinks=False)
                found.entries += 1
                if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
                    if (about.st_dev, about.st_ino) in seen:
                        continue
                    seen.add((about.st_dev, about.st_ino))
                found.bytes += about.st_blocks * 512
                if stat.S_ISDIR(about.st_mode):
                    if len(stack) >= MAX_DEPTH:
                        raise TooDeep(f"directories are nested deeper than {MAX_DEPTH}")
                    stack.append(_below(os.open(name, _DIRECTORY, dir_fd=fd)))
            except OSError:
                continue
    finally:
        for fd, _ in stack:
            os.close(fd)
    return found


def _below(fd: int) -> tuple[int, list[str]]:
    try:
        return fd, os.listdir(fd)
    except OSError:
        os.close(fd)
        raise


def remove(path: str) -> None:
    """Also what has no permissions (an overlay's work directory has mode 0). Only when nobody writes there any more: every
    directory is moved up to the first level and emptied there, so that no depth matters. Missing is fine, also when somebody else
    removes the same."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
        os.chmod(path, 0o700)
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    moved = 0
    try:
        while names := os.listdir(top):
            for name in names:
                try:
                    moved = _empty(top, name, moved)
                except OSError as error:  # somebody else has removed it, or moved something else there
                    if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                        raise
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


def _empty(top: int, name: str, moved: int) -> int:
    """Removes one entry of the first level, after moving the directories below it there; how many were moved so far."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=top)
        return moved
    os.chmod(name, 0o700, dir_fd=top)
    here = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        for entry in os.listdir(here):
            if not stat.S_ISDIR(os.stat(entry, dir_fd=here, follow_symlinks=False).st_mode):
                os.unlink(entry, dir_fd=here)
                continue
            os.chmod(entry, 0o700, dir_fd=here)
            try:
                os.rmdir(entry, dir_fd=here)
            except OSError:
                moved = _move(here, entry, top, moved)
    finally:
        os.close(here)
    os.rmdir(name, dir_fd=top)
    return moved


def _move(here: int, entry: str, top: int, moved: int) -> int:
    while True:
        moved += 1
        try:
            # Onto an empty directory it may go; anything else of this name was there before.
            os.rename(entry, f".nemo-removed-{moved}", src_dir_fd=here, dst_dir_fd=top)
            return moved
        except OSError as error:
            if not os.path.lexists(f"/proc/self/fd/{top}/.nemo-removed-{moved}"):
                raise error
