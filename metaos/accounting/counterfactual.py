"""Saved against what: what the work in the ledger would have emitted elsewhere, and what it did. Pure.

The method, which every answer states: the CPU time of each line, above idle, by the linear power model, the building (PUE) and
the location-based intensity that the ledger has of a site for that time; the same for the site where it was and for the one that
it is held against. Both by the model, so that a measured figure is not held against a modelled one. Left out: idle power and
hardware (the machines are there either way), the network, and whether it would have fitted or been allowed there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from metaos.accounting.booking import Elsewhere, same_work
from metaos.accounting.footprint import plain
from metaos.accounting.metering import PowerModel
from metaos.accounting.statement import Line, keys

AVERAGE, LOCAL = "average", "everything-local"
#: Periods of sites that are held for one answer.
MAX_PERIODS = 200_000
METHOD = (
    "CPU time above idle by the sites' linear power models, PUE and location-based intensities at that time, both here and "
    "there; without idle power, hardware, network, and whether it would have fitted"
)


def described(against: str) -> str:
    if against == AVERAGE:
        return f"the mean of all sites that reported at that time: {METHOD}"
    if against == LOCAL:
        return f"the mean of the sites of whoever pays for the workload, without the continuum: {METHOD}"
    return f"all of it at {against}: {METHOD}"


@dataclass(slots=True)
class Compared:
    """Micrograms, by the same model. ``unknown``: lines of which one side is not known; in neither sum."""

    here: int = 0
    there: int = 0
    lines: int = 0
    unknown: int = 0

    def said(self) -> dict[str, Any]:
        known = self.lines > self.unknown
        grams = {"grams": self.here, "elsewhereGrams": self.there, "savedGrams": self.there - self.here}
        return {
            **{key: plain(Decimal(value) / 1_000_000) if known else None for key, value in grams.items()},
            "unknownLines": self.unknown,
        }


class Sites:
    """What the ledger has of each site over time."""

    def __init__(self) -> None:
        self._periods: dict[str, list[tuple[int, int, Elsewhere | None]]] = {}
        self._owners: dict[str, set[str]] = {}
        self._count = 0

    def add(self, header: Mapping[str, Any]) -> None:
        """Raises ``ValueError`` when there are too many. Of one site in the order of time, as they are booked."""
        self._count += 1
        if self._count > MAX_PERIODS:
            raise ValueError(f"more than {MAX_PERIODS} periods of sites: ask for a shorter time")
        self._periods.setdefault(header["site"], []).append((header["start"], header["end"], elsewhere(header)))
        self._owners.setdefault(header["provider"], set()).add(header["site"])

    def at(self, site: str, time: float) -> Elsewhere | None:
        found = self._periods.get(site) or []
        index = bisect_right(found, time, key=lambda each: each[0]) - 1
        return found[index][2] if index >= 0 and time < found[index][1] else None

    def candidates(self, against: str, line: Line) -> Sequence[str]:
        """Sites that a line is held against. Raises ``ValueError`` for one that never reported."""
        if against == AVERAGE:
            return sorted(self._periods)
        if against == LOCAL:
            return sorted(self._owners.get(line["consumer"], ()))
        if against not in self._periods:
            known = ", ".join(sorted(self._periods)[:20]) or "none"
            raise ValueError(f"no period of site {against!r} is booked in that time: there are {known}")
        return [against]


def elsewhere(header: Mapping[str, Any]) -> Elsewhere | None:
    """``None`` where the site states no power model, or its intensity is not known."""
    watts, located = header.get("watts"), header["factors"].get("location")
    if watts is None or located is None or not header["cpuMillis"]:
        return None
    model = PowerModel(float(watts["idle"]), float(watts["max"]), header["cpuMillis"] / 1000)
    return Elsewhere(model, Decimal(header["pue"]), Decimal(located["gramsPerKWh"]))


class Comparison:
    """Adds lines up by group; all headers must be in ``sites`` before."""

    def __init__(self, by: str, against: str, sites: Sites) -> None:
        self._by, self._against, self._sites = by, against, sites
        self.found: dict[tuple[str, ...], Compared] = {}

    def add(self, header: Mapping[str, Any], lines: Sequence[Line]) -> None:
        middle = (header["start"] + header["end"]) / 2
        own = _of_work(own_site) if (own_site := elsewhere(header)) is not None else None
        means: dict[tuple[str, ...], Decimal | None] = {}
        for line in lines:
            sites = tuple(self._sites.candidates(self._against, line))
            if sites not in means:
                found = [_of_work(each) for site in sites if (each := self._sites.at(site, middle)) is not None]
                means[sites] = sum(found, Decimal(0)) / len(found) if found else None
            there = means[sites]
            for key in keys(self._by, header, line):
                total = self.found.setdefault(key, Compared())
                total.lines += 1
                if own is None or there is None:
                    total.unknown += 1
                    continue
                total.here += round(line["cpuMicroseconds"] * own)
                total.there += round(line["cpuMicroseconds"] * there)


def _of_work(site: Elsewhere) -> Decimal:
    """Micrograms for a microsecond of CPU time."""
    return Decimal(same_work(_WORK, site)) / _WORK


#: CPU microseconds from which that is worked out: a million core-seconds.
_WORK = 10**12
