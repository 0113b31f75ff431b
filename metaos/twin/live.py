"""A copy of the running continuum as a scenario: sites, workloads and what people asked for.

Not copied, and told with every copy (``Copy.told``): where things run now (in the twin all is decided anew, and starts at the
beginning), Jobs that have ended and how far the others are, pods that belong to no workload and run already, the values of
Secrets, and the settings of hub and agents. Of carbon there is as much as the hub has forecast for zones; beyond, the
forecast is repeated. Where there is no forecast, the intensity of now holds all the time.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaos.client import Client
from metaos.controllers.facts import finished
from metaos.resources import meta, scheme
from metaos.resources.meta import (
    CLUSTER_LABEL,
    TAINT_UNREACHABLE,
    Obj,
    controller_of,
    deleting,
    labels,
    name,
    namespace,
)

#: In this order they can be made: what is referred to comes first.
COPIED = (
    scheme.NAMESPACE,
    scheme.PRIORITY_CLASS,
    scheme.CONFIG_MAP,
    scheme.SECRET,
    scheme.PERSISTENT_VOLUME_CLAIM,
    scheme.SERVICE,
    scheme.NETWORK_POLICY,
    scheme.POD_DISRUPTION_BUDGET,
    scheme.PLACEMENT_POLICY,
    scheme.INTENT,
    *scheme.WORKLOADS,
)
#: Of a scenario alone: a replay of the ledger has the replicas and prices that were.
SCENARIO = (scheme.HORIZONTAL_POD_AUTOSCALER, scheme.TARIFF)
_OWN = ("nemo-", "kube-")
_SYSTEM = "system-"
_HIDDEN = "kept at home"
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class LiveCopy:
    """``text``: the scenario as data; ``trace``: a carbon trace (CSV) that belongs to it, empty where no site has a forecast for
    its zone; ``told``: what was not copied, and what that means."""

    text: dict[str, Any]
    trace: str
    told: tuple[str, ...]


async def scenario_of(client: Client, hours: float) -> LiveCopy:
    """To be played from now on."""
    clusters = [obj for obj in (await client.list(scheme.CLUSTER)).items if not deleting(obj)]
    found = await copy_of(client, hours)
    for kind in SCENARIO:
        found["objects"] += [_lean(obj, kind) for obj in (await client.list(kind)).items if _wanted(obj, kind)]
    over = {(namespace(job), name(job)) for job in (await client.list(scheme.JOB)).items if finished(job)}
    found["objects"] = [obj for obj in found["objects"] if not (obj["kind"] == "Job" and (namespace(obj), name(obj)) in over)]
    pods = sum(_alone(pod) for pod in (await client.list(scheme.POD)).items)
    trace = _trace(clusters)
    return LiveCopy(found, trace, _told(clusters, len(over), pods, trace))


async def copy_of(client: Client, hours: float) -> dict[str, Any]:
    """The scenario's text as data, with Jobs that have ended. What is being deleted is left out."""
    sites = [_site(obj) for obj in (await client.list(scheme.CLUSTER)).items if not deleting(obj)]
    objects: list[Obj] = []
    for kind in COPIED:
        objects += [_lean(obj, kind) for obj in (await client.list(kind)).items if _wanted(obj, kind)]
    return {
        "title": "A copy of the running continuum.",
        "duration": f"{hours:g}h",
        "sites": sites,
        "objects": objects,
        "faults": [],
        "expect": [],
    }


def _told(clusters: Sequence[Obj], ended: int, pods: int, trace: str) -> tuple[str, ...]:
    found = [
        "where things run now is not copied: all is decided anew, and starts at the beginning",
        "the settings of hub and agents are not copied: say them under 'timing' where they are not the usual ones",
        "the values of Secrets are not copied: their keys are",
        "Jobs that run begin anew",
    ]
    if ended:
        found.append(f"Jobs that have ended are left out: {ended}")
    if pods:
        found.append(f"pods that run without a workload are left out: {pods}")
    known = set(next(csv.reader(io.StringIO(trace)), ())[1:])
    fixed = [name(obj) for obj in clusters if _zone(obj) not in known]
    if known:
        rows = len(trace.splitlines()) - 1
        found.append(
            f"carbon intensity is the hub's forecast of {rows} hours for {', '.join(sorted(known))}; it repeats after that"
        )
    if fixed:
        found.append(f"carbon intensity does not change where there is no forecast for a zone: {', '.join(sorted(fixed))}")
    return tuple(found)


