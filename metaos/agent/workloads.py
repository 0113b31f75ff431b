"""From workloads to pods, at one site: what to create and what to delete. Pure; ``now`` in seconds since the epoch.

The rules are Kubernetes' own: rolling updates with surge and unavailable, ordinals one after another, one daemon per site,
completions and back-off of jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metaos.resources.meta import Obj, format_time, generation, name, parse_time, with_condition

JOB_BACKOFF_SECONDS, JOB_BACKOFF_LIMIT_SECONDS = 10.0, 360.0


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

    @property
    def ready(self) -> bool:
        return self.ready_since is not None and not self.deleting

    @property
    def ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    def available(self, minimum: float, now: float) -> bool:
        return self.ready and self.ready_since is not None and self.ready_since + minimum <= now


@dataclass(frozen=True, slots=True)
class Actions:
    """``create``: ordinals, −1 without one. ``delete``: uids. ``again``: seconds until time alone changes something."""

    create: tuple[int, ...] = ()
    delete: tuple[str, ...] = ()
    again: float | None = None


def resolve(value: Any, total: int, *, up: bool) -> int:
    """``25%`` or a number, of ``total``."""
    if isinstance(value, str) and value.endswith("%"):
        share = int(value[:-1]) * total
        return -(-share // 100) if up else share // 100
    return int(value or 0)


def plan(workload: Obj, pods: Sequence[PodView], hash: str, now: float) -> Actions:
    """The next actions for any kind but CronJob."""
    kind = workload.get("kind")
    if kind == "StatefulSet":
        return _stateful(workload, pods, hash)
    if kind == "DaemonSet":
        return _daemon(pods, hash)
    if kind == "Job":
        return _job(workload, pods, now)
    if kind == "Pod":
        return Actions(create=() if pods else (-1,))
    return _deployment(workload, pods, hash, now)


def _deployment(workload: Obj, pods: Sequence[PodView], hash: str, now: float) -> Actions:
    spec = workload.get("spec") or {}
    replicas = int(spec.get("replicas", 1))
    minimum = float(spec.get("minReadySeconds") or 0)
    ended = [p.uid for p in pods if p.ended and not p.deleting]
    living = [p for p in pods if not p.deleting and not p.ended]
    new = [p for p in living if p.hash == hash]
    old = [p for p in living if p.hash != hash]
    waits = [p.ready_since + minimum - now for p in living if p.ready_since is not None and p.ready_since + minimum > now]
    again = min(waits, default=None)
    if len(new) > replicas:
        # Unready ones first, then the youngest.
        surplus = sorted(new, key=lambda p: (p.ready, -p.created, p.name))[: len(new) - replicas]
        return Actions(delete=(*ended, *(p.uid for p in surplus), *(p.uid for p in old)), again=again)
    strategy = spec.get("strategy") or {}
    if strategy.get("type") == "Recreate":
        if old:
            return Actions(delete=(*ended, *(p.uid for p in old)))
        if any(p.deleting and p.hash != hash for p in pods):
            return Actions(delete=tuple(ended))
        return Actions(create=(-1,) * (replicas - len(new)), delete=tuple(ended), again=again)
    rolling = strategy.get("rollingUpdate") or {}
    surge = resolve(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = resolve(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    create = max(0, min(replicas - len(new), replicas + surge - len(living)))
    delete: list[str] = []
    if old:
        available = sum(p.available(minimum, now) for p in living)
        spare = available - (replicas - unavailable)
        for pod in sorted(old, key=lambda p: (p.available(minimum, now), p.created, p.name)):
            if not pod.available(minimum, now):
                delete.append(pod.uid)
            elif spare > 0:
                delete.append(pod.uid)
                spare -= 1
    return Actions((-1,) * create, (*ended, *delete), again)


def _stateful(workload: Obj, pods: Sequence[PodView], hash: str) -> Actions:
    spec = workload.get("spec") or {}
    replicas = int(spec.get("replicas", 1))
    parallel = spec.get("podManagementPolicy") == "Parallel"
    by_ordinal = {p.ordinal: p for p in pods}
    failed = [p.uid for p in pods if p.ended and not p.deleting]
    if failed:
        return Actions(delete=tuple(failed))
    beyond = sorted((p for p in pods if p.ordinal >= replicas), key=lambda p: -p.ordinal)
    missing = [i for i in range(replicas) if i not in by_ordinal]
    if parallel:
        create, delete = tuple(missing), tuple(p.uid for p in beyond if not p.deleting)
        if create or delete:
            return Actions(create, delete)
    else:
        for ordinal in range(replicas):
            pod = by_ordinal.get(ordinal)
            if pod is None:
                return Actions(create=(ordinal,))
            if not pod.ready:
                # One that is stuck in an old version is replaced by the new one rather than waited for.
                if pod.hash != hash and not pod.deleting and not beyond:
                    return Actions(delete=(pod.uid,))
                return Actions()
        if beyond:
            return Actions(delete=() if beyond[0].deleting else (beyond[0].uid,))
    if (spec.get("updateStrategy") or {}).get("type") == "OnDelete":
        return Actions()
    partition = int(((spec.get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition") or 0)
    for ordinal in range(replicas - 1, partition - 1, -1):
        pod = by_ordinal[ordinal]
        if pod.hash != hash:
            return Actions(delete=() if pod.deleting else (pod.uid,))
        if not pod.ready:
            return Actions()
    return Actions()


def _daemon(pods: Sequence[PodView], hash: str) -> Actions:
    stale = [p.uid for p in pods if not p.deleting and (p.hash != hash or p.ended)]
    if stale:
        return Actions(delete=tuple(stale))
    living = sorted((p for p in pods if not p.deleting), key=lambda p: (p.created, p.name))
    if len(living) > 1:
        return Actions(delete=tuple(p.uid for p in living[1:]))
    return Actions(create=() if pods else (-1,))


def job_finished(workload: Obj, pods: Sequence[PodView], now: float, started: float) -> tuple[str, str] | None:
    """(``Complete`` or ``Failed``, reason) once a job has ended."""
    spec = workload.get("spec") or {}
    succeeded = sum(p.phase == "Succeeded" for p in pods)
    completions = spec.get("completions")
    active = [p for p in pods if not p.ended and not p.deleting]
    if completions is None:
        if succeeded and not active:
            return "Complete", "CompletionsReached"
    elif succeeded >= int(completions):
        return "Complete", "CompletionsReached"
    failures = sum(p.phase == "Failed" for p in pods) + sum(p.restarts for p in pods if not p.ended)
    limit = spec.get("backoffLimit")
    if failures > (6 if limit is None else int(limit)):
        return "Failed", "BackoffLimitExceeded"
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and now >= started + float(deadline):
        return "Failed", "DeadlineExceeded"
    return None


def _job(workload: Obj, pods: Sequence[PodView], now: float) -> Actions:
    spec = workload.get("spec") or {}
    started = min((p.created for p in pods), default=now)
    ended = job_finished(workload, pods, now, started)
    active = [p for p in pods if not p.ended and not p.deleting]
    if ended is not None:
        return Actions(delete=tuple(p.uid for p in active))
    if spec.get("suspend"):
        return Actions(delete=tuple(p.uid for p in active))
    deadline = spec.get("activeDeadlineSeconds")
    again = None if deadline is None else started + float(deadline) - now
    parallelism = spec.get("parallelism")
    wanted = 1 if parallelism is None else int(parallelism)
    succeeded = sum(p.phase == "Succeeded" for p in pods)
    if spec.get("completions") is not None:
        wanted = min(wanted, int(spec["completions"]) - succeeded)
    elif succeeded:
        wanted = len(active)
    if len(active) > wanted:
        return Actions(delete=tuple(p.uid for p in sorted(active, key=lambda p: -p.created)[: len(active) - wanted]), again=again)
    failures = [p for p in pods if p.phase == "Failed"]
    if failures and len(active) < wanted:
        wait = min(JOB_BACKOFF_SECONDS * 2 ** (len(failures) - 1), JOB_BACKOFF_LIMIT_SECONDS)
        ready_at = max(p.finished for p in failures) + wait
        if now < ready_at:
            return Actions(again=min(ready_at - now, again or ready_at - now))
    if spec.get("completionMode") == "Indexed":
        taken = {p.ordinal for p in pods if not p.deleting and p.phase != "Failed"}
        free = [i for i in range(int(spec.get("completions") or 1)) if i not in taken]
        return Actions(tuple(free[: wanted - len(active)]), again=again)
    return Actions((-1,) * (wanted - len(active)), again=again)


# -- status ------------------------------------------------------------------------------------------------


def status(workload: Obj, pods: Sequence[PodView], hash: str, now: float, before: dict[str, Any]) -> dict[str, Any]:
    """A workload's status at this site, in its Kubernetes form."""
    kind = workload.get("kind")
    living = [p for p in pods if not p.deleting and not p.ended]
    if kind == "Job":
        return _job_status(workload, pods, now, before)
    if kind == "DaemonSet":
        ready, updated = sum(p.ready for p in living), sum(p.hash == hash for p in living)
        return {
            "observedGeneration": generation(workload),
            "desiredNumberScheduled": 1,
            "currentNumberScheduled": min(1, len(living)),
            "numberReady": ready,
            "numberAvailable": ready,
            "numberMisscheduled": 0,
            "updatedNumberScheduled": updated,
            **({"numberUnavailable": 1} if not ready else {}),
        }
    spec = workload.get("spec") or {}
    replicas, minimum = int(spec.get("replicas", 1)), float(spec.get("minReadySeconds") or 0)
    ready = sum(p.ready for p in living)
    available = sum(p.available(minimum, now) for p in living)
    updated = sum(p.hash == hash for p in living)
    found: dict[str, Any] = {"observedGeneration": generation(workload), "replicas": len(living)}
    found |= {"readyReplicas": ready, "availableReplicas": available, "updatedReplicas": updated}
    if kind == "StatefulSet":
        revision = f"{name(workload)}-{hash}"
        found |= {"currentReplicas": updated, "updateRevision": revision, "currentRevision": revision, "collisionCount": 0}
        return found
    missing = max(0, replicas - available)
    if missing:
        found["unavailableReplicas"] = missing
    unavailable = resolve(
        ((spec.get("strategy") or {}).get("rollingUpdate") or {}).get("maxUnavailable", "25%"), replicas, up=False
    )
    good = available >= replicas - unavailable
    conditions = with_condition(
        before.get("conditions") or (),
        "Available",
        "True" if good else "False",
        "MinimumReplicasAvailable" if good else "MinimumReplicasUnavailable",
        f"Deployment {'has' if good else 'does not have'} minimum availability.",
        now,
    )
    return found | {
        "conditions": _progress(workload, conditions, updated >= replicas and missing == 0, len(living) == updated, now)
    }


