"""The ``Ledger`` protocol: booked periods of sites in one hash chain, and signed checkpoints over it, kept as they were written.

What an entry's hash is made of, and how all of it is verified, is in ``accounting.ledger``. The chain grows in the transaction
that writes it, once for each (site, sequence): whatever is sent twice, or was written and not answered, is there once.
Only :meth:`Ledger.cut` removes anything, up to a checkpoint, which stays.

Growth on disk for each pod in each period: some 65 bytes where a site runs a hundred pods, 125 where it runs ten, 650 where it
runs one (``tests/store/test_ledger.py`` holds that); 100 pods in periods of five minutes: 0.7 GB a year. Nothing goes by itself:
when the disk is full nothing is booked, and periods wait at their sites.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from metaos.accounting.ledger import GENESIS, Checkpoint, Entry, canonical, entry_hash, merkle_root

#: Entries that one read gives, and lines: whichever is reached first ends it, after one entry at least.
PAGE, PAGE_LINES = 200, 4000
#: Of an entry's lines when they are unpacked: 2000 pods with the longest names there may be.
MAX_BYTES = 32 << 20
#: What entries have in common, for their compression. A part of the format: another one needs another schema version.
_WORDS = (
    b'"meter":{"basis":"measured","name":"model","source":"spec.power of the site file, linear between idle and full load",'
    b'"uncertainty":"0.05"},"pue":"1","sequence":,"site":"edge-","start":17,"system":{"embodiedMicrograms":null,"energyMillijoules":,'
    b'"operationalMicrograms":{"location":,"marginal":null,"market":null}}},"end":17,"energyMillijoules":,"estimatedSeconds":0,'
    b'"factors":{"location":{"gramsPerKWh":"","source":"stated by the site"},"marginal":null,"market":null},'
    b'"idleRule":"reserved","lostSeconds":0,"networkSource":null,"provider":"","watts":{"idle":"","max":""},"cpuMillis":'
    b'{"consumer":"","cost":{"amount":"0.000","currency":"EUR","price":{"basis":"greater","cpuHour":"0.0","currency":"EUR",'
    b'"egressGiB":"0","energyKWh":"0","memoryGiBHour":"0.00","source":"price of site "}},"cpuMicroseconds":,'
    b'"embodiedMicrograms":null,"energyMillijoules":,"given":true,"intents":[],"memoryMiBSeconds":,"name":"","namespace":"default","networkBytes":null,'
    b'"networkMicrograms":null,"networkMillijoules":null,"operationalMicrograms":{"location":null,"marginal":null,"market":null},'
    b'"presentMilliseconds":300000,"requestedMiB":0,"requestedMillis":0,"workload":{"kind":"Deployment","name":""}}'
)


@dataclass(frozen=True, slots=True)
class Booking:
    """A period of a site that is to be booked. ``root``: of the Merkle tree over its lines."""

    site: str
    sequence: int
    start: int
    end: int
    header: bytes
    lines: bytes
    count: int
    root: bytes

    @classmethod
    def of(cls, header: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Booking:
        """Raises ``ValueError`` for what has no canonical form, ``KeyError`` where site, sequence, start or end is missing."""
        texts = [canonical(line) for line in lines]
        where = str(header["site"]), int(header["sequence"]), int(header["start"]), int(header["end"])
        packed = _packed(b"[" + b",".join(texts) + b"]")
        return cls(*where, _packed(canonical(header)), packed, len(texts), merkle_root(texts))

    def hash(self, position: int, previous: bytes) -> bytes:
        return entry_hash(position, previous, _unpacked(self.header), self.root)


@dataclass(frozen=True, slots=True)
class Row:
    """A booked entry as it is kept, header and lines packed, and the hash that it was booked with."""

    position: int
    previous: bytes
    hash: bytes
    end: int
    header: bytes
    lines: bytes

    def entry(self) -> Entry:
        """Raises ``ValueError`` where it was damaged."""
        return Entry(self.position, self.previous, _unpacked(self.header), _unpacked(self.lines))


def _packed(text: bytes) -> bytes:
    machine = zlib.compressobj(6, zdict=_WORDS)
    return machine.compress(text) + machine.flush()


def _unpacked(packed: bytes) -> Any:
    """Raises ``ValueError``."""
    machine = zlib.decompressobj(zdict=_WORDS)
    try:
        text = machine.decompress(packed, MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"a part of an entry was damaged: {error}") from None
    if machine.unconsumed_tail:
        raise ValueError(f"a part of an entry has more than {MAX_BYTES} bytes")
    return orjson.loads(text)


@dataclass(frozen=True, slots=True)
class Booked:
    """What came of a booking: ``fresh``, or it was there already. ``sequence`` and ``end``: of the site's last booked period."""

    fresh: bool
    sequence: int
    end: int


