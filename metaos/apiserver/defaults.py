"""Kubernetes' defaulting: the table ``defaults.yaml``, and the few defaults that depend on other fields.

Source: ``pkg/apis/*/v1/defaults.go`` of Kubernetes. NEMO's own kinds carry their defaults in their schemas.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from importlib import resources
from typing import Any

import yaml

from metaos.apiserver.schema import Node, node_of
from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind


@cache
def table() -> dict[str, dict[str, Any]]:
    """Definition (without ``io.k8s.api.``) → field → default."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((resources.files(__package__) / "defaults.yaml").read_text("utf-8"))
    return {f"io.k8s.api.{name}": fields for name, fields in found.items()}


def apply_defaults(kind: Kind, obj: Obj) -> None:
    """Fills absent fields in place. ``obj`` conforms to its schema; status is left alone."""
    _before(kind, obj)
    node = node_of(kind)
    rules = table()
    _defaults_of(node, obj, rules)
    for key, value in obj.items():
        if key not in ("metadata", "status") and key in node.properties:
            _fill(node.properties[key], value, rules)


def _before(kind: Kind, obj: Obj) -> None:
    """What must be there before the table is applied to it."""
    if kind in (scheme.DEPLOYMENT, scheme.STATEFUL_SET, scheme.DAEMON_SET, scheme.JOB, scheme.CRON_JOB, scheme.REPLICA_SET):
        obj.setdefault("spec", {})
    if kind is scheme.JOB:
        spec = obj["spec"]
        if spec.get("completions") is None and spec.get("parallelism") is None:
            spec["completions"] = 1


def _defaults_of(node: Node, value: Obj, rules: dict[str, dict[str, Any]]) -> None:
    for key, default in rules.get(node.name, _NONE).items():
        if key not in value:
            value[key] = copy.deepcopy(default) if isinstance(default, dict | list) else default
    special = _SPECIAL.get(node.name)
    if special is not None:
        special(value)


_NONE: dict[str, Any] = {}


def _fill(node: Node, value: Any, rules: dict[str, dict[str, Any]]) -> None:
    kind = node.kind
    if kind == "object":
        if not isinstance(value, dict):
            return
        _defaults_of(node, value, rules)
        own = not node.name  # Native definitions have names; NEMO's schemas are nested and have none.
        for key, child in node.properties.items():
            if key in value:
                if child.kind in ("object", "array", "map"):
                    _fill(child, value[key], rules)
            elif own and child.default is not None:
                value[key] = child.default
    elif kind == "array" and node.item is not None and node.item.kind in ("object", "map"):
        for item in value:
            _fill(node.item, item, rules)
    elif kind == "map" and node.item is not None and node.item.kind == "object":
        for item in value.values():
            _fill(node.item, item, rules)


# -- defaults that depend on other fields ------------------------------------------------------------------


#: The last part of an image's name, with its tag; what is none has no tag "latest" either.
_IMAGE = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?::[\w][\w.-]{0,127})?\Z")


def _container(value: Obj) -> None:
    image = value.get("image") or ""
    if "imagePullPolicy" not in value:
        tag = image.rpartition("/")[2].partition("@")
        latest = not tag[1] and tag[0].partition(":")[2] in ("", "latest") and _IMAGE.match(tag[0]) is not None
        value["imagePullPolicy"] = "Always" if latest else "IfNotPresent"
    limits = (value.get("resources") or {}).get("limits")
    if limits:
        value["resources"]["requests"] = {**limits, **(value["resources"].get("requests") or {})}


def _volume(value: Obj) -> None:
    if value.keys() <= {"name"}:
        value["emptyDir"] = {}


def _role_ref(value: Obj) -> None:
    value.setdefault("apiGroup", _RBAC)


def _subject(value: Obj) -> None:
    if value.get("kind") in ("User", "Group"):
        value.setdefault("apiGroup", _RBAC)


_RBAC = "rbac.authorization.k8s.io"


def _pod_spec(value: Obj) -> None:
    account = value.get("serviceAccountName") or value.get("serviceAccount")
    if account:
        value["serviceAccountName"] = value["serviceAccount"] = account
    if value.get("hostNetwork"):
        for container in value.get("containers") or ():
            for port in container.get("ports") or ():
                port.setdefault("hostPort", port.get("containerPort"))


def _job_spec(value: Obj) -> None:
    """``pkg/apis/batch/v1/defaults.go``."""
    value.setdefault("backoffLimit", 6 if value.get("backoffLimitPerIndex") is None else 2**31 - 1)
    value.setdefault("podReplacementPolicy", "Failed" if value.get("podFailurePolicy") else "TerminatingOrFailed")


