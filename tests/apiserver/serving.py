"""A hub's HTTP server for tests: the real registry over TLS on a loopback port, and sites that answer in this process."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import web

from metaos.apiserver.app import make_app
from metaos.apiserver.authn import Certificate, HubAuthenticator
from metaos.apiserver.claimants import Claimants
from metaos.apiserver.connect import Connections
from metaos.apiserver.dialling import Refused
from metaos.apiserver.jointokens import JoinTokens
from metaos.apiserver.listening import Room, Site, listeners
from metaos.apiserver.measured import Sites, sources
from metaos.apiserver.metrics import Metrics
from metaos.apiserver.personaltokens import PersonalTokens
from metaos.apiserver.proxy import ServiceProxy, service_slices
from metaos.apiserver.registry import Registry
from metaos.apiserver.sessions import Sessions
from metaos.apiserver.tunnels import Tunnels
from metaos.clock import Clock
from metaos.http import HttpClient, tls_context
from metaos.pki import render_kubeconfig
from metaos.resources import scheme
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj
from metaos.security.authz import UserInfo
from metaos.security.identity import Authority, KeyPair
from metaos.store.sqlite import SqliteStore
from metaos.tunnel import Stream, Tunnel

ADMIN = UserInfo("admin", ("system:masters",))
#: What a site of these tests does with a stream that the hub opens.
Serve = Callable[[dict[str, Any], Stream], Awaitable[None]]


@dataclass
class ServedHub:
    """``url`` and the key material to reach it; ``audit`` holds what was noted; ``revoked`` may be filled by the test."""

    registry: Registry
    tunnels: Tunnels
    authority: Authority
    clock: Clock
    audit: list[dict[str, Any]]
    revoked: set[str]
    sessions: Sessions
    url: str = ""
    room: Room = field(default_factory=lambda: Room(1000))

    def pair(self, name: str, *groups: str, lifetime: float = 3600.0) -> KeyPair:
        return self.authority.issue_client(name, groups, self.clock.now(), lifetime)

    def context(self, name: str = "", *groups: str) -> ssl.SSLContext:
        """A client's TLS context; without a name it has no certificate."""
        ca = self.authority.pair.certificate.decode()
        if not name:
            return tls_context(ca)
        pair = self.pair(name, *groups)
        return tls_context(ca, pair.certificate.decode(), pair.key.decode())

    def client(self, name: str = "admin", *groups: str) -> HttpClient:
        groups = groups or (("system:masters",) if name == "admin" else ())
        return HttpClient(self.url, context=self.context(name, *groups), clock=self.clock, random=Random(5))

    def kubeconfig(self, folder: Path, name: str = "admin", *groups: str) -> Path:
        pair = self.pair(name, *(groups or (("system:masters",) if name == "admin" else ())))
        path = folder / f"{name.replace(':', '-')}.kubeconfig"
        path.write_text(render_kubeconfig(self.url, self.authority.pair.certificate, pair.certificate, pair.key, name))
        return path

    async def make(self, *objects: Obj) -> None:
        for obj in objects:
            await self.registry.create(ADMIN, obj)

    def slices(self, namespace: str) -> list[Obj]:
        found = self.registry.cache.range(scheme.ENDPOINT_SLICE.resource, namespace)
        return [version.object() for version in found]


