"""A site's own server: devices talk while the link is cut, what they measured is passed on, and what is revoked is so there."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from metaos.cli.bus import leaf_of
from metaos.clock import SystemClock
from metaos.config import Address
from metaos.messaging.bus import BusError, Message, Unavailable
from metaos.messaging.exchange import Connected, Exchange, ExchangeConfig, revoked
from metaos.messaging.leaf import Leaf, LeafServer
from metaos.messaging.subjects import to_device
from tests.messaging.conftest import root
from tests.messaging.test_exchange import BANK, SHOP, Device

LOOPBACK = Address("127.0.0.1", 0)


@dataclass
class Site:
    hub: Exchange
    server: LeafServer
    mqtt: Address


async def made(hub: Exchange, folder: Path, *, lasts: float = 3600.0) -> LeafServer:
    accounts, now = await hub.known(), SystemClock().now()
    assert hub.server is not None and hub.server.config.leaf is not None
    listener = hub.server.config.leaf
    leaf = leaf_of(accounts, "edge", [SHOP], Address(listener.host, listener.port), "", now, now + lasts)
    (folder / "leaf.json").write_text(leaf.text())
    server = LeafServer(Leaf.read(folder / "leaf.json"), folder / "site", SystemClock(), LOOPBACK)
    await server.start()
    return server


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    hub = Exchange(ExchangeConfig(tmp_path / "bus", mqtt=LOOPBACK, leaf=LOOPBACK), SystemClock(), root)
    await hub.hold([SHOP, BANK])
    server = await made(hub, tmp_path)
    try:
        yield Site(hub, server, Address(server.mqtt.host, server.mqtt.port))
    finally:
        await server.stop()
        await hub.stop()


async def at_site(site: Site, name: str) -> Device:
    """A device that got through, which takes the link when its tenant's account is not known there yet."""
    user = await site.hub.device(SHOP, name, f"uid-{name}")
    device = Device(user, site.mqtt, name)
    async with asyncio.timeout(20):
        while await device.answer("connect") != "Success":
            pass
    return device


async def measured(site: Site, wanted: set[bytes]) -> set[bytes]:
    """What of the site's measurements has come to the tenant's stream at the hub."""
    bus = await site.hub.tenant(SHOP)
    found: set[bytes] = set()
    try:
        async with asyncio.timeout(40):
            while not wanted <= found:
                try:
                    consumer = await bus.consume("telemetry-edge", "reader")
                    for delivery in await consumer.fetch(100, 0.5):
                        found.add(delivery.message.data)
                        await delivery.take()
                except BusError:
                    await asyncio.sleep(0.1)
    finally:
        await bus.close()
    return found


@pytest.mark.slow
async def test_a_site_that_is_cut_off_goes_on_and_passes_on_what_was_measured(site: Site) -> None:
    bus = await site.hub.bus()
    heard = await bus.subscribe("up.>")
    lamp = await at_site(site, "lamp")
    try:
        lamp.client.subscribe("nemo/shop/lamp/command/+")
        await lamp.answer("subscribe")
        # Until the link is there, and the streams are.
        async with asyncio.timeout(30):
            while not heard.waiting:
                lamp.client.publish("nemo/shop/lamp/telemetry/room", b"before", qos=1)
                await lamp.answer("publish")
                await asyncio.sleep(0.2)
            while not site.server.settled:
                await asyncio.sleep(0.1)
        lamp.client.publish("nemo/shop/lamp/telemetry/room", b"before", qos=1)
        await bus.publish(to_device("shop", "lamp", "command.1"), b"blink")
        assert await lamp.hear() == ("nemo/shop/lamp/command/1", b"blink")
        assert b"before" in await measured(site, {b"before"})
        # The link is cut: the hub's server stands still.
        assert site.hub.server is not None
        os.kill(site.hub.server.pid, signal.SIGSTOP)
        door = await at_site(site, "door")
        for number in range(20):
            lamp.client.publish("nemo/shop/lamp/telemetry/room", f"cut {number}".encode(), qos=1)
            await lamp.answer("publish")
        door.close()
        os.kill(site.hub.server.pid, signal.SIGCONT)
        expected = {b"before", *(f"cut {n}".encode() for n in range(20))}
        assert await measured(site, expected - {b"before"}) >= expected - {b"before"}
        # The site's server dies; what devices do comes back by itself.
        os.kill(site.server.pid, signal.SIGKILL)
        await lamp.answer("disconnect")
        assert await lamp.answer("connect") == "Success"
        lamp.client.publish("nemo/shop/lamp/status", b"online", qos=1)
        async with asyncio.timeout(20):
            while (await anext(heard)).data != b"online":
                lamp.client.publish("nemo/shop/lamp/status", b"online", qos=1)
        # What is revoked at the hub counts no more at the site.
        user = await site.hub.device(SHOP, "lamp", "uid-lamp")
        await site.hub.hold([revoked(SHOP, user.key), BANK])
        await lamp.answer("disconnect")
        assert await lamp.answer("connect") == "Not authorized"
    finally:
        lamp.close()


