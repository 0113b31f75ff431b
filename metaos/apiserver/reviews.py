"""Authorisation over stored roles, the bootstrap roles and namespaces, and the review kinds that are never stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import orjson
import yaml

from metaos.apiserver.addressing import key_of
from metaos.apiserver.cache import WatchCache
from metaos.apiserver.reading import Authorizer
from metaos.apiserver.schema import forbidden, invalid
from metaos.apiserver.share import Share
from metaos.devices.credentials import CLAIMANTS
from metaos.resources import errors, scheme
from metaos.resources.meta import Obj, namespace
from metaos.resources.meta import annotations as annotations_of
from metaos.resources.scheme import Kind
from metaos.security.authz import (
    MASTERS,
    Attributes,
    Decision,
    Roles,
    Rule,
    UserInfo,
    beyond_claim,
    cluster_of,
    decide_agent,
    decide_bootstrap,
    is_bootstrap,
)
from metaos.security.personal import out_of_scope, scoped

_RBAC = (scheme.ROLE, scheme.CLUSTER_ROLE, scheme.ROLE_BINDING, scheme.CLUSTER_ROLE_BINDING)


#: What everybody may ask.
_ABOUT_SELF: tuple[Obj, ...] = (
    {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]},
    {
        "verbs": ["create"],
        "apiGroups": ["authorization.k8s.io"],
        "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
    },
)


class StoredAuthorizer:
    """Masters, then the agents' rules, then RBAC as it is in the cache; decoded anew only when it changed."""

    def __init__(self, cache: WatchCache) -> None:
        self._cache = cache
        self._seen = -1
        self._roles = Roles({})

    def roles(self) -> Roles:
        latest = max(self._cache.resource(kind.resource).revision for kind in _RBAC)
        if latest != self._seen:
            held = [[v.object() for v in self._cache.range(kind.resource)] for kind in _RBAC]
            self._roles = Roles.of([*held[0], *held[1]], [*held[2], *held[3]])
            self._seen = latest
        return self._roles

    def role(self, kind: str, where: str, name: str) -> Obj | None:
        found = scheme.ROLE if kind == "Role" else scheme.CLUSTER_ROLE
        version = self._cache.get(key_of(found, where, name))
        return version.object() if version else None

    def rules(self, user: UserInfo, where: str) -> Obj:
        """The status of a SelfSubjectRulesReview."""
        resources, paths = [*_ABOUT_SELF], []
        for rule, _ in self.roles().rules_of(user, where):
            shown = {"verbs": sorted(rule.verbs)}
            if rule.paths:
                paths.append(shown | {"nonResourceURLs": sorted(rule.paths)})
            else:
                named = {"resourceNames": sorted(rule.resource_names)} if rule.resource_names else {}
                resources.append(shown | {"apiGroups": sorted(rule.groups), "resources": sorted(rule.resources)} | named)
        status: Obj = {"resourceRules": resources, "nonResourceRules": paths, "incomplete": False}
        if cluster_of(user) is not None or is_bootstrap(user):
            why = "what a site's agent may do depends on the object: ask with 'kubectl auth can-i VERB RESOURCE'"
            status |= {"incomplete": True, "evaluationError": why}
        elif CLAIMANTS in user.groups:
            status |= {"incomplete": True, "evaluationError": "a device claim is good for enrolment alone, whatever is said here"}
        elif scoped(user):
            why = "a personal token's scopes narrow this further: ask with 'kubectl auth can-i VERB RESOURCE'"
            status |= {"incomplete": True, "evaluationError": why}
        return status

    def decide(self, user: UserInfo, asked: Attributes) -> Decision:
        if narrow := out_of_scope(user, asked):
            return Decision(False, narrow)
        if CLAIMANTS in user.groups and (narrow := beyond_claim(asked)):
            return Decision(False, narrow)
        if MASTERS in user.groups:
            return Decision(True, "member of system:masters")
        member = cluster_of(user)
        if member is not None:
            return decide_agent(member, asked, Share(self._cache, member))
        if is_bootstrap(user):
            return decide_bootstrap(asked)
        return self.roles().decide(user, asked)


def signing(authorizer: StoredAuthorizer, user: UserInfo, obj: Obj, old: Obj | None) -> str:
    """Why ``user`` may not decide on, or sign, this CertificateSigningRequest: that takes a right on its signer besides, or
    whoever approves could become anybody. Empty where they may, or where nothing of it changes."""
    now, before = obj.get("status") or {}, (old or {}).get("status") or {}
    signer = str((obj.get("spec") or {}).get("signerName") or "")
    for verb, part in (("approve", "conditions"), ("sign", "certificate")):
        if now.get(part) == before.get(part):
            continue
        for named in (signer, f"{signer.partition('/')[0]}/*"):
            if authorizer.decide(user, Attributes(verb, "certificates.k8s.io", "signers", "", "", named)).allowed:
                break
        else:
            return f'user not permitted to {verb} requests with signerName "{signer}"'
    return ""


