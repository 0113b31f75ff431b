"""Intents: whether they hold, by which measurement, since when, and what could be had where they do not.

Vocabulary of 3GPP TS 28.312 and RFC 9315 (fulfilment, assurance). Measurements come from the snapshot: what sites report
and state. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaos.resources.errors import Cause
from metaos.resources.meta import Obj, format_time
from metaos.resources.snapshot import UNITS, ClusterInfo, Target, WorkloadInfo, base_unit, measure, meets, targets_of

CONDITIONS = ("IsLessThan", "IsGreaterThan", "IsOneOf", "Minimize", "Maximize")
#: Where a measurement comes from, in people's words.
MEASUREMENTS = {
    "latency": "round trip stated in the site's latencies",
    "carbonIntensity": "carbon intensity of the site's electricity zone now",
    "energy": "power by the site's power model and PUE",
    "cost": "the site's price list",
    "availability": "probability over the chosen sites, taken as independent",
    "residency": "the site's jurisdictions",
    "trust": "the site's trust level",
}
KNOWN = tuple(MEASUREMENTS)


@dataclass(frozen=True, slots=True)
class Judged:
    """One target for one workload. ``nearest``: (site, value) that comes closest, where the target does not hold."""

    target: Target
    fulfilment: str
    value: float | str | None
    nearest: tuple[str, float] | None
    gap: float | None


def judge(target: Target, workload: WorkloadInfo, placed: Sequence[ClusterInfo], everywhere: Sequence[ClusterInfo]) -> Judged:
    """A target's fulfilment where the workload is placed now: its worst site counts."""
    missed = "NotFulfilled" if target.hard else "Degraded"
    if target.name == "residency":
        where = sorted(c.name for c in placed if not c.jurisdictions & set(target.values))
        good = bool(placed) and not where
        return Judged(target, "Fulfilled" if good else "NotFulfilled", ", ".join(where) or None, None, None)
    if target.condition in ("Minimize", "Maximize"):
        values = [v for c in placed if (v := measure(target.name, c, workload, target.users_in)) is not None]
        return Judged(target, "Fulfilled" if values else missed, max(values, default=None), None, None)
    if target.name == "availability":
        value: float | None = 1.0 - math.prod(1.0 - c.availability for c in placed) if placed else None
        offer = ("all sites together", 1.0 - math.prod(1.0 - c.availability for c in everywhere)) if everywhere else None
    else:
        found = [measure(target.name, c, workload, target.users_in) for c in placed]
        known = [v for v in found if v is not None]
        worst = max if target.condition == "IsLessThan" else min
        value = worst(known) if known and len(known) == len(found) else None
        offer = _nearest(target, workload, everywhere)
    if meets(target, value):
        return Judged(target, "Fulfilled", value, None, None)
    gap = None if offer is None else abs(offer[1] - target.value)
    if offer is not None and meets(target, offer[1]):
        gap = 0.0
    return Judged(target, missed, value, offer, gap)


def _nearest(target: Target, workload: WorkloadInfo, clusters: Iterable[ClusterInfo]) -> tuple[str, float] | None:
    sign = 1.0 if target.condition == "IsLessThan" else -1.0
    offers = [
        (sign * value, c.name, value)
        for c in clusters
        if c.ready and (value := measure(target.name, c, workload, target.users_in)) is not None
    ]
    if not offers:
        return None
    _, name, value = min(offers)
    return name, value


def evaluate(
    intent: Obj,
    workloads: Sequence[tuple[WorkloadInfo, Sequence[ClusterInfo]]],
    clusters: Sequence[ClusterInfo],
    now: float,
) -> dict[str, Any]:
    """``Intent.status``. ``workloads``: each with the sites it is placed on. ``since`` stays while the fulfilment does."""
    before = intent.get("status") or {}
    rows: list[dict[str, Any]] = []
    worst = "Fulfilled" if workloads else "NotFulfilled"
    messages: list[str] = []
    for target in targets_of(intent):
        for workload, placed in workloads:
            found = judge(target, workload, placed, clusters)
            rows.append(_row(found, workload))
            worst = _worse(worst, found.fulfilment)
            if found.fulfilment != "Fulfilled":
                messages.append(_message(found, workload, placed))
    if not workloads:
        messages.append("no workload in this namespace is selected yet")
    since = before.get("since") if before.get("fulfilment") == worst else None
    message = "; ".join(messages) or "all targets hold"
    moment = since or format_time(now)
    return {
        "observedGeneration": int((intent.get("metadata") or {}).get("generation") or 0),
        "fulfilment": worst,
        "since": moment,
        "message": message,
        "targets": rows,
        "conditions": [
            {
                "type": "Fulfilled",
                "status": "True" if worst == "Fulfilled" else "False",
                "reason": worst,
                "message": message,
                "lastTransitionTime": moment,
            }
        ],
    }


_ORDER = ("Fulfilled", "Degraded", "NotFulfilled")


def _worse(left: str, right: str) -> str:
    return max(left, right, key=_ORDER.index)


def _row(found: Judged, workload: WorkloadInfo) -> dict[str, Any]:
    target, unit = found.target, base_unit(found.target.name)
    row: dict[str, Any] = {
        "name": target.name,
        "workload": f"{workload.ref.kind.lower()}/{workload.ref.name}",
        "fulfilment": found.fulfilment,
        "measurement": MEASUREMENTS.get(target.name, target.name),
        "wanted": wanted_text(target),
    }
    if unit:
        row["unit"] = unit
    if found.value is not None:
        row["value"] = round(found.value, 6) if isinstance(found.value, float) else found.value
    if found.nearest is not None:
        row["nearest"] = {"cluster": found.nearest[0], "value": round(found.nearest[1], 6), "gap": round(found.gap or 0.0, 6)}
    return row


