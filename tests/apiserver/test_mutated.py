"""Objects and patches that are wrong at random places are refused with a Status, never by an internal error."""

import copy
from random import Random
from typing import Any

import pytest
import yaml

from metaos.apiserver.registry import Registry
from metaos.client import PatchType
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from tests.apiserver.conftest import ADMIN
from tests.differential.cases import BY_PLURAL
from tests.differential.generated import SEEDS, changed

SEEDED: dict[str, Obj] = yaml.safe_load(SEEDS.read_text("utf-8").replace("$ns", "default"))


def damaged(value: Any, random: Random) -> Any:
    """A copy with one value of any other type, at any depth."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        return {**value, key: damaged(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.85:
        i = random.randrange(len(value))
        return [*value[:i], damaged(value[i], random), *value[i + 1 :]]
    return random.choice([None, "text", "", 7, -1, 1.5, True, [], {}, [None], [[]], {"a": None}, {"": 1}, "1" * 300, 1e30])


def wrong(plural: str, seed: int) -> Obj:
    random = Random(f"{plural}-{seed}")
    obj = {"apiVersion": BY_PLURAL[plural].api_version, "kind": BY_PLURAL[plural].kind} | changed(plural, SEEDED[plural], random)
    body = {k: v for k, v in obj.items() if k not in ("apiVersion", "kind")}
    found = damaged(body, random) if random.random() < 0.8 else body
    return obj | found if isinstance(found, dict) else obj


async def refused_or_taken(registry: Registry, plural: str, seeds: range) -> None:
    kind = BY_PLURAL[plural]
    for seed in seeds:
        obj = wrong(plural, seed)
        for type in (None, PatchType.APPLY):
            try:
                if type is None:
                    await registry.create(ADMIN, copy.deepcopy(obj), kind=kind, namespace="default", dry_run=True)
                else:
                    where = "default" if kind.namespaced else ""
                    await registry.patch(ADMIN, kind, "x", where, obj, type=type, field_manager="m", force=True, dry_run=True)
            except ApiError as refused:
                assert 400 <= refused.code < 500, (obj, refused)


@pytest.mark.parametrize("plural", SEEDED)
async def test_wrong_objects(registry: Registry, plural: str) -> None:
    await refused_or_taken(registry, plural, range(60))


@pytest.mark.slow
@pytest.mark.parametrize("plural", SEEDED)
async def test_many_wrong_objects(registry: Registry, plural: str) -> None:
    await refused_or_taken(registry, plural, range(60, 600))


@pytest.mark.parametrize("type", [PatchType.STRATEGIC, PatchType.MERGE, PatchType.APPLY])
@pytest.mark.parametrize("plural", ["pods", "deployments", "services", "networkpolicies", "secrets"])
async def test_wrong_patches(registry: Registry, plural: str, type: PatchType) -> None:
    kind, seed = BY_PLURAL[plural], copy.deepcopy(SEEDED[plural])
    seed["metadata"]["name"] = "a"
    await registry.create(ADMIN, seed, kind=kind, namespace="default")
    for i in range(60):
        patch = wrong(plural, i)
        if isinstance(patch.get("metadata"), dict):
            patch["metadata"].pop("name", None)
            if i % 5 == 0:
                fields = {"f:spec": {"k:x": 1}, "f:metadata": {"f:labels": []}}
                patch["metadata"]["managedFields"] = [
                    damaged({"manager": "m", "operation": "Apply", "fieldsV1": fields}, Random(i))
                ]
        try:
            await registry.patch(ADMIN, kind, "a", "default", patch, type=type, field_manager="m", force=True, dry_run=True)
        except ApiError as refused:
            assert 400 <= refused.code < 500, (patch, refused)
