"""What counts against a ResourceQuota, and what a LimitRange wants of containers, pods and claims. Pure.

Pods are mirrors of what runs on sites, so it is workloads that are counted, when they are written: a workload is its pod template
times its replicas. A DaemonSet is counted by the sites that it runs on, at least once; a Job by its parallelism until it has
ended or while it is not suspended; a CronJob by the Jobs that it makes; a Pod of one's own by itself. The history of a workload,
and mirrors of it, are not counted again. Every kind can be counted by ``count/PLURAL.GROUP``.
Source: ``k8s.io/kubernetes/pkg/quota/v1/evaluator/core`` and ``plugin/pkg/admission/limitranger``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from metaos.resources import quantity, scheme
from metaos.resources.meta import CLUSTER_LABEL, Obj, controller_of, is_true, labels
from metaos.resources.scheme import Kind
from metaos.resources.workload import pod_template, replicas

Amounts = dict[str, Fraction]

WORKLOADS = (scheme.DEPLOYMENT, scheme.STATEFUL_SET, scheme.DAEMON_SET, scheme.REPLICA_SET, scheme.JOB, scheme.POD)
#: Of these, what has a controller is not run for itself.
_PARTS = (scheme.REPLICA_SET, scheme.POD)
#: Kinds that have a name of their own among what is counted.
_PLAIN = ("configmaps", "secrets", "services", "persistentvolumeclaims", "resourcequotas", "replicationcontrollers")
_POD_RESOURCES = ("cpu", "memory", "ephemeral-storage")
_COUNTED = {"pods", "requests.storage", "services.loadbalancers", "services.nodeports", *_PLAIN}
_COUNTED |= {f"{part}{key}" for part in ("", "requests.", "limits.") for key in _POD_RESOURCES}


def mirrored(kind: Kind, obj: Obj) -> bool:
    """Whether a Pod is the mirror of what runs on a site, of which its workload was admitted. A label alone, which everybody may
    write, makes none of it."""
    if kind is not scheme.POD:
        return False
    site = (obj.get("spec") or {}).get("nodeName")
    return bool(site) and labels(obj).get(CLUSTER_LABEL) == site and controller_of(obj) is not None


def _amount(value: Any) -> Fraction:
    return quantity.parse(value)


def resources_of(spec: Obj, part: str) -> Amounts:
    """``requests`` or ``limits`` of one pod: what its containers have together, or its largest init container. As defaulting
    has it, a limit is a request where there is none."""
    total: Amounts = {}
    largest: Amounts = {}

    def asked(container: Obj) -> Mapping[str, Any]:
        found = container.get("resources") or {}
        return (
            {**(found.get("limits") or {}), **(found.get("requests") or {})} if part == "requests" else found.get("limits") or {}
        )

    for container in spec.get("containers") or ():
        for key, value in asked(container).items():
            total[key] = total.get(key, Fraction(0)) + _amount(value)
    for container in spec.get("initContainers") or ():
        sidecar = container.get("restartPolicy") == "Always"
        for key, value in asked(container).items():
            if sidecar:
                total[key] = total.get(key, Fraction(0)) + _amount(value)
            else:
                largest[key] = max(largest.get(key, Fraction(0)), _amount(value))
    return {key: max(total.get(key, Fraction(0)), largest.get(key, Fraction(0))) for key in total.keys() | largest.keys()}


def pods_of(kind: Kind, obj: Obj) -> int:
    """How many pods an object stands for; 0 for what is no workload, is a part of one, or has ended. Whoever owns something else
    (an operator's object, or any that its author has named) does not take it from the namespace's account."""
    if kind not in WORKLOADS or (kind in _PARTS and controller_of(obj) is not None):
        return 0
    status, spec = obj.get("status") or {}, obj.get("spec") or {}
    if kind is scheme.POD:
        return 0 if status.get("phase") in ("Succeeded", "Failed") else 1
    if kind is scheme.JOB:
        return 0 if spec.get("suspend") or is_true(obj, "Complete") or is_true(obj, "Failed") else replicas(obj)
    if kind is scheme.DAEMON_SET:
        return max(1, int(status.get("desiredNumberScheduled") or 0))
    return replicas(obj)


def usage(kind: Kind, obj: Obj) -> Amounts:
    """What one object counts for, by the names that a quota uses."""
    one = Fraction(1)
    found: Amounts = {f"count/{kind.resource}": one}
    if not kind.group and kind.plural in _PLAIN:
        found[kind.plural] = one
    spec = obj.get("spec") or {}
    if kind is scheme.SERVICE:
        ports = len(spec.get("ports") or ())
        if spec.get("type") == "LoadBalancer":
            found["services.loadbalancers"] = one
        if spec.get("type") in ("NodePort", "LoadBalancer"):
            found["services.nodeports"] = Fraction(ports)
    elif kind is scheme.PERSISTENT_VOLUME_CLAIM:
        asked = _amount(((spec.get("resources") or {}).get("requests") or {}).get("storage", 0))
        found["requests.storage"] = asked
        storage_class = spec.get("storageClassName")
        if storage_class:
            found[f"{storage_class}.storageclass.storage.k8s.io/persistentvolumeclaims"] = one
            found[f"{storage_class}.storageclass.storage.k8s.io/requests.storage"] = asked
    count = pods_of(kind, obj)
    if count:
        pod = pod_template(obj).get("spec") or {}
        found["pods"] = Fraction(count)
        for key, value in resources_of(pod, "requests").items():
            found[f"requests.{key}"] = value * count
            if key in _POD_RESOURCES:
                found[key] = value * count
        for key, value in resources_of(pod, "limits").items():
            if key in _POD_RESOURCES:
                found[f"limits.{key}"] = value * count
    return found


def countable(name: str) -> bool:
    """Whether a quota may name it. What has a domain, or ``count/``, may be of a kind or resource that is yet to come."""
    return "/" in name or name in _COUNTED or name.removeprefix("requests.").startswith("hugepages-")


# -- scopes ----------------------------------------------------------------------------------------------------


def in_scope(quota: Obj, kind: Kind, obj: Obj) -> bool:
    """Whether a quota's scopes, if it has any, hold for a workload's pods. Other kinds have none."""
    spec = quota.get("spec") or {}
    wanted = [{"scopeName": each, "operator": "Exists"} for each in spec.get("scopes") or ()]
    wanted += (spec.get("scopeSelector") or {}).get("matchExpressions") or []
    if not wanted:
        return True
    if not pods_of(kind, obj):
        return False
    pod = pod_template(obj).get("spec") or {}
    return all(_scope(each, pod) for each in wanted)


def _scope(rule: Obj, pod: Obj) -> bool:
    name = str(rule["scopeName"])
    if name in ("Terminating", "NotTerminating"):
        return (pod.get("activeDeadlineSeconds") is not None) == (name == "Terminating")
    if name in ("BestEffort", "NotBestEffort"):
        asked = resources_of(pod, "requests") or resources_of(pod, "limits")
        return bool(asked) == (name == "NotBestEffort")
    if name == "CrossNamespacePodAffinity":
        return False  # Pods of other namespaces are nothing that placement looks at.
    value, values = pod.get("priorityClassName") or "", rule.get("values") or ()
    operator = rule.get("operator")
    if operator == "In":
        return bool(value in values)
    if operator == "NotIn":
        return bool(value not in values)
    return bool(value) == (operator == "Exists")


def hard(quota: Obj) -> Amounts:
    """What a quota allows."""
    return {key: _amount(value) for key, value in ((quota.get("spec") or {}).get("hard") or {}).items()}


def counted(quota: Obj, kind: Kind, obj: Obj) -> Amounts:
    """What an object counts for against one quota."""
    if not in_scope(quota, kind, obj):
        return {}
    names = (quota.get("spec") or {}).get("hard") or {}
    return {key: value for key, value in usage(kind, obj).items() if key in names}


def missing(quota: Obj, kind: Kind, obj: Obj) -> list[str]:
    """What a workload must say where a quota limits it: ``requests.cpu for: web``."""
    if not pods_of(kind, obj) or not in_scope(quota, kind, obj):
        return []
    pod = pod_template(obj).get("spec") or {}
    found: dict[str, list[str]] = {}
    for name in sorted((quota.get("spec") or {}).get("hard") or {}):
        part, _, key = name.rpartition(".")
        part = part or ("requests" if name in _POD_RESOURCES else "")
        if part not in ("requests", "limits") or key not in _POD_RESOURCES:
            continue
        for container in pod.get("containers") or ():
            resources = container.get("resources") or {}
            said = (
                {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
                if part == "requests"
                else resources.get("limits") or {}
            )
            if key not in said:
                found.setdefault(name, []).append(container["name"])
    return [f"{name} for: {','.join(containers)}" for name, containers in found.items()]


def shown(name: str, value: Fraction) -> str:
    """An amount as people write it."""
    if name.endswith(("memory", "storage")) and value.denominator == 1:
        return quantity.format_bytes(int(value))
    return quantity.format_milli(int(value * 1000))


# -- limit ranges ------------------------------------------------------------------------------------------------


def with_defaults(ranges: list[Obj], pod: Obj) -> Obj:
    """A pod's spec with the requests and limits that LimitRanges give to containers that have none. The same object where
    nothing changes."""
    changed = copy.deepcopy(pod)
    for each in ranges:
        for item in (each.get("spec") or {}).get("limits") or ():
            if item.get("type") != "Container":
                continue
            for part in ("containers", "initContainers"):
                for container in changed.get(part) or ():
                    for field, defaults in (("limits", item.get("default")), ("requests", item.get("defaultRequest"))):
                        for key, value in (defaults or {}).items():
                            held = container.setdefault("resources", {}).setdefault(field, {})
                            held.setdefault(key, value)
    return pod if changed == pod else changed


def problems(ranges: list[Obj], kind: Kind, obj: Obj) -> list[str]:
    """What of an object LimitRanges do not allow."""
    found: list[str] = []
    for each in ranges:
        for item in (each.get("spec") or {}).get("limits") or ():
            found += _problems(item, kind, obj)
    return found


def _problems(item: Obj, kind: Kind, obj: Obj) -> Iterator[str]:
    what = item.get("type")
    if what == "PersistentVolumeClaim":
        if kind is scheme.PERSISTENT_VOLUME_CLAIM:
            asked = ((obj.get("spec") or {}).get("resources") or {}).get("requests") or {}
            amounts = {key: _amount(value) for key, value in asked.items()}
            yield from _bounds(item, what, amounts, amounts, asked, asked)
        return
    pod = pod_template(obj).get("spec") if kind in WORKLOADS or kind is scheme.CRON_JOB else None
    if not pod:
        return
    if what == "Pod":
        requests, limits = resources_of(pod, "requests"), resources_of(pod, "limits")
        texts = [{key: shown(key, value) for key, value in each.items()} for each in (requests, limits)]
        yield from _bounds(item, what, requests, limits, *texts)
    elif what == "Container":
        for container in (*(pod.get("initContainers") or ()), *(pod.get("containers") or ())):
            resources = container.get("resources") or {}
            limits = resources.get("limits") or {}
            requests = {**limits, **(resources.get("requests") or {})}
            parsed = [{key: _amount(value) for key, value in each.items()} for each in (requests, limits)]
            yield from _bounds(item, what, parsed[0], parsed[1], requests, limits)


def _bounds(
    item: Obj, what: str, requests: Mapping[str, Fraction], limits: Mapping[str, Fraction], asked: Any, limited: Any
) -> Iterator[str]:
    for key, least in (item.get("min") or {}).items():
        if key not in requests:
            yield f"minimum {key} usage per {what} is {least}.  No request is specified"
        elif requests[key] < _amount(least):
            yield f"minimum {key} usage per {what} is {least}, but request is {asked[key]}"
    for key, most in (item.get("max") or {}).items():
        if key not in limits:
            yield f"maximum {key} usage per {what} is {most}.  No limit is specified"
        elif limits[key] > _amount(most):
            yield f"maximum {key} usage per {what} is {most}, but limit is {limited[key]}"
    for key, most in (item.get("maxLimitRequestRatio") or {}).items():
        request, limit = requests.get(key), limits.get(key)
        if not request or limit is None:
            yield f"{key} max limit to request ratio per {what} is {most}, but no request is specified or request is 0"
        elif limit / request > _amount(most):
            yield f"{key} max limit to request ratio per {what} is {most}, but provided ratio is {float(limit / request):.6f}"
