"""Jobs of CronJobs are shown at the hub as long as their site tells of them."""

from __future__ import annotations

from typing import Any

from metaos.controllers import cronjob as controller
from metaos.controllers.facts import placeable
from metaos.controllers.render import manifest, work
from metaos.resources import scheme
from metaos.resources.meta import CLUSTER_LABEL, Obj, ref
from tests.controllers.continuum import running, until

CRON: Obj = {
    "apiVersion": "batch/v1",
    "kind": "CronJob",
    "metadata": {"name": "tick", "namespace": "shop", "uid": "cron-uid"},
    "spec": {
        "schedule": "* * * * *",
        "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]}}}},
    },
}


def told(*jobs: tuple[str, dict[str, Any]]) -> Obj:
    """The CronJob's Work with what its site says."""
    found = work(ref(CRON), "edge", [manifest(CRON)])
    entries = [
        {"name": n, "uid": n, "creationTimestamp": "2026-01-01T00:00:00Z", "scheduledTime": "2026-01-01T00:00:00Z", "status": s}
        for n, s in jobs
    ]
    entry = {"kind": "CronJob", "name": "tick", "namespace": "shop", "uid": "cron-uid", "status": {"jobs": entries}}
    return found | {"status": {"manifests": [entry]}}


async def test_jobs_come_and_go_with_what_is_told() -> None:
    async with running(controller.setup, objects=(CRON, told(("tick-1", {"active": 1})))) as (client, clock):
        job = await until(clock, lambda: client.find(scheme.JOB, "tick-1", "shop"))
        await until(clock, lambda: (client.find(scheme.JOB, "tick-1", "shop") or {}).get("status") == {"active": 1})
        assert job["metadata"]["ownerReferences"][0]["uid"] == "cron-uid"
        assert job["metadata"]["labels"] == {CLUSTER_LABEL: "edge"}
        assert job["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/job-name": "tick-1"}}
        assert job["spec"]["completions"] == 1 and not placeable(job)
        client.seed(told(("tick-1", {"succeeded": 1}), ("tick-2", {"active": 1})))
        await until(clock, lambda: len(client.objects(scheme.JOB)) == 2)
        await until(clock, lambda: (client.find(scheme.JOB, "tick-1", "shop") or {})["status"] == {"succeeded": 1})
        before = len(client.calls)
        await clock.advance(5)
        assert len(client.calls) == before, "nothing is written when nothing changes"
        client.seed(told(("tick-2", {"active": 1})))
        await until(clock, lambda: client.find(scheme.JOB, "tick-1", "shop") is None)
        await client.delete(scheme.JOB, "tick-2", "shop")
        await until(clock, lambda: client.find(scheme.JOB, "tick-2", "shop"))


async def test_a_job_of_ones_own_is_left_alone() -> None:
    mine: Obj = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "tick-1", "namespace": "shop"},
        "spec": {"mine": 1},
    }
    async with running(controller.setup, objects=(CRON, mine, told(("tick-1", {"active": 1})))) as (client, clock):
        await clock.advance(5)
        assert (client.find(scheme.JOB, "tick-1", "shop") or {})["spec"] == {"mine": 1}


def test_a_job_made_from_a_cron_job_is_placed() -> None:
    """``kubectl create job --from=cronjob/tick`` makes the CronJob its controller."""
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "tick", "uid": "cron-uid", "controller": True}
    assert placeable({"kind": "Job", "metadata": {"name": "m", "namespace": "shop", "ownerReferences": [owner]}})
