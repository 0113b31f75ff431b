"""Hourly tables that are replayed: carbon intensities and prices. Pure: the caller passes the clock and the lines.

Column ``hour_utc`` (whole hours from any on, or RFC 3339 times), then one column for each zone. What is wrong is an error naming
file, line, field and remedy; of gaps only short ones are filled, between their ends, and the source says so. Lines are read one
by one and kept as numbers: 8 bytes a cell, at most ``MAX_CELLS``.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Sequence

from metaos.resources.meta import parse_time

HOUR_SECONDS = 3600.0
MAX_CELLS = 8_000_000
FORECAST_HOURS = 48
#: Gaps of so many hours are filled in between their ends; longer ones are an error.
LONGEST_GAP = 3


class HourlyTrace:
    """Replays a table from a row on, at a speed. At its end it begins again. ``start_time`` is when row ``start_hour`` was
    current. ``what``: of which kind it is; ``unit``: of its figures, ``most``: more than this is not in that unit."""

    what, unit, most = "trace", "", math.inf

    def __init__(
        self,
        lines: str | Iterable[str],
        *,
        start_time: float,
        start_hour: float = 0.0,
        speed: float = 1.0,
        name: str = "trace",
    ) -> None:
        self._name = name
        self._start_time, self._start_hour, self._speed = start_time, start_hour, speed
        self._columns: dict[str, int] = {}
        self._cells = array("d")
        self._filled = 0
        self._read(lines.splitlines() if isinstance(lines, str) else lines)
        self.rows = len(self._cells) // len(self._columns)
        self.validate()

    def validate(self) -> None:
        """Raises ``ValueError`` for a speed or start that makes no sense."""
        if not (math.isfinite(self._speed) and self._speed >= 0):
            raise ValueError(f"{self.what} speed {self._speed!r} must be a finite number of at least 0")
        if not math.isfinite(self._start_hour):
            raise ValueError(f"{self.what} start hour {self._start_hour!r} must be a finite number")

    def reset(self, *, start_time: float, start_hour: float, speed: float) -> None:
        """Goes to another row, or on at another speed."""
        self._start_time, self._start_hour, self._speed = start_time, start_hour, speed
        self.validate()

    def row(self, now: float) -> int:
        """The row that is current."""
        hours = self._start_hour + (now - self._start_time) / HOUR_SECONDS * self._speed
        return math.floor(hours) % self.rows

    def knows(self, zone: str) -> bool:
        """Whether it has a column of it."""
        return zone in self._columns

    def ahead(self, zone: str, now: float) -> Sequence[float] | None:
        """From the current hour on; ``None`` for a zone that it has no column of."""
        column, width = self._columns.get(zone), len(self._columns)
        if column is None:
            return None
        first = self.row(now)
        return [self._cells[(first + h) % self.rows * width + column] for h in range(min(FORECAST_HOURS, self.rows))]

    def describe(self) -> str:
        pace = "in real time" if self._speed == 1 else f"at {self._speed:g} times real time"
        filled = f"; {self._filled} missing hours of it were filled in between their ends" if self._filled else ""
        return f"replay of {self._name} from row {self._start_hour:g}, {pace}{filled}"

    def _read(self, lines: Iterable[str]) -> None:
        name, reader = self._name, csv.reader(lines)
        header = next(reader, None)
        if not header or header[0] != "hour_utc" or len(header) < 2:
            raise ValueError(f"{name}: line 1 must be 'hour_utc' and at least one zone, for example 'hour_utc,DE,FR'")
        self._columns = {zone: index for index, zone in enumerate(header[1:])}
        if len(self._columns) < len(header) - 1:
            twice = next(zone for zone in header[1:] if header.count(zone) > 1)
            raise ValueError(f"{name}: line 1 names zone {twice!r} twice; leave one of the columns out")
        before: int | None = None
        # Of a quoted cell over several lines this is the last.
        for cells in reader:
            line = reader.line_num
            if len(cells) != len(header):
                raise ValueError(f"{name}: line {line} has {len(cells)} columns, and the header has {len(header)}")
            hour = self._hour(cells[0], line)
            missing = 0 if before is None else hour - before - 1
            if missing < 0:
                why = "is there already; remove one of the lines" if missing == -1 else "is before the line above; sort the lines"
                raise ValueError(f"{name}: line {line}, hour_utc: hour {cells[0]!r} {why}")
            if missing > LONGEST_GAP:
                remedy = f"at most {LONGEST_GAP} in a row are filled in: add them, or cut the trace there"
                raise ValueError(f"{name}: line {line}, hour_utc: {missing} hours are missing before {cells[0]!r}; {remedy}")
            values = [self._value(zone, cell, line) for zone, cell in zip(header[1:], cells[1:], strict=True)]
            last = self._cells[-len(values) :] if missing else ()
            for step in range(1, missing + 1):
                self._cells.extend(a + (b - a) * step / (missing + 1) for a, b in zip(last, values, strict=True))
            self._filled += missing
            self._cells.extend(values)
            before = hour
            if len(self._cells) > MAX_CELLS:
                raise ValueError(f"{name}: line {line}: more than {MAX_CELLS} figures; cut the trace, or leave zones out")
        if before is None:
            raise ValueError(f"{name}: no rows; a trace has one line an hour")

    def _hour(self, text: str, line: int) -> int:
        if text.lstrip("-").isdecimal() and len(text) < 12:
            return int(text)
        try:
            found = parse_time(text)
        except ValueError:
            remedy = "must be a whole number of hours, or a time such as 2022-01-01T00:00:00Z"
            raise ValueError(f"{self._name}: line {line}, hour_utc: {text!r} {remedy}") from None
        if found % HOUR_SECONDS:
            raise ValueError(f"{self._name}: line {line}, hour_utc: {text!r} is not the beginning of an hour; one line an hour")
        return round(found / HOUR_SECONDS)

    def _value(self, zone: str, cell: str, line: int) -> float:
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        where = f"{self._name}: line {line}, zone {zone}: {cell!r}"
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{where} must be a finite number of {self.unit}, at least 0; remove the line, or mend the number")
        if value > self.most:
            raise ValueError(f"{where} is more than {self.most:g} {self.unit}: is it in another unit? convert the column")
        return value
