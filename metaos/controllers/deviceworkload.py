"""Device workload: has a DeviceSet carry out each Deployment that is for devices, and rolls its status up."""

from __future__ import annotations

from collections.abc import Iterator

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.devices.workload import on_devices, refused, status, wanted
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, controller_of, deleting, namespace, owner_reference, ref, uid

NAME = "deviceworkload"
PREFIX = "deployment-"


class DeviceWorkloadReconciler:
    """Keys are Deployments."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._deployments = manager.informer(scheme.DEPLOYMENT)
        self._sets = manager.informer(scheme.DEVICE_SET)

    async def reconcile(self, about: ObjectRef) -> Result:
        found = self._deployments.get(about.name, about.namespace)
        if found is None or deleting(found) or not on_devices(found):
            return DONE
        now = self._clock.now()
        try:
            spec = wanted(found)
        except ValueError as error:
            await self._say(found, refused(found, str(error), now))
            return DONE
        named = PREFIX + about.name
        held = self._sets.get(named, about.namespace)
        if held is not None and (controller_of(held) or {}).get("uid") != uid(found):
            why = f"there is a DeviceSet {named} that is not this Deployment's: delete it, or rename the Deployment"
            await self._say(found, refused(found, why, now))
            return DONE
        if held is None:
            made: Obj = {**scheme.DEVICE_SET.empty(named, about.namespace), "spec": spec}
            made["metadata"]["ownerReferences"] = [owner_reference(found)]
            try:
                await self._client.create(made)
            except ApiError as error:
                if error.reason != "AlreadyExists":  # The cache is a moment behind.
                    raise
        elif held["spec"] != spec:
            await self._client.update({**held, "spec": spec})
        else:
            await self._say(found, status(found, held, now))
        return DONE

    async def _say(self, deployment: Obj, wanted: Obj) -> None:
        if wanted != deployment.get("status"):
            await self._client.update(deployment | {"status": wanted}, subresource="status")


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it, where there are devices."""
    if settings.fleet is None:
        return

    def itself(deployment: Obj) -> Iterator[ObjectRef]:
        if on_devices(deployment):
            yield ref(deployment)

    def of_set(deviceset: Obj) -> Iterator[ObjectRef]:
        owner = controller_of(deviceset)
        if owner is not None and owner["kind"] == scheme.DEPLOYMENT.kind:
            yield ObjectRef(scheme.DEPLOYMENT.group, scheme.DEPLOYMENT.kind, namespace(deviceset), owner["name"])

    reconciler = DeviceWorkloadReconciler(manager, client, clock)
    manager.add(reconciler, [(scheme.DEPLOYMENT, itself), (scheme.DEVICE_SET, of_set)])
