"""One write as policies and webhooks see it, and whether it is one that they want to see. Pure.

Source: ``k8s.io/apiserver/pkg/admission/plugin/webhook/predicates``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metaos.apiserver import subresources
from metaos.resources import scheme
from metaos.resources.meta import Obj, label_selector, labels
from metaos.resources.scheme import Kind
from metaos.security.authz import UserInfo

#: What decides on writes is not decided on: whoever locks themselves out could not get in again.
EXEMPT = frozenset(
    {
        scheme.VALIDATING_ADMISSION_POLICY,
        scheme.VALIDATING_ADMISSION_POLICY_BINDING,
        scheme.MUTATING_WEBHOOK_CONFIGURATION,
        scheme.VALIDATING_WEBHOOK_CONFIGURATION,
    }
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A write. ``space``: the Namespace of what is namespaced. ``versions``: those in which the same objects are served."""

    kind: Kind
    subresource: str
    operation: str
    obj: Obj | None
    old: Obj | None
    user: UserInfo
    name: str
    space: Obj | None = None
    dry_run: bool = False
    versions: tuple[str, ...] = ()

    @property
    def namespace(self) -> str:
        held = self.obj or self.old or {}
        return str((held.get("metadata") or {}).get("namespace") or "")

    def in_version(self, version: str) -> Asked:
        """The same in another version: conversion is ``None``."""
        if version == self.kind.version:
            return self
        kind = Kind(self.kind.group, version, self.kind.kind, self.kind.plural, self.kind.namespaced)
        moved = [None if each is None else {**each, "apiVersion": kind.api_version} for each in (self.obj, self.old)]
        return Asked(
            kind,
            self.subresource,
            self.operation,
            moved[0],
            moved[1],
            self.user,
            self.name,
            self.space,
            self.dry_run,
            self.versions,
        )

    def shown(self, obj: Obj | None) -> Obj | None:
        """An object as a request about this subresource has it."""
        return subresources.scale(self.kind, obj) if obj is not None and self.subresource == "scale" else obj

    def request(self, uid: str) -> Obj:
        """The part of an AdmissionRequest that says what is asked, without the objects."""
        kind = {"group": self.kind.group, "version": self.kind.version, "kind": self.kind.kind}
        if self.subresource == "scale":
            kind = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        resource = {"group": self.kind.group, "version": self.kind.version, "resource": self.kind.plural}
        return {
            "uid": uid,
            "kind": kind,
            "resource": resource,
            "subResource": self.subresource,
            "requestKind": kind,
            "requestResource": resource,
            "requestSubResource": self.subresource,
            "name": self.name,
            "namespace": self.namespace,
            "operation": self.operation,
            "userInfo": self.user.shown(),
            "dryRun": self.dry_run,
        }


def _one_of(value: str, allowed: Iterable[str] | None) -> bool:
    return bool({"*", value} & set(allowed or ()))


def _resource_fits(asked: Asked, resources: Iterable[str]) -> bool:
    for each in resources:
        plural, _, part = each.partition("/")
        if plural not in ("*", asked.kind.plural):
            continue
        if part == asked.subresource or part == "*":
            return True
    return False


def fits(rule: Mapping[str, Any], asked: Asked, *, exact: bool) -> Asked | None:
    """``asked`` in the version that a rule wants to see; ``None`` where it does not want to."""
    scope = rule.get("scope") or "*"
    if scope != "*" and (scope == "Namespaced") != asked.kind.namespaced:
        return None
    if not _one_of(asked.operation, rule.get("operations")) or not _one_of(asked.kind.group, rule.get("apiGroups")):
        return None
    if not _resource_fits(asked, rule.get("resources") or ()):
        return None
    names = rule.get("resourceNames")
    if names and asked.name not in names:
        return None
    versions = (asked.kind.version,) if exact else (asked.kind.version, *asked.versions)
    for version in versions:
        if _one_of(version, rule.get("apiVersions")):
            return asked.in_version(version)
    return None


def _selects(selector: Any, found: Mapping[str, str]) -> bool:
    return not selector or label_selector(selector)(found)


def concerns(constraints: Mapping[str, Any], asked: Asked, rules: str) -> Asked | None:
    """Whether ``matchConstraints``, or what a webhook has of the kind, hold. ``rules``: the field with the rules."""
    if asked.kind in EXEMPT:
        return None
    if asked.kind is scheme.NAMESPACE:
        spaces = [labels(each) for each in (asked.obj, asked.old) if each is not None][:1]
    else:
        spaces = [labels(asked.space)] if asked.space is not None else []
    if spaces and not any(_selects(constraints.get("namespaceSelector"), each) for each in spaces):
        return None
    objects = [labels(each) for each in (asked.obj, asked.old) if each is not None]
    if not any(_selects(constraints.get("objectSelector"), each) for each in objects):
        return None
    exact = constraints.get("matchPolicy") == "Exact"
    if any(fits(rule, asked, exact=exact) for rule in constraints.get("excludeResourceRules") or ()):
        return None
    return next((found for rule in constraints.get(rules) or () if (found := fits(rule, asked, exact=exact))), None)
