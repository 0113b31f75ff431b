"""What is said of when work may run, in its annotations or in an Intent, and how long earlier work like it took. Pure.

Annotations of a Job, or of a CronJob's template for each of its runs, all ``meta-os.eu/…``; an Intent says the same in the
context ``deferrable`` of an expectation (in brackets), and annotations go before it:

- ``slack`` (``slack``): so long it may wait (``6h``, ``90m``); ``deadline`` (``deadline``, RFC 3339): by then it shall be over;
- ``expected-duration`` (``expectedDuration``): how long it runs. Without, earlier Jobs that run the same are looked at;
- ``suspendable`` (``suspendable``): it may be stopped and goes on where it was;
- ``min-parallelism`` (``minParallelism``): of one that is suspendable: its width may be from this to ``spec.parallelism``;
  twice the width does twice the work;
- ``interruptible`` (``interruptible``): it stands being stopped by the site at any moment, so spot capacity will do;
- ``waits-for`` (the targets beside the context): ``carbonIntensity``, ``cost``, or both.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from metaos.resources import workload
from metaos.resources.errors import Cause
from metaos.resources.meta import (
    ADOPT,
    ANNOTATION_PREFIX,
    OWNER,
    Obj,
    annotations,
    deleting,
    format_time,
    is_true,
    name,
    namespace,
    parse_time,
    uid,
)
from metaos.resources.reading import concerns
from metaos.resources.snapshot import Interruptible, Waits, WorkloadInfo

DEADLINE, SLACK, DURATION = "meta-os.eu/deadline", "meta-os.eu/slack", "meta-os.eu/expected-duration"
SUSPENDABLE, INTERRUPTIBLE = "meta-os.eu/suspendable", "meta-os.eu/interruptible"
LEAST, WAITS_FOR = "meta-os.eu/min-parallelism", "meta-os.eu/waits-for"
#: What asks for waiting, and what is said beside that alone.
WAITING = DEADLINE, SLACK, SUSPENDABLE, LEAST
#: What may be waited for: targets of an Intent.
CARBON, COST = "carbonIntensity", "cost"
AIMS = CARBON, COST
#: The context of an Intent's expectation, and what its value may hold.
CONTEXT = "deferrable"
FIELDS = {
    "slack": SLACK,
    "deadline": DEADLINE,
    "expectedDuration": DURATION,
    "suspendable": SUSPENDABLE,
    "interruptible": INTERRUPTIBLE,
    "minParallelism": LEAST,
}
#: Other annotations that a Job may have.
NOT_OF_WAITING = ADOPT, OWNER, "meta-os.eu/cronjob", "meta-os.eu/cronjob-uid"
#: How alike an annotation has to be to one that is known, to be taken for a slip of it (``difflib``'s ratio).
NEAR = 0.85
#: Longer waits say nothing: no forecast goes so far.
MOST_SECONDS = 7 * 86400.0
#: So many earlier Jobs are looked at, the newest first; a deadline keeps clear of their longest by a tenth and a minute.
EARLIER_KEPT = 32
MARGIN_SHARE, MARGIN_SECONDS = 0.1, 60.0
HOUR_SECONDS = 3600.0
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PARTS = re.compile(r"(?:\d{1,6}(?:\.\d{1,6})?[dhms])+")


def seconds(text: str) -> float:
    """Of a duration such as ``1h30m``. Raises ``ValueError`` with the remedy."""
    if not _PARTS.fullmatch(text):
        raise ValueError("must be a duration of days, hours, minutes and seconds, for example 6h or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", text))


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is said of one Job, in seconds; ``deadline`` since the epoch. ``least``: width, 0 where it has no choice.
    ``intent``: the Intent that says so; empty: annotations."""

    slack: float | None
    deadline: float | None
    duration: float | None
    suspendable: bool
    interruptible: bool
    least: int
    aims: tuple[str, ...]
    intent: str


