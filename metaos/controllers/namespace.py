"""Namespace: a namespace ends only when everything in it has ended."""

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import definitions, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import ObjectRef, deleting, ref, with_condition

NAME = "namespace"
FINALIZER = "kubernetes"
#: Workloads first: what they use stays until they have gone.
_ORDER = sorted(
    (k for k in scheme.KINDS if k.namespaced and k not in scheme.VIEWS and "deletecollection" in k.verbs),
    key=lambda k: k not in scheme.WORKLOADS,
)


class NamespaceReconciler:
    """Keys are Namespaces."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._namespaces = manager.informer(scheme.NAMESPACE)
        self._definitions = manager.informer(scheme.CUSTOM_RESOURCE_DEFINITION)

    async def reconcile(self, about: ObjectRef) -> Result:
        found = self._namespaces.get(about.name)
        if found is None or not deleting(found) or FINALIZER not in ((found.get("spec") or {}).get("finalizers") or ()):
            return DONE
        remaining: dict[str, int] = {}
        defined = definitions.followed(self._definitions.list())
        for kind in (*_ORDER, *(each for each in defined if each.namespaced)):
            listed = await self._client.list(kind, about.name, limit=500)
            if not listed.items:
                continue
            remaining[kind.plural] = len(listed.items)
            if any(not deleting(o) for o in listed.items):
                await self._client.delete_collection(kind, about.name)
        if remaining:
            await self._tell(about.name, remaining)
            return Result(requeue_after=0.3)
        finalizers = [f for f in found["spec"]["finalizers"] if f != FINALIZER]
        current = await self._client.get(scheme.NAMESPACE, about.name)
        await self._client.update(current | {"spec": current["spec"] | {"finalizers": finalizers}}, subresource="finalize")
        return DONE

    async def _tell(self, where: str, remaining: dict[str, int]) -> None:
        message = "still there: " + ", ".join(f"{count} {plural}" for plural, count in sorted(remaining.items()))
        try:
            current = await self._client.get(scheme.NAMESPACE, where)
        except ApiError as error:
            if error.code == 404:
                return
            raise
        status = current.get("status") or {}
        conditions = with_condition(
            status.get("conditions") or (), "NamespaceContentRemaining", "True", "SomeResourcesRemain", message, self._clock.now()
        )
        if conditions != status.get("conditions"):
            await self._client.update(current | {"status": status | {"conditions": conditions}}, subresource="status")


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it."""
    manager.add(NamespaceReconciler(manager, client, clock), [(scheme.NAMESPACE, lambda o: [ref(o)])])
