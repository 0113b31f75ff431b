"""Rendering: from a user's object to what one site gets. Pure functions, shared by the controllers that write Works."""

import copy
import hashlib
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from metaos.resources import scheme
from metaos.resources.backups import secret_of
from metaos.resources.mergepatch import merged
from metaos.resources.meta import (
    ADOPT,
    ANNOTATION_PREFIX,
    CLUSTER_LABEL,
    DRAINING,
    REVISION,
    SOURCE_LABEL,
    Obj,
    ObjectRef,
    annotations,
    cluster_namespace,
    deleting,
    labels,
    name,
    namespace,
    ref,
    uid,
)
from metaos.resources.workload import grace_seconds, has_local_data, references, work_name

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_LABEL_LIMIT = 63


def source_label(about: ObjectRef) -> str:
    """:func:`work_name` where it fits a label, otherwise its digest."""
    text = work_name(about)
    if len(text) <= _LABEL_LIMIT:
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def manifest(obj: Obj) -> Obj:
    """An object as a site gets it: what the user said, with its identity, without what the hub keeps for itself."""
    metadata = obj.get("metadata") or {}
    kept = {k: metadata[k] for k in ("name", "namespace", "labels", "uid", "generation") if k in metadata}
    said = {
        k: v
        for k, v in (metadata.get("annotations") or {}).items()
        if k == ADOPT or (k not in (LAST_APPLIED, REVISION) and not k.startswith(ANNOTATION_PREFIX))
    }
    if said:
        kept["annotations"] = said
    body = {k: v for k, v in obj.items() if k not in ("metadata", "status")}
    return copy.deepcopy({"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": kept, **body})


def with_replicas(obj: Obj, replicas: int) -> Obj:
    """A rendered workload with its site's share. A Job's parallelism is its share; other kinds have none."""
    if obj.get("kind") in ("Deployment", "StatefulSet", "ReplicaSet"):
        obj["spec"] = obj["spec"] | {"replicas": replicas}
    return obj


def on_capacity(template: Obj, kind: Mapping[str, Any]) -> Obj:
    """A pod template for the nodes of one kind of capacity, by the selector and tolerations that the site states of it."""
    spec = template.get("spec") or {}
    chosen = {"nodeSelector": {**(spec.get("nodeSelector") or {}), **(kind.get("nodeSelector") or {})}}
    tolerations = [*(spec.get("tolerations") or ()), *(kind.get("tolerations") or ())]
    return {**template, "spec": {**spec, **chosen, **({"tolerations": tolerations} if tolerations else {})}}


def paused(obj: Obj) -> bool:
    """Whether changes of its pod template wait (``kubectl rollout pause``)."""
    return obj.get("kind") == "Deployment" and bool((obj.get("spec") or {}).get("paused"))


def template_of(found: Obj) -> Any:
    """The pod template that a Work tells its site to run."""
    return (found["spec"]["manifests"][0].get("spec") or {}).get("template")


def overridden(obj: Obj, cluster: str, policies: Iterable[Obj]) -> Obj:
    """With the overrides that operators set for a site. Name, namespace and uid are not theirs to change."""
    result = obj
    for policy in sorted(policies, key=name):
        for override in (policy.get("spec") or {}).get("overrides") or ():
            if cluster in (override.get("clusters") or [cluster]):
                result = merged(result, override.get("patch") or {})
    for key in ("apiVersion", "kind"):
        result[key] = obj[key]
    for key in ("name", "namespace", "uid", "generation"):
        if key in obj["metadata"]:
            result["metadata"][key] = obj["metadata"][key]
    return result


def work(
    about: ObjectRef,
    cluster: str,
    manifests: list[Obj],
    fencing_seconds: float | None = None,
    restore: Mapping[str, Any] | None = None,
) -> Obj:
    """The Work object. ``restore``: what is brought back from a backup first."""
    result: Obj = dict(scheme.WORK.empty(work_name(about), cluster_namespace(cluster)))
    result["metadata"]["labels"] = {SOURCE_LABEL: source_label(about), CLUSTER_LABEL: cluster}
    result["spec"] = {"manifests": manifests}
    if fencing_seconds is not None:
        result["spec"]["fencing"] = {"afterSeconds": fencing_seconds, "graceSeconds": int(grace_seconds(manifests[0]))}
    if restore is not None:
        result["spec"]["restore"] = dict(restore)
    return result


def source_of(found: Obj) -> ObjectRef:
    """What a Work was rendered from: its first manifest."""
    manifests = (found.get("spec") or {}).get("manifests") or ()
    return ref(manifests[0]) if manifests else ObjectRef("", "", "", "")


