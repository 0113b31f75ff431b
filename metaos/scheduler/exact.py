"""Small problems of placing many workloads at once, solved exactly by HiGHS: a mixed-integer program, traffic included. Pure.

Each item is at one site; of two that talk there is a share for each pair of their sites, which add up to where either is (the
first level of Sherali and Adams, "A hierarchy of relaxations", 1990: tight where few talk to each other). So the bound holds with
what there is between sites, which the Lagrangian one in :mod:`metaos.scheduler.assignment` takes for nothing.

The library is loaded with the first problem, takes 30 MB, and belongs in the worker process. What is hard ends after ``SECONDS``,
with what was found and proven so far, which may be more on a quicker machine: the twin does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Variables of a problem that is solved: above that others are as good and quicker.
MOST_VARIABLES = 6_000
#: Nodes of the search and seconds at most.
NODES, SECONDS = 200, 10.0
#: What rounding in the solver may cost the bound, as a share.
_LITTLE = 1e-7


class Exact(NamedTuple):
    """``sites``: the best placement that was found, ``None`` where that is none; ``bound``: no placement costs less."""

    sites: Ints | None
    bound: float


class Row(NamedTuple):
    """The sum of shares of columns is between two bounds."""

    low: float
    high: float
    columns: list[int]
    shares: list[float]


def variables(costs: Floats, pairs: Mapping[tuple[int, int], Floats]) -> int:
    """How many a problem has."""
    possible = np.isfinite(costs).sum(axis=1)
    return int(possible.sum()) + sum(int(possible[a]) * int(possible[b]) for a, b in pairs)


def solve(
    costs: Floats,
    demand: Floats,
    room: Floats,
    pairs: Mapping[tuple[int, int], Floats],
    start: Ints | None = None,
    *,
    nodes: int = NODES,
    seconds: float = SECONDS,
) -> Exact:
    """``costs``: items x sites, infinite where an item may not be. ``demand``: items x resources. ``room``: sites x resources.
    ``pairs``: of two items what they cost together, by their sites, infinite where they may not be like that. ``start``: a
    placement that is known."""
    import highspy

    items, sites = costs.shape
    of = [np.flatnonzero(np.isfinite(costs[item])) for item in range(items)]
    if not items or any(not len(found) for found in of):
        return Exact(None, -np.inf)
    first = np.concatenate([[0], np.cumsum([len(found) for found in of])])
    price = [np.concatenate([costs[item, of[item]] for item in range(items)])]
    # Each item is somewhere.
    rows = [Row(1.0, 1.0, list(range(int(first[i]), int(first[i + 1]))), [1.0] * len(of[i])) for i in range(items)]
    there = np.where(room.sum(axis=0) > 0, room.sum(axis=0), 1.0)
    for site in range(sites):
        here = [(i, int(first[i] + np.searchsorted(of[i], site))) for i in range(items) if np.isfinite(costs[i, site])]
        for resource in range(room.shape[1]):
            if sum(demand[item, resource] for item, _ in here) > room[site, resource]:
                shares = [float(demand[item, resource] / there[resource]) for item, _ in here]
                rows.append(Row(-np.inf, float(room[site, resource] / there[resource]), [column for _, column in here], shares))
    count = whole = int(first[-1])
    for (a, b), table in pairs.items():
        block = np.arange(count, count + len(of[a]) * len(of[b])).reshape(len(of[a]), len(of[b]))
        price.append(table[np.ix_(of[a], of[b])].ravel())
        for item, each in ((a, block), (b, block.T)):
            ones = [1.0] * each.shape[1]
            rows += [Row(0.0, 0.0, [*each[n].tolist(), int(first[item]) + n], [*ones, -1.0]) for n in range(len(each))]
        count += block.size
    model = _model(np.concatenate(price), count, whole, rows)
    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    for option, value in (("output_flag", False), ("threads", 1), ("time_limit", seconds), ("mip_max_nodes", nodes)):
        solver.setOptionValue(option, value)
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.passModel(model)
    if start is not None and (start >= 0).all():
        known = highspy.HighsSolution()
        column = np.zeros(count)
        at = [int(np.searchsorted(of[item], start[item])) for item in range(items)]
        for item in range(items):
            column[int(first[item]) + at[item]] = 1.0
        begin = whole
        for a, b in pairs:
            column[begin + at[a] * len(of[b]) + at[b]] = 1.0
            begin += len(of[a]) * len(of[b])
        known.col_value = column.tolist()
        solver.setSolution(known)
    solver.run()
    info = solver.getInfo()
    if solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
        return Exact(None, np.inf)
    bound = float(info.mip_dual_bound)
    bound -= _LITTLE * max(1.0, abs(bound))
    values = np.array(solver.getSolution().col_value)
    if len(values) < count or not np.isfinite(info.objective_function_value):
        return Exact(None, bound)
    found = np.array([of[item][int(values[int(first[item]) : int(first[item + 1])].argmax())] for item in range(items)], np.int64)
    taken = np.zeros_like(room)
    np.add.at(taken, found, demand)
    # The solver keeps to room up to its tolerance; a placement has to fit.
    return Exact(found if (taken <= room + 1e-9).all() else None, bound)


def _model(price: Floats, count: int, whole: int, rows: list[Row]) -> Any:
    import highspy

    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = count, len(rows)
    # Two that may not be like that are not.
    model.col_cost_, model.col_lower_ = np.where(np.isfinite(price), price, 0.0), np.zeros(count)
    model.col_upper_ = np.where(np.isfinite(price), 1.0, 0.0)
    model.row_lower_, model.row_upper_ = np.array([r.low for r in rows]), np.array([r.high for r in rows])
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.concatenate([[0], np.cumsum([len(r.columns) for r in rows])]).astype(np.int32)
    model.a_matrix_.index_ = np.concatenate([r.columns for r in rows]).astype(np.int32)
    model.a_matrix_.value_ = np.concatenate([r.shares for r in rows]).astype(float)
    kinds = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
    model.integrality_ = [kinds[0]] * whole + [kinds[1]] * (count - whole)
    return model
