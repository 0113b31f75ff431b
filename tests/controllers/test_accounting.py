"""What sites report is booked once, with the carbon, the owner and the price of its time, whatever is killed in between."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.accounting.ledger import verify_chain
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import OWNER, Obj
from metaos.security.authz import MASTERS, UserInfo
from metaos.twin.disk import Disk
from tests.apiserver.accounting import Hub, pod, reported, running
from tests.apiserver.conftest import ADMIN
from tests.clock import FakeClock


async def shop(hub: Hub, site: str = "paris") -> None:
    await hub.registry.create(
        ADMIN, {**scheme.NAMESPACE.empty("shop"), "metadata": {"name": "shop", "annotations": {OWNER: "acme"}}}
    )
    await hub.site(site)
    await hub.gives(site)
    await hub.settle()


async def events(hub: Hub) -> list[tuple[str, str]]:
    return [(e["reason"], e["message"]) for e in (await hub.registry.list(ADMIN, scheme.EVENT)).items]


async def test_a_period_is_booked_with_what_held_in_its_time() -> None:
    async with running() as hub:
        await shop(hub)
        tariff = {"provider": "paris-inc", "consumer": "acme", "cpuHour": 0.02, "basis": "used", "currency": "USD"}
        await hub.registry.create(ADMIN, {**scheme.TARIFF.empty("cheap"), "spec": tariff})
        wish = {"workloads": {"selector": {"matchLabels": {"app": "web"}}}, "expectations": [{"targets": []}]}
        for name, chosen in (("green", wish), ("other", {**wish, "workloads": {"refs": [{"kind": "Deployment", "name": "db"}]}})):
            await hub.registry.create(ADMIN, {**scheme.INTENT.empty(name, "shop"), "spec": _intent(chosen)})
        await hub.settle()
        await hub.reports("paris", reported(hub.clock, 1, pod()))
        await hub.settle()
        (entry,) = await hub.entries()
        (line,) = entry.lines
        header = entry.header
        assert (header["site"], header["provider"], header["sequence"], header["pue"]) == ("paris", "paris-inc", 1, "1.2")
        assert header["factors"]["location"] == {"gramsPerKWh": "300", "source": "stated by the site (location)"}
        assert header["factors"]["market"] is None and header["watts"] == {"idle": "20", "max": "100"}
        assert line["consumer"] == "acme" and line["given"] and line["intents"] == ["green"]
        assert line["cost"]["price"]["source"] == "Tariff cheap" and line["cost"]["currency"] == "USD"
        assert line["operationalMicrograms"] == {"location": 400_000, "market": None, "marginal": None}, "4 kJ x 1.2 x 300 g/kWh"
        status = await hub.usage("paris")
        assert status["booked"] == 1 and not status.get("refused")


def _intent(chosen: Obj) -> Obj:
    target = {"name": "carbonIntensity", "condition": "IsLessThan", "value": 300, "unit": "gCO2eq/kWh"}
    return {**chosen, "expectations": [{"targets": [target]}]}


async def test_nonsense_is_refused_by_itself_and_said() -> None:
    async with running() as hub:
        await shop(hub)
        now = hub.clock
        wrong = reported(now, 2, pod(presentMilliseconds=10**9))
        await hub.reports("paris", reported(now, 1, pod()), wrong, reported(now, 3, pod()))
        await hub.settle()
        assert [e.header["sequence"] for e in await hub.entries()] == [1, 3]
        status = await hub.usage("paris")
        assert status["booked"] == 3 and [r["sequence"] for r in status["refused"]] == [2]
        assert "pods[0].presentMilliseconds: 1000000000 must be at most" in status["refused"][0]["message"]
        assert ("PeriodRefused", f"period 2: {status['refused'][0]['message']}") in await events(hub)


async def test_no_time_is_booked_twice_and_no_number_is_taken_for_another() -> None:
    async with running() as hub:
        await shop(hub)
        now = hub.clock
        await hub.reports("paris", reported(now, 1, pod()), reported(now, 2, pod()))
        await hub.settle()
        await hub.reports("paris", reported(now, 2, pod()) | {"sequence": 3}, reported(now, 4, pod()))
        await hub.settle()
        (overlapping,) = (await hub.usage("paris"))["refused"]
        assert overlapping["sequence"] == 3 and "lies in what is booked already" in overlapping["message"]
        # Somebody removed the Usage: what is in the ledger is not booked again, what counts anew is not taken for it.
        await hub.registry.delete(ADMIN, scheme.USAGE, "paris")
        await hub.registry.create(ADMIN, scheme.USAGE.empty("paris"))
        await hub.reports("paris", reported(now, 1, pod()), reported(now, 4, pod()))
        await hub.settle()
        assert len(await hub.entries()) == 3 and (await hub.usage("paris"))["booked"] == 4
        await hub.registry.delete(ADMIN, scheme.USAGE, "paris")
        await hub.registry.create(ADMIN, scheme.USAGE.empty("paris"))
        await hub.reports("paris", reported(now, 5, pod()) | {"sequence": 1})
        await hub.settle()
        (anew,) = (await hub.usage("paris"))["refused"]
        assert "was booked for another period: count on from 4" in anew["message"] and len(await hub.entries()) == 3
        # So it does: its meter takes what is booked and was not its own for a spool that was here before.
        assert (await hub.usage("paris"))["booked"] == 4
        await hub.reports("paris", reported(now, 5, pod()))
        await hub.settle()
        assert (await hub.usage("paris"))["booked"] == 5 and len(await hub.entries()) == 4


async def test_what_the_hub_has_not_given_is_charged_to_nobody() -> None:
    async with running() as hub:
        await shop(hub)
        ghost = pod("ghost-1", namespace="bank", workload={"kind": "Deployment", "name": "ghost"})
        await hub.reports("paris", reported(hub.clock, 1, pod(), ghost))
        await hub.settle()
        (entry,) = await hub.entries()
        assert [(line["given"], line["cost"] is None) for line in entry.lines] == [(True, False), (False, True)]
        assert ("NotGiven", "period 1: not given to this site, so charged to nobody: bank/ghost-1") in await events(hub)
        # What was taken away a moment ago was given all the same.
        await hub.registry.delete(ADMIN, scheme.WORK, "deployment.shop.web", "nemo-cluster-paris")
        await hub.settle()
        await hub.reports("paris", reported(hub.clock, 2, pod()))
        await hub.settle()
        assert (await hub.entries())[-1].lines[0]["given"]


async def test_only_the_controller_writes_the_ledger() -> None:
    async with running() as hub:
        booking = {**scheme.BOOKING.empty(""), "spec": {"header": {}, "lines": []}}
        for user in (ADMIN, UserInfo("root", (MASTERS,))):
            with pytest.raises(ApiError, match="accounting controller alone"):
                await hub.registry.create(user, booking)
        with pytest.raises(ApiError, match="cannot create resource"):
            await hub.registry.create(UserInfo("system:cluster:paris", ("system:clusters",)), booking)


@pytest.mark.parametrize("writes", range(1, 7))
async def test_a_crash_between_any_two_writes_loses_and_doubles_nothing(writes: int) -> None:
    clock = FakeClock(1_700_000_400.0)
    disk = Disk(clock, 10_000)
    async with running(disk.mount(), disk.ledger, clock) as hub:
        await shop(hub)
    await disk.store.close()
    wrong: dict[str, Any] = {"energy": {"millijoules": 10**15, "systemMillijoules": 10**15}}
    store = disk.mount()
    async with running(store, store.ledger, clock) as hub:
        await hub.reports("paris", *(reported(clock, n, pod(), **(wrong if n == 3 else {})) for n in (1, 2, 3, 4)))
        store.kill_after = writes
        await hub.settle()
        # Three entries, an Event and the status; then it has nothing to write, and lives.
        assert store.dead.is_set() == (writes <= 5)
    await disk.store.close()
    async with running(disk.mount(), disk.ledger, clock) as hub:
        await hub.settle()
        assert [e.header["sequence"] for e in await hub.entries()] == [1, 2, 4]
        status = await hub.usage("paris")
        assert status["booked"] == 4 and [r["sequence"] for r in status["refused"]] == [3]
        verify_chain((row.entry(), row.hash) for row in await disk.ledger.read())
