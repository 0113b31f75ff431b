"""Data sets and volumes: work comes to its data, must be near it or under its laws, and what bringing it along takes is said."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.resources import traffic
from metaos.resources.measures import measure
from metaos.resources.snapshot import GIB, ClusterInfo, Dataset, Edge, Link, Snapshot, Target, WorkloadInfo
from metaos.scheduler import columns
from metaos.scheduler.conflicts import as_data, impossible
from metaos.scheduler.explain import talk_line, traffic_status
from metaos.scheduler.filters import FILTERS, distant
from metaos.scheduler.framework import decide
from metaos.scheduler.scores import EGRESS, GRAVITY, TRAFFIC, evaluate
from metaos.scheduler.world import World
from tests.scheduler.worlds import NOW, clusters, site, workload, workloads, world

HELD = {"images": Dataset(200 * GIB)}
PARIS = site("paris", region="fr", latitude=48.86, longitude=2.35, datasets=HELD, egress_gib=0.05)
LYON = site("lyon", region="fr", carbon=150.0)
HAMINA = site("hamina", region="fi", latitude=60.57, longitude=27.19, carbon=20.0, links={"paris": Link(40.0, 1e9)})

COST = Target("cost", "Minimize")


def reads(**more: object) -> WorkloadInfo:
    """Of 100 GB a day."""
    edge = Edge(**{"peer": "data set images", "ref": None, "asks": True, "intent": "reads", "dataset": "images"} | more)  # type: ignore[arg-type]
    return workload(traffic=(dataclasses.replace(edge, answered=100e9 / 86400, money=1.0),))


def located(what: WorkloadInfo, *sites: ClusterInfo) -> WorkloadInfo:
    there = World(sites)
    return traffic.located(what, lambda about: {}, there.site, there.holding)


def test_work_comes_to_its_data_where_nothing_else_is_worth_it() -> None:
    sites = PARIS, LYON, HAMINA
    assert dict(decide(world(*sites), workload()).clusters) == {"hamina": 1}, "it is the cleanest"
    plan = decide(world(*sites), located(reads(weight=10.0), *sites))
    assert dict(plan.clusters) == {"paris": 1}
    terms = {t.name: t for t in evaluate(located(reads(), *sites), HAMINA)[1]}
    assert (terms["gravity"].value, terms["gravity"].unit) == (pytest.approx(100.0), "GB/day")
    assert terms["egress"].value == pytest.approx(100e9 / 24 / GIB * 0.05)


def test_of_several_copies_the_nearest_is_used() -> None:
    far = site("far", region="fi", datasets=HELD, egress_gib=9.0)
    what = located(reads(), PARIS, LYON, HAMINA, far)
    assert [c.name for c, _ in what.traffic[0].at] == ["far", "paris"]
    assert [c.name for c, _ in traffic.shares(what.traffic[0], LYON)] == ["paris"]
    assert traffic.trip(what.traffic[0], HAMINA) == traffic.REGION_MILLISECONDS
    assert traffic.gravity(what, far) == 0.0


def test_a_hard_edge_keeps_it_where_the_data_is() -> None:
    what = located(reads(most=0.0, hard=True), PARIS, LYON)
    plan = decide(world(PARIS, LYON), what)
    assert dict(plan.clusters) == {"paris": 1}
    assert [r.reason for r in plan.rejected] == [
        "round trip to data set images on paris is 1 ms (both are in one region), and must be at most 0 ms (intent 'reads')"
    ]
    full = dataclasses.replace(PARIS, cpu=0)
    told = as_data(impossible(world(full, LYON), located(what, full, LYON)))
    assert told["requirements"][0]["text"] == "round trip of at most 0 ms to data set images, which is on paris"


@pytest.mark.parametrize("change", [{"ready": False}, {"deleting": True}, {"datasets": {}}])
def test_data_that_nobody_can_read_rejects_every_site_and_says_so(change: dict[str, object]) -> None:
    gone = dataclasses.replace(PARIS, **change)  # type: ignore[arg-type]
    what = located(reads(most=5.0, hard=True), gone, LYON)
    plan = decide(world(gone, LYON), what)
    assert not plan.clusters
    assert {r.reason for r in plan.rejected if r.cluster == "lyon"} == {
        "data set images lies at no site that answers (intent 'reads')"
    }
    assert "lies at no site" in str(as_data(impossible(world(gone, LYON), what))["requirements"])
    assert decide(world(gone, LYON), located(reads(), gone, LYON)).clusters, "a preference waits for nothing"


def test_who_reads_data_is_under_its_laws() -> None:
    lawful = dataclasses.replace(PARIS, datasets={"images": Dataset(0, ("EU",))})
    abroad = site("abroad", jurisdictions=frozenset({"US"}), carbon=1.0)
    what = located(reads(), lawful, abroad)
    assert located(what, lawful, abroad) == what, "it is stated once, however often it is looked at"
    plan = decide(world(lawful, abroad), what)
    assert dict(plan.clusters) == {"paris": 1}
    assert [r.reason for r in plan.rejected] == ["data set images must stay in EU (intent 'reads'), and the site is in US"]
    assert not located(what, PARIS, abroad).targets, "and no longer than it is stated"
    silent = dataclasses.replace(lawful, ready=False)
    assert located(what, silent, abroad).targets == what.targets, "a site that does not answer suspends no law"
    assert not decide(world(silent, abroad), located(what, silent, abroad)).clusters


def test_a_bound_on_cost_counts_what_its_data_costs_to_read() -> None:
    what = located(reads(), PARIS, LYON)
    assert measure(COST, LYON, what) == pytest.approx(0.003 + 100e9 / 24 / GIB * 0.05)
    assert measure(COST, PARIS, what) == pytest.approx(0.003)


def test_explanations_say_gigabytes_grams_and_what_a_copy_would_take() -> None:
    row = traffic_status(located(reads(), PARIS, HAMINA), [HAMINA])[0]
    assert row["gigabytesPerDay"] == pytest.approx(100.0) and row["gramsPerDay"] == pytest.approx(100 * 0.001 * 200)
    assert row["copy"] == {
        "bytes": 200 * GIB,
        "seconds": pytest.approx(200 * GIB / 1e9, abs=1e-5),
        "money": 10.0,
        "grams": pytest.approx(42.95, abs=0.01),
    }
    assert talk_line(row) == (
        "asks      data set images on paris: 40 ms (the stated link); egress 0.194 EUR an hour; "
        "100 GB a day over the network (20 gCO2eq); a copy here would take 200 GiB, 215 s, 10 EUR, 42.9 gCO2eq"
        "  (intent 'reads')"
    )
    here = traffic_status(located(reads(), PARIS, HAMINA), [PARIS])[0]
    assert here["gigabytesPerDay"] == 0.0 and "copy" not in here


def test_who_shares_a_claim_comes_to_it_and_what_is_pinned_says_what_bringing_it_takes() -> None:
    shares = workload(homes=frozenset({"paris"}))
    plan = decide(world(PARIS, HAMINA), shares)
    assert dict(plan.clusters) == {"paris": 1}
    assert [r.reason for r in plan.rejected] == ["a claim that it uses lies on paris"]
    pinned = workload("StatefulSet", local_data=True, pinned=True, current={"paris": 1}, claimed=20 * GIB)
    assert [r.reason for r in decide(world(PARIS, HAMINA), pinned).rejected] == [
        "its data is on paris; up to 20 GiB, 21.5 s, 1 EUR, 4.29 gCO2eq to bring it"
    ]
    full = dataclasses.replace(PARIS, cpu=0)
    assert "a claim that it uses" in str(as_data(impossible(world(full, HAMINA), shares))["requirements"])


# -- whatever the world ------------------------------------------------------------------------------------


@st.composite
def reading(draw: st.DrawFn) -> tuple[tuple[ClusterInfo, ...], WorkloadInfo]:
    held = st.dictionaries(st.sampled_from(["one", "two"]), st.builds(Dataset, st.just(0), st.sampled_from([(), ("EU",)])))
    found = tuple(
        dataclasses.replace(c, datasets=draw(held), egress_gib=draw(st.none() | st.floats(0, 1))) for c in draw(clusters())
    )
    edges = st.builds(
        Edge,
        peer=st.just("data set x"),
        ref=st.none(),
        asks=st.booleans(),
        intent=st.just("i"),
        dataset=st.sampled_from(["one", "two"]),
        money=st.sampled_from([0.0, 1.0]),
        most=st.sampled_from([0.0, 5.0, math.inf]),
        hard=st.booleans(),
        sent=st.sampled_from([0.0, 1e6]),
        answered=st.sampled_from([0.0, 1e7]),
    )
    what = dataclasses.replace(
        draw(workloads()), traffic=tuple(draw(st.lists(edges, max_size=2))), homes=draw(st.frozensets(st.sampled_from("ab")))
    )
    return found, located(what, *found)


@settings(max_examples=40)
@given(reading())
def test_all_sites_at_once_say_what_one_after_the_other_says(made: tuple[tuple[ClusterInfo, ...], WorkloadInfo]) -> None:
    found, what = made
    sites = World(found)
    snapshot = Snapshot(NOW, sites)
    for name, judge in FILTERS:
        mask = columns.mask(judge, snapshot, what, sites)
        rejects = [judge(snapshot, what, c) is not None for c in sites]
        assert ([False] * len(sites) if mask is None else mask.tolist()) == rejects, name
    for score in (TRAFFIC, EGRESS, GRAVITY):
        for one, cluster in zip(columns.values(score, what, sites).tolist(), sites, strict=True):
            value = score.measure(what, cluster)
            assert math.isnan(one) if value is None else math.isclose(one, value, rel_tol=1e-6, abs_tol=1e-9), score.name
    for one, cluster in zip(columns.paid(what, sites).tolist(), sites, strict=True):
        value = traffic.paid(what, cluster)
        assert math.isnan(one) if value is None else math.isclose(one, value, rel_tol=1e-6, abs_tol=1e-9)


@settings(max_examples=40)
@given(reading())
def test_new_work_never_breaks_a_hard_edge_to_data_nor_its_law(made: tuple[tuple[ClusterInfo, ...], WorkloadInfo]) -> None:
    found, what = made
    fresh = dataclasses.replace(what, current={})
    sites = {c.name: c for c in found}
    for name, _ in decide(Snapshot(NOW, found), fresh).clusters:
        assert distant(Snapshot(NOW, found), fresh, sites[name]) is None
        assert not fresh.homes or name in fresh.homes
        for edge in fresh.traffic:
            laws = [set(c.datasets[edge.dataset].residency) for c, _ in edge.at]
            assert all(not law or law & sites[name].jurisdictions for law in laws)


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_a_world_that_followed_changes_knows_where_data_lies(held: list[bool]) -> None:
    followed = World([site("a"), site("b")])
    assert followed.holding("images") == []
    for has in held:
        followed.put(site("a", datasets=HELD if has else {}))
        assert [c.name for c in followed.holding("images")] == (["a"] if has else [])
    assert np.array_equal(followed.stated(("x",), lambda c: None), [np.nan, np.nan], equal_nan=True)


def test_copies_that_lie_under_different_laws_ask_for_all_of_these() -> None:
    paris = site("paris", jurisdictions=frozenset({"FR", "EU"}), datasets={"images": Dataset(0, ("EU",))})
    zurich = site("zurich", jurisdictions=frozenset({"CH"}), datasets={"images": Dataset(0, ("FR", "CH"))})
    what = located(reads(), paris, zurich)
    assert [t.values for t in what.targets if t.name == "residency"] == [("EU",), ("FR", "CH")]
    # Zurich is under the law of its own copy and not of the other one; Paris is under both.
    assert dict(decide(world(paris, zurich), what).clusters) == {"paris": 1}
