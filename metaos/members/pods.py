"""The pods of a cluster's workloads that are ours, so that the hub can show them as this site's.

They are followed by namespace, in those where a Work has a workload. A pod is a workload's by its chain of controllers (through
its ReplicaSet or Job), each asked for once. Bound: namespaces with Works, the pods in them, and those pods' controllers.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from metaos.agent.contact import Follower
from metaos.client import ObjList, WatchEvent
from metaos.clock import Clock
from metaos.members.applier import Applier
from metaos.members.member import MAX_NAMESPACES, Member
from metaos.members.news import MemberNews
from metaos.reconcile.precedence import Precedence
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, controller_of, labels, name, namespace, owner_reference, ref, uid
from metaos.resources.scheme import JOB, POD, REPLICA_SET, WORKLOADS, Kind
from metaos.resources.workload import pod_template

log = logging.getLogger(__name__)

#: What stands between a pod and its workload.
_BETWEEN: Mapping[str, Kind] = {"ReplicaSet": REPLICA_SET, "Job": JOB}
_WORKLOADS = {kind.kind for kind in WORKLOADS}
#: So many controllers between pods and workloads are remembered before those that no pod has any more are forgotten.
MAX_CHAINS = 4096
RETRY_SECONDS = 5.0
#: From this release of Kubernetes 1 on, an evicted pod's conditions say that it was.
EVICTIONS_SAY_SO = 26
#: Of a pod's status, what is true elsewhere too; its node's address is the cluster's own business.
_STATUS = (
    *("phase", "conditions", "containerStatuses", "initContainerStatuses", "podIP", "podIPs"),
    *("startTime", "reason", "message", "qosClass"),
)
_METADATA = ("name", "namespace", "uid", "labels", "ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds")
#: Labels that controllers add to those of the template.
_ADDED = frozenset(
    {
        *("pod-template-hash", "controller-revision-hash", "pod-template-generation", "apps.kubernetes.io/pod-index"),
        *("job-name", "batch.kubernetes.io/job-name", "controller-uid", "batch.kubernetes.io/controller-uid"),
        *("batch.kubernetes.io/job-completion-index", "statefulset.kubernetes.io/pod-name"),
    }
)


class MemberPods:
    """``changed`` is called when there may be other pods, or others of them may be ours."""

    def __init__(
        self,
        member: Member,
        applier: Applier,
        clock: Clock,
        changed: Callable[[], None],
        news: MemberNews | None = None,
        precedence: Precedence | None = None,
    ) -> None:
        self._precedence = precedence
        self._member, self._applier, self._clock, self._changed, self._news = member, applier, clock, changed, news
        self._pods: dict[tuple[str, str], Obj] = {}
        #: uid of a controller → its pods; uid of a workload → the ReplicaSets and Jobs between. As many as the pods and chains.
        self._under: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        self._below: defaultdict[str, set[str]] = defaultdict(set)
        #: uid of what stands between → its own controller, ``None`` where it has none or is gone.
        self._chains: dict[str, dict[str, Any] | None] = {}
        self._most = MAX_CHAINS
        self._unknown: dict[str, tuple[Kind, str, str]] = {}
        self._asked = asyncio.Event()
        self._followed: dict[str, list[asyncio.Task[None]]] = {}

    def refresh(self) -> None:
        """Works may name other namespaces now."""
        wanted = {r.namespace for r in self._applier.refs() if r.kind in _WORKLOADS and r.namespace}
        for where in sorted(self._followed.keys() - wanted):
            for task in self._followed.pop(where):
                task.cancel()
            self._drop(where)
        free, waiting = MAX_NAMESPACES - len(self._followed), sorted(wanted - self._followed.keys())
        if len(waiting) > free:
            log.warning(
                "pods of %d namespaces only are shown at the hub; not those of %s",
                MAX_NAMESPACES,
                ", ".join(waiting[free:])[:200],
            )
        for where in waiting[:free]:
            followers = [self._follower(where), *([self._news.follower(where)] if self._news else [])]
            self._followed[where] = [asyncio.create_task(follower.run()) for follower in followers]
        self._changed()

    def __len__(self) -> int:
        """How many are followed, others' too."""
        return len(self._pods)

    def pods(self) -> list[Obj]:
        """Those that are ours, as the agent's mirrors take them: with the hub's owner, and the spec of the hub's template."""
        found = []
        for key in sorted(self._pods):
            local = self._local(self._pods[key])
            if local is not None:
                found.append(local)
        return found

    def of(self, work: Obj) -> list[Obj]:
        """Those of a Work's objects, as :meth:`pods` has them."""
        keys: set[tuple[str, str]] = set()
        for manifest in (work.get("spec") or {}).get("manifests") or ():
            about = ref(manifest)
            live = self._applier.live_uid(about)
            if about.kind == "Pod":
                keys.add((about.namespace, about.name))
            elif live:
                for owner in (live, *self._below.get(live, ())):
                    keys |= self._under.get(owner, set())
        found = (self._local(self._pods[key]) for key in sorted(keys) if key in self._pods)
        return [pod for pod in found if pod is not None]

    async def delete_pod(self, where: str, pod: str, grace_seconds: float | None = None, evicted: bool = False) -> None:
        """Its controller makes another one. ``evicted``: the cluster evicts it, where it can. Raises ``ApiError``."""
        known = self._pods.get((where, pod))
        if known is None:
            return
        grace = None if grace_seconds is None else int(grace_seconds)
        try:
            if not (evicted and await self._evict(known, grace)):
                await self._member.client.delete(POD, pod, where, uid=uid(known), grace_period_seconds=grace)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    async def _evict(self, pod: Obj, grace: int | None) -> bool:
        """Whether the cluster has taken it as an eviction, whereby the pod gets the condition ``DisruptionTarget`` and a Job's
        ``podFailurePolicy`` may leave it uncounted. Where the agent may not, or a budget of the cluster's own forbids it, it is
        deleted all the same: the hub has asked its own budgets."""
        if self._member.minor < EVICTIONS_SAY_SO:
            return False
        metadata = {"name": name(pod), "namespace": namespace(pod)}
        options: dict[str, Any] = {"preconditions": {"uid": uid(pod)}}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata, "deleteOptions": options}
        path = f"/api/v1/namespaces/{namespace(pod)}/pods/{name(pod)}/eviction"
        answer = await self._member.client.request("POST", path, json.dumps(body).encode())
        return answer.status in (200, 201)

    def ours(self, where: str, pod: str) -> Obj | None:
        """A pod as the hub shows it; ``None`` where it is not ours."""
        known = self._pods.get((where, pod))
        return None if known is None else self._local(known)

    def at(self, address: str) -> tuple[str, str] | None:
        """Namespace and name of the pod of ours that has an address of the cluster."""
        for key, pod in self._pods.items():
            if pod["status"].get("podIP") == address and pod["status"].get("phase") == "Running":
                return key if self._local(pod) is not None else None
        return None

    def uids(self) -> set[str]:
        """Of those that are ours, at the cluster."""
        return {uid(pod) for pod in self._pods.values() if self._local(pod) is not None}

    def known(self, involved: Obj) -> Obj | None:
        """What an event of the cluster is about, as the hub knows it: a pod of ours, or a workload; ``None``: others'. Of what
        stands between a workload and its pods (a ReplicaSet), it is the workload."""
        where, called = str(involved.get("namespace") or ""), str(involved.get("name") or "")
        if involved.get("kind") == "Pod":
            pod = self._pods.get((where, called))
            if pod is None or uid(pod) != involved.get("uid") or self._local(pod) is None:
                return None
            return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": called, "namespace": where, "uid": uid(pod)}}
        return self._workload(where, involved)

    async def run(self) -> None:
        """Never returns. Asks whose the ReplicaSets and Jobs between are. One that cannot be asked for holds up no other."""
        said = ""
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                while self._unknown:
                    failed: ApiError | None = None
                    for key, (kind, called, where) in list(self._unknown.items()):
                        if self._precedence is not None:
                            await self._precedence.after()
                        try:
                            self._remember(key, controller_of(await self._member.client.get(kind, called, where)))
                        except ApiError as error:
                            if error.code != 404:
                                failed = error
                                continue
                            self._remember(key, None)
                        self._unknown.pop(key, None)
                    self._changed()
                    if failed is not None:
                        self._member.contact.missed(failed)
                        if failed.code != 503 and failed.message != said:
                            said = failed.message
                            log.warning("whose some pods are cannot be found out, so they are not shown at the hub: %s", said)
                        await self._clock.sleep(RETRY_SECONDS)
        finally:
            tasks = [task for tasks in self._followed.values() for task in tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _remember(self, key: str, owner: dict[str, Any] | None) -> None:
        self._chains[key] = owner
        if owner is not None:
            self._below[str(owner.get("uid"))].add(key)
        if len(self._chains) > self._most:
            self._chains = {each: above for each, above in self._chains.items() if each in self._under}
            self._most = max(MAX_CHAINS, 2 * len(self._chains))
            self._below.clear()
            for each, above in self._chains.items():
                if above is not None:
                    self._below[str(above.get("uid"))].add(each)

    def _follower(self, where: str) -> Follower:
        def on_list(found: ObjList) -> None:
            self._drop(where)
            for pod in found.items:
                self._keep(pod)
            self._changed()

        def on_event(event: WatchEvent) -> None:
            if event.type == "DELETED":
                self._forget((where, name(event.object)))
            else:
                self._keep(event.object)
            self._changed()

        return Follower(self._member.client, self._member.contact, self._clock, POD, where, on_list=on_list, on_event=on_event)

    def _keep(self, pod: Obj) -> None:
        metadata, status = pod["metadata"], pod.get("status") or {}
        key = namespace(pod), name(pod)
        self._forget(key)
        if (owner := controller_of(pod)) is not None:
            self._under[str(owner.get("uid"))].add(key)
        self._pods[key] = {
            "metadata": {key: metadata[key] for key in _METADATA if key in metadata},
            "status": {key: status[key] for key in _STATUS if key in status},
        }

    def _forget(self, key: tuple[str, str]) -> None:
        known = self._pods.pop(key, None)
        owner = None if known is None else controller_of(known)
        if owner is not None:
            above = str(owner.get("uid"))
            self._under[above].discard(key)
            if not self._under[above]:
                del self._under[above]

    def _drop(self, where: str) -> None:
        for key in [key for key in self._pods if key[0] == where]:
            self._forget(key)

    def _local(self, pod: Obj) -> Obj | None:
        owner = controller_of(pod)
        if owner is None:
            found = self._applier.ours(ObjectRef("", "Pod", namespace(pod), name(pod)), uid(pod))
            if found is None:
                return None
            # The hub's own Pod has one uid at the hub and here.
            return {"metadata": pod["metadata"] | {"uid": uid(found)}, "spec": found.get("spec") or {}, "status": pod["status"]}
        manifest = self._workload(namespace(pod), owner)
        return None if manifest is None else shown(pod, manifest)

    def _workload(self, where: str, owner: Mapping[str, Any]) -> Obj | None:
        """The manifest of the workload that ``owner`` is, or is of."""
        found = self._applier.ours(_ref(where, owner), str(owner.get("uid")))
        if found is not None or owner.get("kind") not in _BETWEEN:
            return found
        key = str(owner.get("uid"))
        if key not in self._chains:
            self._unknown[key] = _BETWEEN[str(owner["kind"])], str(owner.get("name")), where
            self._asked.set()
            return None
        above = self._chains[key]
        return None if above is None else self._applier.ours(_ref(where, above), str(above.get("uid")))


def _ref(where: str, owner: Mapping[str, Any]) -> ObjectRef:
    group = str(owner.get("apiVersion") or "").rpartition("/")[0]
    return ObjectRef(group, str(owner.get("kind")), where, str(owner.get("name")))


def shown(pod: Obj, manifest: Obj) -> Obj:
    """A pod of a workload as its site shows it: owned by the hub's object, with the template's spec and labels, and what
    controllers add to those. What webhooks of the cluster add stays there."""
    template = pod_template(manifest)
    said = (template.get("metadata") or {}).get("labels") or {}
    metadata = pod["metadata"] | {
        "labels": {k: v for k, v in labels(pod).items() if k in said or k in _ADDED},
        "ownerReferences": [owner_reference(manifest)],
    }
    return {"metadata": metadata, "spec": template.get("spec") or {}, "status": pod["status"]}
