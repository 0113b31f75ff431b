"""Whether a value is as a structural schema says, in the words of Kubernetes. Pure.

What an update leaves as it was is not looked at again, so that a stricter schema does not lock in what was there before.
Patterns are RE2's, as in Kubernetes: their time grows with the text only.
Source: ``k8s.io/kube-openapi/pkg/validation`` and ``apiextensions-apiserver/pkg/apiserver/validation``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import orjson

from metaos.apiserver.custom.structural import EMBEDDED, INT_OR_STRING, Schema, child_of
from metaos.apiserver.schema import duplicate, invalid, required, too_many, unsupported
from metaos.resources.errors import Cause

ABSENT: Any = object()
#: Of one object; more would help nobody.
MAX_CAUSES = 100


def type_of(value: Any) -> str:
    """As JSON schema calls it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _fits(kind: str, value: Any) -> bool:
    actual = type_of(value)
    if kind == "integer":
        return actual == "integer" or (actual == "number" and float(value).is_integer())
    return actual == kind or (kind == "number" and actual == "integer")


class Validator:
    """One schema. Patterns are compiled when they are first needed and kept."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._patterns: dict[str, Any] = {}

    def causes(self, value: Any, old: Any = ABSENT) -> list[Cause]:
        """Everything that is wrong with a whole object, at most ``MAX_CAUSES``."""
        found: list[Cause] = []
        for cause in self._check(value, self._schema, "", old, root=True):
            found.append(cause)
            if len(found) == MAX_CAUSES:
                break
        return found

    def of(self, value: Any, schema: Schema) -> list[Cause]:
        """Of a value by itself, such as a default."""
        return list(self._check(value, schema, "", ABSENT))

    def _check(self, value: Any, schema: Schema, path: str, old: Any, *, root: bool = False) -> Iterator[Cause]:
        if old is not ABSENT and old == value and not root:
            return
        if value is None and schema.get("nullable"):
            return
        wanted = schema.get("type")
        if schema.get(INT_OR_STRING):
            if type_of(value) not in ("integer", "string"):
                yield _invalid(path, type_of(value), f'must be of type integer,string: "{type_of(value)}"')
                return
        elif wanted and not _fits(wanted, value):
            yield _type(path, wanted, type_of(value))
            return
        yield from self._scalar(value, schema, path)
        if isinstance(value, list):
            yield from self._list(value, schema, path, old)
        elif isinstance(value, dict):
            yield from self._map(value, schema, path, old, root)
        yield from self._combined(value, schema, path)

    def _scalar(self, value: Any, schema: Schema, path: str) -> Iterator[Cause]:
        if schema.get("enum") is not None and value not in schema["enum"]:
            yield unsupported(
                path, value, [each if isinstance(each, str) else orjson.dumps(each).decode() for each in schema["enum"]]
            )
        if isinstance(value, str):
            longest, shortest = schema.get("maxLength"), schema.get("minLength")
            if longest is not None and len(value) > longest:
                yield Cause("FieldValueTooLong", path, f"Too long: may not be more than {longest} bytes")
            if shortest is not None and len(value) < shortest:
                yield _invalid(path, value, f"should be at least {shortest} chars long")
            if schema.get("pattern") and not self._matches(schema["pattern"], value):
                yield _invalid(path, value, f"should match '{schema['pattern']}'")
            test = _FORMATS.get(str(schema.get("format") or "").replace("-", ""))
            if test is not None and not test(value):
                yield _invalid(path, value, f'must be of type {schema["format"]}: "{value}"')
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield from _numbers(value, schema, path)

    def _matches(self, pattern: str, value: str) -> bool:
        compiled = self._patterns.get(pattern)
        if compiled is None:
            compiled = self._patterns[pattern] = compile_pattern(pattern)
        return compiled.search(value) is not None

    def _list(self, value: list[Any], schema: Schema, path: str, old: Any) -> Iterator[Cause]:
        most, least = schema.get("maxItems"), schema.get("minItems")
        if most is not None and len(value) > most:
            yield too_many(path, len(value), most)
        if least is not None and len(value) < least:
            yield _invalid(path, len(value), f"should have at least {least} items")
        items = schema.get("items")
        if isinstance(items, dict):
            before = _earlier(schema, value, old)
            for i, item in enumerate(value):
                yield from self._check(item, items, f"{path}[{i}]", before(i))
        yield from _doubles(value, schema, path)

    def _map(self, value: dict[str, Any], schema: Schema, path: str, old: Any, root: bool) -> Iterator[Cause]:
        most, least = schema.get("maxProperties"), schema.get("minProperties")
        if most is not None and len(value) > most:
            yield too_many(path, len(value), most)
        if least is not None and len(value) < least:
            yield _invalid(path, len(value), f"should have at least {least} properties")
        for key in schema.get("required") or ():
            if key not in value:
                yield required(f"{path}.{key}" if path else key)
        if schema.get(EMBEDDED):
            for key in ("apiVersion", "kind"):
                if not value.get(key):
                    yield required(f"{path}.{key}", "must not be empty")
        for key, child in value.items():
            if root and key in ("apiVersion", "kind", "metadata"):
                continue
            below = child_of(schema, key)
            if below is not None:
                earlier = old.get(key, ABSENT) if isinstance(old, dict) else ABSENT
                yield from self._check(child, below, f"{path}.{key}" if path else key, earlier)
        if root and isinstance(value.get("metadata"), dict):
            below = (schema.get("properties") or {}).get("metadata")
            if below:
                yield from self._check(value["metadata"], below, "metadata", ABSENT)

    def _combined(self, value: Any, schema: Schema, path: str) -> Iterator[Cause]:
        for each in schema.get("allOf") or ():
            yield from self._check(value, each, path, ABSENT)
        some = schema.get("anyOf")
        if some and not schema.get(INT_OR_STRING) and not any(self._holds(value, each) for each in some):
            yield _invalid(path, value, "must validate at least one schema (anyOf)")
        one = schema.get("oneOf")
        if one and (count := sum(self._holds(value, each) for each in one)) != 1:
            text = "must validate one and only one schema (oneOf). " + (
                "Found none valid" if not count else f"Found {count} valid alternatives"
            )
            yield _invalid(path, value, text)
        if schema.get("not") is not None and self._holds(value, schema["not"]):
            yield _invalid(path, value, "must not validate the schema (not)")

    def _holds(self, value: Any, schema: Schema) -> bool:
        return next(self._check(value, schema, "", ABSENT), None) is None


def _earlier(schema: Schema, value: list[Any], old: Any) -> Callable[[int], Any]:
    """The item that stood for the one at a place before: by its keys where it has some. Items of atomic lists have none."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if not keys or not isinstance(old, list):
        return lambda place: ABSENT
    held = {orjson.dumps([each.get(key) for key in keys]): each for each in old if isinstance(each, dict)}

    def before(place: int) -> Any:
        item = value[place]
        return held.get(orjson.dumps([item.get(key) for key in keys]), ABSENT) if isinstance(item, dict) else ABSENT

    return before


