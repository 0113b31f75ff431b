"""A copy of the running continuum as a scenario: sites, workloads and what people asked for; no pods, no Secrets' values."""

from __future__ import annotations

from typing import Any

from metaos.client import Client
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
    scheme.CONFIG_MAP,
    scheme.SECRET,
    scheme.PERSISTENT_VOLUME_CLAIM,
    scheme.SERVICE,
    scheme.PLACEMENT_POLICY,
    scheme.INTENT,
    *scheme.WORKLOADS,
)
_OWN = ("nemo-", "kube-")
_HIDDEN = "kept at home"
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


async def copy_of(client: Client, hours: float) -> dict[str, Any]:
    """The scenario's text as data. What is being deleted is left out."""
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


def _wanted(obj: Obj, kind: scheme.Kind) -> bool:
    where = name(obj) if kind is scheme.NAMESPACE else namespace(obj)
    if deleting(obj) or where.startswith(_OWN) or controller_of(obj) or CLUSTER_LABEL in labels(obj):
        return False
    if kind is scheme.CONFIG_MAP and name(obj) == "kube-root-ca.crt":
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
    return {"name": name(obj), "spec": spec}
