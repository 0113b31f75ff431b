"""Evictions against budgets, through the registry."""

import asyncio
from typing import Any

import pytest

from metaos.apiserver.registry import Registry
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import DISRUPTED, EVICTED, Obj, annotations
from tests.apiserver.conftest import ADMIN
from tests.apiserver.objects import pod

READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": True}


async def cordon(registry: Registry, cordoned: bool = True) -> None:
    site = {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "Cluster",
        "metadata": {"name": "edge"},
        "spec": {"unschedulable": cordoned},
    }
    await registry.create(ADMIN, site)


async def running(registry: Registry, name: str, status: Obj = READY, *, owned: bool = True, **spec: Any) -> None:
    wanted = pod(name, nodeName="edge", **spec)
    if owned:
        wanted["metadata"]["ownerReferences"] = [OWNER]
    made = await registry.create(ADMIN, wanted)
    await registry.update(ADMIN, made | {"status": status}, subresource="status")


async def budgeted(registry: Registry, name: str = "b", **status: Any) -> None:
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    }
    made = await registry.create(ADMIN, budget)
    known = {"observedGeneration": 1, "currentHealthy": 4, "desiredHealthy": 1, "expectedPods": 4} | status
    await registry.update(ADMIN, made | {"status": known}, subresource="status")


async def evict(registry: Registry, name: str, **more: Any) -> Obj:
    return await registry.create_subresource(ADMIN, scheme.POD, name, "default", "eviction", {}, **more)


async def test_as_many_as_the_budget_allows_however_many_ask_at_once(registry: Registry) -> None:
    await cordon(registry)
    names = [f"p{i}" for i in range(8)]
    for name in names:
        await running(registry, name)
    await budgeted(registry, disruptionsAllowed=3)
    answers = await asyncio.gather(*(evict(registry, name) for name in names), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, ApiError)]
    assert len(refused) == 5
    for refusal in refused:
        assert refusal.code == 429 and "disruption budget" in str(refusal)
        cause = {"reason": "DisruptionBudget", "message": "The disruption budget b needs 1 healthy pods and has 4 currently"}
        assert refusal.details["causes"] == [cause]
    pods = (await registry.list(ADMIN, scheme.POD, "default")).items
    marked = sorted(p["metadata"]["name"] for p in pods if EVICTED in annotations(p))
    held = await registry.get(ADMIN, scheme.POD_DISRUPTION_BUDGET, "b", "default")
    assert held["status"]["disruptionsAllowed"] == 0 and sorted(held["status"]["disruptedPods"]) == marked and len(marked) == 3
    # Asked again about the same one: it is on its way already.
    await evict(registry, marked[0])


async def test_a_dry_run_and_a_refusal_change_no_budget(registry: Registry) -> None:
    await running(registry, "p")
    await budgeted(registry, "a", disruptionsAllowed=1)
    await evict(registry, "p", dry_run=True)
    await budgeted(registry, "z", disruptionsAllowed=0)
    with pytest.raises(ApiError, match="disruption budget"):
        await evict(registry, "p")
    held = await registry.get(ADMIN, scheme.POD_DISRUPTION_BUDGET, "a", "default")
    assert held["status"]["disruptionsAllowed"] == 1 and "disruptedPods" not in held["status"]
    assert EVICTED not in annotations(await registry.get(ADMIN, scheme.POD, "p", "default"))


async def test_what_does_not_run_is_no_disruption(registry: Registry) -> None:
    await running(registry, "done", {"phase": "Succeeded"})
    await running(registry, "waiting", {"phase": "Pending"})
    await budgeted(registry, disruptionsAllowed=0)
    await evict(registry, "done")
    await evict(registry, "waiting")
    with pytest.raises(ApiError) as missing:
        await evict(registry, "none")
    assert missing.value.code == 404


async def test_a_budget_that_nobody_has_looked_at_allows_nothing(registry: Registry) -> None:
    await running(registry, "p")
    await budgeted(registry, disruptionsAllowed=5, observedGeneration=0)
    with pytest.raises(ApiError) as refused:
        await evict(registry, "p")
    assert refused.value.details["retryAfterSeconds"] == 10 and "still being processed" in str(refused.value.details)


@pytest.mark.parametrize("cordoned", [True, False])
async def test_a_cordon_that_comes_or_goes_meanwhile_leaves_no_eviction_without_effect(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, cordoned: bool
) -> None:
    await cordon(registry, cordoned)
    await running(registry, "p")

    async def meanwhile(*_: object) -> None:
        site = await registry.get(ADMIN, scheme.CLUSTER, "edge")
        await registry.update(ADMIN, site | {"spec": site["spec"] | {"unschedulable": not cordoned}})

    monkeypatch.setattr("metaos.apiserver.registry.permitted", meanwhile)
    await evict(registry, "p")
    found = await registry.get(ADMIN, scheme.POD, "p", "default")
    assert (EVICTED in annotations(found), "deletionTimestamp" in found["metadata"]) == (cordoned, not cordoned)


async def test_where_its_site_takes_pods_an_evicted_one_is_deleted_and_nothing_is_remembered(registry: Registry) -> None:
    """As Kubernetes does it: it is made anew. Only a drain moves its workload."""
    await cordon(registry, cordoned=False)
    data = [{"name": "d", "persistentVolumeClaim": {"claimName": "d"}}]
    await running(registry, "p", volumes=data)
    await budgeted(registry, disruptionsAllowed=1)
    body = {"deleteOptions": {"gracePeriodSeconds": 7}}
    await registry.create_subresource(ADMIN, scheme.POD, "p", "default", "eviction", body)
    found = await registry.get(ADMIN, scheme.POD, "p", "default")
    assert found["metadata"]["deletionGracePeriodSeconds"] == 7 and EVICTED not in annotations(found)
    assert DISRUPTED in annotations(found), "its site says why it goes"


async def test_a_pod_that_nobody_makes_anew_is_deleted_from_a_drained_site(registry: Registry) -> None:
    await cordon(registry)
    data = [{"name": "d", "persistentVolumeClaim": {"claimName": "d"}}]
    await running(registry, "alone", owned=False, volumes=data)
    await running(registry, "owned", volumes=data)
    await evict(registry, "alone")
    assert "deletionTimestamp" in (await registry.get(ADMIN, scheme.POD, "alone", "default"))["metadata"]
    with pytest.raises(ApiError, match="its data is on edge"):
        await evict(registry, "owned")
