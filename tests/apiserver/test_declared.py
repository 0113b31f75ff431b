"""What an agent says of its site at each start: its own fields follow, what others set stays theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from metaos.agent.join import declare, register
from metaos.apiserver.registry import Registry
from metaos.client import Client, PatchType
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.security.authz import AGENT_MANAGER, UserInfo
from metaos.store.memory import MemoryStore
from tests.apiserver.conftest import ADMIN
from tests.clock import FakeClock

EDGE = UserInfo("system:cluster:edge", ("system:clusters",))


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    found = Registry(MemoryStore(), FakeClock(), Random(1))
    await found.start()
    yield found
    await found.stop()


def site(labels: dict[str, str] | None = None, **spec: Any) -> Obj:
    made: Obj = {**scheme.CLUSTER.empty("edge"), "spec": spec}
    made["metadata"] |= {"labels": labels} if labels else {}
    return made


async def say(client: Client, said: Obj) -> Obj:
    """As an agent does when it starts."""
    return await declare(client, said, await register(client, said))


async def test_what_the_owner_states_arrives_and_what_an_administrator_set_stays(registry: Registry) -> None:
    agent, admin = registry.client(EDGE), registry.client(ADMIN)
    joined = {"capacity": {"cpu": "4", "memory": "8Gi"}, "price": {"cpuHour": 1}, "jurisdictions": ["ES"], "tier": "edge"}
    await say(agent, site({"a.example/b": "1", "floor": "2"}, **joined))
    # As at a restart with another file: changed, added and left out.
    changed = {"capacity": {"cpu": "8", "memory": "8Gi"}, "jurisdictions": ["EU"], "trust": "high", "availability": 0.9}
    found = await say(agent, site({"a.example/b": "2"}, **changed))
    assert found["metadata"]["labels"] == {"a.example/b": "2"}
    assert found["spec"]["capacity"] == {"cpu": "8", "memory": "8Gi"} and found["spec"]["availability"] == 0.9
    assert found["spec"]["price"] == {"currency": "EUR"}, "what is by default when nobody says"
    assert found["spec"]["jurisdictions"] == ["ES"] and found["spec"].get("trust") != "high"
    again = await say(agent, site({"a.example/b": "2"}, **changed))
    assert again["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"], "nothing is written where nothing is new"
    patch = {"metadata": {"labels": {"a.example/b": "mine", "vetted": "yes"}}, "spec": {"capacity": {"cpu": "2"}}}
    await admin.patch(scheme.CLUSTER, "edge", "", patch, field_manager="kubectl-edit")
    await admin.patch(scheme.CLUSTER, "edge", "", {"spec": {"unschedulable": True}}, field_manager="kubectl-cordon")
    found = await say(agent, site({"a.example/b": "3", "vetted": "no"}, capacity={"cpu": "16", "memory": "9Gi"}))
    assert found["metadata"]["labels"] == {"a.example/b": "mine", "vetted": "yes"}
    assert found["spec"]["capacity"] == {"cpu": "2", "memory": "9Gi"} and found["spec"]["unschedulable"] is True
    assert found["spec"]["jurisdictions"] == ["ES"] and "availability" not in found["spec"]
    await admin.patch(scheme.CLUSTER, "edge", "", {"spec": {"unschedulable": None}}, field_manager="kubectl-cordon")
    assert not (await say(agent, site()))["spec"].get("unschedulable")


async def test_a_cluster_that_was_made_at_the_hub_is_the_hubs(registry: Registry) -> None:
    agent, admin = registry.client(EDGE), registry.client(ADMIN)
    await admin.create(site(tier="cloud"))
    with pytest.raises(ApiError, match="not the site's agent that made this Cluster") as refused:
        await say(agent, site({"certified": "yes"}, tier="edge"))
    assert refused.value.code in (403, 409)
    with pytest.raises(ApiError, match="not the site's agent that made this Cluster"):
        await say(agent, site({"certified": "yes"}))
    assert (await admin.get(scheme.CLUSTER, "edge"))["spec"]["tier"] == "cloud"
    # Nor does it get there in two steps, the first of which changes nothing but who owns what.
    for said in (site(tier="cloud"), site({"certified": "yes"}, tier="cloud")):
        with pytest.raises(ApiError, match="not the site's agent that made this Cluster"):
            await agent.patch(scheme.CLUSTER, "edge", "", said, type=PatchType.APPLY, field_manager=AGENT_MANAGER)


async def test_a_site_that_was_taken_over_takes_nothing_and_gives_itself_nothing(registry: Registry) -> None:
    agent, admin = registry.client(EDGE), registry.client(ADMIN)
    await say(agent, site(jurisdictions=["ES"], capacity={"cpu": "4"}))
    await admin.patch(scheme.CLUSTER, "edge", "", {"spec": {"capacity": {"cpu": "2"}}}, field_manager="kubectl-edit")

    async def refused(said: Obj, why: str, **options: Any) -> None:
        with pytest.raises(ApiError, match=why):
            await agent.patch(
                scheme.CLUSTER, "edge", "", said, **{"type": PatchType.APPLY, "field_manager": AGENT_MANAGER} | options
            )

    await refused(site(jurisdictions=["EU"]), "spec.jurisdictions: once a site has joined")
    await refused(site(), "spec.jurisdictions: once a site has joined")
    # Its law would stop who reads the data anywhere.
    await refused(site(jurisdictions=["ES"], datasets=[{"name": "patients", "residency": ["XX"]}]), "spec.datasets: once a site")
    await refused(site(jurisdictions=["ES"], capacity={"cpu": "8"}), "conflict with")
    for options in ({"force": True}, {"type": PatchType.MERGE}, {"type": PatchType.JSON}, {"field_manager": "kubectl-edit"}):
        await refused(site(capacity={"cpu": "8"}), "server-side apply, as field manager nemo-agent and without force", **options)
    with pytest.raises(ApiError, match="may touch only what belongs to its own site"):
        await agent.update(site(capacity={"cpu": "8"}))


@pytest.mark.parametrize("mine", ["Apply", "Update", ""])
async def test_whose_fields_are_whose_is_not_for_an_agent_to_say(registry: Registry, mine: str) -> None:
    agent, admin = registry.client(EDGE), registry.client(ADMIN)
    await say(agent, site(capacity={"cpu": "4"}))
    patch = {"metadata": {"labels": {"vetted": "no"}}, "spec": {"capacity": {"cpu": "2"}}}
    await admin.patch(scheme.CLUSTER, "edge", "", patch, field_manager="kubectl-edit")
    fields = {"f:metadata": {"f:labels": {"f:vetted": {}}}, "f:spec": {"f:capacity": {"f:cpu": {}}}}
    entry = {"manager": AGENT_MANAGER, "operation": mine, "apiVersion": scheme.CLUSTER.api_version, "fieldsV1": fields}
    forged = {"metadata": {"managedFields": [entry if mine else {}]}, "status": {"agentConditions": []}}
    await agent.patch(scheme.CLUSTER, "edge", "", forged, subresource="status")
    held = await agent.get(scheme.CLUSTER, "edge")
    await agent.update({**held, "metadata": {**held["metadata"], **forged["metadata"]}}, subresource="status")
    for said in (site({"vetted": "yes"}), site(capacity={"cpu": "400"})):
        with pytest.raises(ApiError, match=r"conflict with .kubectl-edit"):
            await agent.patch(scheme.CLUSTER, "edge", "", said, type=PatchType.APPLY, field_manager=AGENT_MANAGER)


@pytest.mark.parametrize(
    "label",
    ["kubernetes.io/hostname", "meta-os.eu/country", "topology.kubernetes.io/region", "node-restriction.kubernetes.io/vault"],
)
async def test_no_label_says_what_is_settled(registry: Registry, label: str) -> None:
    agent, admin = registry.client(EDGE), registry.client(ADMIN)
    await say(agent, site({"floor": "2"}, location={"region": "here", "country": "ES"}))
    with pytest.raises(ApiError, match=f"metadata.labels {label}: "):
        await agent.patch(scheme.CLUSTER, "edge", "", site({label: "x"}), type=PatchType.APPLY, field_manager=AGENT_MANAGER)
    # An agent whose file says so all the same says the rest.
    found = await say(agent, site({"floor": "3", label: "x"}, location={"region": "here", "country": "ES"}))
    assert found["metadata"]["labels"] == {"floor": "3"}
    await admin.patch(scheme.CLUSTER, "edge", "", {"metadata": {"labels": {label: "y"}}}, field_manager="kubectl-label")
    found = await say(agent, site({"floor": "4", label: "x"}))
    assert found["metadata"]["labels"] == {"floor": "4", label: "y"}


async def test_a_label_that_a_site_joined_with_stays_until_an_administrator_changes_it(registry: Registry) -> None:
    agent, admin = registry.client(EDGE), registry.client(ADMIN)
    region = "topology.kubernetes.io/region"
    await say(agent, site({region: "here"}))
    assert (await say(agent, site({region: "there"})))["metadata"]["labels"] == {region: "here"}
    assert (await say(agent, site()))["metadata"]["labels"] == {region: "here"}
    await admin.patch(scheme.CLUSTER, "edge", "", {"metadata": {"labels": {region: None}}}, field_manager="kubectl-label")
    assert not (await say(agent, site({region: "here"})))["metadata"].get("labels")


async def test_a_site_does_not_join_with_a_label_that_administrators_alone_give(registry: Registry) -> None:
    with pytest.raises(ApiError, match=r"labels of node-restriction.kubernetes.io are for the hub's administrators to give"):
        await say(registry.client(EDGE), site({"a.node-restriction.kubernetes.io/vault": "yes"}))
