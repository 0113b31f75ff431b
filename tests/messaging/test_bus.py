"""What every bus promises: one suite for the one in memory and for a real NATS server, which is killed where that may matter."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from metaos.clock import SystemClock
from metaos.messaging import nats
from metaos.messaging.bus import Bus, BusError, Full, Inbox, Message, NoAnswer, Stream, Unavailable
from metaos.messaging.exchange import Exchange, ExchangeConfig
from metaos.messaging.memory import MemoryBus
from tests.messaging.conftest import root


@dataclass
class Tried:
    bus: Bus
    #: Kills the server, where there is one, and says whether there was.
    kill: Callable[[], Awaitable[bool]]


@pytest.fixture(params=["memory", "nats"])
async def tried(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tried]:
    if request.param == "memory":
        bus = MemoryBus(SystemClock().monotonic)

        async def nothing() -> bool:
            return False

        yield Tried(bus, nothing)
        await bus.close()
        return
    # What is on its way when the server is killed is waited for that long.
    monkeypatch.setattr(nats, "API_SECONDS", 1.0)
    exchange = Exchange(ExchangeConfig(tmp_path / "bus"), SystemClock(), root)
    found = await exchange.bus()

    async def kill() -> bool:
        assert exchange.server is not None
        os.kill(exchange.server.pid, signal.SIGKILL)
        return True

    yield Tried(found, kill)
    await exchange.stop()


async def test_what_is_said_is_heard_in_order_by_all_who_listen(tried: Tried) -> None:
    one, other = await tried.bus.subscribe("a.*.c"), await tried.bus.subscribe("a.>")
    for number in range(50):
        await tried.bus.publish("a.b.c", str(number).encode(), headers={"n": str(number)})
    await tried.bus.publish("a.b", b"not for the first")
    assert [int((await anext(one)).data) for _ in range(50)] == list(range(50))
    heard = [await anext(other) for _ in range(51)]
    assert [m.subject for m in heard[49:]] == ["a.b.c", "a.b"]
    assert heard[49].headers == {"n": "49"}


async def test_a_group_hears_each_message_once(tried: Tried) -> None:
    members = [await tried.bus.subscribe("work", group="g") for _ in range(3)]
    end = await tried.bus.subscribe("work")
    for number in range(30):
        await tried.bus.publish("work", str(number).encode())
    for _ in range(30):
        await anext(end)
    for member in members:
        await member.close()
    heard = [int(m.data) for member in members async for m in member]
    assert sorted(heard) == list(range(30))


async def test_of_too_much_the_oldest_is_lost_and_counted(tried: Tried) -> None:
    slow, end = await tried.bus.subscribe("flood", waiting=10), await tried.bus.subscribe("flood")
    for number in range(100):
        await tried.bus.publish("flood", str(number).encode())
    for _ in range(100):
        await anext(end)
    async with asyncio.timeout(5):
        while slow.lost < 90:
            await asyncio.sleep(0.001)
    await slow.close()
    assert [int(m.data) async for m in slow] == list(range(90, 100))
    assert slow.lost == 90


async def test_a_question_is_answered_or_it_is_said_that_nobody_listens(tried: Tried) -> None:
    with pytest.raises(NoAnswer, match="nobody listens on deaf"):
        await tried.bus.request("deaf", b"?")
    asked = await tried.bus.subscribe("asked")

    async def answer() -> None:
        question = await anext(asked)
        await tried.bus.publish(question.reply, b"to " + question.data)

    answering = asyncio.create_task(answer())
    assert (await tried.bus.request("asked", b"that")).data == b"to that"
    await answering
    with pytest.raises(Unavailable, match=r"within 0\.05 s"):
        await tried.bus.request("asked", b"silence", seconds=0.05)


async def test_a_stream_hands_out_until_it_is_taken(tried: Tried) -> None:
    await tried.bus.keep(Stream("s", ("s.>",), most_bytes=1 << 20))
    for number in range(5):
        assert (await tried.bus.append(f"s.{number}", b"x")).number == number + 1
    consumer = await tried.bus.consume("s", "reader", again_seconds=0.3)
    first = await consumer.fetch(3, 2)
    assert [d.number for d in first] == [1, 2, 3]
    await first[0].take()
    await first[1].refuse()
    seen: set[int] = set()
    async with asyncio.timeout(10):
        while seen != {2, 3, 4, 5}:
            for delivery in await consumer.fetch(10, 0.5):
                assert delivery.number != 1
                seen.add(delivery.number)
                await delivery.take()
    assert await consumer.fetch(10, 0.4) == []


async def test_two_places_are_apart_and_a_place_may_want_a_part(tried: Tried) -> None:
    await tried.bus.keep(Stream("s", ("s.>",), most_bytes=1 << 20))
    for word in ("a", "b", "a"):
        await tried.bus.append(f"s.{word}", word.encode())
    one = await tried.bus.consume("s", "one")
    two = await tried.bus.consume("s", "two", subject="s.a")
    assert [d.message.subject for d in await one.fetch(3, 2)] == ["s.a", "s.b", "s.a"]
    assert [d.number for d in await two.fetch(2, 2)] == [1, 3]


async def test_a_key_makes_twice_once(tried: Tried) -> None:
    await tried.bus.keep(Stream("s", ("s",), most_bytes=1 << 20))
    first = await tried.bus.append("s", b"x", key="k")
    again = await tried.bus.append("s", b"x", key="k")
    other = await tried.bus.append("s", b"x", key="l")
    assert (first.number, first.known, again.number, again.known, other.number) == (1, False, 1, True, 2)


async def test_beyond_its_bounds_a_stream_loses_the_oldest_or_refuses_the_newest(tried: Tried) -> None:
    await tried.bus.keep(Stream("old", ("old.*",), most_bytes=1 << 20, most_messages=3, most_of_subject=2))
    for number in range(4):
        await tried.bus.append("old.a", str(number).encode())
    await tried.bus.append("old.b", b"b")
    found = await (await tried.bus.consume("old", "reader")).fetch(5, 1)
    assert [d.message.data for d in found] == [b"2", b"3", b"b"]
    await tried.bus.keep(Stream("new", ("new",), most_bytes=1 << 20, most_messages=2, refuses=True))
    await tried.bus.append("new", b"0")
    await tried.bus.append("new", b"1")
    with pytest.raises(Full):
        await tried.bus.append("new", b"2")
    await tried.bus.keep(Stream("new", ("new",), most_bytes=1 << 20, most_messages=3, refuses=True))
    assert (await tried.bus.append("new", b"2")).number == 3


async def test_what_no_stream_keeps_is_not_acknowledged(tried: Tried) -> None:
    with pytest.raises(BusError, match="no stream keeps nowhere"):
        await tried.bus.append("nowhere", b"x")
    with pytest.raises(BusError):
        await tried.bus.consume("nothing", "reader")


def test_a_stream_has_a_bound() -> None:
    with pytest.raises(ValueError, match="most_bytes is 0"):
        Stream("s", ("s",), most_bytes=0)


async def test_nothing_that_was_acknowledged_is_lost_when_the_server_is_killed(tried: Tried) -> None:
    await tried.bus.keep(Stream("s", ("s",), most_bytes=1 << 20))
    heard = await tried.bus.subscribe("news")
    consumer = await tried.bus.consume("s", "reader", again_seconds=0.5)
    acknowledged: list[int] = []

    async def write() -> None:
        for number in range(60):
            while True:
                try:
                    await tried.bus.append("s", str(number).encode(), key=str(number))
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
            acknowledged.append(number)

    async with asyncio.timeout(60):
        writing = asyncio.create_task(write())
        while len(acknowledged) < 20:
            await asyncio.sleep(0.001)
        was_killed = await tried.kill()
        await writing
        got: list[int] = []
        while len(set(got)) < 60:
            try:
                for delivery in await consumer.fetch(20, 1):
                    got.append(int(delivery.message.data))
                    await delivery.take()
            except Unavailable:
                await asyncio.sleep(0.05)
        assert sorted(set(got)) == list(range(60))
        if not was_killed:
            assert got == list(range(60))
        # Who listened before is heard again without doing anything.
        await tried.bus.publish("news", b"after")
        assert (await anext(heard)).data == b"after"


async def test_a_closed_subscription_ends(tried: Tried) -> None:
    heard = await tried.bus.subscribe("a")
    await heard.close()
    assert [m async for m in heard] == []


async def test_what_waits_is_bounded_in_bytes_too() -> None:
    async def close() -> None:
        pass

    inbox = Inbox(100, close, most_bytes=1000)
    for n in range(10):
        inbox.put(Message(f"s{n}", bytes(298)))
    assert inbox.lost == 7
    inbox.end()
    assert [message.subject async for message in inbox] == ["s7", "s8", "s9"]
