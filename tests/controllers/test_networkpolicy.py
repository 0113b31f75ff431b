"""NetworkPolicies travel to the sites of their namespace's workloads, and to no other."""

from __future__ import annotations

from typing import Any

from metaos.controllers import networkpolicy
from metaos.controllers import work as work_controller
from metaos.controllers.facts import placement_name
from metaos.controllers.render import work, work_name
from metaos.resources import scheme
from metaos.resources.meta import Obj, ref
from tests.controllers.continuum import cluster, deployment, running, until


def policy(name: str = "deny", where: str = "shop") -> Obj:
    spec = {"podSelector": {}, "policyTypes": ["Ingress"]}
    metadata = {"name": name, "namespace": where, "uid": f"u-{name}"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def space(team: str) -> Obj:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": team}}}


async def test_policies_follow_workloads() -> None:
    web = deployment() | {"metadata": {"name": "web", "namespace": "shop", "uid": "w"}}
    paris, london = (work(ref(web), site, [web]) for site in ("paris", "london"))
    objects = (policy(), policy("other", "elsewhere"), space("a"), paris)
    async with running(networkpolicy.setup, objects=objects) as (client, clock):

        def told(site: str) -> Any:
            found = client.find(scheme.WORK, "networkpolicy.shop.deny", f"nemo-cluster-{site}")
            return found and [(m["kind"], m["metadata"].get("labels")) for m in found["spec"]["manifests"]]

        assert await until(clock, lambda: told("paris")) == [("NetworkPolicy", None), ("Namespace", {"team": "a"})]
        assert not told("london"), "no workload is there"
        await client.create(london)
        await until(clock, lambda: told("london"))
        await client.update((await client.get(scheme.NAMESPACE, "shop")) | {"metadata": space("b")["metadata"]})
        await until(clock, lambda: told("paris")[1] == ("Namespace", {"team": "b"}) == told("london")[1])
        await client.delete(scheme.WORK, london["metadata"]["name"], "nemo-cluster-london")
        await until(clock, lambda: not told("london"))
        await client.delete(scheme.NETWORK_POLICY, "deny", "shop")
        await until(clock, lambda: not told("paris"))
        assert len((await client.list(scheme.WORK)).items) == 1, "a policy of a namespace without workloads goes nowhere"


async def test_no_pod_reaches_a_site_before_its_policies() -> None:
    web = deployment() | {"metadata": {"name": "web", "namespace": "shop", "uid": "w"}}
    async with running(networkpolicy.setup, work_controller.setup, objects=(policy(), space("a"), web, cluster("paris"))) as (
        client,
        clock,
    ):
        chosen = {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "w"}}
        placement: Obj = dict(scheme.PLACEMENT.empty(placement_name(ref(web)), "shop"))
        placement["spec"] = chosen | {"clusters": [{"name": "paris", "replicas": 1}]}
        await client.create(placement)
        await until(clock, lambda: client.find(scheme.WORK, work_name(ref(web)), "nemo-cluster-paris"))
        both = [client.find(scheme.WORK, name, "nemo-cluster-paris") for name in ("networkpolicy.shop.deny", work_name(ref(web)))]
        first, second = (int(found["metadata"]["resourceVersion"]) for found in both if found)
        assert first < second


async def test_policies_that_have_gone_ahead_are_not_taken_away_before_the_workload_comes() -> None:
    web, api = (deployment() | {"metadata": {"name": each, "namespace": "shop", "uid": each}} for each in ("web", "api"))
    chosen = {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "api", "uid": "api"}}
    placement: Obj = dict(scheme.PLACEMENT.empty(placement_name(ref(api)), "shop"))
    placement["spec"] = chosen | {"clusters": [{"name": "london", "replicas": 1}]}
    ahead = work(ref(policy()), "london", [policy(), space("a")])
    async with running(networkpolicy.setup, objects=(policy(), space("a"), placement, ahead)) as (client, clock):

        def told(site: str) -> bool:
            return client.find(scheme.WORK, "networkpolicy.shop.deny", f"nemo-cluster-{site}") is not None

        # Another workload comes elsewhere meanwhile.
        await client.create(work(ref(web), "paris", [web]))
        await until(clock, lambda: told("paris"))
        await clock.advance(1)
        assert told("london")
        held = await client.get(scheme.PLACEMENT, placement_name(ref(api)), "shop")
        await client.update(held | {"spec": chosen | {"clusters": [{"name": "paris", "replicas": 1}]}})
        await until(clock, lambda: not told("london"))
