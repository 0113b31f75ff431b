"""Cells of the kinds around workloads: networking, policy, storage, autoscaling. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from metaos.apiserver.cells import NONE, UNKNOWN, Cell, spec
from metaos.resources import quantity
from metaos.resources.meta import Obj, condition


def _listed(values: list[str]) -> str:
    return ",".join(values[:3]) + (f" + {len(values) - 3} more..." if len(values) > 3 else "")


def ingress_hosts(ingress: Obj, now: float) -> str:
    return _listed([r["host"] for r in spec(ingress).get("rules") or () if r.get("host")]) or "*"


def ingress_ports(ingress: Obj, now: float) -> str:
    return "80, 443" if spec(ingress).get("tls") else "80"


def import_addresses(found: Obj, now: float) -> str:
    return ",".join(map(str, spec(found).get("ips") or ()))


def export_valid(export: Obj, now: float) -> str:
    return str((condition(export, "Valid") or {}).get("status") or "Unknown")


def export_conflict(export: Obj, now: float) -> str:
    return str((condition(export, "Conflict") or {}).get("status") or "Unknown")


def load_balancer(obj: Obj, now: float) -> str:
    found = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return ",".join(str(i.get("ip") or i.get("hostname") or "") for i in found)


def class_parameters(ingress_class: Obj, now: float) -> str:
    found = spec(ingress_class).get("parameters")
    if not found:
        return NONE
    kind = f"{found.get('kind')}.{found['apiGroup']}" if found.get("apiGroup") else found.get("kind")
    return f"{kind}/{found.get('name')}"


def expansion(storage_class: Obj, now: float) -> str:
    return "true" if storage_class.get("allowVolumeExpansion") else "false"


def volume_capacity(volume: Obj, now: float) -> str:
    return str((spec(volume).get("capacity") or {}).get("storage") or "")


def volume_claim(volume: Obj, now: float) -> str:
    claim = spec(volume).get("claimRef")
    return f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else ""


def scale_target(scaler: Obj, now: float) -> str:
    target = spec(scaler).get("scaleTargetRef") or {}
    return f"{target.get('kind', '')}/{target.get('name', '')}"


def scale_metrics(scaler: Obj, now: float) -> str:
    """Each metric as ``name: now/wanted``."""
    measured = {_metric_name(m): _amount(m, "current") for m in (scaler.get("status") or {}).get("currentMetrics") or ()}
    found = []
    for metric in spec(scaler).get("metrics") or ():
        name = _metric_name(metric)
        found.append(f"{name}: {measured.get(name) or '<unknown>'}/{_amount(metric, 'target')}")
    percent = spec(scaler).get("targetCPUUtilizationPercentage")
    if percent is not None:
        now_used = (scaler.get("status") or {}).get("currentCPUUtilizationPercentage")
        found.append(f"cpu: {'<unknown>' if now_used is None else f'{now_used}%'}/{percent}%")
    return _listed(found) or NONE


def _source(metric: Obj) -> Obj:
    kind = str(metric.get("type") or "")
    found: Any = metric.get(kind[:1].lower() + kind[1:])
    return found or {}


def _metric_name(metric: Obj) -> str:
    source = _source(metric)
    return str(source.get("name") or (source.get("metric") or {}).get("name") or "")


def _amount(metric: Obj, key: str) -> str:
    amount = _source(metric).get(key) or {}
    if amount.get("averageUtilization") is not None:
        return f"{amount['averageUtilization']}%"
    return str(amount.get("averageValue") or amount.get("value") or "")


def _used(measurement: Obj, resource: str) -> Fraction:
    return sum((quantity.parse(c["usage"].get(resource, 0)) for c in measurement.get("containers") or ()), Fraction(0))


def pod_cpu(measurement: Obj, now: float) -> str:
    return quantity.format_milli(round(_used(measurement, "cpu") * 1000))


def pod_memory(measurement: Obj, now: float) -> str:
    return f"{round(_used(measurement, 'memory') / 2**20)}Mi"


# -- quotas, definitions and admission -------------------------------------------------------------------------


def _quota(quota: Obj, limits: bool) -> str:
    status = quota.get("status") or {}
    hard, used = status.get("hard") or {}, status.get("used") or {}
    names = sorted(name for name in hard if name.startswith("limits") == limits)
    return ", ".join(f"{name}: {used.get(name, '0')}/{hard[name]}" for name in names)


def param_kind(policy: Obj, now: float) -> str:
    found = (policy.get("spec") or {}).get("paramKind") or {}
    return f"{found.get('apiVersion')}/{found.get('kind')}" if found else "<unset>"


def param_ref(binding: Obj, now: float) -> str:
    found = (binding.get("spec") or {}).get("paramRef") or {}
    if not found:
        return "<unset>"
    named = found.get("name") or "*"
    return f"{found['namespace']}/{named}" if found.get("namespace") else str(named)


CELLS: Mapping[str, Cell] = {
    "created": lambda obj, now: str(obj["metadata"].get("creationTimestamp") or UNKNOWN),
    "quota_requests": lambda obj, now: _quota(obj, limits=False),
    "quota_limits": lambda obj, now: _quota(obj, limits=True),
    "validation_count": lambda obj, now: len((obj.get("spec") or {}).get("validations") or ()),
    "webhook_count": lambda obj, now: len(obj.get("webhooks") or ()),
    "param_kind": param_kind,
    "param_ref": param_ref,
    "ingress_hosts": ingress_hosts,
    "ingress_ports": ingress_ports,
    "load_balancer": load_balancer,
    "import_addresses": import_addresses,
    "export_valid": export_valid,
    "export_conflict": export_conflict,
    "class_parameters": class_parameters,
    "expansion": expansion,
    "volume_capacity": volume_capacity,
    "volume_claim": volume_claim,
    "scale_target": scale_target,
    "scale_metrics": scale_metrics,
    "pod_cpu": pod_cpu,
    "pod_memory": pod_memory,
}
