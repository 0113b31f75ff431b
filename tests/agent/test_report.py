"""What a site says about its Works, when, and the patches that say it."""

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.agent.contact import Contact
from metaos.agent.report import FIRST_SECONDS, UNSEEN_SECONDS, WorkReports, available, local, merge_patch, work_status
from metaos.agent.sync import WorkFiles, Works
from metaos.client import WatchEvent
from metaos.resources.meta import Obj
from metaos.resources.scheme import WORK
from tests.clock import FakeClock
from tests.fake_client import FakeClient

values = st.recursive(
    st.integers(0, 3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)


def apply(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = apply(result.get(key), value)
    return result


@given(objects, objects)
def test_a_patch_turns_the_old_into_the_new_and_is_empty_when_they_are_equal(old: Obj, new: Obj) -> None:
    assert apply(old, merge_patch(old, new)) == new
    assert merge_patch(new, new) == {}


def manifest(kind: str, **spec: Any) -> Obj:
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "x", "namespace": "ns", "uid": "u", "generation": 2},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("kind", "spec", "status", "expected"),
    [
        ("Deployment", {"replicas": 2}, {"availableReplicas": 2}, True),
        ("Deployment", {"replicas": 2}, {"availableReplicas": 1}, False),
        ("Deployment", {}, {}, False),
        ("StatefulSet", {"replicas": 0}, {}, True),
        ("DaemonSet", {}, {"desiredNumberScheduled": 1, "numberAvailable": 1}, True),
        ("DaemonSet", {}, {}, False),
        ("Job", {}, {"ready": 1}, True),
        ("Job", {}, {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}, True),
        ("Job", {}, {"ready": 1, "conditions": [{"type": "Failed", "status": "True"}]}, False),
        ("Job", {}, {}, False),
        ("Pod", {}, {"conditions": [{"type": "Ready", "status": "True"}]}, True),
        ("Pod", {}, {"phase": "Succeeded"}, True),
        ("Pod", {}, {"phase": "Pending"}, False),
        ("ConfigMap", {}, {}, True),
        ("CronJob", {}, {}, True),
    ],
)
def test_when_an_object_does_what_it_is_for(kind: str, spec: Obj, status: Obj, expected: bool) -> None:
    assert available(manifest(kind, **spec), status) is expected


def test_a_works_status_says_what_is_missing_what_is_awaited_and_what_is_fenced() -> None:
    work = {
        "metadata": {"name": "w", "generation": 4},
        "spec": {"manifests": [manifest("Deployment", replicas=1), manifest("Secret")]},
    }

    def said(statuses: dict[str, Obj | None], **more: Any) -> dict[str, tuple[str, str]]:
        found = work_status(work, more.pop("old", {}), lambda ref: statuses[ref.kind], now=0.0, **({"fenced": False} | more))
        assert found["observedGeneration"] == 4 and len(found["manifests"]) == 2
        return {c["type"]: (c["status"], c["reason"]) for c in found["conditions"]}

    assert said({"Deployment": None, "Secret": {}})["Applied"] == ("False", "NotApplied")
    assert said({"Deployment": {}, "Secret": {}}) == {"Applied": ("True", "Applied"), "Available": ("False", "NotAvailable")}
    done: dict[str, Obj | None] = {"Deployment": {"availableReplicas": 1}, "Secret": {}}
    assert said(done)["Available"] == ("True", "Available")
    assert said(done, fenced=True) == {"Applied": ("False", "Fenced"), "Available": ("False", "NotAvailable")}
    first = work_status(work, {}, lambda ref: done[ref.kind], fenced=False, now=1.0)
    assert work_status(work, first, lambda ref: done[ref.kind], fenced=False, now=99.0) == first, "nothing new, nothing to write"


@pytest.mark.parametrize(
    ("later", "seconds"),
    [({"replicas": 1}, FIRST_SECONDS), (None, UNSEEN_SECONDS), ({"availableReplicas": 1}, 0.42)],
    ids=["on its way", "not looked at", "available"],
)
async def test_what_a_work_makes_of_itself_at_first_is_one_report(tmp_path: Path, later: Obj | None, seconds: float) -> None:
    clock = FakeClock()
    client, contact = FakeClient(clock), Contact(clock, Random(1))
    works = Works(client, contact, clock, WorkFiles(tmp_path), "a")
    status: Obj = {}

    async def show(work: Obj) -> None:
        return None

    judge = local(lambda ref: None if later is None else dict(status))
    reports = WorkReports(client, contact, clock, Random(1), works, judge, show, "nemo-cluster-a")
    running = asyncio.create_task(reports.run())
    work: Obj = {**WORK.empty("w", "nemo-cluster-a"), "spec": {"manifests": [manifest("Deployment", replicas=1)]}}
    client.seed(work)
    seeded = client.find(WORK, "w", "nemo-cluster-a")
    assert seeded is not None
    works.apply_event(WatchEvent("ADDED", seeded))

    def told() -> Obj:
        found = client.find(WORK, "w", "nemo-cluster-a")
        assert found is not None
        return (found.get("status") or {}).get("manifests", [{}])[0].get("status")  # type: ignore[no-any-return]

    await clock.advance(0.22)
    assert told() is None
    status.update(later or {})
    reports.look("w")
    await clock.advance(seconds - 0.22 - 0.01)
    assert told() is None
    await clock.advance(0.3)
    assert told() == (later or {})
    if later is None:
        running.cancel()
        return
    status["replicas"] = 7
    reports.look("w")
    await clock.advance(0.22)
    assert told() == status, "what comes later is told as ever"
    running.cancel()
