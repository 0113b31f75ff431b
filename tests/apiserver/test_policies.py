"""ValidatingAdmissionPolicies and webhooks: what they see of a write, and what comes of it."""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from aiohttp import web

from metaos.apiserver.custom.matching import Asked, concerns
from metaos.apiserver.registry import Registry
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.security.authz import UserInfo
from metaos.security.identity import Authority
from tests.apiserver.conftest import ADMIN
from tests.apiserver.test_definitions import said

CM, BINDING = scheme.CONFIG_MAP, scheme.VALIDATING_ADMISSION_POLICY_BINDING


def config_map(name: str = "a", labels: dict[str, str] | None = None, **data: str) -> Obj:
    obj = CM.empty(name, "default") | {"data": data}
    return {**obj, "metadata": {**obj["metadata"], "labels": labels or {"a": "b"}}}  # type: ignore[dict-item]


def policy(*validations: Obj, **spec: Any) -> Obj:
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]
    whole = {"matchConstraints": {"resourceRules": rules}, "validations": list(validations)} | spec
    return scheme.VALIDATING_ADMISSION_POLICY.empty("limits") | {"spec": whole}


def binding(*actions: str, **spec: Any) -> Obj:
    whole = {"policyName": "limits", "validationActions": list(actions or ("Deny",))} | spec
    return scheme.VALIDATING_ADMISSION_POLICY_BINDING.empty("everywhere") | {"spec": whole}


