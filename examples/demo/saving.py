"""How much carbon a move saves against staying: the sites' power models times the trace. A model, not a meter."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Saving:
    """Grams of CO2 equivalent."""

    stayed: float
    moved: float


def saving(stay: dict[str, Any], move: dict[str, Any], trace: Path, hour: int, hours: int, *, cpu_cores: float) -> Saving:
    """Grams over ``hours`` trace rows from row ``hour`` for a constant load, on the old site and on the new one."""
    with trace.open() as file:
        rows = list(csv.DictReader(file))[hour : hour + hours]

    def grams(cluster: dict[str, Any]) -> float:
        spec = cluster["spec"]
        power, cores = spec["power"], float(spec["capacity"]["cpu"])
        watts: float = (power["maxWatts"] - power["idleWatts"]) / cores * cpu_cores * spec["electricity"].get("pue", 1.0)
        return sum(watts / 1000 * float(row[spec["electricity"]["zone"]]) for row in rows)

    return Saving(grams(stay), grams(move))
