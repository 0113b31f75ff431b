"""Nodes as a view of Clusters: every site is shown as a Node, so that kubectl cordon, drain and taint work on sites. Pure.

Reads convert; a write of a Node becomes a write of its Cluster: labels, annotations, ``spec.unschedulable`` and
``spec.taints``. All else of a Node is shown only.
"""

from __future__ import annotations

import copy
from typing import Any

from metaos.resources import errors
from metaos.resources.meta import Obj, labels, name

#: Where clients look for the Lease of a Node.
LEASES = "kube-node-lease"
_UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
_ROLE = "node-role.kubernetes.io/"
#: What the view adds to a Cluster's labels; never written back unless someone changed it.
_SHOWN_LABELS = ("kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch", "topology.kubernetes.io/region")


def _shown_labels(cluster: Obj) -> dict[str, str]:
    spec, info = cluster.get("spec") or {}, (cluster.get("status") or {}).get("nodeInfo") or {}
    location = spec.get("location") or {}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}
    found = {
        "kubernetes.io/hostname": name(cluster),
        "kubernetes.io/os": info.get("operatingSystem") or "linux",
        "kubernetes.io/arch": machine.get(info.get("architecture") or "", info.get("architecture") or ""),
        "topology.kubernetes.io/region": location.get("region") or "",
    }
    if spec.get("tier"):
        found[_ROLE + spec["tier"]] = ""
    return {k: v for k, v in found.items() if v or k.startswith(_ROLE)}


def show(cluster: Obj) -> Obj:
    """The Node of a Cluster, with the Cluster's uid and resourceVersion."""
    spec, status = cluster.get("spec") or {}, cluster.get("status") or {}
    metadata = {k: copy.deepcopy(v) for k, v in cluster["metadata"].items() if k != "managedFields"}
    metadata["labels"] = {**_shown_labels(cluster), **labels(cluster)}
    node_spec: dict[str, Any] = {"providerID": f"nemo://{name(cluster)}"}
    taints = copy.deepcopy(spec.get("taints") or [])
    if spec.get("unschedulable"):
        node_spec["unschedulable"] = True
        if not any(t.get("key") == _UNSCHEDULABLE for t in taints):
            taints.append({"key": _UNSCHEDULABLE, "effect": "NoSchedule"})
    if taints:
        node_spec["taints"] = taints
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata,
        "spec": node_spec,
        "status": _status(cluster, spec, status),
    }


def _status(cluster: Obj, spec: Obj, status: Obj) -> Obj:
    info = status.get("nodeInfo") or {}
    conditions = [dict(c) for c in status.get("conditions") or ()]
    conditions += [dict(c) for c in status.get("agentConditions") or () if c.get("type") not in {x["type"] for x in conditions}]
    if not any(c["type"] == "Ready" for c in conditions):
        conditions.append(
            {
                "type": "Ready",
                "status": "Unknown",
                "reason": "NeverReported",
                "message": "The agent of this site has not reported yet.",
            }
        )
    for found in conditions:
        # What a machine permits is found once, when its agent starts. Conditions are written when they change: that is their
        # last news. Heartbeats are the lease's.
        found.setdefault("lastTransitionTime", cluster["metadata"].get("creationTimestamp"))
        found.setdefault("lastHeartbeatTime", found["lastTransitionTime"])
    shown: Obj = {
        "capacity": dict(status.get("capacity") or spec.get("capacity") or {}),
        "allocatable": dict(status.get("allocatable") or status.get("capacity") or spec.get("capacity") or {}),
        "conditions": conditions,
        "addresses": copy.deepcopy(status.get("addresses") or [{"type": "Hostname", "address": name(cluster)}]),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
        "nodeInfo": {
            "architecture": info.get("architecture") or "",
            "bootID": "",
            "containerRuntimeVersion": "{}://{}".format(
                info.get("runtime") or spec.get("runtime") or "unknown", info.get("isolation") or ""
            ),
            "kernelVersion": info.get("kernelVersion") or "",
            "kubeProxyVersion": "",
            "kubeletVersion": info.get("agentVersion") or "",
            "machineID": info.get("machineID") or "",
            "operatingSystem": info.get("operatingSystem") or "linux",
            "osImage": info.get("osImage") or "",
            "systemUUID": cluster["metadata"].get("uid") or "",
        },
    }
    images = [
        {"names": list(i.get("names") or ()), "sizeBytes": i.get("sizeBytes") or 0}
        for i in status.get("images") or ()
        if i.get("names")
    ]
    if images:
        shown["images"] = images
    return shown


def write_back(node: Obj, cluster: Obj) -> Obj:
    """The Cluster after ``node`` was written; ``cluster`` is what :func:`show` made the old Node of."""
    changed = copy.deepcopy(cluster)
    metadata, wanted = changed["metadata"], node.get("metadata") or {}
    shown = _shown_labels(cluster)
    own = labels(cluster)
    metadata.pop("labels", None)
    kept = {k: v for k, v in (wanted.get("labels") or {}).items() if k in own or shown.get(k) != v}
    if kept:
        metadata["labels"] = kept
    for key in ("annotations", "finalizers"):
        metadata.pop(key, None)
        if wanted.get(key):
            metadata[key] = copy.deepcopy(wanted[key])
    if wanted.get("resourceVersion"):
        metadata["resourceVersion"] = wanted["resourceVersion"]
    else:
        metadata.pop("resourceVersion", None)
    spec, asked = changed.setdefault("spec", {}), node.get("spec") or {}
    spec.pop("unschedulable", None)
    if asked.get("unschedulable"):
        spec["unschedulable"] = True
    was = (cluster.get("spec") or {}).get("taints") or []
    taints = [t for t in asked.get("taints") or () if t.get("key") != _UNSCHEDULABLE or t in was]
    spec.pop("taints", None)
    if taints:
        spec["taints"] = taints
    return changed


def lease(held: Obj) -> Obj:
    """The Lease of a site as that of its Node."""
    return {**held, "metadata": held["metadata"] | {"namespace": LEASES}}


def refuse_create() -> errors.ApiError:
    return errors.method_not_allowed(
        "nodes are the sites of this continuum and are not created by hand: run `nemo join-token NAME` at the hub and "
        "`nemo agent --hub URL --token-file FILE --site FILE` on the machine"
    )
