"""What a Budget comes to: used this month, to come by its end, and whether new work is refused. Pure.

Used is what the ledger has booked; to come is what is placed now, by the rates that the decision was made on, until the month's
end. A figure that nobody knows limits nothing, and is said to be unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from metaos.resources.meta import Obj

HOUR = 3600.0
USUAL_WARNING = 80


def month(now: float) -> tuple[str, float, float]:
    """``YYYY-MM`` of a time, when it begins, and when the next one does (seconds since the epoch, UTC)."""
    at = datetime.fromtimestamp(now, UTC)
    start = datetime(at.year, at.month, 1, tzinfo=UTC)
    following = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
    return f"{at.year:04}-{at.month:02}", start.timestamp(), following.timestamp()


@dataclass(frozen=True, slots=True)
class Rates:
    """Per hour, of what is placed: gCO2eq, and money of the sites' scores (EUR). ``None``: no site states it."""

    grams: float | None = None
    cost: float | None = None


def rates(placements: Iterable[Obj]) -> Rates:
    """The sum over Placements of what their sites were scored by: power times intensity, and price."""
    grams, cost = [], []
    for placement in placements:
        chosen = {c["name"]: int(c.get("replicas") or 0) for c in (placement.get("spec") or {}).get("clusters") or ()}
        whole = sum(chosen.values())
        for score in (placement.get("status") or {}).get("scores") or ():
            here = chosen.get(score.get("cluster"))
            if here is None:
                continue
            # Terms are of all replicas at one site; what has no replicas (a DaemonSet) is all there.
            share = here / whole if whole else 1.0
            terms = {t.get("name"): _number(t.get("value")) for t in score.get("terms") or ()}
            watts, intensity, price = terms.get("energy"), terms.get("carbon"), terms.get("cost")
            if watts is not None and intensity is not None:
                grams.append(share * watts / 1000 * intensity)
            if price is not None:
                cost.append(share * price)
    return Rates(sum(grams) if grams else None, sum(cost) if cost else None)


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if fits else None


def used(groups: Sequence[Mapping[str, Any]], basis: str) -> tuple[float | None, dict[str, float]]:
    """gCO2eq of operation and hardware, and money by currency, of a statement's groups."""
    grams, cost = None, dict[str, float]()
    for group in groups:
        for part in ((group.get("operationalGrams") or {}).get(basis), group.get("embodiedGrams")):
            if part is not None:
                grams = (grams or 0.0) + float(part)
        for currency, amount in (group.get("cost") or {}).items():
            cost[currency] = cost.get(currency, 0.0) + float(amount)
    return grams, cost


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit: amounts in ``unit``."""

    unit: str
    limit: float
    used: float | None
    projected: float | None

    @property
    def exhausted(self) -> bool:
        return self.used is not None and self.used >= self.limit

    def near(self, percent: float) -> bool:
        edge = self.limit * percent / 100
        return any(each is not None and each >= edge for each in (self.used, self.projected))

    def said(self) -> str:
        at = "nothing is known of what was used" if self.used is None else f"{self.used:.6g} used"
        ahead = "" if self.projected is None else f", {self.projected:.6g} by the end of the month at this rate"
        return f"{self.unit}: {at} of {self.limit:.6g}{ahead}"


def standings(spec: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], rate: Rates, now: float) -> list[Standing]:
    """Of the limits that a Budget states, now."""
    hours = max(0.0, month(now)[2] - now) / HOUR
    grams, cost = used(groups, str(spec.get("basis") or "location"))
    found = []
    if spec.get("grams") is not None:
        found.append(Standing("gCO2eq", float(spec["grams"]), grams, _ahead(grams, rate.grams, hours)))
    if spec.get("cost"):
        currency = str(spec["cost"]["currency"])
        money = cost.get(currency)
        # Scores are in EUR, whatever the ledger has.
        coming = rate.cost if currency == "EUR" else None
        found.append(Standing(currency, float(spec["cost"]["amount"]), money, _ahead(money, coming, hours)))
    return found


def _ahead(so_far: float | None, rate: float | None, hours: float) -> float | None:
    return None if rate is None else (so_far or 0.0) + rate * hours


def conditions(found: Sequence[Standing], percent: float) -> list[tuple[str, str, str, str]]:
    """(Type, status, reason, message) of Exhausted and NearLimit."""
    over = [each for each in found if each.exhausted]
    near = [each for each in found if each.near(percent)]
    whole = "; ".join(each.said() for each in found)
    exhausted = ("Exhausted", "True", "LimitReached", "; ".join(e.said() for e in over)) if over else None
    warned = ("NearLimit", "True", "Warning", "; ".join(e.said() for e in near)) if near else None
    return [
        exhausted or ("Exhausted", "False", "BelowLimit", whole),
        warned or ("NearLimit", "False", "BelowWarning", whole),
    ]


def refusal(budgets: Iterable[Obj]) -> tuple[str, list[str]]:
    """Why new work is refused in a namespace with these Budgets (empty where it is not), and what to warn of."""
    warnings = []
    for budget in sorted(budgets, key=lambda b: str(b["metadata"]["name"])):
        held = {c.get("type"): c for c in (budget.get("status") or {}).get("conditions") or ()}
        named = budget["metadata"]["name"]
        if (held.get("Exhausted") or {}).get("status") == "True":
            remedy = "wait for the next month, remove work, or have the limit raised"
            return f"exceeded budget: {named}, {held['Exhausted'].get('message')}; {remedy}", []
        if (held.get("NearLimit") or {}).get("status") == "True":
            warnings.append(f"budget {named} is near its limit: {held['NearLimit'].get('message')}")
    return "", warnings


def asks_for_more(obj: Obj, old: Obj | None) -> bool:
    """Whether a workload is new, has more replicas than before, or no longer waits."""
    if old is None:
        return True
    now, before = obj.get("spec") or {}, old.get("spec") or {}
    for key in ("replicas", "parallelism", "completions"):
        if int(now.get(key) or 0) > int(before.get(key) or 0):
            return True
    return bool(before.get("suspend")) and not now.get("suspend")
