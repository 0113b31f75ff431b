"""Deferrable jobs by GAIA's rules: carbon and cost against its policies, with and without known run times and good forecasts.

The rules (W. A. Hanafy et al., "Going Green for Less Green", ASPLOS 2024, and github.com/umassos/GAIA, MIT): jobs shorter than
2 h may wait 6 h in all, others 24 h; pausing is free; on-demand costs 1, spot 0.2 and only for jobs up to 2 h, reserved capacity
0.4 times its size times the horizon, used or not; carbon from hour 7000 of 2022; 100 % is all on-demand, without waiting. GAIA's
policies are implemented here and run beside ours. Without the data (NEMO_DATA, or ../shared/data) nothing runs, and it says so.
"""

from __future__ import annotations

import csv
import gzip
import heapq
import io
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.results import Figure, figure, write
from metaos.accounting.forecast import believed
from metaos.scheduler.along import cautious
from metaos.scheduler.deferral import RESERVED, WAITS, Prices, Weights, assign
from metaos.scheduler.survival import Survival, averages, stop

START_HOUR = 7000
SHORT_HOURS, SHORT_WAIT, LONG_WAIT = 2.0, 6.0, 24.0
SPOT_PRICE, RESERVED_PRICE = 0.2, 0.4
FRONT = ((59.0, 13.8), (71.0, 14.6), (86.0, 27.5), (95.0, 45.4))
#: What GAIA's own notebook prints for pai_1k and AU-SA: (cost %, carbon %), to check that its policies are implemented right.
PUBLISHED = {
    "Lowest-Slot": (100.0, 78.0037),
    "Lowest-Window": (100.0, 68.3704),
    "Carbon-Time": (100.0, 72.4888),
    "Ecovisor": (100.0, 63.9105),
    "Wait-AWhile": (100.0, 60.7509),
    "RES-First Carbon-Time, 9 reserved": (71.3683, 85.4406),
    "Spot-First Carbon-Time": (85.8983, 72.4888),
    "Spot-RES Carbon-Time, 9 reserved": (58.9779, 86.1710),
    "Spot-RES Carbon-Time, 6 reserved": (66.6424, 81.2171),
}
UNIT = 5 / 3600  # GAIA's step, in hours


def data() -> Path | None:
    """Where the data lies."""
    place = Path(os.environ.get("NEMO_DATA") or Path(__file__).resolve().parents[2] / "shared/data")
    return place if (place / "jobs").is_dir() else None


def table(path: Path) -> tuple[list[str], np.ndarray]:
    """Header and rows. Raises ``ValueError`` naming file, line, field and remedy."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    rows = list(csv.reader(io.StringIO(text)))
    found = np.empty((len(rows) - 1, len(rows[0])))
    for line, cells in enumerate(rows[1:], start=2):
        for column, cell in enumerate(cells):
            try:
                value = float(cell)
            except ValueError:
                value = math.nan
            if not math.isfinite(value) or value < 0:
                field = rows[0][column]
                raise ValueError(
                    f"{path.name}: line {line}, {field}: {cell!r} must be a finite number of at least 0; remove the line"
                )
            found[line - 2, column] = value
    return rows[0], found


@dataclass(frozen=True, slots=True)
class Trace:
    """Jobs in hours. ``slack``: what each may wait."""

    name: str
    arrival: np.ndarray
    length: np.ndarray
    cpus: np.ndarray

    @property
    def slack(self) -> np.ndarray:
        return np.where(self.length < SHORT_HOURS, SHORT_WAIT, LONG_WAIT)


def trace(path: Path, unit: float) -> Trace:
    _, found = table(path)
    # As GAIA does: whole steps of five seconds.
    arrival, length = (np.floor(found[:, i] * unit / UNIT + 1e-9) * UNIT for i in (0, 1))
    return Trace(path.name.partition(".")[0], arrival, length, found[:, 2])


class Carbon:
    """Hourly intensity from an hour on; the year begins again at its end."""

    def __init__(self, values: np.ndarray, hours: int, start: int = START_HOUR) -> None:
        self.hours = np.take(values, np.arange(start, start + hours), mode="wrap")
        self.sums = np.concatenate([[0.0], np.cumsum(self.hours)])

    def until(self, t: np.ndarray) -> np.ndarray:
        """The integral up to a time."""
        whole = np.minimum(np.floor(t + 1e-12).astype(int), len(self.hours) - 1)
        return self.sums[whole] + (t - whole) * self.hours[whole]

    def between(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.until(b) - self.until(a)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Shares of all on-demand without waiting."""

    cost: float
    carbon: float
    late: float = 0.0
    wait: float = 0.0

    @property
    def point(self) -> str:
        return f"{self.cost * 100:6.1f} % cost  {100 - self.carbon * 100:6.1f} % carbon saved  mean wait {self.wait:5.2f} h"


