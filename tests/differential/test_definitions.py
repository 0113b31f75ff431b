"""CustomResourceDefinitions and their objects, the same requests to a real kube-apiserver and to NEMO."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from random import SystemRandom
from typing import Any

import pytest
import pytest_asyncio

from tests.apiserver.definitions import definition_of
from tests.differential.cases import Step
from tests.differential.compare import Difference, differences, unknown
from tests.differential.conftest import Pair
from tests.differential.peers import kubeconfig, kubernetes, nemo

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def defined(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Pair, str]]:
    """Both servers, and the group in which both serve CronTabs."""
    config = kubeconfig()
    if config is None:
        pytest.skip("NO COMPARISON WITH KUBERNETES: KUBECONFIG names no cluster; see CONTRIBUTING.md")
    run = f"{SystemRandom().getrandbits(24):06x}"
    async with nemo(tmp_path_factory.mktemp("nemo"), define=True) as ours, kubernetes(config) as theirs:
        both = Pair(ours, theirs, run)
        obj = crd(f"g{run}.example.com")
        for peer in (ours, theirs):
            assert (await peer.request("POST", DEFINITIONS, obj)).code == 201
            await established(peer, obj["metadata"]["name"])
        yield both, obj["spec"]["group"]
        for name in both.made:
            await theirs.request("DELETE", f"/api/v1/namespaces/{name}")
        await theirs.request("DELETE", f"{DEFINITIONS}/{obj['metadata']['name']}")


def crd(group: str, **changes: Any) -> dict[str, Any]:
    """What version 1.20 knows of a definition."""
    obj = definition_of(group=group, **changes)
    obj["metadata"]["name"] = f"crontabs.{group}"
    for version in obj["spec"]["versions"]:
        version.pop("selectableFields", None)
        version.pop("deprecated", None)
    return obj


async def established(peer: Any, name: str) -> None:
    for _ in range(100):
        found = (await peer.request("GET", f"{DEFINITIONS}/{name}", None)).body
        conditions = {c["type"]: c["status"] for c in (found.get("status") or {}).get("conditions") or ()}
        if conditions.get("Established") == "True":
            # A moment later every part of a real server has heard of it.
            await asyncio.sleep(1.0 if peer.name != "nemo" else 0)
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{name} is not established at {peer.name}")


async def compare(pair: Pair, namespace: str, *steps: dict[str, Any]) -> list[Difference]:
    found: list[Difference] = []
    for raw in steps:
        step = Step.of(raw)
        ours, theirs = await step.run(pair.nemo), await step.run(pair.kubernetes)
        found += differences(step, ours, theirs, namespace)
    return unknown(found, pair.kubernetes.minor)


def shown(found: list[Difference]) -> str:
    return "\n" + "\n".join(map(str, found))


SPECS: list[dict[str, Any]] = [
    {},
    {"replicas": 0},
    {"replicas": 11},
    {"replicas": "2"},
    {"replicas": 2.5},
    {"replicas": None},
    {"cronSpec": "x"},
    {"cronSpec": None},
    {"image": None, "maybe": None},
    {"image": 1},
    {"port": 80},
    {"port": "http"},
    {"port": True},
    {"policy": "Allow"},
    {"policy": "Never"},
    {"free": {"known": "a", "other": {"x": [1]}}},
    {"free": {"known": 1}},
    {"free": "text"},
    {"tags": ["a", "b"]},
    {"tags": ["a", "a"]},
    {"tags": "a"},
    {"steps": [{"name": "a"}, {"name": "b", "run": "x"}]},
    {"steps": [{"name": "a"}, {"name": "a"}]},
    {"steps": [{"run": "x"}]},
    {"steps": [{"name": "a", "retries": "x"}]},
    {"unknown": {"a": 1}},
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
async def test_objects(defined: tuple[Pair, str], spec: dict[str, Any]) -> None:
    pair, group = defined
    namespace = await pair.namespace()
    root = f"/apis/{group}/v1/namespaces/$ns/crontabs"
    body = {"apiVersion": f"{group}/v1", "kind": "CronTab", "metadata": {"name": "a"}, "spec": {"cronSpec": "* * * * */5"} | spec}
    found = await compare(pair, namespace, {f"POST {root}": body}, {f"GET {root}/a": None})
    assert not found, shown(found)


async def test_changes(defined: tuple[Pair, str]) -> None:
    pair, group = defined
    namespace = await pair.namespace()
    root = f"/apis/{group}/v1/namespaces/$ns/crontabs"

    def tab(**spec: Any) -> dict[str, Any]:
        return {"apiVersion": f"{group}/v1", "kind": "CronTab", "metadata": {"name": "a"}, "spec": spec}

    found = await compare(
        pair,
        namespace,
        {f"PATCH {root}/a?fieldManager=one (apply)": tab(cronSpec="* * * * */5", replicas=2)},
        {f"PATCH {root}/a?fieldManager=two (apply)": tab(image="x")},
        {f"PATCH {root}/a?fieldManager=three (apply)": tab(replicas=3)},
        {f"PATCH {root}/a?fieldManager=two (apply)": tab(policy="Allow")},
        {f"PATCH {root}/a (merge)": {"spec": {"replicas": 4}, "status": {"replicas": 9}}},
        {f"PATCH {root}/a (merge)": {"spec": {"replicas": 40}}},
        {f"PATCH {root}/a/status (merge)": {"spec": {"replicas": 5}, "status": {"replicas": 2, "selector": "a=b"}}},
        {f"GET {root}/a/scale": None},
        {f"PATCH {root}/a/scale (merge)": {"spec": {"replicas": 6}}},
        {f"PATCH {root}/a/scale (merge)": {"spec": {"replicas": 60}}},
        {f"PATCH {root}/a (strategic)": {"spec": {"replicas": 4}}},
        {f"PATCH {root}/a (json)": [{"op": "replace", "path": "/spec/image", "value": "x"}]},
        {f"GET /apis/{group}/v1beta1/namespaces/$ns/crontabs/a": None},
        {f"GET {root}?fieldSelector=metadata.name%3Da": None},
        {f"GET {root}?fieldSelector=spec.image%3Da": None},
        {f"DELETE {root}/a": None},
        {f"GET {root}/a": None},
    )
    assert not found, shown(found)


def schema(**root: Any) -> list[dict[str, Any]]:
    return [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"} | root}}]


WRONG: list[dict[str, Any]] = [
    {"scope": "Else"},
    {"versions": []},
    {"versions": schema(type="array")},
    {"versions": schema(properties={"a": {}})},
    {"versions": schema(properties={"a": {"type": "array"}})},
    {"versions": schema(properties={"a": {"type": "string", "default": 1}})},
    {"versions": schema(properties={"a": {"type": "string", "pattern": "("}})},
    {"versions": schema(properties={"a": {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}})},
    {"versions": schema(anyOf=[{"properties": {"x": {"minimum": 1}}}])},
    {"versions": schema(additionalProperties=False)},
    {"names": {"plural": "crontabs", "kind": "Cron Tab"}},
    {"names": {"plural": "crontabs", "kind": "CronTab", "shortNames": ["C T"]}},
    {"preserveUnknownFields": True},
]


@pytest.mark.parametrize("changes", WRONG, ids=lambda changes: str(changes)[:60])
async def test_what_is_no_definition(defined: tuple[Pair, str], changes: dict[str, Any]) -> None:
    pair, group = defined
    obj = crd(f"other.{group}", **copy.deepcopy(changes))
    found = await compare(pair, "no-such", {f"POST {DEFINITIONS}?dryRun=All": obj})
    assert not found, shown(found)


async def test_documents(defined: tuple[Pair, str]) -> None:
    pair, group = defined
    found = await compare(
        pair,
        "no-such",
        {f"GET /apis/{group}": None},
        {f"GET /apis/{group}/v1": None},
        {f"GET {DEFINITIONS}/crontabs.{group}": None},
    )
    assert not found, shown(found)
