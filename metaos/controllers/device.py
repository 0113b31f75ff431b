"""Device: has the fleet know what is wanted of each, and keeps its pulse."""

from __future__ import annotations

from collections.abc import Iterator

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.fleet.fleet import TICK_SECONDS, Fleet
from metaos.fleet.gate import Address
from metaos.messaging.bus import BusError
from metaos.messaging.site import LEAVES
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.meta import GROUP, SYSTEM_NAMESPACE, Obj, ObjectRef, name, namespace, ref

NAME = "device"
#: How soon what the bus did not take is tried again, in seconds.
AGAIN_SECONDS = 2.0
#: Devices that go or are kept out at the same time share what is told to the servers.
WORKERS = 16
#: A key that stands for all devices: their pulse.
PULSE = ObjectRef(GROUP, "Fleet", "", "")


#: What credentials of sites' servers count.
LEAVES_REF = ObjectRef(scheme.CONFIG_MAP.group, scheme.CONFIG_MAP.kind, SYSTEM_NAMESPACE, LEAVES)


class DeviceReconciler:
    """Keys are Devices, ConfigMaps that may hold applications, :data:`LEAVES_REF` and :data:`PULSE`."""

    name = NAME

    def __init__(self, manager: Manager, fleet: Fleet) -> None:
        self._fleet = fleet
        self._devices = manager.informer(scheme.DEVICE)
        self._config_maps = manager.informer(scheme.CONFIG_MAP)

    async def reconcile(self, about: ObjectRef) -> Result:
        fleet = self._fleet
        try:
            fleet.leading = True
            if about == PULSE:
                await fleet.tick()
                return Result(requeue_after=TICK_SECONDS)
            if about == LEAVES_REF:
                found = self._config_maps.get(about.name, about.namespace)
                await fleet.gate.sites((found or {}).get("data") or {})
                return DONE
            if about.kind == scheme.CONFIG_MAP.kind:
                await fleet.app_changed(about.namespace, about.name)
                return DONE
            await fleet.changed(Address(about.namespace, about.name), self._devices.get(about.name, about.namespace))
        except BusError:
            return Result(requeue_after=AGAIN_SECONDS)
        return DONE


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it, where there is a bus."""
    fleet = settings.fleet
    if fleet is None:
        return

    def named(config_map: Obj) -> Iterator[ObjectRef]:
        if fleet.uses(namespace(config_map), name(config_map)) or ref(config_map) == LEAVES_REF:
            yield ref(config_map)

    manager.add(
        DeviceReconciler(manager, fleet),
        [(scheme.DEVICE, lambda device: [ref(device)]), (scheme.CONFIG_MAP, named)],
        workers=WORKERS,
    )
    manager.enqueue(NAME, PULSE)
