"""Schemas of all served kinds, and bringing an object into the shape of its schema.

Native definitions come from the package ``kubernetes_validate``, NEMO's own from ``metaos/resources/schemas``
(structural OpenAPI v3). Both are compiled into :class:`Node`; the raw documents, with their descriptions, are read
again only for OpenAPI. Error texts follow ``k8s.io/apimachinery/pkg/util/validation/field``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import orjson
import yaml

from metaos.apiserver.customkind import CustomKind
from metaos.apiserver.messages import message_of
from metaos.resources import quantity
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj
from metaos.resources.scheme import CONFIG_MAP, KINDS, Kind

#: Which published schema of ``kubernetes_validate``; ``definitions`` below reads it.
KUBERNETES = "v1.37.0"
_REF = "#/$defs/"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_APIEXTENSIONS = "apiextensions.k8s.io"
#: Groups whose schemas lie in ``metaos/resources/schemas`` → how the names of their definitions begin.
OWN = {
    "meta-os.eu": "eu.meta-os.v1alpha1.",
    "metrics.k8s.io": "io.k8s.metrics.v1beta1.",
    "multicluster.x-k8s.io": "io.x-k8s.multicluster.v1alpha1.",
}
SCALE = "io.k8s.api.autoscaling.v1.Scale"
EVICTION = "io.k8s.api.policy.v1.Eviction"
#: libyaml where it is there: ten times faster at start-up.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z")
_INT32 = 2**31


@dataclass(slots=True, eq=False)
class Node:
    """One compiled schema. ``kind``: object map array string integer number boolean any intOrString quantity time
    microtime bytes. ``list_type``: atomic, set or map with ``keys``."""

    name: str = ""
    kind: str = "any"
    properties: dict[str, Node] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    item: Node | None = None
    enum: tuple[Any, ...] = ()
    pattern: re.Pattern[str] | None = None
    #: Of a text, how many characters at least.
    least: int = 0
    minimum: float | None = None
    maximum: float | None = None
    #: Of an array, how many items.
    most: int | None = None
    int32: bool = False
    default: Any = None
    keep_unknown: bool = False
    #: Fields that are left out where they are empty, as Go's ``omitempty`` does.
    omit: frozenset[str] = frozenset()
    #: Objects that native kinds always have, though maybe empty.
    structs: frozenset[str] = frozenset()
    list_type: str = "atomic"
    keys: tuple[str, ...] = ()
    atomic: bool = False
    merge_key: str = ""
    #: Parts of the strategic merge strategy: merge, replace, retainKeys.
    strategy: frozenset[str] = frozenset()
    #: Values of exactly this type are right as they are.
    free: type | None = None

    def child(self, key: str) -> Node:
        """The schema below a field of an object or a key of a map."""
        return self.properties.get(key) or (self.item if self.kind == "map" and self.item else ANY)


ANY = Node()


# -- documents ---------------------------------------------------------------------------------------------


def definitions() -> dict[str, dict[str, Any]]:
    """All definitions with their descriptions: the native ones and NEMO's own, with ``$ref`` as ``#/$defs/NAME``. Read
    afresh on every call (15 ms), because only OpenAPI needs the whole; hold only what you render."""
    root = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"{KUBERNETES}-local" / "_definitions.json"
    found: dict[str, dict[str, Any]] = orjson.loads(root.read_bytes())["$defs"]
    return found | own_definitions()


def own_texts() -> list[str]:
    """The schemas of the groups in ``OWN`` as they stand in their files."""
    folder = resources.files("metaos.resources") / "schemas"
    return [(folder / f"{kind.kind.lower()}.yaml").read_text("utf-8") for kind in KINDS if kind.group in OWN]


def own_definitions() -> dict[str, dict[str, Any]]:
    """The definitions of the groups in ``OWN``, each made whole with type and metadata fields."""
    found: dict[str, dict[str, Any]] = {}
    for kind, text in zip((kind for kind in KINDS if kind.group in OWN), own_texts(), strict=True):
        document: dict[str, Any] = yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe loader
        properties = {
            "apiVersion": {"type": "string", "description": "The versioned schema of this object."},
            "kind": {"type": "string", "description": "The REST resource that this object represents."},
            "metadata": {"$ref": _REF + _META, "description": "Standard object metadata."},
        }
        document["properties"] = properties | document["properties"]
        document["type"] = "object"
        document["x-kubernetes-group-version-kind"] = [{"group": kind.group, "kind": kind.kind, "version": kind.version}]
        found[definition_name(kind)] = document
    return found


_PACKAGES = {
    "": "core",
    "admissionregistration.k8s.io": "admissionregistration",
    "coordination.k8s.io": "coordination",
    "discovery.k8s.io": "discovery",
    "certificates.k8s.io": "certificates",
    "rbac.authorization.k8s.io": "rbac",
    "authorization.k8s.io": "authorization",
    "authentication.k8s.io": "authentication",
    "networking.k8s.io": "networking",
    "scheduling.k8s.io": "scheduling",
    "storage.k8s.io": "storage",
}


def definition_name(kind: Kind) -> str:
    """The name of a kind's definition in :func:`definitions`."""
    if kind.group in OWN:
        return OWN[kind.group] + kind.kind
    if kind.group == _APIEXTENSIONS:
        return f"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{kind.version}.{kind.kind}"
    if isinstance(kind, CustomKind):
        return ".".join((*reversed(kind.group.split(".")), kind.version, kind.kind))
    return f"io.k8s.api.{_PACKAGES.get(kind.group, kind.group)}.{kind.version}.{kind.kind}"


