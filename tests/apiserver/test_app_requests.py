"""URLs, Accept headers, bodies, parameters and the audit log: the pure parts of the HTTP form."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver import bodies, routing
from metaos.apiserver.audit import FILES, AuditLog
from metaos.apiserver.negotiation import Accepted, Form, accepted
from metaos.apiserver.verbs import warning_headers
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.security import audit
from metaos.security.authz import Attributes, UserInfo


@pytest.mark.parametrize(
    ("method", "path", "verb", "kind", "namespace", "name", "subresource", "rest"),
    [
        ("GET", "/api/v1/namespaces", "list", scheme.NAMESPACE, "", "", "", ""),
        ("GET", "/api/v1/namespaces/shop", "get", scheme.NAMESPACE, "", "shop", "", ""),
        ("PUT", "/api/v1/namespaces/shop/finalize", "update", scheme.NAMESPACE, "", "shop", "finalize", ""),
        ("GET", "/api/v1/namespaces/shop/pods", "list", scheme.POD, "shop", "", "", ""),
        ("GET", "/api/v1/pods", "list", scheme.POD, "", "", "", ""),
        ("DELETE", "/api/v1/namespaces/shop/pods", "deletecollection", scheme.POD, "shop", "", "", ""),
        ("GET", "/api/v1/namespaces/shop/pods/a/exec", "create", scheme.POD, "shop", "a", "exec", ""),
        (
            "GET",
            "/api/v1/namespaces/s/services/http:a:80/proxy/x//y%2F",
            "get",
            scheme.SERVICE,
            "s",
            "http:a:80",
            "proxy",
            "/x//y%2F",
        ),
        ("POST", "/api/v1/namespaces/s/services/a/proxy", "create", scheme.SERVICE, "s", "a", "proxy", ""),
        ("PATCH", "/apis/apps/v1/namespaces/s/deployments/a/scale", "patch", scheme.DEPLOYMENT, "s", "a", "scale", ""),
        ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Ax", "get", scheme.CLUSTER_ROLE, "", "system:x", "", ""),
    ],
)
def test_urls(
    method: str, path: str, verb: str, kind: scheme.Kind, namespace: str, name: str, subresource: str, rest: str
) -> None:
    assert routing.parse(method, path) == routing.Target(verb, kind, namespace, name, subresource, rest)


@given(st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "X"]), st.lists(st.text(max_size=8), max_size=8))
def test_no_url_is_more_than_a_refusal(method: str, parts: list[str]) -> None:
    for prefix in ("/", "/api/v1/", "/apis/apps/v1/", "/api/v1/namespaces/a/pods/"):
        try:
            target = routing.parse(method, prefix + "/".join(parts))
        except ApiError as refused:
            assert refused.code in (400, 404, 405)
        else:
            assert target is None or target.verb


def test_proxied_names() -> None:
    assert routing.proxied_name("a") == ("", "a", "")
    assert routing.proxied_name("a:80") == ("", "a", "80")
    assert routing.proxied_name("http:a:") == ("http", "a", "")
    with pytest.raises(ApiError):
        routing.proxied_name("a:b:c:d")


def test_what_kubectl_accepts() -> None:
    kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
    assert accepted(kubectl) == Accepted(form=Form.TABLE)
    assert accepted("") == accepted("*/*") == Accepted()
    assert accepted("application/vnd.kubernetes.protobuf,application/json") == Accepted()
    assert accepted("application/json;q=0.1, application/yaml").media == "application/yaml"
    with pytest.raises(ApiError) as refused:
        accepted("text/html")
    assert refused.value.code == 406


@given(st.text(max_size=60))
def test_any_accept_header_is_answered_or_refused(text: str) -> None:
    try:
        accepted(text)
    except ApiError as refused:
        assert refused.code == 406


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_json_bodies_come_through(value: object) -> None:
    assert bodies.decoded(orjson.dumps(value), "application/json; charset=utf-8") == value


@given(st.binary(max_size=80), st.sampled_from(["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]))
def test_any_bytes_are_a_body_or_a_refusal(raw: bytes, media: str) -> None:
    try:
        bodies.decoded(raw, media)
    except ApiError as refused:
        assert refused.code in (400, 415)


def test_delete_options() -> None:
    body = {"gracePeriodSeconds": 0, "propagationPolicy": "Foreground", "preconditions": {"uid": "u"}, "dryRun": ["All"]}
    options, dry = bodies.delete_options({}, body)
    assert (options.uid, options.propagation, options.grace_period_seconds, dry) == ("u", "Foreground", 0, True)
    assert bodies.delete_options({"gracePeriodSeconds": "5"}, None)[0].grace_period_seconds == 5
    assert bodies.delete_options({}, {"orphanDependents": True})[0].propagation == "Orphan"
    refused: list[Any] = [[], {"kind": "Pod"}, {"gracePeriodSeconds": "x"}, {"dryRun": ["Some"]}]
    for wrong in refused:
        with pytest.raises(ApiError):
            bodies.delete_options({}, wrong)


@given(st.lists(st.text(max_size=400), max_size=70))
def test_warnings_are_headers(texts: list[str]) -> None:
    headers = warning_headers(texts)
    assert len(headers) <= 50
    assert all(value.isprintable() and value.startswith('299 - "') and value.endswith('"') for _, value in headers)


def event(name: str = "a") -> dict[str, object]:
    return audit.event(
        request="r1",
        user=UserInfo("jane", ("dev",)),
        impersonated=None,
        asked=Attributes("create", "apps", "deployments", "", "shop", name),
        source="127.0.0.1",
        code=201,
        start_time=1_700_000_000.25,
        duration_seconds=0.0123,
        dry_run=False,
    )


def test_audit_events() -> None:
    found = event()
    assert found["time"] == "2023-11-14T22:13:20.250000Z" and found["milliseconds"] == 12.3
    assert "subresource" not in found and "dryRun" not in found
    assert audit.wanted(Attributes("create", "", "pods", "exec")) and audit.wanted(Attributes("get", "", "services", "proxy"))
    assert not audit.wanted(Attributes("list", "", "pods")) and not audit.wanted(Attributes("get", path="/metrics"))


def test_the_audit_log_is_bounded_and_private(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path, max_bytes=1000)
    for i in range(60):
        log(event(f"n{i}"))
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == FILES + 1 and all(f.stat().st_size <= 1000 for f in files)
    assert path.stat().st_mode & 0o077 == 0
    assert json.loads(path.read_text().splitlines()[-1])["name"] == "n59"
    again = AuditLog(path, max_bytes=1000)
    again(event("later"))
    again.close()
    assert json.loads(path.read_text().splitlines()[-1])["name"] == "later"


def test_fields_that_a_body_has_twice() -> None:
    text = b"metadata: {name: a}\ndata:\n  a: b\n  c: d\n  a: c\nlist:\n- {x: 1, x: 2}\n"
    value = bodies.decoded(text, "application/yaml")
    assert bodies.doubled(text, value) == ['line 5: key "a" already set in map', 'line 7: key "x" already set in map']
    text = b'{"data": {"a": "b", "a": "c"}, "list": [{"x": 1, "x": 2}]}'
    assert bodies.doubled(text, orjson.loads(text)) == ['duplicate field "data.a"', 'duplicate field "list[0].x"']
    assert bodies.doubled(b"k8s\x00\x0a", {}) == [] == bodies.doubled(b"", None)
