"""Three real clusters at one hub: what is spread is on all of them, and what one refuses holds up no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import yaml

from examples.demo.continuum import Continuum, wait_for
from tests.differential.peers import kubeconfigs
from tests.members.test_whole import SITE, Agent, Cluster

pytestmark = [pytest.mark.slow, pytest.mark.system]
NAMESPACE = "members-three"
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Continuum, list[Cluster]]]:
    configs = kubeconfigs()
    if len(configs) < len(NAMES):
        pytest.skip(f"NOT RUN ON KUBERNETES: KUBECONFIG names {len(configs)} clusters, not {len(NAMES)}; see CONTRIBUTING.md")
    continuum = Continuum(tmp_path_factory.mktemp("three"), isolated=False, lease_seconds=5)
    with ExitStack() as stack:
        stack.callback(continuum.stop)
        continuum.start_hub()
        clusters = []
        for name, config in zip(NAMES, configs, strict=False):
            cluster = Cluster(config, tmp_path_factory.mktemp(name))
            stack.callback(end, cluster)
            cluster.begin()
            agent = Agent(continuum, config, SITE | {"metadata": {"name": name}})
            stack.callback(agent.kill)
            agent.start()
            clusters.append(cluster)

        def ready() -> bool:
            found = {c["metadata"]["name"]: c for c in (continuum.get("clusters") or {"items": ()})["items"]}
            return all((found.get(n, {}).get("status", {}).get("allocatable") or {}).get("cpu", "0") != "0" for n in NAMES)

        wait_for("the members and their room", ready, 60)
        continuum.kubectl("wait", "--for=condition=Ready", "clusters", "--all", "--timeout=60s")
        yield continuum, clusters


def end(cluster: Cluster) -> None:
    cluster.kubectl("delete", "validatingwebhookconfiguration", "nemo-test-refuses", "--ignore-not-found")
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
    cluster.end()


def apply(continuum: Continuum, name: str) -> None:
    """A Deployment with a replica at each cluster; nobody schedules its pods, so that nothing runs."""
    pod = {"containers": [{"name": "main", "image": "docker.io/library/busybox:latest"}], "schedulerName": "nobody"}
    pod |= {"tolerations": [{"key": "nemo-test", "operator": "Exists"}]}
    spec = {"replicas": len(NAMES), "selector": {"matchLabels": {"app": name}}}
    workload: dict[str, Any] = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NAMESPACE}}
    workload["spec"] = spec | {"template": {"metadata": {"labels": {"app": name}}, "spec": pod}}
    policy: dict[str, Any] = {"apiVersion": "meta-os.eu/v1alpha1", "kind": "PlacementPolicy"}
    policy["metadata"] = {"name": "everywhere", "namespace": NAMESPACE}
    policy["spec"] = {"spread": [{"by": "site", "minGroups": len(NAMES), "maxSkew": 1}]}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    file = continuum.directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump_all([space, policy, workload]))
    continuum.kubectl("apply", "-f", str(file))


def has(cluster: Cluster, name: str) -> bool:
    return cluster.get("deployment", name, "-n", NAMESPACE) is not None


def applied(continuum: Continuum, site: str, name: str) -> dict[str, str]:
    work = continuum.get("work", f"deployment.{NAMESPACE}.{name}", "-n", f"nemo-cluster-{site}") or {}
    return next((c for c in (work.get("status") or {}).get("conditions") or () if c["type"] == "Applied"), {})


def test_what_is_spread_is_at_all_three(three: tuple[Continuum, list[Cluster]]) -> None:
    continuum, clusters = three
    apply(continuum, "spread")
    wait_for("it to be at all three", lambda: all(has(c, "spread") for c in clusters), 30)
    assert [c.get("deployment", "spread", "-n", NAMESPACE)["spec"]["replicas"] for c in clusters] == [1, 1, 1]


def test_a_webhook_that_refuses_at_one_holds_up_no_other(three: tuple[Continuum, list[Cluster]]) -> None:
    continuum, clusters = three
    hook = {
        "name": "refuses.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/none"},
        "rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "timeoutSeconds": 1,
        "admissionReviewVersions": ["v1"],
        "namespaceSelector": {"matchLabels": {"meta-os.eu/test": "refused"}},
    }
    configuration = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    configuration |= {"metadata": {"name": "nemo-test-refuses"}, "webhooks": [hook]}  # type: ignore[dict-item]
    clusters[0].kubectl("apply", "-f", "-", text=json.dumps(configuration))
    clusters[0].kubectl("label", "namespace", NAMESPACE, "meta-os.eu/test=refused")
    apply(continuum, "hooked")
    wait_for("the others to have it", lambda: has(clusters[1], "hooked") and has(clusters[2], "hooked"), 30)
    wait_for("the refusal", lambda: applied(continuum, "one", "hooked").get("reason") == "RefusedByWebhook", 30)
    assert "refuses.example.com" in applied(continuum, "one", "hooked")["message"] and not has(clusters[0], "hooked")
    clusters[0].kubectl("delete", "validatingwebhookconfiguration", "nemo-test-refuses")
    wait_for("it to come once nobody refuses", lambda: has(clusters[0], "hooked"), 70)


def test_a_name_that_is_taken_at_one_holds_up_no_other(three: tuple[Continuum, list[Cluster]]) -> None:
    continuum, clusters = three
    image = "--image=docker.io/library/busybox:latest"
    clusters[1].kubectl("create", "deployment", "taken", image, "--replicas=0", "-n", NAMESPACE)
    apply(continuum, "taken")
    wait_for("the others to have it", lambda: has(clusters[0], "taken") and has(clusters[2], "taken"), 30)
    wait_for("the refusal", lambda: applied(continuum, "two", "taken").get("reason") == "NameTaken", 30)
    assert clusters[1].get("deployment", "taken", "-n", NAMESPACE)["spec"]["replicas"] == 0, "it is as its owner made it"
