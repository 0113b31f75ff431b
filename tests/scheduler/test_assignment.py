"""Whatever is assigned fits and may be there; nothing costs less than the bound; small cases are the best there is, or nearly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.snapshot import Snapshot, Target
from metaos.scheduler.assignment import NOWHERE, Floats, assign, greedy
from metaos.scheduler.optimise import movable, optimise
from tests.scheduler.worlds import NOW, residency, site, workload

Case = tuple[Floats, Floats, Floats]


@st.composite
def cases(draw: st.DrawFn, most: int = 6) -> Case:
    items, sites = draw(st.integers(0, most)), draw(st.integers(1, 4))
    cost = st.sampled_from([0.0, 1.0, 2.5, 7.0, 30.0, math.inf])
    costs = np.array([[draw(cost) for _ in range(sites)] for _ in range(items)]).reshape(items, sites)
    demand = np.array([[float(draw(st.integers(0, 3))) for _ in range(2)] for _ in range(items)]).reshape(items, 2)
    room = np.array([[float(draw(st.integers(0, 8))) for _ in range(2)] for _ in range(sites)])
    return costs, demand, room


def fits(case: Case, sites: tuple[int, ...]) -> bool:
    costs, demand, room = case
    taken = np.zeros_like(room)
    for item, found in enumerate(sites):
        if found != NOWHERE:
            taken[found] += demand[item]
            if not math.isfinite(costs[item, found]):
                return False
    return bool((taken <= room + 1e-9).all())


def best(case: Case) -> float:
    costs = case[0]
    ways = itertools.product(range(costs.shape[1]), repeat=costs.shape[0])
    return min((sum(costs[i, s] for i, s in enumerate(w)) for w in ways if fits(case, w)), default=math.inf)


@given(cases())
def test_what_is_assigned_fits_and_nothing_costs_less_than_the_bound(case: Case) -> None:
    found = assign(*case)
    assert fits(case, tuple(found.sites.tolist())) and fits(case, tuple(greedy(*case).tolist()))
    least = best(case)
    if found.complete:
        assert found.cost >= least - 1e-9
    assert found.bound <= least + 1e-6 * max(1.0, abs(least)) or math.isinf(least)


@given(cases(most=4))
def test_equal_inputs_give_equal_outputs(case: Case) -> None:
    one, two = assign(*case), assign(*(table.copy() for table in case))
    assert one.sites.tolist() == two.sites.tolist() and (one.cost, one.bound) == (two.cost, two.bound)


def test_a_crowd_that_wants_one_site_is_sorted_by_who_loses_least() -> None:
    costs = np.array([[1.0, 2.0], [1.0, 9.0], [1.0, 5.0]])
    found = assign(costs, np.ones((3, 1)), np.array([[2.0], [5.0]]))
    assert found.sites.tolist() == [1, 0, 0] and found.cost == 4.0 and found.gap < 0.01


def test_a_larger_case_is_within_a_hundredth_of_the_bound() -> None:
    random = np.random.default_rng(1)
    costs = random.uniform(10, 60, (300, 40)) + random.uniform(0, 40, 40)
    demand = np.column_stack([random.choice([1.0, 2.0, 4.0], 300), random.choice([1.0, 2.0], 300)])
    room = np.tile([[30.0, 40.0]], (40, 1))
    found = assign(costs, demand, room)
    assert found.complete and 0 <= found.gap < 0.01


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ((np.ones((2, 2)), np.ones((1, 1)), np.ones((2, 1))), "do not fit together"),
        ((np.ones(2), np.ones((1, 1)), np.ones((2, 1))), "must be tables"),
        ((np.full((1, 1), np.nan), np.ones((1, 1)), np.ones((1, 1))), "costs must be numbers"),
        ((np.ones((1, 1)), np.full((1, 1), -1.0), np.ones((1, 1))), "demand must be finite"),
        ((np.ones((1, 1)), np.ones((1, 1)), np.full((1, 1), np.nan)), "room must be numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(case: Case, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        assign(*case)


# -- re-optimisation ---------------------------------------------------------------------------------------


def test_workloads_that_came_in_an_unlucky_order_change_places() -> None:
    clean = site("clean", carbon=20.0, cpu=1000)
    dirty = site("dirty", carbon=600.0, cpu=1000, cpu_requested=0)
    wish = Target("carbonIntensity", "Minimize", priority=100, intent="green")
    careless = workload(cpu=1000, current={"clean": 1})
    careful = workload(cpu=1000, current={"dirty": 1}, targets=(wish,))
    full = (
        site("clean", carbon=20.0, cpu=1000, cpu_requested=1000, memory_requested=32 << 20, pods_requested=1),
        site("dirty", carbon=600.0, cpu=1000, cpu_requested=1000, memory_requested=32 << 20, pods_requested=1),
    )
    assert clean.cpu == dirty.cpu
    found = optimise(Snapshot(NOW, full), [careless, careful])
    assert {m.site for m in found.moves} == {"clean", "dirty"} and found.after > found.before and found.gap < 0.05


def test_nothing_moves_for_less_than_its_policy_asks_nor_against_the_law() -> None:
    here = workload(current={"a": 1}, targets=(residency("EU"),))
    slightly = (site("a", cpu_hour=0.031, pods_requested=1), site("b"), site("c", cpu_hour=0.0, jurisdictions=frozenset({"US"})))
    assert optimise(Snapshot(NOW, slightly), [here]).moves == ()


def test_what_is_spread_pinned_or_a_started_job_is_left_alone() -> None:
    assert movable(workload()) and not movable(workload("DaemonSet")) and not movable(workload(pinned=True, current={"a": 1}))
    assert not movable(workload("Job", settled=True)) and not movable(workload(replicas=0))
    assert not movable(workload(current={"a": 1, "b": 1}))
