"""Traffic between components: round trips between sites, who must be near whom, what links carry, and what it costs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.resources import traffic
from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, Edge, Link, Snapshot, WorkloadInfo
from metaos.scheduler import columns
from metaos.scheduler.conflicts import as_data, impossible
from metaos.scheduler.filters import FILTERS, distant
from metaos.scheduler.framework import decide
from metaos.scheduler.scores import EGRESS, SCORES, TRAFFIC, evaluate, points, weighted
from metaos.scheduler.world import World
from tests.scheduler.worlds import NOW, clusters, site, workload, workloads, world

DB = ObjectRef("apps", "StatefulSet", "shop", "db")
PARIS = site("paris", region="fr", latitude=48.86, longitude=2.35, latencies={"fi": 42.0})
HAMINA = site("hamina", region="fi", latitude=60.57, longitude=27.19, latencies={"fr": 40.0})
NEARBY = site("nearby", region="fr")


def edge(*at: ClusterInfo, **more: object) -> Edge:
    return Edge(**{"peer": "statefulset/db", "ref": DB, "asks": True, "intent": "near", "at": tuple((s, 1) for s in at)} | more)  # type: ignore[arg-type]


# -- round trips -------------------------------------------------------------------------------------------


def test_a_stated_link_goes_before_regions_before_distance() -> None:
    linked = dataclasses.replace(PARIS, links={"hamina": Link(7.0)})
    assert traffic.round_trip(linked, HAMINA) == traffic.round_trip(HAMINA, linked) == 7.0
    assert traffic.round_trip(PARIS, HAMINA) == 42.0, "the larger of what both state"
    assert traffic.round_trip(PARIS, NEARBY) == traffic.REGION_MILLISECONDS
    far = dataclasses.replace(HAMINA, region="", latencies={})
    apart = traffic.kilometres(PARIS, far)
    assert apart == pytest.approx(2036, rel=0.01)
    assert traffic.round_trip(PARIS, far) == pytest.approx(2 * 2036 * 1.5 / 200, rel=0.01)
    assert "estimated from 20" in traffic.known_by(PARIS, far)
    assert traffic.round_trip(site("x", region="x"), site("y", region="y")) is None
    assert traffic.round_trip(PARIS, PARIS) == 0.0


@given(clusters())
def test_round_trips_are_the_same_both_ways(found: tuple[ClusterInfo, ...]) -> None:
    for one in found:
        for other in found:
            assert traffic.round_trip(one, other) == traffic.round_trip(other, one)
            assert traffic.carries(one, other) == traffic.carries(other, one)


# -- hard edges --------------------------------------------------------------------------------------------


def test_who_must_be_near_is_near_and_the_far_site_says_by_how_much() -> None:
    what = workload(traffic=(edge(HAMINA, most=10.0, hard=True),))
    plan = decide(world(HAMINA, PARIS, site("dark", region="")), what)
    assert dict(plan.clusters) == {"hamina": 1}
    reasons = {r.cluster: r.reason for r in plan.rejected}
    assert reasons["paris"] == (
        "round trip to statefulset/db on hamina is 42 ms (the stated round trips of their regions), "
        "and must be at most 10 ms (intent 'near')"
    )
    assert "is not known" in reasons["dark"]


def test_the_conflict_names_the_edge_and_the_way_out_is_how_much_slower() -> None:
    full = dataclasses.replace(HAMINA, cpu=0)
    what = workload(traffic=(edge(HAMINA, most=10.0, hard=True),))
    found = as_data(impossible(world(full, PARIS), what))
    assert [r["text"] for r in found["requirements"]] == [
        "round trip of at most 10 ms to statefulset/db, which is on hamina",
        "100m CPU",
    ]
    assert found["relaxations"][-1]["changes"] == [
        "let the round trip to statefulset/db be 42 ms instead of at most 10 ms (32 ms off)"
    ]


def test_who_asks_where_the_peer_is_asks_there_alone() -> None:
    both = edge(HAMINA, PARIS, most=10.0, hard=True)
    assert traffic.worst(both, PARIS) == (0.0, PARIS)
    asked = dataclasses.replace(both, asks=False)
    assert traffic.worst(asked, PARIS) == (42.0, HAMINA), "who asks from the other site is as far as that"


# -- links -------------------------------------------------------------------------------------------------


def test_a_link_carries_no_more_than_is_stated_and_what_runs_there_keeps_its_share() -> None:
    thin = site("thin", links={"hamina": Link(5.0, 10 * 2**20)})
    what = workload(traffic=(edge(HAMINA, sent=6.0 * 2**20),))
    snapshot = Snapshot(NOW, (HAMINA, thin), {("thin", "hamina"): 5.0 * 2**20})
    assert distant(snapshot, what, thin) == "sends 6 MiB/s from thin to hamina, and 5 MiB/s are free on that link"
    assert distant(world(thin), what, thin) is None, "nobody else is on it"
    there = dataclasses.replace(what, current={"thin": 1})
    assert distant(snapshot, there, thin) is None
    found = as_data(impossible(Snapshot(NOW, (thin,), snapshot.flows), what))
    assert found["requirements"] == [{"text": "links that carry its traffic with statefulset/db", "source": "intent 'near'"}]


# -- scores ------------------------------------------------------------------------------------------------


def test_without_traffic_nothing_counts_and_with_it_the_nearest_site_wins() -> None:
    assert {s.name for s, _ in weighted(workload())} & {"traffic", "egress"} == set()
    plan = decide(world(HAMINA, NEARBY, PARIS), workload(traffic=(edge(PARIS, weight=5.0),)))
    assert dict(plan.clusters) == {"paris": 1}
    terms = {s.cluster: next(t for t in s.terms if t.name == "traffic") for s in plan.scored}
    assert terms["hamina"].value == pytest.approx(42.0) and terms["hamina"].unit == "ms" and terms["hamina"].weight == 5.0
    assert terms["paris"].points == 100.0


def test_egress_is_counted_in_money_per_hour_at_the_price_of_the_site_that_is_left() -> None:
    dear, free = dataclasses.replace(PARIS, egress_gib=0.1), dataclasses.replace(HAMINA, egress_gib=0.0)
    found = edge(free, sent=2.0**20, answered=2.0**30)
    assert traffic.egress(found, dear) == pytest.approx(3600 / 1024 * 0.1)
    assert traffic.egress(found, free) == 0.0
    assert traffic.egress(found, PARIS) is None, "a price that is not stated is not nothing"


at = st.lists(st.sampled_from(["a", "b", "c"]), min_size=0, max_size=2, unique=True)
edges = st.builds(
    lambda names, **more: (
        names,
        Edge(peer="deployment/x", ref=ObjectRef("apps", "Deployment", "shop", "x"), intent="i", **more),
    ),
    names=at,
    asks=st.booleans(),
    weight=st.floats(0.1, 10),
    money=st.sampled_from([0.0, 1.0, 5.0]),
    most=st.sampled_from([1.0, 30.0, math.inf]),
    hard=st.booleans(),
    sent=st.sampled_from([0.0, 1e6]),
    answered=st.sampled_from([0.0, 5e6]),
)


@st.composite
def talking(draw: st.DrawFn) -> tuple[tuple[ClusterInfo, ...], WorkloadInfo]:
    """Sites, and a workload with traffic to where some of them are."""
    found = tuple(
        dataclasses.replace(
            c,
            latencies=draw(st.dictionaries(st.sampled_from(["north", "south"]), st.floats(1, 200))),
            latitude=draw(st.none() | st.floats(-90, 90)),
            longitude=draw(st.none() | st.floats(-180, 180)),
            egress_gib=draw(st.none() | st.floats(0, 1)),
            links=draw(
                st.dictionaries(
                    st.sampled_from(["a", "b", "c"]),
                    st.builds(Link, st.none() | st.floats(0, 50), st.none() | st.sampled_from([1e5, 2e6, 1e9])),
                    max_size=2,
                )
            ),
        )
        for c in draw(clusters())
    )
    sites = {c.name: c for c in found}
    stated = tuple(
        dataclasses.replace(e, at=tuple((sites[n], count) for n, count in zip(sorted(names), (0, 3), strict=False) if n in sites))
        for names, e in draw(st.lists(edges, max_size=3))
    )
    return found, dataclasses.replace(draw(workloads()), traffic=stated)


@settings(max_examples=25)
@given(talking())
def test_all_sites_at_once_say_what_one_after_the_other_says(made: tuple[tuple[ClusterInfo, ...], WorkloadInfo]) -> None:
    found, what = made
    sites = World(found)
    snapshot = Snapshot(NOW, sites, {("a", "b"): 1.5e6})
    mask = columns.mask(distant, snapshot, what, sites)
    rejects = [distant(snapshot, what, c) is not None for c in sites]
    assert ([False] * len(sites) if mask is None else mask.tolist()) == rejects
    for score in (TRAFFIC, EGRESS):
        for one, cluster in zip(columns.values(score, what, sites).tolist(), sites, strict=True):
            value = score.measure(what, cluster)
            assert math.isnan(one) if value is None else math.isclose(one, value, rel_tol=1e-6, abs_tol=1e-9), score.name
            assert math.isclose(float(columns.points(score, np.array([one]))[0]), points(score, value), rel_tol=1e-6)
    for one, cluster in zip(columns.paid(what, sites).tolist(), sites, strict=True):
        value = traffic.paid(what, cluster)
        assert math.isnan(one) if value is None else math.isclose(one, value, rel_tol=1e-6, abs_tol=1e-9)


@settings(max_examples=25)
@given(talking(), talking())
def test_a_world_that_followed_changes_knows_the_round_trips_of_a_new_one(
    before: tuple[tuple[ClusterInfo, ...], WorkloadInfo], after: tuple[tuple[ClusterInfo, ...], WorkloadInfo]
) -> None:
    followed = World(before[0])
    for one in before[0]:
        followed.between(one)
    changes = {c.name: c for c in after[0] if c.name in followed.row_of}
    for one in changes.values():
        followed.put(one)
    fresh = World(followed)
    for one in fresh:
        assert np.array_equal(followed.between(one), fresh.between(one), equal_nan=True)


@settings(max_examples=25)
@given(talking())
def test_a_hard_edge_is_never_broken_by_a_new_place_and_nothing_unplaced_is_waited_for(
    made: tuple[tuple[ClusterInfo, ...], WorkloadInfo],
) -> None:
    found, what = made
    fresh = dataclasses.replace(what, current={})
    plan = decide(Snapshot(NOW, found), fresh)
    sites = {c.name: c for c in found}
    for name, _ in plan.clusters:
        for one in fresh.traffic:
            reached = traffic.worst(one, sites[name])
            assert not one.hard or reached is None or (reached[0] is not None and reached[0] <= one.most)
    alone = dataclasses.replace(fresh, traffic=tuple(dataclasses.replace(e, at=()) for e in fresh.traffic))
    bare = dataclasses.replace(fresh, traffic=())
    assert decide(Snapshot(NOW, found), alone).clusters == decide(Snapshot(NOW, found), bare).clusters


@settings(max_examples=25)
@given(talking())
def test_points_of_an_edge_are_the_same_whatever_else_is_there(made: tuple[tuple[ClusterInfo, ...], WorkloadInfo]) -> None:
    """So components that each go for their own gain come to rest: what one of them gains by an edge, the other one does too."""
    found, what = made
    placed = [e for e in what.traffic if e.at]
    for cluster in found:
        terms = {t.name: t for t in evaluate(what, cluster)[1]}
        alone = sum(e.weight * points(TRAFFIC, traffic.trip(e, cluster)) for e in placed)
        together = terms["traffic"].weight * terms["traffic"].points if "traffic" in terms else 0.0
        assert math.isclose(alone, together, rel_tol=1e-6, abs_tol=1e-6)


def test_filters_and_scores_are_registered_as_third_parties_are() -> None:
    assert ("Traffic", distant) in FILTERS and {TRAFFIC, EGRESS} <= set(SCORES)
