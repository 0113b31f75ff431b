"""kubectl rollout on real pods, for each kind that has a history; and sites that are cordoned and drained."""

import json
import re
from typing import Any

import pytest

from tests.kubectl.conftest import Real, deployment, until

pytestmark = pytest.mark.system

CHANGE = "kubernetes.io/change-cause"


def other(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """A StatefulSet or DaemonSet."""
    found = deployment(name, "exec sleep 3600", env=[{"name": "V", "value": "1"}])
    del found["spec"]["replicas"]
    return found | {"kind": kind, "spec": found["spec"] | spec}


def change(real: Real, workload: str, value: str) -> None:
    real("set", "env", workload, f"V={value}")
    real("annotate", workload, f"{CHANGE}=V is {value}", "--overwrite")
    real.rolled_out(workload)


def history(real: Real, workload: str) -> list[tuple[int, str]]:
    """(revision, cause) of each."""
    lines = real("rollout", "history", workload).splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("REVISION")) + 1
    return [(int(line.split()[0]), line.split(None, 1)[1].strip()) for line in lines[place:] if line.strip()]


def runs(real: Real, workload: str, wanted: str) -> bool:
    """Whether a pod of it has this V. A pod that ends just now is not there any more when it is asked."""
    return bool(
        until(f"V={wanted}", lambda: real.run("exec", workload, "--", "sh", "-c", "echo $V")[:2] == (0, f"{wanted}\n"), 10)
    )


@pytest.mark.parametrize(
    "manifest",
    [
        deployment("dep", "exec sleep 3600", 2, env=[{"name": "V", "value": "1"}]),
        other("StatefulSet", "set", replicas=2, serviceName="set"),
        other("DaemonSet", "dae"),
    ],
    ids=lambda m: str(m["kind"]),
)
def test_history_and_undo(real: Real, manifest: dict[str, Any]) -> None:
    workload = f"{manifest['kind'].lower()}/{manifest['metadata']['name']}"
    manifest["metadata"]["annotations"] = {CHANGE: "V is 1"}
    real.apply(manifest)
    real.rolled_out(workload)
    change(real, workload, "2")
    change(real, workload, "3")
    until("three revisions", lambda: history(real, workload) == [(1, "V is 1"), (2, "V is 2"), (3, "V is 3")])
    assert "V:\t1" in real("rollout", "history", workload, "--revision=1")
    assert runs(real, workload, "3")
    real("rollout", "undo", workload, "--to-revision=1")
    real.rolled_out(workload)
    assert runs(real, workload, "1")
    until("the first revision to be the newest", lambda: [n for n, _ in history(real, workload)] == [2, 3, 4])
    real("rollout", "undo", workload)
    real.rolled_out(workload)
    assert runs(real, workload, "3")
    code, _, err = real.run("rollout", "undo", workload, "--to-revision=77")
    assert code == 1 and "unable to find specified revision 77" in err
    before = real("get", "pods", "-l", f"app={manifest['metadata']['name']}", "-o", "name")
    real("rollout", "restart", workload)
    real.rolled_out(workload)
    after = real("get", "pods", "-l", f"app={manifest['metadata']['name']}", "-o", "jsonpath={.items[*].metadata.uid}")
    assert before and after
    assert "restartedAt" in real("get", workload, "-o", "jsonpath={.spec.template.metadata.annotations}")


def test_replica_sets_count_as_kubectl_shows_them(real: Real) -> None:
    real.apply(deployment("counted", "exec sleep 3600", 3))
    real.rolled_out("deploy/counted")
    real("set", "resources", "deploy/counted", "--limits=memory=64Mi")
    real.rolled_out("deploy/counted")

    def counts() -> list[list[str]]:
        columns = "custom-columns=D:.spec.replicas,C:.status.replicas,R:.status.readyReplicas"
        return sorted(line.split() for line in real("get", "rs", "-l", "app=counted", "--no-headers", "-o", columns).splitlines())

    until("the new one to have all", lambda: [c[0] for c in counts()] == ["0", "3"] and counts()[1] == ["3", "3", "3"])
    said = real("describe", "deploy", "counted")
    assert "3 desired | 3 updated | 3 total | 3 available" in said and "NewReplicaSet:   counted-" in said
    assert "(3/3 replicas created)" in said


def test_pause_and_resume(real: Real) -> None:
    real.apply(deployment("paused", "exec sleep 3600"))
    real.rolled_out("deploy/paused")
    real("rollout", "pause", "deploy/paused")
    image = real("get", "pods", "-l", "app=paused", "-o", "name")
    real("set", "image", "deploy/paused", "main=docker.io/library/python:3")
    code, _, err = real.run("rollout", "undo", "deploy/paused")
    assert code == 1 and "paused" in err
    code, out, _ = real.run("rollout", "status", "deploy/paused", "--timeout=1s")
    assert code == 1 and real("get", "pods", "-l", "app=paused", "-o", "name") == image, out
    real("rollout", "resume", "deploy/paused")
    real.rolled_out("deploy/paused")
    assert real("get", "pods", "-l", "app=paused", "-o", "jsonpath={.items[*].spec.containers[0].image}").split()[-1] == (
        "docker.io/library/python:3"
    )


@pytest.mark.slow
def test_a_rollout_that_fails_says_so(real: Real) -> None:
    wrong = deployment("wrong", "exec sleep 3600")
    wrong["spec"]["progressDeadlineSeconds"] = 2
    wrong["spec"]["template"]["spec"]["containers"][0]["image"] = "no-such-image:1"
    real.apply(wrong)
    code, out, err = real.run("rollout", "status", "deploy/wrong", "--timeout=30s")
    assert code == 1 and "exceeded its progress deadline" in out + err
    assert "ErrImagePull" in (pods := real("get", "pods", "-l", "app=wrong")) or "ImagePullBackOff" in pods
    until("what is wrong, as an event", lambda: "no-such-image:1" in real("events", "--types=Warning"))


