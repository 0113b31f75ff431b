"""The watchdog of a simulated site: at a deadline it ends what must not run twice, whether the site's agent runs or not.

It stands for the program ``metaos/runtimes/watchdog.py``, and is as late as that may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

REACTION_SECONDS = 0.5


class SimulatedWatchdog:
    """``end`` kills what runs of a pod, by its uid. Times are those of the running loop, which is virtual."""

    def __init__(self, end: Callable[[str], None]) -> None:
        self._end = end
        self._renewed = float("-inf")
        self._limits: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def renewed(self) -> float:
        return self._renewed

    async def fence(self, renewed: float, limits: Mapping[str, float]) -> None:
        self._limits = dict(limits)
        if limits:
            self._renewed = renewed
            self._arm()

    def is_due(self, uid: str) -> bool:
        limit = self._limits.get(uid)
        return limit is not None and asyncio.get_running_loop().time() >= self._renewed + limit

    def power_off(self) -> None:
        """Another run of the machine knows nothing of this one."""
        self._renewed, self._limits = float("-inf"), {}

    def _arm(self) -> None:
        """One timer, for the earliest deadline; one that has been put off is found when it fires."""
        when = self._renewed + min(self._limits.values()) + REACTION_SECONDS
        if self._timer is None or when < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer = None
        for uid in [uid for uid in self._limits if self.is_due(uid)]:
            del self._limits[uid]
            self._end(uid)
        if self._limits:
            self._arm()
