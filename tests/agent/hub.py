"""A small hub for tests of the agent: the API over HTTPS in front of a ``FakeClient``, with join tokens, certificates,
revocation and the tunnel. It does what the contract says and nothing more."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

from aiohttp import WSMsgType, web

from metaos.client import PatchType
from metaos.clock import Clock, SystemClock
from metaos.resources import errors, scheme
from metaos.resources.errors import ApiError
from metaos.resources.scheme import Kind
from metaos.security.identity import AGENT_LIFETIME_SECONDS, Authority, JoinToken
from metaos.tunnel import SUBPROTOCOL, Stream, Tunnel, TunnelError
from tests.fake_client import FakeClient

T = TypeVar("T")


async def until(condition: Callable[[], T | Literal[False] | None], seconds: float = 10.0) -> T:
    """What ``condition`` returns, once that is true. Raises ``TimeoutError``."""
    async with asyncio.timeout(seconds):
        while not (found := condition()):
            await asyncio.sleep(0.005)
        return found


class Hub:
    """``start`` listens on a loopback port; ``stop`` closes every connection, as a hub that vanished does."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.random = Random(7)
        self.folder = folder
        self.client = FakeClient(self.clock)
        self.authority = Authority.create(self.random, self.clock.now())
        self.tokens: dict[str, str] = {}  # bearer → the request that it was used for
        self.revoked: set[str] = set()
        self.auto_approve = True
        self.lifetime_seconds = AGENT_LIFETIME_SECONDS
        self.tunnels: dict[str, Tunnel] = {}
        self.opened: list[dict[str, Any]] = []
        self.port = 0
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> str:
        return self.authority.pair.certificate.decode()

    def token(self) -> str:
        token = JoinToken.create(self.random, self.authority.fingerprint)
        self.tokens[token.bearer] = ""
        return str(token)

    async def start(self) -> None:
        pair = self.authority.issue_server(("127.0.0.1",), self.clock.now())
        pem = self.folder / "hub.pem"
        pem.write_bytes(pair.certificate + pair.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        context.load_verify_locations(cadata=self.ca)
        context.verify_mode = ssl.CERT_OPTIONAL
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            for tunnel in list(self.tunnels.values()):
                await tunnel.close("the hub went away")
            self.client.end_watches()
            for connection in list(self._runner.server.connections if self._runner.server else ()):
                connection.force_close()
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: Any) -> web.StreamResponse:
        try:
            return await self._route(request)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)

    def _user(self, request: web.Request) -> str:
        peer = request.transport.get_extra_info("peercert") if request.transport else None
        if peer:
            user = str(dict(part[0] for part in peer["subject"])["commonName"])
            if user in self.revoked:
                raise errors.unauthorized("the certificate of this member has been revoked")
            return user
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if bearer not in self.tokens:
            raise errors.unauthorized("no such join token")
        return "token:" + bearer

    async def _route(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/cacerts":
            return web.Response(text=self.ca)
        user = self._user(request)
        parts = request.path.strip("/").split("/")
        group, version, *parts = ["", *parts[1:]] if parts[0] == "api" else parts[1:]
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        kind = scheme.by_plural(group, version, parts[0])
        if kind is None:
            raise errors.not_found(group, parts[0], "")
        name, subresource = (*parts[1:], "", "")[:2]
        if user.startswith("token:"):
            self._allow_token(user.removeprefix("token:"), request.method, kind, name, await request.read())
        if subresource == "tunnel":
            return await self._tunnel(request, name)
        if request.method == "GET" and not name:
            return await self._read_all(request, kind, namespace)
        found = await self._act(request, kind, namespace, name, subresource)
        if kind is scheme.CERTIFICATE_SIGNING_REQUEST and request.method == "POST" and self.auto_approve:
            self.sign(found["metadata"]["name"])
        return web.json_response(found)

    def _allow_token(self, bearer: str, method: str, kind: Kind, name: str, body: bytes) -> None:
        if kind is not scheme.CERTIFICATE_SIGNING_REQUEST:
            raise errors.forbidden(kind.group, kind.plural, name, "a join token may only ask for a certificate")
        wanted = name or json.loads(body)["metadata"]["name"]
        if self.tokens[bearer] not in ("", wanted) and not (method == "GET" and self.tokens[bearer] == wanted):
            raise errors.forbidden(kind.group, kind.plural, name, "the join token has been used")
        self.tokens[bearer] = wanted

    def sign(self, name: str) -> None:
        csr = self.client.find(scheme.CERTIFICATE_SIGNING_REQUEST, name)
        assert csr is not None
        site = name.rpartition("-")[0]
        certificate = self.authority.sign_csr(
            base64.b64decode(csr["spec"]["request"]),
            common_name=f"system:cluster:{site}",
            organizations=("system:clusters",),
            lifetime_seconds=self.lifetime_seconds,
            now=self.clock.now(),
        )
        self.client.seed(csr | {"status": {"certificate": base64.b64encode(certificate).decode()}})

    async def _read_all(self, request: web.Request, kind: Kind, namespace: str) -> web.StreamResponse:
        labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        if "watch" not in request.query:
            found = await self.client.list(kind, namespace, labels=labels, fields=fields)
            return web.json_response({"metadata": {"resourceVersion": found.resource_version}, "items": found.items})
        response = web.StreamResponse()
        await response.prepare(request)
        version = request.query.get("resourceVersion", "")
        try:
            async with aclosing(
                self.client.watch(kind, namespace, resource_version=version, labels=labels, fields=fields)  # type: ignore[type-var]
            ) as events:
                async for event in events:
                    await response.write(json.dumps({"type": event.type, "object": event.object}).encode() + b"\n")
        except ApiError as error:
            await response.write(json.dumps({"type": "ERROR", "object": error.status()}).encode() + b"\n")
        return response

    async def _act(self, request: web.Request, kind: Kind, namespace: str, name: str, subresource: str) -> Any:
        body = json.loads(await request.read() or b"null")
        if request.method == "GET":
            return await self.client.get(kind, name, namespace)
        if request.method == "POST":
            return await self.client.create(body)
        if request.method == "PUT":
            return await self.client.update(body, subresource=subresource)
        if request.method == "PATCH":
            return await self.client.patch(
                kind, name, namespace, body, type=PatchType(request.content_type), subresource=subresource
            )
        uid = (body or {}).get("preconditions", {}).get("uid", "")
        grace = (body or {}).get("gracePeriodSeconds")
        return await self.client.delete(kind, name, namespace, uid=uid, grace_period_seconds=grace)

    async def _tunnel(self, request: web.Request, name: str) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(SUBPROTOCOL,))
        await socket.prepare(request)
        tunnel = self.tunnels[name] = Tunnel(socket.send_bytes, self._dialled, client=False)
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    await tunnel.receive(message.data)
        except TunnelError:
            pass
        finally:
            if self.tunnels.get(name) is tunnel:
                del self.tunnels[name]
            await tunnel.close()
            await socket.close()
        return socket

    async def _dialled(self, header: dict[str, Any], stream: Stream) -> None:
        """An agent asks for a pod of another site: relay it to that site's tunnel."""
        self.opened.append(header)
        other = self.tunnels.get(header["cluster"])
        if other is None:
            raise RuntimeError(f"site {header['cluster']} is not connected")
        to = await other.open({"type": "dial", "namespace": header["namespace"], "pod": header["pod"], "port": header["port"]})
        await to.accepted()
        await stream.accept()
        await asyncio.gather(_copy(stream, to), _copy(to, stream))


async def _copy(source: Stream, target: Stream) -> None:
    while message := await source.read():
        await target.write(message)
    await target.write_eof()
