"""``--score NAME[:WEIGHT]=FILE``: a learned policy beside the hub's scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class LearnedScore(click.ParamType):  # type: ignore[type-arg]  # (generic in stubs only)
    """(name, weight, file)."""

    name = "score"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float, Path]:
        if isinstance(value, tuple):
            return value
        word, equals, file = str(value).partition("=")
        name, colon, weight = word.partition(":")
        if not equals or not name or not file:
            self.fail(f"{value!r} must be NAME=FILE or NAME:WEIGHT=FILE, for example green:2=policy.onnx", param, ctx)
        try:
            number = float(weight) if colon else 1.0
        except ValueError:
            self.fail(f"{weight!r} in {value!r} is no weight: write a number, for example {name}:2={file}", param, ctx)
        if not Path(file).is_file():
            self.fail(f"{file} is not there: name an ONNX file", param, ctx)
        return name, number, Path(file)


SCORE = LearnedScore()
