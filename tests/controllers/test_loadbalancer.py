"""Load balancers: what the status of a Service says, from what its sites report."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.controllers import loadbalancer
from metaos.controllers.loadbalancer import outward
from metaos.controllers.render import reported, work
from metaos.resources import scheme
from metaos.resources.meta import Obj, condition, ref
from metaos.resources.services import EXPOSED
from tests.controllers.continuum import cluster, events, running, until


def service(**spec: Any) -> Obj:
    metadata = {"name": "api", "namespace": "shop", "uid": "s", "generation": 1}
    usual = {"type": "LoadBalancer", "selector": {"app": "api"}, "ports": [{"port": 80, "protocol": "TCP"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": usual | spec}


def says(ip: str = "", status: str = "True", reason: str = "Exposed", message: str = "") -> dict[str, Any]:
    ingress = {"loadBalancer": {"ingress": [{"ip": ip}]}} if ip else {}
    return ingress | {"conditions": [{"type": EXPOSED, "status": status, "reason": reason, "message": message}]}


def verdict(found: dict[str, Any]) -> tuple[Any, str, str]:
    told = condition({"status": found}, EXPOSED) or {}
    return [i.get("ip") or i.get("hostname") for i in found["loadBalancer"].get("ingress", ())], told["status"], told["reason"]


NONE: frozenset[str] = frozenset()
KUBE = frozenset({"kube"})


@pytest.mark.parametrize(
    ("sites", "members", "found"),
    [
        ({}, NONE, ([], "Unknown", "NoWorkload")),
        ({"a": None}, NONE, ([], "Unknown", "Pending")),
        ({"a": {}}, NONE, ([], "False", "NoSite")),
        ({"a": says("192.0.2.1"), "b": says("192.0.2.2"), "c": {}}, NONE, (["192.0.2.1", "192.0.2.2"], "True", "Exposed")),
        ({"a": says("192.0.2.1"), "b": None}, NONE, (["192.0.2.1"], "True", "Exposed")),
        ({"a": says(status="False", reason="PortTaken"), "b": {}}, NONE, ([], "False", "PortTaken")),
        ({"a": says(status="False", reason="PortTaken"), "b": says("192.0.2.2")}, NONE, (["192.0.2.2"], "True", "PortTaken")),
        (
            {"kube": {"loadBalancer": {"ingress": [{"hostname": "lb.example.org"}]}}},
            KUBE,
            (["lb.example.org"], "True", "Exposed"),
        ),
        ({"kube": {"loadBalancer": {}}, "a": {}}, KUBE, ([], "Unknown", "Pending")),
    ],
)
def test_addresses_of_all_sites(sites: Any, members: frozenset[str], found: Any) -> None:
    status = outward(service(), sites, members, 0.0)
    assert verdict(status) == found
    assert outward(service() | {"status": status}, sites, members, 9.0) == status, "what is said stays as it is"


def test_what_no_site_exposes_says_what_to_do() -> None:
    message = (condition({"status": outward(service(), {"a": {}}, NONE, 0.0)}, EXPOSED) or {})["message"]
    assert "--expose" in message and "/api/v1/namespaces/shop/services/api:PORT/proxy/" in message


def test_a_class_is_anothers_and_other_types_have_no_addresses() -> None:
    own = {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}
    theirs = service(loadBalancerClass="example.org/own") | {"status": own}
    assert verdict(outward(theirs, {"a": {}}, NONE, 0.0)) == (["203.0.113.1"], "Unknown", "Pending")
    assert verdict(outward(service(type="NodePort"), {"a": says("192.0.2.1")}, NONE, 0.0)) == ([], "True", "Exposed")
    assert verdict(outward(service(type="NodePort"), {"kube": {}}, KUBE, 0.0)) == ([], "True", "Exposed")
    before = service(type="ClusterIP") | {"status": outward(service(), {"a": says("192.0.2.1")}, NONE, 0.0)}
    assert outward(before, {"a": {}}, NONE, 0.0) == {"loadBalancer": {}}
    assert outward(service(type="ClusterIP") | {"status": own}, {}, NONE, 0.0) == own, "what others wrote there"


def test_what_a_site_says_is_bounded_and_of_the_right_kind() -> None:
    found = work(ref(service()), "a", [service()])
    port = {"port": 80, "protocol": "TCP", "error": "meta-os.eu/PortTaken"}
    right: dict[str, Any] = {"ip": "192.0.2.1", "ipMode": "Proxy", "ports": [port]}
    wrong = [{"ip": "1.2.3"}, {"ip": 5}, {"hostname": "a b"}, "x", {}]
    ports = [port, {"port": "80"}, {"port": 70000}, {"port": True}, {"port": 1, "error": "<b>", "protocol": "X"}]
    said: Any = {"ingress": [*wrong, right | {"ports": ports, "more": 1}, *[right] * 50]}
    found["status"] = {"manifests": [{"kind": "Service", "name": "api", "uid": "s", "status": {"loadBalancer": said}}]}
    ingress = reported(found)["status"]["loadBalancer"]["ingress"]
    assert len(ingress) <= 16 and ingress[0] == right | {"ports": [port, {"port": 1, "protocol": "TCP"}]}
    for nonsense in (None, [], {"ingress": "x"}, {"ingress": {}}):
        found["status"]["manifests"][0]["status"]["loadBalancer"] = nonsense
        assert not (reported(found)["status"].get("loadBalancer") or {}).get("ingress")


async def test_the_status_follows_what_sites_say() -> None:
    told = service()
    works = [work(ref(told), site, [told]) for site in ("a", "b")]
    for each in works:
        entry: Obj = {"kind": "Service", "name": "api", "uid": "s", "observedGeneration": 1, "status": {}}
        each["status"] = {"manifests": [entry]}
    sites = (cluster("a"), cluster("b"))
    async with running(loadbalancer.setup, objects=(told, *works, *sites)) as (client, clock):

        def seen() -> Any:
            found = (client.find(scheme.SERVICE, "api", "shop") or {}).get("status")
            return found and verdict(found)

        async def tell(site: str, status: dict[str, Any]) -> None:
            found = client.find(scheme.WORK, works[0]["metadata"]["name"], f"nemo-cluster-{site}")
            assert found is not None
            entry = found["status"]["manifests"][0] | {"status": status}
            await client.update(found | {"status": {"manifests": [entry]}}, subresource="status")

        await until(clock, lambda: seen() == ([], "False", "NoSite"))
        assert await until(clock, lambda: events(client)) == ["NoSite"]
        await tell("a", says("192.0.2.1"))
        await until(clock, lambda: seen() == (["192.0.2.1"], "True", "Exposed"))
        await tell("b", says("192.0.2.2"))
        await until(clock, lambda: seen() == (["192.0.2.1", "192.0.2.2"], "True", "Exposed"))
        lost = client.find(scheme.CLUSTER, "a")
        assert lost is not None
        await client.update(lost | {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, subresource="status")
        await until(clock, lambda: seen() == (["192.0.2.2"], "True", "Exposed"))
        await tell("b", says(status="False", reason="PortTaken", message="port 80"))
        await until(clock, lambda: seen() == ([], "False", "PortTaken"))
        await until(clock, lambda: sorted(events(client)) == ["NoSite", "PortTaken"])
