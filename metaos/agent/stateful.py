"""StatefulSets at one site: ordinals one after another, partitions, and rollouts that a broken pod cannot hold up. Pure.

Source: ``pkg/controller/statefulset/stateful_set_control.go`` of Kubernetes. One thing is better here: a pod that is not
ready and is to be replaced anyway is replaced, not waited for, so that a rollout that is stuck can be rolled back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metaos.agent.workloads import Actions, PodView, Revisions, soonest
from metaos.resources.meta import Obj, generation, name
from metaos.resources.workload import replicas as wanted_replicas
from metaos.resources.workload import resolve


def ordinals(workload: Obj) -> range:
    start = int(((workload.get("spec") or {}).get("ordinals") or {}).get("start") or 0)
    return range(start, start + wanted_replicas(workload))


def _rolling(workload: Obj) -> dict[str, Any] | None:
    """The parameters of a rolling update; ``None`` where pods are replaced only when someone deletes them."""
    strategy = (workload.get("spec") or {}).get("updateStrategy") or {}
    return None if strategy.get("type") == "OnDelete" else strategy.get("rollingUpdate") or {}


def revision_of(workload: Obj, ordinal: int, revisions: Revisions) -> str:
    """Of which revision a new pod is: those below the partition stay what they were."""
    rolling = _rolling(workload)
    below = rolling is not None and ordinal < ordinals(workload).start + int(rolling.get("partition") or 0)
    return revisions.current if below else revisions.update


def stateful(workload: Obj, pods: Sequence[PodView], revisions: Revisions, now: float) -> Actions:
    """At most one pod for each ordinal. ``OrderedReady``: one step at a time, each waiting for all before it."""
    spec, wanted = workload.get("spec") or {}, ordinals(workload)
    minimum = float(spec.get("minReadySeconds") or 0)
    parallel = spec.get("podManagementPolicy") == "Parallel"
    by_ordinal = {p.ordinal: p for p in sorted(pods, key=lambda p: p.created)}
    again = soonest([p for p in pods if p.living], minimum, now)
    delete: list[str] = []
    create: list[tuple[int, str]] = []
    for ordinal in wanted:
        pod = by_ordinal.get(ordinal)
        if pod is None:
            create.append((ordinal, revision_of(workload, ordinal, revisions)))
        elif pod.ended and not pod.deleting:
            delete.append(pod.uid)
        elif not pod.available(minimum, now):
            if _hopeless(workload, pod, revisions):
                delete.append(pod.uid)
        else:
            continue
        if not parallel:
            return Actions(tuple(create), tuple(delete), again=again)
    beyond = sorted((p for p in pods if p.ordinal not in wanted), key=lambda p: -p.ordinal)
    if parallel:
        delete += [p.uid for p in beyond if not p.deleting]
    elif beyond:
        return Actions(delete=() if beyond[0].deleting else (beyond[0].uid,))
    if create or delete:
        return Actions(tuple(create), tuple(delete), again=again)
    return Actions(delete=tuple(_update(workload, by_ordinal, revisions, minimum, now)), again=again)


def _hopeless(workload: Obj, pod: PodView, revisions: Revisions) -> bool:
    """Not ready, and of a revision that nobody wants here any more."""
    if _rolling(workload) is None or pod.deleting or pod.ready:
        return False
    target = revision_of(workload, pod.ordinal, revisions)
    return pod.hash != target and (target == revisions.update or pod.hash == revisions.update)


def _update(workload: Obj, by_ordinal: dict[int, PodView], revisions: Revisions, minimum: float, now: float) -> list[str]:
    """The next pods to replace: from the highest ordinal down to the partition, as many as may be missing."""
    rolling = _rolling(workload)
    if rolling is None:
        return []
    wanted = ordinals(workload)
    limit = max(1, resolve(rolling.get("maxUnavailable", 1), len(wanted), up=True))
    missing = sum(not by_ordinal[i].available(minimum, now) for i in wanted)
    found: list[str] = []
    for ordinal in reversed(wanted[int(rolling.get("partition") or 0) :]):
        pod = by_ordinal[ordinal]
        if pod.hash != revisions.update and not pod.deleting:
            if missing + len(found) >= limit:
                break
            found.append(pod.uid)
    return found


def complete(workload: Obj, pods: Sequence[PodView], revisions: Revisions) -> bool:
    """Whether a rolling update has reached every pod, so that its revision becomes the current one."""
    wanted = ordinals(workload)
    good = [p for p in pods if p.ready and p.hash == revisions.update and p.ordinal in wanted]
    return _rolling(workload) is not None and len(good) == len(wanted) == len(pods)


def stateful_status(workload: Obj, pods: Sequence[PodView], revisions: Revisions, now: float) -> dict[str, Any]:
    minimum = float((workload.get("spec") or {}).get("minReadySeconds") or 0)
    living = [p for p in pods if p.living]
    return {
        "observedGeneration": generation(workload),
        "replicas": len(pods),
        "readyReplicas": sum(p.ready for p in living),
        "availableReplicas": sum(p.available(minimum, now) for p in living),
        "currentReplicas": sum(p.hash == revisions.current for p in living),
        "updatedReplicas": sum(p.hash == revisions.update for p in living),
        "currentRevision": f"{name(workload)}-{revisions.current}",
        "updateRevision": f"{name(workload)}-{revisions.update}",
        "collisionCount": 0,
    }
