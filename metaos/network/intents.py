"""Intents: whether they hold, by which measurement, since when, and what could be had where they do not.

Vocabulary of 3GPP TS 28.312 and RFC 9315 (fulfilment, assurance). Measurements come from the snapshot: what sites report
and state. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaos.resources.errors import Cause
from metaos.resources.measures import holds_at, measure
from metaos.resources.meta import Obj, format_time, name
from metaos.resources.reading import targets_of
from metaos.resources.reliability import up
from metaos.resources.snapshot import ClusterInfo, Target, Users, WorkloadInfo
from metaos.resources.targets import (
    ALL_OF,
    ANY_OF,
    LOWER,
    NONE_OF,
    RANGES,
    RECOVERY,
    TRUST_LEVELS,
    UNITS,
    UPPER,
    WISHES,
    base_unit,
    distance,
    meets,
    wanted_text,
)

#: Where a measurement comes from, in people's words.
MEASUREMENTS = {
    "latency": "round trip stated in the site's latencies",
    "carbonIntensity": "carbon intensity of the site's electricity zone now",
    "energy": "power by the site's power model and PUE",
    "emissions": "power, times the carbon intensity now, and a share of what the hardware embodies, by CPU",
    "cost": "the site's price list, with licences, egress, and what spot capacity is expected to lose",
    "availability": "probability that enough replicas are on sites that are up; sites of one region share causes of failure",
    "residency": "the site's jurisdictions",
    "trust": "the site's trust level",
    "attestation": "the condition Attested of the site",
}
KNOWN = tuple(MEASUREMENTS)
#: Targets whose values are names.
_NAMED = ("residency", "trust", "attestation")


#: Replicas that may be asked to be up: a probability is worked out for each number of them.
MOST_UP = 1_000
#: How many offers are kept for a workload that cannot have all that is asked.
OFFERS_KEPT = 3


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
    if target.name in _NAMED:
        where = sorted(c.name for c in placed if not holds_at(target, c, workload))
        good = bool(placed) and not where
        return Judged(target, "Fulfilled" if good else missed, ", ".join(where) or None, None, None)
    if target.condition in WISHES:
        values = [v for c in placed if (v := measure(target, c, workload)) is not None]
        return Judged(target, "Fulfilled" if values else missed, max(values, default=None), None, None)
    if target.name == "availability":
        here = [(c, workload.current.get(c.name, 1)) for c in placed]
        value: float | None = up(here, target.at_least) if placed else None
    else:
        found = [measure(target, c, workload) for c in placed]
        worst = max if target.condition in UPPER else min
        known = [v for v in found if v is not None]
        if target.condition in RANGES and known:
            value = max(known, key=lambda v: (distance(target, v), v))
        else:
            value = worst(known, default=None)
        if len(known) < len(found):
            value = None
    if meets(target, value):
        return Judged(target, "Fulfilled", value, None, None)
    # Looked for last, as it looks at all sites.
    if target.name == "availability":
        offer = ("all sites together", up([(c, 1) for c in everywhere], target.at_least)) if everywhere else None
    else:
        offer = _nearest(target, workload, everywhere)
    return Judged(target, missed, value, offer, None if offer is None else distance(target, offer[1]))


def _nearest(target: Target, workload: WorkloadInfo, clusters: Iterable[ClusterInfo]) -> tuple[str, float] | None:
    """The site that comes closest; of those that meet it the one that does so best, where there is a best."""
    sign = {**dict.fromkeys(UPPER, 1.0), **dict.fromkeys(LOWER, -1.0)}.get(target.condition, 0.0)
    offers = [
        (distance(target, value), sign * value, c.name, value)
        for c in clusters
        if c.ready and (value := measure(target, c, workload)) is not None
    ]
    if not offers:
        return None
    _, _, name, value = min(offers)
    return name, value


# -- combinations ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer:
    """What would have to be relaxed for a workload to run on a site: each target with the value that the site has."""

    cluster: str
    relaxed: tuple[tuple[Target, float | None], ...]

    @property
    def size(self) -> tuple[int, float, str]:
        """Fewer targets first, then by how far, in shares of what is asked; names of sites break ties."""
        return len(self.relaxed), sum(_share(t, v) for t, v in self.relaxed), self.cluster


def _share(target: Target, value: float | None) -> float:
    asked = max(abs(v) for v in (target.value, target.low, target.high, 1e-9) if not math.isnan(v))
    return distance(target, value) / asked


def offers(workload: WorkloadInfo, clusters: Iterable[ClusterInfo]) -> list[Offer]:
    """For each site on which hard targets do not hold together: which, the nearest site first. Residency is the law and trust is
    not for sale: what breaks them is no offer. Availability is met by several sites, so it is no single site's."""
    hard = [t for t in workload.targets if t.hard and t.name != "availability"]
    fixed = [t for t in hard if t.name in _NAMED]
    found = []
    for cluster in clusters:
        usable = cluster.ready and not cluster.unschedulable and not cluster.deleting
        if not usable or not all(holds_at(t, cluster, workload) for t in fixed):
            continue
        broken = [t for t in hard if t not in fixed and not holds_at(t, cluster, workload)]
        values = tuple((t, measure(t, cluster, workload)) for t in broken)
        if broken and all(v is not None for _, v in values):
            found.append(Offer(cluster.name, values))
    return sorted(found, key=lambda o: o.size)


