"""kubectl on objects: everything that needs no site."""

import asyncio
import json

import pytest

from metaos.resources import scheme
from metaos.resources.meta import format_time
from tests.apiserver.objects import cluster, deployment, pod
from tests.apiserver.serving import ADMIN, ServedHub
from tests.kubectl.conftest import Kubectl

pytestmark = pytest.mark.system

SHOP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {app: shop}}
data: {colour: blue}
---
apiVersion: v1
kind: Secret
metadata: {name: password}
data: {password: aHVudGVyMg==}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: shop}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "python:3", ports: [{containerPort: 8080}], env: [{name: A, value: a}, {name: B, value: b}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: meta-os.eu/v1alpha1
kind: Intent
metadata: {name: fast}
spec:
  expectations:
  - verb: Ensure
    targets: [{name: latency, condition: IsLessThan, value: 40, unit: ms, contexts: [{name: usersIn, value: north}]}]
"""


async def test_apply_is_idempotent_and_merges(kubectl: Kubectl) -> None:
    assert "deployment.apps/web created" in await kubectl("apply", "-f", "-", text=SHOP)
    again = (await kubectl("apply", "-f", "-", text=SHOP)).splitlines()
    assert len(again) == 5 and all(line.endswith("unchanged") for line in again), again
    changed = SHOP.replace("{name: A, value: a}, ", "").replace("replicas: 2", "replicas: 3")
    assert "deployment.apps/web configured" in await kubectl("apply", "-f", "-", text=changed)
    container = json.loads(await kubectl("get", "deploy", "web", "-o", "json"))["spec"]["template"]["spec"]["containers"][0]
    assert container["env"] == [{"name": "B", "value": "b"}]
    assert "intent.meta-os.eu/fast configured" in await kubectl("apply", "-f", "-", text=SHOP.replace("value: 40", "value: 30"))
    assert await kubectl("diff", "-f", "-", text=SHOP.replace("value: 40", "value: 30")) == ""
    assert "deleted" in await kubectl("delete", "-f", "-", text=SHOP)
    assert "shop" not in await kubectl("get", "cm,deploy", "-l", "app=shop")


async def test_server_side_apply(kubectl: Kubectl) -> None:
    assert "serverside-applied" in await kubectl("apply", "--server-side", "-f", "-", text=SHOP)
    other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: red}\n"
    code, _, err = await kubectl.run("apply", "--server-side", "--field-manager=other", "-f", "-", text=other)
    assert code == 1 and "conflict" in err
    await kubectl("apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-", text=other)
    assert await kubectl("get", "cm", "settings", "-o", "jsonpath={.data.colour}") == "red"


async def test_create_in_many_ways(kubectl: Kubectl) -> None:
    """These bodies are protobuf, of typed clients."""
    for arguments in (
        ("namespace", "shop"),
        ("configmap", "c", "--from-literal=a=b", "-n", "shop"),
        ("secret", "generic", "s", "--from-literal=a=b"),
        ("deployment", "d", "--image=python:3", "--replicas=2", "--port=80"),
        ("job", "j", "--image=python:3", "--", "sleep", "1"),
        ("cronjob", "cj", "--image=python:3", "--schedule=*/5 * * * *", "--", "sleep", "1"),
        ("service", "clusterip", "web", "--tcp=80:8080"),
        ("serviceaccount", "sa"),
        ("role", "r", "--verb=get", "--resource=pods"),
        ("rolebinding", "rb", "--role=r", "--user=u"),
    ):
        assert "created" in await kubectl("create", *arguments)
    assert await kubectl("get", "cm", "c", "-n", "shop", "-o", "jsonpath={.data.a}") == "b"
    assert await kubectl("get", "deploy", "d", "-o", "jsonpath={.spec.replicas}") == "2"
    code, _, err = await kubectl.run("create", "configmap", "c", "-n", "shop")
    assert code == 1 and "already exists" in err
    code, _, err = await kubectl.run("create", "configmap", "c", "-n", "nowhere")
    assert code == 1 and 'namespaces "nowhere" not found' in err


async def test_get_in_every_form(hub: ServedHub, kubectl: Kubectl) -> None:
    await hub.make(cluster("edge"), deployment(), pod("a", nodeName="edge"), pod("b"))
    wide = await kubectl("get", "pods", "-A", "-o", "wide")
    header = "NAMESPACE NAME READY STATUS RESTARTS AGE IP NODE NOMINATED-NODE READINESS-GATES"
    assert wide.split()[:12] == header.replace("-", " ").split()
    assert [line.split()[1] for line in wide.splitlines()[1:]] == ["a", "b"]
    assert "edge" in wide
    assert json.loads(await kubectl("get", "deploy", "web", "-o", "json"))["kind"] == "Deployment"
    assert "kind: Deployment" in await kubectl("get", "deploy", "web", "-o", "yaml")
    assert await kubectl("get", "pods", "-o", "jsonpath={.items[*].metadata.name}") == "a b"
    assert await kubectl("get", "pods", "-o", "name", "--field-selector", "spec.nodeName=edge") == "pod/a\n"
    assert "No resources found" in (await kubectl.run("get", "pods", "-l", "app=none"))[2]
    assert "kubernetes.io/hostname=edge" in await kubectl("get", "nodes", "--show-labels")
    assert (await kubectl("get", "clusters")).split()[:3] == ["NAME", "READY", "TIER"]
    assert "edge" in await kubectl("get", "site")
    assert "deployment.apps/web" in await kubectl("get", "all")
    assert "edge" in await kubectl("get", "pods", "--chunk-size=1", "-o", "wide", "--sort-by=.metadata.name")
    code, _, err = await kubectl.run("get", "pod", "none")
    assert code == 1 and 'pods "none" not found' in err


async def test_get_watches(kubectl: Kubectl) -> None:
    await kubectl("create", "configmap", "a")
    process = await kubectl.start("get", "cm", "-w")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(15):
            lines = [(await process.stdout.readline()).decode().split() for _ in range(2)]
            await kubectl("create", "configmap", "b", "--from-literal=x=y")
            lines.append((await process.stdout.readline()).decode().split())
    finally:
        process.kill()
        await process.communicate()
    assert [line[:2] for line in lines] == [["NAME", "DATA"], ["a", "0"], ["b", "1"]]


async def test_describe(hub: ServedHub, kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", text=SHOP)
    await hub.make(cluster("edge"), pod("a", nodeName="edge"))
    secret = await kubectl("describe", "secret", "password")
    assert "password:  7 bytes" in secret and "hunter2" not in secret and "aHVudGVy" not in secret
    assert "2 desired" in await kubectl("describe", "deploy", "web")
    for what in ("pod/a", "node/edge", "service/web", "intent/fast", "cluster/edge", "cm/settings"):
        assert "Name:" in await kubectl("describe", what)


async def test_patches_labels_and_scale(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", text=SHOP)
    await kubectl("patch", "deploy", "web", "-p", '{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"x:1"}]}}}}')
    await kubectl("patch", "cm", "settings", "--type=merge", "-p", '{"data":{"size":"L"}}')
    await kubectl("patch", "cm", "settings", "--type=json", "-p", '[{"op":"remove","path":"/data/colour"}]')
    await kubectl("label", "deploy", "web", "tier=front")
    await kubectl("annotate", "deploy", "web", "note=hello")
    await kubectl("set", "env", "deploy/web", "C=c")
    await kubectl("scale", "deploy", "web", "--replicas=5")
    await kubectl("rollout", "restart", "deploy/web")
    found = json.loads(await kubectl("get", "deploy", "web", "-o", "json"))
    container = found["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "x:1" and [e["name"] for e in container["env"]] == ["A", "B", "C"]
    assert found["spec"]["replicas"] == 5 and found["metadata"]["labels"]["tier"] == "front"
    assert "kubectl.kubernetes.io/restartedAt" in found["spec"]["template"]["metadata"]["annotations"]
    assert json.loads(await kubectl("get", "cm", "settings", "-o", "json"))["data"] == {"size": "L"}
    code, _, err = await kubectl.run("scale", "deploy", "web", "--current-replicas=1", "--replicas=2")
    assert code == 1 and "Expected replicas to be 1, was 5" in err


async def test_wait_and_delete(hub: ServedHub, kubectl: Kubectl) -> None:
    await hub.make(deployment(), pod("a"))
    waiting = asyncio.create_task(kubectl("wait", "deploy/web", "--for=condition=Available", "--timeout=15s"))
    status = {"status": {"conditions": [{"type": "Available", "status": "True"}]}}
    await hub.registry.patch(ADMIN, scheme.DEPLOYMENT, "web", "default", status, subresource="status")
    assert "condition met" in await waiting
    gone = asyncio.create_task(kubectl("wait", "pod/a", "--for=delete", "--timeout=15s"))
    assert 'pod "a" deleted' in await kubectl("delete", "pod", "a")
    await gone
    assert "created" in await kubectl("create", "configmap", "x")
    assert "deleted" in await kubectl("delete", "cm", "--all")


async def test_explain_and_api_resources(kubectl: Kubectl) -> None:
    assert "strategic" not in await kubectl("explain", "deployment.spec.strategy")
    assert "<[]Container> -required-" in await kubectl("explain", "pod.spec")
    assert "latitude" in await kubectl("explain", "cluster.spec", "--recursive")
    assert "ENUM:" in await kubectl("explain", "intent.spec.expectations.targets.condition")
    listed = await kubectl("api-resources", "-o", "wide")
    assert {"deployments", "intents", "nodes", "certificatesigningrequests"} <= {line.split()[0] for line in listed.splitlines()}
    assert "meta-os.eu/v1alpha1" in await kubectl("api-versions")
    assert "v1.37.0+nemo" in await kubectl("version")


async def test_unknown_fields_are_refused_as_by_kubernetes(kubectl: Kubectl) -> None:
    code, _, err = await kubectl.run("apply", "-f", "-", text=SHOP.replace("replicas: 2", "replicaz: 2"))
    assert code == 1 and 'unknown field "spec.replicaz"' in err


async def test_events(hub: ServedHub, kubectl: Kubectl) -> None:
    await hub.make(pod("a"))
    await hub.make(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "a.1", "namespace": "default"},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "a", "namespace": "default"},
            "reason": "Switched",
            "message": "now at edge",
            "type": "Normal",
            "lastTimestamp": format_time(hub.clock.now()),
        }
    )
    assert "Switched" in await kubectl("events")
    assert "pod/a" in await kubectl("get", "events")
    assert "now at edge" in await kubectl("events", "--for=pod/a")


async def test_nodes_are_sites(hub: ServedHub, kubectl: Kubectl) -> None:
    await hub.make(cluster("edge"), pod("a", nodeName="edge"))
    await kubectl("cordon", "edge")
    await kubectl("taint", "nodes", "edge", "maintenance=soon:NoSchedule")
    site = json.loads(await kubectl("get", "cluster", "edge", "-o", "json"))
    assert site["spec"]["unschedulable"] is True
    assert [t["key"] for t in site["spec"]["taints"]] == ["maintenance"]
    assert "SchedulingDisabled" in await kubectl("get", "nodes")
    code, out, _ = await kubectl.run("drain", "edge", "--force", "--timeout=1s")
    # No agent is there to end it; but it was asked to go.
    assert code == 1 and "deletionTimestamp" in await kubectl("get", "pod", "a", "-o", "yaml"), out
    await kubectl("uncordon", "edge")
    await kubectl("taint", "nodes", "edge", "maintenance-")
    assert "Unschedulable:      false" in await kubectl("describe", "node", "edge")


async def test_who_am_i(hub: ServedHub, kubectl: Kubectl) -> None:
    assert "system:masters" in await kubectl("auth", "whoami")
    assert await kubectl("auth", "can-i", "delete", "pods") == "yes\n"
    code, out, _ = await kubectl.run("auth", "can-i", "delete", "pods", "--as=jane")
    assert (code, out) == (1, "no\n")
    code, _, err = await kubectl.run("get", "pods", "--as=jane")
    assert code == 1 and "Forbidden" in err


async def test_openapi_is_read_as_version_three_only(hub: ServedHub, kubectl: Kubectl) -> None:
    """kubectl would want version 2 as protobuf; it must never come to that."""
    await kubectl("apply", "-f", "-", text=SHOP)
    await kubectl("explain", "pod")
    metrics = await kubectl("get", "--raw", "/metrics")
    assert 'resource="",code="406"' not in metrics
