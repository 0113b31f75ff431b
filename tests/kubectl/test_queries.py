"""kubectl's questions that need no site: waits, selectors, columns, explanations, access, configuration."""

import asyncio
import json

import pytest

from metaos.resources import scheme
from tests.apiserver.objects import cluster, deployment, pod
from tests.apiserver.serving import ADMIN, ServedHub
from tests.kubectl.conftest import Kubectl

pytestmark = pytest.mark.system


async def test_waits_for_values_conditions_and_creation(hub: ServedHub, kubectl: Kubectl) -> None:
    created = asyncio.create_task(kubectl("wait", "deploy/web", "--for=create", "--timeout=15s"))
    value = asyncio.create_task(kubectl("wait", "deploy/other", "--for=jsonpath={.status.readyReplicas}=2", "--timeout=15s"))
    await hub.make(deployment("other"), deployment("web"))
    await hub.registry.patch(ADMIN, scheme.DEPLOYMENT, "other", "default", {"status": {"readyReplicas": 2}}, subresource="status")
    assert "condition met" in await created and "condition met" in await value
    code, _, err = await kubectl.run("wait", "deploy/web", "--for=condition=Available", "--timeout=200ms")
    assert code == 1 and "timed out" in err
    code, _, err = await kubectl.run("wait", "deploy/none", "--for=condition=Available", "--timeout=200ms")
    assert code == 1 and "not found" in err


async def test_field_selectors_and_columns(hub: ServedHub, kubectl: Kubectl) -> None:
    await hub.make(cluster("edge"), pod("a", nodeName="edge"), pod("b"), deployment())
    for selector in ("spec.nodeName=edge", "metadata.name!=b", "status.phase=Pending,spec.nodeName!="):
        assert await kubectl("get", "pods", "-o", "name", f"--field-selector={selector}") == "pod/a\n", selector
    code, _, err = await kubectl.run("get", "pods", "--field-selector=spec.colour=red")
    assert code == 1 and "field label not supported: spec.colour" in err
    columns = "custom-columns=NAME:.metadata.name,SITE:.spec.nodeName"
    assert (await kubectl("get", "pods", "-o", columns)).split() == ["NAME", "SITE", "a", "edge", "b", "<none>"]
    assert await kubectl("get", "pods", "-o", "go-template={{range .items}}{{.metadata.name}};{{end}}") == "a;b;"
    assert (await kubectl("get", "pods", "--sort-by=.spec.nodeName", "-o", "name")).split() == ["pod/b", "pod/a"]
    assert (await kubectl("get", "pods", "-L", "app")).splitlines()[1].split()[-1] == "web"
    wide = await kubectl("get", "deploy", "-o", "wide", "--no-headers")
    assert wide.split()[:2] == ["web", "0/1"] and "app=web" in wide


async def test_explain(kubectl: Kubectl) -> None:
    everything = await kubectl("explain", "deployment", "--recursive")
    assert "maxSurge" in everything and "livenessProbe" in everything
    assert "VERSION:    v2" in await kubectl("explain", "hpa.spec.metrics", "--api-version=autoscaling/v2")
    assert "targetCPUUtilizationPercentage" in await kubectl("explain", "hpa.spec", "--api-version=autoscaling/v1")
    code, _, err = await kubectl.run("explain", "pod.spec.nothing")
    assert code == 1 and 'field "nothing" does not exist' in err


async def test_may_i(hub: ServedHub, kubectl: Kubectl) -> None:
    await kubectl("create", "role", "reader", "--verb=get,list", "--resource=pods,pods/log")
    await kubectl("create", "rolebinding", "jane", "--role=reader", "--user=jane")
    assert await kubectl("auth", "can-i", "get", "pods", "--as=jane") == "yes\n"
    assert await kubectl("auth", "can-i", "get", "pods", "--subresource=log", "--as=jane") == "yes\n"
    code, out, _ = await kubectl.run("auth", "can-i", "get", "pods", "-n", "kube-system", "--as=jane")
    assert (code, out.split()[0]) == (1, "no")
    listed = await kubectl("auth", "can-i", "--list", "--as=jane")
    assert "pods/log" in listed
    assert sorted(line.split()[0] for line in listed.splitlines() if line.startswith("self")) == [
        "selfsubjectaccessreviews.authorization.k8s.io",
        "selfsubjectreviews.authentication.k8s.io",
        "selfsubjectrulesreviews.authorization.k8s.io",
    ]
    assert "jane" in await kubectl("auth", "whoami", "--as=jane")
    rules = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: reader, namespace: default}\nrules:\n"
    rules += '- {apiGroups: [""], resources: [pods], verbs: [watch]}\n'
    assert "reconciled" in await kubectl("auth", "reconcile", "-f", "-", text=rules)
    assert await kubectl("auth", "can-i", "watch", "pods", "--as=jane") == "yes\n"


async def test_the_cluster_and_the_configuration(kubectl: Kubectl) -> None:
    assert "control plane" in await kubectl("cluster-info")
    shown = await kubectl("config", "view")
    assert "DATA+OMITTED" in shown and "PRIVATE KEY" not in shown
    assert await kubectl("config", "current-context") == "nemo\n"
    versions = (await kubectl("api-versions")).split()
    assert versions == sorted(versions) and {"v1", "apps/v1", "autoscaling/v2", "meta-os.eu/v1alpha1"} <= set(versions)
    named = await kubectl("api-resources", "--verbs=list", "--namespaced=true", "-o", "name")
    assert "deployments.apps" in named and "nodes" not in named.split()
    assert "deploy" in await kubectl("api-resources", "--api-group=apps", "--no-headers")


async def test_every_generator_of_create(kubectl: Kubectl) -> None:
    for arguments in (
        ("clusterrole", "c", "--verb=get", "--resource=pods"),
        ("clusterrolebinding", "c", "--clusterrole=c", "--group=g"),
        ("ingress", "i", "--rule=example.org/=web:80"),
        ("poddisruptionbudget", "p", "--selector=app=web", "--min-available=1"),
        ("secret", "docker-registry", "d", "--docker-server=s", "--docker-username=u", "--docker-password=p"),
        ("service", "nodeport", "np", "--tcp=80"),
        ("service", "loadbalancer", "lb", "--tcp=80"),
        ("service", "externalname", "en", "--external-name=example.org"),
        ("job", "from", "--image=python:3"),
    ):
        assert "created" in await kubectl("create", *arguments)
    await kubectl("create", "cronjob", "tick", "--image=python:3", "--schedule=@daily")
    assert "created" in await kubectl("create", "job", "now", "--from=cronjob/tick")
    assert await kubectl("get", "job", "now", "-o", "jsonpath={.metadata.ownerReferences[0].name}") == "tick"


async def test_autoscale_makes_one(hub: ServedHub, kubectl: Kubectl) -> None:
    await hub.make(deployment())
    await kubectl("autoscale", "deploy", "web", "--min=2", "--max=5", "--cpu=70%")
    made = json.loads(await kubectl("get", "hpa", "web", "-o", "json"))["spec"]
    assert (made["minReplicas"], made["maxReplicas"]) == (2, 5)
    assert made["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 70}
    assert "cpu: <unknown>/70%" in await kubectl("get", "hpa")
