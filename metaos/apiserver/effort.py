"""How much work a request means, before it is done: what its seats are counted by."""

from __future__ import annotations

from metaos.apiserver.addressing import key_of, stored_kind
from metaos.apiserver.cache import WatchCache
from metaos.apiserver.reading import node_of
from metaos.apiserver.routing import Target
from metaos.apiserver.verbs import Call

#: So many times the work of a list of encoded objects is one that decodes them.
DECODED_COSTS = 4


def objects_of(call: Call, cache: WatchCache) -> int:
    """Objects that a request goes through."""
    target, query = call.target, call.query
    if target.verb not in ("list", "watch", "deletecollection"):
        return 0
    if target.verb == "watch" and query.get("resourceVersion") not in (None, "", "0") and "sendInitialEvents" not in query:
        return 0
    if node := node_of(target.kind, target.namespace, query.get("fieldSelector", "")):
        objects = cache.count_at_node(target.kind.resource, node)
    else:
        objects = cache.count(stored_kind(target.kind).resource, target.namespace)
    limit = query.get("limit", "")
    selected = "labelSelector" in query or "fieldSelector" in query
    if target.verb == "list" and limit.isdecimal() and len(limit) < 8 and not selected:
        objects = min(objects, int(limit) or objects)
    # To show objects in another form they are decoded.
    return objects * DECODED_COSTS if ";as=" in call.request.headers.get("Accept", "") else objects


def stored_bytes(target: Target, cache: WatchCache) -> int:
    """The size of the object that is changed, which is as much work as a body of that size."""
    if target.verb not in ("update", "patch"):
        return 0
    held = cache.get(key_of(stored_kind(target.kind), target.namespace, target.name))
    return len(held.encoded) if held is not None else 0