# -- compiling ---------------------------------------------------------------------------------------------

_JSON = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"
_SPECIAL = {
    **dict.fromkeys(
        (_JSON, f"{_JSON}SchemaPropsOrArray", f"{_JSON}SchemaPropsOrBool", f"{_JSON}SchemaPropsOrStringArray"), "any"
    ),
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "intOrString",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": "time",
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": "microtime",
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": "any",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "any",
}


#: Kinds of values that Go takes for empty; a struct that is no pointer never is.
_EMPTY = frozenset(("string", "array", "map", "integer", "boolean", "number", "bytes"))


#: Fields that Kubernetes shows though they are empty and not required.
_SHOWN = {
    "io.k8s.api.policy.v1.PodDisruptionBudgetStatus": frozenset(
        ("currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods")
    )
}


class _Compiler:
    def __init__(self, documents: Mapping[str, dict[str, Any]]) -> None:
        self._documents = documents
        self._done: dict[str, Node] = {}

    def named(self, name: str) -> Node:
        if name in _SPECIAL:
            return Node(name=name, kind=_SPECIAL[name])
        if name not in self._done:
            node = self._done[name] = Node(name=name)
            self._fill(node, self._documents[name])
        return self._done[name]

    def schema(self, document: Mapping[str, Any]) -> Node:
        target = document.get("$ref")
        if target is None and len(document.get("allOf", ())) == 1:
            target = document["allOf"][0].get("$ref")
        if target is None:
            node = Node()
            self._fill(node, document)
            return node
        node = self.named(target.removeprefix(_REF))
        if any(k.startswith("x-kubernetes") for k in document) or "default" in document:
            # The field adds to what it refers to: a shallow copy shares the properties.
            node = Node(**{slot: getattr(node, slot) for slot in Node.__slots__})
            self._extensions(node, document)
        return node

    def _fill(self, node: Node, document: Mapping[str, Any]) -> None:
        kinds = document.get("type") or ()
        kind = next((k for k in ([kinds] if isinstance(kinds, str) else kinds) if k != "null"), "any")
        if "properties" in document:
            node.kind = "object"
            node.properties.update((name, self.schema(child)) for name, child in document["properties"].items())
        elif "additionalProperties" in document and isinstance(document["additionalProperties"], dict):
            node.kind = "map"
            node.item = self.schema(document["additionalProperties"])
        elif kind == "array":
            node.kind = "array"
            node.item = self.schema(document.get("items") or {})
        elif kind == "object":
            node.kind, node.item, node.keep_unknown = "map", ANY, True
        else:
            node.kind = kind
        form = document.get("format")
        if form == "byte":
            node.kind = "bytes"
        elif form == "date-time":
            node.kind = "time"
        node.int32 = form == "int32"
        node.required = tuple(document.get("required") or ())
        values = document.get("enum")
        node.enum = tuple(values) if values else ()
        node.pattern = re.compile(document["pattern"]) if "pattern" in document else None
        node.least = document.get("minLength") or 0
        node.minimum, node.maximum = document.get("minimum"), document.get("maximum")
        node.most = document.get("maxItems")
        if document.get("x-kubernetes-int-or-string"):
            node.kind = "quantity" if form == "quantity" else "intOrString"
        self._extensions(node, document)
        if not (node.enum or node.pattern or node.least or node.minimum is not None or node.maximum is not None):
            node.free = {"string": str, "boolean": bool, "number": float}.get(node.kind)
        message = message_of(node.name) if node.kind == "object" else {}
        node.structs = frozenset(
            name
            for name, (kind, flags) in message.items()
            if name in node.properties
            and "." in kind
            and not set(flags) & {"p", "r", "m"}
            and node.properties[name].kind == "object"
        )
        node.omit = frozenset(
            name
            for name, (_, flags) in message.items()
            if name in node.properties and "p" not in flags and name not in node.required and node.properties[name].kind in _EMPTY
        ) - _SHOWN.get(node.name, frozenset())

    @staticmethod
    def _extensions(node: Node, document: Mapping[str, Any]) -> None:
        node.default = document.get("default", node.default)
        node.keep_unknown = node.keep_unknown or bool(document.get("x-kubernetes-preserve-unknown-fields"))
        node.list_type = document.get("x-kubernetes-list-type", node.list_type)
        node.keys = tuple(document.get("x-kubernetes-list-map-keys", node.keys))
        node.atomic = document.get("x-kubernetes-map-type") == "atomic" or node.atomic
        node.merge_key = document.get("x-kubernetes-patch-merge-key", node.merge_key)
        strategy = document.get("x-kubernetes-patch-strategy")
        node.strategy = frozenset(strategy.split(",")) if strategy else node.strategy


