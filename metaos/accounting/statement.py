"""Statements over entries of the ledger: sums by pod, workload, namespace, intent, site or owner, in figures that say what they
do not know. Pure.

A sum is exact, and of what is known: where a line's figure is unknown, ``unknownLines`` counts the line and the figure says
nothing of it; where all are unknown, so is the sum. Money of different currencies stays apart. The uncertainty of a sum is that
of its lines, weighted by their energy: errors are taken to go the same way, none evens out another.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from metaos.accounting.footprint import BASES, plain
from metaos.accounting.money import Price, charges, price_of, used
from metaos.resources.meta import format_time

GROUPINGS = ("pod", "workload", "namespace", "intent", "site", "owner")
#: Of one statement.
MAX_GROUPS = 10_000
#: Whoever is known by no name, and what belongs to no pod.
SYSTEM = "(system)"
_CELLS_THAT_CALCULATE = ("=", "+", "-", "@", "\t", "\r")

Line = Mapping[str, Any]
Booked = tuple[Mapping[str, Any], Sequence[Line]]


@dataclass(slots=True)
class Charge:
    """Of one thing that is paid for, at one price, between two owners, in one month."""

    start: int
    end: int
    quantity: Decimal = Decimal(0)


@dataclass(slots=True)
class Total:
    """Of one group, from its first period to the end of its last: millijoules, micrograms by basis, money by currency."""

    key: tuple[str, ...]
    start: int = 0
    end: int = 0
    lines: int = 0
    cpu_microseconds: int = 0
    memory_mib_seconds: int = 0
    pod_milliseconds: int = 0
    millijoules: int = 0
    network_millijoules: int = 0
    operational: dict[str, int] = field(default_factory=dict)
    embodied: int | None = None
    cost: dict[str, Decimal] = field(default_factory=dict)
    #: Figure → lines of which it is not known.
    unknown: dict[str, int] = field(default_factory=dict)
    #: How the energy is known → millijoules, and how far it may be off.
    bases: dict[str, int] = field(default_factory=dict)
    uncertain: dict[str, int] = field(default_factory=dict)
    #: Seconds of lines, those in which nobody looked; and those that sites gave up.
    seconds: int = 0
    estimated: int = 0
    lost: int = 0
    #: Site and number of the last period that was added: what was given up before it counts once, whatever it has of lines.
    period: tuple[str, int] = ("", 0)
    #: (currency, rate, price of one, basis, source, provider, consumer, month) → what was charged.
    charges: dict[tuple[str, ...], Charge] = field(default_factory=dict)

    def add(self, header: Mapping[str, Any], line: Line, *, charged: bool = False) -> None:
        self.start = min(self.start, header["start"]) if self.lines else header["start"]
        self.end = max(self.end, header["end"])
        self.lines += 1
        self.cpu_microseconds += line.get("cpuMicroseconds") or 0
        self.memory_mib_seconds += line.get("memoryMiBSeconds") or 0
        self.pod_milliseconds += line.get("presentMilliseconds") or 0
        energy = line["energyMillijoules"]
        self.millijoules += energy
        self.network_millijoules += line.get("networkMillijoules") or 0
        network = line.get("networkMicrograms") or {}
        for basis in BASES:
            found = line["operationalMicrograms"].get(basis)
            if found is None:
                self._miss(basis)
            else:
                self.operational[basis] = self.operational.get(basis, 0) + found + (network.get(basis) or 0)
        if line["embodiedMicrograms"] is None:
            self._miss("embodied")
        else:
            self.embodied = (self.embodied or 0) + line["embodiedMicrograms"]
        if line.get("networkBytes", 0) is None:
            self._miss("network")
        meter = header["meter"]
        self.bases[meter["basis"]] = self.bases.get(meter["basis"], 0) + energy
        self.uncertain[meter["uncertainty"]] = self.uncertain.get(meter["uncertainty"], 0) + energy
        self.seconds += header["end"] - header["start"]
        self.estimated += header["estimatedSeconds"]
        if (period := (header["site"], header["sequence"])) != self.period:
            self.period, self.lost = period, self.lost + header["lostSeconds"]
        self._add_cost(header, line, charged)

    def _add_cost(self, header: Mapping[str, Any], line: Line, charged: bool) -> None:
        cost, provider, consumer = line.get("cost"), header.get("provider") or "", line.get("consumer") or ""
        if cost is not None:
            self.cost[cost["currency"]] = self.cost.get(cost["currency"], Decimal(0)) + Decimal(cost["amount"])
            if charged:
                self._add_charges(header, line, provider, consumer)
        elif "consumer" in line:
            self._miss("cost")
        if not line.get("given", True):
            self._miss("notGiven")

    def _add_charges(self, header: Mapping[str, Any], line: Line, provider: str, consumer: str) -> None:
        said = line["cost"]["price"]
        price: Price = price_of(said, said["basis"], said["source"])
        month = format_time(header["end"] - 1)[:7]
        for rate, quantity, unit in charges(price, used(line)):
            key = (price.currency, rate, plain(unit), price.basis, price.source, provider, consumer, month)
            found = self.charges.get(key)
            if found is None:
                found = self.charges[key] = Charge(header["start"], header["end"])
            found.start, found.end = min(found.start, header["start"]), max(found.end, header["end"])
            found.quantity += quantity

    def _miss(self, what: str) -> None:
        self.unknown[what] = self.unknown.get(what, 0) + 1

    def _uncertainty(self) -> str | None:
        off = sum((energy * Decimal(part) for part, energy in self.uncertain.items()), Decimal(0))
        return plain((off / self.millijoules).quantize(Decimal("0.001"))) if self.millijoules else None

    def said(self) -> dict[str, Any]:
        """For people and programs, with units in the names. ``None``: not known."""
        found: dict[str, Any] = {
            "key": list(self.key),
            "start": format_time(self.start),
            "end": format_time(self.end),
            "lines": self.lines,
            "cpuHours": plain(_rounded(self.cpu_microseconds, 3_600_000_000)),
            "memoryGiBHours": plain(_rounded(self.memory_mib_seconds, 1024 * 3600)),
            "podHours": plain(_rounded(self.pod_milliseconds, 3_600_000)),
            "energyKWh": plain(_rounded(self.millijoules, 3_600_000_000, 9)),
            "energyUncertainty": self._uncertainty(),
            "energyKWhByBasis": {key: plain(_rounded(each, 3_600_000_000, 9)) for key, each in sorted(self.bases.items())},
            "networkKWh": plain(_rounded(self.network_millijoules, 3_600_000_000, 9)),
            "operationalGrams": {basis: _grams(self.operational.get(basis)) for basis in BASES},
            "embodiedGrams": _grams(self.embodied),
            "cost": {currency: plain(amount) for currency, amount in sorted(self.cost.items())},
            "estimatedShare": plain(_rounded(self.estimated, self.seconds, 4)) if self.seconds else None,
            "lostSeconds": self.lost,
            "unknownLines": dict(sorted(self.unknown.items())),
        }
        if self.charges:
            names = ("currency", "rate", "unitPrice", "basis", "source", "provider", "consumer", "month")
            found["charges"] = [
                {
                    **dict(zip(names, key, strict=True)),
                    "quantity": plain(each.quantity.quantize(Decimal("1e-12"))),
                    "start": format_time(each.start),
                    "end": format_time(each.end),
                }
                for key, each in sorted(self.charges.items())
            ]
        return found


def _rounded(value: int, unit: int, digits: int = 6) -> Decimal:
    return (Decimal(value) / unit).quantize(Decimal(1).scaleb(-digits))


def _grams(value: int | None) -> str | None:
    return None if value is None else plain(Decimal(value) / 1_000_000)


class Sums:
    """Sums by group, entry by entry. ``by``: one of :data:`GROUPINGS`; raises ``ValueError``."""

    def __init__(self, by: str, *, charged: bool = False) -> None:
        if by not in GROUPINGS:
            raise ValueError(f"a statement is by {', '.join(GROUPINGS)}, not by {by!r}")
        self._by, self._charged = by, charged
        self._found: dict[tuple[str, ...], Total] = {}

    def add(self, header: Mapping[str, Any], lines: Iterable[Line], *, system: bool = False) -> None:
        """``system`` adds what was no pod's. A line with several intents counts for each of them."""
        for line in lines:
            for key in keys(self._by, header, line):
                self._total(key).add(header, line, charged=self._charged)
        if system:
            key = (
                (header["site"],) if self._by == "site" else (header["provider"] or SYSTEM,) if self._by == "owner" else (SYSTEM,)
            )
            self._total(key).add(header, header["system"])

    def _total(self, key: tuple[str, ...]) -> Total:
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= MAX_GROUPS:
                raise ValueError(f"a statement has {MAX_GROUPS} groups at most: ask for a shorter time, or by namespace")
            found = self._found[key] = Total(key)
        return found

    def totals(self) -> list[Total]:
        """In the order of their names."""
        return [self._found[key] for key in sorted(self._found)]