def offer_text(found: Offer) -> str:
    """An offer as people say it."""
    parts = []
    for target, value in found.relaxed:
        assert value is not None
        unit = base_unit(target.name)
        short = f"{distance(target, value):.4g} {unit}".rstrip()
        parts.append(f"{target.name} {wanted_text(target)} were relaxed by {short} to {f'{value:.4g} {unit}'.rstrip()}")
    return f"{found.cluster} could take it if " + " and ".join(parts)


def offer_row(found: Offer, workload: WorkloadInfo) -> dict[str, Any]:
    """An offer as data."""
    relax = [
        {
            "name": target.name,
            "intent": target.intent,
            "wanted": wanted_text(target),
            "value": round(value, 6),
            "gap": round(distance(target, value), 6),
            **({"unit": base_unit(target.name)} if base_unit(target.name) else {}),
        }
        for target, value in found.relaxed
        if value is not None
    ]
    return {"workload": f"{workload.ref.kind.lower()}/{workload.ref.name}", "cluster": found.cluster, "relax": relax}


def evaluate(
    intent: Obj,
    workloads: Sequence[tuple[WorkloadInfo, Sequence[ClusterInfo]]],
    clusters: Sequence[ClusterInfo],
    now: float,
    others: Sequence[tuple[str, dict[str, Any], str]] = (),
) -> dict[str, Any]:
    """``Intent.status``. ``workloads``: each with the sites it is placed on. ``others``: what ``metaos.network.traffic`` and
    ``metaos.network.recovery`` say. ``since`` stays while the fulfilment does."""
    before = intent.get("status") or {}
    rows: list[dict[str, Any]] = []
    worst = "Fulfilled" if workloads else "NotFulfilled"
    messages: list[str] = []
    proposals: list[dict[str, Any]] = []
    for target in (t for t in targets_of(intent) if t.name not in RECOVERY):
        for workload, placed in workloads:
            found = judge(target, workload, placed, clusters)
            rows.append(_row(found, workload))
            worst = _worse(worst, found.fulfilment)
            if found.fulfilment != "Fulfilled":
                messages.append(_message(found, workload, placed))
    for fulfilment, row, text in others:
        rows.append(row)
        worst = _worse(worst, fulfilment)
        messages += [text] if text else []
    own = name(intent)
    for workload, placed in workloads:
        if any(c.name for c in placed):
            continue
        # Placed nowhere: which targets are in the way together, of all intents of the workload.
        possible = [o for o in offers(workload, clusters) if any(t.intent == own for t, _ in o.relaxed)][:OFFERS_KEPT]
        proposals += [offer_row(o, workload) for o in possible]
        if possible:
            messages.append(f"{workload.ref.kind.lower()}/{workload.ref.name}: {offer_text(possible[0])}")
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
        **({"offers": proposals} if proposals else {}),
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


