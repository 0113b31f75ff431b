"""Schemas, defaults and validation."""

import copy
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver import schema
from metaos.apiserver.admission import UnsupportedFields
from metaos.apiserver.defaults import apply_defaults
from metaos.apiserver.shaping import shape, validate
from metaos.resources import scheme
from metaos.resources.devices import GPU, GPU_MILLI
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.resources.scheme import KINDS, Kind
from tests.apiserver.objects import cluster, deployment, pod

PERIOD: dict[str, Any] = {"sequence": 1, "start": 0, "end": 300}
DAY = "2026-01-01T00:00:00Z"


def agreed(**spec: Any) -> Obj:
    return {"spec": {"provider": "telco", "cpuHour": 1} | spec}


def shaped(kind: Kind, obj: Obj, old: Obj | None = None) -> Obj:
    result = shape(kind, obj, old, "Strict", [])
    validate(kind, result, old)
    return result


def causes(kind: Kind, obj: Obj, old: Obj | None = None) -> dict[str, str]:
    with pytest.raises(ApiError) as refused:
        shaped(kind, obj, old)
    assert refused.value.code == 422, refused.value
    return {c["field"]: c["message"] for c in refused.value.details["causes"]}


def test_a_part_that_is_as_it_was_stored_is_not_looked_into_again() -> None:
    stored = shaped(scheme.DEPLOYMENT, deployment())
    stored["spec"]["strategy"]["fromAnotherRelease"] = 1
    sent = copy.deepcopy(stored)
    assert shaped(scheme.DEPLOYMENT, sent, stored)["spec"] is stored["spec"]
    sent["spec"]["replicas"] = 7
    with pytest.raises(ApiError, match="fromAnotherRelease"):
        shaped(scheme.DEPLOYMENT, sent, stored)
    sent = stored | {"spec": {**stored["spec"], "replicas": "many"}}
    with pytest.raises(ApiError, match=r"cannot unmarshal string into field spec\.replicas of type integer"):
        shaped(scheme.DEPLOYMENT, sent, stored)


def test_every_kind_has_a_schema() -> None:
    documents = schema.definitions()
    for kind in KINDS:
        assert schema.node_of(kind).kind == "object"
        assert documents[schema.definition_name(kind)]["description"]


def test_own_schemas_describe_every_field() -> None:
    def undescribed(document: dict[str, Any], path: str) -> list[str]:
        found = []
        for name, child in (document.get("properties") or {}).items():
            if "description" not in child:
                found.append(f"{path}.{name}")
            found += undescribed(child, f"{path}.{name}") + undescribed(child.get("items") or {}, f"{path}.{name}[]")
        return found

    for name, document in schema.own_definitions().items():
        assert not undescribed(document, name)


def test_types() -> None:
    wrong = deployment(replicas="two")
    with pytest.raises(ApiError, match=r"cannot unmarshal string into field spec\.replicas") as refused:
        shaped(scheme.DEPLOYMENT, wrong)
    assert refused.value.code == 400


def test_nulls_are_absent_and_quantities_text() -> None:
    obj = deployment()
    container = obj["spec"]["template"]["spec"]["containers"][0]
    container["resources"] = {"limits": {"cpu": 1, "memory": "1Gi"}, "requests": None}
    container["livenessProbe"] = None
    found = shaped(scheme.DEPLOYMENT, obj)["spec"]["template"]["spec"]["containers"][0]
    assert "livenessProbe" not in found
    assert found["resources"] == {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}


def test_deployment_rules() -> None:
    obj = deployment(selector={"matchLabels": {"app": "other"}})
    assert "does not match template `labels`" in causes(scheme.DEPLOYMENT, obj)["spec.template.metadata.labels"]
    obj = deployment()
    del obj["spec"]["selector"]
    assert causes(scheme.DEPLOYMENT, obj)["spec.selector"].startswith("Required value")
    obj = deployment()
    del obj["spec"]["template"]["spec"]["containers"][0]["image"]
    assert causes(scheme.DEPLOYMENT, obj) == {"spec.template.spec.containers[0].image": "Required value"}
    old = shaped(scheme.DEPLOYMENT, deployment())
    new = copy.deepcopy(old)
    new["spec"]["selector"] = {"matchLabels": {"app": "web", "x": "y"}}
    new["spec"]["template"]["metadata"]["labels"]["x"] = "y"
    assert "field is immutable" in causes(scheme.DEPLOYMENT, new, old)["spec.selector"]
    assert "spec.template.spec.restartPolicy" in causes(
        scheme.DEPLOYMENT,
        deployment(template={**old["spec"]["template"], "spec": {**old["spec"]["template"]["spec"], "restartPolicy": "Never"}}),
    )


def test_pods_are_fixed_but_for_images() -> None:
    old = shaped(scheme.POD, pod())
    new = copy.deepcopy(old)
    new["spec"]["containers"][0]["image"] = "python:4"
    validate(scheme.POD, new, old)
    new["spec"]["containers"][0]["command"] = ["x"]
    assert "may not change fields other than" in causes(scheme.POD, new, old)["spec"]


