"""Which sites a workload may be on and how good each is, over all sites at once.

Reasons and terms are worked out when they are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar, overload

import numpy as np

from metaos.resources.snapshot import ClusterInfo, Snapshot, WorkloadInfo
from metaos.scheduler import columns
from metaos.scheduler import scores as scoring
from metaos.scheduler.filters import Filter
from metaos.scheduler.scores import Score, Term
from metaos.scheduler.solver import Ranked
from metaos.scheduler.world import Ints, World

T = TypeVar("T")
V = TypeVar("V")
NONE = -1


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a site was not considered."""

    cluster: str
    filter: str
    reason: str


class Scored:
    """A site that was considered, with its total in points. Its terms are worked out when they are asked for."""

    __slots__ = ("_make", "_terms", "cluster", "total")

    def __init__(self, cluster: str, total: float, make: Callable[[], tuple[Term, ...]]) -> None:
        self.cluster, self.total, self._make = cluster, total, make
        self._terms: tuple[Term, ...] | None = None

    @property
    def terms(self) -> tuple[Term, ...]:
        if self._terms is None:
            self._terms = self._make()
        return self._terms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scored) and (self.cluster, self.total, self.terms) == (other.cluster, other.total, other.terms)

    __hash__ = None  # type: ignore[assignment]


class Lazily(Sequence[T], Generic[T]):
    """A sequence whose items are worked out when they are looked at. Equal to any sequence of equal items."""

    def __init__(self, size: int, make: Callable[[int], T]) -> None:
        self._size, self._make = size, make

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        if isinstance(at, slice):
            return [self._make(i) for i in range(*at.indices(self._size))]
        return self._make(range(self._size)[at])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return repr(tuple(self))

    __hash__ = None  # type: ignore[assignment]


class ByName(Mapping[str, V], Generic[V]):
    """What there is of the sites in some ``rows`` of a world, which are those that ``has`` says. Of one site it is read when it
    is asked for."""

    def __init__(self, world: World, rows: list[int], has: Callable[[int], bool], read: Callable[[int], V]) -> None:
        self._world, self._rows, self._has, self._read = world, rows, has, read

    def __getitem__(self, site: str) -> V:
        row = self._world.row_of[site]
        if not self._has(row):
            raise KeyError(site)
        return self._read(row)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return map(self._world.names.__getitem__, self._rows)

    @cached_property
    def _all(self) -> dict[str, V]:
        return dict(zip(self, map(self._read, self._rows), strict=True))

    def items(self) -> ItemsView[str, V]:
        return self._all.items()

    def values(self) -> ValuesView[V]:
        return self._all.values()


class Rejections(Lazily[Rejection]):
    """By the names of their sites. ``filters``: of each site the filter that rejected it, which takes no working out."""

    def __init__(self, filters: Mapping[str, str], make: Callable[[int], Rejection] | None = None) -> None:
        super().__init__(len(filters), make or [].__getitem__)
        self.filters = filters

    def by_filter(self) -> dict[str, int]:
        """How many sites each filter rejected, the most first."""
        return dict(Counter(self.filters.values()).most_common())

    def some(self, most: int) -> list[Rejection]:
        """As many, with one of each filter among them as far as that goes."""
        if len(self) <= most:
            return list(self)
        first: dict[str, int] = {}
        for at, filter in enumerate(self.filters.values()):
            first.setdefault(filter, at)
        chosen = dict.fromkeys([*first.values(), *range(most)])
        return [self[at] for at in sorted(list(chosen)[:most])]


class Ranking:
    """One workload's filters and scores. ``keep`` names sites that stay in, as far as one of ``enduring`` alone rejects them."""

    def __init__(
        self,
        snapshot: Snapshot,
        workload: WorkloadInfo,
        filters: Sequence[tuple[str, Filter]],
        scores: Sequence[Score],
        must_leave: Collection[str],
        *,
        endures: bool,
    ) -> None:
        self._snapshot, self._workload, self._filters = snapshot, workload, filters
        self.world = World.of(snapshot.clusters)
        self._first = self._filter()
        #: Sites that it runs on and would leave for what was measured there, were it not to endure that.
        self.endured: list[Rejection] = []
        if endures:
            for row in sorted(self.world.row_of[c] for c in workload.current if c in self.world.row_of):
                number = int(self._first[row])
                if number != NONE and filters[number][0] not in must_leave:
                    self.endured.append(self._rejection(row))
                    self._first[row] = NONE
        self._counting = scoring.weighted(workload, scores)
        self._totals = columns.totals(workload, self.world, self._counting)
        rows = np.flatnonzero(self._first == NONE)
        # Sites are in the order of their names, so ties go to the first one.
        rows = rows[np.argsort(-self._totals[rows], kind="stable")]
        # As lists at once: one by one, numpy's items cost more than all else about them.
        self._rows: list[int] = rows.tolist()
        self.feasible = Ranked(self.world, self._rows)
        self.totals: Mapping[str, float] = ByName(
            self.world, self._rows, lambda row: bool(self._first[row] == NONE), lambda row: float(self._totals[row])
        )

    def _filter(self) -> Ints:
        """Of each site the number of the first filter that rejects it."""
        first = np.full(len(self.world), NONE, np.int64)
        for number, (_, judge) in enumerate(self._filters):
            found = columns.mask(judge, self._snapshot, self._workload, self.world)
            if found is not None:
                first[found & (first == NONE)] = number
        return first

    def _rejection(self, row: int) -> Rejection:
        name, judge = self._filters[int(self._first[row])]
        cluster = self.world[row]
        return Rejection(cluster.name, name, judge(self._snapshot, self._workload, cluster) or "")

    @cached_property
    def rejected(self) -> Rejections:
        """By name."""
        rows: list[int] = np.flatnonzero(self._first != NONE).tolist()
        filters = ByName(
            self.world, rows, lambda row: bool(self._first[row] != NONE), lambda row: self._filters[self._first[row]][0]
        )
        return Rejections(filters, lambda at: self._rejection(rows[at]))

    def crowded(self, least: float, most: int) -> tuple[str, ...]:
        """Sites that earn so many points at least and are rejected for want of room alone, the best first."""
        number = next((n for n, (word, _) in enumerate(self._filters) if word == "Capacity"), None)
        if number is None:
            return ()
        rows = np.flatnonzero((self._first == number) & (self._totals >= least))
        return tuple(self.world.names[row] for row in rows[np.argsort(-self._totals[rows], kind="stable")][:most].tolist())

    def rejection(self, cluster: str) -> Rejection | None:
        """Why a site is rejected; ``None`` where it is not, or not there."""
        row = self.world.row_of.get(cluster)
        return None if row is None or self._first[row] == NONE else self._rejection(row)

    def scored(self, chosen: Collection[str]) -> Sequence[Scored]:
        """What was chosen first, then the others by their totals."""
        first = [self.world.row_of[site.name] for site in self.feasible.among(chosen)]
        rows = first + self.feasible.without(chosen).rows if first else self._rows
        return Lazily(len(rows), lambda at: self._score(rows[at]))

    def _score(self, row: int) -> Scored:
        cluster: ClusterInfo = self.world[row]
        make = lambda: scoring.evaluate(self._workload, cluster, self._counting)[1]  # noqa: E731
        return Scored(cluster.name, float(self._totals[row]), make)
