"""Services of pods in real sandboxes: the same port everywhere, own Services, and after a restart of the agent."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from metaos.agent.network import ServiceNetwork
from metaos.agent.site import Attached
from metaos.clock import SystemClock
from metaos.plugins.points import ContainerConfig, PodConfig
from metaos.resources.meta import Obj
from metaos.runtimes.sandbox import SandboxRuntime
from metaos.tunnel import Stream, TunnelError
from tests.agent.hub import until
from tests.agent.test_network import pod, service

pytestmark = pytest.mark.system

SERVE = """
import http.server, sys
class Say(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(sys.argv[1].encode())
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer((sys.argv[2], 8080), Say); print("up", flush=True); server.serve_forever()
"""
CALL = "import sys, urllib.request as u; print(*(u.urlopen(f'http://{n}:8080', timeout=9).read().decode() for n in sys.argv[1:]))"


async def no_other_site(header: dict[str, Any]) -> Stream:
    raise TunnelError("no other site")


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pods: list[Obj] = []
        self.services = [service(name, 8080, 8080) for name in ("web", "api")] + [service("db", 8080, 8080, clusterIP="None")]
        self.begin()

    def begin(self) -> None:
        self.runtime = SandboxRuntime(str(self.folder / "state"), clock=SystemClock())
        self.network = ServiceNetwork(self.runtime, "here", self.folder / "addresses.json", no_other_site)
        self.attached: Any = Attached(
            self.runtime, self.network, lambda uid: next((p for p in self.pods if p["metadata"]["uid"] == uid), None)
        )
        self.network.update(self.services, self.pods)

    async def end(self) -> None:
        await self.network.close()
        await self.runtime.close()

    async def start(self, name: str, app: str, listen: str) -> None:
        found = pod(name, app, ports=[{"containerPort": 8080}])
        self.pods.append(found)
        self.network.update(self.services, self.pods)
        await self.run(name, listen)

    async def run(self, name: str, listen: str, attempt: int = 0) -> None:
        uid = f"uid-{name}"
        await self.attached.start_pod(PodConfig(uid, "shop", name, name))
        await self.runtime.start_container(
            uid, ContainerConfig("c", "python:3", ("python3", "-c", SERVE, name, listen), (), (), "", (), attempt=attempt)
        )
        async for block in self.runtime.logs(uid, "c", follow=True):
            if b"up" in block:
                break

    async def call(self, caller: str, *names: str) -> list[str]:
        process = await self.runtime.exec(f"uid-{caller}", "c", ("python3", "-c", CALL, *names))
        said = b"".join([data async for _, data in process.output()])
        assert await process.wait() == 0, said.decode()
        return said.decode().split()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="nemo-network-"))
    found = Site(folder)
    await found.runtime.check()
    yield found
    for uid in list(await found.runtime.pods()):
        await found.attached.stop_pod(uid)
    await found.end()
    shutil.rmtree(folder)


async def test_pods_that_listen_on_one_port_reach_each_other_and_themselves(site: Site) -> None:
    if not site.runtime.network().separate:
        pytest.skip(f"no network cards here: {site.runtime.conditions()}")
    await site.start("web", "web", "0.0.0.0")
    await site.start("api", "api", "127.0.0.1")
    await site.start("db-0", "db", "db-0")
    everyone = ("web", "api.shop", "db", "db-0.db", "localhost")
    assert await site.call("web", *everyone) == ["web", "api", "db-0", "db-0", "web"]
    assert await site.call("api", *everyone) == ["web", "api", "db-0", "db-0", "api"]
    assert await site.call("db-0", *everyone[:-1]) == ["web", "api", "db-0", "db-0"]
    await site.end()
    site.begin()  # as an agent that was restarted
    await until(lambda: all(found.sockets for found in site.network._pods.values()))
    assert await site.call("api", *everyone) == ["web", "api", "db-0", "db-0", "api"]


async def test_a_network_that_is_made_anew_gets_its_services_again(site: Site) -> None:
    await site.start("web", "web", "0.0.0.0")
    await site.start("api", "api", "0.0.0.0")
    before = site.runtime.network("uid-api").id
    holder = site.runtime._pod("uid-api").holder
    assert holder is not None
    holder.kill()
    async with asyncio.timeout(20):
        while any(state.running for state in (await site.runtime.pods())["uid-api"]):
            await site.runtime.wait()
    await site.run("api", "0.0.0.0", attempt=1)
    assert site.runtime.network("uid-api").id != before
    assert await site.call("api", "web", "api") == ["web", "api"]


async def test_a_site_without_cards_says_what_cannot_be_reached(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(site.runtime._isolation, "no_card", "as if there were no veth")
    await site.start("web", "web", "127.0.0.1")
    await site.start("api", "api", "127.0.0.1")
    assert site.network.pod_address("shop", "web").startswith("127.")
    assert "pod shop/web listens on port 8080 itself, so it cannot reach Service api" in caplog.text
    assert await site.call("web", "localhost") == ["web"]
    site.services.append(
        service("other", 9090, 8080) | {"spec": {"selector": {"app": "api"}, "ports": [{"port": 9090, "targetPort": 8080}]}}
    )
    site.network.update(site.services, site.pods)
    await until(lambda: "other" in Path(site.folder, "state", "pods", "uid-web", "etc", "hosts").read_text())
    process = await site.runtime.exec("uid-web", "c", ("python3", "-c", CALL.replace("8080", "9090"), "other"))
    assert [data async for _, data in process.output()] == [b"api\n"]
    assert os.path.exists(site.folder / "addresses.json")
