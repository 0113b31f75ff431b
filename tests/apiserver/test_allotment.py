"""Addresses of Services and ports of nodes: given once, kept, and free again."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver.allotment import choose
from metaos.apiserver.registry import Registry
from metaos.client import PatchType
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.resources.services import NODE_PORTS, allotted
from metaos.store.log import CLAIM, Claim, Overtaken
from metaos.store.memory import MemoryStore
from tests.apiserver.conftest import ADMIN
from tests.clock import FakeClock


def service(name: str = "web", **spec: Any) -> Obj:
    return scheme.SERVICE.empty(name, "default") | {"spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]} | spec}


async def refused(registry: Registry, obj: Obj) -> str:
    with pytest.raises(ApiError) as error:
        await registry.create(ADMIN, obj)
    assert error.value.code == 422
    return error.value.message


@given(st.text(max_size=4), st.integers(1, 40), st.data())
def test_a_number_is_chosen_as_long_as_there_is_one(seed: str, count: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, count - 1))
    taken = data.draw(st.sets(st.integers(0, count - 1)))
    found = choose(seed, count, kept, taken)
    assert found == choose(seed, count, kept, set(taken))
    if found is None:
        assert taken == set(range(count))
        return
    assert 0 <= found < count and found not in taken
    assert found >= kept or set(range(kept, count)) <= taken, "those at the beginning are for who names them"


@pytest.mark.parametrize(
    ("address", "given"),
    [("100.64.0.1", True), ("100.79.255.254", True), ("100.64.0.0", False), ("100.79.255.255", False), ("100.80.0.1", False),
     ("10.0.0.1", False), ("None", False), ("100.64.0.01", False), ("100.64.1", False), ("100.64.0.256", False), ("", False)],
)  # fmt: skip
def test_which_addresses_are_the_hubs(address: str, given: bool) -> None:
    assert allotted(address) is given


async def test_an_address_stays_until_its_service_goes(registry: Registry) -> None:
    made = await registry.create(ADMIN, service())
    address = made["spec"]["clusterIP"]
    assert allotted(address) and made["spec"]["clusterIPs"] == [address]
    assert (made["spec"]["ipFamilies"], made["spec"]["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")
    assert "f:clusterIP" not in orjson.dumps(made["metadata"]["managedFields"]).decode(), "nobody owns what was given"
    # Who leaves it out, leaves it alone.
    changed = await registry.update(ADMIN, service(ports=[{"port": 81}]))
    assert changed["spec"]["clusterIP"] == address
    for other in ("None", "100.64.0.9"):
        with pytest.raises(ApiError, match="may not change once set"):
            await registry.patch(ADMIN, scheme.SERVICE, "web", "default", {"spec": {"clusterIP": other}})
    assert "provided IP is already allocated" in await refused(registry, service("other", clusterIP=address))
    beyond = await refused(registry, service("b", clusterIP="10.0.0.1"))
    assert "not in the valid range. The range of valid IPs is 100.64.0.0/12" in beyond
    assert "IPv6 is not configured" in await refused(registry, service("b", clusterIP="2001:db8::1"))
    await registry.delete(ADMIN, scheme.SERVICE, "web", "default")
    assert (await registry.create(ADMIN, service("other", clusterIP=address)))["spec"]["clusterIP"] == address


async def test_a_type_without_address_gives_it_back(registry: Registry) -> None:
    address = (await registry.create(ADMIN, service()))["spec"]["clusterIP"]
    outside = {"spec": {"type": "ExternalName", "externalName": "example.org"}}
    changed = await registry.patch(ADMIN, scheme.SERVICE, "web", "default", outside)
    assert not {"clusterIP", "clusterIPs", "ipFamilies", "internalTrafficPolicy"} & changed["spec"].keys()
    assert (await registry.create(ADMIN, service("other", clusterIP=address)))["spec"]["clusterIP"] == address
    back = {"spec": {"type": "ClusterIP", "externalName": None}}
    again = (await registry.patch(ADMIN, scheme.SERVICE, "web", "default", back))["spec"]["clusterIP"]
    assert allotted(again) and again != address
    headless = await registry.create(ADMIN, service("headless", clusterIP="None", selector={}))
    assert headless["spec"]["clusterIPs"] == ["None"] and headless["spec"]["ipFamilies"] == ["IPv4", "IPv6"]
    assert headless["spec"]["ipFamilyPolicy"] == "RequireDualStack", "somebody else writes its endpoints"
    pods = await registry.create(ADMIN, service("pods", clusterIP="None"))
    assert (pods["spec"]["ipFamilies"], pods["spec"]["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")
    single = await registry.create(ADMIN, service("single", clusterIP="None", selector={}, ipFamilyPolicy="SingleStack"))
    assert single["spec"]["ipFamilies"] == ["IPv4"]


async def test_only_a_load_balancer_has_addresses_of_one(registry: Registry) -> None:
    await registry.create(ADMIN, service(type="LoadBalancer"))
    said = {"status": {"loadBalancer": {"ingress": [{"hostname": "h.example.org"}]}}}
    await registry.patch(ADMIN, scheme.SERVICE, "web", "default", said, subresource="status")
    inside = await registry.patch(ADMIN, scheme.SERVICE, "web", "default", {"spec": {"type": "ClusterIP"}})
    assert inside["status"] == said["status"], "what stood there hinders nobody"
    other = {"status": {"loadBalancer": {"ingress": [{"hostname": "i.example.org"}]}}}
    with pytest.raises(ApiError, match=r"may only be used when `spec\.type` is 'LoadBalancer'"):
        await registry.patch(ADMIN, scheme.SERVICE, "web", "default", other, subresource="status")


async def test_many_at_once_have_one_each(registry: Registry) -> None:
    made = await asyncio.gather(*(registry.create(ADMIN, service(f"s{n}", type="NodePort")) for n in range(60)))
    assert len({each["spec"]["clusterIP"] for each in made}) == 60
    ports = {each["spec"]["ports"][0]["nodePort"] for each in made}
    assert len(ports) == 60 and all(port in NODE_PORTS for port in ports)
    same = await asyncio.gather(
        *(registry.create(ADMIN, service(f"t{n}", clusterIP="100.64.0.7")) for n in range(5)), return_exceptions=True
    )
    assert sum(isinstance(each, dict) for each in same) == 1


async def test_ports_of_nodes(registry: Registry) -> None:
    dns = [{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]
    made = await registry.create(ADMIN, service("dns", type="NodePort", ports=dns))
    first = made["spec"]["ports"][0]["nodePort"]
    assert [port["nodePort"] for port in made["spec"]["ports"]] == [first, first], "one number for both protocols of a port"
    taken = service("b", type="NodePort", ports=[{"port": 80, "nodePort": first}])
    assert "provided port is already allocated" in await refused(registry, taken)
    low = service("b", type="NodePort", ports=[{"port": 80, "nodePort": 80}])
    assert "The range of valid ports is 30000-32767" in await refused(registry, low)
    patch = [{"op": "replace", "path": "/spec/ports/0/targetPort", "value": 5353}]
    changed = await registry.patch(ADMIN, scheme.SERVICE, "dns", "default", patch, type=PatchType.JSON)
    assert changed["spec"]["ports"][0]["nodePort"] == first
    local = {"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}}
    balanced = await registry.patch(ADMIN, scheme.SERVICE, "dns", "default", local)
    assert balanced["spec"]["healthCheckNodePort"] not in (0, first)
    inside = await registry.patch(ADMIN, scheme.SERVICE, "dns", "default", {"spec": {"type": "ClusterIP"}})
    assert not {"healthCheckNodePort", "externalTrafficPolicy", "allocateLoadBalancerNodePorts"} & inside["spec"].keys()
    assert not any("nodePort" in port for port in inside["spec"]["ports"])
    assert (await registry.create(ADMIN, taken))["spec"]["ports"][0]["nodePort"] == first
    without = service("lb", type="LoadBalancer", allocateLoadBalancerNodePorts=False)
    assert "nodePort" not in (await registry.create(ADMIN, without))["spec"]["ports"][0]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"clusterIP": "None", "type": "NodePort"}, "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for"),
        ({"clusterIPs": ["None", "100.64.0.9"], "clusterIP": "None"}, "'None' must be the first and only value"),
        ({"clusterIPs": ["100.64.0.9"]}, "spec.clusterIP: Required value"),
        ({"clusterIPs": ["100.64.0.9", "100.64.0.8"], "clusterIP": "100.64.0.9"}, "no more than one IP for each IP family"),
        ({"ipFamilies": ["IPv6"]}, "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
        ({"ipFamilies": ["IPv5"]}, "Unsupported value: \"IPv5\""),
        ({"ipFamilyPolicy": "RequireDualStack"}, "not configured for dual-stack services"),
        ({"ports": [{"port": 80, "nodePort": 30080}]}, "may not be used when `type` is 'ClusterIP'"),
        ({"externalTrafficPolicy": "Local"}, "may only be set for externally-accessible services"),
        ({"loadBalancerSourceRanges": ["10.0.0.0/8"]}, "may only be used when `type` is 'LoadBalancer'"),
        ({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.7"]},
         "spec.loadBalancerSourceRanges[1]: Invalid value: \"10.0.0.7\": must be a valid CIDR value"),
        ({"type": "ExternalName", "externalName": "a.b", "clusterIP": "100.64.0.9"}, "may not be set for ExternalName services"),
        ({"type": "NodePort", "ports": [{"port": n, "name": f"p{n}", "nodePort": 30080} for n in (1, 2)]},
         "spec.ports[1].nodePort: Duplicate value: 30080"),
        ({"ports": []}, "spec.ports: Required value"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_said(registry: Registry, spec: Obj, said: str) -> None:
    assert said in await refused(registry, service(**spec))


async def test_a_dry_run_takes_nothing(registry: Registry) -> None:
    shown = await registry.create(ADMIN, service(), dry_run=True)
    assert allotted(shown["spec"]["clusterIP"])
    assert (await registry.create(ADMIN, service("other", clusterIP=shown["spec"]["clusterIP"])))["metadata"]["uid"]


async def test_services_of_an_earlier_release_get_addresses_at_the_next_start() -> None:
    store = MemoryStore()
    registry = Registry(store, FakeClock(), Random(1))
    await registry.start()
    made = [await registry.create(ADMIN, service(each, **more)) for each, more in
            (("old", {}), ("port", {"type": "NodePort"}), ("given", {"clusterIP": "100.64.0.9"}))]  # fmt: skip
    await registry.stop()
    for obj in made:
        given = obj["metadata"]["name"] == "given"
        for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            obj["spec"].pop(key)
        obj["spec"] |= {"clusterIP": "10.9.8.7"} if given else {}  # What nobody heeded then.
        obj["spec"]["ports"][0].pop("nodePort", None)
        entry = await store.get(f"services/default/{obj['metadata']['name']}")
        assert entry is not None
        await store.update(entry.key, orjson.dumps(obj), expected=entry.revision)
    hubs = [Registry(store, FakeClock(), Random(1), shared=True) for _ in range(2)]
    await asyncio.gather(*(hub.start() for hub in hubs))
    found = [await hubs[0].get(ADMIN, scheme.SERVICE, each["metadata"]["name"], "default") for each in made]
    assert [allotted(each["spec"]["clusterIP"]) for each in found] == [True, True, False]
    assert "nodePort" not in found[1]["spec"]["ports"][0]
    touched = await hubs[0].patch(ADMIN, scheme.SERVICE, "port", "default", {"metadata": {"labels": {"a": "b"}}})
    assert touched["spec"]["ports"][0]["nodePort"] in NODE_PORTS
    kept = await hubs[0].patch(ADMIN, scheme.SERVICE, "given", "default", {"metadata": {"labels": {"a": "b"}}})
    assert kept["spec"]["clusterIP"] == "10.9.8.7"
    for hub in hubs:
        await hub.stop()


async def test_a_write_claims_what_it_takes_beside_its_quota_and_begins_anew_where_another_hub_was_first() -> None:
    class Shared(MemoryStore):
        claims: list[Claim | None]

        async def create(self, key: str, value: bytes) -> int:
            self.claims.append(CLAIM.get())
            if key.startswith("services/") and len([c for c in self.claims if c]) == 1:
                raise Overtaken(key)
            return await super().create(key, value)

    store = Shared()
    store.claims = []
    registry = Registry(store, FakeClock(), Random(1), shared=True)
    await registry.start()
    await registry.create(ADMIN, scheme.RESOURCE_QUOTA.empty("q", "default") | {"spec": {"hard": {"services": "2"}}})
    made = await registry.create(ADMIN, service(type="NodePort"))
    first, second = (claim for claim in store.claims if claim)
    taken = (f"service/{made['spec']['clusterIP']}", f"service/{made['spec']['ports'][0]['nodePort']}")
    assert second.names == (*sorted(taken), "quota/default") and first.names == second.names
    await registry.stop()
