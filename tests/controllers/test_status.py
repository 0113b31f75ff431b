"""Status: what sites report becomes the status of the user's object."""

from __future__ import annotations

from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.render import work
from metaos.controllers.settings import Settings
from metaos.controllers.status import NAME, begins, rolled_up, setup, waits
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj, ref
from tests.controllers.continuum import cluster, deployment, running, until
from tests.controllers.test_work import placement


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


def test_a_deployment_is_available_as_far_as_it_may_be_missed_on_the_whole() -> None:
    said = condition("Available", "False"), condition("Progressing", reason="NewReplicaSetAvailable")
    under_way = condition("Available"), condition("Progressing", reason="ReplicaSetUpdated")
    strategy = {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    sites = {"availableReplicas": 1, "conditions": [*said]}, {"availableReplicas": 2, "conditions": [*under_way]}
    found = of("Deployment", *sites, replicas=4, strategy=strategy)
    assert {c["type"]: (c["status"], c["reason"]) for c in found["conditions"]} == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "ReplicaSetUpdated"),
    }
    assert "updateRevision" not in of("Deployment", {"updateRevision": "1f"}, replicas=1)


def test_a_site_whose_turn_has_not_come_is_not_updated() -> None:
    web = deployment()
    told = work(ref(web), "a", [web])
    assert not waits(web, told, "a", ())
    patch = {"spec": {"template": {"spec": {"nodeSelector": {"disk": "fast"}}}}}
    policy = {"metadata": {"name": "p"}, "spec": {"overrides": [{"clusters": ["a"], "patch": patch}]}}
    assert waits(web, told, "a", [policy]) is True
    newer = {**web, "spec": {**web["spec"], "template": {"spec": {"containers": []}}}}
    assert waits(newer, told, "a", ())


def test_nothing_is_written_of_a_deployment_before_a_site_has_told_of_it() -> None:
    web = deployment()
    assert begins(web, [{}, {"observedGeneration": 0}])
    assert not begins(web, [{}, {"status": {"replicas": 1}}]), "one has told"
    assert not begins({**web, "status": {"replicas": 1}}, [{}]), "it is not new"
    assert not begins(web, []), "it has no place, which its counts say"
    assert not begins({**web, "spec": web["spec"] | {"paused": True}}, [{}]), "a condition says so"
    assert not begins({**web, "kind": "StatefulSet"}, [{}])


async def test_the_status_that_was_just_written_is_no_news_and_anothers_is() -> None:
    managers: list[Manager] = []

    def keeping(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        managers.append(manager)
        setup(manager, client, clock, settings)

    async with running(keeping, objects=(cluster("a"), deployment())) as (client, clock):
        web = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        said = {**work(ref(web), "a", [web]), "status": {"manifests": [{"kind": "Deployment", "name": "web", "status": {}}]}}
        client.seed(placement(web, a=1), said)
        await clock.advance(1)
        before = managers[0].metrics[NAME]["reconciles"]
        counted = {"observedGeneration": 1, "status": {"replicas": 1}, "kind": "Deployment", "name": "web"}
        client.seed({**said, "status": {"manifests": [counted]}})
        await until(clock, lambda: (client.find(scheme.DEPLOYMENT, "web", "shop") or {}).get("status", {}).get("replicas") == 1)
        await clock.advance(1)
        assert managers[0].metrics[NAME]["reconciles"] == before + 1
        found = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed({**found, "status": {"replicas": 9}})
        await until(clock, lambda: (client.find(scheme.DEPLOYMENT, "web", "shop") or {})["status"]["replicas"] == 1)
