"""Many devices at once: rows of a CSV file, and of a DeviceBatch. Pure.

Columns: ``name`` (needed), ``owner``, ``place``, ``latitude``, ``longitude``, ``labels`` (``a=b;c=d``), any ``label.KEY`` and
``desired`` (a JSON object). A row is a dict as in ``DeviceBatch.spec.devices``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import Any

from metaos.resources.meta import Obj

#: Of one request.
MOST_DEVICES = 10_000
_PLAIN = ("name", "owner")
_NUMBERS = ("latitude", "longitude")
COLUMNS = (*_PLAIN, "place", *_NUMBERS, "labels", "desired")
_LABEL = "label."


def rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Of a CSV file with a header. Raises ``ValueError`` naming the line, the column, the value and the remedy."""
    reader = csv.reader(lines)
    header = [cell.strip() for cell in next(reader, [])]
    if "name" not in header:
        raise ValueError(
            f"line 1: the columns are {', '.join(header) or 'none'}: one must be called name; all are {', '.join(COLUMNS)}"
        )
    for column in header:
        if column not in COLUMNS and not column.startswith(_LABEL):
            raise ValueError(f"line 1: column {column!r} is none of {', '.join(COLUMNS)} and label.KEY: rename it")
    if len(set(header)) != len(header):
        raise ValueError(f"line 1: a column stands there twice in {', '.join(header)}: leave one out")
    found: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for cells in reader:
        line = reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise ValueError(f"line {line}: {len(cells)} values for {len(header)} columns: give each line all of them")
        row = _row({key: cell.strip() for key, cell in zip(header, cells, strict=True)}, line)
        if row["name"] in seen:
            raise ValueError(f"line {line}: name {row['name']!r} stands in line {seen[row['name']]} already: names are unique")
        seen[row["name"]] = line
        found.append(row)
    return found


def _row(cells: dict[str, str], line: int) -> dict[str, Any]:
    if not cells["name"]:
        raise ValueError(f"line {line}: name is empty: every device needs one")
    row: dict[str, Any] = {key: cells[key] for key in _PLAIN if cells.get(key)}
    location: dict[str, Any] = {"place": cells["place"]} if cells.get("place") else {}
    for key in _NUMBERS:
        if cells.get(key):
            try:
                location[key] = float(cells[key])
            except ValueError:
                raise ValueError(f"line {line}: {key} {cells[key]!r} must be degrees as a number, for example 48.2") from None
    if location:
        row["location"] = location
    labels = {key.removeprefix(_LABEL): value for key, value in cells.items() if key.startswith(_LABEL) and value}
    for pair in filter(None, (part.strip() for part in cells.get("labels", "").split(";"))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"line {line}: labels {pair!r} must be KEY=VALUE, several of them apart by ';'")
        labels[key.strip()] = value.strip()
    if labels:
        row["labels"] = labels
    if cells.get("desired"):
        try:
            row["desired"] = json.loads(cells["desired"])
        except ValueError as error:
            raise ValueError(f"line {line}: desired {cells['desired'][:80]!r} must be a JSON object: {error}") from None
        if not isinstance(row["desired"], dict):
            raise ValueError(f"line {line}: desired {cells['desired'][:80]!r} must be a JSON object, in braces")
    return row


def device(row: Obj) -> dict[str, Any]:
    """``labels`` and ``spec`` of a row's Device, whose first credential is made with it."""
    spec: dict[str, Any] = {key: row[key] for key in ("owner", "location", "desired") if row.get(key)}
    return {"labels": dict(row.get("labels") or {}), "spec": spec | {"credential": {"generation": 1}}}
