"""What an object must mean, beyond its schema. Pure. Source: ``pkg/apis/*/validation`` of Kubernetes.

Each rule is a function from an object (and the old one) to causes; ``RULES`` says which kinds have which. Tables of
allowed values are data: ``values.yaml``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import orjson
import yaml

from metaos.apiserver import own
from metaos.apiserver.metadata import label_causes
from metaos.apiserver.rules import access, jobs, network, quotas, scaling, scheduling, services, storage
from metaos.apiserver.rules.pods import pod_causes
from metaos.apiserver.rules.selecting import selector_causes
from metaos.apiserver.schema import Node, forbidden, invalid, node_of, required, unsupported
from metaos.resources import scheme
from metaos.resources.errors import Cause
from metaos.resources.meta import CLUSTER_LABEL, Obj, label_selector, labels
from metaos.resources.scheme import Kind
from metaos.scheduler import slack

Rule = Callable[[Obj, Obj | None], Iterable[Cause]]

_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}\Z")
_DATA_BYTES = 1 << 20


@cache
def allowed_values() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Definition → field → the values that Kubernetes knows; its published schemas do not say them."""
    found = yaml.safe_load((resources.files(__package__) / "values.yaml").read_text("utf-8"))
    return {f"io.k8s.api.{name}": {k: tuple(v) for k, v in fields.items()} for name, fields in found.items()}


def causes(kind: Kind, obj: Obj, old: Obj | None) -> list[Cause]:
    """Everything that is wrong with ``obj`` as a successor of ``old``."""
    found = list(_values(node_of(kind), obj, "", allowed_values()))
    for rule in RULES.get(kind.kind, ()):
        found.extend(rule(obj, old))
    return found


def _values(node: Node, value: Any, path: str, table: Mapping[str, Mapping[str, tuple[str, ...]]]) -> Iterator[Cause]:
    if node.kind == "object" and isinstance(value, dict):
        limited = table.get(node.name)
        if limited is not None:
            for key, allowed in limited.items():
                where, held = f"{path}.{key}" if path else key, value.get(key)
                if isinstance(held, list):
                    yield from (unsupported(f"{where}[{i}]", each, allowed) for i, each in enumerate(held) if each not in allowed)
                elif held is not None and held not in allowed:
                    yield unsupported(where, held, allowed)
        for key, child in node.properties.items():
            if child.kind in ("object", "array") and key in value and (path or key not in ("metadata", "status")):
                yield from _values(child, value[key], f"{path}.{key}" if path else key, table)
    elif node.kind == "array" and node.item is not None and node.item.kind == "object" and isinstance(value, list):
        for i, item in enumerate(value):
            yield from _values(node.item, item, f"{path}[{i}]", table)


# -- pods --------------------------------------------------------------------------------------------------


def _pod(obj: Obj, old: Obj | None) -> Iterable[Cause]:
    if old is None:
        return [*pod_causes(obj.get("spec") or {}, "spec"), *_unbound(obj)]
    return list(_pod_change(obj, old))


def _unbound(obj: Obj) -> Iterator[Cause]:
    """Nobody goes round placement, and with it residency. A mirror carries its site's label as well."""
    site = (obj.get("spec") or {}).get("nodeName")
    if site and labels(obj).get(CLUSTER_LABEL) != site:
        yield forbidden(
            "spec.nodeName",
            f"sites are chosen by placement: ask for one with spec.nodeSelector {{kubernetes.io/hostname: {site}}}; "
            "a site's own machine cannot be entered, so 'kubectl debug node/…' cannot either",
        )


_POD_MUTABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "nodeName", "schedulingGates")


def _pod_change(obj: Obj, old: Obj) -> Iterator[Cause]:
    """A pod's spec is fixed but for images, deadlines and added tolerations; a site is set once."""
    now, before = dict(obj.get("spec") or {}), dict(old.get("spec") or {})
    if len(now.get("containers") or ()) != len(before.get("containers") or ()):
        yield forbidden("spec.containers", "pod updates may not add or remove containers")
        return
    deadline, was = now.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds")
    if was is not None and deadline is None:
        yield invalid("spec.activeDeadlineSeconds", None, "must not update from a positive integer to nil value")
    elif was is not None and deadline > was:
        yield invalid("spec.activeDeadlineSeconds", deadline, "must be less than or equal to previous value")
    if before.get("nodeName") and now.get("nodeName") != before["nodeName"]:
        yield forbidden(
            "spec.nodeName", "a pod stays on its site; delete it, or move its workload by an Intent or a PlacementPolicy"
        )
    for spec in (now, before):
        for key in _POD_MUTABLE:
            spec.pop(key, None)
        for field in ("containers", "initContainers"):
            if field in spec:
                spec[field] = [{k: v for k, v in c.items() if k not in ("image", "resources")} for c in spec[field]]
    if now != before:
        yield forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
            "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
            "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        )


