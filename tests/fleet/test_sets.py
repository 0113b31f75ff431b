"""DeviceSets: what is wanted of many reaches them in waves, stops where it breaks them, and is counted."""

from __future__ import annotations

from typing import Any

from metaos.resources import scheme
from metaos.resources.meta import Obj
from tests.fleet.site import ADMIN, Station, Thing, station


async def fleet(hub: Station, count: int, away: int = 0) -> list[Thing]:
    things = []
    for n in range(count):
        made: Obj = {**scheme.DEVICE.empty(f"d{n}", "shop"), "spec": {"credential": {"generation": 1}, "messagesPerSecond": 100}}
        made["metadata"]["labels"] = {"floor": "2"}
        await hub.registry.create(ADMIN, made)
        things.append(Thing(hub, f"d{n}"))
    await hub.settle(1)
    for thing in things[: count - away]:
        await thing.connect("a", heartbeat=3600)
        await thing.report(1)
    await hub.settle(7)
    return things


async def make(hub: Station, name: str, **spec: Any) -> None:
    spec = {"selector": {"matchLabels": {"floor": "2"}}, "template": {"desired": {"led": True}}} | spec
    await hub.registry.create(ADMIN, {**scheme.DEVICE_SET.empty(name, "shop"), "spec": spec})
    await hub.settle(3)


async def counts(hub: Station, name: str) -> Obj:
    return (await hub.registry.get(ADMIN, scheme.DEVICE_SET, name, "shop"))["status"]  # type: ignore[no-any-return]


async def given(hub: Station) -> list[str]:
    found = await hub.registry.list(ADMIN, scheme.DEVICE, "shop")
    return [d["metadata"]["name"] for d in found.items if (d["spec"].get("desired") or {}).get("led")]


async def test_a_wave_waits_for_the_one_before_it_and_those_away_come_last() -> None:
    async with station() as hub:
        things = await fleet(hub, 5, away=1)
        await make(hub, "lamps", maxUnavailable=2)
        assert await given(hub) == ["d0", "d1"]
        found = await counts(hub, "lamps")
        assert (found["devices"], found["updated"], found["ready"]) == (5, 2, 0)
        await things[0].connect("b", heartbeat=3600)
        await things[0].report(2, led=True)
        await hub.settle(9)
        assert await given(hub) == ["d0", "d1", "d2"]
        for thing in things[1:4]:
            for version in (2, 2):
                await thing.connect("b", heartbeat=3600)
                await thing.report(version, led=True)
                await hub.settle(9)
        assert await given(hub) == ["d0", "d1", "d2", "d3", "d4"]
        await things[4].connect("b")
        await things[4].report(2, led=True)
        await hub.settle(9)
        found = await counts(hub, "lamps")
        assert found["ready"] == 5 and found["unavailable"] == 0
        assert {c["type"]: c["status"] for c in found["conditions"]} == {
            "Available": "True",
            "Overlapping": "False",
            "Progressing": "True",
        }


async def test_so_many_devices_and_none_that_another_set_has() -> None:
    async with station() as hub:
        await fleet(hub, 3)
        await make(hub, "first", count=1)
        assert await given(hub) == ["d0"]
        await make(hub, "second", maxUnavailable="100%", template={"desired": {"other": 1, "led": True}})
        assert await given(hub) == ["d0", "d1", "d2"]
        found = await counts(hub, "second")
        assert found["devices"] == 2
        said = next(c for c in found["conditions"] if c["type"] == "Overlapping")
        assert said["status"] == "True" and said["message"] == "another DeviceSet has d0"
        assert "other" not in (await hub.device("d0"))["spec"]["desired"]


async def test_it_goes_no_further_where_devices_go_back() -> None:
    async with station() as hub:
        things = await fleet(hub, 3)
        await hub.registry.create(ADMIN, {**scheme.CONFIG_MAP.empty("app", "shop"), "data": {"main.py": "1/0"}})
        await make(hub, "lamps", maxUnavailable=1, template={"app": {"configMap": "app"}})
        told = dict(await things[0].connect("b", heartbeat=3600))
        sha = told["app.desired"]["sha256"]
        things[0].sequence += 1
        app = {"state": "RolledBack", "tried": sha, "message": "division by zero"}
        said = {"epoch": things[0].epoch, "sequence": things[0].sequence, "version": 2, "reported": {}, "app": app}
        await things[0].say("twin.reported", said)
        await hub.settle(9)
        found = await counts(hub, "lamps")
        assert (found["updated"], found["failed"], found["ready"]) == (1, 1, 0)
        halted = next(c for c in found["conditions"] if c["type"] == "Progressing")
        assert halted["status"] == "False" and halted["reason"] == "Halted"