def _deployment_strategy(value: Obj) -> None:
    if value.get("type", "RollingUpdate") == "RollingUpdate":
        rolling = value.setdefault("rollingUpdate", {})
        rolling.setdefault("maxSurge", "25%")
        rolling.setdefault("maxUnavailable", "25%")


def _stateful_strategy(value: Obj) -> None:
    if not value.get("type"):
        value["type"] = "RollingUpdate"
        value.setdefault("rollingUpdate", {})
    if value["type"] == "RollingUpdate" and "rollingUpdate" in value:
        value["rollingUpdate"].setdefault("partition", 0)


def _daemon_strategy(value: Obj) -> None:
    if value.get("type", "RollingUpdate") == "RollingUpdate":
        rolling = value.setdefault("rollingUpdate", {})
        rolling.setdefault("maxSurge", 0)
        rolling.setdefault("maxUnavailable", 1)


def _service_port(value: Obj) -> None:
    if value.get("targetPort") in (None, "", 0):
        value["targetPort"] = value.get("port") or 0


def _service(value: Obj) -> None:
    if value.get("type", "ClusterIP") == "ExternalName":
        return
    if value.get("sessionAffinity", "None") == "None":
        value.pop("sessionAffinityConfig", None)
    if value.get("sessionAffinity") == "ClientIP":
        value.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {}).setdefault("timeoutSeconds", 10800)
    value.setdefault("internalTrafficPolicy", "Cluster")
    if value.get("type") in ("NodePort", "LoadBalancer"):
        value.setdefault("externalTrafficPolicy", "Cluster")
    if value.get("type") == "LoadBalancer":
        value.setdefault("allocateLoadBalancerNodePorts", True)


def _network_policy(value: Obj) -> None:
    if not value.get("policyTypes"):
        value["policyTypes"] = ["Ingress", "Egress"] if value.get("egress") else ["Ingress"]


def _autoscaler(value: Obj) -> None:
    """``pkg/apis/autoscaling/v2/defaults.go``."""
    if not value.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        value["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    behavior = value.get("behavior")
    if behavior is not None:
        for field, rules in _SCALING.items():
            for key, default in rules.items():
                behavior.setdefault(field, {}).setdefault(key, copy.deepcopy(default))


_SCALING: dict[str, dict[str, Any]] = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "selectPolicy": "Max",
        "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}],
    },
    "scaleDown": {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
}


def _stateful_claims(value: Obj) -> None:
    for claim in value.get("volumeClaimTemplates") or ():
        claim["apiVersion"], claim["kind"] = "v1", "PersistentVolumeClaim"
        claim.setdefault("status", {}).setdefault("phase", "Pending")


def _definition_spec(value: Obj) -> None:
    """``apiextensions-apiserver/pkg/apis/apiextensions/v1/defaults.go``."""
    value.setdefault("conversion", {"strategy": "None"})
    names = value.get("names")
    if isinstance(names, dict) and names.get("kind"):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", f"{names['kind']}List")


_DEFINITION = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec"


def _limit_range(value: Obj) -> None:
    """``SetDefaults_LimitRangeItem``."""
    if value.get("type") != "Container":
        return
    for field, sources in (("default", ("max",)), ("defaultRequest", ("default", "min"))):
        for source in sources:
            for key, amount in (value.get(source) or {}).items():
                value.setdefault(field, {}).setdefault(key, amount)


_SPECIAL = {
    "io.k8s.api.core.v1.LimitRangeItem": _limit_range,
    _DEFINITION: _definition_spec,
    "io.k8s.api.core.v1.Volume": _volume,
    "io.k8s.api.rbac.v1.RoleRef": _role_ref,
    "io.k8s.api.rbac.v1.Subject": _subject,
    "io.k8s.api.networking.v1.NetworkPolicySpec": _network_policy,
    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec": _autoscaler,
    "io.k8s.api.core.v1.Container": _container,
    "io.k8s.api.core.v1.PodSpec": _pod_spec,
    "io.k8s.api.batch.v1.JobSpec": _job_spec,
    "io.k8s.api.apps.v1.DeploymentStrategy": _deployment_strategy,
    "io.k8s.api.apps.v1.StatefulSetUpdateStrategy": _stateful_strategy,
    "io.k8s.api.apps.v1.DaemonSetUpdateStrategy": _daemon_strategy,
    "io.k8s.api.apps.v1.StatefulSetSpec": _stateful_claims,
    "io.k8s.api.core.v1.ServicePort": _service_port,
    "io.k8s.api.core.v1.ServiceSpec": _service,
}
