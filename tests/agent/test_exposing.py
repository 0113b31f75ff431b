"""Services for the world outside: what listens where, who is let in and led where, and what is reported of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from metaos.agent import exposing
from metaos.agent.exposing import Exposed
from metaos.config import Exposure
from metaos.resources.meta import Obj, ref
from metaos.resources.services import EXPOSED
from metaos.twin.processes import free_port
from tests.agent.hub import until
from tests.agent.test_datagrams import Echo
from tests.agent.test_network import World, endpoint_slice, exchanged, pod, service

HERE = "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.0.2.7", Exposure("192.0.2.7")),
        ("192.0.2.7:80", Exposure("192.0.2.7", ((80, 80),))),
        ("127.0.0.1:8000-32767", Exposure("127.0.0.1", ((8000, 32767),))),
        ("127.0.0.1:53,8000-32767", Exposure("127.0.0.1", ((53, 53), (8000, 32767)))),
        ("10.0.0.1:53,", "FIRST-LAST"),
        ("10.0.0.1:" + "1," * 40, "FIRST-LAST"),
        ("0.0.0.0", "is not one address"),
        ("example.org:80", "is no IPv4 address"),
        ("::1", "is no IPv4 address"),
        ("10.0.0.1:0-5", "FIRST-LAST"),
        ("10.0.0.1:9-5", "FIRST-LAST"),
        ("10.0.0.1:1-70000", "FIRST-LAST"),
        ("10.0.0.1:x", "FIRST-LAST"),
    ],
)
def test_what_an_owner_says(text: str, found: Exposure | str) -> None:
    if isinstance(found, str):
        with pytest.raises(ValueError, match=found):
            Exposure.parse(text)
    else:
        assert Exposure.parse(text) == found and Exposure.parse(str(found)) == found


def test_an_address_alone_opens_no_port_of_the_machines_own_services() -> None:
    usual = Exposure.parse(HERE)
    assert [port for port in (22, 25, 53, 80, 443, 1023, 1024, 6443, 30000, 65535) if usual.holds(port)] == [
        *(80, 443, 1024, 6443, 30000, 65535)
    ]


def balanced(port: int, name: str = "api", protocol: str = "TCP", **spec: Any) -> Obj:
    found = service(name, port, 8000, type="LoadBalancer", **spec)
    found["spec"]["ports"][0] |= {"protocol": protocol}
    return found


class Outside(World):
    """A site that exposes Services on this machine's loopback."""

    def __init__(self, folder: Path, exposure: Exposure | None = None) -> None:
        super().__init__(folder)
        self.folder, self.changes = folder, 0
        self.echo = Echo()
        self.runtime.datagrams = self._datagrams  # type: ignore[attr-defined]
        self.begin(exposure or Exposure(HERE))

    def begin(self, exposure: Exposure) -> None:
        def changed() -> None:
            self.changes += 1

        self.exposed = Exposed(
            exposure,
            "here",
            self.runtime.as_runtime(),
            self.dial,
            self.network.refusal_outside,
            self.network.counts,
            self.folder / "exposed.json",
            changed,
        )

    async def _datagrams(self, uid: str, port: int) -> socket.socket:
        return await self.echo.dial()

    def said(self, of: Obj) -> tuple[Any, str, str]:
        """The addresses, and the condition's reason and message."""
        status = self.exposed.status(ref(of))
        (found,) = status.get("conditions") or [{"type": EXPOSED}]
        assert found["type"] == EXPOSED
        return status.get("loadBalancer", {}).get("ingress"), found.get("reason", ""), found.get("message", "")

    async def ask(self, port: int, payload: bytes = b"x") -> bytes:
        """Raises ``ConnectionError`` where nobody answers."""
        return await exchanged(HERE, port, payload)

    async def close(self) -> None:
        await self.exposed.close()
        self.echo.close()
        await super().close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Outside]:
    found = Outside(tmp_path)
    yield found
    await found.close()
    assert found.network.counts.flows == 0


