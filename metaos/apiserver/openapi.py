"""OpenAPI documents of every served kind, made from the same schemas that validate. Built on first use, kept compressed.

``/openapi/v3`` is an index of one document per group and version; ``/openapi/v2`` is all in one. kubectl reads v3: for
``explain``, for the merge strategy of ``apply``, and to see that ``fieldValidation`` is understood.
Source: https://spec.openapis.org/oas/v3.0.3, ``k8s.io/kube-openapi``.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from metaos import __version__
from metaos.apiserver import openapi_protobuf
from metaos.apiserver.customkind import CustomKind
from metaos.apiserver.deletion import SHOWN
from metaos.apiserver.discovery import MAJOR, MINOR, Discovery
from metaos.apiserver.negotiation import JSON, not_acceptable, ranges
from metaos.apiserver.schema import KUBERNETES, definition_name, definitions, own_texts
from metaos.client import PatchType
from metaos.resources.scheme import KINDS, Kind

_SOURCE_REF = "#/$defs/"
_V3_REF = "#/components/schemas/"
_V2_REF = "#/definitions/"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_SCALE = "io.k8s.api.autoscaling.v1.Scale"
_EVICTION = "io.k8s.api.policy.v1.Eviction"

Documents = Mapping[str, dict[str, Any]]


def name_of(group: str, version: str) -> str:
    """The key of a group and version in the index: ``api/v1``, ``apis/apps/v1``."""
    return f"apis/{group}/{version}" if group else f"api/{version}"


class OpenApi:
    """The documents, each as gzip-compressed JSON (about 300 kB in all). ``custom`` are the kinds of definitions, which come
    and go; what was made of the others stays."""

    def __init__(self) -> None:
        self._built: dict[str, bytes] = {}
        self._native, self._custom = Discovery(KINDS).versions, Discovery(()).versions
        self._seen: Sequence[Kind] = ()
        # What the documents are made from: equal inputs, equal hash, also after a restart.
        made_from = [f"{__version__}/{KUBERNETES}", *(f"{k.resource} {sorted(k.subresources)}" for k in KINDS), *own_texts()]
        self._tag = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:32].upper()
        self._tags: dict[str, str] = {}

    def follow(self, custom: Sequence[CustomKind]) -> None:
        """Forgets what was made of definitions, where they have changed."""
        if custom is self._seen:
            return
        before = {name_of(*each) for each in self._custom}
        self._seen, self._custom = custom, Discovery(custom).versions
        tags = {}
        for (group, version), kinds in self._custom.items():
            said = [
                [kind.plural, kind.namespaced, kind.subresources, kind.schema] for kind in kinds if isinstance(kind, CustomKind)
            ]
            tags[name_of(group, version)] = hashlib.sha256(self._tag.encode() + orjson.dumps(said)).hexdigest()[:32].upper()
        for name in before | tags.keys():
            if tags.get(name) != self._tags.get(name):
                self._built.pop(name, None)
        self._tags = tags
        for media in (JSON, openapi_protobuf.MEDIA):
            self._built.pop(media, None)

    def tag(self, name: str = "") -> str:
        """Hash and ETag of one group and version, or of everything."""
        if name:
            return self._tags.get(name, self._tag)
        if not self._tags:
            return self._tag
        return hashlib.sha256("".join((self._tag, *self._tags.values())).encode()).hexdigest()[:32].upper()

    def index(self) -> dict[str, Any]:
        """``/openapi/v3``."""
        names = [name_of(group, version) for group, version in (*self._native, *self._custom)]
        return {"paths": {name: {"serverRelativeURL": f"/openapi/v3/{name}?hash={self.tag(name)}"} for name in names}}

    def v3(self, name: str) -> bytes | None:
        """The compressed document of one group and version, ``None`` where it is not served."""
        if name not in self._built:
            for some in (self._native, self._custom):
                if name in {name_of(*each) for each in some}:
                    raw = self._definitions()
                    for each, kinds in some.items():
                        if name_of(*each) not in self._built:
                            self._built[name_of(*each)] = _packed(_v3_document(kinds, raw))
                    break
            else:
                return None
        return self._built[name]

    def v2(self, media: str = JSON) -> bytes:
        """The compressed document of everything, in a form of :func:`v2_media`."""
        if media not in self._built:
            document = _v2_document({**self._native, **self._custom}, self._definitions())
            if media == JSON:
                self._built[media] = _packed(document)
            else:
                body = openapi_protobuf.document(_INFO, document["definitions"])
                self._built[media] = gzip.compress(body, compresslevel=6, mtime=0)
        return self._built[media]

    def _definitions(self) -> dict[str, dict[str, Any]]:
        found = definitions()
        for kinds in self._custom.values():
            for kind in kinds:
                if isinstance(kind, CustomKind):
                    found[definition_name(kind)] = _custom_definition(kind)
        return found


def v2_media(accept: str) -> str:
    """In which form a caller wants ``/openapi/v2``. Raises ``ApiError`` 406."""
    for each in ranges(accept or JSON):
        if each.media in (JSON, "*/*", "application/*"):
            return JSON
        if each.media in (openapi_protobuf.MEDIA, openapi_protobuf.ASKED):
            return openapi_protobuf.MEDIA
    raise not_acceptable()


def _packed(document: Any) -> bytes:
    return gzip.compress(orjson.dumps(document), compresslevel=6, mtime=0)


# -- schemas -----------------------------------------------------------------------------------------------


def converted(schema: Any, prefix: str) -> Any:
    """A definition as OpenAPI knows it: no type ``null`` (Kubernetes reads null as left out), references with
    company wrapped in ``allOf`` (elsewhere their neighbours would not count)."""
    if isinstance(schema, list):
        return [converted(each, prefix) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref":
            continue
        if key == "type" and isinstance(value, list):
            kinds = [kind for kind in value if kind != "null"]
            if len(kinds) == 1:
                found["type"] = kinds[0]
            elif kinds:
                found["oneOf"] = [{"type": kind} for kind in kinds]
        elif key == "properties":
            found[key] = {name: converted(each, prefix) for name, each in value.items()}
        elif key == "enum" and isinstance(value, list):
            found[key] = [each for each in value if each is not None]
        elif key in ("items", "additionalProperties", "allOf", "oneOf", "anyOf", "not"):
            found[key] = converted(value, prefix)
        elif key in ("const", "$schema", "$id"):
            continue
        else:
            found[key] = value
    if "$ref" in schema:
        reference = {"$ref": prefix + schema["$ref"].removeprefix(_SOURCE_REF)}
        if not found:
            return reference
        found["allOf"] = [reference]
    return found


def _definition(name: str, raw: Documents, prefix: str) -> dict[str, Any]:
    found: dict[str, Any]
    if name == _INT_OR_STRING:
        found = {"description": "A whole number or text.", "format": "int-or-string"}
        return found | ({"type": "string"} if prefix == _V2_REF else {"oneOf": [{"type": "integer"}, {"type": "string"}]})
    if name == _QUANTITY:
        found = {"description": "An amount with an optional suffix, for example 500m or 1.5Gi."}
        return found | ({"type": "string"} if prefix == _V2_REF else {"oneOf": [{"type": "string"}, {"type": "number"}]})
    found = converted(raw[name], prefix)
    if "x-kubernetes-group-version-kind" in found:
        for key in ("apiVersion", "kind"):
            # Whose apiVersion and kind these are is said by the extension; a list of one value would only be noise.
            found.get("properties", {}).get(key, {}).pop("enum", None)
    return found


def _custom_definition(kind: CustomKind) -> dict[str, Any]:
    """A definition's schema made whole with type and metadata fields."""
    found = dict(kind.schema)
    properties = {
        "apiVersion": {"type": "string", "description": "The versioned schema of this object."},
        "kind": {"type": "string", "description": "The REST resource that this object represents."},
        "metadata": {"$ref": f"{_SOURCE_REF}{_META}ObjectMeta", "description": "Standard object metadata."},
    }
    found["properties"] = {**(found.get("properties") or {}), **properties}
    found["x-kubernetes-group-version-kind"] = [_gvk(kind)]
    return found


