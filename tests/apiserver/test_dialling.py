"""Who may connect across sites: where a Service leads, as NetworkPolicies allow, and as nobody else than oneself."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from metaos.apiserver.dialling import DialRule, Refused
from metaos.controllers import networkpolicy
from metaos.controllers.render import work
from metaos.reconcile.manager import Manager
from metaos.resources.meta import Obj, ref
from tests.clock import FakeClock
from tests.controllers.continuum import deployment
from tests.controllers.test_networkpolicy import space
from tests.fake_client import FakeClient


def mirror(name: str, site: str, app: str) -> Obj:
    metadata = {"name": name, "namespace": "shop", "labels": {"app": app}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": site, "containers": []}}


def policy(**spec: Any) -> Obj:
    metadata = {"name": "p", "namespace": "shop"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


SLICE: Obj = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "api-b", "namespace": "shop"},
    "ports": [{"port": 80}],
    "endpoints": [{"nodeName": "b", "targetRef": {"kind": "Pod", "name": "api"}}],
}
FROM_WEB = policy(
    podSelector={"matchLabels": {"app": "api"}}, ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]
)


async def asked(*objects: Obj, source: str = "a", caller: Any = "web", claimed: Any = None, **more: Any) -> dict[str, Any]:
    clock = FakeClock()
    client = FakeClient(clock)
    web = deployment() | {"metadata": {"name": "web", "namespace": "shop", "uid": "w"}}
    pods = (mirror("web", "a", "web"), mirror("evil", "a", "evil"), mirror("api", "b", "api"))
    client.seed(*pods, work(ref(web), "a", [web]), SLICE, space("x"), *objects)
    manager = Manager(client, clock, Random(1))
    rule = DialRule(manager)
    networkpolicy.setup(manager, client, clock, None)  # type: ignore[arg-type]
    await manager.start()
    try:
        await clock.settle()
        header = {
            "type": "dial",
            "namespace": "shop",
            "pod": "api",
            "port": 80,
            "source": claimed or {"pod": caller, "labels": {"app": "web"}},
        }
        return rule(source, "b", header | more)
    finally:
        await manager.stop()


async def test_the_target_is_told_what_the_hub_knows_of_the_caller() -> None:
    told = await asked(caller="evil")
    assert told == {
        "type": "dial",
        "namespace": "shop",
        "pod": "api",
        "port": 80,
        "source": {
            "namespace": "shop",
            "pod": "evil",
            "labels": {"app": "evil", "meta-os.eu/cluster": "a"},
            "namespaceLabels": {"team": "x"},
        },
    }
    assert (await asked(caller="api"))["source"]["labels"] == {}, "a pod of another site is nobody here"
    assert (await asked(caller=None))["source"]["pod"] == ""


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"port": 81}, "no service in namespace shop leads to TCP port 81"),
        ({"port": "80"}, "no service"),
        ({"pod": "web"}, "no service"),
        ({"namespace": "else"}, "site a has no work in namespace else"),
        ({"source": "c"}, "site c has no work"),
    ],
)
async def test_only_where_a_service_leads(more: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        await asked(**more)


async def test_policies_hold_across_sites() -> None:
    assert await asked(FROM_WEB)
    for caller in ("evil", "api", None):
        with pytest.raises(Refused, match="allow pod api no ingress from"):
            await asked(FROM_WEB, caller=caller)
    with pytest.raises(Refused, match="allow pod web no egress to"):
        await asked(policy(podSelector={}, policyTypes=["Egress"]))


async def test_who_comes_from_outside_is_known_by_address() -> None:
    def blocks(*cidrs: str) -> Obj:
        return policy(podSelector={}, ingress=[{"from": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]}])

    outside = {"outside": True, "address": "192.0.2.7"}
    told = await asked(blocks("192.0.2.0/24"), claimed=outside)
    assert told["source"] == {"namespace": "", "pod": "", "labels": {}, "namespaceLabels": {}, "address": "192.0.2.7"}
    for refused in (blocks("198.51.100.0/24"), FROM_WEB, policy(podSelector={})):
        with pytest.raises(Refused, match=r"no ingress from 192\.0\.2\.7 on port 80"):
            await asked(refused, claimed=outside)
    anybody = {"outside": True, "address": "0.0.0.0/0"}
    assert await asked(blocks("0.0.0.0/0"), claimed=anybody)
    with pytest.raises(Refused):
        await asked(blocks("192.0.2.0/24"), claimed=anybody)


async def test_datagrams_go_where_a_service_leads_by_udp() -> None:
    with pytest.raises(Refused, match="leads to UDP port 80"):
        await asked(type="datagrams")
    udp = SLICE | {"metadata": {"name": "dns-b", "namespace": "shop"}, "ports": [{"port": 53, "protocol": "UDP"}]}
    with pytest.raises(Refused, match="leads to TCP port 53"):
        await asked(udp, port=53)
    assert (await asked(udp, port=53, type="datagrams"))["type"] == "datagrams"
    by_tcp = policy(podSelector={}, ingress=[{"ports": [{"port": 53}]}])
    with pytest.raises(Refused, match="on port 53/UDP"):
        await asked(udp, by_tcp, port=53, type="datagrams")
    by_udp = policy(podSelector={}, ingress=[{"ports": [{"port": 53, "protocol": "UDP"}]}])
    assert await asked(udp, by_udp, port=53, type="datagrams")


async def test_who_calls_from_a_kubernetes_member_is_known_in_its_own_namespace_or_from_outside() -> None:
    elsewhere = mirror("robot", "a", "web")
    elsewhere["metadata"]["namespace"] = "plant"
    said = (await asked(elsewhere, claimed={"namespace": "plant", "pod": "robot"}))["source"]
    assert (said["namespace"], said["pod"]) == ("plant", "robot")
    with pytest.raises(Refused):
        await asked(elsewhere, FROM_WEB, claimed={"namespace": "plant", "pod": "robot"})
    for claimed in ({"outside": True, "pod": "web"}, {"namespace": "plant", "pod": "none"}):
        said = (await asked(claimed=claimed))["source"]
        assert (said["namespace"], said["pod"], said["labels"], said["namespaceLabels"]) == ("", "", {}, {})
        with pytest.raises(Refused):
            await asked(FROM_WEB, claimed=claimed)


def _telling(site: str, **volumes: Any) -> Obj:
    api = deployment() | {"kind": "StatefulSet", "metadata": {"name": "db", "namespace": "shop", "uid": "d"}}
    found = work(ref(api), site, [api])
    found["spec"]["volumes"] = volumes
    return found


async def test_volumes_go_only_where_both_sites_are_told_so() -> None:
    takes, gives = {"from": "b", "attempt": 2}, {"to": "a", "attempt": 2}
    wanted = {"type": "volumes", "work": "statefulset.shop.db", "attempt": 2}
    told = await asked(_telling("a", receive=takes), _telling("b", send=gives), **wanted)
    assert told == {**wanted, "source": {"site": "a"}}
    for receive, send, attempt in (
        (takes, gives, 1),
        (takes | {"attempt": 3}, gives, 2),
        (takes, gives | {"attempt": 1}, 2),
        (takes | {"from": "c"}, gives, 2),
        (takes, gives | {"to": "c"}, 2),
        (takes | {"adopt": True}, gives, 2),
        ({}, gives, 2),
        (takes, {}, 2),
    ):
        with pytest.raises(Refused, match="volumes"):
            await asked(_telling("a", receive=receive), _telling("b", send=send), **wanted | {"attempt": attempt})