async def test_a_load_balancer_from_its_first_pod_to_its_end(world: Outside) -> None:
    port, node_port = free_port(), free_port()
    found = balanced(port)
    found["spec"]["ports"][0]["nodePort"] = node_port
    await world.runtime.serve("uid-a", 8000, b"a ")
    world.exposed.update([found], [pod("a", ready=False)])
    assert world.said(found)[:2] == (None, "NoEndpoint")
    with pytest.raises(ConnectionError):
        await world.ask(port)
    world.exposed.update([found], [pod("a")])
    assert world.said(found) == (
        [{"ip": HERE, "ipMode": "Proxy"}],
        "Exposed",
        f"{HERE} answers on {port}/TCP, {node_port}/TCP",
    )
    large = bytes(range(256)) * 4000
    assert await world.ask(port, large) == b"a " + large + b"|end"
    assert await world.ask(node_port) == b"a x|end"
    world.exposed.update([found], [])
    assert world.said(found)[:2] == (None, "NoEndpoint")
    with pytest.raises(ConnectionError):
        await world.ask(port)
    world.exposed.update([], [pod("a")])
    assert world.exposed.status(ref(found)) == {}
    socket.create_server((HERE, port)).close()


async def test_others_classes_and_types_are_left_alone_and_node_ports_are_not(world: Outside) -> None:
    port = free_port()
    await world.runtime.serve("uid-a", 8000, b"a ")
    for other in (balanced(port, loadBalancerClass="example.org/own"), service(port=port), service(port=port, type="NodePort")):
        world.exposed.update([other], [pod("a")])
        assert world.exposed.status(ref(other)) == {}
    socket.create_server((HERE, port)).close()
    found = service(type="NodePort")
    found["spec"]["ports"][0]["nodePort"] = port
    world.exposed.update([found], [pod("a")])
    assert world.said(found) == (None, "Exposed", f"{HERE} answers on {port}/TCP")
    assert await world.ask(port) == b"a x|end"


async def test_a_port_is_one_services_and_stays_so(world: Outside) -> None:
    port = free_port()
    api, web = balanced(port), balanced(port, "web")
    pods = [pod("a"), pod("w", "web")]
    await world.runtime.serve("uid-a", 8000, b"api ")
    await world.runtime.serve("uid-w", 8000, b"web ")
    world.exposed.update([web], pods)
    world.exposed.update([api, web], pods)
    assert world.said(web)[1] == "Exposed" and world.said(api)[:2] == (None, "PortTaken")
    assert "another Service's" in world.said(api)[2]
    await world.exposed.close()
    world.begin(Exposure(HERE))  # an agent that starts again
    world.exposed.update([api, web], pods)
    assert await world.ask(port) == b"web x|end"
    world.exposed.update([api], pods)
    assert world.said(api)[1] == "Exposed" and await world.ask(port) == b"api x|end"


async def test_what_cannot_be_opened_is_said_and_tried_again(world: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposing, "RETRY_SECONDS", 0.02)
    await world.runtime.serve("uid-a", 8000, b"a ")
    node_port = free_port()
    with socket.create_server((HERE, 0)) as other:
        found = balanced(other.getsockname()[1])
        found["spec"]["ports"][0]["nodePort"] = node_port
        world.exposed.update([found], [pod("a")])
        taken = {"port": other.getsockname()[1], "protocol": "TCP", "error": "meta-os.eu/PortTaken"}
        ingress, reason, message = world.said(found)
        assert ingress == [{"ip": HERE, "ipMode": "Proxy", "ports": [taken]}], "it answers on the port of the nodes"
        assert reason == "PortTaken" and "another program of the machine has it" in message
        assert await world.ask(node_port) == b"a x|end"
    await until(lambda: world.changes)
    assert world.said(found)[1] == "Exposed"


async def test_the_owners_range_holds(tmp_path: Path) -> None:
    port = free_port()
    world = Outside(tmp_path, Exposure(HERE, ((1, 2),)))
    try:
        found, sctp = balanced(port), balanced(1, "sctp", "SCTP")
        world.exposed.update([found, sctp], [pod("a"), pod("b", "sctp")])
        assert world.said(found)[:2] == (None, "NotAllowed") and "allows 1-2 (--expose)" in world.said(found)[2]
        assert world.said(sctp)[:2] == (None, "ProtocolNotCarried")
        socket.create_server((HERE, port)).close()
    finally:
        await world.close()


async def test_an_address_that_is_not_the_machines_is_said(tmp_path: Path) -> None:
    world = Outside(tmp_path, Exposure("192.0.2.7"))
    try:
        found = balanced(free_port())
        world.exposed.update([found], [pod("a")])
        assert world.said(found)[:2] == (None, "NoAddress")
    finally:
        await world.close()


