"""What a story is measured by: power, carbon, copies and sites, sampled over its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaos.accounting.carbon import StaticCarbonSource, TraceCarbonSource, grams
from metaos.twin.site import Site, states_power, watts
from metaos.twin.world import World


class Figures:
    """``series``: the samples. ``now``: seconds of the story. ``off``: whether a site's agent is stopped."""

    def __init__(
        self,
        world: World,
        carbon: StaticCarbonSource | TraceCarbonSource,
        now: Callable[[], float],
        off: Callable[[str], bool],
    ) -> None:
        self._world, self._carbon, self._now, self._off = world, carbon, now, off
        self.series: list[dict[str, float]] = []
        self._joules = self._grams = 0.0
        #: Of each site (watts, copies, copies that serve), until something there changes.
        self._figures: dict[str, tuple[float, int, int]] = {}
        world.on_site.append(self._changed)

    def _changed(self, site: str) -> None:
        self._figures.pop(site, None)

    def sample(self) -> None:
        """One more, as of now."""
        world = self._world
        power = emitted = 0.0
        busy = ready = total = 0
        now, clean = world.clock.now(), dict[tuple[str, float], float]()
        for site in world.sites.values():
            figures = self._figures.get(site.name) or self._figures_of(site)
            used = 0.0 if self._off(site.name) and not figures[1] else figures[0]
            power += used
            electricity = (site.obj.get("spec") or {}).get("electricity") or {}
            where = str(electricity.get("zone") or ""), float(electricity.get("carbonIntensity") or 0.0)
            if where not in clean:
                # Many sites are in one zone.
                clean[where] = self.intensity(site, now)
            emitted += grams(used, clean[where], 3600.0)
            total += figures[1]
            ready += figures[2]
            busy += not site.line.cut
        if self.series:
            passed = self._now() - self.series[-1]["seconds"]
            self._joules += self.series[-1]["watts"] * passed
            self._grams += self.series[-1]["gramsPerHour"] * passed / 3600
        self.series.append(
            {
                "seconds": round(self._now(), 3),
                "sitesReached": busy,
                "sitesReady": sum(map(world.is_ready, world.sites)) if world.hub.up else 0,
                "copies": total,
                "copiesReady": ready,
                "watts": round(power, 3),
                "gramsPerHour": round(emitted, 3),
                "writes": world.hub.disk.writes,
            }
        )

    def _figures_of(self, site: Site) -> tuple[float, int, int]:
        copies = site.copies()
        found = watts(site.obj, site.busy_milli()), len(copies), sum(copy.ready for copy in copies)
        self._figures[site.name] = found
        return found

    def intensity(self, site: Site, now: float | None = None) -> float:
        """gCO2eq/kWh, now unless said otherwise."""
        electricity = (site.obj.get("spec") or {}).get("electricity") or {}
        found = self._carbon.intensity(str(electricity.get("zone") or ""), self._world.clock.now() if now is None else now)
        return float(found[0] if found else electricity.get("carbonIntensity") or 0.0)

    def energy(self) -> dict[str, Any]:
        """Of all until the last sample."""
        powered = sum(states_power(site.obj) for site in self._world.sites.values())
        return {
            "kilowattHours": round(self._joules / 3.6e6, 6),
            "gramsCO2e": round(self._grams, 3),
            "model": "the sites'",
            "sitesWithPower": powered,
            "sitesWithoutPower": len(self._world.sites) - powered,
        }
