"""Services of a Kubernetes cluster's own that all clusters may reach: exported at the hub, and offered by their owner here.

Nothing is written to the cluster for it. The agent looks at each Service that the hub asks for, says what it is, and leads what
comes from other sites to one of its ready pods, through the cluster's API server and the pod's node (see ``forwarding``).
Bounds: one look at each Service that is exported from here every ``LOOK_SECONDS``; ``MAX_EXPORTS`` of them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from metaos.client import Client
from metaos.clock import Clock, sleep_or
from metaos.http import path_of
from metaos.members.manifests import MEMBER_LABEL
from metaos.members.status import Outcome, Seen
from metaos.resources import meta
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, labels
from metaos.resources.scheme import ENDPOINTS, POD, SERVICE

log = logging.getLogger(__name__)

#: On a Service of the cluster, by its owner: the hub may export it (value: ``true``).
OFFER = "meta-os.eu/offer"
LOOK_SECONDS = 5.0
MAX_EXPORTS = 256
_PORT = ("name", "protocol", "appProtocol", "port")

#: Namespace and name.
Key = tuple[str, str]


def refusal(service: Obj | None, key: Key) -> tuple[str, str]:
    """(reason, message) why a Service is not exported; empty texts where it is."""
    where, called = key
    if service is None:
        return "NoService", f"the cluster has no Service {where}/{called}"
    if meta.annotations(service).get(OFFER) != "true":
        remedy = f"kubectl annotate service {called} -n {where} {OFFER}=true"
        return "NotOffered", f"its owner has not offered it to the federation; at the cluster: {remedy}"
    if MEMBER_LABEL in labels(service):
        return "NotForeign", "it is the hub's own Service: export it without naming a cluster"
    if (service.get("spec") or {}).get("type") == "ExternalName":
        return "InvalidServiceType", "a Service of type ExternalName leads to no pods, so it cannot be exported"
    return "", ""


def targets(service: Obj, endpoints: Obj | None, port: int) -> list[tuple[str, int]]:
    """Ready pods behind a port of a Service, and their ports."""
    ports = (service.get("spec") or {}).get("ports") or ()
    wanted = next((p for p in ports if p.get("port") == port and p.get("protocol", "TCP") == "TCP"), None)
    if wanted is None:
        return []
    found = []
    for subset in (endpoints or {}).get("subsets") or ():
        numbers = [int(p["port"]) for p in subset.get("ports") or () if (p.get("name") or "") == (wanted.get("name") or "")]
        for address in subset.get("addresses") or ():
            target = address.get("targetRef") or {}
            if target.get("kind") == "Pod" and numbers:
                found.append((str(target["name"]), numbers[0]))
    return sorted(found)


class Exports:
    """``forward`` connects to a pod's port by the path of its ``portforward``; ``changed`` is told the name of a Work whose
    status may be another one."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        forward: Callable[[str, int], Awaitable[socket.socket]],
        changed: Callable[[str], None],
    ) -> None:
        self._client, self._clock, self._forward, self._changed = client, clock, forward, changed
        self._wanted: dict[Key, str] = {}
        self._found: dict[Key, Seen] = {}
        self._news = asyncio.Event()
        self._turn = 0

    def keep(self, wanted: Mapping[Key, str]) -> None:
        """What the hub asks for, with the Works that do."""
        kept = dict(sorted(wanted.items())[:MAX_EXPORTS])
        if kept != self._wanted:
            self._wanted = kept
            self._found = {key: seen for key, seen in self._found.items() if key in kept}
            self._news.set()

    def seen(self, where: str, called: str) -> Seen:
        return self._found.get((where, called), Seen(False, None, None))

    async def run(self) -> None:
        """Never returns."""
        while True:
            self._news.clear()
            for key, work in list(self._wanted.items()):
                try:
                    seen = await self._look(key)
                except ApiError as error:
                    if error.code == 503:
                        continue
                    seen = Seen(False, Outcome("", error.reason, error.message), None)
                if key in self._wanted and self._found.get(key) != seen:
                    self._found[key] = seen
                    self._changed(work)
            await sleep_or(self._clock, LOOK_SECONDS, self._news)

    async def _look(self, key: Key) -> Seen:
        service = await self._get(SERVICE, key)
        reason, message = refusal(service, key)
        if reason or service is None:
            return Seen(False, Outcome("", reason, message), None)
        endpoints, spec = await self._get(ENDPOINTS, key), service["spec"]
        ports = [{k: port[k] for k in _PORT if k in port} for port in spec.get("ports") or ()]
        status: dict[str, Any] = {
            "ports": ports,
            "sessionAffinity": spec.get("sessionAffinity", "None"),
            "ready": any(targets(service, endpoints, int(port["port"])) for port in ports),
        }
        return Seen(True, None, None, told=status)

    async def connect(self, where: str, called: str, port: int) -> socket.socket:
        """Raises ``ApiError`` or ``OSError`` where it cannot be."""
        key = where, called
        if key not in self._wanted:
            raise ApiError(403, "Forbidden", f"Service {where}/{called} is not exported from here")
        service = await self._get(SERVICE, key)
        reason, message = refusal(service, key)
        if reason or service is None:
            raise ApiError(403, "Forbidden", message)
        found = targets(service, await self._get(ENDPOINTS, key), port)
        if not found:
            raise ConnectionRefusedError(f"no pod of Service {where}/{called} is ready on TCP port {port}")
        self._turn += 1
        pod, number = found[self._turn % len(found)]
        return await self._forward(path_of(POD, where, pod, "portforward"), number)

    async def _get(self, kind: Any, key: Key) -> Obj | None:
        try:
            return await self._client.get(kind, key[1], key[0])
        except ApiError as error:
            if error.code == 404:
                return None
            raise
