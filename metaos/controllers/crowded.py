"""Who would be better off at sites that have no room for it now: looked at again where some becomes free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metaos.resources.meta import ObjectRef

#: Of those that want to be at a site, so many are looked at when room becomes free there: in turn, as what is enough for one may
#: not do for another.
LOOKED_AT = 8


class Crowded:
    """Bounded by the workloads, and ``metaos.scheduler.framework.CROWDED_KEPT`` sites each."""

    def __init__(self) -> None:
        self._wants: dict[ObjectRef, tuple[str, ...]] = {}
        self._at: dict[str, dict[ObjectRef, None]] = {}

    def note(self, about: ObjectRef, sites: Sequence[str]) -> None:
        """``sites``: where it would be, were there room; none: it is where it would be."""
        before = self._wants.pop(about, ())
        for site in before:
            if site not in sites:
                here = self._at[site]
                del here[about]
                if not here:
                    del self._at[site]
        for site in sites:
            self._at.setdefault(site, {}).setdefault(about)
        if sites:
            self._wants[about] = tuple(sites)

    def at(self, sites: Iterable[str]) -> list[ObjectRef]:
        """Who is to be looked at, as room has become free there."""
        found: dict[ObjectRef, None] = {}
        for site in sites:
            here = self._at.get(site, {})
            for about in list(here)[:LOOKED_AT]:
                found[about] = here[about] = here.pop(about)
        return list(found)