# -- workloads ---------------------------------------------------------------------------------------------


def _count(spec: Obj, *fields: str, path: str = "spec") -> Iterator[Cause]:
    for field in fields:
        if (spec.get(field) or 0) < 0:
            yield invalid(f"{path}.{field}", spec[field], "must be greater than or equal to 0")


def _template(spec: Obj, policies: tuple[str, ...], path: str = "spec.template") -> Iterator[Cause]:
    template = spec.get("template") or {}
    yield from label_causes((template.get("metadata") or {}).get("labels"), f"{path}.labels")
    pod = template.get("spec") or {}
    claims = [str((c.get("metadata") or {}).get("name")) for c in spec.get("volumeClaimTemplates") or ()]
    yield from pod_causes(pod, f"{path}.spec", claims)
    policy = pod.get("restartPolicy", "Always")
    if policy not in policies and policies == ("Always",):
        yield unsupported(f"{path}.spec.restartPolicy", policy, policies)
    elif policy == "Always" and policies != ("Always",):
        yield required(f"{path}.spec.restartPolicy", 'valid values: "OnFailure", "Never"')
    elif policy not in policies:
        yield unsupported(f"{path}.spec.restartPolicy", policy, policies)


def _selected(spec: Obj, kind: str = "deployment") -> Iterator[Cause]:
    """A workload's selector, and that it fits the template. Where it is missing, the schema says so."""
    selector = spec.get("selector")
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    if selector is not None:
        found = list(selector_causes(selector, "spec.selector"))
        yield from found
        values = [v for rule in selector.get("matchExpressions") or () for v in rule.get("values") or ()]
        if found or any(label_causes({"key": value}, "") for value in values):
            yield invalid("spec.selector", selector, "invalid label selector")
            return
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            yield invalid("spec.selector", selector, f"empty selector is invalid for {kind}")
            return
    if not label_selector(selector)(labels):
        yield invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")


