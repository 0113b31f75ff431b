"""Several hubs on one PostgreSQL: any of them, and the database itself, is killed or suspended under load. No acknowledged
write is lost and none is done twice, watches go on at another hub without gap or repetition, and another hub takes the
controllers over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from bench.postgres import Postgres, programs
from bench.wire import Connection, Endpoint
from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.reconcile.election import LEASE_SECONDS
from metaos.twin.processes import free_port, namespaces_work
from tests.crashing import Hub
from tests.e2e.clients import Record, Roaming, Watching, check, conclude, lister
from tests.e2e.test_certificates import POD
from tests.e2e.test_hub_kill import latest
from tests.linearizability import Verb

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed: run python -m bench.postgres"),
]
CLIENTS, OBJECTS = 4, 3
#: The aim for a fail-over.
MOST_SECONDS = 5.0


class Hubs:
    """Some hubs on one database."""

    def __init__(self, directory: Path, count: int) -> None:
        self.database = Postgres(durable=True)
        self.database.start()
        url, key = self.database.database(), directory / "hub.key"
        self.hubs = [Hub(directory, free_port(), name=f"hub-{n}", store=url, hub_key=key) for n in range(count)]
        self.endpoints: list[Endpoint] = []

    async def start(self) -> None:
        for hub in self.hubs:
            assert await hub.start(), hub.log.read_text()
        self.endpoints = [Endpoint.of(hub.kubeconfig) for hub in self.hubs]

    async def leader(self, besides: int = -1) -> int:
        """Which one says that it leads."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for number, endpoint in enumerate(self.endpoints):
                if number != besides and await self.leads(endpoint):
                    return number
            await asyncio.sleep(0.05)
        raise AssertionError("no hub leads")

    async def leads(self, endpoint: Endpoint) -> bool:
        connection = Connection(endpoint)
        try:
            async with asyncio.timeout(2):
                _, body = await connection.call("GET", "/metrics")
            return b"\nnemo_leader 1" in body
        except (ConnectionError, TimeoutError):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        for hub in self.hubs:
            if hub.process is not None and hub.process.pid is not None and hub.process.is_alive():
                os.kill(hub.process.pid, signal.SIGCONT)
                hub.stop()
        self.database.stop()


@contextlib.asynccontextmanager
async def running(directory: Path, count: int = 2) -> AsyncIterator[Hubs]:
    hubs = await asyncio.to_thread(Hubs, directory, count)
    try:
        await hubs.start()
        await hubs.leader()
        yield hubs
    finally:
        await asyncio.to_thread(hubs.stop)


async def follow(watching: Watching, endpoints: list[Endpoint], stop: asyncio.Event) -> None:
    """Goes on at another hub whenever a watch breaks."""
    turn = 0
    while not stop.is_set():
        turn += 1
        running = asyncio.ensure_future(watching.run(endpoints[turn % len(endpoints)]))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            running.cancel()
        with contextlib.suppress(asyncio.CancelledError, RuntimeError):
            await running
        await asyncio.sleep(0.05)


async def under_load(hubs: Hubs, trouble: Callable[[int], Awaitable[None]], rounds: int, seed: int) -> Record:
    """What clients of all hubs saw while ``trouble`` came again and again."""
    random, record = Random(seed), Record()
    watches = [Watching(await latest(hubs.endpoints[0])) for _ in hubs.endpoints]
    watched, watchers = asyncio.Event(), []
    for number, watching in enumerate(watches):
        order = hubs.endpoints[number:] + hubs.endpoints[:number]
        watchers.append(asyncio.create_task(follow(watching, order, watched)))
    for turn in range(rounds):
        stop = asyncio.Event()
        names = [f"round-{(turn + i % 2) // 2}-{i}" for i in range(OBJECTS)]
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                client = Roaming(hubs.endpoints, number % len(hubs.endpoints), f"{turn}.{number}", record, random)
                group.create_task(client.run(names, stop))
            for endpoint in hubs.endpoints:
                group.create_task(_listed(endpoint, record, stop))
            await asyncio.sleep(0.5)
            await trouble(turn)
            await asyncio.sleep(0.5)
            stop.set()
    final = Roaming(hubs.endpoints, 0, "final", record, random)
    for name in list(record.operations):
        await final.one(name, Verb.GET)
    final.close()
    end = await conclude(hubs.endpoints[-1], record, random)
    watched.set()
    await asyncio.gather(*watchers)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for number, watching in enumerate(watches):
            group.create_task(watching.run(hubs.endpoints[number], until=end))
    check(record, watches)
    return record


async def _listed(endpoint: Endpoint, record: Record, stop: asyncio.Event) -> None:
    with contextlib.suppress(AssertionError):  # Its database may be away.
        await lister(endpoint, record, stop)


async def test_any_hub_may_be_killed(tmp_path: Path) -> None:
    async with running(tmp_path) as hubs:

        async def kill(turn: int) -> None:
            hub = hubs.hubs[turn % 2]
            hub.kill()
            hub.killed()
            await asyncio.sleep(0.3)
            assert await hub.start()

        record = await under_load(hubs, kill, 3, 1)
        assert record.count > 300


