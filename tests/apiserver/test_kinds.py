"""Kinds that joined as data: networking, policy, storage, autoscaling."""

from typing import Any

import pytest

from metaos.apiserver.registry import Registry
from metaos.client import PatchType
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from tests.apiserver.conftest import ADMIN

CPU = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}
MEMORY = {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}}
TARGET = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}


def make(kind: scheme.Kind, **fields: Any) -> Obj:
    return {**kind.empty("a", "default" if kind.namespaced else ""), **fields}


async def refused(registry: Registry, obj: Obj) -> dict[str, str]:
    with pytest.raises(ApiError) as error:
        await registry.create(ADMIN, obj)
    assert error.value.code == 422, error.value
    return {c["field"]: c["message"] for c in error.value.details["causes"]}


async def test_defaults(registry: Registry) -> None:
    policy = await registry.create(ADMIN, make(scheme.NETWORK_POLICY, spec={"podSelector": {}, "egress": [{}]}))
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"] and policy["metadata"]["generation"] == 1
    stored = await registry.create(ADMIN, make(scheme.STORAGE_CLASS, provisioner="example.org/disk"))
    assert (stored["reclaimPolicy"], stored["volumeBindingMode"]) == ("Delete", "Immediate")
    scaler = await registry.create(
        ADMIN,
        make(scheme.HORIZONTAL_POD_AUTOSCALER, spec={"scaleTargetRef": TARGET, "maxReplicas": 3, "behavior": {"scaleUp": {}}}),
    )
    assert scaler["spec"]["minReplicas"] == 1 and scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 80
    assert scaler["spec"]["behavior"]["scaleDown"]["selectPolicy"] == "Max"


