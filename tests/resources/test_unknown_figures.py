"""What a site does not state is not known: it is neither nothing, nor another currency's figure; and who the users are."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.resources.measures import costs, grams, latency, watts
from metaos.resources.reading import cluster_info, targets_of
from metaos.resources.snapshot import ClusterInfo, Users
from metaos.scheduler.framework import decide
from metaos.scheduler.scores import ENERGY, points, users
from tests.controllers.continuum import cluster
from tests.scheduler.worlds import Target, workload, world

POWER = {"idleWatts": 10, "maxWatts": 50}
YEN = {"currency": "JPY", "cpuHour": 7, "memoryGiBHour": 1, "egressGiB": 5, "spot": {"cpuHour": 2}}


def site(name: str = "a", **spec: Any) -> ClusterInfo:
    return cluster_info(cluster(name, status={"capacity": {"cpu": "4", "memory": "8Gi", "pods": "40"}}, **spec))


def test_a_site_without_a_power_model_is_not_the_one_that_needs_least() -> None:
    silent, honest = site("a"), site("b", power=POWER)
    assert (watts(silent, 1000), grams(silent, 1000)) == (None, None)
    assert watts(honest, 1000) == 10.0
    assert points(ENERGY, ENERGY.measure(workload(), silent)) == 0.0
    little = workload(targets=(Target("energy", "IsLessThan", value=30.0, hard=True, intent="little"),))
    plan = decide(world(silent, honest), little)
    assert dict(plan.clusters) == {"b": 1}
    assert plan.rejected[0].reason == "power is not known here, and must be below 30 W (intent 'little')"


def test_prices_in_another_currency_are_known_with_its_rate_alone() -> None:
    unknown, known = site(price=YEN), site(price=YEN | {"exchangeRate": 0.006})
    assert (unknown.cpu_hour, unknown.egress_gib, unknown.spot) == (None, None, None)
    assert costs(unknown, workload(), 1).missing == "its prices are in JPY, and no exchangeRate is stated"
    assert known.cpu_hour == pytest.approx(0.042)
    assert known.egress_gib == pytest.approx(0.03)
    assert known.spot is not None
    assert known.spot.cpu_hour == pytest.approx(0.012)
    assert site(price={"cpuHour": 0.02}).cpu_hour == site(price={"cpuHour": 0.02, "currency": "EUR"}).cpu_hour == 0.02


def test_a_bound_on_cost_says_which_currency_hides_it() -> None:
    cheap = workload(targets=(Target("cost", "IsLessThan", value=1.0, hard=True, intent="cheap"),))
    (found,) = decide(world(site(price=YEN)), cheap).rejected
    hidden = "cost is not known here (its prices are in JPY, and no exchangeRate is stated)"
    assert found.reason == f"{hidden}, and must be below 1 EUR/h (intent 'cheap')"


def users_of(value: object) -> Users:
    contexts = [{"name": "usersIn", "value": value}]
    target = {"name": "latency", "value": 40, "contexts": contexts}
    (found,) = targets_of({"metadata": {"name": "i"}, "spec": {"expectations": [{"targets": [target]}]}})
    return found.users


def test_users_count_by_where_they_are() -> None:
    near, far = (
        site(n, latencies=[{"region": r, "milliseconds": ms} for r, ms in at.items()])
        for n, at in (("a", {"es": 10, "fr": 50}), ("b", {"es": 45, "fr": 45}))
    )
    many, worst = users_of({"es": 3, "fr": 1}), users_of(["es", "fr"])
    assert many.text == " from users in es (0.75), fr (0.25)"
    assert [latency(c, many) for c in (near, far)] == [20.0, 45.0]
    assert [latency(c, worst) for c in (near, far)] == [50.0, 45.0]
    asked = workload(targets=(Target("latency", "IsLessThan", 40.0, hard=True, users=many, intent="i"),))
    assert dict(decide(world(near, far), asked).clusters) == {"a": 1}
    assert (
        users(workload(targets=(Target("latency", "Minimize", users=many), Target("latency", "Minimize", users=worst)))).shares
        == ()
    )
