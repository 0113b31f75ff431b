"""The HTTP form, over TLS, with a real registry."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from metaos.apiserver.bodies import duplicates
from metaos.clock import SystemClock
from metaos.http import HttpClient, Response
from metaos.resources import definitions, scheme
from metaos.resources.errors import ApiError
from tests.apiserver.definitions import definition_of
from tests.apiserver.objects import cluster, config_map, deployment, pod
from tests.apiserver.serving import ServedHub, join_token, served

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        yield running


@pytest.fixture
async def client(hub: ServedHub) -> AsyncIterator[HttpClient]:
    made = hub.client()
    yield made
    await made.close()


async def post(client: HttpClient, path: str, body: Any, **more: Any) -> Response:
    return await client.request("POST", path, json.dumps(body).encode(), **more)


async def test_a_client_of_ours_speaks_to_it(hub: ServedHub, client: HttpClient) -> None:
    made = await client.create(config_map("a"))
    seen = client.watch(scheme.CONFIG_MAP, "default", resource_version=made["metadata"]["resourceVersion"])
    waiting = asyncio.ensure_future(anext(seen))
    made["data"]["x"] = "y"
    await client.update(made)
    assert (await asyncio.wait_for(waiting, 5)).object["data"]["x"] == "y"
    await seen.aclose()  # type: ignore[attr-defined]
    await client.delete(scheme.CONFIG_MAP, "a", "default")
    with pytest.raises(ApiError) as gone:
        await client.get(scheme.CONFIG_MAP, "a", "default")
    assert (gone.value.code, gone.value.reason) == (404, "NotFound")


async def test_yaml_in_and_out(client: HttpClient) -> None:
    text = b"metadata: {name: y, annotations: {at: 2024-01-01}}\ndata: {a: b}\n"
    made = await client.request("POST", CONFIG_MAPS, text, content_type="application/yaml", accept="application/yaml")
    assert made.status == 201 and b"at: '2024-01-01'" in made.body
    bomb = b"a: &a [1]\nb: *a\n"
    assert (await client.request("POST", CONFIG_MAPS, bomb, content_type="application/yaml")).status == 400


async def test_forms_of_an_answer(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(deployment(), config_map("a"))
    listed = (await client.request("GET", "/apis/apps/v1/deployments", accept=f"{TABLE},application/json")).json()
    assert listed["kind"] == "Table" and listed["rows"][0]["cells"][:2] == ["web", "0/1"]
    assert listed["rows"][0]["object"]["kind"] == "PartialObjectMetadata" and listed["metadata"]["resourceVersion"]
    partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    found = await client.request("GET", CONFIG_MAPS, accept=partial)
    assert found.json()["kind"] == "PartialObjectMetadataList" and "data" not in found.json()["items"][0]
    assert found.header("content-type").startswith("application/json;as=PartialObjectMetadata")
    refused = await client.request("GET", CONFIG_MAPS, accept="application/vnd.kubernetes.protobuf")
    assert (refused.status, refused.json()["reason"]) == (406, "NotAcceptable")


async def test_warnings_and_strictness(client: HttpClient) -> None:
    odd = config_map("odd") | {"colour": "blue"}
    warned = await post(client, CONFIG_MAPS, odd)
    assert warned.status == 201 and warned.header("warning") == '299 - "unknown field \\"colour\\""'
    strict = await post(client, CONFIG_MAPS, odd | {"metadata": {"name": "o2"}}, query={"fieldValidation": "Strict"})
    assert strict.status == 400 and "strict decoding error" in strict.json()["message"]


async def test_dry_run_and_delete_options(client: HttpClient) -> None:
    dry = await post(client, CONFIG_MAPS, config_map("a"), query={"dryRun": "All"})
    assert dry.status == 201
    assert (await client.request("GET", f"{CONFIG_MAPS}/a")).status == 404
    made = await client.create(config_map("a"))
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "other"}}
    refused = await client.request("DELETE", f"{CONFIG_MAPS}/a", json.dumps(options).encode())
    assert refused.status == 409
    options["preconditions"] = {"uid": made["metadata"]["uid"]}
    assert (await client.request("DELETE", f"{CONFIG_MAPS}/a", json.dumps(options).encode())).json()["status"] == "Success"


async def test_an_apply_that_creates_answers_201(client: HttpClient) -> None:
    body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "b"}}).encode()
    send = {"content_type": "application/apply-patch+yaml", "query": {"fieldManager": "me"}}
    assert (await client.request("PATCH", f"{CONFIG_MAPS}/a", body, **send)).status == 201  # type: ignore[arg-type]
    assert (await client.request("PATCH", f"{CONFIG_MAPS}/a", body, **send)).status == 200  # type: ignore[arg-type]
    nameless = await client.request("PATCH", f"{CONFIG_MAPS}/a", body, content_type="application/apply-patch+yaml")
    assert nameless.status == 422 and "fieldManager" in nameless.json()["message"]
    long = await client.request(
        "PATCH", f"{CONFIG_MAPS}/a", body, content_type=send["content_type"], query={"fieldManager": "é" * 65}
    )
    assert long.status == 422 and "Too long: may not be more than 128 bytes" in long.json()["message"]


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/api/v1/nonsense", 404),
        ("GET", "/apis/none.example/v1/things", 404),
        ("GET", "/nowhere", 404),
        ("POST", f"{CONFIG_MAPS}/a", 405),
        ("PUT", CONFIG_MAPS, 405),
        ("DELETE", "/apis/apps/v1/namespaces/default/deployments/a/status", 405),
        ("POST", "/apis/apps/v1/namespaces/default/deployments/a/scale", 405),
        ("DELETE", "/api/v1/namespaces/default/pods/a/eviction", 405),
        ("GET", "/api/v1/configmaps/a", 404),
        ("GET", f"{CONFIG_MAPS}?limit=many", 400),
        ("GET", f"{CONFIG_MAPS}?labelSelector=a((", 400),
        ("GET", f"{CONFIG_MAPS}?watch=1&labelSelector=a((", 400),
        ("GET", f"{CONFIG_MAPS}?fieldSelector=spec.x=1", 400),
        ("OPTIONS", CONFIG_MAPS, 405),
        ("GET", f"{CONFIG_MAPS}/a/log", 404),
    ],
)
async def test_refusals_are_statuses(client: HttpClient, method: str, path: str, code: int) -> None:
    answer = await client.request(method, path, b"{}" if method in ("POST", "PUT") else b"")
    assert answer.status == code and answer.json()["kind"] == "Status" and answer.json()["code"] == code


async def test_bodies_are_bounded_and_checked(client: HttpClient) -> None:
    large = config_map("large", x="x" * (3 * 1024 * 1024))
    assert (await post(client, CONFIG_MAPS, large)).status == 413
    assert (await client.request("POST", CONFIG_MAPS, b"{")).status == 400
    assert (await client.request("POST", CONFIG_MAPS, b"[]")).status == 400
    assert (await client.request("POST", CONFIG_MAPS, b"{}", content_type="text/csv")).status == 415
    assert (await client.request("PATCH", f"{CONFIG_MAPS}/a", b"{}", content_type="application/json")).status == 415


async def test_watches_as_lines_tables_and_errors(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(config_map("a"), config_map("b"))
    query = {"watch": "true", "resourceVersion": "0", "timeoutSeconds": "1"}
    lines = [json.loads(line) async for line in client.lines(CONFIG_MAPS, query)]
    assert [(e["type"], e["object"]["metadata"]["name"]) for e in lines] == [("ADDED", "a"), ("ADDED", "b")]
    tables = await client.request("GET", CONFIG_MAPS, query=query, accept=TABLE)
    first, second = (json.loads(line)["object"] for line in tables.body.splitlines())
    assert first["columnDefinitions"] and not second["columnDefinitions"] and second["rows"][0]["cells"][0] == "b"
    late = [json.loads(x) async for x in client.lines(CONFIG_MAPS, {"watch": "1", "resourceVersion": "999999"})]
    assert late[0]["type"] == "ERROR" and late[0]["object"]["code"] == 410
    one = [json.loads(x) async for x in client.lines(f"{CONFIG_MAPS}/b", query)]
    assert [e["object"]["metadata"]["name"] for e in one] == ["b"]


async def test_a_watcher_that_goes_is_noticed(hub: ServedHub, client: HttpClient) -> None:
    lines = client.lines(CONFIG_MAPS, {"watch": "1", "resourceVersion": "0"})
    await hub.make(config_map("a"))
    await anext(lines)
    assert 'apiserver_longrunning_requests{type="watch"} 1' in await metrics(client)
    await lines.aclose()
    async with asyncio.timeout(5):
        while 'apiserver_longrunning_requests{type="watch"} 0' not in await metrics(client):
            await asyncio.sleep(0.01)


async def metrics(client: HttpClient) -> str:
    return (await client.request("GET", "/metrics", accept="*/*")).body.decode()


async def test_who_calls(hub: ServedHub) -> None:
    nobody = HttpClient(hub.url, context=hub.context(), clock=SystemClock(), random=Random(1))
    for path in ("/version", "/livez", "/readyz", "/healthz", "/cacerts"):
        assert (await nobody.request("GET", path, accept="*/*")).status == 200, path
    for path in ("/metrics", "/api", "/openapi/v3", CONFIG_MAPS):
        assert (await nobody.request("GET", path)).status == 401, path
    await nobody.close()
    wrong = HttpClient(hub.url, context=hub.context(), token="nemo1.aa.bb", clock=SystemClock(), random=Random(1))
    assert (await wrong.request("GET", CONFIG_MAPS)).status == 401
    await wrong.close()
    jane = hub.client("jane", "developers")
    refused = await jane.request("GET", CONFIG_MAPS)
    assert refused.status == 403 and 'User "jane" cannot list resource "configmaps"' in refused.json()["message"]
    assert (await jane.request("GET", "/api")).status == 200
    assert (await jane.request("GET", "/metrics")).status == 403
    await jane.close()


async def test_a_revoked_certificate_ends_its_watches(hub: ServedHub) -> None:
    await hub.make(cluster("edge"))
    agent = hub.client("system:cluster:edge", "system:clusters")
    path, fields = "/apis/meta-os.eu/v1alpha1/clusters", "metadata.name=edge"
    lines = agent.lines(path, {"watch": "1", "resourceVersion": "0", "fieldSelector": fields})
    assert json.loads(await anext(lines))["type"] == "ADDED"
    hub.revoked.add("system:cluster:edge")
    assert (await agent.request("GET", f"{path}/edge")).status == 401
    admin = hub.client()
    await admin.patch(scheme.CLUSTER, "edge", "", {"metadata": {"labels": {"x": "y"}}})
    ended = json.loads(await asyncio.wait_for(anext(lines), 5))
    assert ended["type"] == "ERROR" and ended["object"]["code"] == 401
    await lines.aclose()
    await agent.close()
    await admin.close()


async def test_impersonation_needs_the_right(hub: ServedHub) -> None:
    from aiohttp import ClientSession

    async with ClientSession() as session:

        async def review(user: tuple[str, ...], headers: dict[str, str]) -> tuple[int, Any]:
            url = f"{hub.url}/apis/authentication.k8s.io/v1/selfsubjectreviews"
            async with session.post(url, json={}, headers=headers, ssl=hub.context(*user)) as answer:
                return answer.status, await answer.json()

        code, found = await review(("admin", "system:masters"), {"Impersonate-User": "jane", "Impersonate-Group": "dev"})
        assert code == 201 and found["status"]["userInfo"] == {"username": "jane", "groups": ["dev", "system:authenticated"]}
        assert (await review(("jane",), {"Impersonate-User": "admin"}))[0] == 403
        assert (await review(("admin", "system:masters"), {"Impersonate-Group": "dev"}))[0] == 400
    assert hub.audit == []
    await asyncio.sleep(0.05)  # The session's TLS connections say goodbye.


async def test_the_audit_log_says_who_did_what_and_no_content(hub: ServedHub, client: HttpClient) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"password": "hunter2"}}
    made = await post(client, "/api/v1/namespaces/default/secrets", secret)
    await client.request("GET", "/api/v1/namespaces/default/secrets/s")
    await client.request("DELETE", "/api/v1/namespaces/default/secrets/none")
    created, deleted = hub.audit
    assert (created["user"], created["verb"], created["resource"], created["namespace"]) == (
        "admin",
        "create",
        "secrets",
        "default",
    )
    assert created["code"] == 201 and created["request"] == made.header("audit-id")
    assert (deleted["verb"], deleted["name"], deleted["code"]) == ("delete", "none", 404)
    assert "hunter2" not in json.dumps(hub.audit)


async def test_the_audit_log_says_who_tries_a_withdrawn_certificate(hub: ServedHub) -> None:
    ann = hub.client("ann")
    hub.revoked.add("ann")
    for path in ("/api/v1/namespaces/default/secrets/s?watch=1", "/metrics", "/api/v1/nonsense"):
        assert (await ann.request("GET", path)).status == 401
    await ann.close()
    first, second = hub.audit
    assert (first["user"], first["verb"], first["name"], first["code"]) == ("ann", "watch", "s", 401) and first["source"]
    assert (second["user"], second["path"], second["code"]) == ("ann", "/metrics", 401)


async def test_a_join_token_is_good_for_one_request(hub: ServedHub) -> None:
    bearer, secret = join_token(hub.authority, hub.clock, "edge")
    await hub.make(secret)
    joining = HttpClient(hub.url, context=hub.context(), token=bearer, clock=hub.clock, random=Random(1))
    path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"

    def request(name: str) -> dict[str, Any]:
        spec = {"request": "eA==", "signerName": "meta-os.eu/agent", "usages": ["client auth"]}
        return {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": spec,
        }

    assert (await post(joining, path, request("other-1"))).status == 403
    made = await post(joining, path, request("edge-1"))
    assert made.status == 201 and made.json()["spec"]["username"] == "system:bootstrap:edge"
    assert (await joining.request("GET", f"{path}/edge-1")).status == 200
    assert (await post(joining, path, request("edge-2"))).status == 403
    assert (await joining.request("GET", path)).status == 403
    assert (await joining.request("GET", CONFIG_MAPS)).status == 403
    await joining.close()


async def test_only_a_sites_agent_opens_its_tunnel(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(cluster("edge"))
    path = "/apis/meta-os.eu/v1alpha1/clusters/edge/tunnel"
    assert (await client.request("GET", path)).status == 403
    other = hub.client("system:cluster:other", "system:clusters")
    assert (await other.request("GET", path)).status == 403
    await other.close()


async def test_an_inner_failure_is_not_shown(hub: ServedHub, client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(hub.registry, "get_encoded", broken)
    answer = await client.request("GET", f"{CONFIG_MAPS}/a")
    assert answer.status == 500 and b"secret detail" not in answer.body
    assert answer.header("audit-id") in answer.json()["message"]


async def test_metrics_count(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(pod())
    await client.get(scheme.POD, "web-1", "default")
    text = await metrics(client)
    assert 'apiserver_request_total{verb="get",group="",resource="pods",code="200"} 1' in text
    assert 'apiserver_request_duration_seconds_count{verb="get",resource="pods"} 1' in text
    assert "nemo_store_revision " in text and "process_resident_memory_bytes " in text


@pytest.mark.parametrize(
    ("body", "doubles"),
    [
        (b'{"a": 1, "b": {"c": 1}}', []),
        (b'{"a":1,"a":2}', ["a"]),
        (b'{"a" : 1, "b": [{"c": 1, "c": 1}], "b2": {"d": {"e": 1, "e": 2, "e": 3}}}', ["b[0].c", "b2.d.e"]),
        (b'{"a": "\\"x\\": 1"}', []),
        (b"[1, 2]", []),
    ],
)
def test_doubles_of_fields_are_found(body: bytes, doubles: list[str]) -> None:
    assert duplicates(body, json.loads(body)) == doubles


async def test_what_only_yaml_knows_is_refused(client: HttpClient) -> None:
    for text in (b"data: {a: .inf}", b"data: {a: 1" + b"0" * 30 + b"}", b"data: !!set {a}"):
        answer = await client.request("POST", CONFIG_MAPS, b"metadata: {name: a}\n" + text, content_type="application/yaml")
        assert answer.status == 400
    text = b"metadata: {name: a}\ndata: {2: a, true: b, 1.5: c}\n"
    made = await client.request("POST", CONFIG_MAPS, text, content_type="application/yaml")
    assert made.json()["data"] == {"2": "a", "true": "b", "1.5": "c"}


async def test_doubles_of_fields_are_named(client: HttpClient) -> None:
    body = b'{"metadata":{"name":"a"},"data":{"k":"v","k":"w"}}'
    strict = await client.request("POST", CONFIG_MAPS, body, query={"fieldValidation": "Strict"})
    assert strict.status == 400 and 'strict decoding error: duplicate field "data.k"' in strict.json()["message"]
    warned = await client.request("POST", CONFIG_MAPS, body)
    assert warned.status == 201 and warned.header("warning") == '299 - "duplicate field \\"data.k\\""'
    ignored = await client.request("PUT", f"{CONFIG_MAPS}/a", body, query={"fieldValidation": "Ignore"})
    assert ignored.status == 200 and not ignored.header("warning")
    odd = await client.request("POST", CONFIG_MAPS, body, query={"fieldValidation": "Sometimes"})
    assert odd.status == 422


async def test_a_streamed_list_over_http(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(config_map("a"), config_map("b"))
    asked = {"watch": "1", "sendInitialEvents": "true", "allowWatchBookmarks": "true", "timeoutSeconds": "1"}
    refused = await client.request("GET", CONFIG_MAPS, query=asked)
    assert refused.status == 422 and "resourceVersionMatch" in refused.json()["message"]
    answer = await client.request("GET", CONFIG_MAPS, query=asked | {"resourceVersionMatch": "NotOlderThan"})
    events = [json.loads(line) for line in answer.body.splitlines()]
    assert [e["type"] for e in events[:3]] == ["ADDED", "ADDED", "BOOKMARK"]
    assert events[2]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_a_collection_that_was_deleted_is_shown(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(config_map("a"), config_map("b"))
    gone = (await client.request("DELETE", CONFIG_MAPS, query={"fieldSelector": "metadata.name=a"})).json()
    assert gone["kind"] == "ConfigMapList" and [o["metadata"]["name"] for o in gone["items"]] == ["a"]


async def test_doubles_in_bodies_and_patches_are_named(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(config_map("a"))
    doubled = {
        "application/yaml": b"metadata: {name: b}\ndata:\n  k: a\n  k: b\n",
        "application/json": b'{"metadata": {"name": "b"}, "data": {"k": "a", "k": "b"}}',
        "application/merge-patch+json": b'{"data": {"k": "a", "k": "b"}}',
        "application/strategic-merge-patch+json": b'{"data": {"k": "a", "k": "b"}}',
        "application/apply-patch+yaml": b"metadata: {name: a}\ndata:\n  k: a\n  k: b\n",
    }
    for media, body in doubled.items():
        method, path = ("PATCH", f"{CONFIG_MAPS}/a") if "patch" in media else ("POST", CONFIG_MAPS)
        for validation, code in (("Strict", 400), ("Warn", 0), ("Ignore", 0)):
            asked = f"{path}?dryRun=All&fieldValidation={validation}" + ("&fieldManager=m&force=true" if "apply" in media else "")
            answer = await client.request(method, asked, body, content_type=media)
            assert answer.status == code or (not code and answer.status in (200, 201)), answer.body
            said = answer.json()["message"] if code else answer.header("warning")
            assert ("k" in said and ("duplicate" in said or "already set" in said)) == (validation != "Ignore"), (media, said)


async def test_a_kind_that_another_hub_has_just_said_to_serve_is_served(
    hub: ServedHub, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's write comes here while it is asked how far all have come."""
    cache, fresh, defined = hub.registry.cache, hub.registry.cache.fresh, definition_of()
    defined["metadata"]["uid"] = "u"
    defined["status"] = definitions.status(defined, [], hub.clock.now())
    asked: list[int] = []

    async def later() -> None:
        asked.append(1)
        if len(asked) == 1:
            key = f"{scheme.CUSTOM_RESOURCE_DEFINITION.resource}//crontabs.stable.example.com"
            cache.written(await hub.registry._store.create(key, orjson.dumps(defined)))
        await fresh()

    monkeypatch.setattr(cache, "fresh", later)
    path = "/apis/stable.example.com/v1/namespaces/default/crontabs"
    assert (await client.request("GET", path)).status == 200
    asked[:] = [1]
    assert (await client.request("GET", path.replace("crontabs", "others"))).status == 404 and asked == [1, 1]
