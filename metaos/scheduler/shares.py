"""Which site serves how much of whose users: shares of load, as cheap as may be within the room of the sites. Pure.

For many hours at once, from how everybody is served at present: in every round each hour makes the one move that gains most.
Users go to a site with room, or to one from which others make way to a third.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Load that is none, and a gain that is none.
EPSILON, GAIN = 1e-12, 1e-9
#: Rounds at most. Each costs a pass over hours x users x sites.
ROUNDS = 400


def serve(costs: Floats, present: Floats, room: Floats) -> Floats:
    """``costs``: hours x users x sites, of one unit of load, infinite where users may not be served. ``present``: users x sites,
    load that is served where at present, within the room. ``room``: sites. Returns hours x users x sites, as ``present``."""
    if costs.ndim != 3 or present.shape != costs.shape[1:] or room.shape != costs.shape[2:]:
        raise ValueError(f"costs {costs.shape}, present {present.shape} and room {room.shape} do not fit together")
    if np.isnan(costs).any() or not np.isfinite(present).all() or (present < 0).any() or np.isnan(room).any():
        raise ValueError("costs, present and room must be numbers, present at least 0")
    if (present.sum(axis=0) > room + 1e-9).any():
        raise ValueError("a site serves more than it has room for at present")
    flow = np.repeat(present[None], len(costs), axis=0)
    free = np.repeat((room - present.sum(axis=0))[None], len(costs), axis=0)
    # Hours in which something may still gain.
    active = np.arange(len(costs))
    for _ in range(ROUNDS):
        if not len(active):
            break
        mine, rest = flow[active], free[active]
        moved = _move(costs[active], mine, rest, np.arange(len(active)))
        flow[active], free[active] = mine, rest
        active = active[moved]
    return flow


def _move(costs: Floats, flow: Floats, free: Floats, hours: NDArray[np.int64]) -> NDArray[np.bool_]:
    """In every hour the move that gains most, by unit of load. Changes ``flow`` and ``free``; returns which hours moved."""
    served = flow > EPSILON
    mine = np.where(served, costs, -np.inf)
    target = np.where((free > EPSILON)[:, None, :], costs, np.inf)
    to = target.argmin(axis=2)
    # What a unit of room costs at a site that is full: its cheapest leaver's loss.
    leave = np.where(served, target.min(axis=2)[:, :, None] - np.where(served, costs, 0.0), np.inf)
    leaver = leave.argmin(axis=1)
    freed = np.take_along_axis(leave, leaver[:, None, :], axis=1)[:, 0, :]
    enter = costs + np.where(free > EPSILON, 0.0, freed)[:, None, :]
    goal, worst = enter.argmin(axis=2), mine.argmax(axis=2)
    had = np.take_along_axis(mine, worst[:, :, None], axis=2)[:, :, 0]
    with np.errstate(invalid="ignore"):
        gain = np.nan_to_num(had - np.take_along_axis(enter, goal[:, :, None], axis=2)[:, :, 0], nan=-np.inf)
    who = gain.argmax(axis=1)
    moved: NDArray[np.bool_] = gain[hours, who] > GAIN
    rows, who = hours[moved], who[moved]
    source, through = worst[rows, who], goal[rows, who]
    straight = free[rows, through] > EPSILON
    other = leaver[rows, through]
    end = np.where(straight, through, to[rows, other])
    amount = np.minimum(flow[rows, who, source], free[rows, end])
    amount = np.where(straight, amount, np.minimum(amount, flow[rows, other, through]))
    flow[rows, who, source] -= amount
    flow[rows, who, through] += amount
    free[rows, source] += amount
    free[rows, end] -= amount
    chained = ~straight
    flow[rows[chained], other[chained], through[chained]] -= amount[chained]
    flow[rows[chained], other[chained], end[chained]] += amount[chained]
    return moved
