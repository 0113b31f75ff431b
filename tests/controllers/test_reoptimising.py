"""All workloads at once, every so often: who stands in the way of a larger gain moves, and the other one after it."""

from __future__ import annotations

from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers import placement, reoptimising
from metaos.controllers.reoptimising import FRESH_SECONDS, SUGGESTED, suggestion
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj, format_time
from metaos.scheduler.optimise import Move, in_turn
from tests.controllers.continuum import _unsigned, cluster, deployment, events, intent, running, until
from tests.fake_client import FakeClient
from tests.scheduler.worlds import site, workload, world

CLEAN = {"name": "carbonIntensity", "condition": "Minimize"}
HOUR = 3600.0


def hourly(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    reoptimising.setup(manager, client, clock, Settings(sign=_unsigned, reoptimise_interval=HOUR))


def found(client: FakeClient, name: str) -> dict[str, Any]:
    return client.find(scheme.PLACEMENT, f"deployment-{name}", "shop") or {"spec": {"clusters": []}}


def where(client: FakeClient, name: str) -> list[str]:
    return [c["name"] for c in found(client, name)["spec"]["clusters"]]


def sites() -> tuple[Obj, Obj]:
    """A clean one with room for one, and a dirty one with room for both."""
    small = {"cpu": "4", "memory": "8Gi", "pods": "40"}
    return (
        cluster("clean", electricity={"carbonIntensity": 20}, capacity=small),
        cluster("dirty", electricity={"carbonIntensity": 500}, capacity=small | {"cpu": "16"}),
    )


async def test_who_stands_in_the_way_of_a_larger_gain_moves() -> None:
    green = intent(CLEAN)
    green["spec"] |= {"priority": 100, "workloads": {"selector": {"matchLabels": {"app": "green"}}}}
    async with running(placement.setup, hourly, objects=(*sites(), deployment("grey", cpu="3"))) as (client, clock):
        await until(clock, lambda: where(client, "grey") == ["clean"])
        client.seed(green, deployment("green", cpu="3"))
        await until(clock, lambda: where(client, "green") == ["dirty"])
        await clock.advance(HOUR / 2)
        assert (where(client, "grey"), where(client, "green")) == (["clean"], ["dirty"])
        await clock.advance(HOUR / 2)
        await until(clock, lambda: (where(client, "grey"), where(client, "green")) == (["dirty"], ["clean"]))
        assert found(client, "grey")["spec"]["reason"].startswith("all workloads together are better with it on dirty (-")
        before = events(client).count("Moved")
        await clock.advance(3 * HOUR)
        assert events(client).count("Moved") == before == 2, "it comes to rest"


async def test_nothing_is_placed_anew_unless_the_operator_wants_it() -> None:
    async with running(placement.setup, reoptimising.setup, objects=(*sites(), deployment("grey"))) as (client, clock):
        await clock.advance(2 * HOUR)
        assert SUGGESTED not in (found(client, "grey")["metadata"].get("annotations") or {})


def test_only_a_fresh_suggestion_counts() -> None:
    now = 1_700_000_000.0

    def says(text: str) -> str | None:
        spec = {"clusters": [{"name": "a", "replicas": 1}]}
        return suggestion({"metadata": {"annotations": {SUGGESTED: text}}, "spec": spec}, now)

    assert says(f"b@{format_time(now)}") == "b"
    assert says(f"a@{format_time(now)}") is None, "it is there"
    assert says(f"b@{format_time(now - FRESH_SECONDS - 1)}") is None
    assert says(f"b@{format_time(now + 60)}") is None
    assert [says(text) for text in ("b", "@", "b@yesterday", "")] == [None] * 4
    assert suggestion(None, now) is None


def test_moves_wait_for_those_that_make_room() -> None:
    full = {"cpu": 1000, "cpu_requested": 1000, "pods_requested": 1}
    chain = world(site("a", **full), site("b", **full), site("c", cpu=1000))
    one, two = (workload(current={at: 1}, cpu=1000) for at in ("a", "b"))
    into_b, into_c = Move(one, "b", 9.0), Move(two, "c", -1.0)
    assert in_turn(chain, [into_b, into_c]) == (into_c, into_b)
    ring = world(site("a", **full), site("b", **full))
    assert in_turn(ring, [into_b, Move(two, "a", 9.0)]) == ()
