"""The bus of a real hub: it starts with the first use, with the hub's certificate beyond loopback, and ends with the hub."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from random import SystemRandom

import pytest

from metaos.clock import SystemClock
from metaos.config import Address, HubConfig
from metaos.messaging.bus import Unavailable
from metaos.messaging.exchange import read_servers
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.server import Hub
from tests.messaging.test_exchange import SHOP, Device

LOOPBACK = Address("127.0.0.1", 0)


def hub(data: Path, **more: object) -> Hub:
    return Hub(HubConfig(data, LOOPBACK, **more), SystemClock(), SystemRandom())  # type: ignore[arg-type]


async def test_a_hub_without_devices_runs_no_server(tmp_path: Path) -> None:
    async with hub(tmp_path / "hub", mqtt=LOOPBACK) as one:
        assert not one.exchange.running
    assert not (tmp_path / "hub" / "bus").exists()


async def test_devices_come_with_tls_and_the_secret_outlives_the_hub(tmp_path: Path) -> None:
    everywhere = Address("0.0.0.0", 0)
    async with hub(tmp_path / "hub", mqtt=everywhere) as one:
        await one.exchange.hold([SHOP])
        user = await one.exchange.device(SHOP, "lamp", "uid-lamp")
        assert one.exchange.mqtt is not None and one.exchange.server is not None
        pid = one.exchange.server.pid
        port = one.exchange.mqtt.port
        (url,) = one.exchange.urls
        assert url.startswith("mqtts://") and url.endswith(f":{port}") and "0.0.0.0" not in url
        context = ssl.create_default_context(cadata=one._pki.bundle.decode())
        device = Device(user, Address("127.0.0.1", port), tls=context)
        try:
            assert await device.answer("connect") == "Success"
        finally:
            device.close()
        # A new certificate is shown to those who come from now on.
        before = ssl.get_server_certificate(("127.0.0.1", port))
        one._pki.rotate()
        one._pki.server(("localhost", "127.0.0.1"))
        one.exchange.renew()
        for _ in range(200):
            if ssl.get_server_certificate(("127.0.0.1", port)) != before:
                break
        else:
            pytest.fail("the old certificate is still shown")
        assert one.client is not None
        with pytest.raises(ApiError, match="immutable"):
            await one.client.patch(scheme.SECRET, "bus", "nemo-system", {"data": {"root": "AAAA"}})
        mode = (tmp_path / "hub" / "bus" / "nats.conf").stat().st_mode
        assert mode & 0o777 == 0o600
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert user.token.encode() not in arguments
    assert not os.path.exists(f"/proc/{pid}")
    async with hub(tmp_path / "hub", mqtt=LOOPBACK) as again:
        assert (await again.exchange.device(SHOP, "lamp", "uid-lamp")).key == user.key


async def test_without_a_bus_it_is_said_what_to_do(tmp_path: Path) -> None:
    async with hub(tmp_path / "hub", no_bus=True) as one:
        with pytest.raises(Unavailable, match="start it without --no-bus"):
            await one.exchange.bus()


def test_servers_of_others(tmp_path: Path) -> None:
    file = tmp_path / "servers"
    file.write_text("tls://a.example:4222, tls://b.example:4222\n")
    assert read_servers(str(file)) == ("tls://a.example:4222", "tls://b.example:4222")
    assert read_servers("nats://127.0.0.1:4222") == ("nats://127.0.0.1:4222",)
    for text, message in (
        ("nowhere", "or a file that holds some"),
        ("http://a:1", "is no URL of a NATS server"),
        ("nats://a.example:4222", "use tls://"),
        ("tls://me:secret@a:1", "leave out the user of a"),
        ("://", "no URL"),
    ):
        with pytest.raises(ValueError, match=message) as found:
            read_servers(text)
        assert "secret" not in str(found.value)
