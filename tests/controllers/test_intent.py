"""The intent controller: status by measurement, events on transitions."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.controllers import intent as controller
from metaos.controllers import placement
from metaos.network import intents
from metaos.resources import scheme
from tests.controllers.continuum import cluster, deployment, events, intent, running, until
from tests.fake_client import FakeClient


def latency(value: float) -> dict[str, Any]:
    contexts = [{"name": "usersIn", "value": "x"}]
    return {"name": "latency", "condition": "IsLessThan", "value": value, "unit": "ms", "hard": True, "contexts": contexts}


def status(client: FakeClient) -> dict[str, Any]:
    return (client.find(scheme.INTENT, "wish", "shop") or {}).get("status") or {}


NEAR = [{"region": "x", "milliseconds": 12}]


async def test_it_says_fulfilled_once_the_workload_is_placed() -> None:
    objects = cluster("a", latencies=NEAR), intent(latency(40)), deployment()
    async with running(placement.setup, controller.setup, objects=objects) as (client, clock):
        await until(clock, lambda: status(client).get("fulfilment") == "Fulfilled")
        await until(clock, lambda: "Fulfilled" in events(client))
        assert status(client)["targets"][0]["value"] == 12.0


async def test_what_cannot_be_met_comes_with_the_nearest_offer() -> None:
    objects = cluster("a", latencies=NEAR), intent(latency(1)), deployment()
    async with running(placement.setup, controller.setup, objects=objects) as (client, clock):
        await until(clock, lambda: status(client).get("targets"))
        await clock.advance(1)
        assert status(client)["fulfilment"] == "NotFulfilled"
        assert status(client)["targets"][0]["nearest"] == {"cluster": "a", "value": 12.0, "gap": 11.0}


async def test_a_site_that_gets_slower_changes_it_and_since() -> None:
    objects = cluster("a", latencies=NEAR), intent(latency(40) | {"hard": False}), deployment()
    async with running(placement.setup, controller.setup, objects=objects) as (client, clock):
        await until(clock, lambda: status(client).get("fulfilment") == "Fulfilled")
        since = status(client)["since"]
        await clock.advance(60)
        client.seed(cluster("a", latencies=[{"region": "x", "milliseconds": 90}]))
        await until(clock, lambda: status(client).get("fulfilment") == "Degraded")
        assert status(client)["since"] > since


async def test_an_intent_that_holds_is_looked_at_again_for_its_own_sites_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def evaluate(*arguments: Any, **more: Any) -> dict[str, Any]:
        looked.append(arguments[0]["metadata"]["name"])
        return intents.evaluate(*arguments, **more)

    monkeypatch.setattr(controller, "evaluate", evaluate)
    far = [{"region": "x", "milliseconds": 90}]
    objects = cluster("a", latencies=NEAR), cluster("b", latencies=far), intent(latency(40)), deployment()
    async with running(placement.setup, controller.setup, objects=objects) as (client, clock):
        await until(clock, lambda: status(client).get("fulfilment") == "Fulfilled")
        await clock.advance(1)
        looked.clear()
        client.seed(cluster("b", latencies=far, electricity={"carbonIntensity": 1}))
        await clock.advance(1)
        assert looked == [], "it is not there"
        client.seed(cluster("a", latencies=far))
        await until(clock, lambda: status(client).get("fulfilment") != "Fulfilled")
        await clock.advance(1)
        looked.clear()
        client.seed(cluster("b", latencies=NEAR))
        await until(clock, lambda: looked)
        await until(clock, lambda: status(client).get("fulfilment") == "Fulfilled")


async def test_a_settled_status_is_not_written_again() -> None:
    objects = cluster("a", latencies=NEAR), intent(latency(40)), deployment()
    async with running(placement.setup, controller.setup, objects=objects) as (client, clock):
        await until(clock, lambda: status(client).get("fulfilment") == "Fulfilled")
        await clock.advance(1)
        before = len(client.calls)
        client.seed(cluster("a", latencies=NEAR, status={"usage": {"cpu": "1"}}))
        await clock.advance(30)
        assert client.calls[before:] == []


async def test_a_bound_on_cost_counts_licences_and_what_leaves_the_site() -> None:
    price = {"cpuHour": 0.1, "egressGiB": 0.5}
    wish = intent({"name": "cost", "condition": "IsLessThan", "value": 1.0})
    wish["spec"] |= {
        "licences": [{"name": "db", "perReplicaMonth": 73}],
        "traffic": [{"from": {"name": "web"}, "to": {"cluster": "b"}, "bytesPerSecond": str(2**30 // 3600)}],
    }
    away = cluster("b", price=price, unschedulable=True)
    async with running(placement.setup, controller.setup, objects=(cluster("a", price=price), away, wish, deployment())) as (
        client,
        clock,
    ):
        await until(clock, lambda: status(client).get("fulfilment") == "Fulfilled")
        assert abs(status(client)["targets"][0]["value"] - (0.01 + 0.1 + 0.5)) < 1e-5
        placed = client.find(scheme.PLACEMENT, "deployment-web", "shop") or {}
        assert placed["status"]["costs"] == [
            {"cluster": "a", "computing": 0.01, "licences": 0.1, "egress": 0.499999, "lost": 0.0}
        ]
