"""Jobs at one site: which pods to start and stop, and when a Job has ended. Pure; ``now`` in seconds since the epoch.

Source: ``pkg/controller/job`` of Kubernetes: completions, indexes, back-off in all and per index, failure and success policies,
suspension. What pods that are gone have done is kept in :class:`Past`, so nothing is counted twice or run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from metaos.agent.workloads import Actions, PodView
from metaos.resources.meta import Obj, format_time, parse_time, with_condition

BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS = 10.0, 600.0
#: So many ended pods of a Job are kept for their logs; of older ones only what they did.
KEPT_PODS = 50

_TEXTS = {
    "BackoffLimitExceeded": "Job has reached the specified backoff limit",
    "DeadlineExceeded": "Job was active longer than specified deadline",
    "MaxFailedIndexesExceeded": "Job has exceeded the specified maximal number of failed indexes",
    "FailedIndexes": "Job has failed indexes",
    "CompletionsReached": "Reached expected number of succeeded pods",
}


@dataclass(frozen=True, slots=True)
class Past:
    """What pods that are gone have done. ``failures``: index → how often it failed; ``failed_for_good``: indexes that a policy
    failed; ``in_a_row``: failures since the last success, ``last``: when (seconds), by index, −1 for all."""

    succeeded: int = 0
    failed: int = 0
    ignored: int = 0
    completed: frozenset[int] = frozenset()
    failures: Mapping[int, int] = field(default_factory=dict)
    failed_for_good: frozenset[int] = frozenset()
    in_a_row: int = 0
    last: Mapping[int, float] = field(default_factory=dict)
    #: Why a policy fails the Job, where one does.
    verdict: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "succeeded": self.succeeded,
            "failed": self.failed,
            "ignored": self.ignored,
            "completed": sorted(self.completed),
            "failures": {str(k): v for k, v in self.failures.items()},
            "failedForGood": sorted(self.failed_for_good),
            "inARow": self.in_a_row,
            "last": {str(k): v for k, v in self.last.items()},
            "verdict": self.verdict,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Past:
        return cls(
            int(value.get("succeeded", 0)),
            int(value.get("failed", 0)),
            int(value.get("ignored", 0)),
            frozenset(value.get("completed", ())),
            {int(k): int(v) for k, v in value.get("failures", {}).items()},
            frozenset(value.get("failedForGood", ())),
            int(value.get("inARow", 0)),
            {int(k): float(v) for k, v in value.get("last", {}).items()},
            str(value.get("verdict", "")),
        )


def remember(past: Past, job: Obj, pod: PodView) -> Past:
    """``past`` with a pod that goes now."""
    spec = job.get("spec") or {}
    if pod.phase == "Succeeded":
        done = past.completed | ({pod.ordinal} if pod.ordinal >= 0 else set())
        last = {k: v for k, v in past.last.items() if k != -1}
        return replace(past, succeeded=past.succeeded + 1, completed=done, in_a_row=0, last=last)
    if pod.dismissed and pod.phase != "Failed":
        return past
    action, why = failure_action(job, pod)
    if action == "Ignore":
        return replace(past, ignored=past.ignored + 1)
    last = {**past.last, -1: max(pod.finished, past.last.get(-1, 0.0))}
    failures = dict(past.failures)
    if pod.ordinal >= 0 and spec.get("backoffLimitPerIndex") is not None:
        failures[pod.ordinal] = failures.get(pod.ordinal, 0) + 1
        last[pod.ordinal] = max(pod.finished, past.last.get(pod.ordinal, 0.0))
    return replace(
        past,
        failed=past.failed + 1,
        failures=failures,
        failed_for_good=past.failed_for_good | ({pod.ordinal} if action == "FailIndex" else set()),
        in_a_row=past.in_a_row + 1,
        last=last,
        verdict=past.verdict or (why if action == "FailJob" else ""),
    )


def failure_action(job: Obj, pod: PodView) -> tuple[str, str]:
    """(``Count``, ``Ignore``, ``FailIndex`` or ``FailJob``, why): the first rule of the failure policy that matches."""
    spec = job.get("spec") or {}
    for number, rule in enumerate((spec.get("podFailurePolicy") or {}).get("rules") or ()):
        action = str(rule.get("action"))
        if rule.get("onExitCodes"):
            found = _exit_matched(rule["onExitCodes"], pod)
            if found is not None:
                where = (job.get("metadata") or {}).get("namespace", "")
                text = f"Container {found[0]} for pod {where}/{pod.name} failed with exit code {found[1]}"
                return action, f"{text} matching {action} rule at index {number}"
        for pattern in rule.get("onPodConditions") or ():
            if (pattern.get("type"), pattern.get("status") or "True") in pod.conditions:
                return action, f"Pod {pod.name} has condition {pattern['type']} matching {action} rule at index {number}"
    return "Count", ""


def _exit_matched(requirement: Mapping[str, Any], pod: PodView) -> tuple[str, int] | None:
    values = {int(v) for v in requirement.get("values") or ()}
    for container, code in pod.exits:
        if requirement.get("containerName") not in (None, "", container) or code == 0:
            continue
        if (code in values) == (requirement.get("operator") == "In"):
            return container, code
    return None


# -- what has happened so far -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tally:
    """What a Job's pods have done, gone ones included."""

    active: tuple[PodView, ...]
    terminating: tuple[PodView, ...]
    succeeded: int
    failed: int
    completed: frozenset[int]
    failed_indexes: frozenset[int]
    failures: Mapping[int, int]
    in_a_row: int
    last: Mapping[int, float]
    restarts: int
    verdict: str


