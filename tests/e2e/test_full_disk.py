"""The hub's disk is full: writes are refused with a reason; reads, deletes and heartbeats go on; room makes all well again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.wire import Connection, Endpoint, config_map
from metaos.resources.meta import format_time
from metaos.twin.processes import free_port

PATH = "/api/v1/namespaces/default/configmaps"
CLUSTERS = "/apis/meta-os.eu/v1alpha1/clusters"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/nemo-cluster-edge/leases"
SIZE_MB, LEASE_SECONDS = 64, 2


class Machine:
    """A mount namespace with a small disk, and hubs in it."""

    def __init__(self, directory: Path) -> None:
        self.user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        script = f"mount -t tmpfs -o size={SIZE_MB}m none {directory} && echo ready && exec sleep 600"
        command = ["unshare", *self.user, "--mount", "sh", "-c", script]
        self.holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.holder.stdout is not None
        said = self.holder.stdout.readline()
        if said != "ready\n":
            self.close()
            pytest.skip(f"no file system can be mounted here: {said}")
        self.directory = directory
        self.seen = Path(f"/proc/{self.holder.pid}/root{directory}")
        self.hub: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    async def start(self) -> Endpoint:
        entered = ["--user", "--preserve-credentials"] if self.user else []
        command = ["nsenter", "--target", str(self.holder.pid), "--mount", *entered]
        command += [sys.executable, "-m", "metaos", "up", "--no-local", "--data", str(self.directory / "hub")]
        command += ["--listen", f"127.0.0.1:{self.port}", "--lease-duration", str(LEASE_SECONDS)]
        self.hub = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.hub.poll() is None
            with contextlib.suppress(OSError):
                endpoint = Endpoint.of(self.seen / "hub" / "admin.kubeconfig")
                if (await call(endpoint, "GET", "/readyz"))[0] == 200:
                    return endpoint
            await asyncio.sleep(0.05)
        raise TimeoutError("the hub is not ready")

    def kill(self) -> None:
        assert self.hub is not None
        self.hub.kill()
        self.hub.wait()

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()
        if self.holder.stdout is not None:
            self.holder.stdout.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        if made.hub is not None and made.hub.poll() is None:
            made.kill()
        made.close()


async def call(endpoint: Endpoint, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = Connection(endpoint)
    try:
        status, answer = await connection.call(method, path, json.dumps(body).encode() if isinstance(body, dict) else body or b"")
    finally:
        connection.close()
    return status, json.loads(answer) if answer.startswith(b"{") else answer


@contextlib.asynccontextmanager
async def heartbeats(endpoint: Endpoint) -> AsyncIterator[list[int]]:
    """A site that renews its Lease twice a second; the statuses that it is answered."""
    answered: list[int] = []

    async def beat() -> None:
        while True:
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": "edge", "namespace": "nemo-cluster-edge"},
                "spec": {"holderIdentity": "edge", "renewTime": format_time(time.time(), micro=True)},
            }
            with contextlib.suppress(ConnectionError):
                status, _ = await call(endpoint, "PUT", f"{LEASES}/edge", lease)
                if status == 404 and not answered:
                    await call(endpoint, "POST", LEASES, lease)
                else:
                    answered.append(status)
            await asyncio.sleep(0.5)

    task = asyncio.create_task(beat())
    try:
        yield answered
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def ready(endpoint: Endpoint) -> str:
    _, cluster = await call(endpoint, "GET", f"{CLUSTERS}/edge")
    conditions = (cluster.get("status") or {}).get("conditions") or ()
    return next((c["status"] for c in conditions if c["type"] == "Ready"), "")


async def wait_for(what: str, test: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not await test():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.05)


async def fill(endpoint: Endpoint, mark: str) -> list[str]:
    """Creates until the disk is full; what was acknowledged."""
    made = []
    for number in range(1000):
        name = f"{mark}-{number}"
        status, answer = await call(endpoint, "POST", PATH, config_map(name, os.urandom(450_000).hex()))
        if status != 201:
            assert (status, answer["reason"]) == (507, "InsufficientStorage"), answer
            assert "disk is full" in answer["message"] and "delete something" in answer["message"]
            return made
        made.append(name)
    raise AssertionError("the disk never got full")


@pytest.mark.slow
async def test_a_full_disk_refuses_writes_and_recovers(machine: Machine) -> None:
    endpoint = await machine.start()
    site = {"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": {"name": "edge"}, "spec": {"runtime": "sandbox"}}
    assert (await call(endpoint, "POST", CLUSTERS, site))[0] == 201
    async with heartbeats(endpoint) as answered:
        await wait_for("the site", lambda: is_ready(endpoint))
        made = await fill(endpoint, "first")
        assert len(made) > 20

        # Full for longer than a lease lasts: the site lives on, everything can be read, nothing new comes in.
        until = time.monotonic() + LEASE_SECONDS * 2
        while time.monotonic() < until:
            assert await ready(endpoint) == "True"
            assert (await call(endpoint, "POST", PATH, config_map("small", "x")))[0] == 507
            await asyncio.sleep(0.2)
        _, listed = await call(endpoint, "GET", PATH)
        assert {o["metadata"]["name"] for o in listed["items"]} >= set(made)
        assert (await call(endpoint, "GET", "/readyz"))[0] == 200
        assert b"nemo_store_full 1" in (await call(endpoint, "GET", "/metrics"))[1]

        # Killed and started again in this state, it serves what it had.
        machine.kill()
        endpoint = await machine.start()
        _, listed = await call(endpoint, "GET", PATH)
        assert {o["metadata"]["name"] for o in listed["items"]} >= set(made)
        assert (await call(endpoint, "POST", PATH, config_map("small", "x")))[0] == 507

        # Deletes make room.
        for name in made[:40]:
            assert (await call(endpoint, "DELETE", f"{PATH}/{name}"))[0] == 200
        await wait_for("room", lambda: can_create(endpoint, "after-deletes"))
        assert (await call(endpoint, "POST", PATH, config_map("big", os.urandom(450_000).hex())))[0] == 201

        # Another program takes the disk, and gives it back.
        filler = machine.seen / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        await wait_for("a full disk", lambda: is_full(endpoint))
        assert await ready(endpoint) == "True"
        filler.unlink()
        await wait_for("room again", lambda: can_create(endpoint, "at-last"))
        assert await ready(endpoint) == "True"
    assert answered.count(200) > 10 and set(answered) == {200}
    machine.kill()
    assert await machine.start()
    machine.kill()
    command = [
        "nsenter",
        "--target",
        str(machine.holder.pid),
        "--mount",
        *(["--user", "--preserve-credentials"] * bool(machine.user)),
    ]
    check = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('PRAGMA integrity_check').fetchall())"
    done = subprocess.run(
        [*command, sys.executable, "-c", check, str(machine.directory / "hub" / "state.db")], capture_output=True, text=True
    )
    assert done.stdout == "[('ok',)]\n", done


async def is_ready(endpoint: Endpoint) -> bool:
    return await ready(endpoint) == "True"


async def is_full(endpoint: Endpoint) -> bool:
    status, answer = await call(endpoint, "POST", PATH, config_map("filling", os.urandom(450_000).hex()))
    if status == 201:
        assert (await call(endpoint, "DELETE", f"{PATH}/filling"))[0] == 200
    return bool(status == 507 and answer["reason"] == "InsufficientStorage")


async def can_create(endpoint: Endpoint, name: str) -> bool:
    status, _ = await call(endpoint, "POST", PATH, config_map(name, "x"))
    assert status in (201, 507)
    return status == 201
