"""Imported Services inside a Kubernetes member: what their pods at other sites have for an address there.

For each port of an import the agent listens at one address of its own, which the cluster's pods reach, and names it in an
EndpointSlice of the derived Service. What connects is led to a ready pod of another site, through the agents' connections to the
hub, which checks who calls: pods of the federation are known by their address, all others are from outside of it. The cluster's
own pods serve without the agent. Only where the member's owner says so (``--relay``): nothing listens otherwise.
By TCP and UDP. Bounds: ``MAX_PORTS`` ports, ``MAX_RELAYS`` connections; of datagrams those of flows.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections.abc import Callable, Iterable
from functools import partial

from metaos.agent.datagrams import PKTINFO, Datagrams, Endpoint
from metaos.agent.flows import Counts
from metaos.agent.relay import Dial, Relayed, reach, refuse, relay_stream
from metaos.agent.routes import Listener, RemoteEndpoint, Route, choices, remote_endpoints
from metaos.resources.meta import SERVICE_NAME_LABEL, SLICE_MANAGER_LABEL, Obj, ObjectRef, name, namespace
from metaos.resources.services import derived_name
from metaos.resources.workload import work_name
from metaos.tunnel import Stream

log = logging.getLogger(__name__)

#: Where the agent listens: by a name's hash, so that an agent that starts again listens where it did.
PORTS = range(20000, 30000)
MAX_PORTS, MAX_RELAYS = 256, 1024
#: Of these, those of our pods of one namespace, and of one of them.
MAX_OF_NAMESPACE, MAX_OF_POD = 512, 256
MAX_TRIES = 4
CONNECT_SECONDS = 5.0
_PROBES = 64

#: (namespace, name) of an import, a port's name, and its protocol.
Key = tuple[str, str, str, str]


class Relays:
    """``work`` gives a Work by name, ``dial`` a stream to another site's pod, ``caller`` the pod of ours that has an address: its
    namespace and name."""

    def __init__(
        self,
        address: str,
        site: str,
        work: Callable[[str], Obj | None],
        dial: Dial,
        caller: Callable[[str], tuple[str, str] | None],
    ) -> None:
        self.address = address
        self._site, self._work, self._dial, self._caller = site, work, dial, caller
        self._sockets: dict[Key, socket.socket] = {}
        self._relayed = Relayed()
        self._turn = 0
        # Those of each pod by a stream of its own: policies at the other end look at whose they are.
        self._datagrams = Datagrams(None, self._choose, self._reach, Counts(), whose=self._whose)

    def reaches(self, where: str, service: str) -> bool:
        """Whether a Service has a ready pod at another site."""
        found, slices = self._service(where, service)
        ports = (found.get("spec") or {}).get("ports") or ()
        return any(self._endpoints(found, slices, str(port.get("name") or "")) for port in ports)

    def slice(self, imported: Obj) -> Obj | None:
        """The EndpointSlice for an import; ``None`` where the agent cannot stand for its pods."""
        if (imported.get("spec") or {}).get("type") != "ClusterSetIP":
            return None
        where, called = namespace(imported), name(imported)
        ports = []
        for port in imported["spec"].get("ports") or ():
            word, protocol = str(port.get("name") or ""), str(port.get("protocol") or "TCP")
            if protocol in ("TCP", "UDP") and (number := self._listen((where, called, word, protocol))):
                ports.append({"name": word, "port": number, "protocol": protocol})
        if not ports:
            return None
        there = {"addresses": [self.address], "conditions": {"ready": True}}
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{derived_name(called)}-relay",
                "namespace": where,
                "uid": imported["metadata"].get("uid"),
                "labels": {
                    SERVICE_NAME_LABEL: derived_name(called),
                    SLICE_MANAGER_LABEL: "relay.meta-os.eu",
                },
            },
            "addressType": "IPv4",
            # As long as nobody is there, the cluster's own pods have it all.
            "endpoints": [there] if self.reaches(where, called) else [],
            "ports": ports,
        }

    def keep(self, imports: Iterable[tuple[str, str]]) -> None:
        """Listen for no others."""
        wanted = set(imports)
        for key in [key for key in self._sockets if key[:2] not in wanted]:
            sock = self._sockets.pop(key)
            if key[3] == "UDP":
                self._datagrams.release("/".join(key[:3]), sock.getsockname()[1])
                continue
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    async def close(self) -> None:
        self.keep(())
        await self._relayed.close()
        await self._datagrams.close()

    # -- listening ---------------------------------------------------------------------------------------------

    def _listen(self, key: Key) -> int:
        """The port; 0 where there is none."""
        if key not in self._sockets:
            if len(self._sockets) >= MAX_PORTS:
                log.warning("imports have more than %d ports: %s/%s is not relayed", MAX_PORTS, *key[:2])
                return 0
            seed, udp = "/".join(key[:3]), key[3] == "UDP"
            sock = self._bound(seed, udp)
            if sock is None:
                log.warning("imported Service %s/%s is not relayed: no port of %s is free", *key[:2], self.address)
                return 0
            self._sockets[key] = sock
            if udp:
                self._datagrams.take(seed, sock.getsockname()[1], sock)
            else:
                asyncio.get_running_loop().add_reader(sock, self._accept, key, sock)
        return int(self._sockets[key].getsockname()[1])

    def _bound(self, seed: str, udp: bool) -> socket.socket | None:
        start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
        for step in range(_PROBES):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                if udp:
                    sock.setsockopt(socket.IPPROTO_IP, PKTINFO, 1)
                else:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((self.address, PORTS[(start + step) % len(PORTS)]))
                if not udp:
                    sock.listen(64)
                return sock
            except OSError:
                sock.close()
        return None

    def _accept(self, key: Key, sock: socket.socket) -> None:
        try:
            accepted, (peer, _) = sock.accept()
        except OSError:
            return
        self._turn += 1
        # What is not ours may come from one address for many: of a node, or of a load balancer.
        pod = self._caller(str(peer))
        shares = ((pod[0], MAX_OF_NAMESPACE), (pod, MAX_OF_POD)) if pod is not None else ()
        self._relayed.begin(accepted, partial(self._relay, key, accepted, str(peer), self._turn), MAX_RELAYS, *shares)

    # -- connections -------------------------------------------------------------------------------------------

    async def _relay(self, key: Key, accepted: socket.socket, peer: str, turn: int) -> None:
        route = self._route(*key[:3])
        why = "no pod at another site is ready"
        for endpoint in choices(route, turn, peer)[:MAX_TRIES]:
            if not isinstance(endpoint, RemoteEndpoint):
                continue
            try:
                stream = await self._stream("dial", route, endpoint, peer)
            except (OSError, TimeoutError) as error:
                why = str(error) or type(error).__name__
                continue
            await relay_stream(accepted, stream)
            return
        log.debug("a connection from %s to %s/%s comes to nothing: %s", peer, route.namespace, route.service, why)
        refuse(accepted)

    async def _stream(self, kind: str, route: Route, endpoint: RemoteEndpoint, peer: str) -> Stream:
        pod = self._caller(peer)
        # The cluster's own pods, and what its nodes stand for, belong to no namespace of the federation.
        source = {"outside": True} if pod is None else {"namespace": pod[0], "pod": pod[1]}
        async with asyncio.timeout(CONNECT_SECONDS):
            return await reach(self._dial, kind, route, endpoint, source)

    def _choose(self, seed: str, listener: Listener, source: Listener) -> tuple[Route, list[Endpoint]]:
        where, service, port = seed.split("/")
        self._turn += 1
        route = self._route(where, service, port)
        return route, choices(route, self._turn, source[0])

    async def _reach(self, seed: str, whose: str, route: Route, endpoint: RemoteEndpoint) -> Stream:
        return await self._stream("datagrams", route, endpoint, whose.partition(" ")[0])

    def _whose(self, address: str) -> str:
        """By the pod too that has it now: another one that gets the address later is not taken for that."""
        return " ".join((address, *(self._caller(address) or ())))

    def _route(self, where: str, service: str, port: str) -> Route:
        found, slices = self._service(where, service)
        sticky = (found.get("spec") or {}).get("sessionAffinity") == "ClientIP"
        return Route(where, service, (), self._endpoints(found, slices, port), sticky)

    def _service(self, where: str, service: str) -> tuple[Obj, list[Obj]]:
        found = self._work(work_name(ObjectRef("", "Service", where, service))) or {}
        manifests = (found.get("spec") or {}).get("manifests") or []
        return (manifests[0], manifests[1:]) if manifests else ({}, [])

    def _endpoints(self, service: Obj, slices: list[Obj], port: str) -> tuple[RemoteEndpoint, ...]:
        early = bool((service.get("spec") or {}).get("publishNotReadyAddresses"))
        return tuple(endpoint for _, endpoint in remote_endpoints(slices, port, self._site, early))
