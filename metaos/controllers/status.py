"""Status: rolls what the sites report up into the object that the user applied, so that ``kubectl get|wait|rollout`` just work.

Counts are summed; a condition holds if it holds everywhere; ``observedGeneration`` moves only when every chosen site has
seen it. Sites that are being left count for availability until their replacement is ready.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.concern import on_health, workload_of, works_by_source
from metaos.controllers.facts import finished, placement_name
from metaos.controllers.render import (
    available,
    cluster_of,
    manifest,
    overridden,
    paused,
    reported,
    source_label,
    source_of,
    template_of,
)
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.precedence import Turn
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.meta import (
    Obj,
    ObjectRef,
    deleting,
    is_true,
    namespace,
    ref,
    resource_version,
    with_condition,
)
from metaos.resources.reading import concerns
from metaos.resources.workload import replicas
from metaos.scheduler.rollout import NONE, bounds_of

NAME = "status"
#: What several sites report of one object within this time becomes one write, unless one of them has become available, or is not
#: so any more.
COALESCE_SECONDS = 0.1
#: What is summed over sites, by kind.
COUNTS: dict[str, tuple[str, ...]] = {
    "Deployment": ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"),
    "StatefulSet": ("replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"),
    "DaemonSet": (
        "currentNumberScheduled",
        "desiredNumberScheduled",
        "numberAvailable",
        "numberMisscheduled",
        "numberReady",
        "numberUnavailable",
        "updatedNumberScheduled",
    ),
    "Job": ("active", "ready", "succeeded", "failed", "terminating"),
    "CronJob": (),
}
#: Shown even when they are zero, as Kubernetes does.
ALWAYS = {
    "DaemonSet": ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"),
    "StatefulSet": ("replicas", "availableReplicas"),
    "Job": ("ready", "terminating"),
}


def rolled_up(obj: Obj, chosen: Mapping[str, Mapping[str, Any]], left: Sequence[Mapping[str, Any]], now: float) -> dict[str, Any]:
    """The user's object's status. ``chosen``: site → the entry that its Work reports (``status``, ``observedGeneration``), empty
    where it has not reported; ``left``: entries of sites that are being left and still count."""
    kind = str(obj.get("kind"))
    entries = [*chosen.values(), *left]
    statuses = [e.get("status") or {} for e in entries]
    status: dict[str, Any] = {}
    for count in COUNTS[kind]:
        total = sum(int(s.get(count) or 0) for s in statuses)
        if total or count in ALWAYS.get(kind, ()):
            status[count] = total
    if kind == "Deployment":
        wanted = int((obj.get("spec") or {}).get("replicas", 1))
        missing = max(0, wanted - int(status.get("availableReplicas") or 0))
        status.pop("unavailableReplicas", None)
        if missing:
            status["unavailableReplicas"] = missing
    if kind in ("Deployment", "StatefulSet", "DaemonSet"):
        seen = min([int(e.get("observedGeneration") or 0) for e in chosen.values()], default=0)
        if seen:
            status["observedGeneration"] = seen
    for word in (
        *(("updateRevision",) if kind == "StatefulSet" else ()),
        "lastScheduleTime",
        "lastSuccessfulTime",
        "startTime",
        "completionTime",
    ):
        found = [s[word] for s in statuses if s.get(word)]
        if found:
            status[word] = min(found) if word == "startTime" else max(found)
    # A rollout is over when it is over everywhere.
    current = [s["currentRevision"] for s in statuses if s.get("currentRevision")]
    if current:
        status["currentRevision"] = next((r for r in current if r != status.get("updateRevision")), current[0])
    for word in ("completedIndexes", "failedIndexes"):
        found = [s[word] for s in statuses if word in s]
        if found:
            status[word] = ",".join(f for f in found if f)
    if kind == "CronJob":
        active = [a for s in statuses for a in s.get("active") or ()]
        if active:
            status["active"] = active
    conditions = _conditions(obj, [e.get("status") or {} for e in chosen.values()], status, now)
    if conditions:
        status["conditions"] = conditions
    return status


def _conditions(obj: Obj, statuses: Sequence[Mapping[str, Any]], status: Mapping[str, Any], now: float) -> list[dict[str, Any]]:
    before = (obj.get("status") or {}).get("conditions") or []
    if not statuses:
        return [dict(c) for c in before]
    result: list[dict[str, Any]] = []
    kinds = sorted({str(c["type"]) for s in statuses for c in s.get("conditions") or ()})
    for kind in kinds:
        found = [next((c for c in s.get("conditions") or () if c.get("type") == kind), None) for s in statuses]
        bad = next((c for c in found if c is not None and c.get("status") != "True"), None)
        missing = any(c is None for c in found)
        some = bad or next(c for c in found if c is not None)
        holds = "True" if bad is None and not missing else "False" if bad is not None else "Unknown"
        if kind in ("Failed", "FailureTarget"):
            # A failure anywhere is a failure.
            good = next((c for c in found if c is not None and c.get("status") == "True"), None)
            holds, some = ("True", good) if good else ("False", some)
        if kind == "Progressing" and bad is None:
            # Complete is who is complete everywhere.
            some = next((c for c in found if c is not None and c.get("reason") != "NewReplicaSetAvailable"), some)
        if kind == "Available" and obj.get("kind") == "Deployment":
            # What is allowed is allowed on the whole, whatever part of it a site has.
            bounds = bounds_of(obj, replicas(obj)) or NONE
            good = int(status.get("availableReplicas") or 0) >= replicas(obj) - bounds.unavailable
            holds = "True" if good else "False"
            some = {
                "reason": "MinimumReplicasAvailable" if good else "MinimumReplicasUnavailable",
                "message": f"Deployment {'has' if good else 'does not have'} minimum availability.",
            }
        old = [c for c in before if c.get("type") == kind]
        result += with_condition(old, kind, holds, str(some.get("reason") or kind), str(some.get("message") or ""), now)
    if paused(obj):
        was = [c for c in before if c.get("type") == "Progressing"]
        result = [c for c in result if c["type"] != "Progressing"]
        result += with_condition(was, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", now)
    for condition in result:
        if obj.get("kind") == "Deployment":
            condition.setdefault("lastUpdateTime", condition["lastTransitionTime"])
        elif obj.get("kind") == "Job":
            condition.setdefault("lastProbeTime", condition["lastTransitionTime"])
    return result


def waits(obj: Obj, found: Obj, site: str, policies: Sequence[Obj]) -> bool:
    """Whether a site was not told the template yet that the user wants: it is another's turn, or the rollout is paused."""
    if obj.get("kind") not in ("Deployment", "DaemonSet"):
        return False
    wanted = obj if not policies else overridden(manifest(obj), site, policies)
    return bool(template_of(found) != (wanted.get("spec") or {}).get("template"))


