"""Ten thousand devices online at once: registered in one request, each with its own connection, a message every ten seconds.

Devices are real MQTT connections over loopback from another process, with what the hub gave each to log in. They report their
state every ten seconds, and answer commands. What is measured: how long registering takes and connecting; processor time,
memory and writes of the hub (with its bus) while all are online; and how long a command takes, from the API to the device and
back, one after another.

The baseline is the same traffic on the bare server of the bus, without NEMO: the same connections and messages from the same
process, and the same commands sent and answered by a bare client of the bus. ``DEVICES`` says how many, ``SECONDS`` for how
long.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from bench.results import Figure, figure, percentile, write
from bench.servers import cpu_seconds, resident_mb
from metaos.cli.connection import load_kubeconfig
from metaos.clock import SystemClock
from metaos.config import Address
from metaos.http import HttpClient, json_of
from metaos.messaging.accounts import Tenant
from metaos.messaging.exchange import Exchange, ExchangeConfig
from metaos.messaging.subjects import to_device
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.twin.processes import free_port

DEVICES = int(os.environ.get("DEVICES", "10000"))
SECONDS = float(os.environ.get("SECONDS", "60"))
#: Of each device; connections begun at a time; commands, one after another.
EVERY, AT_ONCE, COMMANDS = 10.0, 100, 500
LOOPBACK = Address("127.0.0.1", 0)


def open_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# -- devices: a process of their own -----------------------------------------------------------------------------


def text(value: str) -> bytes:
    raw = value.encode()
    return len(raw).to_bytes(2, "big") + raw


def packet(kind: int, body: bytes) -> bytes:
    size, left = bytearray(), len(body)
    while True:
        size.append(left & 127 | (128 if left > 127 else 0))
        left >>= 7
        if not left:
            return bytes((kind,)) + bytes(size) + body


class Device(asyncio.Protocol):
    """Connects, says that it is there, reports now and then, and answers commands."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.name, self.config = config["name"], config
        self.topic = f"nemo/{config['namespace']}/{config['name']}/"
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.epoch = self.sequence = self.version = 0
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        body = text("MQTT") + b"\x04\xc2" + (300).to_bytes(2, "big") + text(self.name)
        transport.write(packet(0x10, body + text(self.config["username"]) + text(self.config["password"])))

    def data_received(self, data: bytes) -> None:
        self._held += data
        while True:
            size, at = 0, 1
            for shift in (0, 7, 14, 21):
                if len(self._held) <= at:
                    return
                size |= (self._held[at] & 127) << shift
                at += 1
                if self._held[at - 1] < 128:
                    break
            if len(self._held) < at + size:
                return
            kind, body, self._held = self._held[0], self._held[at : at + size], self._held[at + size :]
            self.packet(kind, body)

    def packet(self, kind: int, body: bytes) -> None:
        if kind == 0x20:
            words = ("twin/desired", "command/+")
            self.transport.write(packet(0x82, b"\0\1" + b"".join(text(self.topic + word) + b"\0" for word in words)))
        elif kind == 0x90:
            self.say("status", {"online": True, "session": "bench", "heartbeat": 60})
            self.ready.set_result(None)
        elif kind >> 4 == 3:
            size = int.from_bytes(body[:2], "big")
            word, said = body[2 : 2 + size].decode()[len(self.topic) :], json.loads(body[2 + size :])
            if word == "twin/desired":
                self.epoch, self.version = said["epoch"], said["version"]
                self.report()
            else:
                self.say("result/" + word.rpartition("/")[2], {"ok": True, "result": said["arguments"]})

    def report(self) -> None:
        self.sequence += 1
        said = {"epoch": self.epoch, "sequence": self.sequence, "version": self.version}
        self.say("twin/reported", {**said, "reported": {"temperature": self.sequence % 30, "led": True, "battery": 97}})

    def say(self, word: str, message: Any) -> None:
        self.transport.write(packet(0x30, text(self.topic + word) + json.dumps(message).encode()))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(exc or ConnectionError(f"{self.name} was refused"))


