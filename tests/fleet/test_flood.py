"""A device that floods a real server: it is cut off, and its neighbours notice nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.real import client_module, real_station
from tests.fleet.test_device import running

pytestmark = pytest.mark.system


async def flood(nemo: Any, config: dict[str, Any]) -> int:
    """As fast as the server takes it, until it is cut off. How many messages were sent."""
    host, _, port = config["servers"][0].removeprefix("mqtt://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    text, topic = nemo._text, f"nemo/shop/{config['name']}/telemetry/noise"
    login = text("MQTT") + b"\x04\xc2\x00\x3c" + text(config["name"]) + text(config["username"]) + text(config["password"])
    noise, sent = nemo._packet(0x30, text(topic) + b"x" * 100) * 100, 0
    try:
        writer.write(nemo._packet(0x10, login))
        if (await reader.readexactly(4))[3]:
            raise ConnectionRefusedError
        while True:
            writer.write(noise)
            await writer.drain()
            sent += 100
            await asyncio.sleep(0)
    except ConnectionRefusedError:
        raise
    except OSError:
        return sent
    finally:
        writer.close()


async def test_a_flood_is_cut_off_and_neighbours_notice_nothing(tmp_path: Path) -> None:
    nemo = client_module()
    async with real_station(tmp_path) as hub:
        noisy, quiet = await hub.add("noisy"), await hub.add("quiet")
        device = nemo.Device(quiet, str(tmp_path))
        device.action("blink")(lambda arguments: "done")
        async with running(device):
            await hub.until("quiet", lambda s: s["online"])
            flooding = asyncio.create_task(flood(nemo, noisy))
            took = []
            while not flooding.done() or len(took) < 20:
                took.append((await hub.command("quiet", "blink"))["milliseconds"])
            assert flooding.result() > 500
            found = await hub.until("noisy", lambda s: not s["online"])
            said = next(c for c in found["conditions"] if c["type"] == "Flooding")
            assert said["status"] == "True" and "it is refused until" in said["message"]
            assert found["messages"]["dropped"] >= 500
            with pytest.raises(ConnectionRefusedError):
                await flood(nemo, noisy)
            # Its own commands were answered all the while.
            assert sorted(took)[len(took) // 2] < 1000
            assert (await hub.live("quiet"))["messages"]["dropped"] == 0
