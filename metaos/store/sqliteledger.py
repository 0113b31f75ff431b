"""The ``Ledger`` in the hub's ``state.db``: tables beside the store's, written by its writer thread, so also in its backups.

``ledger`` holds the entries, packed; ``ledger_site`` each site's last sequence and end, which a cut leaves (bound: the
sites there ever were); ``ledger_head`` the last position and hash; ``ledger_checkpoint`` the signed checkpoints, which are never
removed (some 600 bytes each).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from metaos.accounting.ledger import Checkpoint, canonical
from metaos.store.ledger import PAGE, PAGE_LINES, Booked, Booking, Extent, Row, follows, stale

_ROW = "SELECT position, previous, hash, end, header, lines FROM ledger"
#: Rows are taken until they have so many lines together, or their number is reached; the first one in any case.
_COUNT = "SELECT position, end, count FROM ledger"
T = TypeVar("T")


class Call(Protocol):
    """Runs work with a connection in another thread."""

    def __call__(self, work: Callable[[sqlite3.Connection], T]) -> Awaitable[T]: ...


class SqliteLedger:
    """See the module. ``room`` raises ``StoreFull`` where nothing may grow."""

    def __init__(self, read: Call, write: Call, room: Callable[[sqlite3.Connection], None]) -> None:
        self._read, self._write, self._room = read, write, room

    async def append(self, booking: Booking) -> Booked:
        return await self._write(lambda db: self._append(db, booking))

    def _append(self, db: sqlite3.Connection, booking: Booking) -> Booked:
        found = _last(db, booking.site)
        if stale(booking, found.sequence, found.end):
            return found
        self._room(db)
        position, previous = db.execute("SELECT position, hash FROM ledger_head").fetchone()
        position += 1
        digest = booking.hash(position, previous)
        row = (position, booking.end, booking.count, previous, digest, booking.header, booking.lines)
        db.execute("INSERT INTO ledger (position, end, count, previous, hash, header, lines) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("UPDATE ledger_head SET position = ?, hash = ?", (position, digest))
        db.execute("INSERT OR REPLACE INTO ledger_site VALUES (?, ?, ?)", (booking.site, booking.sequence, booking.end))
        return Booked(True, booking.sequence, booking.end)

    async def last(self, site: str) -> Booked:
        return await self._read(lambda db: _last(db, site))

    async def extent(self) -> Extent:
        return await self._read(_extent)

    async def read(self, after: int = 0, limit: int = PAGE) -> Sequence[Row]:
        order = "WHERE position > ? ORDER BY position"
        return await self._read(lambda db: _page(db, order, (after,), min(limit, PAGE)))

    async def between(self, since: int, until: int, after: tuple[int, int] = (0, 0)) -> Sequence[Row]:
        order = "WHERE end >= ? AND end < ? AND (end, position) > (?, ?) ORDER BY end, position"
        # The greater of both begins the search in the index.
        return await self._read(lambda db: _page(db, order, (max(since, after[0]), until, *after), PAGE))

    async def hashes(self, first: int, last: int) -> list[bytes]:
        asked = "SELECT hash FROM ledger WHERE position BETWEEN ? AND ? ORDER BY position"
        return await self._read(lambda db: [row[0] for row in db.execute(asked, (first, last))])

    async def sign(self, checkpoint: Checkpoint) -> bool:
        return await self._write(lambda db: self._sign(db, checkpoint))

    def _sign(self, db: sqlite3.Connection, checkpoint: Checkpoint) -> bool:
        if not follows(checkpoint, _extent(db)):
            return False
        self._room(db)
        body = checkpoint.body
        row = (body["number"], body["first"], body["last"], canonical(body), checkpoint.signature)
        db.execute("INSERT INTO ledger_checkpoint (number, first, last, body, signature) VALUES (?, ?, ?, ?, ?)", row)
        return True

    async def checkpoints(self, after: int = 0, limit: int = PAGE) -> list[Checkpoint]:
        return await self._read(
            lambda db: _checkpoints(db, "WHERE number > ? ORDER BY number LIMIT ?", (after, min(limit, PAGE)))
        )

    async def covering(self, position: int) -> Checkpoint | None:
        asked = "WHERE last >= ? AND first <= ? ORDER BY last LIMIT 1"
        found = await self._read(lambda db: _checkpoints(db, asked, (position, position)))
        return found[0] if found else None

    async def cut(self, number: int) -> int:
        bounds = await self._read(lambda db: _checkpoints(db, "WHERE number = ?", (number,)))
        if not bounds:
            raise ValueError(f"the ledger has no checkpoint {number}")
        last, count = int(bounds[0].body["last"]), 0
        step = "DELETE FROM ledger WHERE position IN (SELECT position FROM ledger WHERE position <= ? ORDER BY position LIMIT ?)"
        # In small steps, with other writes between them.
        while removed := await self._write(lambda db: db.execute(step, (last, PAGE)).rowcount):
            count += removed
        return count


def _last(db: sqlite3.Connection, site: str) -> Booked:
    row = db.execute("SELECT sequence, end FROM ledger_site WHERE site = ?", (site,)).fetchone()
    return Booked(False, *(row or (0, 0)))


def _extent(db: sqlite3.Connection) -> Extent:
    last, head = db.execute("SELECT position, hash FROM ledger_head").fetchone()
    first = db.execute("SELECT MIN(position) FROM ledger").fetchone()[0] or last + 1
    latest = _checkpoints(db, "ORDER BY number DESC LIMIT 1", ())
    if first > 1:
        # What a cut that is under way, or was interrupted, has left of a checkpoint's entries is cut off, too.
        begun = db.execute("SELECT first, last FROM ledger_checkpoint WHERE last >= ? ORDER BY last LIMIT 1", (first,)).fetchone()
        if begun is not None and begun[0] < first:
            first = begun[1] + 1
    return Extent(first, last, head, latest[0] if latest else None)


def _checkpoints(db: sqlite3.Connection, which: str, values: Sequence[int]) -> list[Checkpoint]:
    rows = db.execute(f"SELECT body, signature FROM ledger_checkpoint {which}", values)  # noqa: S608 - all from here
    return [Checkpoint(json.loads(body), signature) for body, signature in rows]


def _page(db: sqlite3.Connection, which: str, values: Sequence[Any], limit: int) -> list[Row]:
    taken, lines = 0, 0
    for _, _, count in db.execute(f"{_COUNT} {which} LIMIT ?", (*values, limit)):
        lines += count
        if taken and lines > PAGE_LINES:
            break
        taken += 1
    return [Row(*row) for row in db.execute(f"{_ROW} {which} LIMIT ?", (*values, taken))]