def baseline(jobs: Trace, carbon: Carbon) -> tuple[float, float]:
    """CPU hours and carbon of starting everything at once."""
    return float((jobs.length * jobs.cpus).sum()), float(
        (carbon.between(jobs.arrival, jobs.arrival + jobs.length) * jobs.cpus).sum()
    )


# -- GAIA's policies ------------------------------------------------------------------------------------------


def starts(jobs: Trace, carbon: Carbon, policy: str) -> np.ndarray:
    """When a policy that does not pause starts each job."""
    if policy == "NoWait":
        return jobs.arrival
    short = jobs.length < SHORT_HOURS
    expected = np.where(short, jobs.length[jobs.length <= SHORT_HOURS].mean(), jobs.length[jobs.length >= SHORT_HOURS].mean())
    expected = np.floor(expected / UNIT) * UNIT
    offsets = np.arange(int(LONG_WAIT) + 1.0)
    begin = jobs.arrival[:, None] + offsets[None, :]
    allowed = offsets[None, :] <= jobs.slack[:, None]
    if policy == "Lowest-Slot":
        at = np.concatenate([jobs.arrival[:, None], np.floor(jobs.arrival)[:, None] + 1 + offsets[None, :]], axis=1)
        price = carbon.hours[np.floor(at + 1e-12).astype(int)]
        price[at > (jobs.arrival + jobs.slack)[:, None] + 1e-9] = np.inf
        return np.take_along_axis(at, price.argmin(axis=1)[:, None], axis=1)[:, 0]
    emitted = carbon.between(begin, begin + expected[:, None])
    if policy == "Lowest-Window":
        score = np.where(allowed, emitted, np.inf)
    else:
        score = np.where(allowed, -(emitted[:, :1] - emitted) / (offsets[None, :] + expected[:, None]), np.inf)
    return jobs.arrival + score.argmin(axis=1)


def fixed(jobs: Trace, carbon: Carbon, policy: str, reserved: int, *, spot: bool, eager: bool) -> Outcome:
    """GAIA's cluster: a job runs on what is reserved if all of it fits there at its start; ``eager`` ones start when it does."""
    due = starts(jobs, carbon, policy)
    begun = due.copy()
    on_spot = (jobs.length <= SHORT_HOURS) & spot
    paid = np.where(on_spot, SPOT_PRICE, 1.0)
    if reserved:
        free, waiting, events = float(reserved), [], []
        events = [(t, 0, j) for j, t in enumerate(jobs.arrival)]
        heapq.heapify(events)
        begun_at = np.full(len(due), -1.0)

        def start(j: int, now: float) -> None:
            nonlocal free
            begun_at[j] = now
            if not on_spot[j] and jobs.cpus[j] <= free:
                free -= jobs.cpus[j]
                paid[j] = 0.0
                heapq.heappush(events, (now + jobs.length[j] + UNIT, -1, j))

        while events:
            now, what, j = heapq.heappop(events)
            if what == -1:
                free += jobs.cpus[j]
            elif what == 0 and due[j] > now + 1e-9:
                heapq.heappush(waiting, j)
                heapq.heappush(events, (due[j], 1, j))
            elif begun_at[j] < 0:
                start(j, now)
            if events and events[0][0] <= now + 1e-9:
                continue
            if eager and free > 0:
                kept = []
                while waiting and free > 0:
                    k = heapq.heappop(waiting)
                    if begun_at[k] >= 0:
                        continue
                    if not on_spot[k] and jobs.cpus[k] <= free:
                        start(k, now)
                    else:
                        kept.append(k)
                for k in kept:
                    heapq.heappush(waiting, k)
        begun = begun_at
    hours, grams = baseline(jobs, carbon)
    cost = float((paid * jobs.length * jobs.cpus).sum()) + RESERVED_PRICE * reserved * float(begun.max())
    emitted = float((carbon.between(begun, begun + jobs.length) * jobs.cpus).sum())
    return Outcome(cost / hours, emitted / grams, wait=float((begun - jobs.arrival).mean()))


