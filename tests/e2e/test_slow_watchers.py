"""Watchers that stop reading cost the hub little, and are told to list again when they come back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bench.wire import Connection, Endpoint, Unanswered, config_map
from metaos.twin.processes import free_port
from tests.crashing import Hub

PATH = "/api/v1/namespaces/default/configmaps"
#: More than the window of events holds.
WATCHERS, ROUNDS, OBJECTS, BYTES = 60, 70, 40, 30_000
PER_WATCHER_MB = 0.75


def resident_mb(hub: Hub) -> float:
    assert hub.process is not None
    status = Path(f"/proc/{hub.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def churn(endpoint: Endpoint) -> None:
    connections = [Connection(endpoint) for _ in range(8)]

    async def one(connection: Connection, number: int) -> None:
        for turn in range(ROUNDS * OBJECTS // 8):
            name = f"busy-{number}-{turn % (OBJECTS // 8)}"
            value = f"{turn}" + "x" * BYTES
            status, _ = await connection.call("PUT", f"{PATH}/{name}", config_map(name, value))
            if status == 404:
                status, _ = await connection.call("POST", PATH, config_map(name, value))
            assert status in (200, 201)
        await connection.closed()

    await asyncio.gather(*(one(connection, number) for number, connection in enumerate(connections)))


@pytest.mark.slow
async def test_watchers_that_do_not_read(tmp_path: Path) -> None:
    hub = Hub(tmp_path, free_port())
    assert await hub.start()
    try:
        endpoint = Endpoint.of(hub.kubeconfig)
        await churn(endpoint)
        without = resident_mb(hub)
        stalled = [Connection(endpoint) for _ in range(WATCHERS)]
        for number, connection in enumerate(stalled):
            # Some hang in the list that comes first, some in what follows.
            await connection.stall(f"{PATH}?watch=1" + ("" if number % 2 else f"&resourceVersion={await latest(endpoint)}"))
        await churn(endpoint)
        grown = resident_mb(hub) - without
        print(f"{WATCHERS} stalled watchers: {grown:.1f} MB more than without")
        assert grown < WATCHERS * PER_WATCHER_MB
        # They read again: what was under way, and then that they must list again.
        for connection in stalled[:4]:
            async with asyncio.timeout(30):
                last = [json.loads(line) async for line in connection.resumed()][-1]
            assert (last["type"], last["object"]["code"], last["object"]["reason"]) == ("ERROR", 410, "Expired")
        for connection in stalled:
            await connection.closed()
    finally:
        hub.stop()


async def latest(endpoint: Endpoint) -> str:
    connection = Connection(endpoint)
    _, answer = await connection.call("GET", f"{PATH}?limit=1")
    await connection.closed()
    return str(json.loads(answer)["metadata"]["resourceVersion"])


@pytest.mark.slow
async def test_a_dead_watcher_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where dead is after a second."""
    from metaos.apiserver import watch
    from metaos.clock import SystemClock
    from tests.apiserver.serving import served

    monkeypatch.setattr(watch, "STALLED_SECONDS", 1.0)
    async with served(tmp_path, SystemClock()) as hub:
        endpoint = Endpoint.of(hub.kubeconfig(tmp_path))
        connection, writer = Connection(endpoint), Connection(endpoint)
        await connection.stall(f"{PATH}?watch=1&resourceVersion={await latest(endpoint)}")
        for number in range(600):
            status, _ = await writer.call("POST", PATH, config_map(f"c-{number}", "x" * 30_000))
            assert status == 201
        with pytest.raises(Unanswered):
            async with asyncio.timeout(30):
                async for _ in connection.resumed(after=2.0):
                    pass
        await writer.closed()
