"""A hub is a Kubernetes API, so one can be a member of another: the whole way without a real cluster, with commands in pods."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from examples.demo.continuum import Continuum, wait_for
from tests.members.test_whole import APPLICATION, NAMESPACE, Agent

pytestmark = [pytest.mark.slow, pytest.mark.system]


@pytest.fixture(scope="module")
def upper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuum]:
    """The hub that the other one is a member of, with the application applied."""
    below = Continuum(tmp_path_factory.mktemp("below"), isolated=False)
    above = Continuum(tmp_path_factory.mktemp("above"), isolated=False, lease_seconds=4)
    agent = None
    try:
        below.start_hub()
        below.add_sites("edge-paris")
        below.kubectl("create", "clusterrolebinding", "uppers", "--clusterrole=cluster-admin", "--user=nemo:admin")
        above.start_hub()
        agent = Agent(above, below.kubeconfig)
        agent.start()
        wait_for("the member to have joined", lambda: above.get("cluster", "kube"), 30)
        above.kubectl("wait", "--for=condition=Ready", "cluster/kube", "--timeout=60s")
        file = above.directory / "application.yaml"
        file.write_text(APPLICATION.replace("busybox:latest", "python:3"))
        above.kubectl("apply", "-f", str(file))
        above.kubectl("rollout", "status", "deployment/web", "-n", NAMESPACE, "--timeout=60s")
        yield above
    finally:
        if agent is not None:
            agent.kill()
        above.stop()
        below.stop()


def pods(hub: Continuum) -> list[str]:
    return [p["metadata"]["name"] for p in hub.get("pods", "-n", NAMESPACE)["items"]]


def test_pods_two_levels_below_are_shown_and_commands_run_in_them(upper: Continuum) -> None:
    first = pods(upper)[0]
    assert upper.kubectl("exec", first, "-n", NAMESPACE, "--", "sh", "-c", "echo $GREETING") == "hello\n"
    environment = os.environ | {"KUBECONFIG": str(upper.kubeconfig), "KUBECACHEDIR": str(upper.directory / "kubecache")}
    done = subprocess.run(
        ["kubectl", "exec", "-i", first, "-n", NAMESPACE, "--", "sh", "-c", "cat; exit 7"],
        input="to the end",
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
    )
    assert (done.stdout, done.returncode) == ("to the end", 7)


def test_a_pod_that_is_deleted_at_the_hub_is_replaced_by_its_controller(upper: Continuum) -> None:
    first = pods(upper)[0]
    upper.kubectl("delete", "pod", first, "-n", NAMESPACE, "--timeout=60s")
    wait_for("another pod", lambda: len(pods(upper)) == 2 and first not in pods(upper), 30)
    upper.kubectl("rollout", "status", "deployment/web", "-n", NAMESPACE, "--timeout=60s")
