"""Garbage: what was owned goes when its last owner has gone; foreground and orphan deletion as Kubernetes has them.

A Pod that a site mirrors is removed by its site, and by this controller only when the site itself is no member any more.
"""

from collections.abc import Iterable

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.reconcile.informer import Informer
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import definitions, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, deleting, is_true, name, namespace, ref, uid

NAME = "garbage"
FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
#: Kinds that neither own nor are owned, or come too often to be looked at.
_APART = {"Event", "Lease", "SelfSubjectAccessReview", "SelfSubjectReview"}
WATCHED = tuple(k for k in scheme.KINDS if k.kind not in _APART and k not in scheme.VIEWS and "list" in k.verbs)


class GarbageReconciler:
    """Keys are owned objects, and owners that are being deleted."""

    name = NAME

    def __init__(self, manager: Manager, client: Client) -> None:
        self._client = client
        self._manager = manager
        self._informers: dict[tuple[str, str], Informer] = {}
        for kind in WATCHED:
            self.follow(kind)

    def follow(self, kind: scheme.Kind) -> Informer:
        informer = self._informers[(kind.group, kind.kind)] = self._manager.informer(kind)
        informer.add_index("owner", _owner_uids)
        return informer

    def define(self, old: Obj | None, new: Obj | None) -> Informer | None:
        """Follows the kind of a definition as it has become. Its informer, where that is new."""
        before, after = (definitions.followed([each] if each is not None else []) for each in (old, new))
        for kind in before:
            if kind not in after and (held := self._informers.pop((kind.group, kind.kind), None)) is not None:
                self._manager.forget(held)
        return next((self.follow(kind) for kind in after if (kind.group, kind.kind) not in self._informers), None)

    async def reconcile(self, about: ObjectRef) -> Result:
        informer = self._informers.get((about.group, about.kind))
        obj = informer.get(about.name, about.namespace) if informer is not None else None
        if obj is None:  # or its kind is served no more
            return DONE
        if about.kind == "Pod" and not about.group and (obj.get("spec") or {}).get("nodeName"):
            return await self._mirror(obj)
        finalizers = (obj.get("metadata") or {}).get("finalizers") or []
        if deleting(obj) and ORPHAN in finalizers:
            return await self._orphan(obj)
        if deleting(obj) and FOREGROUND in finalizers:
            return await self._foreground(obj)
        owners = obj["metadata"].get("ownerReferences") or ()
        if owners and not deleting(obj):
            states = [await self._owner(o, about.namespace) for o in owners]
            if all(s == "gone" for s in states):
                await self._delete(obj, "Background")
            elif "foreground" in states and all(s != "there" for s in states):
                await self._delete(obj, "Foreground")
        return DONE

    async def _owner(self, owner: dict[str, str], where: str) -> str:
        """``there``, ``gone``, or ``foreground``: about to go once its dependents have gone."""
        informer = self._informers.get((owner.get("apiVersion", "").rpartition("/")[0], owner.get("kind", "")))
        if informer is None:
            return "there"
        kind = informer.kind
        space = where if kind.namespaced else ""
        found = informer.get(owner["name"], space)
        if found is None or uid(found) != owner.get("uid"):
            # The informer may be a moment behind: only the server's answer condemns.
            try:
                found = await self._client.get(kind, owner["name"], space)
            except ApiError as error:
                if error.code == 404:
                    return "gone"
                raise
            if uid(found) != owner.get("uid"):
                return "gone"
        if deleting(found) and FOREGROUND in (found["metadata"].get("finalizers") or ()):
            return "foreground"
        return "there"

    def _kind(self, obj: Obj) -> scheme.Kind:
        return self._informers[(obj["apiVersion"].rpartition("/")[0], obj["kind"])].kind

    def dependents(self, obj: Obj) -> Iterable[Obj]:
        for informer in self._informers.values():
            yield from informer.by_index("owner", uid(obj))

    async def _foreground(self, obj: Obj) -> Result:
        waiting = False
        for dependent in list(self.dependents(obj)):
            mirror = dependent.get("kind") == "Pod" and (dependent.get("spec") or {}).get("nodeName")
            if mirror and not self._present(mirror):
                continue
            blocks = any(
                o.get("uid") == uid(obj) and o.get("blockOwnerDeletion")
                for o in dependent["metadata"].get("ownerReferences") or ()
            )
            waiting = waiting or blocks
            if not deleting(dependent) and not mirror:
                await self._delete(dependent, "Foreground")
        if waiting:
            return Result(requeue_after=0.2)
        await self._unfinalize(obj, FOREGROUND)
        return DONE

    def _present(self, site: str) -> bool:
        """Whether a site can end its pods now; of one that is away nothing is waited for."""
        cluster = self._informers[(scheme.CLUSTER.group, scheme.CLUSTER.kind)].get(site)
        return cluster is not None and is_true(cluster, "Ready")

    async def _orphan(self, obj: Obj) -> Result:
        for dependent in list(self.dependents(obj)):
            owners = [o for o in dependent["metadata"]["ownerReferences"] if o.get("uid") != uid(obj)]
            await self._client.patch(
                self._kind(dependent), name(dependent), namespace(dependent), {"metadata": {"ownerReferences": owners or None}}
            )
        await self._unfinalize(obj, ORPHAN)
        return DONE

    async def _mirror(self, pod: Obj) -> Result:
        site = pod["spec"]["nodeName"]
        if self._informers[(scheme.CLUSTER.group, scheme.CLUSTER.kind)].get(site) is not None:
            return DONE
        try:
            await self._client.get(scheme.CLUSTER, site)
        except ApiError as error:
            if error.code != 404:
                raise
            await self._delete(pod, "Background", grace=0)
        return DONE

    async def _unfinalize(self, obj: Obj, finalizer: str) -> None:
        left = [f for f in obj["metadata"].get("finalizers") or () if f != finalizer]
        patch = {"metadata": {"finalizers": left, "resourceVersion": obj["metadata"].get("resourceVersion")}}
        await self._client.patch(self._kind(obj), name(obj), namespace(obj), patch)

    async def _delete(self, obj: Obj, propagation: str, grace: int | None = None) -> None:
        try:
            await self._client.delete(
                self._kind(obj), name(obj), namespace(obj), uid=uid(obj), propagation=propagation, grace_period_seconds=grace
            )
        except ApiError as error:
            if error.code not in (404, 409):
                raise


