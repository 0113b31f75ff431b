"""Services for the world outside, at real sites: one of two answers on its machine's address, for pods of both."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from examples.demo.continuum import ROOT, Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import namespaces_work, wait_for
from tests.e2e.test_network import SERVE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]
#: The edge answers, ``web`` runs in London.
PLACES = {"other": "edge-paris", "web": "edge-london"}
PORT, NODE_PORT = 28080, 31080


def workload(name: str, site: str) -> list[dict[str, Any]]:
    metadata = {"name": name, "namespace": "open"}
    container = {"name": "c", "image": "python:3", "command": ["python3", "-c", SERVE], "env": [{"name": "NAME", "value": name}]}
    container["readinessProbe"] = {"httpGet": {"port": 8080}, "periodSeconds": 1}
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }
    refs = [{"apiVersion": "apps/v1", "kind": "Deployment", "name": name}]
    spec = {"workloads": {"refs": refs}, "clusters": {"allowed": [site]}}
    return [
        {"apiVersion": "meta-os.eu/v1alpha1", "kind": "PlacementPolicy", "metadata": metadata, "spec": spec},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
        },
    ]


def service(name: str, **spec: Any) -> dict[str, Any]:
    ports = [
        {"name": "http", "port": PORT, "targetPort": 8080, "nodePort": NODE_PORT},
        {"name": "coap", "port": PORT, "targetPort": 8080, "protocol": "UDP"},
    ]
    usual = {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "open"}, "spec": usual | spec}


@pytest.fixture(scope="module")
def continuum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuum]:
    found = Continuum(tmp_path_factory.mktemp("exposed") / "c", isolated=True)
    found.directory.mkdir()
    try:
        found.start_hub()
        found.add_site(ROOT / "examples/sites/edge-paris.yaml", "--expose", "127.0.0.1:20000-32767")
        found.add_sites("edge-london")
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "open"}}
        apply(found, space, *(each for name, site in PLACES.items() for each in workload(name, site)))
        for name in PLACES:
            found.kubectl("rollout", "status", f"deployment/{name}", "-n", "open", "--timeout=60s")
        yield found
    finally:
        found.stop()


def apply(continuum: Continuum, *manifests: dict[str, Any]) -> None:
    place = continuum.directory / "applied.yaml"
    place.write_text(yaml.safe_dump_all(manifests))
    continuum.kubectl("apply", "-f", str(place))


def answer(port: int) -> str:
    """Empty where nobody answers."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return ""


def datagram(port: int, text: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", port))
        sock.send(text)
        return sock.recv(100)


def exposed(continuum: Continuum, name: str = "web") -> tuple[Any, str]:
    """The addresses, and the condition's reason."""
    status = continuum.get("service", name, "-n", "open")["status"]
    reasons = [c["reason"] for c in status.get("conditions") or () if c["type"] == "Exposed"]
    return status["loadBalancer"].get("ingress"), "".join(reasons)


HERE = [{"ip": "127.0.0.1", "ipMode": "Proxy"}]


def test_pods_of_another_site_are_reached_and_an_agent_that_dies_comes_back(continuum: Continuum) -> None:
    apply(continuum, service("web"))
    continuum.kubectl("wait", "service/web", "-n", "open", "--for=jsonpath={.status.loadBalancer.ingress}", "--timeout=20s")
    assert exposed(continuum) == (HERE, "Exposed")
    assert answer(PORT) == answer(NODE_PORT) == "web"
    assert datagram(PORT, b"!") == b"web!"
    os.kill(continuum.agent_pid(continuum.sites["edge-paris"]), signal.SIGKILL)
    wait_for("the port to be closed", lambda: not answer(PORT), 5, 0.01)
    wait_for("the agent to answer again", lambda: answer(PORT) == "web", 30)


def test_one_port_is_one_services(continuum: Continuum) -> None:
    ports = [{"name": "http", "port": PORT, "targetPort": 8080}]
    apply(continuum, service("late", ports=ports, allocateLoadBalancerNodePorts=False))
    wait_for("the other to be told", lambda: exposed(continuum, "late") == (None, "PortTaken"), 20)
    events = continuum.get("events", "-n", "open")["items"]
    assert [e["type"] for e in events if e["reason"] == "PortTaken"] == ["Warning"], json.dumps(events)
    assert answer(PORT) == "web" and exposed(continuum) == (HERE, "Exposed")
    continuum.kubectl("delete", "service", "late", "-n", "open")


def test_policies_and_ranges_hold_across_sites(continuum: Continuum) -> None:
    def guard(cidr: str) -> dict[str, Any]:
        spec = {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}
        metadata = {"name": "guard", "namespace": "open"}
        return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}

    apply(continuum, guard("192.0.2.0/24"))
    wait_for("others to be kept out", lambda: not answer(PORT), 20)
    apply(continuum, guard("127.0.0.0/8"))
    wait_for("who is meant to be let in", lambda: answer(PORT) == "web", 20)
    continuum.kubectl("delete", "networkpolicy", "guard", "-n", "open")
    apply(continuum, service("web", loadBalancerSourceRanges=["192.0.2.0/24"]))
    wait_for("others to be kept out", lambda: not answer(PORT), 20)
    apply(continuum, service("web"))
    wait_for("everybody to be let in", lambda: answer(PORT) == "web", 20)


def test_it_is_withdrawn_when_nothing_serves_and_closed_when_it_goes(continuum: Continuum) -> None:
    continuum.kubectl("scale", "deployment/web", "--replicas=0", "-n", "open")
    wait_for("it to be withdrawn", lambda: exposed(continuum) == (None, "NoEndpoint"), 20)
    continuum.kubectl("scale", "deployment/web", "--replicas=1", "-n", "open")
    wait_for("it to be back", lambda: exposed(continuum) == (HERE, "Exposed"), 30)
    apply(continuum, service("web", externalTrafficPolicy="Local"))
    wait_for("the site to be left out that has no pod", lambda: exposed(continuum) == (None, "NoEndpoint"), 20)
    continuum.kubectl("delete", "service", "web", "-n", "open")
    wait_for("the ports to be free", lambda: all(_free(port) for port in (PORT, NODE_PORT)), 20)


def test_where_no_site_may_an_event_says_what_to_do(continuum: Continuum) -> None:
    apply(continuum, *workload("closed", "edge-london"))
    continuum.kubectl("delete", "deployment", "other", "-n", "open")
    apply(continuum, service("web"))
    wait_for("it to be said", lambda: exposed(continuum) == (None, "NoSite"), 40)
    events = [e for e in continuum.get("events", "-n", "open")["items"] if e["reason"] == "NoSite"]
    assert "--expose ADDRESS" in events[0]["message"] and events[0]["type"] == "Warning"


def _free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
