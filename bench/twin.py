"""How fast the digital twin is, how that grows, and many seeds of failures.

``python -m bench.twin [--sites N --workloads N --hours H --limit SECONDS]`` writes ``bench/results/twin.json``; figures of other
sizes stay in it. Without sizes it takes a row of small days, whose growth is printed. ``--quiet N`` plays so many sites with a
workload each and a heartbeat every 10 s, nothing failing, first with light agents and then with real ones, and says how much
more these cost.

A day is: sites in twenty zones of the hourly carbon trace of 2022, so that every hour the hub is told 24 hours' forecast for
each site and looks at every workload again; heartbeats every 300 s with a lease of 900 s, as an operator of so many sites may
set (every 10 s they would be thirty times as many, each as dear as a write). Four fifths of the workloads arrive in the first
hour, the others over the day, every second of these a Job of half an hour; a tenth of the first leave again. A tenth may only be
in one country, a twentieth wants little carbon and is moved for it. Every hour some sites (one of two hundred) are cut off for
half an hour, longer than their lease, and their work is replaced; some lose their power, some agents are restarted, at noon the
hub is killed for a minute, and every quarter of an hour somebody scales something.
Left out, since sites are light: what happens within a site (rollouts, probes, restarts, images, logs, streams between pods).
One process: the hub is one, and what it does is nearly all of the time.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from bench.results import Figure, figure, write
from metaos.twin.play import play
from metaos.twin.report import summary
from metaos.twin.scenario import scenario
from metaos.twin.story import Scenario
from metaos.twin.text import parse

ROOT = Path(__file__).parents[1]
TRACE = ROOT / "../shared/data/carbon/intensity-2022.csv.gz"
ROW = ((50, 250, 24.0), (100, 500, 24.0), (200, 1000, 24.0), (300, 1500, 24.0))


def world(sites: int, workloads: int, hours: float, folder: Path) -> Scenario:
    """The day that the module describes, or ``hours`` of it. ``folder`` takes the trace."""
    rows = gzip.decompress(TRACE.read_bytes()).decode().splitlines()[: int(hours) + 26]
    (folder / "carbon.csv").write_text("\n".join(rows) + "\n")
    zones = rows[0].split(",")[1:21]
    minutes = hours * 60
    names = [f"{zone.lower()}-{number:04}" for zone in zones for number in range(max(1, sites // len(zones)))]
    text: dict[str, Any] = {
        "title": f"{sites} sites, {workloads} workloads, {hours:g} h",
        "duration": f"{hours}h",
        "agents": "light",
        "timing": {"heartbeat": "300s", "lease": "900s"},
        "carbon": {"trace": "carbon.csv"},
        "sites": [_sites(zone, max(1, sites // len(zones)), number) for number, zone in enumerate(zones)],
        "workloads": [*_workloads(workloads, minutes, [zone.split("-")[0] for zone in zones])],
        "faults": [*_faults(names, hours)],
    }
    scaled = [w["name"] + "-00000" for w in text["workloads"] if w["name"].startswith("stay") and w["count"] > 1]
    for number in range(int(hours * 4) - 4 if scaled else 0):
        text["faults"].append(
            {"at": f"{60 + number * 15}m", "scale": {scaled[number % len(scaled)]: 1 + (number // len(scaled) + 1) % 3}}
        )
    return scenario(parse(yaml.safe_dump(text), "bench"), folder)


def _sites(zone: str, count: int, number: int) -> dict[str, Any]:
    spec = {
        "jurisdictions": [zone.split("-")[0]],
        "capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"},
        "power": {"idleWatts": 40, "maxWatts": 160},
        "electricity": {"zone": zone, "carbonIntensity": 100 + 20 * number},
    }
    return {"name": zone.lower() + "-{n}", "count": count, "spec": spec}


def _workloads(count: int, minutes: float, countries: list[str]) -> Any:
    """In groups, each with its time."""
    first, later = count * 4 // 5, count - count * 4 // 5
    for number, size in enumerate(_shares(first, 60)):
        found: dict[str, Any] = {"name": f"stay{number}", "count": size, "at": f"{number}m", "cpu": "500m", "memory": "256Mi"}
        if number % 10 == 1:
            found["residency"] = [countries[number % len(countries)]]
        if number % 20 == 2:
            found["intents"] = [{"name": "carbonIntensity", "condition": "Minimize"}]
        if number % 10 == 3:
            found["until"] = f"{(minutes - 60) * (number + 1) / 60 + 30:.1f}m"
        yield found
    for number, size in enumerate(_shares(later, 120)):
        found = {"name": f"come{number}", "count": size, "cpu": "250m", "memory": "128Mi"}
        found["at"] = f"{60 + (minutes - 120) * number / 120:.1f}m"
        yield found | ({"kind": "Job", "run": "30m"} if number % 2 else {})


def _shares(count: int, parts: int) -> list[int]:
    return [size for part in range(parts) if (size := count * (part + 1) // parts - count * part // parts)]


def _faults(names: list[str], hours: float) -> Any:
    some = max(1, len(names) // 200)
    for hour in range(1, int(hours) - 1):
        first = hour * 37 % len(names)
        yield {"at": f"{hour}h", "cut": [names[(first + n * 61) % len(names)] for n in range(some)], "for": "30m"}
        yield {"at": f"{hour + 0.2:g}h", "stopAgent": [names[(first + 13) % len(names)]], "for": "2m"}
        if hour % 4 == 2:
            yield {"at": f"{hour + 0.4:g}h", "powerOff": [names[(first + 29) % len(names)]], "for": "20m"}
    if hours >= 4:
        yield {"at": f"{hours / 2:g}h", "killHub": "60s"}


def measure(sites: int, workloads: int, hours: float) -> None:
    """In a process of its own: prints seconds, MB and writes."""
    import resource

    last = 0.0

    def progress(share: float, text: str) -> None:
        nonlocal last
        if share - last >= 0.1:
            last = share
            took, processor = time.monotonic() - began, time.process_time()
            print(f"    {share:.0%} {text} after {took:.0f} s, {processor:.0f} s of a core", file=sys.stderr, flush=True)

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        story = world(sites, workloads, hours, Path(folder))
    report = play(story, progress=progress)
    took = time.monotonic() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    megabytes, processor = usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime
    busy = os.getloadavg()[2]
    print(f"{took:.2f} {processor:.2f} {megabytes:.1f} {report['simulated']['writes']} {busy:.1f} {report['passed']}")
    if not report["passed"]:
        print(summary(report), file=sys.stderr)


def quiet(sites: int, hours: float) -> list[Figure]:
    """Light sites, then real ones, in this process: processor time of each."""
    found, seconds = [], {}
    for agents in ("light", "real"):
        text: dict[str, Any] = {
            "title": f"{sites} sites with {agents} agents",
            "duration": f"{hours}h",
            "agents": agents,
            "sites": [{"name": "site", "count": sites, "spec": {"capacity": {"cpu": "4", "memory": "8Gi"}}}],
            "workloads": [{"name": "web", "count": sites}],
        }
        began = time.process_time()
        report = play(scenario(parse(yaml.safe_dump(text), "bench"), ROOT))
        seconds[agents] = time.process_time() - began
        if not report["passed"]:
            raise SystemExit(summary(report))
        label = f"{sites} quiet sites, {agents} agents, {hours:g} h"
        found.append(figure(f"{label}: processor time", [seconds[agents]], "s"))
    return [*found, figure(f"{sites} quiet sites: a real agent costs", [seconds["real"] / seconds["light"]], "times a light one")]


def apart(sites: int, workloads: int, hours: float, limit: float) -> list[Figure]:
    """One size: a process, which may take ``limit`` seconds."""
    label = f"{sites} sites, {workloads} workloads, {hours:g} h"
    command = [sys.executable, "-m", "bench.twin", "--measure", str(sites), str(workloads), str(hours)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"{label}: not done after {limit:g} s")
        return []
    return figures(label, done.stdout, aimed=(sites, workloads, hours) == (1000, 5000, 24.0))


def figures(label: str, measured: str, *, aimed: bool) -> list[Figure]:
    """Of what ``measure`` has printed."""
    seconds, processor, megabytes, writes, busy, passed = measured.split()
    if passed != "True":
        raise SystemExit(f"{label}: what must hold did not hold")
    return [
        figure(f"{label}: time", [float(seconds)], "s", aim=600.0 if aimed else None),
        # Of one core: what the machine did beside it does not count, but for what that took from its caches.
        figure(f"{label}: processor time", [float(processor)], "s"),
        figure(f"{label}: processes that wanted to run at its end, 15 minutes' mean", [float(busy)], ""),
        figure(f"{label}: memory", [float(megabytes)], "MB", aim=2000.0 if aimed else None),
        figure(f"{label}: writes", [float(writes)], "writes"),
        figure(f"{label}: writes per second of processor time", [float(writes) / float(processor)], "1/s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int)
    parser.add_argument("--workloads", type=int, default=0)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--limit", type=float, default=1800.0)
    parser.add_argument("--quiet", type=int)
    parser.add_argument("--measure", nargs=3, type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    if asked.measure:
        measure(int(asked.measure[0]), int(asked.measure[1]), asked.measure[2])
        return
    if asked.quiet:
        write("twin-quiet", quiet(asked.quiet, asked.hours))
        return
    row = ((asked.sites, asked.workloads, asked.hours),) if asked.sites else ROW
    found = [each for size in row for each in apart(*size, asked.limit)]
    write("twin", found, beside=True)


if __name__ == "__main__":
    main()
