"""What NEMO's own kinds must mean, beyond their schemas. Pure. Each message names the field, the value and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from metaos.apiserver.metadata import label_causes
from metaos.apiserver.schema import duplicate, forbidden, invalid, required
from metaos.resources import quantity
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj, label_selector


def intent_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if not spec.get("expectations"):
        yield required("spec.expectations", "say what is wanted, for example verb Ensure with a target latency")
    yield from _selector(spec.get("workloads"), "spec.workloads.selector")
    for i, expectation in enumerate(spec.get("expectations") or ()):
        if not expectation.get("targets"):
            yield required(f"spec.expectations[{i}].targets", "an expectation needs at least one target")
        for j, target in enumerate(expectation.get("targets") or ()):
            yield from _target(target, f"spec.expectations[{i}].targets[{j}]")


_UNITS = {"latency": r"(ms|s)\Z", "carbonIntensity": r"gCO2eq/kWh\Z", "energy": r"k?W\Z", "cost": r"[A-Z]{3}/(h|d|mo)\Z"}


def _target(target: Obj, path: str) -> Iterator[Cause]:
    name, condition, value = target.get("name"), target.get("condition") or "", target.get("value")
    many = condition in (
        "IsOneOf",
        "IsNotOneOf",
        "IsEqualToOneOf",
        "IsNotEqualToOneOf",
        "IsAllOf",
        "IsWithinRange",
        "IsOutsideRange",
    )
    if condition in ("Minimize", "Maximize"):
        if value is not None:
            yield invalid(
                f"{path}.value", value, f"{condition} takes no value: leave it out, or compare with IsLessThan or IsGreaterThan"
            )
    elif value is None:
        yield required(f"{path}.value", f"{condition} compares with a value")
    elif many and not isinstance(value, list):
        yield invalid(f"{path}.value", value, f"{condition} takes a list, for example [EU, ES]")
    elif name == "residency":
        if condition not in ("IsOneOf", "IsNotOneOf", "IsEqualTo", "IsEqualToOneOf", "IsNotEqualToOneOf", "IsAllOf"):
            yield invalid(
                f"{path}.condition", condition, "residency compares jurisdictions: use IsOneOf with a list, for example [EU]"
            )
    elif not many and (isinstance(value, bool) or not isinstance(value, int | float)):
        yield invalid(f"{path}.value", value, f"{name} is a number; write it without its unit, which goes into `unit`")
    elif name == "availability" and isinstance(value, int | float) and not 0 <= value <= 1:
        yield invalid(f"{path}.value", value, "availability is a fraction between 0 and 1, for example 0.999")
    unit = target.get("unit")
    if unit and name in _UNITS and not re.match(_UNITS[name], unit):
        shown = {"latency": "ms", "carbonIntensity": "gCO2eq/kWh", "energy": "W", "cost": "EUR/h"}[name]
        yield invalid(f"{path}.unit", unit, f"the unit of {name} is {shown}")


def _selector(workloads: Obj | None, path: str) -> Iterator[Cause]:
    selector = (workloads or {}).get("selector")
    if selector is not None:
        try:
            label_selector(selector)({})
        except (ValueError, KeyError) as wrong:
            yield invalid(path, selector, str(wrong))


def policy_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    yield from _selector(spec.get("workloads"), "spec.workloads.selector")
    yield from _selector({"selector": spec.get("clusterSelector")}, "spec.clusterSelector")
    for key, weight in ((spec.get("division") or {}).get("weights") or {}).items():
        if weight < 0:
            yield invalid(f"spec.division.weights.{key}", weight, "must not be negative; 0 keeps replicas away from this site")
    for i, override in enumerate(spec.get("overrides") or ()):
        touched = {"kind", "apiVersion"} & set(override.get("patch") or ())
        if touched:
            yield forbidden(f"spec.overrides[{i}].patch.{sorted(touched)[0]}", "an override may not change what an object is")


def cluster_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    for key, value in (spec.get("capacity") or {}).items():
        if quantity.parse(value) < 0:
            yield invalid(
                f"spec.capacity.{key}", value, "must not be negative; leave it out for no limit beyond the machine's own"
            )
    power = spec.get("power") or {}
    if power.get("maxWatts") is not None and power.get("idleWatts", 0) > power["maxWatts"]:
        yield invalid("spec.power.idleWatts", power["idleWatts"], f"must not exceed maxWatts ({power['maxWatts']}); swap them?")
    for i, path in enumerate(spec.get("hostPaths") or ()):
        if not path.startswith("/") or ".." in path.split("/"):
            yield invalid(f"spec.hostPaths[{i}]", path, "must be an absolute path without '..', for example /srv/data")
    seen: set[tuple[Any, Any]] = set()
    for i, taint in enumerate(spec.get("taints") or ()):
        yield from label_causes({taint.get("key") or "": taint.get("value") or ""}, f"spec.taints[{i}]")
        pair = (taint.get("key"), taint.get("effect"))
        if pair in seen:
            yield duplicate(f"spec.taints[{i}]", taint)
        seen.add(pair)
