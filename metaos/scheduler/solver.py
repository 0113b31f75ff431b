"""Choosing sites and dividing replicas over them, given which sites are possible and how good each is."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from metaos.resources.reliability import up
from metaos.resources.snapshot import ClusterInfo, Spread, WorkloadInfo
from metaos.resources.targets import meets
from metaos.scheduler import proximity
from metaos.scheduler.filters import closed, room

if TYPE_CHECKING:
    from metaos.scheduler.world import World

#: Sites that are looked at, the best ones, for one that fails for other causes.
SAFEST = 64


@dataclass(frozen=True, slots=True)
class Choice:
    """Site → replicas. ``complete``: every replica has a place. ``satisfies``: spread and availability hold too."""

    clusters: Mapping[str, int]
    complete: bool
    satisfies: bool = True
    why: str = ""

    def mean(self, totals: Mapping[str, float]) -> float:
        """The points of the sites, weighted by replicas."""
        count = sum(self.clusters.values())
        return sum(totals.get(c, 0.0) * n for c, n in self.clusters.items()) / count if count else 0.0


def choose(workload: WorkloadInfo, feasible: Sequence[ClusterInfo], totals: Mapping[str, float]) -> Choice:
    """The best choice with nothing to hold on to."""
    return distribute(workload, (), feasible, totals)


def distribute(
    workload: WorkloadInfo, kept: Sequence[ClusterInfo], feasible: Sequence[ClusterInfo], totals: Mapping[str, float]
) -> Choice:
    """Divides the replicas over ``kept`` sites first and the best others after them, as the workload's mode, spread,
    availability and what its pods want of each other ask. Ties go to the alphabetically first name."""
    if workload.near or workload.spread:
        return _arrange(workload, kept, feasible, totals)
    return _divide(workload, kept, feasible, totals)


def _arrange(
    workload: WorkloadInfo, kept: Sequence[ClusterInfo], feasible: Sequence[ClusterInfo], totals: Mapping[str, float]
) -> Choice:
    """Over what the pods' terms about each other leave of the sites."""
    ranked = _in_order(kept, feasible, totals)
    if proximity.alone(workload):
        ranked = proximity.apart(workload, ranked)
    held = {c.name for c in kept}
    choices = []
    for sites in proximity.domains(workload, ranked):
        here, others = [c for c in sites if c.name in held], Ordered(c for c in sites if c.name not in held)
        choices.append(_divide(proximity.arranged(workload, sites), here, others, totals))
        if choices[-1].complete and choices[-1].satisfies:
            break
    return max(choices, key=lambda c: (c.complete, sum(c.clusters.values()), c.satisfies), default=Choice({}, False))


def _in_order(kept: Sequence[ClusterInfo], feasible: Sequence[ClusterInfo], totals: Mapping[str, float]) -> Sequence[ClusterInfo]:
    first = _ranked(kept, totals)
    if isinstance(feasible, Ranked):
        return feasible.after(first)
    held = {c.name for c in kept}
    return [*first, *(c for c in _ranked(feasible, totals) if c.name not in held)]


def _divide(
    workload: WorkloadInfo, kept: Sequence[ClusterInfo], feasible: Sequence[ClusterInfo], totals: Mapping[str, float]
) -> Choice:
    if workload.mode == "Everywhere":
        sites = _in_order(kept, feasible, totals) if workload.near else feasible
        return Choice({c.name: 1 for c in sites}, bool(sites))
    if workload.replicas == 0:
        # Nothing runs, but the decision has a home: scaled up again, it starts where it was or would be best.
        homes = _ranked(kept, totals) or _ranked(feasible, totals)
        return Choice({homes[0].name: 0} if homes else {}, bool(homes))
    ranked = _in_order(kept, feasible, totals)
    spaces = Spaces(workload, ranked)
    if workload.mode == "Whole":
        fitting: ClusterInfo | None = None
        for cluster in ranked:
            if spaces[cluster.name] >= workload.replicas:
                if _available(workload, [(cluster, workload.replicas)]):
                    return Choice({cluster.name: workload.replicas}, True)
                fitting = fitting or cluster
        return Choice({fitting.name: workload.replicas}, True, False) if fitting is not None else Choice({}, False)
    if workload.weights:
        return _weigh(workload, ranked, spaces)
    sites, satisfies = _sites(workload, ranked, spaces, len(kept))
    choice = _fill(workload, sites, spaces, satisfies)
    if satisfies and not choice.satisfies and workload.policy.spread:
        # The fewest sites cannot be filled evenly: more sites may.
        wider = _fill(workload, [c for c in ranked if spaces[c.name] > 0], spaces, True)
        return wider if wider.satisfies or sum(wider.clusters.values()) > sum(choice.clusters.values()) else choice
    return choice


