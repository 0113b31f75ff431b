"""GPUs of the openb trace: how much of them can be given away as pods arrive, and at which power. Beside FGD and best-fit.

1,213 nodes with 6,212 GPUs and 8,152 pods of Alibaba's ``cluster-trace-gpu-v2023`` (``pods/openb-*``). Arrivals, as in Weng et
al., "Beware of Fragmentation" (USENIX ATC 2023) and its simulator: the whole list, and pods drawn from it with replacement until
130 % of all GPUs are asked for, in a random order, by seeds 42 to 51. Nothing ends. A pod that fits nowhere is turned away, and
none that fits is. The weight of power was chosen on seeds 1 and 2.

Both FGD and ours know how often the most frequent pods occur in the list, those that make up 95 % of it (as published), and
nothing of the order; "learned" is ours with only what has arrived so far. Ties, said with each figure: the first node by name
("lexicographic"), or any one ("random": the same generator for all policies, the first two seeds). FGD and best-fit round
their scores to whole numbers of 0 to 100, as published: where ties go by name, that packs.

Ours: what becomes unusable for others (``metaos.scheduler.fragmentation``), and the watts that are added times a weight.

Power: a node draws what its vCPUs draw idle, all the time, and more by the share of them that is taken (``power/coefficients-
aws-use.csv``); a GPU that anything has been given of draws its board's power, another one its idle power (the rule of Lettich et
al., "Power- and Fragmentation-aware Online Scheduling for GPU Datacenters", 2024). No node is switched off. The least that any
placement could draw is told beside it: as many GPUs awake as were given away, those first that draw least, and the cores that
were given away where a core draws least. Without the data (NEMO_DATA, or ../shared/data) nothing runs, and it says so.
"""

from __future__ import annotations

import csv
import gzip
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np

from bench.deferral import data
from bench.results import Figure, figure, write
from metaos.resources.devices import WHOLE
from metaos.scheduler.fragmentation import Ask, Floats, Gradient, Ints

SEEDS, FRONT_SEEDS = range(42, 52), range(42, 44)
ARRIVING, TYPICAL = 1.3, 0.95
#: GPUs for a watt: ours, and the others of the front.
WEIGHT, FRONT = 0.002, (0.0, 0.005)
#: Learned: from how many arrivals on, and each time that there are twice as many.
LEARNS_FROM = 64
#: Best-fit's largest node.
MOST_CPU, MOST_GPU = 128_000, 8_000
#: Model → (idle W, board W, the vCPUs' microarchitecture). Board power by NVIDIA's data sheets: T4 70 W, A10 150 W, Tesla P100
#: (PCIe) 250 W, V100 (SXM2) 300 W, A100 (SXM) 400 W. Data sheets say nothing of idling: idle power as Lettich et al. assume it.
#: G2 and G3 are names of the trace for models it does not tell; taken for A10 and A100, as they do. Microarchitectures of the
#: cloud's instances with these GPUs, of which the trace says nothing either: an assumption.
POWER: dict[str, tuple[float, float, str]] = {
    "T4": (10, 70, "Skylake"),
    "A10": (30, 150, "Ice Lake"),
    "G2": (30, 150, "Ice Lake"),
    "P100": (25, 250, "Broadwell"),
    "V100M16": (30, 300, "Skylake"),
    "V100M32": (30, 300, "Skylake"),
    "G3": (50, 400, "Ice Lake"),
}


@dataclass(frozen=True)
class Trace:
    """Nodes: thousandths of a core, MiB, GPUs, model; in the order of their names. Pods: one ask each."""

    cpu: Ints
    memory: Ints
    gpus: Ints
    models: tuple[str, ...]
    pods: tuple[Ask, ...]

    @property
    def capacity(self) -> int:
        return int(self.gpus.sum()) * WHOLE


@dataclass(frozen=True)
class Fleet:
    """What is free of some nodes. ``gpus``: nodes x GPUs, thousandths, the freest first; 0 where a node has fewer. ``core`` and
    ``wake``: watts that a thousandth of a core adds, and a GPU of which something is given."""

    cpu: Ints
    memory: Ints
    gpus: Ints
    core: Floats
    wake: Floats

    def some(self, rows: Ints) -> Fleet:
        return Fleet(self.cpu[rows], self.memory[rows], self.gpus[rows], self.core[rows], self.wake[rows])

    def take(self, node: int, gpu: int, ask: Ask) -> None:
        self.cpu[node] -= ask.cpu
        self.memory[node] -= ask.memory
        row = self.gpus[node]
        row[gpu : gpu + ask.gpus] -= ask.milli
        if self.cpu[node] < 0 or self.memory[node] < 0 or (row < 0).any():
            raise RuntimeError(f"node {node} is overfull")
        row[:] = -np.sort(-row)


