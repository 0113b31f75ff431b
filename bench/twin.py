"""How fast the digital twin is, how that grows, and many seeds of failures.

``python -m bench.twin [--sites N --workloads N --hours H --limit SECONDS] [--seeds N]`` writes ``bench/results/twin.json``.
Without sizes it takes a row of small worlds, whose growth is printed. Sites are light; heartbeats are every 300 s with a lease
of 900 s, as an operator of so many sites may set: every 10 s they would be thirty times as many, each as dear as a write.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from bench.results import Figure, figure, write
from metaos.twin.play import play
from metaos.twin.report import summary
from metaos.twin.scenario import Scenario, load, scenario
from metaos.twin.text import parse

ROOT = Path(__file__).parents[1]
ZONES = ("DE", "FR", "ES", "FI", "PL")
ROW = ((50, 100, 24.0), (100, 200, 24.0), (100, 500, 24.0), (200, 1000, 24.0))


def world(sites: int, workloads: int, hours: float) -> Scenario:
    """Sites in five countries, one lost for half an hour, workloads of half a processor."""
    room = {"cpu": "8", "memory": "32Gi", "pods": "110"}
    text: dict[str, Any] = {
        "title": f"{sites} sites, {workloads} workloads, {hours:g} h",
        "duration": f"{hours}h",
        "agents": "light",
        "timing": {"heartbeat": "300s", "lease": "900s"},
        "sites": [
            {
                "name": zone.lower() + "-{n}",
                "count": sites // len(ZONES),
                "spec": {
                    "jurisdictions": ["EU", zone],
                    "capacity": room,
                    "power": {"idleWatts": 40, "maxWatts": 160},
                    "electricity": {"zone": zone, "carbonIntensity": 100 + 50 * number},
                },
            }
            for number, zone in enumerate(ZONES)
        ],
        "workloads": [{"name": "w", "count": workloads, "cpu": "500m", "memory": "256Mi"}],
        "faults": [{"at": f"{hours / 4}h", "cut": ["de-0000"], "for": "30m"}],
    }
    return scenario(parse(yaml.safe_dump(text), "bench"), ROOT)


def measure(sites: int, workloads: int, hours: float) -> None:
    """In a process of its own: prints seconds, MB and writes."""
    import resource

    last = 0.0

    def progress(share: float, text: str) -> None:
        nonlocal last
        if share - last >= 0.1:
            last = share
            print(f"    {share:.0%} {text} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    began = time.monotonic()
    report = play(world(sites, workloads, hours), progress=progress)
    took = time.monotonic() - began
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{took:.2f} {megabytes:.1f} {report['simulated']['writes']} {report['passed']}")
    if not report["passed"]:
        print(summary(report), file=sys.stderr)


def apart(sites: int, workloads: int, hours: float, limit: float) -> list[Figure]:
    """One size: a process, which may take ``limit`` seconds."""
    label, aim = f"{sites} sites, {workloads} workloads, {hours:g} h", (sites, workloads, hours) == (1000, 5000, 24.0)
    command = [sys.executable, "-m", "bench.twin", "--measure", str(sites), str(workloads), str(hours)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"{label}: not done after {limit:g} s")
        return []
    seconds, megabytes, writes, passed = done.stdout.split()
    if passed != "True":
        raise SystemExit(f"{label}: what must hold did not hold")
    return [
        figure(f"{label}: time", [float(seconds)], "s", aim=600.0 if aim else None),
        figure(f"{label}: memory", [float(megabytes)], "MB", aim=2000.0 if aim else None),
        figure(f"{label}: writes per second", [float(writes) / float(seconds)], "1/s"),
    ]


def seeds(count: int, first: int) -> list[Figure]:
    """Stories of failure; each that does not hold prints how to see it again."""
    story, began, failed = load(ROOT / "examples/scenarios/chaos.yaml"), time.monotonic(), 0
    for seed in range(first, first + count):
        report = play(story.with_seed(seed))
        if not report["passed"]:
            failed += 1
            print(f"nemo twin run examples/scenarios/chaos.yaml --seed {seed}\n{summary(report)}", flush=True)
    took = time.monotonic() - began
    return [
        figure(f"chaos, {count} seeds from {first}: that did not hold", [float(failed)], "seeds", aim=0.0),
        figure("chaos: a story of 3 h with 8 faults", [took / count], "s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int)
    parser.add_argument("--workloads", type=int, default=0)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--limit", type=float, default=1800.0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--measure", nargs=3, type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    if asked.measure:
        measure(int(asked.measure[0]), int(asked.measure[1]), asked.measure[2])
        return
    row = ((asked.sites, asked.workloads, asked.hours),) if asked.sites else ROW
    found = [each for size in row for each in apart(*size, asked.limit)]
    write("twin", found + (seeds(asked.seeds, asked.first) if asked.seeds else []))


if __name__ == "__main__":
    main()