def _reachable(names: Iterable[str], raw: Documents) -> list[str]:
    found: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and name in raw:
            found[name] = None
            if name not in (_INT_OR_STRING, _QUANTITY):
                waiting.extend(_references(raw[name]))
    return sorted(found)


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        target = schema.get("$ref")
        if isinstance(target, str):
            yield target.removeprefix(_SOURCE_REF)
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _list_schema(kind: Kind, prefix: str) -> dict[str, Any]:
    return {
        "description": f"{kind.list_kind} is a list of {kind.kind} objects.",
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"allOf": [{"$ref": f"{prefix}{_META}ListMeta"}]},
            "items": {"type": "array", "items": {"allOf": [{"$ref": prefix + definition_name(kind)}]}},
        },
        "x-kubernetes-group-version-kind": [_gvk(kind) | {"kind": kind.list_kind}],
    }


def _schemas(kinds: list[Kind], raw: Documents, prefix: str) -> dict[str, Any]:
    names = [definition_name(kind) for kind in kinds]
    names += [_META + part for part in ("ListMeta", "DeleteOptions", "Status", "Patch", "WatchEvent")]
    if any("scale" in kind.subresources for kind in kinds):
        names.append(_SCALE)
    if any("eviction" in kind.subresources for kind in kinds):
        names.append(_EVICTION)
    found = {name: _definition(name, raw, prefix) for name in _reachable(names, raw)}
    for kind in kinds:
        if "list" in kind.verbs:
            found.setdefault(definition_name(kind) + "List", _list_schema(kind, prefix))
    return found