#: Nodes x GPUs: what a pod costs there, the least is chosen; infinite where it does not fit. A node's by that node alone.
Policy = Callable[[Fleet, Ask], Floats]


def read(place: Path) -> Trace:
    with (place / "pods/openb-nodes.csv").open() as lines:
        nodes = sorted(csv.DictReader(lines), key=lambda row: row["sn"])
    with gzip.open(place / "pods/openb-pods-default.csv.gz", "rt") as lines:
        pods = [
            Ask(int(row["cpu_milli"]), int(row["memory_mib"]), int(row["num_gpu"]), int(row["gpu_milli"]))
            for row in csv.DictReader(lines)
        ]
    columns = [np.array([int(row[word]) for row in nodes], np.int64) for word in ("cpu_milli", "memory_mib", "gpu")]
    return Trace(columns[0], columns[1], columns[2], tuple(row["model"] for row in nodes), tuple(pods))


def coefficients(place: Path) -> dict[str, tuple[float, float]]:
    with (place / "power/coefficients-aws-use.csv").open() as lines:
        return {row["Architecture"]: (float(row["Min Watts"]), float(row["Max Watts"])) for row in csv.DictReader(lines)}


def arrivals(trace: Trace, seed: int) -> list[Ask]:
    random, found = Random(seed), list(trace.pods)
    asked = sum(ask.gpus * ask.milli for ask in found)
    while True:
        ask = random.choice(trace.pods)
        asked += ask.gpus * ask.milli
        if asked > ARRIVING * trace.capacity:
            break
        found.append(ask)
    random.shuffle(found)
    return found


# -- policies ----------------------------------------------------------------------------------------------


def typical(pods: Sequence[Ask]) -> dict[Ask, float]:
    """How often the most frequent ones come."""
    found: dict[Ask, float] = {}
    for ask, often in sorted(Counter(pods).items(), key=lambda item: (-item[1], item[0])):
        if sum(found.values()) >= TYPICAL * len(pods):
            break
        found[ask] = often
    return found


class Fragmentation(Gradient):
    """FGD's own: of a node that has room for one pod of a kind, all GPUs with room for its share are usable by the kind."""

    def __init__(self, pods: Sequence[Ask]) -> None:
        mix = typical(pods)
        super().__init__(mix)
        # Kinds without GPUs count, and use none.
        self._worth = np.array([often for ask, often in mix.items() if ask.gpus]) / sum(mix.values())

    def _offered(self, free: Ints) -> Floats:
        fits = free >= self._milli
        return np.stack([np.where(fits, free / WHOLE, 0.0), fits], axis=2)

    def _usable(self, offers: Floats, cpu: Floats, memory: Floats) -> Floats:
        room = (cpu[..., None] >= self._cpu) & (offers[..., 1] >= self._gpus)
        found: Floats = np.where(room, offers[..., 0], 0.0) @ self._worth
        return found


def fgd(gradient: Gradient) -> Policy:
    def costs(fleet: Fleet, ask: Ask) -> Floats:
        grown = gradient.losses(fleet.cpu, fleet.memory, fleet.gpus, ask) - ask.gpus * ask.milli / WHOLE
        with np.errstate(over="ignore"):
            return np.where(np.isfinite(grown), -np.floor(100 / (1 + np.exp(grown))), np.inf)

    return costs


def fits(fleet: Fleet, ask: Ask) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Nodes x GPUs; one that shares no GPU has the first column."""
    room = (fleet.cpu >= ask.cpu) & (fleet.memory >= ask.memory)
    if ask.gpus and ask.milli < WHOLE:
        found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = room[:, None] & (fleet.gpus >= ask.milli)
        return found
    first = np.zeros(fleet.gpus.shape, np.bool_)
    first[:, 0] = room & ((fleet.gpus == WHOLE).sum(axis=1) >= ask.gpus)
    return first


def best_fit(fleet: Fleet, ask: Ask) -> Floats:
    """The node that is left with least, CPU and GPU together; of its GPUs the fullest."""
    left = (fleet.cpu - ask.cpu) / MOST_CPU / 2 + (fleet.gpus.sum(axis=1) - ask.gpus * ask.milli) / MOST_GPU / 2
    score = np.floor(100 * (1 - left))
    return np.where(fits(fleet, ask), -score[:, None] + fleet.gpus / WHOLE / 2, np.inf)


def ours(gradient: Gradient) -> Policy:
    return lambda fleet, ask: gradient.losses(fleet.cpu, fleet.memory, fleet.gpus, ask)


# -- power -------------------------------------------------------------------------------------------------


class Meter:
    """Watts of all nodes."""

    def __init__(self, trace: Trace, watts: Mapping[str, tuple[float, float]]) -> None:
        """``watts``: a vCPU's, idle and at most, by microarchitecture."""
        self.trace = trace
        kinds = [POWER[model] for model in trace.models]
        self.idle, self.board = np.array([k[0] for k in kinds]), np.array([k[1] for k in kinds])
        self.low, self.high = np.array([watts[k[2]] for k in kinds]).T
        self._floor = self.total(self.empty())
        wake, core = self.board - self.idle, (self.high - self.low) / 1000
        self._wake = _cheapest(wake, trace.gpus * WHOLE)
        self._core = _cheapest(core * WHOLE, trace.cpu)

    def least(self, gpus: int, cores: int) -> float:
        """Watts that no placement goes below, with so many thousandths of GPUs and of cores given away."""
        return self._floor + float(np.interp(gpus, *self._wake) + np.interp(cores, *self._core))

    def empty(self) -> Fleet:
        trace = self.trace
        gpus = np.where(np.arange(trace.gpus.max()) < trace.gpus[:, None], WHOLE, 0)
        core = (self.high - self.low) / 1000
        return Fleet(trace.cpu.copy(), trace.memory.copy(), gpus, core, self.board - self.idle)

    def total(self, fleet: Fleet) -> float:
        taken = (self.trace.cpu - fleet.cpu) / 1000
        cpu = self.low * self.trace.cpu / 1000 + (self.high - self.low) * taken
        free = (fleet.gpus == WHOLE).sum(axis=1)
        gpu = self.idle * free + self.board * (self.trace.gpus - free)
        return float(cpu.sum() + gpu.sum())


