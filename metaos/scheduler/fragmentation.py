"""What a placement takes away from others: the GPUs that those who usually ask could still use before it, less those after.

A GPU is stranded where a fraction is left that nobody asks for, or where CPU or memory ran out beside it. What is usable at a
site is how much of its GPUs would be taken if only pods of one kind came, averaged over the kinds by how often they are asked
for; CPU and memory are divided without rounding, thousandths of a GPU are not. A placement goes where least becomes unusable.

After Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent" (USENIX ATC
2023), who count a free GPU as usable by a kind where one pod of it fits. Here all that fit are counted, by thousandths and by
CPU: so an 810-thousandths pod strands 190, and a site whose CPU suffices for five of its eight GPUs has three stranded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metaos.resources.devices import WHOLE, Mix, share
from metaos.resources.snapshot import ClusterInfo, WorkloadInfo
from metaos.scheduler.world import World, gpus

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: (site's state, ask) pairs whose losses are remembered; above that they are forgotten and worked out again.
MOST_KNOWN = 200_000
#: States that are worked out at once: bounds memory.
AT_ONCE = 256


class Ask(NamedTuple):
    """What one pod asks for: thousandths of a core, bytes, GPUs, and thousandths of each of them."""

    cpu: int
    memory: int
    gpus: int
    milli: int


class Gradient:
    """For one mix of asks, by how often each comes. Asks without GPUs use none, so they do not count."""

    def __init__(self, mix: Mapping[Ask, float]) -> None:
        kinds = [(ask, often) for ask, often in mix.items() if ask.gpus and often > 0]
        table = np.array([ask for ask, _ in kinds], np.float64).reshape(-1, 4)
        self._cpu, self._memory, self._gpus, self._milli = table.T
        often = np.array([o for _, o in kinds], np.float64)
        #: GPUs that one pod of a kind uses, times how often it comes.
        self._worth = often / max(often.sum(), 1e-300) * self._gpus * self._milli / WHOLE
        free = np.arange(WHOLE + 1)[:, None]
        #: By free thousandths of one GPU and kind: what it offers. Summed over a site's GPUs.
        self._offers: Floats = self._offered(free)
        self._known: dict[Ask, dict[bytes, Floats]] = {}
        self._count = 0

    def _offered(self, free: Ints) -> Floats:
        """Thousandths x kinds x features."""
        fits = np.where(self._milli < WHOLE, free // np.maximum(1, self._milli), free == WHOLE)
        return fits[:, :, None].astype(np.float64)

    def _usable(self, offers: Floats, cpu: Floats, memory: Floats) -> Floats:
        """GPUs; ``offers``: … x kinds x features, ``cpu`` and ``memory``: … ."""
        with np.errstate(divide="ignore", invalid="ignore"):
            by_cpu = np.where(self._cpu > 0, cpu[..., None] / self._cpu, np.inf)
            by_memory = np.where(self._memory > 0, memory[..., None] / self._memory, np.inf)
        pods = np.minimum(np.minimum(by_cpu, by_memory), offers[..., 0] // self._gpus)
        found: Floats = pods @ self._worth
        return found

    def losses(self, cpu: Ints, memory: Ints, gpus: Ints, ask: Ask) -> Floats:
        """Sites x GPUs: usable GPUs that the pod takes where it shares this one (in the first column where it shares none);
        infinite where it does not fit. ``gpus``: sites x GPUs, free thousandths, the freest first."""
        state = np.ascontiguousarray(np.column_stack([cpu, memory, gpus]).astype(np.int64))
        keys = [row.tobytes() for row in state]
        if self._count > MOST_KNOWN:
            self._known.clear()
            self._count = 0
        known = self._known.setdefault(ask, {})
        fresh = {key: row for row, key in enumerate(keys) if key not in known}
        rows = np.fromiter(fresh.values(), np.int64, len(fresh))
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            for row, found in zip(some, self._work_out(state[some], ask), strict=True):
                known[keys[row]] = found
        self._count += len(fresh)
        return np.array([known[key] for key in keys]).reshape(len(keys), max(1, gpus.shape[1]))

    def _work_out(self, state: Ints, ask: Ask) -> Floats:
        found = np.full((len(state), max(1, state.shape[1] - 2)), np.inf)
        fits = (state[:, :1] >= ask.cpu) & (state[:, 1:2] >= ask.memory)
        shared = bool(ask.gpus) and ask.milli < WHOLE
        if shared:
            fits = fits & (state[:, 2:] >= ask.milli)
            # Of GPUs with as much free the first one stands for all.
            fits[:, 1:] &= state[:, 3:] != state[:, 2:-1]
        else:
            fits = fits & ((state[:, 2:] == WHOLE).sum(axis=1, keepdims=True) >= ask.gpus)
        some = fits.any(axis=1)
        if not some.any():
            return found
        cpu, memory, gpus = state[some, 0].astype(np.float64), state[some, 1].astype(np.float64), state[some, 2:]
        offers: Floats = self._offers[gpus].sum(axis=1)
        now = self._usable(offers, cpu, memory)
        if shared:
            at, gpu = np.nonzero(fits[some])
            before = gpus[at, gpu]
            then: Floats = offers[at] - self._offers[before] + self._offers[before - ask.milli]
            lost = np.full(gpus.shape, np.inf)
            lost[at, gpu] = now[at] - self._usable(then, cpu[at] - ask.cpu, memory[at] - ask.memory)
            found[some] = lost
        else:
            then = offers - ask.gpus * self._offers[WHOLE]
            found[some, 0] = now - self._usable(then, cpu - ask.cpu, memory - ask.memory)
        return found


@lru_cache(maxsize=4)
def gradient(mix: Mix) -> Gradient:
    return Gradient({Ask(cpu, memory, *share(asks)): often for (cpu, memory, asks), often in mix})


def losses(workload: WorkloadInfo, world: World) -> Floats:
    """Of one replica at its best GPU, by site; NaN where it does not fit."""
    return _of(workload, world.free, world.gpus())


def lost(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    """The same at one site."""
    free = np.array([[cluster.cpu - cluster.cpu_requested, cluster.memory - cluster.memory_requested]], np.int64)
    found = float(_of(workload, free, np.array([gpus(cluster)], np.int64))[0])
    return None if np.isnan(found) else found


def _of(workload: WorkloadInfo, free: Ints, each: Ints) -> Floats:
    ask = Ask(workload.cpu, workload.memory, *share(workload.devices))
    found = gradient(workload.mix).losses(np.maximum(free[:, 0], 0), np.maximum(free[:, 1], 0), each, ask).min(axis=1)
    return np.where(np.isfinite(found), found, np.nan)
