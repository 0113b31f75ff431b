"""A play in the twin that is looked at through the API, as a real continuum is: what calibration compares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, format_time, name, parse_time
from metaos.twin.clock import Stalled
from metaos.twin.play import Play, perform
from metaos.twin.site import watts
from metaos.twin.story import Scenario, WorkloadText
from metaos.twin.timeline import Observer, Timeline, samples


@dataclass(frozen=True, slots=True)
class Metered:
    """Of one site, from the hub's ledger. ``watts`` and ``grams`` (gCO2eq per hour, by location; ``None``: not known) are means
    over ``seconds``; ``uncertainty``: the part that the energy may be off by, as its meter says; ``basis``: how it is known."""

    seconds: float
    watts: float
    grams: float | None
    uncertainty: float
    basis: tuple[str, ...]
    cpu_seconds: float
    #: Cores in use beside pods, as the power model has it; ``None`` where the site states none.
    own_cores: float | None


@dataclass(frozen=True, slots=True)
class Observed:
    """One side: what was seen, and the sites' figures. ``delay``: seconds one way to the hub, where that was measured."""

    timeline: Timeline
    times: Mapping[str, Mapping[str, float]]
    sites: Mapping[str, Metered] = field(default_factory=dict)
    delay: float | None = None


async def metered(client: Client, clock: Clock, story: Scenario, since: float, until: float) -> dict[str, Metered]:
    """What the ledger has of the sites between two moments (seconds since the epoch), in whole periods, once it has it: it is
    waited for, three periods at most. A site that nothing was booked of by then is left out."""
    period = story.timing.metering
    first, end = math.ceil(since / period) * period, int(until // period) * period
    if end <= first:
        return {}
    spec = {"by": "site", "system": True, "since": format_time(first), "until": format_time(end)}
    deadline = clock.monotonic() + (until - clock.now()) + 3 * period
    while True:
        try:
            answer = await client.create({**scheme.STATEMENT.empty(""), "spec": spec})
        except ApiError as error:
            if error.code != 503 or clock.monotonic() >= deadline:
                raise
            await clock.sleep(1.0)
            continue
        groups = {group["key"][0]: group for group in answer["status"]["groups"]}
        done = len(groups) == len(story.sites) and all(parse_time(group["end"]) >= end for group in groups.values())
        if done or clock.monotonic() >= deadline:
            sites = {name(text.obj): text.obj for text in story.sites}
            return {site: _metered(group, sites[site]) for site, group in sorted(groups.items())}
        await clock.sleep(1.0)


def _metered(group: Mapping[str, Any], site: Obj) -> Metered:
    seconds = parse_time(group["end"]) - parse_time(group["start"])
    power, cpu = float(group["energyKWh"]) * 3.6e6 / seconds, float(group["cpuHours"]) * 3600
    grams = group["operationalGrams"]["location"]
    return Metered(
        seconds,
        power,
        None if grams is None else float(grams) * 3600 / seconds,
        float(group["energyUncertainty"] or 0.0),
        tuple(sorted(group["energyKWhByBasis"])),
        cpu,
        _own_cores(site, power, cpu / seconds),
    )


def _own_cores(site: Obj, power: float, pods: float) -> float | None:
    """From mean power, without the building's share, which meters leave out, and the cores that pods use."""
    bare = {**site, "spec": {**site["spec"], "electricity": {}}}
    idle, core = watts(bare, 0.0), (watts(bare, 1.0) - watts(bare, 0.0)) * 1000
    return (power - idle) / core - pods if core else None


class ObservedPlay(Play):
    """``found`` is there after the end."""

    found: Observed
    _observer: Observer
    _epoch: float

    async def _prepare(self) -> None:
        world = self.world
        self._observer = Observer(world.admin, world.clock, world.chance("observer"), self.scenario.workloads)
        await self._observer.start()
        self._epoch = world.clock.now()
        await super()._prepare()

    async def _begin(self, text: WorkloadText) -> None:
        self._observer.did("applied", text.name, text.replicas)
        await super()._begin(text)

    async def _delete(self, workload: str) -> None:
        self._observer.did("deleted", workload)
        await super()._delete(workload)

    async def _scale(self, workloads: dict[str, int]) -> None:
        for workload, replicas in workloads.items():
            self._observer.did("scaled", workload, replicas)
        await super()._scale(workloads)

    async def _stop(self, sites: list[str], *, power: bool) -> None:
        for site in sites:
            self._observer.did("failed", site)
        await super()._stop(sites, power=power)

    async def _start(self, sites: list[str]) -> None:
        for site in sites:
            self._observer.did("started", site)
        await super()._start(sites)

    async def _kill(self, seconds: float) -> None:
        self._observer.did("hubKilled", "hub")
        await super()._kill(seconds)

    async def _restart(self) -> None:
        self._observer.did("hubStarted", "hub")
        await super()._restart()
        self._observer.did("hubAnswered", "hub")

    def stalled(self, why: str) -> dict[str, Any]:
        """What was not played to its end was not observed."""
        raise Stalled(why)

    async def _over(self) -> None:
        story, observer = self.scenario, self._observer
        await observer.stop()
        sites = await metered(self.world.admin, self.world.clock, story, self._epoch, self._epoch + story.duration)
        times = samples(observer.timeline)
        self.found = Observed(observer.timeline, times, sites)


def observed(story: Scenario) -> Observed:
    """What was seen of a play in the twin."""
    return perform(lambda loop, folder: ObservedPlay(loop, story, folder))[0].found
