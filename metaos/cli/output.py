"""How results are printed: for people, or as JSON or YAML for programs."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import click

_GAP = "  "
#: Columns that text keeps on a narrow screen.
LEAST_TEXT = 20


def screen_width() -> int:
    """Columns of the terminal; 0 where the output goes elsewhere and lines may be long."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def fit(lines: Iterable[str], width: int) -> list[str]:
    """The lines, those that are too long for a screen (0: none is) broken between words, what follows below what it continues."""
    from metaos.scheduler.explain import wrapped  # with all that it explains, which few commands load

    return [part for line in lines for part in wrapped(line, width)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int = 0, *, words: bool = False) -> list[str]:
    """Lines: the first column to the left, figures to the right; ``words``: the last one is text. Cells may have several lines.

    What is too wide for a screen of ``width`` columns (0: for any) has its headings broken between words, then its text and its
    names; and columns that find no place still go into a table of their own below, each with the first column."""
    cells = [[cell.split("\n") for cell in row] for row in (head, *rows)]
    if width and _wide(cells, range(len(head))) > width:
        for at, title in enumerate(head):
            least = max([len(line) for row in cells[1:] for line in row[at]] + [len(word) for word in title.split()] + [1])
            cells[0][at] = textwrap.wrap(title, least, break_on_hyphens=False) or [""]
        if words and (room := width - _wide(cells, range(len(head) - 1)) - len(_GAP)) >= LEAST_TEXT:
            _fold(cells, len(head) - 1, room)
        if _wide(cells, range(len(head))) > width:
            _fold(cells, 0, max(LEAST_TEXT, width // 2))
    blocks: list[list[int]] = [[0]]
    for at in range(1, len(head)):
        if width and len(blocks[-1]) > 1 and _wide(cells, [*blocks[-1], at]) > width:
            blocks.append([0])
        blocks[-1].append(at)
    found: list[str] = []
    for columns in blocks:
        found += [""] if found else []
        widths = _widths(cells, columns)
        for row in cells:
            for parts in zip_longest(*(row[at] for at in columns), fillvalue=""):
                left = [at == 0 or (words and at == len(head) - 1) for at in columns]
                line = (p.ljust(w) if begins else p.rjust(w) for p, w, begins in zip(parts, widths, left, strict=True))
                found.append(_GAP.join(line).rstrip())
    return found


def _widths(cells: Sequence[Sequence[Sequence[str]]], columns: Iterable[int]) -> list[int]:
    return [max(len(line) for row in cells for line in row[at]) for at in columns]


def _wide(cells: Sequence[Sequence[Sequence[str]]], columns: Sequence[int]) -> int:
    return sum(_widths(cells, columns)) + len(_GAP) * (len(columns) - 1)


def _fold(cells: Sequence[list[list[str]]], at: int, width: int) -> None:
    for row in cells:
        row[at] = [part for line in row[at] for part in textwrap.wrap(line, width, break_on_hyphens=at == 0) or [""]]


def emit(value: Any, output: str, *, text: str) -> None:
    """Prints ``value`` as JSON or YAML, or ``text`` for people."""
    if output == "json":
        click.echo(json.dumps(value, indent=2))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(value, sort_keys=False), nl=False)
    else:
        click.echo(text)
