"""Global re-optimisation: which workloads would move if all were placed at once, and how near that is to the best. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from metaos.resources.snapshot import Edge, Snapshot, WorkloadInfo
from metaos.resources.traffic import located
from metaos.scheduler import columns, exact
from metaos.scheduler import scores as scoring
from metaos.scheduler.applications import BEST, CANDIDATES, MOST_MEMBERS, Search, edge_points, trips_between
from metaos.scheduler.assignment import CLOSE, NOWHERE, Assignment, Floats, Ints, assign
from metaos.scheduler.filters import FILTERS, Filter, room
from metaos.scheduler.scores import SCORES, Score
from metaos.scheduler.world import World, taking

#: Partial placements that are looked at for all applications together, and for each at least.
MOST_NODES, LEAST_NODES = 20_000, 20


@dataclass(frozen=True, slots=True)
class Move:
    """``gain``: points of 100."""

    workload: WorkloadInfo
    site: str
    gain: float


@dataclass(frozen=True, slots=True)
class Optimum:
    """``before`` and ``after``: mean points over the ``considered`` workloads. ``gap``: how far the points that are missing to
    100, and what moves cost, are above the least that any placement could have, as a share of that least."""

    moves: tuple[Move, ...]
    considered: int
    before: float
    after: float
    gap: float


def movable(workload: WorkloadInfo) -> bool:
    """Whether it may go as a whole to another site for a gain. What is spread, has terms about other pods, is divided by weights
    or over several sites, pinned or settled, or has devices, stays as it is."""
    safe = any(t.name == "availability" and t.hard for t in workload.targets)
    asks = workload.policy.spread or workload.near or workload.spread or workload.weights or workload.devices or safe
    free = not (workload.pinned or workload.settled or workload.mode == "Everywhere" or asks)
    return free and workload.replicas > 0 and len(workload.current) <= 1


def costs(
    world: World,
    now: float,
    workloads: Sequence[WorkloadInfo],
    filters: Sequence[tuple[str, Filter]] = FILTERS,
    scores: Sequence[Score] = SCORES,
) -> Floats:
    """Workloads x sites: the points that are missing to 100, and the least gain that its policy asks of a move where it would
    move; infinite where a filter rejects. ``world`` without what these workloads take."""
    table = np.full((len(workloads), len(world)), np.inf)
    snapshot = Snapshot(now, world)
    for row, workload in enumerate(workloads):
        good = np.ones(len(world), np.bool_)
        for _, judge in filters:
            found = columns.mask(judge, snapshot, workload, world)
            if found is not None:
                good &= ~found
        here = world.at(workload.current)
        good &= here | ~columns.closed(workload, world)
        missing = 100.0 - columns.totals(workload, world, scoring.weighted(workload, scores))
        if workload.current:
            missing = missing + np.where(here, 0.0, workload.policy.minimum_improvement)
        table[row, good] = missing[good]
    return table


def optimise(
    snapshot: Snapshot,
    workloads: Sequence[WorkloadInfo],
    filters: Sequence[tuple[str, Filter]] = FILTERS,
    scores: Sequence[Score] = SCORES,
    *,
    rounds: int = 200,
    seconds: float = exact.SECONDS,
) -> Optimum:
    """``snapshot`` counts everything that is decided, these workloads too. Those that have no place are placed as well.

    Components that talk are placed together, near each other: first as if every round trip between them were nothing, which
    bounds what any placement could have, then application by application with what there is between the sites. Of an
    application with more than ``MOST_MEMBERS`` components each stays where it is. ``seconds``: for the exact solution of a small
    problem; 0: none is looked for, and equal inputs give equal outputs on every machine."""
    world = World.of(snapshot.clusters)
    places = {w.ref: w.current for w in workloads}
    asked = [located(w, lambda about: places.get(about, {}), world.site, world.holding) for w in workloads if movable(w)]
    groups = applications(asked)
    large = {member for group in groups if len(group) > MOST_MEMBERS for member in group}
    if large:
        keeping = {asked[member].ref for member in large}
        asked = [w for w in asked if w.ref not in keeping]
        groups = applications(asked)
    for workload in asked:
        world = taking(world, workload, workload.current, -1)
    inner = {asked[member].ref for group in groups for member in group}
    fixed = [replace(w, traffic=tuple(e for e in w.traffic if e.ref not in inner)) if w.ref in inner else w for w in asked]
    table = costs(world, snapshot.now, fixed, filters, scores)
    talk = Talk(asked, fixed, groups, world, scores, table) if groups else None
    demand = np.array([[w.cpu * w.replicas, w.memory * w.replicas, w.replicas] for w in asked], np.float64).reshape(-1, 3)
    # A site that is overfull takes nothing; what is there beside these workloads cannot be helped.
    free = np.maximum(world.free, 0).astype(np.float64)
    now = np.array([_row(world, workload) for workload in asked], np.int64)
    found = assign(table, demand, free, rounds=rounds)
    sites = found.sites
    if talk is not None:
        sites = _together(talk, table, demand, free, found.sites, now, rounds)
        if _cost(talk, table, now) <= _cost(talk, table, sites):
            sites = now
        found = replace(found, sites=sites, cost=_cost(talk, table, sites))
    found = _exactly(found, table, demand, free, talk, seconds)
    sites = found.sites
    moves, before, after, counted = [], 0.0, 0.0, 0
    for row, workload in enumerate(asked):
        new, old = int(sites[row]), int(now[row])
        if new == NOWHERE:
            continue
        extra = 0.0 if new == old or not workload.current else workload.policy.minimum_improvement
        apart = 0.0 if talk is None else talk.missing(row, sites)
        better = 100.0 - float(table[row, new] - extra) - apart
        after += better
        points = 0.0
        if old != NOWHERE and np.isfinite(table[row, old]):
            points = 100.0 - float(table[row, old]) - (0.0 if talk is None else talk.missing(row, now))
        before += points
        counted += 1
        if new != old:
            moves.append(Move(workload, world.names[new], better - points))
    moves.sort(key=lambda m: (-m.gain, m.workload.ref))
    return Optimum(tuple(moves), counted, before / counted if counted else 0.0, after / counted if counted else 0.0, found.gap)


def _exactly(found: Assignment, table: Floats, demand: Floats, free: Floats, talk: Talk | None, seconds: float) -> Assignment:
    """Of a small problem the best there is, or nearer to it, and a bound with what there is between those that talk."""
    pairs = {} if talk is None else talk.all_pairs()
    if not seconds or not len(table) or found.gap <= CLOSE or not 0 < exact.variables(table, pairs) <= exact.MOST_VARIABLES:
        return found
    known = found.sites if found.complete and np.isfinite(found.cost) else None
    best = exact.solve(table, demand, free, pairs, known, seconds=seconds)
    bound = max(found.bound, best.bound) if np.isfinite(best.bound) else found.bound
    if best.sites is None:
        return replace(found, bound=bound)
    alone = float(table[np.arange(len(table)), best.sites].sum())
    cost = alone if talk is None else _cost(talk, table, best.sites)
    if found.complete and cost >= found.cost:
        return replace(found, bound=bound)
    return Assignment(best.sites, cost, bound)


def in_turn(snapshot: Snapshot, moves: Sequence[Move]) -> tuple[Move, ...]:
    """Those of the moves that can be made one after the other, in such an order: each has its room when its turn comes. Of a ring
    of which nobody can begin none is."""
    world, left, found = World.of(snapshot.clusters), list(moves), []
    while left:
        waiting = []
        for move in left:
            free = taking(world, move.workload, move.workload.current, -1)
            target = free.site(move.site)
            if target is not None and room(move.workload, target) >= move.workload.replicas:
                world = taking(free, move.workload, {move.site: move.workload.replicas}, 1)
                found.append(move)
            else:
                waiting.append(move)
        if len(waiting) == len(left):
            break
        left = waiting
    return tuple(found)


def _row(world: World, workload: WorkloadInfo) -> int:
    return next((world.row_of[c] for c in workload.current if c in world.row_of), NOWHERE)


# -- components that talk ------------------------------------------------------------------------------------


def applications(asked: Sequence[WorkloadInfo]) -> list[list[int]]:
    """Those that talk to each other, directly or through others of these, each in order. Who talks to none of them is in none."""
    number = {w.ref: row for row, w in enumerate(asked)}
    root = list(range(len(asked)))

    def top(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = root[row]
        return row

    for row, workload in enumerate(asked):
        for edge in workload.traffic:
            if edge.ref in number:
                root[max(top(row), top(number[edge.ref]))] = min(top(row), top(number[edge.ref]))
    found: dict[int, list[int]] = {}
    for row in range(len(asked)):
        found.setdefault(top(row), []).append(row)
    return [group for group in found.values() if len(group) > 1]


class Talk:
    """What the traffic within applications is worth. Changes ``table``: each row counts the traffic of its workload with others
    of these as if it went nowhere; :meth:`missing` is what that is too little."""

    def __init__(
        self,
        asked: Sequence[WorkloadInfo],
        fixed: Sequence[WorkloadInfo],
        groups: Sequence[Sequence[int]],
        world: World,
        scores: Sequence[Score],
        table: Floats,
    ) -> None:
        self.groups, self._world = groups, world
        number = {w.ref: row for row, w in enumerate(asked)}
        #: By workload: the others that it talks to, and how; the sum of the weights of its terms.
        self.edges: dict[int, list[tuple[int, Edge]]] = {}
        self.weight: dict[int, float] = {}
        for group in groups:
            for row in group:
                self.edges[row] = [(number[e.ref], e) for e in asked[row].traffic if e.ref in number]
                base = sum(importance for _, importance in scoring.weighted(fixed[row], scores))
                within = sum(e.weight + e.money for _, e in self.edges[row])
                self.weight[row] = base + within
                extra = np.where(world.at(asked[row].current), 0.0, asked[row].policy.minimum_improvement)
                extra = extra if asked[row].current else np.zeros(len(world))
                table[row] = (table[row] - extra) * (base / self.weight[row] if self.weight[row] else 0.0) + extra

    def missing(self, row: int, sites: Ints) -> float:
        """Points of 100 that a workload loses by how far those are that it talks to; all of them for one that is nowhere."""
        found = 0.0
        for other, edge in self.edges.get(row, ()):
            lost = 100.0 * (edge.weight + edge.money)
            a, b = int(sites[row]), int(sites[other])
            if NOWHERE not in (a, b):
                rows = [a] if a == b else [a, b]
                trips = trips_between([self._world[r] for r in rows])
                earned = edge_points(edge, trips, self._world.floats["egress_gib"][rows])
                lost -= max(0.0, float(earned[0, len(rows) - 1]))
            found += lost / self.weight[row]
        return found

    def all_pairs(self) -> dict[tuple[int, int], Floats]:
        """By two workloads: points that both lose together, by all sites; infinite where they may not be there at once."""
        rows, found = np.arange(len(self._world)), dict[tuple[int, int], Floats]()
        for group in self.groups:
            found |= {(group[a], group[b]): -lost for (a, b), lost in self.pairs(group, rows).items()}
        return found

    def pairs(self, group: Sequence[int], rows: Ints) -> dict[tuple[int, int], Floats]:
        """By two members' positions in the group: points that both lose together, below nothing, by their sites."""
        at = {row: position for position, row in enumerate(group)}
        trips = trips_between([self._world[int(row)] for row in rows])
        prices = self._world.floats["egress_gib"][rows]
        found: dict[tuple[int, int], Floats] = {}
        for row in group:
            for other, edge in self.edges[row]:
                a, b = at[row], at[other]
                lost = (edge_points(edge, trips, prices) - 100.0 * (edge.weight + edge.money)) / self.weight[row]
                key, lost = ((a, b), lost) if a < b else ((b, a), lost.T)
                found[key] = found[key] + lost if key in found else lost
        return found


