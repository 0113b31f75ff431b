"""Which names and addresses the pods of a site see, and where a connection to them may go. Pure functions.

A Service has the address that the hub gave it (from a hub of an earlier release, one of the site), each pod (and so each endpoint
of a headless Service) one of the site; names stand in ``/etc/hosts``. No address is routed anywhere, and those of a site mean
nothing elsewhere. A pod without a network card sees them as loopback addresses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from metaos.resources import meta, services
from metaos.resources.meta import DRAINING, SERVICE_NAME_LABEL, Obj, labels, name, namespace, uid
from metaos.resources.workload import service_selects

#: A site's own addresses: what the hub's Services leave of 100.64.0.0/10 (shared address space, RFC 6598); on a loopback of
#: 127.64.0.0/10.
FIRST_ADDRESS = services.FIRST_ADDRESS + services.ADDRESSES
ADDRESSES = (1 << 22) - services.ADDRESSES

Hosts = tuple[tuple[str, tuple[str, ...]], ...]
#: (address, port)
Listener = tuple[str, int]


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A pod of this site, by uid, and the port that it listens on."""

    pod: str
    port: int
    draining: bool = False


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """A pod of another site."""

    cluster: str
    pod: str
    port: int


@dataclass(frozen=True, slots=True)
class Route:
    """Where connections to one port of a Service may go: local ones first."""

    namespace: str
    service: str
    local: tuple[LocalEndpoint, ...] = ()
    remote: tuple[RemoteEndpoint, ...] = ()
    #: Whether each pod's connections go to the same endpoint, as long as it is there (``sessionAffinity: ClientIP``).
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class Outward:
    """One port of a Service for the world outside, and where connections to it may go. ``node_port``: 0 where it has none."""

    uid: str
    protocol: str
    port: int
    node_port: int
    #: Whether a site answers on ``port``: it is a load balancer, and no other than a site's own is asked for.
    balanced: bool
    route: Route
    #: From where, as blocks of addresses; empty: from everywhere.
    sources: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return bool(self.route.local or self.route.remote)


@dataclass(frozen=True, slots=True)
class NamespacePlan:
    """What every pod of one namespace sees."""

    hosts: Hosts = ()
    routes: Mapping[Listener, Route] = field(default_factory=dict)
    #: Those of UDP.
    datagrams: Mapping[Listener, Route] = field(default_factory=dict)


class Addresses:
    """Addresses by key. Deterministic: a key's hash, or the next free one after it where that is taken."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        found = {key: shared(address) for key, address in (known or {}).items()}
        # An earlier release gave what is the hub's now.
        self.known: dict[str, str] = {key: address for key, address in found.items() if not services.allotted(address)}
        self._taken = set(self.known.values())

    def of(self, key: str) -> str:
        if key not in self.known:
            number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
            while (address := services.dotted(FIRST_ADDRESS + number % ADDRESSES)) in self._taken:
                number += 1
            self.known[key] = address
            self._taken.add(address)
        return self.known[key]

    def keep(self, keys: set[str]) -> None:
        """Give back all others."""
        self.known = {key: address for key, address in self.known.items() if key in keys}
        self._taken = set(self.known.values())


def on_loopback(address: str) -> str:
    """As a pod without a network card sees it."""
    return "127." + address.removeprefix("100.")


def shared(address: str) -> str:
    """The reverse of :func:`on_loopback`."""
    return "100." + address.removeprefix("127.") if address.startswith("127.") else address


def hosts_on_loopback(hosts: Hosts) -> Hosts:
    return tuple((on_loopback(address), names) for address, names in hosts)


def service_key(namespace: str, service: str) -> str:
    return f"service/{namespace}/{service}"


def pod_key(cluster: str, namespace: str, pod: str) -> str:
    return f"pod/{cluster}/{namespace}/{pod}"


def plan(manifests: Iterable[Obj], pods: Iterable[Obj], addresses: Addresses, site: str) -> dict[str, NamespacePlan]:
    """Namespace → what its pods see. ``manifests``: this site's Services, EndpointSlices and workloads (a draining one is
    annotated so); ``pods``: its local pods."""
    given = _Given(manifests, pods, site)
    found: dict[str, tuple[dict[str, list[str]], dict[str, dict[Listener, Route]]]] = {}
    for service in given.services:
        hosts, routes = found.setdefault(namespace(service), ({}, {"TCP": {}, "UDP": {}}))
        _add_service(service, given, addresses, hosts, routes)
    return {
        where: NamespacePlan(tuple((address, tuple(names)) for address, names in sorted(hosts.items())), *routes.values())
        for where, (hosts, routes) in found.items()
    }


def outward(manifests: Iterable[Obj], pods: Iterable[Obj], site: str) -> list[Outward]:
    """What the site's Services have for the world outside, by namespace and name. Arguments as for :func:`plan`."""
    given = _Given(manifests, pods, site)
    found = []
    for service in given.services:
        spec = service.get("spec") or {}
        if spec.get("type") not in ("LoadBalancer", "NodePort"):
            continue
        balanced = spec["type"] == "LoadBalancer" and not spec.get("loadBalancerClass")
        sources = tuple(map(str, spec.get("loadBalancerSourceRanges") or ())) if spec["type"] == "LoadBalancer" else ()
        for port in spec.get("ports") or ():
            local, remote = given.endpoints(service, port)
            if spec.get("externalTrafficPolicy") == "Local":
                remote = []
            route = _route(service, [e for _, e in local], [e for _, e in remote])
            protocol, node_port = str(port.get("protocol") or "TCP"), int(port.get("nodePort") or 0)
            found.append(Outward(uid(service), protocol, int(port["port"]), node_port, balanced, route, sources))
    return found