@cache
def nodes() -> Mapping[str, Node]:
    """Every served kind's compiled schema by definition name, with Scale and Eviction. About 40 ms, once."""
    compiler = _Compiler(definitions())
    names = [definition_name(kind) for kind in KINDS] + [SCALE, EVICTION]
    return {name: compiler.named(name) for name in names}


def node_of(kind: Kind) -> Node:
    return kind.node if isinstance(kind, CustomKind) else _native_node(kind)


@cache
def _native_node(kind: Kind) -> Node:
    return nodes()[definition_name(kind)]


# -- conforming --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Findings:
    """What conforming an object brought up. ``malformed`` (400: it cannot be decoded), ``unknown`` fields (400, a
    warning, or nothing, as the caller asked), ``causes`` (422)."""

    malformed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    omit_empty: bool = True
    settled: Mapping[str, Any] = field(default_factory=dict)


def required(path: str, detail: str = "") -> Cause:
    return Cause("FieldValueRequired", path, f"Required value: {detail}" if detail else "Required value")


def quoted(value: Any) -> str:
    """Text as Go's ``%q`` writes it, all else as JSON."""
    if not isinstance(value, str):
        return orjson.dumps(value).decode()
    known = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(known.get(c) or (c if c.isprintable() else f"\\x{ord(c):02x}") for c in value) + '"'


def invalid(path: str, value: Any, detail: str) -> Cause:
    shown = quoted(value)
    return Cause("FieldValueInvalid", path, f"Invalid value: {shown}: {detail}")


