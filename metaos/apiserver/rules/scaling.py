"""PodDisruptionBudget and HorizontalPodAutoscaler. Source: ``pkg/apis/{policy,autoscaling}/validation`` of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from metaos.apiserver.rules.selecting import selector_causes
from metaos.apiserver.schema import forbidden, invalid, required
from metaos.resources import quantity
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj

_PERCENT = re.compile(r"[0-9]+%\Z")
PERCENT_TEXT = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"  # fmt: skip  # noqa: E501


def amount_causes(value: Any, path: str) -> Iterator[Cause]:
    """A count of at least 0, or a percentage."""
    if isinstance(value, str):
        if not _PERCENT.match(value):
            yield invalid(path, value, PERCENT_TEXT)
    elif isinstance(value, int) and value < 0:
        yield invalid(path, value, "must be greater than or equal to 0")


def share_causes(value: Any, path: str) -> Iterator[Cause]:
    if isinstance(value, str) and _PERCENT.match(value) and int(value[:-1]) > 100:
        yield invalid(path, value, "must not be greater than 100%")


def disruption_budget(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        yield invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set")
    for field in ("minAvailable", "maxUnavailable"):
        value = spec.get(field)
        yield from amount_causes(value, f"spec.{field}")
        yield from share_causes(value, f"spec.{field}")
    yield from selector_causes(spec.get("selector"), "spec.selector")


#: Type of a metric → its field.
_SOURCES = {
    "Object": "object",
    "Pods": "pods",
    "Resource": "resource",
    "ContainerResource": "containerResource",
    "External": "external",
}


def autoscaler(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    least, most = spec.get("minReplicas"), spec.get("maxReplicas")
    if least is not None and least < 1:
        yield invalid("spec.minReplicas", least, "must be greater than or equal to 1")
    if most == 0:
        yield required("spec.maxReplicas", "must be set and greater than 0")
    elif most is not None and most < 0:
        yield invalid("spec.maxReplicas", most, "must be greater than or equal to 1")
    if least is not None and most is not None and most < least:
        yield invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`")
    target = spec.get("scaleTargetRef") or {}
    for field in ("kind", "name"):
        if not target.get(field):
            yield required(f"spec.scaleTargetRef.{field}")
    for i, metric in enumerate(spec.get("metrics") or ()):
        yield from _metric(metric, f"spec.metrics[{i}]")
    for field in ("scaleUp", "scaleDown"):
        yield from _behavior((spec.get("behavior") or {}).get(field) or {}, f"spec.behavior.{field}")


def _metric(metric: Obj, path: str) -> Iterator[Cause]:
    kind = metric.get("type") or ""
    if not kind:
        yield required(f"{path}.type", "must specify a metric source type")
        return
    field = _SOURCES.get(kind)
    if field is None:
        return  # Said by the table of values.
    for other in _SOURCES.values():
        if other != field and metric.get(other) is not None:
            yield forbidden(f"{path}.{other}", "must populate the given metric source only")
    source = metric.get(field)
    if source is None:
        yield required(f"{path}.{field}", "must populate information for the given metric source")
        return
    if kind in ("Resource", "ContainerResource"):
        if not source.get("name"):
            yield required(f"{path}.{field}.name", "must specify a resource name")
    elif not (source.get("metric") or {}).get("name"):
        yield required(f"{path}.{field}.metric.name", "must specify a metric name")
    yield from _target(source.get("target") or {}, f"{path}.{field}.target")


def _target(target: Obj, path: str) -> Iterator[Cause]:
    if not target.get("type"):
        yield required(f"{path}.type", "must specify a metric target type")
    used = target.get("averageUtilization")
    if used is not None and used < 1:
        yield invalid(f"{path}.averageUtilization", used, "must be greater than 0")
    for field in ("value", "averageValue"):
        if target.get(field) is not None and quantity.parse(target[field]) <= 0:
            yield invalid(f"{path}.{field}", target[field], "must be positive")
    if all(target.get(field) is None for field in ("averageUtilization", "value", "averageValue")):
        yield required(path, "must specify one of: averageUtilization, averageValue, value")


def _behavior(rules: Obj, path: str) -> Iterator[Cause]:
    window = rules.get("stabilizationWindowSeconds")
    if window is not None and window < 0:
        yield invalid(f"{path}.stabilizationWindowSeconds", window, "must be greater than or equal to zero")
    if window is not None and window > 3600:
        yield invalid(f"{path}.stabilizationWindowSeconds", window, "must be less than or equal to 3600")
    for i, policy in enumerate(rules.get("policies") or ()):
        if policy.get("value", 0) <= 0:
            yield invalid(f"{path}.policies[{i}].value", policy.get("value", 0), "must be greater than zero")
        if policy.get("periodSeconds", 0) <= 0:
            yield invalid(f"{path}.policies[{i}].periodSeconds", policy.get("periodSeconds", 0), "must be greater than zero")
        elif policy["periodSeconds"] > 1800:
            yield invalid(f"{path}.policies[{i}].periodSeconds", policy["periodSeconds"], "must be less than or equal to 1800")
