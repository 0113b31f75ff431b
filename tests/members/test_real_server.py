"""What only a real kube-apiserver, of whatever age, shows: older versions of kinds, refusals, finalizers, what hubs send."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from metaos.apiserver.metadata import prepare_create
from metaos.apiserver.shaping import shape
from metaos.controllers.render import manifest as rendered
from metaos.members.manifests import USE
from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind
from tests.agent.hub import until
from tests.members.conftest import Applying

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("access", ["kubernetes"], indirect=True)]
POD: dict[str, Any] = {"containers": [{"name": "main", "image": "busybox"}], "terminationGracePeriodSeconds": 1}
TEMPLATE: dict[str, Any] = {"metadata": {"labels": {"app": "x"}}, "spec": POD}
SELECTED: dict[str, Any] = {"selector": {"matchLabels": {"app": "x"}}, "template": TEMPLATE}
ONCE: dict[str, Any] = {"template": {"spec": {**POD, "restartPolicy": "Never"}}}
SCALED = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "deployment"}
SPECS: dict[Kind, dict[str, Any]] = {
    scheme.DEPLOYMENT: {"replicas": 1, **SELECTED},
    scheme.STATEFUL_SET: {
        "serviceName": "x",
        **SELECTED,
        "volumeClaimTemplates": [
            {"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}
        ],
    },
    scheme.DAEMON_SET: SELECTED,
    scheme.JOB: ONCE,
    scheme.CRON_JOB: {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": ONCE}},
    scheme.POD: POD,
    scheme.SERVICE: {"selector": {"app": "x"}, "ports": [{"name": "http", "port": 80}]},
    scheme.PERSISTENT_VOLUME_CLAIM: {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    scheme.NETWORK_POLICY: {"podSelector": {}, "policyTypes": ["Ingress"]},
    scheme.POD_DISRUPTION_BUDGET: {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}},
    scheme.HORIZONTAL_POD_AUTOSCALER: {
        "maxReplicas": 3,
        "scaleTargetRef": SCALED,
        "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}
        ],
    },
    scheme.INGRESS: {
        "rules": [
            {
                "http": {
                    "paths": [
                        {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "service", "port": {"name": "http"}}}}
                    ]
                }
            }
        ]
    },
}


def of_the_hub(kind: Kind, where: str, spec: dict[str, Any]) -> Obj:
    """As the hub stores it, with all its defaults, and sends it to a site."""
    obj: Any = kind.empty(kind.singular, where)
    found = shape(kind, obj | {"spec": spec}, None, "Strict", [])
    prepare_create(kind, found, "00000000-0000-4000-8000-000000000000", "2026-01-01T00:00:00Z")
    return rendered(found)


async def test_all_that_hubs_send_is_taken_with_the_hubs_defaults_and_stays_as_it_is(applying: Applying) -> None:
    manifests = [of_the_hub(kind, applying.namespace, spec) for kind, spec in SPECS.items()]
    applying.give(*(applying.work(m["kind"].lower(), m) for m in manifests))
    works = [m["kind"].lower() for m in manifests]
    try:
        await applying.applied(*works)
    except TimeoutError:
        raise AssertionError([applying.condition(w) for w in works if applying.condition(w)["status"] != "True"]) from None
    # Controllers fill in and report; nothing of that is drift.
    await asyncio.sleep(2)
    assert [told for told in applying.told if told[2] == "DriftCorrected"] == []
    applying.give()
    await until(lambda: applying.applier.left == [], 20)


async def test_what_cannot_be_changed_any_more_says_what_to_do(applying: Applying) -> None:
    first = of_the_hub(scheme.STATEFUL_SET, applying.namespace, SPECS[scheme.STATEFUL_SET])
    applying.give(applying.work("a", first))
    await applying.applied("a")
    applying.give(applying.work("a", first | {"spec": first["spec"] | {"serviceName": "other"}}, generation=2))
    assert "delete and apply it anew" in await applying.refused("a", "Invalid")


async def test_a_quota_that_is_used_up_is_told_and_tried_again(applying: Applying) -> None:
    applying.give(applying.work("a", applying.config("one")))
    await applying.applied("a")
    quota: Any = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": applying.namespace}}
    kind = await applying.applier.discovery.find("v1", "ResourceQuota")
    assert kind is not None
    quota["spec"] = {"hard": {"count/secrets": "0"}}
    await applying.client.request("POST", f"/api/v1/namespaces/{applying.namespace}/resourcequotas", _json(quota))

    async def counted() -> bool:
        return bool((await applying.client.get(kind, "q", applying.namespace)).get("status", {}).get("hard"))

    async with asyncio.timeout(10):
        while not await counted():
            await asyncio.sleep(0.1)
    secret: Any = {**scheme.SECRET.empty("s", applying.namespace), "data": {}}
    applying.give(applying.work("a", applying.config("one")), applying.work("b", secret))
    assert "exceeded quota" in await applying.refused("b", "Forbidden")
    await applying.client.delete(kind, "q", applying.namespace)
    await applying.applied("b")


async def test_what_a_finalizer_holds_is_known_to_be_left_and_its_name_is_waited_for(applying: Applying) -> None:
    held = applying.config("held", k="v")
    applying.give(applying.work("a", held))
    await applying.applied("a")
    hold: Any = {"metadata": {"finalizers": ["example.com/hold"]}}
    await applying.client.patch(scheme.CONFIG_MAP, "held", applying.namespace, hold)
    applying.give()
    await until(lambda: [r.name for r in applying.applier.left] == ["held"])
    await until(lambda: (live := applying.applier._present.get(applying.applier.left[0])) is not None and live.deleting)
    applying.give(applying.work("b", held))
    assert "being deleted" in await applying.refused("b", "Waiting")
    await applying.client.patch(scheme.CONFIG_MAP, "held", applying.namespace, {"metadata": {"finalizers": None}})
    await applying.applied("b")


async def test_a_webhook_that_cannot_be_reached_is_named(applying: Applying) -> None:
    hook: Any = {
        "name": "no.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 1,
        "namespaceSelector": {"matchLabels": {"members-test": applying.namespace}},
    }
    configuration: Any = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    configuration |= {"metadata": {"name": applying.namespace}, "webhooks": [hook]}
    path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    await applying.client.request("POST", path, _json(configuration))
    try:
        space: Any = {**scheme.NAMESPACE.empty(applying.namespace)}
        space["metadata"]["labels"] = {"members-test": applying.namespace, USE: "true"}
        await applying.client.create(space)
        applying.give(applying.work("a", applying.config("one")))
        assert "no.example.com" in await applying.refused("a", "RefusedByWebhook")
    finally:
        await applying.client.request("DELETE", f"{path}/{applying.namespace}")
    await until(lambda: applying.condition("a")["status"] == "True", 20)


def _json(obj: Obj) -> bytes:
    return json.dumps(obj).encode()