@pytest.mark.parametrize(
    ("kind", "obj", "field"),
    [
        (scheme.SERVICE, {"spec": {"selector": {"a": "b"}}}, "spec.ports"),
        (scheme.SERVICE, {"spec": {"ports": [{"port": 70000}]}}, "spec.ports[0].port"),
        (scheme.SERVICE, {"spec": {"ports": [{"port": 1}, {"port": 2}]}}, "spec.ports[0].name"),
        (scheme.CONFIG_MAP, {"data": {"a/b": "c"}}, "data[a/b]"),
        (scheme.CRON_JOB, {"spec": {"schedule": "nonsense", "jobTemplate": {"spec": {"template": pod()}}}}, "spec.schedule"),
        (scheme.PERSISTENT_VOLUME_CLAIM, {"spec": {"accessModes": ["ReadWriteOnce"]}}, "spec.resources[storage]"),
        (scheme.CONFIG_MAP, {"metadata": {"name": "A_b"}}, "metadata.name"),
        (scheme.CONFIG_MAP, {"metadata": {"name": "a", "labels": {"a b": "c"}}}, "metadata.labels"),
        (scheme.INTENT, {"spec": {"expectations": []}}, "spec.expectations"),
        (
            scheme.INTENT,
            {"spec": {"expectations": [{"targets": [{"name": "latency", "condition": "IsLessThan", "value": "40ms"}]}]}},
            "spec.expectations[0].targets[0].value",
        ),
        (scheme.CLUSTER, {"spec": {"power": {"idleWatts": 90, "maxWatts": 20}}}, "spec.power.idleWatts"),
        (
            scheme.CLUSTER,
            {"spec": {"power": {"embodiedGramsPerHour": 1, "embodiedKilograms": 2}}},
            "spec.power.embodiedGramsPerHour",
        ),
        (scheme.CLUSTER, {"spec": {"power": {"lifetimeYears": 5}}}, "spec.power.embodiedKilograms"),
        (scheme.CLUSTER, {"spec": {"power": {"embodiedKilograms": 1, "lifetimeYears": 0}}}, "spec.power.lifetimeYears"),
        (scheme.CLUSTER, {"spec": {"electricity": {"marketIntensity": -1}}}, "spec.electricity.marketIntensity"),
        (scheme.USAGE, {"spec": {"periods": [PERIOD] * 13}}, "spec.periods"),
        (scheme.USAGE, {"spec": {"periods": [PERIOD, PERIOD]}}, "spec.periods[1].sequence"),
        (scheme.USAGE, {"spec": {"periods": [{"start": 0, "end": 1}]}}, "spec.periods[0].sequence"),
        (scheme.TARIFF, {"spec": {"provider": "telco"}}, "spec.cpuHour"),
        (scheme.TARIFF, {"spec": {"cpuHour": 1}}, "spec.provider"),
        (scheme.TARIFF, agreed(provider=""), "spec.provider"),
        (scheme.TARIFF, agreed(cpuHour=-1), "spec.cpuHour"),
        (scheme.TARIFF, agreed(currency="euro"), "spec.currency"),
        (scheme.TARIFF, agreed(clusterSelector={"matchExpressions": [{"key": "a", "operator": "Is"}]}), "spec.clusterSelector"),
        (scheme.TARIFF, agreed(validFrom=DAY, validUntil=DAY), "spec.validUntil"),
        (scheme.CLUSTER, {"spec": {"tier": "moon"}}, "spec.tier"),
        (scheme.CLUSTER, {"spec": {"registries": [{"host": "https://a.example/x"}]}}, "spec.registries[0].host"),
        (scheme.CLUSTER, {"spec": {"datasets": [{"name": ""}]}}, "spec.datasets[0].name"),
        (scheme.CLUSTER, {"spec": {"imagePolicy": [{"images": "", "action": "Accept"}]}}, "spec.imagePolicy[0].images"),
        (scheme.CLUSTER, {"spec": {"imagePolicy": [{"images": "a/*", "action": "Signed"}]}}, "spec.imagePolicy[0].keys"),
        (
            scheme.CLUSTER,
            {"spec": {"imagePolicy": [{"images": "a/*", "action": "Refuse", "keys": ["k"]}]}},
            "spec.imagePolicy[0].keys",
        ),
        (scheme.CLUSTER, {"spec": {"capacity": {"nvidia.com/gpu-milli": "300"}}}, "spec.capacity.nvidia.com/gpu-milli"),
        (scheme.CLUSTER, {"spec": {"capacity": {"nvidia.com/gpu": "1500m"}}}, "spec.capacity.nvidia.com/gpu"),
    ],
)
def test_rules(kind: Kind, obj: Obj, field: str) -> None:
    if kind is scheme.CRON_JOB:
        obj["spec"]["jobTemplate"]["spec"]["template"].pop("apiVersion")
        obj["spec"]["jobTemplate"]["spec"]["template"].pop("kind")
        obj["spec"]["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    full = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": "x"}} | obj
    assert field in causes(kind, full)


