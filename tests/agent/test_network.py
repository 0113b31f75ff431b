"""Service connections of pods: what is planned, and what really flows."""

import asyncio
import errno
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.agent.network import MAX_API, MAX_API_OF_NAMESPACE, MAX_POD_API, ServiceNetwork
from metaos.agent.routes import (
    Addresses,
    LocalEndpoint,
    RemoteEndpoint,
    Route,
    choices,
    host_aliases,
    hosts_on_loopback,
    own_ports,
    plan,
)
from metaos.apiserver.gates import CONNECTIONS_UNKNOWN
from metaos.plugins.points import PodNetwork
from metaos.resources.meta import DRAINING, Obj
from metaos.tunnel import Stream, Tunnel, TunnelError
from tests.agent.fakes import FakeRuntime
from tests.agent.hub import until


def pod(name: str, app: str = "api", *, ready: bool = True, owner: str = "d1", ports: Any = (), uid: str = "") -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": uid or f"uid-{name}",
            "labels": {"app": app},
            "ownerReferences": [{"uid": owner, "controller": True}],
        },
        "spec": {"containers": [{"name": "c", "ports": list(ports)}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def service(name: str = "api", port: int = 80, target: Any = 8000, **spec: Any) -> Obj:
    ports = [{"name": "http", "port": port, "targetPort": target}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "uid": f"s-{name}"},
        "spec": {"selector": {"app": name}, "ports": ports} | spec,
    }


def endpoint_slice(cluster: str, *pods: str, name: str = "api", port: int = 8000, ready: bool = True) -> Obj:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{cluster}",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": name, "meta-os.eu/cluster": cluster},
        },
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [f"{cluster}/{p}"],
                "nodeName": cluster,
                "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": p, "namespace": "shop"},
            }
            for p in pods
        ],
    }


def only(found: Any) -> Any:
    (one,) = found
    return one


# -- what is planned ----------------------------------------------------------------------------------------


