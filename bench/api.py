"""The hub's API over HTTPS beside a real kube-apiserver with etcd (where KUBECONFIG names one), and a bare HTTPS server.

A figure's baseline is kube-apiserver with etcd where it was measured, otherwise the bare server. What the bare server does is
the limit that the language and the HTTP library set: it answers a constant and does nothing else.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

from bench.results import Figure, figure, percentile, write
from bench.servers import CLIENTS, PATH, Server, bare, hub, real
from bench.wire import Connection, config_map

COUNT, ROUNDS, LIST_COUNT, LAGS = 1000, 3, 2000, 200
WATCHERS, EVENTS, EVENT_SECONDS = 500, 60, 0.05
VALUE = "x" * 500

Found = dict[str, list[float]]


async def throughput(server: Server, mark: str) -> dict[str, float]:
    """Create, get, update: per second."""
    return {
        "create": await server.rate(COUNT, lambda n: ("POST", PATH, config_map(f"{mark}-{n}", VALUE))),
        "get": await server.rate(COUNT, lambda n: ("GET", f"{PATH}/{mark}-{n}", b"")),
        "update": await server.rate(COUNT, lambda n: ("PUT", f"{PATH}/{mark}-{n}", config_map(f"{mark}-{n}", VALUE + "y"))),
    }


async def list_ms(server: Server) -> float:
    started = time.monotonic()
    await server.call(server.connections[0], "GET", f"{PATH}?limit={LIST_COUNT}")
    return (time.monotonic() - started) * 1000


async def watched(server: Server, watchers: int, events: int, pause: float, mark: str) -> tuple[list[float], float]:
    """Milliseconds from the begin of each write to its event at each watcher, and the server's seconds of CPU meanwhile."""
    status = json.loads(await server.call(server.connections[0], "GET", f"{PATH}?limit=1"))
    version = status["metadata"]["resourceVersion"]
    begun: dict[bytes, float] = {}
    lags: list[float] = []
    connections = [Connection(server.endpoint) for _ in range(watchers)]

    async def follow(connection: Connection) -> None:
        left = events
        async for line in connection.lines(f"{PATH}?watch=1&resourceVersion={version}"):
            now = time.monotonic()
            place = line.find(b'"value":"') + 9
            lags.append((now - begun[line[place : line.index(b'"', place)]]) * 1000)
            left -= 1
            if not left:
                return

    async with asyncio.TaskGroup() as group:
        for start in range(0, watchers, 50):
            for connection in connections[start : start + 50]:
                group.create_task(follow(connection))
            # Not all handshakes at once; and all watch before the first write.
            await asyncio.sleep(0.3)
        await asyncio.sleep(0.5)
        cpu = server.cpu()
        for number in range(events):
            value = f"{mark}-{number}"
            begun[value.encode()] = time.monotonic()
            await server.call(server.connections[0], "POST", PATH, config_map(value, value))
            await asyncio.sleep(pause)
    spent = server.cpu() - cpu
    for connection in connections:
        await connection.closed()
    return lags, spent


async def bystanders(server: Server, mark: str) -> float:
    """What ``WATCHERS`` watchers of other namespaces add to the CPU of one create, in microseconds."""

    async def cost(word: str) -> float:
        cpu = server.cpu()
        await server.rate(COUNT, lambda n: ("POST", PATH, config_map(f"{mark}-{word}-{n}", VALUE)))
        return (server.cpu() - cpu) * 1e6 / COUNT

    without = await cost("alone")
    connections = [Connection(server.endpoint) for _ in range(WATCHERS)]

    async def follow(number: int, connection: Connection) -> None:
        async for _ in connection.lines(f"/api/v1/namespaces/other-{number}/configmaps?watch=1"):
            pass

    tasks = []
    for number, connection in enumerate(connections):
        tasks.append(asyncio.create_task(follow(number, connection)))
        if number % 50 == 0:
            await asyncio.sleep(0.3)
    await asyncio.sleep(0.5)
    with_them = await cost("beside")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for connection in connections:
        await connection.closed()
    return with_them - without


