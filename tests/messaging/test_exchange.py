"""Tenants and their devices on a real server: what each may say and hear, over MQTT, and how they are cut off."""

from __future__ import annotations

import asyncio
import queue
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from metaos.clock import SystemClock
from metaos.config import Address
from metaos.messaging.accounts import CONSUMERS_EACH, MOST_REVOKED, DeviceUser, Tenant
from metaos.messaging.bus import NoAnswer, Unavailable
from metaos.messaging.exchange import Exchange, ExchangeConfig, revoked
from metaos.messaging.nats import NatsBus
from metaos.messaging.subjects import from_devices, to_device
from tests.messaging.conftest import root

SHOP, BANK = Tenant("shop", "uid-1"), Tenant("bank", "uid-2")


class Device:
    """A client of another make (Eclipse Paho), in a thread of its own."""

    def __init__(
        self, user: DeviceUser, address: Address, name: str = "lamp", tls: ssl.SSLContext | None = None, *, clean: bool = True
    ) -> None:
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.answers: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311, clean_session=clean)
        if tls is not None:
            self.client.tls_set_context(tls)
        self.client.reconnect_delay_set(0.05, 0.2)
        self.client.username_pw_set(user.name, user.token)
        self.client.on_connect = lambda c, u, flags, reason, p: self.answers.put(("connect", str(reason)))
        self.client.on_disconnect = lambda c, u, flags, reason, p: self.answers.put(("disconnect", str(reason)))
        self.client.on_subscribe = lambda c, u, mid, reasons, p: self.answers.put(("subscribe", [r.is_failure for r in reasons]))
        self.client.on_publish = lambda c, u, mid, reason, p: self.answers.put(("publish", mid))
        self.client.on_message = lambda c, u, message: self.heard.put((message.topic, message.payload))
        self.client.connect(address.host, address.port)
        self.client.loop_start()

    async def answer(self, kind: str) -> Any:
        while True:
            found = await asyncio.to_thread(self.answers.get, timeout=30)
            if found[0] == kind:
                return found[1]

    async def hear(self) -> tuple[str, bytes]:
        return await asyncio.to_thread(self.heard.get, timeout=30)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


async def test_a_device_says_and_hears_its_own_and_nothing_else(exchange: Exchange) -> None:
    bus = await exchange.bus()
    await exchange.hold([SHOP, BANK])
    heard = await bus.subscribe("up.>")
    assert exchange.mqtt is not None
    device = Device(await exchange.device(SHOP, "lamp", "uid-lamp"), exchange.mqtt)
    other = Device(await exchange.device(BANK, "lamp", "uid-other"), exchange.mqtt)
    try:
        assert await device.answer("connect") == await other.answer("connect") == "Success"
        for client, where in ((device, "shop"), (other, "bank")):
            client.client.subscribe([(f"nemo/{where}/lamp/command/+", 1), (f"nemo/{where}/lamp/twin/desired", 0)])
            assert await client.answer("subscribe") == [False, False]
        device.client.subscribe([("nemo/shop/#", 0), ("nemo/shop/other/command/+", 0), ("nemo/bank/lamp/command/+", 0), ("#", 0)])
        assert await device.answer("subscribe") == [True] * 4
        await bus.publish(to_device("bank", "lamp", "command.1"), b"for the bank")
        await bus.publish(to_device("shop", "lamp", "command.1"), b"for the shop")
        assert await device.hear() == ("nemo/shop/lamp/command/1", b"for the shop")
        assert await other.hear() == ("nemo/bank/lamp/command/1", b"for the bank")
        for topic in (
            "nemo/shop/lamp/twin/desired",
            "nemo/shop/other/status",
            "nemo/bank/lamp/status",
            "down/bank/lamp/command/2",
        ):
            device.client.publish(topic, b"forged", qos=1)
            await device.answer("publish")
        device.client.publish("nemo/shop/lamp/telemetry/room/warm", b"21", qos=1)
        device.client.publish("nemo/shop/lamp/status", b"online", qos=1)
        said = [await anext(heard) for _ in range(2)]
        assert [(m.subject, m.data) for m in said] == [
            ("up.shop.lamp.telemetry.room.warm", b"21"),
            ("up.shop.lamp.status", b"online"),
        ]
        assert (device.heard.empty(), other.heard.empty()) == (True, True)
    finally:
        device.close()
        other.close()