def _message(found: Judged, workload: WorkloadInfo, placed: Sequence[ClusterInfo]) -> str:
    target, unit = found.target, base_unit(found.target.name)
    about = f"{workload.ref.kind.lower()}/{workload.ref.name}: {target.name}{target.users.text}"
    if target.name in _NAMED:
        return f"{about} must be {wanted_text(target)}; " + (
            f"it does not hold on {found.value}" if placed else "it is placed nowhere"
        )
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
    asked: dict[tuple[str, Users], list[Target]] = {}
    for e, expectation in enumerate(spec.get("expectations") or ()):
        for t, target in enumerate(expectation.get("targets") or ()):
            field = f"spec.expectations[{e}].targets[{t}]"
            causes += _target_causes(field, target, expectation.get("contexts") or ())
    if not causes:
        for parsed in targets_of(obj):
            asked.setdefault((parsed.name, parsed.users), []).append(parsed)
        for (what, _), same in asked.items():
            causes += _contradiction(what, same)
    return causes


def _contradiction(what: str, same: Sequence[Target]) -> list[Cause]:
    """Bounds on one thing that no value can meet together."""
    upper = [(t.value, t.condition == "IsLessThan", t) for t in same if t.condition in UPPER]
    upper += [(t.high, False, t) for t in same if t.condition == "IsWithinRange"]
    lower = [(t.value, t.condition == "IsGreaterThan", t) for t in same if t.condition in LOWER]
    lower += [(t.low, False, t) for t in same if t.condition == "IsWithinRange"]
    for high, below, one in upper:
        for low, above, other in lower:
            if low > high or (low == high and (below or above)):
                text = f"{what} is asked to be {wanted_text(other)} and {wanted_text(one)}: no value is both; remove one"
                return [Cause("FieldValueInvalid", "spec.expectations", f"Invalid value: {text}")]
    return []


