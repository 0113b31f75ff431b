"""The ``Store`` in memory: no thread and no file. The twin's disk.

It outlives the hub that uses it: ``close``, then ``reopen``, is what a restart of the process does to a store on disk.
Bound: the last ``history`` events; older ones are compacted by themselves.
"""

from __future__ import annotations

import builtins
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import coroutine

from metaos.store.fanout import BUFFER, FanOut
from metaos.store.log import Compacted, Conflict, Entry, EventType, Listing, LogEvent, StoreClosed, restored_revision

HISTORY = 20_000


@dataclass(frozen=True, slots=True)
class Backup:
    """All entries of one revision."""

    revision: int
    entries: Mapping[str, Entry]


@coroutine
def turn() -> Generator[None, None, None]:
    """Lets others run, as a write that goes to a disk does."""
    yield


class MemoryStore:
    """Belongs to one event loop."""

    def __init__(self, *, watch_buffer: int = BUFFER, history: int = HISTORY) -> None:
        self._current: dict[str, Entry] = {}
        self._keys: list[str] = []
        #: Each with the entry that it replaced.
        self._log: deque[tuple[LogEvent, Entry | None]] = deque()
        self._revision, self._oldest = 0, 0
        self._buffer, self._history = watch_buffer, history
        #: Told of each write in the moment in which it is done.
        self.on_event: Callable[[LogEvent], None] | None = None
        self.reopen()

    def reopen(self) -> None:
        """After ``close``: as another process finds it."""
        self._closed = False
        self._fan_out = FanOut(self._buffer)

    async def revision(self) -> int:
        """The latest revision."""
        self._check()
        return self._revision

    def backup(self) -> Backup:
        """Everything as of now, without history: what ``metaos.store.backup.snapshot`` makes of a file."""
        return Backup(self._revision, dict(self._current))

    def restore(self, backup: Backup, now: float, mark: Callable[[int], tuple[str, bytes]]) -> int:
        """After ``close``: as ``metaos.store.backup.restore`` makes a file of a backup. The revision at which it begins."""
        self._log.clear()
        revision = self._revision = self._oldest = restored_revision(backup.revision, now)
        key, value = mark(revision)
        self._current = {**backup.entries, key: Entry(key, value, revision, revision)}
        self._keys = sorted(self._current)
        return revision

    def peek(self, key: str) -> bytes | None:
        """The present value, at once: for those who look on."""
        found = self._current.get(key)
        return None if found is None else found.value

    def revisions(self) -> Iterator[tuple[str, int]]:
        """Of every key: the revision that wrote it, at once."""
        return ((entry.key, entry.revision) for entry in self._current.values())

    async def get(self, key: str) -> Entry | None:
        """The present value, or ``None``."""
        self._check()
        return self._current.get(key)

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Listing:
        """Keys that start with ``prefix``, as of ``revision`` (0: now), after key ``after``. Raises ``Compacted``."""
        self._check()
        at = revision or self._revision
        self._check_revision(at)
        found = self._present(prefix, after) if at == self._revision else iter(self._as_of(prefix, at, after))
        entries = tuple(islice(found, limit + 1 if limit else None))
        more = bool(limit) and len(entries) > limit
        return Listing(entries[:limit] if more else entries, at, more)

    def _present(self, prefix: str, after: str = "") -> Iterator[Entry]:
        first = bisect_right(self._keys, after) if after > prefix else bisect_left(self._keys, prefix)
        for key in islice(self._keys, first, None):
            if not key.startswith(prefix):
                return
            yield self._current[key]

    def _as_of(self, prefix: str, revision: int, after: str) -> builtins.list[Entry]:
        """Undoes what came later."""
        found: dict[str, Entry | None] = {entry.key: entry for entry in self._present(prefix)}
        for event, previous in reversed(self._log):
            if event.revision <= revision:
                break
            if event.key.startswith(prefix):
                found[event.key] = previous
        return [entry for key, entry in sorted(found.items()) if entry is not None and (not after or key > after)]

    async def create(self, key: str, value: bytes) -> int:
        """The new revision. Raises ``Conflict`` where the key exists."""
        return await self._append(EventType.CREATE, key, value, 0)

    async def update(self, key: str, value: bytes, *, expected: int) -> int:
        """The new revision. Raises ``Conflict`` unless the key's revision is ``expected``."""
        return await self._append(EventType.UPDATE, key, value, expected)

    async def delete(self, key: str, *, expected: int) -> int:
        """The revision of the delete. Raises ``Conflict`` unless the key's revision is ``expected``."""
        return await self._append(EventType.DELETE, key, b"", expected)

    async def _append(self, kind: EventType, key: str, value: bytes, expected: int) -> int:
        self._check()
        previous = self._current.get(key)
        if (previous.revision if previous else 0) != expected or (previous is None and kind is not EventType.CREATE):
            raise Conflict(key, previous)
        revision = self._revision = self._revision + 1
        if kind is EventType.DELETE and previous is not None:
            value = previous.value
            del self._current[key], self._keys[bisect_left(self._keys, key)]
        else:
            if previous is None:
                insort(self._keys, key)
            self._current[key] = Entry(key, value, revision, previous.create_revision if previous else revision)
        event = LogEvent(kind, revision, key, value, previous.value if previous else None)
        self._log.append((event, previous))
        if len(self._log) > self._history:
            self._oldest = self._log.popleft()[0].revision
        if self.on_event is not None:
            self.on_event(event)
        self._fan_out.publish((event,))
        await turn()
        return revision

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[LogEvent]:
        """Every event on ``prefix`` above ``after``, in order. Raises ``Compacted``."""
        self._check_revision(after)
        watcher = self._fan_out.attach(prefix)
        try:
            missed = []
            for event, _ in reversed(self._log):
                if event.revision <= after:
                    break
                if event.key.startswith(prefix):
                    missed.append(event)
            seen = after
            while missed:
                seen = missed[-1].revision
                yield missed.pop()
            while (live := await watcher.next(seen, lambda: self._revision)) is not None:
                seen = live.revision
                yield live
        finally:
            self._fan_out.detach(watcher)

    async def heads(self, start: bytes, size: int) -> set[bytes]:
        """The first ``size`` bytes of every kept value that begins with ``start``."""
        self._check()
        values = [event.value for event, _ in self._log] + [entry.value for entry in self._current.values()]
        return {value[:size] for value in values if value.startswith(start)}

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``."""
        self._check()
        if revision > self._revision:
            raise ValueError(f"cannot compact at revision {revision}: the latest is {self._revision}")
        while self._log and self._log[0][0].revision <= revision:
            self._log.popleft()
        self._oldest = max(self._oldest, revision)

    async def close(self) -> None:
        self._closed = True
        self._fan_out.end()

    def _check(self) -> None:
        if self._closed:
            raise StoreClosed("the store was closed")

    def _check_revision(self, revision: int) -> None:
        if revision < self._oldest or revision > self._revision:
            raise Compacted(revision, self._oldest)
