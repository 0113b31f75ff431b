"""The whole way on real parts: a hub, a member's agent and a real kube-apiserver with its controllers and scheduler. Where the
cluster has no node, the test makes one and does for its pods what a kubelet would report; nothing runs there then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.demo.continuum import ROOT, Continuum, wait_for
from metaos.resources.meta import format_time
from tests.differential.peers import kubeconfig

pytestmark = [pytest.mark.slow, pytest.mark.system]
NODE = "nemo-test-node"
TAINT = {"key": "nemo-test", "value": "members", "effect": "NoSchedule"}
SITE = {
    "apiVersion": "meta-os.eu/v1alpha1",
    "kind": "Cluster",
    "metadata": {"name": "kube"},
    "spec": {
        "tier": "cloud",
        "location": {"country": "ES"},
        "jurisdictions": ["EU", "ES"],
        "owner": "example",
        "taints": [TAINT],  # who comes here tolerates it, so the node that has it counts
    },
}
NAMESPACE = "members-whole"


class Cluster:
    """The real one, as its owner sees it; ``report`` plays the kubelet of a node that is not there."""

    def __init__(self, config: Path, folder: Path) -> None:
        self._environment = os.environ | {"KUBECONFIG": str(config), "KUBECACHEDIR": str(folder / "member-cache")}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def kubectl(self, *arguments: str, text: str = "", check: bool = True) -> str:
        done = subprocess.run(
            ["kubectl", *arguments], input=text, capture_output=True, text=True, timeout=60, env=self._environment, check=False
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def get(self, *arguments: str) -> Any:
        text = self.kubectl("get", *arguments, "-o", "json", check=False)
        return json.loads(text) if text else None

    def begin(self) -> None:
        """Makes a node where there is none, and keeps it and its pods ready."""
        if self.get("nodes")["items"]:
            return
        # For the pods of this test alone: others may use the cluster at the same time.
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"taints": [TAINT]}}
        self.kubectl("create", "-f", "-", text=json.dumps(node))
        self._thread = threading.Thread(target=self._report)
        self._thread.start()

    def end(self) -> None:
        self.kubectl("delete", "namespace", NAMESPACE, "nemo-system", "--ignore-not-found", "--wait=false")
        self.kubectl("delete", "crd", "gadgets.members.example.com", "--ignore-not-found")
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self.kubectl("delete", "pods", "--all", "-n", NAMESPACE, "--force", "--grace-period=0", check=False)
            self.kubectl("delete", "node", NODE)

    def _report(self) -> None:
        import time

        amounts = {"cpu": "8", "memory": "16Gi", "pods": "110"}
        while not self._ended.is_set():
            now = format_time(time.time())
            ready = {
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }
            self._status("nodes", NODE, {"capacity": amounts, "allocatable": amounts, "conditions": [ready]})
            for pod in (self.get("pods", "-n", NAMESPACE) or {"items": []})["items"]:
                name, where = pod["metadata"]["name"], ["-n", NAMESPACE]
                if pod["metadata"].get("deletionTimestamp"):
                    self.kubectl("delete", "pod", name, *where, "--force", "--grace-period=0", check=False)
                elif pod["spec"].get("nodeName") and pod["status"].get("phase") == "Pending":
                    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": now}]
                    self._status("pods", name, {"phase": "Running", "conditions": conditions}, f"namespaces/{NAMESPACE}/")
            self._ended.wait(0.3)

    def _status(self, plural: str, name: str, status: dict[str, Any], where: str = "") -> None:
        path = f"/api/v1/{where}{plural}/{name}"
        found = self.kubectl("get", "--raw", path, check=False)
        if found:
            obj = json.loads(found)
            obj["status"] = obj.get("status", {}) | status
            self.kubectl("replace", "--raw", f"{path}/status", "-f", "-", text=json.dumps(obj), check=False)


class Agent:
    """``nemo agent --runtime kubernetes``, of one site at one hub."""

    def __init__(self, continuum: Continuum, config: Path, site: dict[str, Any] = SITE, *options: str) -> None:
        self.continuum, self.name = continuum, str(site["metadata"]["name"])
        folder = continuum.directory
        self.log = folder / f"{self.name}.log"
        file, token = folder / f"{self.name}.yaml", folder / f"{self.name}.token"
        file.write_text(yaml.safe_dump(site))
        token.touch(0o600)
        token.write_text(continuum.nemo("join-token", self.name))
        self._command = [sys.executable, "-m", "metaos", "agent", "--runtime", "kubernetes", "--kubeconfig", str(config)]
        self._command += ["--hub", f"https://127.0.0.1:{continuum.port}", "--data", str(folder / self.name), "--site", str(file)]
        self._command += ["--token-file", str(token), "--heartbeat", "1", *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def condition(self, kind: str) -> dict[str, str]:
        found = (self.continuum.get("cluster", self.name) or {}).get("status", {}).get("agentConditions") or ()
        return next((c for c in found if c["type"] == kind), {})


@pytest.fixture(scope="module")
def config() -> Path:
    found = kubeconfig()
    if found is None:
        pytest.skip("NOT RUN ON KUBERNETES: KUBECONFIG names no cluster; see CONTRIBUTING.md")
    return found


@pytest.fixture(scope="module")
def continuum(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuum]:
    found = Continuum(tmp_path_factory.mktemp("members"), isolated=False, lease_seconds=4)
    try:
        found.start_hub()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def cluster(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(config, tmp_path_factory.mktemp("cluster"))
    found.begin()
    try:
        yield found
    finally:
        found.end()


@pytest.fixture(scope="module")
def agent(continuum: Continuum, cluster: Cluster, config: Path) -> Iterator[Agent]:
    found = Agent(continuum, config)
    found.start()
    try:
        wait_for("the cluster to be known", lambda: continuum.get("cluster", "kube"), 30)
        continuum.kubectl("wait", "--for=condition=Ready", "cluster/kube", "--timeout=60s")
        wait_for(
            "its capacity",
            lambda: (continuum.get("cluster", "kube")["status"].get("allocatable") or {}).get("cpu") not in (None, "0"),
        )
        yield found
    finally:
        found.kill()


APPLICATION = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings, namespace: {NAMESPACE}}}
data: {{GREETING: hello}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: {NAMESPACE}, labels: {{app: web}}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{{key: nemo-test, operator: Exists}}]
      containers:
      - name: web
        image: docker.io/library/busybox:latest
        imagePullPolicy: IfNotPresent
        command: [sleep, "3600"]
        envFrom: [{{configMapRef: {{name: settings}}}}]
        resources: {{requests: {{cpu: 50m, memory: 16Mi}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {NAMESPACE}}}
spec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}
---
apiVersion: meta-os.eu/v1alpha1
kind: Intent
metadata: {{name: inside, namespace: {NAMESPACE}}}
spec:
  workloads: {{selector: {{matchLabels: {{app: web}}}}}}
  expectations:
  - verb: Ensure
    targets:
    - {{name: residency, condition: IsOneOf, value: [EU]}}
"""


