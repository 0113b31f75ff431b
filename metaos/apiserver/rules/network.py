"""Ingress, IngressClass and NetworkPolicy. Source: ``pkg/apis/networking/validation`` of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address

from metaos.apiserver.metadata import DNS_SUBDOMAIN, SUBDOMAIN, dns_label_causes
from metaos.apiserver.rules.addresses import block_causes, block_of
from metaos.apiserver.rules.pods import PORT_RANGE, port_name_causes
from metaos.apiserver.rules.selecting import selector_causes
from metaos.apiserver.schema import forbidden, invalid, required
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj

_WILDCARD = re.compile(r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")


def ingress(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    rules = spec.get("rules") or []
    if not rules and spec.get("defaultBackend") is None:
        yield invalid("spec", rules, "either `defaultBackend` or `rules` must be specified")
    if spec.get("defaultBackend") is not None:
        yield from _backend(spec["defaultBackend"], "spec.defaultBackend")
    for i, rule in enumerate(rules):
        path = f"spec.rules[{i}]"
        yield from _host(rule.get("host") or "", f"{path}.host")
        http = rule.get("http")
        if http is None:
            continue
        if not http.get("paths"):
            yield required(f"{path}.http.paths")
        for j, each in enumerate(http.get("paths") or ()):
            yield from _path(each, f"{path}.http.paths[{j}]")
    for i, tls in enumerate(spec.get("tls") or ()):
        if tls.get("secretName") and not SUBDOMAIN.match(tls["secretName"]):
            yield invalid(f"spec.tls[{i}].secretName", tls["secretName"], DNS_SUBDOMAIN)
        for j, host in enumerate(tls.get("hosts") or ()):
            yield from _host(host, f"spec.tls[{i}].hosts[{j}]")


def _host(host: str, path: str) -> Iterator[Cause]:
    if not host:
        return
    try:
        ip_address(host)
        yield invalid(path, host, "must be a DNS name, not an IP address")
        return
    except ValueError:
        pass
    if "*" in host:
        if not _WILDCARD.match(host):
            yield invalid(
                path,
                host,
                "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of "
                "lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', "
                "regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            )
    elif not SUBDOMAIN.match(host):
        yield invalid(path, host, DNS_SUBDOMAIN)


def _path(each: Obj, path: str) -> Iterator[Cause]:
    kind = each.get("pathType")
    if not kind:
        yield required(f"{path}.pathType", "pathType must be specified")
        return
    text = each.get("path") or ""
    if kind in ("Exact", "Prefix") or (kind == "ImplementationSpecific" and text):
        if not text.startswith("/"):
            yield invalid(f"{path}.path", text, "must be an absolute path")
        for sequence in ("//", "/./", "/../", "%2f", "%2F"):
            if sequence in text and kind != "ImplementationSpecific":
                yield invalid(f"{path}.path", text, f"must not contain '{sequence}'")
        for end in ("/..", "/."):
            if text.endswith(end) and kind != "ImplementationSpecific":
                yield invalid(f"{path}.path", text, f"cannot end with '{end}'")
    yield from _backend(each.get("backend") or {}, f"{path}.backend")


def _backend(backend: Obj, path: str) -> Iterator[Cause]:
    service, resource = backend.get("service"), backend.get("resource")
    if resource is not None and service is not None:
        yield invalid(path, "", "cannot set both resource and service backends")
    elif service is not None:
        if not service.get("name"):
            yield required(f"{path}.service.name")
        else:
            yield from dns_label_causes(service["name"], f"{path}.service.name")
        port = service.get("port") or {}
        if port.get("name") and port.get("number"):
            yield invalid(path, "", "cannot set both port name & port number")
        elif not port.get("name") and not port.get("number"):
            yield required(path, "port name or number is required")
        elif port.get("name"):
            yield from port_name_causes(port["name"], f"{path}.service.port.name")
        elif not 0 < port["number"] < 65536:
            yield invalid(f"{path}.service.port.number", port["number"], PORT_RANGE)
    elif resource is None:
        yield invalid(path, "", "resource or service backend is required")


def ingress_class(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    controller = (obj.get("spec") or {}).get("controller") or ""
    before = ((old or {}).get("spec") or {}).get("controller")
    if old is None and "/" not in controller:
        yield invalid("spec.controller", controller, 'must be a domain-prefixed path (such as "acme.io/foo")')
    if old is not None and controller != before:
        yield invalid("spec.controller", controller, "field is immutable")


def network_policy(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    held = set(_blocks((old or {}).get("spec") or {}))
    yield from selector_causes(spec.get("podSelector"), "spec.podSelector")
    for field, side in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(spec.get(field) or ()):
            path = f"spec.{field}[{i}]"
            for j, port in enumerate(rule.get("ports") or ()):
                yield from _port(port, f"{path}.ports[{j}]")
            for j, peer in enumerate(rule.get(side) or ()):
                yield from _peer(peer, f"{path}.{side}[{j}]", held)
    types = spec.get("policyTypes") or []
    if len(types) > 2:
        yield invalid("spec.policyTypes", types, "may not specify more than two policyTypes")


def _port(port: Obj, path: str) -> Iterator[Cause]:
    number, end = port.get("port"), port.get("endPort")
    if isinstance(number, int) and not 0 < number < 65536:
        yield invalid(f"{path}.port", number, PORT_RANGE)
    elif isinstance(number, str):
        yield from port_name_causes(number, f"{path}.port")
    if end is not None:
        if number is None or isinstance(number, str):
            yield invalid(f"{path}.endPort", end, "may not be specified when `port` is not a number")
        elif end < number:
            yield invalid(f"{path}.endPort", end, "must be greater than or equal to `port`")


def _blocks(spec: Obj) -> Iterator[str]:
    """Those that a policy names."""
    for field, side in (("ingress", "from"), ("egress", "to")):
        for rule in spec.get(field) or ():
            for peer in rule.get(side) or ():
                block = peer.get("ipBlock") or {}
                yield from (block.get("cidr") or "", *(block.get("except") or ()))


def _peer(peer: Obj, path: str, held: set[str]) -> Iterator[Cause]:
    yield from selector_causes(peer.get("podSelector"), f"{path}.podSelector")
    yield from selector_causes(peer.get("namespaceSelector"), f"{path}.namespaceSelector")
    block = peer.get("ipBlock")
    if block is not None:
        yield from _block(block, f"{path}.ipBlock", held)
        if "podSelector" in peer or "namespaceSelector" in peer:
            yield forbidden(path, "may not specify both ipBlock and another peer")
    elif "podSelector" not in peer and "namespaceSelector" not in peer:
        yield required(path, "must specify a peer")


def _block(block: Obj, path: str, held: set[str]) -> Iterator[Cause]:
    """``held``: what stood in the policy before."""
    text = block.get("cidr") or ""
    if not text:
        yield required(f"{path}.cidr")
        return
    whole = block_of(text)
    if text not in held:
        yield from block_causes(text, f"{path}.cidr")
    if whole is None:
        return
    for i, each in enumerate(block.get("except") or ()):
        part = block_of(each)
        if each not in held:
            yield from block_causes(each, f"{path}.except[{i}]")
        if part is not None and (part.version != whole.version or part == whole or not part.subnet_of(whole)):  # type: ignore[arg-type]
            yield invalid(f"{path}.except[{i}]", each, "must be a strict subset of `cidr`")
