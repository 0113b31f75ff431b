"""From workloads to pods, at one site: what to create and what to delete. Pure; ``now`` in seconds since the epoch.

The rules are Kubernetes' own: rolling updates with surge and unavailable, one daemon per site; StatefulSets are in
:mod:`metaos.agent.stateful`, Jobs in :mod:`metaos.agent.jobs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metaos.resources.meta import Obj, format_time, generation, name, parse_time, with_condition
from metaos.resources.workload import replicas as wanted_replicas
from metaos.resources.workload import resolve, rolling_limits


@dataclass(frozen=True, slots=True)
class PodView:
    """What a decision sees of a pod. ``ordinal`` is −1 where there is none; ``ready_since`` is ``None`` while it is not ready."""

    uid: str
    name: str
    hash: str
    created: float
    phase: str = "Pending"
    ready_since: float | None = None
    deleting: bool = False
    ordinal: int = -1
    restarts: int = 0
    finished: float = 0.0
    #: (container, exit code) of those that have ended badly.
    exits: tuple[tuple[str, int], ...] = ()
    #: (type, status) of the pod's conditions.
    conditions: tuple[tuple[str, str], ...] = ()
    #: Ended by its workload's own decision: no failure.
    dismissed: bool = False

    @property
    def ready(self) -> bool:
        return self.ready_since is not None and not self.deleting

    @property
    def ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @property
    def living(self) -> bool:
        return not self.deleting and not self.ended

    def available(self, minimum: float, now: float) -> bool:
        """Ready for so long. Where that began in the future the clock was set back: it is not doubted then."""
        if not self.ready or self.ready_since is None:
            return False
        return self.ready_since + minimum <= now or self.ready_since > now


@dataclass(frozen=True, slots=True)
class Revisions:
    """Digests of a workload's pod template: the one that was rolled out last, and the one wanted now. Both the same but
    during a rollout, under a partition, and while it is paused."""

    current: str
    update: str


#: A pod to create: its ordinal (−1 without one) and the revision of its template.
New = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Actions:
    """``delete`` and ``dismiss``: uids; what is dismissed is no failure. ``again``: seconds until time alone changes a thing."""

    create: tuple[New, ...] = ()
    delete: tuple[str, ...] = ()
    dismiss: tuple[str, ...] = ()
    again: float | None = None


def soonest(pods: Sequence[PodView], minimum: float, now: float) -> float | None:
    """Seconds until the next of these has been ready for long enough."""
    since = [p.ready_since for p in pods if p.ready_since is not None and p.ready_since <= now < p.ready_since + minimum]
    return min(since) + minimum - now if since else None


def _minimum(workload: Obj) -> float:
    return float((workload.get("spec") or {}).get("minReadySeconds") or 0)


# -- Deployment --------------------------------------------------------------------------------------------


def deployment_limits(workload: Obj) -> tuple[int, int]:
    """(surge, unavailable) in pods. Both zero only where the hub says so: another site's turn comes first."""
    spec = workload.get("spec") or {}
    if (spec.get("strategy") or {}).get("type") == "Recreate":
        return 0, 0
    return rolling_limits((spec.get("strategy") or {}).get("rollingUpdate") or {}, wanted_replicas(workload))


