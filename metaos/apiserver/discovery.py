"""Discovery documents: which groups, versions and resources there are. Pure, made from the scheme.

Source: Kubernetes API concepts, "Discovery"; types of ``apidiscovery.k8s.io/v2`` and ``meta/v1`` APIResourceList.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from metaos import __version__
from metaos.apiserver.negotiation import JSON, YAML, not_acceptable, ranges
from metaos.apiserver.routing import PROXY
from metaos.resources.scheme import KINDS, Kind

#: The release of Kubernetes whose API is spoken.
MAJOR, MINOR = "1", "37"
_GROUP = "apidiscovery.k8s.io"

#: Subresource → (verbs, group, version, kind of its body; empty: the object's own).
_SUBRESOURCES: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "status": (("get", "patch", "update"), "", "", ""),
    "scale": (("get", "patch", "update"), "autoscaling", "v1", "Scale"),
    "finalize": (("update",), "", "", ""),
    "approval": (("get", "patch", "update"), "", "", ""),
    "log": (("get",), "", "", ""),
    "exec": (("create", "get"), "", "v1", "PodExecOptions"),
    "attach": (("create", "get"), "", "v1", "PodAttachOptions"),
    "portforward": (("create", "get"), "", "v1", "PodPortForwardOptions"),
    PROXY: (("create", "delete", "get", "patch", "update"), "", "", ""),
    "eviction": (("create",), "policy", "v1", "Eviction"),
    "binding": (("create",), "", "v1", "Binding"),
    "ephemeralcontainers": (("get", "patch", "update"), "", "", ""),
    "tunnel": (("get",), "", "", ""),
}
_PROXY_OPTIONS = {"Pod": "PodProxyOptions", "Service": "ServiceProxyOptions", "Node": "NodeProxyOptions"}


def version() -> dict[str, str]:
    """``/version``."""
    import platform

    return {
        "major": MAJOR,
        "minor": MINOR,
        "emulationMajor": MAJOR,
        "emulationMinor": MINOR,
        "gitVersion": f"v{MAJOR}.{MINOR}.0+nemo-{__version__}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": platform.python_implementation().lower(),
        "platform": f"linux/{ {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(platform.machine(), platform.machine()) }",
    }


def group_versions() -> list[tuple[str, str]]:
    """Every served (group, version), core first, without doubles."""
    return list(dict.fromkeys((kind.group, kind.version) for kind in KINDS))


def kinds_of(group: str, version: str) -> list[Kind]:
    return [kind for kind in KINDS if (kind.group, kind.version) == (group, version)]


# -- one document per group and version ----------------------------------------------------------------------


@cache
def api_versions() -> dict[str, Any]:
    """``/api``."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


@cache
def api_groups() -> dict[str, Any]:
    """``/apis``."""
    groups = dict.fromkeys(group for group, _ in group_versions() if group)
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(group) for group in groups]}


def api_group(group: str) -> dict[str, Any] | None:
    """``/apis/GROUP``."""
    if not group or group not in {g for g, _ in group_versions()}:
        return None
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(group)}


def _group(group: str) -> dict[str, Any]:
    versions = [{"groupVersion": f"{group}/{v}", "version": v} for g, v in group_versions() if g == group]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


@cache
def api_resources(group: str, version: str) -> dict[str, Any] | None:
    """``/api/v1`` and ``/apis/GROUP/VERSION``."""
    kinds = kinds_of(group, version)
    if not kinds:
        return None
    resources: list[dict[str, Any]] = []
    for kind in kinds:
        entry: dict[str, Any] = {
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": list(kind.verbs),
        }
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        resources.append(entry)
        for subresource in kind.subresources:
            verbs, body_group, body_version, body_kind = _body_of(kind, subresource)
            entry = {"name": f"{kind.plural}/{subresource}", "singularName": "", "namespaced": kind.namespaced}
            if body_version and (body_group, body_version) != (kind.group, kind.version):
                entry |= {"group": body_group, "version": body_version}
            resources.append({**entry, "kind": body_kind, "verbs": list(verbs)})
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _body_of(kind: Kind, subresource: str) -> tuple[tuple[str, ...], str, str, str]:
    verbs, group, version, body = _SUBRESOURCES[subresource]
    if subresource == PROXY:
        body = _PROXY_OPTIONS[kind.kind]
    return verbs, group, version, body or kind.kind


# -- everything in one document --------------------------------------------------------------------------------


@cache
def aggregated(core: bool, version: str) -> dict[str, Any]:
    """``/api`` (core) or ``/apis`` as one APIGroupDiscoveryList of ``apidiscovery.k8s.io/VERSION`` (v2 or v2beta1)."""
    items: list[dict[str, Any]] = []
    for group in dict.fromkeys(g for g, _ in group_versions() if bool(g) != core):
        versions = [
            {"version": v, "resources": [_resource(kind) for kind in kinds_of(group, v)], "freshness": "Current"}
            for g, v in group_versions()
            if g == group
        ]
        metadata = {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None}
        items.append({"metadata": metadata, "versions": versions})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": f"{_GROUP}/{version}", "metadata": {}, "items": items}


def _resource(kind: Kind) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    below = []
    for subresource in kind.subresources:
        verbs, group, version, body = _body_of(kind, subresource)
        answer = {"group": group if version else kind.group, "version": version or kind.version, "kind": body}
        below.append({"subresource": subresource, "responseKind": answer, "verbs": list(verbs)})
    if below:
        entry["subresources"] = below
    return entry


def document(path: str, accept: str) -> tuple[dict[str, Any], str] | None:
    """The document at a discovery path (without trailing slash) and its content type; ``None`` where there is none.
    Raises ``ApiError`` 406."""
    parts = path.strip("/").split("/")
    if path in ("/api", "/apis"):
        for each in ranges(accept):
            if each.parameters.get("as") == "APIGroupDiscoveryList" and each.media == JSON:
                wanted = each.parameters.get("v", "")
                if each.parameters.get("g") == _GROUP and wanted in ("v2", "v2beta1"):
                    found = aggregated(path == "/api", wanted)
                    return found, f"{JSON};g={_GROUP};v={wanted};as=APIGroupDiscoveryList"
            elif "as" not in each.parameters and each.media in (JSON, YAML, "*/*", "application/*"):
                break
    plain: dict[str, Any] | None = None
    if path == "/api":
        plain = api_versions()
    elif path == "/apis":
        plain = api_groups()
    elif parts[0] == "api" and len(parts) == 2:
        plain = api_resources("", parts[1])
    elif parts[0] == "apis" and len(parts) == 2:
        plain = api_group(parts[1])
    elif parts[0] == "apis" and len(parts) == 3:
        plain = api_resources(parts[1], parts[2])
    if plain is None:
        return None
    if accept and not any(each.media in (JSON, "*/*", "application/*") for each in ranges(accept)):
        raise not_acceptable()
    return plain, JSON
