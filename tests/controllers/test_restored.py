"""The hold after a restore: until when nothing starts that must not run twice."""

from typing import Any

from metaos.controllers import restored
from metaos.controllers.render import work
from metaos.resources import scheme
from metaos.resources.meta import RESTORED, SYSTEM_NAMESPACE, Obj, cluster_namespace, name, ref
from tests.controllers.continuum import cluster, deployment, running, until
from tests.fake_client import FakeClient


def mark() -> Obj:
    found: Any = scheme.CONFIG_MAP.empty(RESTORED, SYSTEM_NAMESPACE)
    found["metadata"]["uid"] = "mark"
    return {**found, "data": {"phase": restored.HELD_PHASE, "revision": "7"}}


def data(client: FakeClient) -> dict[str, str]:
    return (client.find(scheme.CONFIG_MAP, RESTORED, SYSTEM_NAMESPACE) or {}).get("data") or {}


async def test_a_silent_kubernetes_cluster_is_waited_for_as_it_goes_on_and_another_site_only_until_it_has_fenced_itself() -> None:
    objects = mark(), cluster("edge"), cluster("kube", runtime="kubernetes")
    async with running(restored.setup, objects=objects) as (client, clock):
        await until(clock, lambda: data(client).get("waitingFor") == "edge, kube")
        await until(clock, lambda: data(client).get("waitingFor") == "kube", 3600)
        await clock.advance(3600)
        assert data(client)["phase"] == restored.HELD_PHASE
        told = client.find(scheme.WORK, RESTORED, cluster_namespace("kube")) or {}
        client.seed(told | {"status": {"observedGeneration": told["metadata"]["generation"]}})
        await until(clock, lambda: data(client)["phase"] == restored.KEPT_PHASE)


async def test_a_kubernetes_cluster_is_told_to_run_none_of_what_must_not_run_twice_though_it_does_not_fence_itself() -> None:
    def given(called: str, site: str) -> Obj:
        made = deployment(called)
        made["metadata"]["uid"] = called
        return work(ref(made), site, [made], None)

    policy = {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "PlacementPolicy",
        "metadata": {"name": "once", "namespace": "shop"},
        "spec": {"workloads": {"selector": {"matchLabels": {"app": "once"}}}, "fencing": {"afterSeconds": 10}},
    }
    client = FakeClient()
    begun = mark() | {"data": {"phase": restored.RESTORED_PHASE, "revision": "7"}}
    client.seed(begun, cluster("kube", runtime="kubernetes"), policy, given("once", "kube"), given("web", "kube"))
    await restored.hold(client)
    manifests = [each["spec"]["manifests"][0] for each in client.objects(scheme.WORK)]
    told = {name(each): each["spec"] for each in manifests if each["kind"] == "Deployment"}
    assert (told["once"]["replicas"], told["web"]["replicas"]) == (0, 1) and data(client)["phase"] == restored.HELD_PHASE


async def test_a_cluster_that_is_removed_is_waited_for_no_more() -> None:
    objects = mark(), cluster("kube", runtime="kubernetes")
    async with running(restored.setup, objects=objects) as (client, clock):
        await clock.advance(3600)
        assert data(client)["phase"] == restored.HELD_PHASE
        client.drop(scheme.CLUSTER, "kube")
        await until(clock, lambda: data(client)["phase"] == restored.KEPT_PHASE, 60)
