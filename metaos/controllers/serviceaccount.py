"""ServiceAccount: every namespace has one named ``default``, as whom pods run that name none.

It comes with the namespace, and again where somebody deletes it. NEMO's own namespaces hold no pods, and have none.
Source: ``pkg/controller/serviceaccount`` of Kubernetes.
"""

from collections.abc import Iterator

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import RESERVED_PREFIX, Obj, ObjectRef, deleting, name, namespace, ref

NAME = "serviceaccount"
DEFAULT = "default"


class ServiceAccountReconciler:
    """Keys are Namespaces."""

    name = NAME

    def __init__(self, manager: Manager, client: Client) -> None:
        self._client = client
        self._namespaces = manager.informer(scheme.NAMESPACE)
        self._accounts = manager.informer(scheme.SERVICE_ACCOUNT)

    async def reconcile(self, about: ObjectRef) -> Result:
        found = self._namespaces.get(about.name)
        if found is None or deleting(found) or self._accounts.get(DEFAULT, about.name) is not None:
            return DONE
        try:
            await self._client.create(scheme.SERVICE_ACCOUNT.empty(DEFAULT, about.name))
        except ApiError as error:
            # It has just come, or the namespace has just begun to go. One that its quota leaves no room for comes with room.
            if error.code not in (403, 404, 409):
                raise
            return Result(requeue_after=60.0) if error.code == 403 else DONE
        return DONE


def _of_account(account: Obj) -> Iterator[ObjectRef]:
    if name(account) == DEFAULT and not namespace(account).startswith(RESERVED_PREFIX):
        yield ObjectRef("", "Namespace", "", namespace(account))


def _of_namespace(found: Obj) -> Iterator[ObjectRef]:
    if not name(found).startswith(RESERVED_PREFIX):
        yield ref(found)


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it."""
    reconciler = ServiceAccountReconciler(manager, client)
    manager.add(reconciler, [(scheme.NAMESPACE, _of_namespace), (scheme.SERVICE_ACCOUNT, _of_account)])