def test_cordon_drain_and_uncordon(real: Real) -> None:
    real.apply(deployment("moves", "exec sleep 3600", 2))
    real.rolled_out("deploy/moves")
    node = real("get", "pods", "-l", "app=moves", "-o", "jsonpath={.items[0].spec.nodeName}")
    real("cordon", node)
    assert "SchedulingDisabled" in real("get", "node", node)
    code, _, err = real.run("drain", node, "--pod-selector=app=dae", "--timeout=5s")
    assert code == 1 and "--ignore-daemonsets" in err
    out = real("drain", node, "--ignore-daemonsets", "--pod-selector=app=moves", "--timeout=40s")
    assert f"node/{node} drained" in out
    places = real("get", "pods", "-l", "app=moves", "-o", "jsonpath={.items[*].spec.nodeName}").split()
    assert len(places) == 2 and node not in places
    real("uncordon", node)
    assert "SchedulingDisabled" not in real("get", "node", node)


def test_a_taint_and_back(real: Real) -> None:
    real("taint", "node", "edge-paris", "maintenance=soon:PreferNoSchedule")
    said = real("describe", "node", "edge-paris")
    assert "maintenance=soon:PreferNoSchedule" in said and re.search(r"HolderIdentity: +edge-paris", said), said
    real("taint", "node", "edge-paris", "maintenance=now:PreferNoSchedule", "--overwrite")
    real("taint", "node", "edge-paris", "maintenance-")
    assert "maintenance" not in real("get", "cluster", "edge-paris", "-o", "yaml")


def spread(real: Real, name: str, replicas: int, strategy: dict[str, Any]) -> None:
    """A Deployment on both sites."""
    wanted = deployment(name, "exec sleep 3600", replicas, env=[{"name": "V", "value": "1"}])
    wanted["spec"]["strategy"] = strategy
    policy = {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "PlacementPolicy",
        "metadata": {"name": name},
        "spec": {
            "workloads": {"selector": {"matchLabels": {"app": name}}},
            "division": {"mode": "Divided", "weights": {"edge-paris": 1, "edge-london": 1}},
            "spread": [{"by": "site", "minGroups": 2}],
        },
    }
    wanted["metadata"]["labels"] = {"app": name}
    real.apply(policy, wanted)
    real.rolled_out(f"deploy/{name}")
    places = real("get", "pods", "-l", f"app={name}", "-o", "jsonpath={.items[*].spec.nodeName}").split()
    assert set(places) == {"edge-paris", "edge-london"}


@pytest.mark.slow
def test_what_may_be_missing_may_be_missing_of_all_sites_together(real: Real) -> None:
    spread(real, "both", 4, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})
    seen: list[tuple[int, int]] = []
    real("set", "env", "deploy/both", "V=2")
    for _ in range(400):
        status = json.loads(real("get", "deploy", "both", "-o", "json"))["status"]
        seen.append((status.get("availableReplicas", 0), status.get("replicas", 0)))
        if status.get("updatedReplicas") == 4 == status.get("availableReplicas"):
            break
    assert min(seen)[0] >= 3 and max(total for _, total in seen) <= 4, seen
    real.rolled_out("deploy/both")
    assert runs(real, "deploy/both", "2")
    real("set", "image", "deploy/both", "main=no-such-image:1")
    until("the first site to try", lambda: "ErrImage" in (said := real("get", "pods", "-l", "app=both")) or "ImagePull" in said)
    code, _, _ = real.run("rollout", "status", "deploy/both", "--timeout=4s")
    assert code == 1 and real("get", "deploy", "both", "-o", "jsonpath={.status.availableReplicas}") == "3"
    real("rollout", "undo", "deploy/both")
    real.rolled_out("deploy/both")
    real("delete", "deploy,placementpolicy", "both", "--wait=false")


def test_recreate_mixes_no_revisions_over_sites(real: Real) -> None:
    spread(real, "anew", 2, {"type": "Recreate"})
    real("set", "env", "deploy/anew", "V=2")
    seen: list[set[str]] = []
    for _ in range(200):
        pods = json.loads(real("get", "pods", "-l", "app=anew", "-o", "json"))["items"]
        running = [p for p in pods if any("running" in c["state"] for c in p["status"].get("containerStatuses", ()))]
        seen.append({p["spec"]["containers"][0]["env"][0]["value"] for p in running})
        if seen[-1] == {"2"} and len(running) == 2:
            break
    assert {"2"} in seen and {"1", "2"} not in seen
    real.rolled_out("deploy/anew")
    real("delete", "deploy,placementpolicy", "anew", "--wait=false")


def test_a_bad_image_of_a_daemon_set_stops_at_one_site(real: Real) -> None:
    real.apply(other("DaemonSet", "every"))
    real.rolled_out("ds/every")
    real("set", "image", "ds/every", "main=no-such-image:1")
    until("one to be missed", lambda: real("get", "ds", "every", "-o", "jsonpath={.status.numberAvailable}") == "1")
    code, _, _ = real.run("rollout", "status", "ds/every", "--timeout=4s")
    assert code == 1 and real("get", "ds", "every", "-o", "jsonpath={.status.numberAvailable}") == "1"
    real("rollout", "undo", "ds/every")
    real.rolled_out("ds/every")
    assert real("get", "ds", "every", "-o", "jsonpath={.status.numberAvailable}") == "2"
    real("delete", "ds", "every", "--wait=false")