def paused(jobs: Trace, carbon: Carbon, *, optimal: bool, spot: bool = False) -> Outcome:
    """Wait-AWhile (the cheapest time of the window, length known: no schedule that keeps to the window emits less), or
    Ecovisor's threshold (the 30th percentile of the next day)."""
    emitted = np.zeros(len(jobs.arrival))
    for j, (at, length, slack) in enumerate(zip(jobs.arrival, jobs.length, jobs.slack, strict=True)):
        end = at + length + slack
        edges = np.concatenate([[at], np.arange(math.floor(at) + 1, math.ceil(end)), [end]])
        sizes, price = np.diff(edges), carbon.hours[math.floor(at) : math.floor(at) + len(edges) - 1]
        if optimal:
            order = np.argsort(price, kind="stable")
            took = np.clip(length - np.concatenate([[0.0], np.cumsum(sizes[order])[:-1]]), 0.0, sizes[order])
            emitted[j] = (took * price[order]).sum()
            continue
        day = np.concatenate([[edges[0]], np.arange(math.floor(at) + 1, math.floor(at) + 25), [at + 24]])
        limit = _quantile(carbon.hours[math.floor(at) : math.floor(at) + 25], np.diff(day)[:25], 0.3)
        left, budget = length, slack
        for size, value in zip(sizes, price, strict=True):
            idle = min(size, budget) if value >= limit else 0.0
            ran = min(left, size - idle)
            budget -= idle
            left -= ran
            emitted[j] += ran * value
            if left <= 1e-9:
                break
    hours, grams = baseline(jobs, carbon)
    paid = np.where((jobs.length <= SHORT_HOURS) & spot, SPOT_PRICE, 1.0)
    return Outcome(float((paid * jobs.length * jobs.cpus).sum()) / hours, float((emitted * jobs.cpus).sum()) / grams)


def _quantile(values: np.ndarray, sizes: np.ndarray, share: float) -> float:
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(sizes[order])
    return float(values[order][np.searchsorted(upto, share * upto[-1])])


# -- ours -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """``known``: run times in advance. Otherwise only the queue that the user chose, short or long, as in GAIA."""

    reserved: int
    spot: bool
    weights: Weights
    known: bool
    step: float = 1 / 12
    #: Whether prices are compared at every step, or once an hour and when a job comes.
    fine: bool = True
    #: Hours of a step of the plan, where run times are not known.
    grid: float = 0.25


