"""The sites of a decision as columns: one array a fact, one row a site, in the order of names.

Made once and kept up to date row by row, so that a decision for one workload does not build the world anew. What few
decisions ask for (a label, a law, a region's round trips) becomes a column when it is first asked for. Memory: about 100
bytes a site and asked column besides the sites themselves; columns are bounded by ``MOST_COLUMNS`` of each kind.

A ``World`` is a sequence of :class:`~metaos.resources.snapshot.ClusterInfo`, so it stands for ``Snapshot.clusters``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from metaos.resources.devices import GPU, asking, gpus_free, taken
from metaos.resources.measures import grams_each, latency, watts
from metaos.resources.snapshot import ClusterInfo, Taint, Users, WorkloadInfo
from metaos.resources.targets import TRUST_LEVELS
from metaos.resources.traffic import round_trip
from metaos.scheduler.quotas import beside, part
from metaos.scheduler.scores import carbon_ahead, grams_ahead

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
K = TypeVar("K", bound=Hashable)

#: Of each kind; above that they are forgotten and made again when they are asked for.
MOST_COLUMNS = 1_000
#: Of a resource at a site, and of one that is asked for: sites and users may state any number, and no column holds any.
MOST_AMOUNT = 2**62


def _known(value: float | None) -> float:
    return np.nan if value is None else value


_FLOATS: dict[str, Callable[[ClusterInfo], float]] = {
    "carbon": lambda c: _known(c.carbon),
    "carbon_ahead": lambda c: _known(carbon_ahead(c)),
    "grams": lambda c: _known(grams_each(c, c.carbon)),
    "grams_ahead": lambda c: _known(grams_ahead(c)),
    # Watts that a thousandth of a core adds.
    "slope": lambda c: _known(watts(c, 1)),
    "cpu_hour": lambda c: _known(c.cpu_hour),
    "memory_gib_hour": lambda c: c.memory_gib_hour,
    "availability": lambda c: c.availability,
    "cpu": lambda c: float(bounded(c.cpu)),
    "egress_gib": lambda c: _known(c.egress_gib),
}
_BOOLS: dict[str, Callable[[ClusterInfo], bool]] = {
    "ready": lambda c: c.ready,
    "unschedulable": lambda c: c.unschedulable,
    "deleting": lambda c: c.deleting,
    "stated": lambda c: bool(c.jurisdictions),
    "tainted": lambda c: bool(c.taints),
    "quotas": lambda c: bool(c.quotas),
    "narrow": lambda c: any(link.bytes_per_second is not None for link in c.links.values()),
}


class World(Sequence[ClusterInfo]):
    """See the module. ``clusters`` in any order; names are unique."""

    def __init__(self, clusters: Iterable[ClusterInfo]) -> None:
        self._sites = sorted(clusters, key=lambda c: c.name)
        self.names = [c.name for c in self._sites]
        self.row_of = {name: row for row, name in enumerate(self.names)}
        if len(self.row_of) < len(self.names):
            raise ValueError("two sites of one name")
        self.floats = {word: np.array([read(c) for c in self._sites], np.float64) for word, read in _FLOATS.items()}
        self.bools = {word: np.array([read(c) for c in self._sites], np.bool_) for word, read in _BOOLS.items()}
        self.trust = np.array([_trust(c) for c in self._sites], np.int64)
        #: CPU (thousandths), bytes of memory, pods.
        self.free = np.array([_free(c) for c in self._sites], np.int64).reshape(len(self._sites), 3)
        self._labels: dict[tuple[str, str | None], Bools] = {}
        self._laws: dict[str, Bools] = {}
        self._trips: dict[Users, Floats] = {}
        self._between: dict[str, Floats] = {}
        self._stated: dict[Hashable, tuple[Callable[[ClusterInfo], float | None], Floats]] = {}
        self._taints: dict[Taint, Bools] | None = None
        #: What the sites come to for the last workload that may wait, which several scores ask for.
        self._timed: dict[Hashable, Sequence[Any]] = {}
        #: Of what is requested, as :attr:`free` is: a world beside this one has its own.
        self._devices: dict[str, Ints] = {}
        self._gpus: Ints | None = None
        #: Rows that differ from those that the columns were made of: see :meth:`beside`.
        self._other: Mapping[int, ClusterInfo] = {}

    @classmethod
    def of(cls, clusters: Sequence[ClusterInfo]) -> World:
        return clusters if isinstance(clusters, World) else cls(clusters)

    # -- as a sequence -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._sites)

    @overload
    def __getitem__(self, row: int) -> ClusterInfo: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[ClusterInfo]: ...
    def __getitem__(self, row: int | slice) -> ClusterInfo | Sequence[ClusterInfo]:
        if isinstance(row, slice):
            return [self[r] for r in range(*row.indices(len(self)))]
        return self._other.get(row) or self._sites[row]

    def __iter__(self) -> Iterator[ClusterInfo]:
        return iter(self._sites) if not self._other else (self[row] for row in range(len(self)))

    def site(self, name: str) -> ClusterInfo | None:
        row = self.row_of.get(name)
        return None if row is None else self[row]

    def at(self, names: Iterable[str]) -> Bools:
        """True in the rows of these sites, as far as there are any."""
        found = np.zeros(len(self), np.bool_)
        for name in names:
            row = self.row_of.get(name)
            if row is not None:
                found[row] = True
        return found

    # -- columns that are made when they are asked for ------------------------------------------------------------

    def label(self, key: str, value: str) -> Bools:
        return self._asked(self._labels, (key, value), lambda c: c.labels.get(key) == value)

    def law(self, name: str) -> Bools:
        return self._asked(self._laws, name, lambda c: name in c.jurisdictions)

    def trip(self, users: Users) -> Floats:
        """The users' round trip (ms); NaN where one is not known."""
        found = self._trips.get(users)
        if found is None:
            _bound(self._trips)
            found = self._trips[users] = np.array([_known(latency(c, users)) for c in self], np.float64)
        return found

    def between(self, site: ClusterInfo) -> Floats:
        """The round trip from everywhere to this site (ms); NaN where it is not known."""
        found = self._between.get(site.name)
        if found is None:
            found = np.array([_known(round_trip(c, site)) for c in self], np.float64)
            if site.name in self.row_of:
                _bound(self._between)
                self._between[site.name] = found
        return found

    def stated(self, key: Hashable, read: Callable[[ClusterInfo], float | None]) -> Floats:
        """A column of what ``read`` says of each site, whatever is requested there; NaN where that is nothing. ``key`` stands for
        ``read``: the same one, the same column."""
        found = self._stated.get(key)
        if found is None:
            if len(self._stated) >= MOST_COLUMNS:
                self._stated.clear()
            found = self._stated[key] = read, np.array([_known(read(c)) for c in self], np.float64)
        return found[1]

    def holding(self, dataset: str) -> list[ClusterInfo]:
        """The sites that hold a data set, whether they answer or not."""
        rows = np.flatnonzero(np.nan_to_num(self.stated(("dataset", dataset), lambda c: 1.0 if dataset in c.datasets else None)))
        return [self[int(row)] for row in rows]

    def taints(self) -> Mapping[Taint, Bools]:
        """Every taint and where it is."""
        if self._taints is None:
            self._taints = {}
            for row in np.flatnonzero(self.bools["tainted"]):
                for taint in self[int(row)].taints:
                    self._taints.setdefault(taint, np.zeros(len(self), np.bool_))[row] = True
        return self._taints

    def device(self, resource: str) -> Ints:
        """How many of an extended resource are free; of GPUs see :meth:`gpus`."""
        found = self._devices.get(resource)
        if found is None:
            _bound(self._devices)
            found = self._devices[resource] = np.fromiter((_left(c, resource) for c in self), np.int64, len(self))
        return found

    def gpus(self) -> Ints:
        """Sites x GPUs: the free thousandths of each, the freest first; nothing where a site has fewer."""
        if self._gpus is None:
            each = [gpus(c) for c in self]
            self._gpus = np.zeros((len(self), max(map(len, each), default=0)), np.int64)
            for row, free in enumerate(each):
                self._gpus[row, : len(free)] = free
        return self._gpus

    def timed(
        self, workload: WorkloadInfo, work_out: Callable[[WorkloadInfo, Sequence[ClusterInfo]], Sequence[K]]
    ) -> Sequence[K]:
        """What ``work_out`` says of a workload that may wait, kept until the next one asks."""
        key = workload.waits, workload.cpu * workload.replicas, workload.interruptible
        if key not in self._timed:
            self._timed.clear()
            self._timed[key] = work_out(workload, self)
        return self._timed[key]

    def rows(self, read: Callable[[ClusterInfo], bool]) -> Bools:
        """A column for this once."""
        return np.fromiter((read(c) for c in self), np.bool_, len(self))

    def _asked(self, columns: dict[K, Bools], key: K, read: Callable[[ClusterInfo], bool]) -> Bools:
        found = columns.get(key)
        if found is None:
            _bound(columns)
            found = columns[key] = self.rows(read)
        return found

    # -- change ------------------------------------------------------------------------------------------------

    def put(self, cluster: ClusterInfo) -> None:
        """A site that is there already has changed. Raises ``KeyError`` where it is not."""
        row = self.row_of[cluster.name]
        before = self._sites[row]
        self._sites[row] = cluster
        self.free[row] = _free(cluster)
        self._put_devices(row, cluster)
        if _fixed(before) == _fixed(cluster):
            return
        self._timed.clear()
        for word, read in _FLOATS.items():
            self.floats[word][row] = read(cluster)
        for word, look in _BOOLS.items():
            self.bools[word][row] = look(cluster)
        self.trust[row] = _trust(cluster)
        for (key, value), column in self._labels.items():
            column[row] = cluster.labels.get(key) == value
        for law, column in self._laws.items():
            column[row] = law in cluster.jurisdictions
        for users, trips in self._trips.items():
            trips[row] = _known(latency(cluster, users))
        self._between.pop(cluster.name, None)
        for site, trips in self._between.items():
            trips[row] = _known(round_trip(cluster, self[self.row_of[site]]))
        for read_one, column_of in self._stated.values():
            column_of[row] = _known(read_one(cluster))
        if before.taints != cluster.taints:
            self._taints = None

    def beside(self, others: Iterable[ClusterInfo]) -> World:
        """The same world with other figures of what is requested at some sites. Shares everything else: it holds until the
        next :meth:`put`."""
        found = World.__new__(World)
        found.__dict__.update(self.__dict__)
        found.free = self.free.copy()
        found._devices = {resource: column.copy() for resource, column in self._devices.items()}
        found._gpus = None if self._gpus is None else self._gpus.copy()
        changed = dict(self._other)
        for cluster in others:
            row = self.row_of[cluster.name]
            changed[row] = cluster
            found.free[row] = _free(cluster)
            found._put_devices(row, cluster)
        found._other = changed
        return found

    def _put_devices(self, row: int, cluster: ClusterInfo) -> None:
        for resource, column in self._devices.items():
            column[row] = _left(cluster, resource)
        if self._gpus is not None:
            free = gpus(cluster)
            if len(free) > self._gpus.shape[1]:
                # A site has more than any had before: all are laid out anew when they are next asked for.
                self._gpus = None
                return
            self._gpus[row] = 0
            self._gpus[row, : len(free)] = free


