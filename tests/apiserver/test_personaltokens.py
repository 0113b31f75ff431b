"""Personal tokens over HTTPS: made once, narrowed by scopes, ended by time, revocation and withdrawal."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from metaos.apiserver.personaltokens import MOST_TOKENS, NOTED_SECONDS, TYPE
from metaos.http import HttpClient
from metaos.resources import scheme
from metaos.resources.meta import SYSTEM_NAMESPACE
from metaos.security.personal import Token
from metaos.store.log import StoreFull
from tests.apiserver.serving import ServedHub, served
from tests.clock import FakeClock

PODS = "/api/v1/namespaces/default/pods"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    import time

    async with served(tmp_path, FakeClock(time.time())) as running:
        role = {"kind": "ClusterRole", "name": "edit", "apiGroup": "rbac.authorization.k8s.io"}
        subjects = [{"kind": "Group", "name": "dev", "apiGroup": "rbac.authorization.k8s.io"}]
        binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "roleRef": role, "subjects": subjects}
        await running.make(binding | {"metadata": {"name": "dev", "namespace": "default"}})
        yield running


@pytest.fixture
async def ann(hub: ServedHub) -> AsyncIterator[HttpClient]:
    made = hub.client("ann", "dev")
    yield made
    await made.close()


async def ask(client: HttpClient, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    answer = await client.request(method, path, b"" if body is None else json.dumps(body).encode())
    return answer.status, answer.json()


async def new(client: HttpClient, *scopes: str, seconds: Any = 3600, name: Any = "ci") -> tuple[int, Any]:
    return await ask(client, "POST", "/tokens", {"name": name, "scopes": list(scopes), "expirationSeconds": seconds})


class Bearer:
    def __init__(self, hub: ServedHub, token: str) -> None:
        self.client = HttpClient(hub.url, context=hub.context(), token=token, clock=hub.clock, random=Random(6))

    async def __call__(self, method: str, path: str, body: Any = None) -> int:
        return (await ask(self.client, method, path, body))[0]


async def test_a_token_is_its_owner_narrowed_by_its_scopes(hub: ServedHub, ann: HttpClient) -> None:
    code, made = await new(ann, "read", "write:configmaps")
    assert code == 201 and Token.parse(made["token"]) is not None and made["used"] is None
    bearer = Bearer(hub, made["token"])
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    assert await bearer("POST", CONFIG_MAPS, config) == 201
    assert await bearer("GET", PODS) == 200
    assert await bearer("DELETE", f"{PODS}/x") == 403  # Its owner may, its scopes do not.
    assert await bearer("GET", "/api/v1/namespaces/default/secrets") == 403
    assert await bearer("GET", "/api/v1/nodes") == 403  # Its scopes do, its owner may not.
    for method, path in (("GET", "/tokens"), ("POST", "/tokens"), ("DELETE", f"/tokens/{made['id']}")):
        assert await bearer(method, path, {}) == 403
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    _, who = await ask(bearer.client, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    assert who["status"]["userInfo"]["username"] == "ann"
    assert hub.audit[-1]["user"] == "ann"
    assert made["token"] not in json.dumps(hub.audit)
    await bearer.client.close()


async def test_a_token_of_an_administrator_is_narrowed_too(hub: ServedHub) -> None:
    admin = hub.client()
    _, made = await new(admin, "read:pods@default")
    bearer = Bearer(hub, made["token"])
    assert await bearer("GET", PODS) == 200
    for path in ("/api/v1/pods", CONFIG_MAPS, "/metrics", "/apis/meta-os.eu/v1alpha1/clusters"):
        assert await bearer("GET", path) == 403, path
    await bearer.client.close()
    await admin.close()


async def test_scopes_narrow_also_whom_one_acts_as(hub: ServedHub) -> None:
    role = {"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"}
    subjects = [{"kind": "ServiceAccount", "name": "bot", "namespace": "default"}]
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "roleRef": role, "subjects": subjects}
    await hub.make(binding | {"metadata": {"name": "bot"}})
    admin = hub.client()
    _, made = await new(admin, "all@default")
    bearer = Bearer(hub, made["token"])
    bot = [("Impersonate-User", "system:serviceaccount:default:bot")]
    for path, status in ((PODS, 200), ("/api/v1/namespaces/nemo-system/pods", 403)):
        assert (await bearer.client.request("GET", path, headers=bot)).status == status, path
    await bearer.client.close()
    await admin.close()


async def test_only_a_salted_hash_is_kept(hub: ServedHub, ann: HttpClient) -> None:
    _, made = await new(ann, "read")
    client = hub.client()
    held = await client.get(scheme.SECRET, f"personal-token-{made['id']}", SYSTEM_NAMESPACE)
    secret = Token.parse(made["token"])
    assert secret is not None and held["type"] == TYPE
    import base64

    kept = base64.b64decode(held["data"]["about"]).decode()
    assert secret.secret not in kept and json.loads(kept)["salt"]
    await client.close()


async def test_it_ends_in_time_and_its_last_use_is_noted(hub: ServedHub, ann: HttpClient) -> None:
    _, made = await new(ann, "read")
    bearer = Bearer(hub, made["token"])
    assert await bearer("GET", PODS) == 200
    first = (await ask(ann, "GET", "/tokens"))[1]["items"][0]
    assert first["used"] is not None and "token" not in first
    clock: Any = hub.clock
    await clock.advance(NOTED_SECONDS + 1)
    assert await bearer("GET", PODS) == 200
    assert (await ask(ann, "GET", "/tokens"))[1]["items"][0]["used"] > first["used"]
    await clock.advance(3600)
    assert await bearer("GET", PODS) == 401
    await bearer.client.close()


async def test_who_cannot_be_noted_may_read_all_the_same(
    hub: ServedHub, ann: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made = await new(ann, "read", "write:configmaps")
    bearer = Bearer(hub, made["token"])

    async def full(*_: Any, **__: Any) -> int:
        raise StoreFull("no space is left")

    for word in ("create", "update"):
        monkeypatch.setattr(hub.registry._store, word, full)
    assert await bearer("GET", PODS) == 200
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    assert await bearer("POST", CONFIG_MAPS, config) == 507
    await bearer.client.close()


async def test_it_is_revoked_by_its_owner_alone_and_ends_with_the_owners_certificates(hub: ServedHub, ann: HttpClient) -> None:
    _, made = await new(ann, "read")
    bearer, bob = Bearer(hub, made["token"]), hub.client("bob", "dev")
    assert (await ask(bob, "GET", "/tokens"))[1]["items"] == []
    assert (await ask(bob, "DELETE", f"/tokens/{made['id']}"))[0] == 404
    assert await bearer("GET", PODS) == 200
    assert (await ask(ann, "DELETE", f"/tokens/{made['id']}"))[0] == 200
    assert await bearer("GET", PODS) == 401
    _, other = await new(ann, "read")
    second = Bearer(hub, other["token"])
    assert await second("GET", PODS) == 200
    hub.revoked.add("ann")
    assert await second("GET", PODS) == 401
    for each in (bearer.client, second.client, bob):
        await each.close()


async def test_a_bent_or_invented_token_is_nobodys(hub: ServedHub, ann: HttpClient) -> None:
    _, made = await new(ann, "read")
    real = Token.parse(made["token"])
    assert real is not None
    for token in (
        str(Token(real.id, "A" * 32)),
        str(Token("0" * 12, real.secret)),
        made["token"][:-1],
        "nemo_pat_",
        "nemo_pat_x",
    ):
        bearer = Bearer(hub, token)
        assert await bearer("GET", PODS) == 401
        await bearer.client.close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["repo"]}, "ACCESS"),
        ({"scopes": ["read", "read:nosuch"]}, "scope 'read:nosuch': this hub has no resource 'nosuch': name one by its plural"),
        ({"scopes": ["write:pods.apps@shop"]}, "this hub has no resource 'pods.apps'"),
        ({"scopes": ["connect:pods/nosuch"]}, "this hub has no resource 'pods/nosuch'"),
        ({"scopes": "read"}, "ACCESS"),
        ({"scopes": [7]}, "body"),
        ({"expirationSeconds": 1}, "expirationSeconds"),
        ({"expirationSeconds": 10**9}, "expirationSeconds"),
        ({"expirationSeconds": True}, "body"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
    ],
)
async def test_what_is_wrong_is_named(ann: HttpClient, body: dict[str, Any], said: str) -> None:
    code, answer = await ask(ann, "POST", "/tokens", {"name": "ci", "scopes": ["read"], "expirationSeconds": 600} | body)
    assert code == 400 and said in answer["message"]


async def test_there_are_so_many_for_one_user_and_none_for_the_system(
    hub: ServedHub, ann: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaos.apiserver.personaltokens.MOST_TOKENS", 2)
    assert MOST_TOKENS == 50
    assert [(await new(ann, "read"))[0] for _ in range(3)] == [201, 201, 403]
    site = hub.client("system:cluster:edge", "system:clusters")
    assert (await new(site, "read"))[0] == 403
    await site.close()
