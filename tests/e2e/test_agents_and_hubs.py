"""Agents of several hubs, all real processes: the hub of an agent is killed, another one is added later, and an agent starts or
joins while the hub that it was told of first is dead."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.postgres import Postgres, programs
from bench.wire import Connection, Endpoint
from metaos.twin.processes import HERE, free_port
from tests.crashing import Hub

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed: run python -m bench.postgres"),
]
HEARTBEAT_SECONDS = 1.0


class Fleet:
    """Hubs of one database, and agents without pods."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Postgres(durable=True)
        self.database.start()
        self.url = self.database.database()
        self.hubs: list[Hub] = []
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    async def add(self) -> Hub:
        hub = Hub(self.folder, free_port(), name=f"hub-{len(self.hubs)}", store=self.url, hub_key=self.folder / "hub.key")
        self.hubs.append(hub)
        assert await hub.start(), hub.log.read_text()
        return hub

    def kill(self, hub: Hub) -> None:
        hub.kill()
        hub.killed()

    def token(self, site: str, by: Hub) -> None:
        command = [sys.executable, "-m", "metaos", "join-token", site, "--kubeconfig", str(by.kubeconfig)]
        text = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HERE, check=True).stdout
        place = self.folder / f"{site}.token"
        place.touch(0o600)
        place.write_text(text)

    def start(self, site: str, *hubs: Hub) -> None:
        data = self.folder / site
        data.mkdir(mode=0o700, exist_ok=True)
        file = self.folder / f"{site}.yaml"
        spec = {"runtime": "sandbox", "tier": "edge", "isolation": "none"}
        file.write_text(
            yaml.safe_dump({"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": {"name": site}, "spec": spec})
        )
        named = [word for hub in hubs for word in ("--hub", f"https://127.0.0.1:{hub.port}")]
        command = [sys.executable, "-m", "metaos", "agent", *named, "--data", str(data), "--site", str(file)]
        command += ["--token-file", str(self.folder / f"{site}.token"), "--heartbeat", str(HEARTBEAT_SECONDS)]
        with (self.folder / f"{site}.log").open("ab") as log:
            self.agents[site] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=HERE)

    def end(self, site: str) -> None:
        self.agents[site].send_signal(signal.SIGKILL)
        self.agents.pop(site).wait()

    def known(self, site: str) -> set[int]:
        """The ports of the hubs that an agent was told of."""
        try:
            found = json.loads((self.folder / site / "hubs.json").read_text())
        except (OSError, ValueError):
            return set()
        return {int(url.rpartition(":")[2]) for url in found}

    async def renewed(self, site: str, by: Hub) -> str:
        """When the site's lease was renewed last, as this hub says."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/nemo-cluster-{site}/leases"
        status, body = await self.call(by, path)
        items = json.loads(body)["items"] if status == 200 else []
        return "".join(str(each["spec"].get("renewTime")) for each in items)

    async def call(self, hub: Hub, path: str) -> tuple[int, bytes]:
        connection = Connection(Endpoint.of(hub.kubeconfig))
        try:
            return await connection.call("GET", path)
        finally:
            connection.close()

    async def beats(self, site: str, by: Hub) -> None:
        """It renews its lease, and has a tunnel."""
        before = await self.renewed(site, by)
        await wait(lambda: self.renewed(site, by), lambda now: now not in ("", before), f"{site} renews its lease")
        usage = f"/apis/metrics.k8s.io/v1beta1/nodes/{site}"
        await wait(lambda: self.call(by, usage), lambda answer: answer[0] == 200, f"{site} answers through its tunnel")

    def log(self, site: str) -> str:
        return (self.folder / f"{site}.log").read_text()[-3000:]

    def stop(self) -> None:
        for site in list(self.agents):
            self.end(site)
        for hub in self.hubs:
            hub.stop()
        self.database.stop()


async def wait(ask: Callable[[], Any], fits: Callable[[Any], bool], what: str, seconds: float = 60.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            while True:
                found = ask()
                found = await found if asyncio.iscoroutine(found) else found
                if fits(found):
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what}") from None


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    found = await asyncio.to_thread(Fleet, tmp_path)
    try:
        yield found
    finally:
        await asyncio.to_thread(found.stop)


async def test_an_agent_finds_whichever_hub_is_left(fleet: Fleet) -> None:
    first, second = await fleet.add(), await fleet.add()
    await asyncio.to_thread(fleet.token, "edge", first)
    fleet.start("edge", first)
    await fleet.beats("edge", second)
    await wait(lambda: fleet.known("edge"), lambda ports: ports == {first.port, second.port}, "both hubs to be known")
    third = await fleet.add()  # later, while the agent runs
    everyone = {first.port, second.port, third.port}
    await wait(lambda: fleet.known("edge"), lambda ports: ports == everyone, "the third one to be known")
    fleet.kill(first)
    await fleet.beats("edge", third)
    # Where it was is dead: it is started anew, and knows the others.
    fleet.end("edge")
    fleet.start("edge", first)
    await fleet.beats("edge", third)
    fleet.kill(second)
    await fleet.beats("edge", third)


async def test_a_new_site_joins_at_the_hub_that_answers(fleet: Fleet) -> None:
    dead, alive = await fleet.add(), await fleet.add()
    fleet.kill(dead)
    await asyncio.to_thread(fleet.token, "edge", alive)
    fleet.start("edge", dead, alive)
    await fleet.beats("edge", alive)
    assert f"127.0.0.1:{dead.port}" in fleet.log("edge")
    assert os.path.exists(fleet.folder / "edge/registered")
