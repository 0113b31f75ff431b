"""A fleet over the bus in memory: a registry with its real rules, the controllers of devices, and devices made of messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from metaos.apiserver.registry import Registry
from metaos.controllers import device as device_controller
from metaos.controllers import deviceset, deviceworkload
from metaos.controllers.settings import Settings
from metaos.fleet.apps import Apps
from metaos.fleet.fleet import Fleet
from metaos.fleet.gate import Address, Connection, Issued
from metaos.fleet.images import Images
from metaos.messaging.bus import Bus, Subscription
from metaos.messaging.keys import Key
from metaos.messaging.memory import MemoryBus
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.security.authz import MASTERS, UserInfo
from metaos.store.memory import MemoryStore
from tests.clock import FakeClock

ADMIN = UserInfo("admin", (MASTERS,))
CONTROLLERS = UserInfo("system:controller-manager", (MASTERS,))


class MemoryGate:
    """Keeps the promises of the bus's gate: who is barred is not heard."""

    def __init__(self) -> None:
        self.barred: set[tuple[Address, str, int]] = set()
        self.seen: asyncio.Queue[Connection] = asyncio.Queue()

    async def issue(self, device: Address, uid: str, generation: int) -> Issued:
        return Issued(device.name, f"{uid}.{generation}", ("mqtt://127.0.0.1:1883",))

    async def bar(self, device: Address, uid: str, generation: int) -> None:
        self.barred.add((device, uid, generation))

    async def admit(self, device: Address, uid: str, generation: int) -> None:
        self.barred.discard((device, uid, generation))

    async def open(self, namespace: str) -> None:
        pass

    async def sites(self, told: Mapping[str, str]) -> None:
        pass

    async def connections(self) -> AsyncGenerator[Connection]:
        while True:
            yield await self.seen.get()

    def close(self) -> None:
        pass


class Station:
    """A hub's part for devices."""

    def __init__(self, clock: FakeClock, registry: Registry) -> None:
        self.clock, self.registry, self.gate = clock, registry, MemoryGate()
        self.bus = MemoryBus(clock.monotonic)
        self.client = registry.client(CONTROLLERS)
        self.apps = Apps(self.client, self.key, Images(self.client, clock, None))
        self.fleet = Fleet(self.client, clock, self.connect, self.gate, self.apps)
        registry.desk.fleet = self.fleet
        self.manager = Manager(self.client, clock, Random(1))

    async def key(self) -> Key:
        return Key("user", bytes(32))

    async def connect(self) -> Bus:
        return self.bus

    async def settle(self, seconds: float = 0.0) -> None:
        for _ in range(int(seconds)):
            await self.clock.advance(1.0)
        await self.clock.advance(0.01)
        await self.clock.settle(200)

    async def make(self, name: str, **spec: Any) -> Obj:
        made = {**scheme.DEVICE.empty(name, "shop"), "spec": {"credential": {"generation": 1}} | spec}
        return await self.registry.create(ADMIN, made)

    async def device(self, name: str) -> Obj:
        return await self.registry.get(ADMIN, scheme.DEVICE, name, "shop")

    async def patch(self, name: str, spec: Obj) -> Obj:
        return await self.registry.patch(ADMIN, scheme.DEVICE, name, "shop", {"spec": spec})

    async def condition(self, name: str, type_: str) -> tuple[str, str]:
        found = ((await self.device(name)).get("status") or {}).get("conditions") or ()
        return next(((c["status"], c["message"]) for c in found if c["type"] == type_), ("", ""))


class Thing:
    """A device: what it says, and what it was told."""

    def __init__(self, station: Station, name: str) -> None:
        self._station, self.name = station, name
        self._heard: Subscription | None = None
        self.epoch = self.sequence = 0

    async def say(self, end: str, message: Any) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        await self._station.bus.publish(f"up.shop.{self.name}.{end}", data)

    async def connect(self, session: str, **more: Any) -> list[tuple[str, Obj]]:
        if self._heard is None:
            self._heard = await self._station.bus.subscribe(f"down.shop.{self.name}.>")
        await self.say("status", {"online": True, "session": session, **more})
        await self._station.clock.settle(200)
        return await self.told()

    async def told(self) -> list[tuple[str, Obj]]:
        """What it was told since it was asked last: (end, message)."""
        assert self._heard is not None
        await self._station.settle()
        found = []
        while self._heard._messages:  # type: ignore[attr-defined]
            message = await anext(self._heard)
            said = json.loads(message.data)
            self.epoch = said.get("epoch", self.epoch)
            found.append((message.subject.split(".", 3)[3], said))
        return found

    async def report(self, version: int, **reported: Any) -> None:
        self.sequence += 1
        said = {"epoch": self.epoch, "sequence": self.sequence, "version": version, "reported": reported}
        await self.say("twin.reported", said)
        await self._station.settle()


@asynccontextmanager
async def station() -> AsyncIterator[Station]:
    clock = FakeClock()
    registry = Registry(MemoryStore(), clock, Random(0))
    await registry.start()
    found = Station(clock, registry)
    await registry.create(ADMIN, scheme.NAMESPACE.empty("shop"))
    settings = Settings(sign=lambda *_: b"", fleet=found.fleet)
    device_controller.setup(found.manager, found.client, clock, settings)
    deviceset.setup(found.manager, found.client, clock, settings)
    deviceworkload.setup(found.manager, found.client, clock, settings)
    await found.manager.start()
    await found.settle()
    try:
        yield found
    finally:
        await found.manager.stop()
        await found.fleet.stop()
        await registry.stop()
