"""A play whose costs are summed while it goes on. What environments for learning have in common."""

from __future__ import annotations

from metaos.twin.bill import Bill, Meter
from metaos.twin.play import Play


class Metered(Play):
    """``meter`` is there once all sites have joined."""

    meter: Meter | None = None

    @property
    def bill(self) -> Bill:
        """Of all until now."""
        return self.meter.total if self.meter is not None else Bill()

    async def _prepare(self) -> None:
        self.meter = Meter(self.world.sites.values(), self.world.clock.now, self.intensity)
        self.world.on_site.append(self._account)
        await super()._prepare()

    def _account(self, _: str) -> None:
        assert self.meter is not None
        self.meter.changed()
