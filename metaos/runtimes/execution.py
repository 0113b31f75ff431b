"""A process that was started inside a container: its streams and its end (the ``Exec`` protocol).

Nothing is read ahead: what the caller does not take stays in the pipe, and the process waits.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator

from metaos.runtimes import process
from metaos.runtimes.isolation import Launch
from metaos.runtimes.process import Watch

_CHUNK = 32 << 10


class Execution:
    """Close it with :meth:`kill`, or by reading :meth:`output` to its end and :meth:`wait`."""

    def __init__(self, watch: Watch, stdin: int, outputs: dict[int, int], *, terminal: bool, waits: bool) -> None:
        self._watch = watch
        self._stdin = stdin
        #: Descriptor → channel (1 stdout, 2 stderr).
        self._outputs = outputs
        self._terminal = terminal
        self._waits = waits
        self._reading = False

    @classmethod
    def pipes(cls, launch: Launch, *, stdin: bool) -> Execution:
        flags = os.O_CLOEXEC
        out, out_theirs = os.pipe2(flags)
        err, err_theirs = os.pipe2(flags)
        into_theirs, into = os.pipe2(flags) if stdin else (os.open(os.devnull, os.O_RDONLY | flags), -1)
        try:
            who = launch.spawn(stdin=into_theirs, stdout=out_theirs, stderr=err_theirs)
        except BaseException:
            for fd in (out, err, into):
                if fd >= 0:
                    os.close(fd)
            raise
        finally:
            for fd in (out_theirs, err_theirs, into_theirs):
                os.close(fd)
        for fd in (out, err, into):
            if fd >= 0:
                os.set_blocking(fd, False)
        return cls(Watch(who, lambda: None), into, {out: 1, err: 2}, terminal=False, waits=launch.waits)

    @classmethod
    def terminal(cls, launch: Launch, master: int, slave: int) -> Execution:
        """Takes the pair of a pseudo-terminal over."""
        try:
            who = launch.spawn(stdin=slave, stdout=slave, stderr=slave)
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        os.set_blocking(master, False)
        return cls(Watch(who, lambda: None), master, {master: 1}, terminal=True, waits=launch.waits)

    @property
    def running(self) -> bool:
        return not self._watch.ended.is_set()

    async def write(self, data: bytes) -> None:
        """To its stdin; empty bytes close it. Written to one that does not read any more, it is lost."""
        if self._stdin < 0:
            return
        if not data:
            if not self._terminal:
                os.close(self._stdin)
                self._stdin = -1
                return
            data = b"\x04"  # what a keyboard sends for the end of a file
        while data and self._stdin >= 0:
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                await _writable(self._stdin)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                return

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        self._reading = True
        try:
            while self._outputs:
                for fd in await _any_readable(list(self._outputs)):
                    try:
                        data = os.read(fd, _CHUNK)
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        if error.errno != errno.EIO:  # the other end of a terminal is closed
                            raise
                        data = b""
                    if data:
                        yield self._outputs[fd], data
                    else:
                        self._close(fd)
        finally:
            self._release()

    async def resize(self, columns: int, rows: int) -> None:
        if self._terminal and self._outputs:
            fcntl.ioctl(self._stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))

    async def wait(self) -> int:
        await self._watch.ended.wait()
        if not self._reading:
            self._release()
        return 137 if self._watch.code is None else self._watch.code

    async def kill(self) -> None:
        """It and what it has started, unless that made itself a session of its own."""
        helper = self._watch.identity
        below = process.children(helper.pid) if self._waits and helper.alive() else []
        if not below:
            helper.kill()
        # One of them may have started another meanwhile. Who only waits for the command lives on, to collect it.
        while members := process.in_sessions(below or [helper.pid]):
            for each in members:
                each.kill()
            await asyncio.gather(*(process.ended(each) for each in members if each != helper))
            if not below:
                await self._watch.ended.wait()
        await self._watch.ended.wait()
        if not self._reading:
            self._release()

    def _close(self, fd: int) -> None:
        self._outputs.pop(fd, None)
        if fd == self._stdin:
            self._stdin = -1
        os.close(fd)

    def _release(self) -> None:
        for fd in list(self._outputs):
            self._close(fd)
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(fd)


async def _any_readable(fds: list[int]) -> list[int]:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    found: list[int] = []

    def mark(fd: int) -> None:
        if fd not in found:
            found.append(fd)
        if not ready.done():
            ready.set_result(None)

    for fd in fds:
        loop.add_reader(fd, mark, fd)
    try:
        await ready
    finally:
        for fd in fds:
            loop.remove_reader(fd)
    return found
