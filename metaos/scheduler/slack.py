"""What a Job's annotations say of when it may run, and how long earlier ones like it took. Pure.

``meta-os.eu/deadline`` (RFC 3339): by then it is to be finished; ``meta-os.eu/slack`` (``6h``, ``90m``): so long it may wait.
``meta-os.eu/suspendable``: it may be stopped and goes on where it was. ``meta-os.eu/expected-duration``: how long it runs.
Without, earlier Jobs that run the same are looked at.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from metaos.resources.errors import Cause
from metaos.resources.meta import Obj, annotations, is_true, namespace, parse_time, uid

DEADLINE, SLACK, DURATION = "meta-os.eu/deadline", "meta-os.eu/slack", "meta-os.eu/expected-duration"
SUSPENDABLE = "meta-os.eu/suspendable"
#: What asks for waiting.
WAITING = DEADLINE, SLACK, SUSPENDABLE
#: Longer waits say nothing: no forecast goes so far.
MOST_SECONDS = 7 * 86400.0
#: So many earlier Jobs are looked at, the newest first; a deadline keeps clear of their longest by a tenth and a minute.
EARLIER_KEPT = 32
MARGIN_SHARE, MARGIN_SECONDS = 0.1, 60.0
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PARTS = re.compile(r"(?:\d{1,6}(?:\.\d{1,6})?[dhms])+")


def seconds(text: str) -> float:
    """Of a duration such as ``1h30m``. Raises ``ValueError`` with the remedy."""
    if not _PARTS.fullmatch(text):
        raise ValueError("must be a duration of days, hours, minutes and seconds, for example 6h or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", text))


def deferrable(job: Obj) -> bool:
    """Whether a Job may be held."""
    said = annotations(job)
    return job.get("kind") == "Job" and (DEADLINE in said or SLACK in said)


def suspendable(job: Obj) -> bool:
    """Whether a Job that runs may be suspended, too."""
    return deferrable(job) and annotations(job).get(SUSPENDABLE) == "true"


def causes(job: Obj) -> Iterator[Cause]:
    """What is wrong with a Job's annotations."""
    said = annotations(job)
    for key in (SLACK, DURATION):
        if key in said:
            try:
                length = seconds(said[key])
                problem = "" if length <= MOST_SECONDS else f"must be at most {MOST_SECONDS / 86400:g}d"
                if key == DURATION and not length:
                    problem = "must be more than nothing, for example 30m"
            except ValueError as error:
                problem = str(error)
            if problem:
                yield Cause("FieldValueInvalid", f"metadata.annotations[{key}]", f"Invalid value: {said[key]!r}: {problem}")
    if said.get(SUSPENDABLE, "true") not in ("true", "false"):
        problem = 'must be "true" (it keeps what it has done, for example on a volume) or "false"'
        value = said[SUSPENDABLE]
        yield Cause("FieldValueInvalid", f"metadata.annotations[{SUSPENDABLE}]", f"Invalid value: {value!r}: {problem}")
    if DEADLINE in said:
        try:
            parse_time(said[DEADLINE])
        except ValueError:
            remedy = "must be a time such as 2030-01-31T06:00:00Z"
            yield Cause("FieldValueInvalid", f"metadata.annotations[{DEADLINE}]", f"Invalid value: {said[DEADLINE]!r}: {remedy}")
        if SLACK in said:
            yield Cause("FieldValueForbidden", f"metadata.annotations[{SLACK}]", f"say either this or {DEADLINE}")


def lengths(job: Obj, others: Iterable[Obj]) -> tuple[float, ...]:
    """Seconds that the Job may take: as stated, or as earlier ones of its namespace took that run the same."""
    stated = annotations(job).get(DURATION)
    if stated:
        return (seconds(stated),)
    mine = _runs(job)
    found = []
    for other in others:
        status = other.get("status") or {}
        alike = uid(other) != uid(job) and namespace(other) == namespace(job) and is_true(other, "Complete")
        if alike and status.get("startTime") and status.get("completionTime") and _runs(other) == mine:
            ended = parse_time(status["completionTime"])
            found.append((ended, max(1.0, ended - parse_time(status["startTime"]))))
    return tuple(took for _, took in sorted(found, reverse=True)[:EARLIER_KEPT])


def _runs(job: Obj) -> str:
    spec: Mapping[str, Any] = (((job.get("spec") or {}).get("template") or {}).get("spec")) or {}
    return json.dumps([[c.get(k) for k in ("image", "command", "args")] for c in spec.get("containers") or ()])


def waits_until(job: Obj, took: tuple[float, ...]) -> tuple[float, str]:
    """The latest start in seconds since the epoch, and what it follows from. A deadline without any idea of the length allows
    no waiting, unless ``activeDeadlineSeconds`` bounds it."""
    said = annotations(job)
    created = parse_time(job["metadata"]["creationTimestamp"])
    if SLACK in said:
        return created + seconds(said[SLACK]), f"{SLACK} {said[SLACK]}"
    bound = (job.get("spec") or {}).get("activeDeadlineSeconds")
    longest = max(took) * (1 + MARGIN_SHARE) + MARGIN_SECONDS if took else float(bound) if bound else math.inf
    if math.isinf(longest):
        return created, f"how long it runs is not known: state {DURATION} or spec.activeDeadlineSeconds for it to wait"
    return parse_time(said[DEADLINE]) - longest, f"{DEADLINE} {said[DEADLINE]}"
