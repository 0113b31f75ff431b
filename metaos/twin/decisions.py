"""A play that asks at each arrival where the work shall go. Of what is asked the environments for learning are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from metaos.controllers.planning import Planner
from metaos.plugins.registry import load_all
from metaos.resources.snapshot import Snapshot, WorkloadInfo
from metaos.scheduler import columns
from metaos.scheduler.features import Rows, observe
from metaos.scheduler.filters import FILTERS
from metaos.scheduler.framework import MUST_LEAVE
from metaos.scheduler.planning import Changes
from metaos.scheduler.ranking import Ranking
from metaos.scheduler.scores import SCORES
from metaos.scheduler.world import World
from metaos.twin.bill import Bill
from metaos.twin.clock import VirtualLoop
from metaos.twin.metered import Metered
from metaos.twin.play import Play, with_chaos
from metaos.twin.scenario import load
from metaos.twin.session import Ask, Session
from metaos.twin.steering import WEIGHT, Steering
from metaos.twin.story import Scenario, WorkloadText

#: Another scenario for each episode, from chance that the environment was seeded with.
Vary: TypeAlias = Callable[[Scenario, np.random.Generator], Scenario]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A workload that is about to be applied. ``rows``: see ``metaos.scheduler.features``; ``mask``: where all of it may go now,
    by the filters that are installed and by room. Both in the order of the sites' names."""

    workload: WorkloadInfo
    seconds: float
    rows: Rows
    mask: NDArray[np.bool_]


#: Points by site; none: NEMO decides.
Wish: TypeAlias = Mapping[str, float]


class Arrivals:
    """One episode: ``next()`` plays on until something arrives, ``wish()`` says where it shall go. ``weight``: of wishes, beside
    the other scores. To be closed."""

    def __init__(self, scenario: Scenario, weight: float = WEIGHT) -> None:
        self._steering, self._weight = Steering(), weight
        self._scenario = with_chaos(scenario)
        self._session: Session[Arrival, Wish] = Session(self._make)

    def _make(self, loop: VirtualLoop, folder: Path, ask: Ask[Arrival, Wish]) -> Play:
        self.play = _Asking(loop, self._scenario, folder, ask, self._steering, self._weight)
        return self.play

    def next(self) -> Arrival | None:
        """``None`` at the end."""
        return self._session.until_asked()

    def wish(self, wish: Wish) -> None:
        self._session.answer(wish)

    @property
    def bill(self) -> Bill:
        """Of all until now."""
        return self.play.bill

    def bills(self) -> Mapping[str, Bill]:
        """By site, until now."""
        if self.play.meter is None:
            return {}
        self.play.meter.settle()
        return self.play.meter.of_site

    @property
    def report(self) -> dict[str, object]:
        """As ``nemo twin run`` gives it, at the end."""
        return self._session.report

    def close(self) -> None:
        self._session.close()


class _Asking(Metered):
    def __init__(
        self, loop: VirtualLoop, scenario: Scenario, folder: Path, ask: Ask[Arrival, Wish], steering: Steering, weight: float
    ) -> None:
        super().__init__(loop, scenario, folder, scores=(steering.score(weight),))
        self._ask, self._steering = ask, steering
        self._filters = load_all("metaos.filter", [name for name, _ in FILTERS])

    async def _begin(self, text: WorkloadText) -> None:
        # A hub that is away decides nothing, so nothing is asked.
        if self.world.hub.up and (arrival := await self._arrival(text)) is not None:
            assert self.meter is not None
            self.meter.want(arrival.workload)
            self._steering.tell(arrival.workload.ref, await self._ask(arrival))
        await super()._begin(text)

    async def _delete(self, workload: str) -> None:
        for text in self.scenario.workloads:
            if text.name == workload and self.meter is not None:
                self.meter.forget(text.ref)
        await super()._delete(workload)

    async def _arrival(self, text: WorkloadText) -> Arrival | None:
        hub = self.world.hub
        assert hub.manager is not None
        planner = Planner(hub.manager, self.world.hub_clock, hub.settings)
        asked = await planner.supposed(text.objects, Changes())
        found = next((w for w in asked.workloads if w.ref == text.ref), None)
        if found is None:
            return None
        world = World.of(asked.snapshot.clusters)
        ranking = Ranking(Snapshot(asked.snapshot.now, world), found, self._filters, SCORES, MUST_LEAVE, endures=False)
        mask = world.at(c.name for c in ranking.feasible)
        mask &= columns.room(found, world) >= (found.replicas if found.mode == "Whole" else 1)
        return Arrival(found, self.world.now - self._begun, observe(found, world), mask)


def shuffled(scenario: Scenario, chance: np.random.Generator) -> Scenario:
    """The same workloads, each arriving when another one did, so that an order cannot be learned by heart."""
    order = chance.permutation(len(scenario.workloads))
    times = [scenario.workloads[int(n)].at for n in order]
    moved = [
        replace(text, at=at, until=None if text.until is None else min(scenario.duration, text.until - text.at + at))
        for text, at in zip(scenario.workloads, times, strict=True)
    ]
    seed = int(chance.integers(2**31))
    return replace(scenario, workloads=tuple(sorted(moved, key=lambda text: text.at)), seed=seed)


def as_it_is(scenario: Scenario, chance: np.random.Generator) -> Scenario:
    """No variation but the seed: of delays, ids, back-off and chaos."""
    return scenario.with_seed(int(chance.integers(2**31)))


def opened(scenario: Scenario | str | Path) -> Scenario:
    """Raises ``ScenarioError``."""
    return scenario if isinstance(scenario, Scenario) else load(Path(scenario))


def site_names(scenario: Scenario) -> list[str]:
    return sorted(str(site.obj["metadata"]["name"]) for site in scenario.sites)
