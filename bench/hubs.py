"""Several hubs on PostgreSQL beside one on SQLite: what the store costs, what 1, 2 and 4 hubs do, and how long a fail-over takes.

All of it, the clients and the database too, shares this machine's cores: more hubs cannot do more here than its cores allow, so
the rates say what hubs cost each other. Every commit is synced, on both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from bench.postgres import Postgres, cpu_seconds
from bench.results import Figure, figure, write
from bench.store import measure
from bench.wire import Connection, Endpoint, config_map
from metaos.clock import SystemClock
from metaos.store.database import Database
from metaos.store.postgres import PostgresStore
from metaos.store.sqlite import SqliteStore
from metaos.twin.processes import free_port

COUNT, ROUNDS, CLIENTS, CALLS, FAIL_OVERS = 2000, 3, 16, 600, 3
COUNTS = (1, 2, 4)
PATH = "/api/v1/namespaces/default/configmaps"
VALUE = "x" * 450


class Hub:
    """A hub process."""

    def __init__(self, directory: Path, number: int, store: Path | None) -> None:
        self.data, self.port = directory / f"hub-{number}", free_port()
        shared = ["--store", str(store), "--hub-key", str(directory / "hub.key")] if store else []
        listen = f"127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "metaos", "up", "--no-local", "--data", str(self.data), "--listen", listen, *shared]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.endpoint: Endpoint | None = None

    async def ready(self) -> Endpoint:
        deadline = time.monotonic() + 60
        kubeconfig = self.data / "admin.kubeconfig"
        while time.monotonic() < deadline:
            if kubeconfig.exists():
                self.endpoint = Endpoint.of(kubeconfig)
                with contextlib.suppress(ConnectionError):
                    if (await call(self.endpoint, "GET", "/readyz"))[0] == 200:
                        return self.endpoint
            await asyncio.sleep(0.05)
        raise TimeoutError("the hub is not ready")

    def megabytes(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


async def call(endpoint: Endpoint, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = Connection(endpoint)
    try:
        return await connection.call(method, path, body)
    finally:
        connection.close()


@contextlib.asynccontextmanager
async def running(count: int, database: Postgres | None) -> AsyncIterator[list[Hub]]:
    with tempfile.TemporaryDirectory(prefix="nemo-hubs-") as folder:
        directory = Path(folder)
        store = None
        if database is not None:
            store = directory / "store"
            store.touch(0o600)
            store.write_text(database.database())
        hubs: list[Hub] = []
        try:
            for number in range(count):
                hubs.append(Hub(directory, number, store))
                await hubs[-1].ready()
            yield hubs
        finally:
            for hub in hubs:
                if hub.process.poll() is None:
                    hub.end()


async def rate(hubs: list[Hub], one: Callable[[int], tuple[str, str, bytes]]) -> float:
    """Calls per second of ``CLIENTS`` clients, spread over the hubs."""
    connections = [Connection(hub.endpoint) for n in range(CLIENTS) if (hub := hubs[n % len(hubs)]).endpoint is not None]
    numbers = iter(range(CALLS))

    async def client(connection: Connection) -> None:
        for number in numbers:
            status, answer = await connection.call(*one(number))
            assert status < 300, answer

    started = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    took = time.perf_counter() - started
    for connection in connections:
        connection.close()
    return CALLS / took


async def served(hubs: list[Hub], database: Postgres | None, mark: str) -> dict[str, float]:
    """Calls a second, and what each cost in milliseconds of processor time, of all hubs and of the database: that does not depend
    on what else the machine does."""
    found: dict[str, float] = {}
    for name, one in (
        ("create", lambda n: ("POST", PATH, config_map(f"{mark}-{n}", VALUE))),
        ("get", lambda n: ("GET", f"{PATH}/{mark}-{n}", b"")),
        ("update", lambda n: ("PUT", f"{PATH}/{mark}-{n}", config_map(f"{mark}-{n}", VALUE + "y"))),
    ):
        before = _cpu(hubs), database.cpu() if database else 0.0
        found[f"{name}s over HTTPS, 16 clients"] = await rate(hubs, one)
        found[f"CPU of the hubs for a {name}"] = 1000 * (_cpu(hubs) - before[0]) / CALLS
        found[f"CPU of the database for a {name}"] = 1000 * ((database.cpu() if database else 0.0) - before[1]) / CALLS
    return found


def _cpu(hubs: list[Hub]) -> float:
    return sum(cpu_seconds(hub.process.pid) for hub in hubs)


async def fail_over(hubs: list[Hub]) -> tuple[float, float]:
    """Seconds from the leader's SIGKILL to a write at the other hub, and until that hub's controllers have ended a namespace."""
    leading = [b"\nnemo_leader 1" in (await call(hub.endpoint, "GET", "/metrics"))[1] for hub in hubs if hub.endpoint]
    leader, other = hubs[leading.index(True)], hubs[leading.index(False)]
    assert other.endpoint is not None
    connection = Connection(other.endpoint)
    await connection.call("GET", "/readyz")
    began = time.monotonic()
    os.kill(leader.process.pid, signal.SIGKILL)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gone"}}
    status, answer = await connection.call("POST", "/api/v1/namespaces", json.dumps(namespace).encode())
    assert status == 201, answer
    written = time.monotonic() - began
    await connection.call("DELETE", "/api/v1/namespaces/gone")
    while (await connection.call("GET", "/api/v1/namespaces/gone"))[0] != 404:
        await asyncio.sleep(0.02)
    connection.close()
    return written, time.monotonic() - began


async def stores(database: Postgres) -> list[Figure]:
    found: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="nemo-bench-") as directory:
            file = await measure(await SqliteStore.open(Path(directory) / "store.db"), COUNT)
        shared = await measure(await PostgresStore.open(Database.parse(database.database()), SystemClock()), COUNT)
        for name in file:
            mine, base = found.setdefault(name, ([], []))
            mine.append(shared[name])
            base.append(file[name])
    units = {"list": "ms", "lag p50": "ms", "lag p99": "ms"}
    figures = []
    for name, (mine, base) in found.items():
        unit = units.get(name, "1/s")
        figures.append(figure(f"store on PostgreSQL: {name}, 16 clients", mine, unit, baseline=base))
        ratio = [a / b for a, b in zip(mine, base, strict=True)]
        figures.append(figure(f"store on PostgreSQL: {name}, ratio to SQLite", ratio, "x"))
    return figures


async def main() -> None:
    database = Postgres(durable=True)
    database.start()
    try:
        figures = await stores(database)
        base: dict[str, list[float]] = {}
        async with running(1, None) as hubs:
            for turn in range(ROUNDS):
                for name, value in (await served(hubs, None, f"r{turn}")).items():
                    base.setdefault(name, []).append(value)
            memory = hubs[0].megabytes()
        for count in COUNTS:
            found: dict[str, list[float]] = {}
            async with running(count, database) as hubs:
                for turn in range(ROUNDS):
                    for name, value in (await served(hubs, database, f"r{turn}")).items():
                        found.setdefault(name, []).append(value)
                used = [hub.megabytes() for hub in hubs]
            for name, values in found.items():
                unit = "ms" if name.startswith("CPU") else "1/s"
                figures.append(figure(f"{count} hubs on PostgreSQL: {name}", values, unit, baseline=base[name]))
            figures.append(figure(f"{count} hubs on PostgreSQL: memory of each", used, "MB", baseline=[memory]))
        times = []
        for _ in range(FAIL_OVERS):
            async with running(2, database) as hubs:
                await asyncio.sleep(2)
                times.append(await fail_over(hubs))
        figures.append(figure("leader killed: next write at the other hub", [1000 * each for each, _ in times], "ms"))
        figures.append(figure("leader killed: controllers of the other hub at work", [each for _, each in times], "s", aim=5.0))
        write("hubs", figures)
    finally:
        database.stop()


if __name__ == "__main__":
    asyncio.run(main())
