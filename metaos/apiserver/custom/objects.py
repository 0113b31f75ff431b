"""Objects of users' kinds: from what a caller sent to what is kept, and how what is kept is shown in each version.

Conversion is ``None``: versions differ in ``apiVersion`` and in what their schemas prune and default.
"""

from __future__ import annotations

import copy
from typing import Any

from metaos.apiserver.custom.columns import path as json_path
from metaos.apiserver.custom.structural import EMBEDDED, Schema, child_of, default, prune
from metaos.apiserver.custom.validators import ABSENT
from metaos.apiserver.customkind import CustomKind
from metaos.apiserver.metadata import metadata_causes, name_causes
from metaos.apiserver.schema import Findings, conform_metadata, invalid
from metaos.resources import errors
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj, name

#: What Go calls types.
_GO = {str: "string", bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}


def shape(kind: CustomKind, obj: Obj, *, defaults: bool) -> tuple[Obj, Findings]:
    """A copy of ``obj`` without what its schema does not know, and what was found. Its metadata is as of all objects."""
    findings = Findings()
    shaped: Obj = copy.deepcopy({key: value for key, value in obj.items() if key != "metadata"})
    shaped["metadata"] = conform_metadata(obj.get("metadata") or {}, findings)
    prune(shaped, kind.schema, findings.unknown, root=True)
    _embedded(shaped, kind.schema, "", findings)
    if defaults:
        default(shaped, kind.schema)
    return shaped, findings


def _embedded(value: Any, schema: Schema, path: str, findings: Findings) -> None:
    """Metadata of resources within the object is metadata, too."""
    if isinstance(value, list):
        items = schema.get("items")
        for i, item in enumerate(value):
            if isinstance(items, dict):
                _embedded(item, items, f"{path}[{i}]", findings)
    elif isinstance(value, dict):
        if schema.get(EMBEDDED) and isinstance(value.get("metadata"), dict):
            value["metadata"] = conform_metadata(value["metadata"], findings, f"{path}.metadata")
        for key, child in value.items():
            below = child_of(schema, key)
            if below is not None:
                _embedded(child, below, f"{path}.{key}" if path else key, findings)


def validate(kind: CustomKind, obj: Obj, old: Obj | None) -> None:
    """Raises ``ApiError`` 422 with every cause that is found."""
    metadata = obj["metadata"]
    causes: list[Cause] = name_causes(kind, metadata.get("name") or "") if old is None else []
    if old is None or metadata != old["metadata"]:
        causes += metadata_causes(metadata)
    causes += kind.validator.causes(obj, ABSENT if old is None else old)
    for key in ("specReplicasPath", "statusReplicasPath"):
        where = kind.scale_paths.get(key, "")
        value = _at(obj, where) if where else None
        if value is not None and type(value) is not int:
            detail = f"{where} accessor error: {value} is of the type {_GO.get(type(value), 'float64')}, expected int64"
            causes.append(invalid(where, 0, detail))
    if causes:
        raise errors.invalid(kind.group, kind.kind, name(obj), causes)


# -- versions ------------------------------------------------------------------------------------------------


def is_current(kind: CustomKind, encoded: bytes, revision: int) -> bool:
    """Whether stored JSON can be shown as it is: it is in this version, and was written through its present schema."""
    return revision > kind.since and encoded.startswith(b'{"apiVersion":"%b",' % kind.api_version.encode())


def shown(kind: CustomKind, obj: Obj) -> Obj:
    """A stored object in the version of ``kind``; the object is the caller's own."""
    obj["apiVersion"] = kind.api_version
    obj["kind"] = kind.kind
    prune(obj, kind.schema, [], root=True)
    default(obj, kind.schema)
    return obj


# -- parts ---------------------------------------------------------------------------------------------------


def field_values(kind: CustomKind, obj: Obj) -> dict[str, str]:
    """What field selectors see."""
    metadata = obj["metadata"]
    found = {"metadata.name": metadata.get("name") or "", "metadata.namespace": metadata.get("namespace") or ""}
    for path in kind.selectable:
        values = json_path(f".{path}")(obj)
        value = values[0] if values else ""
        found[path] = str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
    return found


def _at(obj: Obj, path: str) -> Any:
    value: Any = obj
    for part in path.removeprefix(".").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def scale(kind: CustomKind, obj: Obj) -> Obj:
    """``spec`` and ``status`` of its Scale. Raises ``ApiError`` 500 where it has no number of replicas, as Kubernetes does."""
    paths = kind.scale_paths
    replicas = _at(obj, paths["specReplicasPath"])
    if not isinstance(replicas, int):
        raise errors.internal(f'the spec replicas field "{paths["specReplicasPath"]}" does not exist')
    status: Obj = {"replicas": _at(obj, paths["statusReplicasPath"]) or 0}
    if paths.get("labelSelectorPath"):
        status["selector"] = _at(obj, paths["labelSelectorPath"]) or ""
    return {"spec": {"replicas": replicas}, "status": status}


def rescale(kind: CustomKind, obj: Obj, replicas: int) -> None:
    """Sets the number of replicas in place."""
    *way, last = kind.scale_paths["specReplicasPath"].removeprefix(".").split(".")
    for part in way:
        obj = obj.setdefault(part, {})
    obj[last] = replicas
