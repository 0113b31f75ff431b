"""The ``Store`` on PostgreSQL, for several hubs at once: one append-only table, one counter, group commit in each hub.

Writes that wait at the same time are one call of ``nemo.write`` (``postgresschema``): one round trip, one transaction. Each hub
numbers its batches, and the database remembers the last one: a batch whose answer was lost is asked for again and told, never
done twice. Where the database stays away, whoever waits is told so after ``PATIENCE_SECONDS``: ``StoreUnreachable`` where nothing
was sent, ``StoreUnknown`` where it may have been done.

Every hub follows the log: what it wrote itself it knows at once, what others wrote it is told (``LISTEN``), and it looks every
``LOOK_SECONDS`` in any case. ``revision`` asks the database, so that a hub that reads up to it is behind nobody's acknowledged
write; questions that come together are one.

Bounds: a pending call is held by whoever awaits it; a batch takes at most ``BATCH`` writes and about ``BATCH_BYTES``; a watcher's
buffer is bounded (``fanout``); history is read in pages of ``PAGE``; compaction takes ``STEP`` revisions at a time. A hub has
four connections. PgBouncer is no use between: ``LISTEN`` and locks need a session.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from metaos.clock import Clock, sleep_or
from metaos.store.database import PATIENCE_SECONDS, Connection, Database, Link
from metaos.store.fanout import BUFFER, PAGE, FanOut
from metaos.store.log import (
    CLAIM,
    GUARD,
    Claim,
    Compacted,
    Conflict,
    Entry,
    EventType,
    Fenced,
    Guard,
    Listing,
    LogEvent,
    Overtaken,
    StoreClosed,
    StoreFailed,
    StoreFull,
    StoreUnknown,
    StoreUnreachable,
    prefix_end,
)
from metaos.store.postgresledger import PostgresLedger
from metaos.store.postgresschema import CHANNEL, IN_USE, MOVED, prepare

log = logging.getLogger(__name__)

READERS = 2
BATCH, BATCH_BYTES = 256, 8 << 20
STEP = 500
LOOK_SECONDS = 1.0

_GET = """
SELECT c.key, l.value, c.revision, c.create_revision FROM nemo.current c JOIN nemo.log l ON l.revision = c.revision
WHERE c.key = $1"""
# The bounds and the rows are of one snapshot, as they are of one statement. {end}: nothing where a prefix has no end.
_BOUNDED = "SELECT s.oldest, s.revision AS latest, e.* FROM nemo.state s LEFT JOIN LATERAL ({rows}) e ON true ORDER BY {order}"
_LIST = """
SELECT c.key, l.value, c.revision, c.create_revision FROM nemo.current c JOIN nemo.log l ON l.revision = c.revision
WHERE c.key >= $1 AND c.key > $2 {end} ORDER BY c.key LIMIT $3"""
_LIST_AT = """
SELECT l.key, l.value, l.revision, l.create_revision FROM (
    SELECT c.key, max(c.revision) AS latest FROM nemo.log c
    WHERE c.key >= $1 AND c.key > $2 {end} AND c.revision <= $4 GROUP BY c.key
) m JOIN nemo.log l ON l.revision = m.latest WHERE l.type <> 'DELETE' ORDER BY l.key LIMIT $3"""
_HISTORY = """
SELECT c.type, c.revision, c.key, c.value, p.value AS previous FROM nemo.log c
LEFT JOIN nemo.log p ON p.revision = c.previous_revision
WHERE c.revision > $1 AND c.key >= $2 {end} ORDER BY c.revision LIMIT $3"""
_WRITE = "SELECT * FROM nemo.write($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
_HEADS = "SELECT DISTINCT substring(value FROM 1 FOR $1) FROM nemo.log WHERE substring(value FROM 1 FOR $2) = $3"
_COMPACT = "UPDATE nemo.state SET oldest = $1 WHERE oldest < $1 AND revision >= $1"
_STEP = """
SELECT max(revision) FROM (SELECT revision FROM nemo.log WHERE revision > $1 AND revision <= $2 ORDER BY revision LIMIT $3) s"""
_FORGET = """
DELETE FROM nemo.log l WHERE l.revision > $1 AND l.revision <= $2 AND (l.type = 'DELETE' OR EXISTS (
    SELECT 1 FROM nemo.log newer WHERE newer.key = l.key AND newer.revision > l.revision AND newer.revision <= $3))"""

T = TypeVar("T")


@dataclass(slots=True)
class _Write:
    type: EventType
    key: str
    value: bytes
    expected: int
    guard: Guard | None
    claim: Claim | None
    #: When (monotonic) its caller is told that the database is away.
    until: float
    future: asyncio.Future[int]


class PostgresStore:
    """State in one database. Made by :meth:`open`; belongs to the event loop in which it was opened."""

    def __init__(self, database: Database, clock: Clock, watch_buffer: int) -> None:
        self.database, self._clock = database, clock
        self._name, self._batch = secrets.token_hex(8), 0
        self._seen = 0
        self._fan_out = FanOut(watch_buffer)
        self._pending: deque[_Write] = deque()
        self._wanted, self._news = asyncio.Event(), asyncio.Event()
        self._feed, self._writer = Link(database, clock, self._listen), Link(database, clock, self._enter)
        self._free: asyncio.Queue[Link] = asyncio.Queue()
        self._readers = [Link(database, clock, self._enter) for _ in range(READERS)]
        for reader in self._readers:
            self._free.put_nowait(reader)
        self._asking: asyncio.Task[int] | None = None
        self._to_ask: asyncio.Task[int] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        #: The ledger in the same database.
        self.ledger = PostgresLedger(self._read)
        #: Whether the database's disk had no room for the last write.
        self.full = False

    @classmethod
    async def open(cls, database: Database, clock: Clock, *, watch_buffer: int = BUFFER) -> PostgresStore:
        """Open, and make or migrate the tables. Raises ``StoreFailed`` where the database cannot be reached or used."""
        store, first = cls(database, clock, watch_buffer), Link(database, clock)
        try:
            try:
                await first.call(lambda db: prepare(db, database.shown))
            finally:
                await first.close()
            store._seen = await store._feed.call(lambda db: db.fetchval("SELECT revision FROM nemo.state"))
        except BaseException:
            await store._disconnect()
            raise
        for work, name in ((store._follow(), "store-feed"), (store._run_writer(), "store-writer")):
            store._tasks.append(asyncio.create_task(work, name=name))
        return store

    # -- Store ---------------------------------------------------------------------------------------------

    async def revision(self) -> int:
        """The latest revision of any hub's, at some moment after this was called."""
        if self._closed:
            raise StoreClosed("the store was closed")
        if self._to_ask is None:
            self._to_ask = asyncio.create_task(self._ask(self._asking))
            self._to_ask.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._to_ask)

    async def _ask(self, before: asyncio.Task[int] | None) -> int:
        if before is not None and not before.done():
            await asyncio.wait([before])
        # From here on whoever asks may have seen something newer than this question will be answered with.
        self._asking, self._to_ask = self._to_ask, None
        revision: int = await self._read(lambda db: db.fetchval("SELECT revision FROM nemo.state"))
        if revision > self._seen:
            self._news.set()
        return revision

    async def get(self, key: str) -> Entry | None:
        """The present value, or ``None``."""
        row = await self._read(lambda db: db.fetchrow(_GET, key))
        return None if row is None else Entry(*row)

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Listing:
        """Keys that start with ``prefix``, as of ``revision`` (0: now), after key ``after``. Raises ``Compacted``."""
        values: list[Any] = [prefix, after, limit + 1 if limit else None]
        if revision:
            values.append(revision)
        rows = await self._read(lambda db: _bounded(db, _LIST_AT if revision else _LIST, "e.key", prefix, values))
        oldest, latest = rows[0]["oldest"], rows[0]["latest"]
        at = revision or latest
        if at < oldest or at > latest:
            raise Compacted(at, oldest)
        entries = [Entry(*row[2:]) for row in map(tuple, rows) if row[2] is not None]
        more = bool(limit) and len(entries) > limit
        return Listing(tuple(entries[:limit] if limit else entries), at, more)

    async def create(self, key: str, value: bytes) -> int:
        """The new revision. Raises ``Conflict`` where the key exists."""
        return await self._write(EventType.CREATE, key, value, 0)

    async def update(self, key: str, value: bytes, *, expected: int) -> int:
        """The new revision. Raises ``Conflict`` unless the key's revision is ``expected``."""
        return await self._write(EventType.UPDATE, key, value, expected)

    async def delete(self, key: str, *, expected: int) -> int:
        """The revision of the delete. Raises ``Conflict`` unless the key's revision is ``expected``."""
        return await self._write(EventType.DELETE, key, b"", expected)

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[LogEvent]:
        """Every event on ``prefix`` above ``after``, in order: from the log first, then live, with no gap between."""
        return self._fan_out.follow(prefix, after, self._history, lambda: self._seen)

    async def heads(self, start: bytes, size: int) -> set[bytes]:
        """The first ``size`` bytes of every kept value that begins with ``start``."""
        # What waits is written first; calls are done in the order in which they came.
        for write in list(self._pending):
            await asyncio.wait([write.future])
        rows = await self._read(lambda db: db.fetch(_HEADS, size, len(start), start))
        return {bytes(row[0]) for row in rows}

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``, in small steps with other writes between them."""

        async def begin(db: Connection) -> bool:
            done: str = await db.execute(_COMPACT, revision)
            if done.endswith(" 0") and revision > (latest := await db.fetchval("SELECT revision FROM nemo.state")):
                raise ValueError(f"cannot compact at revision {revision}: the latest is {latest}")
            return not done.endswith(" 0")

        async def forget(db: Connection, start: int) -> int | None:
            end: int | None = await db.fetchval(_STEP, start, revision, STEP)
            if end is not None:
                await db.execute(_FORGET, start, end, revision)
            return end

        position: int | None = 0 if await self._read(begin) else None
        while position is not None:
            start = position
            position = await self._read(lambda db, start=start: forget(db, start))  # type: ignore[misc]

    async def close(self) -> None:
        """Finish what is under way, end the watches."""
        if self._closed:
            return
        self._closed = True
        self._fan_out.end()
        self._wanted.set()
        self._tasks[0].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._disconnect()

    async def _disconnect(self) -> None:
        for link in (self._feed, self._writer, *self._readers):
            await link.close()

    # -- reads ---------------------------------------------------------------------------------------------

    async def _read(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Also for what changes something and bears being done twice."""
        if self._closed:
            raise StoreClosed("the store was closed")
        until = self._clock.monotonic() + PATIENCE_SECONDS
        reader = await self._free.get()
        try:
            return await reader.call(work, until=until)
        finally:
            self._free.put_nowait(reader)

    async def _history(self, prefix: str, after: int) -> tuple[Sequence[LogEvent], int]:
        """At most ``PAGE`` events above ``after``, and up to which revision that is all there is."""
        return await self._read(lambda db: _history(db, prefix, after))

    # -- writes --------------------------------------------------------------------------------------------

    async def _write(self, type: EventType, key: str, value: bytes, expected: int) -> int:
        if self._closed:
            raise StoreClosed("the store was closed")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        until = self._clock.monotonic() + PATIENCE_SECONDS
        self._pending.append(_Write(type, key, value, expected, GUARD.get(), CLAIM.get(), until, future))
        self._wanted.set()
        return await future

    async def _run_writer(self) -> None:
        while True:
            if not self._pending:
                if self._closed:
                    return
                self._wanted.clear()
                await self._wanted.wait()
                continue
            batch = self._take()
            try:
                await self._commit(batch)
                self.full = False
            except Exception as error:
                self.full = isinstance(error, StoreFull)
                _refuse(batch, error if isinstance(error, StoreFailed) else StoreFailed(f"the store failed: {error}"))
                if isinstance(error, StoreUnreachable):
                    self._refuse_late(error)

    def _take(self) -> Sequence[_Write]:
        batch, size = [self._pending.popleft()], 0
        while self._pending and len(batch) < BATCH and size < BATCH_BYTES:
            batch.append(self._pending.popleft())
            size += len(batch[-1].value)
        return batch

    def _refuse_late(self, error: StoreUnreachable) -> None:
        """Whoever has waited as long as the batch did is told too: theirs was not sent."""
        now = self._clock.monotonic()
        late = [write for write in self._pending if write.until <= now]
        self._pending = deque(write for write in self._pending if write.until > now)
        _refuse(late, StoreUnreachable(str(error)))

    async def _commit(self, batch: Sequence[_Write]) -> None:
        self._batch += 1
        values = (
            self._name,
            self._batch,
            [write.type.value for write in batch],
            [write.key for write in batch],
            [write.value for write in batch],
            [write.expected for write in batch],
            [write.guard.key if write.guard else "" for write in batch],
            [write.guard.revision if write.guard else 0 for write in batch],
            ["\n".join(write.claim.names) if write.claim else "" for write in batch],
            [write.claim.seen if write.claim else 0 for write in batch],
        )
        sent = False

        def begun() -> None:
            nonlocal sent
            sent = True

        try:
            rows = await self._writer.call(lambda db: db.fetch(_WRITE, *values), until=batch[0].until, begun=begun)
        except StoreUnreachable as error:
            if sent:
                raise StoreUnknown(f"{error}; whether the write was done is not known") from None
            raise
        # Watchers first: who awaited a write may rely on the revision being out, unless others' are yet to be read.
        done = [(write, row) for write, row in zip(batch, rows, strict=True) if row["outcome"] > 0]
        if done and not rows[0]["known"] and done[0][1]["outcome"] == self._seen + 1:
            self._publish([_event(write, row) for write, row in done])
        elif done:
            self._news.set()
        for write, row in zip(batch, rows, strict=True):
            _resolve(write, row)

    # -- following the log ---------------------------------------------------------------------------------

    async def _enter(self, db: Connection) -> None:
        """Each connection holds the lock: whoever moves the state has it alone once no hub can write any more, also none whose
        connections broke and are made again."""
        if not await db.fetchval("SELECT pg_try_advisory_lock_shared($1)", IN_USE):
            raise StoreFailed(
                f"the database {self.database.shown} is being moved elsewhere (nemo migrate-store): wait until it is"
            )
        if moved := await db.fetchval(MOVED):
            raise StoreFailed(f"the database {self.database.shown} {moved}")

    async def _listen(self, db: Connection) -> None:
        await self._enter(db)
        await db.add_listener(CHANNEL, lambda *_: self._news.set())
        db.add_termination_listener(lambda _: self._news.set())
        self._news.set()

    def _publish(self, events: Sequence[LogEvent]) -> None:
        fresh = [event for event in events if event.revision > self._seen]
        if fresh:
            self._seen = fresh[-1].revision
            self._fan_out.publish(fresh)

    async def _follow(self) -> None:
        said = False
        while True:
            await sleep_or(self._clock, LOOK_SECONDS, self._news)
            self._news.clear()
            try:
                more = True
                while more:
                    start = self._seen
                    events, _ = await self._feed.call(lambda db, start=start: _history(db, "", start))  # type: ignore[misc]
                    self._publish(events)
                    more = len(events) == PAGE
                if said:
                    log.info("the database %s answers again", self.database.shown)
                said = False
            except Compacted as compacted:
                # This hub was away for longer than history is kept.
                self._seen = compacted.oldest
                self._fan_out.overflow()
            except Exception as error:
                if not said:
                    log.error("%s", error)
                said = True


