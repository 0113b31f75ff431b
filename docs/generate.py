"""Generates ``docs/reference/`` from the code: ``python -m docs.generate`` (``make docs``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

from metaos.cli.main import nemo

ROOT = Path(__file__).parent
SCHEMAS = ROOT.parent / "metaos/resources/schemas"


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """The command and all below it, with their full names."""
    yield path, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from commands(command.commands[name], f"{path} {name}")


def cli_page() -> str:
    """Every command's help."""
    parts = ["# Command line", "", "Generated from the code by `make docs`.", ""]
    for path, command in commands(nemo, "nemo"):
        context = click.Context(command, info_name=path, max_content_width=100, terminal_width=100)
        parts += [f"## {path}", "", "```", command.get_help(context), "```", ""]
    return "\n".join(parts).rstrip() + "\n"


def fields(schema: dict[str, Any], path: str) -> Iterator[str]:
    """One line a field, depth first."""
    for name, found in (schema.get("properties") or {}).items():
        where = f"{path}.{name}" if path else name
        kind = found.get("type") or str(found.get("$ref", "")).rpartition(".")[2] or "any"
        if kind == "array":
            kind = f"list of {(found.get('items') or {}).get('type', 'objects')}"
        allowed = f" One of {', '.join(map(str, found['enum']))}." if found.get("enum") else ""
        default = f" Default {found['default']}." if "default" in found else ""
        yield f"- `{where}` ({kind}): {found.get('description', '')}{allowed}{default}"
        yield from fields(found, where)
        if isinstance(found.get("items"), dict):
            yield from fields(found["items"], f"{where}[]")


def kinds_page() -> str:
    """Every kind of ``meta-os.eu/v1alpha1`` with its fields."""
    parts = [
        "# Kinds of meta-os.eu/v1alpha1",
        "",
        "Generated from the schemas by `make docs`; `kubectl explain` shows the same.",
        "",
    ]
    for file in sorted(SCHEMAS.glob("*.yaml")):
        schema = yaml.safe_load(file.read_text())
        parts += [f"## {file.stem}", "", str(schema.get("description", "")), "", *fields(schema, ""), ""]
    return "\n".join(parts).rstrip() + "\n"


PAGES = {"cli.md": cli_page, "kinds.md": kinds_page}


def main() -> None:
    target = ROOT / "reference"
    target.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (target / name).write_text(page())
        print(f"wrote docs/reference/{name}")


if __name__ == "__main__":
    main()