def totals(entries: Iterable[Booked], by: str, *, system: bool = False, charged: bool = False) -> list[Total]:
    """Sums over (header, lines). Raises ``ValueError``."""
    sums = Sums(by, charged=charged)
    for header, lines in entries:
        sums.add(header, lines, system=system)
    return sums.totals()


def keys(by: str, header: Mapping[str, Any], line: Line) -> list[tuple[str, ...]]:
    """The groups of a line."""
    if by == "pod":
        return [(line["namespace"], line["name"])]
    if by == "workload":
        return [(line["namespace"], line["workload"]["kind"], line["workload"]["name"])]
    if by == "namespace":
        return [(line["namespace"],)]
    if by == "site":
        return [(header["site"],)]
    if by == "owner":
        return [(line["consumer"],)]
    return [(line["namespace"], intent) for intent in line["intents"]] or [(line["namespace"], "(none)")]


# -- CSV ---------------------------------------------------------------------------------------------------

COLUMNS = (
    *("group", "start", "end", "cpu_hours", "memory_gib_hours", "pod_hours", "energy_kwh", "energy_uncertainty", "network_kwh"),
    *(f"operational_{basis}_gco2eq" for basis in BASES),
    *("embodied_gco2eq", "cost", "currency", "lines", "estimated_share", "lost_seconds", "unknown"),
)


def as_csv(groups: Iterable[Mapping[str, Any]]) -> str:
    """One row per group (as :meth:`Total.said` gives it) and currency; what is not known is an empty cell, never 0."""
    rows = []
    for said in groups:
        for currency, amount in said["cost"].items() or [("", "")]:
            rows.append(
                [
                    *(
                        "/".join(said["key"]),
                        said["start"],
                        said["end"],
                        said["cpuHours"],
                        said["memoryGiBHours"],
                        said["podHours"],
                    ),
                    *(said["energyKWh"], said["energyUncertainty"], said["networkKWh"]),
                    *(said["operationalGrams"][basis] for basis in BASES),
                    *(said["embodiedGrams"], amount, currency, said["lines"], said["estimatedShare"], said["lostSeconds"]),
                    " ".join(f"{key}={count}" for key, count in said["unknownLines"].items()),
                ]
            )
    return written(COLUMNS, rows)


def written(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """As CSV (RFC 4180, lines end in LF). ``None`` is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(cell) for cell in row] for row in rows])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A name that a spreadsheet would take for a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_CELLS_THAT_CALCULATE) else value
