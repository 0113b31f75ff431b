"""New work of a namespace whose Budget is used up is refused, and near the limit its author is warned."""

from __future__ import annotations

from metaos.accounting.budget import asks_for_more, refusal
from metaos.apiserver.cache import WatchCache
from metaos.resources import errors, scheme
from metaos.resources.meta import Obj, controller_of, name, namespace
from metaos.resources.scheme import Kind

_KINDS = frozenset((*scheme.WORKLOADS, scheme.POD))


def admit(cache: WatchCache, kind: Kind, obj: Obj, old: Obj | None) -> list[str]:
    """Warnings. Raises ``ApiError`` 403. What a site mirrors, and what was let in before, is no new work."""
    if kind not in _KINDS or not asks_for_more(obj, old):
        return []
    if kind is scheme.POD and (old is not None or controller_of(obj) is not None or (obj.get("spec") or {}).get("nodeName")):
        return []
    why, warnings = refusal(version.object() for version in cache.range(scheme.BUDGET.resource, namespace(obj)))
    if why:
        raise errors.forbidden(kind.group, kind.plural, name(obj), why)
    return warnings
