"""What became of a story's Jobs: how long they waited, which ended when, and which never ran, with the reason.

Seen from outside: a Job has begun when a pod of it first serves, and has ended when the hub has it as Complete or Failed. All
times are seconds since the story's begin. Bounded by the Jobs of the scenario.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import orjson

from metaos.resources import scheme
from metaos.resources.meta import is_true
from metaos.store.log import EventType, LogEvent
from metaos.twin.story import Scenario, WorkloadText
from metaos.twin.world import World

_JOBS = f"{scheme.JOB.resource}/"
#: Of those that a terminal shows.
SHOWN = 12


@dataclass(slots=True)
class Course:
    """One Job. ``ended``: when, and how (Complete, Failed)."""

    text: WorkloadText
    began: float | None = None
    ended: tuple[float, str] | None = None


class JobCourses:
    """Follows them from the world's begin. ``reason``: why a Job is placed nowhere, as the hub has it."""

    def __init__(self, world: World, scenario: Scenario, reason: Callable[[WorkloadText], str]) -> None:
        self._world, self._reason = world, reason
        jobs = [w for w in scenario.workloads if w.kind is scheme.JOB]
        self.courses = {(w.namespace, w.name): Course(w) for w in jobs}
        self._waiting = set(self.courses)
        if jobs:
            world.on_site.append(self._changed)
            world.on_write.append(self._written)

    def _changed(self, site: str) -> None:
        if not self._waiting:
            return
        for copy in self._world.sites[site].copies():
            key = copy.namespace, copy.owner.name
            if copy.ready and copy.owner.kind == scheme.JOB.kind and key in self._waiting:
                self._waiting.discard(key)
                self.courses[key].began = self._world.now

    def _written(self, event: LogEvent) -> None:
        if event.type is not EventType.UPDATE or not event.key.startswith(_JOBS):
            return
        where, _, word = event.key.removeprefix(_JOBS).partition("/")
        course = self.courses.get((where, word))
        if course is not None and course.ended is None:
            job = orjson.loads(event.value)
            how = next((each for each in ("Complete", "Failed") if is_true(job, each)), "")
            if how:
                course.ended = self._world.now, how

    def report(self, begun: float) -> dict[str, Any] | None:
        """As data; ``None`` where the scenario has no Jobs. ``begun``: when the story began, by the world's clock."""
        if not self.courses:
            return None
        courses = list(self.courses.values())
        waits = [max(0.0, c.began - begun - c.text.at) for c in courses if c.began is not None]
        ends = [c.ended[0] - begun for c in courses if c.ended is not None]
        never = [c for c in courses if c.began is None and c.ended is None]
        return {
            "count": len(courses),
            "completed": sum(c.ended is not None and c.ended[1] == "Complete" for c in courses),
            "failed": [_name(c) for c in courses if c.ended is not None and c.ended[1] == "Failed"],
            "unfinished": [_name(c) for c in courses if c.began is not None and c.ended is None],
            "neverStarted": [{"job": _name(c), "why": self._why(c)} for c in never],
            "waitSeconds": _spread(waits),
            "makespanSeconds": round(max(ends) - min(c.text.at for c in courses), 3) if ends else None,
        }

    def _why(self, course: Course) -> str:
        if self._world.now < course.text.at:
            return "its time had not come"
        return (self._reason(course.text) if self._world.hub.up else "the hub is not there") or "nothing was decided of it"


def _spread(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {"median": round(median(seconds), 3), "mean": round(fmean(seconds), 3), "most": round(max(seconds), 3)}


def _name(course: Course) -> str:
    return f"{course.text.namespace}/{course.text.name}"


def told(jobs: dict[str, Any]) -> list[str]:
    """A report for people, a line each."""
    ways = {word: len(jobs[word]) for word in ("failed", "unfinished", "neverStarted")}
    lines = [
        f"Jobs: {jobs['count']}; {jobs['completed']} completed, {ways['failed']} failed, {ways['unfinished']} unfinished, "
        f"{ways['neverStarted']} never started"
    ]
    if (waits := jobs["waitSeconds"]) is not None:
        spread = ", ".join(f"{value:.0f} s ({word})" for word, value in waits.items())
        lines.append(f"  those that began waited {spread}")
    if jobs["makespanSeconds"] is not None:
        lines.append(f"  from the first to come to the last that ended: {jobs['makespanSeconds']:.0f} s")
    rest = [f"  FAILED {word}" for word in jobs["failed"]]
    rest += [f"  NEVER STARTED {each['job']}: {each['why']}" for each in jobs["neverStarted"]]
    rest += [f"  UNFINISHED {word}" for word in jobs["unfinished"]]
    lines += rest[:SHOWN]
    if len(rest) > SHOWN:
        lines.append(f"  … and {len(rest) - SHOWN} more")
    return lines
