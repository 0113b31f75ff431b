"""Clocks that are wrong by an hour, or jump by one: of a site, or of the hub. Nobody is taken for lost, nothing runs twice.

The hub is real in virtual time; agents are stand-ins, and where an agent's own reckoning counts, its real parts.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from metaos.agent.contact import Contact
from metaos.agent.sync import WorkFiles, Works
from metaos.resources import scheme
from metaos.resources.meta import Obj, cluster_namespace
from tests.failing.hub import Skewed, WorldClock
from tests.failing.test_crash import SCENARIOS
from tests.failing.world import World, cluster, service, workload
from tests.fake_client import FakeClient

HOUR = 3600.0


def _never_lost(world: World) -> str:
    lost = [e["involvedObject"]["name"] for e in world.hub.objects(scheme.EVENT) if e["reason"] == "SiteLost"]
    return f"{lost} were taken for lost" if lost else ""


@pytest.mark.parametrize("offset", [-HOUR, HOUR])
async def test_a_site_whose_clock_is_wrong_is_not_lost(offset: float, tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open()
    try:
        await world.join(cluster("a"), offset)
        await world.join(cluster("b"))
        await world.until(lambda: world.is_ready("a") and world.is_ready("b"), "both are ready")
        world.checks.append(lambda: _never_lost(world))
        clock = world.sites["a"]._clock
        assert isinstance(clock, Skewed)
        await world.run(15)
        # It jumps to and fro, too.
        for jump in (2 * HOUR, -2 * HOUR, 0.0):
            clock.offset = jump
            await world.run(8)
        world.checks.clear()
        world.sites["a"].line.cut = True
        await world.until(lambda: not world.is_ready("a"), "it is lost where it is", 10)
        world.sites["a"].line.cut = False
        await world.until(lambda: world.is_ready("a"), "it is back where it is", 10)
    finally:
        await world.close()


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_hubs_clock_jumps_while_it_moves_work(name: str, jump: float, tmp_path: Path) -> None:
    """At several moments of each failover and migration; all of them end as they would have, in bounded time."""
    scenario = SCENARIOS[name]
    for number, moment in enumerate((0.5, 5.0, 7.5)):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = await scenario.start(folder)
        try:
            await scenario.begin(world)
            await world.run(moment)
            world.clock.offset += jump
            await scenario.finish(world)
        finally:
            await world.close()


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
async def test_the_hub_comes_back_with_another_clock(jump: float, tmp_path: Path) -> None:
    for number, name in enumerate(("fenced failover", "failover")):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = await SCENARIOS[name].start(folder)
        try:
            await SCENARIOS[name].begin(world)
            await world.run(5.0)
            await world.hub.kill()
            world.clock.offset += jump
            await world.hub.start()
            await SCENARIOS[name].finish(world)
        finally:
            await world.close()


async def test_sites_with_wrong_clocks_fence_in_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open()
    try:
        await world.join(cluster("a", 50.0), HOUR)
        await world.join(cluster("b"), -HOUR)
        await world.until(lambda: world.is_ready("a") and world.is_ready("b"), "both are ready")
        await world.apply(scheme.NAMESPACE.empty("shop"), service(), workload("StatefulSet", 1))
        await world.until(lambda: world.ready() == {"a": 1}, "it runs on a")
        world.checks.append(world.at_most(1))
        world.sites["a"].line.cut = True
        await world.until(lambda: world.ready() == {"b": 1}, "b has taken over", 60)
        world.sites["a"].line.cut = False
        await world.run(10)
        assert world.running() == {"b": 1}
    finally:
        await world.close()


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
async def test_an_agents_own_reckoning_of_the_fence_is_monotonic(jump: float, tmp_path: Path) -> None:
    """With the agent's real parts: the lease that holds, and what is desired by it."""
    clock = WorldClock()
    machine = clock.view(0.0)
    contact = Contact(machine, Random(1))
    works = Works(FakeClient(clock), contact, machine, WorkFiles(tmp_path / "works"), "a")
    work: Obj = {**scheme.WORK.empty("statefulset.shop.web", cluster_namespace("a"))}
    work["metadata"]["uid"] = "u"
    work["spec"] = {"manifests": [workload("StatefulSet", 1)], "fencing": {"afterSeconds": 6}}
    contact.renewed(machine.monotonic())
    works.replace_all([work], silent=0.0)
    await clock.advance(3)
    machine.offset = jump
    works.replace_all([work])
    assert works.desired(), "three seconds of silence are not six, whatever the time of day"
    await clock.advance(3.1)
    works.replace_all([work])
    assert not works.desired(), "six are, whatever the time of day"
