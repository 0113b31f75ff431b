"""Pods and workloads at a site whose machine is pretended: every rule of a pod's life, in virtual time."""

from __future__ import annotations

import asyncio
import base64
import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from metaos.resources import meta
from metaos.resources.meta import Obj
from tests.agent.machine import Site, container, workload


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    found = Site(tmp_path)
    found.start()
    yield found
    await found.stop()


def state(pod: Obj, name: str = "c") -> dict[str, Any]:
    rows = [*pod["status"]["containerStatuses"], *pod["status"].get("initContainerStatuses", ())]
    return next(row for row in rows if row["name"] == name)  # type: ignore[no-any-return]


def only(site: Site) -> Obj:
    (pod,) = site.pods().values()
    return pod


def ready(pod: Obj) -> bool:
    return meta.is_true(pod, "Ready")


# -- containers --------------------------------------------------------------------------------------------


async def test_a_deployment_runs_and_says_so(site: Site) -> None:
    web = workload("Deployment", replicas=2)
    await site.apply(web)
    assert len(site.machine.running()) == 2
    status = site.status(web)
    assert (status["readyReplicas"], status["updatedReplicas"], status["availableReplicas"]) == (2, 2, 2)
    assert {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]} == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }
    assert all(ready(pod) for pod in site.pods().values())


async def test_a_pod_that_is_gone_is_no_garbage(site: Site) -> None:
    """What nothing refers to goes at once: nobody has to look for circles in a process that runs for months."""
    await site.apply(workload("Deployment"))
    (worker,) = map(weakref.ref, site.supervisor._workers.values())
    await site.clock.advance(30)
    gc.collect()
    gc.disable()
    try:
        await site.apply()
        await site.clock.advance(60)
        assert not site.pods() and worker() is None
    finally:
        gc.enable()


async def test_crash_loop_back_off(site: Site) -> None:
    """At once, then after 10, 20, 40 … 300 seconds; ten minutes of good work make it fresh again."""
    await site.apply(workload("Deployment", replicas=1))
    name = meta.name(only(site))
    starts = [site.clock.now()]
    for expected in (0, 10, 20, 40, 80, 160, 300, 300):
        site.machine.end(name, 1)
        await site.clock.settle(200)
        if expected:
            shown = state(only(site))["state"]["waiting"]
            assert shown["reason"] == "CrashLoopBackOff" and f"back-off {expected}s" in shown["message"]
            assert state(only(site))["lastState"]["terminated"]["exitCode"] == 1
            await site.clock.advance(expected - 0.01)
            assert not site.machine.running()
            await site.clock.advance(0.01)
        await site.clock.settle(200)
        assert site.machine.running(), expected
        starts.append(site.clock.now())
    assert state(only(site))["restartCount"] == 8
    await site.clock.advance(600)
    site.machine.end(name, 1)
    await site.clock.settle(200)
    assert site.machine.running()


async def test_image_errors_have_their_names(site: Site) -> None:
    site.machine.missing_images.add("nowhere:1")
    await site.apply(workload("Deployment", template={"containers": [container(image="nowhere:1")]}, replicas=1))
    assert state(only(site))["state"]["waiting"]["reason"] == "ErrImagePull"
    await site.clock.advance(10)
    assert state(only(site))["state"]["waiting"]["reason"] == "ImagePullBackOff"
    site.machine.missing_images.clear()
    await site.clock.advance(20)
    assert ready(only(site))


async def test_a_runtime_is_told_before_what_it_will_start(site: Site) -> None:
    template = {"runtimeClassName": "wasm", "initContainers": [container("first")], "containers": [container(), container("d")]}
    await site.apply(workload("Deployment", template=template, replicas=1))
    told = site.machine.pod_configs[meta.uid(only(site))]
    assert (told.runtime_class, told.containers) == ("wasm", 3)


async def test_missing_configuration_is_waited_for(site: Site) -> None:
    source = {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "mode"}}}
    web = workload("Deployment", template={"containers": [container(env=[source])]}, replicas=1)
    await site.apply(web)
    shown = state(only(site))["state"]["waiting"]
    assert (shown["reason"], shown["message"]) == ("CreateContainerConfigError", 'configmap "settings" not found')
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "shop"}}
    await site.apply(web, settings | {"data": {"mode": "fast"}})
    await site.clock.advance(2)
    assert ready(only(site))
    uid = meta.uid(only(site))
    assert dict(site.machine.configs[uid, "c"].env)["MODE"] == "fast"


