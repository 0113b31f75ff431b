"""Deployments on devices: which DeviceSet one means, and what its status is by that. Pure.

A Deployment whose pods have ``runtimeClassName: micropython`` runs on Devices of its namespace instead of sites: on as many as
it has replicas, of those whose labels its ``nodeSelector`` asks for. Its one container's code is a ConfigMap that is mounted as
a volume, or, where none is, the OCI artifact that ``image`` names by its digest; the last word of ``command`` (or ``args``) says
which key or file of it, main.py where there is none.
``strategy.rollingUpdate.maxUnavailable`` is that of the DeviceSet that carries it out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from metaos.devices.waves import bound
from metaos.resources.meta import Obj, generation, with_condition

RUNTIME_CLASS = "micropython"
USUAL_BOUND = "25%"
#: An image that is the same tomorrow.
PINNED = re.compile(r"@sha256:[0-9a-f]{64}\Z")
PINNED_TEXT = "must name an OCI artifact by its digest, for example registry.example/team/app@sha256:…"
#: Fields of the pod and of its container that mean something on a device. Others are refused: nothing is left out in silence.
_POD = {"runtimeClassName", "nodeSelector", "containers", "volumes", "imagePullSecrets"}
_CONTAINER = {"name", "image", "command", "args", "volumeMounts"}
#: What the API server fills in.
_DEFAULTS = {
    *("restartPolicy", "terminationGracePeriodSeconds", "dnsPolicy", "securityContext", "schedulerName"),
    *("imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy", "resources"),
}


def on_devices(obj: Obj) -> bool:
    """Whether a workload is one for devices."""
    pod = ((obj.get("spec") or {}).get("template") or {}).get("spec") or {}
    return obj.get("kind") == "Deployment" and pod.get("runtimeClassName") == RUNTIME_CLASS


def wanted(deployment: Obj) -> dict[str, Any]:
    """The spec of its DeviceSet. Raises ``ValueError`` naming the field, the value and the remedy."""
    spec = deployment["spec"]
    template = spec["template"]
    pod, path = template["spec"], "spec.template.spec"
    for field in sorted(set(pod) - _POD - _DEFAULTS):
        if pod[field]:
            raise ValueError(f"{path}.{field}: a device has nothing of the kind: leave it out")
    if len(pod["containers"]) != 1:
        raise ValueError(f"{path}.containers: {len(pod['containers'])} of them: a device runs one application")
    container, path = pod["containers"][0], f"{path}.containers[0]"
    for field in sorted(set(container) - _CONTAINER - _DEFAULTS):
        if container[field]:
            raise ValueError(f"{path}.{field}: a device has nothing of the kind: leave it out")
    maps = {v["name"]: v["configMap"]["name"] for v in pod.get("volumes") or () if (v.get("configMap") or {}).get("name")}
    mounted = [m["name"] for m in container.get("volumeMounts") or () if m["name"] in maps]
    code: dict[str, Any]
    if mounted:
        if len(mounted) != 1:
            raise ValueError(f"{path}.volumeMounts: {len(mounted)} ConfigMaps are mounted: mount the one that holds the code")
        code = {"configMap": maps[mounted[0]]}
    else:
        if not PINNED.search(container.get("image") or ""):
            raise ValueError(f"{path}.image: {container.get('image')!r}: {PINNED_TEXT}, or mount a ConfigMap that holds the code")
        if container.get("volumeMounts"):
            raise ValueError(f"{path}.volumeMounts: none of them is of a ConfigMap: a device has no other volumes")
        code = {"image": container["image"]}
        if secrets := [str(each["name"]) for each in pod.get("imagePullSecrets") or ()]:
            code["imagePullSecrets"] = secrets
    words = container.get("args") or container.get("command") or ["main.py"]
    version = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
    most = ((spec.get("strategy") or {}).get("rollingUpdate") or {}).get("maxUnavailable") or USUAL_BOUND
    return {
        "selector": {"matchLabels": dict(pod.get("nodeSelector") or {})},
        "count": int(spec.get("replicas", 1)),
        "maxUnavailable": most,
        "template": {
            "app": {**code, "key": str(words[-1]).rpartition("/")[2], "version": version},
        },
    }


def status(deployment: Obj, deviceset: Obj, now: float) -> dict[str, Any]:
    """The Deployment's status, by that of its DeviceSet."""
    spec, found = deployment["spec"], deviceset.get("status") or {}
    old: Mapping[str, Any] = deployment.get("status") or {}
    count, seen = int(spec.get("replicas", 1)), int(found.get("observedGeneration") or 0) == generation(deviceset)
    devices, updated, ready = (int(found.get(word) or 0) for word in ("devices", "updated", "ready"))
    made: dict[str, Any] = {"replicas": devices, "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": ready}
    made = {key: value for key, value in made.items() if value}
    made["observedGeneration"] = generation(deployment) if seen else int(old.get("observedGeneration") or 0)
    if count > ready:
        made["unavailableReplicas"] = count - ready
    enough = ready >= count - bound(deviceset["spec"].get("maxUnavailable", USUAL_BOUND), count) if count else True
    short = f"; {devices} devices fit, and {count} are wanted" if devices < count else ""
    if enough:
        available = "True", "MinimumReplicasAvailable", f"Deployment has minimum availability{short}."
    else:
        available = "False", "MinimumReplicasUnavailable", f"Deployment does not have minimum availability{short}."
    halted = next((c for c in found.get("conditions") or () if c["type"] == "Progressing" and c["status"] == "False"), None)
    if halted:
        progressing = "False", "ProgressDeadlineExceeded", str(halted.get("message"))
    elif seen and ready == devices == count:
        progressing = "True", "NewReplicaSetAvailable", "All devices run it."
    else:
        progressing = "True", "ReplicaSetUpdated", f"{ready} of {count} devices run it."
    return made | {"conditions": conditions(old, (("Available", *available), ("Progressing", *progressing)), now)}


def refused(deployment: Obj, why: str, now: float) -> dict[str, Any]:
    """The status of one that means nothing on devices."""
    old = deployment.get("status") or {}
    said = ("ReplicaFailure", "True", "NotForDevices", why)
    return {"observedGeneration": generation(deployment), "conditions": conditions(old, (said,), now)}


def conditions(old: Mapping[str, Any], said: tuple[tuple[str, str, str, str], ...], now: float) -> list[dict[str, Any]]:
    """As a Deployment has them."""
    held = old.get("conditions") or ()
    found: list[dict[str, Any]] = []
    for type_, *rest in said:
        found += with_condition([c for c in held if c.get("type") == type_], type_, rest[0], rest[1], rest[2], now)
    for each in found:
        each.setdefault("lastUpdateTime", each["lastTransitionTime"])
    return found
