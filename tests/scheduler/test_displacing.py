"""Plans that displace, with and without traffic: room is kept, only lower priorities give way, and it comes to rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, Edge, Snapshot, WorkloadInfo
from metaos.scheduler.planning import Changes, Outcome, alternatives, project
from tests.scheduler import worlds

#: A round decides everything once. What waits may be placed in the next one, and others come nearer to it in the one after.
MOST_ROUNDS = 12


def work(name: str, priority: int = 0, kind: str = "StatefulSet", **more: object) -> WorkloadInfo:
    usual = {"cpu": 1000, "memory": 0} | more
    return replace(worlds.workload(kind, **usual), ref=ObjectRef("apps", kind, "shop", name), priority=priority)


def counted(sites: Sequence[ClusterInfo], all_of: Sequence[WorkloadInfo]) -> Snapshot:
    """With what everybody has where it is."""

    def full(site: ClusterInfo) -> ClusterInfo:
        here = [(w, w.current[site.name]) for w in all_of if w.current.get(site.name)]
        return replace(site, cpu_requested=sum(w.cpu * n for w, n in here), pods_requested=sum(n for _, n in here))

    return Snapshot(worlds.NOW, tuple(full(s) for s in sites))


def planned(sites: Sequence[ClusterInfo], all_of: Sequence[WorkloadInfo], new: Sequence[WorkloadInfo] = ()) -> dict[str, Outcome]:
    """The last outcome of each. ``new`` alone are decided, where there are any; the others may be displaced."""
    places = {w.ref: w.current for w in all_of}
    others = all_of if new else ()
    outcomes = project(counted(sites, all_of), Changes(), new or all_of, places=places, others=others)
    return {o.workload.ref.name: o for o in outcomes}


def ends(outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, int]]:
    return {name: dict(o.plan.clusters) for name, o in outcomes.items()}


def test_a_chain_of_displacements_is_told_to_its_end() -> None:
    sites = worlds.site("a", cpu=2000), worlds.site("b", cpu=1000)
    middle = work("middle", 5, cpu=2000, current={"a": 1})
    low = work("low", 1, current={"b": 1})
    high = work("high", 9, cpu=2000)
    found = planned(sites, [middle, low], [high])
    assert ends(found) == {"high": {"a": 1}, "middle": {}}, "nothing lower is in its way that would help"
    assert "its room is needed by StatefulSet shop/high, whose priority is 9" in str(list(found["middle"].plan.rejected))
    small = work("small", 5, current={"a": 1})
    found = planned(sites, [small, low], [high])
    assert ends(found) == {"high": {"a": 1}, "small": {"b": 1}, "low": {}}, "who gives way displaces in turn"
    assert found["low"].workload.current == {"b": 1} and found["low"].changed


def test_who_is_displaced_goes_where_there_is_room_and_is_decided_once() -> None:
    sites = worlds.site("a", cpu=1000), worlds.site("b", cpu=1000, carbon=900.0)
    low, high = work("low", current={"a": 1}), work("urgent", 9, node_selector={"only": "a"})
    labelled = replace(sites[0], labels={"only": "a"}), sites[1]
    asked = list(project(counted(labelled, [low]), Changes(), [high, low], places={low.ref: low.current}))
    assert [(o.workload.ref.name, dict(o.plan.clusters)) for o in asked] == [("urgent", {"a": 1}), ("low", {"b": 1})]
    assert alternatives(counted(labelled, [low]), Changes(), asked), "alternatives are found among what has a place"


@pytest.mark.parametrize("keeps", [{"preempts": False}, {"priority": 0}])
def test_who_may_not_displace_does_not(keeps: dict[str, object]) -> None:
    low = work("low", current={"a": 1})
    high = replace(work("urgent", 9), **keeps)  # type: ignore[arg-type]
    assert ends(planned([worlds.site("a", cpu=1000)], [low], [high])) == {"urgent": {}}
    pinned = replace(low, pinned=True, local_data=True)
    assert ends(planned([worlds.site("a", cpu=1000)], [pinned], [work("urgent", 9)])) == {"urgent": {}}


@st.composite
def continua(draw: st.DrawFn) -> tuple[tuple[ClusterInfo, ...], list[WorkloadInfo]]:
    """Three sites with room for a few, and workloads that talk, of several priorities."""
    room = st.sampled_from([1000, 2000, 3000])
    carbon = st.sampled_from([20.0, 200.0, 600.0])
    regions = {"a": "north", "b": "south", "c": "south"}
    sites = tuple(worlds.site(name, cpu=draw(room), region=where, carbon=draw(carbon)) for name, where in regions.items())
    names = [f"w{n}" for n in range(draw(st.integers(2, 6)))]
    kinds = st.sampled_from(["StatefulSet", "Deployment"])
    all_of = [work(name, draw(st.integers(0, 2)), draw(kinds), cpu=draw(st.sampled_from([500, 1000]))) for name in names]
    for _ in range(draw(st.integers(0, 4))):
        one, other = draw(st.lists(st.integers(0, len(names) - 1), min_size=2, max_size=2, unique=True))
        bound = {"most": 5.0, "hard": True} if draw(st.booleans()) else {}
        weight = draw(st.sampled_from([1.0, 8.0]))
        for asks, mine, peer in ((True, one, other), (False, other, one)):
            about = all_of[peer].ref
            edge = Edge(about.name, about, asks, "i", weight=weight, **bound)  # type: ignore[arg-type]
            all_of[mine] = replace(all_of[mine], traffic=(*all_of[mine].traffic, edge))
    return sites, all_of


@settings(max_examples=40, deadline=None)
@given(continua())
def test_displacing_and_placing_together_keeps_room_and_comes_to_rest(
    made: tuple[tuple[ClusterInfo, ...], list[WorkloadInfo]],
) -> None:
    sites, all_of = made
    for _ in range(MOST_ROUNDS):
        found = planned(sites, all_of)
        by = {w.ref.name: w for w in all_of}
        for outcome in found.values():
            for site, reason in outcome.workload.displaced.items():
                name = reason.partition("shop/")[2].partition(",")[0]
                assert by[name].priority > outcome.workload.priority and site in {s.name for s in sites}
        all_of = [replace(w, current=dict(found[w.ref.name].plan.clusters)) for w in all_of]
        for site in counted(sites, all_of).clusters:
            assert site.cpu_requested <= site.cpu, "no room is given away twice"
        if not any(o.changed for o in found.values()):
            break
    else:
        raise AssertionError(f"it does not come to rest: {ends(found)}")
    waiting = [w for w in all_of if not w.current]
    for wanted in waiting:
        for site in counted(sites, all_of).clusters:
            free = site.cpu - site.cpu_requested
            near = not any(e.hard for e in wanted.traffic)
            assert free < wanted.cpu or not near, "who waits could not have been placed as it is"