def test_a_kubernetes_cluster_is_a_site_with_the_capacity_of_its_nodes(agent: Agent, cluster: Cluster) -> None:
    status = agent.continuum.get("cluster", "kube")["status"]
    nodes = cluster.get("nodes")["items"]
    assert status["capacity"]["pods"] == str(sum(int(n["status"]["capacity"]["pods"]) for n in nodes))
    assert status["nodeInfo"]["osImage"].startswith("Kubernetes v") and status["nodeInfo"]["runtime"] == "kubernetes"
    assert all(agent.condition(kind)["status"] == "True" for kind in ("ClusterClaimed", "ClusterReachable", "NodesKnown"))


def test_what_is_applied_at_the_hub_runs_at_the_member_and_its_status_is_the_hubs(agent: Agent, cluster: Cluster) -> None:
    continuum = agent.continuum
    file = continuum.directory / "application.yaml"
    file.write_text(APPLICATION)
    continuum.kubectl("apply", "-f", str(file))
    continuum.kubectl("rollout", "status", "deployment/web", "-n", NAMESPACE, "--timeout=60s")
    assert cluster.get("deployment", "web", "-n", NAMESPACE)["status"]["availableReplicas"] == 2
    assert cluster.get("configmap", "settings", "-n", NAMESPACE)["data"] == {"GREETING": "hello"}
    assert cluster.get("service", "web", "-n", NAMESPACE)["spec"]["selector"] == {"app": "web"}
    shown = continuum.get("deployment", "web", "-n", NAMESPACE)["status"]
    assert shown["availableReplicas"] == 2 and shown["observedGeneration"] >= 1
    continuum.kubectl("scale", "deployment/web", "-n", NAMESPACE, "--replicas=3")
    continuum.kubectl("rollout", "status", "deployment/web", "-n", NAMESPACE, "--timeout=60s")
    assert cluster.get("deployment", "web", "-n", NAMESPACE)["spec"]["replicas"] == 3


