"""The ``Ledger`` in memory: beside the twin's disk. It outlives the hub that uses it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metaos.accounting.ledger import Checkpoint
from metaos.store.ledger import PAGE, PAGE_LINES, Booked, Booking, Extent, Row, follows, stale
from metaos.store.memory import turn


class MemoryLedger:
    """Belongs to one event loop. Grows with what is booked: a twin's day."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Row]] = []
        self._checkpoints: list[Checkpoint] = []
        self._sites: dict[str, tuple[int, int]] = {}
        self._extent = Extent()

    def copy(self) -> MemoryLedger:
        """As of now: a backup."""
        found = MemoryLedger()
        found._rows, found._checkpoints = list(self._rows), list(self._checkpoints)
        found._sites, found._extent = dict(self._sites), self._extent
        return found

    async def append(self, booking: Booking) -> Booked:
        found = await self.last(booking.site)
        if stale(booking, found.sequence, found.end):
            return found
        before = self._extent
        position = before.last + 1
        digest = booking.hash(position, before.head)
        row = Row(position, before.head, digest, booking.end, booking.header, booking.lines)
        self._rows.append((booking.count, row))
        self._sites[booking.site] = booking.sequence, booking.end
        self._extent = Extent(before.first, position, digest, before.checkpoint)
        await turn()
        return Booked(True, booking.sequence, booking.end)

    async def last(self, site: str) -> Booked:
        return Booked(False, *self._sites.get(site, (0, 0)))

    async def extent(self) -> Extent:
        return self._extent

    async def read(self, after: int = 0, limit: int = PAGE) -> Sequence[Row]:
        return _page(self._rows[max(0, after + 1 - self._extent.first) :], min(limit, PAGE))

    async def between(self, since: int, until: int, after: tuple[int, int] = (0, 0)) -> Sequence[Row]:
        fitting = (each for each in self._rows if since <= each[1].end < until and (each[1].end, each[1].position) > after)
        return _page(sorted(fitting, key=lambda each: (each[1].end, each[1].position)), PAGE)

    async def hashes(self, first: int, last: int) -> list[bytes]:
        return [row.hash for _, row in self._rows if first <= row.position <= last]

    async def sign(self, checkpoint: Checkpoint) -> bool:
        if not follows(checkpoint, self._extent):
            return False
        self._checkpoints.append(checkpoint)
        self._extent = Extent(self._extent.first, self._extent.last, self._extent.head, checkpoint)
        await turn()
        return True

    async def checkpoints(self, after: int = 0, limit: int = PAGE) -> list[Checkpoint]:
        return self._checkpoints[after : after + min(limit, PAGE)]

    async def covering(self, position: int) -> Checkpoint | None:
        return next((c for c in self._checkpoints if c.body["first"] <= position <= c.body["last"]), None)

    async def cut(self, number: int) -> int:
        if not 0 < number <= len(self._checkpoints):
            raise ValueError(f"the ledger has no checkpoint {number}")
        before, last = len(self._rows), self._checkpoints[number - 1].body["last"]
        self._rows = [each for each in self._rows if each[1].position > last]
        extent = self._extent
        self._extent = Extent(max(extent.first, last + 1), extent.last, extent.head, extent.checkpoint)
        return before - len(self._rows)


def _page(rows: Iterable[tuple[int, Row]], limit: int) -> list[Row]:
    found: list[Row] = []
    lines = 0
    for count, row in rows:
        lines += count
        if len(found) >= limit or (found and lines > PAGE_LINES):
            break
        found.append(row)
    return found
