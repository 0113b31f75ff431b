"""The ``Ledger`` in the hubs' PostgreSQL database: tables beside the store's, the same as in SQLite (``sqliteledger``).

Whatever grows the chain locks its head first, so hubs take turns. An entry is there once for each (site, sequence), and a
checkpoint must follow the latest: what is asked again after a lost answer changes nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from metaos.accounting.ledger import Checkpoint, canonical
from metaos.store.database import Connection
from metaos.store.ledger import PAGE, PAGE_LINES, Booked, Booking, Extent, Row, follows, stale

_ROW = 'SELECT position, previous, hash, "end", header, lines FROM nemo.ledger'
_COUNT = 'SELECT position, "end", count FROM nemo.ledger'
_HEAD = "SELECT position, hash FROM nemo.ledger_head FOR UPDATE"
_LAST = 'SELECT sequence, "end" FROM nemo.ledger_site WHERE site = $1'
_ENTER = 'INSERT INTO nemo.ledger (position, "end", count, previous, hash, header, lines) VALUES ($1, $2, $3, $4, $5, $6, $7)'
_SITE = """
INSERT INTO nemo.ledger_site VALUES ($1, $2, $3)
ON CONFLICT (site) DO UPDATE SET sequence = EXCLUDED.sequence, "end" = EXCLUDED."end" """
_SIGN = "INSERT INTO nemo.ledger_checkpoint (number, first, last, body, signature) VALUES ($1, $2, $3, $4, $5)"
_BEGUN = "SELECT first, last FROM nemo.ledger_checkpoint WHERE last >= $1 ORDER BY last LIMIT 1"
_CUT = """
DELETE FROM nemo.ledger WHERE position IN (SELECT position FROM nemo.ledger WHERE position <= $1 ORDER BY position LIMIT $2)"""
T = TypeVar("T")


class Call(Protocol):
    """Does work with a connection, again where that broke."""

    def __call__(self, work: Callable[[Connection], Awaitable[T]]) -> Awaitable[T]: ...


class PostgresLedger:
    """See the module."""

    def __init__(self, call: Call) -> None:
        self._call = call
        #: Of this hub's: they are done in the order in which they came, and take one connection.
        self._turn = asyncio.Lock()

    async def append(self, booking: Booking) -> Booked:
        async def work(db: Connection) -> Booked:
            async with db.transaction():
                position, previous = await db.fetchrow(_HEAD)
                found = await _last(db, booking.site)
                if stale(booking, found.sequence, found.end):
                    return found
                position += 1
                digest = booking.hash(position, previous)
                row = (position, booking.end, booking.count, previous, digest, booking.header, booking.lines)
                await db.execute(_ENTER, *row)
                await db.execute("UPDATE nemo.ledger_head SET position = $1, hash = $2", position, digest)
                await db.execute(_SITE, booking.site, booking.sequence, booking.end)
                return Booked(True, booking.sequence, booking.end)

        async with self._turn:
            return await self._call(work)

    async def last(self, site: str) -> Booked:
        return await self._call(lambda db: _last(db, site))

    async def extent(self) -> Extent:
        async def work(db: Connection) -> Extent:
            async with db.transaction(isolation="repeatable_read", readonly=True):
                return await _extent(db)

        return await self._call(work)

    async def read(self, after: int = 0, limit: int = PAGE) -> Sequence[Row]:
        return await self._call(lambda db: _page(db, "WHERE position > $1 ORDER BY position", (after,), min(limit, PAGE)))

    async def between(self, since: int, until: int, after: tuple[int, int] = (0, 0)) -> Sequence[Row]:
        order = 'WHERE "end" >= $1 AND "end" < $2 AND ("end", position) > ($3, $4) ORDER BY "end", position'
        return await self._call(lambda db: _page(db, order, (max(since, after[0]), until, *after), PAGE))

    async def hashes(self, first: int, last: int) -> list[bytes]:
        asked = "SELECT hash FROM nemo.ledger WHERE position BETWEEN $1 AND $2 ORDER BY position"
        return [row[0] for row in await self._call(lambda db: db.fetch(asked, first, last))]

    async def sign(self, checkpoint: Checkpoint) -> bool:
        async def work(db: Connection) -> bool:
            async with db.transaction():
                await db.fetchrow(_HEAD)
                # One that was added, and whose answer was lost, does not follow itself: whoever asks looks again.
                if not follows(checkpoint, await _extent(db)):
                    return False
                body = checkpoint.body
                await db.execute(_SIGN, body["number"], body["first"], body["last"], canonical(body), checkpoint.signature)
                return True

        return await self._call(work)

    async def checkpoints(self, after: int = 0, limit: int = PAGE) -> list[Checkpoint]:
        return await self._call(
            lambda db: _checkpoints(db, "WHERE number > $1 ORDER BY number LIMIT $2", after, min(limit, PAGE))
        )

    async def covering(self, position: int) -> Checkpoint | None:
        asked = "WHERE last >= $1 AND first <= $1 ORDER BY last LIMIT 1"
        found = await self._call(lambda db: _checkpoints(db, asked, position))
        return found[0] if found else None

    async def cut(self, number: int) -> int:
        bounds = await self._call(lambda db: _checkpoints(db, "WHERE number = $1", number))
        if not bounds:
            raise ValueError(f"the ledger has no checkpoint {number}")
        last, count = int(bounds[0].body["last"]), 0
        # In small steps, with other writes between them.
        while removed := await self._call(lambda db: _removed(db, last)):
            count += removed
        return count


async def _removed(db: Connection, last: int) -> int:
    return int((await db.execute(_CUT, last, PAGE)).rpartition(" ")[2])


async def _last(db: Connection, site: str) -> Booked:
    return Booked(False, *(await db.fetchrow(_LAST, site) or (0, 0)))


async def _extent(db: Connection) -> Extent:
    last, head = await db.fetchrow("SELECT position, hash FROM nemo.ledger_head")
    first = await db.fetchval("SELECT min(position) FROM nemo.ledger") or last + 1
    latest = await _checkpoints(db, "ORDER BY number DESC LIMIT 1")
    if first > 1:
        # What a cut that is under way, or was interrupted, has left of a checkpoint's entries is cut off, too.
        begun = await db.fetchrow(_BEGUN, first)
        if begun is not None and begun[0] < first:
            first = begun[1] + 1
    return Extent(first, last, head, latest[0] if latest else None)


async def _checkpoints(db: Connection, which: str, *values: int) -> list[Checkpoint]:
    rows = await db.fetch(f"SELECT body, signature FROM nemo.ledger_checkpoint {which}", *values)  # noqa: S608 - all from here
    return [Checkpoint(json.loads(body), signature) for body, signature in rows]


async def _page(db: Connection, which: str, values: Sequence[Any], limit: int) -> list[Row]:
    taken, lines = 0, 0
    bound = f"LIMIT ${len(values) + 1}"
    for _, _, count in await db.fetch(f"{_COUNT} {which} {bound}", *values, limit):
        lines += count
        if taken and lines > PAGE_LINES:
            break
        taken += 1
    return [Row(*row) for row in await db.fetch(f"{_ROW} {which} {bound}", *values, taken)]
