"""Two real sites: pods that all listen on one port reach each other across sites, and NetworkPolicies hold between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import namespaces_work, wait_for

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]

SERVE = """
import http.server, os, socket, threading
class Say(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["NAME"].encode())
    def log_message(self, *_): pass
def echo():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 8080))
    while True:
        data, who = s.recvfrom(70000); s.sendto(os.environ["NAME"].encode() + data, who)
threading.Thread(target=echo, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Say).serve_forever()
"""
CALL = """
import sys, urllib.request
for name in sys.argv[1:]:
    try:
        print(urllib.request.urlopen(f"http://{name}:8080", timeout=9).read().decode())
    except OSError:
        print("-")
"""
#: The same by UDP: a small datagram and the largest that the answer has room for.
SEND = """
import socket, sys
for name in sys.argv[1:]:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.connect((name, 8080))
    try:
        for size in (0, 60000):
            s.send(b"x" * size); answer = s.recv(70000)
            assert answer == name.encode() + b"x" * size
        print(name)
    except OSError:
        print("-")
"""
PLACES = {"web": "edge-paris", "other": "edge-paris", "api": "edge-london"}


def manifests() -> str:
    found: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "net"}}]
    for name, site in PLACES.items():
        metadata = {"name": name, "namespace": "net"}
        container = {
            "name": "c",
            "image": "python:3",
            "command": ["python3", "-c", SERVE],
            "env": [{"name": "NAME", "value": name}],
            "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "coap", "containerPort": 8080, "protocol": "UDP"},
            ],
            "readinessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 1},
        }
        found.append(
            {
                "apiVersion": "meta-os.eu/v1alpha1",
                "kind": "PlacementPolicy",
                "metadata": metadata,
                "spec": {
                    "workloads": {"refs": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": name}]},
                    "clusters": {"allowed": [site]},
                },
            }
        )
        found.append(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": metadata,
                "spec": {
                    "selector": {"matchLabels": {"app": name}},
                    "template": {
                        "metadata": {"labels": {"app": name}},
                        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
                    },
                },
            }
        )
        ports = [
            {"name": "http", "port": 8080, "targetPort": "http"},
            {"name": "coap", "port": 8080, "targetPort": "coap", "protocol": "UDP"},
        ]
        found.append(
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": {"app": name}, "ports": ports}}
        )
    return yaml.safe_dump_all(found)


def policy(**spec: Any) -> dict[str, Any]:
    metadata = {"name": "guard", "namespace": "net"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def continuum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuum]:
    found = Continuum(tmp_path_factory.mktemp("continuum") / "c", isolated=True)
    found.directory.mkdir()
    try:
        found.start_hub()
        found.add_sites(*sorted(set(PLACES.values())))
        apply(found, manifests())
        for name in PLACES:
            found.kubectl("rollout", "status", f"deployment/{name}", "-n", "net", "--timeout=30s")
        yield found
    finally:
        found.stop()


def apply(continuum: Continuum, text: str) -> None:
    place = continuum.directory / "applied.yaml"
    place.write_text(text)
    continuum.kubectl("apply", "-f", str(place))


def reached(continuum: Continuum, program: str = CALL) -> dict[tuple[str, str], bool]:
    """(caller, Service) → whether it answers."""
    found = {}
    for caller in PLACES:
        words = ("exec", "-n", "net", f"deployment/{caller}", "--", "python3", "-c", program, *PLACES)
        said = continuum.kubectl(*words).split()
        found |= {(caller, name): answer == name for name, answer in zip(PLACES, said, strict=True)}
    return found


EVERY = {(a, b) for a in PLACES for b in PLACES}


def test_every_pod_listens_on_the_port_of_every_service_and_reaches_all(continuum: Continuum) -> None:
    for pod in continuum.get("pods", "-n", "net")["items"]:
        assert pod["spec"]["nodeName"] == PLACES[pod["metadata"]["labels"]["app"]]
        assert pod["status"]["podIP"].startswith("100.")
    wait_for("all ways", lambda: all(reached(continuum).values()), 20)


def test_network_policies_hold_at_a_site_and_across_sites(continuum: Continuum) -> None:
    for spec, closed in (
        ({"podSelector": {"matchLabels": {"app": "api"}}, "policyTypes": ["Ingress"]}, {("web", "api"), ("other", "api")}),
        (
            {
                "podSelector": {"matchLabels": {"app": "api"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "http"}]}],
            },
            {("other", "api")},
        ),
        (
            {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]},
            {("web", "api"), ("web", "other")},
        ),
        ({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, {(a, b) for a, b in EVERY if a != b}),
    ):
        apply(continuum, yaml.safe_dump(policy(**spec)))

        def open_as_said(closed: set[tuple[str, str]] = closed) -> bool:
            found = reached(continuum)
            return {way for way, works in found.items() if not works} == closed

        wait_for(f"only {closed} to be closed", open_as_said, 20)
        # What comes from the hub and from the node is not the policies' business.
        assert continuum.kubectl("get", "--raw", "/api/v1/namespaces/net/services/api:8080/proxy/") == "api"
    ready = "{.items[*].status.conditions[?(@.type=='Ready')].status}"
    assert continuum.kubectl("get", "pods", "-n", "net", "-o", f"jsonpath={ready}").split() == ["True"] * 3
    continuum.kubectl("delete", "networkpolicy", "guard", "-n", "net")
    wait_for("all ways again", lambda: all(reached(continuum).values()), 20)
    assert "networkpolicy" not in continuum.kubectl("get", "works", "-A")


@pytest.mark.slow
def test_datagrams_reach_all_and_policies_hold_for_them(continuum: Continuum) -> None:
    wait_for("all ways by UDP", lambda: all(reached(continuum, SEND).values()), 20)
    to_api = {(a, "api") for a in ("web", "other")}
    for ports, closed in (([{"port": "http"}], to_api), ([{"port": "coap", "protocol": "UDP"}], set())):
        apply(continuum, yaml.safe_dump(policy(podSelector={"matchLabels": {"app": "api"}}, ingress=[{"ports": ports}])))

        def open_as_said(closed: set[tuple[str, str]] = closed) -> bool:
            return {way for way, works in reached(continuum, SEND).items() if not works} == closed

        wait_for(f"only {closed} to be closed by UDP", open_as_said, 20)
        by_tcp = {way for way, works in reached(continuum).items() if not works}
        assert by_tcp == to_api - closed if not closed else not by_tcp, "each protocol by its own rules"
    continuum.kubectl("delete", "networkpolicy", "guard", "-n", "net")
    wait_for("all ways by UDP again", lambda: all(reached(continuum, SEND).values()), 20)


@pytest.mark.slow
def test_pods_of_a_stateful_set_have_their_names_at_all_sites(continuum: Continuum) -> None:
    found = list(yaml.safe_load_all(manifests()))
    place, workload, service = (next(o for o in found if (o["kind"], o["metadata"]["name"]) == (kind, "api")) for kind in KINDS)
    for each in (place, workload, service):
        each["metadata"]["name"] = "db"
    place["spec"]["workloads"]["refs"] = [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db"}]
    workload["kind"] = "StatefulSet"
    workload["spec"] |= {"serviceName": "db", "replicas": 2, "selector": {"matchLabels": {"app": "db"}}}
    pod = workload["spec"]["template"]
    pod["metadata"]["labels"] = {"app": "db"}
    pod["spec"]["containers"][0]["env"] = [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    service["spec"] |= {"clusterIP": "None", "selector": {"app": "db"}}
    apply(continuum, yaml.safe_dump_all([place, service, workload]))
    continuum.kubectl("rollout", "status", "statefulset/db", "-n", "net", "--timeout=60s")
    names = ["db-0.db", "db-1.db.net.svc.cluster.local"]
    try:
        for caller in ("deployment/web", "pod/db-1"):  # of another site, and of theirs
            words = ("exec", "-n", "net", caller, "--", "python3", "-c", CALL, *names)
            wait_for(f"{caller} to reach them", lambda words=words: continuum.kubectl(*words).split() == ["db-0", "db-1"], 20)
        words = ("exec", "-n", "net", "deployment/web", "--", "python3", "-c", CALL, "db")
        assert continuum.kubectl(*words).split()[0] in ("db-0", "db-1"), "the Service's own name is any of them"
    finally:
        for kind in ("statefulset", "service", "placementpolicy"):
            continuum.kubectl("delete", kind, "db", "-n", "net")


KINDS = ("PlacementPolicy", "Deployment", "Service")
