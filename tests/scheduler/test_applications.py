"""Applications of several components: the optimum of small ones, what no move improves, and no end of moves."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from metaos.resources import traffic
from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import Edge, PolicyInfo, Snapshot, WorkloadInfo
from metaos.resources.traffic import located
from metaos.scheduler import applications
from metaos.scheduler.applications import Together, decide_among, expected, members_of, with_expected
from metaos.scheduler.filters import FILTERS
from metaos.scheduler.framework import decide
from metaos.scheduler.scores import EGRESS, SCORES, TRAFFIC, evaluate, points, weighted
from metaos.scheduler.world import World, taking
from tests.scheduler.worlds import NOW, site, workload

NAMES = "uvwx"
Places = Mapping[ObjectRef, str]


def ref(name: str) -> ObjectRef:
    return ObjectRef("apps", "Deployment", "shop", name)


def talk(one: str, other: str, **more: float | bool) -> tuple[str, str, dict[str, float | bool]]:
    return one, other, more


def components(*talks: tuple[str, str, dict[str, float | bool]], **more: dict[str, object]) -> dict[ObjectRef, WorkloadInfo]:
    """Workloads by name with what they say to each other; ``more``: what else holds of one."""
    names = sorted({n for one, other, _ in talks for n in (one, other)} | more.keys())
    found = {}
    for name in names:
        edges = []
        for one, other, said in talks:
            if name in (one, other):
                peer, asks = (other, True) if name == one else (one, False)
                way = {"sent": said.get("sent", 0.0), "answered": said.get("answered", 0.0)}
                if not asks:
                    way = {"sent": way["answered"], "answered": way["sent"]}
                rest = {k: v for k, v in said.items() if k not in way}
                edges.append(Edge(f"deployment/{peer}", ref(peer), asks, "near", **rest, **way))  # type: ignore[arg-type]
        usual = dataclasses.replace(workload(), ref=ref(name), traffic=tuple(edges))
        found[ref(name)] = dataclasses.replace(usual, **more.get(name, {}))  # type: ignore[arg-type]
    return found


def there(found: Mapping[ObjectRef, WorkloadInfo], sites: World) -> dict[ObjectRef, WorkloadInfo]:
    """With everybody's peers where they are now."""
    return {
        about: located(w, lambda peer: found[peer].current if peer in found else {}, sites.site, sites.holding)
        for about, w in found.items()
    }


def together(sites: World, found: Mapping[ObjectRef, WorkloadInfo]) -> Together | None:
    return expected(Snapshot(NOW, sites), there(found, sites))


def value(sites: World, found: Mapping[ObjectRef, WorkloadInfo], places: Places) -> float | None:
    """Weight x points over everything, counted site by site; ``None`` where that is not allowed."""
    total, room = (
        0.0,
        {c.name: [c.cpu - c.cpu_requested, c.memory - c.memory_requested, c.pods - c.pods_requested] for c in sites},
    )
    seen = set()
    for about, w in found.items():
        here = sites.site(places[about])
        assert here is not None
        alone = dataclasses.replace(w, traffic=())
        if any(judge(Snapshot(NOW, tuple(sites)), alone, here) for _, judge in FILTERS):
            return None
        for at, amount in enumerate((w.cpu * w.replicas, w.memory * w.replicas, w.replicas)):
            room[here.name][at] -= amount
        weight = sum(importance for _, importance in weighted(alone))
        total += weight * evaluate(alone, here)[0]
        for number, edge in enumerate(w.traffic):
            assert edge.ref is not None
            if edge.asks:
                peer = sites.site(places[edge.ref])
                assert peer is not None
                placed = dataclasses.replace(edge, at=((peer, 1),))
                worst = traffic.worst(placed, here)
                if edge.hard and (worst is None or worst[0] is None or worst[0] > edge.most):
                    return None
                total += edge.weight * points(TRAFFIC, traffic.trip(placed, here))
                total += edge.money * points(EGRESS, traffic.egress(placed, here)) if edge.money else 0.0
                seen.add((about, number))
    return None if any(left < 0 for each in room.values() for left in each) else total


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(2, 4))
    return World(
        site(
            f"s{i}",
            region=f"r{i}",
            carbon=draw(st.sampled_from([10.0, 100.0, 400.0])),
            cpu=draw(st.sampled_from([150, 250, 1000])),
            egress_gib=draw(st.sampled_from([None, 0.0, 0.1])),
            latencies={f"r{j}": draw(st.sampled_from([2.0, 15.0, 60.0])) for j in range(i)},
        )
        for i in range(count)
    )


