"""Statements over entries of the ledger: sums by pod, workload, namespace, site or intent, and exports as CSV and FOCUS. Pure.

A sum is exact, and of what is known: where a line's figure is unknown, ``unknown`` counts the line and the figure says nothing of
it; where all are unknown, so is the sum. Money of different currencies stays apart.

FOCUS: FinOps Open Cost and Usage Specification 1.2 (focus.finops.org), one row per group and currency. NEMO knows one price, so
list, contracted, effective and billed cost are the same; columns of what it does not have are empty. Columns of its own begin
with ``x_``, as the specification wants it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from metaos.accounting.footprint import BASES, plain
from metaos.resources.meta import format_time

GROUPINGS = ("pod", "workload", "namespace", "site", "intent")
#: Of one statement.
MAX_GROUPS = 10_000
#: Whoever is known by no name, and what belongs to no pod.
SYSTEM = "(system)"
_CELLS_THAT_CALCULATE = ("=", "+", "-", "@", "\t", "\r")


@dataclass(slots=True)
class Total:
    """Of one group, from its first period to the end of its last: millijoules, micrograms by basis, money by currency."""

    key: tuple[str, ...]
    start: int = 0
    end: int = 0
    lines: int = 0
    cpu_microseconds: int = 0
    memory_mib_seconds: int = 0
    millijoules: int = 0
    network_millijoules: int = 0
    operational: dict[str, int] = field(default_factory=dict)
    embodied: int | None = None
    cost: dict[str, Decimal] = field(default_factory=dict)
    consumers: set[str] = field(default_factory=set)
    providers: set[str] = field(default_factory=set)
    #: Figure → lines of which it is not known.
    unknown: dict[str, int] = field(default_factory=dict)

    def add(self, header: Mapping[str, Any], line: Mapping[str, Any]) -> None:
        self.start = min(self.start, header["start"]) if self.lines else header["start"]
        self.end = max(self.end, header["end"])
        self.lines += 1
        self.cpu_microseconds += line.get("cpuMicroseconds") or 0
        self.memory_mib_seconds += line.get("memoryMiBSeconds") or 0
        self.millijoules += line["energyMillijoules"]
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
        cost = line.get("cost")
        if cost is not None:
            self.cost[cost["currency"]] = self.cost.get(cost["currency"], Decimal(0)) + Decimal(cost["amount"])
        elif "consumer" in line:
            self._miss("cost")
        self.consumers |= {line["consumer"]} if line.get("consumer") else set()
        self.providers |= {header["provider"]} if header.get("provider") else set()

    def _miss(self, what: str) -> None:
        self.unknown[what] = self.unknown.get(what, 0) + 1

    def said(self) -> dict[str, Any]:
        """For people and programs, with units in the names. ``None``: not known."""
        return {
            "key": list(self.key),
            "start": format_time(self.start),
            "end": format_time(self.end),
            "cpuHours": plain(_rounded(self.cpu_microseconds, 3_600_000_000)),
            "memoryGiBHours": plain(_rounded(self.memory_mib_seconds, 1024 * 3600)),
            "energyKWh": plain(_rounded(self.millijoules, 3_600_000_000, 9)),
            "networkKWh": plain(_rounded(self.network_millijoules, 3_600_000_000, 9)),
            "operationalGrams": {basis: _grams(self.operational.get(basis)) for basis in BASES},
            "embodiedGrams": _grams(self.embodied),
            "cost": {currency: plain(amount) for currency, amount in sorted(self.cost.items())},
            "unknownLines": dict(sorted(self.unknown.items())),
        }


def _rounded(value: int, unit: int, digits: int = 6) -> Decimal:
    return (Decimal(value) / unit).quantize(Decimal(1).scaleb(-digits))


def _grams(value: int | None) -> str | None:
    return None if value is None else plain(Decimal(value) / 1_000_000)


Booked = tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]


def totals(entries: Iterable[Booked], by: str, *, system: bool = False) -> list[Total]:
    """Sums over (header, lines) by group, in the order of their names; ``system`` adds what was no pod's. A line with several
    intents counts for each of them. Raises ``ValueError``."""
    if by not in GROUPINGS:
        raise ValueError(f"a statement is by {', '.join(GROUPINGS)}, not by {by!r}")
    found: dict[tuple[str, ...], Total] = {}
    for header, lines in entries:
        also = [(SYSTEM, header["system"])] if system else []
        for name, line in (*(("", line) for line in lines), *also):
            for key in _keys(by, header, line) if not name else [(header["site"],) if by == "site" else (name,)]:
                if key not in found and len(found) >= MAX_GROUPS:
                    raise ValueError(f"a statement has {MAX_GROUPS} groups at most: ask for a shorter time, or by namespace")
                found.setdefault(key, Total(key)).add(header, line)
    return [found[key] for key in sorted(found)]


def _keys(by: str, header: Mapping[str, Any], line: Mapping[str, Any]) -> list[tuple[str, ...]]:
    if by == "pod":
        return [(line["namespace"], line["name"])]
    if by == "workload":
        return [(line["namespace"], line["workload"]["kind"], line["workload"]["name"])]
    if by == "namespace":
        return [(line["namespace"],)]
    if by == "site":
        return [(header["site"],)]
    return [(line["namespace"], intent) for intent in line["intents"]] or [(line["namespace"], "(none)")]


# -- exports -----------------------------------------------------------------------------------------------

COLUMNS = (
    *("group", "start", "end", "cpu_hours", "memory_gib_hours", "energy_kwh", "network_kwh"),
    *(f"operational_{basis}_gco2eq" for basis in BASES),
    *("embodied_gco2eq", "cost", "currency", "lines", "unknown"),
)


def as_csv(found: Iterable[Total]) -> str:
    """One row per group and currency; what is not known is an empty cell, never 0."""
    rows = []
    for total in found:
        said = total.said()
        for currency, amount in total.cost.items() or [("", None)]:
            rows.append(
                [
                    *("/".join(total.key), said["start"], said["end"], said["cpuHours"], said["memoryGiBHours"]),
                    *(said["energyKWh"], said["networkKWh"], *(said["operationalGrams"][basis] or "" for basis in BASES)),
                    *(said["embodiedGrams"] or "", "" if amount is None else plain(amount), currency, total.lines),
                    " ".join(f"{key}={count}" for key, count in said["unknownLines"].items()),
                ]
            )
    return _written(COLUMNS, rows)


FOCUS_VERSION = "1.2"
FOCUS_COLUMNS = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart"),
    *("ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart"),
    *("ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "InvoiceIssuerName"),
    *("ListCost", "ListUnitPrice", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "RegionId"),
    *("ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "SkuId", "SubAccountId", "Tags"),
    *("x_EnergyKWh", "x_OperationalLocationGrams", "x_OperationalMarketGrams", "x_EmbodiedGrams"),
)


def as_focus(found: Iterable[Total], by: str) -> str:
    """Rows of charges. Groups without a price are left out: they are no charges."""
    return _written(FOCUS_COLUMNS, [[row.get(column, "") for column in FOCUS_COLUMNS] for row in _focus_rows(found, by)])


def _focus_rows(found: Iterable[Total], by: str) -> Iterator[dict[str, str]]:
    for total in found:
        said = total.said()
        name = "/".join(total.key)
        consumer, provider = (", ".join(sorted(each)) or "unknown" for each in (total.consumers, total.providers))
        for currency, amount in sorted(total.cost.items()):
            money = plain(amount)
            yield {
                **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), money),
                "BillingAccountId": consumer,
                "BillingAccountName": consumer,
                "BillingCurrency": currency,
                "BillingPeriodStart": _month(total.start, 0),
                "BillingPeriodEnd": _month(total.start, 1),
                "ChargeCategory": "Usage",
                "ChargeDescription": f"Use of {provider} by {by} {name}",
                "ChargeFrequency": "Usage-Based",
                "ChargePeriodStart": said["start"],
                "ChargePeriodEnd": said["end"],
                "ConsumedQuantity": said["cpuHours"],
                "ConsumedUnit": "Core-Hours",
                **dict.fromkeys(("InvoiceIssuerName", "ProviderName", "PublisherName"), provider),
                "ResourceId": name,
                "ResourceName": total.key[-1],
                "ResourceType": by.capitalize(),
                "ServiceCategory": "Compute",
                "ServiceName": "NEMO",
                "SubAccountId": total.key[0] if by != "site" else "",
                "Tags": json.dumps({f"nemo/{by}": name}),
                "x_EnergyKWh": said["energyKWh"],
                "x_OperationalLocationGrams": said["operationalGrams"]["location"] or "",
                "x_OperationalMarketGrams": said["operationalGrams"]["market"] or "",
                "x_EmbodiedGrams": said["embodiedGrams"] or "",
            }


def _month(seconds: int, later: int) -> str:
    """The beginning of the month that holds a time, or of the one after it."""
    found = datetime.fromtimestamp(seconds, UTC)
    months = found.year * 12 + found.month - 1 + later
    return format_time(datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC).timestamp())


def _written(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(cell) for cell in row] for row in rows])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A name that a spreadsheet would take for a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_CELLS_THAT_CALCULATE) else value