def _progress(
    workload: Obj, conditions: list[dict[str, Any]], complete: bool, only_new: bool, now: float
) -> list[dict[str, Any]]:
    """The Progressing condition: complete, under way, or past its deadline since the last change."""
    old = next((c for c in conditions if c["type"] == "Progressing"), {})
    deadline = float((workload.get("spec") or {}).get("progressDeadlineSeconds") or 600)
    if complete and only_new:
        message = f'Deployment "{name(workload)}" has successfully progressed.'
        return with_condition(conditions, "Progressing", "True", "NewReplicaSetAvailable", message, now)
    since = parse_time(old["lastTransitionTime"]) if old.get("lastTransitionTime") else now
    if old.get("reason") == "ReplicaSetUpdated" and now > since + deadline:
        message = f'Deployment "{name(workload)}" has timed out progressing.'
        return with_condition(conditions, "Progressing", "False", "ProgressDeadlineExceeded", message, now)
    if old.get("reason") == "ProgressDeadlineExceeded":
        return conditions
    others = [c for c in conditions if c["type"] != "Progressing"] if old.get("reason") != "ReplicaSetUpdated" else conditions
    message = f'Deployment "{name(workload)}" is progressing.'
    return with_condition(others, "Progressing", "True", "ReplicaSetUpdated", message, now)