def tally(job: Obj, pods: Sequence[PodView], past: Past) -> Tally:
    spec = job.get("spec") or {}
    only_failed = replaces_failed_only(spec)
    active = tuple(p for p in pods if p.living)
    terminating = tuple(p for p in pods if p.deleting and not p.ended)
    good = [p for p in pods if p.phase == "Succeeded"]
    bad = [p for p in pods if p.phase == "Failed" or (p in terminating and not p.dismissed and not only_failed)]
    found = past
    for pod in sorted((*good, *bad), key=lambda p: (p.finished, p.name)):
        found = remember(found, job, pod)
    if spec.get("completionMode") == "Indexed":
        completions = int(spec.get("completions") or 0)
        completed = frozenset(i for i in found.completed if i < completions)
        per_index = spec.get("backoffLimitPerIndex")
        failed: frozenset[int] = frozenset()
        if per_index is not None:
            many = {i for i, count in found.failures.items() if count > int(per_index)}
            failed = frozenset(i for i in many | found.failed_for_good if 0 <= i < completions) - completed
    else:
        completed, failed = frozenset(), frozenset()
    succeeded = len(completed) if spec.get("completionMode") == "Indexed" else found.succeeded
    return Tally(
        active,
        terminating,
        succeeded,
        found.failed,
        completed,
        failed,
        found.failures,
        found.in_a_row,
        found.last,
        sum(p.restarts for p in active),
        found.verdict,
    )


def replaces_failed_only(spec: Mapping[str, Any]) -> bool:
    """Whether a pod that is being stopped is replaced only once it has ended."""
    return spec.get("podReplacementPolicy") == "Failed" or bool(spec.get("podFailurePolicy"))


def verdict(job: Obj, seen: Tally, now: float, started: float | None) -> tuple[str, str, str] | None:
    """(``Complete`` or ``Failed``, reason, message) once it is decided how a Job ends; its pods may still have to."""
    spec = job.get("spec") or {}

    def failed(reason: str, message: str = "") -> tuple[str, str, str]:
        return "Failed", reason, message or _TEXTS[reason]

    if seen.verdict:
        return failed("PodFailurePolicy", seen.verdict)
    limit = spec.get("backoffLimit")
    per_index = spec.get("backoffLimitPerIndex")
    most = int(limit) if limit is not None else (6 if per_index is None else 2**31 - 1)
    on_failure = ((spec.get("template") or {}).get("spec") or {}).get("restartPolicy") == "OnFailure"
    if seen.failed > most or (on_failure and seen.restarts > 0 and seen.restarts >= most):
        return failed("BackoffLimitExceeded")
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and started is not None and not spec.get("suspend") and now >= started + float(deadline):
        return failed("DeadlineExceeded")
    completions = spec.get("completions")
    if spec.get("completionMode") == "Indexed":
        allowed = spec.get("maxFailedIndexes")
        if allowed is not None and len(seen.failed_indexes) > int(allowed):
            return failed("MaxFailedIndexesExceeded")
        if seen.failed_indexes and len(seen.failed_indexes) + len(seen.completed) >= int(completions or 0):
            return failed("FailedIndexes")
        matched = _success(spec, seen.completed)
        if matched is not None:
            return "Complete", "SuccessPolicy", f"Matched rules at index {matched}"
    if completions is None:
        reached = seen.succeeded > 0 and not seen.active
    else:
        reached = seen.succeeded >= int(completions) and not seen.active
    return ("Complete", "CompletionsReached", _TEXTS["CompletionsReached"]) if reached else None


