"""The disruption controller: the status of budgets over the pods of all sites."""

from typing import Any

from metaos.controllers import disruption
from metaos.resources import scheme
from metaos.resources.meta import Obj, condition, format_time, uid
from tests.controllers.continuum import deployment, events, running, until
from tests.fake_client import FakeClient


def budget(name: str = "b", **spec: Any) -> Obj:
    selector = {"selector": {"matchLabels": {"app": "web"}}}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": selector | spec,
    }


def pod(name: str, site: str, owner: Obj | None = None, *, ready: bool = True, phase: str = "Running") -> Obj:
    metadata: dict[str, Any] = {"name": name, "namespace": "shop", "labels": {"app": "web"}}
    if owner is not None:
        metadata["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": uid(owner), "controller": True}
        ]
    status = {"phase": phase, "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": site}, "status": status}


def figures(client: FakeClient, name: str = "b") -> tuple[int, int, int, int] | None:
    status = (client.find(scheme.POD_DISRUPTION_BUDGET, name, "shop") or {}).get("status") or {}
    if "expectedPods" not in status:
        return None
    return status["expectedPods"], status["desiredHealthy"], status["currentHealthy"], status["disruptionsAllowed"]


async def test_pods_of_all_sites_count() -> None:
    async with running(disruption.setup, objects=(budget(minAvailable=2), deployment(replicas=3))) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed(pod("p1", "a", owner), pod("p2", "b", owner), pod("p3", "c", owner, ready=False))
        await until(clock, lambda: figures(client) == (3, 2, 2, 0))
        found = client.find(scheme.POD_DISRUPTION_BUDGET, "b", "shop") or {}
        assert (condition(found, "DisruptionAllowed") or {})["reason"] == "InsufficientPods"
        client.seed(pod("p3", "c", owner), pod("done", "c", owner, phase="Succeeded"))
        await until(clock, lambda: figures(client) == (3, 2, 3, 1))
        found = client.find(scheme.POD_DISRUPTION_BUDGET, "b", "shop") or {}
        assert (condition(found, "DisruptionAllowed") or {})["reason"] == "SufficientPods"
        before = len(client.calls)
        await clock.advance(60)
        assert client.calls[before:] == []


async def test_shares_are_of_what_the_workload_wants() -> None:
    objects = budget(maxUnavailable="34%"), deployment(replicas=3)
    async with running(disruption.setup, objects=objects) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed(pod("p1", "a", owner), pod("p2", "b", owner))
        # The third is not there yet: it counts as one that is away already.
        await until(clock, lambda: figures(client) == (3, 1, 2, 1))
        client.seed(owner | {"spec": owner["spec"] | {"replicas": 2}})
        await until(clock, lambda: figures(client) == (2, 1, 2, 1))


async def test_what_is_on_its_way_is_remembered_for_two_minutes() -> None:
    async with running(disruption.setup, objects=(budget(minAvailable=1),)) as (client, clock):
        client.seed(pod("p1", "a"), pod("p2", "a"))
        await until(clock, lambda: figures(client) == (2, 1, 2, 1))
        held = client.find(scheme.POD_DISRUPTION_BUDGET, "b", "shop") or {}
        noted = held["status"] | {"disruptionsAllowed": 0, "disruptedPods": {"p1": format_time(clock.now())}}
        client.seed(held | {"status": noted})
        await until(clock, lambda: figures(client) == (2, 1, 1, 0))
        await clock.advance(125)
        await until(clock, lambda: figures(client) == (2, 1, 2, 1))
        assert "disruptedPods" not in (client.find(scheme.POD_DISRUPTION_BUDGET, "b", "shop") or {})["status"]


async def test_a_share_of_nothing_allows_nothing_and_says_why() -> None:
    async with running(disruption.setup, objects=(budget(maxUnavailable=1), pod("bare", "a"))) as (client, clock):
        await until(clock, lambda: events(client) == ["CalculateExpectedPodCountFailed"])
        found = client.find(scheme.POD_DISRUPTION_BUDGET, "b", "shop") or {}
        assert found["status"]["disruptionsAllowed"] == 0
        assert (condition(found, "DisruptionAllowed") or {})["reason"] == "SyncFailed"