class _Given:
    """What a site was told, and its pods, by what they are looked up by."""

    def __init__(self, manifests: Iterable[Obj], pods: Iterable[Obj], site: str) -> None:
        self.site = site
        self.services: list[Obj] = []
        self.imported: set[tuple[str, str]] = set()
        self._slices: dict[tuple[str, str], list[Obj]] = {}
        self._draining: set[str] = set()
        self._pods: dict[str, list[Obj]] = {}
        for manifest in manifests:
            kind = manifest.get("kind")
            if kind == "Service":
                self.services.append(manifest)
            elif kind == "ServiceImport":
                self.imported.add((namespace(manifest), name(manifest)))
            elif kind == "EndpointSlice":
                key = namespace(manifest), labels(manifest).get(SERVICE_NAME_LABEL, "")
                self._slices.setdefault(key, []).append(manifest)
            elif DRAINING in meta.annotations(manifest):
                self._draining.add(uid(manifest))
        self.services.sort(key=lambda s: (namespace(s), name(s)))
        for pod in sorted(pods, key=lambda p: (name(p), uid(p))):
            self._pods.setdefault(namespace(pod), []).append(pod)

    def endpoints(self, service: Obj, port: Obj) -> tuple[list[tuple[Obj, LocalEndpoint]], list[tuple[str, RemoteEndpoint]]]:
        """Of one port of a Service: of this site with their pods, of other sites with their pods' names."""
        where, spec = namespace(service), service.get("spec") or {}
        early = bool(spec.get("publishNotReadyAddresses"))
        local = [
            (pod, LocalEndpoint(uid(pod), number, _drains(pod, self._draining)))
            for pod in self._pods.get(where, ())
            if service_selects(service, labels(pod)) and usable(pod, not_ready=early)
            if (number := target_port(port, pod)) is not None
        ]
        slices = self._slices.get((where, name(service)), [])
        return local, list(remote_endpoints(slices, str(port.get("name") or ""), self.site, early))


def _route(service: Obj, local: Iterable[LocalEndpoint], remote: Iterable[RemoteEndpoint]) -> Route:
    sticky = (service.get("spec") or {}).get("sessionAffinity") == "ClientIP"
    return Route(namespace(service), name(service), tuple(local), tuple(remote), sticky)


def _add_service(
    service: Obj,
    given: _Given,
    addresses: Addresses,
    hosts: dict[str, list[str]],
    by_protocol: dict[str, dict[Listener, Route]],
) -> None:
    where, spec, site = namespace(service), service.get("spec") or {}, given.site
    if spec.get("type") == "ExternalName":
        return
    imported = (where, name(service)) in given.imported
    headless = spec.get("clusterIP") == "None"
    if not headless:
        address = str(spec.get("clusterIP") or "")
        if not services.allotted(address):
            address = addresses.of(service_key(where, name(service)))
        hosts.setdefault(address, []).extend(service_names(where, name(service)))
        if imported:
            hosts[address].append(clusterset_name(where, name(service)))
    for port in spec.get("ports") or ():
        routes = by_protocol.get(str(port.get("protocol") or "TCP"))
        if routes is None:
            continue
        local, remote = given.endpoints(service, port)
        if spec.get("internalTrafficPolicy") == "Local" and not headless:
            remote = []
        if not headless:
            routes[(address, int(port["port"]))] = _route(service, [e for _, e in local], [e for _, e in remote])
            continue
        for pod, endpoint in local:
            route = Route(where, name(service), (endpoint,))
            _add_headless(service, site, name(pod), endpoint.port, route, addresses, hosts, routes, imported)
        for pod_name, far in remote:
            route = Route(where, name(service), (), (far,))
            _add_headless(service, far.cluster, pod_name, far.port, route, addresses, hosts, routes, imported)


