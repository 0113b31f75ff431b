"""What is given to owners of clusters, applied to a real kube-apiserver: it takes all of it, under the strictest of the Pod
Security Standards where it knows them (from 1.23 on). Nothing need run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from examples.demo.continuum import wait_for
from tests.differential.peers import kubeconfig
from tests.members.test_deploy import DEPLOY
from tests.members.test_whole import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.system]
NAME = "members-deployed"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    config = kubeconfig()
    if config is None:
        pytest.skip("NOT RUN ON KUBERNETES: KUBECONFIG names no cluster; see CONTRIBUTING.md")
    found = Cluster(config, tmp_path_factory.mktemp("cluster"))
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAME}}
    space["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "restricted"}  # type: ignore[index]
    found.kubectl("create", "-f", "-", text=yaml.safe_dump(space))
    try:
        yield found
    finally:
        found.kubectl("delete", "clusterrolebinding,clusterrole", NAME, "--ignore-not-found")
        found.kubectl("delete", "namespace", NAME, "--ignore-not-found", "--wait=false")


def test_the_agents_objects_are_taken_and_its_pod_is_let_in(cluster: Cluster) -> None:
    text = (DEPLOY / "manifest.yaml").read_text().replace("nemo-agent", NAME)
    objects = [found for found in yaml.safe_load_all(text) if found and found["kind"] != "Namespace"]
    cluster.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(objects))
    wait_for("its pod", lambda: cluster.get("pod", f"{NAME}-0", "-n", NAME), 30)
    account = f"system:serviceaccount:{NAME}:{NAME}"
    for verb, what in (
        ("create", "deployments.apps"),
        ("create", "pods/portforward"),
        ("impersonate", "users"),
        ("list", "nodes"),
    ):
        assert cluster.kubectl("auth", "can-i", verb, what, f"--as={account}", "-A").strip() == "yes", what
    assert cluster.kubectl("auth", "can-i", "create", "clusterroles", f"--as={account}", check=False).strip() == "no"