def unsupported(path: str, value: Any, allowed: tuple[Any, ...] | list[str]) -> Cause:
    listed = ", ".join(f'"{a}"' for a in sorted(map(str, allowed)))
    return Cause("FieldValueNotSupported", path, f'Unsupported value: "{value}": supported values: {listed}')


def duplicate(path: str, value: Any) -> Cause:
    return Cause("FieldValueDuplicate", path, f"Duplicate value: {quoted(value)}")


def too_many(path: str, count: int, most: int) -> Cause:
    return Cause("FieldValueTooMany", path, f"Too many: {count}: must have at most {most} items")


def forbidden(path: str, detail: str) -> Cause:
    return Cause("FieldValueForbidden", path, f"Forbidden: {detail}")


def conform(kind: Kind, obj: Obj, *, omit_empty: bool = True, settled: Mapping[str, Any] | None = None) -> tuple[Obj, Findings]:
    """A copy of ``obj`` without unknown fields and nulls, and what was wrong with it. Below ``status`` nothing is
    required: whoever writes it reports what they know. ``omit_empty``: without what Kubernetes leaves out when empty.
    ``settled``: fields that conform already, with their values; they are not looked into."""
    findings = Findings(omit_empty=omit_empty, settled=settled or {})
    shaped = _object(node_of(kind), obj, None, findings, True)
    return shaped, findings


def conform_metadata(metadata: Any, findings: Findings, path: str = "metadata") -> Any:
    """Metadata alone, of an object whose other parts have rules of their own."""
    node = node_of(CONFIG_MAP).properties["metadata"]
    shaped = _object(node, metadata, (None, path), findings, False)
    return {} if shaped is None else shaped


#: Where a value stands: in what, and its field, key (text) or position (number) there. Nearly all values are right, and what is
#: right needs no text for its place.
Place = tuple[Any, str | int] | None

#: Whoever writes a status reports what they know; what metadata needs has rules of its own.
_UNREQUIRED = ("status", "metadata")
_JSON_NAMES = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}


def _path(place: Place, key: str | int = "") -> str:
    """``spec.ports[0].name``."""
    parts = [key] if key != "" else []
    while place is not None:
        parts.append(place[1])
        place = place[0]
    text = ""
    for part in reversed(parts):
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _mismatch(node: Node, value: Any, place: Place, findings: Findings) -> None:
    findings.malformed.append(
        f"json: cannot unmarshal {_JSON_NAMES.get(type(value), 'null')} into field {_path(place)} of type {node.kind}"
    )


def _object(node: Node, value: Any, place: Place, findings: Findings, strict: bool) -> Any:
    if not isinstance(value, dict):
        return _mismatch(node, value, place, findings)
    properties, omit, omit_empty = node.properties, node.omit, findings.omit_empty
    result: Obj = {}
    for key, child in value.items():
        schema = properties.get(key)
        if schema is None:
            if node.keep_unknown:
                result[key] = child
            else:
                findings.unknown.append(_path(place, key))
        elif child is not None:
            if type(child) is schema.free:
                shaped: Any = child
            elif place is None and key in findings.settled:
                shaped = findings.settled[key]
            else:
                below = strict and (place is not None or key not in _UNREQUIRED)
                shaped = _value(schema, child, (place, key), findings, below)
            if shaped is not None and (shaped or not omit_empty or key not in omit):
                result[key] = shaped
    if strict:
        for name in node.required:
            if name in result:
                continue
            if name in node.structs:
                # In Go it is there, empty: what is missing is missing in it.
                result[name] = _object(properties[name], {}, (place, name), findings, True)
            else:
                findings.causes.append(required(_path(place, name)))
    return result