def _cheapest(watts: Floats, amounts: Ints) -> tuple[Floats, Floats]:
    """Thousandths, and the watts of so many where they draw least; ``watts`` for 1,000 of them."""
    order = np.argsort(watts, kind="stable")
    most, drawn = np.cumsum(amounts[order]), np.cumsum(watts[order] * amounts[order] / WHOLE)
    return np.concatenate([[0.0], most]), np.concatenate([[0.0], drawn])


def added(fleet: Fleet, ask: Ask) -> Floats:
    """Nodes x GPUs: watts that a pod adds."""
    woken = (fleet.gpus == WHOLE) * ask.gpus if ask.gpus else np.zeros(fleet.gpus.shape)
    found: Floats = fleet.core[:, None] * ask.cpu + woken * fleet.wake[:, None]
    return found


def saving(policy: Policy, weight: float) -> Policy:
    """``weight``: how many GPUs that others could use are given up for a watt."""
    return lambda fleet, ask: policy(fleet, ask) + weight * added(fleet, ask)


# -- runs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """``allocated``: of the GPU capacity, in %, once all have arrived, and when as much was asked for as there is. ``watts``:
    on average over the arrivals."""

    allocated: float
    at_capacity: float
    watts: float
    seconds: float
    least_watts: float


def run(
    trace: Trace,
    asks: Sequence[Ask],
    policy: Policy,
    meter: Meter,
    ties: Random | None = None,
    learned: Callable[[Sequence[Ask]], Policy] | None = None,
) -> Run:
    """``learned``: the policy from what has arrived."""
    fleet, given, cores, asked, drawn, least = meter.empty(), 0, 0, 0, 0.0, 0.0
    started, power, at_capacity = time.process_time(), meter.total(fleet), 0
    # Of each ask what it costs where, and how many of the changes that counts.
    tables: dict[Ask, tuple[Floats, int]] = {}
    changes: list[int] = []
    for number, ask in enumerate(asks):
        if learned is not None and number >= LEARNS_FROM and number & (number - 1) == 0:
            policy = learned(asks[:number])
            tables.clear()
        cost, counted = tables.get(ask) or (policy(fleet, ask), len(changes))
        if counted < len(changes):
            rows = np.array(sorted(set(changes[counted:])), np.int64)
            cost[rows] = policy(fleet.some(rows), ask)
        tables[ask] = cost, len(changes)
        best = cost.min()
        asked += ask.gpus * ask.milli
        if np.isfinite(best):
            if ties is None:
                node, gpu = divmod(int(cost.argmin()), cost.shape[1])
            else:
                # Any node, then the first of its GPUs.
                rows = np.flatnonzero((cost <= best + 1e-9).any(axis=1))
                node = int(rows[ties.randrange(len(rows))])
                gpu = int(cost[node].argmin())
            power += float(added(fleet.some(np.array([node])), ask)[0, gpu])
            fleet.take(node, gpu, ask)
            changes.append(node)
            given += ask.gpus * ask.milli
            cores += ask.cpu
        drawn += power
        least += meter.least(given, cores)
        if asked <= trace.capacity:
            at_capacity = given
    if abs(power - meter.total(fleet)) > 1:
        raise RuntimeError(f"the power that was added up, {power:.0f} W, is not the fleet's, {meter.total(fleet):.0f} W")
    share = 100 / trace.capacity
    return Run(given * share, at_capacity * share, drawn / len(asks), time.process_time() - started, least / len(asks))


def policies(trace: Trace) -> dict[str, Policy]:
    return {
        "ours": saving(ours(Gradient(typical(trace.pods))), WEIGHT),
        "FGD": fgd(Fragmentation(trace.pods)),
        "best-fit": best_fit,
    }


def compare(place: Path, seed: int) -> dict[str, Run]:
    """The policies over the arrivals of one seed, ties by name."""
    trace = read(place)
    meter, asks = Meter(trace, coefficients(place)), arrivals(trace, seed)
    return {word: run(trace, asks, policy, meter) for word, policy in policies(trace).items()}


def variants(place: Path, seed: int) -> dict[str, Run]:
    """The policies with random ties; ours with other weights of power, and with what is learned on the way."""
    trace = read(place)
    meter, asks, mine = Meter(trace, coefficients(place)), arrivals(trace, seed), ours(Gradient(typical(trace.pods)))

    def learned(seen: Sequence[Ask]) -> Policy:
        return saving(ours(Gradient(typical(seen))), WEIGHT)

    ties = {f"{word}, random": run(trace, asks, policy, meter, Random(seed)) for word, policy in policies(trace).items()}
    found = {f"{weight:g} GPU/W": run(trace, asks, saving(mine, weight), meter) for weight in FRONT}
    return ties | found | {"learned": run(trace, asks, best_fit, meter, None, learned)}


def mean(runs: Sequence[dict[str, Run]], word: str, what: str) -> float:
    return sum(getattr(found[word], what) for found in runs) / len(runs)


def average(
    runs: Sequence[dict[str, Run]], name: str, what: str, unit: str, word: str, baseline: str, aim: float | None
) -> Figure:
    """The mean over the seeds, beside the baseline's; spread over the seeds."""
    values = [getattr(found[word], what) for found in runs]
    shown = figure(name, [mean(runs, word, what)], unit, baseline=[mean(runs, baseline, what)], aim=aim)
    return replace(shown, spread=(round(min(values), 3), round(max(values), 3)))


