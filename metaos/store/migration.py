"""Moving a state between SQLite and PostgreSQL, revision by revision, while its hub serves.

1. All revisions are copied in order; whatever was copied is read back and compared. It may be interrupted and begun again at any
   time: what is there is compared first. The target is marked, so no hub opens it meanwhile.
2. When little is left the hub is to be stopped. From then on nothing changes: that is the freeze. The rest is copied, what was
   compacted meanwhile removed, the ledger copied.
3. Both sides are compared: which revisions there are, what is current, the ledger; by number and SHA-256. Then the source is
   marked as moved, and the target opened to hubs.

Revisions stay what they were, so watches go on and no client need list again. Sealed values are copied as they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from metaos.clock import Clock
from metaos.store.database import Connection, Database
from metaos.store.file import bounds, connect, lock_file, prepare
from metaos.store.log import StoreFailed
from metaos.store.postgresschema import IN_USE, MOVED
from metaos.store.postgresschema import prepare as prepare_database

PAGE = 500
#: So many revisions may be left when the hub is to be stopped.
NEAR = 1000
RETRY_SECONDS = 0.2
#: What an interrupted move leaves beside the place of the target, and what a finished one leaves of the source.
UNFINISHED, FORMER = ".moving", ".moved"

LOG = ("revision", "key", "type", "create_revision", "previous_revision", "value")
#: Table → its columns, the first ones its key. What only grows is copied page by page, the rest whole.
GROWING = {"log": LOG, "ledger": ("position", "end", "count", "previous", "hash", "header", "lines")}
WHOLE = {
    "ledger_site": ("site", "sequence", "end"),
    "ledger_head": ("position", "hash"),
    "ledger_checkpoint": ("number", "first", "last", "body", "signature"),
}
Rows = Sequence[tuple[Any, ...]]
Tell = Callable[[str], None]


class Side(Protocol):
    """One of both."""

    shown: str

    async def bounds(self) -> tuple[int, int]:
        """The oldest revision that can be asked for, and the latest."""
        ...

    async def lock(self) -> bool:
        """Whether no hub uses it, and none will."""
        ...

    async def read(self, table: str, columns: Sequence[str], after: int, limit: int) -> Rows:
        """In the order of the first column, which is above ``after``."""
        ...

    async def numbers(self, table: str, column: str) -> set[int]: ...

    async def write(self, table: str, columns: Sequence[str], rows: Rows) -> None: ...

    async def remove(self, table: str, column: str, numbers: Iterable[int]) -> None: ...

    async def whole(self, table: str, columns: Sequence[str]) -> Rows: ...

    async def replace(self, table: str, columns: Sequence[str], rows: Rows) -> None: ...

    async def conclude(self, oldest: int, latest: int) -> None:
        """Makes what is current of the log."""
        ...

    async def leave(self, target: str) -> None:
        """This was the source: no hub opens it any more."""
        ...

    async def open_up(self) -> None:
        """This was the target: hubs may open it."""
        ...

    async def close(self) -> None: ...


async def move(source: Side, target: Side, clock: Clock, tell: Tell) -> dict[str, Any]:
    """See the module. What was moved, and how long the freeze lasted. Raises ``StoreFailed``."""
    copied = await _check_before(source, target)
    if copied:
        tell(f"{copied} revisions were copied before, and are the same")
    await _copy(source, target, "log", tell)
    said = False
    while not await source.lock():
        left = await _copy(source, target, "log", tell)
        if not said and left <= NEAR:
            tell(f"{source.shown} is copied as it is now: stop its hub, and the move is completed")
            said = True
        await clock.sleep(RETRY_SECONDS)
    began = clock.monotonic()
    for table, columns in GROWING.items():
        await _copy(source, target, table, tell)
        gone = await target.numbers(table, columns[0]) - await source.numbers(table, columns[0])
        await target.remove(table, columns[0], gone)
    for table, columns in WHOLE.items():
        await target.replace(table, columns, await source.whole(table, columns))
    oldest, latest = await source.bounds()
    await target.conclude(oldest, latest)
    told = await _compare(source, target)
    # In this order: interrupted here, neither is opened, and never both.
    await source.leave(target.shown)
    await target.open_up()
    return {**told, "oldest": oldest, "revision": latest, "freezeSeconds": round(clock.monotonic() - began, 3)}


async def copy(source: PostgresSide, target: SqliteSide) -> None:
    """Makes ``target`` of ``source`` as of one revision, while hubs use that. The hubs' shared keys stay out. Raises
    ``StoreFailed``."""
    async with source.as_of_now():
        for table in GROWING:
            await _copy(source, target, table, lambda _: None)
        for table, columns in WHOLE.items():
            await target.replace(table, columns, await source.whole(table, columns))
        await target.conclude(*await source.bounds())
    await target.open_up()


async def _check_before(source: Side, target: Side) -> int:
    """Whether what an interrupted move has left is of this source; how many revisions that is."""
    count, after = 0, 0
    while rows := await target.read("log", LOG, after, PAGE):
        there = {row[0]: row for row in await source.read("log", LOG, after, PAGE) if row[0] <= rows[-1][0]}
        wrong = next((row[0] for row in rows if row[0] in there and there[row[0]] != row), None)
        if wrong is not None or rows[-1][0] > (await source.bounds())[1]:
            raise StoreFailed(
                f"{target.shown} holds something else than {source.shown}, from revision {wrong or rows[-1][0]} on: "
                "empty it first"
            )
        count, after = count + len(rows), rows[-1][0]
    return count


async def _copy(source: Side, target: Side, table: str, tell: Tell) -> int:
    """What is missing at the end of a table; how many rows that was."""
    columns, count = GROWING[table], 0
    after = max(await target.numbers(table, columns[0]), default=0) if table != "log" else (await target.bounds())[1]
    while rows := await source.read(table, columns, after, PAGE):
        await target.write(table, columns, rows)
        if digest(await target.read(table, columns, after, len(rows))) != digest(rows):
            raise StoreFailed(f"{table}: what {target.shown} holds after {after} is not what was written")
        count, after = count + len(rows), rows[-1][0]
        if count % (100 * PAGE) == 0:
            tell(f"{table}: {count} rows")
    return count


async def _compare(source: Side, target: Side) -> dict[str, Any]:
    """What both hold, by table. Raises ``StoreFailed`` where that is not the same."""

    async def seen(side: Side) -> dict[str, list[tuple[Any, ...]]]:
        found: dict[str, list[tuple[Any, ...]]] = {}
        for table, columns in GROWING.items():
            found[table] = [(number,) for number in sorted(await side.numbers(table, columns[0]))]
        for table, columns in {**WHOLE, "current": ("key", "revision", "create_revision")}.items():
            found[table] = sorted(await side.whole(table, columns))
        return found

    ours, theirs = await seen(source), await seen(target)
    for table in ours:
        if ours[table] != theirs[table]:
            counts = f"{len(ours[table])} rows of {source.shown} are {len(theirs[table])} in {target.shown}"
            raise StoreFailed(f"{table}: {counts}, or others")
    return {table: {"count": len(rows), "sha256": digest(rows)} for table, rows in ours.items()}


def digest(rows: Iterable[Sequence[Any]]) -> str:
    """SHA-256 over rows of numbers, texts and bytes."""
    found = hashlib.sha256()
    for row in rows:
        found.update(repr(tuple(row)).encode())
    return found.hexdigest()


class SqliteSide:
    """A data directory's ``state.db``."""

    def __init__(self, path: Path, *, target: bool) -> None:
        self._path, self._target = path, target
        self.shown = str(path)
        self._open = path.with_name(path.name + UNFINISHED) if target else path
        if target and path.exists():
            raise StoreFailed(f"{path} exists: name a data directory without a state of its own")
        if not target and not path.exists() and path.with_name(path.name + FORMER).exists():
            raise StoreFailed(
                f"{path} was moved already; where that was cut off at its end, rename {path.name}{FORMER} back first"
            )
        if not target and not path.exists():
            raise StoreFailed(f"{path} does not exist: name the data directory of the hub that is to be moved")
        self._lock: int | None = None
        if target:
            connections: list[sqlite3.Connection] = []
            prepare(self._open, connections)
            for connection in connections:
                connection.close()
        self._db = connect(self._open)

    async def _do(self, work: Callable[[], Any]) -> Any:
        try:
            return await asyncio.to_thread(work)
        except sqlite3.Error as error:
            raise StoreFailed(f"{self.shown}: {error}") from error

    async def _all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = await self._do(lambda: self._db.execute(query, values).fetchall())
        return found

    async def bounds(self) -> tuple[int, int]:
        found: tuple[int, int] = await self._do(lambda: bounds(self._db))
        return found

    async def lock(self) -> bool:
        if self._lock is None:
            try:
                self._lock = lock_file(self._path)
            except StoreFailed:
                return False
        return True

    async def read(self, table: str, columns: Sequence[str], after: int, limit: int) -> Rows:
        names = _names(columns)
        return await self._all(f"SELECT {names} FROM {table} WHERE {columns[0]} > ? ORDER BY {columns[0]} LIMIT ?", after, limit)  # noqa: S608

    async def numbers(self, table: str, column: str) -> set[int]:
        return {row[0] for row in await self._all(f"SELECT {column} FROM {table}")}  # noqa: S608

    async def write(self, table: str, columns: Sequence[str], rows: Rows) -> None:
        marks = ", ".join("?" * len(columns))

        def work() -> None:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(f"INSERT INTO {table} ({_names(columns)}) VALUES ({marks})", rows)  # noqa: S608
            self._db.execute("COMMIT")

        await self._do(work)

    async def remove(self, table: str, column: str, numbers: Iterable[int]) -> None:
        await self._do(lambda: self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(n,) for n in numbers]))  # noqa: S608

    async def whole(self, table: str, columns: Sequence[str]) -> Rows:
        return await self._all(f"SELECT {_names(columns)} FROM {table}")  # noqa: S608

    async def replace(self, table: str, columns: Sequence[str], rows: Rows) -> None:
        await self._do(lambda: self._db.execute(f"DELETE FROM {table}"))  # noqa: S608
        await self.write(table, columns, rows)

    async def conclude(self, oldest: int, latest: int) -> None:
        def work() -> None:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM current")
            self._db.execute(_CURRENT.format(schema=""))
            self._db.execute("UPDATE compaction SET oldest = ?", (oldest,))
            self._db.execute("COMMIT")
            if bounds(self._db) != (oldest, latest):
                # Of the last revisions nothing is left: the next one must be above them all the same.
                raise StoreFailed(f"revision {latest} was compacted: let the hub write something, and begin again")

        await self._do(work)

    async def leave(self, target: str) -> None:
        await self._do(lambda: self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)"))
        self._db.close()
        self._path.rename(self._path.with_name(self._path.name + FORMER))

    async def open_up(self) -> None:
        # The log has all keys that hubs shared; this hub has them as files, and changes them without telling the log.
        await self._do(lambda: self._db.executescript(_FORGET_KEYS))
        # One file, for whoever copies it.
        await self._do(lambda: self._db.execute("PRAGMA journal_mode=DELETE").fetchall())
        self._db.close()
        self._open.rename(self._path)

    async def close(self) -> None:
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class PostgresSide:
    """A database of hubs. Made by :meth:`open`."""

    def __init__(self, database: Database, connection: Connection, *, target: bool) -> None:
        self._db, self._target = connection, target
        self.shown = database.shown

    @classmethod
    async def open(cls, database: Database, *, target: bool) -> PostgresSide:
        connection = await database.connect()
        try:
            await prepare_database(connection, database.shown)
            found = cls(database, connection, target=target)
            moved = await connection.fetchval(MOVED)
            if target:
                if not await found.lock():
                    raise StoreFailed(f"hubs use {database.shown}: it can only be filled while none does")
                if not moved:
                    if await connection.fetchval("SELECT revision FROM nemo.state"):
                        raise StoreFailed(f"{database.shown} has a state already: name an empty database")
                    why = "is being filled by 'nemo migrate-store': let it end, or begin it again"
                    await connection.execute("INSERT INTO nemo.moved VALUES ($1)", why)
            elif moved:
                raise StoreFailed(f"{database.shown} {moved}")
        except BaseException:
            await connection.close()
            raise
        return found

    @asynccontextmanager
    async def as_of_now(self) -> AsyncIterator[None]:
        """What is read within is of one moment."""
        async with self._db.transaction(isolation="repeatable_read", readonly=True):
            yield

    async def bounds(self) -> tuple[int, int]:
        query = "SELECT oldest, greatest(revision, (SELECT coalesce(max(revision), 0) FROM nemo.log)) FROM nemo.state"
        row = await self._db.fetchrow(query)
        return row[0], row[1]

    async def lock(self) -> bool:
        held: bool = await self._db.fetchval("SELECT pg_try_advisory_lock($1)", IN_USE)
        return held

    async def read(self, table: str, columns: Sequence[str], after: int, limit: int) -> Rows:
        query = f"SELECT {_names(columns)} FROM nemo.{table} WHERE {columns[0]} > $1 ORDER BY {columns[0]} LIMIT $2"  # noqa: S608
        return [tuple(row) for row in await self._db.fetch(query, after, limit)]

    async def numbers(self, table: str, column: str) -> set[int]:
        return {row[0] for row in await self._db.fetch(f"SELECT {column} FROM nemo.{table}")}  # noqa: S608

    async def write(self, table: str, columns: Sequence[str], rows: Rows) -> None:
        await self._db.copy_records_to_table(table, schema_name="nemo", columns=list(columns), records=rows)

    async def remove(self, table: str, column: str, numbers: Iterable[int]) -> None:
        await self._db.execute(f"DELETE FROM nemo.{table} WHERE {column} = ANY($1::bigint[])", list(numbers))  # noqa: S608

    async def whole(self, table: str, columns: Sequence[str]) -> Rows:
        return [tuple(row) for row in await self._db.fetch(f"SELECT {_names(columns)} FROM nemo.{table}")]  # noqa: S608

    async def replace(self, table: str, columns: Sequence[str], rows: Rows) -> None:
        async with self._db.transaction():
            await self._db.execute(f"DELETE FROM nemo.{table}")  # noqa: S608
            await self.write(table, columns, rows)

    async def conclude(self, oldest: int, latest: int) -> None:
        async with self._db.transaction():
            await self._db.execute("DELETE FROM nemo.current")
            await self._db.execute(_CURRENT.format(schema="nemo."))
            await self._db.execute("UPDATE nemo.state SET oldest = $1, revision = $2", oldest, latest)
        await self._db.execute("ANALYZE nemo.log, nemo.current")

    async def leave(self, target: str) -> None:
        await self._db.execute(
            "INSERT INTO nemo.moved VALUES ($1)", f"was moved to {target}: drop its schema nemo to use it again"
        )

    async def open_up(self) -> None:
        await self._db.execute("DELETE FROM nemo.moved")

    async def close(self) -> None:
        await self._db.close()


#: Key → its last revision, unless that deleted it.
_CURRENT = """
INSERT INTO {schema}current (key, revision, create_revision)
SELECT l.key, l.revision, l.create_revision FROM {schema}log l
JOIN (SELECT key, max(revision) AS last FROM {schema}log GROUP BY key) m ON m.last = l.revision WHERE l.type <> 'DELETE'"""
_FORGET_KEYS = """
BEGIN IMMEDIATE;
INSERT INTO log SELECT (SELECT max(revision) FROM log) + 1, key, 'DELETE', create_revision, revision, x''
    FROM current WHERE key = 'keyfiles//hubs';
DELETE FROM current WHERE key = 'keyfiles//hubs';
COMMIT;
"""


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
