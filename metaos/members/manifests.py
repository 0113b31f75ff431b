"""From a Work's manifest to what a Kubernetes cluster is asked for, and in which order. Pure.

The hub fills in defaults as a server of today does. Those that older servers do not know are left out again where they say what
such a server does anyway; so is what belongs to one site alone (addresses, node names, selectors by the hub's uid).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from metaos.resources import meta
from metaos.resources.meta import ADOPT, Obj, ObjectRef, labels, name, namespace, ref
from metaos.resources.services import own_endpoints
from metaos.resources.workload import pod_spec

FIELD_MANAGER = "nemo"
#: On everything that is applied: the membership (the uid of the Cluster at the hub), and the uid of the Work.
MEMBER_LABEL = "meta-os.eu/member"
WORK_LABEL = "meta-os.eu/work"
#: Says of which object the labels speak: controllers copy labels and annotations to what they make of it.
TRACKING = "meta-os.eu/tracking"
#: On what was there before and was adopted: it is left in place when its Work goes.
ADOPTED = "meta-os.eu/adopted"
#: On a Namespace of the cluster, by its owner: the hub may use it (value: ``true``).
USE = "meta-os.eu/use"

#: Kinds by the order in which they are applied; all others, custom resources among them, come after the workloads.
_ORDER: tuple[frozenset[str], ...] = (
    frozenset({"Namespace"}),
    frozenset({"CustomResourceDefinition"}),
    frozenset({"PriorityClass", "StorageClass", "IngressClass", "RuntimeClass", "ResourceQuota", "LimitRange"}),
    frozenset({"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "PodSecurityPolicy"}),
    frozenset({"ConfigMap", "Secret", "PersistentVolume", "PersistentVolumeClaim", "NetworkPolicy"}),
    frozenset({"Service"}),
    frozenset({"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "Pod"}),
)
_LAST: tuple[frozenset[str], ...] = (
    frozenset({"HorizontalPodAutoscaler", "PodDisruptionBudget", "Ingress"}),
    frozenset({"APIService"}),
    frozenset({"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"}),
)
_PHASES = {kind: n for n, kinds in enumerate((*_ORDER, frozenset[str](), *_LAST)) for kind in kinds}
#: Namespaces that belong to a cluster itself.
PROTECTED = frozenset({"kube-system", "kube-public", "kube-node-lease", "nemo-system"})
#: Capabilities that the "Baseline" lets a container add.
_HARMLESS = frozenset(
    {
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"),
        *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    }
)
#: What the same kind is called by older servers, with the same meaning of the fields that NEMO sends.
OLDER: dict[tuple[str, str], tuple[str, ...]] = {
    ("batch/v1", "CronJob"): ("batch/v1beta1",),
    ("policy/v1", "PodDisruptionBudget"): ("policy/v1beta1",),
    ("discovery.k8s.io/v1", "EndpointSlice"): ("discovery.k8s.io/v1beta1",),
    ("autoscaling/v2", "HorizontalPodAutoscaler"): ("autoscaling/v2beta2",),
}


def phase(group: str, kind: str) -> int:
    """When a kind is applied: lower numbers first; removal goes the other way."""
    native = "." not in group or group.endswith(".k8s.io")
    return _PHASES.get(kind, len(_ORDER)) if native else len(_ORDER)


def refusal(manifest: Obj) -> tuple[str, str]:
    """(reason, message) where a manifest is not for a Kubernetes cluster; empty texts where it is."""
    about = ref(manifest)
    where = about.name if about.kind == "Namespace" else about.namespace
    if not about.kind or not about.name or not manifest.get("apiVersion"):
        return "Invalid", "apiVersion, kind and metadata.name must be set"
    if where in PROTECTED:
        return "Refused", f"namespace {where!r} belongs to the cluster itself: choose another one"
    try:
        field = next(_beyond(pod_spec(manifest)), "") if about.group in ("", "apps", "batch") else ""
    except (AttributeError, TypeError):
        return "Invalid", "its pod template is not of the form that Kubernetes gives it"
    if field:
        return "Refused", f"pods of the federation get nothing of a cluster's nodes, and {field} would be of those: leave it out"
    return "", ""


def _beyond(spec: Mapping[str, Any]) -> Iterator[str]:
    """Fields of a pod that reach beyond it. Other sites do not heed them, so the hub lets everybody write them; a Kubernetes
    cluster would. Source: Kubernetes, Pod Security Standards, "Baseline"."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"spec.{key}"
    for volume in spec.get("volumes") or ():
        if volume.get("hostPath"):
            yield f"spec.volumes[{volume.get('name')}].hostPath"
    yield from _powers(spec.get("securityContext") or {}, "spec")
    for key in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(key) or ():
            where = f"spec.{key}[{container.get('name')}]"
            yield from _powers(container.get("securityContext") or {}, where)
            if any(port.get("hostPort") for port in container.get("ports") or ()):
                yield f"{where}.ports.hostPort"


