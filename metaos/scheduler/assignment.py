"""Placing many workloads at once: greedy with regret, prices for scarce room, local search, and a proven bound. Pure.

Each item goes to one site: least total cost, room in every resource respected (generalised assignment). The bound is the
Lagrangian relaxation of the room: every resource of every site has a price, each item takes the site that is cheapest to it
with the prices added, and what the sites' room is worth at those prices is taken off again. No assignment costs less
(Fisher, "The Lagrangian relaxation method for solving integer programming problems", Management Science 27, 1981). The prices
are found by subgradient steps; the same prices tell the greedy pass which items should give way.

Effort is counted in rounds, not in seconds, so equal inputs give equal outputs. One round is a pass over items x sites.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NOWHERE = -1
#: Cheapest sites that the local search looks at, and how many of them it makes room at.
NEAR, SWAPS, PASSES = 64, 6, 6
#: Of room, in shares of what all sites have together: what rounding may cost.
SLACK = 1e-12
#: Rounds between looks at all sites, and between attempts to place everything at the present prices.
REFRESH, LOOK = 10, 50
#: Gap at which nothing better is looked for.
CLOSE = 1e-3


@dataclass(frozen=True, slots=True)
class Assignment:
    """``sites``: of each item the row of its site, ``NOWHERE`` where none had room. ``cost``: over what is placed. ``bound``:
    what no assignment of all items can go below; ``-inf`` where some item is allowed nowhere."""

    sites: Ints
    cost: float
    bound: float

    @property
    def complete(self) -> bool:
        return bool((self.sites != NOWHERE).all())

    @property
    def gap(self) -> float:
        """How far the cost is above the bound, as a share of the bound; infinite where not everything is placed."""
        if not self.complete:
            return float("inf")
        return (self.cost - self.bound) / abs(self.bound) if self.bound else float(self.cost > 0)


def assign(costs: Floats, demand: Floats, room: Floats, *, rounds: int = 200) -> Assignment:
    """``costs``: items x sites, infinite where an item may not be. ``demand``: items x resources. ``room``: sites x resources.

    Raises ``ValueError`` for shapes that do not fit, NaN, negative demand or costs of minus infinity."""
    _check(costs, demand, room)
    items, count = costs.shape
    if not items:
        return Assignment(np.zeros(0, np.int64), 0.0, 0.0)
    if not count or np.isinf(costs).all(axis=1).any():
        sites = greedy(costs, demand, room)
        return Assignment(sites, _cost(costs, sites), -np.inf)
    # Resources in shares of what there is, so that prices are of one size.
    there = room.sum(axis=0)
    scale = np.where(there > 0, there, 1.0)
    demand, room = demand / scale, room / scale
    near = _nearest(costs)
    best = _improved(costs, demand, room, greedy(costs, demand, room, near=near), near)
    least = _cost(costs, best) if (best != NOWHERE).all() else np.inf
    bound, prices, kept = -np.inf, np.zeros_like(room), np.zeros_like(room)
    step, stalled, due = 1.5, 0, False
    everyone = np.arange(items)
    for number in range(rounds):
        whole = due or number % REFRESH == 0 or number == rounds - 1 or costs.shape[1] <= NEAR
        if whole:
            # Over all sites: this is a bound. Between, only sites that looked cheap at the last prices are looked at.
            priced = costs + demand @ prices.T
            near = _nearest(priced)
            value = float(np.take_along_axis(priced, near[:, :1], axis=1).sum() - (prices * room).sum())
            if value > bound + 1e-4 * abs(value) or not np.isfinite(bound):
                bound, kept, stalled = max(bound, value), prices, 0
            else:
                bound, stalled = max(bound, value), stalled + 1
            if number % LOOK == 0 or number == rounds - 1:
                by = np.take_along_axis(priced, near, axis=1)
                found = _improved(costs, demand, room, greedy(priced, demand, room, by=by, near=near), near)
                if (found != NOWHERE).all() and _cost(costs, found) < least:
                    best, least = found, _cost(costs, found)
                elif not np.isfinite(least) and (found == NOWHERE).sum() < (best == NOWHERE).sum():
                    best = found
            if np.isfinite(least) and least - bound <= CLOSE * abs(bound):
                break
            close = np.take_along_axis(costs, near, axis=1)
            if stalled >= (2 if costs.shape[1] > NEAR else 8):
                step, prices, stalled = step / 2, kept, 0
        seen = close.copy()
        for resource in range(room.shape[1]):
            seen += demand[:, resource, None] * prices[near, resource]
        choice = seen.argmin(axis=1)
        value = float(seen[everyone, choice].sum() - (prices * room).sum())
        taken = np.zeros_like(room)
        np.add.at(taken, near[everyone, choice], demand)
        slack = taken - room
        # A price of nothing does not fall.
        slack[(prices <= 0) & (slack < 0)] = 0.0
        size = float((slack**2).sum())
        if size <= 1e-18:
            # No price wants to change. It is the best bound there is, once all sites were looked at.
            if whole:
                break
            due = True
            continue
        target = least if np.isfinite(least) else value + max(1.0, abs(value)) * 0.05
        prices = np.maximum(0.0, prices + step * max(1e-12, target - value) / size * slack)
    best = _improved(costs, demand, room, best, near, swaps=True)
    return Assignment(best, _cost(costs, best), bound)


def greedy(costs: Floats, demand: Floats, room: Floats, *, by: Floats | None = None, near: Ints | None = None) -> Ints:
    """One item after the other to the cheapest site that has room, those first that would lose most by their second choice.

    ``near`` and ``by``: sites to look at first, by item, and what they count there; the others count their costs."""
    items, count = costs.shape
    sites = np.full(items, NOWHERE, np.int64)
    if not count:
        return sites
    if near is None:
        near = _nearest(costs)
    if by is None:
        by = np.take_along_axis(costs, near, axis=1)
    regret = np.zeros(items)
    if near.shape[1] > 1:
        two = np.partition(by, 1, axis=1)[:, :2]
        with np.errstate(invalid="ignore"):
            regret = np.nan_to_num(two[:, 1] - two[:, 0], nan=np.inf, posinf=np.inf)
    left = room.astype(np.float64, copy=True)
    # Of equal regret the larger ones first, then the order they came in.
    for item in np.lexsort((np.arange(items), -demand.max(axis=1), -regret)).tolist():
        close = near[item]
        row = np.where((left[close] + SLACK >= demand[item]).all(axis=1), by[item], np.inf)
        at = int(row.argmin())
        site = int(close[at])
        if not np.isfinite(row[at]):
            row = np.where((left + SLACK >= demand[item]).all(axis=1), costs[item], np.inf)
            site = int(row.argmin())
            if not np.isfinite(row[site]):
                continue
        sites[item] = site
        left[site] -= demand[item]
    return sites


def _nearest(costs: Floats) -> Ints:
    """Of each item the rows of its cheapest sites, the cheapest first."""
    items, sites = costs.shape
    count = min(NEAR, sites)
    rows = np.argpartition(costs, count - 1, axis=1)[:, :count] if count < sites else np.tile(np.arange(sites), (items, 1))
    order = np.take_along_axis(costs, rows, axis=1).argsort(axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1).astype(np.int64)


def _improved(costs: Floats, demand: Floats, room: Floats, sites: Ints, near: Ints, *, swaps: bool = False) -> Ints:
    """Moves items to cheaper sites with room, with ``swaps`` also pairs, until nothing helps, ``PASSES`` times at most."""
    sites = sites.copy()
    left = room.astype(np.float64, copy=True)
    placed = np.flatnonzero(sites != NOWHERE)
    np.subtract.at(left, sites[placed], demand[placed])
    at: list[set[int]] = [set() for _ in range(len(room))]
    for item in placed.tolist():
        at[sites[item]].add(item)

    def move(item: int, to: int) -> None:
        came = int(sites[item])
        left[came] += demand[item]
        left[to] -= demand[item]
        at[came].discard(item)
        at[to].add(item)
        sites[item] = to

    for _ in range(PASSES):
        changed = False
        loss = costs[placed, sites[placed]] - costs[placed, near[placed, 0]]
        for number in np.argsort(-loss, kind="stable").tolist():
            item = int(placed[number])
            if loss[number] <= 1e-12:
                break
            close = near[item]
            better = close[costs[item, close] < costs[item, sites[item]] - 1e-12]
            fits = better[(left[better] + SLACK >= demand[item]).all(axis=1)]
            if len(fits):
                move(item, int(fits[0]))
                changed = True
            elif swaps and len(better):
                changed |= _swap(item, near, costs, demand, left, sites, at, move)
        if not changed:
            break
    return sites


def _swap(
    item: int,
    near: Ints,
    costs: Floats,
    demand: Floats,
    left: Floats,
    sites: Ints,
    at: list[set[int]],
    move: Callable[[int, int], None],
) -> bool:
    """Sends one item of a better site elsewhere, or here, where both together gain."""
    here = int(sites[item])
    mine = costs[item, here]
    for goal in near[item, :SWAPS].tolist():
        gain = mine - costs[item, goal]
        if gain <= 1e-12:
            return False
        others = np.array(sorted(at[goal]), np.int64)
        others = others[(left[goal] + demand[others] + SLACK >= demand[item]).all(axis=1)] if len(others) else others
        if not len(others):
            continue
        # Where the other one could go: one of its own nearest sites, or the place that this one leaves.
        to = np.column_stack([near[others], np.full(len(others), here)])
        free = left[to] + np.where((to == here)[:, :, None], demand[item], 0.0)
        fits = (free + SLACK >= demand[others][:, None, :]).all(axis=2) & (to != goal)
        loss = np.where(fits, costs[others[:, None], to], np.inf) - costs[others, goal][:, None]
        flat = int(loss.argmin())
        row, column = divmod(flat, to.shape[1])
        if loss[row, column] < gain - 1e-12:
            move(int(others[row]), int(to[row, column]))
            move(item, goal)
            return True
    return False


def _cost(costs: Floats, sites: Ints) -> float:
    placed = np.flatnonzero(sites != NOWHERE)
    return float(costs[placed, sites[placed]].sum())


def _check(costs: Floats, demand: Floats, room: Floats) -> None:
    if costs.ndim != 2 or demand.ndim != 2 or room.ndim != 2:
        raise ValueError("costs, demand and room must be tables: items x sites, items x resources, sites x resources")
    if demand.shape[0] != costs.shape[0] or room.shape[0] != costs.shape[1] or demand.shape[1] != room.shape[1]:
        raise ValueError(f"costs {costs.shape}, demand {demand.shape} and room {room.shape} do not fit together")
    if np.isnan(costs).any() or np.isneginf(costs).any():
        raise ValueError("costs must be numbers, or infinite where an item may not be")
    if not np.isfinite(demand).all() or (demand < 0).any():
        raise ValueError("demand must be finite and at least 0")
    if np.isnan(room).any():
        raise ValueError("room must be numbers")