def test_what_changes_at_the_cluster_is_put_right_also_after_the_agent_was_away(agent: Agent, cluster: Cluster) -> None:
    def replicas() -> Any:
        return (cluster.get("deployment", "web", "-n", NAMESPACE) or {"spec": {}})["spec"].get("replicas")

    cluster.kubectl("scale", "deployment/web", "-n", NAMESPACE, "--replicas=1")
    wait_for("the hub's replicas again", lambda: replicas() == 3, 20)
    agent.kill()
    cluster.kubectl("scale", "deployment/web", "-n", NAMESPACE, "--replicas=1")
    cluster.kubectl("delete", "configmap", "settings", "-n", NAMESPACE)
    agent.start()
    wait_for("the hub's replicas after the restart", lambda: replicas() == 3, 30)
    wait_for("the ConfigMap again", lambda: cluster.get("configmap", "settings", "-n", NAMESPACE), 20)
    agent.continuum.kubectl("rollout", "status", "deployment/web", "-n", NAMESPACE, "--timeout=60s")


def test_a_second_hub_is_refused_with_a_clear_condition(agent: Agent, config: Path, tmp_path: Path) -> None:
    second = Continuum(tmp_path, isolated=False)
    other = None
    try:
        second.start_hub()
        other = Agent(second, config, SITE | {"metadata": {"name": "mine"}})
        other.start()
        wait_for("the refusal", lambda: "member of the hub" in other.condition("ClusterClaimed").get("message", ""), 30)
        said = other.condition("ClusterClaimed")["message"]
        assert f"member of the hub https://127.0.0.1:{agent.continuum.port}" in said and "delete configmap nemo-member" in said
        ready = next((c for c in second.get("cluster", "mine")["status"].get("conditions") or () if c["type"] == "Ready"), {})
        assert ready.get("status") != "True", "no work is placed where none would run"
    finally:
        if other is not None:
            other.kill()
        second.stop()


def test_definitions_and_what_they_define_come_in_one_work(agent: Agent, cluster: Cluster) -> None:
    """Hubs have no custom resources yet: such a Work is its administrator's own."""
    group = "members.example.com"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"gadgets.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": "Gadget", "plural": "gadgets", "singular": "gadget"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }
    gadget = {
        "apiVersion": f"{group}/v1",
        "kind": "Gadget",
        "metadata": {"name": "first", "namespace": NAMESPACE},
        "spec": {"size": 3},
    }
    work = {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "Work",
        "metadata": {"name": "gadgets", "namespace": "nemo-cluster-kube"},
        "spec": {"manifests": [gadget, definition]},
    }
    file = agent.continuum.directory / "gadgets.yaml"
    file.write_text(yaml.safe_dump(work))
    agent.continuum.kubectl("apply", "-f", str(file))
    agent.continuum.kubectl("wait", "--for=condition=Available", "work/gadgets", "-n", "nemo-cluster-kube", "--timeout=30s")
    assert cluster.get("gadgets.members.example.com", "first", "-n", NAMESPACE)["spec"] == {"size": 3}
    agent.continuum.kubectl("delete", "work", "gadgets", "-n", "nemo-cluster-kube")
    wait_for("the definition to be gone", lambda: cluster.get("crd", f"gadgets.{group}") is None, 30)


def test_what_goes_at_the_hub_goes_at_the_member_and_a_removed_member_is_free_for_another_hub(
    agent: Agent, cluster: Cluster
) -> None:
    cluster.kubectl("create", "configmap", "theirs", "-n", NAMESPACE, "--from-literal=k=v")
    agent.continuum.kubectl(
        "delete", "-f", str(agent.continuum.directory / "application.yaml"), "--ignore-not-found", "--timeout=60s"
    )
    wait_for("the Deployment to be gone", lambda: cluster.get("deployment", "web", "-n", NAMESPACE) is None, 20)
    wait_for("the ConfigMap to be gone", lambda: cluster.get("configmap", "settings", "-n", NAMESPACE) is None, 20)
    assert cluster.get("configmap", "theirs", "-n", NAMESPACE)["data"] == {"k": "v"}
    agent.continuum.kubectl("delete", "cluster", "kube", "--timeout=60s")
    assert agent.process is not None
    assert agent.process.wait(60) == 3
    agent.process = None
    assert cluster.get("configmap", "nemo-member", "-n", "nemo-system") is None, "another hub may have it now"
