"""Jobs as properties and by example: never beyond parallelism or completions, nothing counted twice, every policy kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.agent.jobs import (
    KEPT_PODS,
    Past,
    decided,
    finished,
    format_indexes,
    job,
    job_status,
    parse_indexes,
    remember,
    tally,
)
from metaos.agent.workloads import PodView
from metaos.resources.meta import Obj
from tests.agent.machine import workload


class Run:
    """A Job's pods through time. ``tick`` plans and writes the status; pods that are stopped go when they are told to."""

    def __init__(self, **spec: Any) -> None:
        template = {"restartPolicy": spec.pop("restartPolicy", "Never")}
        self.job: Obj = workload("Job", template=template, **spec)
        self.pods: list[PodView] = []
        self.past, self.status, self.now = Past(), {}, 1_700_000_000.0
        self.started: list[int] = []

    def tick(self) -> None:
        self.status = job_status(self.job, self.pods, self.past, self.now, self.status)
        if not finished(self.status):
            actions = job(self.job, self.pods, self.past, "r", self.now, self.status)
            for pod in list(self.pods):
                if pod.uid in actions.delete or pod.uid in actions.dismiss:
                    dismissed, ended = pod.uid in actions.dismiss, pod.finished or self.now
                    self.change(pod, deleting=True, ready_since=None, dismissed=dismissed, finished=ended)
            for ordinal, _ in actions.create:
                name = f"p-{len(self.started)}"
                self.pods.append(PodView(name, name, "r", self.now, "Running", self.now, ordinal=ordinal))
                self.started.append(ordinal)
        self.status = job_status(self.job, self.pods, self.past, self.now, self.status)

    def change(self, pod: PodView, **changes: Any) -> None:
        self.pods[self.pods.index(pod)] = replace(pod, **changes)

    def end(self, number: int, phase: str, code: int = 1, **more: Any) -> None:
        pod = next(p for p in self.pods if p.name == f"p-{number}")
        exits = (("c", code),) if phase == "Failed" else ()
        self.change(pod, phase=phase, finished=self.now, ready_since=None, exits=exits, **more)
        self.tick()

    def go(self, pod: PodView) -> None:
        self.past = Past.from_json(remember(self.past, self.job, pod).to_json())
        self.pods.remove(pod)
        self.tick()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for pod in [p for p in self.pods if p.deleting]:
            self.go(pod)
        self.tick()

    @property
    def active(self) -> list[PodView]:
        return [p for p in self.pods if p.living]

    def ends(self) -> tuple[str, str]:
        for _ in range(3):
            self.wait(1)
        found = next(c for c in self.status["conditions"] if c["type"] in ("Complete", "Failed"))
        return found["type"], found["reason"]


@st.composite
def jobs(draw: st.DrawFn) -> Run:
    indexed = draw(st.booleans())
    spec: dict[str, Any] = {"parallelism": draw(st.integers(0, 4)), "backoffLimit": draw(st.integers(0, 8))}
    if indexed or draw(st.booleans()):
        spec["completions"] = draw(st.integers(0, 6))
    if indexed:
        spec["completionMode"] = "Indexed"
        if draw(st.booleans()):
            spec |= {"backoffLimitPerIndex": draw(st.integers(0, 2)), "backoffLimit": 2**31 - 1}
    if draw(st.booleans()):
        spec["podReplacementPolicy"] = "Failed"
    return Run(**spec)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["good", "good", "bad", "deleted", "gone", "wait", "suspend", "resume", "collect", "more"]),
        st.integers(0, 20),
    ),
    max_size=50,
)


