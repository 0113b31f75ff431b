"""Jobs of a trace as workloads of a scenario: one CSV line each, ``arrival_time,length,cpus`` (seconds, seconds, processors)."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.twin.scenario import MAX_WORKLOADS
from metaos.twin.story import Scenario, WorkloadText
from metaos.twin.text import ScenarioError

COLUMNS = ("arrival_time", "length", "cpus")
NAMESPACE = "replay"


def replayed(base: Scenario, trace: Path, rows: int = 0) -> Scenario:
    """``base`` (its sites, faults and workloads) with the trace's jobs; it lasts until the last of them could be done.
    ``rows``: the first so many (0: all). Raises ``ScenarioError`` with file, line, field and remedy."""
    jobs = tuple(_job(number, *found) for number, found in enumerate(_read(trace, rows)))
    end = max(job.at + float(job.objects[0]["spec"]["template"]["spec"]["containers"][0]["command"][1]) for job in jobs)
    return replace(
        base,
        title=f"{base.title} With the {len(jobs)} jobs of {trace.name}.",
        workloads=(*base.workloads, *jobs),
        duration=max(base.duration, end + 60),
    )


def _read(trace: Path, rows: int) -> list[tuple[float, float, float]]:
    found: list[tuple[float, float, float]] = []
    try:
        with trace.open(newline="") as file:
            lines = csv.reader(file)
            header = tuple(next(lines, ()))
            if header[: len(COLUMNS)] != COLUMNS:
                raise ScenarioError(f"{trace}:1: the header is {','.join(header)!r}; it must begin with {','.join(COLUMNS)!r}")
            for line, cells in enumerate(lines, start=2):
                if rows and len(found) == rows:
                    break
                if len(found) == MAX_WORKLOADS:
                    raise ScenarioError(f"{trace}:{line}: more than {MAX_WORKLOADS} jobs; take the first ones with --rows")
                found.append(_numbers(trace, line, cells))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ScenarioError(f"{trace}: cannot be read: {reason}; name a CSV file (unpack a compressed one first)") from None
    if not found:
        raise ScenarioError(f"{trace}:1: there are no jobs; a trace has one line a job")
    return found


def _numbers(trace: Path, line: int, cells: list[str]) -> tuple[float, float, float]:
    values: list[float] = []
    for number, column in enumerate(COLUMNS):
        text = cells[number] if number < len(cells) else ""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0 or (column != "arrival_time" and value == 0):
            least = "at least 0" if column == "arrival_time" else "above 0"
            raise ScenarioError(f"{trace}:{line}: {column}: {text!r} is no finite number {least}; mend or leave out the line")
        values.append(value)
    return values[0], values[1], values[2]


def _job(number: int, at: float, length: float, cpus: float) -> WorkloadText:
    word = f"job-{number:06}"
    container = {
        "name": "main",
        "image": "python:3",
        "command": ["sleep", f"{length:.3f}"],
        "resources": {"requests": {"cpu": f"{max(1, round(cpus * 1000))}m", "memory": "32Mi"}},
    }
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
    obj: Obj = {
        **scheme.JOB.empty(word, NAMESPACE),
        "spec": {"template": {"metadata": {"labels": {"app": word}}, "spec": pod}},
    }
    return WorkloadText(scheme.JOB, NAMESPACE, word, 1, at, None, (), (obj,), ())
