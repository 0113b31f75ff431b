"""The best way for the same work along several forecasts at once: one row a forecast. Pure.

Units: hours from now; prices in any unit an hour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from metaos.scheduler.capacity import margin
from metaos.scheduler.survival import Survival, stop, upto

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

#: Forecasts are looked at so far ahead, in hours.
MOST_HOURS = 120
#: Nothing runs for less.
LEAST_HOURS = 1e-6
#: Less of the work is nothing.
LEAST_SHARE = 1e-12


def extended(values: Sequence[float] | Floats, count: int) -> Floats:
    """A forecast as so many hours: one day is like the one before; where less than a day is known, like the mean."""
    found = np.asarray(values, dtype=float)[:count]
    if len(found) < count:
        tail = found[-24:] if len(found) >= 24 else np.full(24, found.mean())
        found = np.concatenate([found, np.resize(tail, count - len(found))])
    return found


def cautious(values: Floats, error: float | None) -> Floats:
    """A forecast as decisions take it, see :func:`metaos.scheduler.capacity.margin`. Errors are taken to be normal and without
    bias."""
    found: Floats = values + margin(error) * values.mean()
    found[0] = values[0]
    return found


class Plans(NamedTuple):
    """A row each: hours until the start; the mean of the series along the work, and along work that starts now; which share of
    the work is done in which hour; the price up to which running now is worth it, infinite where that is not worked out.
    ``expected``: hours of work at the least width."""

    start: Floats
    mean: Floats
    direct: Floats
    hours: Floats
    worth: Floats
    expected: float


@dataclass(frozen=True, slots=True)
class Work:
    """``lengths``: hours that it may take at its least width, equally likely. ``widest``: times that width. ``least``: waiting
    has to save this share; less is not worth it, and would flap. ``step``: hours, of a plan for lengths that are not known."""

    lengths: tuple[float, ...]
    slack: float
    suspendable: bool = False
    widest: float = 1.0
    least: float = 0.01
    step: float = 1.0


def plans(values: Floats, passed: Floats, work: Work) -> Plans:
    """``values``: a row each, of whose first hour the share ``passed`` is over. The last hour goes on."""
    if work.suspendable:
        return _pieces(values, passed, work) if len(work.lengths) == 1 else _unknown(values, passed, work)
    return _whole(values, passed, work)


def _within(begin: Floats, end: Floats, count: int) -> Floats:
    """Hours of [begin, end) that lie in each hour; the last one goes on."""
    edges = np.arange(count)
    until = np.where(edges == count - 1, np.inf, edges + 1.0)
    found: Floats = np.clip(np.minimum(end[..., None], until) - np.maximum(begin[..., None], edges), 0.0, None)
    return found


def _shares(begin: Floats, took: Floats, count: int) -> Floats:
    """Of work of one of these lengths that runs through from then on."""
    at = begin[:, None] * np.ones(len(took))
    found: Floats = _within(at, at + took, count).mean(axis=1) / took.mean()
    return found


def _whole(values: Floats, passed: Floats, work: Work) -> Plans:
    """Of what cannot be paused: it starts now, at an hour, or as late as may be."""
    took, count = np.array(work.lengths), values.shape[1]
    at = np.minimum(np.maximum(0.0, np.arange(count + 1) - passed[:, None]), work.slack)
    at[:, -1] = work.slack
    begin = at + passed[:, None]
    cost = np.zeros(at.shape)
    for length in took:
        cost += upto(values, begin + length) - upto(values, begin)
    cost /= len(took) * took.mean()
    best, rows = np.argmin(np.round(cost, 9), axis=1), np.arange(len(values))
    best = np.where(cost[rows, best] < cost[:, 0] * (1 - work.least), best, 0)
    start = at[rows, best]
    shares = _shares(start + passed, took, count)
    return Plans(start, cost[rows, best], cost[:, 0], shares, np.full(len(values), np.inf), float(took.mean()))


def _pieces(values: Floats, passed: Floats, work: Work) -> Plans:
    """Of what may be paused: the cheapest hours of the window, as wide as may be."""
    length, count = work.lengths[0], values.shape[1]
    through = _shares(passed, np.array([length]), count)
    room = _within(passed, passed + length + work.slack, count) * work.widest
    order = np.argsort(values, axis=1, kind="stable")
    cheapest = np.take_along_axis(room, order, axis=1)
    before = np.cumsum(cheapest, axis=1) - cheapest
    shares = np.empty_like(values)
    np.put_along_axis(shares, order, np.clip(length - before, 0.0, cheapest) / length, axis=1)
    mean, direct = (shares * values).sum(axis=1), (through * values).sum(axis=1)
    worth = mean <= direct * (1 - work.least)
    shares = np.where(worth[:, None], shares, through)
    start = np.maximum(0.0, np.argmax(shares > LEAST_SHARE, axis=1) - passed)
    return Plans(start, np.where(worth, mean, direct), direct, shares, np.full(len(values), np.inf), length)


def _unknown(values: Floats, passed: Floats, work: Work) -> Plans:
    """Of what may be paused and takes as long as one of these: optimal stopping, see :mod:`metaos.scheduler.survival`. The shares
    are those of work that runs through from its start."""
    survival, step = Survival(work.lengths), work.step
    most = max(1, round((values.shape[1] - 1) / step))
    slack = min(work.slack, (most - 1) * step)
    count = min(most, math.ceil((slack + survival.longest + survival.tail) / step) + 1)
    means = np.diff(upto(values, passed[:, None] + np.arange(count + 1) * step), axis=1) / step
    none = np.zeros(len(values))
    found, left = stop(means, survival, none, none + slack, step), float(survival.left(np.zeros(1))[0])
    waits = found.start > 0
    worth = ~waits | (found.best <= found.direct * (1 - work.least))
    start = np.where(worth, found.start * step, 0.0)
    shares = _shares(start + passed, np.array([left]), values.shape[1])
    mean = np.where(worth, found.best, found.direct) / left
    return Plans(start, mean, found.direct / left, shares, found.worth, left)
