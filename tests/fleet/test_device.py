"""The example's device under CPython, at a real server of the bus."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from metaos.resources import scheme
from tests.fleet.real import RealStation, client_module, real_station
from tests.fleet.site import ADMIN
from tests.fleet.test_workload import changed

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def nemo() -> ModuleType:
    return client_module()


@asynccontextmanager
async def running(device: Any) -> AsyncIterator[Any]:
    task = asyncio.create_task(device.run())
    try:
        yield device
    finally:
        # Before Python 3.12 wait_for loses a cancellation that comes together with what it waits for.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1)


def in_sync(found: dict[str, Any]) -> bool:
    return any(c["type"] == "InSync" and c["status"] == "True" for c in found.get("conditions") or ())


async def app(hub: RealStation, code: str) -> str:
    body: dict[str, Any] = {**scheme.CONFIG_MAP.empty("app", "shop"), "data": {"main.py": code}}
    try:
        await hub.registry.create(ADMIN, body)
    except Exception:
        await hub.registry.update(ADMIN, body)
    return hashlib.sha256(code.encode()).hexdigest()


async def test_twin_commands_and_measurements(nemo: ModuleType, tmp_path: Path) -> None:
    async with real_station(tmp_path) as hub:
        config = await hub.add("lamp", desired={"led": True})
        device = nemo.Device(config, str(tmp_path), firmware="1.0")
        seen: list[Any] = []
        device.changed = seen.append
        device.state["led"] = False

        @device.action("blink")
        async def blink(arguments: Any) -> Any:
            await asyncio.sleep(0)
            return {"blinked": arguments["times"]}

        device.measure("temperature", 21.5)
        async with running(device):
            found = await hub.until("lamp", in_sync)
            assert found["reported"] == {"led": True} and found["firmware"] == "1.0" and seen == [{"led": True}]
            found = await hub.until("lamp", lambda s: s["telemetry"])
            assert found["telemetry"]["temperature"]["value"] == 21.5
            answer = await hub.command("lamp", "blink", arguments={"times": 3})
            assert answer["state"] == "Done" and answer["result"] == {"blinked": 3} and answer["milliseconds"] < 1000
            answer = await hub.command("lamp", "explode")
            assert answer["state"] == "Failed" and answer["result"] == "ValueError: it has no action explode; it has blink"
            await hub.patch("lamp", {"desired": {"led": False, "colour": "red"}})
            await hub.until("lamp", lambda s: s["reported"] == {"led": False, "colour": "red"} and in_sync(s))
            device.report(door="open")
            await hub.until("lamp", lambda s: s["reported"].get("door") == "open")
        await hub.until("lamp", lambda s: not s["online"])


async def test_what_is_measured_offline_comes_later_within_a_bound(nemo: ModuleType, tmp_path: Path) -> None:
    async with real_station(tmp_path) as hub:
        config = await hub.add("lamp", messagesPerSecond=100)
        device = nemo.Device(config, str(tmp_path))
        for n in range(nemo.RING + 10):
            device.measure(f"m{n}", n)
        assert device.dropped == 10
        assert (await hub.command("lamp", "blink", queueSeconds=60))["state"] == "Queued"
        device.action("blink")(lambda arguments: "late")
        async with running(device):
            await hub.until("lamp", lambda s: len(s["telemetry"]) == 16 and not s.get("commands"))
            found = await hub.until("lamp", lambda s: s.get("lastCommand"))
            assert found["lastCommand"]["result"] == "late" and found["lastCommand"]["state"] == "Done"
            assert next(iter(found["telemetry"])) == "m10"
            await until(lambda: device._ring == [])


async def test_an_application_comes_proves_itself_and_a_bad_one_goes_back(nemo: ModuleType, tmp_path: Path) -> None:
    async with real_station(tmp_path) as hub:
        good = "import asyncio\nasync def main(device):\n    device.report(app=1)\n    await asyncio.sleep(1000)\n" + "# \n" * 900
        sha = await app(hub, good)
        config = await hub.add("lamp", app={"configMap": "app", "version": "1"}, messagesPerSecond=100)
        device = nemo.Device(config, str(tmp_path), trial=0.5)
        async with running(device):
            found = await hub.until("lamp", lambda s: (s.get("app") or {}).get("state") == "Running")
            assert found["app"]["sha256"] == sha and found["reported"] == {"app": 1}
            bad = await app(hub, "async def main(device):\n    raise RuntimeError('no sensor')\n")
            found = await hub.until("lamp", lambda s: s["app"].get("state") == "RolledBack")
            assert found["app"]["sha256"] == sha and found["app"]["tried"] == bad and "no sensor" in found["app"]["message"]
            # What hangs is found by its starts: the device begins again and again.
            await app(hub, "import asyncio\nasync def main(device):\n    await asyncio.sleep(1000)\n")
            device._trial = 1000
            await hub.until("lamp", lambda s: s["app"].get("state") == "Trial")
        for _ in range(nemo.TRIES):
            again = nemo.Device(config, str(tmp_path), trial=1000)
            again._boot()
        assert again._app["state"] == "RolledBack" and again._app["sha256"] == sha and "3 starts" in again._app["message"]


async def test_a_deployment_runs_on_a_device_and_leaves_it(nemo: ModuleType, tmp_path: Path) -> None:
    async with real_station(tmp_path) as hub:
        sha = await app(hub, "import asyncio\nasync def main(device):\n    await asyncio.sleep(1000)\n")
        config = await hub.add("lamp", messagesPerSecond=100)
        labels = {"metadata": {"labels": {"floor": "2"}}}
        await hub.registry.patch(ADMIN, scheme.DEVICE, "lamp", "shop", labels)
        device = nemo.Device(config, str(tmp_path), trial=0.2)
        async with running(device):
            await hub.until("lamp", lambda s: s["online"])
            body = changed(volumes=[{"name": "code", "configMap": {"name": "app"}}])
            body["metadata"].pop("generation")
            body["spec"]["replicas"] = 1
            body["spec"]["template"]["spec"]["containers"][0]["command"] = ["/app/main.py"]
            await hub.registry.create(ADMIN, body)
            found = await hub.until("lamp", lambda s: (s.get("app") or {}).get("state") == "Running", 30)
            assert found["app"]["sha256"] == sha
            for _ in range(300):
                status = (await hub.registry.get(ADMIN, scheme.DEPLOYMENT, "blink", "shop")).get("status") or {}
                if status.get("availableReplicas") == 1:
                    break
                await asyncio.sleep(0.05)
            assert status["availableReplicas"] == status["updatedReplicas"] == 1
            await hub.registry.patch(ADMIN, scheme.DEPLOYMENT, "blink", "shop", {"spec": {"replicas": 0}})
            await hub.until("lamp", lambda s: s["app"].get("state") == "None" and not s["app"].get("sha256"), 30)
            assert device._code is None


async def test_an_application_that_the_hub_did_not_sign_is_refused(nemo: ModuleType, tmp_path: Path) -> None:
    async with real_station(tmp_path) as hub:
        await app(hub, "async def main(device): pass")
        config = await hub.add("lamp", app={"configMap": "app"})
        device = nemo.Device(config | {"appKey": "00" * 32}, str(tmp_path))
        async with running(device):
            found = await hub.until("lamp", lambda s: (s.get("app") or {}).get("state") == "Refused")
            assert "did not sign" in found["app"]["message"] and "sha256" not in found["app"]
            assert next(c for c in found["conditions"] if c["type"] == "UpToDate")["status"] == "False"


@pytest.mark.slow
async def test_quarantine_and_removal_cut_the_connection_and_a_new_credential_ends_the_old(
    nemo: ModuleType, tmp_path: Path
) -> None:
    async with real_station(tmp_path) as hub:
        config = await hub.add("lamp")
        said: list[str] = []
        device = nemo.Device(config, str(tmp_path), log=said.append)
        async with running(device):
            await hub.until("lamp", lambda s: s["online"])
            await hub.patch("lamp", {"quarantined": True})
            await hub.until("lamp", lambda s: not s["online"])
            await until(lambda: any("refuses" in each for each in said))
            await hub.patch("lamp", {"quarantined": None})
            await hub.until("lamp", lambda s: s["online"], 30)
            made = await hub.registry.create_subresource(ADMIN, scheme.DEVICE, "lamp", "shop", "credential", {})
            count = len(said)
            await until(lambda: any("refuses" in each for each in said[count:]))
        again = nemo.Device({**config, **made["status"]}, str(tmp_path), log=said.append)
        async with running(again):
            await hub.until("lamp", lambda s: s["online"])
            count = len(said)
            await hub.registry.delete(ADMIN, scheme.DEVICE, "lamp", "shop")
            await until(lambda: any("refuses" in each for each in said[count:]))
            assert not hub.fleet.live


async def test_a_device_that_nobody_answers_says_again_that_it_is_there(nemo: ModuleType, tmp_path: Path) -> None:
    """A server that has no hub behind it at this moment, as a site's whose link comes up only now."""
    births: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            kind, body = await nemo._received(reader)
            if kind == 0x10:
                writer.write(b"\x20\x02\x00\x00")
            elif kind == 0x32:
                size = int.from_bytes(body[:2], "big")
                if body[2 : 2 + size].endswith(b"/status"):
                    births.append(asyncio.get_running_loop().time())
                writer.write(b"\x40\x02" + body[2 + size : 4 + size])

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = {"name": "lamp", "namespace": "shop", "username": "lamp", "password": "x", "servers": [f"mqtt://127.0.0.1:{port}"]}
    try:
        async with running(nemo.Device(config, str(tmp_path), heartbeat=30)):
            await until(lambda: len(births) == 2)
        assert 1.5 < births[1] - births[0] < 10
    finally:
        server.close()