async def refused(registry: Registry, obj: Obj, **more: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        await registry.create(ADMIN, obj, **more)
    return error.value


# -- policies ------------------------------------------------------------------------------------------------


async def test_what_a_policy_denies(registry: Registry) -> None:
    few = {
        "expression": "variables.count <= int(params.data.most)",
        "messageExpression": "'%d are too many'.format([variables.count])",
    }
    kept = {"expression": "oldObject == null || object.data.all(k, k in oldObject.data)", "reason": "Forbidden"}
    await registry.create(ADMIN, config_map("limits", most="2"))
    variables = [{"name": "count", "expression": "size(object.data)"}]
    conditions = [
        {"name": "no-system", "expression": "request.userInfo.username != 'system:free'"},
        {"name": "other", "expression": "object.metadata.name != 'limits'"},
    ]
    more = {"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "variables": variables, "matchConditions": conditions}
    await registry.create(ADMIN, policy(few, kept, **more))
    await registry.create(ADMIN, config_map("b", x="1", y="2", z="3"))  # Nothing is bound yet.
    await registry.create(ADMIN, binding(paramRef={"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"}))
    error = await refused(registry, config_map(x="1", y="2", z="3"))
    assert (error.code, error.reason) == (422, "Invalid")
    who = "ValidatingAdmissionPolicy 'limits' with binding 'everywhere'"
    assert error.message == f'configmaps "a" is forbidden: {who} denied request: 3 are too many'
    await registry.create(ADMIN, config_map(x="1"))
    with pytest.raises(ApiError) as denied:
        await registry.patch(ADMIN, CM, "a", "default", {"data": {"y": "2"}})
    assert denied.value.code == 403 and "failed expression: oldObject == null" in denied.value.message
    await registry.create(UserInfo("system:free", ("system:masters",)), config_map("c", x="1", y="2", z="3"))
    await registry.delete(ADMIN, CM, "limits", "default")
    assert "no params found" in (await refused(registry, config_map("d"))).message


async def test_nobody_reads_by_a_policy_what_they_may_not(registry: Registry) -> None:
    rules = [
        {"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
    ]
    await registry.create(ADMIN, scheme.CLUSTER_ROLE.empty("author") | {"rules": rules})
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "author"}
    subjects = [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]
    await registry.create(ADMIN, scheme.CLUSTER_ROLE_BINDING.empty("author") | {"roleRef": ref, "subjects": subjects})
    ann, shows = UserInfo("ann"), {"expression": "false", "messageExpression": "string(params.data.key)"}
    chosen = {"name": "a", "namespace": "default", "parameterNotFoundAction": "Deny"}
    with pytest.raises(ApiError, match="may not get secrets") as error:
        await registry.create(ann, policy(shows, paramKind={"apiVersion": "v1", "kind": "Secret"}))
    assert error.value.code == 403
    with pytest.raises(ApiError, match=r"may not get \* \* in namespace \*"):
        await registry.create(ann, binding(paramRef=chosen))
    await registry.create(ADMIN, policy(shows, paramKind={"apiVersion": "v1", "kind": "Secret"}))
    with pytest.raises(ApiError, match="may not get secrets a in namespace default"):
        await registry.create(ann, binding(paramRef=chosen))
    await registry.create(ann, binding())
    await registry.patch(ann, BINDING, "everywhere", "", {"metadata": {"labels": {"a": "b"}}})
    await registry.update(ann, policy(shows, paramKind={"apiVersion": "v1", "kind": "ConfigMap"}))
    await registry.update(ann, binding(paramRef=chosen))


async def test_warnings_failures_and_what_is_ignored(registry: Registry) -> None:
    await registry.create(ADMIN, policy({"expression": "object.data.x == 'y'", "message": "x must be y"}))
    await registry.create(ADMIN, binding("Warn"))
    warnings: list[str] = []
    await registry.create(ADMIN, config_map(x="1"), warnings=warnings)
    assert warnings == ["Validation failed for ValidatingAdmissionPolicy 'limits' with binding 'everywhere': x must be y"]
    await registry.patch(ADMIN, BINDING, "everywhere", "", {"spec": {"validationActions": ["Deny"]}})
    assert "resulted in error: no such key: x" in (await refused(registry, config_map("b", z="1"))).message
    await registry.patch(ADMIN, scheme.VALIDATING_ADMISSION_POLICY, "limits", "", {"spec": {"failurePolicy": "Ignore"}})
    await registry.create(ADMIN, config_map("b"))
    await registry.create(ADMIN, scheme.NAMESPACE.empty("free") | {"metadata": {"name": "free", "labels": {"free": "yes"}}})
    rules = {"namespaceSelector": {"matchExpressions": [{"key": "free", "operator": "DoesNotExist"}]}}
    await registry.patch(ADMIN, BINDING, "everywhere", "", {"spec": {"matchResources": rules}})
    await refused(registry, config_map("c", x="1"))
    await registry.create(ADMIN, CM.empty("c", "free") | {"data": {"x": "1"}})


async def test_what_is_no_policy(registry: Registry) -> None:
    wrong = policy({"expression": "object.x +"}, {"expression": "nobody"}, variables=[{"name": "v", "expression": "1"}])
    found = said(await refused(registry, wrong))
    assert "Syntax error" in found["spec.validations[0].expression"]
    assert "undeclared reference to 'nobody'" in found["spec.validations[1].expression"]
    assert said(await refused(registry, policy(matchConstraints={}))).keys() == {
        "spec.validations",
        "spec.matchConstraints.resourceRules",
    }
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["MAKE"], "resources": ["configmaps"], "scope": "Galaxy"}
    never = said(await refused(registry, policy({"expression": "true"}, matchConstraints={"resourceRules": [rule]})))
    assert never.keys() == {f"spec.matchConstraints.resourceRules[0].{field}" for field in ("operations[0]", "scope")}
    both = said(await refused(registry, binding("Deny", "Warn", "Else")))
    assert both.keys() == {"spec.validationActions", "spec.validationActions[2]"}


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        ({"resources": ["deployments"]}, True),
        ({"resources": ["*"]}, True),
        ({"resources": ["deployments/status"]}, False),
        ({"resources": ["*/*"]}, True),
        ({"apiVersions": ["v2"]}, False),
        ({"scope": "Cluster"}, False),
        ({"operations": ["DELETE"]}, False),
        ({"resourceNames": ["other"]}, False),
    ],
)
def test_which_writes_a_rule_means(rule: dict[str, Any], seen: bool) -> None:
    whole = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]} | rule
    obj = scheme.DEPLOYMENT.empty("web", "default")
    asked = Asked(scheme.DEPLOYMENT, "", "CREATE", obj, None, ADMIN, "web")
    assert (concerns({"rules": [whole]}, asked, "rules") is not None) == seen
    if rule == {"resources": ["*/*"]}:
        assert concerns({"rules": [whole]}, Asked(scheme.DEPLOYMENT, "status", "UPDATE", obj, obj, ADMIN, "web"), "rules")


