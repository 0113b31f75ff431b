"""Subresources that are more than a part of their object: scale, status, eviction, binding, approval, finalize. Pure."""

from __future__ import annotations

import copy
from collections.abc import Callable

from metaos.apiserver import schema
from metaos.apiserver.customkind import CustomKind
from metaos.resources import errors, scheme
from metaos.resources.meta import DISRUPTED, EVICTED, Obj, controller_of, name
from metaos.resources.scheme import Kind


def SCALE_NODE() -> schema.Node:
    return schema.nodes()[schema.SCALE]


def scale(kind: Kind, obj: Obj) -> Obj:
    """The ``autoscaling/v1`` Scale of a workload."""
    metadata = {
        k: v for k, v in obj["metadata"].items() if k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    }
    head = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata}
    if isinstance(kind, CustomKind):
        from metaos.apiserver.custom import objects

        return head | objects.scale(kind, obj)
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    return {
        **head,
        "spec": {"replicas": spec.get("replicas", 1)},
        "status": {"replicas": status.get("replicas", 0), "selector": _selector_text(spec.get("selector") or {})},
    }


def _selector_text(selector: Obj) -> str:
    parts = [f"{k}={v}" for k, v in sorted((selector.get("matchLabels") or {}).items())]
    for rule in selector.get("matchExpressions") or ():
        key, operator, values = rule["key"], rule["operator"], ",".join(rule.get("values") or ())
        texts = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": key, "DoesNotExist": f"!{key}"}
        parts.append(texts.get(operator, key))
    return ",".join(parts)


def rescaled(kind: Kind, obj: Obj, wanted: Obj) -> Obj:
    """The workload after its Scale was written."""
    replicas = (wanted.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        causes = [schema.invalid("spec.replicas", replicas, "must be greater than or equal to 0")]
        raise errors.invalid("autoscaling", "Scale", name(obj), causes)
    changed = copy.deepcopy(obj)
    if isinstance(kind, CustomKind):
        from metaos.apiserver.custom import objects

        objects.rescale(kind, changed, replicas)
    else:
        changed["spec"]["replicas"] = replicas
    metadata = wanted.get("metadata") or {}
    changed["metadata"].pop("resourceVersion", None)
    for key in ("resourceVersion", "uid"):
        if metadata.get(key):
            changed["metadata"][key] = metadata[key]
    return changed


def narrowed(kind: Kind, subresource: str, wanted: Obj, current: Obj) -> Obj:
    """``current`` with only what ``subresource`` may change taken from ``wanted``."""
    if subresource not in kind.subresources:
        raise errors.not_found(kind.group, f"{kind.plural}/{subresource}", name(current))
    replaced = "spec" if subresource == "finalize" else "status"
    result = {key: value for key, value in current.items() if key != replaced}
    result["metadata"] = dict(current["metadata"])
    if subresource == "status":
        if wanted.get("status") is not None:
            result["status"] = wanted["status"]
        if kind is scheme.CERTIFICATE_SIGNING_REQUEST:
            _keep_approval(result, current)
    elif subresource == "approval":
        status = result["status"] = dict(current.get("status") or {})
        status["conditions"] = (wanted.get("status") or {}).get("conditions") or []
        _decide_once(kind, current, status["conditions"])
    elif subresource == "finalize":
        result["spec"] = {k: v for k, v in (wanted.get("spec") or {}).items() if k == "finalizers"}
    else:
        raise errors.method_not_allowed(f"{kind.plural}/{subresource} cannot be replaced")
    if wanted["metadata"].get("managedFields") is not None:
        result["metadata"]["managedFields"] = wanted["metadata"]["managedFields"]
    return result


_VERDICTS = ("Approved", "Denied")


def _keep_approval(result: Obj, current: Obj) -> None:
    """The signer writes the certificate; only approvers write verdicts."""
    kept = [c for c in (current.get("status") or {}).get("conditions") or () if c.get("type") in _VERDICTS]
    status = result.setdefault("status", {})
    others = [c for c in status.get("conditions") or () if c.get("type") not in _VERDICTS]
    if kept or others:
        status["conditions"] = kept + others


def _decide_once(kind: Kind, current: Obj, conditions: list[Obj]) -> None:
    before = {c.get("type") for c in (current.get("status") or {}).get("conditions") or ()} & set(_VERDICTS)
    now = {c.get("type") for c in conditions} & set(_VERDICTS)
    if before - now or len(now) > 1:
        causes = [schema.forbidden("status.conditions", "a verdict is final: a request is either Approved or Denied, once")]
        raise errors.invalid(kind.group, kind.kind, name(current), causes)


def ended(pod: Obj) -> bool:
    """Whether a pod has run to its end: evicting it only tidies up."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def moves(pod: Obj, drained: bool) -> bool:
    """Whether an eviction moves a pod's workload: ``drained`` says that its site takes no pods any more. Elsewhere the pod is
    deleted, as in Kubernetes, and its workload makes another; a pod without a workload is deleted anywhere."""
    placed = bool((pod.get("spec") or {}).get("nodeName"))
    return placed and drained and controller_of(pod) is not None and not ended(pod)


def posted(kind: Kind, subresource: str, body: Obj, now: str, *, moving: Callable[[Obj], bool]) -> Callable[[Obj], Obj]:
    """What a POST of ``eviction`` or ``binding`` does to its Pod, short of deleting it. ``moving``: see :func:`moves`."""
    if kind is not scheme.POD or subresource not in ("eviction", "binding"):
        raise errors.method_not_allowed(f"{kind.plural}/{subresource} cannot be created")
    if subresource == "binding":
        raise errors.method_not_allowed("pods are bound to sites by NEMO's placement; use a PlacementPolicy or an Intent")

    def evict(pod: Obj) -> Obj:
        wanted = ((body.get("deleteOptions") or {}).get("preconditions") or {}).get("uid")
        if wanted and wanted != pod["metadata"].get("uid"):
            raise errors.conflict("", "pods", name(pod), f"the UID in the precondition ({wanted}) is not this pod's")
        changed = copy.deepcopy(pod)
        changed["metadata"].pop("resourceVersion", None)
        if not moving(pod):
            if not ended(pod):
                # So that its site, which alone writes its status, can say why it goes.
                changed["metadata"].setdefault("annotations", {}).setdefault(DISRUPTED, now)
            return changed
        if any(v.get("persistentVolumeClaim") for v in (pod.get("spec") or {}).get("volumes") or ()):
            site = (pod.get("spec") or {}).get("nodeName") or "its site"
            remedy = "delete the pod to restart it there, or its workload to give it up"
            raise errors.forbidden("", "pods", name(pod), f"its data is on {site} and does not move with it; {remedy}")
        changed["metadata"].setdefault("annotations", {}).setdefault(EVICTED, now)
        return changed

    return evict
