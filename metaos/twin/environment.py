"""Environments for reinforcement learning (``gymnasium``): the twin's real hub carries the actions out.

``PlacementEnv`` asks at each arrival which site shall have the work, ``ScalingEnv`` at fixed times how many replicas there shall
be. Needs ``pip install 'nemo-metaos[learning]'``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metaos.scheduler.features import FEATURES, MOST, UNKNOWN, Rows
from metaos.twin.bill import Prices
from metaos.twin.decisions import Arrival, Arrivals, Vary, opened, shuffled, site_names
from metaos.twin.story import Scenario


class PlacementEnv(gymnasium.Env[Rows, np.int64]):
    """One step is one arrival.

    Observation: float32 (sites, features), ``metaos.scheduler.features``, sites by name; all ``UNKNOWN`` after the last arrival.
    Action: a site's number, or one more: no wish, NEMO's own scores decide. A wish for a site that the filters reject is not
    followed. Reward: minus what everything cost since the step before, by ``prices``. ``info``: ``action_mask`` (int8, 1: may be
    chosen; the last always may), ``workload``, ``seconds``, ``bill`` (sums since the beginning), at the end ``report``.
    ``action_masks()`` is what ``sb3-contrib`` asks for.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012  (gymnasium's own form)

    def __init__(
        self,
        scenario: Scenario | str | Path,
        *,
        prices: Prices | None = None,
        vary: Vary = shuffled,
        render_mode: str | None = None,
    ) -> None:
        self.scenario, self.prices, self.render_mode = opened(scenario), prices or Prices(), render_mode
        self.sites = site_names(self.scenario)
        self._vary = vary
        self.observation_space = spaces.Box(UNKNOWN, MOST, (len(self.sites), len(FEATURES)), np.float32)
        self.action_space = spaces.Discrete(len(self.sites) + 1)
        self._episode: Arrivals | None = None
        self._arrival: Arrival | None = None
        self._paid = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Rows, dict[str, Any]]:
        super().reset(seed=seed)
        self.close()
        self._episode = Arrivals(self._vary(self.scenario, self.np_random))
        self._arrival, self._paid = self._episode.next(), 0.0
        return self._seen(), self._info()

    def step(self, action: np.int64 | int) -> tuple[Rows, float, bool, bool, dict[str, Any]]:
        if self._episode is None or self._arrival is None:
            raise RuntimeError("the episode has ended: call reset()")
        number = int(action)
        if not 0 <= number <= len(self.sites):
            raise ValueError(f"action {number}: must be from 0 to {len(self.sites)}")
        self._episode.wish({} if number == len(self.sites) else {self.sites[number]: 100.0})
        self._arrival = self._episode.next()
        paid = self.prices.of(self._episode.bill)
        reward, self._paid = self._paid - paid, paid
        return self._seen(), reward, self._arrival is None, False, self._info()

    def action_masks(self) -> NDArray[np.bool_]:
        mask = np.zeros(len(self.sites), np.bool_) if self._arrival is None else self._arrival.mask
        return np.append(mask, True)

    def render(self) -> str:
        """What is to be decided, as text."""
        if self._arrival is None:
            return "nothing is to be decided"
        about = self._arrival.workload.ref
        possible = [site for site, may in zip(self.sites, self._arrival.mask, strict=True) if may]
        where = ", ".join(possible) or "no site"
        return f"{self._arrival.seconds:g} s: {about.kind} {about.namespace}/{about.name} may go to {where}"

    def close(self) -> None:
        if self._episode is not None:
            self._episode.close()
        self._episode = self._arrival = None

    def _seen(self) -> Rows:
        if self._arrival is None:
            return np.full((len(self.sites), len(FEATURES)), UNKNOWN, np.float32)
        return self._arrival.rows

    def _info(self) -> dict[str, Any]:
        assert self._episode is not None
        bill = self._episode.bill
        info: dict[str, Any] = {"action_mask": self.action_masks().astype(np.int8), "bill": asdict(bill)}
        if self._arrival is None:
            return info | {"report": self._episode.report}
        about = self._arrival.workload.ref
        return info | {"workload": f"{about.kind} {about.namespace}/{about.name}", "seconds": self._arrival.seconds}
