"""Users of the hub in pods of a real cluster with a node: the cluster's own RBAC decides, and what they are offered works."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.demo.continuum import Continuum, wait_for
from metaos.twin.processes import free_port
from tests.differential.peers import kubeconfigs
from tests.members.metricsserver import CPU, MEMORY, objects, serving
from tests.members.test_deploy import manifest
from tests.members.test_whole import NODE, Agent, Cluster

pytestmark = [pytest.mark.slow, pytest.mark.system]
NAMESPACE = "members-users"
SITE = {
    "apiVersion": "meta-os.eu/v1alpha1",
    "kind": "Cluster",
    "metadata": {"name": "users"},
    "spec": {"tier": "cloud", "location": {"country": "ES"}, "jurisdictions": ["EU"], "owner": "example"},
}
SERVING = ["python3", "-m", "http.server", "8000", "--directory", "/srv"]
POD = {
    "containers": [
        {
            "name": "web",
            "image": "docker.io/library/python:3",
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", "mkdir -p /srv; echo hello > /srv/index.html; echo serving; exec " + " ".join(SERVING)],
            "ports": [{"containerPort": 8000}],
            "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}},
        }
    ],
    "terminationGracePeriodSeconds": 0,
}


def _has_nodes(cluster: Cluster) -> bool:
    return any(n["metadata"]["name"] != NODE for n in (cluster.get("nodes") or {"items": ()})["items"])


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, Cluster]]:
    found = [(config, Cluster(config, tmp_path_factory.mktemp("cluster"))) for config in kubeconfigs()]
    able = [(config, cluster) for config, cluster in found if _has_nodes(cluster)]
    if not able:
        pytest.skip("NOT RUN ON KUBERNETES: KUBECONFIG names no cluster with a node; see CONTRIBUTING.md")
    config, cluster = able[-1]
    continuum = Continuum(tmp_path_factory.mktemp("users"), isolated=False, lease_seconds=4)
    agent = None
    try:
        continuum.start_hub()
        agent = Agent(continuum, as_in_the_cluster(cluster, config, continuum.directory), SITE)
        agent.start()
        wait_for("the cluster to be known", lambda: continuum.get("cluster", "users"), 30)
        continuum.kubectl("wait", "--for=condition=Ready", "cluster/users", "--timeout=60s")
        apply(continuum)
        yield agent, cluster
    finally:
        if agent is not None:
            agent.kill()
        continuum.stop()
        cluster.kubectl("delete", "clusterrolebinding", "nemo-test-users", "nemo-agent", "--ignore-not-found")
        cluster.kubectl("delete", "clusterrole", "nemo-agent", "--ignore-not-found")
        cluster.kubectl("delete", "namespace", NAMESPACE, "nemo-agent", "nemo-system", "--ignore-not-found", "--wait=false")


def as_in_the_cluster(cluster: Cluster, admin: Path, folder: Path) -> Path:
    """A kubeconfig with the rights, and no others, that the manifest gives the agent."""
    rights = [
        found for found in manifest() if found["kind"] in ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding")
    ]
    cluster.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(rights))
    config = yaml.safe_load(admin.read_text())
    config["users"][0]["user"] = {"token": cluster.kubectl("create", "token", "nemo-agent", "-n", "nemo-agent").strip()}
    found = folder / "agent.kubeconfig"
    found.touch(0o600)
    found.write_text(yaml.safe_dump(config))
    return found


def apply(continuum: Continuum) -> None:
    labels = {"app": "web"}
    workload: dict[str, Any] = {"apiVersion": "apps/v1", "kind": "Deployment"}
    workload["metadata"] = {"name": "web", "namespace": NAMESPACE, "labels": labels}
    workload["spec"] = {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": POD},
    }
    service: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": NAMESPACE}}
    service["spec"] = {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]}
    file = continuum.directory / "web.yaml"
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    file.write_text(yaml.safe_dump_all([space, workload, service]))
    continuum.kubectl("apply", "-f", str(file))
    continuum.kubectl("rollout", "status", "deployment/web", "-n", NAMESPACE, "--timeout=60s")


def refused(continuum: Continuum, *arguments: str) -> str:
    environment = os.environ | {"KUBECONFIG": str(continuum.kubeconfig)}
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


@contextmanager
def forwarding(continuum: Continuum) -> Iterator[int]:
    port = free_port()
    command = ["kubectl", "port-forward", "-n", NAMESPACE, "deployment/web", f"{port}:8000"]
    environment = os.environ | {"KUBECONFIG": str(continuum.kubeconfig)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def fetched(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_who_has_no_rights_at_the_cluster_is_told_so_by_name(joined: tuple[Agent, Cluster]) -> None:
    continuum = joined[0].continuum
    said = refused(continuum, "logs", "-n", NAMESPACE, "deployment/web")
    assert "Forbidden" in said and "site 'users' does not let you" in said and "nemo:admin" in said
    said = refused(continuum, "exec", "-n", NAMESPACE, "deployment/web", "--", "true")
    assert "site 'users' does not let you" in said and "nemo:admin" in said
    with forwarding(continuum) as port:
        time.sleep(1)
        assert fetched(port) == ""
    for what in ("services/web", "pods/" + continuum.get("pods", "-n", NAMESPACE)["items"][0]["metadata"]["name"] + ":8000"):
        said = refused(continuum, "get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/{what}/proxy/")
        assert "site 'users' does not let you" in said and "nemo:admin" in said


def test_who_has_rights_there_reads_runs_copies_and_connects(joined: tuple[Agent, Cluster], tmp_path: Path) -> None:
    agent, cluster = joined
    continuum = agent.continuum
    cluster.kubectl("create", "clusterrolebinding", "nemo-test-users", "--clusterrole=cluster-admin", "--user=nemo:admin")
    pod = continuum.get("pods", "-n", NAMESPACE)["items"][0]["metadata"]["name"]
    wait_for("the right to count", lambda: "serving" in continuum.kubectl("logs", "-n", NAMESPACE, pod, check=False), 20)
    assert continuum.kubectl("exec", "-n", NAMESPACE, pod, "--", "cat", "/srv/index.html") == "hello\n"
    with forwarding(continuum) as port:
        wait_for("the page through the port", lambda: fetched(port) == "hello\n", 20)
    copy = tmp_path / "index.html"
    continuum.kubectl("cp", f"{NAMESPACE}/{pod}:/srv/index.html", str(copy))
    assert copy.read_text() == "hello\n"
    copy.write_text("from the hub\n")
    continuum.kubectl("cp", str(copy), f"{NAMESPACE}/{pod}:/srv/other.html")
    assert continuum.kubectl("exec", "-n", NAMESPACE, pod, "--", "cat", "/srv/other.html") == "from the hub\n"


def test_a_service_of_the_hub_leads_to_pods_of_the_cluster(joined: tuple[Agent, Cluster]) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/services/web/proxy/"
    wait_for("the page", lambda: joined[0].continuum.kubectl("get", "--raw", path, check=False) == "hello\n", 20)


def test_events_of_the_cluster_are_told_and_metrics_that_it_lacks_are_said_to_lack(
    joined: tuple[Agent, Cluster],
) -> None:
    agent, _ = joined
    continuum = agent.continuum
    continuum.kubectl("delete", "pods", "-n", NAMESPACE, "-l", "app=web", "--wait=false")

    def reasons() -> set[str]:
        return {e["reason"] for e in continuum.get("events", "-n", NAMESPACE)["items"] if e["involvedObject"]["kind"] == "Pod"}

    wait_for("what the kubelet says", lambda: "Started" in reasons(), 30)
    refused(continuum, "top", "pods", "-n", NAMESPACE)
    wait_for("the reason", lambda: agent.condition("MetricsServed").get("status") == "False", 20)
    assert "install one there" in agent.condition("MetricsServed")["message"]


def test_what_the_clusters_metrics_server_says_is_shown(joined: tuple[Agent, Cluster], tmp_path: Path) -> None:
    agent, cluster = joined
    if cluster.kubectl("get", "apiservice", "v1beta1.metrics.k8s.io", "--ignore-not-found").strip():
        pytest.skip("NOT RUN: the cluster has a metrics server of its own")
    continuum = agent.continuum

    def names(namespace: str) -> list[str]:
        return [pod["metadata"]["name"] for pod in cluster.get("pods", "-n", namespace)["items"]]

    with serving(tmp_path, names) as port:
        cluster.kubectl("apply", "-f", "-", text=objects(port))
        try:

            def shown() -> list[str]:
                return continuum.kubectl("top", "pods", "-n", NAMESPACE, "--no-headers", check=False).split()

            wait_for("the figures", lambda: shown()[1:3] == [CPU, MEMORY], 60)
            wait_for("the condition", lambda: agent.condition("MetricsServed").get("status") == "True", 40)
        finally:
            cluster.kubectl("delete", "apiservice", "v1beta1.metrics.k8s.io")
            cluster.kubectl("delete", "service", "nemo-test-metrics", "-n", "default")


def test_what_else_runs_at_the_cluster_takes_room(joined: tuple[Agent, Cluster]) -> None:
    agent, cluster = joined

    def free() -> float:
        text = str(agent.continuum.get("cluster", "users")["status"]["allocatable"]["cpu"])
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)

    before = free()
    busy: dict[str, Any] = {"name": "theirs", "image": "docker.io/library/busybox:latest", "imagePullPolicy": "IfNotPresent"}
    busy |= {"command": ["sleep", "600"], "resources": {"requests": {"cpu": "500m"}}}
    theirs = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "theirs", "namespace": "default"}}
    spec = {"containers": [busy], "terminationGracePeriodSeconds": 0}
    cluster.kubectl("create", "-f", "-", text=yaml.safe_dump(theirs | {"spec": spec}))
    try:
        wait_for("its room to be taken off", lambda: abs(before - free() - 0.5) < 0.01, 30)
    finally:
        cluster.kubectl("delete", "pod", "theirs", "-n", "default", "--wait=false")