async def test_the_database_may_be_killed(tmp_path: Path) -> None:
    async with running(tmp_path) as hubs:

        async def kill(turn: int) -> None:
            await asyncio.to_thread(hubs.database.kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(hubs.database.start)

        record = await under_load(hubs, kill, 3, 2)
        assert record.count > 300


async def test_a_suspended_leader_comes_back_and_leads_no_more(tmp_path: Path) -> None:
    async with running(tmp_path) as hubs:

        async def suspend(turn: int) -> None:
            number = await hubs.leader()
            process = hubs.hubs[number].process
            assert process is not None and process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            other = await hubs.leader(besides=number)
            os.kill(process.pid, signal.SIGCONT)
            deadline = time.monotonic() + 10
            while await hubs.leads(hubs.endpoints[number]):
                assert time.monotonic() < deadline, "it has not noticed that another hub leads"
                await asyncio.sleep(0.05)
            assert await hubs.leads(hubs.endpoints[other])

        await under_load(hubs, suspend, 2, 3)


async def test_how_long_a_fail_over_takes(tmp_path: Path) -> None:
    """From the leader's end until a controller of another hub has done something; a client's next write waits for nothing."""
    async with running(tmp_path) as hubs:
        number = await hubs.leader()
        connection = Connection(hubs.endpoints[1 - number])
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gone"}}
        began = time.monotonic()
        hubs.hubs[number].kill()
        status, _ = await connection.call("POST", "/api/v1/namespaces", json.dumps(namespace).encode())
        written = time.monotonic() - began
        assert status == 201
        status, _ = await connection.call("DELETE", "/api/v1/namespaces/gone")
        assert status == 200
        while (await connection.call("GET", "/api/v1/namespaces/gone"))[0] != 404:
            assert time.monotonic() - began < 30
            await asyncio.sleep(0.02)
        took = time.monotonic() - began
        connection.close()
        hubs.hubs[number].killed()
        print(f"a write at another hub: {written:.3f} s; its controllers at work: {took:.2f} s; the lease: {LEASE_SECONDS:g} s")
        assert took < MOST_SECONDS


@pytest.mark.skipif(isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces")
async def test_a_site_is_reached_through_any_hub_and_finds_another(tmp_path: Path) -> None:
    """Its agent has one tunnel, to one hub. Another hub reaches it over the first one; when that is killed, the agent dials the
    other, of which it knows from the first."""
    database = await asyncio.to_thread(Postgres, durable=True)
    await asyncio.to_thread(database.start)
    url, key = database.database(), tmp_path / "hub.key"
    continuum = Continuum(tmp_path / "c", isolated=True)
    continuum.directory.mkdir()
    other = Hub(tmp_path, free_port(), name="other", store=url, hub_key=key)
    try:
        await asyncio.to_thread(continuum.start_hub, "--store", url, "--hub-key", str(key))
        assert await other.start()
        first = Endpoint.of(continuum.kubeconfig)
        connection = Connection(first)
        async with asyncio.timeout(20):
            while b"\nnemo_hub_links 1" not in (await connection.call("GET", "/metrics"))[1]:
                await asyncio.sleep(0.1)
        connection.close()
        await asyncio.to_thread(continuum.add_sites, "edge-paris")
        manifest = tmp_path / "pod.yaml"
        manifest.write_text(POD)
        kubectl = ("kubectl", "--kubeconfig", str(other.kubeconfig))

        async def at_other(*arguments: str) -> str:
            process = await asyncio.create_subprocess_exec(*kubectl, *arguments, stdout=PIPE, stderr=PIPE)
            out, err = await process.communicate()
            return out.decode() if process.returncode == 0 else f"failed: {err.decode()}"

        assert "created" in await at_other("apply", "-f", str(manifest))
        assert "condition met" in await at_other("wait", "--for=condition=Ready", "pod/ticking", "--timeout=40s")
        assert await at_other("exec", "ticking", "--", "echo", "over two hubs") == "over two hubs\n"
        assert "tick" in await at_other("logs", "ticking", "--tail=3")
        assert continuum.hub is not None
        continuum.hub.kill()
        continuum.hub.wait()
        began = time.monotonic()
        while (said := await at_other("exec", "ticking", "--", "echo", "over one")) != "over one\n":
            assert time.monotonic() - began < 30, said
            await asyncio.sleep(0.1)
        print(f"the site is connected to the other hub after {time.monotonic() - began:.1f} s")
        assert "edge-paris" in await at_other("get", "clusters", "-o", "name")
    finally:
        await asyncio.to_thread(continuum.stop)
        other.stop()
        await asyncio.to_thread(database.stop)


@pytest.mark.timeout(900)
async def test_the_page_about_several_hubs_is_right(tmp_path: Path) -> None:
    """Its commands, as they stand there, at other ports."""
    page = (Path(__file__).resolve().parents[2] / "docs/how-to/several-hubs.md").read_text()
    blocks = [part.partition("```")[0] for part in page.split("```sh\n")[1:]]
    assert len(blocks) == 4
    database = await asyncio.to_thread(Postgres, durable=True)
    await asyncio.to_thread(database.start)
    for name in ("other", "new-store"):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(database.database())
    url = database.database()
    told: list[str] = []
    try:
        for block in blocks:
            script = block + "\nfor job in $(jobs -p); do kill $job; done\nwait\n"
            for port in ("7001", "7002", "7003"):
                script = script.replace(port, str(free_port()))
            environment = {**os.environ, "DATABASE": url}
            process = await asyncio.create_subprocess_exec(
                "bash", "-euc", script, cwd=tmp_path, env=environment, stdout=PIPE, stderr=PIPE, start_new_session=True
            )
            try:
                async with asyncio.timeout(240):
                    out, err = await process.communicate()
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = await process.communicate()
            assert process.returncode == 0, out.decode() + err.decode()
            told.append(out.decode())
        assert (tmp_path / "hub/state.db.moved").exists()
        for found, wanted in zip(told, ("hello created", "Yg==", "NEMO serves on", "kept created"), strict=True):
            assert wanted in found, found
        keys = await asyncio.to_thread((tmp_path / "hub.key").read_text)
        assert len(keys.splitlines()) == 1 and not (tmp_path / "next").exists()
    finally:
        await asyncio.to_thread(database.stop)