@asynccontextmanager
async def served(folder: Path, clock: Clock) -> AsyncIterator[ServedHub]:
    store = await SqliteStore.open(folder / "state.db")
    registry = Registry(store, clock, Random(1))
    await registry.start()
    authority = Authority.create(Random(2), clock.now())
    pair = authority.issue_server(("127.0.0.1", "localhost"), clock.now())

    def may_dial(source: str, target: str, header: dict[str, Any]) -> dict[str, Any]:
        if header.get("port") != 80:
            raise Refused("no service leads there")
        return {k: header.get(k) for k in ("type", "namespace", "pod", "port")}

    tunnels = Tunnels(may_dial)
    sites = Sites(tunnels, clock)
    registry.sources.update(sources(registry.cache, sites))
    hub = ServedHub(registry, tunnels, authority, clock, [], set(), Sessions())
    proxy = ServiceProxy(lambda where, name: service_slices(hub.slices(where), name), clock)
    tokens = JoinTokens(registry.client(ADMIN), clock)

    personal = PersonalTokens(
        registry.client(ADMIN),
        clock,
        Random(4),
        held=lambda name: registry.current(scheme.SECRET, name, SYSTEM_NAMESPACE),
        kinds=registry.kinds.all,
        withdrawn=lambda user, made: user in hub.revoked,
    )

    def revoked(certificate: Certificate) -> bool:
        return certificate.name in hub.revoked

    app = make_app(
        registry,
        authenticator=HubAuthenticator(
            clock,
            revoked=revoked,
            claimed=Claimants(registry).certified,
            tokens=(tokens.user_of, personal.identity, registry.account_of),
        ),
        clock=clock,
        random=Random(3),
        connect=Connections(registry, tunnels, proxy, clock),
        audit=hub.audit.append,
        metrics=Metrics(),
        join_tokens=tokens,
        personal=personal,
        ca=lambda: authority.pair.certificate,
        sessions=hub.sessions,
    )
    (folder / "server.pem").write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    context.load_verify_locations(cadata=authority.pair.certificate.decode())
    context.verify_mode = ssl.CERT_OPTIONAL
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    for listener in listeners("127.0.0.1", 0, hub.room):
        await Site(runner, listener, context).start()
    hub.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield hub
    finally:
        await sites.close()
        await tunnels.close()
        await registry.stop()
        # Without TLS's goodbye, for which some client might keep us waiting.
        for connection in runner.server.connections if runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
        await store.close()


@asynccontextmanager
async def site(hub: ServedHub, name: str, serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[Tunnel]:
    """A connected site: the agent's end of a tunnel, whose streams ``serve`` answers."""
    from websockets.asyncio.client import connect

    from metaos.tunnel import SUBPROTOCOL, TunnelError

    url = f"{hub.url.replace('https', 'wss')}/apis/meta-os.eu/v1alpha1/clusters/{name}/tunnel"
    context = context or hub.context(f"system:cluster:{name}", "system:clusters")
    async with connect(url, ssl=context, subprotocols=[SUBPROTOCOL], compression=None, max_size=1 << 20) as socket:  # type: ignore[list-item]
        tunnel = Tunnel(socket.send, serve, client=True)

        async def receive() -> None:
            try:
                async for message in socket:
                    await tunnel.receive(message if isinstance(message, bytes) else message.encode())
            except TunnelError:
                pass

        task = asyncio.create_task(receive())
        async with asyncio.timeout(5):
            while name not in hub.tunnels.connected():
                await asyncio.sleep(0.005)
        try:
            yield tunnel
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await tunnel.close()


def service(name: str = "web", namespace: str = "default", port: int = 80) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": port, "targetPort": 8080}]},
    }


def endpoint_slice(cluster: str, *pods: str, name: str = "web", namespace: str = "default", port: int = 8080) -> Obj:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{cluster}",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name, "meta-os.eu/cluster": cluster},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": ["127.64.0.1"],
                "conditions": {"ready": True},
                "nodeName": cluster,
                "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace},
            }
            for pod in pods
        ],
    }


def join_token(authority: Authority, clock: Clock, site: str, seed: int = 9) -> tuple[str, Obj]:
    """The bearer text of a new token and its Secret."""
    from metaos.resources.meta import format_time
    from metaos.security.identity import TOKEN_TYPE, JoinToken, token_hash

    token = JoinToken.create(Random(seed), authority.fingerprint)
    values = {"cluster": site, "expiration": format_time(clock.now() + 600), "hash": token_hash(token.secret)}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": TOKEN_TYPE,
        "metadata": {"name": token.secret_name, "namespace": "nemo-system"},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    }
    return token.bearer, secret
