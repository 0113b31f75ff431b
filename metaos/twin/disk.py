"""Disks in the twin, the hub's and those of sites: every write takes its time, and after any of them its process may die.

The hub's outlives the hub. Writes go through one at a time, so that "after write N" is one definite state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from metaos.accounting.ledger import Checkpoint
from metaos.apiserver.restored import mark
from metaos.clock import Clock
from metaos.resources.meta import format_time
from metaos.store.ledger import PAGE, Booked, Booking, Extent, Row
from metaos.store.log import Entry, Listing, LogEvent
from metaos.store.memory import Backup, MemoryStore
from metaos.store.memoryledger import MemoryLedger
from metaos.twin.clock import VirtualClock

T = TypeVar("T")


class Disk:
    """``write_seconds``: how long a write takes, 0 at first. One life of a hub uses it through :meth:`mount`."""

    def __init__(self, clock: Clock, history: int) -> None:
        self.clock = clock
        self.store = MemoryStore(history=history)
        self.ledger = MemoryLedger()
        self.write_seconds = 0.0
        self.writes = 0

    def backup(self) -> tuple[Backup, MemoryLedger]:
        """Everything as of now."""
        return self.store.backup(), self.ledger.copy()

    def restore(self, backup: tuple[Backup, MemoryLedger]) -> int:
        """Between two lives: another disk, made of a backup. The revision at which it begins."""
        self.ledger = backup[1].copy()
        now = self.clock.now()
        return self.store.restore(backup[0], now, lambda revision: mark(revision, format_time(now)))

    def mount(self) -> Mounted:
        """For the next life. The one before must have ended."""
        self.store.reopen()
        return Mounted(self)


class Mounted:
    """A ``Store``. Once dead it answers no more."""

    def __init__(self, disk: Disk) -> None:
        self._disk, self._store = disk, disk.store
        self._turn = asyncio.Lock()
        #: How many more writes are done before the hub dies; -1: it lives.
        self.kill_after = -1
        self.dead = asyncio.Event()

    @property
    def ledger(self) -> MountedLedger:
        return MountedLedger(self, self._disk.ledger)

    async def write(self, write: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One write after another, until it is dead."""
        if self._disk.write_seconds or self.kill_after >= 0 or self._turn.locked() or self.dead.is_set():
            async with self._turn:
                if self._disk.write_seconds:
                    await self._disk.clock.sleep(self._disk.write_seconds)
                return await self._do(write)
        return await self._do(write)

    async def _do(self, write: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self.kill_after == 0:
            self.dead.set()
        if not self.dead.is_set():
            found = await write()
            self._disk.writes += 1
            if self.kill_after > 0:
                self.kill_after -= 1
            if self.kill_after != 0:
                return found
            self.dead.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError("the dead do not answer")

    async def create(self, key: str, value: bytes) -> int:
        return await self.write(lambda: self._store.create(key, value))

    async def update(self, key: str, value: bytes, *, expected: int) -> int:
        return await self.write(lambda: self._store.update(key, value, expected=expected))

    async def delete(self, key: str, *, expected: int) -> int:
        return await self.write(lambda: self._store.delete(key, expected=expected))

    async def revision(self) -> int:
        return await self._store.revision()

    async def get(self, key: str) -> Entry | None:
        return await self._store.get(key)

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Listing:
        return await self._store.list(prefix, revision=revision, limit=limit, after=after)

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[LogEvent]:
        return self._store.watch(prefix, after=after)

    async def heads(self, start: bytes, size: int) -> set[bytes]:
        return await self._store.heads(start, size)

    async def compact(self, revision: int) -> None:
        await self._store.compact(revision)

    async def close(self) -> None:
        await self._store.close()


class Crashed(BaseException):
    """The process has died in the middle of what it did; nobody in it may live on."""


class SiteDisk:
    """A site's: its agent writes in its own thread, so it does nothing else while a write takes its time. ``crash`` is called,
    once, when the process dies."""

    def __init__(self, clock: VirtualClock, crash: Callable[[], None]) -> None:
        self._clock, self._crash = clock, crash
        #: How long a write takes.
        self.write_seconds = 0.0
        #: How many more writes are done before the agent dies; -1: it lives.
        self.kill_after = -1
        self._dead = False

    def revive(self) -> None:
        """Another process begins on it."""
        self.kill_after, self._dead = -1, False

    def spare(self) -> bool:
        """Who lives is not to die at a write any more. Whether it lives."""
        if not self._dead:
            self.kill_after = -1
        return not self._dead

    def write(self) -> None:
        """To be called for each, before it is done. Raises ``Crashed``."""
        if self.kill_after == 0:
            if not self._dead:
                self._dead = True
                self._crash()
            raise Crashed
        self.kill_after -= self.kill_after > 0
        if self.write_seconds:
            self._clock.stall(self.write_seconds)


class MountedLedger:
    """A ``Ledger``, on the same disk: its writes are among the others'."""

    def __init__(self, disk: Mounted, ledger: MemoryLedger) -> None:
        self._disk, self._ledger = disk, ledger

    async def append(self, booking: Booking) -> Booked:
        return await self._disk.write(lambda: self._ledger.append(booking))

    async def sign(self, checkpoint: Checkpoint) -> bool:
        return await self._disk.write(lambda: self._ledger.sign(checkpoint))

    async def cut(self, number: int) -> int:
        return await self._disk.write(lambda: self._ledger.cut(number))

    async def last(self, site: str) -> Booked:
        return await self._ledger.last(site)

    async def extent(self) -> Extent:
        return await self._ledger.extent()

    async def read(self, after: int = 0, limit: int = PAGE) -> Sequence[Row]:
        return await self._ledger.read(after, limit)

    async def between(self, since: int, until: int, after: tuple[int, int] = (0, 0)) -> Sequence[Row]:
        return await self._ledger.between(since, until, after)

    async def hashes(self, first: int, last: int) -> list[bytes]:
        return await self._ledger.hashes(first, last)

    async def checkpoints(self, after: int = 0, limit: int = PAGE) -> list[Checkpoint]:
        return await self._ledger.checkpoints(after, limit)

    async def covering(self, position: int) -> Checkpoint | None:
        return await self._ledger.covering(position)
