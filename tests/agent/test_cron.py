"""CronJobs: when, how often, in whose time zone, and what a wrong clock does to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.agent.cron import CronStep, due_jobs
from metaos.resources.meta import Obj, name, ref
from tests.agent.machine import workload


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


class Table:
    """A CronJob through time; ``look`` is one step. Its jobs end when they are told to."""

    def __init__(self, now: str | float, schedule: str = "*/5 * * * *", **spec: Any) -> None:
        self.cron = workload("CronJob", "tick", schedule=schedule, **spec)
        self.now = at(now) if isinstance(now, str) else now
        self.since = self.now
        self.status: dict[str, Any] = {}
        self.jobs: list[Obj] = []
        self.ended: dict[Any, dict[str, Any]] = {}
        self.started: list[str] = []

    def look(self, now: str | float | None = None) -> CronStep:
        if now is not None:
            self.now = at(now) if isinstance(now, str) else now
        step = due_jobs(self.cron, self.jobs, self.ended, self.status, self.since, self.now)
        self.jobs = [j for j in (*self.jobs, *step.create) if j not in step.delete]
        self.started += [j["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"] for j in step.create]
        self.status = step.status
        return step

    def end(self, *, good: bool = True) -> None:
        for job in self.jobs:
            if ref(job) in self.ended:
                continue
            kind = "Complete" if good else "Failed"
            condition = {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            self.ended[ref(job)] = {"conditions": [condition], **({"completionTime": "2026-01-01T00:00:00Z"} if good else {})}


def test_on_time() -> None:
    table = Table("2026-03-01T10:02:00Z")
    assert table.look().again == 60.0 and not table.started and "lastScheduleTime" not in table.status
    assert table.look("2026-03-01T10:04:30Z").again == 30.0
    table.look("2026-03-01T10:05:00Z")
    assert table.started == ["2026-03-01T10:05:00Z"] and table.status["lastScheduleTime"] == "2026-03-01T10:05:00Z"
    assert name(table.jobs[0]) == f"tick-{int(at('2026-03-01T10:05:00Z')) // 60}"
    table.look("2026-03-01T10:05:01Z")
    assert len(table.started) == 1


def test_only_the_latest_missed_start_is_made_up_for() -> None:
    table = Table("2026-03-01T10:00:30Z")
    table.look("2026-03-01T10:58:00Z")
    assert table.started == ["2026-03-01T10:55:00Z"]


def test_more_than_a_hundred_missed_starts() -> None:
    table = Table("2020-03-01T10:00:30Z", "* * * * *")
    step = table.look("2026-03-01T10:58:10Z")
    assert table.started == ["2026-03-01T10:58:00Z"]
    assert [reason for _, reason, _ in step.events] == ["TooManyMissedTimes", "SuccessfulCreate"]
    step = table.look("2026-03-01T10:58:20Z")
    assert len(table.started) == 1 and not step.events


def test_a_starting_deadline() -> None:
    table = Table("2026-03-01T10:00:30Z", startingDeadlineSeconds=100)
    table.look("2026-03-01T10:58:00Z")
    assert not table.started
    table.look("2026-03-01T11:01:30Z")
    assert table.started == ["2026-03-01T11:00:00Z"]


@pytest.mark.parametrize(("policy", "running"), [("Allow", 2), ("Forbid", 1), ("Replace", 1)])
def test_concurrency(policy: str, running: int) -> None:
    table = Table("2026-03-01T10:04:00Z", concurrencyPolicy=policy)
    table.look("2026-03-01T10:05:00Z")
    first = table.jobs[0]
    step = table.look("2026-03-01T10:10:00Z")
    assert len(table.jobs) == running and len(table.status["active"]) == running
    assert (first in table.jobs) == (policy != "Replace")
    if policy == "Forbid":
        assert step.events[0][1] == "JobAlreadyActive"
        # As soon as the one before has ended, what it held up is made up for.
        table.end()
        table.look("2026-03-01T10:12:00Z")
        assert table.started[-1] == "2026-03-01T10:10:00Z"


def test_suspended() -> None:
    table = Table("2026-03-01T10:04:00Z", suspend=True)
    table.look("2026-03-01T10:30:00Z")
    assert not table.started
    table.cron["spec"]["suspend"] = False
    table.look("2026-03-01T10:31:00Z")
    assert table.started == ["2026-03-01T10:30:00Z"]


def test_history_limits() -> None:
    table = Table("2026-03-01T00:00:01Z", "* * * * *", successfulJobsHistoryLimit=2, failedJobsHistoryLimit=1)
    for minute in range(1, 10):
        table.look(at("2026-03-01T00:00:00Z") + 60 * minute)
        table.end(good=minute % 2 == 0)
    table.look()
    assert len(table.jobs) == 3
    assert name(table.jobs[-1]) == f"tick-{int(at('2026-03-01T00:09:00Z')) // 60}"


def test_time_zones_and_daylight_saving() -> None:
    table = Table("2026-03-28T12:00:00Z", "30 8 * * *", timeZone="Europe/Berlin")
    table.look("2026-03-29T07:00:00Z")
    table.look("2026-10-25T07:31:00Z")
    assert table.started == ["2026-03-29T08:30:00+02:00", "2026-10-25T08:30:00+01:00"]


@pytest.mark.parametrize("word", ["@hourly", "@daily", "@weekly", "@monthly", "@yearly", "@annually", "@midnight"])
def test_named_schedules(word: str) -> None:
    table = Table("2026-12-31T23:59:00Z", word)
    table.look("2027-01-03T00:00:05Z")
    assert len(table.started) == 1


@pytest.mark.parametrize(("schedule", "zone"), [("@sometimes", None), ("* * *", None), ("* * * * *", "Moon/Base")])
def test_what_cannot_be_read_is_said(schedule: str, zone: str | None) -> None:
    step = Table("2026-01-01T00:00:00Z", schedule, timeZone=zone).look()
    assert step.events[0][:2] == ("Warning", "InvalidSchedule") and not step.create


def test_a_start_that_was_interrupted_is_not_made_twice() -> None:
    table = Table("2026-03-01T10:04:00Z")
    table.look("2026-03-01T10:05:00Z")
    table.status = {}
    table.look("2026-03-01T10:05:02Z")
    assert len(table.jobs) == 1


def test_a_clock_that_was_ahead() -> None:
    table = Table("2026-03-01T10:04:00Z")
    table.look("2027-03-01T10:05:00Z")
    table.end()
    step = table.look("2026-03-01T10:06:00Z")
    assert step.events[0][1] == "ClockSkew"
    table.look("2026-03-01T10:10:00Z")
    assert table.started[-1] == "2026-03-01T10:10:00Z", "it does not wait for a year"


@settings(deadline=None)
@given(
    st.sampled_from(["* * * * *", "*/5 * * * *", "0 * * * *", "13 4 * * *"]),
    st.sampled_from(["Allow", "Forbid", "Replace"]),
    st.lists(st.tuples(st.integers(-3_000, 100_000), st.booleans()), max_size=30),
)
def test_whatever_the_clock_does(schedule: str, policy: str, moves: list[tuple[int, bool]]) -> None:
    table = Table(1_780_000_000.0, schedule, concurrencyPolicy=policy)
    for seconds, ends in moves:
        before = len(table.started)
        step = table.look(table.now + seconds)
        assert len(table.started) - before <= 1, "one start at a time"
        assert 0.05 <= step.again <= 60.0
        assert all(at(text) <= table.now for text in table.started[before:])
        assert len({name(job) for job in table.jobs}) == len(table.jobs)
        active = [j for j in table.jobs if ref(j) not in table.ended]
        assert len(active) <= 1 or policy == "Allow"
        assert len(table.jobs) - len(active) <= 4
        if ends:
            table.end()
