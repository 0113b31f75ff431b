"""What a CustomResourceDefinition must mean, beyond its schema, in the words of Kubernetes. Pure.

Source: ``k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation`` and ``pkg/apiserver/schema``. Bounds: a schema has
``MAX_DEPTH`` levels and ``MAX_NODES`` parts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from metaos.apiserver.custom.columns import path as json_path
from metaos.apiserver.custom.structural import EMBEDDED, INT_OR_STRING, PRESERVE, Schema, child_of, prune
from metaos.apiserver.custom.validators import Validator, compile_pattern
from metaos.apiserver.metadata import DNS_1035, DNS_SUBDOMAIN, LETTER_FIRST, SUBDOMAIN
from metaos.apiserver.schema import duplicate, forbidden, invalid, required, unsupported
from metaos.resources import meta, scheme
from metaos.resources.definitions import established
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj

MAX_DEPTH, MAX_NODES = 64, 20_000
MAX_VERSIONS = 32
_APPROVED = "api-approved.kubernetes.io"
_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_COLUMN_FORMATS = ("", "byte", "date", "date-time", "double", "float", "int32", "int64", "name", "password")


def causes(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    """Everything that is wrong with a definition as a successor of ``old``."""
    spec = obj["spec"]
    group, names = str(spec.get("group") or ""), spec.get("names") or {}
    if obj["metadata"].get("name") != f"{names.get('plural')}.{group}":
        yield invalid("metadata.name", obj["metadata"].get("name"), 'must be spec.names.plural+"."+spec.group')
    yield from _group(obj, group)
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        yield unsupported("spec.scope", spec.get("scope") or "", ["Cluster", "Namespaced"])
    yield from _names(names)
    if spec.get("preserveUnknownFields"):
        text = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
        yield invalid("spec.preserveUnknownFields", True, text)
        yield invalid("spec.preserveUnknownFields", True, "must be false in order to use defaults in the schema")
    strategy = (spec.get("conversion") or {}).get("strategy", "None")
    if strategy != "None":
        yield unsupported("spec.conversion.strategy", strategy, ["None"])
    yield from _versions(spec, obj, old)
    if old is not None and established(old):
        before = old["spec"]
        for field, now, then in (
            ("scope", spec.get("scope"), before.get("scope")),
            ("group", group, before.get("group")),
            ("names.kind", names.get("kind"), before["names"].get("kind")),
            ("names.plural", names.get("plural"), before["names"].get("plural")),
        ):
            if now != then:
                yield invalid(f"spec.{field}", now, "field is immutable")


def _group(obj: Obj, group: str) -> Iterator[Cause]:
    if not group:
        yield required("spec.group")
    elif not SUBDOMAIN.match(group):
        yield invalid("spec.group", group, DNS_SUBDOMAIN)
    elif "." not in group:
        yield invalid("spec.group", group, "should be a domain with at least one dot")
    elif any(kind.group == group for kind in scheme.KINDS):
        yield forbidden("spec.group", f"the kinds of {group} are this server's own: choose another group")
    elif group == "k8s.io" or group == "kubernetes.io" or group.endswith((".k8s.io", ".kubernetes.io")):
        policy = meta.annotations(obj).get(_APPROVED, "")
        if not policy:
            text = 'protected groups must have approval annotation "api-approved.kubernetes.io", see https://github.com/kubernetes/enhancements/pull/1111'
            yield required(f"metadata.annotations[{_APPROVED}]", text)


def _names(names: Obj) -> Iterator[Cause]:
    for field in ("plural", "kind"):
        if not names.get(field):
            yield required(f"spec.names.{field}")
    for field in ("plural", "singular", "kind", "listKind"):
        value = str(names.get(field) or "")
        plain = value.lower() if field in ("kind", "listKind") else value
        if value and not (LETTER_FIRST.match(plain) and len(plain) <= 63):
            text = DNS_1035 if field in ("plural", "singular") else f"may have mixed case, but should otherwise match: {DNS_1035}"
            yield invalid(f"spec.names.{field}", value, text)
    for field in ("shortNames", "categories"):
        for i, value in enumerate(names.get(field) or ()):
            if not LETTER_FIRST.match(value):
                yield invalid(f"spec.names.{field}[{i}]", value, DNS_1035)
    if names.get("kind") and names.get("kind") == names.get("listKind"):
        yield invalid("spec.names.listKind", names["listKind"], "kind and listKind may not be the same")


def _versions(spec: Obj, obj: Obj, old: Obj | None) -> Iterator[Cause]:
    versions = spec.get("versions") or []
    if not versions:
        yield invalid("spec.versions", versions, "must have exactly one version marked as storage version")
    if len(versions) > MAX_VERSIONS:
        yield forbidden("spec.versions", f"a definition has at most {MAX_VERSIONS} versions, this one has {len(versions)}")
        return
    known = [str(each.get("name") or "") for each in versions]
    if len(set(known)) != len(known):
        yield invalid("spec.versions", known, "must contain unique version names")
    stored = [each.get("name") for each in versions if each.get("storage")]
    if versions and len(stored) != 1:
        yield invalid("spec.versions", known, "must have exactly one version marked as storage version")
    if not (obj.get("status") or {}).get("storedVersions"):
        yield invalid("status.storedVersions", [], "must have at least one stored version")
    before = {each["name"]: each for each in ((old or {}).get("spec") or {}).get("versions") or ()}
    for i, version in enumerate(versions):
        path = f"spec.versions[{i}]"
        if not LETTER_FIRST.match(known[i]):
            yield invalid(f"{path}.name", known[i], DNS_1035)
        if version.get("deprecationWarning") and not version.get("deprecated"):
            yield invalid(f"{path}.deprecationWarning", version["deprecationWarning"], "can only be set for deprecated versions")
        if before.get(known[i]) == version or (i and all(_same(versions, part) for part in _ALIKE)):
            continue
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if schema is None:
            yield required(f"{path}.schema.openAPIV3Schema", "schemas are required")
        else:
            yield from schema_causes(schema, schema_path(versions, i))
        yield from _parts(version, {part: "spec" if _same(versions, part) else path for part in _ALIKE}, schema or {})
    for i, name in enumerate((obj.get("status") or {}).get("storedVersions") or ()):
        if name not in known:
            yield invalid(f"status.storedVersions[{i}]", name, "missing from spec.versions; " + _STORED)


#: What Kubernetes tells of all versions at once where it is alike in all.
_ALIKE = ("schema", "subresources", "additionalPrinterColumns", "selectableFields")


def _same(versions: list[Obj], part: str) -> bool:
    return all(each.get(part) == versions[0].get(part) for each in versions)


def schema_path(versions: list[Obj], place: int) -> str:
    """Where Kubernetes says that a version's schema stands."""
    alike = _same(versions, "schema")
    return "spec.validation.openAPIV3Schema" if alike else f"spec.versions[{place}].schema.openAPIV3Schema"


