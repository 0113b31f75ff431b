"""Addresses of Services: from where they are, which Services have one, and which have ports of the nodes. Pure.

The addresses lie in what only pods' own networks know (see ``metaos.agent.routes``): they are the same at all sites, and are
routed nowhere. Source of what needs what: ``pkg/registry/core/service`` of Kubernetes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from metaos.resources.meta import Obj

#: 100.64.0.0/12, of the shared address space (RFC 6598): as many as Kubernetes allows a range to have.
RANGE = "100.64.0.0/12"
FIRST_ADDRESS, ADDRESSES = (100 << 24) | (64 << 16), 1 << 20
#: As Kubernetes' ``--service-node-port-range``.
NODE_PORTS = range(30000, 32768)
HEADLESS = "None"
#: Where a pod with a token of a ServiceAccount finds the API.
API_NAMES = ("kubernetes.default.svc", "kubernetes.default", "kubernetes.default.svc.cluster.local")
API_PORT = 443
#: On a ServiceExport: the Kubernetes member whose own Service it is.
FROM = "meta-os.eu/from"
#: The condition of a Service for the world outside that says whether, and where, a site answers for it.
EXPOSED = "Exposed"
_SERVICE = "service/"
_DERIVED, _LONGEST = "-clusterset", 63


def dotted(number: int) -> str:
    """An IPv4 address as text."""
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


def allotted(address: str) -> bool:
    """Whether an address is one that the hub gives: neither the first nor the last of the range, as in Kubernetes."""
    parts = address.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and str(int(part)) == part for part in parts):
        return False
    number = 0
    for part in parts:
        if int(part) > 255:
            return False
        number = number << 8 | int(part)
    return FIRST_ADDRESS < number < FIRST_ADDRESS + ADDRESSES - 1


def needs_address(spec: Mapping[str, Any]) -> bool:
    """Whether it has an address of the cluster, or says that it wants none."""
    return bool(spec.get("type", "ClusterIP") != "ExternalName")


def is_headless(spec: Mapping[str, Any]) -> bool:
    return needs_address(spec) and HEADLESS in addresses(spec)[:1]


def own_endpoints(spec: Mapping[str, Any]) -> bool:
    """Whether it is a name alone, of endpoints that somebody else writes."""
    return is_headless(spec) and not spec.get("selector")


def needs_node_ports(spec: Mapping[str, Any]) -> bool:
    if spec.get("type") == "LoadBalancer":
        return spec.get("allocateLoadBalancerNodePorts") is not False
    return spec.get("type") == "NodePort"


def needs_health_port(spec: Mapping[str, Any]) -> bool:
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def from_outside(spec: Mapping[str, Any]) -> bool:
    """Whether it has a policy for what comes from outside."""
    return spec.get("type") in ("NodePort", "LoadBalancer") or bool(spec.get("externalIPs"))


def addresses(spec: Mapping[str, Any]) -> list[str]:
    """The addresses that a Service says it has; ``None`` is one of them."""
    found = list(spec.get("clusterIPs") or ())
    first = spec.get("clusterIP")
    return found or ([first] if first else [])


def dialled(target: Mapping[str, Any]) -> str:
    """What stands for an endpoint's target where a site dials it: a pod's name, ``service/NAME`` for a member's own Service."""
    named = str(target.get("name") or "")
    return _SERVICE + named if target.get("kind") == "Service" and named else named


def service_of(pod: str) -> str:
    """The reverse of :func:`dialled`: a Service's name, empty where it is a pod."""
    return pod.removeprefix(_SERVICE) if pod.startswith(_SERVICE) else ""


def derived_name(service: str) -> str:
    """What an imported Service is called at a Kubernetes member, where its own name is that of the member's pods alone."""
    if len(service) + len(_DERIVED) <= _LONGEST:
        return service + _DERIVED
    return f"{service[: _LONGEST - len(_DERIVED) - 9]}-{hashlib.sha256(service.encode()).hexdigest()[:8]}{_DERIVED}"


def lacks_address(service: Obj) -> bool:
    spec = service.get("spec") or {}
    return needs_address(spec) and not addresses(spec)


def node_ports(spec: Mapping[str, Any]) -> set[int]:
    """Ports of nodes that are a Service's."""
    found = {port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")}
    return found | ({spec["healthCheckNodePort"]} if spec.get("healthCheckNodePort") else set())
