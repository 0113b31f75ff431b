"""Protobuf bodies of native kinds, decoded to their JSON shape. Pure.

kubectl sends what it builds with typed clients (``create configmap``, ``auth whoami``, the evictions of ``drain``) as
protobuf, without another try in JSON. Answers are always JSON, which every client reads. Field numbers are data
(``protobuf.json``, made from Kubernetes' Go types by ``tools/protobuf_fields.py``).
Source: protobuf.dev, "Encoding"; ``k8s.io/apimachinery/pkg/runtime`` (``Unknown``).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import orjson

from metaos.apiserver.messages import messages
from metaos.apiserver.schema import OWN, definition_name
from metaos.resources import errors
from metaos.resources.meta import Obj
from metaos.resources.scheme import KINDS

MEDIA = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Malformed(ValueError):
    pass


@cache
def _message_names() -> dict[tuple[str, str], str]:
    found = {(k.api_version, k.kind): definition_name(k).removeprefix("io.k8s.api.") for k in KINDS if k.group not in OWN}
    parts = ("autoscaling.v1.Scale", "policy.v1.Eviction")
    found |= {(part.rpartition(".")[0].replace(".", "/"), part.rpartition(".")[2]): part for part in parts}
    return found | {("authentication.k8s.io/v1", "TokenRequest"): "authentication.v1.TokenRequest"}


def decoded(body: bytes) -> Obj:
    """The object in a body of media type ``application/vnd.kubernetes.protobuf``. Raises ``ApiError`` 400 or 415."""
    if not body.startswith(MAGIC):
        raise errors.bad_request("the body of the request is not protobuf in Kubernetes' envelope")
    try:
        envelope = dict(_fields(body[len(MAGIC) :]))
        kind = {number: _text(value) for number, value in _fields(_octets(envelope.get(1, b"")))}
        api_version, name = kind.get(1, ""), kind.get(2, "")
        message = "meta.v1.DeleteOptions" if name == "DeleteOptions" else _message_names().get((api_version, name))
        if message is None:
            raise errors.unsupported_media_type(f"{name} in {api_version} is not read as protobuf: send application/json")
        return {"apiVersion": api_version, "kind": name, **_message(message, _octets(envelope.get(2, b"")))}
    except (ValueError, struct.error, OverflowError, OSError) as wrong:
        raise errors.bad_request(f"the body of the request is not protobuf: {wrong}") from None


# -- the wire ----------------------------------------------------------------------------------------------


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise _Malformed("a number is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and raw value of each field: an integer, or bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            length, position = _varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise _Malformed(f"wire type {wire} is not known")
        if position + length > len(data):
            raise _Malformed("a field is cut short")
        yield key >> 3, data[position : position + length]
        position += length


def _octets(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise _Malformed("a number stands where bytes must be")
    return value


def _text(value: int | bytes) -> str:
    return _octets(value).decode()


def _integer(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise _Malformed("bytes stand where a number must be")
    return value - (1 << 64) if value >> 63 else value


# -- messages ----------------------------------------------------------------------------------------------


def _message(name: str, data: bytes) -> Obj:
    fields, found = messages()[name], Obj()
    for number, raw in _fields(data):
        known = fields.get(number)
        if known is None:
            continue  # Of a newer release than the schemas here.
        key, kind, flags = known
        if "i" in flags:
            found |= _message(kind, _octets(raw))
        elif "m" in flags:
            entry = dict(_fields(_octets(raw)))
            value = _value(kind, entry[2]) if 2 in entry else _empty(kind)
            found.setdefault(key, {})[_text(entry.get(1, b""))] = value
        elif "r" in flags:
            listed = found.setdefault(key, [])
            if kind == "int" and isinstance(raw, bytes):
                listed.extend(_packed(raw))
            else:
                listed.append(_value(kind, raw))
        else:
            value = _value(kind, raw)
            # What is no pointer is always on the wire; a zero there means that it was left out.
            if value is not None and ("p" in flags or value not in ("", 0, False, {})):
                found[key] = value
    return found


def _packed(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield _integer(value)


def _empty(kind: str) -> Any:
    return {"string": "", "bytes": "", "list": [], "quantity": "0", "int": 0, "bool": False}.get(kind, {})


def _value(kind: str, raw: int | bytes) -> Any:
    if kind == "string":
        return _text(raw)
    if kind == "int":
        return _integer(raw)
    if kind == "bool":
        return bool(_integer(raw))
    if kind == "bytes":
        return base64.b64encode(_octets(raw)).decode()
    data = _octets(raw)
    if kind == "double":
        return struct.unpack("<d", data)[0]
    if kind in ("time", "microtime"):
        return _time(data, micro=kind == "microtime")
    parts = dict(_fields(data)) if kind in ("quantity", "intOrString", "raw") else {}
    if kind == "quantity":
        return _text(parts.get(1, b"0"))
    if kind == "intOrString":
        return _text(parts.get(3, b"")) if parts.get(1) else _integer(parts.get(2, 0))
    if kind == "raw":
        return orjson.loads(_octets(parts.get(1, b"null")))
    if kind == "list":
        return [_text(item) for _, item in _fields(data)]
    return _message(kind, data)


def _time(data: bytes, *, micro: bool) -> str | None:
    """``Timestamp`` (seconds, nanoseconds); one without any field is no time at all."""
    parts = {number: _integer(value) for number, value in _fields(data)}
    if not parts:
        return None
    moment = datetime.fromtimestamp(parts.get(1, 0), UTC)
    if moment.year < 1970:
        return None  # Go's zero time.
    if micro:
        return moment.replace(microsecond=parts.get(2, 0) // 1000).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
