"""Reading a site file: one Cluster manifest in YAML, small, plain, and as the schema says. Never loaded by the agent itself.

The file decides what the federation may do on a machine, so nothing in it is guessed: what is unknown, doubled, of the
wrong type or not a finite number is an error that names the field, the value and the remedy.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from metaos.resources import quantity
from metaos.resources.meta import API_VERSION

#: A site's name: it becomes part of namespace names, which have 63 characters at most.
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")
MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
MAX_PROBLEMS = 10
_SCHEMA = Path(__file__).parent.parent / "resources/schemas/cluster.yaml"
_QUANTITY = "#/$defs/io.k8s.apimachinery.pkg.api.resource.Quantity"
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "labels": _TEXTS, "annotations": _TEXTS},
    "x-kubernetes-preserve-unknown-fields": True,
}
_WORDS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "object": ("a map of fields", dict),
    "array": ("a list", list),
    "string": ("text; put it in quotes", str),
    "boolean": ("true or false", bool),
    "integer": ("a whole number", int),
    "number": ("a number", (int, float)),
}


class _Plain(yaml.SafeLoader):
    """YAML without aliases, keys that come twice, or depth."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not taken in a site file: write the value out", problem_mark=mark
            )
        if self._depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"it is nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"the field name {key!r} must be text: put it in quotes"
            elif key in seen:
                problem = f"the field {key!r} is there twice: keep one of them"
            else:
                seen.add(key)
                continue
            raise yaml.MarkedYAMLError(problem=problem[:300], problem_mark=key_node.start_mark)
        return super().construct_mapping(node, deep)


def read_site(path: Path) -> dict[str, Any]:
    """The one Cluster manifest in a YAML file. Raises ``ValueError`` saying what is wrong with it, or ``OSError``."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"site file {path} has more than {MAX_BYTES} bytes: is it another file?")
    try:
        documents = [d for d in yaml.load_all(content, _Plain) if d is not None]
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # ``ValueError``: a number or date of a form that YAML has and Python has not.
        raise ValueError(f"site file {path} is not YAML, or more than plain YAML: {_said(error)}") from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise ValueError(f"site file {path} must hold one Cluster manifest, it holds {len(documents)} documents")
    site: dict[str, Any] = documents[0]
    metadata = site.get("metadata")
    if site.get("apiVersion") != API_VERSION or site.get("kind") != "Cluster" or not isinstance(metadata, dict):
        raise ValueError(
            f"site file {path} must be a manifest of 'apiVersion: {API_VERSION}', 'kind: Cluster' with metadata.name"
        )
    found = metadata.get("name")
    if not isinstance(found, str) or not NAME.fullmatch(found):
        raise ValueError(
            f"site file {path}: metadata.name {_shown(found)} must be 1 to 50 lower-case letters, digits or '-', "
            "beginning and ending with a letter or digit"
        )
    wrong = [text for _, text in zip(range(MAX_PROBLEMS), _problems(site), strict=False)]
    if wrong:
        raise ValueError(f"site file {path}: {'; '.join(wrong)}")
    return site


def spec_problems(spec: Any) -> Iterator[str]:
    """What in a Cluster's spec is not as the schema says, each as ``spec.field: what, and the remedy``."""
    yield from _unlike(spec, _fields()["spec"], "spec")


def _said(error: Exception) -> str:
    problem, mark = getattr(error, "problem", None) or str(error), getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return " ".join(str(problem).split())[:300] + where


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


@cache
def _fields() -> dict[str, Any]:
    with _SCHEMA.open() as file:
        found: dict[str, Any] = yaml.safe_load(file)["properties"]
    return found


def _problems(site: dict[str, Any]) -> Iterator[str]:
    fields = _fields()
    known = {"apiVersion": {}, "kind": {}, "metadata": _METADATA, "spec": fields["spec"], "status": {}}
    yield from _unlike(site, {"type": "object", "properties": known}, "")


def _unlike(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    if schema.get("$ref") == _QUANTITY:
        yield from _no_quantity(value, path)
        return
    wanted = schema.get("type")
    if wanted is None or value is None:
        yield from _no_json(value, path)
        return
    words, kind = _WORDS[wanted]
    fits = isinstance(value, kind) and (isinstance(value, bool) == (wanted == "boolean"))
    if not fits:
        yield f"{path or 'it'}: {_shown(value)} must be {words}"
    elif wanted == "object":
        yield from _unlike_object(value, schema, path)
    elif wanted == "array":
        for index, item in enumerate(value):
            yield from _unlike(item, schema.get("items") or {}, f"{path}[{index}]")
    elif schema.get("enum") and value not in schema["enum"]:
        yield f"{path}: {_shown(value)} must be one of {', '.join(map(str, schema['enum']))}"
    elif wanted in ("integer", "number"):
        yield from _out_of_range(value, schema, path)
    elif wanted == "string" and len(value) < schema.get("minLength", 0):
        yield f"{path}: it is empty; {schema.get('description', '')}"
    elif schema.get("pattern") and not re.search(schema["pattern"], value):
        yield f"{path}: {_shown(value)} must be of the form {schema['pattern']}; {schema.get('description', '')}"


def _unlike_object(value: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
    known: dict[str, Any] = schema.get("properties") or {}
    for name in schema.get("required") or ():
        if name not in value:
            yield f"{path}.{name}: it is missing; {known.get(name, {}).get('description', '')}"
    for key, part in value.items():
        where = f"{path}.{key}".lstrip(".")
        if key in known:
            yield from _unlike(part, known[key], where)
        elif isinstance(schema.get("additionalProperties"), dict):
            yield from _unlike(part, schema["additionalProperties"], where)
        elif schema.get("x-kubernetes-preserve-unknown-fields"):
            yield from _no_json(part, where)
        else:
            near = difflib.get_close_matches(key, known, 1)
            meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            yield f"{where[:120]}: there is no such field; {meant}"


def _out_of_range(value: float, schema: dict[str, Any], path: str) -> Iterator[str]:
    least, most = schema.get("minimum"), schema.get("maximum")
    if not math.isfinite(value) or abs(value) >= 2**63:
        yield f"{path}: {_shown(value)} must be a finite number below 2^63"
    elif least is not None and value < least:
        yield f"{path}: {_shown(value)} must be at least {least}"
    elif most is not None and value > most:
        yield f"{path}: {_shown(value)} must be at most {most}"


def _no_quantity(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > 64:
        yield f"{path}: {_shown(value)} must be a quantity, for example 500m or 1.5Gi"
        return
    try:
        if quantity.parse(value) < 0:
            yield f"{path}: {_shown(value)} must not be negative; leave it out for no limit beyond the machine's own"
    except ValueError as error:
        yield f"{path}: {error}"


def _no_json(value: Any, path: str) -> Iterator[str]:
    """What has no schema must at least be JSON."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _no_json(part, f"{path}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _no_json(part, f"{path}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _out_of_range(value, {}, path)
    elif value is not None and not isinstance(value, bool | str):
        yield f"{path}: {_shown(value)} must be text; put it in quotes"
