"""What a PlacementReview brings: as valid as what is stored, or refused with the entry that is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver.shaping import shape
from metaos.apiserver.supposing import supposed
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.resources.reading import workload_info

REVIEW = {"apiVersion": scheme.PLACEMENT_REVIEW.api_version, "kind": scheme.PLACEMENT_REVIEW.kind}


def brought(*objects: Obj) -> list[Obj]:
    found: list[Obj] = supposed({**REVIEW, "spec": {"objects": list(objects)}})["spec"]["objects"]
    return found


def web(cpu: str = "100m", **spec: Any) -> Obj:
    container = {"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}
    plain = {"selector": {"matchLabels": {"app": "web"}}, "template": template}
    return {**scheme.DEPLOYMENT.empty("web", "shop"), "spec": plain | spec}


def test_workloads_and_rules_get_their_defaults_and_everything_else_is_passed_over() -> None:
    others = [{"apiVersion": "v1", "kind": "ConfigMap"}, {"kind": "Intent"}, {}]
    (found,) = brought(*others, web(replicas=None))
    assert found["kind"] == "Deployment" and found["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (web(replicas="three"), "spec.replicas"),
        (web(replicas=-1), "spec.replicas"),
        ({**web(), "metadata": None}, "metadata.name"),
        ({**web(), "metadata": {"name": "web"}}, r"spec.objects\[1\].metadata.namespace: Required value"),
        (web(cpu="lots"), "quantity 'lots'"),
        ({**scheme.INTENT.empty("i", "shop"), "spec": {"expectations": "many"}}, "spec.expectations"),
    ],
)
def test_a_wrong_one_is_named(wrong: Obj, said: str) -> None:
    with pytest.raises(ApiError, match=said) as caught:
        brought(web(), wrong)
    assert caught.value.code == 422 and "spec.objects[1]" in str(caught.value)


@pytest.mark.parametrize("word", ["objects", "drain", "lose"])
def test_there_are_not_too_many(word: str) -> None:
    most = 1000
    entry: Any = {} if word == "objects" else "site"
    shape(scheme.PLACEMENT_REVIEW, {**REVIEW, "spec": {word: [entry] * most}}, None, "Strict", [])
    with pytest.raises(ApiError, match=f"spec.{word}: Too many: {most + 1}: must have at most {most} items"):
        shape(scheme.PLACEMENT_REVIEW, {**REVIEW, "spec": {word: [entry] * (most + 1)}}, None, "Strict", [])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "requests", "cpu"]), inner, max_size=2),
    max_leaves=4,
)
pods = st.sampled_from(["containers", "initContainers", "affinity", "tolerations", "nodeSelector", "volumes"])


@given(st.sampled_from(["replicas", "template", "selector"]), values, pods, values)
def test_what_is_accepted_can_be_read(word: str, value: Any, part: str, wrong: Any) -> None:
    plain = web()
    template = plain["spec"]["template"]
    broken = [web(**{word: value}), web(template={**template, "spec": {**template["spec"], part: wrong}})]
    for obj in broken:
        try:
            found = brought(obj)
        except ApiError as error:
            assert error.code == 422
        else:
            assert workload_info(found[0]).replicas >= 0
