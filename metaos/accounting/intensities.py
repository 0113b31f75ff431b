"""Which carbon intensity held when: what the hub has seen, step by step, for periods that are booked later. Pure.

Kept in ``Cluster.status.carbon.past``: ``since`` (the first step's beginning), ``stepSeconds`` (an hour; less where a trace is
replayed faster), ``values`` (gCO2eq/kWh by step, -1 where nothing was known) and ``sources`` (from which step on who said it).
Bound: ``MOST_STEPS``, the oldest go first: 14 days, as long as a site keeps what it has metered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from metaos.accounting.footprint import Factor
from metaos.resources.meta import format_time, parse_time

MOST_STEPS = 336
UNKNOWN = -1.0


def extended(
    past: Mapping[str, Any] | None,
    now: float,
    step: float,
    value: float | None,
    source: str,
    missed: Callable[[float], float | None] = lambda time: None,
) -> dict[str, Any]:
    """``past`` with what is known of the current step, and of those that were ``missed`` since. Another length of steps, or a
    clock that was put back, begins anew."""
    at, current = math.floor(now / step), UNKNOWN if value is None else value
    first = round(parse_time(past["since"]) / step) if past else at
    if not past or past["stepSeconds"] != step or at - first < len(past["values"]) - 1:
        values: list[float] = [current]
        return {
            "since": _moment(at, step),
            "stepSeconds": step,
            "values": values,
            "sources": [{"since": _moment(at, step), "source": source}],
        }
    values, sources = list(past["values"]), list(past["sources"])
    missing = at - first - (len(values) - 1)
    if missing > MOST_STEPS:
        return extended(None, now, step, value, source)
    if missing:
        between = [missed((first + len(values) + n + 0.5) * step) for n in range(missing - 1)]
        values += [UNKNOWN if each is None else each for each in between] + [current]
    else:
        values[-1] = current
    if sources[-1]["source"] != source:
        sources = [each for each in sources if each["since"] != _moment(at, step)]
        sources.append({"since": _moment(at, step), "source": source})
    if len(values) > MOST_STEPS:
        first += len(values) - MOST_STEPS
        values = values[-MOST_STEPS:]
        kept = [each for each in sources if parse_time(each["since"]) <= first * step]
        sources = [*kept[-1:], *sources[len(kept) :]]
    return {"since": _moment(first, step), "stepSeconds": step, "values": values, "sources": sources}


def held(past: Mapping[str, Any] | None, start: float, end: float) -> Factor | None:
    """The mean over a period, each step weighted by its part of it. ``None`` where a part of it is not known."""
    if not past:
        return None
    step, first = float(past["stepSeconds"]), parse_time(past["since"])
    total = Decimal(0)
    for at in range(math.floor((start - first) / step), math.ceil((end - first) / step)):
        value = past["values"][at] if 0 <= at < len(past["values"]) else UNKNOWN
        if value < 0:
            return None
        part = min(end, first + (at + 1) * step) - max(start, first + at * step)
        total += Decimal(str(value)) * Decimal(str(round(part, 6)))
    mean = (total / Decimal(str(end - start))).quantize(Decimal("0.001"))
    said = [each["source"] for each in past["sources"] if parse_time(each["since"]) < end]
    return Factor(mean, said[-1] if said else "")


def covers(past: Mapping[str, Any] | None, time: float) -> bool:
    """Whether the step of a time was looked at, whatever was found."""
    return past is not None and time < parse_time(past["since"]) + len(past["values"]) * float(past["stepSeconds"])


def _moment(at: int, step: float) -> str:
    return format_time(at * step, micro=step % 1 != 0)
