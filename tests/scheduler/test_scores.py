"""Scores: values in units, points from 0 to 100, weights from intents."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given

from metaos.resources.measures import grams, measure, watts
from metaos.resources.snapshot import ClusterInfo, PolicyInfo, Target, Users, WorkloadInfo
from metaos.scheduler.filters import broken_bound
from metaos.scheduler.framework import decide
from metaos.scheduler.scores import SCORES, evaluate, points, weight, weighted
from tests.scheduler.worlds import clusters, site, workload, workloads, world

BY_NAME = {s.name: s for s in SCORES}


@given(clusters(), workloads())
def test_points_and_totals_stay_between_0_and_100(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    for cluster in found:
        total, terms = evaluate(what, cluster)
        assert 0 <= total <= 100 + 1e-9 and all(0 <= t.points <= 100 and t.weight > 0 for t in terms)
        assert total == pytest.approx(sum(t.weight * t.points for t in terms) / sum(t.weight for t in terms))


@pytest.mark.parametrize("name", ["latency", "carbon", "emissions", "energy", "cost"])
def test_less_is_better_and_the_reference_earns_half(name: str) -> None:
    score = BY_NAME[name]
    assert points(score, score.reference) == 50
    assert points(score, 0.0) == 100 > points(score, score.reference / 2) > points(score, score.reference * 2)


def test_what_is_not_known_earns_nothing() -> None:
    _, terms = evaluate(workload(), site("a", carbon=None, cpu_hour=None))
    unknown = {t.name: t for t in terms if t.value is None}
    assert set(unknown) == {"carbon", "cost"} and not any(t.points for t in unknown.values())


def test_an_intent_raises_the_weight_of_what_it_names_by_its_priority() -> None:
    def carbon(priority: int) -> float:
        return weight(BY_NAME["carbon"], workload(targets=(Target("carbonIntensity", "Minimize", priority=priority),)))

    assert weight(BY_NAME["carbon"], workload()) == 1
    assert (carbon(0), carbon(100)) == (2, 11)


def test_latency_counts_only_where_an_intent_names_users() -> None:
    assert "latency" not in {t.name for t in evaluate(workload(), site("a"))[1]}
    what = workload(targets=(Target("latency", "IsLessThan", 40, users=Users(("x", "y"))),))
    term = next(t for t in evaluate(what, site("a", latencies={"x": 10.0, "y": 25.0}))[1] if t.name == "latency")
    assert (term.value, term.unit) == (25.0, "ms")


def test_the_hours_to_come_count_as_much_as_this_one() -> None:
    where = site("a", carbon=100.0, forecast=(100.0, 300.0, 300.0, 300.0, 300.0, 999.0))
    term = next(t for t in evaluate(workload(), where)[1] if t.name == "carbon")
    assert (term.value, term.unit) == (200.0, "gCO2eq/kWh")


def test_power_follows_the_sites_model_and_its_cooling() -> None:
    where = site("a", idle_watts=20.0, max_watts=100.0, capacity_cpu=4000, pue=1.5)
    term = next(t for t in evaluate(workload(replicas=2, cpu=500), where)[1] if t.name == "energy")
    assert term.value == pytest.approx((100 - 20) * 1000 / 4000 * 1.5) and term.unit == "W"


def test_an_operators_preference_decides_between_equals() -> None:
    what = workload(policy=PolicyInfo(preferred=frozenset("b")))
    assert evaluate(what, site("b"))[0] > evaluate(what, site("a"))[0]


def test_carbon_counts_what_the_hardware_embodies_by_the_energy_of_any_load() -> None:
    """18 g an hour over 300 W at a PUE of 1.2 are 50 g a kWh."""
    where = site("a", carbon=100.0, idle_watts=100.0, max_watts=400.0, pue=1.2, embodied=18.0)
    term = next(t for t in evaluate(workload(), where)[1] if t.name == "carbon")
    assert term.value == 150.0
    for cpu in (100, 2000):
        assert grams(where, cpu) == pytest.approx(watts(where, cpu) / 1000 * 150.0)
    assert grams(site("b", carbon=None), 100) is None


SMALL = site("gateway", carbon=300.0, capacity_cpu=4000, max_watts=8.0, idle_watts=2.0, cpu_hour=0.03)
LARGE = site("server", carbon=100.0, capacity_cpu=4000, max_watts=500.0, idle_watts=100.0, cpu_hour=0.03, embodied=4.0)


@pytest.mark.parametrize(("target", "best"), [("emissions", "gateway"), ("carbonIntensity", "server")])
def test_fewest_grams_and_cleanest_electricity_are_two_things_to_ask_for(target: str, best: str) -> None:
    what = workload(cpu=200, targets=(Target(target, "Minimize", intent="i", priority=100),))
    counting = [(s, w) for s, w in weighted(what) if s.target == target]
    assert max((SMALL, LARGE), key=lambda c: evaluate(what, c, counting)[0]).name == best
    if target == "emissions":
        assert [c for c, _ in decide(world(SMALL, LARGE), what).clusters] == [best]


def test_emissions_count_for_all_replicas_and_only_where_an_intent_asks() -> None:
    what, wish = workload(replicas=3, cpu=200), Target("emissions", "IsLessThan", 0.1, hard=True, intent="i")
    assert "emissions" not in {t.name for t in evaluate(what, LARGE)[1]}
    asks = workload(replicas=3, cpu=200, targets=(wish,))
    term = next(t for t in evaluate(asks, LARGE)[1] if t.name == "emissions")
    assert (term.value, term.unit) == (pytest.approx(400 * 0.6 / 4 / 1000 * 100 + 4 * 0.6 / 4), "gCO2eq/h")
    assert term.value == pytest.approx(measure(Target("emissions", "Minimize"), LARGE, asks))
    assert broken_bound(wish, asks, LARGE) == "what it emits is 6.6 gCO2eq/h, and must be below 0.1 gCO2eq/h (intent 'i')"
    assert broken_bound(wish, asks, site("x", max_watts=0.0)) == (
        "what it emits is not known here, and must be below 0.1 gCO2eq/h (intent 'i')"
    )
    later = dataclasses.replace(LARGE, forecast=(100.0, 300.0, 300.0))
    ahead = next(t.value for t in evaluate(asks, later)[1] if t.name == "emissions")
    assert ahead == pytest.approx(400 * 0.6 / 4 / 1000 * 200 + 4 * 0.6 / 4)