def wanted_text(target: Target) -> str:
    """A target as people say it."""
    unit = base_unit(target.name)
    if target.condition == "IsOneOf" or target.values:
        return "one of " + ", ".join(target.values)
    if target.condition in ("Minimize", "Maximize"):
        return "as little as possible" if target.condition == "Minimize" else "as much as possible"
    than = "below" if target.condition == "IsLessThan" else "above"
    return f"{than} {target.value:g} {unit}".rstrip()


def _message(found: Judged, workload: WorkloadInfo, placed: Sequence[ClusterInfo]) -> str:
    target, unit = found.target, base_unit(found.target.name)
    about = f"{workload.ref.kind.lower()}/{workload.ref.name}: {target.name}"
    if target.users_in:
        about += f" from users in {', '.join(target.users_in)}"
    if target.name == "residency":
        return f"{about} must be {wanted_text(target)}; " + (f"it is also on {found.value}" if placed else "it is placed nowhere")
    now = (
        "it is placed nowhere"
        if not placed
        else "it is not known"
        if found.value is None
        else f"it is {found.value:.4g} {unit}".rstrip()
    )
    text = f"{about} shall be {wanted_text(target)}, and {now}"
    if found.nearest is not None:
        site, value = found.nearest
        offer = f"nearest offer: {value:.4g} {unit}".rstrip() + f" on {site}"
        short = "" if not found.gap else f", {found.gap:.4g} {unit} short".rstrip()
        text += f"; {offer}{short}"
    return text


# -- validation --------------------------------------------------------------------------------------------


def validate_intent(obj: Obj) -> list[Cause]:
    """What is wrong with an Intent beyond its schema; each cause names field, value and remedy."""
    causes: list[Cause] = []
    spec = obj.get("spec") or {}
    priority = spec.get("priority", 50)
    if not isinstance(priority, int) or not 0 <= priority <= 100:
        causes.append(
            Cause("FieldValueInvalid", "spec.priority", f"Invalid value: {priority!r}: must be a whole number from 0 to 100")
        )
    upper: dict[tuple[str, tuple[str, ...]], float] = {}
    lower: dict[tuple[str, tuple[str, ...]], float] = {}
    targets = targets_of(obj) if not causes else []
    index = 0
    for e, expectation in enumerate(spec.get("expectations") or ()):
        for t, target in enumerate(expectation.get("targets") or ()):
            field = f"spec.expectations[{e}].targets[{t}]"
            causes += _target_causes(field, target, expectation.get("contexts") or ())
            if index < len(targets):
                parsed = targets[index]
                key = (parsed.name, parsed.users_in)
                if parsed.condition == "IsLessThan":
                    upper[key] = min(parsed.value, upper.get(key, math.inf))
                elif parsed.condition == "IsGreaterThan":
                    lower[key] = max(parsed.value, lower.get(key, -math.inf))
                index += 1
    for key in sorted(upper.keys() & lower.keys()):
        if lower[key] >= upper[key]:
            what = f"{key[0]} is asked to be above {lower[key]:g} and below {upper[key]:g}: no value is both; remove one"
            causes.append(Cause("FieldValueInvalid", "spec.expectations", f"Invalid value: {what}"))
    return causes


def _finite(value: float) -> bool:
    """Also of whole numbers that no float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _target_causes(field: str, target: Mapping[str, Any], shared: Sequence[Mapping[str, Any]] = ()) -> list[Cause]:
    name, value, unit = target.get("name"), target.get("value"), target.get("unit")
    condition = target.get("condition", "IsLessThan")

    def wrong(part: str, found: object, remedy: str) -> list[Cause]:
        return [Cause("FieldValueInvalid", f"{field}.{part}", f"Invalid value: {found!r}: {remedy}")]

    if name not in KNOWN:
        return wrong("name", name, f"must be one of {', '.join(KNOWN)}")
    if condition not in CONDITIONS:
        return wrong("condition", condition, f"must be one of {', '.join(CONDITIONS)}")
    contexts = [*shared, *(target.get("contexts") or ())]
    if name == "latency" and not any(c.get("name") == "usersIn" and c.get("value") for c in contexts):
        remedy = "latency is counted from users: add a context, for example {name: usersIn, value: europe-west1}"
        return wrong("contexts", target.get("contexts"), remedy)
    if name in ("residency", "trust"):
        if condition != "IsOneOf":
            return wrong("condition", condition, f"must be IsOneOf for {name}")
        good = (isinstance(value, str) and value) or (
            isinstance(value, list) and value and all(isinstance(v, str) for v in value)
        )
        example = "[EU]" if name == "residency" else "[high]"
        return [] if good else wrong("value", value, f"must be a list of names, for example {example}")
    if condition in ("Minimize", "Maximize"):
        return []
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value) or value < 0:
        return wrong("value", value, "must be a finite number of at least 0")
    if unit not in (None, "") and unit not in UNITS[str(name)]:
        return wrong("unit", unit, f"must be one of {', '.join(u or 'no unit' for u in UNITS[str(name)])}")
    if name == "availability" and value * UNITS["availability"].get(str(unit or ""), 1.0) > 1:
        return wrong("value", value, "must be a probability of at most 1 (or 100 %)")
    return []