def ours(jobs: Trace, carbon: Carbon, policy: Policy, view: Callable[[int], np.ndarray] | None = None) -> Outcome:
    """Decides anew every step for all jobs that are there, and knows nothing of those to come. ``view``: what is believed in an
    hour of the five days from it on; without, the truth. Of the current hour the truth is known."""
    step, count = policy.step, len(jobs.arrival)
    arrival, length, cpus, slack = jobs.arrival, jobs.length, jobs.cpus, jobs.slack.astype(float)
    short = length < SHORT_HOURS
    on_spot = (length <= SHORT_HOURS) & policy.spot
    paid = np.where(on_spot, SPOT_PRICE, 1.0)
    left, ran, budget = length.copy(), np.zeros(count), slack.copy()
    value, held = np.full(count, np.nan), np.zeros(count, dtype=np.int8)
    # Earlier lengths by queue: none of this trace is known before it has ended. At first a few that a queue allows stand in.
    ended: tuple[list[float], list[float]] = ([2.5, 4.0, 8.0, 16.0], [0.1, 0.25, 0.5, 1.0])
    grid, fresh_worth = policy.grid, np.zeros(2)
    money = emitted = late = 0.0
    last_start, waited = 0.0, np.zeros(count)
    active = np.empty(0, dtype=int)
    coming, tick, prices = 0, 0, None
    begun = np.zeros(count, dtype=bool)
    while coming < count or len(active):
        now = tick * step
        tick += 1
        hour = math.floor(now + 1e-9)
        if not len(active) and coming < count and arrival[coming] > now + 1:
            tick = max(tick, math.floor(arrival[coming] / step))
        first = coming
        while coming < count and arrival[coming] <= now + 1e-9:
            coming += 1
        if coming > first:
            fresh = np.arange(first, coming)
            budget[fresh] -= now - arrival[fresh]
            waited[fresh] = now - arrival[fresh]
            active = np.concatenate([active, fresh])
        new_hour = prices is None or prices[0] != hour
        if new_hour:
            ahead = (carbon.hours[hour : hour + 121] if view is None else view(hour)).copy()
            ahead[0] = carbon.hours[hour]
            prices = (hour, Prices(ahead))
            if not policy.known:
                going_on = active[ran[active] > 0]
                seen = [Survival(ended[q][-2000:], ran[going_on[short[going_on] == bool(q)]]) for q in (0, 1)]
        if not len(active) and (policy.known or not new_hour):
            continue
        again = new_hour or (policy.fine and (policy.known or tick % round(grid / step) == 0))
        ask = active if again else active[np.isnan(value[active])]
        if not (again or policy.fine or policy.known):
            # What comes within an hour is worth what it would have been worth at its beginning.
            value[ask], ask = fresh_worth[short[ask].astype(int)], ask[:0]
        if len(ask) or (new_hour and not policy.known):
            passed = now - hour
            if policy.known:
                value[ask] = prices[1].displaced(left[ask], budget[ask], passed)
            else:
                for which in (0, 1):
                    of, wait = ask[short[ask] == bool(which)], (LONG_WAIT, SHORT_WAIT)[which]
                    reach = wait + min(seen[which].longest, 96.0)
                    means = averages(prices[1].hours, passed, grid, math.ceil(reach / grid))
                    # One more, that has just come. Those that are alike to half a step are one.
                    had, may = np.append(ran[of], 0.0), np.append(budget[of], wait)
                    alike = np.column_stack([np.round(had / grid * 2) / 2, np.floor(may / grid + 1e-9)]) * grid
                    some, which_of = np.unique(alike, axis=0, return_inverse=True)
                    found = stop(means, seen[which], some[:, 0], some[:, 1], grid).worth[which_of.ravel()]
                    value[of], fresh_worth[which] = found[:-1], found[-1]
        must = budget[active] < step - 1e-9
        kinds = assign(
            carbon.hours[hour],
            cpus[active],
            value[active],
            must,
            paid[active],
            on_spot[active],
            held[active],
            policy.reserved,
            policy.weights,
        )
        going = kinds != WAITS
        runs = active[going]
        took = np.minimum(left[runs], step)
        started = runs[~begun[runs]]
        if len(started):
            last_start = now
            begun[started] = True
        rate = np.where(kinds[going] == RESERVED, 0.0, paid[runs])
        money += float((took * cpus[runs] * rate).sum())
        emitted += float((took * cpus[runs]).sum()) * carbon.hours[hour]
        left[runs] -= took
        ran[runs] += took
        idle = active[~going]
        budget[idle] -= step
        waited[idle] += step
        held[active] = kinds
        done = left[active] <= 1e-9
        if done.any():
            for j in active[done].tolist():
                ended[int(short[j])].append(float(length[j]))
            active = active[~done]
    late = float((waited - slack).max())
    assert late < 1e-6, f"a job waited {late} h longer than it may"
    assert abs(float((ran * cpus).sum()) - float((length * cpus).sum())) < 1e-6 * count, "work was lost"
    hours, grams = baseline(jobs, carbon)
    cost = money + RESERVED_PRICE * policy.reserved * last_start
    return Outcome(cost / hours, emitted / grams, late, float(waited.mean()))


