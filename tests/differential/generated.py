"""Objects made from the schema: for each kind a valid one, changed at random places into others, most of them wrong.

Seeded: the same seed gives the same requests. A change picks a field that the schema has (fields that only newer
versions have are left alone by being absent from the compared server's schema), and gives it another value of its type,
an edge of it, a value of another type, or takes it away.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from metaos.apiserver.schema import Node, node_of
from tests.differential.cases import BY_PLURAL, Step

SEEDS = Path(__file__).with_name("seeds.yaml")
_TEXTS = ("", "a", "web", "UPPER", "with space", "a/b", "-", "1", "x" * 70, "None", "None.such")
_NUMBERS = (0, 1, -1, 5, 80, 65535, 65536, 2**31 - 1)
_AMOUNTS = ("1", "100m", "1Gi", "0", "-1", "lots")


@dataclass(frozen=True, slots=True)
class Place:
    """A field of an object: ``holder[key]``, and what the schema says of it."""

    holder: Any
    key: Any
    node: Node
    path: str


def places(node: Node, value: Any, path: str = "") -> Iterator[Place]:
    """Fields that the object has, except those that say what it is."""
    if isinstance(value, dict):
        for key, child in value.items():
            if path == "" and key in ("apiVersion", "kind", "status"):
                continue
            below = f"{path}.{key}" if path else key
            if below not in ("metadata", "metadata.name", "metadata.namespace"):
                yield Place(value, key, node.child(key), below)
            if below != "metadata.name":
                yield from places(node.child(key), child, below)
    elif isinstance(value, list) and node.item is not None:
        for i, child in enumerate(value):
            yield Place(value, i, node.item, f"{path}[{i}]")
            yield from places(node.item, child, f"{path}[{i}]")


def other(node: Node, value: Any, random: Random) -> Any:
    """Another value for a field: mostly of its type."""
    if random.random() < 0.08:
        return random.choice(["text", 7, True, [], {}, None])
    if node.kind in ("integer", "number"):
        return random.choice(_NUMBERS)
    if node.kind == "boolean":
        return not value
    if node.kind == "quantity":
        return random.choice(_AMOUNTS)
    if node.kind == "intOrString":
        return random.choice([*_NUMBERS, "50%", "110%", "http", "x%"])
    if node.kind == "string":
        return random.choice(_TEXTS)
    if isinstance(value, list):
        return random.choice([[], [*value, *copy.deepcopy(value[:1])], value[:-1]])
    if isinstance(value, dict):
        return {} if random.random() < 0.3 else {k: v for k, v in value.items() if random.random() < 0.6}
    return random.choice(_TEXTS)


def changed(plural: str, seed: dict[str, Any], random: Random) -> dict[str, Any]:
    obj = copy.deepcopy(seed)
    for _ in range(random.choice((1, 1, 1, 2))):
        found = list(places(node_of(BY_PLURAL[plural]), obj))
        if not found:
            break
        place = random.choice(found)
        if random.random() < 0.25:
            del place.holder[place.key]
        else:
            place.holder[place.key] = other(place.node, place.holder[place.key], random)
    return obj


def requests(count: int) -> Iterator[tuple[str, list[Step]]]:
    """For each kind ``count`` creations (dry runs, so that nothing stands in the way of the next)."""
    seeds: dict[str, dict[str, Any]] = yaml.safe_load(SEEDS.read_text("utf-8"))
    for plural, seed in seeds.items():
        random = Random(f"{plural}-1")
        bodies = [seed, *(changed(plural, seed, random) for _ in range(count - 1))]
        yield plural, [Step.of({f"POST {plural}?dryRun=All": body}) for body in bodies]