async def measure(server: Server, found: Found, mark: str) -> None:
    """One round of everything that the bare server cannot do."""
    found["list"] += [await list_ms(server) for _ in range(5)]
    lags, _ = await watched(server, 1, LAGS, 0.0, f"lag-{mark}")
    found["lag p50"].append(percentile(lags, 0.5))
    found["lag p99"].append(percentile(lags, 0.99))
    lags, cpu = await watched(server, WATCHERS, EVENTS, EVENT_SECONDS, f"fan-{mark}")
    found["fan p50"].append(percentile(lags, 0.5))
    found["fan p99"].append(percentile(lags, 0.99))
    found["fan cpu"].append(cpu * 1e6 / (WATCHERS * EVENTS))
    found["bystanders"].append(await bystanders(server, f"by-{mark}"))


async def compare(directory: Path) -> list[Figure]:
    async with AsyncExitStack() as stack:
        ours, _ = await stack.enter_async_context(hub(directory / "hub"))
        limit = await stack.enter_async_context(bare(directory / "hub"))
        theirs = real()
        servers = [ours, limit, *([theirs] if theirs else [])]
        found: dict[str, Found] = {server.name: defaultdict(list) for server in servers}
        mark = f"{time.time_ns():x}"
        for server in servers:
            found[server.name]["memory idle"].append(server.memory())
        # In turns, so that what else the machine does hits all of them.
        for number in range(ROUNDS):
            for server in servers:
                for word, value in (await throughput(server, f"{mark}-{number}")).items():
                    found[server.name][word].append(value)
        for number in range(ROUNDS):
            for server in servers:
                if server is not limit:
                    await measure(server, found[server.name], f"{mark}-{number}")
        present = ROUNDS * (3 * COUNT + LAGS + EVENTS)
        for server in servers:
            if server is not limit:
                await server.rate(10_000 - present, lambda n: ("POST", PATH, config_map(f"{mark}-fill-{n}", VALUE)))
                found[server.name]["memory full"].append(server.memory())
        if theirs is not None:
            items = json.loads(await theirs.call(theirs.connections[0], "GET", PATH))["items"]
            made = [o["metadata"]["name"] for o in items if mark in o["metadata"]["name"]]
            await theirs.rate(len(made), lambda n: ("DELETE", f"{PATH}/{made[n]}", b""))
            await theirs.close()
    return figures(found, limit.name, theirs.name if theirs else "")


def figures(found: dict[str, Found], limit: str, theirs: str) -> list[Figure]:
    ours = found["hub"]
    other: Found = found[theirs] if theirs else defaultdict(list)

    def row(name: str, word: str, unit: str, aim: float | None = None) -> Figure:
        return figure(name, ours[word], unit, baseline=other[word], aim=aim)

    rows = []
    for word in ("create", "get", "update"):
        half = 0.5 * sorted(other[word])[len(other[word]) // 2] if other[word] else None
        rows.append(row(f"api: {word}, {CLIENTS} clients", word, "1/s", half))
        rows.append(figure(f"    the same of bare aiohttp, a constant answer ({word})", found[limit][word], "1/s"))
    return [
        *rows,
        row(f"api: list of {LIST_COUNT:,}", "list", "ms", 25),
        row("api: write begun to watched, p50", "lag p50", "ms", 1),
        row("api: write begun to watched, p99", "lag p99", "ms", 2),
        row(f"api: the same with {WATCHERS} watchers, p50", "fan p50", "ms"),
        row(f"api: the same with {WATCHERS} watchers, p99", "fan p99", "ms"),
        row(f"api: CPU for one event to one of {WATCHERS} watchers", "fan cpu", "us"),
        row(f"api: CPU that {WATCHERS} watchers of other namespaces add to a create", "bystanders", "us"),
        row("hub: memory idle", "memory idle", "MB", 150),
        row("hub: memory with 10,000 objects", "memory full", "MB", 300),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nemo-bench-") as directory:
        write("api", asyncio.run(compare(Path(directory))))


if __name__ == "__main__":
    main()