async def test_restart_policies(site: Site) -> None:
    once = workload("Pod", "once", template={"restartPolicy": "Never"})
    again = workload("Pod", "again", template={"restartPolicy": "OnFailure"})
    await site.apply(once, again)
    site.machine.end("once", 3)
    site.machine.end("again", 3)
    await site.settle()
    assert site.machine.running() == ["again"]
    failed = site.pods()["once"]
    assert failed["status"]["phase"] == "Failed"
    assert state(failed)["state"]["terminated"] | {"exitCode": 3, "reason": "Error"} == state(failed)["state"]["terminated"]
    site.machine.end("again", 0)
    await site.settle()
    assert site.pods()["again"]["status"]["phase"] == "Succeeded"
    assert meta.condition(site.pods()["again"], "Ready")["reason"] == "PodCompleted"  # type: ignore[index]


async def test_out_of_memory_is_told_apart(site: Site) -> None:
    await site.apply(workload("Pod", "big", template={"restartPolicy": "Never"}))
    site.machine.end("big", 137, reason="OOMKilled")
    await site.settle()
    assert state(site.pods()["big"])["state"]["terminated"]["reason"] == "OOMKilled"


# -- init containers and sidecars --------------------------------------------------------------------------


async def test_init_containers_run_one_after_another(site: Site) -> None:
    inits = [container("first"), container("second")]
    await site.apply(workload("Pod", "p", template={"initContainers": inits}))
    assert [h[2] for h in site.machine.history if h[0] == "start"] == ["first"]
    assert meta.condition(only(site), "Initialized")["message"] == "containers with incomplete status: [first second]"  # type: ignore[index]
    site.machine.end("p", 0, "first")
    await site.settle()
    site.machine.end("p", 1, "second")
    await site.settle()
    assert [h[2] for h in site.machine.history if h[0] == "start"] == ["first", "second", "second"]
    assert state(only(site))["state"]["waiting"]["reason"] == "PodInitializing"
    site.machine.end("p", 0, "second")
    await site.settle()
    assert ready(only(site)) and meta.is_true(only(site), "Initialized")


async def test_a_failed_init_container_fails_a_pod_that_never_restarts(site: Site) -> None:
    await site.apply(workload("Pod", "p", template={"restartPolicy": "Never", "initContainers": [container("first")]}))
    site.machine.end("p", 1, "first")
    await site.settle()
    assert only(site)["status"]["phase"] == "Failed"
    assert not any(h[2] == "c" for h in site.machine.history)


def sidecar(name: str, **more: Any) -> dict[str, Any]:
    return container(name, restartPolicy="Always", **more)


async def test_sidecars_start_in_order_and_hold_back_the_rest(site: Site) -> None:
    probe = {"exec": {"command": ["up"]}, "periodSeconds": 1, "failureThreshold": 30}
    site.machine.answers["up",] = 1
    inits = [sidecar("proxy", startupProbe=probe), container("setup"), sidecar("logs")]
    await site.apply(workload("Pod", "p", template={"restartPolicy": "Never", "initContainers": inits}))

    def started() -> list[str]:
        return [h[2] for h in site.machine.history if h[0] == "start"]

    assert started() == ["proxy"]
    site.machine.answers["up",] = 0
    await site.clock.advance(1)
    assert started() == ["proxy", "setup"]
    # It is started again while others are being set up, whatever the pod's policy.
    site.machine.end("p", 1, "proxy")
    await site.settle()
    assert started() == ["proxy", "setup", "proxy"]
    await site.clock.advance(1)
    site.machine.end("p", 0, "setup")
    await site.settle()
    assert started() == ["proxy", "setup", "proxy", "logs", "c"]
    assert ready(only(site)) and state(only(site), "proxy")["restartCount"] == 1


async def test_sidecars_end_last_and_in_reverse(site: Site) -> None:
    inits = [sidecar("one"), sidecar("two")]
    await site.apply(workload("Pod", "p", template={"initContainers": inits, "containers": [container(command=["deaf"])]}))
    await site.apply()
    await site.clock.advance(10)
    ended = [h[2] for h in site.machine.history if h[0] == "end"]
    assert ended == []
    await site.clock.advance(25)
    assert [h[2] for h in site.machine.history if h[0] == "end"] == ["c", "two", "one"]
    assert not site.pods()


