"""Placement reviews: what they say is what the placement controller then does, and nobody sees more than they may."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaos.cli.plan import render
from metaos.controllers import placement, planning
from metaos.controllers.planning import MOST_WAITING, Planner
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import EVICTED, Obj
from tests.clock import FakeClock
from tests.controllers.continuum import cluster, deployment, running, until
from tests.fake_client import FakeClient


def intent(*targets: dict[str, Any], name: str = "wish") -> Obj:
    return {**scheme.INTENT.empty(name, "shop"), "spec": {"expectations": [{"targets": list(targets)}]}}


class Asking:
    """Keeps the planner that ``running`` sets up."""

    def __init__(self) -> None:
        self.planner: Planner | None = None

    def setup(self, manager: Manager, client: Any, clock: Any, settings: Settings) -> None:
        self.planner = Planner(manager, clock, settings)

    async def __call__(self, visible: bool = True, **spec: Any) -> dict[str, Any]:
        assert self.planner is not None
        answer = await self.planner.review({"spec": spec, "metadata": {}}, lambda where: visible)
        status: dict[str, Any] = answer["status"]
        return status


def places(row: dict[str, Any]) -> dict[str, int]:
    return {c["name"]: c["replicas"] for c in row["clusters"]}


async def placed(client: FakeClient, clock: FakeClock, name: str) -> dict[str, int]:
    found = await until(clock, lambda: client.find(scheme.PLACEMENT, f"deployment-{name}", "shop"))
    return places(found["spec"])


async def test_a_plan_tells_who_would_be_displaced_and_where_to_and_so_it_comes() -> None:
    asking = Asking()
    high: Obj = {**scheme.PRIORITY_CLASS.empty("high"), "value": 1000}
    wanted = deployment("urgent", cpu="3")
    async with running(placement.setup, asking.setup, objects=(cluster("a"), high, deployment("low", cpu="3"))) as (
        client,
        clock,
    ):
        await placed(client, clock, "low")
        assert [w["name"] for w in (await asking(objects=[wanted]))["workloads"]] == ["urgent"]
        wanted["spec"]["template"]["spec"]["priorityClassName"] = "high"
        urgent, low = (await asking(objects=[wanted]))["workloads"]
        assert urgent["reason"].endswith("displaces Deployment shop/low (priority 0) at a") and places(urgent["after"]) == {
            "a": 1
        }
        assert (low["name"], places(low["before"]), places(low["after"]), low["complete"]) == ("low", {"a": 1}, {}, False)
        assert "its room is needed by Deployment shop/urgent, whose priority is 1000" in str(low["rejected"])
        client.seed(cluster("b"))
        await clock.advance(1)
        wanted["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "a"}
        urgent, low = (await asking(objects=[wanted]))["workloads"]
        assert (places(urgent["after"]), places(low["after"])) == ({"a": 1}, {"b": 1})
        assert len((await asking(drain=["b"]))["workloads"]) == 0
        await client.create(wanted)
        assert await placed(client, clock, "urgent") == {"a": 1}
        await until(clock, lambda: places((client.find(scheme.PLACEMENT, "deployment-low", "shop") or {})["spec"]) == {"b": 1})


async def test_what_is_planned_is_what_is_done() -> None:
    asking = Asking()
    sites = (cluster("a", electricity={"carbonIntensity": 500}), cluster("b", electricity={"carbonIntensity": 20}))
    async with running(placement.setup, asking.setup, objects=sites) as (client, clock):
        status = await asking(objects=[deployment("web", cpu="3"), deployment("api", cpu="3")])
        planned = {w["name"]: places(w["after"]) for w in status["workloads"]}
        assert planned == {"web": {"b": 1}, "api": {"a": 1}}, "in the order in which they are brought"
        await client.create(deployment("web", cpu="3"))
        assert await placed(client, clock, "web") == planned["web"]
        await client.create(deployment("api", cpu="3"))
        assert await placed(client, clock, "api") == planned["api"]
        again = await asking(objects=[deployment("api", cpu="3")])
        assert [places(w["after"]) for w in again["workloads"]] == [{"a": 1}]
        assert again["workloads"][0]["before"]["clusters"] == [{"name": "a", "replicas": 1}]


async def test_an_intent_that_is_not_applied_yet_counts_and_one_that_cannot_be_met_says_why() -> None:
    asking = Asking()
    async with running(placement.setup, asking.setup, objects=(cluster("a"), cluster("b"), deployment())) as (client, clock):
        await placed(client, clock, "web")
        wish = intent({"name": "carbonIntensity", "condition": "IsLessThan", "value": 100, "hard": True})
        (row,) = (await asking(objects=[wish]))["workloads"]
        assert row["conflict"]["requirements"] == [{"text": "carbonIntensity below 100 gCO2eq/kWh", "source": "intent 'wish'"}]
        assert row["conflict"]["relaxations"][0]["cost"] == 1.0


async def test_the_placement_of_what_cannot_be_placed_keeps_the_conflict() -> None:
    wish = intent({"name": "residency", "condition": "IsOneOf", "value": ["CH"]})
    async with running(placement.setup, objects=(cluster("a"), deployment(), wish)) as (client, clock):
        found = await until(
            clock, lambda: (client.find(scheme.PLACEMENT, "deployment-web", "shop") or {}).get("status", {}).get("conflict")
        )
        assert found["requirements"] == [{"text": "residency one of CH", "source": "intent 'wish'"}]
        assert found["relaxations"] == []


async def test_all_at_once_nothing_gains_where_everything_is_well_placed() -> None:
    asking = Asking()
    async with running(placement.setup, asking.setup, objects=(cluster("a"), cluster("b"), deployment())) as (client, clock):
        await placed(client, clock, "web")
        found = (await asking(reoptimise=True))["reoptimised"]
        assert found["considered"] == 1 and found["moves"] == [] and found["before"] == found["after"] and found["gap"] < 0.01


async def test_changes_of_the_world_touch_what_they_concern() -> None:
    asking = Asking()
    objects = (cluster("a"), cluster("b"), deployment("one"), deployment("two"))
    async with running(placement.setup, asking.setup, objects=objects) as (client, clock):
        here = next(iter(await placed(client, clock, "one")))
        status = await asking(drain=[here])
        assert all(here not in places(w["after"]) for w in status["workloads"]) and status["workloads"]
        assert (await asking(visible=False, drain=[here]))["workloads"] == []
        assert (await asking(visible=False, drain=[here]))["workloadsLeftOut"] == len(status["workloads"])
        with pytest.raises(ApiError, match="there is no site 'mars'") as caught:
            await asking(lose=["mars"])
        assert caught.value.code == 422


async def test_an_update_holds_the_room_that_it_asks_for_and_is_compared_with_what_is_there() -> None:
    asking = Asking()
    old = deployment("web", cpu="1")
    async with running(placement.setup, asking.setup, objects=(cluster("a", price={"cpuHour": 0.5}), old)) as (client, clock):
        await placed(client, clock, "web")
        status = await asking(objects=[deployment("web", cpu="3"), deployment("more", cpu="2")])
        rows = {w["name"]: w for w in status["workloads"]}
        assert places(rows["web"]["after"]) == {"a": 1} and places(rows["more"]["after"]) == {}
        assert (rows["web"]["before"]["cost"], rows["web"]["after"]["cost"]) == (0.5, 1.5)


async def test_a_job_that_has_ended_is_not_started_again() -> None:
    asking = Asking()
    job = {**scheme.JOB.empty("once", "shop"), "status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    job["spec"] = {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}
    async with running(placement.setup, asking.setup, objects=(cluster("a"),)):
        assert (await asking(objects=[job]))["workloads"] == []


async def test_what_may_wait_and_what_runs_by_a_schedule_is_said_to() -> None:
    asking = Asking()
    pod = {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}

    def job(name: str, **said: str) -> Obj:
        found: Obj = {**scheme.JOB.empty(name, "shop"), "spec": pod}
        found["metadata"]["annotations"] = {f"meta-os.eu/{word}": value for word, value in said.items()}
        return found

    cron: Obj = scheme.CRON_JOB.empty("d", "shop")
    cron["spec"] = {"schedule": "0 3 * * *", "jobTemplate": {"metadata": job("d", slack="90m")["metadata"], "spec": pod}}
    wanted = [job("a", slack="6h"), job("b", deadline="2099-01-31T06:00:00Z"), job("c"), cron]
    async with running(placement.setup, asking.setup, objects=(cluster("a"),)):
        status = await asking(objects=wanted, alternatives=False)
    told = {row["name"]: row.get("timing", "") for row in status["workloads"]}
    assert told["a"] == (
        "may wait up to 6 h; when it starts is decided once it is there; "
        "by the forecasts of now it starts at once on a, at 200 gCO2eq/kWh; the figures are of a start at once"
    )
    assert told["b"].startswith("starts at once: how long it runs is not known: state") and told["c"] == ""
    assert told["d"].endswith("running all the time, and it runs by its schedule; each run may start up to 1.5 h later")
    assert f"  when      {told['a']}" in render(status, 120)


async def test_sums_and_alternatives_are_of_what_the_caller_may_see() -> None:
    asking = Asking()
    priced = (cluster("a", price={"cpuHour": 0.5}), cluster("b", price={"cpuHour": 0.5}))
    async with running(placement.setup, asking.setup, objects=(*priced, deployment())) as (client, clock):
        here = next(iter(await placed(client, clock, "web")))
        assert (await asking(drain=[here]))["before"]["cost"] > 0
        status = await asking(visible=False, drain=[here])
        assert status["workloadsLeftOut"] == 1 and status["unchanged"] == 0
        assert status["before"]["cost"] == status["after"]["cost"] == status["chosen"]["cost"] == 0
        assert status["alternatives"] == []
        with pytest.raises(ApiError, match="may not list placements in the namespace 'shop'") as caught:
            await asking(visible=False, objects=[deployment()])
        assert caught.value.code == 403


async def test_one_plan_is_made_at_a_time_and_few_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def later(function: Any, /, *arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(0)
        return function(*arguments, **named)

    class Beside(Asking):
        def setup(self, manager: Manager, client: Any, clock: Any, settings: Settings) -> None:
            super().setup(manager, client, clock, replace(settings, decide=later))

    # As a large one, which is made in another process.
    monkeypatch.setattr(planning, "MANY_PAIRS", 0)
    asking = Beside()
    async with running(placement.setup, asking.setup, objects=(cluster("a"),)):
        answers = await asyncio.gather(*(asking() for _ in range(MOST_WAITING + 2)), return_exceptions=True)
        refused = [a for a in answers if isinstance(a, ApiError)]
        assert [a.code for a in refused] == [429, 429] and len(answers) - len(refused) == MOST_WAITING
        assert (await asking())["workloads"] == []


async def test_a_pod_that_has_its_site_takes_its_room_there_until_it_has_ended() -> None:
    asking = Asking()
    pod = {**scheme.POD.empty("lone", "shop"), "spec": deployment(cpu="3")["spec"]["template"]["spec"]}
    async with running(placement.setup, asking.setup, objects=(cluster("a"), pod)) as (client, clock):
        await until(clock, lambda: client.find(scheme.PLACEMENT, "pod-lone", "shop"))
        await client.patch(scheme.POD, "lone", "shop", {"spec": {"nodeName": "a"}})
        await client.create(deployment("web", cpu="2"))
        assert await placed(client, clock, "web") == {}
        (row,) = (await asking(objects=[deployment("web", cpu="2")]))["workloads"]
        assert places(row["after"]) == {}
        await client.patch(scheme.POD, "lone", "shop", {"status": {"phase": "Succeeded"}}, subresource="status")
        for _ in range(100):
            await clock.advance(0.1)
            (row,) = (await asking(objects=[deployment("web", cpu="2")]))["workloads"]
            if places(row["after"]):
                break
        assert places(row["after"]) == {"a": 1}


async def test_many_workloads_are_read_in_turns_and_all_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "AT_ONCE", 2)
    asking = Asking()
    objects = [deployment(f"w{n}") for n in range(5)]
    async with running(placement.setup, asking.setup, objects=(cluster("a"),)):
        assert [w["name"] for w in (await asking(objects=objects))["workloads"]] == [f"w{n}" for n in range(5)]


async def test_what_was_evicted_from_a_cordoned_site_is_planned_elsewhere() -> None:
    asking = Asking()
    sites = cluster("a", unschedulable=True), cluster("b")
    async with running(asking.setup, objects=(*sites, deployment())) as (client, clock):
        obj = await until(clock, lambda: client.find(scheme.DEPLOYMENT, "web", "shop"))
        of = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": obj["metadata"]["uid"]}
        spec = {"workloadRef": of, "clusters": [{"name": "a", "replicas": 1}]}
        await client.create({**scheme.PLACEMENT.empty("deployment-web", "shop"), "spec": spec})
        assert places((await planned(asking, obj))["after"]) == {"a": 1}
        pod: Obj = {**scheme.POD.empty("web-1", "shop"), "spec": {"nodeName": "a"}}
        pod["metadata"].update(annotations={EVICTED: "now"}, ownerReferences=[{**of, "controller": True}])
        await client.create(pod)
        assert places((await planned(asking, obj, elsewhere=True))["after"]) == {"b": 1}


async def planned(asking: Asking, obj: Obj, elsewhere: bool = False) -> dict[str, Any]:
    """Asks until the informers have what was written."""
    row: dict[str, Any] = {}
    for _ in range(100):
        await asyncio.sleep(0)
        (row,) = (await asking(objects=[obj]))["workloads"]
        before, after = places(row["before"]), places(row["after"])
        if before and elsewhere == (before != after):
            break
    return row


EXAMPLES = Path(__file__).parents[2]


async def test_the_how_to_of_an_application_shows_what_is_planned() -> None:
    page = (EXAMPLES / "docs/how-to/place-an-application.md").read_text()
    (manifest, _), (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.S), re.findall(r"```text\n(.*?)```", page, re.S)
    sites = [next(yaml.safe_load_all(file.read_text())) for file in sorted((EXAMPLES / "examples/sites").glob("*.yaml"))]
    for site in sites:
        site["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    kinds = ("Deployment", "StatefulSet")
    shop = [o for f in sorted((EXAMPLES / "examples/shop").glob("*.yaml")) for o in yaml.safe_load_all(f.read_text())]
    asking = Asking()
    async with running(asking.setup, objects=tuple(sites)) as _:
        objects = [yaml.safe_load(manifest), *(o for o in shop if o["kind"] in kinds)]
        status = await asking(objects=objects, alternatives=False)
    lines = render(status, 120)
    for line in shown.splitlines():
        assert line in lines, "\n".join(lines)
    assert len({tuple(places(w["after"])) for w in status["workloads"]}) == 1