def _add_headless(
    service: Obj,
    cluster: str,
    pod: str,
    port: int,
    route: Route,
    addresses: Addresses,
    hosts: dict[str, list[str]],
    routes: dict[Listener, Route],
    imported: bool,
) -> None:
    """One endpoint of a headless Service: its own address, under the Service's name and under its own."""
    where = namespace(service)
    address = addresses.of(pod_key(cluster, where, pod))
    names = hosts.setdefault(address, [])
    far = (clusterset_name(where, f"{pod}.{cluster}.{name(service)}"), clusterset_name(where, name(service)))
    own = (*service_names(where, f"{pod}.{name(service)}"), *service_names(where, name(service)))
    for each in own + (far if imported else ()):
        if each not in names:
            names.append(each)
    routes[(address, port)] = route


def service_names(namespace: str, service: str) -> tuple[str, ...]:
    return (service, f"{service}.{namespace}", f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local")


def clusterset_name(namespace: str, service: str) -> str:
    """The name by the Multi-Cluster Services API. Source: KEP-1645."""
    return f"{service}.{namespace}.svc.clusterset.local"


def remote_endpoints(slices: list[Obj], port: str, site: str, early: bool) -> Iterable[tuple[str, RemoteEndpoint]]:
    """Pods at other sites behind the port of this name, by their names. ``early``: also those that are not ready."""
    found: dict[tuple[str, str], RemoteEndpoint] = {}
    for each in slices:
        for offered in each.get("ports") or ():
            if str(offered.get("name") or "") != port or offered.get("port") is None:
                continue
            for endpoint in each.get("endpoints") or ():
                pod = services.dialled(endpoint.get("targetRef") or {})
                cluster = endpoint.get("nodeName") or labels(each).get(meta.CLUSTER_LABEL, "")
                ready = (endpoint.get("conditions") or {}).get("ready")
                if pod and cluster and cluster != site and (early or ready is not False):
                    found[(cluster, pod)] = RemoteEndpoint(cluster, pod, int(offered["port"]))
    return [(pod, found[(cluster, pod)]) for cluster, pod in sorted(found)]


def usable(pod: Obj, *, not_ready: bool = False) -> bool:
    """Whether new connections may go to a pod."""
    if meta.deleting(pod) or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return False
    return not_ready or meta.is_true(pod, "Ready")


def target_port(port: Obj, pod: Obj) -> int | None:
    """The number of a Service port at a pod; ``None`` where the pod has no port of that name."""
    target = port.get("targetPort")
    if target is None or target == "":
        return int(port["port"])
    if isinstance(target, int) or str(target).isdigit():
        return int(target)
    for container in (pod.get("spec") or {}).get("containers") or ():
        for offered in container.get("ports") or ():
            if offered.get("name") == target and offered.get("protocol", "TCP") == port.get("protocol", "TCP"):
                return int(offered["containerPort"])
    return None


def host_aliases(pod: Obj) -> Hosts:
    found = []
    for alias in (pod.get("spec") or {}).get("hostAliases") or ():
        words = [word for name in alias.get("hostnames") or () for word in str(name).split()]
        address = str(alias.get("ip") or "").split()
        if words and len(address) == 1:
            found.append((address[0], tuple(words)))
    return tuple(found)


def own_ports(pod: Obj, services: Iterable[Obj]) -> set[int]:
    """TCP ports that a pod's own processes will most likely listen on: nothing else may listen there, on any address, or
    they could not (a wildcard socket and another address of the same port exclude each other)."""
    spec = pod.get("spec") or {}
    found = set()
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        found |= {int(p["containerPort"]) for p in container.get("ports") or () if p.get("containerPort") and _tcp(p)}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container.get(probe) or {}
            port = (asked.get("httpGet") or asked.get("tcpSocket") or asked.get("grpc") or {}).get("port")
            if port is not None and str(port).isdigit():
                found.add(int(port))
    for service in services:
        if namespace(service) == namespace(pod) and service_selects(service, labels(pod)):
            ports = [port for port in (service.get("spec") or {}).get("ports") or () if _tcp(port)]
            found |= {p for port in ports if (p := target_port(port, pod)) is not None}
    return found


def _tcp(port: Obj) -> bool:
    return bool(port.get("protocol", "TCP") == "TCP")


def _drains(pod: Obj, draining: set[str]) -> bool:
    return any(owner.get("uid") in draining for owner in pod["metadata"].get("ownerReferences") or ())


def choices(route: Route, turn: int, caller: str = "") -> list[LocalEndpoint | RemoteEndpoint]:
    """Endpoints in the order to try: local ones, remote ones, and draining ones only where nothing else is left. ``turn``
    rotates each group, so that connections spread; a sticky route's order depends on who calls alone, and stays when others
    come and go (rendezvous hashing)."""
    groups: tuple[tuple[LocalEndpoint | RemoteEndpoint, ...], ...] = (
        tuple(e for e in route.local if not e.draining),
        route.remote,
        tuple(e for e in route.local if e.draining),
    )
    found: list[LocalEndpoint | RemoteEndpoint] = []
    for group in groups:
        if route.sticky:
            found += sorted(group, key=lambda e: hashlib.sha256(f"{caller} {e}".encode()).digest())
            continue
        start = turn % len(group) if group else 0
        found += group[start:] + group[:start]
    return found
