"""The ``Store`` on SQLite: one append-only table, one writer thread with group commit, reads beside it.

Table ``log`` holds every revision (as in kine); ``current`` is an index over it, key → the revision that holds. Writes
that wait at the same time share one transaction and thereby one fsync (WAL, ``synchronous=FULL``); each is resolved only
after that commit, and a failed compare-and-swap fails alone. Readers have connections and threads of their own: WAL gives
each a consistent snapshot that never waits for the writer.

What was committed is copied into the main file beside the writer (``checkpoint``).

Bounds: a pending call is held by whoever awaits it; a transaction takes at most ``BATCH`` writes; a watcher's buffer is
bounded (``fanout``); history is read in pages of ``PAGE``; compaction looks at ``STEP`` revisions or ``STEP_BYTES`` at a
time, and other writes go in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from metaos.store.checkpoint import Checkpointer
from metaos.store.fanout import BUFFER, PAGE, FanOut
from metaos.store.file import HEADS, Reserve, bounds, lock_file, prepare
from metaos.store.log import (
    Compacted,
    Conflict,
    Entry,
    EventType,
    Listing,
    LogEvent,
    StoreClosed,
    StoreFailed,
    StoreFull,
    prefix_end,
)
from metaos.store.sqliteledger import SqliteLedger

BATCH = 256
STEP, STEP_BYTES = 100, 1 << 20
NO_SPACE = "no space is left for the store: nothing was changed; free some on its disk, or delete something"

_GET = """
SELECT c.key, l.value, c.revision, c.create_revision FROM current c JOIN log l ON l.revision = c.revision WHERE c.key = ?"""
_LIST = """
SELECT c.key, l.value, c.revision, c.create_revision FROM current c CROSS JOIN log l ON l.revision = c.revision
WHERE c.key >= ? AND c.key < ? ORDER BY c.key LIMIT ?"""
_LIST_AT = """
SELECT l.key, l.value, l.revision, l.create_revision FROM (
    SELECT key, MAX(revision) AS latest FROM log
    WHERE key >= ? AND key < ? AND revision <= ? GROUP BY key
) m CROSS JOIN log l ON l.revision = m.latest WHERE l.type != 'DELETE' ORDER BY m.key LIMIT ?"""
_HISTORY = """
SELECT l.type, l.revision, l.key, l.value, p.value FROM log l LEFT JOIN log p ON p.revision = l.previous_revision
WHERE l.revision > ? AND +l.key >= ? AND +l.key < ? ORDER BY l.revision LIMIT ?"""
_APPEND = "INSERT INTO log (revision, key, type, create_revision, previous_revision, value) VALUES (?, ?, ?, ?, ?, ?)"
_POINT = "INSERT OR REPLACE INTO current (key, revision, create_revision) VALUES (?, ?, ?)"
_STEP = "SELECT revision, length(value) FROM log WHERE revision > ? AND revision <= ? ORDER BY revision LIMIT ?"
_FORGET = """
DELETE FROM log WHERE revision > ? AND revision <= ? AND (type = 'DELETE' OR EXISTS (
    SELECT 1 FROM log newer WHERE newer.key = log.key AND newer.revision > log.revision AND newer.revision <= ?))"""

T = TypeVar("T")
#: Which keys are updated even when the disk is full.
Vital = Callable[[str], bool]


@dataclass(slots=True)
class _Call(Generic[T]):
    """Work for a thread, and who awaits it."""

    work: Callable[[sqlite3.Connection], T]
    future: asyncio.Future[T]
    result: T | None = None
    error: BaseException | None = None


_Queue = SimpleQueue["_Call[Any] | None"]


class SqliteStore:
    """State in one file. Made by :meth:`open`; belongs to the event loop in which it was opened."""

    def __init__(
        self,
        writer: sqlite3.Connection,
        readers: Sequence[sqlite3.Connection],
        checkpointer: Checkpointer,
        lock: int,
        revision: int,
        watch_buffer: int,
        max_bytes: int,
        reserve: Reserve,
        vital: Vital,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._revision = revision
        self._next = revision + 1
        self._fan_out = FanOut(watch_buffer)
        self._max_bytes = max_bytes
        self._reserve, self._vital = reserve, vital
        self._checkpointer = checkpointer
        self._lock = lock
        self._connections = [*readers, writer]
        self._writes: _Queue = SimpleQueue()
        self._reads: _Queue = SimpleQueue()
        #: Of the transaction in progress: touched by the writer thread alone.
        self._events: list[LogEvent] = []
        self._closed = False
        self._writer = threading.Thread(target=self._run_writer, args=(writer,), name="store-writer", daemon=True)
        self._readers = [
            threading.Thread(target=self._run_reader, args=(reader,), name="store-reader", daemon=True) for reader in readers
        ]
        for thread in (self._writer, *self._readers):
            thread.start()

    @classmethod
    async def open(
        cls,
        path: Path | str,
        *,
        watch_buffer: int = BUFFER,
        max_bytes: int = 0,
        reserve_bytes: int = 0,
        vital: Vital = lambda key: False,
    ) -> SqliteStore:
        """Open or create. ``max_bytes``: above that much in use only deletes are accepted (0: as the disk allows).
        ``reserve_bytes`` are set aside on the disk: when it is full, deletes, and updates of what is ``vital``, go on in them.

        Raises ``StoreFailed`` where the file is in use by another process, of a newer version, or not a store.
        """
        file = Path(path)
        lock = lock_file(file)
        reserve = Reserve(file, reserve_bytes)
        reserve.give_up_where_needed()
        connections: list[sqlite3.Connection] = []
        try:
            revision = await asyncio.to_thread(prepare, file, connections)
            checkpointer = Checkpointer(file, connections[0])
        except BaseException:
            for connection in connections:
                connection.close()
            os.close(lock)
            raise
        reserve.take()
        return cls(connections[0], connections[1:], checkpointer, lock, revision, watch_buffer, max_bytes, reserve, vital)

    @property
    def full(self) -> bool:
        """Whether the disk has no room for anything new."""
        return not self._reserve.held

    @property
    def ledger(self) -> SqliteLedger:
        """The ledger in the same file."""
        return SqliteLedger(self._read, self._write, self._check_room)

    # -- Store ---------------------------------------------------------------------------------------------

    async def revision(self) -> int:
        """The latest revision."""
        return self._revision

    async def get(self, key: str) -> Entry | None:
        """The present value, or ``None``."""
        return await self._read(lambda db: _get(db, key))

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Listing:
        """Keys that start with ``prefix``, as of ``revision`` (0: now), after key ``after``. Raises ``Compacted``."""
        return await self._read(lambda db: _list(db, prefix, revision, limit, after))

    async def create(self, key: str, value: bytes) -> int:
        """The new revision. Raises ``Conflict`` where the key exists."""
        return await self._write(lambda db: self._append(db, EventType.CREATE, key, value, 0))

    async def update(self, key: str, value: bytes, *, expected: int) -> int:
        """The new revision. Raises ``Conflict`` unless the key's revision is ``expected``."""
        return await self._write(lambda db: self._append(db, EventType.UPDATE, key, value, expected))

    async def delete(self, key: str, *, expected: int) -> int:
        """The revision of the delete. Raises ``Conflict`` unless the key's revision is ``expected``."""
        return await self._write(lambda db: self._append(db, EventType.DELETE, key, b"", expected))

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[LogEvent]:
        """Every event on ``prefix`` above ``after``, in order: from the log first, then live, with no gap between."""
        return self._fan_out.follow(prefix, after, self._history, lambda: self._revision)

    async def heads(self, start: bytes, size: int) -> set[bytes]:
        """The first ``size`` bytes of every kept value that begins with ``start``."""
        await self._write(lambda db: None)  # What waits is written first.
        return await self._read(lambda db: {bytes(row[0]) for row in db.execute(HEADS, (size, len(start), start))})

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``, in small steps with other writes between them."""
        position: int | None = await self._write(lambda db: _begin_compaction(db, revision, self._next - 1))
        while position is not None:
            start = position
            position = await self._write(lambda db, start=start: _forget(db, start, revision))  # type: ignore[misc]

    async def close(self) -> None:
        """Finish what is under way, end the watches, write the log back into the main file."""
        if self._closed:
            return
        self._closed = True
        self._fan_out.end()
        self._writes.put(None)
        for _ in self._readers:
            self._reads.put(None)
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        for thread in (self._writer, *self._readers):
            thread.join()
        self._checkpointer.close()
        for connection in self._connections:
            connection.close()
        os.close(self._lock)

    # -- the event loop's side -----------------------------------------------------------------------------

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._call(self._reads, work)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._call(self._writes, work)

    def _call(self, queue: _Queue, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        if self._closed:
            raise StoreClosed("the store was closed")
        future: asyncio.Future[T] = self._loop.create_future()
        queue.put(_Call(work, future))
        return future

    async def _history(self, prefix: str, after: int) -> tuple[Sequence[LogEvent], int]:
        return await self._read(lambda db: _history(db, prefix, after))

    def _publish(self, calls: Sequence[_Call[Any]], events: Sequence[LogEvent]) -> None:
        # Watchers first: who awaited a write may rely on the revision being out.
        if events:
            self._revision = events[-1].revision
            self._fan_out.publish(events)
        _resolve(calls)

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        # The loop may have been closed without closing the store: then nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    # -- the threads' side ---------------------------------------------------------------------------------

    def _run_writer(self, db: sqlite3.Connection) -> None:
        more = True
        while more:
            calls, more = _take(self._writes, BATCH)
            failure = self._commit(db, calls)
            if isinstance(failure, StoreFull) and self._reserve.give_up():
                # Once more, with the space that was set aside for deletes and what is vital.
                with contextlib.suppress(sqlite3.Error):
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                failure = self._commit(db, calls)
            if failure is not None:
                for call in calls:
                    call.error = failure
            events, self._events = self._events, []
            self._post(self._publish, calls, events)
            self._checkpointer.wrote(len(events), sum(len(event.value) for event in events))
        with contextlib.suppress(sqlite3.Error):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _commit(self, db: sqlite3.Connection, calls: Sequence[_Call[Any]]) -> Exception | None:
        """One transaction of all ``calls``; why it failed. Then nothing was changed."""
        first = self._next
        try:
            db.execute("BEGIN IMMEDIATE")
            for call in calls:
                call.error = None
                try:
                    call.result = call.work(db)
                except (Conflict, StoreFull, ValueError) as error:
                    # Raised before anything was changed.
                    call.error = error
            db.execute("COMMIT")
        except Exception as error:
            self._next = first
            self._events.clear()
            if db.in_transaction:
                db.execute("ROLLBACK")
            return _failure(error)
        return None

    def _run_reader(self, db: sqlite3.Connection) -> None:
        more = True
        while more:
            # A few at a time: many small reads share one wake-up of the loop, a long one delays only these.
            calls, more = _take(self._reads, 16)
            for call in calls:
                try:
                    db.execute("BEGIN")
                    try:
                        call.result = call.work(db)
                    finally:
                        db.execute("COMMIT")
                except (Compacted, ValueError) as error:
                    call.error = error
                except Exception as error:
                    call.error = _failure(error)
            self._post(_resolve, calls)

    def _append(self, db: sqlite3.Connection, kind: EventType, key: str, value: bytes, expected: int) -> int:
        present = _get(db, key)
        if (present.revision if present else 0) != expected or (present is None and kind is not EventType.CREATE):
            raise Conflict(key, present)
        if kind is not EventType.DELETE and not (kind is EventType.UPDATE and self._vital(key)):
            self._check_room(db)
        revision = self._next
        created = present.create_revision if present else revision
        previous = present.value if present else None
        db.execute(_APPEND, (revision, key, kind.value, created, present.revision if present else None, value))
        if kind is EventType.DELETE:
            db.execute("DELETE FROM current WHERE key = ?", (key,))
            value = previous or b""
        else:
            db.execute(_POINT, (key, revision, created))
        self._next = revision + 1
        self._events.append(LogEvent(kind, revision, key, value, previous))
        return revision

    def _check_room(self, db: sqlite3.Connection) -> None:
        if self._max_bytes and _used_bytes(db) > self._max_bytes:
            why = f"the store has reached its limit of {self._max_bytes} bytes"
            raise StoreFull(f"{why}: delete something, compact, or raise it")
        if not (self._reserve.take() or _free_bytes(db) > self._reserve.size):
            raise StoreFull(NO_SPACE)


def _take(queue: _Queue, most: int) -> tuple[Sequence[_Call[Any]], bool]:
    """What waits, at least one; ``False`` once the queue has ended."""
    calls: list[_Call[Any]] = []
    call = queue.get()
    while call is not None:
        calls.append(call)
        if len(calls) >= most:
            return calls, True
        try:
            call = queue.get_nowait()
        except Empty:
            return calls, True
    return calls, False


def _resolve(calls: Sequence[_Call[Any]]) -> None:
    for call in calls:
        if call.future.done():
            continue
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.result)


def _failure(error: Exception) -> Exception:
    if isinstance(error, sqlite3.Error):
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return StoreFull(NO_SPACE)
        return StoreFailed(f"the store failed: {error}")
    return error


def _free_bytes(db: sqlite3.Connection) -> int:
    """Room within the file, where something was deleted and compacted."""
    (free,), (size,) = (db.execute(f"PRAGMA {n}").fetchone() for n in ("freelist_count", "page_size"))
    return int(free * size)


def _used_bytes(db: sqlite3.Connection) -> int:
    (pages,), (free,), (size,) = (db.execute(f"PRAGMA {n}").fetchone() for n in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)


# -- reads, each within one snapshot -----------------------------------------------------------------------


def _get(db: sqlite3.Connection, key: str) -> Entry | None:
    row = db.execute(_GET, (key,)).fetchone()
    return None if row is None else Entry(*row)


def _list(db: sqlite3.Connection, prefix: str, revision: int, limit: int, after: str) -> Listing:
    oldest, latest = bounds(db)
    at = revision or latest
    if at < oldest or at > latest:
        raise Compacted(at, oldest)
    # Nothing lies between a text and itself with U+0000 behind it.
    start, end = max(prefix, after + "\0") if after else prefix, _end_of(prefix)
    most = limit + 1 if limit else -1
    if at == latest:
        rows = db.execute(_LIST, (start, end, most)).fetchall()
    else:
        rows = db.execute(_LIST_AT, (start, end, at, most)).fetchall()
    more = bool(limit) and len(rows) > limit
    return Listing(tuple(Entry(*row) for row in (rows[:limit] if limit else rows)), at, more)


def _history(db: sqlite3.Connection, prefix: str, after: int) -> tuple[Sequence[LogEvent], int]:
    """At most ``PAGE`` events above ``after``, and up to which revision that is all there is."""
    oldest, latest = bounds(db)
    if after < oldest or after > latest:
        raise Compacted(after, oldest)
    if after == latest:
        return (), latest
    rows = db.execute(_HISTORY, (after, prefix, _end_of(prefix), PAGE)).fetchall()
    events = [
        LogEvent(EventType(kind), revision, key, previous if kind == "DELETE" else value, previous)
        for kind, revision, key, value, previous in rows
    ]
    return events, (events[-1].revision if len(events) == PAGE else latest)


def _end_of(prefix: str) -> str | bytes:
    """SQLite orders any blob above any text."""
    end = prefix_end(prefix)
    return b"" if end is None else end


# -- compaction, in the writer thread ----------------------------------------------------------------------


def _begin_compaction(db: sqlite3.Connection, revision: int, latest: int) -> int | None:
    """From here on older revisions are refused; their rows go step by step."""
    if revision > latest:
        raise ValueError(f"cannot compact at revision {revision}: the latest is {latest}")
    changed = db.execute("UPDATE compaction SET oldest = ? WHERE oldest < ?", (revision, revision)).rowcount
    return 0 if changed else None


def _forget(db: sqlite3.Connection, start: int, revision: int) -> int | None:
    """One step above ``start``. Returns where the next begins, ``None`` when all is done."""
    size, end = 0, None
    for found, length in db.execute(_STEP, (start, revision, STEP)):
        size += length
        end = found
        if size > STEP_BYTES:
            break
    if end is None:
        return None
    db.execute(_FORGET, (start, end, revision))
    return int(end)
