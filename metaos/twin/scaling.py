"""An environment for reinforcement learning (``gymnasium``): how many replicas shall serve a demand that comes and goes.

The demand, and what of it is served, is a model: each ready replica on a site that is reached serves so many requests a second,
the rest is lost. Where replicas run, how long they take to start and what happens to them is the twin's. Needs
``pip install 'nemo-metaos[learning]'``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metaos.resources.reading import workload_info
from metaos.twin.bill import Bill, Prices
from metaos.twin.clock import VirtualLoop
from metaos.twin.decisions import Vary, as_it_is, opened
from metaos.twin.metered import Metered
from metaos.twin.play import with_chaos
from metaos.twin.session import Ask, Session
from metaos.twin.story import Scenario, WorkloadText

Floats32 = NDArray[np.float32]
#: Requests a second at each of so many times, from chance.
Demand = Callable[[int, np.random.Generator], NDArray[np.float64]]
DAY = 86_400.0


def daily(mean: float = 100.0, swing: float = 0.8, noise: float = 0.1, period: int = 24) -> Demand:
    """A sine over ``period`` steps beginning anywhere in it, times noise that is lognormal with this deviation."""

    def draw(steps: int, chance: np.random.Generator) -> NDArray[np.float64]:
        phase = chance.uniform(0, 2 * math.pi)
        wave = 1 + swing * np.sin(2 * math.pi * np.arange(steps) / period + phase)
        return mean * wave * np.exp(chance.normal(0.0, noise, steps))

    return draw


class _Scaled(Metered):
    """Asks every so many seconds."""

    def __init__(
        self, loop: VirtualLoop, scenario: Scenario, folder: Path, ask: Ask[int, int], every: float, subject: WorkloadText
    ) -> None:
        super().__init__(loop, scenario, folder)
        self._ask, self._every, self.subject = ask, every, subject
        #: What it served since it was asked last: ready replicas times seconds.
        self.ready_seconds = 0.0
        self._ready = 0
        self._since = 0.0

    async def _prepare(self) -> None:
        self._since = self.world.now
        await super()._prepare()
        assert self.meter is not None
        obj = next(o for o in self.subject.objects if o["kind"] == self.subject.kind.kind)
        self.meter.want(workload_info(obj))
        for number in range(int(self.scenario.duration // self._every)):
            self._at(number * self._every, "", partial(self._question, number))

    def _account(self, site: str) -> None:
        super()._account(site)
        self.settle()
        sites = self.world.sites
        copies = (c for c in self.world.copies() if c.owner == self.subject.ref)
        self._ready = sum(c.ready and not sites[c.site].line.cut for c in copies)

    def settle(self) -> None:
        now = min(self.world.now, self._begun + self.scenario.duration)
        self.ready_seconds += self._ready * (now - self._since)
        self._since = now

    @property
    def ready(self) -> int:
        return self._ready

    async def _question(self, number: int) -> None:
        self.settle()
        await self._scale({self.subject.name: await self._ask(number)})
        self.ready_seconds = 0.0


class ScalingEnv(gymnasium.Env[Floats32, np.int64]):
    """One step is ``every`` seconds.

    Observation, float32 (7): replicas and ready ones as shares of the most, demand of the last step and its change as shares of
    what the most serve, the mean carbon intensity over 500, and the time of day as sine and cosine. Action: ``steps`` fewer to
    ``steps`` more replicas (the middle one: as many). Reward: minus what everything cost by ``prices``, and ``lost`` for each
    request that was not served. ``info``: ``action_mask`` (within ``least`` and ``most``), ``replicas``, ``lost``, ``bill``, and
    at the end ``report``.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (gymnasium's own form)

    def __init__(
        self,
        scenario: Scenario | str | Path,
        workload: str,
        *,
        demand: Demand | None = None,
        per_replica: float = 25.0,
        every: float = 300.0,
        least: int = 1,
        most: int = 10,
        steps: int = 2,
        lost: float = 1e-5,
        prices: Prices | None = None,
        vary: Vary = as_it_is,
    ) -> None:
        self.scenario, self.prices, self.lost = opened(scenario), prices or Prices(waiting=0.0), lost
        found = [text for text in self.scenario.workloads if text.name == workload and text.kind.kind == "Deployment"]
        if not found:
            known = ", ".join(sorted(w.name for w in self.scenario.workloads if w.kind.kind == "Deployment")) or "none"
            raise ValueError(f"workload {workload!r} is no Deployment of the scenario: there are {known}")
        if not (0 < least <= most and steps > 0 and per_replica > 0 and 0 < every <= self.scenario.duration):
            raise ValueError(
                "least, most, steps, per_replica and every must be above 0, least at most most, every within the duration"
            )
        self._subject, self._demand, self._vary = found[0], demand or daily(), vary
        self._per, self._every, self._least, self._most, self._steps = per_replica, every, least, most, steps
        self.observation_space = spaces.Box(-10.0, 10.0, (7,), np.float32)
        self.action_space = spaces.Discrete(2 * steps + 1)
        self._session: Session[int, int] | None = None
        self._play: _Scaled | None = None
        self._step: int | None = None
        self._wanted: NDArray[np.float64] = np.zeros(0)
        self._replicas, self._paid = 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats32, dict[str, Any]]:
        super().reset(seed=seed)
        self.close()
        scenario = with_chaos(self._vary(self.scenario, self.np_random))
        self._wanted = self._demand(int(scenario.duration // self._every), self.np_random)
        if len(self._wanted) == 0 or not np.all(np.isfinite(self._wanted)) or np.any(self._wanted < 0):
            raise ValueError("demand: must be finite numbers of requests a second, none below 0")
        self._replicas, self._paid = self._subject.replicas, 0.0

        def make(loop: VirtualLoop, folder: Path, ask: Ask[int, int]) -> _Scaled:
            self._play = _Scaled(loop, scenario, folder, ask, self._every, self._subject)
            return self._play

        self._session = Session(make)
        self._step = self._session.until_asked()
        return self._seen(), self._info(0.0)

    def step(self, action: np.int64 | int) -> tuple[Floats32, float, bool, bool, dict[str, Any]]:
        if self._session is None or self._play is None or self._step is None:
            raise RuntimeError("the episode has ended: call reset()")
        number = int(action)
        if not 0 <= number <= 2 * self._steps:
            raise ValueError(f"action {number}: must be from 0 to {2 * self._steps}")
        asked = self._wanted[self._step] * self._every
        self._replicas = min(self._most, max(self._least, self._replicas + number - self._steps))
        self._session.answer(self._replicas)
        self._step = self._session.until_asked()
        self._play.settle()
        served = self._play.ready_seconds * self._per
        missed = max(0.0, asked - served)
        paid = self.prices.of(self._bill())
        reward, self._paid = self._paid - paid - self.lost * missed, paid
        return self._seen(), reward, self._step is None, False, self._info(missed)

    def action_masks(self) -> NDArray[np.bool_]:
        after = self._replicas + np.arange(-self._steps, self._steps + 1)
        mask: NDArray[np.bool_] = (after >= self._least) & (after <= self._most)
        return mask if mask.any() else after == self._replicas

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = self._play = None
        self._step = None

    def _bill(self) -> Bill:
        return self._play.bill if self._play is not None else Bill()

    def _seen(self) -> Floats32:
        assert self._play is not None
        now = len(self._wanted) if self._step is None else self._step
        whole = self._most * self._per
        last, before = (self._wanted[now - 1] if now else 0.0), (self._wanted[now - 2] if now > 1 else 0.0)
        world = self._play.world
        mean = np.mean([self._play.intensity(site) for site in world.sites.values()])
        angle = 2 * math.pi * (world.clock.now() % DAY) / DAY
        ready = self._play.ready / self._most
        seen = [self._replicas / self._most, ready, last / whole, (last - before) / whole, mean / 500.0]
        return np.clip([*seen, math.sin(angle), math.cos(angle)], -10.0, 10.0).astype(np.float32)

    def _info(self, missed: float) -> dict[str, Any]:
        assert self._session is not None
        info: dict[str, Any] = {
            "action_mask": self.action_masks().astype(np.int8),
            "replicas": self._replicas,
            "lost": missed,
            "bill": asdict(self._bill()),
        }
        if self._step is None:
            return info | {"report": self._session.report}
        return info
