"""What a workload comes to at a site: licences, spot capacity with what it loses, and egress, each by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.measures import computing, cost, costs, holds_at, licensed, measure, stretch
from metaos.resources.meta import ObjectRef
from metaos.resources.reading import cluster_info, licences_of
from metaos.resources.snapshot import MONTH_HOURS, Edge, Interruptible, Licence, Spot, Target
from tests.scheduler.worlds import site, workload

DB = ObjectRef("apps", "StatefulSet", "shop", "db")
CHEAP = Target("cost", "IsLessThan", 0.05, hard=True, intent="cheap")
HOUR_GIB = 2**30 / 3600
works = st.builds(Interruptible, hours=st.floats(0.01, 500), keeps=st.booleans())
prices = st.none() | st.floats(0, 500)

COST = Target("cost", "Minimize")


def test_licences_count_by_replica_and_by_site() -> None:
    what = workload(replicas=3, licences=(Licence("db", 73.0, 146.0), Licence("os", 7.3)))
    paid = licensed(site("a"), what, 3)
    assert paid == pytest.approx((3 * 73 + 146 + 3 * 7.3) / 730)
    own = site("a", licences={"db": Licence("db", site=0.0)})
    assert licensed(own, what, 3) == pytest.approx(3 * 7.3 / 730), "what the site states goes before what an Intent does"
    assert licensed(own, what, 0) == 0.0


def test_a_licence_without_a_price_makes_the_cost_unknown() -> None:
    what = workload(licences=(Licence("db"),), targets=(CHEAP,))
    assert cost(site("a"), what, 1) is None and costs(site("a"), what, 1).missing == "no price of a licence is stated"
    assert not holds_at(CHEAP, site("a"), what)
    assert holds_at(CHEAP, site("a", licences={"db": Licence("db", 0.0)}), what)


def test_intents_state_licences_by_name_and_the_dearest_counts() -> None:
    def states(**price: float) -> dict[str, object]:
        return {"spec": {"licences": [{"name": "db", **price}]}}

    assert licences_of([states(perReplicaMonth=5), states(perReplicaMonth=3, perSiteMonth=1)]) == (Licence("db", 5.0, 1.0),)
    assert licences_of([{"spec": {"licences": [{"name": "b"}, {"name": "a", "perSiteMonth": 0}]}}]) == (
        Licence("a", None, 0.0),
        Licence("b"),
    )


@given(st.floats(0, 60), st.floats(0, 24), works)
def test_interruptions_never_make_it_shorter(rate: float, restart: float, work: Interruptible) -> None:
    assert stretch(rate, restart, work) >= 1.0 - 1e-9
    assert stretch(rate, restart, replace(work, keeps=True)) <= stretch(rate, restart, work) * (1 + 1e-9)


@given(st.floats(0, 5), st.floats(0, 5), st.floats(0, 60), works)
def test_who_may_use_spot_capacity_never_pays_more_for_it(price: float, spot: float, rate: float, work: Interruptible) -> None:
    where = site("a", cpu_hour=price, spot=Spot(spot, rate))
    paid, plain = computing(where, 1000, 0, work), computing(where, 1000, 0)
    assert paid is not None and plain is not None and paid <= plain + 1e-12
    found = costs(where, workload(cpu=1000, interruptible=work), 1)
    assert (found.capacity == "spot") == (spot * stretch(rate, 0.0, work) <= price)
    assert found.lost == pytest.approx(paid - (spot if found.capacity else paid), abs=1e-9), (
        "what is lost is what is paid above the price"
    )


def test_what_does_not_stand_interruptions_pays_on_demand() -> None:
    assert cost(site("a", spot=Spot(0.001)), workload(cpu=1000), 1) == pytest.approx(0.03)
    spot = cluster_info(
        {
            "metadata": {"name": "a"},
            "spec": {"price": {"spot": {"cpuHour": 0.01, "interruptionsPerHour": 0.5, "restartSeconds": 1800}}},
        }
    ).spot
    assert spot == Spot(0.01, 0.5, 0.5)
    assert stretch(0.5, 0.5, Interruptible(2.0, False)) == pytest.approx(math.expm1(1.0) * math.exp(0.25))


def test_a_bound_on_cost_counts_what_leaves_the_site() -> None:
    far = site("far", egress_gib=0.09)
    here = site("here", egress_gib=0.02)
    sends = Edge("statefulset/db", DB, True, "i", sent=HOUR_GIB, answered=HOUR_GIB, at=((far, 1),))
    what = workload(cpu=1000, replicas=1, traffic=(sends,), targets=(CHEAP,))
    assert measure(COST, here, what) == pytest.approx(0.03 + 0.02), "what the database sends is the database's"
    assert measure(COST, far, what) == pytest.approx(0.03), "nothing leaves"
    assert not holds_at(CHEAP, here, replace(what, traffic=(replace(sends, sent=2 * HOUR_GIB),)))
    reads = replace(sends, peer="site far", ref=None, sent=0.0)
    assert measure(COST, here, replace(what, traffic=(reads,))) == pytest.approx(0.03 + 0.09), "what a site sends is the reader's"
    assert measure(COST, site("mute"), what) is None, "a price that nobody states is not nothing"
    assert measure(COST, site("mute"), replace(what, traffic=(replace(sends, at=()),))) == pytest.approx(0.03)


@given(st.lists(st.tuples(prices, prices), max_size=3), st.integers(0, 5))
def test_costs_are_the_sum_of_their_parts(asked: list[tuple[float | None, float | None]], count: int) -> None:
    what = workload(licences=tuple(Licence(str(n), *pair) for n, pair in enumerate(asked)))
    found = costs(site("a"), what, count)
    known = not count or all(pair != (None, None) for pair in asked)
    assert (found.total is None) != known
    if known and count:
        by_hand = sum((pair[0] or 0) * count + (pair[1] or 0) for pair in asked) / MONTH_HOURS
        assert found.total == pytest.approx(0.03 * 0.1 * count + by_hand)
