"""A Kubernetes cluster's capacity, summed over its nodes. Pure. Amounts: milli-CPU, bytes, whole devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from metaos.resources import meta, quantity
from metaos.resources.meta import Obj, is_true

#: Taints that keep pods away.
_KEEPING = ("NoSchedule", "NoExecute")


def usable(node: Obj, known: Iterable[Mapping[str, Any]] = ()) -> bool:
    """Whether a node takes new pods: it is ready, not cordoned, and not tainted. ``known``: taints of the site as a whole; who
    comes to it tolerates them, so at a node they keep nobody away."""
    spec = node.get("spec") or {}
    tolerated = {_taint(each) for each in known}
    kept = any(t.get("effect") in _KEEPING and _taint(t) not in tolerated for t in spec.get("taints") or ())
    return is_true(node, "Ready") and not spec.get("unschedulable") and not kept


def _taint(taint: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(taint.get("key") or ""), str(taint.get("value") or ""), str(taint.get("effect") or "")


def totals(
    nodes: Iterable[Obj],
    limits: Mapping[str, Any],
    taken: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
    taints: Iterable[Mapping[str, Any]] = (),
) -> tuple[dict[str, str], dict[str, str]]:
    """(capacity, allocatable) by resource: of all nodes, and of those that take pods, without what others take there (``taken``,
    by the node's name). ``limits``: what the owner gives at most (``Cluster.spec.capacity``); ``taints``: those of the site
    (``Cluster.spec.taints``). Volumes and huge pages are left out: they are no resource of a site."""
    taints = tuple(taints)
    has: Counter[str] = Counter()
    free: Counter[str] = Counter()
    for node in nodes:
        status = node.get("status") or {}
        gone = taken.get(meta.name(node), {}) if taken else {}
        for total, key in ((has, "capacity"), (free, "allocatable")):
            if total is has or usable(node, taints):
                for resource, amount in (status.get(key) or {}).items():
                    if not resource.startswith(("hugepages-", "ephemeral-storage", "attachable-volumes-")):
                        there = _amount(resource, amount)
                        total[resource] += there if total is has else max(0, there - gone.get(resource, 0))
    for resource in ("cpu", "memory", "pods"):
        has.setdefault(resource, 0)
        free.setdefault(resource, 0)
    for resource, most in limits.items():
        for total in (has, free):
            if resource in total:
                total[resource] = min(total[resource], _amount(resource, most))
    return _quantities(has), _quantities(free)


def _amount(resource: str, amount: Any) -> int:
    return quantity.milli(amount) if resource == "cpu" else quantity.whole(amount)


def _quantities(total: Mapping[str, int]) -> dict[str, str]:
    return {resource: _quantity(resource, amount) for resource, amount in sorted(total.items())}


def _quantity(resource: str, amount: int) -> str:
    if resource == "cpu":
        return quantity.format_milli(amount)
    return quantity.format_bytes(amount // 1024 * 1024) if resource == "memory" else str(amount)


def architecture(nodes: Iterable[Obj]) -> str:
    """``amd64``; several are joined with a comma."""
    found = {str(((n.get("status") or {}).get("nodeInfo") or {}).get("architecture") or "") for n in nodes}
    return ",".join(sorted(found - {""}))
