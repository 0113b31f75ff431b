"""Revisions: the history of pod templates, so that ``kubectl rollout history|undo`` find what they look for.

A Deployment's history are ReplicaSets (records at the hub: sites run the pods, and no ReplicaSet is ever sent to one), that
of a StatefulSet or DaemonSet are ControllerRevisions. A template that comes back keeps its record and gets the newest number.
Source: ``pkg/controller/deployment/sync.go`` and ``pkg/controller/history`` of Kubernetes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.render import LAST_APPLIED, paused
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.precedence import Turn
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    REVISION,
    SYSTEM_NAMESPACE,
    Obj,
    ObjectRef,
    annotations,
    condition,
    controller_of,
    deleting,
    generation,
    labels,
    name,
    namespace,
    owner_reference,
    ref,
    uid,
    with_condition,
)
from metaos.resources.workload import REPLICA_SET_NOT_RUN, pod_template, replicas, template_hash

NAME = "revisions"
DEPLOYMENT_HASH, REVISION_HASH = "pod-template-hash", "controller.kubernetes.io/hash"
DEFAULT_LIMIT = 10
#: Counts in a Deployment's status change often while it rolls out; its records follow at this pace.
COUNT_SECONDS = 0.5
#: The condition of a ReplicaSet of a user's own.
NOT_RUN = "ReplicaFailure"
#: Annotations of a Deployment that its records do not get.
_NOT_COPIED = (LAST_APPLIED, REVISION)


def number(record: Obj) -> int:
    """The revision that a record stands for; 0 where it says none."""
    if record.get("kind") == "ControllerRevision":
        return int(record.get("revision") or 0)
    text = annotations(record).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def hash_of(record: Obj) -> str:
    return labels(record).get(DEPLOYMENT_HASH if record.get("kind") == "ReplicaSet" else REVISION_HASH, "")


@dataclass(frozen=True, slots=True)
class Plan:
    """``records``: all that shall be, whole; ``remove``: those beyond the limit; ``revision``: the present one's number."""

    records: tuple[Obj, ...]
    remove: tuple[Obj, ...]
    revision: int


def plan(workload: Obj, history: Sequence[Obj]) -> Plan:
    """What the history of ``workload`` shall be. Pure."""
    spec, digest = workload.get("spec") or {}, template_hash(workload)
    waits = paused(workload) and not any(hash_of(r) == digest for r in history)
    if waits:
        # The template that runs is the newest one until the rollout is resumed.
        if not history:
            return Plan((), (), 0)
        digest = hash_of(max(history, key=lambda r: (number(r), name(r))))
    newest = max((number(r) for r in history if hash_of(r) != digest), default=0)
    present = next((r for r in history if hash_of(r) == digest), None)
    revision = number(present) if present is not None and number(present) > newest else newest + 1
    old = sorted((r for r in history if hash_of(r) != digest), key=lambda r: (number(r), name(r)))
    limit = spec.get("revisionHistoryLimit")
    surplus = max(0, len(old) - (DEFAULT_LIMIT if limit is None else int(limit)))
    if workload.get("kind") != "Deployment":
        return Plan((_controller_revision(workload, digest, revision),), tuple(old[:surplus]), revision)
    status = workload.get("status") or {}
    updated = int(status.get("updatedReplicas") or 0) if int(status.get("observedGeneration") or 0) >= generation(workload) else 0
    total, ready, available = (int(status.get(word) or 0) for word in ("replicas", "readyReplicas", "availableReplicas"))
    if waits:
        assert present is not None
        wanted = present["spec"] | {"replicas": replicas(workload)}
        return Plan((present | {"spec": wanted, "status": _counts((total, ready, available))},), tuple(old[:surplus]), revision)
    records = [
        _replica_set(workload, digest, revision, replicas(workload), (updated, min(ready, updated), min(available, updated)))
    ]
    for record in reversed(old[surplus:]):
        # What is not of the present template is counted as of the one before it.
        left = (total - updated, max(0, ready - updated), max(0, available - updated)) if len(records) == 1 else (0, 0, 0)
        records.append(record | {"spec": record["spec"] | {"replicas": left[0]}, "status": _counts(left)})
    return Plan(tuple(records), tuple(old[:surplus]), revision)