def _success(spec: Mapping[str, Any], completed: frozenset[int]) -> int | None:
    """The first rule of the success policy that is met."""
    for number, rule in enumerate((spec.get("successPolicy") or {}).get("rules") or ()):
        relevant, count = completed, rule.get("succeededCount")
        if rule.get("succeededIndexes"):
            wanted = frozenset(parse_indexes(str(rule["succeededIndexes"])))
            relevant = completed & wanted
            if count is None and relevant == wanted:
                return number
        if count is not None and len(relevant) >= int(count):
            return number
    return None


def parse_indexes(text: str) -> set[int]:
    """``0,3-5`` as a set."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first:
            found |= set(range(int(first), int(last or first) + 1))
    return found


def format_indexes(indexes: Iterable[int]) -> str:
    """A set as ``0,3-5``, as Kubernetes writes it."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    # Two in a row are written as two.
    return ",".join(str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}-{b}" for a, b in runs)


# -- what to do ---------------------------------------------------------------------------------------------


def decided(before: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """How it ends, where that has been written down already."""
    for kind, what in (
        ("FailureTarget", "Failed"),
        ("SuccessCriteriaMet", "Complete"),
        ("Failed", "Failed"),
        ("Complete", "Complete"),
    ):
        for condition in before.get("conditions") or ():
            if condition.get("type") == kind and condition.get("status") == "True":
                return what, str(condition.get("reason") or ""), str(condition.get("message") or "")
    return None


def finished(before: Mapping[str, Any]) -> bool:
    return any(c.get("type") in ("Complete", "Failed") and c.get("status") == "True" for c in before.get("conditions") or ())


def job(workload: Obj, pods: Sequence[PodView], past: Past, revision: str, now: float, before: Mapping[str, Any]) -> Actions:
    """The next step of a Job that has not finished."""
    spec = workload.get("spec") or {}
    seen = tally(workload, pods, past)
    started = parse_time(before["startTime"]) if before.get("startTime") else None
    how = decided(before) or verdict(workload, seen, now, started)
    if how is not None:
        uids = tuple(p.uid for p in seen.active)
        return Actions(delete=uids) if how[0] == "Failed" else Actions(dismiss=uids)
    surplus = _outdated(pods)
    if spec.get("suspend"):
        return Actions(delete=surplus, dismiss=tuple(p.uid for p in seen.active))
    deadline = spec.get("activeDeadlineSeconds")
    waits = [] if deadline is None else [(now if started is None else started) + float(deadline) - now]
    parallelism, completions = spec.get("parallelism"), spec.get("completions")
    wanted = 1 if parallelism is None else int(parallelism)
    if completions is not None:
        wanted = min(wanted, int(completions) - seen.succeeded - len(seen.failed_indexes))
    elif seen.succeeded:
        wanted = min(wanted, len(seen.active))
    wanted = max(0, wanted)
    indexed = spec.get("completionMode") == "Indexed"
    gone = _twice(seen.active, completions, seen) if indexed else []
    left = [p for p in seen.active if p not in gone]
    gone += sorted(left, key=lambda p: (p.ready, -p.ordinal, -p.created, p.name))[: max(0, len(left) - wanted)]
    if gone:
        return Actions(delete=surplus, dismiss=tuple(p.uid for p in gone), again=min(waits, default=None))
    free = wanted - len(seen.active)
    if replaces_failed_only(spec):
        free -= len(seen.terminating)
    create: list[int] = []
    per_index = spec.get("backoffLimitPerIndex") is not None
    wait = 0.0 if per_index else _wait(seen.in_a_row, seen.last.get(-1, 0.0), now)
    if free > 0 and wait > 0:
        waits.append(wait)
    elif free > 0 and indexed:
        taken = seen.completed | seen.failed_indexes | {p.ordinal for p in seen.active}
        if replaces_failed_only(spec):
            taken |= {p.ordinal for p in seen.terminating}
        for index in range(int(completions or 0)):
            if len(create) == free:
                break
            if index in taken:
                continue
            wait = _wait(seen.failures.get(index, 0), seen.last.get(index, 0.0), now) if per_index else 0.0
            if wait > 0:
                waits.append(wait)
            else:
                create.append(index)
    elif free > 0:
        create = [-1] * free
    return Actions(tuple((i, revision) for i in create), surplus, again=min(waits, default=None))


def _outdated(pods: Sequence[PodView]) -> tuple[str, ...]:
    """Ended pods beyond those that are kept, the oldest first."""
    ended = sorted((p for p in pods if p.ended and not p.deleting), key=lambda p: (p.finished, p.name))
    return tuple(p.uid for p in ended[: max(0, len(ended) - KEPT_PODS)])


def _twice(active: Sequence[PodView], completions: Any, seen: Tally) -> list[PodView]:
    """Pods of an index that is done, that is out of range, or that another one has: the older one stays."""
    had: set[int] = set(seen.completed | seen.failed_indexes)
    found = []
    for pod in sorted(active, key=lambda p: (p.created, p.name)):
        if pod.ordinal in had or pod.ordinal >= int(completions or 0):
            found.append(pod)
        had.add(pod.ordinal)
    return found


def _wait(failures: int, last: float, now: float) -> float:
    """Seconds of back-off that are left after so many failures in a row. A clock that went back does not prolong it."""
    if failures <= 0:
        return 0.0
    delay: float = min(BACKOFF_SECONDS * float(2 ** min(failures - 1, 16)), BACKOFF_LIMIT_SECONDS)
    return max(0.0, min(delay, last + delay - now))


# -- status -------------------------------------------------------------------------------------------------


def job_status(workload: Obj, pods: Sequence[PodView], past: Past, now: float, before: Mapping[str, Any]) -> dict[str, Any]:
    """A Job's status; one that has finished keeps what it was."""
    if finished(before):
        return dict(before)
    spec = workload.get("spec") or {}
    seen = tally(workload, pods, past)
    found: dict[str, Any] = {}
    conditions = [dict(c) for c in before.get("conditions") or ()]
    suspended = any(c["type"] == "Suspended" and c["status"] == "True" for c in conditions)
    if spec.get("suspend"):
        conditions = _with(conditions, "Suspended", "True", "JobSuspended", "Job suspended", now)
    else:
        if suspended:
            conditions = _with(conditions, "Suspended", "False", "JobResumed", "Job resumed", now)
        found["startTime"] = format_time(now) if suspended or not before.get("startTime") else before["startTime"]
    counts = {
        "active": len(seen.active),
        "ready": sum(p.ready for p in seen.active),
        "terminating": len(seen.terminating),
        "succeeded": seen.succeeded,
        "failed": seen.failed,
    }
    found |= {k: v for k, v in counts.items() if v or k in ("ready", "terminating")}
    if seen.completed:
        found["completedIndexes"] = format_indexes(seen.completed)
    if spec.get("backoffLimitPerIndex") is not None:
        found["failedIndexes"] = format_indexes(seen.failed_indexes)
    started = parse_time(found["startTime"]) if "startTime" in found else None
    how = decided(before) or verdict(workload, seen, now, started)
    if how is not None:
        what, reason, message = how
        interim = "FailureTarget" if what == "Failed" else "SuccessCriteriaMet"
        conditions = _with(conditions, interim, "True", reason, message, now)
        if not seen.active and not seen.terminating:
            conditions = _with(conditions, what, "True", reason, message, now)
            if what == "Complete":
                found["completionTime"] = format_time(now)
    if conditions:
        found["conditions"] = conditions
    return found


def _with(
    conditions: list[dict[str, Any]], kind: str, status: str, reason: str, message: str, now: float
) -> list[dict[str, Any]]:
    found = with_condition(conditions, kind, status, reason, message, now)
    return [c | {"lastProbeTime": c["lastTransitionTime"]} if c["type"] == kind else c for c in found]
