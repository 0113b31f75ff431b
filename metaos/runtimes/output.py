"""What the containers of one runtime write: the pump that moves it into their logs, who follows, and the keeper.

The keeper (see :mod:`metaos.runtimes.pump`) does the same while no agent runs. There is never more than one of the two: a new
agent ends the keeper before it moves anything, and the keeper begins when the agent has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from metaos.runtimes import logs, process, pump
from metaos.runtimes.process import Identity, Watch


class Outputs:
    """``directory``: the runtime's. Made by whoever has just taken its pods over."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._followers: dict[str, set[asyncio.Event]] = {}
        self._keeper: Watch | None = None
        #: What the keeper waits for to be closed.
        self._life = -1
        self._pump = pump.Pump(self._moved)

    def open(self, directory: str) -> int:
        """A new container's end of its pipe. The caller closes it."""
        if self._keeper is None:
            self._start_keeper()
        out = pump.make(directory)
        try:
            self._pump.add(directory)
            self._pump.start()
        except BaseException:
            os.close(out)
            raise
        return out

    def adopt(self, directory: str) -> None:
        """A container that runs, or has ended, was started by an earlier agent: from now on its pipe is open here, so that
        nothing in it is lost when the keeper goes."""
        self._pump.add(directory)

    def start(self) -> None:
        """All that there are have been adopted."""
        self._end_keeper()
        if self._pump.busy:
            self._start_keeper()
            self._pump.start()

    def finish(self, directory: str) -> None:
        """A container has ended: what it wrote stands in its log when this returns."""
        self._pump.finish(directory)

    def drop(self, directory: str) -> None:
        """A container's directory is about to go."""
        self._pump.drop(directory)

    def note(self, directory: str, now: float) -> None:
        """See :func:`logs.note`."""
        with self._pump.still():
            logs.note(directory, now)

    async def follow(self, directory: str, tail: int | None, ended: asyncio.Event, since: float | None) -> AsyncIterator[bytes]:
        moved = asyncio.Event()
        self._followers.setdefault(directory, set()).add(moved)
        try:
            async with contextlib.aclosing(logs.follow(directory, tail, ended, moved, since)) as blocks:  # type: ignore[type-var]
                async for block in blocks:
                    yield block
        finally:
            self._followers[directory].discard(moved)
            if not self._followers[directory]:
                del self._followers[directory]

    def _moved(self, directory: str) -> None:
        if directory in self._followers:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._tell, directory)

    def _tell(self, directory: str) -> None:
        for moved in self._followers.get(directory, ()):
            moved.set()

    async def close(self, *, running: bool) -> None:
        """``running``: whether any container does; the keeper goes on with it."""
        self._pump.drain()
        self._pump.close()
        if self._keeper is not None:
            if not running:
                self._keeper.identity.kill()
                await self._keeper.ended.wait()
            self._keeper.close()
            os.close(self._life)
            self._keeper = None

    def _start_keeper(self) -> None:
        waits, self._life = os.pipe2(os.O_CLOEXEC)
        try:
            self._keeper = Watch(process.spawn(pump.keeper_command(self._directory), env={}, stdin=waits), lambda: None)
        except OSError:
            os.close(self._life)
            raise
        finally:
            os.close(waits)

    def _end_keeper(self) -> None:
        """That of an earlier agent. It is gone when this returns: two that write one file would overwrite each other."""
        path = os.path.join(self._directory, "keeper")
        try:
            with open(path, encoding="utf-8") as file:
                found = process.parse_stat(file.read())
        except FileNotFoundError:
            return
        if found is not None:
            Identity(found.pid, found.start).end()
        os.unlink(path)