def deployment(workload: Obj, pods: Sequence[PodView], revisions: Revisions, now: float) -> Actions:
    """Never more living pods are made than replicas and surge; no available one goes that is needed."""
    spec = workload.get("spec") or {}
    replicas, minimum = wanted_replicas(workload), _minimum(workload)
    ended = tuple(p.uid for p in pods if p.ended and not p.deleting)
    living = [p for p in pods if p.living]
    again = soonest(living, minimum, now)
    if spec.get("paused"):
        return _scale(living, replicas, revisions.current, ended, minimum, now)
    new = [p for p in living if p.hash == revisions.update]
    old = [p for p in living if p.hash != revisions.update]
    if (spec.get("strategy") or {}).get("type") == "Recreate":
        if old:
            return Actions(delete=(*ended, *(p.uid for p in old)))
        if any(p.deleting and p.hash != revisions.update for p in pods):
            return Actions(delete=ended)
        return _scale(new, replicas, revisions.update, ended, minimum, now)
    surge, unavailable = deployment_limits(workload)
    gone = _least_useful(new, minimum, now)[: max(0, len(new) - replicas)]
    spare = sum(p.available(minimum, now) for p in living if p not in gone) - (replicas - unavailable)
    for pod in _least_useful(old, minimum, now):
        if not pod.available(minimum, now):
            gone.append(pod)
        elif spare > 0:
            gone.append(pod)
            spare -= 1
    left = [p for p in living if p not in gone]
    idle = [p for p in _least_useful(left, minimum, now) if not p.available(minimum, now)]
    gone += idle[: max(0, len(left) - replicas - surge)]
    create = max(0, min(replicas - len(new), replicas + surge - len(living)))
    return Actions(((-1, revisions.update),) * create, (*ended, *(p.uid for p in gone)), again=again)


def _scale(living: list[PodView], replicas: int, hash: str, ended: tuple[str, ...], minimum: float, now: float) -> Actions:
    """So many pods, whatever their revision; new ones of the given one."""
    gone = _least_useful(living, minimum, now)[: max(0, len(living) - replicas)]
    create = max(0, replicas - len(living))
    return Actions(((-1, hash),) * create, (*ended, *(p.uid for p in gone)), again=soonest(living, minimum, now))


def _least_useful(pods: Sequence[PodView], minimum: float, now: float) -> list[PodView]:
    """Those that are not available first, then those not ready, then the youngest."""
    return sorted(pods, key=lambda p: (p.available(minimum, now), p.ready, -p.created, p.name))


