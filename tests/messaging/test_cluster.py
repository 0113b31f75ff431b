"""Three real servers on loopback, as an operator runs them from what ``nemo bus config`` prints: one of them may die."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from metaos.clock import SystemClock
from metaos.config import Address
from metaos.messaging.bus import Stream, Unavailable
from metaos.messaging.embedded import Embedded, Listener, ServerConfig, cluster_text, free_port
from metaos.messaging.exchange import Exchange, ExchangeConfig
from metaos.messaging.subjects import from_devices
from tests.messaging.conftest import root
from tests.messaging.test_exchange import SHOP, Device

HERE = "127.0.0.1"


@pytest.mark.slow
async def test_one_of_three_servers_is_killed_and_nothing_that_was_acknowledged_is_lost(tmp_path: Path) -> None:
    clients, devices, routes = ([Address(HERE, free_port(HERE)) for _ in range(3)] for _ in range(3))
    hub = Exchange(ExchangeConfig(tmp_path, tuple(f"nats://{a}" for a in clients)), SystemClock(), root)
    accounts = await hub.known()
    servers = [
        Embedded(
            ServerConfig(
                name=f"nats-{n}",
                folder=tmp_path / f"nats-{n}",
                listen=Listener(HERE, clients[n].port),
                operator=accounts.operator_token(),
                system=accounts.system.public,
                accounts={accounts.system.public: accounts.system_token(), accounts.hub.public: accounts.hub_token()},
                mqtt=Listener(HERE, devices[n].port),
                more=cluster_text(routes[n], [r for r in routes if r != routes[n]], None, None),
            ),
            SystemClock(),
        )
        for n in range(3)
    ]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        bus = await hub.bus()
        await hub.hold([SHOP])
        async with asyncio.timeout(30):
            while True:
                try:
                    await bus.keep(Stream("s", ("s",), most_bytes=1 << 20))
                    break
                except Unavailable:  # They have not agreed on a leader yet.
                    await asyncio.sleep(0.2)
        heard = await bus.subscribe(from_devices("status"))
        user = await hub.device(SHOP, "lamp", "uid-lamp")
        connected = next(n for n, a in enumerate(clients) if bus.at.endswith(f":{a.port}"))
        at = next(n for n in range(3) if n != connected)
        async with asyncio.timeout(30):
            device = Device(user, devices[at])
            # The account has to come to that server first, and its streams for MQTT.
            while await device.answer("connect") != "Success":
                pass
        acknowledged: list[int] = []

        async def write() -> None:
            for number in range(100):
                while True:
                    try:
                        await bus.append("s", str(number).encode(), key=str(number))
                        break
                    except Unavailable:
                        await asyncio.sleep(0.1)
                acknowledged.append(number)

        writing = asyncio.create_task(write())
        async with asyncio.timeout(60):
            while len(acknowledged) < 20:
                await asyncio.sleep(0.001)
            # The one that the hub is connected to; it stays away.
            os.kill(servers[connected].pid, signal.SIGSTOP)
            os.kill(servers[connected].pid, signal.SIGKILL)
            await writing
            found: set[int] = set()
            while len(found) < 100:
                try:
                    consumer = await bus.consume("s", "reader")
                    for delivery in await consumer.fetch(50, 1):
                        found.add(int(delivery.message.data))
                        await delivery.take()
                except Unavailable:
                    await asyncio.sleep(0.1)
            assert found == set(range(100))
            device.client.publish("nemo/shop/lamp/status", b"online", qos=0)
            assert (await anext(heard)).data == b"online"
        device.close()
    finally:
        await hub.stop()
        await asyncio.gather(*(server.stop() for server in servers))
