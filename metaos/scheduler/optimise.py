"""Global re-optimisation: which workloads would move if all were placed at once, and how near that is to the best. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaos.resources.snapshot import Snapshot, WorkloadInfo
from metaos.scheduler import columns
from metaos.scheduler import scores as scoring
from metaos.scheduler.assignment import NOWHERE, Floats, assign
from metaos.scheduler.filters import FILTERS, Filter
from metaos.scheduler.scores import SCORES, Score
from metaos.scheduler.world import World, taking


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
    """Whether it may go as a whole to another site for a gain. What is spread, divided by weights or over several sites, pinned
    or settled, or has devices, stays as it is."""
    asks = workload.policy.spread or workload.weights or any(t.name == "availability" and t.hard for t in workload.targets)
    free = not (workload.pinned or workload.settled or workload.mode == "Everywhere" or asks or workload.devices)
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
) -> Optimum:
    """``snapshot`` counts everything that is decided, these workloads too. Those that have no place are placed as well."""
    asked = [w for w in workloads if movable(w)]
    world = World.of(snapshot.clusters)
    for workload in asked:
        world = taking(world, workload, workload.current, -1)
    table = costs(world, snapshot.now, asked, filters, scores)
    demand = np.array([[w.cpu * w.replicas, w.memory * w.replicas, w.replicas] for w in asked], np.float64).reshape(-1, 3)
    # A site that is overfull takes nothing; what is there beside these workloads cannot be helped.
    room = np.maximum(world.free, 0).astype(np.float64)
    found = assign(table, demand, room, rounds=rounds)
    moves, before, after, counted = [], 0.0, 0.0, 0
    for row, workload in enumerate(asked):
        new = int(found.sites[row])
        old = next((world.row_of[c] for c in workload.current if c in world.row_of), NOWHERE)
        if new == NOWHERE:
            continue
        extra = 0.0 if new == old or not workload.current else workload.policy.minimum_improvement
        better = 100.0 - float(table[row, new] - extra)
        after += better
        points = 100.0 - float(table[row, old]) if old != NOWHERE and np.isfinite(table[row, old]) else 0.0
        before += points
        counted += 1
        if new != old:
            moves.append(Move(workload, world.names[new], better - points))
    moves.sort(key=lambda m: (-m.gain, m.workload.ref))
    return Optimum(tuple(moves), counted, before / counted if counted else 0.0, after / counted if counted else 0.0, found.gap)
