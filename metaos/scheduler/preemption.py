"""Who gives way to whom: where there is no room for a workload, which ones of lower priority leave which site. Pure.

As kube-scheduler's default preemption has it (KEP-8479, ``pkg/scheduler/framework/preemption``), between sites: all of lower
priority are thought away, then kept one after another, the highest first, as long as it still fits. The site whose victims
matter least is taken: lowest highest priority, then lowest sum, then fewest replicas, then best score. Only strictly lower
priorities give way, so nobody is displaced by whom it displaced, and every chain ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from metaos.resources.devices import Asked, asking
from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, Snapshot, WorkloadInfo
from metaos.scheduler.filters import Filter, closed, room
from metaos.scheduler.framework import MUST_LEAVE, Plan, decide
from metaos.scheduler.ranking import Ranking
from metaos.scheduler.scores import Score
from metaos.scheduler.world import World

#: Sites that are looked at, the best first. One that is not may have had cheaper victims.
MOST_SITES = 50
#: Victims that a reason names, those that matter most.
TOLD = 5
#: The lowest priority there is: sums of priorities must grow with every victim.
_LOWEST = -(2**31)


@dataclass(frozen=True, slots=True)
class Tenant:
    """What a workload of lower priority has at a site. ``cpu``, ``memory`` and ``devices``: of one replica."""

    ref: ObjectRef
    priority: int
    replicas: int
    cpu: int
    memory: int
    devices: Asked = ()


@dataclass(frozen=True, slots=True)
class Preemption:
    """``plan``: where the workload goes once the victims have left ``site``."""

    site: str
    victims: tuple[Tenant, ...]
    plan: Plan

    @property
    def reason(self) -> str:
        some = self.victims[-TOLD:]
        told = ", ".join(f"{t.ref.kind} {t.ref.namespace}/{t.ref.name} (priority {t.priority})" for t in some)
        left = len(self.victims) - len(some)
        return f"displaces {told}{f' and {left} of no higher priority' if left else ''} at {self.site}"


def preempt(
    snapshot: Snapshot,
    workload: WorkloadInfo,
    plan: Plan,
    tenants: Mapping[str, Sequence[Tenant]],
    filters: Sequence[tuple[str, Filter]],
    scores: Sequence[Score],
) -> Preemption | None:
    """``plan``: what is possible without. ``tenants``: by site, those that may be displaced. ``None``: it would not help."""
    if plan.complete or not workload.preempts or workload.mode == "Everywhere":
        return None
    world = World.of(snapshot.clusters)
    # What stays where it should not, as it has nowhere to go, has no place either.
    placed = _good(plan)
    missing = workload.replicas - sum(placed.values()) if workload.mode == "Divided" else workload.replicas
    roomy = [(name, judge) for name, judge in filters if name != "Capacity"]
    ranking = Ranking(Snapshot(snapshot.now, world, snapshot.flows), workload, roomy, scores, MUST_LEAVE, endures=False)
    found: list[tuple[tuple[int, int, int], int, ClusterInfo, tuple[Tenant, ...]]] = []
    for rank, cluster in enumerate(list(ranking.feasible)[:MOST_SITES]):
        lower = [t for t in tenants.get(cluster.name, ()) if t.priority < workload.priority]
        if not lower or closed(workload, cluster):
            continue
        has = placed.get(cluster.name, 0) if workload.mode == "Divided" else 0
        most = room(workload, _changed(cluster, lower, -1))
        need = min(has + missing, most) if workload.mode == "Divided" else missing
        if need > has and most >= need:
            victims = _victims(workload, cluster, lower, need)
            found.append((_weight(victims), rank, cluster, victims))
    for _, _, cluster, victims in sorted(found, key=lambda f: f[:2]):
        emptied = world.beside([_changed(cluster, victims, -1)])
        after = decide(Snapshot(snapshot.now, emptied, snapshot.flows), workload, filters, scores)
        if victims and sum(_good(after).values()) > sum(placed.values()):
            chosen = Preemption(cluster.name, victims, after)
            return replace(chosen, plan=replace(after, reason=f"{after.reason}; {chosen.reason}"))
    return None


def _good(plan: Plan) -> dict[str, int]:
    return {site: count for site, count in plan.clusters if site in plan.totals}


def _victims(workload: WorkloadInfo, cluster: ClusterInfo, lower: Sequence[Tenant], need: int) -> tuple[Tenant, ...]:
    site, gone = _changed(cluster, lower, -1), []
    # Large ones stay rather than small ones, where their priority is the same: fewer move.
    for tenant in sorted(lower, key=lambda t: (-t.priority, -t.replicas, t.ref)):
        kept = _changed(site, [tenant], 1)
        if room(workload, kept) >= need:
            site = kept
        else:
            gone.append(tenant)
    return tuple(sorted(gone, key=lambda t: (t.priority, t.ref)))


def _changed(cluster: ClusterInfo, tenants: Iterable[Tenant], sign: int) -> ClusterInfo:
    """The site as if these were gone, or there."""
    cpu, memory, pods = cluster.cpu_requested, cluster.memory_requested, cluster.pods_requested
    devices = cluster.devices_requested
    for t in tenants:
        count = sign * t.replicas
        cpu, memory, pods = cpu + t.cpu * count, memory + t.memory * count, pods + count
        devices = asking(devices, t.devices, count)
    return replace(cluster, cpu_requested=cpu, memory_requested=memory, pods_requested=pods, devices_requested=devices)


def _weight(victims: Sequence[Tenant]) -> tuple[int, int, int]:
    highest = max((t.priority for t in victims), default=_LOWEST)
    return highest, sum(t.priority - _LOWEST for t in victims), sum(t.replicas for t in victims)
