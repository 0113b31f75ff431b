"""The ``Store`` protocol: an append-only revision log over keys.

Semantics follow etcd's and kine's: every write gets the next revision of one counter; a key's value carries the
revision that wrote it; compare-and-swap is on that revision; a list is consistent at one revision; a watch from a
revision delivers every later event once, in order, without gaps, or says that the revision is compacted.

Keys are slash-separated text (``pods/shop/web-1``); values are opaque bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

#: What a store that was restored from a backup has revisions ahead of the backup's at least.
BUMP = 1_000_000_000


def restored_revision(backup: int, now: float) -> int:
    """Where a store begins that is restored ``now`` (seconds since the epoch) from a backup of revision ``backup``.

    The time in microseconds: after all that anybody has seen, also of another restore of the same backup, as no store writes a
    million times a second. A clock that stands in the past costs that, and no more."""
    return max(backup + BUMP, int(now * 1e6))


class EventType(StrEnum):
    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value and the revision that wrote it (for a delete: the last value before it)."""

    key: str
    value: bytes
    revision: int
    create_revision: int


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One revision. ``previous`` is the value before an update or delete."""

    type: EventType
    revision: int
    key: str
    value: bytes
    previous: bytes | None


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries in key order, all as of ``revision``. ``more``: the limit cut the list after the last key."""

    entries: tuple[Entry, ...]
    revision: int
    more: bool


class Conflict(Exception):
    """Compare-and-swap failed; ``current`` is the present entry, ``None`` where the key does not exist."""

    def __init__(self, key: str, current: Entry | None) -> None:
        super().__init__(f"{key}: expected another revision, found {current.revision if current else 'nothing'}")
        self.key = key
        self.current = current


class Compacted(Exception):
    """The asked-for revision is older than what is kept; list again. ``oldest`` can still be asked for."""

    def __init__(self, revision: int, oldest: int) -> None:
        super().__init__(f"revision {revision} has been compacted; the oldest kept is {oldest}")
        self.revision = revision
        self.oldest = oldest


class StoreFailed(Exception):
    """The engine could not do it (I/O error, damaged file, wrong version). A write that failed so changed nothing."""


class StoreFull(StoreFailed):
    """No space is left for a write; nothing was changed, reads go on. Free space, or compact."""


class StoreClosed(StoreFailed):
    """The store was closed."""


class StoreUnreachable(StoreFailed):
    """The database cannot be reached: nothing was changed. Try again."""


class StoreUnknown(StoreUnreachable):
    """The database was lost while it had a write: whether it is done is not known. Look before trying again."""


class Fenced(StoreFailed):
    """Whoever wrote this was relieved meanwhile (:data:`GUARD`): nothing was changed."""


class Overtaken(StoreFailed):
    """Another hub has written what this write had to know of (:data:`CLAIM`): nothing was changed. Look again."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Writes count only as long as ``key`` is at ``revision``: a fencing token. Where several hubs share a store, each that
    begins to lead writes the key, and thereby ends what an earlier one still had in hand."""

    key: str
    revision: int


#: What guards the writes of a task and of those that it begins; stores that several hubs share obey it.
GUARD: ContextVar[Guard | None] = ContextVar("GUARD", default=None)


@dataclass(frozen=True, slots=True)
class Claim:
    """A write counts only if none with a claim of one of these names was done above revision ``seen``: so what was decided by the
    sum of many objects still holds when it is written, whoever writes beside. No name holds a line break."""

    names: tuple[str, ...]
    seen: int


#: What the writes of a task claim; stores that several hubs share obey it.
CLAIM: ContextVar[Claim | None] = ContextVar("CLAIM", default=None)


def claimed(seen: int, *names: str) -> Claim:
    """A claim of these names beside what this task claims already."""
    before = CLAIM.get()
    return Claim(names, seen) if before is None else Claim((*before.names, *names), min(before.seen, seen))


class Store(Protocol):
    """State. An awaited write is durable when it returns; writes are serial, one revision each."""

    async def revision(self) -> int:
        """The latest revision."""
        ...

    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Listing:
        """Keys that start with ``prefix``, as of ``revision`` (0: now), after key ``after``. Raises ``Compacted``, also for
        a revision that is yet to come (the store was restored from an older copy): either way, list again."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """The new revision. Raises ``Conflict`` where the key exists."""
        ...

    async def update(self, key: str, value: bytes, *, expected: int) -> int:
        """The new revision. Raises ``Conflict`` unless the key's revision is ``expected``."""
        ...

    async def delete(self, key: str, *, expected: int) -> int:
        """The revision of the delete. Raises ``Conflict`` unless the key's revision is ``expected``."""
        ...

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[LogEvent]:
        """Every event on ``prefix`` with a revision above ``after``, in order. Raises ``Compacted`` when ``after`` is
        too old or yet to come, also later on when this watcher has fallen too far behind (its buffer is bounded). Ends
        when the store is closed."""
        ...

    async def heads(self, start: bytes, size: int) -> set[bytes]:
        """The first ``size`` bytes of every value that is kept, in history too, and begins with ``start``. Every write that
        was asked for before is seen."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``; what was current then stays, so that one may list at it and watch after it.
        Raises ``ValueError`` for a revision that is yet to come."""
        ...

    async def close(self) -> None: ...


def prefix_end(prefix: str) -> str | None:
    """The least text above every one that starts with ``prefix``; ``None`` where there is none."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            # U+D800..U+DFFF are no characters.
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
        prefix = prefix[:-1]
    return None
