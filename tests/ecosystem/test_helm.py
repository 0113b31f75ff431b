"""Helm 3, Helm 4 and the Helm 4 library over a chart with hooks, a test, lookups and a failing upgrade."""

import json
import socket
import urllib.request
from pathlib import Path

import pytest

from metaos.resources.services import allotted
from metaos.twin.processes import wait_for
from tests.ecosystem.conftest import PROGRAMS, Up
from tests.ecosystem.tools import Tools

pytestmark = [pytest.mark.slow, pytest.mark.system]

CHART = Path(__file__).parent / "chart"


@pytest.mark.parametrize("major", [3, 4])
def test_a_release_from_installation_to_removal(up: Up, tools: Tools, namespace: str, major: int) -> None:
    def helm(*arguments: str, check: bool = True) -> str:
        return up.run(tools.helm(major), *arguments, "-n", namespace, check=check)

    def config(key: str) -> str:
        return up.kubectl("get", "configmap", "shop-config", "-n", namespace, "-o", f"jsonpath={{.data.{key}}}")

    assert f'Version:"v{major}.' in up.run(tools.helm(major), "version")
    helm("install", "shop", str(CHART), "--wait", "--timeout", "60s")
    address = up.kubectl("get", "service", "shop", "-n", namespace, "-o", "jsonpath={.spec.clusterIP}")
    assert allotted(address)
    # A dry run makes no definitions, so it comes when they are there.
    assert "Dry run complete" in helm("install", "other", str(CHART), "--dry-run=server") or major == 3
    # What templates look up at the server, and what they ask its capabilities.
    assert config("seen") == "default" and config("batch") == "true" and config("version").startswith("v1.")
    # The chart's definition came first, and its object has the schema's default.
    assert up.kubectl("get", "visits", "shop", "-n", namespace, "-o", "jsonpath={.spec.wish}") == "water"
    # A hook's Job ran before all else, and went.
    assert up.kubectl("get", "jobs", "-n", namespace, "-o", "name") == ""
    assert "tested" in helm("test", "shop", "--logs", "--timeout", "60s")
    helm("upgrade", "shop", str(CHART), "--set", "replicas=2,greeting=bye", "--wait", "--timeout", "60s")
    assert config("greeting") == "bye"
    assert up.kubectl("get", "service", "shop", "-n", namespace, "-o", "jsonpath={.spec.clusterIP}") == address
    assert up.kubectl("get", "deployment", "shop-web", "-n", namespace, "-o", "jsonpath={.status.readyReplicas}") == "2"
    refused = helm("upgrade", "shop", str(CHART), "--set", "replicas=-1", check=False)
    assert "spec.replicas: Invalid value: -1" in refused
    helm("rollback", "shop", "1", "--wait", "--timeout", "60s")
    assert config("greeting") == "hello"
    history = json.loads(helm("history", "shop", "-o", "json"))
    assert [entry["status"] for entry in history] == ["superseded", "superseded", "failed", "deployed"]
    assert "shop-web" in helm("get", "manifest", "shop") and "deployed" in helm("status", "shop")
    helm("uninstall", "shop", "--wait", "--timeout", "60s")
    assert up.kubectl("get", "deployments,services,configmaps,secrets", "-n", namespace, "-o", "name") == ""


@pytest.mark.parametrize("major", [3, 4])
def test_helm_waits_for_a_load_balancer_of_the_site(up: Up, tools: Tools, namespace: str, major: int) -> None:
    port = 21000 + major
    arguments = ("--set", f"type=LoadBalancer,port={port}", "--wait", "--timeout", "60s", "-n", namespace)
    up.run(tools.helm(major), "install", "shop", CHART, *arguments)
    # Helm 4 does not wait for the address.
    up.kubectl("wait", "service/shop", "-n", namespace, "--for=condition=Exposed", "--timeout=30s")
    ingress = up.kubectl("get", "service", "shop", "-n", namespace, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
    assert ingress == "127.0.0.1"
    assert up.kubectl("get", "service", "shop", "-n", namespace, "--no-headers").split()[3] == "127.0.0.1"
    wait_for("the pod to answer", lambda: serves(port), 20)
    up.run(tools.helm(major), "uninstall", "shop", "--wait", "--timeout", "60s", "-n", namespace)
    wait_for("the port to be closed", lambda: not listens(port), 20)


def serves(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_helm_3_waits_in_vain_where_no_site_may_answer(up: Up, tools: Tools, namespace: str) -> None:
    said = up.run(
        *(tools.helm(3), "install", "shop", CHART, "--set", "type=LoadBalancer"),
        *("--wait", "--timeout", "8s", "--debug", "-n", namespace),
        check=False,
    )
    assert "Service does not have load balancer ingress IP address" in said and "context deadline exceeded" in said
    assert "NotAllowed" in up.kubectl("get", "events", "-n", namespace)
    # Without Helm's own waiting, it is all there.
    up.kubectl("rollout", "status", "deployment/shop-web", "-n", namespace, "--timeout=60s")


def test_the_library(up: Up, tools: Tools, namespace: str) -> None:
    assert "all passed" in up.run(tools.python, PROGRAMS / "helm_library.py", namespace, CHART)
