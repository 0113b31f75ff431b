"""Status: what sites report becomes the status of the user's object."""

from __future__ import annotations

from typing import Any

from metaos.controllers.status import rolled_up
from metaos.resources.meta import Obj


def of(kind: str, *statuses: dict[str, Any], **spec: Any) -> dict[str, Any]:
    obj: Obj = {"kind": kind, "metadata": {"name": "a", "namespace": "b"}, "spec": spec}
    entries = {f"site-{i}": {"status": s, "observedGeneration": 1} for i, s in enumerate(statuses)}
    return rolled_up(obj, entries, [], 1_700_000_000.0)


def condition(kind: str, status: str = "True", reason: str = "R") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}


def test_a_job_shows_its_indexes_and_how_it_ends() -> None:
    found = of(
        "Job",
        {
            "ready": 0,
            "terminating": 1,
            "succeeded": 2,
            "completedIndexes": "0,2",
            "failedIndexes": "",
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [condition("FailureTarget", reason="BackoffLimitExceeded")],
        },
    )
    assert found["completedIndexes"] == "0,2" and found["failedIndexes"] == "" and found["terminating"] == 1
    assert {c["type"]: (c["status"], c["reason"]) for c in found["conditions"]} == {
        "FailureTarget": ("True", "BackoffLimitExceeded")
    }
    assert all("lastProbeTime" in c for c in found["conditions"])


def test_a_resumed_job_says_so() -> None:
    found = of("Job", {"conditions": [condition("Suspended", "False", "JobResumed")]})
    assert [(c["type"], c["status"], c["reason"]) for c in found["conditions"]] == [("Suspended", "False", "JobResumed")]


def test_a_rollout_of_a_stateful_set_is_over_when_it_is_over_everywhere() -> None:
    done = {"currentRevision": "db-2", "updateRevision": "db-2", "replicas": 1}
    under_way = {"currentRevision": "db-1", "updateRevision": "db-2", "replicas": 1}
    assert of("StatefulSet", done, under_way)["currentRevision"] == "db-1"
    assert of("StatefulSet", done, done)["currentRevision"] == "db-2"