def _replica_set(deployment: Obj, digest: str, revision: int, wanted: int, counts: tuple[int, int, int]) -> Obj:
    template = pod_template(deployment)
    inherited = (template.get("metadata") or {}).get("labels") or {}
    own = {**inherited, DEPLOYMENT_HASH: digest}
    spec = deployment["spec"]
    selector = spec.get("selector") or {}
    kept = {k: v for k, v in annotations(deployment).items() if k not in _NOT_COPIED}
    record: Obj = dict(scheme.REPLICA_SET.empty(f"{name(deployment)}-{digest}", namespace(deployment)))
    record["metadata"] |= {
        "labels": own,
        "annotations": {**kept, REVISION: str(revision)},
        "ownerReferences": [owner_reference(deployment)],
    }
    record["spec"] = {
        "replicas": wanted,
        "selector": selector | {"matchLabels": {**(selector.get("matchLabels") or {}), DEPLOYMENT_HASH: digest}},
        "template": template | {"metadata": {**(template.get("metadata") or {}), "labels": own}},
    }
    if spec.get("minReadySeconds"):
        record["spec"]["minReadySeconds"] = spec["minReadySeconds"]
    record["status"] = _counts(counts)
    return record


def _counts(counts: tuple[int, int, int]) -> dict[str, Any]:
    words = ("replicas", "readyReplicas", "availableReplicas")
    found = {word: count for word, count in zip(words, counts, strict=True) if count or word == "replicas"}
    if counts[0]:
        found["fullyLabeledReplicas"] = counts[0]
    return found


def _controller_revision(workload: Obj, digest: str, revision: int) -> Obj:
    template = pod_template(workload)
    inherited = (template.get("metadata") or {}).get("labels") or {}
    record: Obj = dict(scheme.CONTROLLER_REVISION.empty(f"{name(workload)}-{digest}", namespace(workload)))
    record["metadata"] |= {"labels": {**inherited, REVISION_HASH: digest}, "ownerReferences": [owner_reference(workload)]}
    kept = {k: v for k, v in annotations(workload).items() if k not in _NOT_COPIED}
    if kept:
        record["metadata"]["annotations"] = kept
    return record | {"data": {"spec": {"template": {**template, "$patch": "replace"}}}, "revision": revision}


_PARTS = ("labels", "annotations")


def _difference(old: dict[str, str], new: dict[str, str]) -> dict[str, str | None]:
    return {k: v for k, v in new.items() if old.get(k) != v} | {k: None for k in old if k not in new}