def _zone(obj: Obj) -> str:
    return str(((obj.get("spec") or {}).get("electricity") or {}).get("zone") or "")


def _trace(clusters: Iterable[Obj]) -> str:
    """Of each zone the forecast, which begins with the hour of now, as far as all zones' forecasts go. What is replayed faster
    or slower than time is none."""
    found: dict[str, list[float]] = {}
    for obj in clusters:
        carbon: Mapping[str, Any] = (obj.get("status") or {}).get("carbon") or {}
        hourly = float(carbon.get("hourSeconds") or _HOUR) == _HOUR
        if _zone(obj) and carbon.get("forecast") and hourly:
            found.setdefault(_zone(obj), [float(value) for value in carbon["forecast"]])
    if not found:
        return ""
    zones, text = sorted(found), io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["hour_utc", *zones])
    for hour in range(min(map(len, found.values()))):
        lines.writerow([hour, *(f"{found[zone][hour]:g}" for zone in zones)])
    return text.getvalue()


def _alone(pod: Obj) -> bool:
    """Somebody's own pod, which has a site already."""
    own = not controller_of(pod) and CLUSTER_LABEL not in labels(pod) and not namespace(pod).startswith(_OWN)
    return own and bool((pod.get("spec") or {}).get("nodeName"))


def _wanted(obj: Obj, kind: scheme.Kind) -> bool:
    where = name(obj) if kind is scheme.NAMESPACE else namespace(obj)
    if deleting(obj) or where.startswith(_OWN) or controller_of(obj) or CLUSTER_LABEL in labels(obj):
        return False
    if kind is scheme.CONFIG_MAP and name(obj) == "kube-root-ca.crt":
        return False
    if kind is scheme.PRIORITY_CLASS and name(obj).startswith(_SYSTEM):
        return False
    return not (kind is scheme.POD and (obj.get("spec") or {}).get("nodeName"))


def _lean(obj: Obj, kind: scheme.Kind) -> Obj:
    """What its author wrote, as far as that is known."""
    metadata: dict[str, Any] = {"name": name(obj)}
    if kind.namespaced:
        metadata["namespace"] = namespace(obj)
    if labels(obj):
        metadata["labels"] = dict(labels(obj))
    said = {key: value for key, value in meta.annotations(obj).items() if key != _APPLIED}
    if said:
        metadata["annotations"] = said
    body = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata", "status")}
    if kind is scheme.SECRET:
        # The keys matter to pods, the values to nobody here.
        body = {"type": obj.get("type", "Opaque"), "stringData": dict.fromkeys(obj.get("data") or {}, _HIDDEN)}
    if kind is scheme.NAMESPACE:
        body = {}
    if kind is scheme.SERVICE:
        body["spec"] = {k: v for k, v in (obj.get("spec") or {}).items() if k not in ("clusterIP", "clusterIPs")}
    if kind is scheme.JOB:
        body["spec"] = {k: v for k, v in (obj.get("spec") or {}).items() if k != "selector"}
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **body}


def _site(obj: Obj) -> dict[str, Any]:
    """Its owner's description, with what was measured where that says nothing. Taints of being lost are the hub's."""
    spec, status = dict(obj.get("spec") or {}), obj.get("status") or {}
    spec["taints"] = [t for t in spec.get("taints") or () if t.get("key") != TAINT_UNREACHABLE]
    if not spec["taints"]:
        del spec["taints"]
    if not spec.get("capacity") and status.get("capacity"):
        spec["capacity"] = dict(status["capacity"])
    intensity = (status.get("carbon") or {}).get("intensity")
    if intensity is not None:
        spec["electricity"] = {**(spec.get("electricity") or {}), "carbonIntensity": intensity}
    return {"name": name(obj), **({"labels": dict(labels(obj))} if labels(obj) else {}), "spec": spec}
