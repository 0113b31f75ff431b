"""A hub process over a state with very many objects: start, memory, lists, heartbeats over HTTPS, watches.

Run by ``bench.scale``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.results import Figure, figure, percentile
from bench.servers import Server, hub
from bench.wire import Connection

HEARTBEATS, BEATING, WATCHES, PAGE = 2000, 200, 500, 500
MERGE = "application/merge-patch+json"
#: Seconds that a start may take, on a machine with other work.
PATIENCE = 900.0
Say = Callable[[str, float, str], None]


async def measure(data: Path, sites: int) -> list[Figure]:
    """``data``: the hub's directory; in its ``state.db`` there are so many Clusters with their Leases."""
    found: list[Figure] = []
    with contextlib.closing(sqlite3.connect(data / "state.db")) as db:
        (objects,) = db.execute("SELECT COUNT(*) FROM current").fetchone()

    def say(what: str, value: float, unit: str) -> None:
        found.append(figure(f"a hub with {objects:,} objects: {what}", [value], unit))

    async with hub(data, PATIENCE) as (server, seconds):
        say("start until ready", seconds, "s")
        say("start until ready, processor time", server.cpu(), "s")
        say("memory when it is ready", server.memory(), "MB")
        await _lists(server, say)
        await _watches(server, sites, say)
        say("memory at the end", server.memory(), "MB")
        say("processes that wanted to run, 15 minutes' mean", os.getloadavg()[2], "")
    return found


def _lease(number: int) -> tuple[str, bytes]:
    site = f"site-{number:05}"
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() % 10**9 // 1000:06}Z"
    body = {"spec": {"holderIdentity": site, "renewTime": now, "leaseDurationSeconds": 40}}
    return f"/apis/coordination.k8s.io/v1/namespaces/nemo-cluster-{site}/leases/{site}", json.dumps(body).encode()


async def _beat(connections: Sequence[Connection], numbers: Iterable[int], sites: int, times: list[float]) -> None:
    for number in numbers:
        path, body = _lease(number % sites)
        sent = time.monotonic()
        status, answer = await connections[0].call("PATCH", path, body, media=MERGE)
        assert status == 200, answer
        times.append(1000 * (time.monotonic() - sent))


async def _beats(server: Server, sites: int, say: Say) -> None:
    """16 clients, each with one heartbeat in flight, so many as the hub takes while its controllers look at everything."""
    connections = [Connection(server.endpoint) for _ in range(16)]
    # Who was lost comes back with the first ones.
    sites = min(sites, BEATING)
    for _ in range(2):
        await asyncio.gather(*(_beat(connections[n::16], range(n, sites, 16), sites, []) for n in range(16)))
    await asyncio.sleep(1.0)
    numbers, times = iter(range(HEARTBEATS)), list[float]()
    cpu, began = server.cpu(), time.monotonic()
    await asyncio.gather(*(_beat([connection], numbers, sites, times) for connection in connections))
    took = time.monotonic() - began
    say("after a start, heartbeats over HTTPS, 16 clients", len(times) / took, "1/s")
    say("after a start, a heartbeat, the hub's processor time", 1000 * (server.cpu() - cpu) / len(times), "ms")
    say("after a start, a heartbeat, p50", percentile(times, 0.5), "ms")
    say("after a start, a heartbeat, p99", percentile(times, 0.99), "ms")
    for connection in connections:
        await connection.closed()


async def _lists(server: Server, say: Say) -> None:
    connection, beside = Connection(server.endpoint), Connection(server.endpoint)
    path = "/api/v1/configmaps"
    began, token, pages = time.monotonic(), "", list[float]()
    while len(pages) < 200:
        sent = time.monotonic()
        more = f"&continue={token}" if token else ""
        answer = json.loads(await server.call(connection, "GET", f"{path}?limit={PAGE}{more}"))
        pages.append(1000 * (time.monotonic() - sent))
        token = answer["metadata"].get("continue") or ""
        if not token:
            break
    say(f"a page of {PAGE} ConfigMaps over HTTPS, p50", percentile(pages, 0.5), "ms")
    say(f"a page of {PAGE} ConfigMaps over HTTPS, p99", percentile(pages, 0.99), "ms")
    waits = list[float]()

    async def others() -> None:
        while True:
            sent = time.monotonic()
            await server.call(beside, "GET", "/api/v1/namespaces/default")
            waits.append(1000 * (time.monotonic() - sent))
            await asyncio.sleep(0.02)

    task = asyncio.create_task(others())
    cpu, began, memory = server.cpu(), time.monotonic(), server.memory()
    size = len(await server.call(connection, "GET", path))
    say("all ConfigMaps in one answer", time.monotonic() - began, "s")
    say("all ConfigMaps in one answer, size", size / 1e6, "MB")
    say("all ConfigMaps in one answer, processor time", server.cpu() - cpu, "s")
    say("all ConfigMaps in one answer, more memory after it", server.memory() - memory, "MB")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    say("all ConfigMaps in one answer, the longest that another request waited", max(waits), "ms")
    await connection.closed()
    await beside.closed()


async def _watches(server: Server, sites: int, say: Say) -> None:
    """What a site's watch takes while nothing comes."""
    count = min(WATCHES, sites)
    connections = [Connection(server.endpoint) for _ in range(count)]
    memory, cpu = server.memory(), server.cpu()
    tasks: list[asyncio.Task[Any]] = []
    for number, connection in enumerate(connections):
        path = f"/apis/meta-os.eu/v1alpha1/namespaces/nemo-cluster-site-{number:05}/works?watch=1"
        tasks.append(asyncio.create_task(_follow(connection, path)))
        if number % 25 == 24:
            await asyncio.sleep(0.1)
    await asyncio.sleep(2.0)
    say("a watch over HTTPS, memory", 1024 * (server.memory() - memory) / count, "kB")
    say("a watch over HTTPS begins, processor time", 1000 * (server.cpu() - cpu) / count, "ms")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for connection in connections:
        await connection.closed()


async def _follow(connection: Connection, path: str) -> None:
    async for _ in connection.lines(path):
        pass