def _weigh(workload: WorkloadInfo, feasible: Sequence[ClusterInfo], spaces: Mapping[str, int]) -> Choice:
    """Divides the replicas by weight, as seats are by votes (Sainte-Laguë): one more replica adds one somewhere and moves none,
    and what does not fit at one site goes to the others by their weights. Ties go to the heavier, then to the first name."""
    weights = workload.weights
    order = [(1 / weights[c.name], -weights[c.name], c.name) for c in feasible if c.name in weights and spaces[c.name] > 0]
    heapq.heapify(order)
    result: dict[str, int] = {}
    left = workload.replicas
    while left and order:
        _, minus, site = order[0]
        result[site] = result.get(site, 0) + 1
        left -= 1
        if result[site] < spaces[site]:
            heapq.heapreplace(order, ((2 * result[site] + 1) / -minus, minus, site))
        else:
            heapq.heappop(order)
    used = [c for c in feasible if c.name in result]
    groups = all(len({group(c, s.by) for c in used}) >= s.min_groups for s in workload.policy.spread)
    satisfies = (
        not left and groups and _available(workload, [(c, result[c.name]) for c in used]) and _even(workload, used, result)
    )
    why = f"divided by the policy's weights ({', '.join(f'{site} {weight:g}' for site, weight in weights.items())})"
    return Choice(result, not left, satisfies, why)


class Ordered(list[ClusterInfo]):
    """Sites that are in order already: by points, then by name."""


class Ranked(Sequence[ClusterInfo]):
    """Sites of a world that are in order already: by points, then by name. ``rows``: theirs, in this order. Of thousands few are
    ever looked at, so nothing is made of the others."""

    def __init__(self, world: World, rows: list[int]) -> None:
        self._world, self.rows = world, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> ClusterInfo: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[ClusterInfo]: ...
    def __getitem__(self, at: int | slice) -> ClusterInfo | Sequence[ClusterInfo]:
        if isinstance(at, slice):
            return Ranked(self._world, self.rows[at])
        return self._world[self.rows[at]]

    def __iter__(self) -> Iterator[ClusterInfo]:
        return map(self._world.__getitem__, self.rows)

    def site(self, name: str) -> ClusterInfo:
        """Raises ``KeyError`` where the world has none of this name."""
        return self._world[self._world.row_of[name]]

    def among(self, names: Iterable[str]) -> list[ClusterInfo]:
        """Those of these names, in order."""
        asked = self._at(names)
        return [self._world[row] for row in self.rows if row in asked] if asked else []

    def without(self, names: Iterable[str]) -> Ranked:
        """All others, in order."""
        gone, rows = self._at(names), self.rows
        if len(gone) == 1:
            # The usual case, and the quickest way.
            (row,) = gone
            rows = rows.copy()
            with contextlib.suppress(ValueError):
                rows.remove(row)
        elif gone:
            rows = [row for row in rows if row not in gone]
        return Ranked(self._world, rows)

    def after(self, first: Sequence[ClusterInfo]) -> Ranked:
        """Behind ``first``, which are of the same world."""
        rows = [self._world.row_of[c.name] for c in first]
        return Ranked(self._world, [*rows, *self.without(c.name for c in first).rows]) if rows else self

    def _at(self, names: Iterable[str]) -> set[int]:
        return {row for name in names if (row := self._world.row_of.get(name)) is not None}