async def devices(file: str) -> None:
    """Reads what each logs in with; says ``ready`` when all are there; ends with its standard input."""
    open_files()
    loop, random = asyncio.get_running_loop(), Random(0)
    configs = [json.loads(line) for line in Path(file).read_text().splitlines()]
    host, _, port = configs[0]["servers"][0].removeprefix("mqtt://").partition(":")
    found: list[Device] = []
    for first in range(0, len(configs), AT_ONCE):
        part = configs[first : first + AT_ONCE]
        made = await asyncio.gather(*(loop.create_connection(lambda c=c: Device(c), host, int(port)) for c in part))
        found += [device for _, device in made]
        await asyncio.gather(*(device.ready for _, device in made))
    print("ready", flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    for device in found:

        def again(device: Device = device) -> None:
            device.report()
            loop.call_later(EVERY, again, device)

        loop.call_later(random.random() * EVERY, again)
    await ended.wait()


class Load:
    """The process of the devices."""

    def __init__(self, folder: Path, configs: list[dict[str, Any]]) -> None:
        self._file = folder / "devices.jsonl"
        self._file.write_text("".join(json.dumps(each) + "\n" for each in configs))
        self.seconds = 0.0

    async def __aenter__(self) -> Load:
        begun = time.monotonic()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.devices", str(self._file)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 600)
        if line.strip() != b"ready":
            raise RuntimeError("the devices did not come up")
        self.seconds = time.monotonic() - begun
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def held(pids: list[int], command: Callable[[int], Awaitable[None]]) -> dict[str, Any]:
    """While all are online: processor (percent of one core), memory, and how long commands take, in milliseconds."""
    await asyncio.sleep(EVERY)
    before = sum(map(cpu_seconds, pids))
    begun = time.monotonic()
    took = []
    pause = SECONDS / COMMANDS
    for number in range(COMMANDS):
        asked = time.monotonic()
        await command(number)
        took.append(1000 * (time.monotonic() - asked))
        await asyncio.sleep(max(0.0, begun + (number + 1) * pause - time.monotonic()))
    spent = sum(map(cpu_seconds, pids)) - before
    return {"cpu": 100 * spent / (time.monotonic() - begun), "memory": sum(map(resident_mb, pids)), "took": took}


def children(pid: int) -> list[int]:
    """With all below it."""
    found = [pid]
    for below in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += children(int(below))
    return found


async def with_nemo(folder: Path) -> dict[str, Any]:
    """A hub as a process of its own, asked over HTTPS."""
    port, mqtt = free_port(), free_port()
    listen = ("--listen", f"127.0.0.1:{port}", "--mqtt", f"127.0.0.1:{mqtt}", "--data", str(folder / "hub"), "--no-local")
    with (folder / "hub.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "metaos", "up", *listen], stdout=log, stderr=log)
    try:
        config = folder / "hub/admin.kubeconfig"
        for _ in range(600):
            if config.exists() and b"NEMO serves on" in (folder / "hub.log").read_bytes():
                break
            await asyncio.sleep(0.1)
        client = connected(config)
        where = "/apis/meta-os.eu/v1alpha1/namespaces/default"

        async def post(path: str, kind: str, spec: Any) -> Any:
            body = {"apiVersion": "meta-os.eu/v1alpha1", "kind": kind, "metadata": {}, "spec": spec}
            return json_of(await client.request("POST", f"{where}/{path}", json.dumps(body).encode()), path)["status"]

        rows = [{"name": f"d{n:05}", "labels": {"line": str(n % 10)}} for n in range(DEVICES)]
        begun = time.monotonic()
        answer = await registered(post, rows)
        found: dict[str, Any] = {"registering": time.monotonic() - begun}
        if answer["made"] != DEVICES:
            raise RuntimeError(f"{answer['made']} devices were made: {answer['refused'][:3]}")
        configs = [{**each, "namespace": "default", "servers": answer["servers"]} for each in answer["credentials"]]
        async with Load(folder, configs) as load:
            found["connecting"] = load.seconds

            async def command(number: int) -> None:
                name = f"d{number * 7919 % DEVICES:05}"
                said = await post(f"devices/{name}/command", "DeviceCommand", {"action": "echo", "arguments": number})
                if said["result"] != number:
                    raise RuntimeError(f"a command was answered with {said}")

            before = await revision(client)
            found |= await held(children(process.pid), command)
            found["writes"] = (await revision(client) - before) / (SECONDS + EVERY)
            paths = [f"{where}/devices/d{n:05}/live" for n in range(0, DEVICES, DEVICES // 100)]
            live = [json_of(await client.request("GET", path), path) for path in paths]
            found["online"] = sum(bool(each["status"]["online"]) for each in live)
        await client.close()
        return found
    finally:
        process.terminate()
        process.wait(30)


async def registered(post: Callable[[str, str, Any], Awaitable[Any]], rows: list[Any]) -> Any:
    """Sent again as 'nemo device import' does it, where a busy machine takes longer than a request may."""
    for _ in range(10):
        try:
            return await post("devicebatches", "DeviceBatch", {"id": "bench", "devices": rows})
        except ApiError as error:
            if error.code not in (503, 504):
                raise
    raise RuntimeError("the devices could not be registered")


def connected(config: Path) -> HttpClient:
    read = load_kubeconfig(config)
    cluster, user = read["cluster"], read["user"]
    plain = [base64.b64decode(each).decode() for each in (user["client-certificate-data"], user["client-key-data"])]
    ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
    server = cluster["server"]
    return HttpClient(server, ca=ca, certificate=plain[0], key=plain[1], clock=SystemClock(), random=SystemRandom())


async def revision(client: HttpClient) -> int:
    """How often the hub has written."""
    return int((await client.list(scheme.NAMESPACE, limit=1)).resource_version)


async def bare(folder: Path) -> dict[str, Any]:
    """The server of the bus with the same devices, and a bare client that sends commands and takes all that is said."""

    async def root() -> bytes:
        return bytes(range(32))

    exchange = Exchange(ExchangeConfig(folder / "bus", mqtt=LOOPBACK), SystemClock(), root)
    tenant = Tenant("default", "uid")
    try:
        await exchange.hold([tenant])
        users = [await exchange.device(tenant, f"d{n:05}", str(n)) for n in range(DEVICES)]
        configs = [
            {"name": user.name, "namespace": "default", "username": user.name, "password": user.token, "servers": exchange.urls}
            for user in users
        ]
        bus = await exchange.bus()
        heard = await bus.subscribe("up.>", waiting=100_000)
        asked: dict[str, asyncio.Future[None]] = {}

        async def listen() -> None:
            async for message in heard:
                _, _, name, end = message.subject.split(".", 3)
                if end == "status":
                    told = {"epoch": 1, "version": 1, "session": "bench", "desired": {}}
                    await bus.publish(to_device("default", name, "twin.desired"), json.dumps(told).encode())
                elif end.startswith("result.") and not asked[end[7:]].done():
                    asked[end[7:]].set_result(None)

        listening = asyncio.create_task(listen())

        async def command(number: int) -> None:
            asked[str(number)] = asyncio.get_running_loop().create_future()
            body = json.dumps({"action": "echo", "arguments": number}).encode()
            await bus.publish(to_device("default", f"d{number * 7919 % DEVICES:05}", f"command.{number}"), body)
            await asyncio.wait_for(asked[str(number)], 30)

        assert exchange.server is not None
        async with Load(folder, configs) as load:
            found = {"connecting": load.seconds} | await held([exchange.server.pid], command)
        listening.cancel()
        return found
    finally:
        await exchange.stop()


async def main() -> None:
    open_files()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bare").mkdir()
        floor = await bare(Path(folder) / "bare")
    with tempfile.TemporaryDirectory() as folder:
        nemo = await with_nemo(Path(folder))
    if nemo["online"] < 100:
        raise RuntimeError(f"{nemo['online']} of a hundred devices are online")
    many = f"{DEVICES} devices"
    rate = f"{DEVICES / EVERY:g} messages a second"
    middle, slow = ([percentile(each["took"], share) for each in (nemo, floor)] for share in (0.5, 0.99))
    figures: list[Figure] = [
        figure(f"register {many}: one batch, sent again after 60 s", [nemo["registering"]], "s"),
        figure(f"connect {many}", [nemo["connecting"]], "s", baseline=[floor["connecting"]]),
        figure(f"processor: {many}, {rate}", [nemo["cpu"]], "%", baseline=[floor["cpu"]], aim=200),
        figure(f"memory: {many} online, hub and bus", [nemo["memory"]], "MB", baseline=[floor["memory"]]),
        figure("writes to the store meanwhile", [nemo["writes"]], "1/s"),
        figure("command, median", middle[:1], "ms", baseline=middle[1:]),
        figure("command, 99th percentile", slow[:1], "ms", baseline=slow[1:], aim=100),
    ]
    write("devices", figures)


if __name__ == "__main__":
    asyncio.run(devices(sys.argv[1]) if len(sys.argv) > 1 else main())
