"""Services of a cluster's own: exported only as their owner offers them, and reached at a ready pod."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from metaos.members.exports import OFFER, Exports, refusal, targets
from metaos.members.manifests import MEMBER_LABEL
from metaos.resources import scheme
from metaos.resources.errors import ApiError, not_found
from metaos.resources.meta import Obj
from tests.clock import FakeClock

KEY = ("shop", "legacy")


def service(*, offered: bool = True, own: bool = False, **spec: Any) -> Obj:
    metadata: Obj = {"name": "legacy", "namespace": "shop", "annotations": {OFFER: "true"} if offered else {}}
    metadata |= {"labels": {MEMBER_LABEL: "m"}} if own else {}
    ports = [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports} | spec}


def endpoints(*pods: str, port: int = 8000) -> Obj:
    addresses = [{"ip": f"10.0.0.{n}", "targetRef": {"kind": "Pod", "name": pod}} for n, pod in enumerate(pods)]
    strangers = {"addresses": [{"ip": "192.0.2.1"}], "ports": [{"name": "http", "port": 1}]}
    return {"subsets": [{"addresses": addresses, "ports": [{"name": "http", "port": port}]}, strangers]}


class Cluster:
    """What it has; ``told`` the Works whose status may be another one, ``forwarded`` what was connected to."""

    def __init__(self) -> None:
        self.objects: dict[str, Obj] = {}
        self.told: list[str] = []
        self.forwarded: list[tuple[str, int]] = []
        self.clock = FakeClock()
        self.exports = Exports(self, self.clock, self.forward, self.told.append)  # type: ignore[arg-type]

    async def get(self, kind: scheme.Kind, name: str, namespace: str = "") -> Obj:
        assert (namespace, name) == KEY
        if kind.kind not in self.objects:
            raise not_found("", kind.plural, name)
        return self.objects[kind.kind]

    async def forward(self, path: str, port: int) -> socket.socket:
        self.forwarded.append((path, port))
        return socket.socket()


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "NoService"),
        (service(offered=False), "NotOffered"),
        (service(own=True), "NotForeign"),
        (service(type="ExternalName"), "InvalidServiceType"),
        (service(), ""),
    ],
)
def test_a_service_is_exported_only_as_its_owner_says(found: Obj | None, reason: str) -> None:
    said = refusal(found, KEY)
    assert said[0] == reason and bool(said[1]) == bool(reason)
    if reason == "NotOffered":
        assert "kubectl annotate service legacy -n shop meta-os.eu/offer=true" in said[1]


def test_ready_pods_behind_a_port() -> None:
    assert targets(service(), endpoints("b", "a"), 80) == [("a", 8000), ("b", 8000)], "addresses that are no pods are not known"
    assert not targets(service(), endpoints("a"), 81) and not targets(service(), None, 80)
    udp = service(ports=[{"name": "http", "port": 80, "protocol": "UDP"}])
    assert not targets(udp, endpoints("a"), 80)


async def test_what_is_said_of_it_follows_the_cluster() -> None:
    cluster = Cluster()
    running = asyncio.create_task(cluster.exports.run())
    cluster.exports.keep({KEY: "serviceexport.shop.legacy"})
    await cluster.clock.settle()
    seen = cluster.exports.seen(*KEY)
    assert seen.outcome is not None and seen.outcome.reason == "NoService" and cluster.told == ["serviceexport.shop.legacy"]
    cluster.objects |= {"Service": service(), "Endpoints": endpoints("a")}
    await cluster.clock.advance(6)
    told = cluster.exports.seen(*KEY).told
    port = {"name": "http", "port": 80, "protocol": "TCP"}
    assert told == {"ports": [port], "sessionAffinity": "None", "ready": True} and len(cluster.told) == 2
    cluster.objects["Endpoints"] = endpoints()
    await cluster.clock.advance(6)
    told = cluster.exports.seen(*KEY).told
    assert told is not None and told["ready"] is False
    running.cancel()


async def test_a_connection_goes_to_a_ready_pod_of_what_is_exported_and_offered_still() -> None:
    cluster = Cluster()
    cluster.objects |= {"Service": service(), "Endpoints": endpoints("a", "b")}
    with pytest.raises(ApiError, match="is not exported from here"):
        await cluster.exports.connect(*KEY, 80)
    cluster.exports.keep({KEY: "w"})
    for _ in range(2):
        (await cluster.exports.connect(*KEY, 80)).close()
    assert sorted(cluster.forwarded) == [(f"/api/v1/namespaces/shop/pods/{pod}/portforward", 8000) for pod in ("a", "b")]
    with pytest.raises(OSError, match="ready on TCP port 443"):
        await cluster.exports.connect(*KEY, 443)
    cluster.objects["Service"] = service(offered=False)
    with pytest.raises(ApiError, match="has not offered it"):
        await cluster.exports.connect(*KEY, 80)
