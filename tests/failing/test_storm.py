"""Many sites vanish at once: the hub does not move the world, and what has to be moved is moved in turn.

Agents are stand-ins that send heartbeats and do as they are told; the hub, its file and its controllers are real.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from metaos.controllers.cluster import Pace
from metaos.controllers.settings import Settings
from metaos.resources import scheme
from metaos.resources.meta import condition, name
from tests.failing.hub import SETTINGS
from tests.failing.world import NAMESPACE, World, cluster, workload


def test_a_few_go_at_once_and_the_others_in_turn() -> None:
    pace = Pace(3, 10.0, 0.0)
    assert [pace.take(0.0, 20) for _ in range(5)] == [True] * 3 + [False] * 2
    assert [pace.take(t, 20) for t in (9.0, 10.0, 11.0, 20.0, 29.0)] == [False, True, False, True, False]
    assert sum(pace.take(100.0 + t, 20) for t in range(100)) == 3 + 9
    assert sum(pace.take(1000.0 + t, 1000) for t in range(100) for _ in range(3)) == 10 + 99


async def _placed(world: World) -> dict[str, dict[str, int]]:
    return {
        name(p): {c["name"]: c["replicas"] for c in p["spec"]["clusters"]} for p in world.hub.objects(scheme.PLACEMENT, NAMESPACE)
    }


async def _world(folder: Path, sites: int, works: int, settings: Settings = SETTINGS) -> World:
    world = World(folder, settings)
    await world.open()
    for number in range(sites):
        await world.join(cluster(f"s{number:04}"))
    await world.until(lambda: all(world.is_ready(s) for s in world.sites), "all sites are ready", 120)
    await world.apply(scheme.NAMESPACE.empty(NAMESPACE))
    for number in range(works):
        obj = workload(replicas=1)
        obj["metadata"]["name"] = f"w{number:04}"
        obj["spec"]["template"]["spec"]["containers"][0].pop("envFrom")
        await world.apply(obj)
    await world.until(lambda: len(world.hub.objects(scheme.PLACEMENT, NAMESPACE)) == works, "all is placed")
    await world.run(4)
    return world


def _lost(world: World, effect: str) -> int:
    found = world.hub.objects(scheme.CLUSTER)
    return sum(any(t.get("effect") == effect for t in c["spec"].get("taints") or ()) for c in found)


async def test_most_sites_vanish_and_nothing_moves(tmp_path: Path) -> None:
    world = await _world(tmp_path, 10, 20)
    try:
        before = await _placed(world)
        for site in list(world.sites.values())[:8]:
            site.line.cut = True
        await world.until(lambda: _lost(world, "NoSchedule") == 8, "eight sites are missed")
        await world.run(60)
        assert _lost(world, "NoExecute") == 0 and await _placed(world) == before
        told = condition(world.hub.objects(scheme.CLUSTER)[0], "Ready") or {}
        assert "most sites vanished together" in told["message"]
        for site in world.sites.values():
            site.line.cut = False
        await world.until(lambda: _lost(world, "NoSchedule") == 0, "all are back")
        await world.run(5)
        assert await _placed(world) == before
    finally:
        await world.close()


async def test_many_that_are_lost_are_looked_at_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaos.controllers.cluster.LOOKS_PER_SECOND", 0.5)
    world = await _world(tmp_path, 10, 0)
    try:
        for site in world.sites.values():
            site.line.cut = True
        await world.until(lambda: _lost(world, "NoSchedule") == 10, "all sites are missed")
        await world.run(20)
        looks = world.hub.manager.metrics["cluster"]["reconciles"]
        await world.run(60)
        assert 20 <= world.hub.manager.metrics["cluster"]["reconciles"] - looks <= 40, "each once in 20 s"
        for site in world.sites.values():
            site.line.cut = False
        await world.until(lambda: all(map(world.is_ready, world.sites)), "who comes back waits for no turn", 15)
    finally:
        await world.close()


async def test_when_most_come_back_the_others_have_a_lease_to_do_so_too(tmp_path: Path) -> None:
    world = await _world(tmp_path, 10, 20)
    try:
        before = await _placed(world)
        sites = list(world.sites.values())
        for site in sites[:8]:
            site.line.cut = True
        await world.until(lambda: _lost(world, "NoSchedule") == 8, "eight sites are missed")
        for site in sites[:6]:
            site.line.cut = False
        await world.until(lambda: all(world.is_ready(s.name) for s in sites[:6]), "six are back")
        await world.run(SETTINGS.lease_duration * 0.5)
        assert _lost(world, "NoExecute") == 0 and await _placed(world) == before
        sites[6].line.cut = False
        await world.until(
            lambda: _lost(world, "NoExecute") == 1, "the one that stays away is replaced", SETTINGS.lease_duration * 4
        )
        assert world.is_ready(sites[6].name)
    finally:
        await world.close()


@pytest.mark.slow
async def test_a_minority_that_vanishes_is_replaced_in_turn(tmp_path: Path) -> None:
    world = await _world(tmp_path, 15, 15)
    try:
        gone = [s for s in world.sites.values() if s.name in {p for places in (await _placed(world)).values() for p in places}][
            :6
        ]
        for site in gone:
            site.line.cut = True
        await world.until(lambda: _lost(world, "NoExecute") == SETTINGS.lost_burst, "the first sites are replaced")
        await world.run(2)
        assert _lost(world, "NoExecute") == SETTINGS.lost_burst and _lost(world, "NoSchedule") == len(gone) - SETTINGS.lost_burst
        seen = []
        for _ in range(len(gone) - SETTINGS.lost_burst):
            await world.run(SETTINGS.lost_interval + 4)
            seen.append(_lost(world, "NoExecute"))
        assert seen == [4, 5, 6], "one after the other"
        missed = {s.name for s in gone}
        assert not any(missed & places.keys() for places in (await _placed(world)).values())
    finally:
        await world.close()


def _resident_mebibytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
async def test_a_thousand_sites_vanish_and_return(tmp_path: Path) -> None:
    began = time.process_time()
    world = await _world(tmp_path, 1000, 50, replace(SETTINGS, lease_duration=40.0))
    try:
        started, memory = time.process_time(), _resident_mebibytes()
        before, writes = await _placed(world), world.hub.disk.writes
        for site in world.sites.values():
            site.line.cut = True
        await world.until(lambda: _lost(world, "NoSchedule") == 1000, "a thousand sites are missed", 120)
        vanished = time.process_time()
        await world.run(20)
        assert _lost(world, "NoExecute") == 0 and await _placed(world) == before
        for site in world.sites.values():
            site.line.cut = False
        await world.until(lambda: _lost(world, "NoSchedule") == 0, "a thousand sites are back", 60)
        await world.run(10)
        assert all(world.is_ready(s) for s in world.sites) and await _placed(world) == before
        more = _resident_mebibytes() - memory
        print(
            f"joined and placed in {started - began:.1f} s, missed in {vanished - started:.1f} s, back and quiet in "
            f"{time.process_time() - vanished:.1f} s of CPU, stand-ins included; {world.hub.disk.writes - writes} writes, "
            f"{more:.0f} MiB more"
        )
        assert more < 150
    finally:
        await world.close()
