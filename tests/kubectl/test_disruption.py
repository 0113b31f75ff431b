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
