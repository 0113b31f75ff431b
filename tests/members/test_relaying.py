"""What a Kubernetes member's agent stands for: pods at other sites, for the cluster's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from metaos.agent import datagrams
from metaos.members import relaying
from metaos.members.relaying import Relays
from metaos.resources.meta import Obj
from metaos.tunnel import Stream, Tunnel, TunnelError
from tests.agent.test_network import endpoint_slice, service

IMPORT: Obj = {
    "apiVersion": "multicluster.x-k8s.io/v1alpha1",
    "kind": "ServiceImport",
    "metadata": {"name": "api", "namespace": "shop", "uid": "i"},
    "spec": {"type": "ClusterSetIP", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]},
}


class Hub:
    """Answers what is dialled by its header, in capitals; refuses pods named ``down``."""

    def __init__(self) -> None:
        self.works: dict[str, Obj] = {}
        self.asked: list[dict[str, Any]] = []
        self.pods = {"127.0.0.1": ("shop", "web")}
        ends: list[Tunnel] = []

        async def to(end: int, message: bytes) -> None:
            await ends[end].receive(message)

        async def answer(header: dict[str, Any], stream: Stream) -> None:
            if header["pod"] == "down":
                await stream.reset("it is away")
                return
            await stream.accept()
            while data := await stream.read():
                if header["type"] == "datagrams":
                    await stream.write(data[:4] + data[4:].upper())
                    continue
                await stream.write(header["pod"].encode() + b" " + data.upper())
            await stream.write_eof()

        ends.append(Tunnel(lambda message: to(1, message), answer, client=True))
        ends.append(Tunnel(lambda message: to(0, message), answer, client=False))
        self._near = ends[0]
        self.relays = Relays("127.0.0.1", "kube", self.works.get, self.dial, self.pods.get)

    def serve(self, *slices: Obj) -> None:
        found = service()
        found["spec"]["ports"].append({"name": "dns", "port": 53, "protocol": "UDP"})
        for each in slices:
            each["ports"].append({"name": "dns", "port": 53, "protocol": "UDP"})
        self.works["service.shop.api"] = {"spec": {"manifests": [found, *slices]}}

    async def dial(self, header: dict[str, Any]) -> Stream:
        self.asked.append(header)
        try:
            return await self._near.open(header)
        except TunnelError as error:
            raise ConnectionError(str(error)) from None

    async def call(self) -> bytes:
        found = self.relays.slice(IMPORT)
        assert found is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", found["ports"][0]["port"])
        try:
            writer.write(b"hello")
            writer.write_eof()
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    found = Hub()
    yield found
    await found.relays.close()


async def test_a_connection_is_led_to_a_ready_pod_elsewhere(hub: Hub) -> None:
    hub.serve(endpoint_slice("far", "down", "api-1"), endpoint_slice("kube", "own"))
    assert [await hub.call() for _ in range(2)] == [b"api-1 HELLO"] * 2, "one that is away is passed over"
    assert {each["cluster"] for each in hub.asked} == {"far"}, "the cluster's own pods serve without the agent"
    assert hub.asked[-1]["source"] == {"namespace": "shop", "pod": "web"}
    hub.pods.clear()
    await hub.call()
    assert hub.asked[-1]["source"] == {"outside": True}


@pytest.mark.parametrize(("bound", "others"), [("MAX_OF_POD", ("shop", "second")), ("MAX_OF_NAMESPACE", ("bank", "vault"))])
async def test_who_holds_many_connections_leaves_some_to_others(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, bound: str, others: tuple[str, str]
) -> None:
    hub.serve(endpoint_slice("far", "api-1"), endpoint_slice("kube", "own"))
    monkeypatch.setattr(f"metaos.members.relaying.{bound}", 1)
    hub.pods |= {"127.0.0.2": others, "127.0.0.3": ("shop", "web")}
    found = hub.relays.slice(IMPORT)
    assert found is not None
    opened = []

    async def said(address: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", found["ports"][0]["port"], local_addr=(address, 0))
        opened.append(writer)
        writer.write(b"hello")
        return await asyncio.wait_for(reader.readexactly(11), 5)

    assert await said("127.0.0.1") == b"api-1 HELLO"
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await said("127.0.0.3")
    assert await said("127.0.0.2") == b"api-1 HELLO"
    for writer in opened:
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_datagrams_are_led_there_too_those_of_each_pod_by_themselves(hub: Hub) -> None:
    hub.serve(endpoint_slice("far", "api-1"), endpoint_slice("kube", "own"))
    hub.pods["127.0.0.2"] = ("shop", "other")
    found = hub.relays.slice(IMPORT)
    assert found is not None
    port = found["ports"][1]["port"]
    loop = asyncio.get_running_loop()
    for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind((address, 0))
            sock.connect(("127.0.0.1", port))
            sock.send(address.encode() + b"a")
            assert await asyncio.wait_for(loop.sock_recv(sock, 100), 5) == address.encode() + b"A"
    assert [each["type"] for each in hub.asked] == ["datagrams"] * 3, "those of one pod share a stream"
    sources = [each["source"] for each in hub.asked]
    assert sources == [{"namespace": "shop", "pod": "web"}, {"namespace": "shop", "pod": "other"}, {"outside": True}]
    assert {(each["pod"], each["port"]) for each in hub.asked} == {("api-1", 53)}
    hub.relays.keep([])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))


async def test_who_gets_a_pods_address_is_not_taken_for_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "RECHECK_SECONDS", 0.0)
    hub.serve(endpoint_slice("far", "api-1"))
    found = hub.relays.slice(IMPORT)
    assert found is not None
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        sock.connect(("127.0.0.1", found["ports"][1]["port"]))
        # The same address and port of its own, so that even the flow goes on.
        for pod in ("web", "other"):
            hub.pods["127.0.0.1"] = ("shop", pod)
            sock.send(b"a")
            assert await asyncio.wait_for(loop.sock_recv(sock, 100), 5) == b"A"
            assert hub.asked[-1]["source"] == {"namespace": "shop", "pod": pod}


async def test_a_slice_names_the_relay_as_long_as_somebody_is_there(hub: Hub) -> None:
    hub.serve(endpoint_slice("kube", "own"))
    found = hub.relays.slice(IMPORT)
    assert found is not None and found["endpoints"] == []
    assert [(port["name"], port["protocol"]) for port in found["ports"]] == [("http", "TCP"), ("dns", "UDP")]
    with pytest.raises(ConnectionResetError):
        await hub.call()
    hub.serve(endpoint_slice("far", "api-1"))
    again = hub.relays.slice(IMPORT)
    assert again is not None and again["endpoints"][0]["addresses"] == ["127.0.0.1"] and again["ports"] == found["ports"]
    headless = IMPORT | {"spec": IMPORT["spec"] | {"type": "Headless"}}
    assert hub.relays.slice(headless) is None


async def test_it_listens_where_it_did_and_for_nothing_else(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.serve(endpoint_slice("far", "api-1"))
    first = hub.relays.slice(IMPORT)
    hub.relays.keep([("shop", "other")])
    assert first is not None
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", first["ports"][0]["port"])
    again = hub.relays.slice(IMPORT)
    assert again is not None and again["ports"] == first["ports"]
    hub.relays.keep([])
    monkeypatch.setattr(relaying, "MAX_PORTS", 0)
    assert hub.relays.slice(IMPORT) is None
