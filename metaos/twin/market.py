"""The same decisions with an agent for each site (``pettingzoo``): at each arrival all sites bid, and the best bid that the
filters allow gets the work. For continua of many owners, who learn what their sites should offer.

Needs ``pip install 'nemo-metaos[learning]'``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import ParallelEnv  # type: ignore[import-untyped]

from metaos.scheduler.features import FEATURES, MOST, UNKNOWN
from metaos.twin.bill import Prices
from metaos.twin.decisions import Arrival, Arrivals, Vary, opened, shuffled, site_names
from metaos.twin.story import Scenario

#: From 0, no offer, to this one.
HIGHEST_BID = 10


class SiteMarket(ParallelEnv[str, dict[str, Any], int]):  # type: ignore[misc]
    """Agents are the sites' names. One step is one arrival.

    Observation: ``observation``, the site's own row (``metaos.scheduler.features``), and ``action_mask`` (int8): a site that may
    not have the work can bid 0 only. Action: a bid from 0 to ``HIGHEST_BID``. Reward: what the site earned since the step before,
    minus its emissions and energy, by ``prices``.
    """

    metadata = {"name": "nemo_site_market_v0", "render_modes": []}  # noqa: RUF012  (pettingzoo's own form)

    def __init__(self, scenario: Scenario | str | Path, *, prices: Prices | None = None, vary: Vary = shuffled) -> None:
        self.scenario, self.prices = opened(scenario), prices or Prices()
        self._vary = vary
        self.possible_agents = site_names(self.scenario)
        self.agents: list[str] = []
        self.render_mode = None
        row = spaces.Box(UNKNOWN, MOST, (len(FEATURES),), np.float32)
        mask = spaces.Box(0, 1, (HIGHEST_BID + 1,), np.int8)
        self.observation_spaces = {a: spaces.Dict({"observation": row, "action_mask": mask}) for a in self.possible_agents}
        self.action_spaces = {a: spaces.Discrete(HIGHEST_BID + 1) for a in self.possible_agents}
        self._chance: np.random.Generator | None = None
        self._episode: Arrivals | None = None
        self._arrival: Arrival | None = None
        self._earned: dict[str, float] = {}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        if seed is not None or self._chance is None:
            self._chance, _ = seeding.np_random(seed)
        self.close()
        self._episode = Arrivals(self._vary(self.scenario, self._chance))
        self._arrival = self._episode.next()
        self.agents = list(self.possible_agents) if self._arrival is not None else []
        self._earned = dict.fromkeys(self.possible_agents, 0.0)
        return self._seen(), {a: {} for a in self.possible_agents}

    def step(
        self, actions: dict[str, int]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        if self._episode is None or self._arrival is None:
            raise RuntimeError("the episode has ended: call reset()")
        bids = {site: int(bid) for site, bid in actions.items()}
        for site, bid in bids.items():
            if site not in self.possible_agents or not 0 <= bid <= HIGHEST_BID:
                raise ValueError(f"bid {bid} of {site!r}: must be a site's, from 0 to {HIGHEST_BID}")
        self._episode.wish({site: 100.0 * bid / HIGHEST_BID for site, bid in bids.items()})
        self._arrival = self._episode.next()
        rewards = {}
        for site, bill in self._episode.bills().items():
            earned = self.prices.money * bill.money - self.prices.gram * bill.grams - self.prices.joule * bill.joules
            rewards[site], self._earned[site] = earned - self._earned[site], earned
        over = self._arrival is None
        told = list(self.possible_agents)
        self.agents = [] if over else told
        ended = dict.fromkeys(told, over)
        return self._seen(), rewards, ended, dict.fromkeys(told, False), {a: {} for a in told}

    def render(self) -> None:
        """There is nothing to see: ``PlacementEnv`` renders the same decisions."""

    def close(self) -> None:
        if self._episode is not None:
            self._episode.close()
        self._episode = self._arrival = None

    def _seen(self) -> dict[str, dict[str, Any]]:
        found = {}
        for number, site in enumerate(self.possible_agents):
            mask = np.zeros(HIGHEST_BID + 1, np.int8)
            mask[0] = 1
            if self._arrival is not None and self._arrival.mask[number]:
                mask[:] = 1
            row = np.full(len(FEATURES), UNKNOWN, np.float32) if self._arrival is None else self._arrival.rows[number]
            found[site] = {"observation": row, "action_mask": mask}
        return found