def _owner_uids(obj: Obj) -> list[str]:
    return [str(o.get("uid")) for o in (obj.get("metadata") or {}).get("ownerReferences") or ()]


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it."""
    reconciler = GarbageReconciler(manager, client)
    manager.add(reconciler, [])

    def watch(informer: Informer) -> None:
        kind = informer.kind

        def changed(old: Obj | None, new: Obj | None) -> None:
            if new is not None:
                metadata = new.get("metadata") or {}
                mirror = kind is scheme.POD and bool((new.get("spec") or {}).get("nodeName"))
                if (old is None and (metadata.get("ownerReferences") or mirror)) or (
                    deleting(new) and metadata.get("finalizers")
                ):
                    manager.enqueue(NAME, ref(new))
            elif old is not None:
                for dependent in reconciler.dependents(old):
                    manager.enqueue(NAME, ref(dependent))
                if kind is scheme.CLUSTER:
                    for pod in manager.informer(scheme.POD).list():
                        if (pod.get("spec") or {}).get("nodeName") == name(old):
                            manager.enqueue(NAME, ref(pod))

        informer.on_change(changed)

    for kind in WATCHED:
        watch(manager.informer(kind))

    def defined(old: Obj | None, new: Obj | None) -> None:
        informer = reconciler.define(old, new)
        if informer is not None:
            watch(informer)

    manager.informer(scheme.CUSTOM_RESOURCE_DEFINITION).on_change(defined)
