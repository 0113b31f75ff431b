"""OpenAPI documents of what is served, made once from the schemas that validation uses.

Version 3 by group, as kubectl reads it (``kubectl explain``, field validation, merge keys); version 2 as one JSON document.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import Any

import orjson

from metaos.apiserver.discovery import groups, version
from metaos.apiserver.schema import definition_name, definitions, own_definitions
from metaos.resources.scheme import Kind

_V3, _V2 = "#/components/schemas/", "#/definitions/"
_REF = re.compile(r"#/\$defs/")
_QUERY = (
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
    ("dryRun", "string"),
    ("pretty", "string"),
)


@cache
def index() -> bytes:
    """``/openapi/v3``: where each group's document is, with a hash for caching."""
    paths = {}
    for group, version_name in groups():
        path = f"apis/{group}/{version_name}" if group else f"api/{version_name}"
        digest = hashlib.sha256(document(group, version_name)).hexdigest()[:32].upper()
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
    return orjson.dumps({"paths": paths})


@cache
def document(group: str, version_name: str) -> bytes:
    """``/openapi/v3/apis/GROUP/VERSION``."""
    kinds = groups()[(group, version_name)]
    schemas = _closure([definition_name(k) for k in kinds], _V3)
    for kind in kinds:
        own = schemas[definition_name(kind)]
        own["x-kubernetes-group-version-kind"] = [{"group": kind.group, "version": kind.version, "kind": kind.kind}]
    paths: dict[str, Any] = {}
    for kind in kinds:
        paths |= _paths(kind, _V3)
    body = {
        "openapi": "3.0.0",
        "info": {"title": "NEMO", "version": version()["gitVersion"]},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    return orjson.dumps(body)


@cache
def document_v2() -> bytes:
    """``/openapi/v2``."""
    found: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for kinds in groups().values():
        found |= _closure([definition_name(k) for k in kinds], _V2)
        for kind in kinds:
            found[definition_name(kind)]["x-kubernetes-group-version-kind"] = [
                {"group": kind.group, "version": kind.version, "kind": kind.kind}
            ]
            paths |= _paths(kind, _V2)
    return orjson.dumps(
        {"swagger": "2.0", "info": {"title": "NEMO", "version": version()["gitVersion"]}, "paths": paths, "definitions": found}
    )


def _closure(names: list[str], prefix: str) -> dict[str, Any]:
    """The named definitions and all that they refer to, in the form of OpenAPI."""
    known = definitions() | own_definitions()
    result: dict[str, Any] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in result or name not in known:
            continue
        text = orjson.dumps(known[name]).decode()
        waiting += re.findall(r'"#/\$defs/([^"]+)"', text)
        result[name] = _plain(orjson.loads(_REF.sub(prefix, text)))
    return dict(sorted(result.items()))


def _plain(node: Any) -> Any:
    """JSON Schema as OpenAPI 3.0 has it: no ``null`` among types, quantities and ports as Kubernetes publishes them."""
    if isinstance(node, list):
        return [_plain(n) for n in node]
    if not isinstance(node, dict):
        return node
    found = {k: _plain(v) for k, v in node.items()}
    kind = found.get("type")
    if isinstance(kind, list):
        kinds = [k for k in kind if k != "null"]
        found["type"] = kinds[0] if kinds else "object"
    if "oneOf" in found and {o.get("type") for o in found["oneOf"]} <= {"string", "integer", "number"}:
        del found["oneOf"]
        found["type"] = "string"
        found["format"] = "int-or-string"
    if "$ref" in found and len(found) > 1:
        # Siblings of a reference are ignored in 3.0, so the reference is wrapped.
        reference = found.pop("$ref")
        found["allOf"] = [{"$ref": reference}]
    return found


def _paths(kind: Kind, prefix: str) -> dict[str, Any]:
    """The operations of one kind, as far as clients look at them: which kind, which parameters."""
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    collection = f"{root}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
    gvk = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    reference = {"$ref": prefix + definition_name(kind)}

    def operation(action: str, verb: str) -> dict[str, Any]:
        if prefix == _V2:
            parameters: list[dict[str, Any]] = [{"name": n, "in": "query", "type": t} for n, t in _QUERY]
            answer: dict[str, Any] = {"description": "OK", "schema": reference}
        else:
            parameters = [{"name": n, "in": "query", "schema": {"type": t}} for n, t in _QUERY]
            answer = {"description": "OK", "content": {"application/json": {"schema": reference}}}
        return {
            "operationId": f"{verb}{kind.group.title().replace('.', '')}{kind.version.title()}{kind.kind}",
            "parameters": parameters,
            "responses": {"200": answer},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        }

    one = {"get": operation("get", "read"), "put": operation("put", "replace"), "patch": operation("patch", "patch")}
    one["delete"] = operation("delete", "delete")
    many = {"get": operation("list", "list"), "post": operation("post", "create")}
    if "list" not in kind.verbs:
        return {collection: {"post": many["post"]}}
    return {collection: many, f"{collection}/{{name}}": one}