def saved(runs: Sequence[dict[str, Run]], name: str, word: str, aim: float | None) -> Figure:
    """Power below FGD's; as baseline what no placement of as much could exceed."""
    share = [100 * (1 - found[word].watts / found["FGD"].watts) for found in runs]
    most = [100 * (1 - found[word].least_watts / found["FGD"].watts) for found in runs]
    shown = figure(name, [sum(share) / len(share)], "%", baseline=[sum(most) / len(most)], aim=aim)
    return replace(shown, spread=(round(min(share), 3), round(max(share), 3)))


def table(runs: Sequence[dict[str, Run]], others: Sequence[dict[str, Run]]) -> list[Figure]:
    """``others``: the variants, of the first seeds, with those seeds' ``runs`` among them."""
    rows, seeds = [], len(others)
    for some, ties, after in ((runs, "lexicographic ties", ""), (others, f"random ties, {seeds} seeds", ", random")):
        for beside in ("FGD", "best-fit"):
            name = f"gpu: allocated, {ties} (baseline: {beside})"
            aim = round(mean(some, beside + after, "allocated"), 3)
            rows.append(average(some, name, "allocated", "%", f"ours{after}", beside + after, aim))
    rows += [
        average(runs, "    when 100 % was asked for (baseline: FGD)", "at_capacity", "%", "ours", "FGD", None),
        saved(runs, "gpu: power below FGD (baseline: the most possible)", "ours", 13.0),
        average(runs, "    watts over the arrivals (baseline: FGD)", "watts", "W", "ours", "FGD", None),
        average(runs, "    processor time of all arrivals (baseline: FGD)", "seconds", "s", "ours", "FGD", None),
    ]
    for word in [key for key in others[0] if key.endswith("GPU/W")]:
        rows.append(saved(others, f"gpu: power below FGD with {word}, {seeds} seeds", word, None))
        rows.append(average(others, "    allocated (baseline: FGD)", "allocated", "%", word, "FGD", None))
    rows.append(average(others, f"gpu: allocated, learned on the way, {seeds} seeds", "allocated", "%", "learned", "FGD", None))
    return rows


def main() -> None:
    place = data()
    if place is None:
        print("SKIPPED: the data is not here; set NEMO_DATA to its directory (pods/, power/)", flush=True)
        return
    with ProcessPoolExecutor(2) as pool:
        tried = pool.map(variants, [place] * len(FRONT_SEEDS), FRONT_SEEDS)
        runs = list(pool.map(compare, [place] * len(SEEDS), SEEDS))
        others = [found | run for found, run in zip(tried, runs, strict=False)]
    write("gpu", table(runs, others))


if __name__ == "__main__":
    main()