@settings(deadline=None)
@given(jobs(), STEPS)
def test_jobs_stay_within_bounds_and_end(run: Run, steps: list[tuple[str, int]]) -> None:
    spec = run.job["spec"]
    run.tick()
    counted = (0, 0)
    for what, which in steps:
        before = len(run.started)
        was = finished(run.status)
        active = run.active
        pod = active[which % len(active)] if active else None
        leaving = [p for p in run.pods if p.deleting]
        ended = [p for p in run.pods if p.ended]
        if what in ("good", "bad") and pod:
            run.end(int(pod.name[2:]), "Succeeded" if what == "good" else "Failed")
        elif what == "deleted" and pod:
            run.change(pod, deleting=True, ready_since=None, finished=run.now)
            run.tick()
        elif what == "gone" and leaving:
            run.go(leaving[which % len(leaving)])
        elif what == "collect" and ended:
            run.go(ended[which % len(ended)])
        elif what in ("suspend", "resume"):
            spec["suspend"] = what == "suspend"
            run.tick()
        elif what == "more" and spec.get("completionMode") != "Indexed":
            spec["parallelism"] = which % 5
            run.tick()
        else:
            run.wait(which * 30)
        assert not (was and len(run.started) > before), "nothing starts after the end"
        assert len(run.active) <= max(spec["parallelism"], len(active))
        if len(run.started) > before:
            assert len(run.active) <= spec["parallelism"] and not spec.get("suspend")
        seen = tally(run.job, run.pods, run.past)
        if spec.get("completions") is not None:
            assert seen.succeeded <= spec["completions"]
            assert seen.succeeded + len(run.active) <= max(spec["completions"], seen.succeeded + len(active))
        if spec.get("completionMode") == "Indexed":
            indexes = [p.ordinal for p in run.active]
            assert len(indexes) == len(set(indexes)) and not seen.completed & set(indexes)
        now = (run.status.get("succeeded", 0), run.status.get("failed", 0))
        assert now[0] >= counted[0], "what has succeeded is never forgotten"
        counted = now
    # From here all goes well.
    spec["suspend"], spec["parallelism"] = False, max(1, spec["parallelism"])
    for _ in range(60):
        run.wait(700)
        for pod in run.active:
            run.end(int(pod.name[2:]), "Succeeded")
        if finished(run.status):
            break
    assert finished(run.status)
    assert not run.active
    if any(c["type"] == "Complete" for c in run.status["conditions"]) and spec.get("completions") is not None:
        assert run.status.get("succeeded", 0) == spec["completions"]


def test_failed_pods_are_replaced_after_a_back_off_until_the_limit() -> None:
    run = Run(backoffLimit=2)
    run.tick()
    for number, delay in enumerate((10, 20)):
        run.end(number, "Failed")
        run.wait(delay - 1)
        assert not run.active
        run.wait(1)
        assert len(run.active) == 1
    run.end(2, "Failed")
    assert run.ends() == ("Failed", "BackoffLimitExceeded")
    assert run.status["failed"] == 3


def test_restarts_count_where_containers_are_restarted_in_place() -> None:
    run = Run(backoffLimit=2, restartPolicy="OnFailure")
    run.tick()
    run.change(run.pods[0], restarts=2)
    run.tick()
    assert decided(run.status) == ("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    assert not finished(run.status) and run.status["terminating"] == 1, "it has failed once its pods have ended"
    assert run.ends() == ("Failed", "BackoffLimitExceeded")


def test_a_deadline_ends_it() -> None:
    run = Run(activeDeadlineSeconds=30)
    run.tick()
    run.wait(29)
    assert run.active
    run.wait(1)
    assert run.ends() == ("Failed", "DeadlineExceeded")


def test_back_off_per_index() -> None:
    run = Run(completions=3, parallelism=3, completionMode="Indexed", backoffLimitPerIndex=1, maxFailedIndexes=1)
    run.tick()
    run.end(0, "Failed")
    assert [p.ordinal for p in run.active] == [1, 2], "only this index waits"
    run.wait(10)
    assert sorted(p.ordinal for p in run.active) == [0, 1, 2]
    run.end(3, "Failed")
    assert run.status["failedIndexes"] == "0"
    run.end(1, "Succeeded")
    run.end(2, "Succeeded")
    assert run.ends() == ("Failed", "FailedIndexes")
    assert (run.status["completedIndexes"], run.status["failedIndexes"]) == ("1,2", "0")


def test_too_many_failed_indexes() -> None:
    run = Run(completions=4, parallelism=4, completionMode="Indexed", backoffLimitPerIndex=0, maxFailedIndexes=1)
    run.tick()
    run.end(0, "Failed")
    assert decided(run.status) is None
    run.end(1, "Failed")
    assert run.ends() == ("Failed", "MaxFailedIndexesExceeded")


RULES = [
    {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}},
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [7]}},
]