_STORED = "kept objects may be in this version: serve it, write them all once, and take it out of status.storedVersions first"


def _parts(version: Obj, paths: Mapping[str, str], schema: Schema) -> Iterator[Cause]:
    """Subresources, columns and selectable fields of one version."""
    scale = (version.get("subresources") or {}).get("scale")
    if scale is not None:
        for field, roots in (
            ("specReplicasPath", (".spec.",)),
            ("statusReplicasPath", (".status.",)),
            ("labelSelectorPath", (".spec.", ".status.")),
        ):
            value, where = str(scale.get(field) or ""), f"{paths['subresources']}.subresources.scale.{field}"
            if not value and field != "labelSelectorPath":
                yield required(where)
            elif value and not value.startswith(roots):
                under = " or ".join(root[1:-1] for root in roots)
                yield invalid(where, value, f"should be a json path under {roots[0][:-1] if len(roots) == 1 else under}")
            elif value and "[" in value:
                yield invalid(where, value, "is not a valid json path without array notation")
    for i, column in enumerate(version.get("additionalPrinterColumns") or ()):
        where = f"{paths['additionalPrinterColumns']}.additionalPrinterColumns[{i}]"
        for field in ("name", "type", "jsonPath"):
            if not column.get(field):
                yield required(f"{where}.{field}")
        if column.get("type") and column["type"] not in _COLUMN_TYPES:
            yield unsupported(f"{where}.type", column["type"], list(_COLUMN_TYPES))
        if column.get("format", "") not in _COLUMN_FORMATS:
            yield unsupported(f"{where}.format", column["format"], list(_COLUMN_FORMATS))
        if column.get("jsonPath"):
            try:
                json_path(column["jsonPath"])
            except ValueError as wrong:
                yield invalid(f"{where}.jsonPath", column["jsonPath"], str(wrong))
    yield from _selectable(version, paths["selectableFields"], schema)