def test_an_imported_service_has_its_name_of_all_clusters_too() -> None:
    imported = {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceImport"}
    imported |= {"metadata": {"name": "api", "namespace": "shop"}}  # type: ignore[dict-item]
    ((_, names),) = plan([service(), imported], [pod("api-1")], Addresses(), "here")["shop"].hosts
    assert names[-1] == "api.shop.svc.clusterset.local"
    ((_, names),) = plan([service()], [pod("api-1")], Addresses(), "here")["shop"].hosts
    assert not any("clusterset" in each for each in names)
    ((_, names),) = plan([service(clusterIP="None"), imported], [pod("api-1")], Addresses(), "here")["shop"].hosts
    assert {"api-1.here.api.shop.svc.clusterset.local", "api.shop.svc.clusterset.local"} <= set(names), (
        "of one cluster, and of all"
    )


def test_a_service_has_the_hubs_address_and_all_else_one_of_the_sites() -> None:
    pods, addresses = [pod("api-1")], Addresses({"pod/here/shop/old-1": "100.64.0.9", "pod/here/shop/old-2": "100.90.0.9"})
    assert addresses.known == {"pod/here/shop/old-2": "100.90.0.9"}, "what an earlier release gave may be a Service's now"
    ((address, names),) = plan([service(clusterIP="100.64.0.9")], pods, addresses, "here")["shop"].hosts
    assert address == "100.64.0.9" and "api.shop.svc.cluster.local" in names
    for said in ("", "10.9.8.7"):
        ((address, _),) = plan([service(clusterIP=said)], pods, addresses, "here")["shop"].hosts
        assert 80 <= int(address.split(".")[1]) < 128 and address.startswith("100.")


def test_a_service_has_one_address_its_names_and_its_ready_endpoints() -> None:
    pods = [pod("a"), pod("b", ready=False), pod("c", "web"), pod("d", ports=[{"name": "http", "containerPort": 9000}])]
    found = plan([service(target="http"), endpoint_slice("far", "z"), endpoint_slice("here", "a")], pods, Addresses(), "here")[
        "shop"
    ]
    address, names = only(found.hosts)
    assert address.startswith("100.") and names == ("api", "api.shop", "api.shop.svc", "api.shop.svc.cluster.local")
    route = found.routes[(address, 80)]
    assert route.local == (LocalEndpoint("uid-d", 9000),), "only the pod that has a port of that name"
    assert route.remote == (RemoteEndpoint("far", "z", 8000),), "this site's own slices are not remote"


def test_a_headless_service_names_each_pod() -> None:
    headless = service("api", 7000, 7000, clusterIP="None")
    found = plan([headless, endpoint_slice("far", "api-1", port=7000)], [pod("api-0")], Addresses(), "here")["shop"]
    names = {name: address for address, listed in found.hosts for name in listed}
    assert names["api-0.api"] == names["api-0.api.shop.svc.cluster.local"] != names["api-1.api"] == names["api-1.api.shop"]
    assert found.routes[(names["api-0.api"], 7000)].local == (LocalEndpoint("uid-api-0", 7000),)
    assert found.routes[(names["api-1.api"], 7000)].remote == (RemoteEndpoint("far", "api-1", 7000),)
    assert sum("api" in listed for _, listed in found.hosts) == 2, "the Service's own name stands for each of them"


def test_what_is_not_ready_draining_or_not_tcp() -> None:
    early = service(publishNotReadyAddresses=True)
    found = plan([early, endpoint_slice("far", "z", ready=False)], [pod("a", ready=False)], Addresses(), "here")["shop"]
    route = only(found.routes.values())
    assert route.local and route.remote
    deployment = {
        "kind": "Deployment",
        "metadata": {"name": "api", "namespace": "shop", "uid": "d1", "annotations": {DRAINING: "t"}},
    }
    found = plan([service(), deployment, endpoint_slice("far", "z")], [pod("a"), pod("b", owner="d2")], Addresses(), "here")[
        "shop"
    ]
    route = only(found.routes.values())
    assert [getattr(e, "pod", "") for e in choices(route, 0)] == ["uid-b", "z", "uid-a"], "a draining one is the last resort"
    udp = service() | {"spec": {"selector": {"app": "api"}, "ports": [{"port": 53, "protocol": "UDP"}]}}
    found = plan([udp], [pod("a")], Addresses(), "here")["shop"]
    assert not found.routes and [route.local[0].port for route in found.datagrams.values()] == [53]
    sctp = service() | {"spec": {"selector": {"app": "api"}, "ports": [{"port": 53, "protocol": "SCTP"}]}}
    found = plan([sctp], [pod("a")], Addresses(), "here")["shop"]
    assert not found.routes and not found.datagrams and found.hosts
    assert not plan([service(type="ExternalName")], [pod("a")], Addresses(), "here")["shop"].hosts


def test_a_pod_stays_with_its_endpoint_or_at_its_site() -> None:
    pods = [pod(n) for n in "abcdef"]
    sticky = service(sessionAffinity="ClientIP")

    def first(found: list[Obj], caller: str, turn: int) -> str:
        route = only(plan([sticky, endpoint_slice("far", "z")], found, Addresses(), "here")["shop"].routes.values())
        return choices(route, turn, caller)[0].pod

    chosen = {caller: {first(pods, caller, turn) for turn in range(9)} for caller in ("uid-1", "uid-2", "uid-3", "uid-4")}
    assert all(len(each) == 1 for each in chosen.values()) and len(set.union(*chosen.values())) > 1
    for caller, (endpoint,) in chosen.items():
        others = [p for p in pods if p["metadata"]["uid"] != endpoint]
        assert first(others[1:] + [p for p in pods if p not in others], caller, 5) == endpoint, "others come and go"
    local = service(internalTrafficPolicy="Local")
    route = only(plan([local, endpoint_slice("far", "z")], pods[:1], Addresses(), "here")["shop"].routes.values())
    assert route.local and not route.remote


def test_names_of_a_pods_own() -> None:
    aliases = [
        {"ip": "10.1.2.3", "hostnames": ["db.old", "db"]},
        {"ip": "10.1.2.4\n6.6.6.6 x", "hostnames": ["y"]},
        {"ip": "::1"},
    ]
    assert host_aliases({"spec": {"hostAliases": aliases}}) == (("10.1.2.3", ("db.old", "db")),)


def test_ports_that_the_pod_itself_will_use() -> None:
    probed = pod("a")
    probed["spec"]["containers"].append(
        {"name": "x", "ports": [{"containerPort": 9}], "livenessProbe": {"httpGet": {"port": 10}}}
    )
    assert own_ports(probed, [service(), service("web", 1, 2)]) == {8000, 9, 10}


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=60), st.data())
def test_addresses_are_unique_stable_and_survive_a_restart(keys: list[str], data: st.DataObject) -> None:
    first = Addresses()
    given = {key: first.of(key) for key in keys}
    assert len(set(given.values())) == len(given)
    again = Addresses(first.known)
    for key in data.draw(st.permutations(keys)):
        assert again.of(key) == given[key]
    again.keep(set(keys[:3]))
    assert {key: again.of(key) for key in keys[:3]} == {key: given[key] for key in keys[:3]}