def deployment_status(
    workload: Obj, pods: Sequence[PodView], revisions: Revisions, now: float, before: dict[str, Any]
) -> dict[str, Any]:
    """Counts, and the conditions Available and Progressing."""
    spec = workload.get("spec") or {}
    replicas, minimum = wanted_replicas(workload), _minimum(workload)
    living = [p for p in pods if p.living]
    available = sum(p.available(minimum, now) for p in living)
    updated = sum(p.hash == revisions.update for p in living)
    found: dict[str, Any] = {
        "observedGeneration": generation(workload),
        "replicas": len(living),
        "readyReplicas": sum(p.ready for p in living),
        "availableReplicas": available,
        "updatedReplicas": updated,
        "updateRevision": revisions.update,
    }
    if ending := sum(p.deleting and not p.ended for p in pods):
        found["terminatingReplicas"] = ending
    if available < replicas:
        found["unavailableReplicas"] = replicas - available
    good = available >= replicas - deployment_limits(workload)[1]
    conditions = with_condition(
        before.get("conditions") or (),
        "Available",
        "True" if good else "False",
        "MinimumReplicasAvailable" if good else "MinimumReplicasUnavailable",
        f"Deployment {'has' if good else 'does not have'} minimum availability.",
        now,
    )
    complete = updated >= replicas and available >= replicas and len(living) == updated
    if spec.get("paused"):
        conditions = with_condition(conditions, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", now)
    else:
        advanced = any(
            found[word] > int(before.get(word) or 0) for word in ("updatedReplicas", "readyReplicas", "availableReplicas")
        )
        advanced |= len(living) - updated < int(before.get("replicas") or 0) - int(before.get("updatedReplicas") or 0)
        conditions = _progress(workload, conditions, complete, advanced, now)
    return found | {"conditions": conditions}


def _progress(
    workload: Obj, conditions: list[dict[str, Any]], complete: bool, advanced: bool, now: float
) -> list[dict[str, Any]]:
    """The Progressing condition: complete, under way, or past its deadline since it last moved on (``lastUpdateTime``)."""
    old = next((c for c in conditions if c["type"] == "Progressing"), {})
    limit = (workload.get("spec") or {}).get("progressDeadlineSeconds")
    what = f'Deployment "{name(workload)}"'
    if complete:
        return with_condition(
            conditions, "Progressing", "True", "NewReplicaSetAvailable", f"{what} has successfully progressed.", now
        )
    since = parse_time(old.get("lastUpdateTime") or old["lastTransitionTime"]) if old.get("lastTransitionTime") else now
    under_way = old.get("reason") == "ReplicaSetUpdated"
    if under_way and not advanced and now > since + float(600 if limit is None else limit):
        return with_condition(
            conditions, "Progressing", "False", "ProgressDeadlineExceeded", f"{what} has timed out progressing.", now
        )
    if old.get("reason") == "ProgressDeadlineExceeded" and not advanced:
        return conditions
    found = with_condition(conditions, "Progressing", "True", "ReplicaSetUpdated", f"{what} is progressing.", now)
    fresh = advanced or not under_way
    return [c | {"lastUpdateTime": format_time(now if fresh else since)} if c["type"] == "Progressing" else c for c in found]


# -- DaemonSet ---------------------------------------------------------------------------------------------


def daemon(workload: Obj, pods: Sequence[PodView], revisions: Revisions, now: float) -> Actions:
    """One pod. With a surge the new one is available before the old one goes; with neither a surge nor any that may be
    unavailable, which only the hub says, the old one goes only when it is not available itself."""
    strategy = (workload.get("spec") or {}).get("updateStrategy") or {}
    minimum = _minimum(workload)
    gone = [p.uid for p in pods if p.ended and not p.deleting]
    living = _least_useful([p for p in pods if p.living], minimum, now)[::-1]
    new = [p for p in living if p.hash == revisions.update]
    old = [p for p in living if p.hash != revisions.update]
    again = soonest(living, minimum, now)
    if strategy.get("type") == "OnDelete":
        keep = living[:1]
        gone += [p.uid for p in living[1:]]
        wanted = 0 if keep or any(not p.ended for p in pods) or gone else 1
        return Actions(((-1, revisions.update),) * wanted, tuple(gone))
    gone += [p.uid for p in new[1:]]
    if resolve((strategy.get("rollingUpdate") or {}).get("maxSurge"), 1, up=True) > 0:
        if old and new[:1] and new[0].available(minimum, now):
            gone += [p.uid for p in old]
        else:
            useful = [p for p in old if p.available(minimum, now)][:1]
            gone += [p.uid for p in old if p not in useful]
        return Actions(() if new or gone else ((-1, revisions.update),), tuple(gone), again=again)
    kept = (strategy.get("rollingUpdate") or {}).get("maxUnavailable") == 0
    gone += [p.uid for p in old if not (kept and p.available(minimum, now))]
    busy = bool(living or gone) or any(p.deleting for p in pods)
    return Actions(() if busy else ((-1, revisions.update),), tuple(gone), again=again)


def daemon_status(workload: Obj, pods: Sequence[PodView], revisions: Revisions, now: float) -> dict[str, Any]:
    """Of the oldest pod, as Kubernetes counts: a new one beside it counts when it stands alone."""
    living = sorted((p for p in pods if p.living), key=lambda p: (p.created, p.name))[:1]
    available = any(p.available(_minimum(workload), now) for p in living)
    return {
        "observedGeneration": generation(workload),
        "desiredNumberScheduled": 1,
        "currentNumberScheduled": len(living),
        "numberReady": int(any(p.ready for p in living)),
        "numberAvailable": int(available),
        "numberMisscheduled": 0,
        "updatedNumberScheduled": int(any(p.hash == revisions.update for p in living)),
        "updateRevision": revisions.update,
        **({} if available else {"numberUnavailable": 1}),
    }
