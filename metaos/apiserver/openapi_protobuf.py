"""The OpenAPI 2 document as protobuf, which is how kubectl asks for it to check a ``kind: List``. Pure.

Source: ``OpenAPIv2.proto`` of google/gnostic. Schemas only: no client reads the paths in this form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

MEDIA = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
#: As many clients ask for it, though no media type may be written so.
ASKED = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
_TEXTS = {"$ref": 1, "format": 2, "title": 3, "description": 4, "pattern": 13}
_NUMBERS = {"maxLength": 11, "minLength": 12, "maxItems": 14, "minItems": 15, "maxProperties": 17, "minProperties": 18}


def document(info: Mapping[str, str], definitions: Mapping[str, Any]) -> bytes:
    """``info``: title and version."""
    about = _text(1, info["title"]) + _text(2, info["version"])
    return _text(1, "2.0") + _field(2, about) + _field(9, _schemas(definitions))


def _schemas(found: Mapping[str, Any]) -> bytes:
    return b"".join(_field(1, _text(1, name) + _field(2, _schema(value))) for name, value in found.items())


def _schema(schema: Mapping[str, Any]) -> bytes:
    parts: list[bytes] = [_text(number, str(schema[key])) for key, number in _TEXTS.items() if key in schema]
    parts += [_varint(number << 3) + _varint(int(schema[key])) for key, number in _NUMBERS.items() if key in schema]
    parts += [_text(19, name) for name in schema.get("required") or ()]
    parts += [_field(20, _any(value)) for value in schema.get("enum") or ()]
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        parts.append(_field(21, _field(1, _schema(more))))
    elif more is not None:
        parts.append(_field(21, _varint(2 << 3) + _varint(int(more))))
    kinds = schema.get("type")
    if kinds:
        parts.append(_field(22, b"".join(_text(1, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))))
    if "items" in schema:
        parts.append(_field(23, _field(1, _schema(schema["items"]))))
    parts += [_field(24, _schema(part)) for part in schema.get("allOf") or ()]
    if schema.get("properties"):
        parts.append(_field(25, _schemas(schema["properties"])))
    parts += [_field(31, _text(1, key) + _field(2, _any(value))) for key, value in _extensions(schema)]
    return b"".join(parts)


def _extensions(schema: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((key, value) for key, value in schema.items() if key.startswith("x-"))


def _any(value: Any) -> bytes:
    """As YAML, which JSON is."""
    return _text(2, json.dumps(value))


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