def asked(obj: Obj, intents: Iterable[Obj] = ()) -> Waiting | None:
    """What a Job or the runs of a CronJob may do; ``None`` where they may not wait, or what is said makes no sense."""
    kind = obj.get("kind")
    if kind not in ("Job", "CronJob"):
        return None
    own = {k: v for k, v in _own(obj).items() if k in (*FIELDS.values(), WAITS_FOR)}
    said, intent = _intended(obj, intents)
    if DEADLINE in own or SLACK in own:
        said.pop(DEADLINE, None)
        said.pop(SLACK, None)
        intent = ""
    said |= own
    if not (DEADLINE in said or SLACK in said) or (kind == "CronJob" and SLACK not in said) or next(_problems(said), None):
        return None
    most = workload.replicas(obj) if kind == "Job" else 1
    return Waiting(
        slack=seconds(said[SLACK]) if SLACK in said else None,
        deadline=parse_time(said[DEADLINE]) if DEADLINE in said else None,
        duration=seconds(said[DURATION]) if DURATION in said else None,
        suspendable=said.get(SUSPENDABLE) == "true" and kind == "Job",
        interruptible=said.get(INTERRUPTIBLE) == "true",
        least=min(int(said[LEAST]), most) if LEAST in said and kind == "Job" else 0,
        aims=tuple(said[WAITS_FOR].split(",")) if WAITS_FOR in said else (CARBON,),
        intent=intent,
    )


def _own(obj: Obj) -> Mapping[str, str]:
    """The annotations that count: of a CronJob those of its template."""
    return annotations(obj if obj.get("kind") == "Job" else (obj.get("spec") or {}).get("jobTemplate") or {})


def _intended(obj: Obj, intents: Iterable[Obj]) -> tuple[dict[str, str], str]:
    """What the first Intent in the order of priority and name says that concerns it, by annotation; and its name."""
    order = sorted(intents, key=lambda i: (-int((i.get("spec") or {}).get("priority", 50)), name(i)))
    for intent in order:
        if not concerns(intent, obj) or deleting(intent):
            continue
        for _, targets, value in _contexts(intent):
            said: dict[str, str] = _flat(value)
            aims = [aim for aim in AIMS if aim in targets]
            if aims and not next(_problems(said), None):
                return said | {WAITS_FOR: ",".join(aims)}, name(intent)
    return {}, ""


def _contexts(intent: Obj) -> Iterator[tuple[str, list[str], Any]]:
    """(Field, targets that it is about, value) of each ``deferrable``."""
    for e, expectation in enumerate((intent.get("spec") or {}).get("expectations") or ()):
        targets = [str(t.get("name")) for t in expectation.get("targets") or ()]
        for c, context in enumerate(expectation.get("contexts") or ()):
            if context.get("name") == CONTEXT:
                yield f"spec.expectations[{e}].contexts[{c}].value", targets, context.get("value")
        for t, target in enumerate(expectation.get("targets") or ()):
            for c, context in enumerate(target.get("contexts") or ()):
                if context.get("name") == CONTEXT:
                    field = f"spec.expectations[{e}].targets[{t}].contexts[{c}].value"
                    yield field, [str(target.get("name"))], context.get("value")


def _flat(value: Any) -> dict[str, str]:
    """A context's value, by annotation. A text alone is the slack; what is unknown stays under its own name."""
    if not isinstance(value, Mapping):
        return {SLACK: str(value)}
    texts = {str(k): str(v).lower() if isinstance(v, bool) else str(v) for k, v in value.items()}
    return {FIELDS.get(k, k): text for k, text in texts.items()}


def causes(job: Obj) -> Iterator[Cause]:
    """What is wrong with the annotations of a Job, or of a CronJob's template."""
    said, template = _own(job), "spec.jobTemplate." if job.get("kind") == "CronJob" else ""
    for key, problem in _problems({k: v for k, v in said.items() if k in (*FIELDS.values(), WAITS_FOR)}):
        reason = "FieldValueForbidden" if problem.startswith("say either") else "FieldValueInvalid"
        text = problem if reason == "FieldValueForbidden" else f"Invalid value: {said[key]!r}: {problem}"
        yield Cause(reason, f"{template}metadata.annotations[{key}]", text)
    if template and DEADLINE in said:
        text = f"the runs of a CronJob have no deadline in common: say {SLACK}"
        yield Cause("FieldValueForbidden", f"{template}metadata.annotations[{DEADLINE}]", text)
    if LEAST in said and not template and said[LEAST].isdigit() and int(said[LEAST]) > workload.replicas(job):
        text = f"Invalid value: {said[LEAST]!r}: must be at most spec.parallelism and completions ({workload.replicas(job)})"
        yield Cause("FieldValueInvalid", f"metadata.annotations[{LEAST}]", text)


