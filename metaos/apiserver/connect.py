"""What lasts or reaches a site: logs, commands, ports, proxies and the tunnels themselves. Authorised by the caller."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from metaos.apiserver import streams
from metaos.apiserver.proxy import ServiceProxy
from metaos.apiserver.registry import Registry
from metaos.apiserver.routing import proxied_name
from metaos.apiserver.tunnels import Streams, Tunnels
from metaos.apiserver.verbs import Call
from metaos.apiserver.writing import SELF
from metaos.clock import Clock
from metaos.resources import scheme
from metaos.resources.errors import ApiError, bad_request
from metaos.resources.meta import Obj
from metaos.security.authz import UserInfo
from metaos.tunnel import Stream

DEFAULT_PORT = 80


class _InNameOf:
    """Streams whose sites are told who asks: a site may have rules of its own about that."""

    def __init__(self, sites: Streams, user: UserInfo) -> None:
        self._sites, self._user = sites, user

    async def open(self, cluster: str, header: dict[str, Any]) -> Stream:
        return await self._sites.open(cluster, header | {"user": {"name": self._user.name, "groups": list(self._user.groups)}})


class Connections:
    """Serves one such call after another; see ``app.Connect``."""

    def __init__(self, registry: Registry, tunnels: Tunnels, proxy: ServiceProxy, clock: Clock) -> None:
        self._registry, self._tunnels, self._proxy, self._clock = registry, tunnels, proxy, clock

    async def __call__(self, call: Call) -> web.StreamResponse:
        target, request = call.target, call.request
        if target.subresource == "tunnel":
            return await self._tunnels.serve(target.name, request, call.identity.credential)
        _, name, port = proxied_name(target.name) if target.subresource == "proxy" else ("", target.name, "")
        # Whether the caller may stream has been decided; looking the object up is the hub's own business.
        obj = await self._registry.get(SELF, target.kind, name, target.namespace)
        sites = _InNameOf(self._tunnels, call.user)
        if target.subresource == "proxy":
            query = request.rel_url.raw_query_string
            path = (target.rest or "/") + (f"?{query}" if query else "")
            if target.kind is scheme.SERVICE:
                return await self._proxy.serve(sites, request, obj, port, path)
            if target.kind is scheme.POD:
                return await self._proxy.serve_pod(sites, request, obj, _pod_port(obj, port), path)
        if target.kind is scheme.POD and target.subresource == "log":
            return await streams.log(request, sites, obj, self._clock.now())
        if target.kind is scheme.POD and target.subresource in ("exec", "attach"):
            return await streams.execute(request, sites, obj, target.subresource)
        if target.kind is scheme.POD and target.subresource == "portforward":
            return await streams.port_forward(request, sites, obj)
        raise ApiError(404, "NotFound", f"{target.kind.plural} have no {target.subresource} here")


def _pod_port(pod: Obj, port: str) -> int:
    """The port of a pod that is meant: the asked-for one, its first one, or 80."""
    if not port:
        containers = (pod.get("spec") or {}).get("containers") or ()
        return int(next((p["containerPort"] for c in containers for p in c.get("ports") or ()), DEFAULT_PORT))
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise bad_request(f"port {port!r} must be a number from 1 to 65535")
    return int(port)