@pytest.mark.slow
async def test_a_site_has_the_tenants_that_it_was_given_and_no_others(site: Site) -> None:
    other = Device(await site.hub.device(BANK, "lamp", "uid-other"), site.mqtt)
    user = await site.hub.device(SHOP, "lamp", "uid-lamp")
    try:
        (await at_site(site, "lamp")).close()
        # Accounts are no secret, so a bank's device is known here; what it says stays here.
        heard = await (await site.hub.bus()).subscribe("up.bank.>")
        other.client.publish("nemo/bank/lamp/status", b"online", qos=1)
        told = Device(user, site.mqtt)
        told.client.publish("nemo/shop/lamp/status", b"online", qos=1)
        await told.answer("publish")
        told.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(heard), 1)
    finally:
        other.close()


@pytest.mark.slow
async def test_the_hub_sees_who_connects_at_a_site_and_revokes_what_the_site_has(site: Site) -> None:
    hub, bus = site.hub, await site.hub.bus()
    seen, heard = await hub.connections(), await bus.subscribe("up.>")
    (await at_site(site, "lamp")).close()
    async with asyncio.timeout(30):
        while not site.server.settled:
            await asyncio.sleep(0.1)
    user = await hub.device(SHOP, "lamp", "uid-lamp")
    thief = Device(user, site.mqtt, "door")
    try:
        assert await thief.answer("connect") == "Success"
        found = []
        async with asyncio.timeout(20):
            while not (found and found[-1].client_id == "door"):
                if (one := hub.connected(await anext(seen))) is not None:
                    found.append(one)
        assert (found[-1].namespace, found[-1].name, found[-1].there) == ("shop", "lamp", True)
        # A site that makes up what it says of a device whose token it never saw is not believed.
        forged = user.token.rpartition(".")[0] + "." + "A" * 86
        client = {"client_type": "mqtt", "jwt": forged, "name_tag": "shop", "client_id": "door", "id": 1}
        told = json.dumps({"server": {"id": "x"}, "client": client}).encode()
        assert hub.connected(Message("$SYS.ACCOUNT.A.CONNECT", told)) is None
        told = told.replace(forged.encode(), user.token.encode())
        assert hub.connected(Message("$SYS.ACCOUNT.A.DISCONNECT", told)) == Connected("shop", "lamp", "door", "x/1", False)
        thief.client.publish("nemo/shop/lamp/status", b"online", qos=1)
        await thief.answer("publish")
        async with asyncio.timeout(20):
            while (await anext(heard)).data != b"online":
                pass
        # The site's own credentials count no more: nothing comes from there, devices keep theirs.
        key = (await hub.known()).site_key("edge", SHOP, 1).public
        await hub.hold([revoked(SHOP, key), BANK])
        await asyncio.sleep(1)
        while heard.waiting:
            await anext(heard)
        for _ in range(5):
            thief.client.publish("nemo/shop/lamp/status", b"cut", qos=1)
            await thief.answer("publish")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(heard), 5)
        assert hub.mqtt is not None
        there = Device(user, hub.mqtt, "lamp")
        assert await there.answer("connect") == "Success"
        there.close()
    finally:
        thief.close()


async def test_what_is_wrong_with_a_description_is_said(tmp_path: Path) -> None:
    accounts = await Exchange(ExchangeConfig(tmp_path / "bus"), SystemClock(), root).known()
    leaf = leaf_of(accounts, "edge", [SHOP], Address("hub.example", 7422), "PEM", 0, 9)
    file = tmp_path / "leaf.json"
    file.write_text(leaf.text())
    assert Leaf.read(file) == leaf
    for text in ("", "[]", "{}", '{"tenants": [1]}', replace(leaf, tenants=()).text(), replace(leaf, hub="nowhere").text()):
        file.write_text(text)
        with pytest.raises(ValueError, match="make it anew with 'nemo bus leaf'"):
            Leaf.read(file)
    with pytest.raises(ValueError, match="cannot be read"):
        Leaf.read(tmp_path / "none")
    with pytest.raises(ValueError, match=r"0\.0\.0\.0:1883 can be reached from elsewhere: .* --mqtt-pair"):
        LeafServer(leaf, tmp_path, SystemClock(), Address("0.0.0.0", 1883))
    assert Unavailable.__mro__[1] is BusError
