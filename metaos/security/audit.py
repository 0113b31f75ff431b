"""What the audit log says of one request. Pure.

Never a body, never a query: neither a Secret's content nor a command line can get into it.
"""

from __future__ import annotations

from typing import Any

from metaos.resources.meta import format_time
from metaos.security.authz import Attributes, UserInfo

#: Requests that change nothing and reach into nothing.
_READS = frozenset({"get", "list", "watch"})
#: Reads that nonetheless are connections into a workload.
_CONNECTIONS = frozenset({"exec", "attach", "portforward", "proxy", "tunnel"})
#: Asking about oneself changes nothing either.
_REVIEWS = frozenset({"selfsubjectaccessreviews", "selfsubjectreviews"})


def wanted(asked: Attributes) -> bool:
    """Whether a request belongs into the log: everything that changes something or connects to a workload."""
    if asked.resource in _REVIEWS:
        return False
    return asked.verb not in _READS or asked.subresource in _CONNECTIONS


def event(
    *,
    request: str,
    user: UserInfo,
    impersonated: UserInfo | None,
    asked: Attributes,
    source: str,
    code: int,
    start_time: float,
    duration_seconds: float,
    dry_run: bool,
) -> dict[str, Any]:
    """One line of the log. ``request`` is the id that the answer carried as ``Audit-Id``; ``source`` the peer's address."""
    found: dict[str, Any] = {
        "time": format_time(start_time, micro=True),
        "request": request,
        "user": user.name,
        "groups": list(user.groups),
        "verb": asked.verb,
        "path": asked.path,
        "group": asked.group,
        "resource": asked.resource,
        "subresource": asked.subresource,
        "namespace": asked.namespace,
        "name": asked.name,
        "source": source,
        "code": code,
        "milliseconds": round(duration_seconds * 1000, 1),
    }
    if impersonated is not None:
        found["impersonated"] = impersonated.name
    if dry_run:
        found["dryRun"] = True
    return {key: value for key, value in found.items() if value != ""}