async def test_an_autoscaler_in_both_versions(registry: Registry) -> None:
    old, new = scheme.HORIZONTAL_POD_AUTOSCALER_V1, scheme.HORIZONTAL_POD_AUTOSCALER
    spec = {"scaleTargetRef": TARGET, "maxReplicas": 3, "targetCPUUtilizationPercentage": 60}
    made = await registry.create(ADMIN, make(old, spec=spec))
    assert made["apiVersion"] == "autoscaling/v1" and made["spec"] == spec | {"minReplicas": 1}
    seen = await registry.get(ADMIN, new, "a", "default")
    assert seen["apiVersion"] == "autoscaling/v2" and seen["spec"]["metrics"] == [CPU]
    seen["spec"]["metrics"].append(MEMORY)
    await registry.update(ADMIN, seen)
    patched = await registry.patch(ADMIN, old, "a", "default", {"spec": {"targetCPUUtilizationPercentage": 40, "maxReplicas": 9}})
    assert patched["spec"]["targetCPUUtilizationPercentage"] == 40
    seen = await registry.get(ADMIN, new, "a", "default")
    assert [m["resource"]["name"] for m in seen["spec"]["metrics"]] == ["cpu", "memory"] and seen["spec"]["maxReplicas"] == 9
    config = make(old, spec={"scaleTargetRef": TARGET, "maxReplicas": 9, "minReplicas": 2})
    applied = await registry.patch(ADMIN, old, "a", "default", config, type=PatchType.APPLY, field_manager="me", force=True)
    assert applied["apiVersion"] == "autoscaling/v1" and applied["spec"]["minReplicas"] == 2
    listed = await registry.list(ADMIN, old, "default")
    assert [o["apiVersion"] for o in listed.items] == ["autoscaling/v1"]


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (scheme.INGRESS, {"spec": {}}, {"spec": "either `defaultBackend` or `rules` must be specified"}),
        (
            scheme.INGRESS,
            {"spec": {"rules": [{"host": "1.2.3.4", "http": {"paths": [{"path": "x", "pathType": "Prefix", "backend": {}}]}}]}},
            {
                "spec.rules[0].host": "must be a DNS name, not an IP address",
                "spec.rules[0].http.paths[0].path": "must be an absolute path",
                "spec.rules[0].http.paths[0].backend": "resource or service backend is required",
            },
        ),
        (
            scheme.NETWORK_POLICY,
            {
                "spec": {
                    "podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]},
                    "ingress": [{"from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}]}],
                    "egress": [{"ports": [{"port": 70000}, {"port": 9, "endPort": 3}]}],
                    "policyTypes": ["Sideways"],
                }
            },
            {
                "spec.podSelector.matchExpressions[0].values": "must be specified when `operator` is 'In' or 'NotIn'",
                "spec.ingress[0].from[0]": "must specify a peer",
                "spec.ingress[0].from[1].ipBlock.except[0]": "must be a strict subset of `cidr`",
                "spec.egress[0].ports[0].port": "must be between 1 and 65535, inclusive",
                "spec.egress[0].ports[1].endPort": "must be greater than or equal to `port`",
                "spec.policyTypes[0]": "supported values",
            },
        ),
        (
            scheme.POD_DISRUPTION_BUDGET,
            {"spec": {"minAvailable": "110%", "maxUnavailable": -1}},
            {
                "spec": "cannot be both set",
                "spec.minAvailable": "must not be greater than 100%",
                "spec.maxUnavailable": "greater than",
            },
        ),
        (
            scheme.HORIZONTAL_POD_AUTOSCALER,
            {
                "spec": {
                    "scaleTargetRef": {"kind": "", "name": "a"},
                    "minReplicas": 5,
                    "maxReplicas": 3,
                    "metrics": [{"type": "Pods"}],
                }
            },
            {
                "spec.scaleTargetRef.kind": "Required value",
                "spec.maxReplicas": "must be greater than or equal to `minReplicas`",
                "spec.metrics[0].pods": "must populate information for the given metric source",
            },
        ),
        (
            scheme.PERSISTENT_VOLUME,
            {"spec": {"capacity": {"storage": "0"}, "accessModes": ["Sometimes"]}},
            {
                "spec.capacity[storage]": "must be greater than zero",
                "spec.accessModes": "supported values",
                "spec": "volume type",
            },
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, scheme.Kind) else "",
)
async def test_refusals(registry: Registry, kind: scheme.Kind, fields: Obj, expected: dict[str, str]) -> None:
    found = await refused(registry, make(kind, **fields))
    assert set(found) == set(expected)
    for field, text in expected.items():
        assert text in found[field]


async def test_what_may_not_change(registry: Registry) -> None:
    stored = await registry.create(ADMIN, make(scheme.STORAGE_CLASS, provisioner="example.org/disk"))
    with pytest.raises(ApiError, match=r"provisioner: Invalid value: .*: field is immutable"):
        await registry.update(ADMIN, {**stored, "provisioner": "example.org/other"})


async def test_of_priority_classes_one_is_the_default(registry: Registry) -> None:
    usual = make(scheme.PRIORITY_CLASS, value=5, globalDefault=True)
    stored = await registry.create(ADMIN, usual)
    assert stored["preemptionPolicy"] == "PreemptLowerPriority"
    await registry.update(ADMIN, {**stored, "description": "for everybody"})
    other = {**scheme.PRIORITY_CLASS.empty("b"), "value": 7}
    why = 'priorityclasses.scheduling.k8s.io "b" is forbidden: PriorityClass a is already marked as default. '
    with pytest.raises(ApiError) as error:
        await registry.create(ADMIN, {**other, "globalDefault": True})
    assert (error.value.code, str(error.value)) == (403, why + "Only one default can exist")
    await registry.create(ADMIN, other)
    with pytest.raises(ApiError) as error:
        await registry.patch(ADMIN, scheme.PRIORITY_CLASS, "b", "", {"globalDefault": True})
    assert error.value.code == 403


@pytest.mark.parametrize("endpoint", ["http://169.254.169.254", "https://[fe80::1]:9000", "https://metadata.google.internal"])
async def test_a_store_is_not_where_machines_are_told_their_credentials(registry: Registry, endpoint: str) -> None:
    spec = {"endpoint": endpoint, "bucket": "b", "secretRef": {"name": "s"}}
    with pytest.raises(ApiError) as raised:
        await registry.create(ADMIN, {**scheme.BACKUP_STORE.empty("eu", "default"), "spec": spec})
    assert raised.value.code == 422 and "spec.endpoint" in str(raised.value)