# -- paths -------------------------------------------------------------------------------------------------


def _gvk(kind: Kind) -> dict[str, str]:
    return {"group": kind.group, "version": kind.version, "kind": kind.kind}


#: Query parameter → its JSON type, by kind of operation.
_WRITE = {"dryRun": "string", "fieldManager": "string", "fieldValidation": "string"}
_READ = {
    "allowWatchBookmarks": "boolean",
    "continue": "string",
    "fieldSelector": "string",
    "labelSelector": "string",
    "limit": "integer",
    "resourceVersion": "string",
    "resourceVersionMatch": "string",
    "sendInitialEvents": "boolean",
    "timeoutSeconds": "integer",
    "watch": "boolean",
}
_DELETE = {"dryRun": "string", "gracePeriodSeconds": "integer", "orphanDependents": "boolean", "propagationPolicy": "string"}
_ACTIONS = {
    "list": ("get", "list", _READ),
    "create": ("post", "post", _WRITE),
    "deletecollection": ("delete", "deletecollection", _DELETE | _READ),
    "get": ("get", "get", {}),
    "update": ("put", "put", _WRITE),
    "patch": ("patch", "patch", _WRITE | {"force": "boolean"}),
    "delete": ("delete", "delete", _DELETE),
}


def _paths(kinds: list[Kind], v3: bool) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for kind in kinds:
        root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        collection = f"{root}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
        where = ["namespace"] if kind.namespaced else []
        paths[collection] = _item(kind, ("list", "create", "deletecollection"), where, v3, kind.verbs)
        if "get" in kind.verbs:
            one = _item(kind, ("get", "update", "patch", "delete"), [*where, "name"], v3, kind.verbs)
            paths[f"{collection}/{{name}}"] = one
        if kind.namespaced:
            paths[f"{root}/{kind.plural}"] = _item(kind, ("list",), [], v3, kind.verbs)
        for subresource in kind.subresources:
            if subresource in ("status", "scale", "approval"):
                body = _SCALE if subresource == "scale" else definition_name(kind)
                item = _item(kind, ("get", "update", "patch"), [*where, "name"], v3, kind.verbs, body=body, part=subresource)
                paths[f"{collection}/{{name}}/{subresource}"] = item
    return paths


def _item(
    kind: Kind,
    actions: Iterable[str],
    where: list[str],
    v3: bool,
    verbs: Iterable[str],
    *,
    body: str = "",
    part: str = "",
) -> dict[str, Any]:
    item: dict[str, Any] = {
        "parameters": [_parameter(each, "path", "string", v3) for each in where] + [_parameter("pretty", "query", "string", v3)]
    }
    for action in actions:
        if action in verbs:
            method, name, query = _ACTIONS[action]
            item[method] = _operation(kind, action, name, query, bool(where[:1] == ["namespace"]), v3, body, part)
    return item