async def test_sidecars_do_not_keep_a_job_from_completing(site: Site) -> None:
    job = workload("Job", template={"restartPolicy": "Never", "initContainers": [sidecar("proxy")]}, completions=1)
    await site.apply(job)
    (name,) = site.pods()
    site.machine.end(name, 0)
    await site.settle()
    await site.clock.advance(1)
    assert site.pods()[name]["status"]["phase"] == "Succeeded"
    assert not site.machine.running()
    assert {c["type"] for c in site.status(job)["conditions"]} == {"SuccessCriteriaMet", "Complete"}


async def test_readiness_of_sidecars_counts(site: Site) -> None:
    probe = {"exec": {"command": ["ok"]}, "periodSeconds": 1}
    site.machine.answers["ok",] = 1
    await site.apply(workload("Pod", "p", template={"initContainers": [sidecar("proxy", readinessProbe=probe)]}))
    assert state(only(site))["ready"] and not ready(only(site))
    site.machine.answers["ok",] = 0
    await site.clock.advance(1)
    assert ready(only(site))


# -- probes ------------------------------------------------------------------------------------------------


async def test_liveness_restarts_and_backs_off(site: Site) -> None:
    probe = {"exec": {"command": ["alive"]}, "periodSeconds": 1, "failureThreshold": 3, "terminationGracePeriodSeconds": 5}
    await site.apply(workload("Pod", "p", template={"containers": [container(command=["deaf"], livenessProbe=probe)]}))
    site.machine.answers["alive",] = 1
    await site.clock.advance(2.5)
    assert ("term", "p", "c") in site.machine.history and ("kill", "p", "c") not in site.machine.history
    await site.clock.advance(5.5)
    assert ("kill", "p", "c") in site.machine.history and state(only(site))["restartCount"] == 1
    assert {"Unhealthy", "Killing"} <= set(site.reasons())
    await site.clock.advance(8)
    assert state(only(site))["state"]["waiting"]["reason"] == "CrashLoopBackOff"


async def test_startup_holds_back_the_other_probes(site: Site) -> None:
    up, alive = ({"exec": {"command": [word]}, "periodSeconds": 1} for word in ("up", "alive"))
    site.machine.answers.update({("up",): 1, ("alive",): 1})
    probes = {"startupProbe": up | {"failureThreshold": 10}, "livenessProbe": alive, "readinessProbe": alive}
    await site.apply(workload("Pod", "p", template={"containers": [container(**probes)]}))
    await site.clock.advance(5)
    assert not [h for h in site.machine.history if h[2] == "alive"]
    site.machine.answers.update({("up",): 0, ("alive",): 0})
    await site.clock.advance(2)
    assert ready(only(site)) and state(only(site))["started"]


async def test_readiness_outlives_the_agent(site: Site) -> None:
    probe = {"exec": {"command": ["ok"]}, "periodSeconds": 10}
    await site.apply(workload("Pod", "p", template={"containers": [container(readinessProbe=probe, startupProbe=probe)]}))
    await site.clock.advance(11)
    assert ready(only(site))
    await site.stop()
    site.start()
    site.machine.answers["ok",] = 1
    await site.clock.settle(200)
    assert ready(only(site))
    await site.clock.advance(40)
    assert not ready(only(site))


# -- hooks, grace, messages --------------------------------------------------------------------------------


async def test_post_start_comes_before_ready_and_before_the_next_container(site: Site) -> None:
    site.machine.hanging.add(("warm",))
    hook = {"postStart": {"exec": {"command": ["warm"]}}}
    two = [container("c", lifecycle=hook), container("d")]
    await site.apply(workload("Pod", "p", template={"containers": two}))
    assert [h[2] for h in site.machine.history if h[0] == "start"] == ["c"]
    assert not state(only(site))["ready"]
    await site.stop()
    site.machine.hanging.clear()
    site.start()
    await site.settle()
    assert [h[2] for h in site.machine.history if h[0] == "start"] == ["c", "d"]
    assert ready(only(site))


