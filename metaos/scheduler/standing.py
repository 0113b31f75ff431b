"""Which decisions a site that comes or goes may change: of thousands of workloads few, where there are many sites. Pure.

A site's *standing* is whether it is ready, cordoned, tainted or about to leave. When nothing else about it changed, a decision
stays what it is unless the site is one of those that it was chosen from, or can be had now and earns as many points as the last
of them. Where more plays a part than points and room, every site counts.

Of one that stays where it is and would be better off nowhere by as much as a move is worth, that is its own site alone, and as
many points as are worth the move: the best sites of all come and go without anybody who did not move there looking up.

When figures of many sites changed, as carbon does every hour, workloads that ask for the same are ranked once (:func:`renewed`):
a decision stands where no other site has become better by as much as a move is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from sys import intern

from metaos.resources.devices import Mix
from metaos.resources.meta import ObjectRef
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
    #: The same for all who ask for the same; empty where more would have to be looked at than the sites' figures.
    asks: str

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
    counting, least = weighted(workload, scores), workload.policy.minimum_improvement
    if plan.confirms and len(workload.current) == 1:
        (here,) = workload.current
        worth = plan.totals[here] + least
        if plan.totals[next(iter(plan.totals))] < worth:
            # No other site is worth a move. Whichever of them goes, none is; who comes must be worth one.
            return Firm(workload, frozenset((here,)), worth, filters, counting, _asks(workload))
    named = plan.rests_on | workload.current.keys()
    return Firm(workload, named, min(plan.totals[site] for site in plan.rests_on), filters, counting, _asks(workload))


def renewed(
    snapshot: Snapshot, firms: Mapping[ObjectRef, Firm], scores: Sequence[Score] = SCORES, mix: Mix = ()
) -> dict[ObjectRef, Firm]:
    """Of these decisions those that stand whatever has changed about sites, with what keeps each of them from now on. In
    ``snapshot`` everything takes its room, also what is looked at. ``mix``: what all who have GPUs ask for by now."""
    # With numpy, which a hub loads with its first decision.
    from metaos.scheduler.ranking import Ranking
    from metaos.scheduler.world import with_more

    ranked: dict[str, Ranking] = {}
    earned: dict[tuple[str, str], float] = {}
    found: dict[ObjectRef, Firm] = {}
    for about, sure in firms.items():
        if not sure.asks:
            continue
        if (ranking := ranked.get(sure.asks)) is None:
            anybody = replace(sure.workload, current={}, moves=(), mix=mix)
            ranking = ranked[sure.asks] = Ranking(snapshot, anybody, sure.filters, scores, (), endures=False)
        (here,) = sure.workload.current
        if here not in ranking.totals:
            continue
        workload = replace(sure.workload, mix=mix)
        counting = sure.counting if mix == sure.workload.mix else weighted(workload, scores)
        points = earned.get((sure.asks, here))
        if points is None:
            own = with_more(ranking.world[ranking.world.row_of[here]], workload, -workload.replicas)
            points = earned[sure.asks, here] = evaluate(workload, own, counting)[0]
        best = next((site.name for site in ranking.feasible[:2] if site.name != here), None)
        worth = points + sure.workload.policy.minimum_improvement
        if best is None or ranking.totals[best] < worth - _LITTLE:
            found[about] = replace(sure, workload=workload, sites=frozenset((here,)), points=worth, counting=counting)
    return found


def _asks(workload: WorkloadInfo) -> str:
    """What a decision follows from beside the sites and where it is now, of one that is on one site as a whole."""
    odd = workload.local_data or workload.homes or workload.devices or workload.displaced or workload.waits
    costs = workload.licences or workload.interruptible
    if odd or costs or list(workload.current.values()) != [workload.replicas]:
        return ""
    targets = tuple(replace(target, intent="") for target in workload.targets)
    plain = replace(workload, ref=_ANYBODY, uid="", generation=0, labels={}, current={}, moves=(), mix=(), targets=targets)
    return intern(repr(plain))


_ANYBODY = ObjectRef("", "", "", "")
