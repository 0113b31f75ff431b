"""Kinds that users define: what a definition must be, what a schema does to an object, versions, and who holds a name."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver.custom import definition
from metaos.apiserver.custom.columns import columns, path
from metaos.apiserver.custom.structural import default, prune
from metaos.apiserver.custom.validators import Validator
from metaos.apiserver.registry import Registry
from metaos.client import PatchType
from metaos.clock import SystemClock
from metaos.resources import definitions, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from tests.apiserver.conftest import ADMIN
from tests.apiserver.definitions import SCHEMA, controllers, crontab, definition_of
from tests.clock import FakeClock

CRD = scheme.CUSTOM_RESOURCE_DEFINITION


async def establish(registry: Registry, obj: Obj) -> Obj:
    """What the controller does, in one step."""
    found = await registry.patch(
        ADMIN, CRD, obj["metadata"]["name"], "", obj, type=PatchType.APPLY, field_manager="t", force=True
    )
    others = (await registry.list(ADMIN, CRD)).items
    return await registry.update(ADMIN, {**found, "status": definitions.status(found, others, 0.0)}, subresource="status")


async def refused(registry: Registry, obj: Obj) -> ApiError:
    with pytest.raises(ApiError) as error:
        await registry.create(ADMIN, obj)
    return error.value


def said(error: ApiError) -> dict[str, str]:
    return {cause["field"]: cause["message"] for cause in error.details["causes"]}


# -- schemas -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"type": "array"}, "type", 'Invalid value: "array": must be object at the root'),
        ({"properties": {"a": {}}}, "properties[a].type", "Required value: must not be empty for specified object fields"),
        ({"properties": {"a": {"type": "array"}}}, "properties[a].items", "Required value: must be specified"),
        ({"properties": {"a": {"type": "wrong"}}}, "properties[a].type", "Unsupported value"),
        ({"additionalProperties": False}, "additionalProperties", "Forbidden: must not be used at the root"),
        ({"properties": {"a": {"type": "string", "pattern": "("}}}, "properties[a].pattern", "must be a valid regular expr"),
        ({"properties": {"a": {"type": "string", "default": 1}}}, "properties[a].default", "must be of type string"),
        ({"properties": {"a": {"$ref": "b", "type": "string"}}}, "properties[a].$ref", "Forbidden: $ref is not supported"),
        ({"anyOf": [{"properties": {"x": {"minimum": 1}}}]}, "properties[x]", "because it is defined in"),
        ({"anyOf": [{"type": "object"}]}, "anyOf[0].type", "Forbidden: must be empty to be structural"),
        (
            {"properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}},
            "properties[metadata].properties[labels]",
            "implicitly specified",
        ),
        (
            {"properties": {"a": {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}}},
            "properties[a].x-kubernetes-list-map-keys",
            "must not be empty",
        ),
    ],
)  # fmt: skip
def test_what_is_no_structural_schema(change: dict[str, Any], field: str, message: str) -> None:
    found = {cause.field: cause.message for cause in definition.schema_causes({"type": "object"} | change, "s")}
    assert message in found[f"s.{field}"], found


def test_a_schema_has_bounds() -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(definition.MAX_DEPTH + 2):
        deep = {"type": "object", "properties": {"a": deep}}
    wide = {"type": "object", "properties": {f"f{i}": {"type": "string"} for i in range(definition.MAX_NODES + 5)}}
    for schema in (deep, wide):
        assert [c.message for c in definition.schema_causes(schema, "s")] == [
            "Forbidden: a schema has at most 64 levels and 20000 parts"
        ]


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ({"replicas": 0}, "spec.replicas", "Invalid value: 0: spec.replicas in body should be greater than or equal to 1"),
        ({"replicas": "2"}, "spec.replicas", 'Invalid value: "string": spec.replicas in body must be of type integer: "string"'),
        ({"port": 1.5}, "spec.port", 'Invalid value: "number": spec.port in body must be of type integer,string: "number"'),
        ({"policy": "No"}, "spec.policy", 'Unsupported value: "No": supported values: "Allow", "Forbid"'),
        ({"tags": ["a", "a"]}, "spec.tags[1]", 'Duplicate value: "a"'),
        ({"steps": [{"name": "a"}, {"name": "a"}]}, "spec.steps[1]", 'Duplicate value: {"name":"a"}'),
        ({"steps": [{}]}, "spec.steps[0].name", "Required value"),
    ],
)
def test_what_a_value_may_not_be(spec: dict[str, Any], field: str, message: str) -> None:
    found = {cause.field: cause.message for cause in Validator(SCHEMA).causes(crontab(**spec))}
    assert found == {field: message}


def test_what_was_there_before_is_not_judged_anew() -> None:
    old = crontab(replicas=50, steps=[{"name": "a", "run": 1}, {"name": "b"}])
    new = copy.deepcopy(old)
    new["spec"]["steps"].reverse()
    new["spec"]["image"] = "other"
    assert not Validator(SCHEMA).causes(new, old)
    new["spec"]["replicas"] = 51
    assert [cause.field for cause in Validator(SCHEMA).causes(new, old)] == ["spec.replicas"]


KEYS = ["name", "spec", "free", "steps", "tags", "x"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
def test_pruning_and_defaulting_once_is_enough(value: Any) -> None:
    obj = {"apiVersion": "v1", "kind": "x", "metadata": {}, "spec": value}
    prune(obj, SCHEMA, [], root=True)
    default(obj, SCHEMA)
    again, unknown = copy.deepcopy(obj), []  # type: ignore[var-annotated]
    prune(again, SCHEMA, unknown, root=True)
    default(again, SCHEMA)
    assert again == obj and not unknown
    Validator(SCHEMA).causes(obj)  # Whatever it is, it is told and not raised.


def test_what_is_kept_of_what_is_not_known() -> None:
    obj = crontab(free={"known": "k", "more": {"a": 1}}, other={"b": 1}, maybe=None, image=None)
    unknown: list[str] = []
    prune(obj, SCHEMA, unknown, root=True)
    default(obj, SCHEMA)
    assert unknown == ["spec.other"]
    assert obj["spec"] == {
        "cronSpec": "* * * * */5",
        "free": {"known": "k", "more": {"a": 1}},
        "maybe": None,
        "image": "busybox",
        "replicas": 1,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".a.b", [1]),
        (".list[1].n", ["y"]),
        (".list[-1].n", ["y"]),
        (".list[*].n", ["x", "y"]),
        ('.list[?(@.n=="y")].v', [3]),
        (".list[?(@.v>2)].n", ["y"]),
        (r".a.c\.d", [2]),
        (".a['c.d']", [2]),
        (".none.b", []),
    ],
)
def test_paths_of_columns(text: str, expected: list[Any]) -> None:
    assert path(text)({"a": {"b": 1, "c.d": 2}, "list": [{"n": "x", "v": 2}, {"n": "y", "v": 3}]}) == expected


def test_what_is_no_path() -> None:
    for text in ("a.b", ".a[", ".a[?(@.b", "." * 2000):
        with pytest.raises(ValueError):
            path(text)


def test_cells_of_columns() -> None:
    entry = {
        "additionalPrinterColumns": [
            {"name": "N", "type": "integer", "jsonPath": ".n"},
            {"name": "T", "type": "string", "jsonPath": ".n"},
            {"name": "B", "type": "boolean", "jsonPath": ".n"},
            {"name": "D", "type": "date", "jsonPath": ".d"},
            {"name": "O", "type": "string", "jsonPath": ".o"},
        ]
    }
    obj = {"metadata": {"name": "x"}, "n": 3, "d": "1970-01-01T00:00:00Z", "o": {"a": [1]}}
    assert [column.cell(obj, 90.0) for column in columns(entry)] == ["x", 3, "3", None, "90s", '{"a":[1]}']


def test_a_hub_without_definitions_loads_nothing_for_them() -> None:
    unwanted = "('re2', 'cel_expr_python', 'metaos.apiserver.custom', 'metaos.apiserver.quota', 'metaos.apiserver.accounttokens')"
    code = f"import sys, metaos.apiserver.app; print(*(each for each in {unwanted} if each in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert out == "\n"


# -- definitions ---------------------------------------------------------------------------------------------


async def test_what_is_no_definition(registry: Registry) -> None:
    v1 = definition_of()["spec"]["versions"][0]
    found = said(await refused(registry, definition_of(group="example", scope="Else", versions=[v1, {**v1, "storage": False}])))
    assert found["metadata.name"] == 'Invalid value: "crontabs.stable.example.com": must be spec.names.plural+"."+spec.group'
    assert found["spec.group"] == 'Invalid value: "example": should be a domain with at least one dot'
    assert found["spec.scope"] == 'Unsupported value: "Else": supported values: "Cluster", "Namespaced"'
    assert found["spec.versions"].endswith("must contain unique version names")
    for group, word in (("meta-os.eu", "this server's own"), ("apps.k8s.io", "approval annotation")):
        obj = definition_of(group=group)
        obj["metadata"]["name"] = f"crontabs.{group}"
        assert word in " ".join(said(await refused(registry, obj)).values())
    bad = {
        **v1,
        "subresources": {"scale": {"specReplicasPath": ".x", "statusReplicasPath": ".status.a[0]"}},
        "selectableFields": [{"jsonPath": ".spec.steps"}],
    }
    found = said(await refused(registry, definition_of(versions=[bad], conversion={"strategy": "Webhook"})))
    assert found["spec.conversion.strategy"] == 'Unsupported value: "Webhook": supported values: "None"'
    assert found["spec.subresources.scale.specReplicasPath"].endswith("should be a json path under .spec")
    assert "must refer to a field of type" in found["spec.selectableFields[0].jsonPath"]


async def test_nothing_is_served_before_its_names_are_granted(registry: Registry) -> None:
    await registry.create(ADMIN, definition_of())
    assert (await refused(registry, crontab())).code == 404
    made = await establish(registry, definition_of())
    assert made["status"]["storedVersions"] == ["v1"] and made["spec"]["names"]["listKind"] == "CronTabList"
    assert (await registry.create(ADMIN, crontab()))["metadata"]["generation"] == 1
    other = definition_of(group="stable.example.com", names={"plural": "tabs", "kind": "CronTab", "shortNames": ["ct"]})
    other["metadata"]["name"] = "tabs.stable.example.com"
    conditions = {c["type"]: c for c in (await establish(registry, other))["status"]["conditions"]}
    assert conditions["NamesAccepted"]["reason"] == "ListKindConflict" and conditions["Established"]["status"] == "False"
    assert conditions["NamesAccepted"]["message"] == '"CronTabList" is already in use'


async def test_versions_show_one_object(registry: Registry, clock: FakeClock) -> None:
    await establish(registry, definition_of())
    await registry.create(ADMIN, {**crontab(), "apiVersion": "stable.example.com/v1beta1"})
    v1, beta = (registry.kinds.by_plural("stable.example.com", version, "crontabs") for version in ("v1", "v1beta1"))
    assert v1 is not None and beta is not None
    for kind in (v1, beta):
        assert (await registry.get(ADMIN, kind, "one", "default"))["apiVersion"] == kind.api_version
        assert [o["apiVersion"] for o in (await registry.list(ADMIN, kind, "default")).items] == [kind.api_version]
    assert registry.cache.get("crontabs.stable.example.com/default/one").encoded.startswith(
        b'{"apiVersion":"stable.example.com/v1",'
    )  # type: ignore[union-attr]
    # Another version becomes the stored one; a default joins, and a field goes.
    changed = definition_of()
    new = copy.deepcopy(SCHEMA)
    new["properties"]["spec"]["properties"] |= {"added": {"type": "string", "default": "yes"}}
    del new["properties"]["spec"]["properties"]["image"]
    for entry in changed["spec"]["versions"]:
        entry["schema"] = {"openAPIV3Schema": new}
        entry["storage"] = entry["name"] == "v1beta1"
        entry.pop("selectableFields", None)
    made = await establish(registry, changed)
    assert made["status"]["storedVersions"] == ["v1", "v1beta1"]
    v1 = registry.kinds.by_plural("stable.example.com", "v1", "crontabs")
    assert v1 is not None
    shown = await registry.get(ADMIN, v1, "one", "default")
    assert (shown["spec"]["added"], "image" in shown["spec"], shown["apiVersion"]) == ("yes", False, "stable.example.com/v1")
    await registry.update(ADMIN, shown)  # Changes nothing but how it is kept.
    assert b"v1beta1" in registry.cache.get("crontabs.stable.example.com/default/one").encoded[:60]  # type: ignore[union-attr]
    gone = [entry for entry in changed["spec"]["versions"] if entry["name"] == "v1beta1"]
    with pytest.raises(ApiError) as error:
        await registry.patch(ADMIN, CRD, "crontabs.stable.example.com", "", {"spec": {"versions": gone}})
    assert "take it out of status.storedVersions" in said(error.value)["status.storedVersions[0]"]


async def test_generation_patches_and_bounds(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    v1 = definition_of()["spec"]["versions"][0]
    await establish(registry, definition_of(versions=[{**v1, "subresources": {}}]))
    kind = registry.kinds.by_plural("stable.example.com", "v1", "crontabs")
    assert kind is not None and kind.subresources == ()
    await registry.create(ADMIN, crontab())
    changed = await registry.patch(ADMIN, kind, "one", "default", {"status": {"phase": "x"}})
    assert changed["metadata"]["generation"] == 2 and changed["status"] == {"phase": "x"}
    with pytest.raises(ApiError) as error:
        await registry.patch(ADMIN, kind, "one", "default", {}, type=PatchType.STRATEGIC)
    assert error.value.code == 415
    monkeypatch.setattr("metaos.apiserver.writing.MAX_DEFINITIONS", 1)
    other = definition_of(group="b.example.com")
    other["metadata"]["name"] = "crontabs.b.example.com"
    assert "at most 1 definitions" in (await refused(registry, other)).message


async def test_a_streamed_list(registry: Registry) -> None:
    await establish(registry, definition_of())
    await registry.create(ADMIN, crontab())
    kind = registry.kinds.kind_of(crontab() | {"apiVersion": "stable.example.com/v1beta1"})
    seen = []
    async for event in registry.watch(ADMIN, kind, initial_events=True, bookmarks=True):
        seen.append(event)
        if event.type == "BOOKMARK":
            break
    assert [event.object["apiVersion"] for event in seen] == ["stable.example.com/v1beta1"] * 2
    assert seen[-1].object["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_a_watch_ends_with_its_definition(registry: Registry) -> None:
    made = await establish(registry, definition_of())
    await registry.create(ADMIN, crontab())
    kind = registry.kinds.kind_of(crontab())
    watch = registry.watch(ADMIN, kind)
    assert (await anext(watch)).type == "ADDED"
    waiting = asyncio.ensure_future(anext(watch))
    await registry.delete(ADMIN, kind, crontab()["metadata"]["name"], "default")
    assert (await waiting).type == "DELETED"
    ending = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    await registry.delete(ADMIN, CRD, made["metadata"]["name"])
    held = await registry.get(ADMIN, CRD, made["metadata"]["name"])
    await registry.update(ADMIN, {**held, "metadata": {**held["metadata"], "finalizers": []}})
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(ending, 10)


async def test_a_scale_that_lies_elsewhere(registry: Registry) -> None:
    properties = {"pool": {"type": "object", "properties": {"size": {"type": "integer"}}}}
    whole = {"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}
    paths = {"specReplicasPath": ".spec.pool.size", "statusReplicasPath": ".status.size"}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": whole},
        "subresources": {"scale": paths},
    }
    await establish(registry, definition_of(versions=[version]))
    kind = registry.kinds.kind_of(crontab())
    await registry.create(ADMIN, {**crontab(), "spec": {"pool": {"size": 2}}})
    assert (await registry.get(ADMIN, kind, "one", "default", subresource="scale"))["spec"] == {"replicas": 2}
    config = {"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 3}}
    applied = await registry.patch(
        ADMIN, kind, "one", "default", config, type=PatchType.APPLY, subresource="scale", field_manager="me", force=True
    )
    assert applied["spec"] == {"replicas": 3}
    found = await registry.get(ADMIN, kind, "one", "default")
    assert found["spec"] == {"pool": {"size": 3}}
    mine = next(each for each in found["metadata"]["managedFields"] if each["manager"] == "me")
    assert mine["fieldsV1"] == {"f:spec": {"f:pool": {"f:size": {}}}}
    with pytest.raises(ApiError):
        await registry.patch(ADMIN, kind, "one", "default", {"spec": {"replicas": -1}}, subresource="scale")


async def test_of_many_that_want_one_name_one_is_granted_it(registry: Registry) -> None:
    async with controllers(registry, SystemClock()):
        for i in range(12):
            names = {"plural": f"tabs{i}", "kind": "CronTab", "singular": f"tab{i}"}
            obj = definition_of(names=names)
            obj["metadata"]["name"] = f"tabs{i}.stable.example.com"
            await registry.create(ADMIN, obj)

        async def conditions() -> list[str]:
            found = (await registry.list(ADMIN, CRD)).items
            return [c["status"] for each in found for c in each["status"]["conditions"] if c["type"] == "Established"]

        async def until(count: int) -> None:
            while len(found := await conditions()) < count or found.count("True") != 1:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(until(12), 20)
        assert len({kind.resource for kind in registry.kinds.custom}) == 1
        # Who holds the name goes: another gets it.
        await registry.delete(ADMIN, CRD, registry.kinds.custom[0].resource)
        await asyncio.wait_for(until(11), 20)
