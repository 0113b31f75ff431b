"""Cells of what a continuum is made of: sites (also as nodes), intents, policies, placements, works and usages. Pure."""

from __future__ import annotations

from typing import Any

from metaos.apiserver.cells import NONE, Cell, human_duration, joined, ratio, selector_text, spec, status
from metaos.resources import quantity
from metaos.resources.meta import Obj, condition, deleting, labels, parse_time


def _health(obj: Obj) -> str:
    ready = condition(obj, "Ready")
    return {"True": "Ready", "False": "NotReady"}.get(str((ready or {}).get("status")), "Unknown")


def node_status(node: Obj, now: float) -> str:
    return _health(node) + (",SchedulingDisabled" if spec(node).get("unschedulable") else "")


def node_roles(node: Obj, now: float) -> str:
    prefix = "node-role.kubernetes.io/"
    return joined(sorted(key.removeprefix(prefix) for key in labels(node) if key.startswith(prefix)))


def node_address(node: Obj, now: float) -> str:
    found = [a.get("address") for a in status(node).get("addresses") or () if a.get("type") == "InternalIP"]
    return str(found[0]) if found else NONE


def cluster_ready(cluster: Obj, now: float) -> str:
    found = condition(cluster, "Ready")
    shown = str(found.get("status")) if found else "Unknown"
    if deleting(cluster):
        return f"{shown},Leaving"
    return f"{shown},SchedulingDisabled" if spec(cluster).get("unschedulable") else shown


def region(cluster: Obj, now: float) -> str:
    return str((spec(cluster).get("location") or {}).get("region") or NONE)


def zone(cluster: Obj, now: float) -> str:
    return str((spec(cluster).get("electricity") or {}).get("zone") or NONE)


def carbon(cluster: Obj, now: float) -> str:
    """Grams per kWh now, else what the site file says."""
    found = (status(cluster).get("carbon") or {}).get("intensity")
    if found is None:
        found = (spec(cluster).get("electricity") or {}).get("carbonIntensity")
    return NONE if found is None else f"{float(found):.0f} g/kWh"


def _of_amounts(cluster: Obj, resource: str) -> str:
    used = (status(cluster).get("usage") or {}).get(resource)
    held = (status(cluster).get("allocatable") or status(cluster).get("capacity") or spec(cluster).get("capacity") or {}).get(
        resource
    )
    return f"{_short(used)}/{_short(held)}" if used is not None or held is not None else NONE


def _short(amount: Any) -> str:
    if amount is None:
        return "-"
    try:
        return f"{float(quantity.parse(amount)):.3g}"
    except ValueError:
        return str(amount)


def cluster_pods(cluster: Obj, now: float) -> str:
    return _of_amounts(cluster, "pods")


def cluster_cpu(cluster: Obj, now: float) -> str:
    return _of_amounts(cluster, "cpu")


def cluster_country(cluster: Obj, now: float) -> str:
    return str((spec(cluster).get("location") or {}).get("country") or NONE)


def cluster_agent(cluster: Obj, now: float) -> str:
    return str((status(cluster).get("nodeInfo") or {}).get("agentVersion") or NONE)


# -- intents, placements, works ----------------------------------------------------------------------------


def intent_targets(intent: Obj, now: float) -> str:
    """``met/all``, as the status counts them; before that, how many are wanted."""
    told = status(intent).get("targets")
    if told:
        return ratio(sum(t.get("fulfilment") == "Fulfilled" for t in told), len(told))
    return f"-/{sum(len(e.get('targets') or ()) for e in spec(intent).get('expectations') or ())}"


def placement_clusters(placement: Obj, now: float) -> str:
    found = spec(placement).get("clusters") or ()
    return joined(f"{c.get('name')}({c['replicas']})" if c.get("replicas", 1) != 1 else c.get("name") for c in found)


def placement_score(placement: Obj, now: float) -> str:
    chosen = {c.get("name") for c in spec(placement).get("clusters") or ()}
    found = [s for s in status(placement).get("scores") or () if s.get("cluster") in chosen] or []
    return f"{float(found[0].get('total') or 0):.3g}" if found else NONE


def placement_rejected(placement: Obj, now: float) -> int:
    return len(status(placement).get("rejected") or ())


def _holds(kind: str) -> Cell:
    def cell(obj: Obj, now: float) -> str:
        found = condition(obj, kind)
        return str(found.get("status")) if found else "Unknown"

    return cell


def policy_selector(policy: Obj, now: float) -> str:
    return selector_text((spec(policy).get("workloads") or {}).get("selector")).replace(NONE, "<all>")


def policy_clusters(policy: Obj, now: float) -> str:
    """Named sites, else the labels that sites must have."""
    named = (spec(policy).get("clusters") or {}).get("allowed")
    return joined(named) if named else selector_text(spec(policy).get("clusterSelector")).replace(NONE, "<all>")


def _unbooked(usage: Obj) -> list[Obj]:
    done = status(usage).get("booked") or 0
    return [period for period in spec(usage).get("periods") or () if (period.get("sequence") or 0) > done]


def usage_waiting(usage: Obj, now: float) -> int:
    return len(_unbooked(usage))


def usage_since(usage: Obj, now: float) -> str:
    found = _unbooked(usage)
    return human_duration(now - (found[0].get("start") or 0)) if found else NONE


def usage_meter(usage: Obj, now: float) -> str:
    """What the latest period's figures are from, with how far they may be off."""
    found: list[Obj] = spec(usage).get("periods") or [{}]
    meter = found[-1].get("meter") or {}
    return f"{meter.get('name')} ({meter.get('basis')}, ±{meter.get('uncertainty')})" if meter else NONE


def usage_refused(usage: Obj, now: float) -> int:
    return len(status(usage).get("refused") or ())


def device_in_sync(device: Obj, now: float) -> str:
    found = condition(device, "InSync")
    return str(found.get("status")) if found else "Unknown"


def device_app(device: Obj, now: float) -> str:
    app = status(device).get("app") or {}
    shown = app.get("version") or str(app.get("sha256") or "")[:8]
    return f"{shown} ({app.get('state')})" if shown else NONE


def device_seen(device: Obj, now: float) -> str:
    seen = status(device).get("lastSeenTime")
    return human_duration(now - parse_time(seen)) if seen else NONE


def device_waiting(device: Obj, now: float) -> int:
    return len(status(device).get("commands") or ())


#: What ``fn`` may say in ``tables.yaml``.
CELLS: dict[str, Cell] = {
    "node_status": node_status,
    "node_roles": node_roles,
    "node_address": node_address,
    "cluster_ready": cluster_ready,
    "region": region,
    "zone": zone,
    "carbon": carbon,
    "cluster_pods": cluster_pods,
    "cluster_cpu": cluster_cpu,
    "country": cluster_country,
    "agent_version": cluster_agent,
    "intent_targets": intent_targets,
    "placement_clusters": placement_clusters,
    "placement_score": placement_score,
    "placement_rejected": placement_rejected,
    "placement_healthy": _holds("Healthy"),
    "work_applied": _holds("Applied"),
    "work_available": _holds("Available"),
    "policy_selector": policy_selector,
    "policy_clusters": policy_clusters,
    "usage_waiting": usage_waiting,
    "usage_since": usage_since,
    "usage_meter": usage_meter,
    "usage_refused": usage_refused,
    "device_in_sync": device_in_sync,
    "device_app": device_app,
    "device_seen": device_seen,
    "device_waiting": device_waiting,
    "backed_up": _holds("BackedUp"),
    "store_jurisdictions": lambda store, now: joined(spec(store).get("jurisdictions") or ()),
}
