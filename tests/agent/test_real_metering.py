"""Metering of real pods on this machine: who computes pays, and it adds up. Only the energy is a model's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metaos.accounting.booking import problems
from metaos.agent.consumption import Consumption
from metaos.agent.energy import Modelled
from metaos.agent.flows import Counts
from metaos.agent.inventory import Machine
from metaos.agent.meter import Meter
from metaos.clock import SystemClock
from tests.agent.machine import container, workload
from tests.agent.test_real_pods import RealSite, running

pytestmark = [pytest.mark.system, pytest.mark.slow]

BUSY = ["python3", "-c", "while True: pass"]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[RealSite]:
    async with running(tmp_path) as found:
        yield found


async def test_two_busy_pods_and_an_idle_one(site: RealSite) -> None:
    asked = {"requests": {"cpu": "100m"}}
    site.supervisor.set_desired(
        [
            workload("Deployment", "busy", replicas=2, template={"containers": [container(command=BUSY, resources=asked)]}),
            workload("Deployment", "idle", template={"containers": [container(command=["sleep", "600"], resources=asked)]}),
        ]
    )
    await site.until(lambda: site.ready(3))
    meter = Meter(site.cache, Modelled({"idleWatts": 20, "maxWatts": 60}, 2000), 2000, period_seconds=4)
    looking = asyncio.create_task(
        Consumption(site.runtime, site.supervisor.pods, SystemClock(), Machine(), Counts(), meter).run()
    )
    await site.until(lambda: len(meter) >= 3)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    meter.settle(0)
    for period in meter.next(3)[1:]:
        assert not list(problems(period, SystemClock().now()))
        energies = {pod["name"]: pod["energyMillijoules"] for pod in period["pods"]}
        (idle,) = (energy for name, energy in energies.items() if name.startswith("idle"))
        busy = sorted(energy for name, energy in energies.items() if name.startswith("busy"))
        assert sum(energies.values()) + period["energy"]["systemMillijoules"] == period["energy"]["millijoules"]
        assert busy[0] > 1.5 * idle and idle > 0, "it has reserved a part of the machine that idles"
        assert period["energy"]["millijoules"] <= 60_000 * (period["end"] - period["start"] + 1), "to the second"
