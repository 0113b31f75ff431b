"""Which quantile of a forecast's past errors decisions should take, on electricity that the choice was not made on.

``python -m bench.quantile`` writes ``bench/results/quantile.json``. The margin that decisions use (60 %) was chosen on the six
zones and three start times of ``bench.deferral``. Here are other start times of these zones, and all other zones of 2022: of
these there are no forecasts, so each is given the relative errors of one of the six, hour by hour, in turn. Two minutes of a
core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.deferral import Carbon, Policy, Trace, data, ours, table, trace
from bench.results import Figure, figure, write
from metaos.scheduler.capacity import RISK, RISK_ERRORS
from metaos.scheduler.deferral import Weights

#: Of a normal distribution: quantile → mean absolute errors above the middle. 0.5: the forecast as it is.
QUANTILES = {0.5: 0.0, RISK: RISK_ERRORS, 0.75: 0.6745 / 0.7979}
#: None of those of ``bench.deferral`` (1000, 3600, 6200), nor near them: the jobs last 16 days.
STARTS = (2300, 4900, 7500)
ERRORS = ("20", "60", "100")
LEARNT_HOURS = 672
AHEAD = 121


def later(place: Path) -> Iterator[tuple[str, np.ndarray, list[str], int]]:
    """The six zones at other times: zone, truth and forecasts, errors' names, first hour."""
    for path in sorted((place / "carbon").glob("forecast-2022-*.csv.gz")):
        header, values = table(path)
        for start in STARTS:
            yield path.name.split("-", 2)[2].removesuffix(".csv.gz"), values, header, start


def elsewhere(place: Path) -> Iterator[tuple[str, np.ndarray, list[str], int]]:
    """The other zones, with the relative errors of the six in turn."""
    known = [(path.name, *table(path)) for path in sorted((place / "carbon").glob("forecast-2022-*.csv.gz"))]
    header, values = table(place / "carbon/intensity-2022.csv.gz")
    others = [zone for zone in header[1:] if not any(name == f"forecast-2022-{zone}.csv.gz" for name, _, _ in known)]
    for number, zone in enumerate(others):
        _, said_of, said = known[number % len(known)]
        hours = min(len(values), len(said))
        truth = values[:hours, header.index(zone)]
        relative = said[:hours, 1:] / np.maximum(said[:hours, :1], 1e-9)
        yield zone, np.column_stack([truth, truth[:, None] * relative]), said_of, STARTS[number % len(STARTS)]


def over_perfect(jobs: Trace, values: np.ndarray, start: int, column: int) -> list[float]:
    """Emissions over those with perfect forecasts, in percent, at each quantile."""
    carbon, policy, found = Carbon(values[:, 0], 400, start), Policy(0, False, Weights(), True, 1 / 6, False), []
    perfect = ours(jobs, carbon, policy).carbon
    for errors in QUANTILES.values():

        def view(hour: int, errors: float = errors) -> np.ndarray:
            said = np.take(values[:, column], np.arange(start + hour, start + hour + AHEAD), mode="wrap")
            past = np.arange(start + hour + 1 - LEARNT_HOURS, start + hour + 1)
            true, told = (np.take(values[:, of], past, mode="wrap") for of in (0, column))
            # As metaos.scheduler.along.cautious, at any quantile.
            share = min(1.0, float(np.abs(true - told).mean() / true.mean()))
            return np.concatenate([said[:1], said[1:] + errors * share * said.mean()])

        found.append((ours(jobs, carbon, policy, view).carbon / perfect - 1) * 100)
    return found


def main() -> None:
    place = data()
    if place is None:
        print("SKIPPED: the data is not here; set NEMO_DATA to its directory (jobs/, carbon/)", file=sys.stderr)
        return
    jobs, figures = trace(place / "jobs/alibaba-pai-1k.csv", 1 / 3600), list[Figure]()
    for where, cases in (("the six zones at other times", list(later(place))), ("other zones", list(elsewhere(place)))):
        for error in ERRORS:
            over = np.array([over_perfect(jobs, values, start, header.index(error)) for _, values, header, start in cases])
            for number, share in enumerate(QUANTILES):
                name, least = f"{where}, error {error} %, at the {share * 100:.0f} % quantile", over[:, 0]
                mean, better = [float(over[:, number].mean())], int((over[:, number] < least - 1e-9).sum())
                figures.append(figure(f"{name}: emissions over perfect", mean, "%", baseline=[float(least.mean())]))
                figures.append(figure(f"{name}: better than as it is", [better], f"of {len(cases)}"))
    write("quantile", figures)


if __name__ == "__main__":
    main()
