"""The HTTPS client against a real server (aiohttp) with TLS and client certificates."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from metaos import http
from metaos.client import PatchType
from metaos.clock import SystemClock
from metaos.http import HttpClient, path_of, tls_context, unverified_context
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.security.identity import Authority

Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """A server that answers everything with one function and remembers its connections."""

    def __init__(self, ahead: float = 0.0) -> None:
        """``ahead``: by how many seconds the clock is with which its certificates were made."""
        self.serve: Serve = self.echo
        self.ahead = ahead
        self.connections: set[Any] = set()
        self.random = Random(1)
        clock = SystemClock()
        self.authority = Authority.create(self.random, clock.now() + self.ahead)
        self.clock = clock

    async def echo(self, request: web.Request) -> web.Response:
        peer = request.transport.get_extra_info("peercert") if request.transport else None
        return web.json_response(
            {
                "method": request.method,
                "path": request.path,
                "query": dict(request.query),
                "type": request.content_type,
                "body": json.loads(await request.read() or b"null"),
                "token": request.headers.get("Authorization", ""),
                "user": dict(part[0] for part in peer["subject"])["commonName"] if peer else "",
            }
        )

    async def start(self, folder: Path) -> None:
        async def dispatch(request: Any) -> web.StreamResponse:
            self.connections.add(request.transport)
            return await self.serve(request)

        pair = self.authority.issue_server(("127.0.0.1", "localhost"), self.clock.now() + self.ahead)
        (folder / "pair.pem").write_bytes(pair.certificate + pair.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "pair.pem")
        context.load_verify_locations(cadata=self.ca)
        context.verify_mode = ssl.CERT_OPTIONAL
        self.runner = web.ServerRunner(web.Server(dispatch), shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.url = f"https://127.0.0.1:{self.runner.addresses[0][1]}"

    @property
    def ca(self) -> str:
        return self.authority.pair.certificate.decode()

    def client(self, **more: Any) -> HttpClient:
        return HttpClient(self.url, **({"ca": self.ca} | more), clock=self.clock, random=self.random)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    found = Site()
    await found.start(tmp_path)
    yield found
    await found.runner.cleanup()


async def test_the_verbs_say_what_kubernetes_expects(site: Site) -> None:
    client = site.client(token="secret")
    cm: Any = scheme.CONFIG_MAP.empty("a", "shop")
    said: Any = await client.create(cm, field_manager="me", dry_run=True)
    assert (said["method"], said["path"]) == ("POST", "/api/v1/namespaces/shop/configmaps")
    assert said["query"] == {"fieldManager": "me", "dryRun": "All"} and said["token"] == "Bearer secret"
    said = await client.update(scheme.WORK.empty("w", "ns"), subresource="status")
    assert (said["method"], said["path"]) == ("PUT", "/apis/meta-os.eu/v1alpha1/namespaces/ns/works/w/status")
    said = await client.patch(scheme.CLUSTER, "c", "", {"a": 1}, type=PatchType.APPLY, field_manager="f", force=True)
    assert (said["method"], said["path"]) == ("PATCH", "/apis/meta-os.eu/v1alpha1/clusters/c")
    assert said["type"] == "application/apply-patch+yaml" and said["query"]["force"] == "true" and said["body"] == {"a": 1}
    said = await client.delete(scheme.POD, "p", "ns", uid="u", propagation="Foreground", grace_period_seconds=0)
    assert said["body"]["preconditions"] == {"uid": "u"} and said["body"]["gracePeriodSeconds"] == 0
    await client.delete_collection(scheme.POD, "ns", labels="a=b")
    assert len(site.connections) == 1, "the connection is kept alive"
    await client.close()


async def test_a_client_certificate_names_its_user_and_can_be_changed(site: Site) -> None:
    pairs = [site.authority.issue_client(name, ("g",), site.clock.now()) for name in ("one", "two")]
    first, second = ({"certificate": p.certificate.decode(), "key": p.key.decode()} for p in pairs)
    client = site.client(**first)
    assert (await client.get(scheme.POD, "p", "ns"))["user"] == "one"
    client.use(tls_context(site.ca, **second))
    assert (await client.get(scheme.POD, "p", "ns"))["user"] == "two"
    await client.close()


async def test_an_unknown_authority_is_refused_unless_unverified(site: Site) -> None:
    other = Authority.create(Random(2), site.clock.now())
    client = site.client(ca=other.pair.certificate.decode())
    with pytest.raises(ApiError, match="cannot reach the hub") as caught:
        await client.get(scheme.POD, "p", "ns")
    assert (caught.value.code, caught.value.reason) == (503, "ServiceUnavailable")
    trusting = site.client(context=unverified_context())
    assert (await trusting.request("GET", "/cacerts")).status == 200
    await trusting.close()
    await client.close()


async def test_a_certificate_of_another_time_asks_for_the_clock(tmp_path: Path) -> None:
    site = Site(ahead=4 * 3600.0)
    await site.start(tmp_path)
    with pytest.raises(ApiError, match=r"certificate is not yet valid, by this machine's clock: is it right\?"):
        await site.client().get(scheme.POD, "p", "ns")
    await site.runner.cleanup()


async def test_errors_are_what_the_server_said(site: Site) -> None:
    async def refuse(request: web.Request) -> web.Response:
        if request.path.endswith("/plain"):
            return web.Response(status=502, text="bad gateway")
        return web.json_response(ApiError(409, "AlreadyExists", "is there").status(), status=409)

    site.serve = refuse
    client = site.client()
    with pytest.raises(ApiError, match="is there") as caught:
        await client.get(scheme.POD, "p", "ns")
    assert caught.value.reason == "AlreadyExists"
    with pytest.raises(ApiError, match="bad gateway") as caught:
        await client.get(scheme.POD, "plain", "ns")
    assert caught.value.code == 502
    with pytest.raises(ApiError, match="is there"):
        await anext(aiter(client.watch(scheme.POD)))
    await client.close()


async def test_lists_name_the_kind_of_their_items(site: Site) -> None:
    async def page(request: web.Request) -> web.Response:
        assert request.query == {"limit": "2", "continue": "x", "labelSelector": "a in (b,c)"}
        return web.json_response({"metadata": {"resourceVersion": "7", "continue": "y"}, "items": [{"metadata": {"name": "a"}}]})

    site.serve = page
    client = site.client()
    found = await client.list(scheme.DEPLOYMENT, "ns", limit=2, continue_token="x", labels="a in (b,c)")
    assert found.items == [{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}}]
    assert (found.resource_version, found.continue_token) == ("7", "y")
    await client.close()


async def test_a_watch_yields_line_by_line_and_raises_errors(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    more = asyncio.Event()
    gone: list[dict[str, Any]] = []

    async def stream(request: web.Request) -> web.StreamResponse:
        assert request.query["watch"] == "true" and request.query["resourceVersion"] == "5"
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type":"ADDED","object":{"n":1}}\n{"type":"MODI')
        await more.wait()
        await response.write(b'FIED","object":{"n":2}}\n')
        for event in gone:
            await response.write(json.dumps(event).encode() + b"\n")
        return response

    site.serve = stream
    client = site.client()
    watch = aiter(client.watch(scheme.POD, "ns", resource_version="5"))
    assert (await anext(watch)).object == {"n": 1}
    more.set()
    assert (await anext(watch)).type == "MODIFIED"
    with pytest.raises(StopAsyncIteration):
        await anext(watch)
    gone.append({"type": "ERROR", "object": ApiError(410, "Expired", "too old").status()})
    with pytest.raises(ApiError, match="too old") as caught:
        async for _ in client.watch(scheme.POD, "ns", resource_version="5"):
            pass
    assert caught.value.code == 410
    monkeypatch.setattr(http, "MAX_LINE", 100)
    gone[:] = [{"long": "x" * 200_000}]
    with pytest.raises(ApiError) as caught:
        async for _ in client.watch(scheme.POD, "ns", resource_version="5"):
            pass
    assert caught.value.code == 413
    await client.close()


async def test_a_server_that_closed_a_kept_connection_or_vanished(site: Site) -> None:
    client = site.client()
    await client.get(scheme.POD, "p", "ns")
    for transport in site.connections:
        transport.abort()
    assert (await client.get(scheme.POD, "p", "ns"))["path"] == "/api/v1/namespaces/ns/pods/p"
    await site.runner.cleanup()
    for _ in range(3):
        with pytest.raises(ApiError, match="cannot reach the hub at https://127") as caught:
            await client.get(scheme.POD, "p", "ns")
        assert caught.value.code == 503
    await client.close()


async def test_a_slow_server_is_given_up_and_large_answers_arrive(site: Site) -> None:
    async def hang(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await asyncio.Event().wait()
        return web.Response(body=b"x" * 3_000_000)

    site.serve = hang
    client = site.client()
    with pytest.raises(ApiError, match="no answer in time"):
        await client.request("GET", "/slow", timeout_seconds=0.05)
    assert len((await client.request("GET", "/large")).body) == 3_000_000
    await client.close()


def test_paths_and_bad_addresses() -> None:
    assert path_of(scheme.POD, "", "") == "/api/v1/pods"
    assert path_of(scheme.CLUSTER, "ignored", "a/b", "status") == "/apis/meta-os.eu/v1alpha1/clusters/a%2Fb/status"
    with pytest.raises(ValueError, match="must be a URL"):
        HttpClient("hub:6443", clock=SystemClock(), random=Random(1))


async def test_connections_of_before_an_outage_are_dropped_and_newer_ones_stay(site: Site) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return await site.echo(request)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type":"ADDED","object":{}}\n')
        await asyncio.Event().wait()
        return response

    site.serve = endless
    client = site.client()
    await client.request("GET", "/kept")
    old, new = client.watch(scheme.POD), client.watch(scheme.POD)
    assert (await anext(old)).type == "ADDED"
    lost = site.clock.monotonic()
    assert (await anext(new)).type == "ADDED"
    client.drop_older(lost)
    with pytest.raises(ApiError) as caught:
        await asyncio.wait_for(anext(old), 5)
    assert (caught.value.code, caught.value.reason) == (503, http.DROPPED)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(new), 0.05)
    assert (await client.request("GET", "/again")).status == 200, "not on the connection that was kept"
    assert len(client._open) == 1
    await client.close()


async def test_after_a_burst_its_connections_are_used_again_for_a_while(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.02)
        return await site.echo(request)

    site.serve, client = slow, site.client()

    async def burst() -> None:
        await asyncio.gather(*(client.request("GET", "/") for _ in range(6)))

    await burst()
    seen = set(site.connections)
    await burst()
    assert site.connections == seen and len(seen) == 6
    monkeypatch.setattr(http, "BURST_SECONDS", 0.05)
    await burst()
    deadline = asyncio.get_running_loop().time() + 5
    while len(client._idle) > http.IDLE_CONNECTIONS:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    assert len(client._open) == http.IDLE_CONNECTIONS
    assert (await client.request("GET", "/")).status == 200
    await client.close()
