"""Who a user of the hub is at a cluster, so that the cluster's own RBAC decides about him. Pure.

Two houses name their people independently: a user ``alice`` of the hub, or a service account of it, need not be who has that
name at the cluster. So hub users are other people there, ``nemo:alice`` in the group ``nemo:devs``, unless the cluster's owner
says that both ask one directory. Source: Kubernetes, "User impersonation".
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from metaos.resources.errors import ApiError

PREFIX = "nemo:"
#: Of one user; a server's headers have an end.
MAX_GROUPS, MAX_NAME = 64, 256
#: Names that every cluster gives a meaning of its own.
_SYSTEM = "system:"

Headers = tuple[tuple[str, str], ...]


class Identities(StrEnum):
    """``PREFIXED``: with ``nemo:`` before their names; ``SAME``: as the hub calls them; ``AGENT``: all act as the agent."""

    PREFIXED = "prefixed"
    SAME = "same"
    AGENT = "agent"


def acting_as(user: Any, how: Identities) -> Headers:
    """The headers of a request in the name of a hub's user: ``name`` and ``groups``, as the hub says. Raises ``ApiError`` 403."""
    if how is Identities.AGENT:
        return ()
    name = user.get("name") if isinstance(user, Mapping) else None
    if not isinstance(name, str) or not name:
        raise _refused("the hub does not say in whose name it asks; is it older than this agent?")
    said = user.get("groups")
    groups = [str(group) for group in said] if isinstance(said, list | tuple) else []
    if how is Identities.PREFIXED:
        name, groups = PREFIX + name, [PREFIX + group for group in groups]
    elif name.startswith(_SYSTEM):
        raise _refused(f"{name} of the hub is not {name} of this cluster: only people act here")
    else:
        groups = [group for group in groups if not group.startswith(_SYSTEM)]
    if len(groups) > MAX_GROUPS:
        raise _refused(f"{name} is in {len(groups)} groups, at most {MAX_GROUPS} are carried to a cluster")
    for word in (name, *groups):
        # HTTP drops blanks around a header's value: " system:masters" would arrive as another name.
        if len(word) > MAX_NAME or not word.isascii() or not word.isprintable() or word != word.strip():
            what = f"at most {MAX_NAME} printable ASCII characters, no blank first or last"
            raise _refused(f"{word[:80]!r} is no name that can be carried to a cluster: {what}")
    return (("Impersonate-User", name), *(("Impersonate-Group", group) for group in groups))


def shown(headers: Headers) -> str:
    """For messages: who asks."""
    return headers[0][1] if headers else "the agent"


def _refused(why: str) -> ApiError:
    return ApiError(403, "Forbidden", why)