edges = st.fixed_dictionaries(
    {
        "weight": st.sampled_from([1.0, 3.0, 10.0]),
        "money": st.sampled_from([0.0, 1.0]),
        "sent": st.sampled_from([0.0, 1e6]),
        "answered": st.just(1e5),
        "most": st.sampled_from([5.0, 20.0, math.inf]),
        "hard": st.booleans(),
    }
)


@st.composite
def graphs(draw: st.DrawFn) -> dict[ObjectRef, WorkloadInfo]:
    """Up to four components that hang together."""
    names = NAMES[: draw(st.integers(2, 4))]
    talks = [talk(names[draw(st.integers(0, i - 1))], names[i], **draw(edges)) for i in range(1, len(names))]
    if len(names) > 2 and draw(st.booleans()):
        talks.append(talk(names[0], names[-1], **draw(edges)))
    return components(*talks)


@settings(max_examples=40)
@given(worlds(), graphs())
def test_small_applications_are_placed_best_and_that_is_proven(sites: World, found: dict[ObjectRef, WorkloadInfo]) -> None:
    every = [dict(zip(found, at, strict=True)) for at in itertools.product(sites.names, repeat=len(found))]
    values = [v for places in every if (v := value(sites, found, places)) is not None]
    answer = together(sites, found)
    assert (answer is None) == (not values)
    if answer is not None:
        mine = value(sites, found, answer.places)
        assert mine is not None and math.isclose(mine, max(values), rel_tol=1e-9)
        assert answer.proven and answer.points <= answer.bound + 1e-6


@settings(max_examples=25)
@given(worlds(), graphs())
def test_one_after_the_other_they_go_where_they_were_expected_and_then_rest(
    sites: World, found: dict[ObjectRef, WorkloadInfo]
) -> None:
    answer = together(sites, found)
    assume(answer is not None)
    assert answer is not None
    now, world = dict(found), sites
    for _ in range(3):
        for about in sorted(now):
            seen = there(now, sites)
            ahead = expected(Snapshot(NOW, world), members_of(seen[about], seen.get))
            without = taking(world, now[about], now[about].current, -1)
            _, plan = decide_among(Snapshot(NOW, without), seen[about], ahead)
            assert plan.complete, plan.reason
            if now[about].current:
                assert dict(plan.clusters) == now[about].current, f"{about.name} moves again: {plan.reason}"
            else:
                assert "of 100 points" in plan.reason or ahead is None
            now[about] = dataclasses.replace(now[about], current=dict(plan.clusters))
            world = taking(without, now[about], now[about].current, 1)
    ends = {about: next(iter(w.current)) for about, w in now.items()}
    end, promised = value(sites, found, ends), value(sites, found, answer.places)
    assert end is not None and promised is not None and end >= promised - 1e-6


@settings(max_examples=25)
@given(worlds(), graphs(), st.lists(st.sampled_from([10.0, 100.0, 400.0]), min_size=4, max_size=4))
def test_when_the_world_turns_they_come_to_rest(sites: World, found: dict[ObjectRef, WorkloadInfo], carbon: list[float]) -> None:
    """Without cool-down and budget, so that nothing but the gain itself ends the moves."""
    eager = PolicyInfo(cool_down_seconds=0.0, budget_per_hour=1000, minimum_improvement=1.0)
    answer = together(sites, found)
    assume(answer is not None)
    assert answer is not None
    now = {a: dataclasses.replace(w, policy=eager, current={answer.places[a]: 1}) for a, w in found.items()}
    turned = World(dataclasses.replace(c, carbon=g) for c, g in zip(sites, carbon, strict=False))
    world = turned
    for w in now.values():
        world = taking(world, w, w.current, 1)
    for _ in range(12):
        moved = False
        for about in sorted(now):
            seen = there(now, turned)
            ahead = expected(Snapshot(NOW, world), members_of(seen[about], seen.get))
            without = taking(world, now[about], now[about].current, -1)
            _, plan = decide_among(Snapshot(NOW, without), seen[about], ahead)
            moved |= dict(plan.clusters) != now[about].current
            now[about] = dataclasses.replace(now[about], current=dict(plan.clusters))
            world = taking(without, now[about], now[about].current, 1)
        if not moved:
            return
    raise AssertionError("still moving after 12 rounds")