def _selectable(version: Obj, path: str, schema: Schema) -> Iterator[Cause]:
    fields = version.get("selectableFields") or ()
    if len(fields) > 8:
        yield Cause("FieldValueTooMany", f"{path}.selectableFields", f"Too many: {len(fields)}: must have at most 8 items")
        return
    seen: set[str] = set()
    for i, field in enumerate(fields):
        where, value = f"{path}.selectableFields[{i}].jsonPath", str(field.get("jsonPath") or "")
        if not value:
            yield required(where)
            continue
        if value in seen:
            yield duplicate(where, value)
        seen.add(value)
        found: Schema | None = schema
        for part in value.removeprefix(".").split("."):
            found = (found.get("properties") or {}).get(part) if found is not None else None
        if not value.startswith(".") or value.startswith(".metadata") or found is None:
            yield invalid(where, value, "is an invalid path: does not refer to a valid field")
        elif found.get("type") not in ("string", "integer", "boolean"):
            yield invalid(where, value, "is an invalid path: must refer to a field of type string, boolean or integer")


# -- schemas -------------------------------------------------------------------------------------------------

#: What JSON schema has and structural schemas have not.
_NOT_SUPPORTED = ("$ref", "definitions", "dependencies", "patternProperties", "additionalItems", "id", "$schema")
#: What may stand within anyOf, allOf, oneOf and not: what tests values, and not what describes them.
_ONLY_OUTSIDE = (
    *("type", "additionalProperties", "default", "nullable", "title", "description", PRESERVE, EMBEDDED, INT_OR_STRING),
    *("x-kubernetes-list-type", "x-kubernetes-map-type", "x-kubernetes-list-map-keys"),
)


def schema_causes(schema: Any, path: str) -> list[Cause]:
    """Why a schema is not structural."""
    found: list[Cause] = []
    counted = [0]
    if schema.get("type") != "object":
        kind = schema.get("type")
        found.append(
            invalid(f"{path}.type", kind, "must be object at the root")
            if kind
            else required(f"{path}.type", "must not be empty at the root")
        )
    if schema.get("nullable"):
        found.append(forbidden(f"{path}.nullable", "nullable cannot be true at the root"))
    found.extend(_schema(schema, path, counted, 0))
    if not found:
        found.extend(_defaults(schema, path, Validator(schema), root=True))
    return found


