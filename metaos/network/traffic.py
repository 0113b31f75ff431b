"""Traffic that Intents state: what is wrong with it, and whether its round trips hold where everybody is now. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metaos.resources import quantity, scheme
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj, ObjectRef, namespace
from metaos.resources.snapshot import ClusterInfo
from metaos.resources.traffic import USUAL_KIND, endpoint, holders, round_trip

#: Of one intent. A decision looks at all edges of its workload.
MOST_EDGES = 200
KINDS = tuple(sorted(k.kind for k in scheme.WORKLOADS))
_WORKLOADS = frozenset(kind.lower() for kind in KINDS)
_AMOUNTS = ("bytesPerSecond", "responseBytesPerSecond")


def validate_traffic(obj: Obj) -> Iterator[Cause]:
    """What is wrong with ``spec.traffic`` beyond its schema; each cause names field, value and remedy."""
    spec = obj.get("spec") or {}
    stated = spec.get("traffic") or ()
    if len(stated) > MOST_EDGES:
        text = f"Too many: {len(stated)}: must have at most {MOST_EDGES} items; state the others in another intent"
        yield Cause("FieldValueTooMany", "spec.traffic", text)
        return
    counted = [i for i, raw in enumerate(stated) if raw.get("requestsPerSecond") is not None]
    seen: dict[tuple[str, str], int] = {}
    for i, raw in enumerate(stated):
        field = f"spec.traffic[{i}]"
        ends = [_end(raw.get(word) or {}) for word in ("from", "to")]
        wrong = [cause for word in ("from", "to") for cause in _end_causes(f"{field}.{word}", raw.get(word) or {})]
        yield from wrong
        if not wrong and not any(end.partition("/")[0] in _WORKLOADS for end in ends):
            yield _invalid(f"{field}.to", ends[1], "one end must be a workload: sites and data sets are where they are")
        elif not wrong and ends[0] == ends[1]:
            yield _invalid(f"{field}.to", ends[1], f"is the same as from; name who {ends[0]} talks to")
        elif not wrong and (first := seen.setdefault((ends[0], ends[1]), i)) != i:
            text = f"Duplicate value: '{ends[0]} to {ends[1]}': it is stated in spec.traffic[{first}] already; keep one of them"
            yield Cause("FieldValueDuplicate", field, text)
        yield from _amount_causes(field, raw)
        if counted and i not in counted:
            remedy = f"state it for every edge or for none, as edges weigh by it; spec.traffic[{counted[0]}] does"
            yield Cause("FieldValueRequired", f"{field}.requestsPerSecond", f"Required value: {remedy}")


def _amount_causes(field: str, raw: Mapping[str, Any]) -> Iterator[Cause]:
    for word, remedy in (
        ("requestsPerSecond", "must be a finite number above 0"),
        ("maxMilliseconds", "must be a finite number of at least 0"),
    ):
        value = raw.get(word)
        if value is not None and not (_finite(value) and (value > 0 or (value == 0 and word == "maxMilliseconds"))):
            yield _invalid(f"{field}.{word}", value, remedy)
    for word in _AMOUNTS:
        if raw.get(word) is not None and quantity.parse(raw[word]) < 0:
            yield _invalid(f"{field}.{word}", raw[word], "must not be negative; traffic the other way is responseBytesPerSecond")
    if raw.get("hard") and raw.get("maxMilliseconds") is None:
        yield Cause("FieldValueRequired", f"{field}.maxMilliseconds", "Required value: hard needs the round trip that must hold")


def _end_causes(field: str, raw: Mapping[str, Any]) -> Iterator[Cause]:
    given = [word for word in ("name", "cluster", "dataset") if raw.get(word)]
    if len(given) != 1:
        several = "not several of them" if given else "one of them is needed"
        yield _invalid(field, dict(raw), f"give the name of a workload, a cluster or a dataset: {several}")
    elif raw.get("kind") and not raw.get("name"):
        yield _invalid(f"{field}.kind", raw["kind"], f"goes with the name of a workload; leave it out for a {given[0]}")
    elif raw.get("kind") and raw["kind"] not in KINDS:
        yield _invalid(f"{field}.kind", raw["kind"], f"must be one of {', '.join(KINDS)}")


def _end(raw: Mapping[str, Any]) -> str:
    if raw.get("cluster"):
        return f"site {raw['cluster']}"
    if raw.get("dataset"):
        return f"data set {raw['dataset']}"
    return f"{str(raw.get('kind') or USUAL_KIND).lower()}/{raw.get('name')}"


def _finite(value: float) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _invalid(field: str, value: object, remedy: str) -> Cause:
    return Cause("FieldValueInvalid", field, f"Invalid value: {value!r}: {remedy}")


# -- assurance -----------------------------------------------------------------------------------------------


def judge_traffic(
    intent: Obj, places: Mapping[ObjectRef, Sequence[ClusterInfo]], sites: Mapping[str, ClusterInfo]
) -> list[tuple[str, dict[str, Any], str]]:
    """Of each edge with a longest round trip: its fulfilment, its row in ``Intent.status.targets``, and what there is to say
    where it does not hold. ``places``: where workloads are. A site's own endpoints go first; else the worst pair counts."""
    found = []
    for raw in (intent.get("spec") or {}).get("traffic") or ():
        if raw.get("maxMilliseconds") is None:
            continue
        most, hard = float(raw["maxMilliseconds"]), bool(raw.get("hard"))
        ends = [_sites(raw[word], namespace(intent), places, sites) for word in ("from", "to")]
        about = f"{_end(raw['from'])} to {_end(raw['to'])}"
        asked = {site.name for site in ends[1]}
        trips = [0.0 if a.name in asked else round_trip(a, b) for a in ends[0] for b in ends[1]]
        if any(raw[word].get("dataset") for word in ("from", "to")):
            # The nearest copy is used, whichever end it is.
            reads, copies = (ends[1], ends[0]) if raw["from"].get("dataset") else (ends[0], ends[1])
            each = [[t for b in copies if (t := round_trip(a, b)) is not None] for a in reads]
            trips = [min(known, default=None) for known in each]
        worst = max((t for t in trips if t is not None), default=None) if None not in trips else None
        good = worst is not None and worst <= most
        fulfilment = "Fulfilled" if good else "NotFulfilled" if hard else "Degraded"
        row: dict[str, Any] = {
            "name": "traffic",
            "workload": about,
            "fulfilment": fulfilment,
            "measurement": "round trip between the sites, as stated or estimated from their distance",
            "wanted": f"at most {most:g} ms",
            "unit": "ms",
        }
        if worst is not None:
            row["value"] = round(worst, 6)
        nowhere = [_end(raw[word]) for word, end in zip(("from", "to"), ends, strict=True) if not end]
        lost = "lies" if nowhere and nowhere[0].startswith("data set") else "is placed"
        now = f"{nowhere[0]} {lost} nowhere" if nowhere else "it is not known" if worst is None else f"it is {worst:.4g} ms"
        found.append((fulfilment, row, "" if good else f"{about}: the round trip shall be at most {most:g} ms, and {now}"))
    return found


def _sites(
    raw: Mapping[str, Any], where: str, places: Mapping[ObjectRef, Sequence[ClusterInfo]], sites: Mapping[str, ClusterInfo]
) -> Sequence[ClusterInfo]:
    about = endpoint(raw, where)
    if about is not None:
        return places.get(about, ())
    if raw.get("dataset"):
        return holders(str(raw["dataset"]), (sites[name] for name in sorted(sites)))
    found = sites.get(str(raw.get("cluster")))
    return () if found is None else (found,)
