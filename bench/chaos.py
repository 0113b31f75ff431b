"""Thousands of seeds of failures, small stories and longer ones with real agents. What must hold has to hold in each.

``python -m bench.chaos [--seeds N] [--long N] [--first SEED] [--jobs N]`` writes ``bench/results/chaos.json``, and beside it in
``chaos-seeds.json`` which seeds were played of which commit: a run that was interrupted goes on where it stopped, as long as the
program is the same. All three stories come on together, a tenth at a time. A seed that does not hold prints how to see it
again, and the story of the first is made small.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.results import RESULTS, Figure, figure, write
from metaos.twin.minimise import explained
from metaos.twin.report import again, summary
from metaos.twin.scenario import load
from metaos.twin.seeds import failing

ROOT = Path(__file__).parents[1]
SCENARIOS = ROOT / "examples" / "scenarios"
STAGES = 10


@dataclass(slots=True)
class Piece:
    """Seeds ``first`` to ``last``, both played, of one scenario by one program. ``failed``: those that did not hold."""

    scenario: str
    commit: str
    first: int
    last: int
    failed: list[int] = field(default_factory=list)
    seconds: float = 0.0


class Record:
    """What was played, in a file that is written anew after every few seeds."""

    def __init__(self, file: Path, commit: str) -> None:
        self._file, self._commit = file, commit
        self.pieces = [Piece(**found) for found in json.loads(file.read_text())] if file.exists() else []

    def add(self, scenario: str, first: int, last: int, failed: list[int], seconds: float) -> None:
        before = next((p for p in self.pieces if (p.scenario, p.commit, p.last) == (scenario, self._commit, first - 1)), None)
        if before is None:
            self.pieces.append(Piece(scenario, self._commit, first, last, failed, round(seconds, 1)))
        else:
            before.last, before.seconds = last, round(before.seconds + seconds, 1)
            before.failed += failed
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps([asdict(piece) for piece in self.pieces], indent=1) + "\n")
        draft.replace(self._file)

    def left(self, scenario: str, first: int, last: int) -> Iterator[range]:
        """The seeds among those from ``first`` to ``last`` that this program has not played."""
        done = sorted((p.first, p.last) for p in self.pieces if (p.scenario, p.commit) == (scenario, self._commit))
        for begin, end in done:
            if first < begin <= last:
                yield range(first, begin)
            first = max(first, end + 1)
        if first <= last:
            yield range(first, last + 1)

    def of(self, scenario: str) -> list[Piece]:
        return [p for p in self.pieces if (p.scenario, p.commit) == (scenario, self._commit)]


def program() -> str:
    """The commit that is checked out, and whether the twin or a scenario differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "metaos", "examples/scenarios")
    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")


def played(record: Record, name: str, seeds: range, jobs: int) -> None:
    """Some seeds of one scenario, and each few of them into the record."""
    story, began, failed = load(SCENARIOS / f"{name}.yaml"), time.monotonic(), list[int]()
    first, told = seeds.start, not any(p.failed for p in record.of(name))

    def tell(done: int) -> None:
        nonlocal first, began
        now, last = time.monotonic(), seeds.start + done - 1
        record.add(name, first, last, [*failed], now - began)
        failed.clear()
        first, began = last + 1, now

    for report in failing(story, seeds, jobs, tell):
        failed.append(int(report["seed"]))
        print(f"{again(report)}\n{summary(report)}", flush=True)
        if told:
            told = False
            print(explained(story, report), flush=True)
    print(f"    {name}: {seeds.start} to {seeds.stop - 1} played", flush=True)


def figures(record: Record, name: str, jobs: int) -> list[Figure]:
    pieces = record.of(name)
    count, seconds = sum(p.last - p.first + 1 for p in pieces), sum(p.seconds for p in pieces)
    ranges = ", ".join(f"{p.first} to {p.last}" for p in sorted(pieces, key=lambda p: p.first))
    return [
        figure(f"{name}, {count} seeds ({ranges}): that did not hold", [sum(len(p.failed) for p in pieces)], "seeds", aim=0.0),
        figure(f"{name}: seeds per second, {jobs} processes", [count / max(seconds, 0.1)], "1/s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5_000, help="of each of the two small stories: ten thousand in all")
    parser.add_argument("--long", type=int, default=100)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    record = Record(RESULTS / "chaos-seeds.json", program())
    wanted = {"small-chaos": asked.seeds, "tight-chaos": asked.seeds, "chaos": asked.long}
    for stage in range(STAGES):
        for name, count in wanted.items():
            begin, end = count * stage // STAGES, count * (stage + 1) // STAGES
            for seeds in [*record.left(name, asked.first + begin, asked.first + end - 1)]:
                played(record, name, seeds, asked.jobs)
    write("chaos", [each for name in wanted if record.of(name) for each in figures(record, name, asked.jobs)])


if __name__ == "__main__":
    main()
