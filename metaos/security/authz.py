"""Who may do what: Kubernetes RBAC, and what a member's agent may touch. Pure functions over snapshots.

Source: Kubernetes, "Using RBAC Authorization" and "Using Node Authorization".
"""

from __future__ import annotations

from dataclasses import dataclass

#: Members of this group may do anything (Kubernetes' own name for it).
MASTERS = "system:masters"
#: The agents' group; a member's agent is the user ``system:cluster:NAME``.
CLUSTERS = "system:clusters"
CLUSTER_USER_PREFIX = "system:cluster:"
AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"


@dataclass(frozen=True, slots=True)
class UserInfo:
    """An authenticated caller. A verified client certificate's CN is the name, its Os are the groups."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Attributes:
    """One request as authorisation sees it. ``resource`` is the plural; ``path`` is set instead for URLs that are no
    resource (``/version``). Verbs: get list watch create update patch delete deletecollection."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """``reason`` says why, for the 403's message and for reviews."""

    allowed: bool
    reason: str = ""
