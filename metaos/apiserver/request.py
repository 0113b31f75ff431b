"""What a URL asks for: kind, name, subresource and verb, in the form of the Kubernetes API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.scheme import Kind

_NAMESPACE_SUBRESOURCES = ("status", "finalize")


@dataclass(frozen=True, slots=True)
class Target:
    """``rest`` is what follows the subresource (of ``proxy``), still encoded, with its leading slash or empty."""

    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""


def page_not_found() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def parse(raw_path: str) -> Target:
    """A path below ``/api`` or ``/apis``. Raises ``ApiError`` 404."""
    parts = raw_path.split("/")[1:]
    if parts[0] == "api":
        group, version, below = "", parts[1] if len(parts) > 1 else "", parts[2:]
    else:
        group, version, below = (parts[1], parts[2], parts[3:]) if len(parts) > 2 else ("", "", [])
    while below and below[-1] == "" and "proxy" not in below:
        below = below[:-1]
    if not below:
        raise page_not_found()
    if below[0] == "namespaces" and len(below) > 2 and below[2] not in _NAMESPACE_SUBRESOURCES:
        return _named(group, version, unquote(below[1]), below[2:])
    return _named(group, version, "", below)


def _named(group: str, version: str, namespace: str, below: Sequence[str]) -> Target:
    kind = scheme.by_plural(group, version, below[0])
    if kind is None:
        raise page_not_found()
    subresource = below[2] if len(below) > 2 else ""
    if subresource and subresource not in kind.subresources:
        raise page_not_found()
    if len(below) > 3 and subresource != "proxy":
        raise page_not_found()
    rest = "".join(f"/{p}" for p in below[3:])
    return Target(kind, namespace, unquote(below[1]) if len(below) > 1 else "", subresource, rest)
