"""How long something has been wrong that may be wrong for a time, counted only while it could be mended."""

from __future__ import annotations

from collections.abc import Hashable, Iterable


class Overdue:
    """``grace``: seconds. Bounded by what is wrong at one moment."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._counted: dict[str, dict[Hashable, float]] = {}

    def look(self, site: str, wrong: Iterable[Hashable], passed: float, *, reached: bool) -> list[Hashable]:
        """``wrong``: all that is wrong on a site now, so many seconds after the last look. What is overdue by it.
        A site that is not reached has the whole time again when it is back."""
        before = self._counted.pop(site, {})
        if not reached:
            return []
        found = {what: before[what] + passed if what in before else 0.0 for what in wrong}
        if found:
            self._counted[site] = found
        return [what for what, seconds in found.items() if seconds > self._grace >= before.get(what, 0.0)]