class Spaces(dict[str, int]):
    """How many replicas a site has room for, worked out when it is asked for. What runs there has its room."""

    def __init__(self, workload: WorkloadInfo, sites: Sequence[ClusterInfo]) -> None:
        super().__init__()
        self._workload, self._alone = workload, proximity.alone(workload)
        self._find = sites.site if isinstance(sites, Ranked) else {c.name: c for c in sites}.__getitem__

    def __missing__(self, site: str) -> int:
        cluster, workload = self._find(site), self._workload
        space = max(0 if closed(workload, cluster) else room(workload, cluster), workload.current.get(site, 0))
        if any(key in cluster.labels for key in self._alone):
            space = min(1, space)
        self[site] = space
        return space


def _ranked(clusters: Sequence[ClusterInfo], totals: Mapping[str, float]) -> Sequence[ClusterInfo]:
    if isinstance(clusters, Ranked | Ordered):
        return clusters
    return sorted(clusters, key=lambda c: (-totals.get(c.name, 0.0), c.name))


def group(cluster: ClusterInfo, by: str) -> str:
    """The group that a site belongs to, for spreading."""
    return {
        "site": cluster.name,
        "region": cluster.region,
        "tier": cluster.tier,
        "country": cluster.country,
        "zone": cluster.zone,
        "owner": cluster.owner,
    }.get(by, cluster.labels.get(by, ""))


def _sites(
    workload: WorkloadInfo, ranked: Sequence[ClusterInfo], spaces: Mapping[str, int], held: int
) -> tuple[list[ClusterInfo], bool]:
    """The shortest run of good sites that has the room, the groups and the availability that are asked for."""
    chosen: list[ClusterInfo] = []

    def usable() -> Iterable[ClusterInfo]:
        return (c for c in ranked if spaces[c.name] > 0)

    safe = any(t.name == "availability" and t.hard for t in workload.targets)

    def lacks() -> bool:
        return (
            sum(spaces[c.name] for c in chosen) < workload.replicas
            or any(len({group(c, s.by) for c in chosen}) < s.min_groups for s in workload.policy.spread)
            or (safe and not _available(workload, _packed(workload, chosen, spaces)))
        )

    for index, cluster in enumerate(usable()):
        if len(chosen) >= workload.replicas:
            break
        if index >= held and not lacks():
            break
        missing = [s for s in workload.policy.spread if len({group(c, s.by) for c in chosen}) < s.min_groups]
        new_group = any(group(cluster, s.by) not in {group(c, s.by) for c in chosen} for s in missing)
        remaining = workload.replicas - len(chosen)
        needed = max((s.min_groups - len({group(c, s.by) for c in chosen}) for s in missing), default=0)
        # Places are kept for groups that are still missing.
        if missing and not new_group and remaining <= needed:
            continue
        if missing and not new_group and chosen:
            continue
        chosen.append(cluster)
    short = lacks()
    if short and not workload.policy.spread and (better := _safest(workload, list(usable()), chosen[: max(1, held)], spaces)):
        return better, True
    if short:
        taken = {c.name for c in chosen}
        if len(chosen) < workload.replicas:
            chosen += [c for c in usable() if c.name not in taken]
            short = lacks()
    return chosen, not short


def _available(workload: WorkloadInfo, places: Sequence[tuple[ClusterInfo, int]]) -> bool:
    """Whether replicas that are divided like this are as available as hard targets ask."""
    return all(meets(t, up(places, t.at_least)) for t in workload.targets if t.name == "availability" and t.hard)


def _safest(
    workload: WorkloadInfo, usable: Sequence[ClusterInfo], first: Sequence[ClusterInfo], spaces: Mapping[str, int]
) -> list[ClusterInfo] | None:
    """``first`` and, one after the other, the site that adds most to the availability that is asked for; ``None`` where that does
    not suffice. Of equal ones the better ranked."""
    needed = max((t.at_least for t in workload.targets if t.name == "availability" and t.hard), default=0)
    if not needed:
        return None
    chosen = [c for c in first if spaces[c.name] > 0]
    while len(chosen) < workload.replicas:
        taken = {c.name for c in chosen}
        others = [c for c in usable if c.name not in taken][:SAFEST]
        if not others:
            return None
        chosen.append(max(others, key=lambda c: up(_packed(workload, [*chosen, c], spaces), needed)))
        roomy = sum(spaces[c.name] for c in chosen) >= workload.replicas
        if roomy and _available(workload, _packed(workload, chosen, spaces)):
            return chosen
    return None