# -- webhooks ------------------------------------------------------------------------------------------------

Answer = Callable[[Obj], Obj]


@asynccontextmanager
async def listening(folder: Path, answer: Answer) -> AsyncIterator[tuple[str, str, list[Obj]]]:
    """A real HTTPS server: its URL, its authority (base64) and what it was asked."""
    authority = Authority.create(Random(7), time.time())
    pair = authority.issue_server(("127.0.0.1", "localhost"), time.time())
    (folder / "hook.pem").write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "hook.pem")
    seen: list[Obj] = []

    async def serve(request: web.Request) -> web.Response:
        review = orjson.loads(await request.read())
        seen.append(review["request"])
        response = {"uid": review["request"]["uid"]} | answer(review["request"])
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        return web.Response(body=orjson.dumps(body), content_type="application/json")

    app = web.Application()
    app.router.add_post("/{any:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"https://127.0.0.1:{port}/hook", base64.b64encode(authority.pair.certificate).decode(), seen
    finally:
        await runner.cleanup()


def hooks(kind: scheme.Kind, url: str, bundle: str, **changes: Any) -> Obj:
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}]
    hook = {
        "name": "check.example.com",
        "clientConfig": {"url": url, "caBundle": bundle},
        "rules": rules,
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    return kind.empty("hooks") | {"webhooks": [hook | changes]}


def patching(*operations: Obj) -> Obj:
    return {"allowed": True, "patchType": "JSONPatch", "patch": base64.b64encode(orjson.dumps(operations)).decode()}


async def test_a_webhook_refuses(registry: Registry, tmp_path: Path) -> None:
    def answer(asked: Obj) -> Obj:
        held = asked["object"] or asked["oldObject"]
        if "bad" in held.get("data", {}):
            return {"allowed": False, "status": {"code": 422, "reason": "Invalid", "message": "bad is bad"}}
        return {"allowed": True, "warnings": ["seen"]}

    async with listening(tmp_path, answer) as (url, bundle, seen):
        selector = {"matchExpressions": [{"key": "free", "operator": "DoesNotExist"}]}
        conditions = [{"name": "named", "expression": "request.name != 'never'"}]
        made = hooks(scheme.VALIDATING_WEBHOOK_CONFIGURATION, url, bundle, objectSelector=selector, matchConditions=conditions)
        await registry.create(ADMIN, made)
        error = await refused(registry, config_map(bad="1"))
        assert (error.code, error.message) == (422, 'admission webhook "check.example.com" denied the request: bad is bad')
        warnings: list[str] = []
        await registry.create(ADMIN, config_map(), warnings=warnings, dry_run=True)
        assert warnings == ["seen"] and seen[-1]["dryRun"] is True and seen[-1]["userInfo"]["username"] == "admin"
        count = len(seen)
        await registry.create(ADMIN, config_map("b", {"free": "yes"}, bad="1"))
        await registry.create(ADMIN, config_map("never", bad="1"))
        assert len(seen) == count
        with pytest.raises(ApiError, match="bad is bad"):
            await registry.patch(ADMIN, CM, "b", "default", {"metadata": {"labels": None}})
        await registry.create(ADMIN, config_map("c"))
        await registry.delete(ADMIN, CM, "c", "default")
        assert (seen[-1]["operation"], seen[-1]["object"], seen[-1]["oldObject"]["metadata"]["name"]) == ("DELETE", None, "c")


async def test_a_webhook_changes(registry: Registry, tmp_path: Path) -> None:
    def answer(asked: Obj) -> Obj:
        if asked["name"] == "twice" and "later" not in asked["object"].get("data", {}):
            return patching({"op": "add", "path": "/data/first", "value": "1"})
        return patching(
            {"op": "add", "path": "/data/later", "value": "1"}, {"op": "add", "path": "/metadata/labels/x", "value": "y"}
        )

    async with listening(tmp_path, answer) as (url, bundle, seen):
        made = hooks(scheme.MUTATING_WEBHOOK_CONFIGURATION, url, bundle, reinvocationPolicy="IfNeeded")
        second = {**made["webhooks"][0], "name": "second.example.com", "reinvocationPolicy": "Never"}
        await registry.create(ADMIN, made)
        found = await registry.create(ADMIN, config_map(x="1"))
        assert (
            found["data"] == {"x": "1", "later": "1"} and found["metadata"]["labels"] == {"a": "b", "x": "y"} and len(seen) == 1
        )
        await registry.patch(ADMIN, scheme.MUTATING_WEBHOOK_CONFIGURATION, "hooks", "", {"webhooks": [*made["webhooks"], second]})
        seen.clear()
        await registry.create(ADMIN, config_map("other", x="1"))
        assert len(seen) == 2  # The second left nothing to be seen anew.


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            patching({"op": "replace", "path": "/metadata/namespace", "value": "kube-system"}),
            "its patch changes metadata.namespace",
        ),
        (patching({"op": "replace", "path": "/metadata/name", "value": "other"}), "its patch changes metadata.name"),
        ({"allowed": True, "warnings": 7}, "object is not iterable"),
        ({"allowed": False, "status": [7]}, "has no attribute"),
    ],
)
async def test_a_webhook_moves_nothing_and_what_it_gets_wrong_is_its_own(
    registry: Registry, tmp_path: Path, answer: Obj, said: str
) -> None:
    async with listening(tmp_path, lambda asked: answer) as (url, bundle, _):
        await registry.create(ADMIN, hooks(scheme.MUTATING_WEBHOOK_CONFIGURATION, url, bundle))
        error = await refused(registry, config_map())
        assert error.code == 500 and 'failed calling webhook "check.example.com"' in error.message and said in error.message