class RevisionsReconciler:
    """Keys are Deployments, StatefulSets and DaemonSets, and ReplicaSets that belong to none."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._objects = {k.kind: manager.informer(k) for k in KINDS}
        self._records = {k.kind: manager.informer(k) for k in (scheme.REPLICA_SET, scheme.CONTROLLER_REVISION)}
        for informer in self._records.values():
            informer.add_index("controller", lambda r: [str((controller_of(r) or {}).get("uid") or "")])

    async def reconcile(self, about: ObjectRef) -> Result:
        if about.kind == "ReplicaSet":
            await self._alone(self._records["ReplicaSet"].get(about.name, about.namespace))
            return DONE
        workload = self._objects[about.kind].get(about.name, about.namespace)
        if workload is None or deleting(workload):
            return DONE
        records = self._records["ReplicaSet" if about.kind == "Deployment" else "ControllerRevision"]
        history = [r for r in records.by_index("controller", uid(workload)) if not deleting(r)]
        wanted = plan(workload, history)
        held = {name(r): r for r in history}
        for record in wanted.records:
            await self._write(held.get(name(record)), record)
        for record in wanted.remove:
            await self._remove(record)
        if about.kind == "Deployment" and wanted.revision and annotations(workload).get(REVISION) != str(wanted.revision):
            patch = {"metadata": {"uid": uid(workload), "annotations": {REVISION: str(wanted.revision)}}}
            await self._client.patch(scheme.DEPLOYMENT, about.name, about.namespace, patch)
        return DONE

    async def _alone(self, found: Obj | None) -> None:
        """A ReplicaSet that no Deployment made is nobody's record, and is not run: it says so."""
        if found is None or deleting(found) or controller_of(found) is not None or condition(found, NOT_RUN) is not None:
            return
        conditions = with_condition((), NOT_RUN, "True", "NotRun", REPLICA_SET_NOT_RUN, self._clock.now())
        status = {"replicas": 0, "observedGeneration": generation(found), "conditions": conditions}
        await self._client.update(found | {"status": status}, subresource="status")

    async def _write(self, held: Obj | None, record: Obj) -> None:
        kind = scheme.kind_of(record)
        if held is None:
            # One of the same name that belongs to another is in the way: tried again, until it has gone.
            made = record | {"status": record["status"] | {"observedGeneration": 1}} if kind is scheme.REPLICA_SET else record
            held = await self._client.create(made)
        metadata = {part: _difference(held["metadata"].get(part) or {}, record["metadata"].get(part) or {}) for part in _PARTS}
        patch: dict[str, Any] = {"metadata": metadata} if any(metadata.values()) else {}
        if kind is scheme.REPLICA_SET and held["spec"].get("replicas") != record["spec"]["replicas"]:
            patch["spec"] = {"replicas": record["spec"]["replicas"]}
        if kind is scheme.CONTROLLER_REVISION and held.get("revision") != record["revision"]:
            patch["revision"] = record["revision"]
        if patch:
            held = await self._client.patch(kind, name(record), namespace(record), patch)
        status = {k: v for k, v in (held.get("status") or {}).items() if k != "observedGeneration"}
        if kind is scheme.REPLICA_SET and status != record["status"]:
            status = record["status"] | {"observedGeneration": generation(held)}
            await self._client.update(held | {"status": status}, subresource="status")

    async def _remove(self, record: Obj) -> None:
        try:
            await self._client.delete(scheme.kind_of(record), name(record), namespace(record), uid=uid(record))
        except ApiError as error:
            if error.code not in (404, 409):
                raise


KINDS = (scheme.DEPLOYMENT, scheme.STATEFUL_SET, scheme.DAEMON_SET)


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: at once when a template may have changed, a moment later when only counts have, and when a record goes."""

    def of_record(obj: Obj) -> list[ObjectRef]:
        owner = controller_of(obj) or {}
        group = str(owner.get("apiVersion") or "").rpartition("/")[0]
        known = {(k.group, k.kind) for k in KINDS}
        if (group, owner.get("kind")) not in known:
            return []
        return [ObjectRef(group, str(owner["kind"]), namespace(obj), str(owner.get("name")))]

    manager.add(RevisionsReconciler(manager, client, clock), [], turn=Turn.LAST)

    def on_workload(old: Obj | None, new: Obj | None) -> None:
        if new is None or namespace(new).startswith(("nemo-cluster-", SYSTEM_NAMESPACE)):
            return
        same = old is not None and generation(old) == generation(new) and annotations(old) == annotations(new)
        if not same or old is None:
            manager.enqueue(NAME, ref(new))
        elif new.get("kind") == "Deployment" and old.get("status") != new.get("status"):
            manager.enqueue(NAME, ref(new), COUNT_SECONDS)

    def on_record(old: Obj | None, new: Obj | None) -> None:
        if new is None and old is not None:
            for about in of_record(old):
                manager.enqueue(NAME, about)
        elif new is not None and new.get("kind") == "ReplicaSet" and controller_of(new) is None:
            manager.enqueue(NAME, ref(new))

    for kind in KINDS:
        manager.informer(kind).on_change(on_workload)
    for kind in (scheme.REPLICA_SET, scheme.CONTROLLER_REVISION):
        manager.informer(kind).on_change(on_record)
