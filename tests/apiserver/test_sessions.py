"""What is open ends at once when its caller's certificate is withdrawn or expires; others notice nothing."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from metaos.apiserver.sessions import SWEEP_SECONDS
from metaos.clock import SystemClock
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.tunnel import Stream, StreamReset
from tests.apiserver.objects import cluster, pod
from tests.apiserver.serving import ServedHub, served, site
from tests.clock import FakeClock

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        await running.make(cluster("edge"), pod("web-1", nodeName="edge"))
        yield running


async def endless(header: dict[str, Any], stream: Stream) -> None:
    """A pod that says something now and then, whatever it is asked for."""
    await stream.accept()
    await stream.write(b"\x01begun\n")
    await stream.wait_closed()


def session(hub: ServedHub, name: str, *groups: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(hub.url, connector=aiohttp.TCPConnector(ssl=hub.context(name, *groups)))


async def test_watches_logs_commands_and_ports_of_a_withdrawn_user_are_cut(hub: ServedHub) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(site(hub, "edge", endless))
        ann, bob = [await stack.enter_async_context(session(hub, name, "system:masters")) for name in ("ann", "bob")]
        opened: list[Any] = []
        for who in (ann, bob):
            watch, log = [
                await stack.enter_async_context(who.get(f"{PODS}{query}")) for query in ("?watch=1", "/web-1/log?follow=1")
            ]
            command, port = [
                await stack.enter_async_context(who.ws_connect(f"{PODS}/web-1/{query}", protocols=(protocol,)))
                for query, protocol in (
                    ("exec?command=sh&stdout=1", "v5.channel.k8s.io"),
                    ("portforward?ports=80", "v4.channel.k8s.io"),
                )
            ]
            assert await watch.content.readline() and await log.content.read(3)
            assert (await command.receive()).data and (await port.receive()).data
            opened += [watch, log, command, port]
        assert hub.sessions.count == 9, "four each, and the tunnel"
        assert hub.sessions.sweep() == 0
        hub.revoked.add("ann")
        assert hub.sessions.sweep() == 4
        async with asyncio.timeout(2):
            for answer in opened[:2]:
                with pytest.raises(aiohttp.ClientError):
                    await answer.content.read()
            for socket in opened[2:4]:
                while (await socket.receive()).type not in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                    pass
            while hub.sessions.count != 5:
                await asyncio.sleep(0.005)
        for who, status in ((ann, 401), (bob, 200)):
            async with who.get(PODS) as answer:
                assert answer.status == status


async def test_the_tunnel_of_a_removed_site_is_cut_with_all_its_streams(hub: ServedHub) -> None:
    ann = session(hub, "ann", "system:masters")
    async with site(hub, "edge", endless), ann, ann.get(f"{PODS}/web-1/log?follow=1") as log:
        assert await log.content.read(3)
        hub.revoked.add("system:cluster:edge")
        hub.sessions.sweep()
        async with asyncio.timeout(2):
            with pytest.raises(aiohttp.ClientError):
                await log.content.read()
            while hub.tunnels.connected():
                await asyncio.sleep(0.005)
    agent = hub.client("system:cluster:edge", "system:clusters")
    with pytest.raises(ApiError, match="revoked"):
        await agent.get(scheme.CLUSTER, "edge")
    await agent.close()


async def test_a_certificate_that_expires_ends_what_it_opened(tmp_path: Path) -> None:
    clock = FakeClock(SystemClock().now())
    async with served(tmp_path, clock) as hub:
        sweeping = asyncio.create_task(hub.sessions.run(clock))
        ann = session(hub, "ann", "system:masters")
        async with ann, ann.get(f"{PODS}?watch=1&timeoutSeconds=100000") as watch:
            await clock.advance(3590)
            assert hub.sessions.count == 1
            await clock.advance(10 + SWEEP_SECONDS)
            async with asyncio.timeout(2):
                with pytest.raises(aiohttp.ClientError):
                    await watch.content.read()
        sweeping.cancel()


async def test_a_renewed_site_keeps_its_streams_and_opens_new_ones_on_the_new_tunnel(hub: ServedHub) -> None:
    used: list[str] = []
    ended = asyncio.Event()

    def serving(mark: str) -> Any:
        async def serve(header: dict[str, Any], stream: Stream) -> None:
            used.append(mark)
            await stream.accept()
            await stream.write(b"\x01begun\n")
            await ended.wait()
            await stream.write(b"\x01ended\n")

        return serve

    def context() -> ssl.SSLContext:
        return hub.context("system:cluster:edge", "system:clusters")

    header = {"type": "log", "namespace": "default", "pod": "web-1"}
    async with site(hub, "edge", serving("first"), context()) as first:
        one = await hub.tunnels.open("edge", header)
        assert await one.read() == b"\x01begun\n"
        async with site(hub, "edge", serving("second"), context()) as second:
            async with asyncio.timeout(2):
                while hub.sessions.count != 2:
                    await asyncio.sleep(0.005)
            other = await hub.tunnels.open("edge", header)
            assert await other.read() == b"\x01begun\n"
            assert used == ["first", "second"] and first.streams == second.streams == 1
            ended.set()  # The last stream of the first tunnel: it goes.
            assert await one.read() == b"\x01ended\n" and await one.read() == b""
            async with asyncio.timeout(2):
                while hub.sessions.count != 1:
                    await asyncio.sleep(0.005)
            assert await (await hub.tunnels.open("edge", header)).read() and used[-1] == "second"


async def test_a_second_tunnel_of_the_same_certificate_replaces_the_first(hub: ServedHub) -> None:
    same = hub.context("system:cluster:edge", "system:clusters")
    header = {"type": "log", "namespace": "default", "pod": "web-1"}
    async with site(hub, "edge", endless, same):
        one = await hub.tunnels.open("edge", header)
        assert await one.read()
        async with site(hub, "edge", endless, same):
            with pytest.raises(StreamReset, match="another tunnel"):
                async with asyncio.timeout(2):
                    await one.read()
