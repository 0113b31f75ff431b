"""Serving users of Europe where electricity is clean: the carbon cut within some added latency, beside the proven optimum.

One site for each European zone of ``carbon/intensity-2022``, at its largest city, with room for 1.5 times its own load; load goes
by population; one-way latency is the great-circle distance at 2/3 of the speed of light, times 1.5; every hour of 2022; against
serving everybody at home. The optimum is a linear program for each hour (HiGHS). Published with another, denser set of sites:
67.8 % for Europe at 5.5 ms. Without the data (NEMO_DATA, or ../shared/data) nothing runs, and it says so.
"""

from __future__ import annotations

import csv
import gzip
import math
import time
from pathlib import Path

import highspy
import numpy as np
from numpy.typing import NDArray

from bench.deferral import data
from bench.results import Figure, figure, write
from metaos.scheduler.shares import serve

Floats = NDArray[np.float64]
#: Zone → (latitude and longitude of its largest city, millions of people; Eurostat and national statistics, 2022, rounded; of
#: zones that are parts of a country the people of their regions).
ZONES: dict[str, tuple[float, float, float]] = {
    "DE": (52.52, 13.40, 83.2),
    "GB": (51.51, -0.13, 65.1),
    "FR": (48.86, 2.35, 67.8),
    "NL": (52.37, 4.90, 17.6),
    "SE-SE3": (59.33, 18.07, 6.6),
    "FI": (60.17, 24.94, 5.5),
    "PT": (38.72, -9.14, 10.4),
    "GR": (37.98, 23.73, 10.5),
    "IE": (53.35, -6.26, 5.1),
    "AT": (48.21, 16.37, 9.0),
    "CH": (47.37, 8.54, 8.7),
    "BE": (50.85, 4.35, 11.6),
    "DK-DK1": (56.16, 10.20, 3.1),
    "NO-NO2": (58.97, 5.73, 1.4),
    "IT-SO": (41.13, 16.87, 6.6),
    "EE": (59.44, 24.75, 1.3),
}
ADDED_MS = (0.0, 5.5, 10.0, 20.0)
ROOM = 1.5
KM_PER_MS, DETOUR, EARTH_KM = 299.792458 * 2 / 3, 1.5, 6371.0


def one_way_ms(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """Haversine."""
    la, lo, lb, lp = map(math.radians, (a[0], a[1], b[0], b[1]))
    half = math.sin((lb - la) / 2) ** 2 + math.cos(la) * math.cos(lb) * math.sin((lp - lo) / 2) ** 2
    return 2 * EARTH_KM * math.asin(math.sqrt(half)) / KM_PER_MS * DETOUR


def intensities(file: Path) -> Floats:
    """Hours x zones."""
    with gzip.open(file, "rt") as lines:
        return np.array([[float(row[zone]) for zone in ZONES] for row in csv.DictReader(lines)])


def optimum(carbon: Floats, loads: Floats, room: Floats, allowed: NDArray[np.bool_]) -> Floats:
    """Least emissions of each hour: one linear program, whose costs change from hour to hour."""
    pairs = [(i, j) for i in range(len(loads)) for j in range(len(room)) if allowed[i, j]]
    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    for _ in pairs:
        model.addVar(0.0, highspy.kHighsInf)
    for i, load in enumerate(loads):
        columns = [n for n, (a, _) in enumerate(pairs) if a == i]
        model.addRow(load, load, len(columns), np.array(columns, np.int32), np.ones(len(columns)))
    for j, most in enumerate(room):
        columns = [n for n, (_, b) in enumerate(pairs) if b == j]
        model.addRow(-highspy.kHighsInf, most, len(columns), np.array(columns, np.int32), np.ones(len(columns)))
    sites = np.array([j for _, j in pairs])
    every = np.arange(len(pairs), dtype=np.int32)
    found = np.zeros(len(carbon))
    for hour, row in enumerate(carbon):
        model.changeColsCost(len(pairs), every, row[sites])
        model.run()
        if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise RuntimeError(f"hour {hour}: {model.modelStatusToString(model.getModelStatus())}")
        found[hour] = model.getInfo().objective_function_value
    return found


def main() -> None:
    place = data()
    if place is None:
        print("SKIPPED: the data is not here; set NEMO_DATA to its directory (jobs/, carbon/)", flush=True)
        return
    file = place / "carbon/intensity-2022.csv.gz"
    carbon = intensities(file)
    loads = np.array([people for _, _, people in ZONES.values()])
    loads = loads / loads.sum()
    room = ROOM * loads
    trips = np.array([[one_way_ms(a, b) for b in ZONES.values()] for a in ZONES.values()])
    home = float((carbon * loads).sum())
    rows: list[Figure] = []
    for most in ADDED_MS:
        allowed = trips <= most + 1e-9
        started = time.perf_counter()
        flow = serve(np.where(allowed[None], carbon[:, None, :], np.inf), np.diag(loads), room)
        seconds = time.perf_counter() - started
        if not np.allclose(flow.sum(axis=2), loads) or (flow.sum(axis=1) > room + 1e-9).any():
            raise RuntimeError("a load was not served, or a site is overfull")
        ours = float((flow * carbon[:, None, :]).sum())
        least = float(optimum(carbon, loads, room, allowed).sum())
        cut, best = 100 * (1 - ours / home), 100 * (1 - least / home)
        rows += [
            figure(
                f"edge: carbon cut at {most:g} ms added (baseline: the optimum)", [cut], "%", baseline=[best], aim=0.99 * best
            ),
            figure("    emissions above the optimum's", [100 * (ours / least - 1)], "%", aim=1.0),
            figure("    all hours decided in", [seconds], "s"),
        ]
        print(f"  {most:g} ms: {cut:.2f} % of {best:.2f} % in {seconds:.1f} s", flush=True)
    write("edge", rows)


if __name__ == "__main__":
    main()