def row(name: str, found: Outcome, beside: Outcome | tuple[float, float] | None = None, aim: float | None = None) -> list[Figure]:
    """Two figures a line: cost and carbon saved, in percent; ``beside`` was run here, or is (cost, carbon) as published."""
    if isinstance(beside, tuple):
        beside = Outcome(beside[0] / 100, beside[1] / 100)
    base = ([], []) if beside is None else ([beside.cost * 100], [100 - beside.carbon * 100])
    return [
        figure(f"{name}: cost", [found.cost * 100], "%", baseline=base[0]),
        figure(f"{name}: carbon saved", [100 - found.carbon * 100], "%", baseline=base[1], aim=aim),
    ]


def gaia(jobs: Trace, carbon: Carbon, reserved: int) -> dict[str, Outcome]:
    """Its policies."""
    time_of = "Carbon-Time"
    found = {
        "Lowest-Slot": fixed(jobs, carbon, "Lowest-Slot", 0, spot=False, eager=False),
        "Lowest-Window": fixed(jobs, carbon, "Lowest-Window", 0, spot=False, eager=False),
        "Carbon-Time": fixed(jobs, carbon, time_of, 0, spot=False, eager=False),
        "Ecovisor": paused(jobs, carbon, optimal=False),
        # The optimum of the rules. GAIA's notebook prints less saved for its own: 39.2 % on its small trace.
        "Wait-AWhile": paused(jobs, carbon, optimal=True),
        f"RES-First Carbon-Time, {reserved} reserved": fixed(jobs, carbon, time_of, reserved, spot=False, eager=True),
        "Spot-First Carbon-Time": fixed(jobs, carbon, time_of, 0, spot=True, eager=False),
        "Spot-First Ecovisor": paused(jobs, carbon, optimal=False, spot=True),
        f"Spot-RES Carbon-Time, {reserved} reserved": fixed(jobs, carbon, time_of, reserved, spot=True, eager=True),
    }
    if reserved == 9:
        found["Spot-RES Carbon-Time, 6 reserved"] = fixed(jobs, carbon, time_of, 6, spot=True, eager=True)
    return found


