"""What of the machine may be mounted into containers, and opening it so that nobody can put something else in its place."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Sequence

from metaos.runtimes.isolation import Mount

#: Of ``openat2(2)``; the number is the same on all machines.
_OPENAT2, _IN_ROOT = 437, 0x10


class Mounts:
    """``directory``: the runtime's own, as it was given; ``host_paths``: what may be mounted from outside of it."""

    def __init__(self, directory: str, host_paths: Sequence[str]) -> None:
        self._given = os.path.normpath(directory)
        self._directory = os.path.realpath(directory)
        self._allowed = [self._directory, *(os.path.realpath(path) for path in host_paths)]

    def open(self, opened: contextlib.ExitStack, source: str, target: str, read_only: bool) -> Mount:
        """Opened first and looked at afterwards, so that no container can put a link in between. Links may not lead out of
        what is allowed; below our own directory, where containers write, there may be none at all."""
        normal = os.path.normpath(target)
        if not normal.startswith("/") or normal == "/":
            raise ValueError(f"mount path {target!r} must be absolute and must not be /")
        try:
            fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            self._permit(source, os.path.normpath(source))  # whether it exists is nobody's business elsewhere
            raise ValueError(f"host path {source} cannot be mounted: {error.strerror}") from None
        opened.callback(os.close, fd)
        real = os.readlink(f"/proc/self/fd/{fd}")
        self._permit(source, real)
        plain = os.path.normpath(source)
        if plain.startswith(self._given + "/"):
            plain = self._directory + plain[len(self._given) :]
        if real.startswith(self._directory + "/") and real != plain:
            raise ValueError(f"{source} is a symbolic link, or is below one: it may not be mounted")
        return Mount(fd, real, normal, read_only)

    def _permit(self, source: str, real: str) -> None:
        if not any(real == allowed or real.startswith(allowed.rstrip("/") + "/") for allowed in self._allowed):
            raise ValueError(f"host path {source} may not be mounted: list it under hostPaths in the site file")


def misplaced(pid: int, mounts: Sequence[Mount]) -> str:
    """The target of the first mount that, as process ``pid`` sees it, is not what was opened and looked at; empty where all are.
    For who mounts by paths: a container may have put a link there since. Raises ``OSError``."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    try:
        for mount in mounts:
            # Links are followed as the process would; absolute ones lead to its root, not to ours.
            how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _IN_ROOT)
            fd = libc.syscall(_OPENAT2, root, os.fsencode(mount.target), how, len(how))
            if fd < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), mount.target)
            try:
                if not os.path.samestat(os.fstat(fd), os.fstat(mount.fd)):
                    return mount.target
            finally:
                os.close(fd)
    finally:
        os.close(root)
    return ""
