"""A mirror that others change while nobody listens: what the site says stands there in the end, whatever came first."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from metaos.agent.contact import Contact
from metaos.agent.mirror import PodMirrors, mirror_of
from metaos.agent.report import merge_patch, settled
from metaos.resources import meta, scheme
from metaos.resources.meta import Obj
from tests.clock import FakeClock
from tests.fake_client import FakeClient


def local(restarts: int) -> Obj:
    conditions = [{"type": "Ready", "status": "True"}]
    metadata = {"name": "p", "namespace": "shop", "uid": "u", "labels": {}}
    status = {"phase": "Running", "conditions": conditions, "restarts": restarts}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": []}, "status": status}


LOST = {"phase": "Running", "conditions": [{"type": "Ready", "status": "Unknown"}], "reason": "NodeLost", "restarts": 0}


async def test_a_pod_that_was_marked_lost_unseen_is_told_whole(tmp_path: Path) -> None:
    clock = FakeClock()
    client = FakeClient(clock)
    contact = Contact(clock, Random(1))

    async def never(*_: Any) -> None:
        raise AssertionError

    mirrors = PodMirrors(client, contact, clock, Random(1), "here", never)
    before = local(0)
    client.seed(mirror_of(before, "here") | {"status": before["status"]})
    mirrors._replace_all([await client.get(scheme.POD, "p", "shop")])
    # The hub misses the site meanwhile; the news of it is still on the way when the site reports a restart.
    client.seed((await client.get(scheme.POD, "p", "shop")) | {"status": LOST})
    after = local(1)
    mirrors._local = {("shop", "p"): after}
    for _ in range(3):
        await mirrors._sync(("shop", "p"))
    assert (await client.get(scheme.POD, "p", "shop"))["status"] == after["status"]


async def test_what_is_shown_stands_at_the_hub_and_what_it_refuses_is_not_waited_for(tmp_path: Path) -> None:
    clock = FakeClock()
    client = FakeClient(clock)
    contact = Contact(clock, Random(1))

    async def never(*_: Any) -> None:
        raise AssertionError

    mirrors = PodMirrors(client, contact, clock, Random(1), "here", never)
    mirrors._replace_all([])
    running = asyncio.create_task(mirrors.run())
    pod = local(2)
    pod["metadata"]["ownerReferences"] = [{"kind": "Deployment", "name": "p", "uid": "d"}]
    owner = {"spec": {"manifests": [{"kind": "Deployment", "metadata": {"name": "p", "uid": "d"}}]}}
    await mirrors.show(owner, [pod])
    assert (await client.get(scheme.POD, "p", "shop"))["status"] == pod["status"]
    # Of another's pod that has the name already the hub lets no mirror be made.
    taken = copy.deepcopy(pod)
    taken["metadata"] |= {"name": "q", "uid": "v"}
    client.seed({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "q", "namespace": "shop", "uid": "w"}, "spec": {}})
    await asyncio.wait_for(mirrors.show(owner, [taken, pod]), 10)
    running.cancel()


async def test_a_pod_that_is_evicted_from_a_site_that_takes_others_says_so_and_goes(tmp_path: Path) -> None:
    clock = FakeClock()
    client = FakeClient(clock)
    asked = []

    async def stop(*words: Any) -> None:
        asked.append(words)

    mirrors = PodMirrors(client, Contact(clock, Random(1)), clock, Random(1), "here", stop)
    pod = local(0)
    evicted = mirror_of(pod, "here") | {"status": pod["status"]}
    evicted["metadata"]["annotations"][meta.DISRUPTED] = "2026-01-01T00:00:00Z"
    evicted["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:07Z", "deletionGracePeriodSeconds": 7}
    client.seed(evicted)
    mirrors._replace_all([await client.get(scheme.POD, "p", "shop")])
    mirrors._local = {("shop", "p"): pod}
    await mirrors._sync(("shop", "p"))
    found = (await client.get(scheme.POD, "p", "shop"))["status"]["conditions"]
    assert [c["reason"] for c in found if c["type"] == "DisruptionTarget"] == ["EvictionByEvictionAPI"]
    await clock.settle()
    assert asked == [("shop", "p", 7.0, True)]
    await mirrors.close()


async def test_an_evicted_pod_says_so(tmp_path: Path) -> None:
    clock = FakeClock()
    client = FakeClient(clock)
    contact = Contact(clock, Random(1))

    async def never(*_: Any) -> None:
        raise AssertionError

    mirrors = PodMirrors(client, contact, clock, Random(1), "here", never)
    pod = local(0)
    evicted = mirror_of(pod, "here") | {"status": pod["status"]}
    evicted["metadata"]["annotations"][meta.EVICTED] = "2026-01-01T00:00:00Z"
    client.seed(evicted)
    mirrors._replace_all([await client.get(scheme.POD, "p", "shop")])
    mirrors._local = {("shop", "p"): pod}
    for _ in range(2):
        await mirrors._sync(("shop", "p"))
    found = (await client.get(scheme.POD, "p", "shop"))["status"]["conditions"]
    assert found[1:] == pod["status"]["conditions"], "the others stay"
    assert found[:1] == [
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ]
    assert mirrors._stands(("shop", "p")), "and that is all"
    # Its site takes pods again: a failure of later is none of a drain's.
    await client.patch(scheme.POD, "p", "shop", {"metadata": {"annotations": {meta.EVICTED: None}}})
    mirrors._replace_all([await client.get(scheme.POD, "p", "shop")])
    await mirrors._sync(("shop", "p"))
    assert (await client.get(scheme.POD, "p", "shop"))["status"]["conditions"] == pod["status"]["conditions"]


values = st.dictionaries(
    st.sampled_from("abcd"), st.one_of(st.integers(0, 2), st.dictionaries(st.sampled_from("xy"), st.integers(0, 1)))
)


def applied(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = applied(found.get(key), value)
    return found


@settings(max_examples=400, deadline=None)
@given(values, values, values, st.sets(st.sampled_from("abcd")))
@example({"a": {"x": 0, "y": 0}}, {"a": {"y": 1}}, {"a": {"x": 1, "y": 0}}, set())
def test_two_writes_are_enough_unless_another_writes_again(known: Any, there: Any, new: Any, kept: set[str]) -> None:
    """``known``: what we take for the hub's; ``there``: what it has; ``kept``: keys that it keeps as they are."""

    def write(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = applied(old, patch)
        return {k: v for k, v in made.items() if k not in kept} | {k: v for k, v in old.items() if k in kept}

    for _ in range(2):
        sent = merge_patch(known, new)
        known = there = write(there, sent)
        if settled(sent, there, new):
            break
    assert settled(merge_patch(known, new) or sent, there, new)
    assert {k: v for k, v in there.items() if k not in kept} == {k: v for k, v in new.items() if k not in kept}
