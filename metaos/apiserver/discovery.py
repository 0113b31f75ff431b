"""Discovery documents: which groups, versions and resources there are. Pure.

Source: Kubernetes API concepts, "Discovery"; types of ``apidiscovery.k8s.io/v2`` and ``meta/v1`` APIResourceList.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from metaos import __version__
from metaos.apiserver.negotiation import JSON, YAML, not_acceptable, ranges
from metaos.apiserver.routing import PROXY
from metaos.resources.meta import GROUP, VERSION
from metaos.resources.scheme import Kind

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
    "token": (("create",), "authentication.k8s.io", "v1", "TokenRequest"),
    "ephemeralcontainers": (("get", "patch", "update"), "", "", ""),
    "tunnel": (("get",), "", "", ""),
    "command": (("create",), GROUP, VERSION, "DeviceCommand"),
    "credential": (("create",), GROUP, VERSION, "DeviceCredential"),
    "enrolment": (("create",), GROUP, VERSION, "DeviceEnrolment"),
    "live": (("get",), "", "", ""),
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


class Discovery:
    """What is told of ``kinds``. Documents are made when they are first asked for; other kinds are another object's."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        #: Every (group, version), core first, with its kinds.
        self.versions: dict[tuple[str, str], list[Kind]] = {}
        for kind in kinds:
            self.versions.setdefault((kind.group, kind.version), []).append(kind)
        self._made: dict[tuple[object, ...], dict[str, Any] | None] = {}

    # -- one document per group and version ------------------------------------------------------------------

    def api_groups(self) -> dict[str, Any]:
        """``/apis``."""
        groups = dict.fromkeys(group for group, _ in self.versions if group)
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [self._group(group) for group in groups]}

    def api_group(self, group: str) -> dict[str, Any] | None:
        """``/apis/GROUP``."""
        if not group or group not in {g for g, _ in self.versions}:
            return None
        return {"kind": "APIGroup", "apiVersion": "v1", **self._group(group)}

    def _group(self, group: str) -> dict[str, Any]:
        versions = [{"groupVersion": f"{group}/{v}", "version": v} for g, v in self.versions if g == group]
        return {"name": group, "versions": versions, "preferredVersion": versions[0]}

    def api_resources(self, group: str, version: str) -> dict[str, Any] | None:
        """``/api/v1`` and ``/apis/GROUP/VERSION``."""
        kinds = self.versions.get((group, version))
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

    # -- everything in one document --------------------------------------------------------------------------

    def aggregated(self, core: bool, version: str) -> dict[str, Any]:
        """``/api`` (core) or ``/apis`` as one APIGroupDiscoveryList of ``apidiscovery.k8s.io/VERSION`` (v2 or v2beta1)."""
        items: list[dict[str, Any]] = []
        for group in dict.fromkeys(g for g, _ in self.versions if bool(g) != core):
            versions = [
                {"version": v, "resources": [_resource(kind) for kind in kinds], "freshness": "Current"}
                for (g, v), kinds in self.versions.items()
                if g == group
            ]
            metadata = {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None}
            items.append({"metadata": metadata, "versions": versions})
        return {"kind": "APIGroupDiscoveryList", "apiVersion": f"{_GROUP}/{version}", "metadata": {}, "items": items}

    def document(self, path: str, accept: str) -> tuple[dict[str, Any], str] | None:
        """The document at a discovery path (without trailing slash) and its content type; ``None`` where there is none.
        Raises ``ApiError`` 406."""
        if path in ("/api", "/apis"):
            for each in ranges(accept):
                if each.parameters.get("as") == "APIGroupDiscoveryList" and each.media == JSON:
                    wanted = each.parameters.get("v", "")
                    if each.parameters.get("g") == _GROUP and wanted in ("v2", "v2beta1"):
                        found = self._once((path, wanted), partial(self.aggregated, path == "/api", wanted))
                        return found or {}, f"{JSON};g={_GROUP};v={wanted};as=APIGroupDiscoveryList"
                elif "as" not in each.parameters and each.media in (JSON, YAML, "*/*", "application/*"):
                    break
        plain = self._plain(path)
        if plain is None:
            return None
        if accept and not any(each.media in (JSON, "*/*", "application/*") for each in ranges(accept)):
            raise not_acceptable()
        return plain, JSON

    def _plain(self, path: str) -> dict[str, Any] | None:
        parts = path.strip("/").split("/")
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        if path == "/apis":
            return self._once((path,), self.api_groups)
        if parts[0] == "api" and len(parts) == 2:
            group, version = "", parts[1]
        elif parts[0] == "apis" and len(parts) == 2:
            return self.api_group(parts[1])
        elif parts[0] == "apis" and len(parts) == 3:
            group, version = parts[1], parts[2]
        else:
            return None
        if (group, version) not in self.versions:
            return None
        return self._once((group, version), lambda: self.api_resources(group, version))

    def _once(self, key: tuple[object, ...], make: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _body_of(kind: Kind, subresource: str) -> tuple[tuple[str, ...], str, str, str]:
    verbs, group, version, body = _SUBRESOURCES[subresource]
    if subresource == PROXY:
        body = _PROXY_OPTIONS[kind.kind]
    return verbs, group, version, body or kind.kind


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
