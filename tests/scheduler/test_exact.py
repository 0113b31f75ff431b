"""Small problems solved exactly: never worse than trying everything, never with more than there is room for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.scheduler import exact
from metaos.scheduler.assignment import assign

Table = np.ndarray


@st.composite
def problems(draw: st.DrawFn) -> tuple[Table, Table, Table, dict[tuple[int, int], Table]]:
    """Up to four items on up to three sites; some may not be somewhere, or not be with another."""
    items, sites = draw(st.integers(1, 4)), draw(st.integers(1, 3))

    def table(rows: int, columns: int, of: st.SearchStrategy[float]) -> Table:
        return np.array([[draw(of) for _ in range(columns)] for _ in range(rows)])

    some = st.integers(0, 50).map(float)
    costs = table(items, sites, some | st.just(np.inf))
    pairs = {
        pair: table(sites, sites, some | st.just(np.inf))
        for pair in itertools.combinations(range(items), 2)
        if draw(st.integers(0, 2)) == 0
    }
    return costs, table(items, 2, st.integers(0, 5).map(float)), table(sites, 2, st.integers(0, 9).map(float)), pairs


def cost(sites: tuple[int, ...], costs: Table, demand: Table, room: Table, pairs: dict[tuple[int, int], Table]) -> float:
    taken = np.zeros_like(room)
    np.add.at(taken, list(sites), demand)
    if (taken > room).any():
        return np.inf
    return float(sum(costs[i, s] for i, s in enumerate(sites)) + sum(t[sites[a], sites[b]] for (a, b), t in pairs.items()))


@settings(max_examples=60)
@given(problems(), st.booleans())
def test_it_finds_the_best_there_is_and_proves_it(
    problem: tuple[Table, Table, Table, dict[tuple[int, int], Table]], told: bool
) -> None:
    costs, _, room, pairs = problem
    everything = [(cost(s, *problem), s) for s in itertools.product(range(len(room)), repeat=len(costs))]
    best, where = min(everything)
    start = np.array(where) if told and np.isfinite(best) else None
    found = exact.solve(*problem, start)
    if not np.isfinite(best):
        assert found.sites is None
        return
    assert found.sites is not None
    assert cost(tuple(found.sites.tolist()), *problem) == pytest.approx(best)
    assert best - 1e-3 <= found.bound <= best + 1e-9
    assert exact.variables(costs, pairs) >= len(costs)


def test_it_places_what_others_find_no_place_for() -> None:
    # Two that fill a site each, and four halves: taken in another order there is no place for the last.
    demand, room = np.array([[5.0], [5.0], [3.0], [3.0], [2.0], [2.0]]), np.full((4, 1), 5.0)
    costs = np.array([[1, 9, 9, 9], [1, 2, 9, 9], [1, 1, 2, 3], [1, 1, 2, 3], [1, 1, 1, 9], [1, 1, 1, 9]], float)
    found = exact.solve(costs, demand, room, {})
    assert (
        found.sites is not None and cost(tuple(found.sites.tolist()), costs, demand, room, {}) <= assign(costs, demand, room).cost
    )
