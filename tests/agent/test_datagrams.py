"""Datagrams from and to another site: delivered and answered, bounded, and ended when they may not come any more."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from metaos.agent import datagrams, flows
from metaos.agent.datagrams import Datagrams, deliver
from metaos.agent.flows import MAX_DATAGRAM, Counts, Waiting
from metaos.agent.routes import RemoteEndpoint, Route
from metaos.runtimes.netns import IP_PKTINFO
from metaos.tunnel import Stream, StreamReset, Tunnel
from tests.agent.hub import until


class Echo:
    """A pod of this site: a UDP server on this machine's loopback, and the way to it."""

    def __init__(self) -> None:
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server.bind(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.dialled = self.answered = 0
        self.silent = False
        #: Who asked last.
        self.who: Any = None
        asyncio.get_running_loop().add_reader(self.server, self._answer)

    def _answer(self) -> None:
        data, self.who = self.server.recvfrom(MAX_DATAGRAM)
        self.answered += 1
        if not self.silent:
            self.server.sendto(data[::-1], self.who)

    async def dial(self) -> socket.socket:
        self.dialled += 1
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(self.server.getsockname())
        return sock

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.server)
        self.server.close()


class Site:
    def __init__(self) -> None:
        self.echo, self.counts, self.refusal = Echo(), Counts(), ""
        sides: list[Tunnel] = []

        async def serve(header: dict[str, Any], stream: Stream) -> None:
            await deliver(stream, self.echo.dial, lambda: self.refusal or None, self.counts, "web")

        async def to_server(message: bytes) -> None:
            await sides[1].receive(message)

        async def to_client(message: bytes) -> None:
            await sides[0].receive(message)

        sides += [Tunnel(to_server, serve, client=True), Tunnel(to_client, serve, client=False)]
        self.sides = sides

    async def open(self) -> Stream:
        stream = await self.sides[0].open({"type": "datagrams"})
        await stream.accepted()
        return stream

    async def close(self) -> None:
        for side in self.sides:
            await side.close()
        self.echo.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    found = Site()
    yield found
    await found.close()
    assert found.counts.flows == 0, "nothing is left of what has ended"


def message(number: int, data: bytes) -> bytes:
    return number.to_bytes(4, "big") + data


async def test_each_flow_has_its_own_answers_whole_and_empty_ones_too(site: Site) -> None:
    stream = await site.open()
    large = bytes(range(256)) * 200
    for number, data in ((1, b"one"), (2**32 - 1, large), (3, b"")):
        await stream.write(message(number, data))
    found = {}
    async with asyncio.timeout(5):
        while len(found) < 3:
            answer = await stream.read()
            found[int.from_bytes(answer[:4], "big")] = answer[4:]
    assert found == {1: b"eno", 2**32 - 1: large[::-1], 3: b""}
    await until(lambda: site.counts.left == {"web": 3 + len(large)})
    assert site.counts.flows == site.echo.dialled == 3


async def test_a_site_that_begins_flow_after_flow_has_so_many(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "MAX_POD_FLOWS", 10)
    site.echo.silent = True
    stream = await site.open()
    for number in range(200):
        await stream.write(message(number, b"x"))
    await until(lambda: site.echo.dialled == 10)
    assert site.counts.flows == 10 and sum(site.counts.dropped.values()) == 190


@pytest.mark.parametrize("broken", [b"abc", b"1234" + bytes(MAX_DATAGRAM + 1)])
async def test_what_is_no_datagram_ends_the_stream(site: Site, broken: bytes) -> None:
    stream = await site.open()
    await stream.write(broken)
    async with asyncio.timeout(5):
        with pytest.raises(StreamReset, match="is no flow's datagram"):
            await stream.read()
    again = await site.open()
    await again.write(message(1, b"ab"))
    assert await again.read() == message(1, b"ba"), "others go on"


async def test_what_may_not_come_any_more_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "RECHECK_SECONDS", 0.0)
    stream = await site.open()
    await stream.write(message(1, b"ab"))
    assert await stream.read() == message(1, b"ba")
    site.refusal = "NetworkPolicies say no"
    await stream.write(message(1, b"ab"))
    async with asyncio.timeout(5):
        with pytest.raises(StreamReset, match="NetworkPolicies say no"):
            await stream.read()


async def test_who_does_not_read_loses_datagrams_and_holds_nothing_up(site: Site) -> None:
    stream = await site.open()
    for number in range(60):
        await stream.write(message(number % 3, bytes(20_000)))
        await until(lambda number=number: site.echo.answered == number + 1)
    await until(lambda: site.counts.dropped.get("no room to wait", 0) > 0)
    other = await site.open()
    await other.write(message(1, b"ab"))
    async with asyncio.timeout(5):
        assert await other.read() == message(1, b"ba")


