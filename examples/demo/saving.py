"""How much carbon a move saves against staying: the sites' power models times the trace. A model, not a meter."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from metaos.accounting.booking import Elsewhere, same_work
from metaos.accounting.metering import PowerModel


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
        model = PowerModel(spec["power"]["idleWatts"], spec["power"]["maxWatts"], float(spec["capacity"]["cpu"]))
        pue = Decimal(str(spec["electricity"].get("pue", 1)))
        hour_of_work = round(cpu_cores * 3_600_000_000)
        return sum(
            same_work(hour_of_work, Elsewhere(model, pue, Decimal(row[spec["electricity"]["zone"]]))) / 1e6 for row in rows
        )

    return Saving(grams(stay), grams(move))