def warnings(job: Obj, old: Obj | None) -> Iterator[str]:
    """What is accepted of a Job's annotations, or of those of a CronJob's template, and most likely not meant. ``old``: as it was
    before; what stood there already was told then."""
    said, known = _own(job), (*FIELDS.values(), WAITS_FOR)
    before = _own(old) if old is not None else {}
    where = ("spec.jobTemplate." if job.get("kind") == "CronJob" else "") + "metadata.annotations"
    for key in said.keys() - before.keys() - {*known, *NOT_OF_WAITING}:
        if key.startswith(ANNOTATION_PREFIX):
            near = get_close_matches(key, known, 1, NEAR)
            remedy = f"{near[0]} is" if near else f"of waiting there are {', '.join(known)}"
            yield f"{where}[{key}]: it is not known and means nothing; {remedy}"
    if job.get("kind") == "Job" and said.get(DEADLINE) not in (None, before.get(DEADLINE)) and not next(_problems(said), None):
        created = str(job["metadata"].get("creationTimestamp") or "")
        if created and parse_time(said[DEADLINE]) <= parse_time(created):
            yield f"{where}[{DEADLINE}]: {said[DEADLINE]} is before the Job is made, {created}: it starts at once"


def intent_causes(intent: Obj) -> Iterator[Cause]:
    """What is wrong with what an Intent says of waiting."""
    names = {v: k for k, v in FIELDS.items()}
    for field, targets, value in _contexts(intent):
        if not any(aim in targets for aim in AIMS):
            text = f"Invalid value: {value!r}: one waits for {' or '.join(AIMS)}: add such a target, for example with Minimize"
            yield Cause("FieldValueInvalid", field, text)
        if isinstance(value, Mapping) and (unknown := [k for k in value if k not in FIELDS]):
            text = f"Unsupported value: {unknown[0]!r}: supported values: {', '.join(FIELDS)}"
            yield Cause("FieldValueNotSupported", field, text)
            continue
        said = _flat(value)
        if SLACK not in said and DEADLINE not in said:
            yield Cause("FieldValueRequired", field, "Required value: say slack or deadline, for example {slack: 6h}")
        for key, problem in _problems(said):
            where = f"{field}.{names[key]}" if isinstance(value, Mapping) else field
            yield Cause("FieldValueInvalid", where, f"Invalid value: {said[key]!r}: {problem}")


