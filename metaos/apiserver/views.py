"""Kinds that are shown but not kept: each is another form of the objects of a stored kind. Pure.

Reads convert with ``show``; a write is made on the shown form and carried back with ``write_back``, so that every rule
of the stored kind holds for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from metaos.apiserver import nodes
from metaos.resources import errors, scheme
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind


@dataclass(frozen=True, slots=True)
class View:
    """``show``: the stored object in this form. ``write_back(shown, stored)``: the stored object after the shown form was
    written. ``refuse_create``: the error where objects are not made in this form. ``read_only``: subresources cannot be written.
    ``changes_labels``: label selectors see other labels than the stored object has."""

    stored: Kind
    show: Callable[[Obj], Obj]
    write_back: Callable[[Obj, Obj], Obj]
    refuse_create: Callable[[], errors.ApiError] | None = None
    read_only: bool = False
    changes_labels: bool = False


def of(kind: Kind) -> View | None:
    return VIEWS.get(kind)


# -- autoscaling/v1 ------------------------------------------------------------------------------------------

_CPU = "targetCPUUtilizationPercentage"


def _is_cpu(metric: Obj) -> bool:
    resource = metric.get("resource") or {}
    return metric.get("type") == "Resource" and resource.get("name") == "cpu"


def scaler_v1(stored: Obj) -> Obj:
    """autoscaling/v2 as v1, which knows one target: the utilisation of the CPU."""
    shown = {**stored, "apiVersion": "autoscaling/v1"}
    spec = {k: v for k, v in (stored.get("spec") or {}).items() if k not in ("metrics", "behavior")}
    for metric in (stored.get("spec") or {}).get("metrics") or ():
        used = (metric.get("resource") or {}).get("target", {}).get("averageUtilization")
        if _is_cpu(metric) and used is not None:
            spec[_CPU] = used
    shown["spec"] = spec
    if "status" in stored:
        held = stored["status"]
        status = {k: v for k, v in held.items() if k not in ("currentMetrics", "conditions")}
        for metric in held.get("currentMetrics") or ():
            used = (metric.get("resource") or {}).get("current", {}).get("averageUtilization")
            if _is_cpu(metric) and used is not None:
                status["currentCPUUtilizationPercentage"] = used
        shown["status"] = {"currentReplicas": 0, "desiredReplicas": 0} | status
    return shown


def scaler_v2(shown: Obj, stored: Obj) -> Obj:
    """The v2 object after its v1 form was written: what v1 cannot say stays as it was."""
    held, wanted = stored.get("spec") or {}, dict(shown.get("spec") or {})
    percent = wanted.pop(_CPU, None)
    metrics = [m for m in held.get("metrics") or () if not _is_cpu(m)]
    if percent is not None:
        target = {"type": "Utilization", "averageUtilization": percent}
        metrics.insert(0, {"type": "Resource", "resource": {"name": "cpu", "target": target}})
    if metrics:
        wanted["metrics"] = metrics
    if "behavior" in held:
        wanted["behavior"] = held["behavior"]
    found = {**shown, "apiVersion": "autoscaling/v2", "spec": wanted}
    if "status" in shown:
        kept = {k: v for k, v in (stored.get("status") or {}).items() if k in ("currentMetrics", "conditions")}
        status = {k: v for k, v in shown["status"].items() if k != "currentCPUUtilizationPercentage"}
        used = shown["status"].get("currentCPUUtilizationPercentage")
        if used is not None:
            others = [m for m in kept.get("currentMetrics") or () if not _is_cpu(m)]
            metric = {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": used}}}
            kept["currentMetrics"] = [metric, *others]
        found["status"] = status | kept
    return copy.deepcopy(found)


#: In which forms stored kinds are shown too. Another joins here.
VIEWS: Mapping[Kind, View] = {
    scheme.NODE: View(scheme.CLUSTER, nodes.show, nodes.write_back, nodes.refuse_create, read_only=True, changes_labels=True),
    scheme.HORIZONTAL_POD_AUTOSCALER_V1: View(scheme.HORIZONTAL_POD_AUTOSCALER, scaler_v1, scaler_v2),
}