def cluster_of(found: Obj) -> str:
    """The site of a Work."""
    return str(
        (found.get("metadata") or {}).get("labels", {}).get(CLUSTER_LABEL) or namespace(found).removeprefix(cluster_namespace(""))
    )


def is_draining(found: Obj) -> bool:
    return DRAINING in annotations(found)


#: Longer texts of a site are cut: they end up in the user's object.
MAX_TEXT = 1024
MAX_CONDITIONS = 32
MAX_ACTIVE = 1000
#: Addresses of a load balancer that one site has, and ports of each (as in the API).
MAX_INGRESS, MAX_PORTS = 16, 100
_TEXTS = ("currentRevision", "updateRevision", "lastScheduleTime", "lastSuccessfulTime", "startTime", "completionTime")
#: Sets of numbers such as ``0-2,5``, of at most so many characters.
_INDEXES = ("completedIndexes", "failedIndexes")
MAX_INDEXES = 64 << 10
#: Counts that say how much of its share a site runs; it cannot run more for the others.
_SHARED = ("updatedReplicas", "readyReplicas", "availableReplicas", "currentReplicas")


def reported(found: Obj) -> Mapping[str, Any]:
    """The status that the site reports for a Work's first manifest, empty where there is none of this uid yet.

    A site may say anything. What is taken from it is of the right kind, bounded, and about its own share only."""
    about = source_of(found)
    wanted: Obj = ((found.get("spec") or {}).get("manifests") or [{}])[0]
    its_uid = wanted.get("metadata", {}).get("uid")
    for entry in (found.get("status") or {}).get("manifests") or ():
        if entry.get("kind") == about.kind and entry.get("name") == about.name and entry.get("uid", its_uid) == its_uid:
            seen = _count(entry.get("observedGeneration"), int(wanted.get("metadata", {}).get("generation") or 0))
            status = entry.get("status")
            return {"observedGeneration": seen, "status": _plausible(status if isinstance(status, dict) else {}, wanted)}
    return {}


def _count(value: Any, limit: int = 1_000_000) -> int:
    return max(0, min(value, limit)) if isinstance(value, int) and not isinstance(value, bool) else 0


def _plausible(said: Mapping[str, Any], wanted: Obj) -> dict[str, Any]:
    shared = wanted.get("kind") in ("Deployment", "StatefulSet", "ReplicaSet")
    share = _count((wanted.get("spec") or {}).get("replicas", 1))
    status: dict[str, Any] = {}
    for key, value in said.items():
        if key in _TEXTS:
            if isinstance(value, str):
                status[key] = value[:MAX_TEXT]
        elif key in _INDEXES:
            if isinstance(value, str):
                status[key] = value[:MAX_INDEXES]
        elif key == "jobs" and wanted.get("kind") == "CronJob" and isinstance(value, list):
            status[key] = [_job(j) for j in value[:MAX_ACTIVE] if isinstance(j, dict) and _is_job_of(wanted, j)]
        elif key == "conditions":
            conditions = value if isinstance(value, list) else []
            status[key] = [_condition(c) for c in conditions[:MAX_CONDITIONS] if isinstance(c, dict) and _is_condition(c)]
        elif key == "loadBalancer" and wanted.get("kind") == "Service" and isinstance(value, dict):
            found = value.get("ingress")
            status[key] = {"ingress": [_ingress(i) for i in _listed(found)[:MAX_INGRESS] if _is_ingress(i)]}
        elif key == "active" and wanted.get("kind") == "CronJob":
            # References there, a number elsewhere.
            status[key] = [a for a in value[:MAX_ACTIVE] if isinstance(a, dict)] if isinstance(value, list) else []
        elif isinstance(value, int):
            status[key] = _count(value, share) if shared and key in _SHARED else _count(value)
    return status


def _is_job_of(cron: Obj, said: Mapping[str, Any]) -> bool:
    """Whether it can be one that a CronJob made: ``NAME-MINUTE``."""
    called = said.get("name")
    if not isinstance(called, str) or not called.isascii():
        return False
    prefix, _, minute = called.rpartition("-")
    return prefix == name(cron)[:52] and minute.isdigit() and len(minute) <= 12


def _job(said: Mapping[str, Any]) -> dict[str, Any]:
    status = said.get("status")
    found: dict[str, Any] = {k: str(said.get(k) or "")[:MAX_TEXT] for k in ("name", "scheduledTime")}
    return found | {"status": _plausible(status if isinstance(status, dict) else {}, {"kind": "Job"})}


