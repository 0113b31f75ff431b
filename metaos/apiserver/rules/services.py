"""Services: what a writer left out, and what a Service must mean. Source: ``pkg/apis/core/validation`` and
``pkg/registry/core/service`` of Kubernetes. That an address or port is free is seen when it is given (``allotment``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metaos.apiserver.metadata import DNS_SUBDOMAIN, SUBDOMAIN, dns_label_causes, label_causes
from metaos.apiserver.rules.addresses import address_causes, address_of, block_causes
from metaos.apiserver.rules.pods import port_name_causes
from metaos.apiserver.schema import duplicate, forbidden, invalid, required
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj
from metaos.resources.services import (
    HEADLESS,
    addresses,
    from_outside,
    is_headless,
    needs_address,
    needs_health_port,
    needs_node_ports,
    own_endpoints,
)

_PORT = "must be between 1 and 65535, inclusive"
_FAMILIES = ("ipFamilies", "ipFamilyPolicy")
#: What only Services for the world outside have.
_RANGES = "loadBalancerSourceRanges"
_BALANCED = ("allocateLoadBalancerNodePorts", "loadBalancerClass", _RANGES)


def carry(obj: Obj, old: Obj | None) -> None:
    """In place: what the server has given stays where a writer leaves it out, and goes with what it was for. ``clusterIP`` and
    the first of ``clusterIPs`` are one thing; who writes one of them means both."""
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    before = (old or {}).get("spec") or {}
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    if not before:
        return
    if spec.get("clusterIP", "") != before.get("clusterIP", "") and spec.get("clusterIPs") == before.get("clusterIPs"):
        # An older client changed what it knows.
        spec["clusterIPs"] = [spec["clusterIP"]] if spec.get("clusterIP") else []
    _stay(spec, before)
    _go(spec, before)
    for key in [key for key in ("clusterIPs", "clusterIP") if key in spec and not spec[key]]:
        del spec[key]


def _stay(spec: dict[str, Any], before: dict[str, Any]) -> None:
    if needs_address(spec) and needs_address(before):
        for key in ("clusterIP", "clusterIPs", *_FAMILIES):
            if not spec.get(key) and before.get(key):
                spec[key] = before[key]
    if needs_node_ports(spec) and needs_node_ports(before):
        held = {(port.get("protocol"), port.get("port")): port.get("nodePort") for port in before.get("ports") or ()}
        taken = {port.get("nodePort") for port in spec.get("ports") or ()}
        for port in spec.get("ports") or ():
            kept = held.get((port.get("protocol"), port.get("port")))
            if kept and not port.get("nodePort") and kept not in taken:
                port["nodePort"] = kept
    if needs_health_port(spec) and needs_health_port(before) and before.get("healthCheckNodePort"):
        spec.setdefault("healthCheckNodePort", before["healthCheckNodePort"])


def _go(spec: dict[str, Any], before: dict[str, Any]) -> None:
    """What the new type does not have, unless it was just written."""
    if needs_address(before) and not needs_address(spec):
        if addresses(spec) == addresses(before):
            spec.pop("clusterIP", None)
            spec.pop("clusterIPs", None)
        _drop_same(spec, before, *_FAMILIES, "internalTrafficPolicy")
    if needs_node_ports(before) and not needs_node_ports(spec):
        same = [p.get("nodePort") for p in spec.get("ports") or ()] == [p.get("nodePort") for p in before.get("ports") or ()]
        for port in spec.get("ports") or () if same else ():
            port.pop("nodePort", None)
    if not needs_health_port(spec):
        _drop_same(spec, before, "healthCheckNodePort")
    if not from_outside(spec):
        _drop_same(spec, before, "externalTrafficPolicy")
    if spec.get("type") != "LoadBalancer":
        _drop_same(spec, before, "allocateLoadBalancerNodePorts", "loadBalancerClass")


def _drop_same(spec: dict[str, Any], before: dict[str, Any], *keys: str) -> None:
    for key in keys:
        if key in spec and spec[key] == before.get(key):
            del spec[key]


def service(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    before = (old or {}).get("spec") or {}
    ports = spec.get("ports") or []
    if not ports and needs_address(spec) and not is_headless(spec):
        yield required("spec.ports")
    yield from _type(spec, before)
    yield from _ports(ports)
    yield from label_causes(spec.get("selector"), "spec.selector")
    seconds = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds")
    if seconds is not None and not 0 < seconds <= 86400:
        where = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        yield invalid(where, seconds, "must be greater than 0 and less than 86400")
    yield from _node_ports(spec)
    yield from _outside(spec, before)
    if needs_address(spec):
        yield from _addresses(spec, before)
        yield from _families(spec, before)


def status_causes(obj: Obj, old: Obj) -> Iterator[Cause]:
    """Of a write of the status."""
    said, held = ((each.get("status") or {}).get("loadBalancer") or {} for each in (obj, old))
    if said.get("ingress") and said != held and (obj.get("spec") or {}).get("type") != "LoadBalancer":
        yield forbidden("status.loadBalancer.ingress", "may only be used when `spec.type` is 'LoadBalancer'")


def _type(spec: dict[str, Any], before: dict[str, Any]) -> Iterator[Cause]:
    kind = spec.get("type", "ClusterIP")
    if kind in ("NodePort", "LoadBalancer") and is_headless(spec):
        yield invalid("spec.clusterIPs[0]", HEADLESS, f"may not be set to 'None' for {kind} services")
    if kind != "ExternalName":
        return
    for key in ("clusterIPs", *_FAMILIES):
        if spec.get(key):
            yield forbidden(f"spec.{key}", "may not be set for ExternalName services")
    if not spec.get("externalName"):
        yield required("spec.externalName")
    elif not SUBDOMAIN.match(spec["externalName"].removesuffix(".")):
        yield invalid("spec.externalName", spec["externalName"], DNS_SUBDOMAIN)


def _ports(ports: list[dict[str, Any]]) -> Iterator[Cause]:
    names: set[str] = set()
    pairs: set[tuple[Any, Any]] = set()
    for i, port in enumerate(ports):
        path = f"spec.ports[{i}]"
        if not isinstance(port.get("port"), int) or not 0 < port["port"] < 65536:
            yield invalid(f"{path}.port", port.get("port") or 0, _PORT)
        target = port.get("targetPort")
        if isinstance(target, int) and not 0 < target < 65536:
            yield invalid(f"{path}.targetPort", target, _PORT)
        elif isinstance(target, str):
            yield from port_name_causes(target, f"{path}.targetPort")
        name = port.get("name") or ""
        if len(ports) > 1 and not name:
            yield required(f"{path}.name")
        elif name:
            yield from dns_label_causes(name, f"{path}.name")
        if name in names and name:
            yield duplicate(f"{path}.name", name)
        if (port.get("port"), port.get("protocol")) in pairs:
            yield duplicate(path, {key: port[key] for key in ("protocol", "port") if key in port})
        names.add(name)
        pairs.add((port.get("port"), port.get("protocol")))


def _node_ports(spec: dict[str, Any]) -> Iterator[Cause]:
    pairs: set[tuple[Any, Any]] = set()
    for i, port in enumerate(spec.get("ports") or ()):
        number, path = port.get("nodePort"), f"spec.ports[{i}].nodePort"
        if not number:
            continue
        if spec.get("type", "ClusterIP") == "ClusterIP":
            yield forbidden(path, "may not be used when `type` is 'ClusterIP'")
        if (number, port.get("protocol")) in pairs:
            yield duplicate(path, number)
        pairs.add((number, port.get("protocol")))


def _outside(spec: dict[str, Any], before: dict[str, Any]) -> Iterator[Cause]:
    if spec.get("type") != "LoadBalancer":
        for key in _BALANCED:
            if spec.get(key) not in (None, "", []) and spec[key] != before.get(key):
                yield forbidden(f"spec.{key}", "may only be used when `type` is 'LoadBalancer'")
    elif before.get("type") == "LoadBalancer" and spec.get("loadBalancerClass") != before.get("loadBalancerClass"):
        yield invalid("spec.loadBalancerClass", spec.get("loadBalancerClass"), "may not change once set")
    if spec.get("type") == "LoadBalancer" and spec.get(_RANGES) != before.get(_RANGES):
        held = before.get(_RANGES) or ()
        for i, block in enumerate(spec.get(_RANGES) or ()):
            if block not in held:
                yield from block_causes(block.strip(), f"spec.{_RANGES}[{i}]")
    policy = spec.get("externalTrafficPolicy")
    if policy and not from_outside(spec):
        yield invalid("spec.externalTrafficPolicy", policy, "may only be set for externally-accessible services")
    health = spec.get("healthCheckNodePort") or 0
    if health and not needs_health_port(spec):
        why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        yield invalid("spec.healthCheckNodePort", health, why)
    elif needs_health_port(spec) and needs_health_port(before) and health != (before.get("healthCheckNodePort") or health):
        yield invalid("spec.healthCheckNodePort", health, "field is immutable")


def _addresses(spec: dict[str, Any], before: dict[str, Any]) -> Iterator[Cause]:
    found = spec.get("clusterIPs") or []
    if found and not spec.get("clusterIP"):
        yield required("spec.clusterIP")
    if found and spec.get("clusterIP") and found[0] != spec["clusterIP"]:
        yield invalid("spec.clusterIPs", found, "first value must match `clusterIP`")
    if HEADLESS in found and len(found) > 1:
        yield invalid("spec.clusterIPs", found, "'None' must be the first and only value")
        return
    held = addresses(before)
    new = [(i, each) for i, each in enumerate(found) if each != HEADLESS and each not in held]
    wrong = [cause for i, each in new for cause in address_causes(each, f"spec.clusterIPs[{i}]")]
    yield from wrong
    if len(found) > 2:
        yield invalid("spec.clusterIPs", found, "may only hold up to 2 values")
    if wrong:
        return
    versions = [parsed.version for each in found if (parsed := address_of(each))]
    if len(versions) == 2 and versions[0] == versions[1]:
        yield invalid("spec.clusterIPs", found, "may specify no more than one IP for each IP family")
    if not needs_address(before) or not held or (HEADLESS in held and HEADLESS in found):
        return
    for i, address in enumerate(held):
        if i < len(found) and found[i] != address:
            yield invalid(f"spec.clusterIPs[{i}]", found, "may not change once set")
    if not found:
        yield invalid("spec.clusterIPs[0]", found, "primary clusterIP can not be unset")


def _families(spec: dict[str, Any], before: dict[str, Any]) -> Iterator[Cause]:
    """There are IPv4 addresses only, as in a cluster with one stack. Who brings its own endpoints may have both families."""
    families = spec.get("ipFamilies") or []
    if len(families) != len(set(families)):
        yield duplicate("spec.ipFamilies", families)
    if spec.get("ipFamilyPolicy") == "RequireDualStack" != before.get("ipFamilyPolicy") and not own_endpoints(spec):
        yield invalid("spec.ipFamilyPolicy", "RequireDualStack", "this cluster is not configured for dual-stack services")
    if is_headless(spec) or families == before.get("ipFamilies"):
        return
    for i, family in enumerate(families):
        if family == "IPv6":
            yield invalid(f"spec.ipFamilies[{i}]", family, "not configured on this cluster")
