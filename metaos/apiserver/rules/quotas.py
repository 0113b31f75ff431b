"""ResourceQuotas and LimitRanges. Source: ``ValidateResourceQuota`` and ``ValidateLimitRange`` of Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator

from metaos.apiserver.schema import duplicate, forbidden, invalid
from metaos.resources import quantity
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj
from metaos.resources.quotas import countable

#: Of a LimitRange, what may not be above what. Kubernetes fills in nothing before it looks.
_ORDER = (
    ("min", "max"),
    ("min", "default"),
    ("default", "max"),
    ("min", "defaultRequest"),
    ("defaultRequest", "max"),
    ("defaultRequest", "default"),
)


def quota(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    for key, value in ((obj.get("spec") or {}).get("hard") or {}).items():
        path = f"spec.hard[{key}]"
        if not countable(key):
            text = "is nothing that is counted: for example pods, requests.cpu, limits.memory or count/deployments.apps"
            yield invalid(path, key, text)
        elif quantity.parse(value) < 0:
            yield invalid(path, value, "must be greater than or equal to 0")


def limit_range(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    seen = set()
    for i, item in enumerate((obj.get("spec") or {}).get("limits") or ()):
        path = f"spec.limits[{i}]"
        if item.get("type") in seen:
            yield duplicate(f"{path}.type", item["type"])
        seen.add(item.get("type"))
        for field in ("default", "defaultRequest"):
            if item.get("type") == "Pod" and item.get(field):
                yield forbidden(
                    f"{path}.{field}", "may not be specified when `type` is 'Pod': its containers get it with type Container"
                )
        for below, above in _ORDER:
            most = item.get(above) or {}
            for key, value in (item.get(below) or {}).items():
                if key in most and quantity.parse(value) > quantity.parse(most[key]):
                    yield invalid(f"{path}.{below}[{key}]", value, f"must be at most {above}, which is {most[key]}")