@pytest.mark.parametrize(
    ("resources", "field", "said"),
    [
        ({"limits": {GPU: "500m"}}, f"resources.limits[{GPU}]", "must be an integer"),
        ({"requests": {GPU: "1"}}, "resources.limits", "Limit must be set for non overcommitable resources"),
        ({"limits": {GPU: "2"}, "requests": {GPU: "1"}}, "resources.requests", f"must be equal to {GPU} limit of 2"),
        ({"limits": {GPU: "1", GPU_MILLI: "300"}}, f"resources.limits[{GPU_MILLI}]", "leave one of them out"),
        ({"limits": {GPU_MILLI: "1000"}}, f"resources.limits[{GPU_MILLI}]", f"ask for {GPU} instead"),
    ],
)
def test_devices_are_whole_and_a_part_of_a_gpu_is_of_one(resources: Obj, field: str, said: str) -> None:
    obj = pod()
    obj["spec"]["containers"][0]["resources"] = resources
    found = causes(scheme.POD, obj)
    assert any(path.endswith(field) and said in text for path, text in found.items()), found


def test_service_defaults() -> None:
    found = shaped(
        scheme.SERVICE,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}},
        },
    )
    assert found["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert found["spec"]["type"] == "ClusterIP" and found["spec"]["sessionAffinity"] == "None"


def test_what_no_member_honours_is_warned_about() -> None:
    obj = deployment()
    spec = obj["spec"]["template"]["spec"]
    spec["hostNetwork"] = True
    spec["containers"][0]["ports"] = [{"containerPort": 53, "protocol": "SCTP"}]
    spec["volumes"] = [{"name": "v", "nfs": {"server": "s", "path": "/"}}]
    obj = shaped(scheme.DEPLOYMENT, obj)
    _, said = UnsupportedFields().admit("CREATE", obj, None)
    assert sorted(text.partition(":")[0] for text in said) == [
        "spec.template.spec.containers[0].ports[0].hostPort",
        "spec.template.spec.containers[0].ports[0].protocol",
        "spec.template.spec.hostNetwork",
        "spec.template.spec.volumes[0].nfs",
    ]
    assert not UnsupportedFields().admit("UPDATE", obj, obj)[1]
    assert not UnsupportedFields().admit("CREATE", shaped(scheme.DEPLOYMENT, deployment()), None)[1]


@given(st.integers(0, 2**32), st.sampled_from([deployment(), pod(), cluster()]))
def test_defaulting_is_idempotent_and_keeps_what_is_there(seed: int, obj: Obj) -> None:
    kind = scheme.kind_of(obj)
    random = Random(seed)
    once = copy.deepcopy(obj)
    for key in list(once["spec"]):
        if random.random() < 0.3 and key not in ("selector", "template", "containers"):
            del once["spec"][key]
    before = copy.deepcopy(once)
    apply_defaults(kind, once)
    twice = copy.deepcopy(once)
    apply_defaults(kind, twice)
    assert once == twice

    def contains(outer: Any, inner: Any) -> bool:
        if isinstance(inner, dict):
            return all(k in outer and contains(outer[k], v) for k, v in inner.items())
        if isinstance(inner, list):
            return len(outer) == len(inner) and all(map(contains, outer, inner))
        return bool(outer == inner)

    assert contains(once, before)


def test_a_replica_set_of_ones_own_is_said_not_to_run() -> None:
    obj = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r"}, "spec": {"replicas": 1}}
    _, said = UnsupportedFields().admit("CREATE", obj, None)
    assert any("make a Deployment of it" in text for text in said)
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "u", "controller": True}
    _, said = UnsupportedFields().admit("CREATE", {**obj, "metadata": {"name": "r", "ownerReferences": [owner]}}, None)
    assert not said


@pytest.mark.parametrize(
    ("key", "value", "runtime", "told"),
    [
        ("fuel", "5000", "wasm", ""),
        ("fuel", "0", "wasm", ""),
        ("fuel", "abc", "wasm", "their containers will not start: wasm.meta-os.eu/fuel: 'abc' must be a whole number"),
        ("seconds", "-5", "wasm", "'-5' must be a whole number"),
        ("fuell", "5", "wasm", "there is no such limit: known are wasm.meta-os.eu/fuel and"),
        ("seconds", "5", "", "it limits pods with runtimeClassName: wasm only"),
    ],
)
def test_limits_of_webassembly_that_are_none_are_warned_of(key: str, value: str, runtime: str, told: str) -> None:
    obj = deployment()
    template = obj["spec"]["template"]
    template["metadata"]["annotations"] = {f"wasm.meta-os.eu/{key}": value}
    template["spec"] |= {"runtimeClassName": runtime} if runtime else {}
    _, said = UnsupportedFields().admit("CREATE", shaped(scheme.DEPLOYMENT, obj), None)
    assert len(said) == bool(told) and all(told in text for text in said), said
