"""Discovery and OpenAPI documents: everything that is served is told, and every reference leads somewhere."""

import gzip
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from metaos.apiserver.discovery import Discovery
from metaos.apiserver.openapi import OpenApi
from metaos.apiserver.schema import definition_name
from metaos.resources import scheme
from metaos.resources.errors import ApiError

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


discovery = Discovery(scheme.KINDS)


def document(path: str, accept: str = "application/json") -> Any:
    found = discovery.document(path, accept)
    assert found is not None
    return found[0]


def test_plain_documents() -> None:
    assert document("/api")["versions"] == ["v1"]
    assert "meta-os.eu" in [g["name"] for g in document("/apis")["groups"]]
    assert document("/apis/apps")["preferredVersion"]["groupVersion"] == "apps/v1"
    core = {r["name"]: r for r in document("/api/v1")["resources"]}
    assert core["pods"]["shortNames"] == ["po"] and core["pods/eviction"]["group"] == "policy"
    apps = {r["name"]: r for r in document("/apis/apps/v1")["resources"]}
    assert apps["deployments/scale"]["kind"] == "Scale" and apps["deployments/scale"]["group"] == "autoscaling"
    assert discovery.document("/apis/none", "") is None and discovery.document("/apis/apps/v9", "") is None


def test_aggregated_documents_hold_every_kind() -> None:
    found = []
    for path in ("/api", "/apis"):
        answer = discovery.document(path, f"{AGGREGATED},application/json")
        assert answer is not None and answer[1] == AGGREGATED
        for item in answer[0]["items"]:
            for version in item["versions"]:
                found += [(item["metadata"].get("name", ""), r["resource"]) for r in version["resources"]]
    assert found == sorted(found, key=found.index) and set(found) == {(k.group, k.plural) for k in scheme.KINDS}
    older = discovery.document("/apis", AGGREGATED.replace("v=v2", "v=v2beta1"))
    assert older is not None and older[0]["apiVersion"] == "apidiscovery.k8s.io/v2beta1"


def test_other_media_are_refused() -> None:
    with pytest.raises(ApiError) as refused:
        discovery.document("/api/v1", "application/vnd.kubernetes.protobuf")
    assert refused.value.code == 406


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def nulls(node: Any) -> bool:
    if isinstance(node, dict):
        return (
            isinstance(node.get("type"), list)
            or any(nulls(v) for k, v in node.items() if k != "properties")
            or any(nulls(v) for v in (node.get("properties") or {}).values())
        )
    return isinstance(node, list) and any(nulls(v) for v in node)


def test_version_three() -> None:
    api = OpenApi()
    index = api.index()["paths"]
    assert set(index) == {"api/v1"} | {f"apis/{k.api_version}" for k in scheme.KINDS if k.group}
    assert all(api.tag() in entry["serverRelativeURL"] for entry in index.values())
    for name in index:
        packed = api.v3(name)
        assert packed is not None
        found = orjson.loads(gzip.decompress(packed))
        schemas = found["components"]["schemas"]
        assert {r.removeprefix("#/components/schemas/") for r in references(found)} <= set(schemas)
        assert not nulls(schemas)
        for kind in scheme.KINDS:
            if name == (f"apis/{kind.api_version}" if kind.group else "api/v1"):
                gvk = {"group": kind.group, "version": kind.version, "kind": kind.kind}
                assert gvk in schemas[definition_name(kind)]["x-kubernetes-group-version-kind"]
    assert api.v3("apis/none/v1") is None


def test_kubectl_finds_field_validation_and_merge_keys() -> None:
    packed = OpenApi().v3("apis/apps/v1")
    assert packed is not None
    found = orjson.loads(gzip.decompress(packed))
    patch = found["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"]["kind"] == "Deployment"
    assert "fieldValidation" in [p["name"] for p in patch["parameters"]]
    assert "application/strategic-merge-patch+json" in patch["requestBody"]["content"]
    containers = found["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
    assert containers["x-kubernetes-patch-merge-key"] == "name" and containers["x-kubernetes-patch-strategy"] == "merge"
    ids = [op["operationId"] for item in found["paths"].values() for op in item.values() if isinstance(op, dict)]
    assert len(ids) == len(set(ids))


def test_version_two() -> None:
    found = orjson.loads(gzip.decompress(OpenApi().v2()))
    assert {r.removeprefix("#/definitions/") for r in references(found)} <= set(found["definitions"])
    assert definition_name(scheme.INTENT) in found["definitions"] and not nulls(found["definitions"])
