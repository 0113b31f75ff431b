"""Prices of on-demand capacity by the hour. Pure: the caller passes the clock and the lines. Per CPU and hour, in the currency of
each site's price list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metaos.accounting.trace import HourlyTrace
from metaos.plugins.points import PriceSource


class StaticPriceSource(PriceSource):
    """Prices that stay as they are; of sites that are not named, what they state themselves holds."""

    def __init__(self, prices: Mapping[str, float] | None = None) -> None:
        self._prices = dict(prices or {})

    def price(self, site: str, zone: str, now: float) -> Sequence[float] | None:
        found = self._prices.get(site, self._prices.get(zone))
        return None if found is None else [found]

    def describe(self) -> str:
        return "a fixed price list"


class TracePriceSource(HourlyTrace, PriceSource):
    """Replays an hourly table of prices, with a column for each site or electricity zone; a site's own goes before its zone's."""

    what, unit, most = "price trace", "the currency a CPU hour", 1000.0

    def price(self, site: str, zone: str, now: float) -> Sequence[float] | None:
        return self.ahead(site, now) or self.ahead(zone, now)
