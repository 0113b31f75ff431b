"""Many sites in the twin, with the hub's own registry and controllers: what each site, workload, heartbeat and decision costs.

Run by ``bench.scale``. In virtual time: sites join, workloads come, minutes pass in which nothing happens but heartbeats, a few
workloads more come, and the hub starts again. Sites are light, their calls do not pass HTTPS (``bench.scalehub`` measures that).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.results import Figure, figure
from bench.sampling import sampled
from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.store.memory import MemoryStore
from metaos.store.sqlite import SqliteStore
from metaos.twin.clock import VirtualLoop, run
from metaos.twin.timing import Timing
from metaos.twin.world import World

#: Workloads in one namespace; virtual seconds of nothing but heartbeats; workloads that come when all is there; virtual seconds
#: after a start.
EACH, QUIET_SECONDS, MORE, SETTLE_SECONDS = 100, 20.0, 20, 5.0
#: Sites join, and workloads come, so many at a time.
BATCH = 500
COUNTRIES = ("DE", "FR", "SE", "PL", "ES")


def cluster(number: int) -> Obj:
    spec = {
        "tier": "edge",
        "jurisdictions": [COUNTRIES[number % len(COUNTRIES)]],
        "capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"},
        "electricity": {"carbonIntensity": 20.0 + number * 7 % 900},
    }
    return {**scheme.CLUSTER.empty(f"site-{number:05}"), "spec": spec}


def workload(number: int) -> Obj:
    word, space = f"web-{number:06}", f"app-{number // EACH:04}"
    container = {"name": "main", "image": "python:3", "resources": {"requests": {"cpu": "250m", "memory": "128Mi"}}}
    template = {"metadata": {"labels": {"app": word}}, "spec": {"containers": [container]}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": word}}, "template": template}
    return {**scheme.DEPLOYMENT.empty(word, space), "spec": spec}


class Laps:
    """Processor seconds and writes since the last one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._cpu, self._writes = time.process_time(), 0

    def lap(self) -> tuple[float, int]:
        cpu, writes = time.process_time(), self._world.hub.disk.writes
        found = cpu - self._cpu, writes - self._writes
        self._cpu, self._writes = cpu, writes
        return found


def measure(sites: int, workloads: int, dump: Path | None) -> list[Figure]:
    """``dump``: where the state of the hub is left as a store in a file."""
    logging.basicConfig(level=logging.CRITICAL)
    found: list[Figure] = []
    run(lambda loop: _measure(loop, sites, workloads, found, dump))
    return found


