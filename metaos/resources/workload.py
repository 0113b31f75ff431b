"""Reading workloads: their pod template, replicas, what they refer to and what they request. Pure."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from metaos.resources import devices, quantity
from metaos.resources.meta import Obj, ObjectRef, label_selector, namespace

DEFAULT_GRACE_SECONDS = 30.0
#: What is said of a ReplicaSet that no Deployment made.
REPLICA_SET_NOT_RUN = "ReplicaSets are the history of Deployments and are not run by themselves: make a Deployment of it"
#: The class of pods that run WebAssembly, and their annotations: instructions, and seconds, after which each container is ended.
GUEST_CLASS = "wasm"
GUEST_LIMITS = ("wasm.meta-os.eu/fuel", "wasm.meta-os.eu/seconds")
#: How Kubernetes writes "no template": what is not a workload has none.
_NESTED = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}


def work_name(about: ObjectRef) -> str:
    """The name of the Work that carries an object to a site: ``deployment.shop.web``; ``secret.shop.db``."""
    return f"{about.kind.lower()}.{about.namespace}.{about.name}"


def pod_template(obj: Obj) -> Obj:
    """``{"metadata": …, "spec": …}`` of the pods that a workload makes; of a Pod, itself. Empty for other kinds."""
    if obj.get("kind") == "Pod":
        return {"metadata": obj.get("metadata") or {}, "spec": obj.get("spec") or {}}
    found: Any = obj
    for part in _NESTED.get(str(obj.get("kind")), ("",)):
        found = (found or {}).get(part)
    return found or {}


def guest_limit(annotations: Mapping[str, str], key: str) -> int:
    """What a pod's annotation ``key``, one of ``GUEST_LIMITS``, says; 0 for no limit. Raises ``ValueError``."""
    text = annotations.get(key, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(f"{key}: {text[:80]!r} must be a whole number below 10^18")
    return int(text)


def pod_spec(obj: Obj) -> dict[str, Any]:
    """The pod template's spec."""
    return pod_template(obj).get("spec") or {}


def replicas(obj: Obj) -> int:
    """How many pods a workload wants in all: replicas, a Job's parallelism (never more than its completions); one
    for a Pod, a CronJob, and per site for a DaemonSet."""
    spec = obj.get("spec") or {}
    if obj.get("kind") in ("Deployment", "StatefulSet", "ReplicaSet"):
        found = spec.get("replicas")
        return 1 if found is None else int(found)
    if obj.get("kind") == "Job":
        parallelism, completions = spec.get("parallelism"), spec.get("completions")
        wanted = 1 if parallelism is None else int(parallelism)
        return wanted if completions is None else min(wanted, int(completions))
    return 1


def containers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Init containers, then containers."""
    yield from spec.get("initContainers") or ()
    yield from spec.get("containers") or ()


def image_name(reference: str) -> str:
    """The full name of an image, as Docker reads it: ``python`` is ``docker.io/library/python:latest``."""
    first, slash, _ = reference.partition("/")
    if not slash:
        reference = f"docker.io/library/{reference}"
    elif "." not in first and ":" not in first and first != "localhost":
        reference = f"docker.io/{reference}"
    last = reference.rpartition("/")[2]
    return reference if ":" in last or "@" in last else f"{reference}:latest"


def references(obj: Obj) -> set[ObjectRef]:
    """ConfigMaps, Secrets, ServiceAccounts and claims that a workload's pods refer to, in its own namespace."""
    where, spec = namespace(obj), pod_spec(obj)
    found: set[ObjectRef] = set()

    def add(kind: str, name: str | None) -> None:
        if name:
            found.add(ObjectRef("", kind, where, name))

    for container in containers(spec):
        for source in container.get("envFrom") or ():
            add("ConfigMap", (source.get("configMapRef") or {}).get("name"))
            add("Secret", (source.get("secretRef") or {}).get("name"))
        for variable in container.get("env") or ():
            value = variable.get("valueFrom") or {}
            add("ConfigMap", (value.get("configMapKeyRef") or {}).get("name"))
            add("Secret", (value.get("secretKeyRef") or {}).get("name"))
    for volume in spec.get("volumes") or ():
        add("PersistentVolumeClaim", (volume.get("persistentVolumeClaim") or {}).get("claimName"))
        sources = [volume, *((volume.get("projected") or {}).get("sources") or ())]
        for source in sources:
            add("ConfigMap", (source.get("configMap") or {}).get("name"))
            secret = source.get("secret") or {}
            add("Secret", secret.get("secretName") or secret.get("name"))
    for secret in spec.get("imagePullSecrets") or ():
        add("Secret", secret.get("name"))
    if spec.get("serviceAccountName") not in (None, "", "default"):
        add("ServiceAccount", spec["serviceAccountName"])
    return found


def requests(spec: dict[str, Any]) -> dict[str, int]:
    """What one pod asks for: ``{"cpu": milli, "memory": bytes}``: the sum over containers and sidecars, or what the largest
    init container needs beside the sidecars before it.

    Where a container states only a limit, that is its request (Kubernetes' own defaulting).
    """
    return {"cpu": 0, "memory": 0, **_together(spec, _amounts)}


def device_requests(spec: dict[str, Any]) -> devices.Asked:
    """The extended resources that one pod asks for, put together as :func:`requests`."""
    return devices.asked(_together(spec, _devices))


def _together(spec: dict[str, Any], amounts: Callable[[dict[str, Any]], dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    beside: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for container in spec.get("initContainers") or ():
        sidecar = container.get("restartPolicy") == "Always"
        for key, amount in amounts(container).items():
            most[key] = max(most[key], beside[key] + amount)
            beside[key] += amount if sidecar else 0
    for container in spec.get("containers") or ():
        for key, amount in amounts(container).items():
            total[key] += amount
    return {key: max(most[key], beside[key] + total[key]) for key in total | most}


def _asked(container: dict[str, Any]) -> dict[str, Any]:
    resources = container.get("resources") or {}
    return {**(resources.get("limits") or {}), **(resources.get("requests") or {})}


def _amounts(container: dict[str, Any]) -> dict[str, int]:
    asked = _asked(container)
    return {"cpu": quantity.milli(asked.get("cpu", 0)), "memory": quantity.whole(asked.get("memory", 0))}


def _devices(container: dict[str, Any]) -> dict[str, int]:
    return {key: quantity.whole(amount) for key, amount in _asked(container).items() if devices.extended(key)}


def limits(container: dict[str, Any]) -> dict[str, int]:
    """``{"cpu": milli, "memory": bytes}``; 0 means none."""
    found = (container.get("resources") or {}).get("limits") or {}
    return {"cpu": quantity.milli(found.get("cpu", 0)), "memory": quantity.whole(found.get("memory", 0))}


def has_local_data(obj: Obj) -> bool:
    """Whether pods keep data on claimed volumes, which are local to a site."""
    if (obj.get("spec") or {}).get("volumeClaimTemplates"):
        return True
    return any(volume.get("persistentVolumeClaim") for volume in pod_spec(obj).get("volumes") or ())


def claims(obj: Obj) -> list[str]:
    """Names of the PersistentVolumeClaims that its pods use, those of a StatefulSet's templates too."""
    found = [str((v.get("persistentVolumeClaim") or {}).get("claimName") or "") for v in pod_spec(obj).get("volumes") or ()]
    for template in (obj.get("spec") or {}).get("volumeClaimTemplates") or ():
        word = f"{template['metadata']['name']}-{obj['metadata']['name']}"
        found += [f"{word}-{number}" for number in range(replicas(obj))]
    return [claim for claim in found if claim]


def claimed_bytes(obj: Obj, claim: Callable[[str], Obj | None]) -> int:
    """What all its claims ask for; 0 where one does not say. ``claim``: one by name."""
    templates = [t.get("spec") or {} for t in (obj.get("spec") or {}).get("volumeClaimTemplates") or ()]
    named = {
        str(v["persistentVolumeClaim"].get("claimName"))
        for v in pod_spec(obj).get("volumes") or ()
        if v.get("persistentVolumeClaim")
    }
    asked = [_stored(spec) * replicas(obj) for spec in templates]
    asked += [_stored((claim(word) or {}).get("spec") or {}) for word in sorted(named)]
    return sum(asked) if all(asked) else 0


def _stored(spec: Mapping[str, Any]) -> int:
    return quantity.whole(((spec.get("resources") or {}).get("requests") or {}).get("storage") or 0)


def grace_seconds(obj: Obj) -> float:
    """How long pods may take to end after they were told to."""
    stated = pod_spec(obj).get("terminationGracePeriodSeconds")
    return DEFAULT_GRACE_SECONDS if stated is None else float(stated)


def resolve(value: Any, total: int, *, up: bool) -> int:
    """A number of pods, or a percentage such as ``25%`` of ``total``, rounded up or down."""
    if isinstance(value, str) and value.endswith("%"):
        share = int(value[:-1]) * total
        return -(-share // 100) if up else share // 100
    return int(value or 0)


def rolling_limits(rolling: Mapping[str, Any], total: int) -> tuple[int, int]:
    """(surge, unavailable) of a Deployment of so many pods, as its ``rollingUpdate`` says or, where it does not, as Kubernetes
    has it; percentages that both come to nothing let one be unavailable. Both are zero where that is said."""
    surge = resolve(rolling.get("maxSurge", "25%"), total, up=True)
    unavailable = resolve(rolling.get("maxUnavailable", "25%"), total, up=False)
    if not surge and not unavailable and (rolling.get("maxSurge"), rolling.get("maxUnavailable")) != (0, 0):
        unavailable = 1
    return surge, min(total, unavailable)


def template_hash(obj: Obj) -> str:
    """Ten characters that change when the pod template does (``pod-template-hash``)."""
    text = json.dumps(pod_template(obj), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def usable(slices: Iterable[Obj]) -> str:
    """Which condition makes an endpoint of a Service usable: ``ready``; where none is, ``serving``: those that are about to end
    serve on until others are known (as Kubernetes' proxies do it, KEP-1669)."""
    endpoints = [e for found in slices for e in found.get("endpoints") or ()]
    return "ready" if any((e.get("conditions") or {}).get("ready") for e in endpoints) else "serving"


def service_selects(service: Obj, pod_labels: dict[str, str]) -> bool:
    """Whether a Service's selector matches; one without a selector selects nothing by itself."""
    selector = (service.get("spec") or {}).get("selector")
    return bool(selector) and label_selector({"matchLabels": selector})(pod_labels)
