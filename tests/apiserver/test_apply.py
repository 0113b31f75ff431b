"""Server-side apply."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver.apply import Manager, applied, fields_of, fields_v1, owners
from metaos.apiserver.registry import Registry
from metaos.apiserver.schema import node_of
from metaos.client import PatchType
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind
from metaos.security.authz import UserInfo
from tests.apiserver.conftest import ADMIN
from tests.apiserver.objects import config_map, deployment


async def apply(registry: Registry, obj: Obj, manager: str = "me", force: bool = False) -> Obj:
    kind: Kind = scheme.kind_of(obj)
    return await registry.patch(
        ADMIN, kind, obj["metadata"]["name"], "default", obj, type=PatchType.APPLY, field_manager=manager, force=force
    )


async def test_apply_creates_and_is_idempotent(registry: Registry) -> None:
    made = await apply(registry, deployment())
    [entry] = made["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("me", "Apply")
    containers = entry["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"]
    assert containers == {
        'k:{"name":"web"}': {
            ".": {},
            "f:image": {},
            "f:name": {},
            "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}},
        }
    }
    again = await apply(registry, deployment())
    assert again == made


async def test_what_is_no_longer_applied_goes(registry: Registry) -> None:
    await apply(registry, config_map("c", a="1", b="2"))
    changed = await apply(registry, config_map("c", a="1"))
    assert changed["data"] == {"a": "1"}


async def test_shared_fields_stay_and_conflicts_are_named(registry: Registry) -> None:
    await apply(registry, config_map("c", a="1", b="2"), "one")
    await apply(registry, config_map("c", b="2", c="3"), "two")
    assert (await apply(registry, config_map("c", a="1"), "one"))["data"] == {"a": "1", "b": "2", "c": "3"}
    with pytest.raises(ApiError) as refused:
        await apply(registry, config_map("c", a="1", b="9"), "one")
    assert refused.value.code == 409 and refused.value.message == 'Apply failed with 1 conflict: conflict with "two": .data.b'
    assert refused.value.details["causes"][0]["field"] == ".data.b"
    forced = await apply(registry, config_map("c", a="1", b="9"), "one", force=True)
    assert forced["data"] == {"a": "1", "b": "9", "c": "3"}
    assert (await apply(registry, config_map("c", c="3"), "two"))["data"]["b"] == "9"


async def test_updates_take_ownership(registry: Registry) -> None:
    await apply(registry, deployment(replicas=1))
    patch = {"spec": {"replicas": 5}}
    await registry.patch(ADMIN, scheme.DEPLOYMENT, "web", "default", patch, subresource="scale", field_manager="autoscaler")
    with pytest.raises(ApiError, match=r'conflict with "autoscaler" with subresource "scale" using apps/v1: \.spec\.replicas'):
        await apply(registry, deployment(replicas=1))
    kept = await apply(registry, deployment())
    assert kept["spec"]["replicas"] == 5


async def test_who_scales_owns_the_replicas_and_nothing_else(registry: Registry) -> None:
    await apply(registry, deployment(replicas=1), "one")

    async def scale(manager: str, replicas: Any, named: str = "web", **more: Any) -> Obj:
        wanted = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": named}, "spec": {"replicas": replicas}}
        return await registry.patch(
            ADMIN,
            scheme.DEPLOYMENT,
            "web",
            "default",
            wanted,
            type=PatchType.APPLY,
            subresource="scale",
            field_manager=manager,
            **more,
        )

    with pytest.raises(ApiError) as refused:
        await scale("two", 3)
    assert refused.value.message == 'Apply failed with 1 conflict: conflict with "one": .spec.replicas'
    shown = await scale("two", 3, force=True)
    assert (shown["kind"], shown["spec"]) == ("Scale", {"replicas": 3})
    entries = (await registry.get(ADMIN, scheme.DEPLOYMENT, "web", "default"))["metadata"]["managedFields"]
    mine = next(e for e in entries if e["manager"] == "two")
    assert mine["subresource"] == "scale" and mine["fieldsV1"] == {"f:spec": {"f:replicas": {}}}
    assert mine["apiVersion"] == "apps/v1"
    patch = {"spec": {"replicas": 5}}
    await registry.patch(ADMIN, scheme.DEPLOYMENT, "web", "default", patch, subresource="scale", field_manager="hand")
    with pytest.raises(ApiError, match=r'conflict with "hand" with subresource "scale" using autoscaling/v1: \.spec\.replicas'):
        await scale("two", 3)
    with pytest.raises(ApiError, match="greater than or equal to 0"):
        await scale("two", -1, force=True)
    with pytest.raises(ApiError, match="does not match the name on the URL"):
        await scale("two", 6, named="other", force=True)


async def test_conflicts_with_several_managers_are_listed_by_manager(registry: Registry) -> None:
    await apply(registry, config_map("c", a="1"), "zoe")
    await apply(registry, config_map("c", b="1", c="1"), "ada")
    await registry.patch(ADMIN, scheme.CONFIG_MAP, "c", "default", {"data": {"d": "1"}}, field_manager="hand")
    with pytest.raises(ApiError) as refused:
        await apply(registry, config_map("c", a="2", b="2", c="2", d="2"), "me")
    assert refused.value.message == (
        'Apply failed with 4 conflicts: conflicts with "ada":\n- .data.b\n- .data.c\n'
        'conflicts with "hand" using v1:\n- .data.d\nconflicts with "zoe":\n- .data.a'
    )
    assert [c["message"] for c in refused.value.details["causes"] if c["field"] == ".data.a"] == ['conflict with "zoe"']


async def test_creators_own_all_that_they_wrote(registry: Registry) -> None:
    made = await registry.create(ADMIN, deployment(), field_manager="creator")
    [entry] = made["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("creator", "Update")
    spec = entry["fieldsV1"]["f:spec"]
    assert "." not in spec and spec["f:selector"] == {} and spec["f:strategy"]["f:rollingUpdate"]["."] == {}
    assert spec["f:template"]["f:metadata"] == {"f:labels": {".": {}, "f:app": {}}}
    assert "." not in spec["f:template"]["f:spec"]["f:containers"]
    with pytest.raises(ApiError, match=r'conflict with "creator" using apps/v1: \.spec\.replicas'):
        await apply(registry, deployment(replicas=3))


async def test_old_updaters_are_remembered_as_one(registry: Registry) -> None:
    await registry.create(ADMIN, config_map("c", k="v"))
    for i in range(15):
        changed = await registry.patch(ADMIN, scheme.CONFIG_MAP, "c", "default", {"data": {f"k{i}": "v"}}, field_manager=f"m{i}")
    found = {e["manager"]: e["fieldsV1"]["f:data"] for e in changed["metadata"]["managedFields"]}
    assert len(found) == 10 and set(found["ancient-changes"]) >= {".", "f:k", "f:k0"} and found["m14"] == {"f:k14": {}}


async def test_apply_after_client_side_apply(registry: Registry) -> None:
    made = deployment()
    made["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    await registry.create(UserInfo("system:controller:work", ("system:masters",)), made)
    taken = await apply(registry, deployment())
    assert [e["manager"] for e in taken["metadata"]["managedFields"]] == ["me", "kubectl-client-side-apply"]
    changed = deployment()
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = "python:4"
    with pytest.raises(ApiError, match=r'containers\[name="web"\]\.image'):
        await apply(registry, changed)
    forced = await apply(registry, changed, force=True)
    assert forced["spec"]["template"]["spec"]["containers"][0]["image"] == "python:4"
    assert forced["metadata"]["generation"] == 2


async def test_items_of_lists_have_owners(registry: Registry) -> None:
    await apply(registry, deployment())
    other = deployment()
    other["spec"]["template"]["spec"]["containers"] = [{"name": "proxy", "image": "proxy:1"}]
    both = await apply(registry, other, "injector")
    assert [c["name"] for c in both["spec"]["template"]["spec"]["containers"]] == ["web", "proxy"]
    del other["spec"]["template"]["spec"]["containers"]
    less = await apply(registry, other, "injector")
    assert [c["name"] for c in less["spec"]["template"]["spec"]["containers"]] == ["web"]


async def test_apply_needs_a_manager(registry: Registry) -> None:
    with pytest.raises(ApiError, match="fieldManager: Required value"):
        await apply(registry, deployment(), "")


names = st.sampled_from("abcd")
configs = st.lists(
    st.tuples(names, st.dictionaries(names, names, max_size=3), st.dictionaries(names, names, max_size=2)), min_size=1
)


def config(data: dict[str, str], labels: dict[str, str]) -> Obj:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "labels": labels}, "data": data}


@given(configs)
def test_applies_hold_what_they_say(steps: list[tuple[str, dict[str, str], dict[str, str]]]) -> None:
    """After a forced apply the object holds the configuration; each field has the owners that applied it last; fields
    that nobody applies are gone."""
    node = node_of(scheme.CONFIG_MAP)
    obj: Obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "managedFields": []}, "data": {}}
    latest: dict[str, Any] = {}
    for manager, data, labels in steps:
        obj = applied(node, obj, config(data, labels), Manager(manager, "Apply", "", "v1"), "now", True)
        latest[manager] = config(data, labels)
        for key, value in data.items():
            assert obj["data"][key] == value
        owned = {entry.manager.name: entry.paths for entry in owners(obj)}
        everything = set().union(*owned.values())
        for path in fields_of(node, obj, status=False):
            if len(path) > 1 and path[:1] == ("f:data",):
                assert path in everything
        before = copy.deepcopy(obj)
        assert applied(node, obj, config(data, labels), Manager(manager, "Apply", "", "v1"), "later", True) == before


@given(st.sets(st.lists(st.sampled_from(["f:a", "f:b", 'k:{"n":1}', "v:1"]), min_size=1, max_size=4).map(tuple)))
def test_sets_survive_their_wire_form(paths: set[tuple[str, ...]]) -> None:
    # A path and its own prefix are both in a set only for items.
    clean = {p for p in paths if p[-1].startswith("k:") or not any(q[: len(p)] == p and q != p for q in paths)}
    obj = {"metadata": {"managedFields": [{"manager": "m", "operation": "Apply", "fieldsV1": fields_v1(clean)}]}}
    assert owners(obj)[0].paths == clean
