"""Runs the plain-text scenarios in ``failing/``: what happens to work when sites, links, clocks and the hub fail.

A scenario has ``title``, ``sites`` (name → spec), ``workload`` (``kind``, ``replicas``), optionally ``intents`` (targets) and
``policy``, a ``story`` and what holds ``always``. Steps of a story, one key each: ``cut`` and ``mend`` (links of sites),
``change`` (site → spec), ``kill hub`` (seconds that it stays away), ``hub clock`` (seconds that it jumps), ``wait`` (seconds),
and ``until``, which says what must come about: ``runs on`` (everything about the workload is there and nothing elsewhere),
``ready`` (copies by site, as they truly run), ``decided`` (replicas by site), ``lost`` (sites); ``within`` bounds the wait.
``always``: ``copies at most``, ``ready at least`` (on sites that are reached), ``ready somewhere at least``, ``served``,
``never on``. Agents are stand-ins, the hub is real, time is virtual.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaos.resources import scheme
from metaos.resources.meta import name
from tests.failing.world import World, change, cluster, intent, policy, secret, service, workload

SCENARIOS = sorted((Path(__file__).parent / "failing").glob("*.yaml"))


def holds(world: World, wanted: dict[str, Any]) -> bool:
    checks: dict[str, Callable[[Any], bool]] = {
        "runs on": lambda sites: world.settled(*sites),
        "ready": lambda copies: world.ready() == copies,
        "decided": lambda replicas: world.placed() == replicas,
        "lost": lambda sites: sorted(s for s in world.sites if not world.is_ready(s)) == sorted(sites),
    }
    return all(checks[what](value) for what, value in wanted.items())


async def step(world: World, what: str, value: Any, within: float) -> None:
    if what == "until":
        await world.until(lambda: holds(world, value), str(value), within)
    elif what == "wait":
        await world.run(value)
    elif what in ("cut", "mend"):
        for site in value:
            world.sites[site].line.cut = what == "cut"
    elif what == "change":
        for site, spec in value.items():
            await change(world, site, **spec)
    elif what == "kill hub":
        world.downtime_seconds = value
        world.hub.arm(0)
        await world.run(0.25)
    elif what == "hub clock":
        world.clock.offset += value
    else:
        raise ValueError(f"{what!r} is no step of a story")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.stem)
async def test_scenario(path: Path, tmp_path: Path) -> None:
    story = yaml.safe_load(path.read_text())
    world = World(tmp_path)
    await world.open()
    try:
        for site, spec in story["sites"].items():
            await world.join(cluster(site, **(spec or {})))
        await world.until(lambda: all(world.is_ready(s) for s in world.sites), "all sites are ready")
        await world.apply(scheme.NAMESPACE.empty("shop"), secret(), service())
        await world.apply(*[intent(*story["intents"])] if story.get("intents") else [])
        await world.apply(*[policy(**story["policy"])] if story.get("policy") else [])
        await world.apply(workload(**story["workload"]))
        for number, told in enumerate(story["story"]):
            within = told.pop("within", 60.0)
            ((what, value),) = told.items()
            await step(world, what, value, within)
            if number == 0:
                world.checks += list(always(world, story.get("always") or {}))
        await world.run(3)
        written = await world.ever_written()
        for site in (story.get("always") or {}).get("never on") or ():
            there = {k for k in written if k.startswith(f"works.meta-os.eu/nemo-cluster-{site}/")}
            assert not any(".web" in k or ".key" in k for k in there), there
        told_of = [e["reason"] for e in world.hub.objects(scheme.EVENT, "shop") if e["involvedObject"]["name"] == "web"]
        assert set(story.get("events") or ()) <= set(told_of), told_of
        reason = next((p["spec"]["reason"] for p in world.hub.objects(scheme.PLACEMENT) if name(p).endswith("web")), "")
        assert story.get("reason", "") in reason
    finally:
        await world.close()


def always(world: World, wanted: dict[str, Any]) -> list[Callable[[], str]]:
    """From the first step on."""
    checks: dict[str, Callable[[Any], Callable[[], str]]] = {
        "copies at most": world.at_most,
        "ready at least": world.at_least,
        "ready somewhere at least": world.somewhere,
        "served": lambda _: world.served,
        "never on": lambda _: lambda: "",
    }
    return [checks[what](value) for what, value in wanted.items()]


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 8