def taking(world: World, workload: WorkloadInfo, places: Mapping[str, int], sign: int) -> World:
    """The world with so many replicas more, or fewer, at these sites."""
    here = [(found, count) for site, count in places.items() if (found := world.site(site)) is not None]
    return world.beside(with_more(found, workload, sign * count) for found, count in here)


def with_more(cluster: ClusterInfo, workload: WorkloadInfo, replicas: int) -> ClusterInfo:
    """A site with so many replicas more; fewer where that is negative."""
    return replace(
        cluster,
        cpu_requested=cluster.cpu_requested + workload.cpu * replicas,
        memory_requested=cluster.memory_requested + workload.memory * replicas,
        pods_requested=cluster.pods_requested + replicas,
        devices_requested=asking(cluster.devices_requested, workload.devices, replicas),
        quotas=beside(cluster, workload.ref.namespace, part(workload.cpu, workload.memory, replicas)),
    )


def _trust(cluster: ClusterInfo) -> int:
    return TRUST_LEVELS.get(cluster.trust, 0)


def bounded(amount: int) -> int:
    """An amount as a column holds it: what is beyond ``MOST_AMOUNT`` is as much as that."""
    return max(-MOST_AMOUNT, min(MOST_AMOUNT, amount))


def _free(cluster: ClusterInfo) -> tuple[int, int, int]:
    return (
        bounded(cluster.cpu - cluster.cpu_requested),
        bounded(cluster.memory - cluster.memory_requested),
        bounded(cluster.pods - cluster.pods_requested),
    )