def begins(obj: Obj, entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether nothing is known of a Deployment that was placed, ever."""
    told = bool(obj.get("status")) or any(e.get("status") for e in entries)
    return obj.get("kind") == "Deployment" and bool(entries) and not told and not paused(obj)


def _waiting(status: Mapping[str, Any]) -> dict[str, Any]:
    """What it runs is not what the user wants."""
    found = {k: v for k, v in status.items() if k not in ("updatedReplicas", "updatedNumberScheduled")}
    if "conditions" in found:
        # It has not finished; whether it gets on is said by those whose turn it is.
        found["conditions"] = [
            c | {"reason": "ReplicaSetUpdated", "message": "other sites come first"}
            if c.get("type") == "Progressing" and c.get("status") == "True"
            else c
            for c in found["conditions"]
        ]
    return found


class StatusReconciler:
    """Keys are workloads and claims."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._objects = {k.kind: manager.informer(k) for k in (*scheme.WORKLOADS, scheme.PERSISTENT_VOLUME_CLAIM)}
        self._placements = manager.informer(scheme.PLACEMENT)
        self._policies = manager.informer(scheme.PLACEMENT_POLICY)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._works = works_by_source(manager)
        #: As which revision statuses were written that the informer has not shown yet. Bounded by the objects.
        self._wrote: dict[ObjectRef, str] = {}

    def has_written(self, about: ObjectRef, found: Obj | None) -> bool:
        """Whether the news of an object is the status that was just written here, which is no news."""
        wrote = self._wrote.pop(about, "")
        return found is not None and wrote == resource_version(found)

    async def reconcile(self, about: ObjectRef) -> Result:
        # Where this status has not been seen yet, what follows compares with an older one: its news is looked at after all.
        self._wrote.pop(about, None)
        obj = self._objects[about.kind].get(about.name, about.namespace)
        if obj is None or deleting(obj):
            return DONE
        works = {cluster_of(w): w for w in self._works.by_index("source", source_label(about)) if not deleting(w)}
        if about.kind == "PersistentVolumeClaim":
            return await self._claim(obj, bool(works))
        placement = self._placements.get(placement_name(about), about.namespace)
        if placement is None or (finished(obj) and not works):
            # How a Job has ended is known for good, also when no site keeps it any more.
            return DONE
        sites = [c["name"] for c in placement["spec"].get("clusters") or ()]
        chosen = {site: self._entry(works.get(site), site) for site in sites}
        policies = [p for p in self._policies.list(about.namespace) if concerns(p, obj)]
        for site, entry in chosen.items():
            if entry.get("status") and waits(obj, works[site], site, policies):
                chosen[site] = {**entry, "status": _waiting(entry["status"])}
        healthy = bool(sites) and all(site in works and self._ready(site) and available(works[site]) for site in sites)
        left = [] if healthy else [self._entry(w, site) for site, w in works.items() if site not in chosen]
        if begins(obj, [*chosen.values(), *left]) and all(map(self._ready, sites)):
            return DONE  # The sites tell of it in a moment, and until then there is nothing to say but what its spec says.
        status = rolled_up(obj, chosen, left, self._clock.now())
        if status != (obj.get("status") or {}):
            answer = await self._client.update(obj | {"status": status}, subresource="status")
            self._wrote[about] = resource_version(answer)
        return DONE

    def _ready(self, site: str) -> bool:
        cluster = self._clusters.get(site)
        return cluster is not None and is_true(cluster, "Ready")

    def _entry(self, work: Obj | None, site: str) -> Mapping[str, Any]:
        """What a site reports; from a lost site, what it last said without counting anything as ready."""
        if work is None:
            return {}
        found = dict(reported(work))
        if not self._ready(site) and found.get("status"):
            lost = ("readyReplicas", "availableReplicas", "numberReady", "numberAvailable", "ready", "active")
            found["status"] = {k: v for k, v in found["status"].items() if k not in lost}
        return found

    async def _claim(self, obj: Obj, bound: bool) -> Result:
        """Claims are local directories at their site: bound as soon as a site has them."""
        phase = "Bound" if bound else "Pending"
        status: dict[str, Any] = {"phase": phase}
        if bound:
            spec = obj.get("spec") or {}
            status["accessModes"] = spec.get("accessModes") or []
            status["capacity"] = (spec.get("resources") or {}).get("requests") or {}
        if (obj.get("status") or {}).get("phase") != phase:
            await self._client.update(obj | {"status": status}, subresource="status")
        return DONE


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: when a Work, a Placement, or the object itself has changed, and when a site comes or goes."""
    kinds = {k.kind: k for k in scheme.WORKLOADS if k.kind in COUNTS}

    def itself(obj: Obj) -> list[ObjectRef]:
        return [] if namespace(obj).startswith("nemo-") else [ref(obj)]

    def of_work(obj: Obj) -> list[ObjectRef]:
        about = source_of(obj)
        return [about] if about.kind in kinds or about.kind == "PersistentVolumeClaim" else []

    def of_placement(obj: Obj) -> list[ObjectRef]:
        about = workload_of(obj)
        return [about] if about is not None and about.kind in kinds else []

    reconciler = StatusReconciler(manager, client, clock)
    manager.add(reconciler, [(scheme.PLACEMENT, of_placement)], turn=Turn.LAST)

    def on_object(old: Obj | None, new: Obj | None) -> None:
        for about in itself(new or old or {}):
            if not reconciler.has_written(about, new):
                manager.enqueue(NAME, about)

    for kind in (*kinds.values(), scheme.PERSISTENT_VOLUME_CLAIM):
        manager.informer(kind).on_change(on_object)

    def on_work(old: Obj | None, new: Obj | None) -> None:
        turned = old is None or new is None or is_true(old, "Available") != is_true(new, "Available")
        for about in of_work(new or old or {}):
            manager.enqueue(NAME, about, 0.0 if turned else COALESCE_SECONDS)

    manager.informer(scheme.WORK).on_change(on_work)
    on_health(manager, lambda about: manager.enqueue(NAME, about) if about.kind in kinds else None)