def _is_ingress(said: Any) -> bool:
    return isinstance(said, dict) and (_is_address(said.get("ip")) or _is_host(said.get("hostname")))


def _ingress(said: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: said[key] for key, fits in (("ip", _is_address), ("hostname", _is_host)) if fits(said.get(key))}
    if "ip" in found and said.get("ipMode") in ("VIP", "Proxy"):
        found["ipMode"] = said["ipMode"]
    kept = [_port(each) for each in _listed(said.get("ports"))[:MAX_PORTS] if _is_port(each)]
    return found | ({"ports": kept} if kept else {})


def _listed(said: Any) -> list[Any]:
    return said if isinstance(said, list) else []


def _is_port(said: Any) -> bool:
    return isinstance(said, dict) and 0 < _count(said.get("port"), 65536) < 65536


def _port(said: Mapping[str, Any]) -> dict[str, Any]:
    protocol, error = said.get("protocol"), said.get("error")
    found: dict[str, Any] = {"port": said["port"], "protocol": protocol if protocol in ("TCP", "UDP", "SCTP") else "TCP"}
    if isinstance(error, str) and _ERROR.fullmatch(error):
        found["error"] = error
    return found


#: As the API has it: ``Reason`` or ``example.org/Reason``.
_ERROR = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z][A-Za-z0-9_-]{0,62}")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _is_host(said: Any) -> bool:
    return isinstance(said, str) and _HOST.fullmatch(said) is not None


def _is_address(said: Any) -> bool:
    try:
        return isinstance(said, str) and str(ip_address(said)) == said
    except ValueError:
        return False


def _is_condition(said: Mapping[str, Any]) -> bool:
    return isinstance(said.get("type"), str) and said.get("status") in ("True", "False", "Unknown")


def _condition(said: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value[:MAX_TEXT] for key, value in said.items() if isinstance(key, str) and isinstance(value, str)}


def asks(found: Obj) -> tuple[object, ...]:
    """What a Work says to its site; what the site tells is not of it."""
    return uid(found), deleting(found), labels(found), annotations(found), found.get("spec")


def referred(found: Obj) -> Iterable[ObjectRef]:
    """What goes to a site because this Work does."""
    first = ((found.get("spec") or {}).get("manifests") or [{}])[0]
    if first.get("kind") == scheme.BACKUP_SCHEDULE.kind:
        return [secret_of(first)]
    return references(first) if first.get("kind") in _WORKLOADS else ()


def dependencies(found: Obj) -> list[str]:
    """:func:`referred`, as an index has them."""
    return [work_name(each) for each in referred(found)]


_WORKLOADS = {kind.kind for kind in scheme.WORKLOADS}


def is_idle(found: Obj) -> bool:
    """Whether a site says that nothing of a workload runs there, and it keeps no data there either: nobody misses anything when
    it goes before it is elsewhere. (A Job's pods that have not begun count as its own.)"""
    spec, status = ((found.get("spec") or {}).get("manifests") or [{}])[0], reported(found).get("status") or {}
    if not status or has_local_data(spec):
        return False
    if spec.get("kind") == "Pod":
        return status.get("phase") == "Pending"
    return not any(status.get(count) for count in _RUNNING)


_RUNNING = ("availableReplicas", "readyReplicas", "numberAvailable", "numberReady", "active", "ready")


def available(found: Obj) -> bool:
    """Whether a site runs its share of a workload: what it was told last, all of it, ready."""
    entry = reported(found)
    status = entry.get("status") or {}
    spec = ((found.get("spec") or {}).get("manifests") or [{}])[0]
    seen = int(entry.get("observedGeneration") or 0) >= int(spec.get("metadata", {}).get("generation") or 0)
    kind = spec.get("kind")
    if not entry or not seen:
        return False
    if kind in ("Deployment", "StatefulSet", "ReplicaSet"):
        wanted = int((spec.get("spec") or {}).get("replicas", 1))
        ready = status.get("availableReplicas", status.get("readyReplicas")) or 0
        return int(ready) >= wanted
    if kind == "DaemonSet":
        return int(status.get("numberReady") or 0) >= 1
    if kind == "Job":
        ended = any(c.get("type") in ("Complete", "Failed") and c.get("status") == "True" for c in status.get("conditions") or ())
        # One that is held runs nothing, and can be held anywhere.
        return ended or bool((spec.get("spec") or {}).get("suspend")) or int(status.get("active") or 0) >= 1
    if kind == "Pod":
        return any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())
    return True