def _left(cluster: ClusterInfo, resource: str) -> int:
    return bounded(max(0, cluster.devices.get(resource, 0) - taken(cluster.devices_requested, resource)))


def gpus(cluster: ClusterInfo) -> tuple[int, ...]:
    """Free thousandths of each of a site's GPUs."""
    count = cluster.devices.get(GPU, 0)
    return gpus_free(count, cluster.devices_requested) if count else ()


def _fixed(cluster: ClusterInfo) -> tuple[object, ...]:
    """Everything that columns hold besides what is free."""
    return (
        cluster.carbon,
        cluster.forecast,
        cluster.max_watts,
        cluster.idle_watts,
        cluster.capacity_cpu,
        cluster.pue,
        cluster.cpu_hour,
        cluster.memory_gib_hour,
        cluster.availability,
        cluster.cpu,
        cluster.ready,
        cluster.unschedulable,
        cluster.deleting,
        cluster.taints,
        cluster.trust,
        cluster.attested,
        cluster.labels,
        cluster.jurisdictions,
        cluster.latencies,
        cluster.region,
        cluster.latitude,
        cluster.longitude,
        cluster.egress_gib,
        cluster.embodied,
        cluster.links,
        cluster.spot,
        cluster.reserved,
        cluster.intensities,
        cluster.prices,
        cluster.licences,
        cluster.datasets,
        bool(cluster.quotas),
    )


def _bound(columns: dict[K, NDArray[np.bool_]] | dict[K, NDArray[np.float64]] | dict[K, NDArray[np.int64]]) -> None:
    if len(columns) >= MOST_COLUMNS:
        columns.clear()
