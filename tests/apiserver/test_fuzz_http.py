"""Requests that callers make up, over HTTPS: each is answered, never by an internal error, and nothing is logged as one."""

import os
import ssl
import time
from http.client import HTTPException, HTTPSConnection
from urllib.parse import quote, urlencode, urlsplit

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.apiserver.threaded import Running, running

__all__ = ["running"]

MANY = settings(
    max_examples=int(os.environ.get("FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
#: Answers that say that a site, not the hub, is missing, or that a revision lies ahead.
HONEST = {503, 504}
PATHS = st.one_of(
    st.sampled_from(
        ["/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/configmaps/a", "/api/v1/pods", "/apis", "/api",
         "/api/v1/namespaces/default/pods/p", "/api/v1/namespaces/default/pods/p/log", "/api/v1/namespaces/default/pods/p/exec",
         "/api/v1/namespaces/default/pods/p/portforward", "/api/v1/namespaces/default/pods/p/eviction", "/api/v1/nodes",
         "/api/v1/namespaces/default/services/a:80/proxy/x", "/apis/apps/v1/namespaces/default/deployments", "/metrics",
         "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "/apis/meta-os.eu/v1alpha1/clusters/edge/tunnel", "/version",
         "/openapi/v3/apis/apps/v1", "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", "/api/v1/events"]
    ),
    st.text(max_size=20).map(lambda text: "/api/v1/namespaces/default/" + quote(text)),
    st.text(max_size=20).map(lambda text: "/" + quote(text)),
)  # fmt: skip
PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["watch", "limit", "continue", "labelSelector", "fieldSelector", "resourceVersion", "resourceVersionMatch", "pretty",
         "sendInitialEvents", "dryRun", "fieldManager", "fieldValidation", "force", "gracePeriodSeconds", "propagationPolicy",
         "orphanDependents", "includeObject", "container", "command", "stdin", "tty", "ports", "tailLines", "sinceTime",
         "sinceSeconds", "limitBytes", "follow", "previous", "timestamps", "path", "hash"]
    ),
    st.one_of(
        st.sampled_from(["", "true", "false", "1", "0", "-1", "All", "Strict", "a=b", "metadata.name=a", "99999999999999999999"]),
        st.text(max_size=12),
    ),
    max_size=4,
)  # fmt: skip
_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["Accept", "Content-Type", "Authorization", "Impersonate-User", "Impersonate-Group", "If-None-Match", "Accept-Encoding",
         "Upgrade", "Connection", "User-Agent", "Range", "X-Stream-Protocol-Version", "Sec-WebSocket-Protocol"]
    ),
    st.one_of(
        _TEXT,
        st.sampled_from(
            ["application/json", "application/json;as=Table;v=v1;g=meta.k8s.io", "application/yaml", "websocket", "Upgrade",
             "application/merge-patch+json", "application/json-patch+json", "application/apply-patch+yaml", "Bearer x",
             "gzip", "application/vnd.kubernetes.protobuf", "Bearer nemo1.00000000.x", "Basic eDp4", "v5.channel.k8s.io"]
        ),
    ),
    max_size=4,
)  # fmt: skip
BODIES = st.one_of(
    st.none(),
    st.binary(max_size=60),
    st.sampled_from([b"{}", b"[]", b'{"metadata":{"name":"b"}}', b'[{"op":"test","path":"/x","value":1}]', b"k8s\x00\x0a\x04"]),
)


@MANY
@given(
    method=st.sampled_from(["GET", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"]),
    path=PATHS,
    query=PARAMETERS,
    headers=HEADERS,
    body=BODIES,
    known=st.booleans(),
)
def test_any_request(
    running: Running, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes | None, known: bool
) -> None:
    context = ssl.create_default_context(cafile=str(running.session.verify))
    if known:
        context.load_cert_chain(str(running.session.cert))
    if query.get("watch") is not None:
        query = query | {"timeoutSeconds": "1"}
    connection = HTTPSConnection("127.0.0.1", urlsplit(running.hub.url).port or 0, context=context, timeout=10)
    started = time.monotonic()
    try:
        connection.request(method, f"{path}?{urlencode(query)}" if query else path, body, headers)
        answer = connection.getresponse()
        if answer.status != 101:
            answer.read()
        answer.close()
    except HTTPException as broken:
        raise AssertionError("no answer") from broken
    finally:
        connection.close()
    assert answer.status < 500 or answer.status in HONEST, answer.status
    assert time.monotonic() - started < 8
    assert not running.errors, running.errors


LINES = [
    *(b"GET / HTTP/1.1\r\n", b"\r\n", b"Host: h\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    *(b"fffffffffffffffff\r\n", b"POST /api/v1/namespaces HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n"),
]


@MANY
@given(st.lists(st.one_of(st.binary(max_size=80), st.sampled_from(LINES)), max_size=8))
def test_any_bytes(running: Running, chunks: list[bytes]) -> None:
    """What is no HTTP is ended by a 400 or a closed connection; the next caller is served."""
    context = ssl.create_default_context(cafile=str(running.session.verify))
    connection = HTTPSConnection("127.0.0.1", urlsplit(running.hub.url).port or 0, context=context, timeout=10)
    connection.connect()
    try:
        connection.sock.sendall(b"".join(chunks))
    finally:
        connection.close()
    assert running.session.get(running.hub.url + "/livez", timeout=10).text == "ok"
    assert not running.errors, running.errors
