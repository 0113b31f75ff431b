"""Attaching to a running container: its output from now on, and its standard input where it has one (the ``Exec`` protocol)."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

from metaos.runtimes import process
from metaos.runtimes.process import Identity

_SOCKET = "console"
_PROGRAM = os.path.join(os.path.dirname(__file__), "console.py")
#: Becomes a command that leads a process group which it can see, in the foreground of its terminal: a shell that finds none
#: complains when it ends. The group that bubblewrap's command begins in is outside of its pid namespace.
FOREGROUND = """import os, signal, sys
os.setpgid(0, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.tcsetpgrp(0, os.getpid())
signal.signal(signal.SIGTTOU, signal.SIG_DFL)
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"bwrap: execvp {sys.argv[1]}: {error.strerror}")
"""
#: Of one message of what is typed.
_CHUNK = 16 << 10


def _address(directory: int) -> str:
    """Paths of sockets are short; data directories may be long."""
    return f"/proc/self/fd/{directory}/{_SOCKET}"


def start_console(directory: str, entry: int, log: int, *, once: bool) -> Identity:
    """The process that keeps a container's input. ``entry`` and ``log`` are lent to it; see ``console.py``."""
    place = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(_address(place))
        listener.listen(8)
        fds = [listener.fileno(), entry, *((log,) if log >= 0 else ())]
        argv = [sys.executable, "-I", "-S", "-E", _PROGRAM, str(fds[0]), str(entry), str(log), str(int(once))]
        return process.spawn(argv, env={"PATH": "/usr/bin:/bin"}, pass_fds=fds)
    finally:
        listener.close()
        os.close(place)


class Attachment:
    """``lines``: the container's log from now on, where its output does not come through a terminal."""

    def __init__(self, directory: str, *, stdin: bool, lines: AsyncIterator[bytes] | None) -> None:
        self._lines = lines
        self._socket: socket.socket | None = None
        if stdin:
            place = os.open(directory, os.O_PATH | os.O_CLOEXEC)
            found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            found.setblocking(False)
            try:
                # Refused once the input has ended; what comes out is there all the same.
                with suppress(ConnectionRefusedError, FileNotFoundError):
                    found.connect(_address(place))
                    self._socket = found
            finally:
                os.close(place)
                if self._socket is None:
                    found.close()

    async def _send(self, message: bytes) -> None:
        if self._socket is not None:
            with suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(self._socket, message)

    async def write(self, data: bytes) -> None:
        """What is typed; empty bytes end it."""
        if not data:
            await self._send(b"E")
        for start in range(0, len(data), _CHUNK):
            await self._send(b"0" + data[start : start + _CHUNK])

    async def resize(self, columns: int, rows: int) -> None:
        await self._send(f"4{rows} {columns}".encode())

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        if self._lines is not None:
            async for block in self._lines:
                yield 1, block
        elif self._socket is not None:
            loop = asyncio.get_running_loop()
            with suppress(ConnectionError):
                while data := await loop.sock_recv(self._socket, 64 << 10):
                    yield 1, data

    async def wait(self) -> int:
        """Nothing is known of how the container ended, and whoever attached is not told."""
        return 0

    async def kill(self) -> None:
        """Leaves; the container runs on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
