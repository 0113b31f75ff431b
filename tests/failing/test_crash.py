"""The hub is killed between any two writes of a failover and of a migration, and always ends in the right state.

Store, registry and controllers are the real ones, on a real file; agents are stand-ins (see ``site.py``). Every write counts:
those of controllers and those of agents. After each of them once, the hub dies, stays away, and starts from its file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from metaos.resources import scheme
from tests.failing.world import CLEAN, IN_EU, World, change, cluster, intent, policy, secret, service, workload

SITES = ("a", "b", "uk")
#: The hub stays away for less than a lease, and for longer than one and the fencing time.
DOWNTIMES = (0.5, 12.0)


@dataclass(frozen=True)
class Scenario:
    """``begin`` starts what is tested with everything on ``a``; ``goal`` is when it is over; ``heal`` what then still happens."""

    kind: str
    replicas: int
    begin: Callable[[World], Awaitable[None]]
    #: Nothing of the service may be lost at any moment.
    seamless: bool
    most: int

    async def start(self, folder: Path) -> World:
        world = World(folder)
        await world.open()
        await world.join(cluster("a", 50.0))
        await world.join(cluster("b", 100.0))
        await world.join(cluster("uk", 1.0, jurisdictions=["GB"]))
        await world.until(lambda: all(world.is_ready(s) for s in SITES), "all sites are ready")
        await world.hub.client.create(scheme.NAMESPACE.empty("shop"))
        # A site that comes back does not take its work back: there is one move, and one only.
        await world.apply(secret(), policy(failback="Never"), intent(IN_EU, CLEAN), service(), workload(self.kind, self.replicas))
        await world.until(lambda: world.settled("a"), "it runs on a")
        world.checks.append(world.at_most(self.most))
        if self.seamless:
            world.checks += [world.at_least(self.replicas), world.served]
        return world

    async def finish(self, world: World) -> None:
        """Runs on until all is done, heals what was cut, and looks at everything."""
        if world.sites["a"].line.cut:
            await world.until(
                lambda: (
                    world.ready().get("b") == self.replicas == len(world.endpoints())
                    and {s for s, _ in world.endpoints()} == {"b"}
                ),
                "b has taken over and serves",
                90,
            )
            await world.run(3)
            world.sites["a"].line.cut = False
        await world.until(lambda: world.settled("b"), "everything is on b and nothing elsewhere", 90)
        await world.run(5)
        # Away for longer than the fencing time, the hub finds what must not run twice stopped, and has it started again.
        await world.until(lambda: world.settled("b"), "everything is still on b", 20)
        keys = await world.ever_written()
        outside = {k for k in keys if k.startswith("works.meta-os.eu/nemo-cluster-uk/") and not k.endswith("/service.shop.web")}
        assert not outside, "something was on a site outside its residency"
        found = world.hub.objects(scheme.PLACEMENT, "shop")[0]
        moves = found["spec"].get("moves") or []
        assert len(moves) == 1 and (moves[0]["from"], moves[0]["to"]) == (["a"], ["b"]), moves
        # A hub that dies between a deed and its event records it not at all, or once more.
        told = world.events()
        assert max(told.values()) <= 1 + world.deaths, told
        assert sum(reason == "Moved" for reason, _ in told) <= 1, told


async def _lose(world: World) -> None:
    world.sites["a"].line.cut = True


async def _dirty(world: World) -> None:
    await change(world, "a", electricity={"carbonIntensity": 900.0})


SCENARIOS = {
    "failover": Scenario("Deployment", 2, _lose, seamless=False, most=4),
    "migration": Scenario("Deployment", 2, _dirty, seamless=True, most=4),
    "fenced failover": Scenario("StatefulSet", 1, _lose, seamless=False, most=1),
    "fenced migration": Scenario("StatefulSet", 1, _dirty, seamless=False, most=1),
}


async def play(scenario: Scenario, folder: Path, kills: list[int], downtime: float) -> tuple[int, World]:
    """How many writes it took from the beginning to the end without a kill, or how often the hub was killed."""
    folder.mkdir()
    world = await scenario.start(folder)
    try:
        world.downtime_seconds = downtime
        before = world.hub.disk.writes
        if kills:
            world.hub.arm(kills[0])
            world.kills = kills[1:]
        if kills and kills[0] == 0:
            await world.run(0.5)
        await scenario.begin(world)
        await scenario.finish(world)
        return (world.deaths if kills else world.hub.disk.writes - before), world
    finally:
        await world.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
async def test_killed_after_any_write(name: str, tmp_path: Path) -> None:
    scenario, number, deaths = SCENARIOS[name], 0, 1
    while deaths:
        # Until the scenario ends before so many writes: then there was a kill after each.
        deaths, _ = await play(scenario, tmp_path / str(number), [number], DOWNTIMES[0])
        number += 1
    assert number > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
async def test_away_for_long(name: str, tmp_path: Path) -> None:
    for number in range(0, 90, 3):
        await play(SCENARIOS[name], tmp_path / str(number), [number], DOWNTIMES[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
async def test_killed_twice_at_random_writes(name: str, tmp_path: Path) -> None:
    random = Random(name)
    for number in range(20):
        kills = [random.randrange(80), random.randrange(60)]
        await play(SCENARIOS[name], tmp_path / str(number), kills, random.choice(DOWNTIMES))


@pytest.mark.parametrize("name", SCENARIOS)
async def test_without_a_kill(name: str, tmp_path: Path) -> None:
    writes, world = await play(SCENARIOS[name], tmp_path / "whole", [], 0.5)
    assert world.deaths == 0 and writes > 20


@pytest.mark.parametrize("name", SCENARIOS)
async def test_killed_at_some_writes(name: str, tmp_path: Path) -> None:
    """The short form of the exhaustive one."""
    for number in (3, 30):
        await play(SCENARIOS[name], tmp_path / str(number), [number], 0.5)
