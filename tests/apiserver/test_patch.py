"""Patches."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver.patch import apply_patch, merge, strategic
from metaos.apiserver.registry import Registry
from metaos.apiserver.schema import node_of
from metaos.client import PatchType
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from tests.apiserver.conftest import ADMIN
from tests.apiserver.objects import deployment

POD = node_of(scheme.POD)

json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=10,
)


def without_nulls(value: Any) -> Any:
    return {k: without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


@given(json, st.dictionaries(st.text(max_size=2), json, max_size=3))
def test_merge_is_idempotent(target: Any, patch: Any) -> None:
    once = merge(target, patch)
    assert merge(once, patch) == once
    assert merge({}, patch) == without_nulls(patch)


def test_strategic_merges_lists_by_key() -> None:
    obj = {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}], "tolerations": [{"key": "x"}]}}
    patch = {
        "spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}, {"name": "a", "$patch": "delete"}]}
    }
    assert strategic(obj, patch, POD)["spec"] == {
        "containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}],
        "tolerations": [{"key": "x"}],
    }
    assert strategic(obj, {"spec": {"tolerations": [{"key": "y"}]}}, POD)["spec"]["tolerations"] == [{"key": "y"}]


def test_strategic_directives() -> None:
    obj = {"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1"}}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    patch = {
        "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "labels": {"$patch": "replace", "y": "2"}},
        "spec": {
            "$setElementOrder/volumes": [{"name": "w"}, {"name": "v"}],
            "volumes": [
                {"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "c"}},
                {"name": "w", "emptyDir": {}},
            ],
        },
    }
    assert strategic(obj, patch, POD) == {
        "metadata": {"finalizers": ["b"], "labels": {"y": "2"}},
        "spec": {"volumes": [{"name": "w", "emptyDir": {}}, {"name": "v", "configMap": {"name": "c"}}]},
    }


def test_strategic_retain_keys_of_the_strategy() -> None:
    obj = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    patch = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert strategic(obj, patch, node_of(scheme.DEPLOYMENT)) == {"spec": {"strategy": {"type": "Recreate"}}}


def test_json_patch_refusals() -> None:
    for patch in ([{"op": "test", "path": "/a", "value": 2}], [{"op": "remove", "path": "/b"}], [{"op": "dance"}]):
        with pytest.raises(ApiError) as refused:
            apply_patch(PatchType.JSON, {"a": 1}, patch, POD)
        assert refused.value.code == 422
    with pytest.raises(ApiError):
        apply_patch(PatchType.MERGE, {}, [], POD)


async def test_a_patch_that_changes_nothing_is_not_written(registry: Registry) -> None:
    made = await registry.create(ADMIN, deployment())
    for type in (PatchType.MERGE, PatchType.STRATEGIC):
        same = await registry.patch(ADMIN, scheme.DEPLOYMENT, "web", "default", deployment(), type=type)
        if type is PatchType.STRATEGIC:
            assert same == made


async def test_a_patch_may_name_its_revision(registry: Registry) -> None:
    made = await registry.create(ADMIN, deployment())
    version = made["metadata"]["resourceVersion"]
    patch = {"metadata": {"resourceVersion": version}, "spec": {"replicas": 2}}
    await registry.patch(ADMIN, scheme.DEPLOYMENT, "web", "default", patch)
    with pytest.raises(ApiError) as stale:
        await registry.patch(ADMIN, scheme.DEPLOYMENT, "web", "default", patch)
    assert stale.value.code == 409


def test_long_lists_merge_in_linear_time() -> None:
    count = 10_000
    env = [{"name": f"E{i}", "value": "x"} for i in range(count)]
    obj = deployment()
    obj["spec"]["template"]["spec"]["containers"][0]["env"] = env
    changed = [{"name": f"E{i}", "value": "y"} for i in reversed(range(0, 2 * count, 2))]
    order = [{"name": each["name"]} for each in changed]
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "web", "env": changed, "$setElementOrder/env": order}]}}}}
    started = time.thread_time()
    found = apply_patch(PatchType.STRATEGIC, obj, patch, node_of(scheme.DEPLOYMENT))
    assert time.thread_time() - started < 2.0
    assert len(found["spec"]["template"]["spec"]["containers"][0]["env"]) == count + count // 2