def _doubles(value: list[Any], schema: Schema, path: str) -> Iterator[Cause]:
    kind, keys = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys") or ()
    if kind not in ("set", "map"):
        return
    defaults = {key: (child_of(schema.get("items") or {}, key) or {}).get("default") for key in keys}
    seen: set[bytes] = set()
    for i, item in enumerate(value):
        identity = item
        if kind == "map":
            if not isinstance(item, dict):
                yield invalid(f"{path}[{i}]", item, "must be an object for an array of list-type map")
                continue
            identity = {key: item.get(key, defaults[key]) for key in keys if item.get(key, defaults[key]) is not None}
        encoded = orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)
        if encoded in seen:
            yield duplicate(f"{path}[{i}]", identity)
        seen.add(encoded)


def _numbers(value: float, schema: Schema, path: str) -> Iterator[Cause]:
    most, least, step = schema.get("maximum"), schema.get("minimum"), schema.get("multipleOf")
    if most is not None:
        if schema.get("exclusiveMaximum") and value >= most:
            yield _invalid(path, value, f"should be less than {most}")
        elif value > most:
            yield _invalid(path, value, f"should be less than or equal to {most}")
    if least is not None:
        if schema.get("exclusiveMinimum") and value <= least:
            yield _invalid(path, value, f"should be greater than {least}")
        elif value < least:
            yield _invalid(path, value, f"should be greater than or equal to {least}")
    if step and not _multiple(value, step):
        yield _invalid(path, value, f"should be a multiple of {step}")
    bits = {"int32": 31, "int64": 63}.get(str(schema.get("format")))
    if bits and isinstance(value, int) and not -(2**bits) <= value < 2**bits:
        yield _invalid(path, value, f"must be of type {schema['format']}")


def _multiple(value: float, step: float) -> bool:
    if isinstance(value, int) and isinstance(step, int):
        return value % step == 0
    return float(value / step).is_integer()


def _invalid(path: str, value: Any, text: str) -> Cause:
    return invalid(path or "<nil>", value, f"{path} in body {text}")


def _type(path: str, wanted: str, actual: str) -> Cause:
    shown = invalid(path or "<nil>", actual, f'{path} in body must be of type {wanted}: "{actual}"')
    return Cause("FieldValueTypeInvalid", shown.field, shown.message)


def compile_pattern(pattern: str) -> Any:
    """Raises ``ValueError`` where it is no pattern of RE2."""
    import re2  # Loaded with the first pattern.

    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(pattern, options=options)
    except re2.error as wrong:
        text = wrong.args[0] if wrong.args else ""
        raise ValueError(text.decode() if isinstance(text, bytes) else str(text)) from None


# -- formats -------------------------------------------------------------------------------------------------

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z")
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])\Z")
_UUID = re.compile(r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}\Z")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?)*\Z")
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}\Z")
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,255}\Z")
_DURATION = re.compile(r"[-+]?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h|d|w))+\Z|\d+\s*[a-z]+\Z")


def _address(version: int) -> Callable[[str], bool]:
    def test(text: str) -> bool:
        try:
            return ip_address(text).version == version
        except ValueError:
            return False

    return test


def _network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" in text


def _base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _uri(text: str) -> bool:
    try:
        return bool(urlsplit(text).scheme) or text.startswith("/")
    except ValueError:
        return False


_FORMATS: Mapping[str, Callable[[str], bool]] = {
    "datetime": lambda text: _TIME.match(text) is not None,
    "date": lambda text: _DATE.match(text) is not None,
    "uuid": lambda text: _UUID.match(text) is not None,
    "hostname": lambda text: _HOST.match(text) is not None,
    "mac": lambda text: _MAC.match(text) is not None,
    "email": lambda text: _EMAIL.match(text) is not None,
    "duration": lambda text: _DURATION.match(text) is not None,
    "ipv4": _address(4),
    "ipv6": _address(6),
    "cidr": _network,
    "byte": _base64,
    "uri": _uri,
}