async def test_a_failed_post_start_restarts_the_container(site: Site) -> None:
    site.machine.answers["warm",] = 1
    hook = {"postStart": {"exec": {"command": ["warm"]}}}
    await site.apply(workload("Pod", "p", template={"containers": [container(lifecycle=hook)]}))
    assert "FailedPostStartHook" in site.reasons()
    assert state(only(site))["restartCount"] == 1
    site.machine.answers["warm",] = 0
    await site.clock.advance(11)
    assert ready(only(site))


async def test_pre_stop_takes_from_the_grace_period(site: Site) -> None:
    hook = {"preStop": {"sleep": {"seconds": 20}}}
    await site.apply(workload("Pod", "p", template={"containers": [container(command=["deaf"], lifecycle=hook)]}))
    await site.apply()
    await site.clock.advance(19)
    assert ("term", "p", "c") not in site.machine.history
    await site.clock.advance(1)
    assert ("term", "p", "c") in site.machine.history
    await site.clock.advance(9)
    assert site.machine.running()
    await site.clock.advance(1.5)
    assert not site.pods()


async def test_a_shorter_grace_period_counts(site: Site) -> None:
    await site.apply(workload("Pod", "p", template={"containers": [container(command=["deaf"])]}))
    pod = only(site)
    await site.apply()
    assert site.machine.running()
    forced = asyncio.create_task(site.supervisor.delete_pod(meta.namespace(pod), "p", 0.0))
    await site.settle()
    assert not site.machine.running()
    await forced


async def test_pod_deadline(site: Site) -> None:
    await site.apply(workload("Pod", "p", template={"activeDeadlineSeconds": 30, "initContainers": [sidecar("s")]}))
    await site.clock.advance(28)
    assert site.machine.running()
    await site.clock.advance(3)
    await site.settle()
    pod = only(site)
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "DeadlineExceeded")
    assert not site.machine.running()


async def test_termination_messages(site: Site) -> None:
    logs = container("logs", terminationMessagePolicy="FallbackToLogsOnError")
    await site.apply(workload("Pod", "p", template={"restartPolicy": "Never", "containers": [container(), logs]}))
    site.machine.say("p", "disk is full")
    site.machine.logged["logs"] = b"Traceback: no such table\n"
    site.machine.end("p", 1)
    site.machine.end("p", 1, "logs")
    await site.settle()
    assert state(only(site))["state"]["terminated"]["message"] == "disk is full"
    assert state(only(site), "logs")["state"]["terminated"]["message"] == "Traceback: no such table\n"


# -- volumes -----------------------------------------------------------------------------------------------


def mounted(site: Site, path: str, container_: str = "c") -> Path:
    config = site.machine.configs[meta.uid(only(site)), container_]
    return Path(next(source for source, target, _ in config.mounts if target == path))


def configmap(name: str, **data: str) -> Obj:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop"}, "data": data}


def secret(name: str, **data: str) -> Obj:
    coded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "shop"}, "data": coded}


