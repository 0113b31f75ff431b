"""Which decisions a site that comes or goes may change: of thousands of workloads few, where there are many sites. Pure.

A site's *standing* is whether it is ready, cordoned, tainted or about to leave. When nothing else about it changed, a decision
stays what it is unless the site is one of those that it was chosen from, or can be had now and earns as many points as the last
of them. Where more plays a part than points and room, every site counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from metaos.resources.snapshot import ClusterInfo, Snapshot, WorkloadInfo
from metaos.scheduler.filters import FILTERS, Filter
from metaos.scheduler.framework import Plan
from metaos.scheduler.scores import SCORES, Score, evaluate, weighted

#: One site's points and all sites' are added up in different orders.
_LITTLE = 1e-6


@dataclass(frozen=True, slots=True)
class Firm:
    """A decision that no site changes by its standing which is none of ``sites`` and earns less than ``points``."""

    workload: WorkloadInfo
    sites: frozenset[str]
    points: float
    filters: Sequence[tuple[str, Filter]]
    counting: Sequence[tuple[Score, float]]

    def concerned(self, site: ClusterInfo, now: float) -> bool:
        """Whether the standing that ``site`` has now may change the decision."""
        if site.name in self.sites:
            return True
        if not site.ready or evaluate(self.workload, site, self.counting)[0] < self.points - _LITTLE:
            return False
        alone = Snapshot(now, (site,))
        return all(judge(alone, self.workload, site) is None for _, judge in self.filters)


def standing_alone(old: ClusterInfo, new: ClusterInfo) -> bool:
    """Whether nothing else about a site has changed."""
    stands = replace(old, ready=new.ready, unschedulable=new.unschedulable, deleting=new.deleting, taints=new.taints)
    return stands == new


def firm(
    workload: WorkloadInfo,
    plan: Plan,
    filters: Sequence[tuple[str, Filter]] = FILTERS,
    scores: Sequence[Score] = SCORES,
) -> Firm | None:
    """What keeps a decision as it is; ``None`` where any site may change it. Judges of third parties may look at anything, so
    with them every decision may change."""
    if dict(plan.clusters) != workload.current:
        # What is placed anew is looked at once more: from there it may look different.
        return None
    if plan.rests_on is None or not (set(filters) <= set(FILTERS) and set(scores) <= set(SCORES)):
        return None
    named = plan.rests_on | workload.current.keys()
    return Firm(workload, named, min(plan.totals[site] for site in plan.rests_on), filters, weighted(workload, scores))