def _operation(
    kind: Kind, action: str, name: str, query: Mapping[str, str], namespaced: bool, v3: bool, body: str, part: str
) -> dict[str, Any]:
    prefix = _V3_REF if v3 else _V2_REF
    subject = body or definition_name(kind)
    group = "".join(word.capitalize() for word in (kind.group.removesuffix(".k8s.io") or "core").replace("-", ".").split("."))
    scope = "Namespaced" if namespaced else ""
    operation: dict[str, Any] = {
        "operationId": f"{action}{group}{kind.version.capitalize()}{scope}{kind.kind}{part.capitalize()}",
        "description": f"{action} {kind.kind} objects" + (f" ({part})" if part else ""),
        "tags": [f"{kind.group or 'core'}_{kind.version}"],
        "parameters": [_parameter(each, "query", type_, v3) for each, type_ in sorted(query.items())],
        "x-kubernetes-action": name,
        "x-kubernetes-group-version-kind": _gvk(kind),
    }
    operation["responses"] = _responses(action, subject, v3, kind in SHOWN)
    sent = {"patch": _META + "Patch", "delete": _META + "DeleteOptions", "deletecollection": _META + "DeleteOptions"}
    if action in ("create", "update", *sent):
        media: list[str] = [*PatchType] if action == "patch" else ["application/json", "application/yaml"]
        if isinstance(kind, CustomKind):
            # By this kubectl sees how it may patch: nobody says how lists of users' kinds are merged in a strategic patch.
            media = [each for each in media if each != PatchType.STRATEGIC]
        schema = {"$ref": prefix + sent.get(action, subject)}
        if v3:
            operation["requestBody"] = {"content": {str(each): {"schema": schema} for each in media}}
        else:
            operation["consumes"] = [str(each) for each in media]
            operation["parameters"].append({"name": "body", "in": "body", "schema": schema})
    return operation


#: What is answered where all is well: of a created object, of one that a patch created or changed, and otherwise.
_GOOD = {"create": {"201": "Created"}, "patch": {"200": "OK", "201": "Created"}}


def _responses(action: str, subject: str, v3: bool, shown: bool) -> dict[str, Any]:
    prefix = _V3_REF if v3 else _V2_REF

    def answer(description: str, *names: str) -> dict[str, Any]:
        schemas = [{"$ref": prefix + name} for name in names]
        if not v3:
            return {"description": description, "schema": schemas[-1]}
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        return {"description": description, "content": {"application/json": {"schema": schema}}}

    names = [subject + "List"] if action in ("list", "deletecollection") else [subject]
    if action.startswith("delete"):
        # What waits for its finalizers is answered as it is now, what has gone by a Status or (``shown``) as it was. Version 2
        # has room for one schema, the last.
        names.insert(0 if shown and action == "delete" else 1, _META + "Status")
    found = {code: answer(text, *names) for code, text in _GOOD.get(action, {"200": "OK"}).items()}
    return found | {
        "401": {"description": "Unauthorized"},
        "default": answer("What was wrong, why, and what to do.", _META + "Status"),
    }


def _parameter(name: str, place: str, type_: str, v3: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "in": place} | ({"required": True} if place == "path" else {})
    return found | ({"schema": {"type": type_}} if v3 else {"type": type_, "uniqueItems": True})


# -- documents ---------------------------------------------------------------------------------------------

_INFO = {"title": "NEMO", "version": f"v{MAJOR}.{MINOR}.0+nemo-{__version__}"}


def _v3_document(kinds: list[Kind], raw: Documents) -> dict[str, Any]:
    return {
        "openapi": "3.0.0",
        "info": _INFO,
        "paths": _paths(kinds, True),
        "components": {"schemas": _schemas(kinds, raw, _V3_REF)},
    }


def _v2_document(versions: Mapping[tuple[str, str], list[Kind]], raw: Documents) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for kinds in versions.values():
        paths |= _paths(kinds, False)
        schemas |= _schemas(kinds, raw, _V2_REF)
    return {"swagger": "2.0", "info": _INFO, "paths": paths, "definitions": schemas}