def _problems(said: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(Annotation, what is wrong with it)."""
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
                yield key, problem
    for key, means in (
        (SUSPENDABLE, "it keeps what it has done, for example on a volume"),
        (INTERRUPTIBLE, "it may be stopped at any moment and is run again"),
    ):
        if said.get(key, "true") not in ("true", "false"):
            yield key, f'must be "true" ({means}) or "false"'
    if DEADLINE in said:
        try:
            parse_time(said[DEADLINE])
        except ValueError:
            yield DEADLINE, "must be a time such as 2030-01-31T06:00:00Z"
        if SLACK in said:
            yield SLACK, f"say either this or {DEADLINE}"
    if LEAST in said:
        if not (said[LEAST].isdecimal() and 1 <= int(said[LEAST]) <= 1_000_000):
            yield LEAST, "must be a whole number of pods, at least 1"
        elif said.get(SUSPENDABLE) != "true":
            yield LEAST, f'pods are stopped when the width changes: say {SUSPENDABLE}: "true", too'
    if WAITS_FOR in said:
        aims = said[WAITS_FOR].split(",")
        if not set(aims) <= set(AIMS) or len(set(aims)) < len(aims):
            yield WAITS_FOR, f"must be {AIMS[0]}, {AIMS[1]}, or both with a comma between them"


def lengths(job: Obj, said: Waiting, others: Iterable[Obj]) -> tuple[float, ...]:
    """Seconds that the Job may take: as stated, or as earlier ones of its namespace took that run the same. ``others``: Jobs of
    which these are some."""
    if said.duration:
        return (said.duration,)
    mine = alike(job)
    found = []
    for other in others:
        status = other.get("status") or {}
        same = uid(other) != uid(job) and namespace(other) == namespace(job) and is_true(other, "Complete")
        if same and status.get("startTime") and status.get("completionTime") and alike(other) == mine:
            ended = parse_time(status["completionTime"])
            found.append((ended, max(1.0, ended - parse_time(status["startTime"]))))
    return tuple(took for _, took in sorted(found, reverse=True)[:EARLIER_KEPT])


def alike(job: Obj) -> str:
    """What Jobs have in common that run the same."""
    spec = workload.pod_spec(job)
    return json.dumps([[c.get(k) for k in ("image", "command", "args")] for c in spec.get("containers") or ()])


def of_job(
    found: WorkloadInfo,
    job: Obj,
    intents: Iterable[Obj],
    others: Iterable[Obj],
    begun: Mapping[str, Any],
    taken: Mapping[str, float],
    now: float,
) -> WorkloadInfo:
    """A Job as decisions see it: when it may run, and on which capacity. ``begun``: what was decided of its start so far; what
    has not run yet may go elsewhere for a gain. ``taken``: see :class:`~metaos.resources.snapshot.Waits`. Without any idea how
    long it takes an hour counts. ``now``: seconds since the epoch."""
    said = asked(job, intents)
    if said is None:
        return found
    took = lengths(job, said, others)
    if said.interruptible:
        hours = (sum(took) / len(took) if took else HOUR_SECONDS) / HOUR_SECONDS
        found = replace(found, interruptible=Interruptible(hours, said.suspendable))
    if begun.get("started") or begun.get("ranSeconds") or is_true(job, "Complete") or is_true(job, "Failed"):
        return found
    metadata = {"creationTimestamp": format_time(now)} | job["metadata"]
    until, _ = waits_until({**job, "metadata": metadata}, said, took)
    most = workload.replicas(job)
    waits = Waits(
        now,
        until - now,
        took,
        said.suspendable and bool(took),
        (said.least or most, most),
        said.aims,
        tuple(sorted(taken.items())),
    )
    return replace(found, waits=waits, settled=found.settled and not begun)


def waits_until(job: Obj, said: Waiting, took: tuple[float, ...]) -> tuple[float, str]:
    """The latest start in seconds since the epoch, and what it follows from. A deadline without any idea of the length allows
    no waiting, unless ``activeDeadlineSeconds`` bounds it."""
    created = parse_time(job["metadata"]["creationTimestamp"])
    where = f" of Intent {said.intent}" if said.intent else ""
    if said.deadline is None:
        return created + (said.slack or 0.0), f"no more than a slack of {(said.slack or 0.0) / 3600:g} h{where} may be waited"
    bound = (job.get("spec") or {}).get("activeDeadlineSeconds")
    longest = max(took) * (1 + MARGIN_SHARE) + MARGIN_SECONDS if took else float(bound) if bound else math.inf
    if math.isinf(longest):
        return created, f"how long it runs is not known: state {DURATION} or spec.activeDeadlineSeconds for it to wait"
    return said.deadline - longest, f"no time is left to wait before the deadline{where}, {format_time(said.deadline)}"


def planned(obj: Obj, intents: Iterable[Obj], others: Iterable[Obj], now: float) -> str:
    """What a plan has to say of when a Job or CronJob runs that is not there yet, as it places without deciding that; empty: the
    figures hold from its start on, at once."""
    said = asked(obj, intents)
    if obj.get("kind") == "CronJob":
        later = f"; each run may start up to {(said.slack or 0.0) / HOUR_SECONDS:.3g} h later" if said is not None else ""
        return f"the figures count it as running all the time, and it runs by its schedule{later}"
    if said is None:
        return ""
    job = {**obj, "metadata": {**obj["metadata"], "creationTimestamp": format_time(now)}}
    until, why = waits_until(job, said, lengths(job, said, others))
    if until <= now:
        return f"starts at once: {why}"
    return f"may wait up to {(until - now) / HOUR_SECONDS:.3g} h; when it starts is decided once it is there"


def waits_at_most(job: Obj, said: Waiting) -> float:
    """When waiting is over whatever else is known, in seconds since the epoch."""
    if said.deadline is not None:
        return said.deadline
    return parse_time(job["metadata"]["creationTimestamp"]) + (said.slack or 0.0)
