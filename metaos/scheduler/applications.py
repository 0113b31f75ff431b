"""Components of one application are placed together: where the others will be, so that each can be decided by itself. Pure.

What is sought is the largest sum of weight x points over all components and all traffic between them. An edge counts the same at
both of its ends (see ``scores.blend``), so this sum is an exact potential of what each component goes for by itself: where it is
largest, no component gains by going elsewhere alone, and single moves for a gain end.

Best insertion with regret, every site that takes all of them, and local search give an answer; branch and bound looks for a
better one and proves it. Effort is counted in ``NODES``, so equal inputs give equal outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from metaos.resources import traffic
from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import GIB, ClusterInfo, Edge, Snapshot, WorkloadInfo
from metaos.scheduler import columns, filters
from metaos.scheduler import scores as scoring
from metaos.scheduler.filters import FILTERS, Filter
from metaos.scheduler.framework import Plan, decide, may_move
from metaos.scheduler.scores import EGRESS, SCORES, TRAFFIC, Score
from metaos.scheduler.world import Bools, Floats, Ints, World, bounded, taking

#: Components that are placed together; of larger applications each is placed near those that have a place already.
MOST_MEMBERS = 24
#: Sites that are looked at: each component's best ones, those where somebody is. All of them where there are no more.
CANDIDATES, BEST = 40, 8
#: Partial placements that branch and bound looks at: about 20 ms.
NODES = 400
#: Others that a reason names.
TOLD = 5
_LITTLE = 1e-9


@dataclass(frozen=True, slots=True)
class Together:
    """``places``: where the components will be that have no place, or have to leave theirs, or gain by leaving it together.
    ``points``: of 100, over all these and their traffic; ``bound``: what no placement of them goes above. ``way``: those
    that make way for the others: the others wait for them."""

    places: Mapping[ObjectRef, str]
    points: float
    bound: float
    way: frozenset[ObjectRef] = frozenset()

    @property
    def proven(self) -> bool:
        return self.bound <= self.points + 1e-6

    def text(self, about: ObjectRef) -> str:
        """``together with deployment/api on a: 87.1 of 100 points, the best there is``."""
        others = [f"{o.kind.lower()}/{o.name} on {site}" for o, site in sorted(self.places.items()) if o != about][:TOLD]
        left = len(self.places) - 1 - len(others)
        proof = "the best there is" if self.proven else f"{self.bound:.1f} at most are possible"
        more = f" and {left} more" if left > 0 else ""
        return f"together with {', '.join(others)}{more}: {self.points:.1f} of 100 points, {proof}"


@dataclass(frozen=True, slots=True)
class _Component:
    """``base``: weight x points on every site, of everything but the traffic with others that are placed with it; minus infinity
    where it may not be. ``weight``: the sum of the weights."""

    workload: WorkloadInfo
    base: Floats
    weight: float


def expected(
    snapshot: Snapshot,
    members: Mapping[ObjectRef, WorkloadInfo],
    judges: Sequence[tuple[str, Filter]] = FILTERS,
    scores: Sequence[Score] = SCORES,
) -> Together | None:
    """Where members of an application will be, as far as that is not where they are. ``members``: with where they are and where
    all their peers are (see ``metaos.resources.traffic.located``); ``snapshot`` counts what they take. ``None``: each can be
    decided by itself."""
    if not 1 < len(members) <= MOST_MEMBERS:
        return None
    world = World.of(snapshot.clusters)
    loose = {about for about, found in members.items() if _loose(snapshot, found, world, judges)}
    movable = {about for about, found in members.items() if about in loose or _movable(snapshot, found)}
    if loose:
        found = _placed(snapshot, members, loose, world, judges, scores)
        if found is not None or movable == loose:
            return found if len(loose) > 1 else None
        # Where nothing goes beside those that are settled, they make way.
        found = _placed(snapshot, members, movable, world, judges, scores)
        return None if found is None else replace(found, way=frozenset(_leaving(found, members)) - loose)
    if len(movable) < 2:
        return None
    found = _placed(snapshot, members, movable, world, judges, scores)
    if found is None:
        return None
    leaving = _leaving(found, members)
    # One that goes alone is decided by itself, and none goes out of another one's reach, be it for a while.
    if len(leaving) < 2 or any(_strays(members[about], leaving, world) for about in leaving):
        return None
    return replace(found, places=leaving)


def _leaving(found: Together, members: Mapping[ObjectRef, WorkloadInfo]) -> dict[ObjectRef, str]:
    return {about: site for about, site in found.places.items() if site not in members[about].current}


def _strays(found: WorkloadInfo, leaving: Mapping[ObjectRef, str], world: World) -> bool:
    there = world.site(leaving[found.ref])
    edges = [e for e in found.traffic if e.hard and e.ref in leaving]
    return there is not None and any(filters.broken_edge(e, there) is not None for e in edges)


def members_of(about: WorkloadInfo, read: Callable[[ObjectRef], WorkloadInfo | None]) -> dict[ObjectRef, WorkloadInfo]:
    """A workload and everybody that it talks to, and whom these talk to. ``read``: a workload as :func:`expected` is told of it;
    ``None`` for those that are not there. Empty where there are more than ``MOST_MEMBERS``."""
    found = {about.ref: about}
    todo = [about]
    while todo:
        for edge in todo.pop().traffic:
            if edge.ref is not None and edge.ref not in found and (peer := read(edge.ref)) is not None:
                found[edge.ref] = peer
                todo.append(peer)
                if len(found) > MOST_MEMBERS:
                    return {}
    return found


def decide_among(
    snapshot: Snapshot,
    about: WorkloadInfo,
    ahead: Together | None,
    judges: Sequence[tuple[str, Filter]] = FILTERS,
    scores: Sequence[Score] = SCORES,
) -> tuple[WorkloadInfo, Plan]:
    """:func:`metaos.scheduler.framework.decide`, near where the others will be. ``snapshot`` without what it takes. Also the
    workload as it was decided on."""
    found = with_expected(about, ahead, World.of(snapshot.clusters))
    site = None if ahead is None or (ahead.way and about.ref not in ahead.way) else ahead.places.get(about.ref)
    plan = decide(snapshot, found, judges, scores, together=site)
    if ahead is not None and site is not None and [name for name, _ in plan.clusters] == [site]:
        plan = replace(plan, reason=f"{plan.reason}, {ahead.text(about.ref)}")
    return found, plan


def with_expected(workload: WorkloadInfo, found: Together | None, world: World) -> WorkloadInfo:
    """The workload with its peers where they will be."""
    if found is None:
        return workload
    waits = found.way if workload.ref not in found.way else frozenset()

    def at(edge: Edge) -> Edge:
        known = edge.ref is not None and edge.ref in found.places and edge.ref not in waits
        site = world.site(found.places[edge.ref]) if known and edge.ref is not None else None
        return edge if site is None else replace(edge, at=((site, 1),))

    return replace(workload, traffic=tuple(at(edge) for edge in workload.traffic))


def _loose(snapshot: Snapshot, found: WorkloadInfo, world: World, judges: Sequence[tuple[str, Filter]]) -> bool:
    """Whether it goes to one site and has none, or has to leave it."""
    if not _whole(found):
        return False
    if not found.current:
        return True
    alone = replace(found, traffic=())
    rows = [world.row_of[site] for site in found.current if site in world.row_of]
    return len(found.current) == 1 and not all(_allowed(snapshot, alone, world, judges)[row] for row in rows)


def _movable(snapshot: Snapshot, found: WorkloadInfo) -> bool:
    return _whole(found) and not found.settled and len(found.current) == 1 and may_move(snapshot, found)


def _whole(found: WorkloadInfo) -> bool:
    """Whether it may be at one site, all of it."""
    several = found.policy.spread or found.weights or any(t.name == "availability" and t.hard for t in found.targets)
    return found.replicas > 0 and found.mode != "Everywhere" and not found.pinned and not several


def _allowed(snapshot: Snapshot, found: WorkloadInfo, world: World, judges: Sequence[tuple[str, Filter]]) -> Bools:
    good = np.ones(len(world), np.bool_)
    for _, judge in judges:
        rejected = columns.mask(judge, snapshot, found, world)
        if rejected is not None:
            good &= ~rejected
    return good


def _placed(
    snapshot: Snapshot,
    members: Mapping[ObjectRef, WorkloadInfo],
    free: set[ObjectRef],
    world: World,
    judges: Sequence[tuple[str, Filter]],
    scores: Sequence[Score],
) -> Together | None:
    for about in sorted(free):
        world = taking(world, members[about], members[about].current, -1)
    without = Snapshot(snapshot.now, world, snapshot.flows)
    asked = [_component(without, members[about], free, world, judges, scores) for about in sorted(free)]
    # Those that fit on no one site are divided by their own decision.
    asked = [c for c in asked if np.isfinite(c.base).any()]
    return _solve(asked, world) if len(asked) == len(free) else None


def _component(
    snapshot: Snapshot,
    found: WorkloadInfo,
    free: set[ObjectRef],
    world: World,
    judges: Sequence[tuple[str, Filter]],
    scores: Sequence[Score],
) -> _Component:
    fixed = replace(found, traffic=tuple(e for e in found.traffic if e.ref is None or e.ref not in free))
    here = world.at(found.current)
    good = _allowed(snapshot, fixed, world, judges)
    good &= (columns.room(fixed, world) >= found.replicas) & (here | ~columns.closed(fixed, world))
    counting = scoring.weighted(fixed, scores)
    weight = sum(importance for _, importance in counting)
    base = columns.totals(fixed, world, counting) * weight
    everything = weight + sum(e.weight + e.money for e in found.traffic if e.ref in free)
    if found.current and good[here].any():
        # Going is worth it from here on, as in a decision of its own.
        base = base - np.where(here, 0.0, found.policy.minimum_improvement * everything)
    return _Component(found, np.where(good, base, -np.inf), weight)


# -- the search --------------------------------------------------------------------------------------------


class Search:
    """The largest sum of ``bases`` (by member and candidate site) and ``pairs`` (by two members' sites) that fits. Minus infinity
    where a member may not be, or two may not be at once. ``limit``: partial placements that branch and bound looks at."""

    def __init__(
        self, bases: list[Floats], pairs: dict[tuple[int, int], Floats], demand: Ints, room: Ints, limit: int = NODES
    ) -> None:
        self.limit = limit
        self.bases, self.pairs, self.demand, self.room = bases, pairs, demand, room
        self.count = len(bases)
        self.near: list[list[tuple[int, Floats]]] = [[] for _ in bases]
        for (a, b), points in pairs.items():
            self.near[a].append((b, points.T))
            self.near[b].append((a, points))
        self.nodes, self.complete = 0, True
        self.best: list[int] | None = None
        self.value = -np.inf

    def value_of(self, sites: Sequence[int]) -> float:
        """Minus infinity where they may not be there together."""
        left = self.room.copy()
        for member, site in enumerate(sites):
            left[site] -= self.demand[member]
        if (left < 0).any():
            return -np.inf
        total = sum(float(base[site]) for base, site in zip(self.bases, sites, strict=True))
        return total + sum(float(points[sites[a], sites[b]]) for (a, b), points in self.pairs.items())

    def take(self, sites: Sequence[int]) -> None:
        """A placement that is known already."""
        value = self.value_of(sites)
        if value > self.value + _LITTLE:
            self.best, self.value = list(sites), value

    def run(self) -> None:
        start = self._insert()
        starts = [[site] * self.count for site in range(len(self.room))]
        if start is not None:
            starts.append(start)
        for sites in starts:
            self.take(sites)
        for sites in [s for s in (self.best, start) if s is not None]:
            self.take(self._improve(sites))
        order = sorted(range(self.count), key=lambda m: (-sum(float(p.max()) for _, p in self.near[m]), m))
        rest = self._rest(order)
        self._branch(order, 0, [-1] * self.count, 0.0, [b.copy() for b in self.bases], self.room.copy(), rest)

    def _insert(self) -> list[int] | None:
        """Those first that would lose most by their second choice, given who is placed already."""
        gains, left = [b.copy() for b in self.bases], self.room.copy()
        sites, open_members = [-1] * self.count, set(range(self.count))
        while open_members:
            chosen, regret = -1, -1.0
            for member in sorted(open_members):
                fitting = np.where((left >= self.demand[member]).all(axis=1), gains[member], -np.inf)
                if not np.isfinite(fitting).any():
                    return None
                two = np.sort(fitting)[-2:]
                loss = float(two[-1] - two[0]) if len(two) > 1 and np.isfinite(two[0]) else np.inf
                if loss > regret:
                    chosen, regret, best = member, loss, int(fitting.argmax())
            sites[chosen] = best
            left[best] -= self.demand[chosen]
            open_members.discard(chosen)
            for other, points in self.near[chosen]:
                gains[other] = gains[other] + points[:, best]
        return sites

    def _improve(self, sites: Sequence[int]) -> list[int]:
        """One at a time to where it gains most, until none gains; each round raises the value."""
        found, value = list(sites), self.value_of(sites)
        for _ in range(4 * self.count):
            changed = False
            for member in range(self.count):
                gain = self.bases[member].copy()
                for other, points in self.near[member]:
                    gain = gain + points[:, found[other]]
                for site in np.argsort(-gain, kind="stable")[:BEST].tolist():
                    trial = [*found[:member], int(site), *found[member + 1 :]]
                    if (new := self.value_of(trial)) > value + _LITTLE:
                        found, value, changed = trial, new, True
                        break
            if not changed:
                break
        return found

    def _rest(self, order: Sequence[int]) -> list[float]:
        """What the traffic among those from each depth on can be at most."""
        found = [0.0] * (self.count + 1)
        for depth in range(self.count - 1, -1, -1):
            later = set(order[depth + 1 :])
            most = sum(float(points.max()) for other, points in self.near[order[depth]] if other in later)
            found[depth] = found[depth + 1] + most
        return found

    def _branch(
        self, order: Sequence[int], depth: int, sites: list[int], value: float, gains: list[Floats], left: Ints, rest: list[float]
    ) -> None:
        if depth == self.count:
            self.take(sites)
            return
        later = order[depth + 1 :]
        member = order[depth]
        fitting = np.where((left >= self.demand[member]).all(axis=1), gains[member], -np.inf)
        beyond = sum(float(gains[m].max()) for m in later) + rest[depth]
        for site in np.argsort(-fitting, kind="stable").tolist():
            mine = float(fitting[site])
            if not np.isfinite(mine) or value + mine + beyond <= self.value + _LITTLE:
                break
            if self.nodes >= self.limit:
                self.complete = False
                return
            self.nodes += 1
            deeper = list(gains)
            for other, points in self.near[member]:
                deeper[other] = gains[other] + points[:, site]
            sites[member] = int(site)
            left[site] -= self.demand[member]
            self._branch(order, depth + 1, sites, value + mine, deeper, left, rest)
            left[site] += self.demand[member]
            sites[member] = -1


def _solve(asked: Sequence[_Component], world: World) -> Together | None:
    rows = _candidates(asked, world)
    number = {c.workload.ref: i for i, c in enumerate(asked)}
    inner = [
        (a, number[e.ref], e) for a, c in enumerate(asked) for e in c.workload.traffic if e.ref in number and a < number[e.ref]
    ]
    trips = trips_between([world[int(row)] for row in rows]) if inner else np.zeros((0, 0))
    prices = world.floats["egress_gib"][rows]
    pairs: dict[tuple[int, int], Floats] = {}
    for a, b, edge in inner:
        found = edge_points(edge, trips, prices)
        pairs[a, b] = pairs[a, b] + found if (a, b) in pairs else found
    all_of = ([bounded(each * c.workload.replicas) for each in (c.workload.cpu, c.workload.memory, 1)] for c in asked)
    demand = np.array(list(all_of), np.int64)
    search = Search([c.base[rows] for c in asked], pairs, demand, np.maximum(world.free[rows], 0))
    search.run()
    if search.best is None or not np.isfinite(search.value):
        return None
    weight = sum(c.weight for c in asked) + sum(e.weight + e.money for _, _, e in inner)
    everywhere = {int(row) for c in asked for row in np.flatnonzero(np.isfinite(c.base))} <= set(rows.tolist())
    if search.complete and everywhere:
        bound = search.value
    else:
        bound = sum(float(c.base.max()) for c in asked) + 100.0 * sum(e.weight + e.money for _, _, e in inner)
    places = {c.workload.ref: world.names[int(rows[site])] for c, site in zip(asked, search.best, strict=True)}
    return Together(places, search.value / weight if weight else 0.0, max(bound, search.value) / weight if weight else 0.0)


def _candidates(asked: Sequence[_Component], world: World) -> Ints:
    """The rows of sites that are looked at, in their order."""
    possible = np.logical_or.reduce([np.isfinite(c.base) for c in asked])
    if int(possible.sum()) <= CANDIDATES:
        return np.flatnonzero(possible)
    # Where somebody is, then the best ones by turns.
    there = [s.name for c in asked for e in c.workload.traffic for s, _ in e.at] + [s for c in asked for s in c.workload.current]
    found = dict.fromkeys(world.row_of[s] for s in there if s in world.row_of and possible[world.row_of[s]])
    ranked = [np.argsort(-c.base, kind="stable")[: max(BEST, CANDIDATES // len(asked))].tolist() for c in asked]
    for turn in range(max(len(r) for r in ranked)):
        found.update(dict.fromkeys(int(r[turn]) for r in ranked if turn < len(r) and possible[r[turn]]))
    # Where all of them may be, the best of these for all.
    common = np.sum([c.base for c in asked], axis=0)
    shared = [int(r) for r in np.argsort(-common, kind="stable")[:BEST] if np.isfinite(common[r])]
    return np.array(sorted({*shared, *list(found)[: CANDIDATES - len(shared)]}), np.int64)


def trips_between(sites: Sequence[ClusterInfo]) -> Floats:
    """Round trips (ms); NaN where one is not known."""
    found = np.zeros((len(sites), len(sites)))
    for a, one in enumerate(sites):
        for b in range(a):
            trip = traffic.round_trip(one, sites[b])
            found[a, b] = found[b, a] = np.nan if trip is None else trip
    return found


def edge_points(edge: Edge, trips: Floats, prices: Floats) -> Floats:
    """Weight x points of an edge, by the site of its workload and of its peer; minus infinity where that is too far."""
    found = edge.weight * columns.points(TRAFFIC, trips)
    if edge.money:
        hourly = traffic.HOUR_SECONDS / GIB
        paid = (edge.sent * hourly * prices[:, None] if edge.sent else 0.0) + (
            edge.answered * hourly * prices[None, :] if edge.answered else 0.0
        )
        money = np.broadcast_to(paid, trips.shape).copy()
        np.fill_diagonal(money, 0.0)
        found = found + edge.money * columns.points(EGRESS, money)
    return np.where(trips <= edge.most, found, -np.inf) if edge.hard else found
