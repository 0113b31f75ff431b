"""What a learned policy sees: one row of numbers for each site, about one workload. The same in the twin, where policies are
trained, and in the hub, where they decide. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from metaos.resources.snapshot import GIB, WorkloadInfo
from metaos.scheduler import columns, scores
from metaos.scheduler.world import Floats, World

Rows = NDArray[np.float32]

#: In place of what is not known.
UNKNOWN = -1.0
#: Larger figures are cut to this.
MOST = 10.0


def _share(world: World, column: int, whole: Floats) -> Floats:
    return np.maximum(0.0, world.free[:, column] / np.where(whole > 0, whole, np.inf))


def _memory(workload: WorkloadInfo, world: World) -> Floats:
    return _share(world, 1, np.fromiter((c.memory for c in world), np.float64, len(world)))


def _fits(workload: WorkloadInfo, world: World) -> Floats:
    return np.minimum(columns.room(workload, world), workload.replicas) / max(1, workload.replicas)


def _here(workload: WorkloadInfo, world: World) -> Floats:
    found = np.zeros(len(world))
    for site, count in workload.current.items():
        if site in world.row_of:
            found[world.row_of[site]] = count / max(1, workload.replicas)
    return found


def _every(value: float, world: World) -> Floats:
    return np.full(len(world), value)


#: Name, what it is divided by, its unit before that, and how it is read. A model's input has a column for each, in this order.
FEATURES: tuple[tuple[str, float, str, Callable[[WorkloadInfo, World], Floats]], ...] = (
    ("latency", 100.0, "ms", lambda w, world: world.trip(scores.users(w))),
    ("carbon", 500.0, "gCO2eq/kWh", lambda w, world: world.floats["carbon"]),
    ("carbonAhead", 500.0, "gCO2eq/kWh", lambda w, world: world.floats["carbon_ahead"]),
    ("power", 100.0, "W", lambda w, world: columns.values(scores.ENERGY, w, world)),
    ("cost", 1.0, "EUR/h", lambda w, world: columns.values(scores.COST, w, world)),
    ("availability", 1.0, "", lambda w, world: world.floats["availability"]),
    ("freeCpu", 1.0, "share", lambda w, world: _share(world, 0, world.floats["cpu"])),
    ("freeMemory", 1.0, "share", _memory),
    ("fits", 1.0, "share of the replicas", _fits),
    ("open", 1.0, "1: takes new work", lambda w, world: (~columns.closed(w, world)).astype(np.float64)),
    ("here", 1.0, "share of the replicas", _here),
    ("cpu", 16.0, "cores of all replicas", lambda w, world: _every(w.cpu * w.replicas / 1000, world)),
    ("memory", 64.0, "GiB of all replicas", lambda w, world: _every(w.memory * w.replicas / GIB, world)),
    ("replicas", 10.0, "", lambda w, world: _every(float(w.replicas), world)),
)


def observe(workload: WorkloadInfo, world: World) -> Rows:
    """Shape (sites, features), float32, from ``UNKNOWN`` to ``MOST``; sites in the order of names. A row depends on its own site
    and the workload only."""
    found = np.empty((len(world), len(FEATURES)), np.float32)
    for number, (_, scale, _, read) in enumerate(FEATURES):
        column = read(workload, world) / scale
        found[:, number] = np.where(np.isnan(column), UNKNOWN, np.clip(column, UNKNOWN, MOST))
    return found
