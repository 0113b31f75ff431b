"""ValidatingAdmissionPolicies: what their expressions say of a write, and what their bindings do about it.

Source: ``k8s.io/apiserver/pkg/admission/plugin/policy/validating``. ``authorizer`` is not offered to expressions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from metaos.apiserver.addressing import key_of
from metaos.apiserver.cache import WatchCache
from metaos.apiserver.catalogue import Catalogue
from metaos.apiserver.custom.judge import Judge, Unjudged
from metaos.apiserver.custom.matching import Asked, concerns
from metaos.apiserver.schema import invalid, required, unsupported
from metaos.resources import errors, scheme
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj, label_selector, labels, name
from metaos.security.authz import Attributes

POLICY, BINDING = scheme.VALIDATING_ADMISSION_POLICY, scheme.VALIDATING_ADMISSION_POLICY_BINDING
VARIABLES = ["object", "oldObject", "request", "params", "namespaceObject", "variables"]
#: Objects that one binding may choose as parameters.
MOST_PARAMS = 100
_CODES = {"Unauthorized": 401, "Forbidden": 403, "Invalid": 422, "RequestEntityTooLarge": 413}


@dataclass(frozen=True, slots=True)
class _Verdict:
    message: str
    reason: str = "Invalid"


class Policies:
    """The policies that are stored; read anew when one has changed."""

    def __init__(self, cache: WatchCache, kinds: Catalogue, judge: Judge) -> None:
        self._cache, self._kinds, self._judge = cache, kinds, judge
        self._seen = -1
        self._bound: list[tuple[Obj, list[Obj]]] = []

    def _follow(self) -> list[tuple[Obj, list[Obj]]]:
        latest = max(self._cache.resource(kind.resource).revision for kind in (POLICY, BINDING))
        if latest != self._seen:
            bindings = [version.object() for version in self._cache.range(BINDING.resource)]
            policies = [version.object() for version in self._cache.range(POLICY.resource)]
            self._bound = [(p, [b for b in bindings if b["spec"].get("policyName") == name(p)]) for p in policies]
            self._seen = latest
        return self._bound

    async def examine(self, asked: Asked, warnings: list[str]) -> None:
        """Raises ``ApiError`` where a policy denies the write."""
        for policy, bindings in self._follow():
            spec = policy["spec"]
            seen = concerns(spec.get("matchConstraints") or {}, asked, "resourceRules") if bindings else None
            if seen is None:
                continue
            for binding in bindings:
                rules = binding["spec"].get("matchResources")
                if rules and not concerns({"resourceRules": _ALL, **rules}, asked, "resourceRules"):
                    continue
                for verdict in await self._verdicts(policy, binding, seen):
                    self._act(policy, binding, asked, verdict, warnings)

    def _act(self, policy: Obj, binding: Obj, asked: Asked, verdict: _Verdict, warnings: list[str]) -> None:
        actions = binding["spec"].get("validationActions") or ()
        who = f"ValidatingAdmissionPolicy '{name(policy)}' with binding '{name(binding)}'"
        if "Warn" in actions:
            warnings.append(f"Validation failed for {who}: {verdict.message}")
        if "Deny" in actions:
            kind, text = asked.kind, f"{who} denied request: {verdict.message}"
            error = errors.forbidden(kind.group, kind.plural, asked.name, text)
            error.reason, error.code = verdict.reason, _CODES.get(verdict.reason, 422)
            error.details["causes"] = [{"message": text}]
            raise error

    async def _verdicts(self, policy: Obj, binding: Obj, asked: Asked) -> list[_Verdict]:
        spec = policy["spec"]
        fails = spec.get("failurePolicy", "Fail") == "Fail"
        try:
            params = self._params(spec, binding["spec"], asked)
        except LookupError as missing:
            return [_Verdict(str(missing))] if fails else []
        found: list[_Verdict] = []
        for each in params:
            found += await self._of(spec, asked, each, fails)
        return found

    async def _of(self, spec: Obj, asked: Asked, params: Obj | None, fails: bool) -> list[_Verdict]:
        asks = list(_expressions(spec))
        data = {
            "object": asked.shown(asked.obj),
            "oldObject": asked.shown(asked.old),
            "request": asked.request(""),
            "params": params,
            "namespaceObject": asked.space,
        }
        try:
            said = (await self._judge.ask({"evaluate": asks, "data": data}))["found"]
        except Unjudged as failed:
            return [_Verdict(str(failed))] if fails else []
        for i, condition in enumerate(spec.get("matchConditions") or ()):
            value = said[f"match.{i}"]
            if "error" in value:
                return [_Verdict(f"matchCondition '{condition['name']}': {value['error']}")] if fails else []
            if value["value"] is not True:
                return []
        found = []
        for i, validation in enumerate(spec.get("validations") or ()):
            value, expression = said[f"validation.{i}"], str(validation["expression"]).strip()
            if "error" in value:
                if fails:
                    found.append(_Verdict(f"expression '{expression}' resulted in error: {value['error']}"))
            elif value["value"] is not True:
                told = said.get(f"message.{i}", {}).get("value")
                message = told if isinstance(told, str) and told.strip() and "\n" not in told else validation.get("message")
                found.append(_Verdict(message or f"failed expression: {expression}", validation.get("reason") or "Invalid"))
        return found

    def _params(self, spec: Obj, binding: Obj, asked: Asked) -> Sequence[Obj | None]:
        """What the expressions see as ``params``, one after another. Raises ``LookupError`` where there are none."""
        wanted, chosen = spec.get("paramKind"), binding.get("paramRef")
        if not wanted or not chosen:
            return [None]
        kind = self._kinds.by_kind(wanted["apiVersion"], wanted["kind"])
        if kind is None:
            raise LookupError(f"failed to configure policy: no kind {wanted['kind']} in {wanted['apiVersion']}")
        where = (chosen.get("namespace") or asked.namespace) if kind.namespaced else ""
        if chosen.get("name"):
            version = self._cache.get(key_of(kind, where, chosen["name"]))
            found = [version.object()] if version else []
        else:
            select = label_selector(chosen.get("selector") or {})
            held = (version.object() for version in self._cache.range(kind.resource, where))
            found = [each for each in held if select(labels(each))][:MOST_PARAMS]
        if not found and chosen.get("parameterNotFoundAction", "Deny") == "Deny":
            raise LookupError(
                "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
            )
        return found


def right(obj: Obj, policy: Obj | None, kinds: Catalogue) -> Attributes | None:
    """Which right it takes to write a policy or a binding, as its messages can show what parameters hold; ``None``: no further
    one. ``policy``: of a binding, where there is one. Source: ``k8s.io/kubernetes/pkg/registry/admissionregistration``."""
    spec = obj.get("spec") or {}
    chosen = spec.get("paramRef")
    stated = spec.get("paramKind") if obj["kind"] == POLICY.kind else ((policy or {}).get("spec") or {}).get("paramKind")
    if obj["kind"] == BINDING.kind and not chosen:
        return None
    if not stated:
        # A binding may come before its policy: then it could be for parameters of any kind.
        return Attributes("get", "*", "*", "", "*", "*") if chosen and policy is None else None
    kind = kinds.by_kind(str(stated.get("apiVersion")), str(stated.get("kind")))
    if kind is None:
        return Attributes("get", "*", "*", "", "*", "*")
    where = str((chosen or {}).get("namespace") or "*") if kind.namespaced else ""
    return Attributes("get", kind.group, kind.plural, "", where, str((chosen or {}).get("name") or "*"))


_ALL = [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*", "*/*"]}]


def _expressions(spec: Obj) -> Iterator[list[str]]:
    """Names and expressions, in the order in which they may use each other."""
    for i, each in enumerate(spec.get("matchConditions") or ()):
        yield [f"match.{i}", each["expression"]]
    for each in spec.get("variables") or ():
        yield [f"variables.{each['name']}", each["expression"]]
    for i, each in enumerate(spec.get("validations") or ()):
        yield [f"validation.{i}", each["expression"]]
        if each.get("messageExpression"):
            yield [f"message.{i}", each["messageExpression"]]


# -- what a policy must be -----------------------------------------------------------------------------------


def policy_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if not spec.get("validations") and not spec.get("auditAnnotations"):
        yield required("spec.validations", "validations or auditAnnotations must contain at least one item")
    rules = (spec.get("matchConstraints") or {}).get("resourceRules")
    if not rules:
        yield required("spec.matchConstraints.resourceRules")
    if spec.get("failurePolicy") not in ("Fail", "Ignore"):
        yield unsupported("spec.failurePolicy", spec.get("failurePolicy"), ["Fail", "Ignore"])
    for i, each in enumerate(spec.get("validations") or ()):
        if each.get("reason") not in (None, *_CODES):
            yield unsupported(f"spec.validations[{i}].reason", each["reason"], list(_CODES))


def binding_causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if not spec.get("policyName"):
        yield required("spec.policyName")
    actions = spec.get("validationActions") or []
    if not actions:
        yield required("spec.validationActions", "at least one validation action is required")
    for i, action in enumerate(actions):
        if action not in ("Audit", "Deny", "Warn"):
            yield unsupported(f"spec.validationActions[{i}]", action, ["Audit", "Deny", "Warn"])
    if "Deny" in actions and "Warn" in actions:
        text = (
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and "
            "headers serves no purpose)"
        )
        yield invalid("spec.validationActions", actions, text)
    ref = spec.get("paramRef")
    if ref is not None and bool(ref.get("name")) == bool(ref.get("selector")):
        yield invalid("spec.paramRef", ref, "exactly one of name and selector must be given")


async def compile_causes(spec: Obj, judge: Judge, variables: Sequence[str] = VARIABLES, root: str = "spec") -> list[Cause]:
    """Expressions of a policy, or of the match conditions of a webhook, that cannot be compiled."""
    asks: list[list[Any]] = []
    places: list[tuple[str, str]] = []
    for part in ("matchConditions", "variables", "validations"):
        for i, each in enumerate(spec.get(part) or ()):
            for key, wanted in (("expression", "dyn" if part == "variables" else "bool"), ("messageExpression", "string")):
                if each.get(key):
                    asks.append([each[key], wanted, list(variables)])
                    places.append((f"{root}.{part}[{i}].{key}", each[key]))
    if not asks:
        return []
    try:
        said = (await judge.ask({"compile": asks}))["found"]
    except Unjudged as failed:
        return [invalid(places[0][0], places[0][1], str(failed))]
    return [invalid(path, text, problem) for (path, text), problem in zip(places, said, strict=True) if problem]
