"""Carbon intensity and grams. Pure: the caller passes the clock and the texts.

Units: gCO2eq/kWh, watts, seconds, grams. Arithmetic after the Green Software Foundation's Software Carbon Intensity
(ISO/IEC 21031): operational emissions are energy times intensity; embodied ones are added per hour of use.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

HOUR_SECONDS = 3600.0
MAX_ROWS = 100_000
FORECAST_HOURS = 48


def grams(watts: float, intensity: float, seconds: float) -> float:
    """Operational emissions of a constant power."""
    return watts / 1000 * intensity * seconds / HOUR_SECONDS


class StaticCarbonSource:
    """What sites state themselves; there is no forecast beyond "as now"."""

    def __init__(self, zones: Mapping[str, float] | None = None) -> None:
        self._zones = dict(zones or {})

    def intensity(self, zone: str, now: float) -> Sequence[float] | None:
        found = self._zones.get(zone)
        return None if found is None else [found]

    def describe(self) -> str:
        return "stated by the sites"


class TraceCarbonSource:
    """Replays an hourly table (column ``hour_utc``, then one column per zone) from a row on, at a speed.

    At its end it begins again. ``start_time`` is when row ``start_hour`` was current.
    """

    def __init__(self, text: str, *, start_time: float, start_hour: float = 0.0, speed: float = 1.0, name: str = "trace") -> None:
        self._name = name
        self._start_time, self._start_hour, self._speed = start_time, start_hour, speed
        self._columns, self._rows = _parse(text, name)
        self.validate()

    def validate(self) -> None:
        """Raises ``ValueError`` for a speed or start that makes no sense."""
        if not (math.isfinite(self._speed) and self._speed >= 0):
            raise ValueError(f"carbon trace speed {self._speed!r} must be a finite number of at least 0")
        if not math.isfinite(self._start_hour):
            raise ValueError(f"carbon trace start hour {self._start_hour!r} must be a finite number")

    def reset(self, *, start_time: float, start_hour: float, speed: float) -> None:
        """Goes to another row, or on at another speed."""
        self._start_time, self._start_hour, self._speed = start_time, start_hour, speed
        self.validate()

    def row(self, now: float) -> int:
        """The row that is current."""
        hours = self._start_hour + (now - self._start_time) / HOUR_SECONDS * self._speed
        return math.floor(hours) % len(self._rows)

    def intensity(self, zone: str, now: float) -> Sequence[float] | None:
        column = self._columns.get(zone)
        if column is None:
            return None
        first = self.row(now)
        return [self._rows[(first + h) % len(self._rows)][column] for h in range(min(FORECAST_HOURS, len(self._rows)))]

    def describe(self) -> str:
        pace = "in real time" if self._speed == 1 else f"at {self._speed:g} times real time"
        return f"replay of {self._name} from row {self._start_hour:g}, {pace}"


def _parse(text: str, name: str) -> tuple[dict[str, int], list[list[float]]]:
    """Zones and rows. Raises ``ValueError`` naming file, line, column and remedy."""
    reader = csv.reader(io.StringIO(text))
    header = next(reader, None)
    if not header or header[0] != "hour_utc" or len(header) < 2:
        raise ValueError(f"{name}: line 1 must be 'hour_utc' and at least one zone, for example 'hour_utc,DE,FR'")
    rows: list[list[float]] = []
    for line, cells in enumerate(reader, start=2):
        if len(cells) != len(header):
            raise ValueError(f"{name}: line {line} has {len(cells)} columns, and the header has {len(header)}")
        values = []
        for zone, cell in zip(header[1:], cells[1:], strict=True):
            try:
                value = float(cell)
            except ValueError:
                value = math.nan
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}: line {line}, zone {zone}: {cell!r} must be a finite number of gCO2eq/kWh, at least 0")
            values.append(value)
        rows.append(values)
        if len(rows) > MAX_ROWS:
            raise ValueError(f"{name}: more than {MAX_ROWS} rows; cut the trace")
    if not rows:
        raise ValueError(f"{name}: no rows; a trace has one line an hour")
    return {zone: index for index, zone in enumerate(header[1:])}, rows
