"""No field is silently ignored: of everything that users write, each field of the schema is honoured, warned about, or of
no effect by its nature, with a reason. The last two are data: ``metaos/apiserver/unsupported.yaml`` and
``honoured.yaml`` beside this file."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from metaos.apiserver.admission import KINDS, table
from metaos.apiserver.schema import Node, node_of

LISTED = {
    f"io.k8s.api.{name}": fields
    for name, fields in yaml.safe_load(Path(__file__).with_name("honoured.yaml").read_text("utf-8")).items()
}


def always_warned(definition: str, field: str) -> bool:
    return any(not {"is", "isNot"} & rule.keys() for rule in table().get(definition, {}).get(field, ()))


def reachable() -> Iterator[tuple[str, str]]:
    """Definition and field of all that lies below the kinds that users write, but for what only warnings lead to."""
    seen: set[str] = set()
    waiting: list[Node] = [node_of(kind) for kind in KINDS]
    tops = {node.name for node in waiting}
    while waiting:
        node = waiting.pop()
        while node.item is not None and node.kind in ("array", "map"):
            node = node.item
        if node.kind != "object" or node.name in seen or not node.name.startswith("io.k8s.api."):
            continue
        seen.add(node.name)
        for field, child in node.properties.items():
            if field == "metadata" or (node.name in tops and field in ("apiVersion", "kind", "status")):
                continue
            yield node.name, field
            if not always_warned(node.name, field):
                waiting.append(child)


def test_every_field_is_honoured_or_warned_about() -> None:
    silent = [
        f"{definition}.{field}"
        for definition, field in reachable()
        if not always_warned(definition, field) and field not in LISTED.get(definition, {})
    ]
    assert not silent, f"put them into honoured.yaml, or into unsupported.yaml where no member honours them: {silent}"


def test_what_is_listed_exists_and_is_not_warned_about() -> None:
    fields = set(reachable())
    listed = {(definition, field) for definition, each in LISTED.items() for field in each}
    assert not listed - fields
    assert not [f"{d}.{f}" for d, f in listed if always_warned(d, f)], "taken out of unsupported.yaml, or out of honoured.yaml?"


def test_rules_are_about_fields_that_exist() -> None:
    assert not {(d, f) for d, rules in table().items() for f in rules} - set(reachable())
