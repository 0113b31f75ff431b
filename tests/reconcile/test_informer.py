"""Informers: the cache follows the server through everything that a server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.reconcile.informer import LAST_APPLIED, Informer, metadata_only
from metaos.resources import errors
from metaos.resources.meta import Obj, labels, name
from metaos.resources.scheme import POD
from tests.clock import FakeClock
from tests.fake_client import FakeClient

Run = Callable[..., Informer]


def pod(name: str, namespace: str = "shop", node: str = "edge", **metadata: Any) -> Obj:
    return POD.empty(name, namespace) | {
        "metadata": {"name": name, "namespace": namespace} | metadata,
        "spec": {"nodeName": node},
    }


@pytest.fixture
async def client() -> FakeClient:
    return FakeClient(FakeClock())


@pytest.fixture
async def run(client: FakeClient) -> AsyncIterator[Run]:
    tasks = []

    def start(**selection: Any) -> Informer:
        informer = Informer(client, client.clock, Random(1), POD, **selection)
        tasks.append(asyncio.ensure_future(informer.run()))
        return informer

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert client.watchers == 0, "a watch was left open"


def names(found: list[Obj]) -> list[str]:
    return [name(o) for o in found]


async def settle(client: FakeClient, seconds: float = 0) -> None:
    clock = client.clock
    assert isinstance(clock, FakeClock)
    await clock.advance(seconds)


async def test_list_then_watch(client: FakeClient, run: Run) -> None:
    client.seed(pod("b"), pod("a"), pod("x", "other"))
    informer = run()
    assert informer.get("a", "shop") is None
    await informer.synced()
    assert names(informer.list()) == ["x", "a", "b"] and names(informer.list("shop")) == ["a", "b"]
    await client.create(pod("c"))
    await client.delete(POD, "a", "shop", grace_period_seconds=0)
    await client.patch(POD, "b", "shop", {"metadata": {"labels": {"k": "v"}}})
    await settle(client)
    assert names(informer.list("shop")) == ["b", "c"]
    found = informer.get("b", "shop")
    assert found and labels(found) == {"k": "v"}
    assert int(informer.resource_version) == 6


async def test_namespace_and_selectors(client: FakeClient, run: Run) -> None:
    client.seed(pod("a"), pod("b", node="cloud"), pod("c", labels={"k": "v"}), pod("a", "other"))
    one, two, three = run(namespace="other"), run(labels="k=v"), run(fields="spec.nodeName=cloud")
    for informer in (one, two, three):
        await informer.synced()
    assert [names(i.list()) for i in (one, two, three)] == [["a"], ["c"], ["b"]]
    await client.patch(POD, "c", "shop", {"metadata": {"labels": None}})
    await settle(client)
    assert two.list() == []


async def test_what_is_not_kept_is_not_handed_out(client: FakeClient, run: Run) -> None:
    notes = {LAST_APPLIED: "{}", "note": "a"}
    client.seed(pod("a", annotations=notes, managedFields=[{}]))
    informer = run(keep=metadata_only)
    await settle(client)
    await client.patch(POD, "a", "shop", {"spec": {"nodeName": "other"}})
    client.seed(pod("b"))
    await settle(client)
    found = {name(o): o for o in informer.list()}
    assert all(o.keys() == {"apiVersion", "kind", "metadata"} for o in found.values()) and found.keys() == {"a", "b"}
    assert found["a"]["metadata"]["annotations"] == {"note": "a"} and "managedFields" not in found["a"]["metadata"]
    assert (await client.get(POD, "a", "shop"))["metadata"]["annotations"] == notes, "what it was made of is as it was"


async def test_indexes(client: FakeClient, run: Run) -> None:
    client.seed(pod("a"), pod("b", node="cloud"))
    informer = run()
    informer.add_index("node", lambda o: [o["spec"]["nodeName"]])
    await informer.synced()
    informer.add_index("first", lambda o: name(o)[:1])
    informer.add_index("faulty", lambda o: [o["nothing"]])
    assert names(informer.by_index("node", "edge")) == ["a"] and names(informer.by_index("first", "b")) == ["b"]
    await client.patch(POD, "a", "shop", {"spec": {"nodeName": "cloud"}})
    await settle(client)
    assert names(informer.by_index("node", "cloud")) == ["a", "b"] and informer.by_index("node", "edge") == []
    assert informer.by_index("faulty", "x") == []


async def test_changes_are_reported_with_old_and_new(client: FakeClient, run: Run) -> None:
    client.seed(pod("a"))
    informer = run()
    seen: list[tuple[str, str]] = []

    def note(old: Obj | None, new: Obj | None) -> None:
        seen.append((old["spec"]["nodeName"] if old else "", new["spec"]["nodeName"] if new else ""))

    def fail(old: Obj | None, new: Obj | None) -> None:
        raise RuntimeError("a faulty callback")

    informer.on_change(fail)
    informer.on_change(note)
    await informer.synced()
    await client.patch(POD, "a", "shop", {"spec": {"nodeName": "cloud"}})
    await client.delete(POD, "a", "shop", grace_period_seconds=0)
    await settle(client)
    assert seen == [("", "edge"), ("edge", "cloud"), ("cloud", "")]
    client.seed(pod("b"))
    await settle(client)
    late: list[Obj | None] = []
    informer.on_change(lambda old, new: late.append(new))
    assert [name(o) for o in late if o] == ["b"]


async def test_an_ended_watch_goes_on_where_it_was(client: FakeClient, run: Run) -> None:
    informer = run()
    await informer.synced()
    client.seed(pod("a"))
    await settle(client)
    client.fail("list", errors.internal("must not list again"))
    client.end_watches()
    client.seed(pod("b"))
    await settle(client, 1)
    assert names(informer.list()) == ["a", "b"]


async def test_410_lists_again_and_reports_what_changed_meanwhile(client: FakeClient, run: Run) -> None:
    client.seed(pod("gone"), pod("same"), pod("changed"))
    informer = run()
    await informer.synced()
    seen: list[tuple[str, str]] = []
    informer.on_change(lambda old, new: seen.append((name(old or {}), name(new or {}))))
    seen.clear()
    client.fail("watch", errors.unavailable("restarting"), times=2)
    client.end_watches()
    await settle(client)
    client.drop(POD, "gone", "shop")
    client.seed(pod("changed", node="cloud"), pod("new"))
    client.expire()
    await settle(client, 5)
    assert seen == [("gone", ""), ("changed", "changed"), ("", "new")]
    assert names(informer.list()) == ["changed", "new", "same"]


async def test_an_unreachable_server_is_asked_less_and_less(client: FakeClient, run: Run) -> None:
    client.seed(pod("a"))
    client.fail("list", ConnectionRefusedError("refused"), times=1000)
    informer = run()
    await settle(client, 120)
    asked = 1000 - len(client._failures["list"])
    assert 5 < asked < 20
    client._failures.clear()
    await settle(client, 30)
    assert names(informer.list()) == ["a"]
    # Ending at once, again and again, is no busy loop; ending after a while is ordinary.
    for _ in range(5):
        client.end_watches()
        await settle(client, 60)
    client.end_watches()
    client.seed(pod("b"))
    await settle(client, 0.2)
    assert names(informer.list()) == ["a", "b"]


_STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "drop", "end", "expire", "fail"]), st.sampled_from("ab"), st.booleans()), max_size=30
)


@settings(max_examples=200)
@given(_STEPS)
def test_converges_after_any_history(steps: list[tuple[str, str, bool]]) -> None:
    """Callbacks alone rebuild exactly what the server has."""

    async def play() -> None:
        clock = FakeClock()
        client = FakeClient(clock)
        informer = Informer(client, clock, Random(1), POD)
        informer.add_index("node", lambda o: [o["spec"]["nodeName"]])
        copy: dict[str, Obj] = {}

        def apply(old: Obj | None, new: Obj | None) -> None:
            if old is not None:
                assert name(old) in copy
                del copy[name(old)]
            if new is not None:
                assert name(new) not in copy
                copy[name(new)] = new

        informer.on_change(apply)
        task = asyncio.ensure_future(informer.run())
        for number, (step, key, seen) in enumerate(steps):
            if step == "put":
                client.seed(pod(key, node=f"n{number % 3}"))
            elif step == "drop" and client.find(POD, key, "shop"):
                client.drop(POD, key, "shop")
            elif step == "end":
                client.end_watches()
            elif step == "expire":
                client.expire()
            elif step == "fail":
                client.fail("watch", errors.internal("a bad day"))
            if seen:
                await clock.advance(0.05)
        await clock.advance(200)
        expected = client.objects(POD)
        assert informer.list() == expected and [copy[k] for k in sorted(copy)] == expected
        for n in range(3):
            assert informer.by_index("node", f"n{n}") == [o for o in expected if o["spec"]["nodeName"] == f"n{n}"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(play())
