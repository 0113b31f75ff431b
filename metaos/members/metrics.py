"""What the pods use, as the cluster's own metrics server says (``metrics.k8s.io``), for ``kubectl top`` at the hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from metaos.http import HttpClient, json_of
from metaos.resources import quantity
from metaos.resources.errors import unavailable
from metaos.resources.meta import Obj, name, namespace

_PODS = "/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods"
#: What metrics servers measure over.
WINDOW_SECONDS = 30.0


async def usage_of(client: HttpClient, pods: Mapping[str, Obj]) -> dict[str, Any]:
    """As :func:`metaos.agent.inventory.by_pod` has it, of these pods by uid. Raises ``ApiError`` 503 where the cluster has no
    metrics server."""
    found: list[dict[str, Any]] = []
    ours = {(namespace(pod), name(pod)) for pod in pods.values()}
    for where in sorted({where for where, _ in ours}):
        path = _PODS.format(where)
        answer = await client.request("GET", path)
        if answer.status in (404, 503):
            raise unavailable("the cluster has no metrics server (it does not serve metrics.k8s.io): install one there")
        found += measured(json_of(answer, f"GET {path}").get("items") or (), ours)
    return {"age": 0.0, "window": WINDOW_SECONDS, "pods": found}


def measured(items: Iterable[Obj], ours: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """Cores and bytes by container, of those pods that are ours; what cannot be read is left out."""
    found = []
    for item in items:
        if (namespace(item), name(item)) in ours:
            containers = {}
            for each in item.get("containers") or ():
                usage = each.get("usage") or {}
                try:
                    amounts = {word: float(quantity.parse(usage.get(word, 0))) for word in ("cpu", "memory")}
                except ValueError:
                    continue
                containers[str(each.get("name"))] = amounts
            found.append({"namespace": namespace(item), "name": name(item), "containers": containers})
    return found
