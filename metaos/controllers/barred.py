"""Why what a workload has left on a site may not wait there for its replacement: it is stopped at once."""

from collections.abc import Iterable
from enum import StrEnum

from metaos.controllers.facts import concerning, ruling
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj, ref
from metaos.resources.reading import cluster_info, residency_of
from metaos.resources.snapshot import Target
from metaos.resources.targets import lawful
from metaos.resources.traffic import edges_of, law_of


class Bar(StrEnum):
    """``RESIDENCY``: intents, or the data that it reads, say that it may not be there. ``DISPLACED``: who has a higher priority
    gets its room."""

    RESIDENCY = "Residency"
    DISPLACED = "Displaced"

    @property
    def text(self) -> str:
        return "its intents, or the data that it reads, do not allow it there" if self is Bar.RESIDENCY else "its room is needed"


def displaced(placement: Obj) -> list[str]:
    """Sites that its workload had to leave to who has a higher priority, and where it is not decided to be again."""
    return list((placement.get("spec") or {}).get("displaced") or ())


class Barred:
    """Looks at what the intents and Clusters say now, not at what was decided once: the law may have changed since, of the
    workload and of the data that it reads."""

    def __init__(self, manager: Manager) -> None:
        self._intents, self._clusters = ruling(manager, scheme.INTENT), manager.informer(scheme.CLUSTER)

    def why(self, obj: Obj, placement: Obj, sites: Iterable[str]) -> dict[str, Bar]:
        """Of a workload on sites that are not chosen for it, by site; of others it may stay there until its replacements are
        ready."""
        laws, found = self._laws(obj), {}
        for site in sites:
            where = frozenset(((self._clusters.get(site) or {}).get("spec") or {}).get("jurisdictions") or ())
            if not all(lawful(target, where) for target in laws):
                found[site] = Bar.RESIDENCY
            elif site in displaced(placement):
                found[site] = Bar.DISPLACED
        return found

    def _laws(self, obj: Obj) -> list[Target]:
        intents = concerning(self._intents, obj)
        read = [edge for edge in edges_of(ref(obj), intents) if edge.dataset]
        sites = [cluster_info(c) for c in self._clusters.list() if (c.get("spec") or {}).get("datasets")] if read else []
        laws = [law for edge in read for law in law_of(edge, (info for info in sites if edge.dataset in info.datasets))]
        return residency_of(obj, intents) + laws
