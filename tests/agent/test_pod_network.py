"""Services of pods in real sandboxes: the same port everywhere, own Services, and after a restart of the agent."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metaos.agent import flows
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
ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 5353)); print("up", flush=True)
while True:
    data, who = s.recvfrom(70000); s.sendto(sys.argv[1].encode() + b" " + data[: 65507 - 99], who)
"""
#: Asks each name by a connected socket (which takes answers from that very address only), with so many bytes.
SEND = """
import socket, sys
for name in sys.argv[2:]:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
    s.connect((name, 5353)); s.send(b"x" * int(sys.argv[1]))
    try: answer = s.recv(70000); print(answer.split()[0].decode(), len(answer))
    except TimeoutError: print("-", 0)
    except OSError as error: print(type(error).__name__, 0)
"""
#: So many sockets at once, each with a datagram of its own; who answered.
MANY = """
import select, socket, sys
found = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(int(sys.argv[2]))]
for n, s in enumerate(found): s.connect((sys.argv[1], 5353)); s.send(b"%d" % n)
answered, poll = set(), select.poll()
for n, s in enumerate(found): poll.register(s, select.POLLIN)
numbers = {s.fileno(): n for n, s in enumerate(found)}
while len(answered) < len(found) and (ready := poll.poll(2000)):
    for fd, _ in ready:
        n = numbers[fd]; assert found[n].recv(99).split()[1] == b"%d" % n; answered.add(n)
print(len(answered))
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
            self.runtime,
            self.network,
            lambda uid: next((p for p in self.pods if p["metadata"]["uid"] == uid), None),
            partial(asyncio.sleep, 0),
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

    async def run(self, name: str, listen: str, attempt: int = 0, program: str = SERVE) -> None:
        uid = f"uid-{name}"
        await self.attached.start_pod(PodConfig(uid, "shop", name, name))
        await self.runtime.start_container(
            uid, ContainerConfig("c", "python:3", ("python3", "-c", program, name, listen), (), (), "", (), attempt=attempt)
        )
        async for block in self.runtime.logs(uid, "c", follow=True):
            if b"up" in block:
                break

    async def call(self, caller: str, *names: str, program: str = CALL) -> list[str]:
        process = await self.runtime.exec(f"uid-{caller}", "c", ("python3", "-c", program, *names))
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


async def test_a_pods_own_aliases_stand_in_its_hosts(site: Site) -> None:
    await site.start("web", "web", "0.0.0.0")
    found = pod("api", "api", ports=[{"containerPort": 8080}])
    found["spec"]["hostAliases"] = [{"ip": "127.0.0.1", "hostnames": ["me", "my.self"]}]
    site.pods.append(found)
    await site.run("api", "0.0.0.0")
    site.network.update(site.services, site.pods)
    assert await site.call("api", "me", "my.self", "api") == ["api", "api", "api"]
    assert "my.self" not in Path(site.folder, "state", "pods", "uid-web", "hosts").read_text()


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
    await until(lambda: "other" in Path(site.folder, "state", "pods", "uid-web", "hosts").read_text())
    process = await site.runtime.exec("uid-web", "c", ("python3", "-c", CALL.replace("8080", "9090"), "other"))
    assert [data async for _, data in process.output()] == [b"api\n"]
    assert os.path.exists(site.folder / "addresses.json")


def by_udp(name: str, **spec: Any) -> Obj:
    ports = [{"name": "dns", "port": 5353, "targetPort": "dns", "protocol": "UDP"}]
    return service(name) | {"spec": {"selector": {"app": name}, "ports": ports} | spec}


@pytest.fixture
async def udp(site: Site) -> Site:
    if not site.runtime.network().separate:
        pytest.skip(f"no network cards here: {site.runtime.conditions()}")
    site.services = [by_udp("web"), by_udp("api"), by_udp("db", clusterIP="None"), by_udp("none")]
    for name in ("web", "api", "db"):
        site.pods.append(pod(name, name, ports=[{"name": "dns", "containerPort": 5353, "protocol": "UDP"}]))
    site.network.update(site.services, site.pods)
    for name in ("web", "api", "db"):
        await site.run(name, "", program=ECHO)
    return site


async def test_datagrams_reach_services_and_come_back_from_where_they_were_sent(udp: Site) -> None:
    sizes = ["web", "9", "api", "9", "db", "8", "db", "8", "-", "0"]
    assert await udp.call("web", "5", "web", "api", "db", "db.db", "none", program=SEND) == sizes
    for size in (1472, 9000, 65507 - 99):
        assert await udp.call("api", str(size), "db", program=SEND) == ["db", str(size + 3)]
    assert udp.network.counts.dropped == {"no endpoint that may be reached": 1}
    await udp.end()
    udp.begin()  # as an agent that was restarted
    await until(lambda: len(udp.network._datagrams.ports("uid-web")) == 1)
    assert await udp.call("web", "5", "api", program=SEND) == ["api", "9"]


async def test_policies_hold_for_datagrams_also_for_those_on_their_way(udp: Site) -> None:
    only_tcp = {
        "kind": "NetworkPolicy",
        "metadata": {"name": "guard", "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "api"}}, "ingress": [{"ports": [{"port": 5353}]}]},
    }
    udp.network.update([*udp.services, only_tcp], udp.pods)
    assert await udp.call("web", "5", "api", "db", program=SEND) == ["-", "0", "db", "8"]
    udp.network.update(udp.services, udp.pods)
    assert await udp.call("web", "5", "api", program=SEND) == ["api", "9"]
    # One socket that goes on: from the moment on at which it is not allowed any more, nothing comes back.
    going_on = SEND.replace("try:", "s.settimeout(1)\n    try:").replace(
        "answer = s.recv(70000);", "\n        while True: answer = s.recv(70000); print('up', flush=True); s.send(b'x')\n       "
    )
    process = await udp.runtime.exec("uid-web", "c", ("python3", "-c", going_on, "5", "api"))
    said = b""
    async with asyncio.timeout(20):
        async for _, data in process.output():
            if b"up" in data and not said:
                udp.network.update([*udp.services, only_tcp], udp.pods)
            said += data
    assert said.endswith(b"- 0\n"), said[-99:]


async def test_flows_are_bounded_and_the_quiet_ones_make_room(udp: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "MAX_POD_FLOWS", 20)
    assert await udp.call("web", "api", "20", program=MANY) == ["20"]
    assert udp.network.counts.flows == 20
    assert await udp.call("web", "db", "20", program=MANY) == ["20"]
    assert udp.network.counts.flows == 20
    monkeypatch.setattr(flows, "MAX_FLOWS", 20)
    assert await udp.call("api", "db", "1", program=MANY) == ["1"], "others' many flows keep nobody from having one"
    assert udp.network.counts.flows == 20
    monkeypatch.setattr(flows, "IDLE_SECONDS", 0.0)
    for sender in ("uid-web", "uid-api"):
        udp.network._datagrams._origins[sender].flows._sweep()
    assert udp.network.counts.flows == 0


async def test_who_does_not_listen_costs_the_datagram_and_a_pod_that_comes_back_is_found(udp: Site) -> None:
    await udp.runtime.stop_container("uid-db", "c", 0)
    assert await udp.call("web", "5", "db", program=SEND) == ["-", "0"]
    await udp.run("db", "", attempt=1, program=ECHO)
    assert await udp.call("web", "5", "db", program=SEND) == ["db", "8"]
