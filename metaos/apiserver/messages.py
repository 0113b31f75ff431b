"""The protobuf messages of native kinds as data (``protobuf.json``, made by ``tools/protobuf_fields.py``): field numbers
for bodies in protobuf, and for all others what the published schemas do not say: which fields are pointers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources

import orjson

#: Number → (JSON name, type, flags). Flags: p pointer (a zero is meant), r repeated, m map of strings to the type, i inline.
Fields = dict[int, tuple[str, str, str]]


@cache
def messages() -> Mapping[str, Fields]:
    raw = orjson.loads((resources.files(__package__) / "protobuf.json").read_bytes())
    return {name: {int(n): (f[0], f[1], f[2]) for n, f in fields.items()} for name, fields in raw.items()}


@cache
def message_of(definition: str) -> Mapping[str, tuple[str, str]]:
    """JSON name → (type, flags) of a native definition's fields, inlined ones too; empty where it is no message."""
    name = definition.removeprefix("io.k8s.api.").removeprefix("io.k8s.apimachinery.pkg.apis.")
    found: dict[str, tuple[str, str]] = {}
    for key, kind, flags in messages().get(name, {}).values():
        if "i" in flags:
            found |= message_of(kind)
        else:
            found[key] = (kind, flags)
    return found
