"""A hub's part for devices over a real server of the bus, and the example's device under CPython."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from metaos.apiserver.registry import Registry
from metaos.clock import SystemClock
from metaos.config import Address
from metaos.controllers import device as device_controller
from metaos.controllers import deviceset, deviceworkload
from metaos.controllers.settings import Settings
from metaos.fleet.apps import Apps
from metaos.fleet.busgate import BusGate
from metaos.fleet.fleet import Fleet
from metaos.fleet.images import Images
from metaos.messaging.exchange import Exchange, ExchangeConfig
from metaos.messaging.keys import Key
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.store.memory import MemoryStore
from tests.fleet.site import ADMIN, CONTROLLERS

FILE = Path(__file__).parents[2] / "examples/device/nemo_device.py"
ROOT = bytes(range(32))


def client_module() -> ModuleType:
    """The example, loaded from its file."""
    spec = importlib.util.spec_from_file_location("nemo_device", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nemo_device"] = module
    spec.loader.exec_module(module)
    return module


class RealStation:
    """As ``tests.fleet.site.Station``, with time that passes."""

    def __init__(self, registry: Registry, exchange: Exchange) -> None:
        self.registry, self.exchange = registry, exchange
        clock, client = SystemClock(), registry.client(CONTROLLERS)

        async def key() -> Key:
            return Key.derive("user", ROOT, "applications")

        apps = Apps(client, key, Images(client, clock, None))
        self.gate = BusGate(client, exchange, lambda: exchange.urls, str, apps.public_key)
        self.fleet = Fleet(client, clock, exchange.bus, self.gate, apps)
        registry.desk.fleet = self.fleet
        self.manager = Manager(client, clock, Random(1))
        for controller in (device_controller, deviceset, deviceworkload):
            controller.setup(self.manager, client, clock, Settings(sign=lambda *_: b"", fleet=self.fleet))

    async def add(self, name: str, **spec: Any) -> dict[str, Any]:
        """Makes a device; its configuration."""
        await self.registry.create(ADMIN, {**scheme.DEVICE.empty(name, "shop"), "spec": spec})
        made = await self.registry.create_subresource(ADMIN, scheme.DEVICE, name, "shop", "credential", {})
        return {**made["status"], "name": name, "namespace": "shop"}

    async def live(self, name: str) -> Obj:
        found = await self.registry.get(ADMIN, scheme.DEVICE, name, "shop", subresource="live")
        return found["status"]  # type: ignore[no-any-return]

    async def patch(self, name: str, spec: Obj) -> Obj:
        return await self.registry.patch(ADMIN, scheme.DEVICE, name, "shop", {"spec": spec})

    async def command(self, name: str, action: str, **spec: Any) -> Obj:
        body = {"spec": {"action": action, **spec}}
        made = await self.registry.create_subresource(ADMIN, scheme.DEVICE, name, "shop", "command", body)
        return made["status"]  # type: ignore[no-any-return]

    async def until(self, name: str, holds: Callable[[Obj], object], seconds: float = 15.0) -> Obj:
        """What is known of a device, once this holds."""
        end = asyncio.get_running_loop().time() + seconds
        while True:
            found: Obj = {}
            if any(address.name == name for address in self.fleet.live):
                found = await self.live(name)
                if holds(found):
                    return found
            assert asyncio.get_running_loop().time() < end, found
            await asyncio.sleep(0.02)


@asynccontextmanager
async def real_station(folder: Path) -> AsyncIterator[RealStation]:
    async def root() -> bytes:
        return ROOT

    clock = SystemClock()
    registry = Registry(MemoryStore(), clock, Random(0))
    exchange = Exchange(ExchangeConfig(folder / "bus", mqtt=Address("127.0.0.1", 0)), clock, root)
    await registry.start()
    await registry.create(ADMIN, scheme.NAMESPACE.empty("shop"))
    found = RealStation(registry, exchange)
    await found.manager.start()
    try:
        yield found
    finally:
        await found.manager.stop()
        await found.fleet.stop()
        await exchange.stop()
        await registry.stop()
