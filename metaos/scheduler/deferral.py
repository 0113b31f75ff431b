"""When deferrable work runs: start, pause, resume, how wide, and on which capacity, along a forecast. Pure, many jobs at once.

The rule for one job: an hour is used if it is cheaper than the hour that it displaces. With ``r`` hours of work and ``w`` hours
that it may still wait, that is the r-th cheapest of the r + w - 1 hours that follow. Where the length is not known, it is what
:mod:`metaos.scheduler.survival` finds over the lengths of earlier ones, given that it has run so long already.
Waiting is a budget that only shrinks, so deadlines hold whatever the length turns out to be: with none left a job runs.

Units: hours, CPUs, gCO2eq/kWh; money in shares of the on-demand price.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

WAITS, RESERVED, SPOT, ON_DEMAND = 0, 1, 2, 3
KINDS = ("waits", "reserved", "spot", "on-demand")
#: Steps of a plan of what takes nobody knows how long.
STEP_HOURS = 0.25


def _checked(forecast: Sequence[float] | Floats) -> Floats:
    import numpy as np

    found = np.asarray(forecast, dtype=float)
    if found.ndim != 1 or not len(found):
        raise ValueError("a forecast has at least the current hour; without any, jobs start when they come")
    bad = np.flatnonzero(~np.isfinite(found) | (found < 0))
    if len(bad):
        raise ValueError(
            f"forecast hour {bad[0]}: {found[bad[0]]!r} must be a finite number of at least 0: leave it out or fill the gap"
        )
    return found


class Prices:
    """A forecast seen from now: the k-th lowest of the next n hours, for all k and n. The last known hour goes on at its end."""

    def __init__(self, forecast: Sequence[float] | Floats, hours: int = 120) -> None:
        import numpy as np

        from metaos.scheduler.along import extended

        found = _checked(forecast)
        self.known = len(found)
        self.now = float(found[0])
        self.hours = extended(found, hours + 1)
        self.count = hours
        self._lowest = np.full((hours + 1, hours + 1), np.inf)
        for n in range(1, hours + 1):
            self._lowest[n, 1 : n + 1] = np.sort(self.hours[1 : n + 1])
        self._lowest[:, 0] = 0.0

    def displaced(self, left: Floats, slack: Floats, passed: float = 0.0) -> Floats:
        """The price of the hour that running now saves, for jobs with so much work left and so long to wait. ``passed``:
        the share of the current hour that is over."""
        import numpy as np

        until = np.clip(left + slack - (1 - passed), 0.0, self.count - 1e-6)
        whole = np.floor(until + 1e-9).astype(int)
        part = until - whole
        # The last hour of the window counts as far as it lies within.
        last = np.where(part > 1e-9, self.hours[np.minimum(whole + 1, self.count)], np.inf)
        without = np.clip(np.ceil(left - 1e-9), 1, self.count).astype(int)
        beside = np.clip(np.ceil(left - np.maximum(part, 0.0) - 1e-9), 0, self.count).astype(int)
        found: Floats = np.maximum(self._lowest[whole, beside], np.minimum(self._lowest[whole, without], last))
        return found


@dataclass(frozen=True, slots=True)
class Weights:
    """``money``: grams per kWh that one on-demand CPU hour saved is worth. ``patience``: how much cheaper than the hour that it
    displaces the current one has to be before a job pays for it; more waits longer for reserved capacity."""

    money: float = 0.0
    patience: float = 0.0


def assign(
    now_price: float,
    cpus: Floats,
    value: Floats,
    must: Bools,
    paid: Floats,
    spot: Bools,
    held: NDArray[np.int8],
    reserved: float,
    weights: Weights,
    on_demand: float = math.inf,
) -> NDArray[np.int8]:
    """The kind of capacity for each job now. ``value``: what the hour displaces; ``must``: no slack is left, or it cannot be
    paused and runs; ``paid``: what an hour costs it elsewhere than on reserved capacity; ``spot``: whether that is spot;
    ``held``: the kind it has now; it keeps that among equals. ``on_demand``: CPUs that may be used beyond what is reserved.

    What runs anyway gets reserved capacity first, the dearest elsewhere before the others; then what would rather wait, as
    long as the money saved is worth the carbon.
    """
    import numpy as np

    gain = value - now_price
    runs = must | (gain > weights.patience) | ((gain >= 0) & (weights.patience <= 0))
    kinds = np.zeros(len(cpus), dtype=np.int8)
    key = weights.money * paid + np.where(runs, 1e6 * (1 + paid), gain)
    key = key + np.where(held == RESERVED, 1e-3, 0.0)
    free = reserved
    # Those that must run and those that are worth it; ties by position, so the same input gives the same answer.
    order = np.argsort(-key, kind="stable")
    order = order[(runs | (key > 0))[order]]
    for index in order.tolist():
        if free < 1e-9:
            break
        if cpus[index] <= free + 1e-9:
            kinds[index] = RESERVED
            free -= cpus[index]
    rest = runs & (kinds == WAITS)
    kinds[rest & spot] = SPOT
    dear = np.flatnonzero(rest & ~spot)
    if math.isfinite(on_demand):
        left = on_demand
        for index in dear[np.argsort(~must[dear], kind="stable")].tolist():
            if cpus[index] <= left + 1e-9:
                kinds[index] = ON_DEMAND
                left -= cpus[index]
    else:
        kinds[dear] = ON_DEMAND
    return kinds


# -- one job, as people read it -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deferrable:
    """One job. ``slack``: hours that it may still wait. ``lengths``: hours of work that may be left at the least width, equally
    likely; one where it is known, none where nothing is. ``widths``: least and most; twice the width does twice the work.
    ``unit``: of the forecast, for people."""

    slack: float
    lengths: tuple[float, ...] = ()
    suspendable: bool = False
    widths: tuple[int, int] = (1, 1)
    watts: float = 0.0
    unit: str = "gCO2eq/kWh"


@dataclass(frozen=True, slots=True)
class Schedule:
    """``runs``: (first hour, hours, width) from now; only the first is decided, the others are what is expected. ``grams`` and
    ``grams_now``: expected emissions this way, and started now."""

    runs: tuple[tuple[float, float, int], ...]
    grams: float
    grams_now: float
    reason: str
    intensity: float = 0.0
    intensity_now: float = 0.0

    @property
    def start(self) -> float:
        return self.runs[0][0]

    @property
    def saved(self) -> float:
        return self.grams_now - self.grams


def schedule(
    job: Deferrable, forecast: Sequence[float] | Floats, *, passed: float = 0.0, least: float = 0.01, known: int | None = None
) -> Schedule:
    """When one job runs. Whole hours after the current one, of which the share ``passed`` is over. Waiting has to save the share
    ``least``: less is not worth it, and would flap. ``known``: hours of it that were forecast, where the rest is made up."""
    if not math.isfinite(job.slack):
        raise ValueError(f"slack {job.slack!r} must be a finite number of hours")
    import numpy as np

    from metaos.scheduler.along import LEAST_HOURS, MOST_HOURS, Work, extended, plans

    found, narrow = _checked(forecast), job.widths[0]
    lengths = tuple(max(LEAST_HOURS, length) for length in job.lengths) or (1.0,)
    work = Work(lengths, max(0.0, job.slack), job.suspendable, job.widths[1] / narrow, least, STEP_HOURS)
    plan = plans(extended(found, MOST_HOURS + 1)[None, :], np.array([passed]), work)
    start, mean, direct = float(plan.start[0]), float(plan.mean[0]), float(plan.direct[0])
    if job.suspendable and len(lengths) == 1 and mean < direct:
        runs = _pieces(plan.hours[0] * lengths[0] * narrow, passed, lengths[0] + work.slack, job.widths)
    elif job.suspendable and len(lengths) > 1:
        # What is worth its price is done as wide as may be; what has to run, as narrow.
        width = job.widths[int(start > 0 or float(found[0]) <= float(plan.worth[0]))]
        runs = ((start, plan.expected * narrow / width, width),)
    else:
        runs = ((start, plan.expected, narrow),)
    why = _reason(job, len(found) if known is None else known, runs, mean, direct)
    scale = job.watts / 1000 * narrow * plan.expected
    return Schedule(runs, mean * scale, direct * scale, why, mean, direct)


def _reason(job: Deferrable, known: int, runs: tuple[tuple[float, float, int], ...], then: float, now: float) -> str:
    guessed = "" if job.lengths else "; its length is not known yet, so the hour after its start counts"
    ends = "" if known > job.slack else f"; the forecast ends in {known} h, after that days repeat"
    if job.slack <= 0:
        return "no time is left to wait"
    if runs[0][0] <= 0 and len(runs) == 1:
        return f"no later start within {job.slack:.3g} h saves enough: {figure(now)} {job.unit} now{guessed}{ends}"
    pauses = f" in {len(runs)} parts" if len(runs) > 1 else ""
    return f"{figure(then)} {job.unit} then{pauses}, {figure(now)} started at once{guessed}{ends}"


def figure(value: float) -> str:
    """For people: three digits of what is small."""
    return f"{value:.0f}" if value >= 10 or not value else f"{value:.3g}"


def _pieces(work: Floats, passed: float, window: float, widths: tuple[int, int]) -> tuple[tuple[float, float, int], ...]:
    """Runs that do so much work (pods times hours) in each hour of the window: where there is little to do, with fewer pods."""
    merged: list[tuple[float, float, int]] = []
    for hour, left in enumerate(work.tolist()):
        if left <= 1e-9:
            continue
        start = max(0.0, hour - passed)
        hours = min(hour + 1.0 - passed, window) - start
        width = min(widths[1], max(widths[0], math.ceil(left / hours - 1e-9)))
        hours = left / width
        if merged and merged[-1][2] == width and abs(sum(merged[-1][:2]) - start) < 1e-9:
            merged[-1] = merged[-1][0], merged[-1][1] + hours, width
        else:
            merged.append((start, hours, width))
    return tuple(merged)
