"""Sites and workloads that state absurd amounts spoil no other one's decision."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from metaos.apiserver.shaping import shape, validate
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import ObjectRef
from metaos.resources.reading import cluster_info, workload_info
from metaos.resources.snapshot import Edge, Snapshot, Target, Users
from metaos.resources.traffic import edges_of
from metaos.scheduler.applications import expected
from metaos.scheduler.conflicts import as_data, impossible
from metaos.scheduler.explain import placement_status
from metaos.scheduler.filters import FILTERS, room
from metaos.scheduler.framework import decide
from metaos.scheduler.scores import SCORES, Score
from metaos.scheduler.world import World
from tests.controllers.continuum import cluster, deployment
from tests.scheduler.worlds import NOW, site, workload, world

HUGE = 10**33


@pytest.mark.parametrize("word", ["cpu", "memory", "pods"])
def test_a_site_of_absurd_size_is_one_with_much_room(word: str) -> None:
    sites = World([site("a", carbon=900.0), site("b", **{word: HUGE})])
    assert dict(decide(Snapshot(NOW, sites), workload()).clusters) == {"b": 1}
    sites.put(site("b", **{f"{word}_requested": HUGE}))
    assert dict(decide(Snapshot(NOW, sites), workload()).clusters) == {"a": 1}


def test_an_absurd_count_of_devices_is_many() -> None:
    sites = World([site("a"), site("b", devices={"example.com/device": HUGE})])
    assert dict(decide(Snapshot(NOW, sites), workload(devices=(("example.com/device", 1),))).clusters) == {"b": 1}
    assert not decide(Snapshot(NOW, sites), workload(devices=(("example.com/device", 2 * HUGE),))).clusters


def test_a_site_without_any_room_takes_nothing_and_says_so() -> None:
    empty = cluster_info(cluster("a", capacity={"cpu": "0", "memory": "0", "pods": "0"}))
    plan = decide(world(empty), workload_info(deployment()))
    assert not plan.clusters and "needs 100m CPU, and 0 of 0 is free" in plan.reason


@pytest.mark.parametrize("word", ["cpu", "memory"])
def test_a_workload_that_asks_for_absurd_amounts_has_no_place_and_says_why(word: str) -> None:
    what = workload(replicas=2**31 - 1, **{word: HUGE})
    assert room(what, site("a")) == 0
    plan = decide(world(site("a")), what)
    assert not plan.clusters and "no site can take it" in plan.reason
    near = Edge("deployment/x", ObjectRef("apps", "Deployment", "shop", "x"), True, "near")
    other = dataclasses.replace(workload(), ref=near.ref, traffic=(dataclasses.replace(near, ref=what.ref, asks=False),))
    talking = dataclasses.replace(what, mode="Whole", traffic=(near,))
    assert near.ref is not None
    assert expected(world(site("a")), {talking.ref: talking, near.ref: other}) is None


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"capacity": {"cpu": "1e30"}}, "spec.capacity.cpu"),
        ({"capacity": {"memory": "-1"}}, "spec.capacity.memory"),
        ({"availability": 1.5}, "spec.availability"),
        ({"availability": -0.1}, "spec.availability"),
        ({"links": [{"cluster": "x"}]}, "spec.links[0].cluster"),
        ({"links": [{"cluster": "y", "bytesPerSecond": "0"}]}, "spec.links[0].bytesPerSecond"),
        ({"links": [{"cluster": "y", "milliseconds": -1}]}, "spec.links[0].milliseconds"),
    ],
)
def test_what_no_site_can_be_is_refused_by_field(spec: dict[str, object], field: str) -> None:
    stated = cluster("x", **spec)
    del stated["status"]
    with pytest.raises(ApiError) as wrong:
        validate(scheme.CLUSTER, shape(scheme.CLUSTER, stated, None, "Strict", []), None)
    assert [c["field"] for c in wrong.value.details["causes"]] == [field]


def test_a_site_that_is_never_up_is_not_taken_for_one_that_says_nothing() -> None:
    assert cluster_info(cluster("a", availability=0)).availability == 0.0
    assert cluster_info(cluster("a")).availability == 0.9995


def test_two_intents_that_contradict_each_other_are_both_named() -> None:
    """A bound of one and a bound of another, each by itself met somewhere."""
    bounds = [("slow", "IsGreaterThan", 50.0), ("fast", "IsLessThan", 10.0)]
    targets = tuple(Target("latency", c, v, hard=True, users=Users(("es",)), intent=i) for i, c, v in bounds)
    sites = [site("near", latencies={"es": 5.0}), site("far", latencies={"es": 80.0})]
    found = as_data(impossible(world(*sites), workload(targets=targets)))
    assert {r["source"] for r in found["requirements"]} == {"intent 'slow'", "intent 'fast'"}
    assert len(found["relaxations"]) == 2


@pytest.mark.parametrize("amount", ["1e400", "9" * 400])
def test_traffic_of_absurd_size_is_much_traffic(amount: str) -> None:
    """Kubernetes caps every quantity."""
    traffic = [{"from": {"name": "web"}, "to": {"name": "db"}, "bytesPerSecond": amount}]
    intent = {**scheme.INTENT.empty("talk", "shop"), "spec": {"traffic": traffic}}
    found = workload_info(deployment(), traffic=edges_of(ObjectRef("apps", "Deployment", "shop", "web"), [intent]))
    assert found.traffic[0].sent == 2.0**63
    link = [{"cluster": "b", "bytesPerSecond": amount}]
    there = cluster_info(cluster("a", links=link, prices={"currency": "EUR", "egressGiB": 1}))
    plan = decide(world(there), found)
    assert dict(plan.clusters) == {"a": 1}


@pytest.mark.parametrize("said", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("better", [True, False])
def test_what_a_plugin_says_is_no_number_spoils_no_status(said: float, better: bool) -> None:
    plugin = Score("odd", "points", lambda what, at: said, 1.0, 5.0, "", better)
    plan = decide(world(site("a"), site("b")), workload(), FILTERS, [*SCORES, plugin])
    json.dumps(placement_status(plan), allow_nan=False)
    for found in plan.scored:
        weight = sum(t.weight for t in found.terms)
        assert found.total == pytest.approx(sum(t.weight * t.points for t in found.terms) / weight)