@pytest.mark.parametrize(("ranges", "welcome"), [(["192.0.2.0/24"], False), (["192.0.2.0/24", "127.0.0.0/8"], True)])
async def test_source_ranges_hold(world: Outside, ranges: list[str], welcome: bool) -> None:
    port = free_port()
    await world.runtime.serve("uid-a", 8000, b"a ")
    world.exposed.update(
        [balanced(port, loadBalancerSourceRanges=ranges), balanced(port, "dns", "UDP", loadBalancerSourceRanges=ranges)],
        [pod("a"), pod("d", "dns")],
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((HERE, port))
        sock.send(b"abc")
        if welcome:
            assert await world.ask(port) == b"a x|end"
            assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"cba"
        else:
            with pytest.raises(ConnectionError):
                await world.ask(port)
            await until(lambda: world.network.counts.dropped)
            assert not world.echo.answered


async def test_policies_hold_by_address(world: Outside) -> None:
    port, found = free_port(), pod("a")
    await world.runtime.serve("uid-a", 8000, b"a ")
    await world.network.attach(found)

    def policy(cidr: str) -> Obj:
        spec = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}
        return {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec}

    for cidr in ("10.0.0.0/8", "127.0.0.0/8"):
        told = [balanced(port), policy(cidr)]
        world.network.update(told, [found])
        world.exposed.update(told, [found])
        if cidr.startswith("127"):
            assert await world.ask(port) == b"a x|end"
        else:
            with pytest.raises(ConnectionError):
                await world.ask(port)


async def test_pods_of_other_sites_serve_unless_only_local_ones_may(world: Outside) -> None:
    port = free_port()
    await world.connect_tunnel("z")
    local = balanced(port, externalTrafficPolicy="Local")
    world.exposed.update([local, endpoint_slice("far", "z")], [])
    assert world.said(local)[:2] == (None, "NoEndpoint")
    world.exposed.update([balanced(port), endpoint_slice("far", "z")], [])
    assert await world.ask(port, b"hello") == b"z@far:8000 hello|end"
    assert world.dialled[0]["source"] == {"outside": True, "address": HERE}


async def test_datagrams_are_answered_from_where_they_were_sent(world: Outside) -> None:
    port = free_port()
    found = balanced(port, protocol="UDP")
    world.exposed.update([found], [pod("a")])
    assert world.said(found)[1] == "Exposed"
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    for number, sock in enumerate(socks):
        sock.setblocking(False)
        sock.connect((HERE, port))
        sock.send(b"%d!" % number)
    for number, sock in enumerate(socks):
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 100), 5) == b"!%d" % number
        sock.close()
    assert world.echo.dialled == 3
    world.exposed.update([], [pod("a")])
    assert world.network.counts.flows == 0


async def test_one_namespace_has_so_many_ports(world: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposing, "MAX_PORTS_OF_NAMESPACE", 2)
    mine = [balanced(free_port(), f"api-{n}") for n in range(3)]
    other = balanced(free_port(), "web")
    other["metadata"] |= {"namespace": "zoo", "uid": "uid-web-zoo"}
    world.exposed.update([*mine, other], [])
    opened = [held for held in world.exposed._held.values() if held.sock is not None]
    assert sorted(held.whose.route.namespace for held in opened) == ["shop", "shop", "zoo"]
    reasons = [world.exposed._problem(each[0], each[0].port)[0] for each in world.exposed._services.values()]
    assert sorted(reasons) == ["", "", "", "TooManyPorts"]


@pytest.mark.parametrize("bound", ["MAX_OF_ADDRESS", "MAX_OF_NAMESPACE"])
async def test_one_address_and_one_namespace_have_so_many_connections(
    world: Outside, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(exposing, bound, 3)
    port = free_port()
    await world.runtime.serve("uid-a", 8000, b"a ")
    world.exposed.update([balanced(port)], [pod("a")])
    held = []
    for _ in range(3):
        reader, writer = await asyncio.open_connection(HERE, port)
        assert await reader.read(2) == b"a "
        held.append(writer)
    with pytest.raises(ConnectionError):
        await world.ask(port)
    for writer in held:
        writer.close()
        await writer.wait_closed()

    async def again() -> bool:
        try:
            return await world.ask(port) == b"a x|end"
        except ConnectionError:
            return False

    async with asyncio.timeout(5):
        while not await again():
            await asyncio.sleep(0.01)
    await until(lambda: not world.exposed._relayed._of)
