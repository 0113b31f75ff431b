"""The agent's side of the watchdog (``watchdog.py``): tells it by when pods have to be gone, and keeps it running.

One source of truth: the file ``fences``. What stands there also tells the next agent when a heartbeat was confirmed last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence

from metaos.clock import Clock
from metaos.runtimes import process, watchdog
from metaos.runtimes.process import Watch
from metaos.runtimes.watchdog import Fences

#: How long a watchdog may take to begin. Its predecessor makes room within a tick.
START_SECONDS = 10.0
#: Between two starts of one that ends at once.
AGAIN_SECONDS = 1.0
#: Of one heartbeat, told again: clocks are read one after the other.
JITTER_SECONDS = 0.001


class Fencing:
    """``directory``: the runtime's. Times are those of ``clock.monotonic()``; the file has them in ``CLOCK_BOOTTIME``."""

    def __init__(self, directory: str, clock: Clock) -> None:
        self._directory, self._clock = directory, clock
        self._path = os.path.join(directory, "fences")
        self._turn = asyncio.Lock()
        self._watch: Watch | None = None
        #: What the last watchdog was told at its start, at least.
        self._told: Fences | None = None
        self._again: asyncio.Task[None] | None = None
        #: When (monotonic) the last watchdog was started.
        self._began = float("-inf")
        found, boot = Fences.load(self._path), process.boot_id()
        self._said = found if found is not None and boot and found.boot == boot else None

    def _offset(self) -> float:
        return watchdog.now() - self._clock.monotonic()

    @property
    def renewed(self) -> float:
        return float("-inf") if self._said is None else self._said.renewed - self._offset()

    def check(self, uid: str) -> None:
        """Raises ``ValueError`` for a pod that should be gone by now."""
        if self._said is not None and uid in self._said.due(watchdog.now()):
            raise ValueError("no heartbeat was confirmed in time: this pod must not run twice, and is not started again")

    async def keep(self, renewed: float, limits: Mapping[str, float], groups: Sequence[str]) -> None:
        """See :meth:`metaos.plugins.points.Runtime.fence`. ``groups``: where the pods' cgroups are."""
        async with self._turn:
            said = self._said
            if not limits:
                if said is not None and said.limits:
                    self._save(Fences(said.boot, [], said.renewed, {}))
                return
            wanted = Fences(process.boot_id(), list(groups), renewed + self._offset(), dict(limits))
            if said is None or (said.boot, said.groups, said.limits) != (wanted.boot, wanted.groups, wanted.limits):
                self._save(wanted)
            elif wanted.renewed > said.renewed + JITTER_SECONDS:
                try:
                    watchdog.renew(self._path, wanted.renewed)
                    self._said = wanted
                except FileNotFoundError:
                    self._save(wanted)
            if self._watch is None or self._watch.ended.is_set():
                await self._start()

    def _save(self, wanted: Fences) -> None:
        wanted.save(self._path)
        self._said = wanted

    async def _start(self) -> None:
        """Returns when it is in force; one that an earlier agent started has made room. Raises ``OSError``."""
        self._began = self._clock.monotonic()
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            argv = [sys.executable, "-I", "-S", "-E", os.path.abspath(watchdog.__file__), self._directory]
            try:
                started = process.spawn(argv, env={}, stdout=theirs)
            finally:
                os.close(theirs)
            said = b""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_SECONDS):
                    said = await process.read_all(ours)
            if said != b"ready\n":
                started.kill()
                await process.ended(started)
                raise OSError(f"the watchdog of {self._directory} does not start: no pod is started that must not run twice")
            self._told, self._watch = self._said, Watch(started, self._ended)
        finally:
            os.close(ours)

    def _ended(self) -> None:
        """It has nothing left to do, or somebody has killed it."""
        if self._needed() and self._again is None:
            self._again = asyncio.get_running_loop().create_task(self._restart(), name="watchdog")

    def _needed(self) -> bool:
        """Unless every pod was to be gone, and one has ended by itself that knew of it: it has seen to it. What was said while
        one ended, it may not have read."""
        said, last = self._said, self._watch
        if said is None or not said.limits:
            return False
        finished = said is self._told and last is not None and last.code == 0
        return not finished or len(said.due(watchdog.now())) < len(said.limits)

    async def _restart(self) -> None:
        try:
            while self._needed():
                await self._clock.sleep(max(0.0, self._began + AGAIN_SECONDS - self._clock.monotonic()))
                self._began = self._clock.monotonic()
                async with self._turn:
                    if self._watch is not None and not self._watch.ended.is_set():
                        return
                    with contextlib.suppress(OSError):
                        if self._said is not None and Fences.load(self._path) is None:
                            self._said.save(self._path)  # somebody has damaged it: a new one would find nothing to do
                        await self._start()
                        return
        finally:
            self._again = None

    async def close(self) -> None:
        """Lets go; the watchdog goes on."""
        if self._again is not None:
            self._again.cancel()
            await asyncio.gather(self._again, return_exceptions=True)
        if self._watch is not None:
            self._watch.close()
            self._watch = None
