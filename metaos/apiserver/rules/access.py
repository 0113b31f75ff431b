"""Roles and their bindings. Source: ``pkg/apis/rbac/validation`` of Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator

from metaos.apiserver.metadata import DNS_SUBDOMAIN, SUBDOMAIN
from metaos.apiserver.schema import invalid, required, unsupported
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj

GROUP = "rbac.authorization.k8s.io"


def role(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    namespaced = obj.get("kind") == "Role"
    for i, rule in enumerate(obj.get("rules") or ()):
        path, urls = f"rules[{i}]", rule.get("nonResourceURLs")
        if not rule.get("verbs"):
            yield required(f"{path}.verbs", "verbs must contain at least one value")
        if urls:
            if namespaced:
                yield invalid(f"{path}.nonResourceURLs", urls, "namespaced rules cannot apply to non-resource URLs")
            if any(rule.get(field) for field in ("apiGroups", "resources", "resourceNames")):
                text = "rules cannot apply to both regular resources and non-resource URLs"
                yield invalid(f"{path}.nonResourceURLs", urls, text)
            continue
        if not rule.get("apiGroups"):
            yield required(f"{path}.apiGroups", "resource rules must supply at least one api group")
        if not rule.get("resources"):
            yield required(f"{path}.resources", "resource rules must supply at least one resource")


def binding(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    kinds = ("Role", "ClusterRole") if obj.get("kind") == "RoleBinding" else ("ClusterRole",)
    ref = obj.get("roleRef") or {}
    if ref.get("apiGroup", GROUP) != GROUP:
        yield unsupported("roleRef.apiGroup", ref["apiGroup"], (GROUP,))
    if (ref.get("kind") or "") not in kinds:
        yield unsupported("roleRef.kind", ref.get("kind") or "", kinds)
    if not ref.get("name"):
        yield required("roleRef.name")
    for i, subject in enumerate(obj.get("subjects") or ()):
        yield from _subject(subject, f"subjects[{i}]", namespaced="Role" in kinds)
    if old is not None and ref != old.get("roleRef"):
        yield invalid("roleRef", ref, "cannot change roleRef")


def _subject(subject: Obj, path: str, *, namespaced: bool) -> Iterator[Cause]:
    kind = subject.get("kind") or ""
    if not subject.get("name"):
        yield required(f"{path}.name")
    if kind == "ServiceAccount":
        if subject.get("name") and not SUBDOMAIN.match(subject["name"]):
            yield invalid(f"{path}.name", subject["name"], DNS_SUBDOMAIN)
        if subject.get("apiGroup"):
            yield unsupported(f"{path}.apiGroup", subject["apiGroup"], ("",))
        if not namespaced and not subject.get("namespace"):
            yield required(f"{path}.namespace")
    elif kind in ("User", "Group"):
        if subject.get("apiGroup", GROUP) != GROUP:
            yield unsupported(f"{path}.apiGroup", subject["apiGroup"], (GROUP,))
    else:
        yield unsupported(f"{path}.kind", kind, ("ServiceAccount", "User", "Group"))