def _schema(schema: Any, path: str, counted: list[int], depth: int, *, root: bool = True) -> Iterator[Cause]:
    counted[0] += 1
    if counted[0] > MAX_NODES or depth > MAX_DEPTH:
        if counted[0] < 2 * MAX_NODES:
            counted[0] = 2 * MAX_NODES
            yield forbidden(path, f"a schema has at most {MAX_DEPTH} levels and {MAX_NODES} parts")
        return
    if not isinstance(schema, dict):
        yield invalid(path, schema, "must be a schema")
        return
    for key in _NOT_SUPPORTED:
        if schema.get(key) is not None:
            yield forbidden(f"{path}.{key}", f"{key} is not supported")
    yield from _type(schema, path, root)
    yield from _limits(schema, path)
    properties, additional = schema.get("properties"), schema.get("additionalProperties")
    if schema.get("uniqueItems"):
        yield forbidden(f"{path}.uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic")
    if properties and additional is not None:
        yield forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
    if root and additional is not None:
        yield forbidden(f"{path}.additionalProperties", "must not be used at the root")
    elif additional is False:
        yield forbidden(f"{path}.additionalProperties", "additionalProperties cannot be set to false")
    yield from _extensions(schema, path)
    for key, child in (properties or {}).items():
        below = f"{path}.properties[{key}]"
        if root and key == "metadata":
            yield from _root_metadata(child, below)
        yield from _schema(child, below, counted, depth + 1, root=False)
    if isinstance(additional, dict):
        yield from _schema(additional, f"{path}.additionalProperties", counted, depth + 1, root=False)
    items = schema.get("items")
    if items is not None:
        if isinstance(items, list):
            yield forbidden(f"{path}.items", "items must be a schema object and not an array")
        else:
            yield from _schema(items, f"{path}.items", counted, depth + 1, root=False)
    elif schema.get("type") == "array":
        yield required(f"{path}.items", "must be specified")
    for key in ("anyOf", "allOf", "oneOf"):
        for i, each in enumerate(schema.get(key) or ()):
            if not _says_int_or_string(schema, key, each):
                yield from _within(each, schema, f"{path}.{key}[{i}]", counted, depth + 1)
    if schema.get("not") is not None:
        yield from _within(schema["not"], schema, f"{path}.not", counted, depth + 1)