async def test_answers_end_too_when_they_may_not_go_any_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "RECHECK_SECONDS", 0.0)
    site.echo.silent = True
    stream = await site.open()
    await stream.write(message(1, b"ab"))
    await until(lambda: site.echo.answered == 1)
    site.refusal = "NetworkPolicies say no"
    site.echo.server.sendto(b"unasked", site.echo.who)
    await until(lambda: site.counts.flows == 0)
    assert site.counts.dropped == {"it may not be answered any more": 1}


async def test_what_waits_at_a_site_is_bounded_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "SITE_WAITING_BYTES", 1000)
    counts = Counts()
    first, second = Waiting(counts), Waiting(counts)
    for waiting in (first, second):
        for _ in range(2):
            waiting.add(1, bytes(400))
    assert counts.waiting == 800 and counts.dropped == {"no room to wait": 2}
    assert not second
    first.take()
    second.add(1, bytes(600))
    assert counts.waiting == 1000
    for waiting in (first, second):
        waiting.drop("the end")
    assert counts.waiting == 0


class Sender:
    """A pod of this site whose gateway is this machine's loopback, and a Service with one endpoint at another site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.may, self.taken, self.reached = True, set[int](), 0
        self.reachable = asyncio.Event()
        self.reachable.set()
        self.gateway: dict[int, socket.socket] = {}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.counts = Counts()
        self.datagrams = Datagrams(self, self.choose, self.reach, self.counts)  # type: ignore[arg-type]

    async def receive(self, uid: str, port: int) -> socket.socket:
        if port in self.taken:
            raise OSError(errno.EADDRINUSE, "in use")
        made = self.gateway[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        made.bind(("127.0.0.1", 0))
        return made

    def choose(self, uid: str, listener: object, source: object) -> Any:
        return Route("shop", "db"), [RemoteEndpoint("far", "db-0", 53)] if self.may else []

    async def reach(self, uid: str, whose: str, route: Route, endpoint: RemoteEndpoint) -> Stream:
        self.reached += 1
        await self.reachable.wait()
        return await self._site.open()

    def send(self, data: bytes, port: int = 53) -> None:
        self.socket.sendto(data, self.gateway[port].getsockname())

    async def answer(self) -> bytes:
        async with asyncio.timeout(5):
            return await asyncio.get_running_loop().sock_recv(self.socket, MAX_DATAGRAM)

    @property
    def trunks(self) -> int:
        return sum(len(origin.trunks) for origin in self.datagrams._origins.values())

    async def close(self) -> None:
        await self.datagrams.close()
        self.socket.close()


@pytest.fixture
async def sender(site: Site) -> AsyncIterator[Sender]:
    found = Sender(site)
    assert await found.datagrams.listen("p", {53}) == set()
    yield found
    await found.close()
    assert (found.counts.flows, found.counts.waiting, found.trunks) == (0, 0, 0), "nothing is left of what has ended"


async def test_a_port_in_use_keeps_no_other_from_being_listened_on(sender: Sender) -> None:
    sender.taken = {54}
    assert await sender.datagrams.listen("p", {53, 54, 55}) == {54}
    assert sender.datagrams.ports("p") == {53, 55}
    sender.taken = set()
    assert await sender.datagrams.listen("p", {53, 54, 55}) == set()


async def test_a_stream_that_has_ended_leads_nowhere(sender: Sender) -> None:
    sender.send(b"ab")
    await sender.answer()
    (origin,) = sender.datagrams._origins.values()
    ((_, ready),) = origin.trunks.values()
    trunk = ready.result()
    origin.flows.close()
    await until(lambda: sender.trunks == 0)
    with pytest.raises(ConnectionError, match="the stream has ended"):
        trunk.lead(lambda data: None, lambda: None)


async def test_a_stream_that_came_when_nobody_waited_for_it_any_more_ends(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender.reachable.clear()
    sender.send(b"ab")
    await until(lambda: sender.reached == 1)
    (origin,) = sender.datagrams._origins.values()
    origin.flows.close()
    monkeypatch.setattr(datagrams, "CONNECT_SECONDS", 0.01)
    sender.reachable.set()
    await until(lambda: sender.trunks == 0)


async def test_a_pod_that_may_not_be_answered_is_not(sender: Sender, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "RECHECK_SECONDS", 0.0)
    sender.send(b"ab")
    assert await sender.answer() == b"ba"
    sender.may = False
    site.echo.server.sendto(b"unasked", site.echo.who)
    await until(lambda: sender.counts.flows == 0)
    assert sender.counts.dropped == {"it may not be answered any more": 1}
