"""What must not run twice: when it is known not to run at a site."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from metaos.controllers.fencing import Silence, agreed, fenced_after, fencing, halt, halted, stopped
from metaos.controllers.render import work
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj, cluster_namespace, ref
from tests.clock import FakeClock
from tests.controllers.continuum import deployment
from tests.fake_client import FakeClient


def workload(kind: str, **spec: Any) -> Obj:
    found = deployment(replicas=2) | {"kind": kind}
    found["metadata"] |= {"uid": "u", "generation": 1}
    found["spec"] |= spec
    return found


def told(kind: str, status: Obj | None, *, seen: int = 2, observed: int = 1) -> Obj:
    obj = workload(kind)
    found = work(ref(obj), "a", [obj], 60)
    found["metadata"]["generation"] = 2
    found["spec"] = halt(found)
    if status is not None:
        entry = {"kind": kind, "name": "web", "uid": "u", "observedGeneration": observed, "status": status}
        found["status"] = {"observedGeneration": seen, "manifests": [entry]}
    return found


@pytest.mark.parametrize(
    ("kind", "status", "good"),
    [
        ("StatefulSet", {"replicas": 0}, True),
        ("StatefulSet", {"replicas": 1}, False),
        ("Deployment", {"replicas": 0, "terminatingReplicas": 1}, False),
        ("Deployment", {"replicas": 0}, True),
        ("Job", {"ready": 0, "terminating": 1}, False),
        ("Job", {"ready": 0, "active": 1}, False),
        ("Job", {"ready": 0}, True),
        ("CronJob", {"active": [{"name": "x"}]}, False),
        ("CronJob", {}, True),
    ],
)
def test_it_has_stopped_when_nothing_is_left_not_even_what_ends(kind: str, status: Obj, good: bool) -> None:
    assert stopped(told(kind, status)) == good


def test_old_reports_and_objects_not_taken_up_yet_prove_nothing() -> None:
    assert not stopped(told("StatefulSet", None))
    assert not stopped(told("StatefulSet", {"replicas": 0}, seen=1)), "the report is about what it was told before"
    assert not stopped(told("StatefulSet", {}, observed=0))


def test_halting_is_told_once_and_leaves_the_rest_alone() -> None:
    obj = workload("StatefulSet")
    found = work(ref(obj), "a", [obj], 60)
    assert not halted(found) and not stopped(found)
    spec = halt(found)
    assert halted(found | {"spec": spec}) and spec["fencing"] == {"afterSeconds": 60, "graceSeconds": 30}
    assert spec["manifests"][0]["spec"]["template"] == obj["spec"]["template"]
    assert obj["spec"]["replicas"] == 2, "what the informer holds is not changed"


def test_who_is_fenced() -> None:
    rule = {"spec": {"fencing": {"afterSeconds": 9}}}
    assert fencing(workload("StatefulSet"), [], 60.0) == 60.0
    assert fencing(workload("StatefulSet", volumeClaimTemplates=[{"metadata": {"name": "d"}}]), [], 60.0) is None
    assert fencing(workload("Deployment"), [], 60.0) is None
    assert fencing(workload("Deployment"), [rule], 60.0) == 9.0
    assert fencing(workload("DaemonSet"), [rule], 60.0) is None


def test_the_grace_period_comes_on_top() -> None:
    obj = workload("StatefulSet")
    assert fenced_after(obj, 60, 5) == 95
    obj["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 0
    assert fenced_after(obj, 60, 5) == 65


def test_what_the_site_was_told_counts_whatever_the_object_says_by_now() -> None:
    obj = workload("StatefulSet")
    obj["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 300
    found = work(ref(obj), "a", [obj], 60)
    assert agreed(found) == 360 and agreed(work(ref(obj), "a", [obj])) is None
    found["spec"]["manifests"][0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    assert agreed(found) == 360
    del found["spec"]["fencing"]["graceSeconds"]
    assert agreed(found) == 61, "of a hub that said nothing of it"


def test_the_margin_outlasts_a_sites_watchdog() -> None:
    with pytest.raises(ValueError, match="more than 1 s"):
        Settings(sign=lambda: b"", fencing_margin=1.0)


async def test_silence_counts_from_the_last_change_by_the_hubs_clock() -> None:
    clock = FakeClock()
    client = FakeClient(clock)
    manager = Manager(client, clock, Random(1))
    silence = Silence(manager, clock)
    await manager.start()

    async def beat(text: str) -> None:
        lease = {**scheme.LEASE.empty("a", cluster_namespace("a")), "spec": {"renewTime": text}}
        client.seed(lease)
        await clock.settle()

    try:
        await beat("2001-01-01T00:00:00Z")
        await clock.advance(5)
        assert silence.seconds("a") == 5
        await beat("1999-01-01T00:00:00Z")
        assert silence.seconds("a") == 0, "a change is a sign of life, whatever time it says"
        await clock.advance(7)
        await beat("1999-01-01T00:00:00Z")
        assert silence.seconds("a") == 7, "the same again is not"
        assert silence.seconds("nobody") == 0
    finally:
        await manager.stop()
