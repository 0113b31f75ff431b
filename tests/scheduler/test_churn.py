"""What a move costs, and that one which does not earn it is not made."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings

from metaos.resources.measures import cost, grams
from metaos.resources.reading import cluster_info, workload_info
from metaos.resources.snapshot import ClusterInfo, PolicyInfo, Target, WorkloadInfo
from metaos.resources.workload import image_name
from metaos.scheduler.churn import NETWORK_KWH_PER_GB, churn
from metaos.scheduler.framework import decide
from tests.controllers.continuum import cluster, deployment
from tests.scheduler.worlds import clusters, site, workload, workloads, world

IMAGE = "docker.io/library/python:3"
OLD, NEW = site("old", carbon=500.0, images={IMAGE: 10**9}), site("new", carbon=100.0)
WHAT = workload(replicas=2, current={"old": 2}, images=(IMAGE,), policy=PolicyInfo(drain_seconds=36.0))


def test_a_move_costs_what_is_fetched_and_what_runs_twice() -> None:
    found = churn([OLD, NEW], WHAT, {"new": 2})
    load = WHAT.cpu * 2
    assert (found.fetched, found.unknown, found.twice, found.interrupted) == (10**9, 0, 36.0, False)
    assert found.grams == pytest.approx(NETWORK_KWH_PER_GB * 100.0 + (grams(OLD, load) or 0) / 100)
    assert found.money == pytest.approx((cost(OLD, WHAT, 2) or 0) / 100)
    assert found.saves == pytest.approx((grams(OLD, load) or 0) - (grams(NEW, load) or 0))
    assert found.text.startswith("moving fetches 953.7 MiB, runs it twice for 36 s and costs 0.125 gCO2eq and ")
    held = dataclasses.replace(NEW, images={IMAGE: 10**9})
    assert churn([OLD, held], WHAT, {"new": 2}).fetched == 0
    assert churn([site("old"), NEW], WHAT, {"new": 2}).text.startswith("moving fetches images of unknown size")


def test_what_must_not_run_twice_is_interrupted_instead() -> None:
    found = churn([OLD, NEW], dataclasses.replace(workload("StatefulSet"), current={"old": 1}), {"new": 1})
    assert found.interrupted and found.twice == 0.0 and "interrupts it until it runs there" in found.text


def test_a_move_that_takes_too_long_to_earn_its_carbon_is_not_made_and_one_that_does_says_what_it_costs() -> None:
    clean = Target("carbonIntensity", "Minimize", intent="clean", priority=100)
    what = dataclasses.replace(WHAT, targets=(clean,))
    plan = decide(world(OLD, NEW), what)
    assert dict(plan.clusters) == {"new": 2} and "points better; moving fetches 953.7 MiB" in plan.reason
    heavy = dataclasses.replace(OLD, images={IMAGE: 10**14})
    plan = decide(world(heavy, NEW), what)
    assert dict(plan.clusters) == {"old": 2} and "earned back in" in plan.reason and plan.reason.startswith("stays: new would be")


@settings(max_examples=25)
@given(clusters(), workloads())
def test_costs_are_never_negative_and_nothing_that_stays_costs_anything(
    found: tuple[ClusterInfo, ...], what: WorkloadInfo
) -> None:
    for places in ({c.name: 1 for c in found}, {c.name: 1 for c in found[:1]}):
        costs = churn(found, what, places)
        assert costs.fetched >= 0 and costs.twice >= 0 and (costs.grams or 0) >= 0 and (costs.money or 0) >= 0
    here = {c.name: what.current[c.name] for c in found if c.name in what.current}
    stays = churn(found, dataclasses.replace(what, current=here), here)
    assert (stays.fetched, stays.grams, stays.money) == (0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3", IMAGE),
        ("me/app:1", "docker.io/me/app:1"),
        ("quay.io/me/app", "quay.io/me/app:latest"),
        ("localhost:5000/app@sha256:abc", "localhost:5000/app@sha256:abc"),
    ],
)
def test_images_have_one_full_name(short: str, full: str) -> None:
    assert image_name(short) == full == image_name(full)


def test_sites_and_workloads_say_which_images() -> None:
    status = {"images": [{"names": ["python:3"], "sizeBytes": 5}]}
    assert cluster_info(cluster("a", status=status)).images == {IMAGE: 5}
    assert cluster_info(cluster("a", status=status)) == cluster_info(cluster("a")), "no decision is made anew for an image"
    assert workload_info(deployment()).images == (IMAGE,)
