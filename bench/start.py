"""How long ``nemo up`` takes to be ready: on a new data directory, again, and with 100,000 objects in it."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from bench.results import Figure, figure, write
from bench.servers import hub
from metaos.store.sqlite import SqliteStore

OBJECTS, ROUNDS = 100_000, 3


async def fill(state: Path) -> None:
    """Writes objects into the state directly, as over the API it would take a minute."""
    store = await SqliteStore.open(state)

    def config_map(number: int) -> bytes:
        metadata = {
            "name": f"c{number:06d}",
            "namespace": "default",
            "uid": f"00000000-0000-4000-8000-{number:012d}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        obj = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": {"value": "x" * 500}}
        return json.dumps(obj, separators=(",", ":")).encode()

    for start in range(0, OBJECTS, 500):
        await asyncio.gather(*(store.create(f"configmaps/default/c{n:06d}", config_map(n)) for n in range(start, start + 500)))
    await store.close()


async def measure(directory: Path) -> list[Figure]:
    first, again, full, memory, cpu = [], [], [], [], []
    for number in range(ROUNDS):
        data = directory / str(number) / "hub"
        data.parent.mkdir()
        async with hub(data) as (_, seconds):
            first.append(seconds)
        async with hub(data) as (_, seconds):
            again.append(seconds)
    await fill(data / "state.db")
    for _ in range(ROUNDS):
        async with hub(data) as (server, seconds):
            full.append(seconds)
            memory.append(server.memory())
            cpu.append(server.cpu())
    return [
        figure("hub: first start until ready", first, "s", aim=1),
        figure("hub: start until ready", again, "s", aim=1),
        figure(f"hub: start until ready with {OBJECTS:,} objects", full, "s", aim=5),
        figure("    CPU of it", cpu, "s"),
        figure(f"hub: memory after a start with {OBJECTS:,} objects", memory, "MB"),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nemo-bench-") as directory:
        write("start", asyncio.run(measure(Path(directory))))


if __name__ == "__main__":
    main()
