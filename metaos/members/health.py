"""How an object at a member does, by the conventions of kstatus: Current, InProgress, Failed, Terminating. Pure.

Source: kubernetes-sigs/cli-utils ``pkg/kstatus`` (its README and ``status/core.go``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from metaos.resources.meta import Obj, deleting, generation

CURRENT, IN_PROGRESS, FAILED, TERMINATING = "Current", "InProgress", "Failed", "Terminating"


class Health(NamedTuple):
    """``message`` says what is waited for, or what has failed; empty where all is well."""

    status: str
    message: str = ""


_WELL = Health(CURRENT)


def health(obj: Obj) -> Health:
    """An object as its server has it, whatever its kind."""
    if deleting(obj):
        return Health(TERMINATING, "its deletion is under way")
    status: Mapping[str, Any] = obj.get("status") if isinstance(obj.get("status"), dict) else {}  # type: ignore[assignment]
    seen = status.get("observedGeneration")
    if isinstance(seen, int) and seen < generation(obj):
        return Health(IN_PROGRESS, f"generation {generation(obj)} is not yet observed, {seen} is")
    listed = status.get("conditions")
    conditions = {str(c.get("type")): c for c in (listed if isinstance(listed, list) else ()) if isinstance(c, dict)}
    if (stalled := conditions.get("Stalled", {})).get("status") == "True":
        return Health(FAILED, _said(stalled))
    if (busy := conditions.get("Reconciling", {})).get("status") == "True":
        return Health(IN_PROGRESS, _said(busy))
    spec: Mapping[str, Any] = obj.get("spec") if isinstance(obj.get("spec"), dict) else {}  # type: ignore[assignment]
    rule = _RULES.get(str(obj.get("kind"))) if _native(obj) else None
    if rule is not None:
        return rule(spec, status, conditions)
    ready = conditions.get("Ready")
    if ready is not None and ready.get("status") != "True":
        return Health(IN_PROGRESS, _said(ready))
    return _WELL


def _native(obj: Obj) -> bool:
    group = str(obj.get("apiVersion", "")).rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def _said(condition: Mapping[str, Any]) -> str:
    return str(condition.get("message") or condition.get("reason") or condition.get("type") or "")


def _count(status: Mapping[str, Any], key: str) -> int:
    return int(status.get(key) or 0)


def _wanted(spec: Mapping[str, Any]) -> int:
    found = spec.get("replicas")
    return 1 if found is None else int(found)


def _deployment(spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Health:
    progressing = conditions.get("Progressing", {})
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        return Health(FAILED, _said(progressing))
    wanted = _wanted(spec)
    if "observedGeneration" not in status:
        return Health(IN_PROGRESS, "its controller has not looked at it yet")
    if _count(status, "replicas") < wanted:
        return Health(IN_PROGRESS, f"replicas: {_count(status, 'replicas')} of {wanted}")
    if _count(status, "updatedReplicas") < wanted:
        return Health(IN_PROGRESS, f"updated: {_count(status, 'updatedReplicas')} of {wanted}")
    if _count(status, "replicas") > wanted:
        return Health(IN_PROGRESS, f"pending termination: {_count(status, 'replicas') - wanted}")
    if _count(status, "availableReplicas") < wanted:
        return Health(IN_PROGRESS, f"available: {_count(status, 'availableReplicas')} of {wanted}")
    return _WELL


def _replica_set(spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Health:
    failure = conditions.get("ReplicaFailure", {})
    if failure.get("status") == "True":
        return Health(IN_PROGRESS, _said(failure))
    wanted = _wanted(spec)
    for key, word in (("replicas", "replicas"), ("readyReplicas", "ready")):
        if _count(status, key) < wanted:
            return Health(IN_PROGRESS, f"{word}: {_count(status, key)} of {wanted}")
    if _count(status, "replicas") > wanted:
        return Health(IN_PROGRESS, f"pending termination: {_count(status, 'replicas') - wanted}")
    return _WELL


def _stateful_set(spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Health:
    wanted = _wanted(spec)
    if "observedGeneration" not in status:
        return Health(IN_PROGRESS, "its controller has not looked at it yet")
    for key, word in (("replicas", "replicas"), ("readyReplicas", "ready")):
        if _count(status, key) < wanted:
            return Health(IN_PROGRESS, f"{word}: {_count(status, key)} of {wanted}")
    if _count(status, "replicas") > wanted:
        return Health(IN_PROGRESS, f"pending termination: {_count(status, 'replicas') - wanted}")
    strategy = spec.get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete":
        return _WELL
    partition = int((strategy.get("rollingUpdate") or {}).get("partition") or 0)
    if partition:
        if _count(status, "updatedReplicas") < wanted - partition:
            return Health(IN_PROGRESS, f"updated: {_count(status, 'updatedReplicas')} of {wanted - partition}")
        return _WELL
    if status.get("updateRevision") and status.get("currentRevision") != status.get("updateRevision"):
        return Health(IN_PROGRESS, f"waiting for revision {status.get('updateRevision')}")
    return _WELL


def _daemon_set(spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Health:
    if "observedGeneration" not in status:
        return Health(IN_PROGRESS, "its controller has not looked at it yet")
    wanted = _count(status, "desiredNumberScheduled")
    for key, word in (
        ("currentNumberScheduled", "scheduled"),
        ("updatedNumberScheduled", "updated"),
        ("numberAvailable", "available"),
        ("numberReady", "ready"),
    ):
        if _count(status, key) < wanted:
            return Health(IN_PROGRESS, f"{word}: {_count(status, key)} of {wanted}")
    return _WELL


def _job(spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Health:
    if conditions.get("Failed", {}).get("status") == "True":
        return Health(FAILED, _said(conditions["Failed"]))
    if conditions.get("Complete", {}).get("status") == "True" or spec.get("suspend"):
        return _WELL
    if not status.get("startTime"):
        return Health(IN_PROGRESS, "the Job has not started")
    return _WELL


def _pod(spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Health:
    phase = status.get("phase")
    if phase == "Succeeded":
        return _WELL
    if phase == "Failed":
        return Health(FAILED, str(status.get("message") or status.get("reason") or "the pod has failed"))
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") == "CrashLoopBackOff":
            return Health(FAILED, f"container {container.get('name')}: {waiting.get('message') or 'CrashLoopBackOff'}")
    if conditions.get("Ready", {}).get("status") == "True":
        return _WELL
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return Health(IN_PROGRESS, _said(scheduled))
    return Health(IN_PROGRESS, f"the pod is {phase or 'Pending'} and not ready")


def _claim(spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Health:
    phase = status.get("phase")
    if phase == "Bound":
        return _WELL
    return Health(FAILED if phase == "Lost" else IN_PROGRESS, f"the claim is {phase or 'Pending'}, not Bound")


def _service(spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Health:
    if spec.get("type") == "LoadBalancer" and not spec.get("clusterIP"):
        return Health(IN_PROGRESS, "the Service has no cluster IP yet")
    return _WELL


def _definition(spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Health:
    names = conditions.get("NamesAccepted", {})
    if names.get("status") == "False":
        return Health(FAILED, _said(names))
    if conditions.get("Established", {}).get("status") == "True":
        return _WELL
    return Health(IN_PROGRESS, "the kind is not yet served (Established)")


def _budget(spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Health:
    if "observedGeneration" not in status:
        return Health(IN_PROGRESS, "its controller has not looked at it yet")
    return _WELL


_RULES = {
    "Deployment": _deployment,
    "ReplicaSet": _replica_set,
    "StatefulSet": _stateful_set,
    "DaemonSet": _daemon_set,
    "Job": _job,
    "Pod": _pod,
    "PersistentVolumeClaim": _claim,
    "Service": _service,
    "CustomResourceDefinition": _definition,
    "PodDisruptionBudget": _budget,
}
