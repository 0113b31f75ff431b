"""Reserved, on-demand and spot capacity, chosen together with the time. Pure. Prices are per CPU and hour.

Spot capacity is taken back at a rate: what is expected to be done again is ``metaos.resources.measures.stretch``, as in the
score ``cost``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metaos.resources.measures import stretch
from metaos.resources.snapshot import Interruptible

RESERVED, ON_DEMAND, SPOT = "reserved", "on-demand", "spot"


@dataclass(frozen=True, slots=True)
class Offer:
    """``cpus``: how many are free. ``rate``: interruptions an hour. ``restart``: hours that beginning again takes."""

    kind: str
    price: float
    cpus: float = math.inf
    rate: float = 0.0
    restart: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """``price``: what a CPU hour of work is expected to cost, with what interruptions make it do again."""

    kind: str
    price: float
    reason: str


def choose(offers: Sequence[Offer], cpus: float, hours: float, *, interruptible: bool, keeps: bool) -> Choice | None:
    """The cheapest capacity that it fits and stands; among equals the first. ``None`` where there is none."""
    prices: list[tuple[float, int]] = []
    told: list[str] = []
    for index, offer in enumerate(offers):
        price = offer.price * stretch(offer.rate, offer.restart, Interruptible(hours, keeps))
        if offer.kind == SPOT and not interruptible:
            told.append(f"{offer.kind} {offer.price:.4g}: it does not stand interruptions")
        elif cpus > offer.cpus + 1e-9:
            told.append(f"{offer.kind} {offer.price:.4g}: {offer.cpus:.4g} of {cpus:.4g} CPUs free")
        else:
            again = f" ({price:.4g} with what is done again)" if price > offer.price * 1.001 else ""
            told.append(f"{offer.kind} {offer.price:.4g}{again}")
            prices.append((price, index))
    if not prices:
        return None
    price, index = min(prices)
    return Choice(offers[index].kind, price, "; ".join(told))


def blended(carbon: Sequence[float], price: Sequence[float]) -> list[float]:
    """Both in equal parts, each against its own mean: 100 is an hour like any. As long as the shorter one."""
    count = min(len(carbon), len(price))
    parts = []
    for series in (carbon[:count], price[:count]):
        mean = sum(series) / max(1, count)
        parts.append([v / mean if mean > 0 else 1.0 for v in series])
    return [50.0 * (a + b) for a, b in zip(*parts, strict=True)]


def mean_along(series: Sequence[float], runs: Sequence[tuple[float, float, int]], passed: float) -> float:
    """The mean of a series over the hours of work of :class:`~metaos.scheduler.deferral.Schedule.runs`. Its last hour goes on."""
    found = work = 0.0
    for start, hours, width in runs:
        at, end = start + passed, start + hours + passed
        work += hours * width
        while at < end - 1e-9:
            until = min(end, math.floor(at + 1e-9) + 1.0)
            found += series[min(math.floor(at + 1e-9), len(series) - 1)] * (until - at) * width
            at = until
    return found / work if work else 0.0
