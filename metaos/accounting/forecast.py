"""Forecasts of carbon intensity from its own past, how wrong they were, and how far another forecast is to be believed. Pure.

The offline default is a seasonal model: the mean of the same hour on earlier days, and what the present lies above or below it,
fading. Its error is measured on the past it was not made from, by hours ahead; quantiles are those errors. A forecast of somebody
else is corrected by what it was worth before: as it errs more, it counts less, and the seasonal model more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DAY = 24
DAYS = 7
#: So much past is needed for a forecast, and so much is looked at to measure errors.
LEAST_HOURS, MOST_HOURS = 2 * DAY, 28 * DAY
#: Gaps of so many hours are filled between their ends; longer ones are an error.
LONGEST_GAP = 3


@dataclass(frozen=True, slots=True)
class Forecast:
    """``values``: from the current hour on; ``low`` and ``high``: four of five outcomes lie between. ``error``: measured mean
    absolute error over the next day, as a share of the mean; NaN where nothing was measured."""

    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    error: float
    source: str


def filled(values: Sequence[float], name: str = "history") -> list[float]:
    """Without gaps (NaN): short ones are filled between their ends. Raises ``ValueError`` naming hour, value and remedy."""
    found = [float(v) for v in values]
    last = -1
    for hour, value in enumerate(found):
        if math.isnan(value):
            continue
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}: hour {hour}: {value!r} must be a finite number of gCO2eq/kWh, at least 0")
        gap = hour - last - 1
        if gap > LONGEST_GAP or (gap and last < 0):
            raise ValueError(f"{name}: {gap} hours are missing before hour {hour}; at most {LONGEST_GAP} in a row are filled in")
        for step in range(1, gap + 1):
            found[last + step] = found[last] + (value - found[last]) * step / (gap + 1)
        last = hour
    if last < len(found) - 1:
        raise ValueError(f"{name}: ends with {len(found) - 1 - last} missing hours; cut them off")
    return found


def expected(past: Floats, hours: int, fade: float = 0.9) -> Floats:
    """The seasonal model: values for the hours after the last one of ``past``."""
    import numpy as np

    days = min(DAYS, len(past) // DAY)
    recent = past[len(past) - days * DAY :].reshape(days, DAY)
    weight = 0.7 ** np.arange(days)[::-1]
    profile = (recent * weight[:, None]).sum(axis=0) / weight.sum()
    above = past[-1] - profile[-1]
    ahead = np.arange(1, hours + 1)
    found: Floats = np.maximum(0.0, profile[(ahead - 1) % DAY] + above * fade**ahead)
    return found


def seasonal(past: Sequence[float], hours: int = 2 * DAY) -> Forecast:
    """A forecast that begins with the last known hour. Raises ``ValueError`` where the past is too short or cannot be used."""
    import numpy as np

    found = np.array(filled(past)[-MOST_HOURS:])
    if len(found) < LEAST_HOURS:
        raise ValueError(f"a seasonal forecast needs {LEAST_HOURS} hours of the past, and there are {len(found)}")
    values = expected(found, hours - 1)
    errors = backtest(found, hours - 1)
    low, high = values.copy(), values.copy()
    error = math.nan
    if len(errors):
        low = np.clip(values + np.quantile(errors, 0.1, axis=0), 0.0, values)
        high = np.maximum(values, values + np.quantile(errors, 0.9, axis=0))
        error = float(np.abs(errors[:, :DAY]).mean() / max(found.mean(), 1e-9))
    first = (float(found[-1]),)
    return Forecast(
        first + tuple(values.tolist()), first + tuple(low.tolist()), first + tuple(high.tolist()), error, "seasonal model"
    )


def backtest(past: Floats, hours: int, every: int = 6) -> Floats:
    """Errors (true minus forecast) by hours ahead, of forecasts made in the past from what was known then."""
    import numpy as np

    origins = range(LEAST_HOURS, len(past) - hours + 1, every)
    rows = [past[at : at + hours] - expected(past[:at], hours) for at in origins]
    return np.array(rows) if rows else np.empty((0, hours))


def believed(past: Floats, said: Floats, ahead: Floats) -> Floats:
    """Somebody's forecast for the hours to come, as far as it is to be believed. ``said``: what it said of each hour of ``past``.

    The least squares of the past over what it said and what the seasonal model would have: a forecast that erred gets less
    weight. Where the past is too short, the forecast stands as it is.
    """
    import numpy as np

    count = min(len(past), len(said), MOST_HOURS)
    if count < LEAST_HOURS + DAY:
        return ahead
    true, told = past[-count:], said[-count:]
    before = true[:-DAY]
    days = np.array([true[max(0, i - 3 * DAY) : i : DAY].mean() for i in range(DAY, count)])
    rows = np.column_stack([np.ones(count - DAY), told[DAY:], before, days])
    wanted = true[DAY:]
    # A little of ridge: columns may be the same.
    scale = rows.std(axis=0)
    ridge = np.diag(np.where(scale > 0, 1e-3 * len(rows) * scale**2, 0.0))
    weights = np.linalg.solve(rows.T @ rows + ridge + 1e-9 * np.eye(4), rows.T @ wanted)
    season = expected(true, len(ahead), fade=0.0)
    yesterday = np.resize(true[-DAY:], len(ahead))
    found: Floats = np.maximum(0.0, np.column_stack([np.ones(len(ahead)), ahead, yesterday, season]) @ weights)
    return found