def _packed(workload: WorkloadInfo, sites: Sequence[ClusterInfo], spaces: Mapping[str, int]) -> list[tuple[ClusterInfo, int]]:
    """One replica for each site, and what is left on the first ones: the least even way to fill them."""
    found, left = [], workload.replicas - len(sites)
    for site in sites[: workload.replicas]:
        more = max(0, min(left, spaces[site.name] - 1))
        found.append((site, 1 + more))
        left -= more
    return found


def _fill(workload: WorkloadInfo, sites: Sequence[ClusterInfo], spaces: Mapping[str, int], satisfies: bool) -> Choice:
    """One replica for each site, then what each has already, then by rank, or evenly where a policy spreads."""
    held = {c.name: workload.current.get(c.name, 0) for c in sites}
    fits = sum(held.values()) == workload.replicas and all(0 < n <= spaces[c] for c, n in held.items())
    if (
        fits
        and _even(workload, sites, held, anew=False)
        and (not satisfies or _available(workload, [(c, held[c.name]) for c in sites]))
    ):
        # Replicas stay where they are as long as nothing speaks against it.
        return Choice(held, True, satisfies)
    strict = any(s.strict for s in workload.policy.spread)
    result = {} if strict else {c.name: 1 for c in sites[: workload.replicas]}
    left = workload.replicas - len(result)
    for cluster in sites:
        more = min(left, max(0, min(workload.current.get(cluster.name, 0), spaces[cluster.name]) - result.get(cluster.name, 0)))
        if workload.policy.spread:
            break
        result[cluster.name] = result.get(cluster.name, 0) + more
        left -= more
    while left > 0:
        open_sites = [c for c in sites if spaces[c.name] > result.get(c.name, 0)]
        counted = [(s, _counts(s, sites, result)) for s in workload.policy.spread]
        for spread, counts in counted:
            if spread.strict:
                most = _least(spread, counts.values()) + spread.max_skew
                open_sites = [c for c in open_sites if counts[group(c, spread.by)] < most]
        if not open_sites:
            break
        target = min(open_sites, key=lambda c: _load(c, counted, result)) if counted else open_sites[0]
        result[target.name] = result.get(target.name, 0) + 1
        left -= 1
    good = satisfies and left == 0 and _even(workload, sites, result)
    return Choice(result, left == 0, good and _available(workload, [(c, result[c.name]) for c in sites if c.name in result]))


def _counts(spread: Spread, sites: Sequence[ClusterInfo], result: Mapping[str, int]) -> dict[str, int]:
    """What each group holds, also those that hold nothing."""
    found: dict[str, int] = {}
    for cluster in sites:
        mine = group(cluster, spread.by)
        found[mine] = found.get(mine, 0) + result.get(cluster.name, 0)
    return found


def _load(
    cluster: ClusterInfo, counted: Sequence[tuple[Spread, Mapping[str, int]]], result: Mapping[str, int]
) -> tuple[list[int], int]:
    """What the groups of a site hold already, by the policy's order, and then the site itself."""
    return [counts[group(cluster, spread.by)] for spread, counts in counted], result.get(cluster.name, 0)


def _least(spread: Spread, counts: Collection[int]) -> int:
    return 0 if sum(n > 0 for n in counts) < spread.domains else min(counts, default=0)


def _even(workload: WorkloadInfo, sites: Sequence[ClusterInfo], result: Mapping[str, int], *, anew: bool = True) -> bool:
    """Whether no group holds more than ``max_skew`` replicas over another one that is used, or over none where groups that count
    are not. Without ``anew`` what is looked at only when replicas are placed is not."""
    for spread in workload.policy.spread:
        if spread.domains and not anew:
            continue
        counts = list(_counts(spread, sites, result).values())
        if spread.max_skew and counts and max(counts) - _least(spread, counts) > spread.max_skew:
            return False
    return True