async def test_projected_volumes_follow_their_sources(site: Site) -> None:
    sources = [
        {"configMap": {"name": "settings"}},
        {"secret": {"name": "key", "items": [{"key": "k", "path": "keys/main", "mode": 0o400}]}},
        {"configMap": {"name": "extra", "optional": True}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]
    mounts = [{"name": "all", "mountPath": "/all"}, {"name": "all", "mountPath": "/one", "subPath": "mode"}]
    template = {"containers": [container(volumeMounts=mounts)], "volumes": [{"name": "all", "projected": {"sources": sources}}]}
    pod = workload("Pod", "p", template=template)
    pod["metadata"]["labels"] = {"app": "a"}
    await site.apply(pod, configmap("settings", mode="slow"), secret("key", k="1"))
    folder, single = mounted(site, "/all"), mounted(site, "/one")
    assert (folder / "mode").read_text() == "slow" and (folder / "keys/main").read_text() == "1"
    assert (folder / "keys/main").stat().st_mode & 0o777 == 0o400
    assert (folder / "labels").read_text() == 'app="a"'
    before, held = folder.stat().st_ino, single.open()
    relabelled = pod | {"metadata": pod["metadata"] | {"labels": {"app": "b", "x": "y"}}}
    await site.apply(relabelled, configmap("settings", mode="fast", more="yes"), secret("key", k="2"), configmap("extra", e="1"))
    assert folder.stat().st_ino == before, "the directory that is mounted stays"
    assert {p.name for p in folder.iterdir() if not p.name.startswith("..")} == {"mode", "more", "keys", "labels", "e"}
    assert (folder / "mode").read_text() == "fast" and (folder / "keys/main").read_text() == "2"
    assert (folder / "labels").read_text() == 'app="b"\nx="y"'
    assert held.read() == "slow", "a subPath keeps what it had"
    held.close()
    await site.apply(relabelled, secret("key", k="2"))
    assert (folder / "mode").read_text() == "fast" and "FailedMount" in site.reasons()
    assert len(site.machine.running()) == 1


async def test_a_missing_volume_is_a_failed_mount(site: Site) -> None:
    template = {
        "containers": [container(volumeMounts=[{"name": "v", "mountPath": "/v"}])],
        "volumes": [{"name": "v", "secret": {"secretName": "key"}}],
    }
    pod = workload("Pod", "p", template=template)
    await site.apply(pod)
    assert state(only(site))["state"]["waiting"]["reason"] == "ContainerCreating"
    assert "FailedMount" in site.reasons()
    await site.apply(pod, secret("key", a="b"))
    await site.clock.advance(2)
    assert (mounted(site, "/v") / "a").read_text() == "b"


async def test_resources_and_fields_in_the_environment(site: Site) -> None:
    def resource(name: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"resourceFieldRef": {"resource": name.lower().replace("_", ".")}}}

    env = [
        resource("LIMITS_CPU"),
        resource("LIMITS_MEMORY"),
        resource("REQUESTS_CPU"),
        {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "URL", "value": "http://$(ME)/$$(ME)/$(NONE)"},
    ]
    resources = {"limits": {"memory": "64Mi"}, "requests": {"cpu": "500m"}}
    await site.apply(workload("Pod", "p", template={"containers": [container(env=env, resources=resources)]}))
    found = dict(site.machine.configs[meta.uid(only(site)), "c"].env)
    assert (found["LIMITS_CPU"], found["LIMITS_MEMORY"], found["REQUESTS_CPU"]) == ("2", str(64 << 20), "1")
    assert found["URL"] == "http://p/$(ME)/$(NONE)"


# -- workloads ---------------------------------------------------------------------------------------------


def revised(obj: Obj, image: str = "python:4", **spec: Any) -> Obj:
    template = obj["spec"]["template"]
    containers = [{**c, "image": image} for c in template["spec"]["containers"]]
    new = template | {"spec": template["spec"] | {"containers": containers}}
    generation = obj["metadata"]["generation"] + 1
    return obj | {"metadata": obj["metadata"] | {"generation": generation}, "spec": obj["spec"] | {"template": new, **spec}}


async def test_a_paused_deployment_scales_but_does_not_roll(site: Site) -> None:
    web = workload("Deployment", replicas=2)
    await site.apply(web)
    paused = revised(web, paused=True, replicas=3)
    await site.apply(paused)
    images = [p["spec"]["containers"][0]["image"] for p in site.pods().values()]
    assert images == ["python:3"] * 3
    # Also by an agent that was not there when the old template came.
    await site.stop()
    site.start()
    await site.apply(revised(web, paused=True, replicas=4))
    assert [p["spec"]["containers"][0]["image"] for p in site.pods().values()] == ["python:3"] * 4
    await site.apply(revised(web, replicas=4))
    for _ in range(5):
        await site.clock.advance(1)
    assert [p["spec"]["containers"][0]["image"] for p in site.pods().values()] == ["python:4"] * 4


async def test_a_stateful_set_keeps_old_pods_below_the_partition(site: Site) -> None:
    db = workload("StatefulSet", "db", replicas=3, serviceName="db")
    await site.apply(db)
    for _ in range(4):
        await site.clock.advance(1)
    assert site.machine.running() == ["db-0", "db-1", "db-2"]
    new = revised(db, updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 2}})
    await site.apply(new)
    for _ in range(4):
        await site.clock.advance(1)
    site.machine.end("db-0", 1)
    await site.supervisor.delete_pod("shop", "db-0", 0.0)
    for _ in range(4):
        await site.clock.advance(1)
    images = {n: p["spec"]["containers"][0]["image"] for n, p in site.pods().items()}
    assert images == {"db-0": "python:3", "db-1": "python:3", "db-2": "python:4"}
    status = site.status(db)
    assert status["currentRevision"] != status["updateRevision"]
    assert (status["currentReplicas"], status["updatedReplicas"]) == (2, 1)
    await site.apply(revised(db))
    for _ in range(8):
        await site.clock.advance(1)
    status = site.status(db)
    assert status["currentRevision"] == status["updateRevision"] and status["currentReplicas"] == 3