def test_colliding_addresses_move_on() -> None:
    addresses = Addresses()
    taken = Addresses().of("x")
    addresses.known["other"] = taken
    assert Addresses(addresses.known).of("x") != taken


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 10_000))
def test_every_endpoint_is_tried_once_local_ones_first(local: int, remote: int, draining: int, turn: int) -> None:
    route = Route(
        "ns",
        "s",
        tuple(LocalEndpoint(str(i), 1, i >= local) for i in range(local + draining)),
        tuple(RemoteEndpoint("c", str(i), 1) for i in range(remote)),
    )
    found = choices(route, turn)
    kinds = [(isinstance(e, RemoteEndpoint), getattr(e, "draining", False)) for e in found]
    assert kinds == [(False, False)] * local + [(True, False)] * remote + [(False, True)] * draining
    assert len(set(found)) == len(found)
    if local > 1:
        assert choices(route, turn)[0] != choices(route, turn + 1)[0], "connections spread"


# -- what flows ----------------------------------------------------------------------------------------------


async def exchanged(host: str, port: int, payload: bytes) -> bytes:
    """All that is answered. Raises ``ConnectionError`` where nobody answers."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(payload)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


class World:
    """One site with real sockets; other sites answer through a tunnel pair."""

    def __init__(self, folder: Path) -> None:
        self.runtime = FakeRuntime()
        self.dialled: list[dict[str, Any]] = []
        self.far: Tunnel | None = None
        self.network = ServiceNetwork(self.runtime.as_runtime(), "here", folder / "addresses.json", self.dial)

    async def dial(self, header: dict[str, Any]) -> Stream:
        self.dialled.append(header)
        if self.far is None:
            raise TunnelError("the hub is away")
        return await self.far.open(header)

    async def connect_tunnel(self, pod: str) -> None:
        """Every dialled stream is answered as the pod ``pod`` of another site."""

        async def answer(header: dict[str, Any], stream: Stream) -> None:
            await stream.accept()
            await stream.write(f"{header['pod']}@{header['cluster']}:{header['port']} ".encode())
            while message := await stream.read():
                await stream.write(message)
            await stream.write(b"|end")

        near: list[Tunnel] = []

        async def to_far(message: bytes) -> None:
            await other.receive(message)

        async def to_near(message: bytes) -> None:
            await near[0].receive(message)

        other = self.other = Tunnel(to_near, answer, client=False)
        self.far = Tunnel(to_far, answer, client=True)
        near.append(self.far)

    async def attached(self, name: str, app: str = "client") -> Obj:
        found = pod(name, app, owner="other")
        self.runtime.sandboxes.add(found["metadata"]["uid"])
        await self.network.attach(found)
        return found

    def address(self, pod_uid: str, service: str = "api", port: int = 80) -> tuple[str, int]:
        address = next(a for a, names in self.runtime.hosts[pod_uid] if service in names)
        return address, self.runtime.listeners[(pod_uid, address, port)]

    async def call(self, pod_uid: str, payload: bytes = b"x", **more: Any) -> bytes:
        return await exchanged(*self.address(pod_uid, **more), payload)

    async def close(self) -> None:
        await self.network.close()
        for tunnel in (self.far, getattr(self, "other", None)):
            if tunnel is not None:
                await tunnel.close()
        await self.runtime.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    yield found
    await found.close()


async def test_local_endpoints_take_turns_and_half_close_is_kept(world: World) -> None:
    servers = [pod("a"), pod("b")]
    for each in servers:
        await world.runtime.serve(each["metadata"]["uid"], 8000, each["metadata"]["name"].encode() + b" ")
    world.network.update([service()], servers)
    client = await world.attached("client")
    large = bytes(range(256)) * 4000
    answers = [await world.call("uid-client", large) for _ in range(4)]
    assert sorted(a[:2] for a in answers) == [b"a ", b"a ", b"b ", b"b "]
    assert all(a[2:] == large + b"|end" for a in answers), "what comes after our end still arrives"
    world.network.update([service()], [*servers, client])
    await until(lambda: {"uid-a", "uid-b"} <= world.runtime.hosts.keys())


async def test_a_pod_with_a_token_reaches_the_api_and_others_do_not(world: World) -> None:
    """As policies of its namespace allow it to leave: those of the namespace ``default`` select no hub."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"the hub")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)

    async def api() -> socket.socket:
        found = socket.socket()
        found.setblocking(False)
        await asyncio.get_running_loop().sock_connect(found, server.sockets[0].getsockname())
        return found

    world.network._api = api
    token = {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
    robot = pod("robot", "client")
    robot["spec"]["volumes"] = [token]
    world.runtime.sandboxes |= {"uid-robot", "uid-plain"}
    plain = pod("plain", "client")
    deny: Obj = {"kind": "NetworkPolicy", "metadata": {"name": "none", "namespace": "default"}, "spec": {"podSelector": {}}}
    world.network.update([service(), deny], [robot, plain])
    await until(lambda: {"uid-robot", "uid-plain"} <= world.runtime.hosts.keys())
    assert not any("kubernetes.default.svc" in names for _, names in world.runtime.hosts["uid-plain"])
    assert any("api" in names for _, names in world.runtime.hosts["uid-robot"])
    assert await world.call("uid-robot", b"", service="kubernetes.default.svc", port=443) == b"the hub"
    deny["metadata"]["namespace"], deny["spec"]["policyTypes"] = "shop", ["Egress"]
    world.network.update([service(), deny], [robot, plain])
    with pytest.raises(OSError):
        await world.call("uid-robot", b"", service="kubernetes.default.svc", port=443)
    deny["spec"]["egress"] = [{"ports": [{"port": 443}]}]
    world.network.update([service(), deny], [robot, plain])
    assert await world.call("uid-robot", b"", service="kubernetes.default.svc", port=443) == b"the hub"
    server.close()


async def test_a_full_disk_stops_no_services(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    client = await world.attached("client")
    await world.runtime.serve("uid-a", 8000, b"hi")
    monkeypatch.setattr("metaos.agent.network.write_private", full)
    for _ in range(2):
        world.network.update([service()], [client, pod("a")])
    await until(lambda: world.runtime.listeners)
    assert (await world.call("uid-client")).startswith(b"hi")
    assert caplog.text.count("No space left on device): pods keep their addresses") == 1
    monkeypatch.undo()
    world.network.update([service()], [client, pod("a")])
    assert json.loads(world.network._file.read_text()) == world.network._addresses.known


async def test_pods_leave_room_at_the_hub_for_agents_that_join_and_for_other_namespaces(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"the hub")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)

    async def api() -> socket.socket:
        found = socket.socket()
        found.setblocking(False)
        await asyncio.get_running_loop().sock_connect(found, server.sockets[0].getsockname())
        return found

    monkeypatch.setattr(world.network, "_api", api)
    for bound, most in (("MAX_API", 4), ("MAX_API_OF_NAMESPACE", 3), ("MAX_POD_API", 2)):
        monkeypatch.setattr(f"metaos.agent.network.{bound}", most)
    robots = [pod(name, "client") for name in ("greedy", "second", "honest", "late")]
    for robot in robots[2:]:
        robot["metadata"]["namespace"] = "bank"
    for robot in robots:
        robot["spec"]["volumes"] = [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]
    world.runtime.sandboxes |= {robot["metadata"]["uid"] for robot in robots}
    world.network.update([service()], robots)
    await until(lambda: {robot["metadata"]["uid"] for robot in robots} <= world.runtime.hosts.keys())

    async def call(pod: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = world.address(f"uid-{pod}", service="kubernetes.default.svc", port=443)
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.readexactly(7) == b"the hub"
        return reader, writer

    held = [await call("greedy"), await call("greedy")]
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await call("greedy")
    held.append(await call("second"))
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await call("second")
    held.append(await call("honest"))
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await call("late")
    for _, writer in held:
        writer.close()
    await until(lambda: not len(world.network._relayed))
    (await call("late"))[1].close()
    await until(lambda: not len(world.network._relayed))
    server.close()


def test_a_sites_pods_have_fewer_connections_than_the_hub_gives_unknown_callers() -> None:
    assert MAX_POD_API < MAX_API_OF_NAMESPACE < MAX_API < CONNECTIONS_UNKNOWN


async def test_endpoints_change_without_touching_listeners_and_remote_ones_are_used_when_needed(world: World) -> None:
    client = await world.attached("client")
    await world.connect_tunnel("z")
    world.network.update([service(), endpoint_slice("far", "z")], [client])
    await until(lambda: world.runtime.listeners)
    before = world.address("uid-client")
    assert await world.call("uid-client", b"hello") == b"z@far:8000 hello|end"
    asked = {"type": "dial", "cluster": "far", "namespace": "shop", "service": "api", "pod": "z", "port": 8000}
    assert world.dialled[0] == asked | {"source": {"pod": "client"}}, "the hub finds out who that is"
    assert world.network.counts.left == {"uid-client": 5}, "what left for the other site is its pod's"
    await world.runtime.serve("uid-a", 8000, b"local ")
    world.network.counts.left.clear()
    world.network.update([service(), endpoint_slice("far", "z")], [client, pod("a")])
    assert (await world.call("uid-client")).startswith(b"local ") and world.address("uid-client") == before
    assert not world.network.counts.left, "what stays here is not counted"
    world.runtime.servers[("uid-a", 8000)].close()
    assert (await world.call("uid-client")).startswith(b"z@far"), "a local one that refuses is passed over"
    world.network.update([service(), endpoint_slice("far", "z")], [client, pod("a", ready=False)])
    assert (await world.call("uid-client")).startswith(b"z@far")


async def test_one_pod_cannot_use_up_the_sites_connections(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaos.agent.network.MAX_POD_RELAYS", 3)
    greedy, modest = await world.attached("greedy"), await world.attached("modest")
    await world.runtime.serve("uid-a", 8000, b"hi")
    world.network.update([service()], [greedy, modest, pod("a")])
    await until(lambda: len(world.runtime.listeners) == 3)
    held = [await asyncio.open_connection(*world.address("uid-greedy")) for _ in range(3)]
    for reader, _ in held:
        assert await reader.readexactly(2) == b"hi"
    with pytest.raises(ConnectionResetError):
        await world.call("uid-greedy")
    assert (await world.call("uid-modest")).startswith(b"hi")
    for _, writer in held:
        writer.close()
    await until(lambda: not len(world.network._relayed))
    assert (await world.call("uid-greedy")).startswith(b"hi")


async def test_with_no_endpoint_the_caller_sees_a_reset(world: World) -> None:
    client = await world.attached("client")
    world.network.update([service(), endpoint_slice("far", "z")], [client])
    await until(lambda: world.runtime.listeners)
    with pytest.raises(ConnectionResetError):
        await world.call("uid-client")


def policy(app: str, **spec: Any) -> Obj:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"for-{app}", "namespace": "shop", "uid": f"np-{app}"},
        "spec": {"podSelector": {"matchLabels": {"app": app}}} | spec,
    }


async def test_network_policies_hold_at_the_relay(world: World) -> None:
    server, client = pod("a"), await world.attached("client")
    await world.runtime.serve("uid-a", 8000, b"a ")
    only_web = policy("api", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}])
    world.network.update([service(), only_web], [server, client])
    await until(lambda: ("uid-client", *_listener(world)) in world.runtime.listeners)
    with pytest.raises(ConnectionResetError):
        await world.call("uid-client")
    assert world.network.refusal({"namespace": "shop", "pod": "x", "labels": {"app": "client"}}, "shop", "a", 8000)
    assert world.network.refusal({"namespace": "shop", "pod": "x", "labels": {"app": "web"}}, "shop", "a", 8000) is None
    assert world.network.refusal(None, "shop", "a", 8000), "nobody in particular"
    assert world.network.refusal(None, "shop", "client", 8000) is None, "no policy selects it"

    here = policy("api", ingress=[{"from": [{"podSelector": {"matchLabels": {"meta-os.eu/cluster": "here"}}}]}])
    world.network.update([service(), here], [server, client])
    assert (await world.call("uid-client")).startswith(b"a ")
    world.network.update([service(), here, policy("client", policyTypes=["Egress"])], [server, client])
    with pytest.raises(ConnectionResetError):
        await world.call("uid-client")

    team = [{"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}], "ports": [{"port": 8000, "endPort": 8001}]}]
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}}
    world.network.update([service(), policy("api", ingress=team), space], [server, client])
    assert (await world.call("uid-client")).startswith(b"a ")
    world.network.update([service()], [server, client])
    assert (await world.call("uid-client")).startswith(b"a ")


