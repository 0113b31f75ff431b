"""NetworkPolicies travel to the sites of their namespace's workloads, and to no other."""

from __future__ import annotations

from typing import Any

from metaos.controllers import networkpolicy
from metaos.controllers.render import work
from metaos.resources import scheme
from metaos.resources.meta import Obj, ref
from tests.controllers.continuum import deployment, running, until


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