async def test_a_stuck_stateful_set_can_be_rolled_back(site: Site) -> None:
    site.machine.missing_images.add("broken:1")
    db = workload("StatefulSet", "db", replicas=2)
    await site.apply(db)
    await site.clock.advance(2)
    await site.apply(revised(db, "broken:1"))
    await site.clock.advance(20)
    assert site.machine.running() == ["db-0"]
    await site.apply(db)
    for _ in range(4):
        await site.clock.advance(1)
    assert site.machine.running() == ["db-0", "db-1"]
    assert site.status(db)["readyReplicas"] == 2


async def test_a_pod_of_ones_own_runs_once(site: Site) -> None:
    """Stopped here while the hub still wants it (its deletion is on the way), it is not started again."""
    pod = workload("Pod", "p")
    await site.apply(pod)
    await site.supervisor.delete_pod("shop", "p", 0.0)
    await site.clock.advance(20)
    assert not site.pods()
    await site.stop()
    site.start()
    await site.clock.advance(20)
    assert not site.pods() and [h[0] for h in site.machine.history].count("start") == 1
    await site.apply(workload("Pod", "p", uid="another"))
    assert site.machine.running() == ["p"]


async def test_a_pod_of_ones_own_follows_its_image(site: Site) -> None:
    pod = workload("Pod", "p")
    await site.apply(pod)
    await site.apply(pod | {"spec": {"containers": [container(image="python:4")]}})
    await site.clock.advance(1)
    assert site.machine.configs[meta.uid(only(site)), "c"].image == "python:4"
    assert state(only(site))["restartCount"] == 1 and ready(only(site))


async def test_one_workload_that_cannot_be_planned_holds_up_no_other(site: Site) -> None:
    bad = workload("Deployment", "bad", replicas="many")
    cron = workload("CronJob", "cron", schedule="@sometimes")
    await site.apply(bad, cron, workload("Deployment", "good", replicas=1))
    assert len(site.machine.running()) == 1
    assert "InvalidSchedule" in site.reasons()


async def test_a_daemon_set_with_surge_starts_the_new_pod_first(site: Site) -> None:
    agent = workload("DaemonSet", "agent", minReadySeconds=5)
    await site.apply(agent)
    (old,) = site.pods()
    await site.clock.advance(6)
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    await site.apply(revised(agent, updateStrategy=surge))
    assert len(site.machine.running()) == 2
    await site.clock.advance(4)
    assert old in site.machine.running()
    await site.clock.advance(2)
    assert old not in site.machine.running() and len(site.machine.running()) == 1


# -- jobs --------------------------------------------------------------------------------------------------


