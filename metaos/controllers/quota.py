"""ResourceQuota: ``status.used`` says what its namespace uses, ``status.hard`` what it may.

What counts is in :mod:`metaos.resources.quotas`; the API server holds writes to it, by its own count.
"""

from fractions import Fraction
from weakref import WeakSet

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.reconcile.informer import Informer
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import definitions, quotas, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, name, namespace, ref
from metaos.resources.scheme import Kind

NAME = "quota"
#: What happens within this time is counted once.
SETTLE_SECONDS = 0.2
_KIND = scheme.RESOURCE_QUOTA
_APART = (scheme.EVENT, scheme.LEASE)
_COUNTED = tuple(k for k in scheme.KINDS if k.namespaced and k not in scheme.VIEWS and "list" in k.verbs and k not in _APART)


class QuotaReconciler:
    """Keys are ResourceQuotas."""

    name = NAME

    def __init__(self, manager: Manager, client: Client) -> None:
        self._manager, self._client = manager, client
        self._quotas = manager.informer(_KIND)
        self._definitions = manager.informer(scheme.CUSTOM_RESOURCE_DEFINITION)

    async def reconcile(self, about: ObjectRef) -> Result:
        quota = self._quotas.get(about.name, about.namespace)
        if quota is None:
            return DONE
        used = {key: quotas.shown(key, value) for key, value in self._used(quota).items()}
        status = {"hard": (quota.get("spec") or {}).get("hard") or {}, "used": used}
        if status != quota.get("status"):
            try:
                await self._client.patch(
                    scheme.RESOURCE_QUOTA, name(quota), namespace(quota), {"status": status}, subresource="status"
                )
            except ApiError as error:
                if error.code != 404:
                    raise
        return DONE

    def _used(self, quota: Obj) -> dict[str, Fraction]:
        names = (quota.get("spec") or {}).get("hard") or {}
        total = dict.fromkeys(names, Fraction(0))
        for kind in self._kinds(names):
            for obj in self._manager.informer(kind).list(namespace(quota)):
                if quotas.mirrored(kind, obj):
                    continue
                for key, value in quotas.counted(quota, kind, obj).items():
                    total[key] += value
        return total

    def _kinds(self, names: Obj) -> list[Kind]:
        counted = [kind for kind in _COUNTED if kind in quotas.WORKLOADS or _named(kind, names)]
        return counted + [kind for kind in definitions.followed(self._definitions.list()) if f"count/{kind.resource}" in names]


def _named(kind: Kind, names: Obj) -> bool:
    if f"count/{kind.resource}" in names or kind.plural in names:
        return True
    parts = {scheme.SERVICE: "services", scheme.PERSISTENT_VOLUME_CLAIM: "storage"}
    return kind in parts and any(parts[kind] in each for each in names)


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it. Without a quota nothing is done about what changes."""
    reconciler = QuotaReconciler(manager, client)
    manager.add(reconciler, [(_KIND, lambda obj: [ref(obj)])])
    held = manager.informer(_KIND)

    def changed(old: Obj | None, new: Obj | None) -> None:
        obj = new or old
        if obj is not None:
            for quota in held.list(namespace(obj)):
                manager.enqueue(NAME, ref(quota), SETTLE_SECONDS)

    for kind in _COUNTED:
        if kind is not _KIND:
            manager.informer(kind).on_change(changed)
    followed: WeakSet[Informer] = WeakSet()

    def defined(old: Obj | None, new: Obj | None) -> None:
        for kind in definitions.followed([new] if new is not None else []):
            informer = manager.informer(kind)
            if informer not in followed:
                followed.add(informer)
                informer.on_change(changed)

    manager.informer(scheme.CUSTOM_RESOURCE_DEFINITION).on_change(defined)