def _job_status(workload: Obj, pods: Sequence[PodView], now: float, before: dict[str, Any]) -> dict[str, Any]:
    if any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in before.get("conditions") or ()):
        return before
    started = min((p.created for p in pods), default=now)
    active = [p for p in pods if not p.ended and not p.deleting]
    found: dict[str, Any] = {}
    if pods:
        found["startTime"] = before.get("startTime") or format_time(started)
    counts = {
        "active": len(active),
        "ready": sum(p.ready for p in active),
        "succeeded": sum(p.phase == "Succeeded" for p in pods),
        "failed": sum(p.phase == "Failed" for p in pods),
    }
    found |= {k: v for k, v in counts.items() if v or k == "ready"}
    ended = job_finished(workload, pods, now, started)
    if ended is not None:
        what, reason = ended
        found.pop("active", None)
        messages = {
            "BackoffLimitExceeded": "Job has reached the specified backoff limit",
            "DeadlineExceeded": "Job was active longer than specified deadline",
        }
        found["conditions"] = with_condition(
            (), what, "True", reason, messages.get(reason, "Reached expected number of succeeded pods"), now
        )
        for condition in found["conditions"]:
            condition["lastProbeTime"] = condition["lastTransitionTime"]
        if what == "Complete":
            found["completionTime"] = format_time(now)
    return found