def _says_int_or_string(schema: Schema, key: str, each: Any) -> bool:
    """``anyOf: [{type: integer}, {type: string}]`` beside the extension, as generators write it."""
    return (
        bool(schema.get(INT_OR_STRING))
        and key in ("anyOf", "allOf")
        and each
        in (
            {"type": "integer"},
            {"type": "string"},
            {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        )
    )


def _type(schema: Schema, path: str, root: bool) -> Iterator[Cause]:
    kind = schema.get("type")
    if schema.get(INT_OR_STRING):
        if kind:
            yield forbidden(f"{path}.type", f"must be empty if {INT_OR_STRING} is true")
    elif kind is None or kind == "":
        if not schema.get(PRESERVE) and not root:
            yield required(
                f"{path}.type",
                "must not be empty for specified " + ("array items" if path.endswith(".items") else "object fields"),
            )
    elif kind not in _TYPES:
        yield unsupported(f"{path}.type", kind, list(_TYPES))


def _limits(schema: Schema, path: str) -> Iterator[Cause]:
    if schema.get("pattern"):
        try:
            compile_pattern(schema["pattern"])
        except ValueError as wrong:
            yield invalid(f"{path}.pattern", schema["pattern"], f"must be a valid regular expression, but isn't: {wrong}")
    if schema.get("enum") is not None and not schema["enum"]:
        yield required(f"{path}.enum", "must have at least one value")


def _extensions(schema: Schema, path: str) -> Iterator[Cause]:
    kind, list_type, keys = schema.get("type"), schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys")
    if schema.get(PRESERVE) is False:
        yield invalid(f"{path}.{PRESERVE}", False, "must be true or undefined")
    if schema.get(EMBEDDED):
        if kind != "object":
            yield invalid(f"{path}.type", kind or "", f"must be object if {EMBEDDED} is true")
        elif not schema.get("properties") and not schema.get(PRESERVE):
            yield required(f"{path}.properties", f"must not be empty if {EMBEDDED} is true without {PRESERVE}")
    if list_type is not None:
        if kind != "array":
            yield invalid(f"{path}.type", kind or "", "must be array if x-kubernetes-list-type is specified")
        if list_type not in ("atomic", "set", "map"):
            yield unsupported(f"{path}.x-kubernetes-list-type", list_type, ["atomic", "set", "map"])
    if schema.get("x-kubernetes-map-type") not in (None, "atomic", "granular"):
        yield unsupported(f"{path}.x-kubernetes-map-type", schema["x-kubernetes-map-type"], ["atomic", "granular"])
    if keys and list_type != "map":
        yield invalid(f"{path}.x-kubernetes-list-type", list_type, "must be map if x-kubernetes-list-map-keys is non-empty")
    if list_type == "map":
        if not keys:
            yield required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
        items = schema.get("items") or {}
        if isinstance(items, dict) and items.get("type") != "object":
            yield invalid(
                f"{path}.items.type", items.get("type"), "must be object if parent array's x-kubernetes-list-type is map"
            )
        for i, key in enumerate(keys or ()):
            child = child_of(items, key) if isinstance(items, dict) else None
            if child is None:
                yield invalid(f"{path}.x-kubernetes-list-map-keys[{i}]", key, "entries must all be names of item properties")
            elif key not in (items.get("required") or ()) and "default" not in child:
                text = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
                yield required(f"{path}.items.properties[{key}].default", text)


def _root_metadata(schema: Any, path: str) -> Iterator[Cause]:
    if not isinstance(schema, dict):
        return
    if schema.get("type") not in (None, "object"):
        yield invalid(f"{path}.type", schema["type"], "must be object")
    for key in (schema.get("properties") or {}).keys() - {"name", "generateName"}:
        yield forbidden(
            f"{path}.properties[{key}]",
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        )


def _within(schema: Any, outer: Schema, path: str, counted: list[int], depth: int) -> Iterator[Cause]:
    """Of a schema that only tests: what it says of fields must be known outside."""
    counted[0] += 1
    if not isinstance(schema, dict) or counted[0] > MAX_NODES or depth > MAX_DEPTH:
        yield invalid(path, "", f"must be a schema, of at most {MAX_DEPTH} levels and {MAX_NODES} parts in all")
        return
    for key in _ONLY_OUTSIDE:
        if schema.get(key) not in (None, False, "", []):
            yield forbidden(f"{path}.{key}", "must be empty to be structural")
    yield from _limits(schema, path)
    for key, child in (schema.get("properties") or {}).items():
        below = child_of(outer, key)
        if below is None:
            if outer.get(PRESERVE):
                continue
            outside = path.partition(".anyOf")[0].partition(".oneOf")[0].partition(".allOf")[0].partition(".not")[0]
            yield required(f"{outside}.properties[{key}]", f"because it is defined in {path}.properties[{key}]")
        else:
            yield from _within(child, below, f"{path}.properties[{key}]", counted, depth + 1)
    if isinstance(schema.get("items"), dict):
        yield from _within(schema["items"], outer.get("items") or {}, f"{path}.items", counted, depth + 1)
    for key in ("anyOf", "allOf", "oneOf"):
        for i, each in enumerate(schema.get(key) or ()):
            yield from _within(each, outer, f"{path}.{key}[{i}]", counted, depth + 1)
    if schema.get("not") is not None:
        yield from _within(schema["not"], outer, f"{path}.not", counted, depth + 1)


def _defaults(schema: Schema, path: str, validator: Validator, *, root: bool = False) -> Iterator[Cause]:
    """Each default must itself be as its schema wants it."""
    if not root and "default" in schema:
        value, unknown = copy.deepcopy(schema["default"]), []  # type: ignore[var-annotated]
        prune(value, schema, unknown)
        if unknown:
            yield invalid(f"{path}.default", schema["default"], f"must not have unknown fields: {', '.join(unknown)}")
        for cause in validator.of(schema["default"], schema):
            yield Cause(cause.reason, f"{path}.default{cause.field.removeprefix('<nil>')}", cause.message)
    children: Mapping[str, Any] = schema.get("properties") or {}
    for key, child in children.items():
        if not (root and key == "metadata"):
            yield from _defaults(child, f"{path}.properties[{key}]", validator)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _defaults(schema[key], f"{path}.{key}", validator)