def informed(jobs: Trace, carbon: Carbon, grid: float = 1 / 12) -> tuple[Outcome, Outcome]:
    """The bound where run times are not known: dynamic programming with the true distribution of the lengths of each queue, which
    nobody has before the trace is over. What it emits on the trace, and what it expects to: no policy that knows the queue alone
    expects less. Capacity plays no part in it."""
    real, expected, plain = np.zeros(len(jobs.arrival)), np.zeros(len(jobs.arrival)), np.zeros(len(jobs.arrival))
    short = jobs.length < SHORT_HOURS
    for members, wait in ((np.flatnonzero(short), SHORT_WAIT), (np.flatnonzero(~short), LONG_WAIT)):
        lengths = jobs.length[members]
        most, runs = round(wait / grid), math.ceil(lengths.max() / grid - 1e-9)
        edges = np.arange(runs + 1) * grid
        alive = np.array([(lengths > e + 1e-9).mean() for e in edges])
        hours = np.array([np.clip(lengths - e, 0, grid).mean() for e in edges[:-1]]) / alive[:-1]
        on = alive[1:] / alive[:-1]
        waited = np.arange(most + 1)
        for some in np.array_split(members, max(1, len(members) // 200)):
            times = jobs.arrival[some][:, None] + np.arange(most + runs + 1)[None, :] * grid
            price = np.diff(carbon.until(times), axis=1) / grid
            cost = np.zeros((len(some), most + 1))
            goes = np.zeros((most + runs, len(some), most + 1), dtype=bool)
            for n in range(most + runs - 1, -1, -1):
                ran = n - waited
                there = np.clip(ran, 0, runs - 1)
                run = price[:, n, None] * hours[there] + on[there] * cost
                later = np.concatenate([cost[:, 1:], np.full((len(some), 1), np.inf)], axis=1)
                goes[n] = run <= later
                cost = np.where(ran >= runs, 0.0, np.minimum(run, later))
            expected[some] = cost[:, 0]
            plain[some] = (price[:, :runs] * hours * alive[:-1]).sum(axis=1)
            left, idle, each = jobs.length[some].copy(), np.zeros(len(some), dtype=int), np.arange(len(some))
            for n in range(most + runs):
                running = (left > 1e-9) & (goes[n, each, idle] | (idle >= most))
                took = np.minimum(left, grid) * running
                real[some] += carbon.between(times[:, n], times[:, n] + took)
                idle += (left > 1e-9) & ~running
                left -= took
    _, grams = baseline(jobs, carbon)
    # Lengths that are drawn anew: CPUs keep their mean.
    return Outcome(1.0, float((real * jobs.cpus).sum()) / grams), Outcome(1.0, float(expected.sum() / plain.sum()))


#: (reserved and spot?, grams per kWh that an on-demand hour saved is worth): from the cheapest to the cleanest.
OURS = ((True, 400.0), (True, 250.0), (True, 100.0), (True, 0.0), (False, 100.0), (False, 0.0))


def compare(jobs: Trace, carbon: Carbon, reserved: int, step: float) -> list[Figure]:
    """GAIA's policies and ours over one trace, and how far each published point is passed."""
    figures, best = [], {}
    for name, found in gaia(jobs, carbon, reserved).items():
        figures += row(f"{jobs.name}, GAIA's {name}", found, PUBLISHED.get(name))
    real, expects = informed(jobs, carbon)
    figures += row(f"{jobs.name}, bound without run times, on the trace", real)
    figures += row(f"{jobs.name}, bound without run times, expected", expects)
    for known in (True, False):
        when = "known" if known else "not known"
        points = []
        for spot, money in OURS:
            found = ours(jobs, carbon, Policy(reserved, spot, Weights(money), known, step if known else 5 * step))
            points.append(found)
            what = f"{reserved} reserved{' and spot' if spot else ''}, {money:g} g an hour"
            figures += row(f"{jobs.name}, ours, {what}, run times {when}", found)
        best[when] = points
    for when, points in best.items():
        for cost, saved in FRONT:
            most = max((100 - f.carbon * 100 for f in points if f.cost * 100 <= cost), default=0.0)
            name = f"most carbon saved at {cost:g} % cost, run times {when}"
            figures.append(figure(name, [most], "%", baseline=[saved], aim=saved))
    return figures


AS_IT_IS, CORRECTED, CAUTIOUS = "taken as it is", "corrected by its past errors", "at the 60 % quantile of its past errors"
HOWS = AS_IT_IS, CORRECTED, CAUTIOUS


def with_errors(place: Path, jobs: Trace) -> list[Figure]:
    """Emissions with wrong forecasts, over zones and start hours: against perfect ones, and against starting at once."""
    figures = []
    kept: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for path in sorted((place / "carbon").glob("forecast-2022-*.csv.gz")):
        header, values = table(path)
        policy = Policy(0, False, Weights(), True, 1 / 6, False)
        for start in range(1000, 8760, 2600):
            carbon = Carbon(values[:, 0], 400, start)
            perfect = ours(jobs, carbon, policy).carbon
            for column in range(1, len(header)):
                for how in HOWS:

                    def view(
                        hour: int, at: int = start, which: int = column, how: str = how, all_of: np.ndarray = values
                    ) -> np.ndarray:
                        said = np.take(all_of[:, which], np.arange(at + hour, at + hour + 121), mode="wrap")
                        past = np.arange(at + hour - 671, at + hour + 1)
                        true, told = (np.take(all_of[:, of], past, mode="wrap") for of in (0, which))
                        if how == CORRECTED:
                            said[1:] = believed(true, told, said[1:])
                        if how == CAUTIOUS:
                            said = cautious(said, float(np.abs(true - told).mean() / true.mean()))
                        return said

                    got = ours(jobs, carbon, policy, view).carbon
                    kept.setdefault((header[column], how), []).append((got, perfect))
    for (error, how), found in kept.items():
        over = [(got / perfect - 1) * 100 for got, perfect in found]
        mean = [float(np.mean(over))]
        figures.append(
            figure(f"forecast error {error} %, {how}: emissions over perfect", mean, "%", aim=3.0 if error == "20" else None)
        )
        against = [100 * float(np.mean([got for got, _ in found]))]
        aim = 100.0 if error == "100" else None
        figures.append(
            figure(f"forecast error {error} %, {how}: against starting at once", against, "%", baseline=[100.0], aim=aim)
        )
    return figures


def over_zones(jobs: Trace, zones: list[str], values: np.ndarray) -> list[Figure]:
    """One trace under the electricity of each zone: the median and the range over them, and a row for each."""
    figures: list[Figure] = []
    saved: dict[str, list[Outcome]] = {}
    for zone, column in zip(zones, values.T, strict=True):
        there = Carbon(column, 720)
        found = {"GAIA": fixed(jobs, there, "Carbon-Time", 9, spot=True, eager=True)}
        found["0 g an hour, run times not known"] = ours(jobs, there, Policy(9, True, Weights(0.0), False, 1 / 12, False, 0.5))
        # What ours comes to where they are known, but for the minute in which it decides.
        found["the optimum with run times known"] = paused(jobs, there, optimal=True)
        for what, outcome in found.items():
            saved.setdefault(what, []).append(outcome)
            figures += row(f"zone {zone}, {what}", outcome)
    for what, outcomes in saved.items():
        theirs = saved["GAIA"]
        name = f"all {len(zones)} zones, Spot-RES 9, {what}"
        kept, least = [100 - o.carbon * 100 for o in outcomes], [100 - o.carbon * 100 for o in theirs]
        figures.append(figure(f"{name}: carbon saved", kept, "%", baseline=least))
        figures.append(figure(f"{name}: cost", [o.cost * 100 for o in outcomes], "%", baseline=[o.cost * 100 for o in theirs]))
    return figures


def large(jobs: Trace, year: Carbon) -> list[Figure]:
    """A trace of a hundred thousand jobs, with as large a share of the mean load reserved as nine CPUs are of the small one's."""
    reserved = round(float((jobs.length * jobs.cpus).sum()) / 8760 * 9 / 19)
    theirs = fixed(jobs, year, "Carbon-Time", reserved, spot=True, eager=True)
    figures = row(f"{jobs.name}, GAIA's Spot-RES Carbon-Time, {reserved} reserved", theirs)
    figures += row(f"{jobs.name}, Wait-AWhile: no policy that keeps to the rules emits less", paused(jobs, year, optimal=True))
    figures += row(f"{jobs.name}, bound without run times, on the trace", informed(jobs, year, 1.0)[0])
    for known, money in ((True, 400.0), (False, 400.0), (False, 0.0)):
        mine = ours(jobs, year, Policy(reserved, True, Weights(money), known, 1 / 4, False, 1.0))
        what = f"{reserved} reserved and spot, {money:g} g an hour, run times {'known' if known else 'not known'}"
        figures += row(f"{jobs.name}, ours, {what}", mine)
    return figures


def main() -> None:
    place = data()
    if place is None:
        print("SKIPPED: the data is not here; set NEMO_DATA to its directory (jobs/, carbon/)", file=sys.stderr)
        return
    began = time.monotonic()
    header, values = table(place / "carbon/intensity-2022.csv.gz")
    south = values[:, header.index("AU-SA")]
    small = trace(place / "jobs/alibaba-pai-1k.csv", 1 / 3600)
    carbon = Carbon(south, 720)
    figures = compare(small, carbon, 9, 1 / 60)
    print(f"    {time.monotonic() - began:.0f} s", flush=True)
    figures += over_zones(small, header[1:], values[:, 1:])
    print(f"    {time.monotonic() - began:.0f} s", flush=True)
    figures += with_errors(place, small)
    print(f"    {time.monotonic() - began:.0f} s", flush=True)
    for name in ("azure-100k", "alibaba-pai-100k"):
        figures += large(trace(place / f"jobs/{name}.csv.gz", 1.0), Carbon(south, 9000))
        print(f"    {time.monotonic() - began:.0f} s", flush=True)
    write("deferral", figures)


if __name__ == "__main__":
    main()
