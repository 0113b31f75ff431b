"""Which connections NetworkPolicies allow. A pure function: the hub and every site decide alike.

As Kubernetes has it: a pod that no policy selects for a direction may have every connection in it; one that some select
has those that at least one of their rules allows. Both ends must allow a connection. A pod always reaches itself.
Pods' addresses are local to a site and mean nothing elsewhere, so an ``ipBlock`` stands for pods only where it holds
all of their addresses; for who comes from outside it means what it says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from metaos.resources.meta import Obj, label_selector, name, namespace

#: Where the addresses of all pods lie (100.64.0.0/10).
_POD_ADDRESSES = ((100 << 24) | (64 << 16), 10)

INGRESS, EGRESS = "Ingress", "Egress"


@dataclass(frozen=True, slots=True)
class Peer:
    """A pod, as policies see it. ``ports``: its named ports, of the protocol in question."""

    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    #: Of who comes from outside of all clusters: an IPv4 address, or a block where it is one of many. It is no pod then.
    address: str = ""


def refusal(
    policies: Iterable[Obj],
    source: Peer,
    destination: Peer,
    port: int,
    protocol: str = "TCP",
    directions: Collection[str] = (EGRESS, INGRESS),
) -> str | None:
    """Why a connection (or, by UDP, a datagram) to a pod's port is not allowed, or nothing. ``policies``: at least those of both
    namespaces. ``directions``: those that are looked at; no policy selects what is no pod."""
    if (source.namespace, source.name) == (destination.namespace, destination.name):
        return None
    known = list(policies)
    for direction, own, other in ((EGRESS, source, destination), (INGRESS, destination, source)):
        applying = [policy for policy in known if direction in directions and _applies(policy, own, direction)]
        if applying and not any(_allows(policy, direction, other, destination, port, protocol) for policy in applying):
            names = ", ".join(sorted(name(policy) for policy in applying))
            end = "to" if direction == EGRESS else "from"
            return (
                f"NetworkPolicies of namespace {own.namespace} ({names}) allow pod {own.name} no {direction.lower()} {end} "
                f"{_called(other)} on port {port}{'' if protocol == 'TCP' else '/' + protocol}"
            )
    return None


def _called(peer: Peer) -> str:
    return f"pod {peer.namespace}/{peer.name}" if peer.namespace else peer.address or "outside"


def _applies(policy: Obj, pod: Peer, direction: str) -> bool:
    spec = policy.get("spec") or {}
    return (
        namespace(policy) == pod.namespace
        and direction in policy_types(spec)
        and label_selector(spec.get("podSelector") or {})(pod.labels)
    )


def policy_types(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """As stated; by default ingress, and egress where there are rules for it."""
    stated = spec.get("policyTypes")
    return tuple(stated) if stated else (INGRESS, EGRESS) if spec.get("egress") else (INGRESS,)


def _allows(policy: Obj, direction: str, other: Peer, destination: Peer, port: int, protocol: str) -> bool:
    rules = (policy.get("spec") or {}).get(direction.lower()) or ()
    word = "from" if direction == INGRESS else "to"
    return any(
        _has_port(rule.get("ports"), destination, port, protocol)
        and (not rule.get(word) or any(_is_peer(peer, namespace(policy), other) for peer in rule[word]))
        for rule in rules
    )


def _has_port(ports: Iterable[Mapping[str, Any]] | None, destination: Peer, port: int, protocol: str) -> bool:
    if not ports:
        return True
    for each in ports:
        wanted = each.get("port")
        if (each.get("protocol") or "TCP") != protocol:
            continue
        if wanted is None:
            return True
        if isinstance(wanted, str):
            if destination.ports.get(wanted) == port:
                return True
        elif wanted <= port <= (each.get("endPort") or wanted):
            return True
    return False


def _is_peer(peer: Mapping[str, Any], own_namespace: str, other: Peer) -> bool:
    if peer.get("ipBlock") is not None:
        return holds(peer["ipBlock"], _ipv4(other.address)) if other.address else holds(peer["ipBlock"], _POD_ADDRESSES)
    if other.address:
        return False
    pods, namespaces = peer.get("podSelector"), peer.get("namespaceSelector")
    if namespaces is None and other.namespace != own_namespace:
        return False
    if namespaces is not None and not label_selector(namespaces)(other.namespace_labels):
        return False
    return pods is None or label_selector(pods)(other.labels)


def holds_pods(block: Mapping[str, Any]) -> bool:
    """Whether a block holds every address that a pod can have."""
    return holds(block, _POD_ADDRESSES)


def holds(block: Mapping[str, Any], addresses: tuple[int, int] | None) -> bool:
    """Whether an ``ipBlock`` holds all of these addresses (the first, and how many bits they share)."""
    cidr = _ipv4(str(block.get("cidr") or ""))
    if addresses is None or cidr is None or not _within(addresses, cidr):
        return False
    spared = (_ipv4(str(each)) for each in block.get("except") or ())
    return not any(each is not None and (_within(each, addresses) or _within(addresses, each)) for each in spared)


def in_ranges(address: str, ranges: Iterable[str]) -> bool:
    """Whether one of these blocks holds an IPv4 address."""
    return any(holds({"cidr": each}, _ipv4(address)) for each in ranges)


def _ipv4(cidr: str) -> tuple[int, int] | None:
    address, slash, bits = cidr.partition("/")
    bits = bits if slash else "32"
    parts = address.split(".")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) < 256 for part in (*parts, bits)) or int(bits) > 32:
        return None
    return sum(int(part) << shift for part, shift in zip(parts, (24, 16, 8, 0), strict=True)), int(bits)


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner[1] >= outer[1] and (inner[0] ^ outer[0]) >> (32 - outer[1]) == 0


def named_ports(pod: Obj, protocol: str = "TCP") -> dict[str, int]:
    """The named ports of a pod's containers."""
    found: dict[str, int] = {}
    for container in (pod.get("spec") or {}).get("containers") or ():
        for port in container.get("ports") or ():
            if port.get("name") and port.get("protocol", "TCP") == protocol:
                found.setdefault(str(port["name"]), int(port["containerPort"]))
    return found
