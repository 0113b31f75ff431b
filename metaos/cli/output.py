"""How results are printed: for people, or as JSON or YAML for programs."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

import click


def screen_width() -> int:
    """Columns of the terminal; 0 where the output goes elsewhere and lines may be long."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def emit(value: Any, output: str, *, text: str) -> None:
    """Prints ``value`` as JSON or YAML, or ``text`` for people."""
    if output == "json":
        click.echo(json.dumps(value, indent=2))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(value, sort_keys=False), nl=False)
    else:
        click.echo(text)
