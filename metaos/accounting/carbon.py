"""Carbon intensity and grams. Pure: the caller passes the clock and the texts.

Units: gCO2eq/kWh, watts, seconds, grams. Arithmetic after the Green Software Foundation's Software Carbon Intensity
(ISO/IEC 21031): operational emissions are energy times intensity; embodied ones are added per hour of use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metaos.accounting.trace import FORECAST_HOURS, HOUR_SECONDS, HourlyTrace
from metaos.plugins.points import FRESH, UNKNOWN, CarbonSource

__all__ = ["FORECAST_HOURS", "HOUR_SECONDS", "StaticCarbonSource", "TraceCarbonSource", "grams"]
#: The dirtiest electricity there is has about 1,200.
MOST_GRAMS = 5000.0


def grams(watts: float, intensity: float, seconds: float) -> float:
    """Operational emissions of a constant power."""
    return watts / 1000 * intensity * seconds / HOUR_SECONDS


class StaticCarbonSource(CarbonSource):
    """What sites state themselves; there is no forecast beyond "as now"."""

    lasting = True

    def __init__(self, zones: Mapping[str, float] | None = None) -> None:
        self._zones = dict(zones or {})

    def intensity(self, zone: str, now: float) -> Sequence[float] | None:
        found = self._zones.get(zone)
        return None if found is None else [found]

    def describe(self) -> str:
        return "stated by the sites"


class TraceCarbonSource(HourlyTrace, CarbonSource):
    """Replays an hourly table of gCO2eq/kWh."""

    what, unit, most = "carbon trace", "gCO2eq/kWh", MOST_GRAMS
    lasting = True

    def intensity(self, zone: str, now: float) -> Sequence[float] | None:
        return self.ahead(zone, now)

    def step(self, zone: str, now: float) -> tuple[str, float | None]:
        """A replay is as fresh as ever, of the zones that it has."""
        return FRESH if self.knows(zone) else UNKNOWN, None
