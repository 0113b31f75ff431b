"""What users of kubectl see of Jobs, sidecars, hooks, volumes that follow their sources, and updates that get stuck."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kubectl.conftest import Real, until

pytestmark = pytest.mark.system


def pod_spec(script: str, **more: Any) -> dict[str, Any]:
    container = {"name": "c", "image": "python:3", "command": ["/bin/sh", "-c", script]}
    return {"terminationGracePeriodSeconds": 1, "containers": [{**container, **more.pop("container", {})}], **more}


def workload(kind: str, name: str, pod: dict[str, Any], **spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": name}}, "spec": pod}
    if kind == "Job":
        return {"apiVersion": "batch/v1", "kind": kind, "metadata": {"name": name}, "spec": {"template": template, **spec}}
    selector = {"matchLabels": {"app": name}}
    found = {"selector": selector, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": found}


def status(real: Real, what: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(real("get", what, "-o", "json"))["status"]
    return found


def test_indexed_jobs_with_sidecars_and_a_ttl(real: Real) -> None:
    sidecar = {"name": "proxy", "image": "python:3", "restartPolicy": "Always", "command": ["sleep", "1000"]}
    pod = pod_spec("echo index $JOB_COMPLETION_INDEX of $(hostname)", restartPolicy="Never", initContainers=[sidecar])
    indexed = {"completions": 3, "parallelism": 3, "completionMode": "Indexed", "ttlSecondsAfterFinished": 2}
    real.apply(workload("Job", "work", pod, **indexed))
    real("wait", "--for=condition=complete", "job/work", "--timeout=30s")
    assert status(real, "job/work")["completedIndexes"] == "0-2"
    said = real("logs", "-l", "batch.kubernetes.io/job-name=work", "-c", "c", "--tail=-1")
    assert sorted(said.splitlines()) == [f"index {i} of work-{i}" for i in range(3)]
    real("wait", "--for=delete", "job/work", "--timeout=20s")
    until("its pods go too", lambda: not json.loads(real("get", "pods", "-l", "job-name=work", "-o", "json"))["items"])


def test_a_failure_policy_ends_a_job(real: Real) -> None:
    rules = [{"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}}]
    pod = pod_spec("echo broken > /dev/termination-log; exit 42", restartPolicy="Never")
    real.apply(workload("Job", "broken", pod, podFailurePolicy={"rules": rules}))
    real("wait", "--for=condition=failed", "job/broken", "--timeout=30s")
    failed = next(c for c in status(real, "job/broken")["conditions"] if c["type"] == "Failed")
    assert failed["reason"] == "PodFailurePolicy" and "exit code 42 matching FailJob rule at index 0" in failed["message"]
    assert "broken" in real("describe", "pod", real.first("app=broken"))


def test_what_is_rolled_out_can_be_looked_at(real: Real) -> None:
    for n in range(3):
        real.apply(workload("Deployment", f"now-{n}", pod_spec("echo here; exec sleep 1000"), replicas=2))
        real.rolled_out(f"deployment/now-{n}")
        rows = real("get", "pods", "-l", f"app=now-{n}", "--no-headers").splitlines()
        assert [row.split()[1:3] for row in rows] == [["1/1", "Running"]] * 2
        assert real("exec", f"deployment/now-{n}", "--", "echo", "hello") == "hello\n"


def test_volumes_follow_their_sources(real: Real) -> None:
    volume = {"name": "v", "projected": {"sources": [{"configMap": {"name": "settings"}}, {"secret": {"name": "key"}}]}}
    mounts = [{"name": "v", "mountPath": "/v"}]
    pod = pod_spec("exec sleep 1000", volumes=[volume], container={"volumeMounts": mounts})
    real("create", "configmap", "settings", "--from-literal=mode=slow")
    real("create", "secret", "generic", "key", "--from-literal=token=one")
    real.apply(workload("Deployment", "reader", pod, replicas=1))
    real.rolled_out("deployment/reader")
    name = real.first("app=reader")
    assert real("exec", name, "--", "cat", "/v/mode", "/v/token") == "slowone"
    real("patch", "configmap", "settings", "-p", '{"data": {"mode": "fast"}}')
    real("patch", "secret", "key", "-p", '{"stringData": {"token": "two"}}')
    until("the new content", lambda: real("exec", name, "--", "cat", "/v/mode", "/v/token") == "fasttwo")
    assert real.first("app=reader") == name


def test_a_stuck_stateful_set_is_rolled_back(real: Real) -> None:
    real.apply(workload("StatefulSet", "db", pod_spec("exec sleep 1000"), replicas=2, serviceName="db"))
    real.rolled_out("statefulset/db")
    real("set", "image", "statefulset/db", "c=nowhere:1")
    until(
        "an image that is not there", lambda: "ErrImagePull" in real("get", "pods") or "ImagePullBackOff" in real("get", "pods")
    )
    code, out, _ = real.run("rollout", "status", "statefulset/db", "--timeout=1s")
    assert code != 0 and "Waiting" in out
    real("rollout", "undo", "statefulset/db")
    real.rolled_out("statefulset/db")
    found = status(real, "statefulset/db")
    assert found["readyReplicas"] == 2 and found["currentRevision"] == found["updateRevision"]


def test_what_no_site_honours_is_said(real: Real) -> None:
    token = {"name": "t", "projected": {"sources": [{"podCertificate": {"keyType": "ED25519", "signerName": "example.org/x"}}]}}
    pod = pod_spec("exec sleep 1000", volumes=[token])
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}
    code, _, said = real.run("apply", "-f", "-", text=json.dumps(manifest))
    assert code == 0
    assert "podCertificate: this source is not available at any site; the pod will not start" in said


def cron(name: str) -> dict[str, Any]:
    pod = pod_spec("echo ticked", restartPolicy="OnFailure")
    spec = {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": pod}}}}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec}


def test_a_job_made_from_a_cron_job(real: Real) -> None:
    real.apply(cron("yearly") | {"spec": cron("yearly")["spec"] | {"schedule": "@yearly"}})
    real("create", "job", "now", "--from=cronjob/yearly")
    real("wait", "--for=condition=complete", "job/now", "--timeout=30s")
    assert real("logs", "job/now") == "ticked\n"


@pytest.mark.slow
def test_cron_jobs_show_their_jobs(real: Real) -> None:
    real.apply(cron("tick"))
    job = until("a job", lambda: [j for j in real("get", "jobs", "-o", "name").split() if "/tick-" in j], 70)[0]
    real("wait", "--for=condition=complete", job, "--timeout=30s")
    assert real("logs", job.replace("job.batch", "job")) == "ticked\n"
    assert status(real, "cronjob/tick")["lastSuccessfulTime"]
    real("delete", "cronjob", "tick")
    until("its jobs go with it", lambda: "/tick-" not in real("get", "jobs", "-o", "name"))
