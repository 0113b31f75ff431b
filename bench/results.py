"""How benchmarks write down what they measured: a JSON file each, and a row a figure on the screen."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """``baseline`` was measured in the same run; ``spread`` is (least, most) over the repetitions; ``aim``: what is wanted."""

    name: str
    value: float
    unit: str
    baseline: float | None
    spread: tuple[float, float]
    aim: float | None
    machine: str


def machine() -> str:
    """One line about where this ran."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def figure(name: str, values: Sequence[float], unit: str, *, baseline: Sequence[float] = (), aim: float | None = None) -> Figure:
    """The median of the repetitions, beside the baseline's."""
    base = round(statistics.median(baseline), 3) if baseline else None
    spread = (round(float(min(values)), 3), round(float(max(values)), 3))
    return Figure(name, round(statistics.median(values), 3), unit, base, spread, aim, machine())


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def write(name: str, figures: Sequence[Figure], *, beside: bool = False) -> None:
    """``bench/results/NAME.json``, and a table. ``beside``: figures of other names that stand there already stay."""
    RESULTS.mkdir(exist_ok=True)
    file, rows = RESULTS / f"{name}.json", list[dict[str, Any]]()
    if beside and file.exists():
        rows = [row for row in json.loads(file.read_text()) if row["name"] not in {f.name for f in figures}]
    rows += [asdict(f) for f in figures]
    file.write_text(json.dumps(rows, indent=2) + "\n")
    for found in figures:
        base = "-" if found.baseline is None else f"{found.baseline:g}"
        aim = "-" if found.aim is None else f"{found.aim:g}"
        print(f"{found.name:52} {found.value:>10g} {found.unit:8} baseline {base:>10}  aim {aim:>6}  {found.spread}", flush=True)
