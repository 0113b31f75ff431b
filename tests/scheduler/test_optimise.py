"""All at once: components that talk go near each other, nothing is lost by that, room is kept, and the bound is one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings

from metaos.resources import traffic
from metaos.resources.snapshot import ClusterInfo, Edge, Snapshot, WorkloadInfo
from metaos.scheduler.applications import MOST_MEMBERS
from metaos.scheduler.filters import FILTERS, closed
from metaos.scheduler.optimise import Optimum, applications, movable, optimise
from metaos.scheduler.scores import evaluate
from tests.scheduler import worlds
from tests.scheduler.test_displacing import continua, counted, work
from tests.scheduler.worlds import NOW


def talking(one: WorkloadInfo, other: WorkloadInfo, **more: object) -> list[WorkloadInfo]:
    """Both ends of one edge."""
    edges = [Edge(b.ref.name, b.ref, asks, "i", **more) for b, asks in ((other, True), (one, False))]  # type: ignore[arg-type]
    return [replace(w, traffic=(*w.traffic, e)) for w, e in zip((one, other), edges, strict=True)]


def ends(all_of: Sequence[WorkloadInfo], found: Optimum) -> dict[str, str]:
    there = {w.ref.name: next(iter(w.current), "") for w in all_of}
    return there | {m.workload.ref.name: m.site for m in found.moves}


FAR = [worlds.site(n, region=n, carbon=c, latencies={o: 80.0 for o in "ab" if o != n}) for n, c in (("a", 200.0), ("b", 190.0))]


def test_components_that_are_apart_are_brought_together_though_each_is_well_placed_alone() -> None:
    web, db = talking(work("web", current={"a": 1}), work("db", current={"b": 1}), weight=8.0)
    assert not optimise(counted(FAR, [web, db]), [replace(w, traffic=()) for w in (web, db)]).moves
    found = optimise(counted(FAR, [web, db]), [web, db])
    assert len(set(ends([web, db], found).values())) == 1 and len(found.moves) == 1
    assert found.after > found.before + 5 and found.considered == 2


def test_who_talks_to_what_stays_goes_to_it() -> None:
    web, db = talking(work("web", current={"a": 1}), replace(work("db", current={"b": 1}), pinned=True), weight=8.0)
    found = optimise(counted(FAR, [web, db]), [web, db])
    assert [(m.workload.ref.name, m.site) for m in found.moves] == [("web", "b")]


def test_the_bound_of_a_small_problem_holds_with_what_cannot_be_avoided_between_sites() -> None:
    # Each has to be where the other one may not.
    at = [replace(c, labels={"at": c.name}) for c in FAR]
    web, db = talking(work("web", node_selector={"at": "a"}), work("db", node_selector={"at": "b"}), weight=8.0)
    found = optimise(counted(at, [web, db]), [web, db])
    assert found.considered == 2 and abs(found.gap) <= 1e-3


def test_an_application_that_is_too_large_stays_where_it_is() -> None:
    hub = work("hub", current={"a": 1}, cpu=1)
    spokes = []
    for n in range(MOST_MEMBERS):
        hub, spoke = talking(hub, work(f"s{n:02}", current={"b": 1}, cpu=1), weight=8.0)
        spokes.append(spoke)
    alone = work("z", current={"a": 1}, cpu=1)
    found = optimise(counted(FAR, [hub, *spokes, alone]), [hub, *spokes, alone])
    assert found.considered == 1 and not found.moves


def cost(all_of: Sequence[WorkloadInfo], sites: Mapping[str, ClusterInfo], at: Mapping[str, str]) -> float:
    """Points that are missing and what moves cost, worked out workload by workload; infinite where that may not be."""
    total, used = 0.0, dict.fromkeys(sites, 0)
    for w in all_of:
        used[at[w.ref.name]] += w.cpu
    if any(n > sites[site].cpu for site, n in used.items()):
        return float("inf")
    for w in all_of:
        where = sites[at[w.ref.name]]
        there = traffic.located(w, lambda about: {at[about.name]: 1}, sites.get, lambda dataset: ())
        empty = Snapshot(NOW, tuple(sites.values()))
        if any(judge(empty, there, where) is not None for name, judge in FILTERS if name != "Capacity"):
            return float("inf")
        if where.name not in w.current and closed(w, where):
            return float("inf")
        moved = bool(w.current) and where.name not in w.current
        total += 100.0 - evaluate(there, where)[0] + (w.policy.minimum_improvement if moved else 0.0)
    return total


def somewhere(sites: Mapping[str, ClusterInfo], all_of: Sequence[WorkloadInfo]) -> list[WorkloadInfo]:
    """At most four of them, by turns at the sites as far as there is room, without traffic with the others."""
    kept = {w.ref for w in all_of[:4]}
    left = {name: site.cpu for name, site in sites.items()}
    found = []
    for n, w in enumerate(all_of[:4]):
        name = sorted(sites)[n % len(sites)]
        fits = w.cpu <= left[name]
        left[name] -= w.cpu if fits else 0
        found.append(
            replace(w, current={name: 1} if fits else {}, traffic=tuple(e for e in w.traffic if e.ref in kept), mode="Whole")
        )
    return found


@settings(max_examples=40)
@given(continua())
def test_it_never_loses_keeps_room_and_hard_edges_and_its_bound_is_one(
    made: tuple[tuple[ClusterInfo, ...], list[WorkloadInfo]],
) -> None:
    sites = {s.name: s for s in made[0]}
    all_of = somewhere(sites, made[1])
    found = optimise(counted(made[0], all_of), all_of)
    assert found.after >= found.before - 1e-9
    at = ends(all_of, found)
    for name, site in sites.items():
        assert sum(w.cpu for w in all_of if at[w.ref.name] == name) <= site.cpu, "room is kept"
    moved = {m.workload.ref.name for m in found.moves}
    for w in all_of:
        for edge in w.traffic:
            if edge.hard and w.ref.name in moved and at[edge.peer]:
                trip = traffic.round_trip(sites[at[w.ref.name]], sites[at[edge.peer]])
                assert trip is not None and trip <= edge.most
    if found.considered == len(all_of) and not math.isinf(found.gap):
        mine = len(all_of) * (100.0 - found.after)
        mine += sum(w.policy.minimum_improvement for w in all_of if w.current and w.ref.name in moved)
        names = [w.ref.name for w in all_of]
        ways = itertools.product(sorted(sites), repeat=len(all_of))
        best = min(cost(all_of, sites, dict(zip(names, way, strict=True))) for way in ways)
        assert mine / (1.0 + found.gap) - 1e-6 <= best <= mine + 1e-6, "no placement is better than the bound"


def test_without_traffic_nothing_is_looked_at_twice() -> None:
    all_of = [work(f"w{n}", current={"a": 1}) for n in range(3)]
    assert applications(all_of) == [] and all(movable(w) for w in all_of)
