"""A Kubernetes cluster's capacity, summed over its nodes. Pure. Amounts: milli-CPU, bytes, whole devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from metaos.resources import quantity
from metaos.resources.meta import Obj, is_true


def usable(node: Obj) -> bool:
    """Whether a node takes new pods: it is ready and not cordoned."""
    return is_true(node, "Ready") and not (node.get("spec") or {}).get("unschedulable")


def totals(nodes: Iterable[Obj], limits: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """(capacity, allocatable) by resource: of all nodes, and of those that take pods. ``limits``: what the owner gives at most
    (``Cluster.spec.capacity``). Volumes and huge pages are left out: they are no resource of a site."""
    has: Counter[str] = Counter()
    free: Counter[str] = Counter()
    for node in nodes:
        status = node.get("status") or {}
        for total, key in ((has, "capacity"), (free, "allocatable")):
            if total is has or usable(node):
                for resource, amount in (status.get(key) or {}).items():
                    if not resource.startswith(("hugepages-", "ephemeral-storage", "attachable-volumes-")):
                        total[resource] += _amount(resource, amount)
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
