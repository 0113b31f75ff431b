"""How results are printed: for people, or as JSON or YAML for programs."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

import click


def screen_width() -> int:
    """Columns of the terminal; 0 where the output goes elsewhere and lines may be long."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def fit(lines: Iterable[str], width: int) -> list[str]:
    """The lines, those that are too long for a screen broken between words."""
    found: list[str] = []
    for line in lines:
        found += [line] if len(line) <= width else textwrap.wrap(line, max(40, width), subsequent_indent=" " * 12)
    return found


def emit(value: Any, output: str, *, text: str) -> None:
    """Prints ``value`` as JSON or YAML, or ``text`` for people."""
    if output == "json":
        click.echo(json.dumps(value, indent=2))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(value, sort_keys=False), nl=False)
    else:
        click.echo(text)