# -- cases -------------------------------------------------------------------------------------------------

CLEAN = site("clean", region="n", carbon=20.0, latencies={"s": 60.0})
CLOSE = site("close", region="s", carbon=300.0)


def test_what_talks_much_goes_together_and_what_does_not_goes_its_way() -> None:
    homes = {"u": {"policy": PolicyInfo(names=("p",), allowed=frozenset({"close"}))}}
    tight = together(World([CLEAN, CLOSE]), components(talk("u", "v", weight=10.0), **homes))
    loose = together(World([CLEAN, CLOSE]), components(talk("u", "v", weight=0.1), **homes))
    assert tight is not None and dict(tight.places) == {ref("u"): "close", ref("v"): "close"}
    assert loose is not None and dict(loose.places) == {ref("u"): "close", ref("v"): "clean"}


def test_a_drained_site_is_left_together_and_what_is_settled_stays() -> None:
    drained = dataclasses.replace(CLOSE, unschedulable=True)
    other = site("other", region="s", carbon=300.0)
    gone = {"current": {"close": 1}, "evicted": frozenset({"close"})}
    found = together(World([CLEAN, drained, other]), components(talk("u", "v", most=5.0, hard=True), u=gone, v=gone))
    assert found is not None and found.places[ref("u")] == found.places[ref("v")] != "close"
    stays = together(
        World([CLEAN, drained, other]), components(talk("u", "v", most=5.0, hard=True), u=gone, v={"current": {"other": 1}})
    )
    assert stays is None or dict(stays.places) == {ref("u"): "other"}


def test_what_is_settled_makes_way_where_nothing_else_goes_and_goes_first() -> None:
    small = site("small", region="s", cpu=150)
    found = components(talk("u", "v", most=5.0, hard=True), u={"current": {"small": 1}})
    sites = taking(World([small, CLEAN]), found[ref("u")], {"small": 1}, 1)
    answer = together(sites, found)
    assert answer is not None and dict(answer.places) == {ref("u"): "clean", ref("v"): "clean"} and answer.way == {ref("u")}
    seen = there(found, sites)
    goes, waits = (with_expected(seen[ref(n)], answer, sites).traffic[0].at for n in "uv")
    assert (goes[0][0].name, waits[0][0].name) == ("clean", "small")


def test_they_go_together_for_a_gain_that_none_has_alone() -> None:
    both = {"current": {"close": 1}}
    found = components(talk("u", "v", weight=10.0), u=both, v=both)
    sites = World([dataclasses.replace(CLEAN, carbon=0.0, cpu_hour=0.0), dataclasses.replace(CLOSE, carbon=900.0, cpu_hour=1.0)])
    seen = there(found, sites)
    alone = decide(Snapshot(NOW, sites), seen[ref("u")])
    assert dict(alone.clusters) == {"close": 1}, alone.reason
    answer = together(sites, found)
    assert answer is not None and set(answer.places.values()) == {"clean"}
    _, plan = decide_among(Snapshot(NOW, sites), seen[ref("u")], answer)
    assert dict(plan.clusters) == {"clean": 1} and "together with deployment/v on clean" in plan.reason
    held = components(talk("u", "v", weight=10.0), u=both, v=both | {"policy": PolicyInfo(budget_per_hour=0)})
    assert together(sites, held) is None, "one that may not move does not"


def test_many_sites_give_an_answer_with_a_bound_in_the_stated_effort() -> None:
    random = np.random.default_rng(1)
    sites = World(
        site(f"s{i:03}", region="", latitude=float(random.uniform(40, 60)), longitude=float(random.uniform(-5, 25)),
             carbon=float(random.uniform(20, 600)), cpu=2000)
        for i in range(200)
    )  # fmt: skip
    names = [f"w{i}" for i in range(8)]
    talks = [talk(names[int(random.integers(0, i))], names[i], weight=3.0) for i in range(1, 8)]
    answer = together(sites, components(*talks))
    assert answer is not None and len(answer.places) == 8
    assert 0 < answer.points <= answer.bound <= 100


def test_applications_that_are_too_large_are_placed_one_by_one() -> None:
    names = [f"w{i:02}" for i in range(applications.MOST_MEMBERS + 1)]
    found = components(*[talk(names[0], n) for n in names[1:]])
    assert members_of(found[ref("w00")], found.get) == {}
    assert {s.name for s in SCORES} >= {"traffic", "egress"}
