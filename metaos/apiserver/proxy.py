"""The stable URL: ``…/services/[scheme:]NAME[:PORT]/proxy/…`` reaches a ready endpoint on whichever site has one.

An endpoint that cannot be reached is passed over for a moment, and another one is tried: always where no byte of the
request has been sent, and for requests that may be repeated (RFC 9110, 9.2.2) also later, as long as no answer has begun.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from metaos.apiserver.exchange import Broken, Exchange, Sending
from metaos.apiserver.tunnels import Streams
from metaos.clock import Clock
from metaos.resources.errors import ApiError, not_found, unavailable
from metaos.resources.meta import SERVICE_NAME_LABEL, Obj, labels
from metaos.resources.services import dialled
from metaos.resources.workload import usable
from metaos.tunnel import Stream

ATTEMPTS = 4
#: How long an endpoint that failed is passed over, and how many are remembered.
PENALTY_SECONDS = 5.0
MAX_PENALTIES = 1000
#: A request waits so long for a first endpoint, looking again so often; so many requests may wait, others are told at once.
WAIT_SECONDS, LOOK_SECONDS, MAX_WAITING = 2.0, 0.02, 256
_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod's port on a site."""

    cluster: str
    namespace: str
    pod: str
    port: int


def endpoints(service: Obj, slices: list[Obj], port: str) -> list[Endpoint]:
    """Ready endpoints of a Service's port: by name, by number, or the only (first) one."""
    found = []
    ports = (service.get("spec") or {}).get("ports") or []
    wanted = next((p for p in ports if port in (str(p.get("port")), p.get("name") or "")), None) if port else (ports or [None])[0]
    if wanted is None:
        known = ", ".join(str(p.get("name") or p.get("port")) for p in ports)
        name = service["metadata"]["name"]
        raise unavailable(f"service {name!r} has no port {port!r}: it has {known or 'none'}")
    word = usable(slices)
    for part in slices:
        number = next((p["port"] for p in part.get("ports") or () if (p.get("name") or "") == (wanted.get("name") or "")), None)
        if number is None:
            continue
        for endpoint in part.get("endpoints") or ():
            target = endpoint.get("targetRef") or {}
            if (endpoint.get("conditions") or {}).get(word) and target.get("kind") in ("Pod", "Service"):
                found.append(Endpoint(endpoint["nodeName"], target["namespace"], dialled(target), int(number)))
    return found


class ServiceProxy:
    """``slices(namespace, service)`` gives EndpointSlices. ``sites`` carry a request's streams, in its caller's name."""

    def __init__(self, slices: Callable[[str, str], list[Obj]], clock: Clock) -> None:
        self._slices, self._clock = slices, clock
        self._failed: dict[Endpoint, float] = {}
        self._turn = 0
        self._waiting = 0

    def _ordered(self, found: list[Endpoint]) -> list[Endpoint]:
        """Round robin, with those that failed a moment ago last."""
        now = self._clock.monotonic()
        self._turn += 1
        rotated = found[self._turn % len(found) :] + found[: self._turn % len(found)]
        return sorted(rotated, key=lambda e: now < self._failed.get(e, 0.0))

    def _failure(self, endpoint: Endpoint) -> None:
        if len(self._failed) >= MAX_PENALTIES:
            self._failed.clear()
        self._failed[endpoint] = self._clock.monotonic() + PENALTY_SECONDS

    async def serve(self, sites: Streams, request: web.Request, service: Obj, port: str, path: str) -> web.StreamResponse:
        """Passes one request on and its answer back."""
        where, name = service["metadata"]["namespace"], service["metadata"]["name"]
        sending = await Sending.of(request)
        tried: set[Endpoint] = set()
        problem, refused = "", None
        await self._ready(service, port)
        for _ in range(ATTEMPTS):
            # Asked anew each time: the switch of a migration may come between.
            found = [e for e in endpoints(service, self._slices(where, name), port) if e not in tried]
            if not found:
                break
            endpoint = self._ordered(found)[0]
            tried.add(endpoint)
            try:
                stream = await _open(sites, endpoint)
            except ApiError as error:
                if error.code == 403:
                    refused = error  # It is for this caller alone that it cannot be used.
                else:
                    self._failure(endpoint)
                    problem = error.message
                continue
            try:
                return await Exchange(stream, f"{endpoint.pod}:{endpoint.port}").run(request, path, sending)
            except Broken as error:
                self._failure(endpoint)
                problem = f"{endpoint.pod} on {endpoint.cluster}: {error}"
                if error.sent and (request.method not in _IDEMPOTENT or not sending.repeatable):
                    break
        if not tried:
            raise unavailable(f"no endpoints available for service {name!r}: is a pod that it selects ready?")
        if refused is not None and not problem:
            raise refused
        raise ApiError(502, "BadGateway", f"service {name!r}: {problem or 'no endpoint could be reached'}")

    async def _ready(self, service: Obj, port: str) -> None:
        """Returns when there is an endpoint, or after a moment: who has just waited for a rollout, or whose pods are just
        being replaced, need not see that endpoints follow pods a little later."""
        where, name = service["metadata"]["namespace"], service["metadata"]["name"]
        deadline = self._clock.monotonic() + WAIT_SECONDS
        if self._waiting >= MAX_WAITING:
            return
        self._waiting += 1
        try:
            while not endpoints(service, self._slices(where, name), port) and self._clock.monotonic() < deadline:
                await self._clock.sleep(LOOK_SECONDS)
        finally:
            self._waiting -= 1

    async def serve_pod(self, sites: Streams, request: web.Request, pod: Obj, port: int, path: str) -> web.StreamResponse:
        """The same for one pod."""
        metadata = pod["metadata"]
        cluster = (pod.get("spec") or {}).get("nodeName")
        if not cluster:
            raise not_found("", "pods", metadata["name"])
        endpoint = Endpoint(cluster, metadata["namespace"], metadata["name"], port)
        sending = await Sending.of(request)
        stream = await _open(sites, endpoint)
        try:
            return await Exchange(stream, f"{endpoint.pod}:{endpoint.port}").run(request, path, sending)
        except Broken as error:
            raise ApiError(502, "BadGateway", f"pod {metadata['name']!r}: {error}") from None


async def _open(sites: Streams, endpoint: Endpoint) -> Stream:
    header = {"type": "dial", "namespace": endpoint.namespace, "pod": endpoint.pod, "port": endpoint.port}
    return await sites.open(endpoint.cluster, header)


def service_slices(found: list[Obj], service: str) -> list[Obj]:
    """Those of one Service."""
    return [s for s in found if labels(s).get(SERVICE_NAME_LABEL) == service]
