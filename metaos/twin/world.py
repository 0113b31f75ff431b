"""A continuum in virtual time: the real hub, its disk, its sites and the lines between them, and a log of everything.

Same seed, same scenario, same program: the same log, byte for byte. Every write to the store and every change of what runs
is a line of it; who wants to judge them at once subscribes (``on_write``, ``on_site``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import TextIO

from metaos.controllers.settings import Settings
from metaos.plugins.points import CarbonSource
from metaos.resources import scheme
from metaos.resources.meta import Obj, cluster_namespace, is_true, name
from metaos.scheduler.scores import Score
from metaos.store.log import EventType, LogEvent
from metaos.twin.administrator import Administrator
from metaos.twin.agentsite import AgentSite
from metaos.twin.clock import EPOCH, VirtualClock, VirtualLoop
from metaos.twin.hub import ADMIN, Hub, unsigned
from metaos.twin.lightsite import LightSite
from metaos.twin.network import Line, Quality
from metaos.twin.site import Copy, Ground, Site
from metaos.twin.timing import Timing

#: Revisions of the store that are kept. The watch cache wants 10,000 at a start.
HISTORY = 12_000


class World(Administrator):
    """``folder`` holds the data directories of sites with real agents; a world of light sites needs none."""

    clock: VirtualClock

    def __init__(
        self,
        loop: VirtualLoop,
        seed: int,
        timing: Timing,
        *,
        folder: Path | None = None,
        carbon: CarbonSource | None = None,
        epoch: float = EPOCH,
        log: TextIO | None = None,
        scores: tuple[Score, ...] = (),
    ) -> None:
        self.seed, self.timing = seed, timing
        self.clock = VirtualClock(loop, epoch)
        settings = Settings(
            sign=unsigned,
            carbon=carbon,
            lease_duration=timing.lease,
            drain=timing.drain,
            fencing_after=timing.fencing_after,
            fencing_margin=timing.fencing_margin,
            scores=scores,
        )
        self.hub_clock = self.clock.skewed(0.0)
        self.hub = Hub(self.hub_clock, self.chance("hub"), settings, HISTORY)
        self.hub.disk.write_seconds = timing.write
        self.admin = Line(self.hub, "", self.clock, self.chance("admin"), Quality(delay=0.0))
        self.admin.user = ADMIN
        self.sites: dict[str, Site] = {}
        self.on_write: list[Callable[[LogEvent], None]] = []
        self.on_site: list[Callable[[str], None]] = []
        self.on_crash: list[Callable[[str], None]] = []
        self._folder, self._log = folder, log
        self._digest = hashlib.sha256()
        self.lines = 0
        self._stamp: tuple[float, str] = -1.0, ""
        self.hub.disk.store.on_event = self._written

    def chance(self, what: str) -> Random:
        """A source of its own for each part, so that one more draw in one does not change the others."""
        return Random(f"{self.seed}/{what}")  # noqa: S311

    @property
    def digest(self) -> str:
        """SHA-256 of the log so far."""
        return self._digest.hexdigest()

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.clock.monotonic()

    # -- the log ---------------------------------------------------------------------------------------------

    def note(self, what: str, text: str) -> None:
        """One line: when, what, and about what."""
        now = self.now
        if now != self._stamp[0]:
            self._stamp = now, f"{now:.6f}"
        line = f"{self._stamp[1]} {what} {text}\n"
        self._digest.update(line.encode())
        self.lines += 1
        if self._log is not None:
            self._log.write(line)

    def _written(self, event: LogEvent) -> None:
        value = "" if event.type is EventType.DELETE else hashlib.sha256(event.value).hexdigest()[:16]
        self.note(event.type.value, f"{event.revision} {event.key} {value}")
        for told in self.on_write:
            told(event)

    def _site_changed(self, site: str) -> None:
        if site in self.sites:
            for told in self.on_site:
                told(site)

    def _crashed(self, site: str) -> None:
        for told in self.on_crash:
            told(site)

    # -- life ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        await self.hub.start()

    async def close(self) -> None:
        for site in self.sites.values():
            await site.stop()
        if self.hub.store is not None:
            await self.hub.kill()

    async def join(self, obj: Obj, fidelity: str = "light", quality: Quality | None = None, offset: float = 0.0) -> Site:
        """A new member, as if it had a join token. ``offset``: how wrong its wall clock is."""
        clock = self.clock.skewed(offset)
        ground = Ground(
            self.hub,
            clock,
            self.chance(name(obj)),
            self.timing,
            quality or Quality(),
            self._site_changed,
            self._crashed,
        )
        await self.hub.client.create(obj)
        site: Site
        if fidelity == "agent":
            if self._folder is None:
                raise ValueError("a world with real agents needs a folder for their data directories")
            site = AgentSite(obj, ground, self._folder / name(obj))
        else:
            site = LightSite(obj, ground)
        self.sites[name(obj)] = site
        site.start()
        return site

    async def run(self, seconds: float) -> None:
        await self.clock.sleep(seconds)

    async def until(self, holds: Callable[[], bool], seconds: float, step: float = 1.0) -> bool:
        """Whether it came about in time."""
        end = self.now + seconds
        while self.now < end:
            if self.hub.up and holds():
                return True
            await self.clock.sleep(step)
        return self.hub.up and holds()

    # -- what is ---------------------------------------------------------------------------------------------

    def copies(self) -> list[Copy]:
        """What truly runs, everywhere."""
        return [copy for site in self.sites.values() for copy in site.copies()]

    def is_ready(self, site: str) -> bool:
        """Whether the hub believes it."""
        return is_true(self.hub.seen(scheme.CLUSTER, site) or {}, "Ready")

    def works(self, site: str) -> list[Obj]:
        return self.hub.objects(scheme.WORK, cluster_namespace(site))

    def placed(self, kind: str, namespace: str, workload: str) -> dict[str, int]:
        """Site → replicas, as decided."""
        found = self.hub.find(scheme.PLACEMENT, f"{kind.lower()}-{workload}", namespace) or {}
        return {c["name"]: int(c["replicas"]) for c in (found.get("spec") or {}).get("clusters") or ()}