async def test_a_webhook_that_cannot_be_asked(registry: Registry, tmp_path: Path) -> None:
    kind = scheme.VALIDATING_WEBHOOK_CONFIGURATION
    async with listening(tmp_path, lambda asked: {"allowed": True, "uid": "other"}) as (url, bundle, _):
        await registry.create(ADMIN, hooks(kind, url, bundle))
        error = await refused(registry, config_map())
        assert error.code == 500 and 'failed calling webhook "check.example.com": expected response.uid' in error.message
    error = await refused(registry, config_map())
    assert "Cannot connect to host" in error.message
    await registry.update(ADMIN, hooks(kind, url, bundle, failurePolicy="Ignore"))
    warnings: list[str] = []
    await registry.create(ADMIN, config_map(), warnings=warnings)
    assert "says to go on" in warnings[0]


async def test_what_is_no_webhook(registry: Registry) -> None:
    service = {"service": {"name": "a", "namespace": "b"}}
    kind = scheme.MUTATING_WEBHOOK_CONFIGURATION
    found = said(await refused(registry, hooks(kind, "", "", clientConfig=service, name="a", sideEffects="Some")))
    assert found.keys() == {"webhooks[0].name", "webhooks[0].sideEffects", "webhooks[0].clientConfig.service"}
    found = said(await refused(registry, hooks(kind, "http://a", "YWJj", timeoutSeconds=60)))
    assert found.keys() == {"webhooks[0].clientConfig.url", "webhooks[0].clientConfig.caBundle", "webhooks[0].timeoutSeconds"}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["MAKE"], "resources": ["configmaps"]}
    assert said(await refused(registry, hooks(kind, "https://a", "", rules=[rule]))).keys() == {
        "webhooks[0].rules[0].operations[0]"
    }
