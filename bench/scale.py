"""How far one hub goes: 10,000 sites in the twin, a million objects in the stores and in a hub; and which limit comes first.

``python -m bench.scale [--sites N] [--workloads N] [--objects N] [--part twin|sqlite|postgres|hub|limits]`` writes
``bench/results/scale.json``; what was measured for other sizes, or in other parts, stays in it. In full it takes some 20
minutes of a core, 5 GB of memory and 3 GB of disk. ``build/scale`` keeps the state that the twin's hub came to, and that with
ConfigMaps beside it, on which the hub process starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.results import RESULTS, Figure, figure, write
from metaos.apiserver.gates import LONG_RUNNING_TOTAL

BUILD = Path(__file__).parents[1] / "build/scale"
PARTS = ("twin", "sqlite", "postgres", "hub", "limits")
#: Sizes of the twin's row: sites, and as many workloads.
ROW = (100, 1000)
#: What is assumed of a site: seconds between heartbeats and between reports, and what it holds open for long.
HEARTBEAT_SECONDS, WATCHES = 10.0, 3
#: What a hub may use: of one core, since it is one thread, and of memory.
BUSY, MEMORY_MB = 0.5, 16_384.0
#: How long a start may take.
START_SECONDS = 60.0


def twin(sites: int, workloads: int) -> list[Figure]:
    from bench.scaletwin import measure

    return measure(sites, workloads, _anew("twin.db"))


async def sqlite(objects: int) -> list[Figure]:
    """ConfigMaps beside what the twin's hub came to, until there are so many objects."""
    from bench.scalestore import fill, measure
    from metaos.store.sqlite import SqliteStore

    state = _anew("state.db")
    if (BUILD / "twin.db").exists():
        shutil.copy(BUILD / "twin.db", state)
    await (await SqliteStore.open(state)).close()
    added = fill(state, objects)
    return await measure("SQLite", await SqliteStore.open(state), added, state)


def _anew(name: str) -> Path:
    """Below ``build``, on a disk."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for left in BUILD.glob(f"{name}*"):
        left.unlink()
    return BUILD / name


async def postgres(objects: int) -> list[Figure]:
    from bench.postgres import Postgres
    from bench.scalestore import fill_database, measure
    from metaos.clock import SystemClock
    from metaos.store.database import Database
    from metaos.store.postgres import PostgresStore

    server = Postgres(durable=True)
    server.start()
    try:
        url = server.database()
        database = Database.parse(url)
        await (await PostgresStore.open(database, SystemClock())).close()
        added = await fill_database(url, objects)
        return await measure("PostgreSQL", await PostgresStore.open(database, SystemClock()), added)
    finally:
        server.stop()


async def hub(sites: int) -> list[Figure]:
    """A process on the state that the part before has left."""
    from bench.scalehub import measure

    if not (BUILD / "state.db").exists():
        raise SystemExit(f"{BUILD / 'state.db'} is missing: run python -m bench.scale --part sqlite before")
    with tempfile.TemporaryDirectory(prefix="hub-", dir=BUILD) as folder:
        data = Path(folder) / "hub"
        data.mkdir(mode=0o700)
        shutil.copy(BUILD / "state.db", data / "state.db")
        return await measure(data, sites)


def limits() -> list[Figure]:
    """At how many sites, or objects, each limit of one hub is met: arithmetic on the processor time, of one thread, and on the
    memory that stand in the file."""
    rows = json.loads((RESULTS / "scale.json").read_text())
    known = {str(row["name"]): float(row["value"]) for row in rows}

    def of(start: str, end: str) -> tuple[int, float]:
        """Of the figures with such a beginning and end, the one of the largest size, and that size."""
        found = [
            (int(size[0].replace(",", "")), value)
            for name, value in known.items()
            if name.startswith(start) and name.endswith(end) and (size := re.findall(r"[0-9][0-9,]*", name))
        ]
        if not found:
            raise SystemExit(f"bench/results/scale.json has no figure {start!r}…{end!r}: run its part before")
        return max(found)

    def hub(what: str) -> tuple[int, float]:
        return of("a hub with", f": {what}")

    def limit(what: str, value: float) -> Figure:
        return figure(f"limit: {what}", [value], what.partition(",")[0])

    beat = of("", ": quiet, for a write: all of the hub")[1] / 1e6
    objects, full = hub("memory at the end")
    _, start = hub("start until ready, processor time")
    watch = hub("a watch over HTTPS, memory")[1] / 1024
    again = of("", ": a start, for a site: all of the hub")[1] / 1e6
    return [
        limit(f"sites, {WATCHES} lasting requests each of {LONG_RUNNING_TOTAL:,}", LONG_RUNNING_TOTAL / WATCHES),
        limit(
            f"sites, heartbeats every {HEARTBEAT_SECONDS:g} s take half of a core, HTTPS apart", BUSY * HEARTBEAT_SECONDS / beat
        ),
        limit(f"sites, their watches take {MEMORY_MB / 1024:g} GB", MEMORY_MB / (WATCHES * watch)),
        limit(f"sites, a new leader has looked at all in {START_SECONDS:g} s", START_SECONDS / again),
        limit(f"objects, the leader takes {MEMORY_MB / 1024:g} GB", objects * MEMORY_MB / full),
        limit(f"objects, a hub is ready in {START_SECONDS:g} s", objects * START_SECONDS / start),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=10_000)
    parser.add_argument("--workloads", type=int, default=10_000)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--part", choices=PARTS)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    if asked.part is None:
        # A process each: one part's memory is not another's.
        runs = [("twin", size, size) for size in ROW] + [(part, asked.sites, asked.workloads) for part in PARTS]
        for part, sites, workloads in runs:
            sizes = ["--sites", str(sites), "--workloads", str(workloads), "--objects", str(asked.objects)]
            subprocess.run([sys.executable, "-m", "bench.scale", "--part", part, *sizes], check=True)
        return
    if asked.part == "twin":
        found = twin(asked.sites, asked.workloads)
    elif asked.part == "sqlite":
        found = asyncio.run(sqlite(asked.objects))
    elif asked.part == "postgres":
        found = asyncio.run(postgres(asked.objects))
    elif asked.part == "hub":
        found = asyncio.run(hub(asked.sites))
    else:
        found = limits()
    write("scale", found, beside=True)


if __name__ == "__main__":
    main()
