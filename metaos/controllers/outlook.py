"""What a site's status and spec say of the hours to come: carbon intensity and prices, how old and how good they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metaos.resources.meta import Obj, parse_time
from metaos.resources.reading import cluster_info
from metaos.resources.snapshot import ClusterInfo
from metaos.scheduler.capacity import blended, margin
from metaos.scheduler.slack import CARBON, COST

HOUR_SECONDS = 3600.0
#: A Job is held for so long after its time at most, whatever is wrong.
LATE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Ahead:
    """``values``: from the current hour on. ``passed``: the share of it that is over. ``hour``: seconds that an hour takes.
    ``known``: whether it says anything of the hours to come."""

    aim: str
    values: list[float]
    passed: float
    hour: float
    source: str
    unit: str
    known: bool
    time: str = ""
    step: str = ""
    error: float | None = None

    def as_data(self) -> dict[str, Any]:
        """For a decision that it took part in."""
        found: dict[str, Any] = {"of": self.aim, "source": self.source, "hours": len(self.values) if self.known else 0}
        if self.time:
            found["time"] = self.time
        if self.step:
            found["step"] = self.step
        if self.error is not None:
            found["errorPercent"] = round(self.error * 100, 1)
            found["countsPercent"] = round(margin(self.error) * 100, 1)
        return found


def _ahead(aim: str, figures: Mapping[str, Any], now: float, first: str, unit: str) -> Ahead:
    """Hours that have passed since the forecast was made are left out; none is left of one that is too old."""
    source, hour = str(figures.get("source") or "no source"), float(figures.get("hourSeconds") or HOUR_SECONDS)
    if not (math.isfinite(hour) and hour > 0):
        raise ValueError(f"the site's status says that an hour takes {hour!r} s: it has to be a positive number")
    said = [float(v) for v in figures.get("forecast") or ()]
    if bad := [v for v in said if not math.isfinite(v)]:
        raise ValueError(f"the site's forecast of {aim} has a value that is no number ({bad[0]}): see its source, {source}")
    # Some sources count what a load displaces, which may be less than nothing.
    values = [max(0.0, v) for v in said]
    time, step = str(figures.get("time") or ""), str(figures.get("step") or "")
    error = figures.get("error")
    if len(values) < 2 or not time:
        now_only = [max(0.0, float(figures.get(first) or 0.0))]
        return Ahead(aim, now_only, 0.0, hour, source, unit, False, time, step)
    # A clock that was set back makes no forecast younger than new.
    age = max(0.0, now - parse_time(time)) / hour
    if age >= 1:
        source += f", {age:.0f} h old"
    values = values[math.floor(age) :]
    if not values:
        return Ahead(aim, [0.0], 0.0, hour, source, unit, False, time, step)
    return Ahead(aim, values, age % 1.0, hour, source, unit, True, time, step, None if error is None else float(error))


def ahead(cluster: Obj, now: float) -> Ahead:
    """gCO2eq/kWh. Raises ``ValueError`` where the site's status makes no sense."""
    return _ahead(CARBON, (cluster.get("status") or {}).get("carbon") or {}, now, "intensity", "gCO2eq/kWh")


def prices_ahead(cluster: Obj, now: float) -> Ahead:
    """Per CPU and hour. What the owner states holds where no source says more."""
    stated = (cluster.get("spec") or {}).get("price") or {}
    figures = (cluster.get("status") or {}).get("price") or {}
    unit = f"{stated.get('currency') or 'EUR'} a CPU hour"
    if not figures.get("forecast"):
        what = {"source": "the site's price list" if stated.get("cpuHour") is not None else "no price"}
        figures = what | {"cpuHour": stated.get("cpuHour")}
    return _ahead(COST, figures, now, "cpuHour", unit)


def in_its_currency(cluster: Obj) -> ClusterInfo:
    """A site with prices as it states them, whatever they are worth elsewhere."""
    spec = cluster.get("spec") or {}
    price = {key: found for key, found in (spec.get("price") or {}).items() if key != "currency"}
    return cluster_info(cluster | {"spec": spec | {"price": price}})


def unit_of(known: list[Ahead]) -> str:
    """Of what is to be low."""
    return known[0].unit if len(known) == 1 else "of 100 (carbon and cost in equal parts, 100 is an hour like any)"


def index(known: list[Ahead]) -> list[float]:
    """The series that is to be low, of on-demand capacity; later hours count as more, by how wrong such forecasts were."""
    # With numpy, which a hub loads with its first decision.
    from metaos.scheduler.along import cautious, extended

    each = [cautious(extended(found.values, len(found.values)), found.error).tolist() for found in known]
    return each[0] if len(each) == 1 else blended(*each)
