"""How whoever learns takes part: as a score, the way a learned policy does in the hub. The scheduler's filters decide what is
possible, whatever is preferred here, so no action breaks a residency or a capacity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, WorkloadInfo
from metaos.scheduler.scores import Score
from metaos.scheduler.world import Floats, World

#: Against ten or so of the others together: a preference of 100 points outweighs them all.
WEIGHT = 1000.0


class Steering:
    """Measures the points that were told for a workload; others get none anywhere. Bounded by the scenario's workloads."""

    def __init__(self) -> None:
        self._told: dict[ObjectRef, Mapping[str, float]] = {}

    def tell(self, about: ObjectRef, points: Mapping[str, float]) -> None:
        self._told[about] = points

    def __call__(self, workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
        return self._told.get(workload.ref, {}).get(cluster.name, 0.0)

    def column(self, workload: WorkloadInfo, world: World) -> Floats:
        told = self._told.get(workload.ref, {})
        return np.array([told.get(site, 0.0) for site in world.names])

    def score(self, weight: float = WEIGHT) -> Score:
        return Score("steering", "points", self, 0.0, weight, "", True)
