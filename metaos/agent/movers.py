"""The processes that send and receive volumes (:mod:`metaos.volumes`), and the sockets between them and the tunnel's streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from metaos.agent.relay import relay_stream
from metaos.runtimes import process
from metaos.tunnel import MAX_DATA, Stream

#: What a process says of itself on one line.
MAX_LINE = 1 << 20


class Mover:
    """One process, ``sending`` or ``receiving``, with its end of a socket pair. It ends with this object's :meth:`kill`, or with
    the agent: its standard input ends then."""

    def __init__(self, role: str, request: Mapping[str, Any]) -> None:
        """Raises ``OSError``."""
        ours, theirs = socket.socketpair()
        given, self._words = os.pipe2(os.O_CLOEXEC)
        self._output, said = os.pipe2(os.O_CLOEXEC)
        try:
            ours.setblocking(False)
            os.set_blocking(self._output, False)
            self.socket = ours
            env = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
            argv = [sys.executable, "-I", "-m", f"metaos.volumes.{role}"]
            self._who = process.spawn(argv, env=env, stdin=given, stdout=said, pass_fds=(theirs.fileno(),))
            self._ended = asyncio.ensure_future(process.ended(self._who))
            self.say(json.dumps({**request, "socket": theirs.fileno()}))
        except BaseException:
            ours.close()
            os.close(self._words)
            os.close(self._output)
            raise
        finally:
            theirs.close()
            os.close(given)
            os.close(said)

    def say(self, word: str) -> None:
        """A line on its standard input. One that has ended does not hear it."""
        with contextlib.suppress(OSError):
            os.write(self._words, word.encode() + b"\n")

    def kill(self) -> None:
        """At once: nothing of it is sent or written after this returns and the kernel has taken note."""
        self._who.kill()

    async def run(self, stream: Stream, heard: Callable[[dict[str, Any]], None]) -> None:
        """Carries its bytes over the stream until it ends. ``heard`` is told each object that it says."""
        relaying = asyncio.ensure_future(relay_stream(self.socket, stream, chunk=MAX_DATA))
        try:
            await self._listen(heard)
            await self._ended
        finally:
            self.kill()
            # What it has said last is still to be carried to the other end.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await asyncio.shield(relaying)
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
            self.socket.close()
            os.close(self._words)
            os.close(self._output)
            await self._ended

    async def _listen(self, heard: Callable[[dict[str, Any]], None]) -> None:
        rest = b""
        while True:
            await process.readable(self._output)
            try:
                part = os.read(self._output, 65536)
            except BlockingIOError:
                continue
            if not part:
                return
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) > MAX_LINE:
                raise OSError("the process that moves volumes says too much")
            for line in lines:
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if isinstance(said, dict):
                        heard(said)