@dataclass(frozen=True, slots=True)
class Extent:
    """``first``: the oldest entry that is kept, one above ``last`` where there is none. ``head``: the hash of the last one.
    ``checkpoint``: the latest."""

    first: int = 1
    last: int = 0
    head: bytes = GENESIS
    checkpoint: Checkpoint | None = None

    @property
    def signed(self) -> int:
        """Up to which entry it is signed."""
        return int(self.checkpoint.body["last"]) if self.checkpoint else 0


class Overlaps(ValueError):
    """A period of a site lies in time that was booked already."""


class Ledger(Protocol):
    """See the module. Errors of the engine are ``StoreFailed``."""

    async def append(self, booking: Booking) -> Booked:
        """Durable when it returns. A sequence up to the site's last one was booked before, and changes nothing. Raises
        ``Overlaps`` for a later one that begins before the last one's end, ``StoreFull``."""
        ...

    async def last(self, site: str) -> Booked:
        """The site's last booked period; sequence and end 0 where there is none."""
        ...

    async def extent(self) -> Extent: ...

    async def read(self, after: int = 0, limit: int = PAGE) -> Sequence[Row]:
        """Entries above position ``after``, in order; empty at the end. Bounded by ``limit``, ``PAGE`` and ``PAGE_LINES``."""
        ...

    async def between(self, since: int, until: int, after: tuple[int, int] = (0, 0)) -> Sequence[Row]:
        """Entries that end within [since, until), ordered by (end, position), above ``after``. Bounded alike."""
        ...

    async def hashes(self, first: int, last: int) -> list[bytes]:
        """Of the entries of these positions, both included."""
        ...

    async def sign(self, checkpoint: Checkpoint) -> bool:
        """Adds one; ``False`` where it does not follow the latest, or signs what is not there. Raises ``StoreFull``."""
        ...

    async def checkpoints(self, after: int = 0, limit: int = PAGE) -> list[Checkpoint]:
        """Above number ``after``, in order; empty at the end."""
        ...

    async def covering(self, position: int) -> Checkpoint | None:
        """The checkpoint that signs an entry, ``None`` where none does yet."""
        ...

    async def cut(self, number: int) -> int:
        """Removes the entries up to the last one of a checkpoint; how many. Raises ``ValueError`` for one that is not there."""
        ...


def follows(checkpoint: Checkpoint, extent: Extent) -> bool:
    """Whether a checkpoint is the next one of a ledger of this extent."""
    body, before = checkpoint.body, extent.checkpoint
    return (
        int(body["number"]) == (int(before.body["number"]) + 1 if before else 1)
        and int(body["first"]) == extent.signed + 1
        and int(body["first"]) <= int(body["last"]) <= extent.last
    )


def stale(booking: Booking, sequence: int, end: int) -> bool:
    """Whether a booking is of a period that is booked, where these are the site's last. Raises ``Overlaps``."""
    if booking.sequence <= sequence:
        return True
    if booking.start < end:
        raise Overlaps(f"start: {booking.start} lies in what is booked already, the site's periods up to {end} are")
    return False