def _cost(talk: Talk, table: Floats, sites: Ints) -> float:
    """Infinite where somebody is nowhere, or may not be where it is."""
    if (sites == NOWHERE).any():
        return np.inf
    return float(table[np.arange(len(sites)), sites].sum()) + sum(talk.missing(row, sites) for row in talk.edges)


def _together(talk: Talk, table: Floats, demand: Floats, room: Floats, sites: Ints, now: Ints, rounds: int) -> Ints:
    """Each application where it is best with what there is between the sites, given where others are; then all others anew."""
    chosen, left = sites.copy(), room.copy()
    for row, site in enumerate(sites.tolist()):
        if site != NOWHERE:
            left[site] -= demand[row]
    for group in talk.groups:
        for row in group:
            if sites[row] != NOWHERE:
                left[sites[row]] += demand[row]
        rows = _candidates(table, group, (sites, now))
        search = Search(
            [-table[row, rows] for row in group],
            talk.pairs(group, rows),
            np.ceil(demand[list(group)]).astype(np.int64),
            np.floor(np.maximum(left[rows], 0.0)).astype(np.int64),
            limit=max(LEAST_NODES, MOST_NODES // len(talk.groups)),
        )
        position = {int(row): n for n, row in enumerate(rows)}
        for known in (now, sites):
            if all(int(known[row]) in position for row in group):
                search.take([position[int(known[row])] for row in group])
        search.run()
        for n, row in enumerate(group):
            good = search.best is not None and np.isfinite(search.value)
            chosen[row] = rows[search.best[n]] if good and search.best is not None else NOWHERE
            if chosen[row] != NOWHERE:
                left[chosen[row]] -= demand[row]
    within = {row for group in talk.groups for row in group}
    others = [row for row in range(len(sites)) if row not in within]
    if others and not np.array_equal(chosen, sites):
        free = room.copy()
        for row in within:
            if chosen[row] != NOWHERE:
                free[chosen[row]] -= demand[row]
        again = assign(table[others], demand[others], np.maximum(free, 0.0), rounds=max(1, rounds // 2))
        before = sum(float(table[row, sites[row]]) for row in others if sites[row] != NOWHERE)
        # Where they were is still there for them: what was found anew is only taken where it is better.
        if int((again.sites != NOWHERE).sum()) >= int((sites[others] != NOWHERE).sum()) and again.cost < before:
            chosen[others] = again.sites
    return chosen


def _candidates(table: Floats, group: Sequence[int], known: Sequence[Ints]) -> Ints:
    """Rows of sites that are looked at: where they are or would be, each one's best, and the best for all of them."""
    possible = np.isfinite(table[list(group)])
    if int(possible.any(axis=0).sum()) <= CANDIDATES:
        return np.flatnonzero(possible.any(axis=0))
    found = dict.fromkeys(int(sites[row]) for sites in known for row in group if sites[row] != NOWHERE)
    common = table[list(group)].sum(axis=0)
    found.update(dict.fromkeys(int(r) for r in np.argsort(common, kind="stable")[:BEST] if np.isfinite(common[r])))
    each = [np.argsort(table[row], kind="stable")[:BEST].tolist() for row in group]
    for turn in range(BEST):
        found.update(dict.fromkeys(int(r[turn]) for row, r in zip(group, each, strict=True) if np.isfinite(table[row, r[turn]])))
    return np.array(sorted(list(found)[: CANDIDATES + 2 * len(group)]), np.int64)
