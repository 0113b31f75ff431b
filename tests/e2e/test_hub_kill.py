"""The hub is killed under load: no acknowledged write is lost, watches go on without gap, duplicate or going back, and every
object behaves as if one thing happened to it at a time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random

import pytest

from bench.wire import Connection, Endpoint
from metaos.twin.processes import free_port
from tests.crashing import Hub
from tests.e2e.clients import PATH, Client, Record, Watching, check, conclude, lister
from tests.linearizability import Verb

CLIENTS, OBJECTS, WATCHES = 8, 4, 2


async def latest(endpoint: Endpoint) -> int:
    connection = Connection(endpoint)
    status, body = await connection.call("GET", PATH)
    connection.close()
    assert status == 200
    return int(json.loads(body)["metadata"]["resourceVersion"])


async def lives(directory: Path, kills: int, seconds: float, seed: int) -> Record:
    """A hub that is killed ``kills`` times, every other time between two steps on the disk, and what its clients saw."""
    hub, random, record = Hub(directory, free_port()), Random(seed), Record()
    assert await hub.start()
    endpoint = Endpoint.of(hub.kubeconfig)
    watches = [Watching(await latest(endpoint)) for _ in range(WATCHES)]
    stop = asyncio.Event()
    try:
        for life in range(kills):
            # Objects live through two kills, so that reads after one answer for writes before it.
            names = [f"life-{(life + i % 2) // 2}-{i}" for i in range(OBJECTS)]
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    client = Client(endpoint, f"{life}.{number}", record, random)
                    group.create_task(client.run(names, stop))
                group.create_task(lister(endpoint, record, stop))
                for watching in watches:
                    group.create_task(watching.run(endpoint))
                if life % 2 == 0:
                    await asyncio.sleep(seconds * random.uniform(0.2, 1.8))
                    hub.kill()
            hub.killed()
            # The next life may end while it starts.
            while not await hub.start(kill_at=random.randrange(1, 1500) if life % 2 == 0 else 0):
                pass
        final = Client(endpoint, "final", record, random)
        for name in list(record.operations):
            await final.one(name, Verb.GET)
        final.close()
        end = await conclude(endpoint, record, random)
        last = await latest(endpoint)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for watching in watches:
                group.create_task(watching.run(endpoint, until=end))
        assert end <= last
    finally:
        hub.stop()
    check(record, watches)
    return record


@pytest.mark.system
async def test_acknowledged_writes_and_watches_survive_sigkill(tmp_path: Path) -> None:
    assert (await lives(tmp_path, 4, 0.4, 1)).count > 250


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_hundred_kills_of_the_hub(tmp_path: Path) -> None:
    assert (await lives(tmp_path, 100, 0.3, 2)).count > 5000


@pytest.mark.system
async def test_single_objects_are_linearizable(tmp_path: Path) -> None:
    """Sixteen clients, nothing but concurrency."""
    hub, record, random, stop = Hub(tmp_path, free_port()), Record(), Random(3), asyncio.Event()
    assert await hub.start()
    try:
        endpoint = Endpoint.of(hub.kubeconfig)
        watching = Watching(await latest(endpoint))
        async with asyncio.TaskGroup() as group:
            for number in range(16):
                client = Client(endpoint, str(number), record, random)
                group.create_task(client.run([f"object-{i}" for i in range(6)], stop))
            group.create_task(lister(endpoint, record, stop))
            await asyncio.sleep(1.5)
            async with asyncio.timeout(60):
                while record.count <= 500:  # a busy machine takes longer
                    await asyncio.sleep(0.05)
            stop.set()
        await watching.run(endpoint, until=await conclude(endpoint, record, random))
    finally:
        hub.stop()
    check(record, [watching])