def _value(node: Node, value: Any, place: Place, findings: Findings, strict: bool) -> Any:
    kind = node.kind
    if kind == "string":
        if not isinstance(value, str):
            return _mismatch(node, value, place, findings)
    elif kind == "object":
        return _object(node, value, place, findings, strict)
    elif kind == "array":
        return _array(node, value, place, findings, strict)
    elif kind == "map":
        if not isinstance(value, dict):
            return _mismatch(node, value, place, findings)
        if node.keep_unknown or node.item is None:
            return value
        item = node.item
        empty = "" if item.kind in ("string", "bytes") else None
        shaped = {
            key: (child if type(child) is item.free else _value(item, child, (place, key), findings, strict))
            if child is not None
            else empty
            for key, child in value.items()
        }
        return {key: child for key, child in shaped.items() if child is not None}
    elif kind == "integer":
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            return _mismatch(node, value, place, findings)
        if not (-_INT32 <= value < _INT32 if node.int32 else -(2**63) <= value < 2**63):
            return _mismatch(node, value, place, findings)
    elif kind == "boolean":
        if not isinstance(value, bool):
            return _mismatch(node, value, place, findings)
    elif kind == "number":
        if not isinstance(value, int | float) or isinstance(value, bool):
            return _mismatch(node, value, place, findings)
    elif kind != "any":
        return _scalar(node, value, place, findings)
    if node.enum and value not in node.enum:
        findings.causes.append(unsupported(_path(place), value, node.enum))
    elif node.pattern is not None and not node.pattern.search(value):
        findings.causes.append(invalid(_path(place), value, f"must match {node.pattern.pattern}"))
    elif node.least and len(value) < node.least:
        findings.causes.append(invalid(_path(place), value, f"should be at least {node.least} chars long"))
    elif node.minimum is not None and value < node.minimum:
        findings.causes.append(invalid(_path(place), value, f"must be greater than or equal to {node.minimum}"))
    elif node.maximum is not None and value > node.maximum:
        findings.causes.append(invalid(_path(place), value, f"must be less than or equal to {node.maximum}"))
    return value


def _array(node: Node, value: Any, place: Place, findings: Findings, strict: bool) -> Any:
    if not isinstance(value, list):
        return _mismatch(node, value, place, findings)
    if node.most is not None and len(value) > node.most:
        findings.causes.append(too_many(_path(place), len(value), node.most))
        return []
    item = node.item or ANY
    if item.kind == "object" and item.name:
        value = [{} if child is None else child for child in value]  # As Go reads it.
    shaped = [
        child if type(child) is item.free else _value(item, child, (place, i), findings, strict)
        for i, child in enumerate(value)
        if child is not None
    ]
    # Of native lists the rules of their kinds say where doubles are refused.
    if node.list_type == "map" and strict and node.keys == ("name",) and not item.name:
        seen: set[str] = set()
        for i, child in enumerate(shaped):
            key = child.get("name") if isinstance(child, dict) else None
            if key is not None and key in seen:
                findings.causes.append(duplicate(f"{_path(place)}[{i}].name", key))
            elif key is not None:
                seen.add(key)
    return shaped


def _scalar(node: Node, value: Any, place: Place, findings: Findings) -> Any:
    if node.kind == "quantity":
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return _mismatch(node, value, place, findings)
        try:
            quantity.parse(value)
        except ValueError:
            findings.malformed.append(
                f"{_path(place)}: quantity {value!r} must be a number with an optional suffix, for example 500m or 1.5Gi"
            )
        return str(value)
    if node.kind == "intOrString":
        if isinstance(value, bool) or not isinstance(value, str | int):
            return _mismatch(node, value, place, findings)
    elif not isinstance(value, str):
        return _mismatch(node, value, place, findings)
    elif node.kind in ("time", "microtime"):
        if not _TIME.match(value):
            findings.malformed.append(
                f'{_path(place)}: parsing time "{value}": must be RFC 3339, for example 2026-01-31T12:00:00Z'
            )
    elif node.kind == "bytes":
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            findings.malformed.append(f"{_path(place)}: illegal base64 data")
    return value
