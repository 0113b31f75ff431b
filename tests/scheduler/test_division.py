"""What replicas cannot meet together: the set named is in conflict, none of it is too much, and every way out leads out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.affinity import PodTerm, SpreadTerm
from metaos.resources.reliability import up
from metaos.resources.snapshot import ClusterInfo, PolicyInfo, Snapshot, Spread, Taint, Target, WorkloadInfo
from metaos.scheduler.conflicts import as_data, impossible, lines
from metaos.scheduler.division import fits, wants
from metaos.scheduler.framework import decide
from tests.scheduler.worlds import NOW, clusters, site, workload, world

ZONE = "zone"


def available(bound: float, at_least: int = 1) -> Target:
    return Target("availability", "IsGreaterThan", value=bound, hard=True, intent="safe", at_least=at_least)


def apart(key: str = ZONE) -> PodTerm:
    return PodTerm(key=key, apart=True, own=True, pods="its own pods")


spreads = st.builds(
    Spread, by=st.sampled_from(["site", "region"]), min_groups=st.integers(1, 3), max_skew=st.sampled_from([0, 0, 1, 2])
)


@st.composite
def asking(draw: st.DrawFn) -> WorkloadInfo:
    """What is divided and asks for something together."""
    return workload(
        draw(st.sampled_from(["Deployment", "Deployment", "StatefulSet"])),
        replicas=draw(st.integers(1, 4)),
        targets=tuple(
            draw(st.lists(st.builds(available, st.sampled_from([0.95, 0.9999, 0.99999999]), st.integers(1, 2)), max_size=1))
        ),
        policy=PolicyInfo(names=("p",), spread=tuple(draw(st.lists(spreads, max_size=1)))),
        near=draw(st.sampled_from([(), (), (apart(),)])),
        spread=draw(st.sampled_from([(), (), (SpreadTerm(ZONE, 1, True),)])),
    )


zoned = clusters().map(lambda found: tuple(replace(c, labels={ZONE: c.region}) for c in found))


@given(zoned, asking())
def test_what_is_named_is_in_conflict_and_every_way_out_leads_out(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    snapshot = Snapshot(NOW, found)
    plan, told = decide(snapshot, what), impossible(snapshot, what)
    if plan.clusters and plan.complete and plan.satisfies:
        return
    assert told.conflict or told.facts or not found, "nothing is left without a reason"
    if not told.division:
        return
    taking = [c for c in found if decide(Snapshot(NOW, (c,)), replace(bare(what), replicas=1)).clusters]
    asked = {w.requirement.text: w for w in wants(what, taking)}
    kept = [r.text for r in told.conflict]

    def meets(texts: list[str]) -> bool:
        left = what
        for text, want in asked.items():
            left = left if text in texts else want.without(left)
        number = f"{what.replicas} replica{'s' * (what.replicas != 1)}"
        counts = [what.replicas] if number in texts else range(1, 13)
        return any(fits(replace(left, replicas=n), taking) for n in counts)

    assert not meets(kept)
    for text in kept:
        assert meets([other for other in kept if other != text]), f"{text} is too much"
    for way in told.relaxations:
        (change, *more) = way.changes
        if way.cluster or more:
            continue
        weaker = next(w for text, _, w in asked[change.requirement.text].weaker if text == change.text)
        then = decide(snapshot, weaker)
        assert then.clusters and then.complete and then.satisfies, change.text


def bare(what: WorkloadInfo) -> WorkloadInfo:
    return replace(what, targets=(), policy=PolicyInfo(), near=(), spread=())


@given(zoned, st.integers(1, 4), st.sampled_from([0.95, 0.9999, 0.99999999]), st.integers(1, 2))
def test_availability_that_is_said_to_be_out_of_reach_is(
    found: tuple[ClusterInfo, ...], replicas: int, bound: float, at_least: int
) -> None:
    what = workload(replicas=replicas, targets=(available(bound, at_least),))
    told = impossible(Snapshot(NOW, found), what)
    if not told.division:
        return
    taking = [c for c in found if decide(Snapshot(NOW, (c,)), bare(replace(what, replicas=1))).clusters]
    for counts in itertools.product(range(replicas + 1), repeat=len(taking)):
        if sum(counts) == replicas and all(decides(c, n) for c, n in zip(taking, counts, strict=True)):
            assert up(list(zip(taking, counts, strict=True)), at_least) <= bound


def decides(site: ClusterInfo, count: int) -> bool:
    return count == 0 or decide(Snapshot(NOW, (site,)), workload(replicas=count)).complete


def test_availability_is_told_with_what_could_be_had_and_how() -> None:
    what = workload(replicas=2, targets=(available(0.99999),))
    told = as_data(impossible(world(site("a"), site("b"), site("c")), what))
    assert lines(told) == [
        "the sites that may take it do not meet this, however it is divided over them:",
        "  - availability above 0.99999  (intent 'safe')",
        "  - 2 replicas  (its replicas)",
        "what would do, the least first:",
        "  1. let availability be 0.999899 instead of above 0.99999",
        "  2. ask for 3 replicas instead of 2",
    ]


@pytest.mark.parametrize(
    ("more", "conflict", "way"),
    [
        ({"near": (apart(),)}, f"one {ZONE} takes one of its pods", "ask for 2 replicas instead of 3"),
        (
            {"policy": PolicyInfo(names=("p",), spread=(Spread("region", 3),))},
            "at least 3 different by region",
            "be in 2 instead of 3 different by region",
        ),
    ],
)
def test_spread_and_affinity_that_hold_for_a_part_only_are_told(more: dict[str, Any], conflict: str, way: str) -> None:
    sites = [site(n, labels={ZONE: z}, region=z) for n, z in (("a", "x"), ("b", "x"), ("c", "y"))]
    what = workload(replicas=3, **more)
    plan, told = decide(world(*sites), what), as_data(impossible(world(*sites), what))
    assert not (plan.complete and plan.satisfies)
    assert conflict in [r["text"] for r in told["requirements"]]
    assert way in [change for found in told["relaxations"] for change in found["changes"]]


def test_a_site_that_would_take_it_without_its_taint_opens_the_way() -> None:
    sites = [site("a", labels={ZONE: "x"}), site("b", labels={ZONE: "y"}, taints=(Taint("k", "", "NoSchedule"),))]
    told = impossible(world(*sites), workload(replicas=2, near=(apart(),)))
    assert any(w.cluster == "b" and w.changes[0].text == "tolerate k:NoSchedule" for w in told.relaxations)
