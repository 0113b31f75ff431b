"""The twin beside the real thing: one scenario on real processes, in the twin as it is, and in the twin fitted to *another* run.

``python -m bench.calibration`` writes ``bench/results/calibration.json``; the baseline of a figure is the real one. Of two real
runs the first one is what the twin is fitted to, the second one what it is held against, so that what carries over is seen.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from bench.results import Figure, figure, write
from metaos.cli.calibration import played
from metaos.twin.calibration import Tolerance, calibrated, compared
from metaos.twin.observed import Observed, observed
from metaos.twin.scenario import load
from metaos.twin.sidebyside import summary
from metaos.twin.timeline import LEGS

SCENARIO = Path(__file__).parents[1] / "examples" / "scenarios" / "calibration.yaml"


def main() -> None:
    story = load(SCENARIO)
    runs = [played(story, lambda text: print(f"    {text}", flush=True)) for _ in range(2)]
    tried: list[tuple[object, Observed]] = []

    def play(candidate: object) -> Observed:
        tried.append((candidate, observed(candidate)))  # type: ignore[arg-type]
        return tried[-1][1]

    report = calibrated(story, runs[0], play, Tolerance())
    print(summary(report), flush=True)
    before, after = tried[0][1], tried[-1][1]
    figures: list[Figure] = []
    for name, twin in (("as it is", before), ("fitted to the other run", after)):
        figures += _sides(f"twin {name}", twin, runs[1])
        rows = compared(runs[1], twin, story.timing, Tolerance())
        for part in ("placement", "timing", "energy"):
            held = sum(row["held"] for row in rows[part])
            figures.append(figure(f"twin {name}: {part} within tolerance", [held], "rows", baseline=[len(rows[part])]))
    write("calibration", figures)


def _sides(name: str, twin: Observed, real: Observed) -> list[Figure]:
    found = []
    for leg, what in LEGS.items():
        if twin.times[leg] and real.times[leg]:
            values, baseline = list(twin.times[leg].values()), list(real.times[leg].values())
            found.append(figure(f"{name}: {what}, median", values, "s", baseline=baseline))
            found.append(figure(f"{name}: {what}, max", [max(values)], "s", baseline=[max(baseline)]))
    power = [[site.watts for site in side.sites.values()] for side in (twin, real)]
    found.append(figure(f"{name}: mean power of a site", [statistics.mean(power[0])], "W", baseline=[statistics.mean(power[1])]))
    return found


if __name__ == "__main__":
    main()
