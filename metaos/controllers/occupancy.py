"""What is decided for each site already, kept up to date change by change, and the sites as decisions see them.

Nothing here is a truth of its own: every figure follows from the workloads, their Placements and the Clusters in the
informers, and is worked out again for one workload or one site when that one changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from metaos.resources.devices import Asked, Mix, asking
from metaos.resources.devices import share as gpu_share
from metaos.resources.meta import Obj, ObjectRef, name
from metaos.resources.reading import cluster_info
from metaos.resources.snapshot import ClusterInfo, Quota
from metaos.scheduler.quotas import NOTHING, Part, beside, less, part

if TYPE_CHECKING:
    from metaos.scheduler.preemption import Tenant
    from metaos.scheduler.world import World

K = TypeVar("K")

#: Asks that are rarer are left out of the mix.
MIX_PARTS = 64


@dataclass(frozen=True, slots=True)
class Share:
    """What one replica of a workload asks for, and how many are decided to be where."""

    cpu: int
    memory: int
    replicas: Mapping[str, int]
    devices: Asked = ()
    priority: int = 0
    #: Whether it is where its data is, and is never displaced.
    fixed: bool = False

    @property
    def yields(self) -> bool:
        """Whether it has anything that it may have to give away."""
        return not self.fixed and any(self.replicas.values())


class Occupancy:
    """``clusters`` lists the sites' objects. Bounded by the workloads and the sites."""

    def __init__(self, clusters: Callable[[], list[Obj]]) -> None:
        self._clusters = clusters
        self._shares: dict[ObjectRef, Share] = {}
        self._totals: dict[str, tuple[int, int, int]] = {}
        #: By site and namespace, for the quotas that sites have.
        self._parts: dict[tuple[str, str], Part] = {}
        #: Of the sites that have any, as they are without what is decided.
        self._quotas: dict[str, Mapping[str, Quota]] = {}
        #: Of the sites that have any: how many pods ask for which devices.
        self._devices: dict[str, Mapping[Asked, int]] = {}
        #: How many workloads of which priority might be displaced.
        self._priorities: Counter[int] = Counter()
        #: Replicas by what each asks for, of workloads with GPUs.
        self._asks: Counter[tuple[int, int, Asked]] = Counter()
        #: Sites with their totals; ``None`` where they are to be read again, as one joined or left.
        self._world: World | None = None

    def set(self, about: ObjectRef, share: Share | None) -> bool:
        """What a workload takes now; ``None``: nothing. Whether somebody finds more room somewhere than before."""
        before = self._shares.pop(about, None)
        if share is not None:
            self._shares[about] = share
        if before == share:
            return False
        touched: set[str] = set()
        for found, sign in ((before, -1), (share, 1)):
            if found is not None and gpu_share(found.devices)[0]:
                _count(self._asks, (found.cpu, found.memory, found.devices), sign * sum(found.replicas.values()))
            if found is not None and found.yields:
                _count(self._priorities, found.priority, sign)
            for site, count in (found.replicas if found is not None else {}).items():
                cpu, memory, pods = self._totals.get(site, (0, 0, 0))
                assert found is not None
                self._totals[site] = cpu + sign * found.cpu * count, memory + sign * found.memory * count, pods + sign * count
                self._take(site, about.namespace, part(found.cpu, found.memory, sign * count))
                if found.devices:
                    self._devices[site] = asking(self._devices.get(site) or {}, found.devices, sign * count)
                touched.add(site)
        for site in touched:
            if self._totals[site] == (0, 0, 0):
                del self._totals[site]
            if not self._devices.get(site, True):
                del self._devices[site]
            if self._world is not None and (info := self._world.site(site)) is not None:
                info = _with(info, self._totals.get(site, (0, 0, 0)), self._devices.get(site) or {})
                self._world.put(replace(info, quotas=self._left(site)) if info.quotas else info)
        return before is not None and _frees(before, share)

    def places(self, about: ObjectRef) -> tuple[str, ...]:
        """The sites where a workload takes something."""
        share = self._shares.get(about)
        return tuple(share.replicas) if share is not None else ()

    def cluster_changed(self, old: Obj | None, new: Obj | None) -> None:
        """A site came, changed or went."""
        if self._world is None:
            return
        if new is None or name(new) not in self._world.row_of:
            self._world = None
        else:
            self._world.put(self._info(new))

    def sites(self, apart_from: ObjectRef) -> World:
        """All sites by name, without what the workload itself takes. It holds until something changes: decide at once."""
        if self._world is None:
            # With numpy, which a hub loads with its first decision.
            from metaos.scheduler.world import World

            self._world = World(self._info(c) for c in self._clusters())
        share = self._shares.get(apart_from)
        if share is None:
            return self._world
        here = [info for site in share.replicas if (info := self._world.site(site)) is not None]
        return self._world.beside(self._without(info, apart_from.namespace, share) for info in here)

    @property
    def lowest(self) -> int | None:
        """The lowest priority of those that might have to give room away; ``None`` where nobody might."""
        return min(self._priorities, default=None)

    def tenants(self, below: int) -> dict[str, list[Tenant]]:
        """By site, what workloads of a lower priority have there. Looks at all workloads, unless none is of a lower one."""
        from metaos.scheduler.preemption import Tenant

        found: dict[str, list[Tenant]] = {}
        if self.lowest is None or self.lowest >= below:
            return found
        for about, share in self._shares.items():
            if share.priority < below and share.yields:
                for site, count in share.replicas.items():
                    if count:
                        tenant = Tenant(about, share.priority, count, share.cpu, share.memory, share.devices)
                        found.setdefault(site, []).append(tenant)
        return found

    def mix(self) -> Mix:
        """Who has GPUs, in shares of ``MIX_PARTS``: a few replicas more change nothing, so what is worked out of it keeps."""
        total = sum(self._asks.values())
        parts = ((asks, round(MIX_PARTS * often / total)) for asks, often in sorted(self._asks.items()) if often > 0)
        return tuple((asks, part) for asks, part in parts if part)

    def totals(self) -> dict[str, tuple[int, int, int]]:
        """(cpu, memory, pods) by site, of all workloads."""
        return dict(self._totals)

    def _info(self, cluster: Obj) -> ClusterInfo:
        site = name(cluster)
        info = cluster_info(cluster, self._totals.get(site, (0, 0, 0)), self._devices.get(site))
        if not info.quotas:
            self._quotas.pop(site, None)
            return info
        self._quotas[site] = info.quotas
        return replace(info, quotas=self._left(site))

    def _take(self, site: str, namespace: str, more: Part) -> None:
        cpu, memory, pods, silent_cpu, silent_memory = self._parts.pop((site, namespace), NOTHING)
        found = cpu + more[0], memory + more[1], pods + more[2], silent_cpu + more[3], silent_memory + more[4]
        if found != NOTHING:
            self._parts[site, namespace] = found

    def _left(self, site: str) -> dict[str, Quota]:
        """What a site's quotas leave beside all that is decided."""
        return {where: less(quota, self._parts.get((site, where), NOTHING)) for where, quota in self._quotas[site].items()}

    @staticmethod
    def _without(info: ClusterInfo, namespace: str, share: Share) -> ClusterInfo:
        count = share.replicas.get(info.name, 0)
        if not count:
            return info
        return replace(
            info,
            cpu_requested=info.cpu_requested - share.cpu * count,
            memory_requested=info.memory_requested - share.memory * count,
            pods_requested=info.pods_requested - count,
            devices_requested=asking(info.devices_requested, share.devices, -count),
            quotas=beside(info, namespace, part(share.cpu, share.memory, -count)),
        )


def _with(info: ClusterInfo, total: tuple[int, int, int], devices: Mapping[Asked, int]) -> ClusterInfo:
    return replace(info, cpu_requested=total[0], memory_requested=total[1], pods_requested=total[2], devices_requested=devices)


def _count(counter: Counter[K], key: K, more: int) -> None:
    """Keys of nothing are not kept."""
    counter[key] += more
    if not counter[key]:
        del counter[key]


def _frees(before: Share, after: Share | None) -> bool:
    """Whether it takes less somewhere, or has become easier to displace."""
    if after is None:
        return any(before.replicas.values())
    if (after.yields and not before.yields) or after.priority < before.priority:
        return True

    def takes(share: Share, site: str) -> tuple[int, ...]:
        count, devices = share.replicas.get(site, 0), dict(share.devices)
        return count, share.cpu * count, share.memory * count, *(devices.get(d, 0) * count for d, _ in before.devices)

    return any(a < b for site in before.replicas for b, a in zip(takes(before, site), takes(after, site), strict=True))
