"""Looks at what pods use, and periods on their way to the hub."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from metaos.accounting.booking import problems
from metaos.agent.cache import Cache
from metaos.agent.consumption import Consumption
from metaos.agent.contact import Contact
from metaos.agent.energy import Modelled
from metaos.agent.flows import Counts
from metaos.agent.inventory import Machine, busy
from metaos.agent.meter import Meter
from metaos.agent.usages import Usages
from metaos.plugins.points import ContainerUsage
from metaos.resources import errors, scheme
from metaos.resources.meta import Obj
from tests.clock import FakeClock
from tests.fake_client import FakeClient


class Running:
    """A runtime with these containers, and a machine with one more busy core."""

    def __init__(self) -> None:
        self.used: dict[str, list[ContainerUsage]] = {}
        self.seconds = 0.0

    async def usage(self) -> dict[str, list[ContainerUsage]]:
        return dict(self.used)

    def busy(self, whole: bool) -> float:
        return self.seconds if whole else 0.0


def pod(uid: str, owner: str = "web", phase: str = "Running") -> Obj:
    return {
        "kind": "Pod",
        "metadata": {"name": f"{owner}-{uid}", "namespace": "shop", "uid": uid}
        | ({"ownerReferences": [{"kind": "Deployment", "name": owner, "controller": True}]} if owner else {}),
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}}}]},
        "status": {"phase": phase},
    }


class Site:
    def __init__(self, folder: Path, clock: FakeClock, client: FakeClient) -> None:
        self.clock, self.client, self.folder = clock, client, folder
        self.running, self.pods, self.counts = Running(), [pod("u1")], Counts()
        self.task: asyncio.Task[None] | None = None
        self.start()

    def start(self) -> None:
        self.cache = Cache(self.folder / "records.db")
        self.meter = Meter(self.cache, Modelled({"idleWatts": 40, "maxWatts": 180}, 4000), 4000)
        runtime: Any = self.running
        machine: Any = self.running
        self.consumption = Consumption(runtime, lambda: self.pods, self.clock, machine, self.counts, self.meter)
        contact = Contact(self.clock, Random(1), self.folder / "renewed")
        self.usages = Usages(self.client, contact, self.clock, Random(2), self.meter, "edge")

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        self.task = None
        self.cache.close()

    async def run(self) -> None:
        await asyncio.gather(self.consumption.run(), self.usages.run())

    async def passes(self, seconds: float, step: float = 5.0) -> None:
        if self.task is None:
            self.task = asyncio.create_task(self.run())
        for _ in range(round(seconds / step)):
            await self.clock.settle(20)
            self.use(step)
            await self.clock.advance(step)
        await self.clock.settle(50)

    def use(self, seconds: float) -> None:
        """Half a core by each pod, and two by the machine beside them."""
        for each in self.pods:
            uid = str(each["metadata"]["uid"])
            before = self.running.used.get(uid)
            cpu = (before[0].cpu_seconds if before else 0.0) + seconds / 2
            self.running.used[uid] = [ContainerUsage("c", f"{uid}/0", cpu, 2.0**26, self.clock.now() - 10)]
        self.running.seconds += seconds / 2 * len(self.pods) + 2 * seconds

    def usage(self) -> Any:
        return self.client.find(scheme.USAGE, "edge") or {}

    def book(self, number: int) -> None:
        self.client.seed({**self.usage(), "status": {"booked": number}})


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    clock = FakeClock()
    await clock.advance(-clock.now() % 300)
    found = Site(tmp_path, clock, FakeClient(clock))
    yield found
    await found.stop()


async def test_rates_are_means_since_the_look_before(site: Site) -> None:
    site.use(5)
    await site.consumption.look()
    assert site.consumption.rates["u1"]["c"] == {"cpu": 0.25, "memory": 2.0**26}, "since its start, 10 s ago"
    site.use(20)
    await site.clock.advance(20)
    await site.consumption.look()
    assert site.consumption.rates["u1"]["c"]["cpu"] == pytest.approx(0.5) and site.consumption.window == 20
    site.pods = [pod("u1", phase="Succeeded")]
    await site.consumption.look()
    assert not site.consumption.rates


async def test_periods_end_on_time_are_sent_and_dropped_when_they_are_booked(site: Site) -> None:
    site.pods.append(pod("u2", "batch"))
    site.counts.leave("u1", 10)
    await site.passes(360)
    site.counts.leave(("shop", "web-u1"), 5)
    (period,) = site.usage()["spec"]["periods"]
    assert period["end"] % 300 == 0 and not list(problems(period, site.clock.now()))
    one, other = period["pods"]
    assert other["workload"] == {"kind": "Deployment", "name": "batch"} and one["requestedMillis"] == 500
    assert one["networkBytes"] == 10 and other["networkBytes"] == 0
    length = period["end"] - period["start"]
    assert one["cpuMicroseconds"] == pytest.approx(length * 5e5, rel=0.05)
    dynamic = length * 3 * 35_000
    assert period["energy"]["millijoules"] == pytest.approx(length * 40_000 + dynamic, rel=0.05)
    site.book(1)
    await site.passes(60)
    assert not len(site.meter)
    await site.passes(300)
    (period,) = site.usage()["spec"]["periods"]
    assert period["sequence"] == 2 and period["pods"][0]["networkBytes"] == 5


async def test_what_was_sent_before_a_kill_is_sent_again_and_booked_once(site: Site) -> None:
    await site.passes(660)
    assert [p["sequence"] for p in site.usage()["spec"]["periods"]] == [1, 2]
    sent = site.usage()["spec"]["periods"]
    await site.stop()
    site.start()
    await site.passes(60)
    assert site.usage()["spec"]["periods"] == sent
    site.book(2)
    await site.passes(60)
    assert not len(site.meter)


async def test_twelve_at_a_time_and_quickly_after_a_cut(site: Site) -> None:
    for _ in range(41):
        site.use(300)
        await site.consumption.look()
        await site.clock.advance(300)
    assert len(site.meter) == 40
    site.client.fail("get", errors.unavailable("still cut off"), times=2)
    booked = 0
    await site.passes(60)
    for _ in range(4):
        await site.passes(30)
        periods = site.usage()["spec"]["periods"]
        assert len(periods) <= 12 and periods[0]["sequence"] == booked + 1
        booked = periods[-1]["sequence"]
        site.book(booked)
        if len(periods) < 12:
            break
    assert booked >= 40


async def test_what_a_lost_disk_had_sent_is_booked_first(site: Site) -> None:
    old = {"sequence": 8, "start": 1, "end": 2}
    site.client.seed({**scheme.USAGE.empty("edge"), "spec": {"periods": [old]}, "status": {"booked": 7}})
    await site.passes(400)
    assert site.usage()["spec"]["periods"] == [old]
    site.book(8)
    await site.passes(60)
    assert [p["sequence"] for p in site.usage()["spec"]["periods"]] == [9]


async def test_a_pod_that_went_is_told_of_once_more(site: Site) -> None:
    site.pods.append(pod("u2", ""))
    await site.passes(100)
    site.use(3)
    left = site.running.used["u2"]
    site.pods.pop()
    await site.passes(10)
    del site.running.used["u2"]
    await site.passes(250)
    found = {p["name"]: p for p in site.usage()["spec"]["periods"][0]["pods"]}
    assert found["-u2"]["workload"] == {"kind": "Pod", "name": "-u2"}
    assert found["-u2"]["cpuMicroseconds"] == pytest.approx(left[0].cpu_seconds * 1e6, rel=0.1)


async def test_what_is_asked_for_of_accelerators(site: Site) -> None:
    asked = {"resources": {"limits": {"nvidia.com/gpu-milli": "300"}}}
    site.pods[0]["spec"]["containers"][0].update(asked)
    site.pods.append(pod("u2"))
    site.pods[1]["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "2"}}
    site.use(5)
    await site.consumption.look()
    assert [look.accelerators for look in site.consumption._known.values()] == [300, 2000]


def test_a_machine_counts_what_it_used(tmp_path: Path) -> None:
    """The file is made up, as proc_stat(5) describes it."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu  100 10 30 5000 70 1 2 3 40 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert busy(tmp_path) == pytest.approx(1.46)
    assert 0 < Machine().busy(False) < Machine().busy(True)