async def lost(user: DeviceUser, address: Address, topic: str) -> None:
    """A device with a will that vanishes."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="lamp", protocol=mqtt.MQTTv311)
    client.username_pw_set(user.name, user.token)
    client.will_set(topic, b"offline", qos=1, retain=True)
    up, loop = asyncio.Event(), asyncio.get_running_loop()
    client.on_connect = lambda *_: loop.call_soon_threadsafe(up.set)
    client.connect(address.host, address.port)
    client.loop_start()
    await up.wait()
    sock = client.socket()
    assert sock is not None
    client.loop_stop()
    sock.close()


async def test_a_will_is_heard_when_a_device_is_lost_and_is_its_own(exchange: Exchange) -> None:
    bus = await exchange.bus()
    await exchange.hold([SHOP])
    heard = await bus.subscribe("up.>")
    assert exchange.mqtt is not None
    user = await exchange.device(SHOP, "lamp", "uid-lamp")
    for topic in ("nemo/shop/other/status", "nemo/shop/lamp/status"):
        await lost(user, exchange.mqtt, topic)
    assert (await anext(heard)).subject == "up.shop.lamp.status"


async def test_who_is_revoked_is_cut_off_and_new_credentials_count(exchange: Exchange) -> None:
    await exchange.hold([SHOP])
    assert exchange.mqtt is not None and exchange.accounts is not None
    first = await exchange.device(SHOP, "lamp", "uid-lamp")
    device = Device(first, exchange.mqtt)
    try:
        assert await device.answer("connect") == "Success"
        held = revoked(SHOP, first.key)
        await exchange.hold([held])
        await device.answer("disconnect")
        assert await device.answer("connect") == "Not authorized"
    finally:
        device.close()
    again = Device(await exchange.device(held, "lamp", "uid-lamp", generation=2), exchange.mqtt)
    try:
        assert await again.answer("connect") == "Success"
    finally:
        again.close()


async def test_a_tenant_that_is_gone_takes_its_devices_along(exchange: Exchange) -> None:
    bus = await exchange.bus()
    await exchange.hold([SHOP, BANK])
    assert exchange.mqtt is not None
    user = await exchange.device(SHOP, "lamp", "uid-lamp")
    device = Device(user, exchange.mqtt)
    try:
        assert await device.answer("connect") == "Success"
        await exchange.hold([BANK, replace(SHOP, uid="made anew")])
        await device.answer("disconnect")
        assert await device.answer("connect") == "Not authorized"
    finally:
        device.close()
    assert bus.connected


async def test_devices_come_back_to_a_server_that_died_without_the_hub_doing_anything(
    exchange: Exchange, kill: Callable[[], None]
) -> None:
    bus = await exchange.bus()
    await exchange.hold([SHOP])
    heard = await bus.subscribe(from_devices("status"))
    assert exchange.mqtt is not None
    device = Device(await exchange.device(SHOP, "lamp", "uid-lamp"), exchange.mqtt)
    try:
        assert await device.answer("connect") == "Success"
        kill()
        await device.answer("disconnect")
        assert await device.answer("connect") == "Success"
        async with asyncio.timeout(20):
            while not bus.connected:
                await asyncio.sleep(0.01)
        device.client.publish("nemo/shop/lamp/status", b"online", qos=1)
        assert (await anext(heard)).data == b"online"
    finally:
        device.close()


async def test_the_credentials_of_a_device_open_nothing_but_mqtt(exchange: Exchange) -> None:
    await exchange.hold([SHOP])
    assert exchange.server is not None and exchange.accounts is not None
    user = await exchange.device(SHOP, "lamp", "uid-lamp")
    key = exchange.accounts.device_key(SHOP, "lamp", "uid-lamp", 1)
    server = f"nats://127.0.0.1:{exchange.server.config.listen.port}"
    with pytest.raises(Unavailable):
        await NatsBus.connect([server], key, lambda: user.token, "device")


async def test_who_takes_anothers_client_identifier_hears_nothing_for_it(exchange: Exchange) -> None:
    bus = await exchange.bus()
    await exchange.hold([SHOP])
    assert exchange.mqtt is not None
    first = Device(await exchange.device(SHOP, "door", "uid-door"), exchange.mqtt, "door", clean=False)
    assert await first.answer("connect") == "Success"
    first.client.subscribe("nemo/shop/door/command/+", qos=1)
    assert await first.answer("subscribe") == [False]
    first.client.loop_stop()
    taking = Device(await exchange.device(SHOP, "lamp", "uid-lamp"), exchange.mqtt, "door", clean=False)
    try:
        # The session is there, and its subscription is judged by the rights of whoever came.
        assert await taking.answer("connect") == "Success"
        taking.client.subscribe("nemo/shop/lamp/command/+")
        assert await taking.answer("subscribe") == [False]
        await bus.publish(to_device("shop", "door", "command.1"), b"open")
        await bus.publish(to_device("shop", "lamp", "command.1"), b"blink")
        assert await taking.hear() == ("nemo/shop/lamp/command/1", b"blink")
    finally:
        taking.close()


async def test_tokens_of_another_hub_open_nothing(exchange: Exchange) -> None:
    async def another() -> bytes:
        return bytes(32)

    await exchange.hold([SHOP])
    assert exchange.mqtt is not None
    stranger = Exchange(ExchangeConfig(Path("unused")), SystemClock(), another)
    device = Device(await stranger.device(SHOP, "lamp", "uid-lamp"), exchange.mqtt)
    try:
        assert await device.answer("connect") == "Not authorized"
    finally:
        device.close()


async def test_a_clock_that_was_set_back_hides_no_revocation(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    await exchange.hold([SHOP])
    assert exchange.mqtt is not None and exchange.server is not None
    user = await exchange.device(SHOP, "lamp", "uid-lamp")
    # Another hub, an hour behind, at the same servers.
    clock = SystemClock()
    monkeypatch.setattr(clock, "now", lambda: SystemClock().now() - 3600)
    config = ExchangeConfig(Path("unused"), (f"nats://127.0.0.1:{exchange.server.config.listen.port}",))
    late = Exchange(config, clock, root)
    try:
        await late.hold([revoked(SHOP, user.key)])
        device = Device(user, exchange.mqtt)
        assert await device.answer("connect") == "Not authorized"
        device.close()
    finally:
        await late.stop()


async def test_what_is_wrong_is_said(tmp_path: Path, exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"shop has 10601 revoked credentials .* 10600 is the most"):
        Tenant("shop", "u", frozenset(str(n) for n in range(MOST_REVOKED + 1)))
    await exchange.bus()
    taken = ExchangeConfig(tmp_path / "other", mqtt=exchange.mqtt)
    second = Exchange(taken, SystemClock(), root)
    with pytest.raises(Unavailable, match="address already in use"):
        await second.bus()
    with pytest.raises(Unavailable, match="no certificate for it"):
        await Exchange(ExchangeConfig(tmp_path / "third", mqtt=Address("0.0.0.0", 0)), SystemClock(), root).bus()
    off = Exchange(ExchangeConfig(tmp_path / "off", off="there is no bus: start the hub without --no-bus"), SystemClock(), root)
    with pytest.raises(Unavailable, match="without --no-bus"):
        await off.bus()
    monkeypatch.setattr("metaos.messaging.exchange.PATIENCE_SECONDS", (0.3, 0.3))
    nobody = Exchange(ExchangeConfig(tmp_path / "away", ("nats://127.0.0.1:1",)), SystemClock(), root)
    with pytest.raises(Unavailable, match=r"nats://127\.0\.0\.1:1 does not answer"):
        await nobody.bus()
    with pytest.raises(NoAnswer):
        await (await exchange.bus()).request("nobody", b"")


@pytest.mark.slow
async def test_a_thousand_tenants_are_held_and_the_hub_hears_each_by_one_connection(exchange: Exchange) -> None:
    bus = await exchange.bus()
    tenants = [Tenant(f"tenant-{n}", f"uid-{n}") for n in range(1000)]
    await exchange.hold(tenants)
    heard = await bus.subscribe(from_devices("status"))
    assert exchange.mqtt is not None
    for tenant in (tenants[0], tenants[-1]):
        device = Device(await exchange.device(tenant, "lamp", "uid-lamp"), exchange.mqtt)
        try:
            assert await device.answer("connect") == "Success"
            device.client.publish(f"nemo/{tenant.namespace}/lamp/status", b"online", qos=1)
            assert (await asyncio.wait_for(anext(heard), 20)).subject == f"up.{tenant.namespace}.lamp.status"
        finally:
            device.close()


async def test_a_token_with_as_many_revoked_keys_as_there_may_be_is_taken(exchange: Exchange) -> None:
    accounts = await exchange.known()
    some = frozenset(f"U{n:055}" for n in range(MOST_REVOKED))
    await exchange.hold([replace(SHOP, revoked=some)])
    assert len(accounts.tenant_token(replace(SHOP, revoked=some), 0)) < 1 << 20


async def test_one_device_does_not_have_the_server_keep_any_number_of_subscriptions(exchange: Exchange) -> None:
    """A server keeps track of each lasting one in memory, for whichever tenant."""
    small = replace(SHOP, connections=1)
    await exchange.hold([small])
    assert exchange.mqtt is not None
    device = Device(await exchange.device(small, "lamp", "uid-lamp"), exchange.mqtt, clean=False)
    try:
        assert await device.answer("connect") == "Success"
        refused = []
        for number in range(CONSUMERS_EACH + 2):
            device.client.subscribe(f"nemo/shop/lamp/command/{number}", qos=1)
            refused += await device.answer("subscribe")
        assert not any(refused[:2]) and all(refused[-2:])
    finally:
        device.close()
