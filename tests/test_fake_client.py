"""The fake client keeps the rules that controllers rely on."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.client import Client, PatchType
from metaos.resources.errors import ApiError
from metaos.resources.scheme import CLUSTER, CONFIG_MAP, DEPLOYMENT, POD
from tests.fake_client import FakeClient


def deployment(name: str = "web", **more: Any) -> dict[str, Any]:
    obj = DEPLOYMENT.empty(name, "shop") | {"spec": {"replicas": 1}}
    return obj | more


async def test_is_a_client() -> None:
    client: Client = FakeClient()
    created = await client.create(deployment(status={"replicas": 9}))
    assert created["metadata"]["resourceVersion"] == "1" and "status" not in created
    with pytest.raises(ApiError) as error:
        await client.create(deployment())
    assert error.value.reason == "AlreadyExists"


async def test_conflicts_generation_and_status() -> None:
    client = FakeClient()
    first = await client.create(deployment())
    second = await client.update(first | {"spec": {"replicas": 2}, "status": {"replicas": 1}})
    assert second["metadata"]["generation"] == 2 and "status" not in second
    with pytest.raises(ApiError) as error:
        await client.update(first)
    assert (error.value.code, error.value.reason) == (409, "Conflict")
    third = await client.patch(DEPLOYMENT, "web", "shop", {"status": {"replicas": 1}, "spec": None}, subresource="status")
    assert third["spec"] == {"replicas": 2} and third["status"] == {"replicas": 1} and third["metadata"]["generation"] == 2
    same = await client.patch(DEPLOYMENT, "web", "shop", {"spec": {"replicas": 2}})
    assert same == third
    added = [{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]
    assert (await client.patch(DEPLOYMENT, "web", "shop", added, type=PatchType.JSON))["metadata"]["labels"] == {"a": "b"}


async def test_finalizers() -> None:
    client = FakeClient()
    client.seed(CLUSTER.empty("edge") | {"metadata": {"name": "edge", "finalizers": ["meta-os.eu/cluster"]}})
    await client.delete(CLUSTER, "edge")
    waiting = client.find(CLUSTER, "edge")
    assert waiting and waiting["metadata"]["deletionTimestamp"]
    await client.patch(CLUSTER, "edge", "", {"metadata": {"finalizers": None}})
    assert client.find(CLUSTER, "edge") is None


async def test_pods_wait_for_their_site() -> None:
    client = FakeClient()
    client.seed(POD.empty("web-1", "shop") | {"spec": {"nodeName": "edge"}, "status": {"phase": "Running"}})
    await client.delete(POD, "web-1", "shop")
    found = client.find(POD, "web-1", "shop")
    assert found and found["metadata"]["deletionGracePeriodSeconds"] == 30
    await client.delete(POD, "web-1", "shop", grace_period_seconds=0)
    assert client.objects(POD) == []


async def test_watch_selects_and_expires() -> None:
    client = FakeClient()
    client.seed(CONFIG_MAP.empty("a", "shop"))
    listed = await client.list(CONFIG_MAP, labels="x=1")
    assert listed.items == []
    watch = client.watch(CONFIG_MAP, "shop", resource_version=listed.resource_version, labels="x=1")
    await client.patch(CONFIG_MAP, "a", "shop", {"metadata": {"labels": {"x": "1"}}})
    await client.patch(CONFIG_MAP, "a", "shop", {"data": {"k": "v"}})
    await client.patch(CONFIG_MAP, "a", "shop", {"metadata": {"labels": {"x": "2"}}})
    await client.delete(CONFIG_MAP, "a", "shop")
    assert [(await anext(watch)).type for _ in range(3)] == ["ADDED", "MODIFIED", "DELETED"]
    await watch.aclose()  # type: ignore[attr-defined]
    client.expire()
    with pytest.raises(ApiError) as error:
        await anext(client.watch(CONFIG_MAP, resource_version=listed.resource_version))
    assert error.value.code == 410
    assert [c.verb for c in client.calls] == ["patch", "patch", "patch", "delete"]


async def test_field_selectors() -> None:
    client = FakeClient()
    for name, node in (("a", "edge"), ("b", "cloud")):
        client.seed(POD.empty(name, "shop") | {"spec": {"nodeName": node}})
    assert [o["metadata"]["name"] for o in (await client.list(POD, fields="spec.nodeName=edge")).items] == ["a"]