def escalation(authorizer: StoredAuthorizer, user: UserInfo, kind: Kind, obj: Obj) -> str:
    """Why ``user`` may not write this role or binding: nobody grants what they do not hold. Empty where they may."""
    if MASTERS in user.groups or kind not in _RBAC:
        return ""
    roles = authorizer.roles()
    where = namespace(obj)
    if kind in (scheme.ROLE, scheme.CLUSTER_ROLE):
        if authorizer.decide(user, Attributes("escalate", kind.group, kind.plural, "", where, obj["metadata"]["name"])).allowed:
            return ""
        granted = [Rule.of(rule) for rule in obj.get("rules") or ()]
    else:
        to = obj.get("roleRef") or {}
        plural = "roles" if to.get("kind") == "Role" else "clusterroles"
        named = str(to.get("name") or "")
        if authorizer.decide(user, Attributes("bind", kind.group, plural, "", where, named)).allowed:
            return ""
        found = authorizer.role(str(to.get("kind")), where, named)
        if found is None:
            return f'the role "{named}" does not exist, so it cannot be seen what would be granted'
        granted = [Rule.of(rule) for rule in found.get("rules") or ()]
    if roles.covers(user, granted, where):
        return ""
    return f'user "{user.name}" is attempting to grant RBAC permissions not currently held'


def bootstrap() -> list[Obj]:
    """What every hub has from its first start: ``bootstrap.yaml``."""
    found: list[Obj] = orjson.loads(_bootstrap())
    return found


@cache
def _bootstrap() -> bytes:
    """As JSON: the twin starts a hub many times in one process, and its YAML takes longer to read than all else of a start."""
    text = (resources.files(__package__) / "bootstrap.yaml").read_text("utf-8")
    return orjson.dumps([obj for obj in yaml.safe_load_all(text) if obj])


#: As in Kubernetes: ``false`` keeps a default role as it is.
_AUTOUPDATE = "rbac.authorization.kubernetes.io/autoupdate"


def missing_rules(role: Obj, default: Obj) -> list[Obj]:
    """The rules of a default role that the stored one does not have."""
    if annotations_of(role).get(_AUTOUPDATE) == "false":
        return []
    held = {Rule.of(rule) for rule in role.get("rules") or ()}
    return [rule for rule in default["rules"] if Rule.of(rule) not in held]


def _subject_of(kind: Kind, obj: Obj) -> UserInfo:
    """Whom a SubjectAccessReview asks about. Raises ``ApiError``."""
    spec = obj.get("spec") or {}
    named, groups = spec.get("user") or "", spec.get("groups") or ()
    causes = []
    if not named and not groups:
        causes.append(invalid("spec.user", named, "at least one of user or group must be specified"))
    if kind is scheme.LOCAL_SUBJECT_ACCESS_REVIEW:
        where, asked = namespace(obj), (spec.get("resourceAttributes") or {}).get("namespace") or ""
        if spec.get("nonResourceAttributes"):
            causes.append(forbidden("spec.nonResourceAttributes", "disallowed on this kind of request"))
        elif asked != where:
            causes.append(invalid("spec.resourceAttributes.namespace", asked, "must match metadata.namespace"))
    if causes:
        raise errors.invalid(kind.group, kind.kind, "", causes)
    extra = tuple((str(key), tuple(map(str, values))) for key, values in (spec.get("extra") or {}).items())
    return UserInfo(str(named), tuple(map(str, groups)), str(spec.get("uid") or ""), extra)


def review(user: UserInfo, kind: Kind, obj: Obj, authorize: Authorizer, rules: Callable[[UserInfo, str], Obj]) -> Obj:
    """The answer to a review of what somebody may do. Everybody may ask about themselves; who may ask about others has been
    found out by then."""
    answer: dict[str, Any] = {**obj, "metadata": {}}
    if kind is scheme.SELF_SUBJECT_REVIEW:
        answer["status"] = {"userInfo": user.shown()}
        return answer
    spec = obj.get("spec") or {}
    if kind is scheme.SELF_SUBJECT_RULES_REVIEW:
        if not spec.get("namespace"):
            raise errors.bad_request("no namespace on request")
        answer["status"] = rules(user, str(spec["namespace"]))
        return answer
    if kind in (scheme.SUBJECT_ACCESS_REVIEW, scheme.LOCAL_SUBJECT_ACCESS_REVIEW):
        user = _subject_of(kind, obj)
    asked, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if (asked is None) == (path is None):
        raise errors.bad_request("spec: exactly one of resourceAttributes and nonResourceAttributes must be given")
    if asked is not None:
        plural, _, sub = str(asked.get("resource") or "").partition("/")
        attributes = Attributes(
            str(asked.get("verb") or ""),
            str(asked.get("group") or ""),
            plural,
            str(asked.get("subresource") or sub),
            str(asked.get("namespace") or ""),
            str(asked.get("name") or ""),
        )
    else:
        url = path or {}
        attributes = Attributes(str(url.get("verb") or ""), path=str(url.get("path") or ""))
    decision = authorize(user, attributes)
    answer["status"] = {"allowed": decision.allowed} | ({"reason": decision.reason} if decision.reason else {})
    return answer
