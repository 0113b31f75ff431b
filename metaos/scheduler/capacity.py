"""Words and means of what is chosen together with the time: reserved, on-demand and spot capacity. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

RESERVED, ON_DEMAND, SPOT = "reserved", "on-demand", "spot"
#: At which quantile of how wrong such forecasts were their later hours count, and what that is beyond the mean in mean absolute
#: errors: 0.2533 standard deviations, of which a mean absolute error is 0.7979 (of the normal distribution). The present hour is
#: known, and waiting for one that is said to be a little better loses more often than it gains: measured in ``bench/deferral``.
RISK, RISK_ERRORS = 0.6, 0.2533 / 0.7979


def margin(error: float | None) -> float:
    """By how much later hours count as more, as a share of the mean. ``error``: the measured mean absolute error, as such a
    share; of one that is not known nothing is made, and more than the mean counts as that."""
    return RISK_ERRORS * min(error, 1.0) if error and math.isfinite(error) else 0.0


def blended(carbon: Sequence[float], price: Sequence[float]) -> list[float]:
    """Both in equal parts, each against its own mean: 100 is an hour like any. As long as the shorter one."""
    count = min(len(carbon), len(price))
    parts = []
    for series in (carbon[:count], price[:count]):
        mean = sum(series) / max(1, count)
        parts.append([v / mean if mean > 0 else 1.0 for v in series])
    return [50.0 * (a + b) for a, b in zip(*parts, strict=True)]


def mean_along(series: Sequence[float], runs: Sequence[tuple[float, float, int]], passed: float) -> float:
    """The mean of a series over the hours of work of :class:`~metaos.scheduler.deferral.Schedule.runs`. Its last hour goes on."""
    found = work = 0.0
    for start, hours, width in runs:
        at, end = start + passed, start + hours + passed
        work += hours * width
        while at < end - 1e-9:
            until = min(end, math.floor(at + 1e-9) + 1.0)
            found += series[min(math.floor(at + 1e-9), len(series) - 1)] * (until - at) * width
            at = until
    return found / work if work else 0.0
