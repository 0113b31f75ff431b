"""Revisions: the history that ``kubectl rollout history|undo`` read."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaos.controllers import revisions as controller
from metaos.controllers.revisions import hash_of, number, plan
from metaos.resources import scheme
from metaos.resources.meta import REVISION, Obj, condition
from metaos.resources.workload import template_hash
from tests.controllers.continuum import deployment, running, until
from tests.fake_client import FakeClient


def workload(kind: str = "Deployment", image: str = "a", limit: int | None = None) -> Obj:
    found = deployment(replicas=2) | {"kind": kind}
    found["metadata"] |= {"uid": "u", "generation": 1, "annotations": {"kubernetes.io/change-cause": image}}
    found["spec"]["selector"] = {"matchLabels": {"app": "web"}}
    found["spec"]["template"] |= {"metadata": {"labels": {"app": "web"}}}
    return with_image(found, image) if limit is None else with_image(found, image, revisionHistoryLimit=limit)


def with_image(obj: Obj, image: str, **spec: Any) -> Obj:
    found = copy.deepcopy(obj)
    found["spec"]["template"]["spec"]["containers"][0]["image"] = image
    found["metadata"].setdefault("annotations", {})["kubernetes.io/change-cause"] = image
    found["spec"] |= spec
    return found


@given(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=25), st.integers(0, 4), st.sampled_from(["Deployment", "DaemonSet"])
)
def test_any_history_is_bounded_numbered_and_ends_at_the_present(images: list[str], limit: int, kind: str) -> None:
    history: list[Obj] = []
    last: list[int] = []
    for image in images:
        now = workload(kind, image, limit)
        found = plan(now, history)
        again = plan(now, [r for r in history if r not in found.remove and hash_of(r) != template_hash(now)] + [found.records[0]])
        assert again.revision == found.revision and not again.remove, "a second look changes nothing"
        gone = {r["metadata"]["name"] for r in found.remove}
        kept = {r["metadata"]["name"]: r for r in history} | {r["metadata"]["name"]: r for r in found.records}
        history = [r for n, r in kept.items() if n not in gone]
        numbers = [number(r) for r in history]
        assert len(history) <= limit + 1 and len(set(numbers)) == len(numbers)
        present = max(history, key=number)
        assert hash_of(present) == template_hash(now) and number(present) == found.revision
        assert not last or found.revision >= last[-1]
        last.append(found.revision)


def test_a_template_that_comes_back_keeps_its_record_and_gets_the_newest_number() -> None:
    first = plan(workload(image="a"), []).records
    second = plan(workload(image="b"), first).records
    third = plan(workload(image="a"), second)
    assert [number(r) for r in third.records] == [3, 2]
    assert third.records[0]["metadata"]["name"] == first[0]["metadata"]["name"]


def test_counts_of_a_rollout_under_way() -> None:
    old = plan(workload(image="a"), []).records
    now = workload(image="b")
    now["status"] = {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2, "availableReplicas": 2}
    new, before = plan(now, old).records
    assert new["spec"]["replicas"] == 2 and new["status"]["replicas"] == 1
    assert before["spec"]["replicas"] == 2 and before["status"]["readyReplicas"] == 1
    now["metadata"]["generation"] = 2
    assert plan(now, old).records[0]["status"] == {"replicas": 0}, "what was said about an earlier generation is not counted"


def test_a_paused_deployment_gets_no_new_revision() -> None:
    first = plan(workload(image="a"), []).records
    waiting = workload(image="b") | {"status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": 1}}
    waiting["spec"] |= {"paused": True, "replicas": 3}
    found = plan(waiting, first)
    assert found.revision == 1 and not found.remove
    (record,) = found.records
    assert hash_of(record) == hash_of(first[0]) and record["spec"]["template"] == first[0]["spec"]["template"]
    assert record["spec"]["replicas"] == 3 and record["status"]["readyReplicas"] == 2
    assert plan(waiting, []).records == () and plan(waiting, []).revision == 0
    waiting["spec"]["paused"] = False
    assert plan(waiting, first).revision == 2


def causes(client: FakeClient) -> dict[int, str]:
    records = [*client.objects(scheme.REPLICA_SET), *client.objects(scheme.CONTROLLER_REVISION)]
    return {number(r): r["metadata"]["annotations"]["kubernetes.io/change-cause"] for r in records}


async def test_it_follows_a_deployment() -> None:
    async with running(controller.setup, objects=(workload(),)) as (client, clock):
        await until(clock, lambda: causes(client) == {1: "a"})
        for image in "bcb":
            client.seed(with_image(client.find(scheme.DEPLOYMENT, "web", "shop") or {}, image))
            await clock.advance(1)
        await until(clock, lambda: causes(client) == {1: "a", 3: "c", 4: "b"})
        found = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        assert found["metadata"]["annotations"][REVISION] == "4"
        before = len(client.calls)
        await clock.advance(5)
        assert len(client.calls) == before, "nothing is written when nothing changes"
        client.seed(with_image(found, "b", revisionHistoryLimit=0))
        client.seed(with_image(found, "b", revisionHistoryLimit=0) | {"metadata": found["metadata"] | {"generation": 9}})
        await until(clock, lambda: causes(client) == {4: "b"})


async def test_it_follows_a_stateful_set() -> None:
    async with running(controller.setup, objects=(workload("StatefulSet"),)) as (client, clock):
        await until(clock, lambda: causes(client) == {1: "a"})
        record = client.objects(scheme.CONTROLLER_REVISION)[0]
        assert record["data"]["spec"]["template"]["$patch"] == "replace"
        assert record["metadata"]["labels"]["app"] == "web"


async def test_a_replica_set_of_ones_own_says_that_it_is_not_run() -> None:
    own = {**scheme.REPLICA_SET.empty("own", "shop"), "spec": {"replicas": 2}}
    async with running(controller.setup, objects=(own,)) as (client, clock):
        found = await until(clock, lambda: condition(client.find(scheme.REPLICA_SET, "own", "shop") or {}, "ReplicaFailure"))
        assert (found["status"], found["reason"]) == ("True", "NotRun") and "make a Deployment" in found["message"]
        writes = len(client.calls)
        await clock.advance(5)
        assert len(client.calls) == writes
