"""The hub's books: enters what the accounting controller sends into the ledger, signs it from time to time, and counts.

A checkpoint is made when ``every`` seconds have passed since the last one or ``MOST_UNSIGNED`` entries wait for one, and when an
operator asks. Prometheus sees what was booked since this process started, by namespace and site: ``MOST_SERIES`` pairs, all
further ones together as ``(other)``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from metaos.accounting.footprint import BASES
from metaos.accounting.ledger import Checkpoint, make_checkpoint
from metaos.apiserver.ledgerkeys import LedgerKeys
from metaos.apiserver.metrics import labelled, lines_of
from metaos.clock import Clock
from metaos.resources import errors
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj, parse_time
from metaos.security.authz import UserInfo
from metaos.store.ledger import Booking, Extent, Ledger, Overlaps

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
#: So many entries are signed at once, at most.
MOST_UNSIGNED = 1000
MOST_SERIES = 1000
OTHER, SYSTEM = "(other)", "(system)"


class Books:
    """``writer``: the only user whose bookings are taken. ``keys``: without them nothing is signed (the twin)."""

    def __init__(self, ledger: Ledger, clock: Clock, writer: str, keys: LedgerKeys | None = None, every: float = 3600.0) -> None:
        #: Where several hubs sign: called when a key file was made or removed, before it is relied on.
        self.share: Callable[[], Awaitable[None]] | None = None
        self.ledger, self.clock, self._writer, self._keys, self._every = ledger, clock, writer, keys, every
        self._started = clock.now()
        self._turn = asyncio.Lock()
        self._totals: dict[tuple[str, str], dict[tuple[str, str], Decimal]] = {}
        self._extent = Extent()

    async def book(self, user: UserInfo, obj: Obj) -> Obj:
        """Answers a Booking."""
        if user.name != self._writer:
            raise errors.forbidden("meta-os.eu", "bookings", "", "the ledger is written by the hub's accounting controller alone")
        header, lines = obj["spec"]["header"], obj["spec"]["lines"]
        try:
            booked = await self.ledger.append(Booking.of(header, lines))
        except (Overlaps, ValueError, KeyError) as error:
            raise errors.invalid("meta-os.eu", "Booking", "", [Cause("FieldValueInvalid", "spec.header", str(error))]) from None
        if booked.fresh:
            self._count(header, lines)
        return {**obj, "metadata": {}, "status": {"fresh": booked.fresh, "sequence": booked.sequence, "end": booked.end}}

    # -- checkpoints ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Signs what has to be."""
        while True:
            try:
                self._extent = extent = await self.ledger.extent()
                before = parse_time(extent.checkpoint.body["time"]) if extent.checkpoint else self._started
                unsigned = extent.last - extent.signed
                if unsigned >= MOST_UNSIGNED or (unsigned and self.clock.now() >= before + self._every):
                    await self.checkpoint()
            except LookupError as error:
                log.error("the ledger is not signed: %s", error)
                await self.clock.sleep(60)
            except Exception:
                log.exception("the ledger could not be signed; it is tried again in a minute")
                await self.clock.sleep(60)
            await self.clock.sleep(CHECK_SECONDS)

    async def checkpoint(self) -> Checkpoint | None:
        """Signs all entries that are not; the last checkpoint there is. Raises ``LookupError`` where the key is missing."""
        if self._keys is None:
            return None
        async with self._turn:
            while True:
                self._extent = extent = await self.ledger.extent()
                if extent.last == extent.signed:
                    return extent.checkpoint
                first = extent.signed + 1
                hashes = await self.ledger.hashes(first, min(extent.last, first + MOST_UNSIGNED - 1))
                key, sign, following = self._keys.signer(extent.checkpoint)
                made = make_checkpoint(
                    hashes, first, extent.checkpoint, now=self.clock.now(), key=key, sign=sign, next_key=following
                )
                if following != key:
                    # No other hub may be without the key that signs next, whatever becomes of this one.
                    await self._share()
                if await self.ledger.sign(made):
                    self._keys.signed(following)
                    await self._share()

    async def rotate(self) -> str:
        """A new key, which signs from the next checkpoint but one on. Its public part."""
        if self._keys is None:
            raise errors.method_not_allowed("nothing is signed here")
        async with self._turn:
            key = self._keys.add()
            await self._share()
        await self.checkpoint()
        return key

    async def _share(self) -> None:
        if self.share is not None:
            await self.share()

    def signing_key(self, latest: Checkpoint | None) -> str:
        """The public key that signs the next checkpoint; empty where there is none."""
        return self._keys.signer(latest)[0] if self._keys is not None else ""

    # -- figures -------------------------------------------------------------------------------------------

    def _count(self, header: Mapping[str, Any], lines: list[Mapping[str, Any]]) -> None:
        # Names that only a site knows of are not told apart: it could invent any number.
        pods = ((line["namespace"] if line["given"] else OTHER, line) for line in lines)
        for where, line in ((SYSTEM, header["system"]), *pods):
            pair = where, header["site"]
            if pair not in self._totals and len(self._totals) >= MOST_SERIES:
                pair = OTHER, OTHER
            found = self._totals.setdefault(pair, {})
            for key, amount in _amounts(line):
                found[key] = found.get(key, Decimal(0)) + amount

    def lines(self) -> list[str]:
        """For Prometheus. ``basis`` embodied is the hardware's; what is not known is not counted."""
        found: list[str] = []
        for name, text, word in (
            ("nemo_energy_joules_total", "Energy that was booked since the start.", ""),
            ("nemo_carbon_grams_total", "gCO2eq that were booked since the start.", "basis"),
            ("nemo_cost_total", "Money that was booked since the start.", "currency"),
        ):
            samples = [
                labelled({"namespace": where, "site": site, **({word: label} if word else {})}, round(float(amount), 9))
                for (where, site), amounts in sorted(self._totals.items())
                for (metric, label), amount in sorted(amounts.items())
                if metric == name
            ]
            found += lines_of(name, "counter", text, samples)
        extent = self._extent
        for name, text, value in (
            ("nemo_ledger_entries", "Position of the ledger's last entry.", extent.last),
            ("nemo_ledger_unsigned_entries", "Entries that no checkpoint signs yet.", extent.last - extent.signed),
        ):
            found += lines_of(name, "gauge", text, [labelled({}, value)])
        return found


def _amounts(line: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Decimal]]:
    """((metric, label), amount) of a line."""
    yield ("nemo_energy_joules_total", ""), Decimal(line["energyMillijoules"]) / 1000
    for basis in BASES:
        if line["operationalMicrograms"].get(basis) is not None:
            yield ("nemo_carbon_grams_total", basis), Decimal(line["operationalMicrograms"][basis]) / 1_000_000
    if line["embodiedMicrograms"] is not None:
        yield ("nemo_carbon_grams_total", "embodied"), Decimal(line["embodiedMicrograms"]) / 1_000_000
    if line.get("cost"):
        yield ("nemo_cost_total", line["cost"]["currency"]), Decimal(line["cost"]["amount"])