def _workload(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    yield from _count(spec, "replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds")
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None and 0 <= deadline <= (spec.get("minReadySeconds") or 0):
        yield invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")
    yield from _selected(spec, "deployment" if obj.get("kind") == "ReplicaSet" else str(obj.get("kind")).lower())
    if not any(
        cause.message.endswith("invalid label selector") for cause in _selected(spec)
    ):  # As Kubernetes: first the one, then the other.
        yield from _template(spec, ("Always",))
    yield from _immutable(obj, old, "selector")


def _deployment(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    yield from _workload(obj, old)
    yield from _strategy(obj.get("spec") or {}, "strategy", ("Recreate", "RollingUpdate"))


def _daemon(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    yield from _workload(obj, old)
    yield from _strategy(obj.get("spec") or {}, "updateStrategy", ("OnDelete", "RollingUpdate"))


def _strategy(spec: Obj, field: str, types: tuple[str, ...]) -> Iterator[Cause]:
    strategy, path = spec.get(field) or {}, f"spec.{field}.rollingUpdate"
    if strategy.get("type") not in (*types, None):
        yield unsupported(f"spec.{field}", strategy["type"], types)
    rolling = strategy.get("rollingUpdate") or {}
    if strategy.get("type") == "Recreate" and rolling:
        yield forbidden(path, "may not be specified when strategy `type` is 'Recreate'")
    if strategy.get("type") != "RollingUpdate":
        return
    surge, down = rolling.get("maxSurge"), rolling.get("maxUnavailable")
    yield from scaling.amount_causes(down, f"{path}.maxUnavailable")
    yield from scaling.amount_causes(surge, f"{path}.maxSurge")
    if surge in (0, "0%") and down in (0, "0%"):
        yield invalid(f"{path}.maxUnavailable", down, "may not be 0 when `maxSurge` is 0")
    yield from scaling.share_causes(down, f"{path}.maxUnavailable")


def _immutable(obj: Obj, old: Obj | None, *fields: str) -> Iterator[Cause]:
    now, before = obj.get("spec") or {}, (old or {}).get("spec") or {}
    for field in fields:
        if old is not None and now.get(field) != before.get(field):
            yield invalid(f"spec.{field}", now.get(field), "field is immutable")


_STATEFUL_MUTABLE = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def _stateful(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    now, before = obj.get("spec") or {}, (old or {}).get("spec") or {}
    if old is not None and {k: v for k, v in now.items() if k not in _STATEFUL_MUTABLE} != {
        k: v for k, v in before.items() if k not in _STATEFUL_MUTABLE
    }:
        listed = ", ".join(f"'{f}'" for f in _STATEFUL_MUTABLE[:-1])
        yield forbidden("spec", f"updates to statefulset spec for fields other than {listed} and 'minReadySeconds' are forbidden")
        return
    yield from _workload(obj, None)
    strategy, policy = now.get("updateStrategy") or {}, now.get("podManagementPolicy")
    if policy not in (None, "OrderedReady", "Parallel"):
        yield invalid("spec.podManagementPolicy", policy, "must be 'OrderedReady' or 'Parallel'")
    if strategy.get("type") not in (None, "OnDelete", "RollingUpdate"):
        yield invalid("spec.updateStrategy", strategy, "must be 'RollingUpdate' or 'OnDelete'")
    partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
    if partition < 0:
        yield invalid("spec.updateStrategy.rollingUpdate.partition", partition, "must be greater than or equal to 0")
    down = (strategy.get("rollingUpdate") or {}).get("maxUnavailable")
    yield from scaling.amount_causes(down, "spec.updateStrategy.rollingUpdate.maxUnavailable")
    yield from scaling.share_causes(down, "spec.updateStrategy.rollingUpdate.maxUnavailable")
    if down in (0, "0%"):
        yield invalid("spec.updateStrategy.rollingUpdate.maxUnavailable", down, "cannot be 0")
    yield from _count(now.get("ordinals") or {}, "start", path="spec.ordinals")
    for i, claim in enumerate(now.get("volumeClaimTemplates") or () if old is None else ()):
        for cause in storage.claim(claim, None):
            yield Cause(cause.reason, f"spec.volumeClaimTemplates[{i}].{cause.field}", cause.message)


def _job(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    yield from jobs.job_causes(spec, "spec")
    yield from slack.causes(obj)
    if old is None:
        yield from jobs.index_name_causes(obj)
        yield from _template(spec, ("OnFailure", "Never"))
        if spec.get("selector") is not None:
            yield from _selected(spec)
    elif not (old.get("spec") or {}).get("suspend"):
        yield from _immutable(obj, old, "template")
    yield from _immutable(obj, old, "selector", "completionMode", "manualSelector", *jobs.IMMUTABLE)
    if spec.get("completionMode") != "Indexed":
        yield from _immutable(obj, old, "completions")


def _cron_job(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if len(obj["metadata"].get("name") or "") > 52:
        yield invalid("metadata.name", obj["metadata"].get("name"), "must be no more than 52 characters")
    yield from jobs.schedule_causes(spec, (old or {}).get("spec") or {})
    yield from slack.causes(obj)
    job = (spec.get("jobTemplate") or {}).get("spec") or {}
    yield from _template(job, ("OnFailure", "Never"), "spec.jobTemplate.spec.template")
    yield from jobs.job_causes(job, "spec.jobTemplate.spec")
    yield from _count(spec, "startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit")


# -- configuration -------------------------------------------------------------------------------


def _data(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    size = 0
    for field in ("data", "binaryData"):
        for key, value in (obj.get(field) or {}).items():
            size += len(value)
            if not _KEY.match(key) or key in (".", ".."):
                yield invalid(
                    f"{field}[{key}]",
                    key,
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' "
                    "(e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                )
    if size > _DATA_BYTES:
        yield Cause("FieldValueTooLong", "data", f"Too long: may not be more than {_DATA_BYTES} bytes")
    if old is not None and old.get("immutable"):
        changed = [f for f in ("data", "binaryData") if obj.get(f) != old.get(f)]
        for field in ["immutable", *changed] if not obj.get("immutable") else changed:
            yield forbidden(field, "field is immutable when `immutable` is set")


def _secret(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    yield from _data(obj, old)
    if old is not None and obj.get("type") != old.get("type"):
        yield invalid("type", obj.get("type"), "field is immutable")
    kind, data = obj.get("type") or "", obj.get("data") or {}
    yield from (required(f"data[{key}]") for key in _SECRET_KEYS.get(kind, ()) if key not in data)
    if kind == "kubernetes.io/basic-auth" and not data.keys() & {"username", "password"}:
        yield from (required(f"data[{key}]") for key in ("username", "password"))
    if kind == "kubernetes.io/ssh-auth" and not data.get("ssh-privatekey"):
        yield required("data[ssh-privatekey]")
    for key in (".dockerconfigjson", ".dockercfg"):
        if key in _SECRET_KEYS.get(kind, ()) and key in data and not _is_json(data[key]):
            yield invalid(f"data[{key}]", "<secret contents redacted>", "must be JSON")


_SECRET_KEYS = {
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}


def _is_json(encoded: str) -> bool:
    try:
        orjson.loads(base64.b64decode(encoded))
    except ValueError:
        return False
    return True


def _lease(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if spec.get("leaseDurationSeconds") is not None and spec["leaseDurationSeconds"] <= 0:
        yield invalid("spec.leaseDurationSeconds", spec["leaseDurationSeconds"], "must be greater than 0")
    if (spec.get("leaseTransitions") or 0) < 0:
        yield invalid("spec.leaseTransitions", spec["leaseTransitions"], "must be greater than or equal to 0")


def _event(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    about = (obj.get("involvedObject") or {}).get("namespace") or ""
    if about and about != obj["metadata"].get("namespace"):
        yield invalid("involvedObject.namespace", about, "does not match event.namespace")


def _controller_revision(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    if (obj.get("revision") or 0) < 0:
        yield invalid("revision", obj["revision"], "must be greater than or equal to 0")
    if old is not None and obj.get("data") != old.get("data"):
        yield invalid("data", obj.get("data"), "field is immutable")


def _definition(obj: Obj, old: Obj | None) -> Iterable[Cause]:
    from metaos.apiserver.custom import definition  # Loaded with the first of them.

    return definition.causes(obj, old)


def _policy(obj: Obj, old: Obj | None) -> Iterable[Cause]:
    from metaos.apiserver.custom import policies

    rules = policies.policy_causes if obj["kind"] == scheme.VALIDATING_ADMISSION_POLICY.kind else policies.binding_causes
    return rules(obj, old)


def _webhooks(obj: Obj, old: Obj | None) -> Iterable[Cause]:
    from metaos.apiserver.custom import webhooks

    return webhooks.causes(obj, old)


#: Kinds and their rules. Another rule joins here.
RULES: Mapping[str, tuple[Rule, ...]] = {
    scheme.POD.kind: (_pod,),
    scheme.DEPLOYMENT.kind: (_deployment,),
    scheme.REPLICA_SET.kind: (_workload,),
    scheme.DAEMON_SET.kind: (_daemon,),
    scheme.STATEFUL_SET.kind: (_stateful,),
    scheme.JOB.kind: (_job,),
    scheme.CRON_JOB.kind: (_cron_job,),
    scheme.SERVICE.kind: (services.service,),
    scheme.CONFIG_MAP.kind: (_data,),
    scheme.SECRET.kind: (_secret,),
    scheme.PERSISTENT_VOLUME_CLAIM.kind: (storage.claim,),
    scheme.ROLE_BINDING.kind: (access.binding,),
    scheme.CLUSTER_ROLE_BINDING.kind: (access.binding,),
    scheme.ROLE.kind: (access.role,),
    scheme.CLUSTER_ROLE.kind: (access.role,),
    scheme.RESOURCE_QUOTA.kind: (quotas.quota,),
    scheme.LIMIT_RANGE.kind: (quotas.limit_range,),
    scheme.LEASE.kind: (_lease,),
    scheme.EVENT.kind: (_event,),
    scheme.CONTROLLER_REVISION.kind: (_controller_revision,),
    scheme.INGRESS.kind: (network.ingress,),
    scheme.INGRESS_CLASS.kind: (network.ingress_class,),
    scheme.NETWORK_POLICY.kind: (network.network_policy,),
    scheme.POD_DISRUPTION_BUDGET.kind: (scaling.disruption_budget,),
    scheme.HORIZONTAL_POD_AUTOSCALER.kind: (scaling.autoscaler,),
    scheme.PRIORITY_CLASS.kind: (scheduling.priority_class,),
    scheme.STORAGE_CLASS.kind: (storage.storage_class,),
    scheme.PERSISTENT_VOLUME.kind: (storage.volume,),
    scheme.CUSTOM_RESOURCE_DEFINITION.kind: (_definition,),
    scheme.VALIDATING_ADMISSION_POLICY.kind: (_policy,),
    scheme.VALIDATING_ADMISSION_POLICY_BINDING.kind: (_policy,),
    scheme.MUTATING_WEBHOOK_CONFIGURATION.kind: (_webhooks,),
    scheme.VALIDATING_WEBHOOK_CONFIGURATION.kind: (_webhooks,),
    scheme.INTENT.kind: (own.intent_causes,),
    scheme.PLACEMENT_POLICY.kind: (own.policy_causes,),
    scheme.CLUSTER.kind: (own.cluster_causes,),
    scheme.USAGE.kind: (own.usage_causes,),
    scheme.TARIFF.kind: (own.tariff_causes,),
    scheme.BUDGET.kind: (own.budget_causes,),
    scheme.DEVICE.kind: (own.device_causes,),
    scheme.DEVICE_SET.kind: (own.device_set_causes,),
    scheme.DEVICE_CLAIM.kind: (own.device_claim_causes,),
    scheme.BACKUP_STORE.kind: (own.backup_store_causes,),
    scheme.BACKUP_SCHEDULE.kind: (own.backup_schedule_causes,),
}
