"""The columns of ``additionalPrinterColumns``, and the JSON paths that they name. Pure.

A path is what Kubernetes takes here: fields, indexes, ``[*]`` and filters such as ``[?(@.type=="Ready")]``; of several values
the first counts. Source: ``k8s.io/client-go/util/jsonpath`` and ``apiextensions-apiserver/…/tableconvertor``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from metaos.apiserver.cells import Cell, age, human_duration
from metaos.apiserver.table import Column
from metaos.resources.meta import Obj, name, parse_time

#: Of one path, so that none takes long to read or to follow.
MAX_PATH = 1024

_STEP = re.compile(
    r"\.(?P<field>(?:[^.\[\\]|\\.)+)"
    r"|\[\s*'(?P<single>[^']*)'\s*\]|\[\s*\"(?P<double>[^\"]*)\"\s*\]"
    r"|\[\s*(?P<index>-?\d+)\s*\]|(?P<all>\[\s*\*\s*\]|\.\*)"
    r"|\[\?\(\s*@(?P<path>[^=!<>)]*?)\s*(?P<op>==|!=|>=|<=|>|<)\s*(?P<value>'[^']*'|\"[^\"]*\"|[^)]*?)\s*\)\]"
    r"|\[\?\(\s*@(?P<there>[^=!<>)]*?)\s*\)\]"
)
Step = Callable[[Any], Iterator[Any]]


def path(text: str) -> Callable[[Any], list[Any]]:
    """A function from an object to the values at a path. Raises ``ValueError`` where it is none."""
    if len(text) > MAX_PATH:
        raise ValueError(f"a path may have {MAX_PATH} characters")
    plain = text.strip()
    if plain.startswith("{") and plain.endswith("}"):
        plain = plain[1:-1]
    plain = plain.removeprefix("$").removeprefix("@")
    if plain and plain[0] not in ".[":
        raise ValueError(f"{text!r} is no path: it must begin with a dot")
    steps, place = [], 0
    while place < len(plain):
        found = _STEP.match(plain, place)
        if found is None:
            raise ValueError(f"{text!r} is no path: what is at {plain[place : place + 20]!r} is not understood")
        steps.append(_step(found))
        place = found.end()

    def follow(value: Any) -> list[Any]:
        values = [value]
        for step in steps:
            values = [below for each in values for below in step(each)]
        return values

    return follow


def _step(found: re.Match[str]) -> Step:
    kind = found.lastgroup
    if found["all"]:
        return lambda value: iter(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    if found["index"] is not None:
        index = int(found["index"])
        return lambda value: iter([value[index]] if isinstance(value, list) and -len(value) <= index < len(value) else ())
    if kind == "there":
        present = path(found["there"] or "")
        return lambda value: (each for each in _items(value) if present(each))
    if found["op"]:
        inner, wanted = path(found["path"] or ""), _literal(found["value"])
        test = _TESTS[found["op"]]
        return lambda value: (each for each in _items(value) if any(test(held, wanted) for held in inner(each)))
    key = next(found[each] for each in ("field", "single", "double") if found[each] is not None)
    key = re.sub(r"\\(.)", r"\1", key)
    return lambda value: iter([value[key]] if isinstance(value, dict) and key in value else ())


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []


def _literal(text: str) -> Any:
    if text[:1] in "'\"":
        return text[1:-1]
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _ordered(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compared(one: Any, other: Any) -> bool:
        try:
            return test(one, other)
        except TypeError:
            return False

    return compared


_TESTS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": lambda one, other: one == other and isinstance(one, bool) == isinstance(other, bool),
    "!=": lambda one, other: one != other,
    ">": _ordered(lambda one, other: one > other),
    "<": _ordered(lambda one, other: one < other),
    ">=": _ordered(lambda one, other: one >= other),
    "<=": _ordered(lambda one, other: one <= other),
}


# -- cells ---------------------------------------------------------------------------------------------------

_NAME = Column("Name", "string", "name", "", 0, lambda obj, now: name(obj))
_AGE = Column("Age", "date", "", "", 0, age)


def columns(entry: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of one version of a definition: without any of its own, the name and the age."""
    own = entry.get("additionalPrinterColumns") or ()
    if not own:
        return _NAME, _AGE
    return _NAME, *(
        Column(
            each["name"],
            each["type"],
            each.get("format", ""),
            each.get("description", ""),
            each.get("priority", 0),
            _cell(each["type"], path(each["jsonPath"])),
        )
        for each in own
    )


def _cell(kind: str, follow: Callable[[Any], list[Any]]) -> Cell:
    def cell(obj: Obj, now: float) -> Any:
        found = follow(obj)
        return None if not found or found[0] is None else _shown(kind, found[0], now)

    return cell


def _shown(kind: str, value: Any, now: float) -> Any:
    if kind == "integer":
        return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind == "number":
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    if kind == "date":
        try:
            return human_duration(now - parse_time(value)) if isinstance(value, str) else None
        except ValueError:
            return "<invalid>"
    if isinstance(value, str):
        return value
    return orjson.dumps(value).decode()