def _event(write: _Write, row: Any) -> LogEvent:
    previous: bytes | None = row["value"]
    value = (previous or b"") if write.type is EventType.DELETE else write.value
    return LogEvent(write.type, row["outcome"], write.key, value, previous)


def _resolve(write: _Write, row: Any) -> None:
    if write.future.done():
        return
    outcome = row["outcome"]
    if outcome > 0:
        write.future.set_result(outcome)
    elif outcome == -2:
        write.future.set_exception(Overtaken("another hub wrote at the same time: too many writers; try again"))
    elif outcome < 0:
        write.future.set_exception(Fenced("another hub leads by now: this write of a former leader does not count"))
    else:
        found = row["revision"]
        current = None if found is None else Entry(write.key, row["value"], found, row["create_revision"])
        write.future.set_exception(Conflict(write.key, current))


def _refuse(writes: Sequence[_Write], error: Exception) -> None:
    for write in writes:
        if not write.future.done():
            write.future.set_exception(error)


async def _bounded(db: Connection, query: str, order: str, prefix: str, values: Sequence[Any]) -> list[Any]:
    end = prefix_end(prefix)
    given = [*values, *([] if end is None else [end])]
    rows = query.format(end="" if end is None else f"AND c.key < ${len(given)}")
    found: list[Any] = await db.fetch(_BOUNDED.format(rows=rows, order=order), *given)
    return found


async def _history(db: Connection, prefix: str, after: int) -> tuple[Sequence[LogEvent], int]:
    rows = await _bounded(db, _HISTORY, "e.revision", prefix, [after, prefix, PAGE])
    oldest, latest = rows[0]["oldest"], rows[0]["latest"]
    if after < oldest or after > latest:
        raise Compacted(after, oldest)
    events = [
        LogEvent(EventType(kind), revision, key, previous if kind == "DELETE" else value, previous)
        for _, _, kind, revision, key, value, previous in map(tuple, rows)
        if kind is not None
    ]
    return events, (events[-1].revision if len(events) == PAGE else latest)
