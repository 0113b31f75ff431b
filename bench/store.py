"""How fast the store is: 16 clients with group commit, against a bare SQLite loop with the same durability.

``python bench/store.py [--directory DIR] [--rounds N]`` writes ``bench/results/store.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metaos.store.log import Store
from metaos.store.sqlite import SqliteStore

CLIENTS = 16
VALUE = b'{"apiVersion":"v1","kind":"ConfigMap","data":{"k":"' + b"x" * 450 + b'"}}'
Figures = dict[str, float]


async def share(count: int, one: Callable[[int], Any]) -> float:
    """``count`` calls by ``CLIENTS`` clients, each with one call in flight. Calls per second."""
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await one(number)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return count / (time.perf_counter() - start)


async def measure(store: Store, count: int) -> Figures:
    """Closes the store."""
    found: Figures = {}
    revisions = [0] * count

    async def create(n: int) -> None:
        revisions[n] = await store.create(f"configmaps/bench/c{n:06d}", VALUE)

    async def update(n: int) -> None:
        revisions[n] = await store.update(f"configmaps/bench/c{n:06d}", VALUE, expected=revisions[n])

    found["create"] = await share(count, create)
    found["update"] = await share(count, update)
    found["get"] = await share(count, lambda n: store.get(f"configmaps/bench/c{n:06d}"))
    start = time.perf_counter()
    await store.list("configmaps/bench/", limit=2000)
    found["list"] = (time.perf_counter() - start) * 1000

    # Lag: from the moment a writer has its acknowledgement to the moment a watcher has the event, under the same load.
    acknowledged: dict[int, float] = {}
    seen: dict[int, float] = {}
    lagging = min(count, 2000)
    begin = await store.revision()

    async def watch() -> None:
        async for event in store.watch("configmaps/", after=begin):
            seen[event.revision] = time.perf_counter()
            if event.revision == begin + lagging:
                return

    async def write(n: int) -> None:
        start = time.perf_counter()
        revisions[n] = await store.update(f"configmaps/bench/c{n:06d}", VALUE, expected=revisions[n])
        acknowledged[revisions[n]] = start

    watching = asyncio.ensure_future(watch())
    await asyncio.sleep(0.05)
    await share(lagging, write)
    await watching
    lags = sorted((seen[r] - acknowledged[r]) * 1000 for r in acknowledged)
    found["lag p50"], found["lag p99"] = statistics.median(lags), lags[int(len(lags) * 0.99)]
    await store.close()
    return found


async def opened(directory: str, count: int) -> Figures:
    return await measure(await SqliteStore.open(Path(directory) / "store.db"), count)


def bare(directory: str, count: int) -> Figures:
    """One connection, one statement, one commit at a time: what SQLite does without this store, as durable."""
    db = sqlite3.connect(Path(directory) / "bare.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, revision INTEGER, value BLOB)")
    keys = [f"configmaps/bench/c{n:06d}" for n in range(count)]
    found: Figures = {}

    def timed(name: str, one: Callable[[str], Any]) -> None:
        start = time.perf_counter()
        for key in keys:
            one(key)
        found[name] = count / (time.perf_counter() - start)

    timed("create", lambda key: db.execute("INSERT INTO kv VALUES (?, 1, ?)", (key, VALUE)))
    timed("update", lambda key: db.execute("UPDATE kv SET value = ?, revision = 2 WHERE key = ? AND revision = 1", (VALUE, key)))
    timed("get", lambda key: db.execute("SELECT value, revision FROM kv WHERE key = ?", (key,)).fetchone())
    start = time.perf_counter()
    db.execute("SELECT key, value, revision FROM kv ORDER BY key LIMIT 2000").fetchall()
    found["list"] = (time.perf_counter() - start) * 1000
    found["lag p50"] = found["lag p99"] = 1000 / found["update"]
    db.close()
    return found


def fsync_milliseconds(directory: str) -> float:
    with tempfile.TemporaryFile(dir=directory) as file:
        times = []
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


#: (figure, what it is called, unit, aim: what kube-apiserver with etcd does on such a machine, all its layers included, so
#: the least that a bare store must do; 0: none is known)
FIGURES = (
    ("create", "store: creates, 16 clients", "1/s", 2700),
    ("update", "store: updates, 16 clients", "1/s", 2900),
    ("get", "store: gets, 16 clients", "1/s", 5400),
    ("list", "store: list of 2,000", "ms", 25),
    ("lag p50", "store: write begun to watched, p50", "ms", 0),
    ("lag p99", "store: write begun to watched, p99", "ms", 0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default=None, help="where the files go: the disk that is to be measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=4000)
    options = parser.parse_args()
    rounds: list[tuple[Figures, Figures]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=options.directory, prefix="nemo-bench-") as directory:
            rounds.append((asyncio.run(opened(directory, options.count)), bare(directory, options.count)))
            fsync = fsync_milliseconds(directory)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, SQLite "
    )
    machine += f"{sqlite3.sqlite_version}, fdatasync {fsync:.2f} ms"
    results = []
    for figure, name, unit, aim in FIGURES:
        values, bases = [r[0][figure] for r in rounds], [r[1][figure] for r in rounds]
        results.append(
            {
                "name": name,
                "value": round(statistics.median(values), 3),
                "unit": unit,
                "baseline": round(statistics.median(bases), 3),
                "spread": [round(min(values), 3), round(max(values), 3)],
                "aim": aim or None,
                "machine": machine,
            }
        )
    target = Path(__file__).parent / "results" / "store.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n")
    for row in results:
        print(f"{row['name']:40} {row['value']:>12} {row['unit']:4} bare {row['baseline']:>12}   {row['spread']}")
    print(machine)


if __name__ == "__main__":
    main()
