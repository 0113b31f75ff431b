"""Services across members on real parts: a hub, a site with sandboxed pods, and a real cluster with a node, asked both ways.

The cluster of the laboratory has no kube-proxy and no DNS, so a pod there asks what its Service's EndpointSlice names."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from examples.demo.continuum import Continuum, wait_for
from metaos.cli.doctor import isolation
from tests.differential.peers import kubeconfigs
from tests.members.test_users import _has_nodes
from tests.members.test_whole import Agent, Cluster

pytestmark = [pytest.mark.slow, pytest.mark.system]
NAMESPACE, SITES = "members-imports", {"kube-web": "kube", "edge-web": "edge-paris", "kube-api": "kube", "edge-api": "edge-paris"}
SITE = {
    "apiVersion": "meta-os.eu/v1alpha1",
    "kind": "Cluster",
    "metadata": {"name": "kube"},
    "spec": {"tier": "cloud", "location": {"country": "ES"}, "jurisdictions": ["EU", "ES"], "owner": "example"},
}
SERVE = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(sys.argv[1].encode())
http.server.ThreadingHTTPServer(("", 8000), Answer).serve_forever()
"""
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


def way_out() -> str:
    """This machine's address on the way to others: its clusters' pods reach it there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.connect(("192.0.2.1", 9))
        return str(found.getsockname()[0])


def objects() -> Iterator[dict[str, Any]]:
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    for name, site in SITES.items():
        where = {"name": name, "namespace": NAMESPACE}
        policy: dict[str, Any] = {"apiVersion": "meta-os.eu/v1alpha1", "kind": "PlacementPolicy", "metadata": where}
        yield policy | {"spec": {"workloads": {"refs": [{"kind": "Deployment", "name": name}]}, "clusters": {"allowed": [site]}}}
        container = {
            "name": "main",
            "image": "docker.io/library/python:3",
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", SERVE, site],
            "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
        }
        pod = {"containers": [container], "terminationGracePeriodSeconds": 1}
        spec = {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": pod}}
        yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": where, "spec": spec}
        if name.endswith("api"):
            yield {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": where,
                "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8000}]},
            }
            yield {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport", "metadata": where}


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Continuum, Cluster]]:
    if isolation().level != "ok":
        pytest.skip("this kernel refuses user namespaces: see 'nemo doctor'")
    found = [(config, Cluster(config, tmp_path_factory.mktemp("cluster"))) for config in kubeconfigs()]
    able = [(config, cluster) for config, cluster in found if _has_nodes(cluster)]
    if not able:
        pytest.skip("NOT RUN ON KUBERNETES: KUBECONFIG names no cluster with a node; see CONTRIBUTING.md")
    config, cluster = able[-1]
    continuum = Continuum(tmp_path_factory.mktemp("imports"), isolated=True, lease_seconds=4)
    agent = None
    try:
        continuum.start_hub()
        continuum.add_sites("edge-paris")
        agent = Agent(continuum, config, SITE, "--relay", way_out())
        agent.start()
        wait_for("the cluster to be known", lambda: continuum.get("cluster", "kube"), 30)
        continuum.kubectl("wait", "--for=condition=Ready", "cluster/kube", "--timeout=60s")
        file = continuum.directory / "imports.yaml"
        file.write_text(yaml.safe_dump_all(objects()))
        continuum.kubectl("apply", "-f", str(file))
        for name in SITES:
            continuum.kubectl("rollout", "status", f"deployment/{name}", "-n", NAMESPACE, "--timeout=90s")
        yield continuum, cluster
    finally:
        if agent is not None:
            agent.kill()
        continuum.stop()
        cluster.kubectl("delete", "namespace", NAMESPACE, "nemo-system", "--ignore-not-found", "--wait=false")


def test_an_import_says_where_its_service_is(joined: tuple[Continuum, Cluster]) -> None:
    continuum, _ = joined

    def served(name: str) -> list[str]:
        found = continuum.get("serviceimport", name, "-n", NAMESPACE) or {}
        return [each["cluster"] for each in (found.get("status") or {}).get("clusters") or ()]

    wait_for("both imports", lambda: (served("kube-api"), served("edge-api")) == (["kube"], ["edge-paris"]))
    address = continuum.get("service", "edge-api", "-n", NAMESPACE)["spec"]["clusterIP"]
    assert address in continuum.kubectl("get", "serviceimports", "-n", NAMESPACE)
    continuum.kubectl("wait", "--for=condition=Valid", "serviceexports", "--all", "-n", NAMESPACE, "--timeout=10s")


def test_a_pod_of_a_site_reaches_a_service_of_a_cluster(joined: tuple[Continuum, Cluster]) -> None:
    continuum, _ = joined
    url = f"http://kube-api.{NAMESPACE}.svc.clusterset.local/"
    ask = ("exec", "-n", NAMESPACE, "deployment/edge-web", "--", "python3", "-c", ASK, url)
    wait_for("an answer", lambda: continuum.kubectl(*ask, check=False).strip() == "kube")


def test_a_service_of_the_clusters_own_is_reached_once_its_owner_offers_it(joined: tuple[Continuum, Cluster]) -> None:
    continuum, cluster = joined
    metadata = {"name": "legacy", "namespace": NAMESPACE}
    container = {"name": "main", "image": "docker.io/library/python:3", "imagePullPolicy": "IfNotPresent"}
    container["command"] = ["python3", "-c", SERVE, "legacy"]  # type: ignore[assignment]
    theirs = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata | {"labels": {"app": "legacy"}},
            "spec": {"containers": [container]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": {"app": "legacy"}, "ports": [{"port": 80, "targetPort": 8000}]},
        },
    ]
    cluster.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(theirs))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/legacy", "-n", NAMESPACE, "--timeout=60s")
    export = {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport"}
    export["metadata"] = metadata | {"annotations": {"meta-os.eu/from": "kube"}}  # type: ignore[assignment]
    file = continuum.directory / "legacy.yaml"
    file.write_text(yaml.safe_dump(export))
    continuum.kubectl("apply", "-f", str(file))

    def reason() -> str:
        found = (continuum.get("serviceexport", "legacy", "-n", NAMESPACE) or {}).get("status") or {}
        return next((c["reason"] for c in found.get("conditions") or () if c["type"] == "Valid"), "")

    wait_for("the refusal", lambda: reason() == "NotOffered")
    cluster.kubectl("annotate", "service", "legacy", "-n", NAMESPACE, "meta-os.eu/offer=true")
    wait_for("the offer", lambda: reason() == "Valid")
    url = f"http://legacy.{NAMESPACE}.svc.clusterset.local/"
    ask = ("exec", "-n", NAMESPACE, "deployment/edge-web", "--", "python3", "-c", ASK, url)
    wait_for("an answer", lambda: continuum.kubectl(*ask, check=False).strip() == "legacy")
    path = f"/api/v1/namespaces/{NAMESPACE}/services/legacy/proxy/"
    assert continuum.kubectl("get", "--raw", path) == "legacy"
    cluster.kubectl("annotate", "service", "legacy", "-n", NAMESPACE, "meta-os.eu/offer-")
    wait_for("the end of the offer", lambda: not continuum.kubectl(*ask, check=False).strip())


def test_a_pod_of_a_cluster_reaches_a_service_of_a_site(joined: tuple[Continuum, Cluster]) -> None:
    continuum, cluster = joined

    def relay() -> str:
        found = cluster.get("endpointslice", "edge-api-clusterset-relay", "-n", NAMESPACE) or {}
        for endpoint in found.get("endpoints") or ():
            return f"{endpoint['addresses'][0]}:{found['ports'][0]['port']}"
        return ""

    wait_for("the relay to be named", relay)
    service = cluster.get("service", "edge-api-clusterset", "-n", NAMESPACE)["spec"]
    assert service["ports"][0]["port"] == 80 and service["clusterIP"] != "None"
    assert not (cluster.get("endpointslice", "kube-api-clusterset-relay", "-n", NAMESPACE) or {}).get("endpoints"), "all are here"

    def ask(pod: str) -> str:
        command = ("exec", "-n", NAMESPACE, f"deployment/{pod}", "--", "python3", "-c", ASK, f"http://{relay()}/")
        return cluster.kubectl(*command, check=False).strip()

    wait_for("an answer", lambda: ask("kube-web") == "edge-paris")
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web-alone", "namespace": NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": {"app": "edge-api"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "kube-web"}}}]}],
        },
    }
    file = continuum.directory / "policy.yaml"
    file.write_text(yaml.safe_dump(policy))
    continuum.kubectl("apply", "-f", str(file))
    wait_for("the policy to hold", lambda: not ask("kube-api"))
    assert ask("kube-web") == "edge-paris"
