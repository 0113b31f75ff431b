"""Pods of several workloads near each other or apart: the placement controller knows where they are, and waits for them."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.controllers import placement
from metaos.controllers.facts import placement_name
from metaos.resources import scheme
from metaos.resources.affinity import PREFERRED, REQUIRED, pod_terms, repelled_by, repels
from metaos.resources.meta import Obj, ref
from tests.controllers.continuum import cluster, deployment, running, until
from tests.fake_client import FakeClient

HOST = "kubernetes.io/hostname"


def app(name: str, replicas: int = 1, labels: dict[str, str] | None = None, **affinity: Any) -> Obj:
    found = deployment(name, replicas=replicas)
    template = found["spec"]["template"]
    template["metadata"] = {"labels": {"app": name} | (labels or {})}
    template["spec"]["affinity"] = affinity
    return found


def term(name: str, **more: Any) -> dict[str, Any]:
    return {REQUIRED: [{"topologyKey": HOST, "labelSelector": {"matchLabels": {"app": name}}, **more}]}


def places(client: FakeClient, obj: Obj) -> dict[str, int]:
    found = client.find(scheme.PLACEMENT, placement_name(ref(obj)), "shop") or {"spec": {"clusters": []}}
    return {c["name"]: c["replicas"] for c in found["spec"]["clusters"]}


async def test_who_needs_pods_that_are_not_there_waits_and_comes_to_them() -> None:
    web, db = app("web", podAffinity=term("db")), app("db")
    db["spec"]["template"]["spec"]["nodeSelector"] = {HOST: "b"}
    async with running(placement.setup, objects=(cluster("a"), cluster("b"), web)) as (client, clock):
        await clock.advance(2)
        assert places(client, web) == {}
        client.seed(db)
        await until(clock, lambda: places(client, db) == {"b": 1})
        await until(clock, lambda: places(client, web) == {"b": 1})


async def test_two_that_need_each_other_say_whom_they_wait_for() -> None:
    web, db = app("web", podAffinity=term("db")), app("db", podAffinity=term("web"))
    async with running(placement.setup, objects=(cluster("a"), web, db)) as (client, clock):
        await clock.advance(5)
        for one, other in ((web, "db"), (db, "web")):
            found = client.find(scheme.PLACEMENT, placement_name(ref(one)), "shop") or {}
            assert f"deployment/{other} has no place yet" in found["status"]["conditions"][0]["message"]
        writes = len(client.calls)
        await clock.advance(60)
        assert len(client.calls) == writes


async def test_both_keep_away_from_whom_one_of_them_does_not_want() -> None:
    alone, web = app("alone", podAntiAffinity=term("web")), app("web")
    async with running(placement.setup, objects=(cluster("a"), alone)) as (client, clock):
        await until(clock, lambda: places(client, alone) == {"a": 1})
        client.seed(web)
        await clock.advance(2)
        assert places(client, web) == {}
        await client.delete(scheme.DEPLOYMENT, "alone", "shop")
        await until(clock, lambda: places(client, web) == {"a": 1})


async def test_one_replica_a_site() -> None:
    web = app("web", replicas=3, podAntiAffinity=term("web"))
    async with running(placement.setup, objects=(cluster("a"), cluster("b"), web)) as (client, clock):
        await until(clock, lambda: places(client, web) == {"a": 1, "b": 1})
        client.seed(cluster("c"))
        await until(clock, lambda: places(client, web) == {"a": 1, "b": 1, "c": 1})


# -- reading ------------------------------------------------------------------------------------------------


def none(selector: object) -> list[str]:
    return []


def test_terms_name_their_pods_and_whose_they_are() -> None:
    wish = {"weight": 7, "podAffinityTerm": term("db")[REQUIRED][0]}
    web, db = app("web", podAffinity={PREFERRED: [wish]}, podAntiAffinity=term("web")), app("db")
    near, apart = pod_terms(web, lambda where: [web, db], none)
    assert (near.weight, near.apart, near.own, near.refs, near.pods) == (7.0, False, False, (ref(db),), "pods with app=db")
    assert (apart.weight, apart.apart, apart.own, apart.refs) == (0.0, True, True, ())


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, ["shop"]),
        ({"namespaces": ["other"]}, ["other"]),
        ({"namespaceSelector": {}}, ["all"]),
        ({"namespaceSelector": {}, "namespaces": ["other"]}, ["all", "other"]),
    ],
)
def test_namespaces_are_as_in_kubernetes(more: dict[str, Any], found: list[str]) -> None:
    asked: list[str] = []

    def pods_in(where: str) -> list[Obj]:
        asked.append(where)
        return []

    pod_terms(app("web", podAffinity=term("db", **more)), pods_in, lambda selector: ["all"])
    assert sorted(asked) == found


def test_label_keys_narrow_a_term_where_the_pods_have_them() -> None:
    keys = {"matchLabelKeys": ["track", "pod-template-hash"], "mismatchLabelKeys": ["tenant"]}
    web = app("web", labels={"track": "green", "tenant": "one"}, podAffinity=term("db", **keys))
    others = [
        app("db", labels=found)
        for found in (
            {"track": "green", "tenant": "two"},
            {"track": "blue", "tenant": "two"},
            {"track": "green", "tenant": "one"},
        )
    ]
    assert [len(pod_terms(web, lambda where, o=o: [o], none)[0].refs) for o in others] == [1, 0, 0]  # type: ignore[misc]


def test_who_is_kept_away_finds_it_in_the_index() -> None:
    expression = {"labelSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}
    far = {"namespaceSelector": {}}
    web = app("web")
    for more in ({}, expression, far, expression | far):
        other = app("other", podAntiAffinity=term("web", **more))
        assert set(repels(other)) & set(repelled_by(web)), more
        (found,) = pod_terms(web, lambda where: [], lambda selector: ["shop"], [other])
        assert (found.by, found.refs) == ("deployment/other", (ref(other),))
    assert not set(repels(app("other", podAntiAffinity=term("db")))) & set(repelled_by(web))
