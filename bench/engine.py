"""How quickly decisions are made: one after the other, with everything that explains them kept, and with it looked at.

The baseline asks every filter and score of every site one by one, as third parties' plugins without columns are asked. Worlds are
made here from a seed: five regions of users, three laws, prices, carbon and forecasts drawn evenly; they are no measurement of
anything real.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from random import Random

import numpy as np

from bench.results import Figure, figure, percentile, write
from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, PolicyInfo, Snapshot, Spread, Target, Users, WorkloadInfo
from metaos.scheduler import exact
from metaos.scheduler.applications import Search
from metaos.scheduler.assignment import assign
from metaos.scheduler.explain import placement_status
from metaos.scheduler.filters import FILTERS, Filter
from metaos.scheduler.framework import Plan, decide
from metaos.scheduler.optimise import MOST_NODES, costs, optimise
from metaos.scheduler.scores import SCORES, Score
from metaos.scheduler.world import World, taking

NOW, ROUNDS = 1_700_000_000.0, 3
QUEUED = 10_000
SMALL_SEEDS = 8


def site(number: int, random: Random, cores: int) -> ClusterInfo:
    return ClusterInfo(
        name=f"site-{number:05}",
        ready=True,
        labels={"disk": random.choice(["ssd", "hdd"])},
        tier=random.choice(["cloud", "edge"]),
        region=f"region-{number % 40}",
        country=f"C{number % 27}",
        zone=f"zone-{number % 28}",
        jurisdictions=frozenset({random.choice(["EU", "US", "CH"])}),
        cpu=cores * 1000,
        memory=cores * 4 << 30,
        pods=cores * 10,
        capacity_cpu=cores * 1000,
        carbon=random.uniform(20, 700),
        forecast=tuple(random.uniform(20, 700) for _ in range(24)),
        idle_watts=50,
        max_watts=random.uniform(100, 400),
        cpu_hour=random.uniform(0.01, 0.1),
        memory_gib_hour=0.001,
        latencies={f"users-{n}": random.uniform(2, 120) for n in range(5)},
        availability=random.uniform(0.95, 0.9999),
    )


def workload(number: int, random: Random) -> WorkloadInfo:
    """All terms: a hard bound on latency, the law, two wishes, a spread."""
    targets = (
        Target("latency", "IsLessThan", 100.0, hard=True, users=Users((f"users-{number % 5}",)), intent="near"),
        Target("residency", "IsOneOf", values=("EU", "CH"), hard=True, intent="law"),
        Target("carbonIntensity", "Minimize", intent="clean", priority=number % 100),
        Target("cost", "IsLessThan", 0.05, intent="cheap"),
    )
    policy = PolicyInfo(names=("spread",), spread=(Spread("region", 2),)) if number % 4 == 0 else PolicyInfo()
    return WorkloadInfo(
        ref=ObjectRef("apps", "Deployment", "bench", f"w{number}"),
        uid=str(number),
        generation=1,
        replicas=1 + number % 3,
        cpu=random.choice([100, 250, 500]),
        memory=random.choice([128, 256, 512]) << 20,
        mode="Divided",
        node_selector={"disk": "ssd"} if number % 3 == 0 else {},
        targets=targets,
        policy=policy,
    )


def one_by_one() -> tuple[Sequence[tuple[str, Filter]], Sequence[Score]]:
    """The same filters and scores, hidden so that each is asked site by site."""
    filters = [(name, _hidden(judge)) for name, judge in FILTERS]
    scores = [
        Score(s.name, s.unit, (lambda w, c, measure=s.measure: measure(w, c)), s.reference, s.weight, s.target, s.more_is_better)  # type: ignore[misc]
        for s in SCORES
    ]
    return filters, scores


def _hidden(judge: Filter) -> Filter:
    return lambda snapshot, what, cluster: judge(snapshot, what, cluster)


def arrivals(
    world: World,
    queue: Sequence[WorkloadInfo],
    look: Callable[[Plan], object],
    plugins: tuple[Sequence[tuple[str, Filter]], Sequence[Score]],
) -> list[float]:
    """Milliseconds of each decision; what is decided takes its room before the next one."""
    times = []
    for what in queue:
        started = time.perf_counter()
        plan = decide(Snapshot(NOW, world), what, *plugins)
        look(plan)
        times.append((time.perf_counter() - started) * 1000)
        world = taking(world, what, dict(plan.clusters), 1)
    return times


def at_once() -> list[Figure]:
    """5,000 workloads on 1,000 sites, all placed at once: how long, how near to the bound, and against one after the other."""
    found: dict[str, list[float]] = {"seconds": [], "gap": [], "missing": [], "turns": []}
    for seed in range(ROUNDS):
        random = Random(seed)
        world = World([site(n, random, 6) for n in range(1_000)])
        asked = [replace(workload(n, random), policy=PolicyInfo()) for n in range(5_000)]
        started = time.perf_counter()
        result = optimise(Snapshot(NOW, world), asked)
        found["seconds"].append(time.perf_counter() - started)
        found["gap"].append(result.gap * 100)
        found["missing"].append(100 - result.after)
        table = costs(world, NOW, asked)
        missing = []
        for row, what in enumerate(asked):
            plan = decide(Snapshot(NOW, world), replace(what, mode="Whole"))
            if plan.clusters:
                missing.append(float(table[row, world.row_of[plan.clusters[0][0]]]))
            world = taking(world, what, dict(plan.clusters), 1)
        found["turns"].append(sum(missing) / len(missing))
        print(f"  5,000 workloads at once, seed {seed}: {found['seconds'][-1]:.1f} s, gap {found['gap'][-1]:.2f} %", flush=True)
    return [
        figure("engine: 1,000 sites x 5,000 workloads at once, all terms", found["seconds"], "s", aim=10),
        figure("    gap to the Lagrangian bound of the room", found["gap"], "%", aim=1),
        figure("    mean points missing to 100 (baseline: one by one)", found["missing"], "points", baseline=found["turns"]),
    ]


def small() -> list[Figure]:
    """Few workloads on few sites that are nearly full, by the heuristics and bound that large problems have, and by HiGHS; and
    one application whose components talk, by branch and bound of our own, as arrivals have it, and by HiGHS."""
    found: dict[str, list[float]] = {}

    def keep(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for seed, (share, word) in product(range(SMALL_SEEDS), ((1.15, "full"), (1.3, "roomy"))):
        chance = np.random.default_rng(seed)
        price, demand = chance.uniform(10, 60, (40, 10)), chance.integers(1, 20, (40, 3)).astype(float)
        room = np.tile(demand.sum(axis=0) * share / 10, (10, 1))
        started = time.perf_counter()
        own = assign(price, demand, room)
        keep(f"{word} own seconds", time.perf_counter() - started)
        started = time.perf_counter()
        best = exact.solve(price, demand, room, {}, own.sites if own.complete else None)
        keep(f"{word} seconds", time.perf_counter() - started)
        keep(f"{word} own placed", 100.0 * own.complete)
        keep(f"{word} placed", 100.0 * (best.sites is not None))
        if own.complete and best.sites is not None:
            keep(f"{word} own gap", 100 * own.gap)
            keep(f"{word} gap", 100 * max(0.0, cost_of(best.sites, price, {}) / best.bound - 1))
    for seed in range(SMALL_SEEDS):
        chance = np.random.default_rng(seed)
        at = chance.uniform(0, 100, (16, 2))
        apart = np.linalg.norm(at[:, None] - at[None], axis=2)
        price, asks = chance.uniform(10, 60, (12, 16)), chance.integers(1, 20, (12, 3))
        places = np.maximum(np.tile(np.ceil(asks.sum(axis=0) * 1.5 / 16).astype(int), (16, 1)), asks.max(axis=0))
        ends = {(int(min(e)), int(max(e))) for e in (chance.choice(12, 2, replace=False) for _ in range(14))}
        pairs = {pair: apart * chance.uniform(0.1, 0.6) for pair in sorted(ends)}
        started = time.perf_counter()
        search = Search([-p for p in price], {k: -v for k, v in pairs.items()}, asks, places, limit=MOST_NODES)
        search.run()
        keep("search seconds", time.perf_counter() - started)
        started = time.perf_counter()
        known = np.array(search.best, np.int64) if search.best is not None else None
        best = exact.solve(price, asks.astype(float), places.astype(float), pairs, known)
        keep("app seconds", time.perf_counter() - started)
        value = float(-search.value) if best.sites is None else cost_of(best.sites, price, pairs)
        keep("search over", 100 * (-search.value / best.bound - 1))
        keep("app over", 100 * max(0.0, min(value, -search.value) / best.bound - 1))
    return [
        figure(
            "engine: 40 workloads, 10 sites, 15 % room left, HiGHS",
            found["full seconds"],
            "s",
            baseline=found["full own seconds"],
        ),
        figure(
            "    all placed (baseline: greedy, prices, local search)",
            [float(np.mean(found["full placed"]))],
            "%",
            baseline=[float(np.mean(found["full own placed"]))],
        ),
        figure("    the same with 30 % room left", found["roomy seconds"], "s", baseline=found["roomy own seconds"]),
        figure(
            "    gap, where both place all (baseline: to own bound)", found["roomy gap"], "%", baseline=found["roomy own gap"]
        ),
        figure("engine: an application of 12 on 16 sites, HiGHS", found["app seconds"], "s", baseline=found["search seconds"]),
        figure("    above HiGHS' bound (baseline: branch and bound)", found["app over"], "%", baseline=found["search over"]),
    ]


def cost_of(sites: np.ndarray, price: np.ndarray, pairs: Mapping[tuple[int, int], np.ndarray]) -> float:
    """Of a placement."""
    alone = float(price[np.arange(len(sites)), sites].sum())
    return alone + sum(float(table[sites[a], sites[b]]) for (a, b), table in pairs.items())


def main() -> None:
    rows: list[Figure] = []
    plain = (FILTERS, SCORES)
    for sites, count in ((100, QUEUED), (1_000, 1_000), (5_000, 300)):
        found: dict[str, list[float]] = {"rate": [], "p50": [], "p99": [], "explained": [], "alone": []}
        for seed in range(ROUNDS):
            random = Random(seed)
            # Room for everything that comes.
            cores = max(64, count * 3 // sites)
            infos = [site(n, random, cores) for n in range(sites)]
            queue = [workload(n, random) for n in range(count)]
            times = arrivals(World(infos), queue, lambda plan: None, plain)
            found["rate"].append(1000 * len(times) / sum(times))
            found["p50"].append(percentile(times, 0.5))
            found["p99"].append(percentile(times, 0.99))
            some = queue[: max(50, count // 20)]
            told = arrivals(World(infos), some, placement_status, plain)
            found["explained"].append(1000 * len(told) / sum(told))
            few = queue[: max(10, 2_000 // sites)]
            slow = arrivals(World(infos), few, lambda plan: None, one_by_one())
            found["alone"].append(1000 * len(slow) / sum(slow))
            print(f"  {sites} sites, seed {seed}: {found['rate'][-1]:,.0f}/s", flush=True)
        aims = {100: (2_000.0, 5.0), 5_000: (50.0, 20.0)}.get(sites, (None, None))
        rows += [
            figure(
                f"engine: decisions, {sites:,} sites, reasons kept", found["rate"], "1/s", baseline=found["alone"], aim=aims[0]
            ),
            figure("    the same with the reasons of 50 sites in words", found["explained"], "1/s"),
            figure(f"engine: one decision, {sites:,} sites, {count:,} queued, p50", found["p50"], "ms"),
            figure(f"engine: one decision, {sites:,} sites, {count:,} queued, p99", found["p99"], "ms", aim=aims[1]),
        ]
    write("engine", rows + at_once() + small())


if __name__ == "__main__":
    main()
