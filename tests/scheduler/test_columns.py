"""All sites at once says what one site after the other says, whatever the world and the workload; and a world follows changes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.snapshot import ClusterInfo, Snapshot, Target, Users, WorkloadInfo
from metaos.resources.targets import LOWER, RANGES, UPPER
from metaos.scheduler import columns, solver
from metaos.scheduler.filters import FILTERS, closed, room
from metaos.scheduler.framework import decide
from metaos.scheduler.scores import SCORES, evaluate, points, weighted
from metaos.scheduler.world import World
from tests.scheduler.worlds import NOW, clusters, residency, site, workload, workloads, world

CONDITIONS = [*UPPER, *LOWER, *RANGES, "Minimize"]
WORDS = ["latency", "carbonIntensity", "emissions", "energy", "cost", "availability"]
targets = st.one_of(
    st.builds(
        Target,
        name=st.sampled_from(WORDS),
        condition=st.sampled_from(CONDITIONS),
        value=st.sampled_from([0.0, 0.01, 20.0, 300.0]),
        low=st.just(10.0),
        high=st.sampled_from([10.0, 200.0]),
        hard=st.booleans(),
        users=st.sampled_from([Users(), Users(("es",)), Users(("es", "fr")), Users(("es", "fr"), (0.75, 0.25))]),
    ),
    st.builds(
        Target,
        name=st.just("residency"),
        condition=st.sampled_from(["IsOneOf", "IsNotOneOf", "IsAllOf", "IsEqualTo"]),
        values=st.sampled_from([(), ("EU",), ("US",), ("EU", "CH")]),
        hard=st.just(True),
    ),
    st.builds(
        Target,
        name=st.just("trust"),
        condition=st.sampled_from(["IsOneOf", "IsNotOneOf", "IsEqualTo"]),
        values=st.sampled_from([("low",), ("medium", "high"), ("other",)]),
        hard=st.booleans(),
    ),
)
asked = st.builds(lambda w, t: dataclasses.replace(w, targets=(*w.targets, *t)), workloads(), st.lists(targets, max_size=3))


def named(found: tuple[ClusterInfo, ...]) -> tuple[ClusterInfo, ...]:
    return tuple(sorted(found, key=lambda c: c.name))


def test_nothing_of_ours_is_asked_site_by_site() -> None:
    """That would be most of a decision where there are a thousand. Wishes for affinity are, where there are any."""
    assert {judge for _, judge in FILTERS} <= columns.MASKS.keys()
    assert {score.name for score in SCORES if score.measure not in columns.COLUMNS} == {"affinity"}


@given(clusters(), asked)
def test_every_filter_rejects_where_its_words_do(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    snapshot, sites = Snapshot(NOW, named(found)), World(found)
    for name, judge in FILTERS:
        mask = columns.mask(judge, snapshot, what, sites)
        rejects = [judge(snapshot, what, c) is not None for c in sites]
        assert ([False] * len(sites) if mask is None else mask.tolist()) == rejects, name


@given(clusters(), asked)
def test_every_score_measures_the_same(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    sites = World(found)
    for score in SCORES:
        together = columns.values(score, what, sites)
        for one, cluster in zip(together.tolist(), sites, strict=True):
            value = score.measure(what, cluster)
            assert math.isnan(one) if value is None else math.isclose(one, value, rel_tol=1e-12), score.name
            assert math.isclose(float(columns.points(score, np.array([one]))[0]), points(score, value), rel_tol=1e-12)
    totals = columns.totals(what, sites, weighted(what))
    for total, cluster in zip(totals.tolist(), sites, strict=True):
        assert math.isclose(total, evaluate(what, cluster)[0], rel_tol=1e-9, abs_tol=1e-9)


@given(clusters(), asked)
def test_room_is_the_same(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    sites = World(found)
    assert columns.room(what, sites).tolist() == [room(what, c) for c in sites]
    assert solver.Spaces(what, found) == {}, "nothing is worked out before it is asked for"
    spaces = solver.Spaces(what, found)
    for c in sites:
        assert spaces[c.name] == max(0 if closed(what, c) else room(what, c), what.current.get(c.name, 0))


@given(clusters(), clusters(), asked)
def test_a_world_that_followed_changes_is_one_that_was_made_anew(
    before: tuple[ClusterInfo, ...], after: tuple[ClusterInfo, ...], what: WorkloadInfo
) -> None:
    followed = World(before)
    decide(Snapshot(NOW, followed), what)
    changes = {c.name: c for c in after}
    for name in [c.name for c in before]:
        if name in changes:
            followed.put(changes[name])
    fresh = tuple(changes.get(c.name, c) for c in named(before))
    assert tuple(followed) == fresh
    assert decide(Snapshot(NOW, followed), what) == decide(Snapshot(NOW, fresh), what)


@given(clusters(), asked)
def test_a_world_beside_it_differs_in_what_is_free_alone(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    sites = World(found)
    fuller = [dataclasses.replace(c, cpu_requested=c.cpu_requested + 500, pods_requested=c.pods_requested + 1) for c in sites][:2]
    beside = sites.beside(fuller)
    fresh = tuple(next((f for f in fuller if f.name == c.name), c) for c in named(found))
    assert tuple(beside) == fresh and tuple(sites) == named(found)
    assert decide(Snapshot(NOW, beside), what) == decide(Snapshot(NOW, fresh), what)


def test_reasons_are_worked_out_when_they_are_looked_at() -> None:
    looked: list[str] = []

    def moon(snapshot: Snapshot, what: WorkloadInfo, cluster: ClusterInfo) -> str | None:
        looked.append(cluster.name)
        return "no full moon"

    moon.column = lambda snapshot, what, sites: np.array([c.name != "a" for c in sites])  # type: ignore[attr-defined]
    plan = decide(world(site("a"), site("b"), site("c")), workload(), (*FILTERS, ("Moon", moon)))
    assert not looked and dict(plan.clusters) == {"a": 1}
    assert [(r.cluster, r.filter, r.reason) for r in plan.rejected] == [(n, "Moon", "no full moon") for n in ("b", "c")]
    assert looked == ["b", "c"]


def test_a_law_that_nobody_named_holds_nowhere() -> None:
    sites = World([site("a"), site("b", jurisdictions=frozenset())])
    assert columns.lawful(residency("CH"), sites).tolist() == [False, False]
