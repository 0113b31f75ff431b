"""Mirrors: the pods of this site as Pods in the hub's API, and what is asked of them there.

Level-triggered per pod: compare the local pod with what the hub has and take one step. The hub's side is known from a
watch of the Pods with this site's name; a mirror that vanished there comes back while its pod lives, and one that is being
deleted there has its pod stopped first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent.contact import Contact, Follower
from metaos.agent.report import merge_patch, settled
from metaos.agent.turns import Turns
from metaos.client import Client, WatchEvent
from metaos.clock import Clock
from metaos.reconcile.precedence import Precedence
from metaos.resources import meta
from metaos.resources.errors import ApiError
from metaos.resources.meta import CLUSTER_LABEL, DISRUPTED, EVICTED, EVICTION, Obj, labels, name, namespace, uid
from metaos.resources.scheme import POD

log = logging.getLogger(__name__)

#: On a mirror: the uid that the pod has at its site (the mirror's own is the hub's).
LOCAL_UID = "meta-os.eu/site-uid"
#: Changes of one pod within this time become one write.
COALESCE_SECONDS = 0.1
#: Steps that :meth:`PodMirrors.show` waits for: a mirror of the same name may have to go first, and a write may meet another's.
SHOW_STEPS = 3

Key = tuple[str, str]


class PodMirrors:
    """``stop`` is asked to delete a pod, with its grace period in seconds (``None``: the pod's own); it may take that long.

    Most mirrors are made here and carry ``LOCAL_UID``. A Pod that a user made by itself is the hub's: it has one uid at the
    hub and here, and only its status is written.
    """

    def __init__(
        self,
        client: Client,
        contact: Contact,
        clock: Clock,
        random: Random,
        site: str,
        stop: Callable[[str, str, float | None, bool], Awaitable[None]],
        precedence: Precedence | None = None,
    ) -> None:
        """``stop(namespace, name, grace seconds, whether it was evicted)`` returns when nothing of a pod is left."""
        self._client, self._contact, self._site = client, contact, site
        self._stop = stop
        self._local: dict[Key, Obj] = {}
        self._hub: dict[Key, Obj] = {}
        self._listed = False
        #: Pods that were asked to stop and are still there, by uid, with the grace period asked for.
        self._stopping: dict[str, float | None] = {}
        self._stops: set[asyncio.Task[None]] = set()
        #: Per mirror: what was written and what the hub made of it.
        self._acknowledged: dict[Key, tuple[Obj, Obj]] = {}
        self._turns: Turns[Key] = Turns(contact, clock, random, self._sync, "pod", precedence=precedence)
        contact.on_return(self.refresh)
        self.follower = Follower(
            client,
            contact,
            clock,
            POD,
            fields=f"spec.nodeName={site}",
            on_list=lambda found: self._replace_all(found.items),
            on_event=self._apply_event,
        )

    def uid_of(self, where: str, pod: str) -> str:
        """The mirror's uid, empty while there is none."""
        found = self._hub.get((where, pod))
        return uid(found) if found else ""

    async def shown(self, pod: Obj) -> str:
        """The uid that a local pod has at the hub, after one attempt to show it there; empty where that came to nothing."""
        key = (namespace(pod), name(pod))
        self._local.setdefault(key, pod)
        if not self._stands_for(pod):
            await self._turns.once(key)
        return self.uid_of(*key) if self._stands_for(pod) else ""

    def _stands_for(self, pod: Obj) -> bool:
        hub = self._hub.get((namespace(pod), name(pod)))
        return hub is not None and uid(pod) in (meta.annotations(hub).get(LOCAL_UID), uid(hub))

    def refresh(self, pods: Iterable[Obj] | None = None, *, immutable: bool = False) -> None:
        """``pods``: all local pods (with ``uid``, ``spec``, ``status`` and hub-side ``ownerReferences``), where they changed.
        ``immutable``: what changes is another object each time, so those that are as they were need no look."""
        keys = self._local.keys() | self._hub.keys()
        if pods is not None:
            # Of two with one name the older is on its way out.
            before = self._local
            self._local = {(namespace(pod), name(pod)): pod for pod in sorted(pods, key=meta.deleting, reverse=True)}
            here = {uid(pod) for pod in self._local.values()}
            self._stopping = {pod: grace for pod, grace in self._stopping.items() if pod in here}
            keys = before.keys() | self._local.keys() | keys
            if immutable:
                keys = {key for key in keys if before.get(key) != self._local.get(key)}
        for key in sorted(keys):
            self._turns.add(key, COALESCE_SECONDS)

    async def show(self, work: Obj, pods: Iterable[Obj]) -> None:
        """Returns once those of the local pods that belong to a Work's objects stand at the hub as they are here. What the hub
        does not take is not waited for."""
        owners = {uid(manifest) for manifest in (work.get("spec") or {}).get("manifests") or ()}
        keys = []
        for pod in pods:
            mine = any(o.get("uid") in owners for o in pod["metadata"].get("ownerReferences") or ())
            if mine and not meta.deleting(pod):
                keys.append((namespace(pod), name(pod)))
                self._local[keys[-1]] = pod
        for _ in range(SHOW_STEPS):
            await asyncio.gather(*(self._turns.once(key) for key in keys if not self._stands(key)))

    def _stands(self, key: Key) -> bool:
        local, hub = self._local.get(key), self._hub.get(key)
        if local is None or hub is None:
            return local is None or not local["metadata"].get("ownerReferences")
        if uid(local) not in (meta.annotations(hub).get(LOCAL_UID), uid(hub)):
            return False
        old, new = hub.get("status") or {}, _said(local, hub)
        return old == new or self._acknowledged.get(key) == (new, old)

    async def run(self) -> None:
        """Never returns."""
        await self._turns.run()

    async def close(self) -> None:
        for task in self._stops:
            task.cancel()
        await asyncio.gather(*self._stops, return_exceptions=True)

    # -- news from the hub -----------------------------------------------------------------------------------

    def _replace_all(self, pods: list[Obj]) -> None:
        self._hub = {(namespace(pod), name(pod)): _lean(pod) for pod in pods}
        self._listed = True
        self.refresh()

    def _apply_event(self, event: WatchEvent) -> None:
        key = (namespace(event.object), name(event.object))
        if event.type == "DELETED":
            self._hub.pop(key, None)
            local = self._local.get(key)
            # A pod that has run to its end goes with its mirror; one that lives is shown again.
            if local is not None and (local.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                self._begin_stop(key, local, event.object, 0.0)
                return
        else:
            self._hub[key] = _lean(event.object)
        self._turns.add(key, 0.0)

    # -- one step --------------------------------------------------------------------------------------------

    async def _sync(self, key: Key) -> None:
        if not self._listed:
            return
        local, hub = self._local.get(key), self._hub.get(key)
        if hub is None:
            self._acknowledged.pop(key, None)
            # A user's own Pod that is gone at the hub goes here with its Work.
            if local is not None and local["metadata"].get("ownerReferences"):
                await self._create(key, local)
            return
        made_here = meta.annotations(hub).get(LOCAL_UID)
        if local is None or uid(local) not in (made_here, uid(hub)):
            if made_here or (local is None and meta.deleting(hub)):
                await self._delete(key, hub)
        elif meta.deleting(hub):
            grace = hub["metadata"].get("deletionGracePeriodSeconds")
            self._begin_stop(key, local, hub, None if grace is None else float(grace))
            await self._update(key, local, hub)
        elif made_here and meta.deleting(local):
            # Those who look see that it ends, before it has.
            grace = int(local["metadata"].get("deletionGracePeriodSeconds") or 0)
            await self._delete(key, hub, max(1, grace))
        else:
            await self._update(key, local, hub)

    def _begin_stop(self, key: Key, local: Obj, hub: Obj, grace: float | None) -> None:
        pod, evicted = uid(local), DISRUPTED in meta.annotations(hub)
        if pod in self._stopping and self._stopping[pod] == grace:
            return
        self._stopping[pod] = grace

        async def stop() -> None:
            # Asked once, as what it came to is seen a moment later; what has failed is asked again.
            try:
                await self._stop(*key, grace, evicted)
            except BaseException:
                self._stopping.pop(pod, None)
                raise

        task = asyncio.create_task(stop())
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def _create(self, key: Key, local: Obj) -> None:
        wanted = mirror_of(local, self._site)
        created = await self._client.create(wanted, field_manager="nemo-agent")
        self._hub[key] = _lean(created)
        await self._update(key, local, self._hub[key])

    async def _update(self, key: Key, local: Obj, hub: Obj) -> None:
        wanted = mirror_of(local, self._site)
        if uid(hub) == uid(local):
            wanted["metadata"] = {}
        parts = {k: wanted["metadata"].get(k) or {} for k in ("labels", "annotations")}
        # Others may label and annotate a mirror too (eviction does): only what this site says is compared.
        changed = {
            part: {k: v for k, v in said.items() if (hub["metadata"].get(part) or {}).get(k) != v} for part, said in parts.items()
        }
        changed = {part: said for part, said in changed.items() if said}
        if changed:
            answer = await self._client.patch(POD, key[1], key[0], {"metadata": changed}, field_manager="nemo-agent")
            self._hub[key] = hub = _lean(answer)
        if self._stands(key):
            return
        old, new = hub.get("status") or {}, _said(local, hub)
        sent = merge_patch(old, new)
        patch = {"metadata": {"uid": uid(hub)}, "status": sent}
        answer = await self._client.patch(POD, key[1], key[0], patch, subresource="status", field_manager="nemo-agent")
        self._hub[key] = hub = _lean(answer)
        made = hub.get("status") or {}
        if settled(sent, made, new):
            self._acknowledged[key] = (new, made)
        else:
            self._turns.add(key, 0.0)

    async def _delete(self, key: Key, hub: Obj, grace_seconds: int = 0) -> None:
        try:
            await self._client.delete(POD, key[1], key[0], uid=uid(hub), grace_period_seconds=grace_seconds)
        except ApiError as error:
            if error.code not in (404, 409):
                raise
        if grace_seconds:
            return  # The hub tells what it made of it.
        if self._hub.get(key) is hub:
            del self._hub[key]
        self._turns.add(key, 0.0)  # a new pod of the same name may be waiting for its mirror


def mirror_of(local: Obj, site: str) -> Obj:
    """The Pod that stands for a local one, without its status."""
    metadata: dict[str, Any] = {
        "name": name(local),
        "namespace": namespace(local),
        "labels": labels(local) | {CLUSTER_LABEL: site},
        "annotations": meta.annotations(local) | {LOCAL_UID: uid(local)},
    }
    owners = local["metadata"].get("ownerReferences")
    if owners:
        metadata["ownerReferences"] = owners
    if local["metadata"].get("generateName"):
        metadata["generateName"] = local["metadata"]["generateName"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": (local.get("spec") or {}) | {"nodeName": site}}


def _said(local: Obj, hub: Obj) -> dict[str, Any]:
    """The status that a mirror shall have: the local pod's, and that it is being evicted where the hub was asked for that."""
    status: dict[str, Any] = local.get("status") or {}
    asked = meta.annotations(hub)
    try:
        since = meta.parse_time(asked.get(EVICTED) or asked[DISRUPTED])
    except (KeyError, ValueError):
        return status
    conditions = status.get("conditions") or ()
    if status.get("phase") in ("Succeeded", "Failed") or any(c.get("type") == "DisruptionTarget" for c in conditions):
        return status
    found = meta.with_condition(conditions, "DisruptionTarget", "True", *EVICTION, since)
    return status | {"conditions": found}


def _lean(pod: Obj) -> Obj:
    keep = ("name", "namespace", "uid", "labels", "annotations", "deletionTimestamp", "deletionGracePeriodSeconds")
    metadata = {k: pod["metadata"][k] for k in keep if k in pod["metadata"]}
    return {"metadata": metadata, "status": pod.get("status") or {}}
