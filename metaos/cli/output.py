"""How results are printed: for people, or as JSON or YAML for programs."""

from __future__ import annotations

import json
from typing import Any

import click


def emit(value: Any, output: str, *, text: str) -> None:
    """Prints ``value`` as JSON or YAML, or ``text`` for people."""
    if output == "json":
        click.echo(json.dumps(value, indent=2))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(value, sort_keys=False), nl=False)
    else:
        click.echo(text)
