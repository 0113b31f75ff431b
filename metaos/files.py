"""Small files that must survive a crash: replaced whole, readable by their owner alone, synced together with their name."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_private(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Replaces a file atomically and durably: after a crash at any moment it holds the old content or the new one. Not
    ``durable``: that is so of a crash of the process; after one of the machine it may be damaged."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
    if durable:
        sync_directory(path.parent)


def make_private(directory: Path) -> None:
    """Makes a directory, its parents too, that only its owner can enter; an existing one is left as it is."""
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """A new name is durable only once its directory is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Lets two names change places at once, so that neither is ever missing; whether that could be done: not every kernel and
    file system can. Source: renameat2(2)."""
    import ctypes  # half a megabyte, for those who need it

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_here, exchanges = -100, 2
    if not libc.renameat2(at_here, os.fsencode(one), at_here, os.fsencode(other), exchanges):
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(one))
