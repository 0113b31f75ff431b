"""Jobs and CronJobs. Source: ``pkg/apis/batch/validation/validation.go`` of Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cronsim import CronSim, CronSimError

from metaos.apiserver.schema import duplicate, invalid, required, unsupported
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj

#: Fields of a Job that stay what they were.
IMMUTABLE = ("podFailurePolicy", "backoffLimitPerIndex", "successPolicy", "managedBy")
_COUNTS = (
    "parallelism",
    "completions",
    "backoffLimit",
    "activeDeadlineSeconds",
    "ttlSecondsAfterFinished",
    "backoffLimitPerIndex",
    "maxFailedIndexes",
)
_INDEXED_PARALLELISM = 100_000
_ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")
_NAMED = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_EPOCH = datetime.fromtimestamp(0, UTC)
_LABEL = 63
MOST_RULES, MOST_VALUES = 20, 255


def _too_many(path: str, count: int, limit: int) -> Cause:
    return Cause("FieldValueTooMany", path, f"Too many: {count}: must have at most {limit} items")


def job_causes(spec: Obj, path: str) -> Iterator[Cause]:
    """Everything but its template."""
    for field in _COUNTS:
        if (spec.get(field) or 0) < 0:
            yield invalid(f"{path}.{field}", spec[field], "must be greater than or equal to 0")
    per_index, failed = spec.get("backoffLimitPerIndex"), spec.get("maxFailedIndexes")
    if failed is not None and per_index is None:
        yield required(f"{path}.backoffLimitPerIndex", "when maxFailedIndexes is specified")
    mode = spec.get("completionMode") or "NonIndexed"
    if mode not in ("Indexed", "NonIndexed"):
        yield unsupported(f"{path}.completionMode", mode, ("Indexed", "NonIndexed"))
    completions = spec.get("completions")
    if mode == "Indexed":
        if completions is None:
            yield required(f"{path}.completions", "when completion mode is Indexed")
        if (spec.get("parallelism") or 0) > _INDEXED_PARALLELISM:
            text = f"must be less than or equal to {_INDEXED_PARALLELISM} when completion mode is Indexed"
            yield invalid(f"{path}.parallelism", spec["parallelism"], text)
        if completions is not None and failed is not None and failed > completions:
            yield invalid(f"{path}.maxFailedIndexes", failed, "must be less than or equal to completions")
    else:
        for field in ("backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"):
            if spec.get(field) is not None:
                yield invalid(f"{path}.{field}", spec[field], "requires indexed completion mode")
    if spec.get("podFailurePolicy"):
        yield from _failure_policy(spec, path)
    if spec.get("successPolicy") is not None and mode == "Indexed":
        yield from _success_policy(spec, f"{path}.successPolicy.rules", int(completions or 0))
    policy = spec.get("podReplacementPolicy")
    allowed = ["Failed"] if spec.get("podFailurePolicy") else ["Failed", "TerminatingOrFailed"]
    if policy is not None and policy not in allowed:
        yield unsupported(f"{path}.podReplacementPolicy", policy, allowed)


def _failure_policy(spec: Obj, path: str) -> Iterator[Cause]:
    template = (spec.get("template") or {}).get("spec") or {}
    if template.get("restartPolicy") == "OnFailure":
        text = 'only "Never" is supported when podFailurePolicy is specified'
        yield invalid(f"{path}.template.spec.restartPolicy", "OnFailure", text)
    names = {c.get("name") for key in ("containers", "initContainers") for c in template.get(key) or ()}
    rules = spec["podFailurePolicy"].get("rules") or ()
    where = f"{path}.podFailurePolicy.rules"
    if len(rules) > MOST_RULES:
        yield _too_many(where, len(rules), MOST_RULES)
    for i, rule in enumerate(rules):
        action, codes, conditions = rule.get("action"), rule.get("onExitCodes"), rule.get("onPodConditions") or ()
        if action not in _ACTIONS:
            yield unsupported(f"{where}[{i}].action", action, _ACTIONS)
        elif action == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
            yield invalid(f"{where}[{i}].action", action, "requires the backoffLimitPerIndex to be set")
        if codes:
            yield from _exit_codes(codes, f"{where}[{i}].onExitCodes", names)
        for j, pattern in enumerate(conditions):
            if pattern.get("status") not in (None, "True", "False", "Unknown"):
                yield unsupported(f"{where}[{i}].onPodConditions[{j}].status", pattern["status"], ("True", "False", "Unknown"))
        if bool(codes) == bool(conditions):
            text = "specifying both OnExitCodes and OnPodConditions is not supported"
            one = "specifying one of OnExitCodes and OnPodConditions is required"
            yield Cause("FieldValueInvalid", f"{where}[{i}]", f"Invalid value: {text if codes else one}")


def _exit_codes(codes: Obj, path: str, names: set[Any]) -> Iterator[Cause]:
    operator, values = codes.get("operator"), codes.get("values") or []
    if operator not in ("In", "NotIn"):
        yield unsupported(f"{path}.operator", operator, ("In", "NotIn"))
    if codes.get("containerName") is not None and codes["containerName"] not in names:
        text = "must be one of the container or initContainer names in the pod template"
        yield invalid(f"{path}.containerName", codes["containerName"], text)
    if not values:
        yield invalid(f"{path}.values", values, "at least one value is required")
    elif len(values) > MOST_VALUES:
        yield _too_many(f"{path}.values", len(values), MOST_VALUES)
    for i, value in enumerate(values):
        if operator == "In" and value == 0:
            yield invalid(f"{path}.values[{i}]", value, "must not be 0 for the In operator")
        if value in values[:i]:
            yield duplicate(f"{path}.values[{i}]", value)
    if values != sorted(values):
        yield invalid(f"{path}.values", values, "must be ordered")


def _success_policy(spec: Obj, path: str, completions: int) -> Iterator[Cause]:
    rules = spec["successPolicy"].get("rules") or ()
    if not rules:
        yield required(path, "at least one rules must be specified when the successPolicy is specified")
    elif len(rules) > MOST_RULES:
        yield _too_many(path, len(rules), MOST_RULES)
    for i, rule in enumerate(rules):
        count, indexes = rule.get("succeededCount"), rule.get("succeededIndexes")
        if count is None and indexes is None:
            yield required(f"{path}[{i}]", "at least one of succeededCount or succeededIndexes must be specified")
        total = completions
        if indexes is not None:
            total, problem = _indexes(str(indexes), completions)
            if problem:
                yield invalid(f"{path}[{i}].succeededIndexes", indexes, f"error parsing succeededIndexes: {problem}")
        if count is None:
            continue
        if count < 0:
            yield invalid(f"{path}[{i}].succeededCount", count, "must be greater than or equal to 0")
        if count > completions:
            text = f"must be less than or equal to {completions} (the number of specified completions)"
            yield invalid(f"{path}[{i}].succeededCount", count, text)
        if indexes is not None and count > total:
            text = f"must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            yield invalid(f"{path}[{i}].succeededCount", count, text)


def _indexes(text: str, completions: int) -> tuple[int, str]:
    """How many indexes ``0,3-5`` are, and what is wrong with it."""
    total, last = 0, -1
    for part in text.split(","):
        first, _, second = part.partition("-")
        if not first.isdigit() or (second and not second.isdigit()) or part.endswith("-"):
            return 0, f'cannot convert string to integer for index: "{part}"'
        low, high = int(first), int(second or first)
        if high >= completions:
            return 0, "too large index: " + f'"{second or first}"'
        if low <= last or high < low:
            return 0, f"non-increasing order, previous: {max(low, last)}, current: {low if low <= last else high}"
        total, last = total + high - low + 1, high
    return total, ""


def index_name_causes(job: Obj) -> Iterator[Cause]:
    """The pods of an indexed Job have host names of their own, which must fit."""
    spec, name = job.get("spec") or {}, str((job.get("metadata") or {}).get("name") or "")
    if spec.get("completionMode") == "Indexed" and (spec.get("completions") or 0) > 0:
        longest = f"{name}-{spec['completions'] - 1}"
        if len(longest) > _LABEL or "." in longest:
            text = f"will not able to create pod with invalid DNS label: {longest}"
            yield invalid("metadata.name", name, text)


def schedule_causes(spec: Obj, old: Obj) -> Iterator[Cause]:
    """Schedule and time zone. The zone is looked up here; what was accepted once stays."""
    schedule = str(spec.get("schedule") or "")
    if not schedule:
        yield required("spec.schedule")
    elif not schedule.startswith("@"):
        try:
            CronSim(schedule, _EPOCH)
        except CronSimError as wrong:
            text = f"{wrong}: five fields (minute hour day month weekday), for example '*/5 * * * *'"
            if "TZ" in schedule:
                text = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
            yield invalid("spec.schedule", schedule, text)
    elif schedule not in _NAMED:
        yield invalid("spec.schedule", schedule, "must be five fields or @hourly, @daily, @weekly, @monthly or @yearly")
    zone = spec.get("timeZone")
    if zone is not None and zone != old.get("timeZone"):
        yield from _zone_causes(str(zone))


def _zone_causes(zone: str) -> Iterator[Cause]:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    if not zone:
        yield invalid("spec.timeZone", zone, "timeZone must be nil or non-empty string")
        return
    if zone.lower() == "local":
        yield invalid(
            "spec.timeZone", zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"
        )
        return
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield invalid("spec.timeZone", zone, f"unknown time zone {zone}")
