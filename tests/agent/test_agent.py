"""A whole agent, over TLS, against a hub that comes and goes. Only the runtime and its pods are stand-ins."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from metaos.agent import contact, mirror, presence, turns
from metaos.agent.agent import Agent
from metaos.agent.connection import HubConnection
from metaos.agent.entry import AgentConfig, enter
from metaos.agent.mirror import LOCAL_UID
from metaos.agent.presence import Removed
from metaos.agent.rotation import Rotation
from metaos.clock import SystemClock
from metaos.resources import errors, scheme
from metaos.resources.meta import DRAINING, Obj
from metaos.tunnel import StreamReset
from tests.agent.fakes import FakePods, FakeRuntime
from tests.agent.hub import Hub, until

HERE = "nemo-cluster-edge-a"


def deployment(name: str = "web", replicas: int = 2, uid: str = "d-web") -> Obj:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "shop", "uid": uid, "generation": 3},
        "spec": {"replicas": replicas},
    }


def work(*manifests: Obj, name: str = "deployment.shop.web", **spec: Any) -> Obj:
    found: Any = scheme.WORK.empty(name, HERE)
    return {**found, "spec": {"manifests": list(manifests), **spec}}


def rotation_of(agent: Agent) -> Rotation:
    found = agent.connection
    assert isinstance(found, HubConnection)
    return found.rotation


class Member:
    """A site: its agent may be stopped, and started again on the same disk."""

    def __init__(self, hub: Hub, folder: Path, site: str = "edge-a") -> None:
        self.hub, self.folder = hub, folder
        folder.mkdir(exist_ok=True)
        self.site: Any = scheme.CLUSTER.empty(site)
        self.site["spec"] = {"tier": "edge", "capacity": {"pods": "7"}}
        self.token_file = folder / "token"
        self.config = AgentConfig(hub.url, folder, folder / "site.yaml", self.token_file, heartbeat_seconds=0.05)
        self.task: asyncio.Task[None] | None = None
        self.starts = 0
        self.runtime = FakeRuntime()

    async def start(self, *, pods: FakePods | None = None) -> None:
        """With ``pods`` of an agent before it: on the machine that has run on."""
        if not self.token_file.exists():
            self.token_file.write_text(self.hub.token())
        self.starts += 1
        clock, random = SystemClock(), Random(self.starts)
        identity = await enter(self.config, self.site, clock, random)
        self.runtime = self.runtime if pods else FakeRuntime()
        self.pods = pods or FakePods()
        self.agent = Agent(
            self.config,
            self.site,
            partial(HubConnection, self.config, self.site["metadata"]["name"], identity, clock, random),
            self.runtime.as_runtime(),
            lambda *made: self.pods.as_pods(),
            clock,
            random,
        )
        self.task = asyncio.create_task(self.agent.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None

    def mirrors(self) -> list[Obj]:
        return self.hub.client.objects(scheme.POD, "shop")


@pytest.fixture
async def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    for module, constant, value in (
        (contact, "FIRST_RETRY_SECONDS", 0.02),
        (contact, "LAST_RETRY_SECONDS", 0.1),
        (contact, "LEAST_RETRY_SECONDS", 0.01),
        (presence, "MEASURE_SECONDS", 0.05),
        (turns, "UNREACHABLE_SECONDS", 0.2),
    ):
        monkeypatch.setattr(module, constant, value)
    found = Hub(tmp_path)
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def member(hub: Hub, tmp_path: Path) -> AsyncIterator[Member]:
    found = Member(hub, tmp_path / "edge-a")
    await found.start()
    yield found
    await found.stop()


def status_of(hub: Hub, name: str = "deployment.shop.web") -> Any:
    found = hub.client.find(scheme.WORK, name, HERE)
    return (found or {}).get("status") or {}


def condition(status: Any, kind: str) -> str:
    return next((c["status"] for c in status.get("conditions") or () if c["type"] == kind), "")


async def test_a_site_file_that_has_changed_since_is_told_and_what_is_the_hubs_is_not_passed_over_in_silence(
    hub: Hub, member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    await until(lambda: (hub.client.find(scheme.CLUSTER, "edge-a") or {}).get("status"))
    await member.stop()
    assert "site file" not in caplog.text
    member.site = member.site | {"spec": member.site["spec"] | {"price": {"cpuHour": 0.09}, "trust": "high"}}
    await member.start()
    await until(lambda: "kubectl edit cluster edge-a" in caplog.text)
    assert (hub.client.find(scheme.CLUSTER, "edge-a") or {})["spec"]["price"] == {"cpuHour": 0.09}
    assert 'spec.trust is "high", and the hub has nothing' in caplog.text and "spec.price" not in caplog.text
    assert caplog.text.count("which was set there or is for the hub alone to say") == 1


async def test_it_joins_renews_its_lease_and_says_what_it_has(hub: Hub, member: Member) -> None:
    lease = await until(lambda: hub.client.find(scheme.LEASE, "edge-a", HERE))
    assert lease["spec"]["holderIdentity"] == "edge-a" and "." in lease["spec"]["renewTime"]
    await until(lambda: (hub.client.find(scheme.LEASE, "edge-a", HERE) or {})["spec"]["renewTime"] != lease["spec"]["renewTime"])
    cluster = await until(lambda: (c := hub.client.find(scheme.CLUSTER, "edge-a")) and c.get("status") and c)
    assert cluster["spec"]["tier"] == "edge"
    status = cluster["status"]
    assert status["capacity"]["pods"] == "7" and status["nodeInfo"]["agentVersion"] and status["images"][0]["host"]
    assert status["agentConditions"][0]["type"] == "ResourceLimits" and status["usage"]["pods"] == "0"


async def test_a_work_runs_is_reported_mirrored_and_pruned(hub: Hub, member: Member) -> None:
    secret: Any = scheme.SECRET.empty("db", "shop")
    hub.client.seed(work(deployment()), work(secret, name="secret.shop.db"))
    await until(lambda: condition(status_of(hub), "Available") == "True")
    status = status_of(hub)
    assert status["observedGeneration"] == 1
    assert status["manifests"][0]["uid"] == "d-web" and status["manifests"][0]["observedGeneration"] == 3
    assert status["manifests"][0]["status"]["availableReplicas"] == 2
    await until(lambda: condition(status_of(hub, "secret.shop.db"), "Applied") == "True")
    mirrors = await until(lambda: len(m := member.mirrors()) == 2 and all("status" in p for p in m) and m)
    assert {m["spec"]["nodeName"] for m in mirrors} == {"edge-a"}
    assert mirrors[0]["metadata"]["labels"]["meta-os.eu/cluster"] == "edge-a"
    assert mirrors[0]["metadata"]["ownerReferences"][0]["uid"] == "d-web"
    files = list((member.folder / "works").iterdir())
    assert len(files) == 2 and all(f.stat().st_mode & 0o077 == 0 for f in files)
    hub.client.drop(scheme.WORK, "deployment.shop.web", HERE)
    await until(lambda: not member.pods.here and not member.mirrors())
    assert [o["kind"] for o in member.pods.desired] == ["Secret"], "only its own went"


async def test_who_is_told_that_pods_are_ready_finds_them(hub: Hub, member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    await until(lambda: member.agent.contact.reachable)
    # By themselves the mirrors would come long after the status that counts them.
    monkeypatch.setattr(mirror, "COALESCE_SECONDS", 3600.0)
    hub.client.seed(work(deployment()))
    await until(lambda: condition(status_of(hub), "Available") == "True")
    assert [p["status"]["conditions"][0]["status"] for p in member.mirrors()] == ["True", "True"]


async def test_offline_it_goes_on_restarts_from_disk_and_catches_up(hub: Hub, member: Member) -> None:
    hub.client.seed(work(deployment()))
    await until(lambda: condition(status_of(hub), "Available") == "True" and len(member.mirrors()) == 2)
    await hub.stop()
    await until(lambda: not member.agent.contact.reachable)
    pods = member.pods
    await member.stop()
    await member.start(pods=pods)
    assert len(pods.here) == 2 and pods.history[-1] == ["web"], "from disk, without the hub"
    hub.client.seed(
        work(deployment(replicas=3)) | {"metadata": {"name": "deployment.shop.web", "namespace": HERE, "generation": 2}}
    )
    hub.client.drop(scheme.POD, member.mirrors()[0]["metadata"]["name"], "shop")
    await hub.start()
    await until(lambda: len(pods.here) == 3 and len(member.mirrors()) == 3)
    await until(lambda: status_of(hub).get("observedGeneration") == 2)


async def test_a_mirror_follows_its_pod_and_only_its_pod(hub: Hub, member: Member) -> None:
    hub.client.seed(work(deployment(replicas=1)))
    (mirror,) = await until(lambda: (m := member.mirrors()) and "status" in m[0] and m)
    name = mirror["metadata"]["name"]
    pod = member.pods.here[("shop", name)]
    pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}
    member.pods.changed()
    await until(lambda: member.mirrors()[0]["status"] == pod["status"])
    hub.client.seed(mirror | {"status": {"phase": "Unknown", "reason": "NodeLost"}})
    await until(lambda: member.mirrors()[0]["status"] == pod["status"])
    hub.client.drop(scheme.POD, name, "shop")
    await until(lambda: member.mirrors() and member.mirrors()[0].get("status") == pod["status"])
    orphan: Any = scheme.POD.empty("orphan", "shop")
    orphan["metadata"]["annotations"] = {LOCAL_UID: "gone"}
    hub.client.seed(orphan | {"spec": {"nodeName": "edge-a"}}, {**scheme.POD.empty("other", "shop"), "spec": {"nodeName": "b"}})
    await until(lambda: [m["metadata"]["name"] for m in member.mirrors()] == ["other", name])


async def test_deleting_a_mirror_stops_the_pod_and_its_site_starts_another(hub: Hub, member: Member) -> None:
    hub.client.seed(work(deployment(replicas=1)))
    (mirror,) = await until(lambda: (m := member.mirrors()) and "status" in m[0] and m)
    await hub.client.delete(scheme.POD, mirror["metadata"]["name"], "shop", grace_period_seconds=4)
    (new,) = await until(lambda: len(m := member.mirrors()) == 1 and m[0]["metadata"]["name"] != mirror["metadata"]["name"] and m)
    assert member.pods.deleted == [("shop", mirror["metadata"]["name"], 4.0)]
    assert not new["metadata"].get("deletionTimestamp")


async def test_a_pod_that_ends_is_shown_as_ending(hub: Hub, member: Member) -> None:
    hub.client.seed(work(deployment(replicas=1)))
    (mirror,) = await until(lambda: (m := member.mirrors()) and "status" in m[0] and m)
    name, seen = mirror["metadata"]["name"], []
    pod = member.pods.here[("shop", name)]
    pod["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:07Z", "deletionGracePeriodSeconds": 7}
    member.pods.changed()

    def replaced() -> bool:
        seen.extend(m["metadata"].get("deletionGracePeriodSeconds") for m in member.mirrors() if m["metadata"]["name"] == name)
        return name not in [m["metadata"]["name"] for m in member.mirrors()]

    await until(replaced)
    assert member.pods.deleted == [("shop", name, 7.0)] and 7 in seen


async def test_a_users_own_pod_is_the_hubs_and_only_its_status_is_written(hub: Hub, member: Member) -> None:
    own: Any = scheme.POD.empty("own", "shop")
    own["metadata"]["uid"] = "p-own"
    own["spec"] = {"nodeName": "edge-a", "containers": []}
    hub.client.seed(own)
    waiting: Any = scheme.POD.empty("waiting", "shop")
    hub.client.seed(waiting | {"spec": {"nodeName": "edge-a", "containers": []}}, work(deployment(replicas=1)))
    hub.client.seed(work(own, name="pod.shop.own"))
    found = await until(lambda: (p := hub.client.find(scheme.POD, "own", "shop")) and "status" in p and p)
    assert found["status"]["phase"] == "Running" and "labels" not in found["metadata"] and "annotations" not in found["metadata"]
    await until(lambda: len(member.mirrors()) == 3)
    assert hub.client.find(scheme.POD, "waiting", "shop"), "bound to this site, its Work still on the way"
    await hub.client.delete(scheme.POD, "own", "shop")
    await until(lambda: not hub.client.find(scheme.POD, "own", "shop"))
    assert member.pods.deleted == [("shop", "own", 30.0)]


async def test_work_that_must_not_run_twice_is_fenced_and_comes_back_only_when_confirmed(hub: Hub, member: Member) -> None:
    fenced = work(deployment("db", 1, "d-db"), name="deployment.shop.db", fencing={"afterSeconds": 0.4})
    gone = work(deployment("old", 1, "d-old"), name="deployment.shop.old", fencing={"afterSeconds": 0.4})
    hub.client.seed(work(deployment()), fenced, gone)
    await until(lambda: len(member.pods.here) == 4)
    await hub.stop()
    await until(lambda: {p["metadata"]["ownerReferences"][0]["name"] for p in member.pods.pods()} == {"web"})
    pods = member.pods
    await member.stop()
    await member.start(pods=pods)
    assert "db" not in pods.history[-1], "a restart does not lift the fence"
    hub.client.drop(scheme.WORK, "deployment.shop.old", HERE)
    marked = len(pods.history)
    await hub.start()
    await until(lambda: {p["metadata"]["ownerReferences"][0]["name"] for p in member.pods.pods()} == {"web", "db"})
    assert not any("old" in wanted for wanted in pods.history[marked:])
    await until(lambda: condition(status_of(hub, "deployment.shop.db"), "Available") == "True")


async def test_a_restart_within_the_agreed_time_does_not_stop_fenced_work(hub: Hub, member: Member) -> None:
    hub.client.seed(work(deployment("db", 1, "d-db"), name="deployment.shop.db", fencing={"afterSeconds": 60}))
    limits = {"local-1": 60 + 30.0}
    await until(lambda: member.runtime.told[1] == limits)
    told = member.runtime.told[0]
    await until(lambda: member.runtime.told[0] > told)
    assert member.runtime.told[1] == limits, "each heartbeat tells the runtime's watchdog"
    await hub.stop()
    pods = member.pods
    await member.stop()
    await member.start(pods=pods)
    assert pods.history[-1] == ["db"] and len(pods.here) == 1


async def test_a_draining_work_is_marked_for_the_network(hub: Hub, member: Member) -> None:
    draining = work(deployment())
    draining["metadata"]["annotations"] = {DRAINING: "2026-01-01T00:00:00Z"}
    hub.client.seed(draining)
    await until(lambda: member.pods.desired)
    assert DRAINING in member.agent.works.desired(mark_draining=True)[0]["metadata"]["annotations"]
    assert "annotations" not in member.pods.desired[0]["metadata"], "its pods are not touched by it"


async def test_events_count_up_and_name_the_mirror(hub: Hub, member: Member) -> None:
    hub.client.seed(work(deployment(replicas=1)))
    (mirror,) = await until(lambda: (m := member.mirrors()) and "status" in m[0] and m)
    pod = member.pods.pods()[0]
    for _ in range(3):
        member.agent.events.record(pod, "Warning", "BackOff", "back-off restarting failed container")
    (event,) = await until(lambda: hub.client.objects(scheme.EVENT, "shop"))
    assert event["count"] == 3 and event["involvedObject"]["uid"] == mirror["metadata"]["uid"]
    member.agent.events.record(pod, "Warning", "BackOff", "back-off restarting failed container")
    await until(lambda: hub.client.objects(scheme.EVENT, "shop")[0]["count"] == 4)


async def test_logs_commands_and_refusals_through_the_tunnel(hub: Hub, member: Member) -> None:
    tunnel = await until(lambda: hub.tunnels.get("edge-a"))
    log = await tunnel.open(
        {"type": "log", "namespace": "ns", "pod": "p", "container": "c", "tail": 5, "previous": True, "newestSeconds": 9}
    )
    assert await log.read() == b"ns/p/c False 5 True 9.0\n" and await log.read() == b""
    follow = await tunnel.open({"type": "log", "namespace": "ns", "pod": "p", "container": "c", "follow": True})
    assert (await follow.read()).startswith(b"ns/p/c True")
    await follow.reset("enough")
    run = await tunnel.open(
        {"type": "exec", "namespace": "ns", "pod": "p", "container": "c", "command": ["exit", "3"], "stdin": True}
    )
    assert await run.read() == b"\x02exit 3"
    await run.write(b"\x00hello")
    assert await run.read() == b"\x01hello"
    await run.write(b'\x04{"Width":100,"Height":50}')
    await run.write(b"\xff\x00")
    answer = await run.read()
    assert answer[0] == 3 and json.loads(answer[1:])["details"]["causes"][0]["message"] == "3"
    attach = await tunnel.open({"type": "attach", "namespace": "ns", "pod": "p", "container": "c"})
    assert await attach.read() == b"\x02attached 0"
    await attach.close()
    for header, why in (({"type": "dial", "namespace": "ns", "pod": "p", "port": 9}, "nobody listens"), ({"type": "x"}, "older")):
        refused = await tunnel.open(header)
        with pytest.raises(StreamReset, match=why):
            await refused.accepted()
    await tunnel.close()
    await hub.stop()
    await hub.start()
    again = await until(lambda: hub.tunnels.get("edge-a"))
    assert again is not tunnel


async def test_a_removed_site_says_so_stops_its_pods_and_forgets_its_membership(
    hub: Hub, member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    hub.client.seed(work(deployment()))
    await until(lambda: len(member.pods.here) == 2)
    hub.revoked.add("system:cluster:edge-a")
    assert member.task is not None
    with pytest.raises(Removed, match="revoked"):
        await asyncio.wait_for(member.task, 10)
    assert not member.pods.here and "to join again it needs a new token" in caplog.text
    assert not list((member.folder / "works").iterdir()) and not (member.folder / "identity" / "agent.pem").exists()
    hub.revoked.clear()
    member.token_file.write_text(hub.token())
    await member.start()
    await until(lambda: member.agent.contact.reachable)


async def test_a_deleted_cluster_counts_only_when_it_stays_away(hub: Hub, member: Member) -> None:
    await until(lambda: hub.client.find(scheme.LEASE, "edge-a", HERE))
    hub.client.drop(scheme.CLUSTER, "edge-a")
    before = len(hub.client.calls)
    await until(lambda: len(hub.client.calls) > before + 5)
    assert member.task is not None and not member.task.done(), "while the heartbeat is taken it is a member"
    for verb in ("patch", "create"):
        hub.client.fail(verb, errors.not_found("", "namespaces", HERE), times=500)
    with pytest.raises(Removed, match="knows no Cluster"):
        await asyncio.wait_for(member.task, 10)


async def test_the_certificate_is_renewed_in_time(hub: Hub, tmp_path: Path) -> None:
    # Renewed after two thirds: three seconds are left for a slow machine to make a key.
    hub.lifetime_seconds = 9.0
    short = Member(hub, tmp_path / "edge-b", "edge-b")
    await short.start()
    first = rotation_of(short.agent).identity
    hub.lifetime_seconds = 1000.0
    await until(lambda: rotation_of(short.agent).identity is not first)
    assert (
        rotation_of(short.agent).identity.not_after > hub.clock.now() + 900 and rotation_of(short.agent).identity.key != first.key
    )
    await until(lambda: short.agent.contact.reachable)
    await short.stop()


def test_an_agent_loads_nothing_at_start_that_it_seldom_needs() -> None:
    seldom = (
        "bz2",
        "cryptography",
        "ctypes",
        "email",
        "h2",
        "http.client",
        "importlib.metadata",
        "lzma",
        "shutil",
        "tempfile",
        "yaml",
    )
    mine = "metaos.agent.agent, metaos.runtimes.sandbox, metaos.runtimes.confined"
    code = f"import sys, {mine}; print([m for m in {seldom} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
