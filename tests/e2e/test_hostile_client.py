"""One client floods the hub with expensive requests; agents' heartbeats stay within their time, others are served, too."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from examples.demo.continuum import Continuum
from metaos.agent.presence import LEAST_TIMEOUT_SECONDS
from metaos.clock import SystemClock
from metaos.http import HttpClient, tls_context
from metaos.pki import Pki
from metaos.resources import scheme
from metaos.resources.meta import cluster_namespace, format_time

CONNECTIONS, SECONDS, OBJECTS = 300, 5.0, 2000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Continuum]:
    continuum = Continuum(tmp_path / "continuum", isolated=True)
    continuum.directory.mkdir()
    try:
        continuum.start_hub()
        yield continuum
    finally:
        continuum.stop()


class Callers:
    """Clients of the hub with certificates of its own authority."""

    def __init__(self, hub: Continuum) -> None:
        self.pki = Pki(hub.data / "pki", Random(1), time.time())
        self.hub, self.clock = hub, SystemClock()

    def pem(self, name: str, *groups: str) -> bytes:
        pair = self.pki.authority.issue_client(name, groups, time.time(), 3600)
        return pair.certificate + pair.key

    def client(self, name: str, *groups: str) -> HttpClient:
        pair = self.pki.authority.issue_client(name, groups, time.time(), 3600)
        ca = self.pki.authority.pair.certificate.decode()
        context = tls_context(ca, pair.certificate.decode(), pair.key.decode())
        return HttpClient(f"https://127.0.0.1:{self.hub.port}", context=context, clock=self.clock, random=Random(5))


async def heartbeats(callers: Callers, site: str, until: asyncio.Event) -> list[float]:
    """Seconds that each renewal of a site's Lease took."""
    client, taken = callers.client(f"system:cluster:{site}", "system:clusters"), []
    while not until.is_set():
        started = time.monotonic()
        spec = {"holderIdentity": site, "leaseDurationSeconds": 5, "renewTime": format_time(time.time(), micro=True)}
        await client.patch(scheme.LEASE, site, cluster_namespace(site), {"spec": spec})
        taken.append(time.monotonic() - started)
        await asyncio.sleep(0.1)
    await client.close()
    return taken


@pytest.mark.system
@pytest.mark.slow
async def test_a_flood_of_expensive_requests_holds_up_no_heartbeat(hub: Continuum, tmp_path: Path) -> None:
    callers = Callers(hub)
    admin = callers.client("admin", "system:masters")
    binding = dict(scheme.CLUSTER_ROLE_BINDING.empty("mallory"))
    binding["subjects"] = [{"kind": "User", "name": "mallory", "apiGroup": "rbac.authorization.k8s.io"}]
    binding["roleRef"] = {"kind": "ClusterRole", "name": "edit", "apiGroup": "rbac.authorization.k8s.io"}
    await admin.create(binding)
    for start in range(0, OBJECTS, 50):
        made = [scheme.CONFIG_MAP.empty(f"c{i}", "default") | {"data": {"key": "x" * 500}} for i in range(start, start + 50)]
        await asyncio.gather(*(admin.create(obj) for obj in made))
    sites = ("one", "two", "three")
    for site in sites:
        await admin.create(scheme.CLUSTER.empty(site) | {"spec": {"runtime": "sandbox", "tier": "edge"}})
        async with asyncio.timeout(10):
            while not [n for n in (await admin.list(scheme.NAMESPACE)).items if n["metadata"]["name"] == cluster_namespace(site)]:
                await asyncio.sleep(0.05)
        lease = dict(scheme.LEASE.empty(site, cluster_namespace(site)))
        await admin.create(lease)
    (tmp_path / "mallory.pem").write_bytes(callers.pem("mallory"))

    arguments = [str(hub.port), str(tmp_path / "mallory.pem"), str(CONNECTIONS), str(SECONDS)]
    flood = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.e2e.hostile", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert flood.stdout is not None
    try:
        await flood.stdout.readline()
        over = asyncio.Event()
        beating = [asyncio.create_task(heartbeats(callers, site, over)) for site in sites]
        # An administrator works meanwhile, and another user is served between the flood's requests.
        worked, started = [], time.monotonic()
        while time.monotonic() < started + SECONDS:
            before = time.monotonic()
            await admin.get(scheme.NAMESPACE, "default")
            worked.append(time.monotonic() - before)
            await asyncio.sleep(0.2)
        over.set()
        taken = [seconds for site in await asyncio.gather(*beating) for seconds in site]
        said = json.loads(await asyncio.wait_for(flood.stdout.readline(), 40))
    finally:
        if flood.returncode is None:
            flood.kill()
        await flood.wait()
    print(f"\nheartbeats: {len(taken)}, median {sorted(taken)[len(taken) // 2]:.3f} s, longest {max(taken):.3f} s; "
          f"administrator: {len(worked)}, longest {max(worked):.3f} s; the flood's answers: {said}")  # fmt: skip
    assert said.get("200", 0) > 10 and said.get("429", 0) > 10, "the flood was none"
    # After that time an agent counts a heartbeat as failed.
    assert max(taken) < LEAST_TIMEOUT_SECONDS and len(taken) > SECONDS
    metrics = (await admin.request("GET", "/metrics")).body.decode()
    refused = [line for line in metrics.splitlines() if line.startswith("apiserver_flowcontrol_rejected_requests_total")]
    assert any('"global-default",reason="queue-full"' in line and not line.endswith(" 0") for line in refused), refused
    assert all(line.endswith(" 0") for line in refused if '"system"' in line), refused
    await admin.close()
