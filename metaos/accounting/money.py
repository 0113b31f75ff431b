"""What use costs, between the owner of a site and who used it. Decimal arithmetic, never floating point; pure.

A price is the tariff that both agreed on (``Tariff``) or, without one, what the site's owner asks of everybody
(``Cluster.spec.price``). Amounts are kept to 10^-9 of the currency, rounded half to even once per line, so that a sum of lines
is exact. Amounts of different currencies are never added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from metaos.accounting.footprint import decimal, plain
from metaos.resources.meta import Obj, label_selector, labels, name, parse_time

DEFAULT_CURRENCY = "EUR"
BASES = ("greater", "requested", "used")
_PLACES = Decimal("1e-9")
#: Of a line: sums of a million lines have as many digits as decimals here are exact to.
MOST_AMOUNT = 10**12
_RATES = (("cpu_hour", "cpuHour"), ("memory_gib_hour", "memoryGiBHour"), ("egress_gib", "egressGiB"), ("energy_kwh", "energyKWh"))


@dataclass(frozen=True, slots=True)
class Price:
    """Per core-hour, GiB-hour, GiB out of the site, and kWh. ``basis``: whether what was requested, what was used, or the greater
    of both is paid for. ``source`` says whose it is."""

    currency: str
    cpu_hour: Decimal
    memory_gib_hour: Decimal
    egress_gib: Decimal
    energy_kwh: Decimal
    basis: str
    source: str

    def said(self) -> dict[str, str]:
        rates = {key: plain(getattr(self, attribute)) for attribute, key in _RATES}
        return {"currency": self.currency, **rates, "basis": self.basis, "source": self.source}


@dataclass(frozen=True, slots=True)
class Use:
    """Of one pod in one period. ``egress_bytes`` is ``None`` where it was not measured: nothing is charged for it."""

    cpu_microseconds: int
    requested_cpu_microseconds: int
    memory_mib_seconds: int
    requested_memory_mib_seconds: int
    egress_bytes: int | None
    energy_millijoules: int


def price_of(stated: Mapping[str, Any], basis: str, source: str) -> Price:
    """From the fields of a tariff or a site's price. Raises ``ValueError`` naming the field."""
    rates = {attribute: decimal(stated.get(key) or 0, key) for attribute, key in _RATES}
    return Price(str(stated.get("currency") or DEFAULT_CURRENCY), basis=basis, source=source, **rates)


def agreed(tariffs: Iterable[Obj], cluster: Obj, consumer: str, when: float) -> Price | None:
    """The price for ``consumer`` at a site at a time; ``None`` where nobody has stated one. Of several tariffs the one that names
    the consumer wins, then the one that selects sites, then the first by name. Raises ``ValueError``."""
    spec = cluster.get("spec") or {}
    fitting = []
    for tariff in tariffs:
        terms = tariff.get("spec") or {}
        if str(terms.get("provider") or "") != str(spec.get("owner") or ""):
            continue
        if terms.get("consumer") and terms["consumer"] != consumer:
            continue
        selector = terms.get("clusterSelector")
        if selector is not None and not label_selector(selector)(labels(cluster)):
            continue
        if terms.get("validFrom") and when < parse_time(str(terms["validFrom"])):
            continue
        if terms.get("validUntil") and when >= parse_time(str(terms["validUntil"])):
            continue
        fitting.append((not terms.get("consumer"), selector is None, name(tariff), terms))
    if fitting:
        _, _, named, terms = min(fitting, key=lambda found: found[:3])
        return price_of(terms, str(terms.get("basis") or BASES[0]), f"Tariff {named}")
    if spec.get("price"):
        return price_of(spec["price"], BASES[0], f"price of site {name(cluster)}")
    return None


def used(line: Mapping[str, Any]) -> Use:
    """What a line of the ledger says was used."""
    present = line["presentMilliseconds"]
    return Use(
        cpu_microseconds=line["cpuMicroseconds"],
        requested_cpu_microseconds=line["requestedMillis"] * present,
        memory_mib_seconds=line["memoryMiBSeconds"],
        requested_memory_mib_seconds=line["requestedMiB"] * present // 1000,
        egress_bytes=line["networkBytes"],
        energy_millijoules=line["energyMillijoules"],
    )


def charges(price: Price, use: Use) -> list[tuple[str, Decimal, Decimal]]:
    """(What is paid for, how much of it, the price of one), by the names of the rates; what costs nothing is left out."""
    cpu, memory = use.cpu_microseconds, use.memory_mib_seconds
    if price.basis == "requested":
        cpu, memory = use.requested_cpu_microseconds, use.requested_memory_mib_seconds
    elif price.basis == "greater":
        cpu, memory = max(cpu, use.requested_cpu_microseconds), max(memory, use.requested_memory_mib_seconds)
    found = [
        ("cpuHour", Decimal(cpu) / 3_600_000_000, price.cpu_hour),
        ("memoryGiBHour", Decimal(memory) / (1024 * 3600), price.memory_gib_hour),
        ("egressGiB", Decimal(use.egress_bytes or 0) / 2**30, price.egress_gib),
        ("energyKWh", Decimal(use.energy_millijoules) / 3_600_000_000, price.energy_kwh),
    ]
    return [each for each in found if each[2]]


def amount(price: Price, use: Use) -> Decimal:
    """What a line costs. Raises ``ValueError`` where that is absurd."""
    total = sum((quantity * unit for _, quantity, unit in charges(price, use)), Decimal(0))
    if total > MOST_AMOUNT:
        raise ValueError(f"one pod costs more than {MOST_AMOUNT} {price.currency} in one period, by {price.source}: lower that")
    return total.quantize(_PLACES, ROUND_HALF_EVEN)
