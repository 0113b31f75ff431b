"""What-if: the same decisions as the real ones, in order, each within the room that is left; and what else could be had."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given

from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, Move, Snapshot, Target, Users, WorkloadInfo
from metaos.scheduler.framework import decide
from metaos.scheduler.planning import Changes, alternatives, changed_sites, measures, project, together
from metaos.scheduler.quotas import beside, part
from tests.scheduler.worlds import NOW, clusters, site, workload, workloads, world


def named(name: str, **more: object) -> WorkloadInfo:
    return dataclasses.replace(workload(**more), ref=ObjectRef("apps", "Deployment", "shop", name))  # type: ignore[arg-type]


@given(clusters(), workloads())
def test_one_workload_and_no_change_is_what_is_decided(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    free = [
        dataclasses.replace(
            c,
            cpu_requested=c.cpu_requested + what.cpu * what.current.get(c.name, 0),
            memory_requested=c.memory_requested + what.memory * what.current.get(c.name, 0),
            pods_requested=c.pods_requested + what.current.get(c.name, 0),
            quotas=beside(c, what.ref.namespace, part(what.cpu, what.memory, what.current.get(c.name, 0))),
        )
        for c in found
    ]
    (outcome,) = project(Snapshot(NOW, tuple(free)), Changes(), [what])
    assert outcome.plan == decide(Snapshot(NOW, tuple(sorted(found, key=lambda c: c.name))), what)


@given(clusters())
def test_room_is_given_once(found: tuple[ClusterInfo, ...]) -> None:
    asked = [named(f"w{n}", replicas=3, cpu=1500) for n in range(4)]
    used: dict[str, int] = {}
    for outcome in project(Snapshot(NOW, found), Changes(), asked):
        for name, count in outcome.plan.clusters:
            used[name] = used.get(name, 0) + 1500 * count
    for cluster in found:
        assert used.get(cluster.name, 0) <= max(0, cluster.cpu - cluster.cpu_requested)


def test_a_drained_and_a_lost_site_are_left() -> None:
    here = named("web", current={"a": 1})
    for changes in (Changes(drain=frozenset({"a"})), Changes(lose=frozenset({"a"}))):
        (outcome,) = project(world(site("a"), site("b", cpu_hour=0.06)), changes, [here])
        assert dict(outcome.plan.clusters) == {"b": 1} and outcome.changed
        assert outcome.before.cost == pytest.approx(0.003) and outcome.after.cost == pytest.approx(0.006)


def test_prices_and_carbon_change_by_site_and_by_zone() -> None:
    sites = (site("a", zone="DE"), site("b", zone="DE"), site("c", zone="FR"))
    found = {c.name: c for c in changed_sites(sites, Changes(price=(("a", 9.0),), carbon=(("DE", 700.0), ("c", 1.0))), NOW)}
    assert found["a"].cpu_hour == 9.0 and found["b"].cpu_hour == 0.03
    assert (found["a"].carbon, found["b"].carbon, found["c"].carbon) == (700.0, 700.0, 1.0)


@pytest.mark.parametrize(
    "changes",
    [
        Changes(drain=frozenset({"x"})),
        Changes(lose=frozenset({"x"})),
        Changes(price=(("x", 1.0),)),
        Changes(carbon=(("x", 1.0),)),
    ],
)
def test_a_site_that_is_not_there_is_named_with_those_that_are(changes: Changes) -> None:
    with pytest.raises(ValueError, match=r"there is no site.* 'x'; there are a"):
        changed_sites([site("a")], changes, NOW)


def test_a_price_for_a_site_in_another_currency_is_refused_without_its_rate() -> None:
    with pytest.raises(ValueError, match=r"price: a asks for JPY.*state its spec.price.exchangeRate first"):
        changed_sites([site("a", foreign="JPY")], Changes(price=(("a", 1.0),)), NOW)


def test_what_is_not_known_stays_unknown() -> None:
    what = named("web", targets=(Target("latency", "IsLessThan", 50.0, users=Users(("es",)), intent="i"),))
    known = measures(what, {"a": 2}, {"a": site("a", latencies={"es": 20.0})})
    assert known.latency == 20.0 and known.cost == pytest.approx(0.006)
    assert known.power == pytest.approx(5.0) and known.carbon == pytest.approx(1.0)
    unknown = measures(
        what, {"a": 1, "b": 1}, {"a": site("a", latencies={"es": 20.0}), "b": site("b", cpu_hour=None, carbon=None)}
    )
    assert (unknown.latency, unknown.cost, unknown.carbon) == (None, None, None)
    assert together([known, unknown]).cost is None and together([known, known]).cost == pytest.approx(0.012)


def test_alternatives_trade_money_against_carbon_and_none_is_beaten() -> None:
    sites = world(
        site("cheap", cpu_hour=0.01, carbon=500.0),
        site("clean", cpu_hour=0.09, carbon=20.0),
        site("bad", cpu_hour=0.2, carbon=900.0),
    )
    outcomes = list(project(sites, Changes(), [named("web", cpu=1000)]))
    found = alternatives(sites, Changes(), outcomes)
    assert [a.places[0][1] for a in found] == [(("cheap", 1),), (("clean", 1),)]


@given(clusters())
def test_no_alternative_beats_another(found: tuple[ClusterInfo, ...]) -> None:
    asked = [named(f"w{n}", cpu=300) for n in range(3)]
    snapshot = Snapshot(NOW, found)
    ways = alternatives(snapshot, Changes(), list(project(snapshot, Changes(), asked)))
    values = [(w.measures.cost, w.measures.carbon, w.measures.latency) for w in ways]
    for one in values:
        for other in values:
            pairs = [(1e9 if a is None else a, 1e9 if b is None else b) for a, b in zip(one, other, strict=True)]
            assert not (all(a <= b for a, b in pairs) and any(a < b for a, b in pairs))


def test_a_drain_moves_only_what_has_pods_that_can_be_evicted() -> None:
    everywhere = workload("DaemonSet", current={"a": 1, "b": 1})
    nightly = named("nightly", mode="Whole", current={"a": 1})
    nightly = dataclasses.replace(nightly, ref=ObjectRef("batch", "CronJob", "shop", "nightly"))
    asleep = named("asleep", replicas=0, current={"a": 0})
    found = list(project(world(site("a"), site("b")), Changes(drain=frozenset({"a"})), [everywhere, asleep, nightly]))
    assert [dict(o.plan.clusters) for o in found] == [{"a": 1, "b": 1}, {"a": 0}, {"a": 1}] and not any(o.changed for o in found)


def test_the_figures_before_are_those_of_what_is_there_before() -> None:
    now, then = named("web", cpu=1000, current={"a": 1}), named("web", cpu=100, current={"a": 1})
    (outcome,) = project(world(site("a", cpu_requested=1000)), Changes(), [now], present={now.ref: then})
    assert outcome.before.cost == pytest.approx(0.003) and outcome.after.cost == pytest.approx(0.03)


def test_a_move_is_compared_with_staying_in_the_same_changed_world() -> None:
    here = named("web", cpu=1000, current={"a": 1})
    lean = {"max_watts": 100.0, "capacity_cpu": 4000, "carbon": 10.0, "cpu_requested": 1000}
    sites = world(site("a", **lean), site("b", **(lean | {"carbon": 20.0, "cpu_requested": 0})))
    (outcome,) = project(sites, Changes(carbon=(("a", 900.0),)), [here])
    assert dict(outcome.plan.clusters) == {"b": 1}
    assert outcome.before.carbon is not None and outcome.after.carbon is not None
    assert outcome.before.carbon == pytest.approx(45 * outcome.after.carbon)


def test_what_a_policy_keeps_is_told_with_the_reason_and_the_time() -> None:
    here = named("web", cpu=1000, current={"a": 1}, moves=(Move(NOW - 10, ("b",), ("a",)),))
    (outcome,) = project(world(site("a"), site("b")), Changes(carbon=(("a", 900.0),)), [here])
    assert outcome.held and "cool-down" in outcome.plan.reason and outcome.plan.again == NOW + 290
    (settled,) = project(world(site("a"), site("b")), Changes(), [here])
    assert not settled.held


def test_what_others_may_see_is_not_counted_and_its_room_is_not_given_away() -> None:
    mine, theirs = named("web", cpu=3000), named("web", cpu=3000)
    theirs = dataclasses.replace(theirs, ref=ObjectRef("apps", "Deployment", "other", "web"))
    sites = world(site("a", cpu_hour=0.01), site("b", cpu_hour=0.02))
    outcomes = [o.in_short() for o in project(sites, Changes(), [theirs, mine])]
    assert [dict(o.plan.clusters) for o in outcomes] == [{"a": 1}, {"b": 1}]
    (way,) = alternatives(sites, Changes(), outcomes, within={"shop"})
    assert way.places == ((mine.ref, (("b", 1),)),) and way.measures.cost == pytest.approx(0.06)


def test_a_lost_site_is_a_fact_and_its_taint_nothing_to_tolerate() -> None:
    here = named("web", current={"a": 1})
    (outcome,) = project(world(site("a"), site("b", unschedulable=True)), Changes(lose=frozenset({"a"})), [here])
    assert outcome.impossible is not None and outcome.impossible.conflict == ()
    assert outcome.impossible.facts == (("a", "the site does not answer"), ("b", "the site is cordoned"))