def _listener(world: World) -> tuple[str, int]:
    address = next((a for a, names in world.runtime.hosts.get("uid-client", ()) if "api" in names), "")
    return address, 80


async def test_names_and_listeners_are_there_when_attach_returns(world: World) -> None:
    world.network.update([service()], [])
    await world.attached("client")
    assert world.runtime.hosts["uid-client"] == hosts_on_loopback(world.network.hosts("shop"))
    assert only(world.runtime.listeners)[2] == 80
    world.network.update([], [pod("client", "client")])
    await until(lambda: world.runtime.hosts["uid-client"] == ())
    world.network.update([], [])
    assert not world.network.attached("uid-client")


async def test_a_pod_that_goes_while_it_is_set_up_leaves_no_listener(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.network.update([service()], [pod("api-1")])
    asked: list[str] = []

    async def gone_meanwhile(uid: str, hosts: Any) -> None:
        world.network.detach(uid)

    async def listen(uid: str, ports: set[int]) -> set[int]:
        asked.append(uid)
        return set()

    monkeypatch.setattr(world.runtime, "set_hosts", gone_meanwhile)
    monkeypatch.setattr(world.network._datagrams, "listen", listen)
    monkeypatch.setattr(world.runtime, "network", lambda uid="": PodNetwork("1", True))
    found = await world.attached("client-1")
    assert not asked and not world.network.attached(found["metadata"]["uid"])


async def test_a_pod_keeps_its_own_ports_and_says_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.network.update([service(port=8000), service("web", 8000, 9000), service("db", 5, 5)], [pod("a")])
    world.runtime.sandboxes.add("uid-a")
    world.runtime.busy.add(5)
    await world.network.attach(pod("a"))
    assert not world.runtime.listeners
    assert "cannot reach Service web" in caplog.text and "cannot reach Service api" not in caplog.text
    assert "port 5 is taken" in caplog.text


async def test_addresses_survive_a_restart(world: World, tmp_path: Path) -> None:
    world.network.update([service()], [pod("a")])
    again = ServiceNetwork(world.runtime.as_runtime(), "here", tmp_path / "addresses.json", world.dial)
    again.update([service()], [])
    assert again.hosts("shop") == world.network.hosts("shop")
    assert again.pod_address("shop", "a") == world.network.pod_address("shop", "a")
