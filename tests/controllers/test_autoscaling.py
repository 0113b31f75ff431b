"""The autoscaler over the fake client: it scales, says what it did and why not, and remembers."""

from __future__ import annotations

from typing import Any

from metaos.controllers import autoscaling
from metaos.resources import scheme
from metaos.resources.meta import Obj, condition, format_time
from tests.clock import FakeClock
from tests.controllers.continuum import deployment, events, running, until
from tests.fake_client import FakeClient


def workload(replicas: int = 1) -> Obj:
    found = deployment(replicas=replicas)
    found["metadata"]["uid"] = "d-web"
    found["spec"]["selector"] = {"matchLabels": {"app": "web"}}
    return found


def scaler(name: str = "web", **spec: Any) -> Obj:
    target = {"type": "Utilization", "averageUtilization": 50}
    usual = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "minReplicas": 1,
        "maxReplicas": 5,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 30}},
    }
    return {**scheme.HORIZONTAL_POD_AUTOSCALER.empty(name, "shop"), "spec": usual | spec}


def load(client: FakeClient, clock: FakeClock, *millis: int) -> None:
    """Pods with this use, long ready, on several sites."""
    long_ago = format_time(clock.now() - 3600)
    for number, used in enumerate(millis):
        name = f"web-{number}"
        pod: Obj = dict(scheme.POD.empty(name, "shop"))
        pod["metadata"]["labels"] = {"app": "web"}
        container = {"name": "c", "image": "python:3", "resources": {"requests": {"cpu": "100m"}}}
        pod["spec"] = {"nodeName": f"site-{number % 2}", "containers": [container]}
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": long_ago}
        pod["status"] = {"phase": "Running", "startTime": long_ago, "conditions": [ready]}
        metric: Obj = dict(scheme.POD_METRICS.empty(name, "shop"))
        metric |= {
            "timestamp": format_time(clock.now()),
            "window": "5.000s",
            "containers": [{"name": "c", "usage": {"cpu": f"{used}m"}}],
        }
        client.seed(pod, metric)


def shown(client: FakeClient, name: str = "web") -> Obj:
    found = client.find(scheme.HORIZONTAL_POD_AUTOSCALER, name, "shop")
    assert found is not None
    return found


def size(client: FakeClient) -> int:
    found = client.find(scheme.DEPLOYMENT, "web", "shop")
    assert found is not None
    return int(found["spec"]["replicas"])


async def test_it_grows_with_the_load_and_shrinks_after_the_window() -> None:
    async with running(autoscaling.setup, objects=(workload(),)) as (client, clock):
        load(client, clock, 120)
        client.seed(scaler())
        await until(clock, lambda: size(client) == 3)
        await until(clock, lambda: shown(client).get("status", {}).get("desiredReplicas") == 3)
        status = shown(client)["status"]
        assert status["currentReplicas"] == 1 and status["lastScaleTime"]
        assert status["currentMetrics"][0]["resource"]["current"] == {"averageUtilization": 120, "averageValue": "120m"}
        assert {c["type"]: c["status"] for c in status["conditions"]} == {
            "AbleToScale": "True",
            "ScalingActive": "True",
            "ScalingLimited": "False",
        }
        assert "SuccessfulRescale" in " ".join(events(client))
        load(client, clock, 1, 1, 1)
        await clock.advance(16)
        assert size(client) == 3
        await until(clock, lambda: size(client) == 1, 60)


async def test_what_is_missing_is_said_once() -> None:
    async with running(autoscaling.setup, objects=(scaler(),)) as (client, clock):
        await until(clock, lambda: condition(shown(client), "AbleToScale"))
        found = condition(shown(client), "AbleToScale")
        assert found and found["reason"] == "FailedGetScale" and '"web" not found' in found["message"]
        client.seed(workload(2))
        await until(
            clock, lambda: (condition(shown(client), "ScalingActive") or {}).get("reason") == "FailedGetResourceMetric", 20
        )
        said = len(events(client))
        await clock.advance(61)
        assert len(events(client)) == said and size(client) == 2


async def test_two_of_one_target_do_nothing_and_other_kinds_are_refused() -> None:
    other = scaler("daemons", scaleTargetRef={"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d"})
    async with running(autoscaling.setup, objects=(workload(9), scaler(), scaler("second"), other)) as (client, clock):
        for name, rival in (("web", "second"), ("second", "web")):
            found = await until(clock, lambda name=name: condition(shown(client, name), "ScalingActive"))
            assert found["reason"] == "AmbiguousSelector" and f"by {rival} too" in found["message"]
        found = await until(clock, lambda: condition(shown(client, "daemons"), "AbleToScale"))
        assert "cannot scale a DaemonSet" in found["message"] and size(client) == 9
        client.drop(scheme.HORIZONTAL_POD_AUTOSCALER, "second", "shop")
        await until(clock, lambda: size(client) == 5, 20)
