"""Waiting for seats, giving up, and bounds on connections."""

import asyncio
import socket
from contextlib import suppress

import pytest

from metaos.apiserver.fairness import Level
from metaos.apiserver.gates import BODIES_EACH, CONNECTIONS_EACH, LONG_RUNNING_EACH, Gate, Gates
from metaos.apiserver.listening import Room, listeners, source_of
from metaos.resources.errors import ApiError
from tests.clock import FakeClock

LEVEL = Level("test", seats=1, waiting_of_flow=2, waiting=3)


async def test_seats_are_handed_on_in_turn_and_given_up() -> None:
    gate, order = Gate(LEVEL, FakeClock()), []
    release = asyncio.Event()

    async def request(flow: str) -> None:
        async with gate.seats(flow, 1):
            order.append(flow)
            await release.wait()

    first = asyncio.create_task(request("a"))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(request(flow)) for flow in ("a", "a", "b")]
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as refused:
        await request("a")
    assert refused.value.code == 429 and refused.value.details["retryAfterSeconds"] == 1
    waiting[0].cancel()  # Its caller goes away.
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(first, *waiting, return_exceptions=True)
    # b came last and goes first: a has had its turn.
    assert order == ["a", "b", "a"]
    assert (gate.queue.taken, gate.queue.waiting, gate.queue.flows) == (0, 0, 0)
    assert gate.rejected == {"queue-full": 1, "time-out": 0} and gate.dispatched == 3


async def test_a_caller_that_leaves_in_the_moment_of_its_turn_leaves_no_seat_taken() -> None:
    gate = Gate(LEVEL, FakeClock())
    for turns in range(4):
        entered, release = asyncio.Event(), asyncio.Event()

        async def holder(entered: asyncio.Event = entered, release: asyncio.Event = release) -> None:
            async with gate.seats("a", 1):
                entered.set()
                await release.wait()

        async def waiter() -> None:
            async with gate.seats("b", 1):
                await asyncio.sleep(0)

        one = asyncio.create_task(holder())
        await entered.wait()
        two = asyncio.create_task(waiter())
        await asyncio.sleep(0)
        release.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        two.cancel()
        await asyncio.gather(one, two, return_exceptions=True)
        assert (gate.queue.taken, gate.queue.waiting, gate.queue.flows) == (0, 0, 0)


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaos.apiserver.gates.QUEUE_SECONDS", 0.02)
    gate = Gate(LEVEL, FakeClock())
    async with gate.seats("a", 1):
        with pytest.raises(ApiError) as refused:
            async with gate.seats("b", 1):
                raise AssertionError("there was no seat")
    assert refused.value.code == 429 and gate.rejected["time-out"] == 1
    assert (gate.queue.taken, gate.queue.waiting, gate.queue.flows) == (0, 0, 0)


def test_bounds_of_one_caller() -> None:
    class Connection: ...

    gates = Gates(FakeClock())
    with (
        gates.holding("a", BODIES_EACH),
        gates.holding("b", 1 << 20),
        gates.holding("a", 100),
        pytest.raises(ApiError, match="large bodies"),
        gates.holding("a", 1 << 20),
    ):
        pass
    open_now = [Connection() for _ in range(CONNECTIONS_EACH)]
    for each in open_now:
        gates.connected("a", each)
        gates.connected("a", each)
    with pytest.raises(ApiError, match="connections"):
        gates.connected("a", Connection())
    gates.connected("b", Connection())
    open_now.clear()
    gates.connected("a", Connection())
    lasting = [gates.lasting("a") for _ in range(LONG_RUNNING_EACH)]
    for entered in lasting:
        entered.__enter__()
    with pytest.raises(ApiError, match="watches"), gates.lasting("a"):
        pass
    with gates.lasting("b"):
        pass
    for entered in lasting:
        entered.__exit__(None, None, None)
    text = "\n".join(gates.render())
    assert 'apiserver_flowcontrol_nominal_limit_seats{priority_level="system"} 64' in text
    assert 'nemo_refused_requests_total{reason="long-running"} 1' in text


async def test_too_many_connections_are_closed_at_once_and_room_comes_back() -> None:
    room = Room(total=6, of_address=4)
    (listener,) = listeners("127.0.0.1", 0, room)
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, sock=listener)
    address = listener.getsockname()

    async def opened() -> list[socket.socket]:
        found = []
        loop = asyncio.get_running_loop()
        for _ in range(10):
            client = socket.socket()
            client.setblocking(False)
            found.append(client)
            with suppress(ConnectionResetError):
                await loop.sock_connect(client, address)
        async with asyncio.timeout(5):
            while room.open + room.refused < 10:
                await asyncio.sleep(0.005)
        return found

    clients = await opened()
    assert (room.open, room.refused) == (4, 6)
    for client in clients:
        client.close()
    async with asyncio.timeout(5):
        while room.open:
            await asyncio.sleep(0.005)
    room.refused = 0
    for client in await opened():
        client.close()
    server.close()
    async with asyncio.timeout(5):
        while room.open:
            await asyncio.sleep(0.005)


def test_addresses() -> None:
    assert source_of("192.0.2.1") == "192.0.2.1"
    assert source_of("2001:db8:1:2:3:4:5:6") == source_of("2001:db8:1:2::9") != source_of("2001:db8:1:3::9")
    assert source_of("fe80::1%eth0") == "fe80::"
