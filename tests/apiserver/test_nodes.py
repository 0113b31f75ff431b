"""Sites as Nodes."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver import nodes
from metaos.apiserver.registry import Registry
from metaos.client import PatchType
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from tests.apiserver.conftest import ADMIN
from tests.apiserver.objects import cluster, take


async def test_a_site_is_a_node(registry: Registry) -> None:
    made = await registry.create(ADMIN, cluster())
    node = await registry.get(ADMIN, scheme.NODE, "edge")
    assert node["kind"] == "Node" and node["metadata"]["uid"] == made["metadata"]["uid"]
    assert node["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert node["status"]["conditions"][0]["status"] == "Unknown"
    assert node["status"]["conditions"][0]["lastHeartbeatTime"] == node["metadata"]["creationTimestamp"]
    listed = await registry.list(ADMIN, scheme.NODE, labels="topology.kubernetes.io/region=europe-west1")
    assert [o["metadata"]["name"] for o in listed.items] == ["edge"]


async def test_a_nodes_lease_is_its_sites(registry: Registry) -> None:
    kind, spec = scheme.LEASE, {"holderIdentity": "edge", "renewTime": "2026-01-01T00:00:00.000000Z"}
    with pytest.raises(ApiError, match="not found"):
        await registry.get(ADMIN, kind, "edge", "kube-node-lease")
    await registry.create(ADMIN, scheme.NAMESPACE.empty("nemo-cluster-edge"))
    await registry.create(ADMIN, kind.empty("edge", "nemo-cluster-edge") | {"spec": spec})
    found = await registry.get(ADMIN, kind, "edge", "kube-node-lease")
    assert found["metadata"]["namespace"] == "kube-node-lease" and found["spec"] == spec


async def test_cordon_taint_label(registry: Registry) -> None:
    await registry.create(ADMIN, cluster())
    events = registry.watch(ADMIN, scheme.NODE)
    await take(events, 1)
    cordon = {"spec": {"unschedulable": True}}
    node = await registry.patch(ADMIN, scheme.NODE, "edge", "", cordon, type=PatchType.STRATEGIC)
    assert node["spec"]["unschedulable"] and node["spec"]["taints"][0]["key"] == "node.kubernetes.io/unschedulable"
    assert (await take(events, 1))[0].object["spec"]["unschedulable"]
    assert [n["metadata"]["name"] for n in (await registry.list(ADMIN, scheme.NODE, fields="spec.unschedulable=true")).items]
    node["spec"]["taints"].append({"key": "k", "value": "v", "effect": "NoSchedule"})
    node["metadata"]["labels"]["x"] = "y"
    await registry.update(ADMIN, node)
    held = await registry.get(ADMIN, scheme.CLUSTER, "edge")
    assert held["spec"]["taints"] == [{"key": "k", "value": "v", "effect": "NoSchedule"}]
    assert held["metadata"]["labels"] == {"tier": "edge", "x": "y"} and held["spec"]["unschedulable"]
    with pytest.raises(ApiError) as stale:
        await registry.update(ADMIN, node)
    assert stale.value.code == 409
    uncordon = {"spec": {"unschedulable": None}}
    node = await registry.patch(ADMIN, scheme.NODE, "edge", "", uncordon, type=PatchType.STRATEGIC)
    assert "unschedulable" not in node["spec"] and len(node["spec"]["taints"]) == 1
    await events.aclose()


async def test_nodes_are_not_made_by_hand_and_deleted_as_sites(registry: Registry) -> None:
    with pytest.raises(ApiError, match="nemo join-token"):
        await registry.create(ADMIN, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}})
    await registry.create(ADMIN, cluster())
    await registry.delete(ADMIN, scheme.NODE, "edge")
    with pytest.raises(ApiError):
        await registry.get(ADMIN, scheme.CLUSTER, "edge")


taints = st.lists(st.fixed_dictionaries({"key": st.sampled_from("abc"), "effect": st.just("NoExecute")}), max_size=2)


@given(st.booleans(), taints, st.dictionaries(st.sampled_from(["a", "kubernetes.io/os", "tier"]), st.sampled_from("xy")))
def test_showing_and_writing_back_changes_nothing(cordoned: bool, found: list[dict[str, str]], labels: dict[str, str]) -> None:
    site = cluster()
    site["metadata"]["labels"] = labels
    if not labels:
        del site["metadata"]["labels"]
    if cordoned:
        site["spec"]["unschedulable"] = True
    if found:
        site["spec"]["taints"] = found
    before = copy.deepcopy(site)
    assert nodes.write_back(nodes.show(site), site) == before == site
