"""Service connections of a site's pods: listens for them at each pod's gateway and relays to an endpoint.

Local endpoints are reached directly, those of other sites through the tunnel. Which ones there are is looked up when a
connection comes, so endpoints come and go without a listener being touched. Works offline for what is local.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Hashable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from metaos.agent.accounts import calls_api
from metaos.agent.datagrams import Datagrams
from metaos.agent.flows import Counts
from metaos.agent.relay import Dial, Relayed, reach, refuse, relay_sockets, relay_stream
from metaos.agent.routes import (
    Addresses,
    Hosts,
    Listener,
    LocalEndpoint,
    NamespacePlan,
    RemoteEndpoint,
    Route,
    choices,
    host_aliases,
    hosts_on_loopback,
    on_loopback,
    own_ports,
    plan,
    pod_key,
    service_key,
)
from metaos.files import write_private
from metaos.network.policies import EGRESS, Peer, named_ports, refusal
from metaos.plugins.points import Runtime
from metaos.resources.meta import CLUSTER_LABEL, Obj, labels, name, namespace, uid
from metaos.resources.services import API_NAMES, API_PORT
from metaos.resources.workload import service_selects
from metaos.tunnel import Stream

log = logging.getLogger(__name__)

#: Connections that a site relays at the same time, and those that the pods of one namespace and one pod have begun; further ones
#: are refused at once.
MAX_RELAYS = 1024
MAX_OF_NAMESPACE, MAX_POD_RELAYS = 512, 256
#: Those to the hub's API, of all pods of the site, of one namespace and of one pod: fewer than the hub takes of callers at one
#: address that do not say who they are (256), so that pods leave room for agents that join from there.
MAX_API = 192
MAX_API_OF_NAMESPACE, MAX_POD_API = 96, 64
#: Endpoints that one connection tries before it gives up.
MAX_TRIES = 4
#: Addresses that are remembered; beyond that those that nothing uses are given back, so that a day of rollouts leaves nothing.
MAX_ADDRESSES = 512
CONNECT_SECONDS = 5.0
#: At a pod's gateway one socket listens for all Services of a port.
ANY = "0.0.0.0"

#: The hub's API, in the place of a pod of another site.
HUB = RemoteEndpoint("", "kubernetes", API_PORT)
_API_KEY = service_key("default", "kubernetes")
_API_LABELS = {"component": "apiserver", "provider": "kubernetes"}


async def _no_api() -> socket.socket:
    raise OSError("there is no hub")


class _Pod:
    """What was set up in one pod's network."""

    def __init__(self, pod: Obj) -> None:
        self.uid, self.namespace = uid(pod), namespace(pod)
        self.label = f"{namespace(pod)}/{name(pod)}"
        self.name = name(pod)
        self.labels: dict[str, str] = {}
        #: By protocol.
        self.named_ports: dict[str, dict[str, int]] = {}
        self.own_ports: set[int] = set()
        #: ``spec.hostAliases``: lines of its own in /etc/hosts.
        self.aliases: Hosts = ()
        self.own_services: set[str] = set()
        #: Whether it finds the hub's API.
        self.api = False
        self.sockets: dict[Listener, socket.socket] = {}
        self.hosts: Hosts | None = None
        #: Of the network in which the sockets are, and whether it is a side of its own.
        self.network = ""
        self.separate = False
        self.said: set[Listener] = set()
        self.lock = asyncio.Lock()

    def look_at(self, pod: Obj, services: list[Obj]) -> None:
        self.labels = dict(labels(pod))
        self.named_ports = {protocol: named_ports(pod, protocol) for protocol in ("TCP", "UDP")}
        self.own_ports = own_ports(pod, services)
        self.aliases = host_aliases(pod)
        self.api = calls_api(pod)
        self.own_services = {name(s) for s in services if namespace(s) == self.namespace and service_selects(s, labels(pod))}

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        for listener in list(self.sockets):
            self.close_one(loop, listener)

    def close_one(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        sock = self.sockets.pop(listener)
        loop.remove_reader(sock)
        sock.close()


class ServiceNetwork:
    """``dial`` opens a stream to another site's pod, ``api`` a connection to the hub's API; ``addresses`` is the file that keeps
    the site's addresses."""

    def __init__(
        self, runtime: Runtime, site: str, addresses: Path, dial: Dial, api: Callable[[], Awaitable[socket.socket]] = _no_api
    ) -> None:
        self._runtime, self._site, self._dial, self._api = runtime, site, dial, api
        self._file = addresses
        self._addresses = Addresses(_load(addresses))
        self._stored = dict(self._addresses.known)
        #: Why they could not be written, as it was said.
        self._unkept = ""
        self._plans: dict[str, NamespacePlan] = {}
        self._services: list[Obj] = []
        self._policies: list[Obj] = []
        self._namespaces: dict[str, dict[str, str]] = {}
        self._pods: dict[str, _Pod] = {}
        self._turn = 0
        self._relayed = Relayed()
        self._setups: set[asyncio.Task[None]] = set()
        self.counts = Counts()
        self._datagrams = Datagrams(runtime, self._choose, self._reach, self.counts)

    def pod_address(self, where: str, pod: str) -> str:
        """The address of a local pod at this site: its ``podIP``, and that of its network card where it gets one."""
        address = self._addresses.of(pod_key(self._site, where, pod))
        self._store()
        return address if self._runtime.network().separate else on_loopback(address)

    def hosts(self, where: str) -> Hosts:
        """The ``/etc/hosts`` lines of a namespace's pods."""
        return self._plans.get(where, NamespacePlan()).hosts

    def update(self, manifests: Iterable[Obj], pods: Iterable[Obj]) -> None:
        """What is wanted and which pods there are has changed. Returns at once; sockets follow."""
        objects, local = list(manifests), list(pods)
        self._services = [o for o in objects if o.get("kind") == "Service"]
        self._policies = [o for o in objects if o.get("kind") == "NetworkPolicy"]
        self._namespaces = {name(o): dict(labels(o)) for o in objects if o.get("kind") == "Namespace"}
        self._plans = plan(objects, local, self._addresses, self._site)
        for pod in local:
            self._addresses.of(pod_key(self._site, namespace(pod), name(pod)))
        if any(map(calls_api, local)):
            self._addresses.of(_API_KEY)
        if len(self._addresses.known) > MAX_ADDRESSES:
            self._forget_unused(local)
        self._store()
        # Those that have run to their end have no network any more.
        local = [pod for pod in local if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
        present = {uid(pod) for pod in local}
        for gone in [key for key in self._pods if key not in present]:
            self.detach(gone)
        for pod in local:
            # Pods that outlived the agent are found here; where the sandbox is still to come, the next try succeeds.
            known = self._pods.setdefault(uid(pod), _Pod(pod))
            known.look_at(pod, self._services)
            if known.hosts is None or not known.lock.locked():
                task = asyncio.get_running_loop().create_task(self._set_up(known))
                self._setups.add(task)
                task.add_done_callback(self._setups.discard)

    async def attach(self, pod: Obj) -> None:
        """A pod's sandbox has just been made: names and listeners are there when this returns."""
        self.detach(uid(pod))
        known = self._pods[uid(pod)] = _Pod(pod)
        known.look_at(pod, self._services)
        await self._set_up(known)

    def detach(self, pod_uid: str) -> None:
        """A pod's sandbox is gone or about to go."""
        known = self._pods.pop(pod_uid, None)
        if known is not None:
            known.close(asyncio.get_running_loop())
            self._datagrams.detach(pod_uid)

    def refusal(self, header: Any, where: str, pod: str, port: int, protocol: str = "TCP") -> str | None:
        """Why a pod of another site may not connect to one of this site, or nothing. ``header``: who it is, as the hub has
        checked it."""
        target = self._find(where, pod) if self._policies else None
        if target is None:
            return None
        found = header if isinstance(header, dict) else {}
        caller = Peer(
            str(found.get("namespace") or ""),
            str(found.get("pod") or ""),
            found.get("labels") or {},
            found.get("namespaceLabels") or {},
            address=str(found.get("address") or ""),
        )
        return refusal(self._policies, caller, self._peer(target, protocol), port, protocol)

    def refusal_outside(self, address: str, pod_uid: str, port: int, protocol: str) -> str | None:
        """Why who comes from outside, from this address, may not connect to a pod of this site, or nothing."""
        target = self._pods.get(pod_uid)
        if target is None:
            return None
        return self.refusal({"address": address}, target.namespace, target.name, port, protocol)

    def _find(self, where: str, pod: str) -> _Pod | None:
        return next((p for p in self._pods.values() if (p.namespace, p.name) == (where, pod)), None)

    async def datagrams(self, where: str, pod: str, port: int) -> socket.socket:
        """A UDP socket to a pod of this site. Raises ``OSError``, ``LookupError``."""
        found = self._find(where, pod)
        if found is None:
            raise LookupError(f"pod {pod} is not on this site")
        return await self._runtime.datagrams(found.uid, port)  # type: ignore[no-any-return]

    def _peer(self, pod: _Pod, protocol: str = "TCP") -> Peer:
        # With the label that its mirror has, so that policies may speak of sites.
        own = pod.labels | {CLUSTER_LABEL: self._site}
        return Peer(pod.namespace, pod.name, own, self._namespaces.get(pod.namespace, {}), pod.named_ports.get(protocol, {}))

    def attached(self, pod_uid: str) -> bool:
        return pod_uid in self._pods

    async def close(self) -> None:
        for task in self._setups:
            task.cancel()
        await asyncio.gather(*self._setups, return_exceptions=True)
        await self._relayed.close()
        for key in list(self._pods):
            self.detach(key)
        await self._datagrams.close()

    # -- inside a pod ----------------------------------------------------------------------------------------

    def _plan_of(self, pod: _Pod) -> NamespacePlan:
        """What its namespace's pods see, and the hub's API, where it has a token for it."""
        found = self._plans.get(pod.namespace, NamespacePlan())
        if not pod.api:
            return found
        address = self._addresses.of(_API_KEY)
        route = Route("default", "kubernetes", (), (HUB,))
        return NamespacePlan(((address, API_NAMES), *found.hosts), {**found.routes, (address, API_PORT): route}, found.datagrams)

    async def _set_up(self, pod: _Pod) -> None:
        """Bring one pod's names and listeners to what its namespace's plan says."""
        async with pod.lock:
            if self._pods.get(pod.uid) is not pod:
                return
            loop = asyncio.get_running_loop()
            wanted = self._plan_of(pod)
            try:
                found = self._runtime.network(pod.uid)
                if found.id != pod.network:  # the first time, or made anew
                    pod.close(loop)
                    self._datagrams.detach(pod.uid)
                    pod.network, pod.separate, pod.hosts = found.id, found.separate, None
                hosts = (wanted.hosts if pod.separate else hosts_on_loopback(wanted.hosts)) + pod.aliases
                if pod.hosts != hosts:
                    await self._runtime.set_hosts(pod.uid, hosts)
                    pod.hosts = hosts
                if pod.separate:
                    listeners = {(ANY, port) for _, port in wanted.routes}
                else:
                    listeners = {key for key in wanted.routes if self._may_listen(pod, key, wanted.routes[key])}
                for listener in [key for key in pod.sockets if key not in listeners]:
                    pod.close_one(loop, listener)
                for listener in sorted(listeners - pod.sockets.keys()):
                    sock = await self._listen(pod, listener)
                    if sock is not None and self._pods.get(pod.uid) is not pod:
                        sock.close()
                        return
                    if sock is not None:
                        pod.sockets[listener] = sock
                        loop.add_reader(sock, self._accept, pod, listener, sock)
                await self._listen_for_datagrams(pod, wanted)
            except (OSError, LookupError) as error:
                # The sandbox may be going; the next update tries again where it is not.
                log.debug("services of pod %s cannot be set up: %s", pod.label, error)

    async def _listen_for_datagrams(self, pod: _Pod, wanted: NamespacePlan) -> None:
        ports = {port for _, port in wanted.datagrams}
        if self._pods.get(pod.uid) is not pod:
            return  # detached meanwhile: nobody would close what is made now
        if pod.separate:
            for port in await self._datagrams.listen(pod.uid, ports):
                if ("UDP", port) not in pod.said:
                    pod.said.add(("UDP", port))
                    log.warning(
                        "UDP port %d is in use for a flow to pod %s: it cannot reach a Service on that port for a while",
                        port,
                        pod.label,
                    )
            return
        for listener, route in wanted.datagrams.items():
            if listener not in pod.said:
                pod.said.add(listener)
                log.warning(
                    "pod %s has no network card, so it cannot reach Service %s by UDP (port %d): see the site's PodNetwork",
                    pod.label,
                    route.service,
                    listener[1],
                )

    def _may_listen(self, pod: _Pod, listener: Listener, route: Route) -> bool:
        if listener[1] not in pod.own_ports:
            return True
        if route.service not in pod.own_services and listener not in pod.said:
            pod.said.add(listener)
            log.warning(
                "pod %s listens on port %d itself, so it cannot reach Service %s on that port: give the Service another port",
                pod.label,
                listener[1],
                route.service,
            )
        return False

    async def _listen(self, pod: _Pod, listener: Listener) -> socket.socket | None:
        try:
            address = listener[0] if pod.separate else on_loopback(listener[0])
            found: socket.socket = await self._runtime.listen(pod.uid, address, listener[1])
            return found
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if listener not in pod.said:
                pod.said.add(listener)
                log.warning(
                    "port %d is taken inside pod %s: a Service on that port cannot be reached from it", listener[1], pod.label
                )
            return None

    # -- connections -----------------------------------------------------------------------------------------

    def _accept(self, pod: _Pod, listener: Listener, sock: socket.socket) -> None:
        try:
            accepted, _ = sock.accept()
        except OSError:
            return
        if pod.separate:
            listener = accepted.getsockname()
        route = self._plan_of(pod).routes.get(listener)
        if route is None:
            refuse(accepted)
            return
        self._turn += 1
        # The hub knows the callers that say nothing of themselves by this machine's address alone.
        shares: list[tuple[Hashable, int]] = [(pod.namespace, MAX_OF_NAMESPACE), (pod, MAX_POD_RELAYS)]
        if route.remote == (HUB,):
            shares += [(HUB, MAX_API), ((HUB, pod.namespace), MAX_API_OF_NAMESPACE), ((HUB, pod), MAX_POD_API)]
        relay = partial(self._relay, pod, accepted, route, self._turn)
        self._relayed.begin(accepted, relay, MAX_RELAYS, *shares)

    async def _relay(self, pod: _Pod, accepted: socket.socket, route: Route, turn: int) -> None:
        allowed, why = self._allowed(pod, route, turn)
        for endpoint in allowed[:MAX_TRIES]:
            try:
                target = await self._connect(pod, route, endpoint)
            except (OSError, LookupError, TimeoutError) as error:
                why = str(error) or type(error).__name__
                continue
            if isinstance(target, Stream):
                await relay_stream(accepted, target, partial(self.counts.leave, pod.uid))
            else:
                await relay_sockets(accepted, target)
            return
        log.info("a connection of pod %s to Service %s failed: %s", pod.label, route.service, why)
        refuse(accepted)

    def _allowed(
        self, pod: _Pod, route: Route, turn: int, protocol: str = "TCP"
    ) -> tuple[list[LocalEndpoint | RemoteEndpoint], str]:
        """The endpoints in the order to try, and why there is none."""
        why = "it has no ready endpoint"
        allowed = []
        for endpoint in choices(route, turn, pod.uid):
            refused = self._refused(pod, endpoint, protocol)
            why = refused or why
            allowed += [] if refused else [endpoint]
        return allowed, why

    def _choose(
        self, pod_uid: str, listener: Listener, source: Listener
    ) -> tuple[Route, list[LocalEndpoint | RemoteEndpoint]] | None:
        """Of datagrams."""
        pod = self._pods.get(pod_uid)
        route = self._plans.get(pod.namespace, NamespacePlan()).datagrams.get(listener) if pod is not None else None
        if pod is None or route is None:
            return None
        self._turn += 1
        return route, self._allowed(pod, route, self._turn, "UDP")[0]

    async def _reach(self, pod_uid: str, whose: str, route: Route, endpoint: RemoteEndpoint) -> Stream:
        pod = self._pods.get(pod_uid)
        if pod is None:
            raise LookupError("the pod has ended")
        return await self._stream("datagrams", pod, route, endpoint)

    def _refused(self, pod: _Pod, endpoint: LocalEndpoint | RemoteEndpoint, protocol: str) -> str | None:
        """By NetworkPolicies. What leads to other sites the hub decides, which knows the pods there."""
        if endpoint is HUB:
            where = {"kubernetes.io/metadata.name": "default"} | self._namespaces.get("default", {})
            api = Peer("default", "kubernetes", _API_LABELS, where, {"https": API_PORT})
            return refusal(self._policies, self._peer(pod), api, API_PORT, protocol, (EGRESS,))
        target = self._pods.get(endpoint.pod) if isinstance(endpoint, LocalEndpoint) and self._policies else None
        if target is None:
            return None
        return refusal(self._policies, self._peer(pod), self._peer(target, protocol), endpoint.port, protocol)

    async def _connect(self, pod: _Pod, route: Route, endpoint: LocalEndpoint | RemoteEndpoint) -> socket.socket | Stream:
        """Raises ``OSError`` (``ConnectionError`` from the tunnel too), ``LookupError`` or ``TimeoutError``."""
        async with asyncio.timeout(CONNECT_SECONDS):
            if isinstance(endpoint, LocalEndpoint):
                found: socket.socket = await self._runtime.connect(endpoint.pod, endpoint.port)
                return found
            if endpoint is HUB:
                return await self._api()
            return await self._stream("dial", pod, route, endpoint)

    async def _stream(self, kind: str, pod: _Pod, route: Route, endpoint: RemoteEndpoint) -> Stream:
        """Raises ``OSError``."""
        return await reach(self._dial, kind, route, endpoint, {"pod": pod.name})

    def _forget_unused(self, pods: list[Obj]) -> None:
        used = {address for found in self._plans.values() for address, _ in found.hosts}
        keys = {pod_key(self._site, namespace(pod), name(pod)) for pod in pods}
        self._addresses.keep(keys | {_API_KEY} | {key for key, address in self._addresses.known.items() if address in used})

    def _store(self) -> None:
        if self._addresses.known == self._stored:
            return
        try:
            write_private(self._file, json.dumps(self._addresses.known))
            self._stored, self._unkept = dict(self._addresses.known), ""
        except OSError as error:  # with the next change again
            if str(error) != self._unkept:
                self._unkept = str(error)
                log.warning(
                    "%s cannot be written (%s): pods keep their addresses, but Services may have others when the agent starts "
                    "again; make room on its disk",
                    self._file,
                    error.strerror or error,
                )


def _load(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
