"""Tables: the columns that ``kubectl get`` prints, made here. Pure; columns are data (``tables.yaml``).

A column is ``{name, path}`` or ``{name, fn}``: ``fn`` names one of :data:`CELLS`, a function of the object and the time
now. ``wide: true`` is priority 1 (``-o wide``). Source: ``k8s.io/kubernetes/pkg/printers/internalversion``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from metaos.apiserver import cells, cells_beyond, cells_continuum
from metaos.apiserver.cells import NONE, Cell
from metaos.apiserver.customkind import CustomKind
from metaos.resources.meta import Obj, name
from metaos.resources.scheme import Kind

CELLS = {**cells.CELLS, **cells_beyond.CELLS, **cells_continuum.CELLS}


@dataclass(frozen=True, slots=True)
class Column:
    """One column; ``cell`` makes its value."""

    name: str
    type: str
    format: str
    description: str
    priority: int
    cell: Cell

    def definition(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        }


_NAME = {"name": "Name", "fn": "name", "format": "name"}
_AGE = {"name": "Age", "fn": "age"}


def columns(kind: Kind) -> tuple[Column, ...]:
    """A kind's columns; those without any of their own have a name and an age."""
    return kind.columns if isinstance(kind, CustomKind) else _native_columns(kind)


@cache
def _native_columns(kind: Kind) -> tuple[Column, ...]:
    found = _tables().get(kind.resource, [])
    listed = [_NAME, *found] if not any(c["name"] == "Name" for c in found) else found
    if not any(c.get("fn") in ("age", "last_seen", "created") for c in listed):
        listed = [*listed, _AGE]
    return tuple(_column(each) for each in listed)


@cache
def _tables() -> dict[str, list[dict[str, Any]]]:
    text = (resources.files(__package__) / "tables.yaml").read_text("utf-8")
    loaded: dict[str, list[dict[str, Any]]] = yaml.safe_load(text)
    return loaded


def _column(data: dict[str, Any]) -> Column:
    cell = CELLS[data["fn"]] if "fn" in data else _path(data["path"], data.get("default", NONE))
    return Column(
        data["name"],
        data.get("type", "string"),
        data.get("format", ""),
        data.get("description", ""),
        1 if data.get("wide") else 0,
        cell,
    )


def _path(path: str, default: Any) -> Cell:
    parts = path.split(".")

    def cell(obj: Obj, now: float) -> Any:
        value: Any = obj
        for part in parts:
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None or value == "" else value

    return cell


def row(kind: Kind, obj: Obj, now: float, include: str) -> dict[str, Any]:
    """One object's row. ``include``: ``None``, ``Metadata`` or ``Object``."""
    found: dict[str, Any] = {"cells": [column.cell(obj, now) for column in columns(kind)]}
    if include == "Object":
        found["object"] = obj
    elif include != "None":
        found["object"] = partial(obj)
    return found


def table(
    kind: Kind, objects: Iterable[Obj], now: float, *, metadata: Obj, include: str = "", version: str = "v1", header: bool = True
) -> Obj:
    """A ``meta.k8s.io`` Table. Without ``header`` the columns are left out (later events of a watch)."""
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": metadata,
        "columnDefinitions": [column.definition() for column in columns(kind)] if header else [],
        "rows": [row(kind, obj, now, include) for obj in objects],
    }


def partial(obj: Obj, version: str = "v1") -> Obj:
    """An object's PartialObjectMetadata."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": obj.get("metadata") or {"name": name(obj)},
    }