async def until(holds: Any, seconds: float = 20.0) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not holds():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("own", [False, True])
def test_signatures_are_those_of_rfc_8032(nemo: ModuleType, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """``own``: with the SHA-512 of the file, as where MicroPython has none."""
    if own:
        reference = hashlib.sha512
        bare = ModuleType("hashlib")
        bare.sha256 = hashlib.sha256  # type: ignore[attr-defined]
        monkeypatch.setattr(nemo, "hashlib", bare)
        for size in (0, 1, 111, 112, 127, 128, 300):
            assert nemo.sha512(b"x" * size) == reference(b"x" * size).digest()
    # Test 3 of RFC 8032, 7.1.
    key = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
    signature = "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    signature += "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    assert nemo.signed(key, bytes.fromhex("af82"), bytes.fromhex(signature))
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public, message = private.public_key().public_bytes_raw(), b"nemo-app\n"
    made = private.sign(message)
    assert nemo.signed(public, message, made)
    for i in (0, 31, 32, 63):
        wrong = bytearray(made)
        wrong[i] ^= 1
        assert not nemo.signed(public, message, bytes(wrong))
    assert not nemo.signed(public, message + b"x", made) and not nemo.signed(bytes(31), message, made)
    # S + L is the same number once more: RFC 8032 has it refused.
    more = made[:32] + (int.from_bytes(made[32:], "little") + nemo.Q).to_bytes(32, "little")
    assert not nemo.signed(public, message, more)


async def test_a_device_that_takes_anothers_client_id_is_cut_off_and_the_other_is_back(nemo: ModuleType, tmp_path: Path) -> None:
    async with real_station(tmp_path) as hub:
        device = nemo.Device(await hub.add("lamp"), str(tmp_path))
        stolen = await hub.add("thief")
        thief = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="lamp", protocol=mqtt.MQTTv311)
        thief.username_pw_set("lamp", stolen["password"])  # The name is the client's to say: the token counts.
        thief.reconnect_delay_set(0.05, 0.2)
        async with running(device):
            await hub.until("lamp", lambda s: s["online"])
            where = hub.exchange.mqtt
            assert where is not None
            thief.connect(where.host, where.port)
            thief.loop_start()
            try:
                await hub.until(
                    "thief", lambda s: any(c["type"] == "Quarantined" and c["status"] == "True" for c in s["conditions"])
                )
                await until(lambda: not thief.is_connected())
                await until(lambda: device.online)
                answer = await hub.command("lamp", "explode")
                assert answer["state"] == "Failed" and not thief.is_connected()
            finally:
                thief.disconnect()
                thief.loop_stop()
