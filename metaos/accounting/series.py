"""Sums over time, for pictures: energy, carbon and money of the largest groups, in a bounded number of steps. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from metaos.accounting.footprint import plain
from metaos.accounting.statement import Line, keys
from metaos.resources.meta import format_time

STEPS = 60
#: Groups that are told apart, those that used most energy; the others are one.
MOST_GROUPS = 8
#: Groups times steps that are held. What comes beyond is counted with the others, also of a group that is told apart.
MOST_POINTS = 60_000
OTHERS = ("(others)",)


@dataclass(slots=True)
class _Point:
    """``micrograms``: operational and embodied, location-based; of what is known of them."""

    millijoules: int = 0
    micrograms: int = 0
    known: bool = False
    cost: dict[str, Decimal] = field(default_factory=dict)

    def add(self, other: _Point) -> None:
        self.millijoules += other.millijoules
        self.micrograms += other.micrograms
        self.known = self.known or other.known
        for currency, amount in other.cost.items():
            self.cost[currency] = self.cost.get(currency, Decimal(0)) + amount

    def said(self) -> dict[str, Any]:
        return {
            "energyKWh": plain((Decimal(self.millijoules) / 3_600_000_000).quantize(Decimal("1e-9"))),
            "grams": plain(Decimal(self.micrograms) / 1_000_000) if self.known else None,
            "cost": {currency: plain(amount) for currency, amount in sorted(self.cost.items())},
        }


class Series:
    """From ``since`` to ``until``, in steps of whole minutes, five at least."""

    def __init__(self, by: str, since: int, until: int) -> None:
        self._by = by
        self.step = max(300, -(-max(1, until - since) // STEPS // 60) * 60)
        self._since = since // self.step * self.step
        self._found: dict[int, dict[tuple[str, ...], _Point]] = {}
        self._energy: dict[tuple[str, ...], int] = {}
        self._points = 0

    def add(self, header: Mapping[str, Any], lines: Iterable[Line]) -> None:
        at = max(0, (header["end"] - 1 - self._since) // self.step)
        step = self._found.setdefault(at, {})
        for line in lines:
            parts = [line["operationalMicrograms"].get("location"), line["embodiedMicrograms"]]
            cost = line.get("cost")
            point = _Point(
                line["energyMillijoules"],
                sum(part for part in parts if part is not None),
                parts[0] is not None,
                {cost["currency"]: Decimal(cost["amount"])} if cost else {},
            )
            for key in keys(self._by, header, line):
                self._energy[key] = self._energy.get(key, 0) + point.millijoules
                where = key if key in step or self._points < MOST_POINTS else OTHERS
                self._points += where not in step
                step.setdefault(where, _Point()).add(point)

    def said(self) -> list[dict[str, Any]]:
        """Steps in which something was used, each with its groups."""
        largest = set(sorted(self._energy, key=lambda key: (-self._energy[key], key))[:MOST_GROUPS])
        found = []
        for at in sorted(at for at, points in self._found.items() if points):
            groups: dict[tuple[str, ...], _Point] = {}
            for key, point in self._found[at].items():
                groups.setdefault(key if key in largest else OTHERS, _Point()).add(point)
            start = self._since + at * self.step
            told = [{"key": list(key), **point.said()} for key, point in sorted(groups.items())]
            found.append({"start": format_time(start), "end": format_time(start + self.step), "groups": told})
        return found