async def _measure(loop: VirtualLoop, sites: int, workloads: int, found: list[Figure], dump: Path | None) -> None:
    loop.most_rounds = 20_000 + 300 * (sites + workloads)
    label = f"{sites:,} sites, {workloads:,} workloads"

    def say(what: str, value: float, unit: str) -> None:
        found.append(figure(f"{label}: {what}", [value], unit))

    world = World(loop, 1, Timing())
    await world.open()
    laps, idle = Laps(world), _resident()
    for first in range(0, sites, BATCH):
        for number in range(first, min(sites, first + BATCH)):
            await world.join(cluster(number))
        await world.run(1.0)
    await _until(world, "all sites to be ready", lambda: all(map(world.is_ready, world.sites)))
    cpu, writes = laps.lap()
    gc.collect()
    say("a site joins, processor time", 1000 * cpu / sites, "ms")
    say("a site joins, writes", writes / sites, "writes")
    say("memory of a site, simulated agent and hub together", 1024 * (_resident() - idle) / sites, "kB")
    before = _resident()
    for first in range(0, workloads, BATCH):
        numbers = range(first, min(workloads, first + BATCH))
        spaces = [scheme.NAMESPACE.empty(f"app-{n // EACH:04}") for n in numbers if n % EACH == 0]
        await world.apply(*spaces, *map(workload, numbers))
        await world.run(1.0)
    await _until(world, "all workloads to be ready", lambda: sum(c.ready for c in world.copies()) >= workloads)
    cpu, writes = laps.lap()
    gc.collect()
    say("a workload comes, processor time", 1000 * cpu / workloads, "ms")
    say("a workload comes, writes", writes / workloads, "writes")
    say("memory of a workload, simulated agent and hub together", 1024 * (_resident() - before) / workloads, "kB")

    await world.run(30.0)
    laps.lap()
    samples: Counter[str] = Counter()
    with sampled(samples):
        await world.run(QUIET_SECONDS)
    cpu, writes = laps.lap()
    say("quiet, processor time for a second", cpu / QUIET_SECONDS, "s")
    say("quiet, writes", writes / QUIET_SECONDS, "1/s")
    _shares(samples, cpu, writes, "quiet, for a write", say)

    samples.clear()
    with sampled(samples):
        for number in range(workloads, workloads + MORE):
            space = scheme.NAMESPACE.empty("late")
            obj = workload(number)
            obj["metadata"]["namespace"] = "late"
            await world.apply(space, obj)
        await _until(world, "more workloads", lambda: sum(c.ready for c in world.copies()) >= workloads + MORE)
    laps.lap()
    placing = samples["controllers: placement"]
    say("a workload more, processor time of placement", 1000 * 0.005 * placing / MORE, "ms")

    store = world.hub.disk.store
    kinds = Counter(key.partition("/")[0] for key, _ in store.revisions())
    say("objects in the store", sum(kinds.values()), "objects")
    size = sum(len(store.peek(key) or b"") for key, _ in store.revisions())
    say("an object in the store, on average", size / sum(kinds.values()), "bytes")
    print("    ", dict(kinds.most_common(12)), flush=True)
    if dump is not None:
        await _left(store, dump)
    laps.lap()
    samples.clear()
    with sampled(samples):
        await world.hub.kill()
        loop.much_is_gone = True
        await world.hub.start()
        cpu, _ = laps.lap()
        # In virtual time computing takes none: what is ready is done at once.
        await world.run(SETTLE_SECONDS)
    say("a start of the hub until its controllers have listed everything, processor time", cpu, "s")
    more, writes = laps.lap()
    say(f"and until they have looked at everything, with {SETTLE_SECONDS:g} s of heartbeats, processor time", more, "s")
    _shares(samples, cpu + more, sites, "a start, for a site", say)
    say("most memory of the whole world", _most(), "MB")
    say("processes that wanted to run, 15 minutes' mean", os.getloadavg()[2], "")
    await world.close()


def _shares(samples: Counter[str], cpu: float, each: int, what: str, say: Any) -> None:
    """Microseconds for each of what there were so many, by whom they were for: those of a hundredth at least, and the hub."""
    total = max(1, sum(samples.values()))
    for word, count in samples.most_common():
        if count * 100 >= total:
            say(f"{what}: {word}", 1e6 * cpu * count / total / max(1, each), "µs")
    hub = sum(count for word, count in samples.items() if word.startswith(("hub", "controllers")))
    say(f"{what}: all of the hub", 1e6 * cpu * hub / total / max(1, each), "µs")


async def _until(world: World, what: str, holds: Any, seconds: float = 1800.0) -> None:
    if not await world.until(holds, seconds, 2.0):
        raise SystemExit(f"waited {seconds:g} virtual seconds in vain for {what}")


async def _left(store: MemoryStore, file: Path) -> None:
    """Without Secrets, which a hub keeps sealed."""
    target = await SqliteStore.open(file)
    keys = [key for key, _ in store.revisions() if not key.startswith(f"{scheme.SECRET.resource}/")]
    for first in range(0, len(keys), BATCH):
        await asyncio.gather(*(target.create(key, store.peek(key) or b"") for key in keys[first : first + BATCH]))
    await target.close()


def _resident() -> float:
    """MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _most() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
