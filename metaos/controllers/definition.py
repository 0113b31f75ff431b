"""CustomResourceDefinition: its names are granted and its kinds served; its objects go before it does.

Source: the controllers of ``k8s.io/apiextensions-apiserver`` (status, establish, finalizer).
"""

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import definitions, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, deleting, name, ref

NAME = "definition"
_KIND = scheme.CUSTOM_RESOURCE_DEFINITION


class DefinitionReconciler:
    """Keys are CustomResourceDefinitions."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._definitions = manager.informer(_KIND)
        #: What was said of a definition and the informer has not seen yet.
        self._said: dict[str, Obj] = {}

    async def reconcile(self, about: ObjectRef) -> Result:
        if self._definitions.get(about.name) is None:
            self._said.pop(about.name, None)
            return DONE
        try:
            found = await self._client.get(_KIND, about.name)
        except ApiError as error:
            if error.code == 404:
                return DONE
            raise
        if definitions.waiting(found):
            return await self._clear(found)
        if not deleting(found):
            await self._say(found, definitions.status(found, self._others(found), self._clock.now()))
        return DONE

    def _others(self, found: Obj) -> list[Obj]:
        """The others of its group. What was just said of them counts, also where the informer is behind: two that want one name
        must not both be granted it."""
        group = found["spec"]["group"]
        others = [each for each in self._definitions.list() if each["spec"]["group"] == group]
        for each in others:
            if (held := self._said.get(name(each))) and not _later(held, each):
                del self._said[name(each)]
        return [self._said.get(name(each), each) for each in others]

    async def _clear(self, found: Obj) -> Result:
        for kind in definitions.followed([found]):
            listed = (await self._client.list(kind, limit=500)).items
            if listed:
                if any(not deleting(each) for each in listed):
                    await self._client.delete_collection(kind)
                await self._say(found, definitions.terminating(found, len(listed), self._clock.now()))
                return Result(requeue_after=0.2)
        finalizers = [each for each in found["metadata"]["finalizers"] if each != definitions.FINALIZER]
        patch = {"metadata": {"finalizers": finalizers, "resourceVersion": found["metadata"]["resourceVersion"]}}
        await self._client.patch(_KIND, name(found), "", patch)
        return DONE

    async def _say(self, found: Obj, status: Obj) -> None:
        if status != found.get("status"):
            self._said[name(found)] = await self._client.update({**found, "status": status}, subresource="status")


def _later(one: Obj, other: Obj) -> bool:
    return int(one["metadata"]["resourceVersion"]) > int(other["metadata"]["resourceVersion"])


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it. One that goes may free a name that another waits for."""
    manager.add(DefinitionReconciler(manager, client, clock), [(_KIND, lambda obj: [ref(obj)])])
    informer = manager.informer(_KIND)

    def changed(old: Obj | None, new: Obj | None) -> None:
        if new is None and old is not None:
            for other in informer.list():
                if other["spec"]["group"] == old["spec"]["group"]:
                    manager.enqueue(NAME, ref(other))

    informer.on_change(changed)