def _finite(value: float) -> bool:
    """Also of whole numbers that no float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _target_causes(field: str, target: Mapping[str, Any], shared: Sequence[Mapping[str, Any]] = ()) -> list[Cause]:
    name = target.get("name")
    condition = target.get("condition", "IsLessThan")

    def wrong(part: str, found: object, remedy: str) -> list[Cause]:
        return [Cause("FieldValueInvalid", f"{field}.{part}", f"Invalid value: {found!r}: {remedy}")]

    if name not in ALLOWED:
        return wrong("name", name, f"must be one of {', '.join(ALLOWED)}")
    if condition not in ALLOWED[str(name)]:
        return wrong("condition", condition, _condition_remedy(str(name), str(condition)))
    contexts = [*shared, *(target.get("contexts") or ())]
    ups = [c.get("value") for c in contexts if c.get("name") == "replicasUp"]
    if ups and name != "availability":
        return wrong("contexts", ups[0], "replicasUp goes with availability alone")
    for value in ups:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_UP:
            return wrong("contexts", value, f"replicasUp must be a whole number from 1 to {MOST_UP}")
    if name == "latency" and not any(c.get("name") == "usersIn" and c.get("value") for c in contexts):
        remedy = "latency is counted from users: add a context, for example {name: usersIn, value: europe-west1}"
        return wrong("contexts", target.get("contexts"), remedy) + _value_causes(target, wrong)
    for users in (c.get("value") for c in contexts if c.get("name") == "usersIn"):
        if remedy := _users_remedy(users):
            return wrong("contexts", users, remedy)
    return _value_causes(target, wrong)


def _users_remedy(users: object) -> str:
    """What to write instead; empty where the regions are right."""
    if isinstance(users, Mapping):
        for share in users.values():
            if isinstance(share, bool) or not isinstance(share, int | float) or not _finite(share) or share <= 0:
                return "usersIn with shares takes numbers above 0, for example {europe-west1: 0.8, us-east1: 0.2}"
        users = list(users)
    named = users if isinstance(users, list) else [users]
    if not named or not all(isinstance(region, str) and region for region in named):
        return "usersIn takes a region, a list of regions, or a map from regions to the shares of users there"
    return ""


def _value_causes(target: Mapping[str, Any], wrong: Callable[[str, object, str], list[Cause]]) -> list[Cause]:
    name, condition = target.get("name"), target.get("condition", "IsLessThan")
    value, unit = target.get("value"), target.get("unit")
    if name in _NAMED:
        return _names_causes(str(name), str(condition), value, wrong)
    if condition in WISHES:
        return [] if value is None else wrong("value", value, f"{condition} takes no value: leave it out, or give a bound")
    numbers: list[Any] = value if condition in RANGES and isinstance(value, list) else [value]
    if condition in RANGES and len(numbers) != 2:
        return wrong("value", value, f"{condition} takes the two ends of the range, for example [10, 40]")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not _finite(number) or number < 0:
            return wrong("value", number, "must be a finite number of at least 0")
    if condition in RANGES and numbers[0] > numbers[1]:
        return wrong("value", value, f"the lower end comes first: [{numbers[1]:g}, {numbers[0]:g}]")
    if unit not in (None, "") and unit not in UNITS[str(name)]:
        return wrong("unit", unit, f"must be one of {', '.join(u or 'no unit' for u in UNITS[str(name)])}")
    if name == "availability" and any(n * UNITS["availability"].get(str(unit or ""), 1.0) > 1 for n in numbers):
        return wrong("value", value, "must be a probability of at most 1 (or 100 %)")
    return []


def _names_causes(name: str, condition: str, value: Any, wrong: Callable[[str, object, str], list[Cause]]) -> list[Cause]:
    example = {"residency": "EU", "trust": "high"}.get(name, "software")
    single = condition in ("IsEqualTo", "IsGreaterThanOrEqualTo")
    named = [value] if isinstance(value, str) else value
    if not isinstance(named, list) or not named or not all(isinstance(v, str) and v for v in named):
        shape = f"a name, for example {example}" if single else f"a list of names, for example [{example}]"
        return wrong("value", value, f"must be {shape}")
    if single and len(named) != 1:
        return wrong("value", value, f"{condition} takes one name, for example {example}; for several use IsOneOf")
    if name == "trust" and (unknown := [v for v in named if v not in TRUST_LEVELS]):
        return wrong("value", unknown[0], f"must be one of {', '.join(TRUST_LEVELS)}")
    return []


def _condition_remedy(name: str, condition: str) -> str:
    allowed = f"must be one of {', '.join(ALLOWED[name])} for {name}"
    if condition == "IsEqualTo":
        return f"{allowed}: a measured value is never exactly another one; give the range that will do with IsWithinRange"
    if condition == "Maximize":
        return f"{allowed}: less of it is better; for a lower bound use IsGreaterThan"
    if name == "availability":
        return f"{allowed}: more of it is better, so it has a lower bound only"
    return allowed


_NUMBERS = (*UPPER, *LOWER, *RANGES, "Minimize")
#: Which of TS 28.312's conditions can be decided for which target. Others are refused, not ignored.
ALLOWED: dict[str, tuple[str, ...]] = {
    "latency": _NUMBERS,
    "carbonIntensity": _NUMBERS,
    "emissions": _NUMBERS,
    "energy": _NUMBERS,
    "cost": _NUMBERS,
    "availability": (*LOWER, "Maximize"),
    "residency": (*ANY_OF, *NONE_OF, *ALL_OF),
    "trust": (*ANY_OF, *NONE_OF, "IsGreaterThanOrEqualTo"),
    "attestation": ANY_OF,
    "rpo": UPPER,
    "rto": UPPER,
}
