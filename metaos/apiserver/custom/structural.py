"""What a structural schema does to an object: prune, default, and what server-side apply goes by. Pure.

Source: ``k8s.io/apiextensions-apiserver/pkg/apiserver/schema`` (pruning, defaulting, listtype, objectmeta).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from metaos.apiserver.schema import ANY, Node, node_of
from metaos.resources import scheme

Schema = Mapping[str, Any]

PRESERVE = "x-kubernetes-preserve-unknown-fields"
EMBEDDED = "x-kubernetes-embedded-resource"
INT_OR_STRING = "x-kubernetes-int-or-string"
#: What every resource has and no schema describes.
TYPE_FIELDS = ("apiVersion", "kind", "metadata")
_EMPTY: Schema = {}


def child_of(schema: Schema, key: str) -> Schema | None:
    """The schema of a field or of a map's values, ``None`` where nothing is said of it."""
    found = (schema.get("properties") or _EMPTY).get(key)
    if found is None:
        additional = schema.get("additionalProperties")
        found = additional if isinstance(additional, dict) else None
    return found


def prune(value: Any, schema: Schema, unknown: list[str], path: str = "", *, root: bool = False) -> None:
    """Removes in place what the schema does not know; the paths of it are appended to ``unknown``."""
    if isinstance(value, list):
        items = schema.get("items")
        for i, item in enumerate(value):
            if isinstance(items, dict):
                prune(item, items, unknown, f"{path}[{i}]")
        return
    if not isinstance(value, dict):
        return
    resource = root or bool(schema.get(EMBEDDED))
    keep = bool(schema.get(PRESERVE)) or schema.get("additionalProperties") is True
    for key in list(value):
        if resource and key in TYPE_FIELDS:
            continue
        below = child_of(schema, key)
        where = f"{path}.{key}" if path else key
        if below is not None:
            prune(value[key], below, unknown, where)
        elif not keep:
            del value[key]
            unknown.append(where)


def default(value: Any, schema: Schema) -> None:
    """Fills what is absent, in place, and takes out nulls that may not be."""
    if isinstance(value, list):
        items = schema.get("items")
        if isinstance(items, dict):
            for item in value:
                default(item, items)
        return
    if not isinstance(value, dict):
        return
    for key, below in (schema.get("properties") or _EMPTY).items():
        usual = below.get("default")
        if usual is not None and (key not in value or (value[key] is None and not below.get("nullable"))):
            value[key] = copy.deepcopy(usual)
    for key in list(value):
        below = child_of(schema, key)
        if below is None:
            continue
        if value[key] is None and not below.get("nullable"):
            del value[key]
        else:
            default(value[key], below)


def has_defaults(schema: Any) -> bool:
    """Whether reading an old object may add something to it."""
    if isinstance(schema, list):
        return any(has_defaults(each) for each in schema)
    if not isinstance(schema, dict):
        return False
    return "default" in schema or any(has_defaults(each) for each in schema.values())


# -- server-side apply -----------------------------------------------------------------------------------------


def node(schema: Schema) -> Node:
    """The root of a kind."""
    found = _node(schema)
    found.kind = "object"
    metadata = node_of(scheme.CONFIG_MAP).properties["metadata"]
    found.properties |= {"apiVersion": Node(kind="string"), "kind": Node(kind="string"), "metadata": metadata}
    return found


def _node(schema: Schema) -> Node:
    properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
    kind = schema.get("type")
    made = Node(default=schema.get("default"), keep_unknown=bool(schema.get(PRESERVE)))
    made.atomic = schema.get("x-kubernetes-map-type") == "atomic"
    if schema.get(INT_OR_STRING):
        made.kind = "intOrString"
    elif kind == "array":
        items = schema.get("items")
        made.kind, made.item = "array", _node(items) if isinstance(items, dict) else ANY
        made.list_type = schema.get("x-kubernetes-list-type") or "atomic"
        made.keys = tuple(schema.get("x-kubernetes-list-map-keys") or ())
    elif properties:
        made.kind = "object"
        made.properties = {key: _node(each) for key, each in properties.items()}
    elif isinstance(additional, dict):
        made.kind, made.item = "map", _node(additional)
    elif kind == "object":
        made.kind, made.item = "map", ANY
    else:
        made.kind = str(kind or "any")
    return made
