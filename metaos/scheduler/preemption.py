"""Who gives way to whom: where there is no room for a workload, which ones of lower priority leave which site. Pure.

As kube-scheduler's default preemption has it (KEP-8479, ``pkg/scheduler/framework/preemption``), between sites: all of lower
priority are thought away, then kept one after another, the highest first, as long as it still fits. The site whose victims
matter least is taken: lowest highest priority, then lowest sum, then fewest replicas, then best score. Only strictly lower
priorities give way, so nobody is displaced by whom it displaced, and every chain ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, Snapshot, WorkloadInfo
from metaos.scheduler.filters import Filter, closed, room
from metaos.scheduler.framework import MUST_LEAVE, Plan, decide
from metaos.scheduler.ranking import Ranking
from metaos.scheduler.scores import Score
from metaos.scheduler.world import World

#: Sites that are looked at, the best first. One that is not may have had cheaper victims.
MOST_SITES = 50
#: The lowest priority there is: sums of priorities must grow with every victim.
_LOWEST = -(2**31)


@dataclass(frozen=True, slots=True)
class Tenant:
    """What a workload of lower priority has at a site."""

    ref: ObjectRef
    priority: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Preemption:
    """``plan``: where the workload goes once the victims have left ``site``."""

    site: str
    victims: tuple[Tenant, ...]
    plan: Plan

    @property
    def reason(self) -> str:
        told = ", ".join(f"{t.ref.kind} {t.ref.namespace}/{t.ref.name} (priority {t.priority})" for t in self.victims)
        return f"displaces {told} at {self.site}"


#: (site, workloads that are thought away there) → the site.
Without = Callable[[ClusterInfo, Collection[ObjectRef]], ClusterInfo]


def preempt(
    snapshot: Snapshot,
    workload: WorkloadInfo,
    plan: Plan,
    tenants: Mapping[str, Sequence[Tenant]],
    without: Without,
    filters: Sequence[tuple[str, Filter]],
    scores: Sequence[Score],
) -> Preemption | None:
    """``plan``: what is possible without. ``tenants``: by site, those that may be displaced. ``None``: it would not help."""
    if plan.complete or not workload.preempts or workload.mode == "Everywhere":
        return None
    world = World.of(snapshot.clusters)
    placed = dict(plan.clusters)
    missing = workload.replicas - sum(placed.values()) if workload.mode == "Divided" else workload.replicas
    roomy = [(name, judge) for name, judge in filters if name != "Capacity"]
    ranking = Ranking(Snapshot(snapshot.now, world, snapshot.flows), workload, roomy, scores, MUST_LEAVE, endures=False)
    found: list[tuple[tuple[int, int, int], int, ClusterInfo, tuple[Tenant, ...]]] = []
    for rank, cluster in enumerate(list(ranking.feasible)[:MOST_SITES]):
        lower = [t for t in tenants.get(cluster.name, ()) if t.priority < workload.priority]
        if not lower or closed(workload, cluster):
            continue
        has = placed.get(cluster.name, 0) if workload.mode == "Divided" else 0
        most = room(workload, without(cluster, [t.ref for t in lower]))
        need = min(has + missing, most) if workload.mode == "Divided" else missing
        if need > has and most >= need:
            victims = _victims(workload, cluster, lower, need, without)
            found.append((_weight(victims), rank, cluster, victims))
    for _, _, cluster, victims in sorted(found, key=lambda f: f[:2]):
        emptied = world.beside([without(cluster, [t.ref for t in victims])])
        after = decide(Snapshot(snapshot.now, emptied, snapshot.flows), workload, filters, scores)
        if victims and sum(n for _, n in after.clusters) > sum(placed.values()):
            chosen = Preemption(cluster.name, victims, after)
            return replace(chosen, plan=replace(after, reason=f"{after.reason}; {chosen.reason}"))
    return None


def _victims(
    workload: WorkloadInfo, cluster: ClusterInfo, lower: Sequence[Tenant], need: int, without: Without
) -> tuple[Tenant, ...]:
    gone = {t.ref: t for t in lower}
    # Large ones stay rather than small ones, where their priority is the same: fewer move.
    for tenant in sorted(lower, key=lambda t: (-t.priority, -t.replicas, t.ref)):
        rest = [about for about in gone if about != tenant.ref]
        if room(workload, without(cluster, rest)) >= need:
            del gone[tenant.ref]
    return tuple(sorted(gone.values(), key=lambda t: (t.priority, t.ref)))


def _weight(victims: Sequence[Tenant]) -> tuple[int, int, int]:
    highest = max((t.priority for t in victims), default=_LOWEST)
    return highest, sum(t.priority - _LOWEST for t in victims), sum(t.replicas for t in victims)
