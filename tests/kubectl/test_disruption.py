"""kubectl drain against disruption budgets, on real pods of real sites."""

import json
import threading
from typing import Any

import pytest

from tests.kubectl.conftest import Real, deployment, until

pytestmark = pytest.mark.system


def budget(name: str, **spec: Any) -> dict[str, Any]:
    selector = {"selector": {"matchLabels": {"app": name}}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}, "spec": selector | spec}


def figures(real: Real, name: str) -> dict[str, int]:
    status = json.loads(real("get", "pdb", name, "-o", "json")).get("status") or {}
    return {k: status.get(k) for k in ("expectedPods", "desiredHealthy", "currentHealthy", "disruptionsAllowed")}


class Watched(threading.Thread):
    """The fewest ready pods of a workload that were ever seen."""

    def __init__(self, real: Real, name: str) -> None:
        super().__init__(daemon=True)
        self.real, self.name_, self.over, self.fewest = real, name, threading.Event(), 99

    def run(self) -> None:
        while not self.over.is_set():
            pods = json.loads(self.real("get", "pods", "-l", f"app={self.name_}", "-o", "json"))["items"]
            ready = [
                p["metadata"]["name"]
                for p in pods
                if any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", ()))
            ]
            self.fewest = min(self.fewest, len(ready))


def test_drain_waits_for_the_budget_and_the_move_keeps_it(real: Real) -> None:
    real.apply(deployment("kept", "exec sleep 1000", replicas=2), budget("kept", minAvailable=2))
    real.rolled_out("deploy/kept")
    until("the budget's figures", lambda: figures(real, "kept") == {"expectedPods": 2, "desiredHealthy": 2, "currentHealthy": 2,
                                                                   "disruptionsAllowed": 0})  # fmt: skip
    assert "ALLOWED DISRUPTIONS" in real("get", "pdb")
    node = real("get", "pods", "-l", "app=kept", "-o", "jsonpath={.items[0].spec.nodeName}")
    try:
        code, _, err = real.run("drain", node, "--pod-selector=app=kept", "--timeout=3s")
        assert code == 1 and "Cannot evict pod as it would violate the pod's disruption budget" in err, err
        places = real("get", "pods", "-l", "app=kept", "-o", "jsonpath={.items[*].spec.nodeName}").split()
        assert node in places, "nothing moved"
        # One of the two is evicted; the other may have moved along before its turn comes.
        telling = real.start("get", "pods", "-l", "app=kept", "--watch", "-o", "jsonpath={.status.conditions[*].reason} ")
        watched = Watched(real, "kept")
        watched.start()
        real("patch", "pdb", "kept", "--type=merge", "-p", '{"spec":{"minAvailable":1}}')
        until("one may go", lambda: figures(real, "kept")["disruptionsAllowed"] == 1)
        assert f"node/{node} drained" in real("drain", node, "--pod-selector=app=kept", "--timeout=45s")
        watched.over.set()
        watched.join(20)
        telling.terminate()
        assert "EvictionByEvictionAPI" in telling.communicate()[0]
        # One might have gone; make before break has kept both.
        assert watched.fewest == 2
        until("the figures after the move", lambda: figures(real, "kept")["currentHealthy"] == 2)
        assert node not in real("get", "pods", "-l", "app=kept", "-o", "jsonpath={.items[*].spec.nodeName}").split()
    finally:
        real("uncordon", node)
        real("delete", "deploy,pdb", "kept", "--wait=false")


def lone(real: Real, name: str) -> str:
    """A pod without a controller, and its site."""
    real("run", name, "--image=python:3", "--restart=Always", "--command", "--", "sh", "-c", "exec sleep 1000")
    until("it runs", lambda: real("get", "pod", name, "-o", "jsonpath={.status.phase}") == "Running")
    return real("get", "pod", name, "-o", "jsonpath={.spec.nodeName}")


def is_gone(real: Real, name: str) -> bool:
    return "NotFound" in real.run("get", "pod", name)[2]


def test_a_pod_without_a_controller_leaves_its_site_by_force_and_by_a_taint(real: Real) -> None:
    site = lone(real, "alone")
    try:
        code, _, err = real.run("drain", site, "--ignore-daemonsets", "--pod-selector=run=alone", "--timeout=5s")
        assert code == 1 and "--force" in err
        out = real("drain", site, "--ignore-daemonsets", "--force", "--pod-selector=run=alone", "--timeout=40s")
        assert f"node/{site} drained" in out and is_gone(real, "alone")
    finally:
        real("uncordon", site)
    site = lone(real, "tainted")
    try:
        real("taint", "node", site, "away=now:NoExecute")
        until("it is gone", lambda: is_gone(real, "tainted"), 45)
        assert "TaintManagerEviction" in real("get", "events")
    finally:
        real("taint", "node", site, "away-")


def test_an_eviction_where_the_site_takes_pods_replaces_the_pod(real: Real) -> None:
    real.apply(deployment("again", "exec sleep 1000"))
    real.rolled_out("deploy/again")
    pod = real.first("app=again")
    site = real("get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": real.namespace}}
    real("create", "--raw", f"/api/v1/namespaces/{real.namespace}/pods/{pod}/eviction", "-f", "-", text=json.dumps(body))
    until("another one", lambda: is_gone(real, pod), 30)
    real.rolled_out("deploy/again")
    # A plain cordon moves nothing later.
    try:
        real("cordon", site)
        assert real("get", "pods", "-l", "app=again", "-o", "jsonpath={.items[*].spec.nodeName}") == site
    finally:
        real("uncordon", site)
        real("delete", "deploy", "again", "--wait=false")
