"""When a CronJob's jobs are due, and which old ones go. Pure; ``now`` in seconds since the epoch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from metaos.resources.meta import Obj, ObjectRef, format_time, name, namespace, parse_time, ref, uid

#: So many missed starts are looked at; older ones are let go, as Kubernetes does.
MISSED_LIMIT = 100
LOOK_SECONDS = 60.0


@dataclass(slots=True)
class CronStep:
    """Jobs to create and delete, the CronJob's status, and seconds until the next look."""

    create: list[Obj] = field(default_factory=list)
    delete: list[Obj] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    again: float = LOOK_SECONDS


def _times(schedule: str, zone: str, after: float) -> Any:
    from zoneinfo import ZoneInfo

    from cronsim import CronSim

    return CronSim(schedule, datetime.fromtimestamp(after, ZoneInfo(zone) if zone else UTC))


def due_jobs(
    cron: Obj, jobs: Sequence[Obj], statuses: Mapping[ObjectRef, Mapping[str, Any]], before: Mapping[str, Any], now: float
) -> CronStep:
    """One step. ``statuses`` are those of the jobs."""
    spec = cron.get("spec") or {}
    step = CronStep(status={k: v for k, v in before.items() if k in ("lastScheduleTime", "lastSuccessfulTime")})
    ended = [j for j in jobs if _ended(statuses.get(ref(j), {}))]
    active = [j for j in jobs if j not in ended]
    good = [statuses[ref(j)]["completionTime"] for j in ended if "completionTime" in statuses.get(ref(j), {})]
    if good:
        step.status["lastSuccessfulTime"] = max(good)
    _history(spec, ended, statuses, step)
    if not spec.get("suspend"):
        _schedule(cron, active, before, now, step)
    living = [j for j in (*active, *step.create) if j not in step.delete]
    if living:
        step.status["active"] = [
            {"kind": "Job", "apiVersion": "batch/v1", "name": name(j), "namespace": namespace(j)} for j in living
        ]
    return step


def _ended(status: Mapping[str, Any]) -> bool:
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in status.get("conditions") or ())


def _history(spec: Mapping[str, Any], ended: list[Obj], statuses: Mapping[ObjectRef, Mapping[str, Any]], step: CronStep) -> None:
    good = [j for j in ended if "completionTime" in statuses.get(ref(j), {})]
    bad = [j for j in ended if j not in good]
    for found, limit in ((good, spec.get("successfulJobsHistoryLimit", 3)), (bad, spec.get("failedJobsHistoryLimit", 1))):
        oldest = sorted(found, key=lambda j: str(j["metadata"].get("creationTimestamp")))
        step.delete += oldest[: max(0, len(oldest) - int(limit))]


def _schedule(cron: Obj, active: list[Obj], before: Mapping[str, Any], now: float, step: CronStep) -> None:
    spec = cron["spec"]
    created = cron["metadata"].get("creationTimestamp")
    last = before.get("lastScheduleTime") or created or format_time(now)
    since = parse_time(str(last))
    times = _times(str(spec.get("schedule")), str(spec.get("timeZone") or ""), since)
    due = None
    upcoming = since
    for _ in range(MISSED_LIMIT):
        upcoming = next(times).timestamp()
        if upcoming > now:
            break
        due = upcoming
    if "lastScheduleTime" not in step.status and due is None:
        # Remembered from the first look on, so that a restart misses nothing.
        step.status["lastScheduleTime"] = str(last)
    step.again = max(0.05, min(LOOK_SECONDS, upcoming - now))
    if due is None:
        return
    step.status["lastScheduleTime"] = format_time(due)
    deadline = spec.get("startingDeadlineSeconds")
    if deadline is not None and now > due + float(deadline):
        return
    policy = spec.get("concurrencyPolicy") or "Allow"
    if active and policy == "Forbid":
        return
    if active and policy == "Replace":
        step.delete += active
    step.create.append(_job(cron, due, now))


def _job(cron: Obj, due: float, now: float) -> Obj:
    template = copy.deepcopy(cron["spec"].get("jobTemplate") or {})
    metadata = template.get("metadata") or {}
    notes = {"meta-os.eu/cronjob": name(cron), "meta-os.eu/cronjob-uid": uid(cron)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{name(cron)[:52]}-{int(due) // 60}",
            "namespace": namespace(cron),
            "labels": metadata.get("labels") or {},
            "annotations": {**(metadata.get("annotations") or {}), **notes},
            "creationTimestamp": format_time(now),
        },
        "spec": template.get("spec") or {},
    }
