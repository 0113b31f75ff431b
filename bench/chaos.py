"""Thousands of seeds of failures, small stories and longer ones with real agents. What must hold has to hold in each.

``python -m bench.chaos [--seeds N] [--long N] [--first SEED] [--jobs N]`` writes ``bench/results/chaos.json``. A seed that does
not hold prints how to see it again, and its story is made small.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

from bench.results import Figure, figure, write
from metaos.twin.minimise import explained
from metaos.twin.report import again, summary
from metaos.twin.scenario import load
from metaos.twin.seeds import failing

SCENARIOS = Path(__file__).parents[1] / "examples" / "scenarios"


def played(name: str, count: int, first: int, jobs: int) -> list[Figure]:
    """``count`` seeds of one scenario."""
    story, began, failed = load(SCENARIOS / f"{name}.yaml"), time.monotonic(), 0
    step = max(1, count // 10)

    def tell(done: int) -> None:
        if done % step < 20:
            print(f"    {name}: {done} of {count} after {time.monotonic() - began:.0f} s", flush=True)

    for report in failing(story, range(first, first + count), jobs, tell):
        failed += 1
        print(explained(story, report) if failed == 1 else f"{again(report)}\n{summary(report)}", flush=True)
    took = time.monotonic() - began
    return [
        figure(f"{name}, {count} seeds from {first}: that did not hold", [float(failed)], "seeds", aim=0.0),
        figure(f"{name}: seeds per second, {jobs} processes", [count / took], "1/s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--long", type=int, default=100)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    found = []
    for name, count in (("small-chaos", asked.seeds), ("tight-chaos", asked.seeds), ("chaos", asked.long)):
        found += played(name, count, asked.first, asked.jobs) if count else []
    write("chaos", found)


if __name__ == "__main__":
    main()
