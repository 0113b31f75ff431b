"""Metadata as the API server keeps it: identity, generation, names; what a writer may and may not change. Pure.

Source: ``k8s.io/apiserver/pkg/registry/rest`` (BeforeCreate, BeforeUpdate) and ``apimachinery/pkg/api/validation``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from metaos.apiserver.customkind import CustomKind
from metaos.apiserver.schema import forbidden, invalid, required
from metaos.resources import scheme
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]\Z")
_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?\Z")
_ANNOTATIONS_BYTES = 256 * 1024
#: Kinds whose names become part of DNS names or of other objects' names, so that dots are out.
_LABEL_NAMES = frozenset({"Namespace", "Service", "Cluster", "Node"})
_PATH_NAMES = frozenset({"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"})
#: Native kinds that have no generation; a change of them is seen by resourceVersion.
_NO_GENERATION = _PATH_NAMES | {
    *("Namespace", "ConfigMap", "Secret", "ServiceAccount", "Event", "Node", "ControllerRevision", "Lease"),
    *(
        "CertificateSigningRequest",
        "StorageClass",
        "PriorityClass",
        "PersistentVolume",
        "PersistentVolumeClaim",
        "HorizontalPodAutoscaler",
    ),
}

#: Finalizers that need no domain.
_FINALIZERS = frozenset(("orphan", "foregroundDeletion", "kubernetes"))
NAME_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"

LETTER_FIRST = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
DNS_1035 = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end "
    "with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
DNS_LABEL = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an "
    "alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_NO_DOTS = "must not contain dots"
DNS_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)


def has_generation(kind: Kind) -> bool:
    return isinstance(kind, CustomKind) or kind.kind not in _NO_GENERATION


def name_causes(kind: Kind, name: str, path: str = "metadata.name") -> list[Cause]:
    """Why ``name`` cannot name an object of ``kind``."""
    if not name:
        return [required(path, "name or generateName is required")]
    # What users define may be called as native kinds are.
    named = "" if isinstance(kind, CustomKind) else kind.kind
    if named in _PATH_NAMES:
        if name in (".", ".."):
            return [invalid(path, name, f"may not be '{name}'")]
        return [invalid(path, name, f"may not contain '{bad}'") for bad in ("/", "%") if bad in name]
    if named in _LABEL_NAMES:
        longest, pattern, text = 63, _LABEL, DNS_LABEL
    else:
        longest, pattern, text = 253, SUBDOMAIN, DNS_SUBDOMAIN
    if named == "Cluster":
        longest = 50  # "nemo-cluster-NAME" must be a namespace.
    found = []
    if len(name) > longest:
        found.append(invalid(path, name, f"must be no more than {longest} bytes"))
    if not pattern.match(name):
        dotted = pattern is _LABEL and SUBDOMAIN.match(name)
        found.append(invalid(path, name, _NO_DOTS if dotted else text))
    return found


def dns_label_causes(name: str, path: str) -> list[Cause]:
    """Why ``name`` is no RFC 1123 label."""
    found = [invalid(path, name, "must be no more than 63 bytes")] if len(name) > 63 else []
    return found if _LABEL.match(name) else [*found, invalid(path, name, _NO_DOTS if SUBDOMAIN.match(name) else DNS_LABEL)]


def key_problems(key: str) -> list[str]:
    """Why ``key`` is no qualified name."""
    prefix, slash, name = key.rpartition("/")
    found: list[str] = []
    if slash and not prefix:
        found.append("prefix part must be non-empty")
    elif slash and (len(prefix) > 253 or not SUBDOMAIN.match(prefix)):
        found.append(f"prefix part {DNS_SUBDOMAIN}")
    if not name:
        found.append("name part must be non-empty")
    elif len(name) > 63:
        found.append("name part must be no more than 63 bytes")
    if not _QUALIFIED.match(name):
        found.append(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
            "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
            "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        )
    return found


def label_causes(labels: Mapping[str, str] | None, path: str) -> list[Cause]:
    found: list[Cause] = []
    for key, value in (labels or {}).items():
        found.extend(invalid(path, key, problem) for problem in key_problems(key))
        if len(value) > 63:
            found.append(invalid(path, value, "must be no more than 63 bytes"))
        elif not _VALUE.match(value):
            found.append(
                invalid(
                    path,
                    value,
                    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
                    "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for "
                    "validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
                )
            )
    return found


def metadata_causes(metadata: Mapping[str, Any]) -> list[Cause]:
    """Labels, annotations, finalizers and owner references."""
    found = label_causes(metadata.get("labels"), "metadata.labels")
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    for key in annotations:
        found.extend(invalid("metadata.annotations", key, problem) for problem in key_problems(key.lower()))
    if sum(len(k) + len(v) for k, v in annotations.items()) > _ANNOTATIONS_BYTES:
        found.append(
            Cause("FieldValueTooLong", "metadata.annotations", f"Too long: may not be more than {_ANNOTATIONS_BYTES} bytes")
        )
    for i, finalizer in enumerate(metadata.get("finalizers") or ()):
        problems = key_problems(finalizer)
        found.extend(invalid(f"metadata.finalizers[{i}]", finalizer, problem) for problem in problems)
        if not problems and "/" not in finalizer and finalizer not in _FINALIZERS:
            text = "name is neither a standard finalizer name nor is it fully qualified"
            found.append(invalid(f"metadata.finalizers[{i}]", finalizer, text))
    owners = metadata.get("ownerReferences") or ()
    for owner in owners:
        found.extend(
            invalid(f"metadata.ownerReferences.{key}", "", f"{'version ' if key == 'apiVersion' else ''}must not be empty")
            for key in ("apiVersion", "kind", "name", "uid")
            if not owner.get(key)
        )
    if sum(1 for owner in owners if owner.get("controller")) > 1:
        found.append(invalid("metadata.ownerReferences", list(owners), "Only one reference can have Controller set to true"))
    return found


#: Kinds whose status is there from the first moment on, as Kubernetes' types have it, and what is counted in it.
_COUNTS: Mapping[Kind, tuple[str, ...]] = {
    scheme.DEPLOYMENT: (),
    scheme.REPLICA_SET: ("replicas",),
    scheme.STATEFUL_SET: ("replicas", "availableReplicas"),
    scheme.DAEMON_SET: ("currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"),
    scheme.JOB: (),
    scheme.CRON_JOB: (),
    scheme.CERTIFICATE_SIGNING_REQUEST: (),
    scheme.POD_DISRUPTION_BUDGET: ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"),
}


def prepare_create(kind: Kind, obj: Obj, uid: str, now: str) -> None:
    """Sets what only the server may set, in place."""
    metadata = obj["metadata"]
    for key in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation", "managedFields"):
        metadata.pop(key, None)
    metadata["uid"] = uid
    metadata["creationTimestamp"] = now
    if has_generation(kind):
        metadata["generation"] = 1
    if kind is scheme.NAMESPACE:
        obj.setdefault("spec", {})["finalizers"] = ["kubernetes"]
        obj["status"] = {"phase": "Active"}
        metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata["name"]
    elif kind is scheme.POD:
        obj.setdefault("status", {}).setdefault("phase", "Pending")
        obj["status"].setdefault("qosClass", _quality(obj.get("spec", {})))
    elif kind in (scheme.PERSISTENT_VOLUME_CLAIM, scheme.PERSISTENT_VOLUME):
        obj["status"] = {"phase": "Pending"}
    elif kind in (scheme.SERVICE, scheme.INGRESS):
        obj["status"] = {"loadBalancer": {}}
    elif kind is scheme.CUSTOM_RESOURCE_DEFINITION:
        stored = [v["name"] for v in obj["spec"].get("versions") or () if v.get("storage")]
        obj["status"] = {"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}
    elif kind in _COUNTS:
        # Clients read fields of it before any controller has written there (kr8s, for one).
        obj["status"] = dict.fromkeys(_COUNTS[kind], 0)
    if kind is scheme.JOB:
        _select_by_uid(obj, uid)


def _select_by_uid(job: Obj, uid: str) -> None:
    """A Job selects its own pods by its uid, unless its author says otherwise."""
    spec = job["spec"]
    if spec.get("manualSelector"):
        return
    template = spec.setdefault("template", {}).setdefault("metadata", {}).setdefault("labels", {})
    own = {"batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": job["metadata"]["name"]}
    template.update(own | {"controller-uid": uid, "job-name": job["metadata"]["name"]})
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}


def _quality(spec: Obj) -> str:
    """Quality of service class: Guaranteed, Burstable or BestEffort."""
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    found = [(c.get("resources") or {}) for c in containers]
    if not any(r.get("limits") or r.get("requests") for r in found):
        return "BestEffort"
    for r in found:
        limits, requests = r.get("limits") or {}, r.get("requests") or {}
        if any(limits.get(k) is None or requests.get(k, limits[k]) != limits[k] for k in ("cpu", "memory")):
            return "Burstable"
    return "Guaranteed"


#: Server-set fields that an update cannot change: it may leave them out, or repeat them.
_KEPT = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName", "generation", "selfLink")


def prepare_update(kind: Kind, obj: Obj, old: Obj) -> list[Cause]:
    """Carries over what a writer may not change, in place; the causes are what it tried to change nevertheless."""
    metadata, before = obj["metadata"], old["metadata"]
    found = []
    if before.get("deletionTimestamp"):
        added = [f for f in metadata.get("finalizers") or () if f not in (before.get("finalizers") or ())]
        if added:
            found.append(
                forbidden(
                    "metadata.finalizers",
                    f"no new finalizers can be added if the object is being deleted, found new finalizers {added!r}",
                )
            )
    for key in _KEPT:
        if key in before:
            metadata[key] = before[key]
        else:
            metadata.pop(key, None)
    if kind is scheme.CUSTOM_RESOURCE_DEFINITION:
        held = obj.get("status") or {}
        stored = held.get("storedVersions") or []
        new = [v["name"] for v in obj["spec"].get("versions") or () if v.get("storage") and v["name"] not in stored]
        if new:
            obj["status"] = {**held, "storedVersions": [*stored, *new]}
    return found


def changed(kind: Kind, obj: Obj, old: Obj) -> bool:
    """Whether anything but metadata and status differs. Where users' kinds have no subresource ``status``, it counts as well."""
    skip = ("metadata",) if isinstance(kind, CustomKind) and "status" not in kind.subresources else ("metadata", "status")
    return {k: v for k, v in obj.items() if k not in skip} != {k: v for k, v in old.items() if k not in skip}