def _powers(context: Mapping[str, Any], where: str) -> Iterator[str]:
    if context.get("privileged"):
        yield f"{where}.securityContext.privileged"
    added = {str(each) for each in (context.get("capabilities") or {}).get("add") or ()} - _HARMLESS
    if added:
        yield f"{where}.securityContext.capabilities.add ({', '.join(sorted(added))})"
    if context.get("procMount") not in (None, "", "Default"):
        yield f"{where}.securityContext.procMount"
    for key in ("seccompProfile", "appArmorProfile"):
        if (context.get(key) or {}).get("type") == "Unconfined":
            yield f"{where}.securityContext.{key}"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{where}.securityContext.windowsOptions.hostProcess"
    if context.get("seLinuxOptions"):
        yield f"{where}.securityContext.seLinuxOptions"
    if context.get("sysctls"):
        yield f"{where}.securityContext.sysctls"


def is_skipped(manifest: Obj) -> bool:
    """Endpoints of other sites: their addresses mean nothing inside a Kubernetes cluster."""
    return manifest.get("kind") == "EndpointSlice" and "meta-os.eu/cluster" in labels(manifest)


def is_import(manifest: Obj) -> bool:
    """A Service of several clusters: the agent stands for those of its pods that are elsewhere."""
    return manifest.get("kind") == "ServiceImport" and str(manifest.get("apiVersion")).startswith("multicluster.x-k8s.io/")


def is_export(manifest: Obj) -> bool:
    """A Service of the cluster's own that the hub exports: it is looked at, and nothing is applied."""
    return manifest.get("kind") == "ServiceExport" and str(manifest.get("apiVersion")).startswith("multicluster.x-k8s.io/")


def tracking(member: str, about: ObjectRef) -> str:
    """The value of the ``TRACKING`` annotation."""
    return f"{member}:{about.group}/{about.kind}:{about.namespace}/{about.name}"


def prepared(manifest: Obj, member: str, work_uid: str) -> Obj:
    """The body of the server-side apply: what the user said, and whose it is."""
    said = {k: v for k, v in meta.annotations(manifest).items() if k != ADOPT}
    metadata: dict[str, Any] = {"name": name(manifest)}
    if namespace(manifest):
        metadata["namespace"] = namespace(manifest)
    own = {k: v for k, v in labels(manifest).items() if k != USE}
    metadata["labels"] = own | {MEMBER_LABEL: member, WORK_LABEL: work_uid}
    metadata["annotations"] = said | {TRACKING: tracking(member, ref(manifest))}
    body = {k: v for k, v in manifest.items() if k not in ("metadata", "status")}
    found: Obj = {**copy.deepcopy(body), "metadata": metadata}
    _localise(found)
    return found


def _localise(obj: Obj) -> None:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    match obj.get("kind"):
        case "Service" if obj.get("apiVersion") == "v1":
            if spec.get("clusterIP") != "None":
                _drop(spec, "clusterIP", "clusterIPs")
            _drop(spec, "ipFamilies", "healthCheckNodePort")
            _drop_if(spec, internalTrafficPolicy="Cluster", ipFamilyPolicy="SingleStack", allocateLoadBalancerNodePorts=True)
            if own_endpoints(spec):
                _drop_if(spec, ipFamilyPolicy="RequireDualStack")
            if spec.get("type") == "LoadBalancer":
                # What the cluster's load balancer uses is the cluster's to choose; of NodePort the number is what users reach.
                for port in spec.get("ports") or ():
                    _drop(port, "nodePort")
        case "StatefulSet":
            _drop_if(spec, persistentVolumeClaimRetentionPolicy={"whenDeleted": "Retain", "whenScaled": "Retain"})
            for claim in spec.get("volumeClaimTemplates") or ():
                claim.pop("status", None)
        case "DaemonSet":
            rolling = (spec.get("updateStrategy") or {}).get("rollingUpdate")
            if isinstance(rolling, dict):
                _some(rolling)
                _drop_if(rolling, maxSurge=0)
        case "Deployment":
            rolling = (spec.get("strategy") or {}).get("rollingUpdate")
            if isinstance(rolling, dict):
                _some(rolling)
        case "Job":
            _job(spec)
        case "CronJob":
            _job((spec.get("jobTemplate") or {}).get("spec") or {})
        case "Pod":
            _drop(spec, "nodeName")


def _some(rolling: dict[str, Any]) -> None:
    """To wait for other sites is no bound that Kubernetes takes: its least is one pod."""
    if (rolling.get("maxSurge"), rolling.get("maxUnavailable")) == (0, 0):
        rolling["maxUnavailable"] = 1


def _job(spec: dict[str, Any]) -> None:
    _drop_if(spec, completionMode="NonIndexed", suspend=False, podReplacementPolicy="TerminatingOrFailed")
    if spec.get("manualSelector"):
        return
    _drop(spec, "manualSelector", "selector")
    metadata = (spec.get("template") or {}).get("metadata") or {}
    own = ("controller-uid", "job-name")
    found = {k: v for k, v in (metadata.get("labels") or {}).items() if k.removeprefix("batch.kubernetes.io/") not in own}
    if "labels" in metadata:
        metadata["labels"] = found


def _drop(spec: dict[str, Any], *keys: str) -> None:
    for key in keys:
        spec.pop(key, None)


def _drop_if(spec: dict[str, Any], **values: Any) -> None:
    for key, value in values.items():
        if key in spec and spec[key] == value:
            del spec[key]
