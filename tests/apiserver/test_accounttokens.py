"""ServiceAccounts' tokens, reviews of tokens and of what others may do, and impersonation."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from metaos.apiserver import impersonation
from metaos.apiserver.accounttokens import ISSUER
from metaos.apiserver.registry import Registry
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj
from metaos.security.authz import UserInfo
from tests.apiserver.conftest import ADMIN
from tests.apiserver.objects import pod
from tests.clock import FakeClock

SA = scheme.SERVICE_ACCOUNT


async def token(registry: Registry, **spec: Any) -> str:
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = await registry.create_subresource(ADMIN, SA, "robot", "default", "token", asked)
    found: str = answer["status"]["token"]
    return found


@pytest.fixture
async def robot(registry: Registry) -> Obj:
    return await registry.create(ADMIN, SA.empty("robot", "default"))


async def test_a_token_is_its_account(registry: Registry, clock: FakeClock, robot: Obj) -> None:
    text = await token(registry)
    found = await registry.account_of(text)
    assert found is not None and found.user.name == "system:serviceaccount:default:robot"
    assert found.user.groups == ("system:serviceaccounts", "system:serviceaccounts:default") and found.valid()
    claims = orjson.loads(base64.urlsafe_b64decode(text.split(".")[1] + "=="))
    assert claims["aud"] == [ISSUER] and claims["exp"] - claims["iat"] == 3600
    assert registry.cache.get(f"secrets/{SYSTEM_NAMESPACE}/service-account-key") is not None
    await clock.advance(3601)
    assert await registry.account_of(text) is None and not found.valid()


async def test_what_ends_a_token(registry: Registry, robot: Obj) -> None:
    pod = await registry.create(ADMIN, scheme.CONFIG_MAP.empty("x", "default"))
    secret = await registry.create(ADMIN, scheme.SECRET.empty("held", "default"))
    reference = {"kind": "Secret", "name": "held", "uid": secret["metadata"]["uid"]}
    bound, free = await token(registry, boundObjectRef=reference), await token(registry)
    assert await registry.account_of(bound) is not None
    await registry.delete(ADMIN, scheme.SECRET, "held", "default")
    assert await registry.account_of(bound) is None and await registry.account_of(free) is not None
    await registry.delete(ADMIN, SA, "robot", "default")
    await registry.create(ADMIN, SA.empty("robot", "default"))  # Another of the same name.
    assert await registry.account_of(free) is None
    with pytest.raises(ApiError) as error:
        await token(registry, boundObjectRef=reference | {"name": "none"})
    assert error.value.code == 404 and pod


async def test_what_is_no_token(registry: Registry, robot: Obj) -> None:
    text = await token(registry)
    head, body, signature = text.split(".")
    other = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    for wrong in ("", "a.b.c", f"{head}.{body}.{signature[:-4]}AAAA", f"{other}.{body}.", f"{head}.{body[:-4]}AAAA.{signature}"):
        assert await registry.account_of(wrong) is None
    assert await registry.account_of(await token(registry, audiences=["vault"])) is None
    for spec, field in (({"expirationSeconds": 5}, "spec.expirationSeconds"), ({"audiences": [""]}, "spec.audiences")):
        with pytest.raises(ApiError) as error:
            await token(registry, **spec)
        assert error.value.details["causes"][0]["field"] == field
    # Without its key nothing counts.
    await registry.delete(ADMIN, scheme.SECRET, "service-account-key", SYSTEM_NAMESPACE)
    assert await registry.account_of(text) is None


async def review(registry: Registry, kind: scheme.Kind, where: str = "", **spec: Any) -> Obj:
    obj = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"namespace": where} if where else {}, "spec": spec}
    status: Obj = (await registry.create(ADMIN, obj, kind=kind, namespace=where))["status"]
    return status


async def test_reviews(registry: Registry, robot: Obj) -> None:
    text = await token(registry, audiences=["vault", ISSUER])
    found = await review(registry, scheme.TOKEN_REVIEW, token=text, audiences=["vault", "other"])
    assert found["authenticated"] and found["audiences"] == ["vault"]
    assert found["user"]["username"] == "system:serviceaccount:default:robot"
    assert not (await review(registry, scheme.TOKEN_REVIEW, token="x"))["authenticated"]
    asked = {"verb": "get", "resource": "pods", "namespace": "default"}
    kind, local = scheme.SUBJECT_ACCESS_REVIEW, scheme.LOCAL_SUBJECT_ACCESS_REVIEW
    assert (await review(registry, kind, user="x", groups=["system:masters"], resourceAttributes=asked))["allowed"]
    assert not (await review(registry, local, where="default", groups=["nobody"], resourceAttributes=asked))["allowed"]
    nobody = UserInfo("nobody", ("system:authenticated",))
    for each in (scheme.TOKEN_REVIEW, kind, local):
        with pytest.raises(ApiError) as error:
            await registry.create(
                nobody, {"spec": {"user": "a"}, "metadata": {"namespace": "default"} if each is local else {}}, kind=each
            )
        assert error.value.code == 403
    with pytest.raises(ApiError) as error:
        await review(registry, local, where="default", groups=["a"], resourceAttributes=asked | {"namespace": "other"})
    assert error.value.details["causes"][0]["field"] == "spec.resourceAttributes.namespace"


def test_whom_one_acts_as() -> None:
    headers = [("Impersonate-Extra-Scopes", "view"), ("Impersonate-Extra-acme.com%2fproject", "a"), ("Accept", "x")]
    extra = impersonation.extras(headers)
    assert extra == (("scopes", ("view",)), ("acme.com/project", ("a",)))
    asked = impersonation.rights("system:serviceaccount:a:b", ("g",), "1", extra)
    assert [(a.group, a.resource, a.subresource, a.namespace, a.name) for a in asked] == [
        ("", "serviceaccounts", "", "a", "b"),
        ("", "groups", "", "", "g"),
        ("authentication.k8s.io", "uids", "", "", "1"),
        ("authentication.k8s.io", "userextras", "scopes", "", "view"),
        ("authentication.k8s.io", "userextras", "acme.com/project", "", "a"),
    ]
    account = impersonation.user("system:serviceaccount:a:b", (), "", ())
    assert account.groups == ("system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated")
    assert impersonation.user("system:anonymous", (), "", ()).groups == ("system:unauthenticated",)


async def test_a_pod_of_an_account_that_is_not_there_is_refused(registry: Registry) -> None:
    """As Kubernetes does; a workload of it is taken, and its pods wait for a token."""
    wanted = pod("p", "default", serviceAccountName="robot")
    with pytest.raises(ApiError) as refused:
        await registry.create(ADMIN, wanted)
    missing = 'pods "p" is forbidden: error looking up service account default/robot: serviceaccount "robot" not found'
    assert (refused.value.code, refused.value.message) == (403, missing)
    await registry.create(ADMIN, SA.empty("robot", "default"))
    assert (await registry.create(ADMIN, wanted))["spec"]["serviceAccountName"] == "robot"
    await registry.create(ADMIN, pod("q", "default"))
    await registry.create(ADMIN, pod("r", "default", serviceAccountName="default"))
