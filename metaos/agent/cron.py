"""When a CronJob's jobs are due, and which old ones go. Pure; ``now`` in seconds since the epoch.

Source: ``pkg/controller/cronjob`` of Kubernetes. Of several missed starts only the latest is made up for. A clock that was
ahead and has been set right does not hold a CronJob up until that time comes again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from metaos.agent.jobs import finished
from metaos.resources.cron import due_times, start_of
from metaos.resources.meta import Obj, ObjectRef, format_time, name, namespace, parse_time, ref, uid

#: More missed starts than this are worth a warning.
MISSED_LIMIT = 100
LOOK_SECONDS = 60.0
#: A last start so far in the future means that the clock was wrong then.
AHEAD_SECONDS = 60.0
SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"


@dataclass(slots=True)
class CronStep:
    """Jobs to create and delete, the CronJob's status, events (type, reason, message), and seconds until the next look."""

    create: list[Obj] = field(default_factory=list)
    delete: list[Obj] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    again: float = LOOK_SECONDS


def due_jobs(
    cron: Obj,
    jobs: Sequence[Obj],
    statuses: Mapping[ObjectRef, Mapping[str, Any]],
    before: Mapping[str, Any],
    since: float,
    now: float,
) -> CronStep:
    """One step. ``statuses`` are those of the jobs; ``since``: when this site first saw the CronJob."""
    spec = cron.get("spec") or {}
    step = CronStep(status={k: v for k, v in before.items() if k in ("lastScheduleTime", "lastSuccessfulTime")})
    ended = [j for j in jobs if finished(statuses.get(ref(j), {}))]
    active = [j for j in jobs if j not in ended]
    good = [statuses[ref(j)]["completionTime"] for j in ended if "completionTime" in statuses.get(ref(j), {})]
    if good:
        step.status["lastSuccessfulTime"] = max(good)
    _history(spec, ended, statuses, step)
    if not spec.get("suspend"):
        try:
            _schedule(cron, jobs, active, since, now, step)
        except ValueError as error:
            step.events.append(("Warning", "InvalidSchedule", str(error)))
    living = [j for j in (*active, *step.create) if j not in step.delete]
    if living:
        step.status["active"] = [
            {"kind": "Job", "apiVersion": "batch/v1", "name": name(j), "namespace": namespace(j)} for j in living
        ]
    return step


def _history(spec: Mapping[str, Any], ended: list[Obj], statuses: Mapping[ObjectRef, Mapping[str, Any]], step: CronStep) -> None:
    good = [j for j in ended if "completionTime" in statuses.get(ref(j), {})]
    bad = [j for j in ended if j not in good]
    for found, key, default in ((good, "successfulJobsHistoryLimit", 3), (bad, "failedJobsHistoryLimit", 1)):
        limit = spec.get(key)
        oldest = sorted(found, key=lambda j: (str(j["metadata"].get("creationTimestamp")), name(j)))
        step.delete += oldest[: max(0, len(oldest) - (default if limit is None else int(limit)))]


def _schedule(cron: Obj, jobs: Sequence[Obj], active: list[Obj], since: float, now: float, step: CronStep) -> None:
    spec = cron["spec"]
    last = parse_time(step.status["lastScheduleTime"]) if step.status.get("lastScheduleTime") else since
    if last > now + AHEAD_SECONDS:
        step.events.append(
            ("Warning", "ClockSkew", f"the last start is said to be at {format_time(last)}: the clock was set back")
        )
        last = now - LOOK_SECONDS
    deadline = spec.get("startingDeadlineSeconds")
    if deadline is not None:
        last = max(last, now - float(deadline))
    upcoming = next(due_times(spec, max(last, now)), None)
    if upcoming is None:
        return
    step.again = max(0.05, min(LOOK_SECONDS, upcoming.timestamp() - now))
    # One that is due this very moment is found from a second later.
    due = next((t.timestamp() for t in due_times(spec, now + 1.0, back=True) if t.timestamp() <= now), None)
    if due is None or due <= last:
        return
    # The hub may have it start later; a site that is cut off keeps to what it was told.
    start = start_of(cron, due)
    if now < start:
        step.again = min(step.again, max(0.05, start - now))
        return
    if _missed(spec, last, now) > MISSED_LIMIT:
        text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
        step.events.append(("Warning", "TooManyMissedTimes", text))
    policy = spec.get("concurrencyPolicy") or "Allow"
    if active and policy == "Forbid":
        text = "Not starting job because prior execution is running and concurrency policy is Forbid"
        step.events.append(("Normal", "JobAlreadyActive", text))
        return
    job = _job(cron, due, now)
    step.status["lastScheduleTime"] = format_time(due)
    if any(name(j) == name(job) for j in jobs):
        return  # Started before, and then interrupted.
    if active and policy == "Replace":
        step.delete += active
    step.create.append(job)
    step.events.append(("Normal", "SuccessfulCreate", f"Created job {name(job)}"))


def _missed(spec: Mapping[str, Any], last: float, now: float) -> int:
    """How many starts lie between, counted no further than just beyond the limit."""
    count = 0
    for moment in due_times(spec, last):
        if moment.timestamp() > now or count > MISSED_LIMIT:
            break
        count += 1
    return count


def _job(cron: Obj, due: float, now: float) -> Obj:
    template = copy.deepcopy(cron["spec"].get("jobTemplate") or {})
    metadata, body = template.get("metadata") or {}, template.get("spec") or {}
    if body.get("completions") is None and body.get("parallelism") in (None, 1):
        body["completions"] = 1
    notes = {"meta-os.eu/cronjob": name(cron), "meta-os.eu/cronjob-uid": uid(cron), SCHEDULED: _scheduled(cron["spec"], due)}
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
        "spec": body,
    }


def shown(job: Obj, status: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub is told of a job, so that users see it there."""
    metadata = job["metadata"]
    kept = {k: metadata[k] for k in ("name", "uid", "creationTimestamp")}
    return kept | {"scheduledTime": metadata["annotations"][SCHEDULED], "status": dict(status)}


def _scheduled(spec: Mapping[str, Any], due: float) -> str:
    """RFC 3339 in the CronJob's time zone."""
    from zoneinfo import ZoneInfo

    zone = str(spec.get("timeZone") or "")
    text = datetime.fromtimestamp(due, ZoneInfo(zone) if zone else UTC).isoformat(timespec="seconds")
    return text.replace("+00:00", "Z")