async def test_indexed_jobs(site: Site) -> None:
    job = workload("Job", template={"restartPolicy": "Never"}, completions=3, parallelism=2, completionMode="Indexed")
    await site.apply(job)
    found = {p["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]: p for p in site.pods().values()}
    assert sorted(found) == ["0", "1"]
    uid = meta.uid(found["1"])
    assert dict(site.machine.configs[uid, "c"].env)["JOB_COMPLETION_INDEX"] == "1"
    assert found["1"]["spec"]["hostname"] == "web-1"
    for index in ("0", "1"):
        site.machine.end(meta.name(found[index]), 0)
    await site.settle()
    last = next(p for p in site.pods().values() if p["status"]["phase"] == "Running")
    # Its pods of the past are gone: what they did is not forgotten.
    for index in ("0", "1"):
        await site.supervisor.delete_pod("shop", meta.name(found[index]), 0.0)
    await site.stop()
    site.start()
    await site.settle()
    site.machine.end(meta.name(last), 0)
    await site.settle()
    await site.clock.advance(1)
    status = site.status(job)
    assert (status["completedIndexes"], status["succeeded"]) == ("0-2", 3)
    assert [h[0] for h in site.machine.history].count("start") == 3


async def test_what_an_earlier_object_of_the_name_did_is_not_counted(site: Site) -> None:
    job = workload("Job", "once", template={"restartPolicy": "Never"}, completions=1)
    cron = workload("CronJob", "tick", template={"restartPolicy": "Never"})
    cron["spec"] |= {"schedule": "* * * * *"}
    await site.apply(job, cron)
    site.machine.end(meta.name(next(p for p in site.pods().values() if "once" in meta.name(p))), 0)
    await site.clock.advance(70)
    assert site.status(job)["succeeded"] == 1 and site.status(cron)["lastScheduleTime"]
    # Deleted and made again: the site hears of both at once.
    again = workload("Job", "once", uid="again", template={"restartPolicy": "Never"}, completions=1)
    tick = workload("CronJob", "tick", uid="tock", template={"restartPolicy": "Never"})
    tick["spec"] |= {"schedule": "* * * * *"}
    site.supervisor.set_desired([again, tick])
    assert site.supervisor.status_of(meta.ref(again)) is None and site.supervisor.status_of(meta.ref(tick)) is None
    await site.apply(again, tick)
    assert "lastScheduleTime" not in site.status(tick)
    (pod,) = [p for p in site.pods().values() if p["status"]["phase"] == "Running" and "once" in meta.name(p)]
    site.machine.end(meta.name(pod), 0)
    await site.clock.advance(5)
    assert site.status(again)["succeeded"] == 1
    assert [h[0] for h in site.machine.history].count("start") >= 3


async def test_suspended_and_resumed(site: Site) -> None:
    job = workload("Job", template={"restartPolicy": "Never"}, completions=1, activeDeadlineSeconds=60)
    await site.apply(job)
    await site.apply(revised(job, "python:3", suspend=True))
    status = site.status(job)
    assert not site.machine.running() and "startTime" not in status and not status.get("failed")
    await site.clock.advance(100)
    await site.apply(revised(job, "python:3", suspend=False))
    await site.clock.advance(30)
    assert site.machine.running()
    conditions = {c["type"]: (c["status"], c["reason"]) for c in site.status(job)["conditions"]}
    assert conditions == {"Suspended": ("False", "JobResumed")}
    await site.clock.advance(40)
    assert {c["type"] for c in site.status(job)["conditions"] if c["status"] == "True"} == {"FailureTarget", "Failed"}


async def test_cron_jobs_run_and_keep_a_bounded_history(site: Site) -> None:
    cron = workload("CronJob", "tick", template={"restartPolicy": "Never", "containers": [container(command=["exit", "0"])]})
    cron["spec"] |= {"schedule": "* * * * *", "successfulJobsHistoryLimit": 2}
    await site.apply(cron)
    for _ in range(80):
        await site.clock.advance(5)
    assert len([h for h in site.machine.history if h[0] == "start"]) in (6, 7)
    assert len(site.pods()) == 2
    assert site.status(cron)["lastSuccessfulTime"] and "active" not in site.status(cron)


async def test_an_evicted_pod_is_no_failure_where_the_policy_says_so(site: Site) -> None:
    rules = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    job = workload("Job", template={"restartPolicy": "Never"}, backoffLimit=0, podFailurePolicy={"rules": rules})
    await site.apply(job)
    (pod,) = site.supervisor._workers.values()
    pod.evict("it used more of the disk than it may")
    await site.settle()
    await site.clock.advance(1)
    assert len(site.machine.running()) == 1 and not site.status(job).get("failed")
    reasons = [p["status"].get("reason") for p in site.pods().values()]
    assert reasons.count("Evicted") == 1


@pytest.mark.parametrize("evicted", [True, False])
async def test_a_pod_that_is_asked_to_go_is_no_failure_where_the_policy_says_so(site: Site, evicted: bool) -> None:
    rules = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    job = workload("Job", template={"restartPolicy": "Never"}, backoffLimit=0, podFailurePolicy={"rules": rules})
    await site.apply(job)
    await site.supervisor.delete_pod("shop", *site.pods(), 0.0, evicted)
    await site.settle()
    await site.clock.advance(1)
    assert (len(site.machine.running()), site.status(job).get("failed", 0)) == ((1, 0) if evicted else (0, 1))
