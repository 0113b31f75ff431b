"""DeviceSet: gives Devices what a set wants of them, wave after wave, and counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.devices.sets import FINALIZER, IN_SET, leaving, plan, status
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, deleting, name, namespace, ref

NAME = "deviceset"
#: Seconds between two looks at a set, as its devices change all the time; and Devices that are given something in one.
LOOK_SECONDS, MOST_GIVEN = 1.0, 100


class DeviceSetReconciler:
    """Keys are DeviceSets."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._sets = manager.informer(scheme.DEVICE_SET)
        self._devices = manager.informer(scheme.DEVICE)
        #: When each was looked at.
        self._looked: dict[ObjectRef, float] = {}

    async def reconcile(self, about: ObjectRef) -> Result:
        found = self._sets.get(about.name, about.namespace)
        if found is None:
            self._looked.pop(about, None)
            return DONE
        held = found["metadata"].get("finalizers") or []
        if deleting(found):
            if FINALIZER in held:
                left = leaving(found, self._devices.list(about.namespace), ())
                await self._leave(about, left)
                if len(left) > MOST_GIVEN:
                    return Result(requeue_after=LOOK_SECONDS)
                await self._finalize(found, [each for each in held if each != FINALIZER])
            return DONE
        if FINALIZER not in held:
            await self._finalize(found, [*held, FINALIZER])
            return DONE
        now = self._clock.monotonic()
        wait = self._looked.get(about, now - LOOK_SECONDS) + LOOK_SECONDS - now
        if wait > 0:
            return Result(requeue_after=wait)
        self._looked[about] = now
        where = about.namespace
        made = plan(found, self._devices.list(where), [name(each) for each in self._sets.list(where)])
        for device in sorted(made.give)[:MOST_GIVEN]:
            await self._give(device, where, about.name, made.give[device])
        await self._leave(about, made.leave)
        wanted = status(found, made, self._clock.now())
        if wanted != found.get("status"):
            patch = {"status": wanted}
            await self._client.patch(scheme.DEVICE_SET, about.name, where, patch, subresource="status")
        return Result(requeue_after=LOOK_SECONDS) if made.give or made.leave else DONE

    async def _leave(self, about: ObjectRef, patches: Mapping[str, Obj]) -> None:
        for device in sorted(patches)[:MOST_GIVEN]:
            await self._give(device, about.namespace, None, patches[device])

    async def _give(self, device: str, where: str, mark: str | None, spec: Obj) -> None:
        patch = {"metadata": {"annotations": {IN_SET: mark}}, "spec": spec}
        try:
            await self._client.patch(scheme.DEVICE, device, where, patch)
        except ApiError as error:
            if error.code != 404:
                raise

    async def _finalize(self, found: Obj, finalizers: list[str]) -> None:
        metadata = {"finalizers": finalizers, "resourceVersion": found["metadata"]["resourceVersion"]}
        await self._client.patch(scheme.DEVICE_SET, name(found), namespace(found), {"metadata": metadata})


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it, where there are devices."""
    if settings.fleet is None:
        return
    sets = manager.informer(scheme.DEVICE_SET)

    def concerned(device: Obj) -> Iterator[ObjectRef]:
        yield from (ref(each) for each in sets.list(namespace(device)))

    manager.add(
        DeviceSetReconciler(manager, client, clock),
        [(scheme.DEVICE_SET, lambda each: [ref(each)]), (scheme.DEVICE, concerned)],
    )