def test_failure_policies() -> None:
    def run() -> Run:
        found = Run(
            completions=2,
            parallelism=2,
            completionMode="Indexed",
            backoffLimitPerIndex=5,
            podFailurePolicy={"rules": RULES},
        )
        found.tick()
        return found

    first = run()
    first.end(0, "Failed", 42)
    message = "Container c for pod shop/p-0 failed with exit code 42 matching FailJob rule at index 0"
    assert decided(first.status) == ("Failed", "PodFailurePolicy", message)
    second = run()
    second.end(0, "Failed", 9, conditions=(("DisruptionTarget", "True"),))
    assert second.status.get("failed", 0) == 0 and len(second.active) == 2, "it is ignored, and replaced at once"
    third = run()
    third.end(0, "Failed", 9)
    assert third.status["failedIndexes"] == "0"
    fourth = run()
    fourth.end(0, "Failed", 7)
    assert fourth.status["failedIndexes"] == "" and fourth.status["failed"] == 1


def test_success_policies() -> None:
    policy = {"rules": [{"succeededIndexes": "0,2-3", "succeededCount": 2}]}
    run = Run(completions=5, parallelism=5, completionMode="Indexed", successPolicy=policy)
    run.tick()
    run.end(1, "Succeeded")
    run.end(0, "Succeeded")
    assert decided(run.status) is None
    run.end(3, "Succeeded")
    assert decided(run.status) == ("Complete", "SuccessPolicy", "Matched rules at index 0")
    assert run.ends() == ("Complete", "SuccessPolicy")
    assert not run.active and run.status.get("failed", 0) == 0


@pytest.mark.parametrize("policy", ["TerminatingOrFailed", "Failed"])
def test_replacement(policy: str) -> None:
    run = Run(podReplacementPolicy=policy, backoffLimit=3)
    run.tick()
    run.change(run.pods[0], deleting=True, finished=run.now)
    run.now += 15
    run.tick()
    assert len(run.active) == (1 if policy == "TerminatingOrFailed" else 0)
    run.go(run.pods[0])
    run.wait(20)
    assert len(run.active) == 1 and run.status["failed"] == 1


def test_a_work_queue_ends_with_its_workers() -> None:
    run = Run(parallelism=3)
    run.tick()
    run.end(0, "Succeeded")
    assert len(run.active) == 2 and len(run.started) == 3
    run.end(1, "Succeeded")
    run.end(2, "Succeeded")
    assert run.ends() == ("Complete", "CompletionsReached")


def test_ended_pods_are_kept_up_to_a_bound() -> None:
    run = Run(completions=KEPT_PODS + 30, parallelism=1)
    run.tick()
    for number in range(KEPT_PODS + 29):
        run.end(number, "Succeeded")
        run.wait(1)
    assert len(run.pods) <= KEPT_PODS + 2
    assert run.status["succeeded"] == KEPT_PODS + 29
    run.end(KEPT_PODS + 29, "Succeeded")
    assert run.ends() == ("Complete", "CompletionsReached")


@given(st.sets(st.integers(0, 60)))
def test_indexes_are_written_as_intervals(indexes: set[int]) -> None:
    assert parse_indexes(format_indexes(indexes)) == indexes


def test_a_clock_that_was_set_back_does_not_prolong_the_back_off() -> None:
    run = Run(backoffLimit=5)
    run.tick()
    run.end(0, "Failed")
    run.now -= 100_000
    run.tick()
    run.wait(10)
    assert not run.active
    actions = job(run.job, run.pods, run.past, "r", run.now, run.status)
    assert actions.again is not None and actions.again <= 10
