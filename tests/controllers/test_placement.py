"""The placement controller: what makes it decide, what it writes, and what it leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from metaos.client import WatchEvent
from metaos.controllers import attention, placement
from metaos.controllers.fencing import halt
from metaos.controllers.render import manifest, work
from metaos.resources import errors, scheme
from metaos.resources.meta import EVICTED, Obj, ObjectRef, condition, format_time, ref
from metaos.store.log import StoreUnreachable
from tests.controllers.continuum import cluster, deployment, events, intent, places, running, traffic, until
from tests.fake_client import FakeClient

CLEAN = {"name": "carbonIntensity", "condition": "Minimize"}
IN_EU = {"name": "residency", "condition": "IsOneOf", "value": ["EU"]}


async def test_a_workload_is_placed_with_scores_reasons_and_an_event() -> None:
    sites = cluster("a"), cluster("uk", jurisdictions=["GB"])
    async with running(placement.setup, objects=(*sites, intent(IN_EU), deployment())) as (client, clock):
        await until(clock, lambda: events(client) == ["Placed"])
        found = client.find(scheme.PLACEMENT, "deployment-web", "shop") or {}
    assert places(client) == {"a": 1}
    assert found["metadata"]["ownerReferences"][0]["kind"] == "Deployment"
    assert [s["cluster"] for s in found["status"]["scores"]] == ["a"]
    assert [r["cluster"] for r in found["status"]["rejected"]] == ["uk"]
    assert found["status"]["intents"] == ["wish"]
    assert (condition(found, "Scheduled") or {})["status"] == "True"


async def test_without_a_site_it_says_so_and_places_it_when_one_joins() -> None:
    async with running(placement.setup, objects=(deployment(),)) as (client, clock):
        await until(clock, lambda: events(client) == ["Unplaceable"])
        client.seed(cluster("a"))
        await until(clock, lambda: places(client) == {"a": 1})


async def test_a_heartbeat_leads_to_no_write() -> None:
    async with running(placement.setup, objects=(cluster("a"), deployment())) as (client, clock):
        await until(clock, lambda: events(client) == ["Placed"])
        await clock.advance(1)
        before = len(client.calls)
        client.seed(cluster("a", status={"usage": {"cpu": "120m"}}))
        await clock.advance(5)
        assert client.calls[before:] == []


async def test_a_lost_site_is_replaced() -> None:
    async with running(placement.setup, objects=(cluster("a"), deployment())) as (client, clock):
        await until(clock, lambda: places(client) == {"a": 1})
        taint = {"key": "meta-os.eu/unreachable", "effect": "NoExecute", "timeAdded": format_time(clock.now())}
        client.seed(cluster("b"), cluster("a", ready=False, taints=[taint]))
        await until(clock, lambda: places(client) == {"b": 1})
        await until(clock, lambda: "Moved" in events(client))


async def test_a_lost_site_is_not_waited_with_while_others_have_other_figures() -> None:
    async with running(placement.setup, objects=(cluster("a"), cluster("z"), deployment())) as (client, clock):
        await until(clock, lambda: places(client) == {"a": 1})
        await clock.advance(attention.FULL_SECONDS)
        for carbon in (210, 220):
            client.seed(cluster("z", electricity={"carbonIntensity": carbon}))
            await clock.advance(2 * attention.SETTLE_SECONDS)
        taint = {"key": "meta-os.eu/unreachable", "effect": "NoExecute", "timeAdded": format_time(clock.now())}
        client.seed(cluster("a", ready=False, taints=[taint]))
        await until(clock, lambda: places(client) == {"z": 1}, 3 * attention.SETTLE_SECONDS)


async def test_carbon_that_turns_moves_it_and_the_budget_remembers() -> None:
    sites = cluster("a", electricity={"carbonIntensity": 50}), cluster("b", electricity={"carbonIntensity": 400})
    async with running(placement.setup, objects=(*sites, intent(CLEAN), deployment())) as (client, clock):
        await until(clock, lambda: places(client) == {"a": 1})
        client.seed(cluster("a", electricity={"carbonIntensity": 500}), cluster("b", electricity={"carbonIntensity": 40}))
        await until(clock, lambda: places(client) == {"b": 1})
        await until(clock, lambda: "Moved" in events(client))
        found = client.find(scheme.PLACEMENT, "deployment-web", "shop") or {}
        assert len(found["spec"]["moves"]) == 1 and "points better" in found["spec"]["reason"]


async def test_a_move_that_the_store_did_not_take_is_one_when_it_does() -> None:
    sites = cluster("a", electricity={"carbonIntensity": 50}), cluster("b", electricity={"carbonIntensity": 400})
    async with running(placement.setup, objects=(*sites, intent(CLEAN), deployment())) as (client, clock):
        await until(clock, lambda: events(client) == ["Placed"])
        await clock.advance(1)
        client.fail("update", StoreUnreachable("the database is away"))
        client.seed(cluster("a", electricity={"carbonIntensity": 500}), cluster("b", electricity={"carbonIntensity": 40}))
        await until(clock, lambda: places(client) == {"b": 1})
        await until(clock, lambda: "Moved" in events(client))
        found = client.find(scheme.PLACEMENT, "deployment-web", "shop") or {}
        assert len(found["spec"]["moves"]) == 1


async def test_an_edited_intent_is_followed() -> None:
    async with running(placement.setup, objects=(cluster("a", jurisdictions=["GB"]), deployment())) as (client, clock):
        await until(clock, lambda: places(client) == {"a": 1})
        client.seed(cluster("z"), intent(IN_EU))
        await until(clock, lambda: places(client) == {"z": 1})


def evicted(owner: Obj | None) -> Obj:
    """A pod of ``web`` on ``a``, evicted from there."""
    uid = (owner or {})["metadata"]["uid"]
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": uid, "controller": True}
    metadata = {"name": "web-1", "namespace": "shop", "ownerReferences": [reference], "annotations": {EVICTED: "now"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "a"}}


async def test_a_drained_site_is_left() -> None:
    async with running(placement.setup, objects=(cluster("a"), deployment())) as (client, clock):
        await until(clock, lambda: places(client) == {"a": 1})
        mirror = evicted(client.find(scheme.DEPLOYMENT, "web", "shop"))
        client.seed(cluster("b"), cluster("a", unschedulable=True), mirror)
        await until(clock, lambda: places(client) == {"b": 1})


async def test_a_site_that_is_drained_with_nowhere_to_go_is_told_so_once() -> None:
    async with running(placement.setup, objects=(cluster("a"), deployment())) as (client, clock):
        await until(clock, lambda: places(client) == {"a": 1})
        mirror = evicted(client.find(scheme.DEPLOYMENT, "web", "shop"))
        client.seed(cluster("a", unschedulable=True), mirror)
        await until(clock, lambda: set(events(client)) == {"Placed", "Incomplete"})
        await clock.advance(300)
        told = [e for e in client.objects(scheme.EVENT, "shop") if e["reason"] == "Incomplete"]
        assert [(e["type"], e["count"]) for e in told] == [("Warning", 1)]
        assert "the site is being drained; but no site can take it" in told[0]["message"]
        assert places(client) == {"a": 1}, "it runs on meanwhile"
        client.seed(cluster("b"))
        await until(clock, lambda: places(client) == {"b": 1})


async def test_room_is_not_given_away_twice() -> None:
    works = [deployment(f"w{i}", cpu="1") for i in range(6)]
    sites = [cluster(n, capacity={"cpu": "3", "memory": "8Gi", "pods": "40"}) for n in ("a", "b")]
    async with running(placement.setup, objects=(*sites, *works)) as (client, clock):
        await until(clock, lambda: all(places(client, f"deployment-w{i}") for i in range(6)))
        used = [name for i in range(6) for name in places(client, f"deployment-w{i}")]
    assert (used.count("a"), used.count("b")) == (3, 3)


async def test_decisions_are_written_together_and_give_no_room_away_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is slow; a decision that has others make way waits until all others are written."""
    high: Obj = {**scheme.PRIORITY_CLASS.empty("high"), "value": 1000}
    small = {"allocatable": {"cpu": "3", "memory": "4Gi", "pods": "10"}}
    low = [sized(f"low{i}", "1") for i in range(4)]
    async with running(placement.setup, objects=(cluster("a", status=small), high)) as (client, clock):
        under_way, most, create = 0, 0, client.create

        async def slow(obj: Obj, **options: Any) -> Obj:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await clock.sleep(1)
            under_way -= 1
            return await create(obj, **options)

        monkeypatch.setattr(client, "create", slow)
        client.seed(*low, sized("urgent", "2500m", priority="high"))
        await clock.advance(0.5)
        assert most == placement.WORKERS
        await until(clock, lambda: places(client, "deployment-urgent") == {"a": 1}, 30)
        await clock.advance(10)
        assert [places(client, f"deployment-low{i}") for i in range(4)] == [{}] * 4


async def test_what_is_not_the_users_to_place_is_left_alone() -> None:
    mirror: Obj = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop"}, "spec": {"nodeName": "a"}}
    own = deployment("own", "nemo-system")
    async with running(placement.setup, objects=(cluster("a"), mirror, own)) as (client, clock):
        await clock.advance(2)
        assert client.objects(scheme.PLACEMENT) == []


async def test_a_deleted_placement_is_made_again() -> None:
    async with running(placement.setup, objects=(cluster("a"), deployment())) as (client, clock):
        await until(clock, lambda: places(client) == {"a": 1})
        client.drop(scheme.PLACEMENT, "deployment-web", "shop")
        await until(clock, lambda: places(client) == {"a": 1})


async def test_a_conflict_is_tried_again() -> None:
    async with running(placement.setup, objects=(cluster("a"), deployment())) as (client, clock):
        await until(clock, lambda: events(client) == ["Placed"])
        client.seed(deployment(replicas=3))
        await until(clock, lambda: places(client) == {"a": 3})


TALK = {"from": {"name": "web"}, "to": {"name": "api"}}
APART = (
    cluster("a", links=[{"cluster": "b", "milliseconds": 60, "bytesPerSecond": "10M"}]),
    cluster("b", electricity={"carbonIntensity": 150}),
)


async def test_who_talks_follows_the_other_one() -> None:
    pinned = {"apiVersion": "meta-os.eu/v1alpha1", "kind": "PlacementPolicy", "metadata": {"name": "home", "namespace": "shop"}}
    pinned["spec"] = {"workloads": {"refs": [{"kind": "Deployment", "name": "api"}]}, "clusters": {"allowed": ["a"]}}
    works = deployment("web"), deployment("api")
    async with running(placement.setup, objects=(*APART, pinned, *works)) as (client, clock):
        await until(clock, lambda: places(client, "deployment-api") == {"a": 1} and places(client) == {"b": 1})
        await clock.advance(1)
        client.seed(traffic(TALK))
        await until(clock, lambda: places(client) == {"a": 1})
        client.seed(pinned | {"spec": pinned["spec"] | {"clusters": {"allowed": ["b"]}}})
        await until(clock, lambda: places(client, "deployment-api") == {"b": 1})
        await until(clock, lambda: places(client) == {"b": 1}, 900)
    found = client.find(scheme.PLACEMENT, "deployment-web", "shop") or {}
    assert "near" in found["status"]["intents"]
    assert "traffic" in {t["name"] for t in found["status"]["scores"][0]["terms"]}


async def test_a_link_is_not_promised_twice() -> None:
    """Three that each send 6 of its 10 MB/s to the far camera: one goes over the link, two where the camera is."""
    works = [deployment(f"w{i}", cpu="1") for i in range(3)]
    camera = [{"from": {"cluster": "a"}, "to": {"name": f"w{i}"}, "bytesPerSecond": "6M"} for i in range(3)]
    clean = {**intent(CLEAN), "spec": {**intent(CLEAN)["spec"], "priority": 100}}
    sites = APART[0], cluster("b", electricity={"carbonIntensity": 0})
    async with running(placement.setup, objects=(*sites, clean, traffic(*camera, priority=0), *works)) as (client, clock):
        await until(clock, lambda: all(places(client, f"deployment-w{i}") for i in range(3)))
        await clock.advance(2)
    used = sorted(name for i in range(3) for name in places(client, f"deployment-w{i}"))
    assert used == ["a", "a", "b"]


APPLICATION = traffic(
    {"from": {"name": "web"}, "to": {"name": "api"}, "maxMilliseconds": 10, "hard": True},
    {"from": {"name": "api"}, "to": {"name": "db"}, "bytesPerSecond": "1Mi", "responseBytesPerSecond": "4Mi"},
)


async def test_components_that_come_together_are_placed_together_and_say_so() -> None:
    """Each alone would take the dirty site's room or not: one of them may only be at ``b``, so all are."""
    sites = (
        cluster("a", links=[{"cluster": "b", "milliseconds": 60}], electricity={"carbonIntensity": 100}),
        cluster("b", electricity={"carbonIntensity": 150}),
    )
    home = {"apiVersion": "meta-os.eu/v1alpha1", "kind": "PlacementPolicy", "metadata": {"name": "home", "namespace": "shop"}}
    home["spec"] = {"workloads": {"refs": [{"kind": "Deployment", "name": "web"}]}, "clusters": {"allowed": ["b"]}}
    works = [deployment(n) for n in ("api", "db", "web")]
    async with running(placement.setup, objects=(*sites, home, APPLICATION, *works)) as (client, clock):
        await until(clock, lambda: all(places(client, f"deployment-{n}") for n in ("api", "db", "web")))
        # The database came before whom it waits on: each was decided once.
        assert all(places(client, f"deployment-{n}") == {"b": 1} for n in ("api", "db", "web"))
        await clock.advance(1)
        first = client.find(scheme.PLACEMENT, "deployment-api", "shop") or {}
    assert "moves" not in first["spec"]
    assert "together with deployment/db on b, deployment/web on b" in first["spec"]["reason"]
    assert "the best there is" in first["spec"]["reason"]
    talks = {t["peer"]: t for t in first["status"]["traffic"]}
    assert talks["deployment/web"]["milliseconds"] == 0 and talks["deployment/web"]["hard"]
    assert talks["deployment/db"]["clusters"] == ["b"] and talks["deployment/db"]["asks"]


async def test_an_application_leaves_a_drained_site_together() -> None:
    sites = [cluster(n, links=[{"cluster": o, "milliseconds": 60} for o in "abc" if o != n]) for n in "abc"]
    works = [deployment(n) for n in ("api", "db", "web")]
    async with running(placement.setup, objects=(*sites, APPLICATION, *works)) as (client, clock):
        await until(clock, lambda: all(places(client, f"deployment-{n}") for n in ("api", "db", "web")))
        taint = {"key": "meta-os.eu/unreachable", "effect": "NoExecute", "timeAdded": format_time(clock.now())}
        client.seed(cluster("a", ready=False, taints=[taint], links=sites[0]["spec"]["links"]))

        def moved() -> bool:
            return all(places(client, f"deployment-{n}") in ({"b": 1}, {"c": 1}) for n in ("api", "db", "web"))

        await until(clock, moved)
    assert len({tuple(places(client, f"deployment-{n}")) for n in ("api", "db", "web")}) == 1


async def test_who_has_a_higher_priority_displaces_and_who_was_displaced_comes_back() -> None:
    high: Obj = {**scheme.PRIORITY_CLASS.empty("high"), "value": 1000}
    small = {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}
    objects = (cluster("a", status=small), high, sized("low", "700m"))
    async with running(placement.setup, objects=objects) as (client, clock):
        await until(clock, lambda: places(client, "deployment-low") == {"a": 1})
        client.seed(sized("urgent", "600m", priority="high"))
        await until(clock, lambda: places(client, "deployment-urgent") == {"a": 1})
        assert places(client, "deployment-low") == {}
        found = client.find(scheme.PLACEMENT, "deployment-low", "shop") or {}
        assert "its room is needed by Deployment shop/urgent, whose priority is 1000" in found["spec"]["reason"]
        reason = (client.find(scheme.PLACEMENT, "deployment-urgent", "shop") or {})["spec"]["reason"]
        assert "displaces Deployment shop/low (priority 0) at a" in reason
        client.drop(scheme.DEPLOYMENT, "urgent", "shop")
        await until(clock, lambda: places(client, "deployment-low") == {"a": 1})


async def test_who_is_displaced_goes_where_there_is_room() -> None:
    high: Obj = {**scheme.PRIORITY_CLASS.empty("high"), "value": 1000}
    small = {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}
    sites = cluster("a", status=small), cluster("b", status={"allocatable": {"cpu": "800m", "memory": "4Gi", "pods": "10"}})
    async with running(placement.setup, objects=(sites[0], high, sized("low", "700m"))) as (client, clock):
        await until(clock, lambda: places(client, "deployment-low") == {"a": 1})
        client.seed(sites[1], sized("urgent", "900m", priority="high"))
        await until(
            clock, lambda: places(client, "deployment-urgent") == {"a": 1} and places(client, "deployment-low") == {"b": 1}
        )


async def test_a_priority_class_that_is_not_there_is_told() -> None:
    objects = (cluster("a"), sized("web", "200", priority="hihg"))
    async with running(placement.setup, objects=objects) as (client, clock):
        await until(clock, lambda: "UnknownPriorityClass" in events(client))


async def test_a_displaced_daemon_comes_back_when_there_is_room() -> None:
    high: Obj = {**scheme.PRIORITY_CLASS.empty("high"), "value": 1000}
    small = {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}
    smaller = {"allocatable": {"cpu": "800m", "memory": "4Gi", "pods": "10"}}
    sites = cluster("a", status=small), cluster("b", status=smaller)
    daemon = sized("low", "700m") | {"kind": "DaemonSet"}
    async with running(placement.setup, objects=(*sites, high, daemon)) as (client, clock):
        await until(clock, lambda: places(client, "daemonset-low") == {"a": 1, "b": 1})
        client.seed(sized("urgent", "900m", priority="high"))
        await until(clock, lambda: places(client, "daemonset-low") == {"b": 1})
        assert places(client, "deployment-urgent") == {"a": 1}
        # What the sites' coming set off is over.
        await clock.advance(1)
        client.drop(scheme.DEPLOYMENT, "urgent", "shop")
        await until(clock, lambda: places(client, "daemonset-low") == {"a": 1, "b": 1})


async def test_who_waits_is_looked_at_again_when_another_one_asks_for_less() -> None:
    small = {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}
    async with running(placement.setup, objects=(cluster("a", status=small), sized("big", "700m"))) as (client, clock):
        await until(clock, lambda: places(client, "deployment-big") == {"a": 1})
        client.seed(sized("next", "600m"))
        await until(clock, lambda: "Unplaceable" in events(client))
        # What the sites' coming set off is over.
        await clock.advance(1)
        client.seed(sized("big", "300m"))
        await until(clock, lambda: places(client, "deployment-next") == {"a": 1})


async def test_of_those_that_wait_the_highest_priority_is_asked_first() -> None:
    meek: Obj = {**scheme.PRIORITY_CLASS.empty("meek"), "value": 1000, "preemptionPolicy": "Never"}
    small = {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}
    async with running(placement.setup, objects=(cluster("a", status=small), meek, sized("big", "700m"))) as (client, clock):
        await until(clock, lambda: places(client, "deployment-big") == {"a": 1})
        client.seed(sized("early", "600m"))
        await until(clock, lambda: client.find(scheme.PLACEMENT, "deployment-early", "shop"))
        client.seed(sized("late", "600m", priority="meek"))
        await until(clock, lambda: client.find(scheme.PLACEMENT, "deployment-late", "shop"))
        assert places(client, "deployment-late") == {}
        # What the sites' coming set off is over.
        await clock.advance(1)
        client.drop(scheme.DEPLOYMENT, "big", "shop")
        await until(clock, lambda: places(client, "deployment-late") == {"a": 1})
        assert places(client, "deployment-early") == {}


async def test_many_classes_at_once_are_one_look_at_the_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    take_account = placement.PlacementReconciler.take_account

    def counted(self: placement.PlacementReconciler, about: ObjectRef) -> None:
        looked.append(about.name)
        take_account(self, about)

    monkeypatch.setattr(placement.PlacementReconciler, "take_account", counted)
    classes: list[Obj] = [{**scheme.PRIORITY_CLASS.empty(f"c{n}"), "value": n} for n in range(50)]
    async with running(placement.setup, objects=(cluster("a"), sized("web", "200m"), *classes)) as (client, clock):
        await until(clock, lambda: places(client, "deployment-web") == {"a": 1})
        assert looked.count("web") < 10
        client.seed(*[{**c, "description": "other"} for c in classes])
        client.seed(sized("api", "200m", priority="c7"))
        await until(clock, lambda: places(client, "deployment-api") == {"a": 1})
        assert looked.count("web") < 20


def sized(name: str, cpu: str, priority: str = "") -> Obj:
    found = deployment(name, cpu=cpu)
    if priority:
        found["spec"]["template"]["spec"]["priorityClassName"] = priority
    return found


@pytest.mark.parametrize("stands", ["true", "false"])
async def test_a_job_that_stands_interruptions_goes_where_spot_capacity_is_cheap(stands: str) -> None:
    spot = {"cpuHour": 0.001, "interruptionsPerHour": 0.1}
    sites = cluster("dear", price={"cpuHour": 0.2, "spot": spot}), cluster("plain", price={"cpuHour": 0.05})
    job = deployment(cpu="1") | {"apiVersion": "batch/v1", "kind": "Job"}
    job["metadata"]["annotations"] = {"meta-os.eu/slack": "6h", "meta-os.eu/interruptible": stands}
    async with running(placement.setup, objects=(*sites, job)) as (client, clock):
        await until(clock, lambda: client.find(scheme.PLACEMENT, "job-web", "shop"))
        found = client.find(scheme.PLACEMENT, "job-web", "shop") or {}
        assert [c["name"] for c in found["spec"]["clusters"]] == (["dear"] if stands == "true" else ["plain"])
        await until(clock, lambda: "status" in (client.find(scheme.PLACEMENT, "job-web", "shop") or {}))
        said = ((client.find(scheme.PLACEMENT, "job-web", "shop") or {})["status"]).get("costs")
    assert (said or [{}])[0].get("capacity") == ("spot" if stands == "true" else None)


async def test_work_that_shares_a_claim_goes_where_its_volume_is() -> None:
    def using(name: str) -> Obj:
        obj = deployment(name)
        obj["metadata"]["uid"] = name
        obj["spec"]["template"]["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "shared"}}]
        return obj

    sites = cluster("dirty", electricity={"carbonIntensity": 500}), cluster("clean", electricity={"carbonIntensity": 10})
    async with running(placement.setup, objects=(sites[0], using("first"))) as (client, clock):
        await until(clock, lambda: places(client, "deployment-first") == {"dirty": 1})
        client.seed(sites[1], using("second"), deployment("third"))
        await until(clock, lambda: places(client, "deployment-second") and places(client, "deployment-third"))
        assert places(client, "deployment-third") == {"clean": 1}
        assert places(client, "deployment-second") == {"dirty": 1}, "it would find an empty volume elsewhere"
        found = client.find(scheme.PLACEMENT, "deployment-second", "shop") or {}
        assert [r["reason"] for r in found["status"]["rejected"]] == ["a claim that it uses lies on dirty"]


async def test_work_that_shares_a_claim_and_comes_together_stays_together() -> None:
    """The second is decided before the informer shows where the first goes."""

    def using(name: str) -> Obj:
        obj = sized(name, "700m")
        obj["metadata"]["uid"] = name
        obj["spec"]["template"]["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "shared"}}]
        return obj

    small = {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}
    async with running(placement.setup, objects=(cluster("a", status=small), cluster("b", status=small))) as (client, clock):
        client.seed(using("one"), using("two"))
        await clock.advance(5)
        found = sorted([*places(client, "deployment-one"), *places(client, "deployment-two")])
        assert found in (["a"], ["b"]), "there is room for one of them beside the volume"


async def test_work_follows_a_data_set_that_a_site_states_later() -> None:
    reads = intent()
    reads["spec"]["traffic"] = [{"from": {"name": "web"}, "to": {"dataset": "images"}, "responseBytesPerSecond": "20M"}]
    async with running(placement.setup, objects=(cluster("a"), cluster("b"), reads, deployment())) as (client, clock):
        await until(clock, lambda: places(client) == {"a": 1})
        client.seed(cluster("b", datasets=[{"name": "images", "size": "1Ti"}]))
        await until(clock, lambda: places(client) == {"b": 1})
        talks = (client.find(scheme.PLACEMENT, "deployment-web", "shop") or {})["status"]["traffic"]
        assert talks[0]["clusters"] == ["b"] and talks[0]["gigabytesPerDay"] == 0.0


async def test_a_spread_that_does_not_hold_is_said() -> None:
    """A StatefulSet goes to one site as a whole, unless its policy divides it."""
    policy: Obj = {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "PlacementPolicy",
        "metadata": {"name": "apart", "namespace": "shop"},
        "spec": {"spread": [{"by": "site", "minGroups": 2}]},
    }
    kept = {**deployment("db", replicas=2), "kind": "StatefulSet"}
    async with running(placement.setup, objects=(cluster("a"), cluster("b"), policy, kept)) as (client, clock):
        await until(clock, lambda: sum(places(client, "statefulset-db").values()) == 2)

        def said() -> Obj | None:
            return condition(client.find(scheme.PLACEMENT, "statefulset-db", "shop") or {}, "Spread")

        found = await until(clock, said)
        assert (found["status"], found["reason"]) == ("False", "OneSite") and "division.mode: Divided" in found["message"]
        client.seed({**policy, "spec": policy["spec"] | {"division": {"mode": "Divided"}}})
        await until(clock, lambda: set(places(client, "statefulset-db")) == {"a", "b"} and said() is None)


async def test_a_status_that_cannot_be_written_gives_no_room_away_twice() -> None:
    """What was decided is stored, though the informer does not show it yet."""
    small = {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}
    async with running(placement.setup, objects=(cluster("a", status=small),)) as (client, clock):
        client.fail("update", errors.conflict("meta-os.eu", "placements", "deployment-one"))
        client.seed(sized("one", "700m"), sized("two", "700m"))
        await clock.advance(5)
        assert sorted([*places(client, "deployment-one"), *places(client, "deployment-two")]) == ["a"]


async def test_who_would_be_better_off_where_there_was_no_room_goes_there_once_there_is() -> None:
    # Clean, and large enough for one of them.
    clean, dirty = cluster("clean", electricity={"carbonIntensity": 10}), cluster("dirty", electricity={"carbonIntensity": 900})
    clean["spec"]["capacity"] = {"cpu": "1", "memory": "8Gi", "pods": "40"}
    async with running(placement.setup, objects=(clean, dirty, deployment("first", cpu="800m"))) as (client, clock):
        await until(clock, lambda: client.find(scheme.PLACEMENT, "deployment-first", "shop"))
        client.seed(deployment("second", cpu="800m"))
        await until(clock, lambda: client.find(scheme.PLACEMENT, "deployment-second", "shop"))

        def where() -> list[str]:
            found = client.find(scheme.PLACEMENT, "deployment-second", "shop") or {}
            return [c["name"] for c in found["spec"]["clusters"]]

        assert where() == ["dirty"]
        await clock.advance(600)
        assert where() == ["dirty"]
        # Nothing changes but the room.
        await client.delete(scheme.DEPLOYMENT, "first", "shop")
        await until(clock, lambda: where() == ["clean"])


async def test_a_decision_that_met_a_conflict_gives_no_room_away_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before holds its room, though the informer does not show it yet."""
    watch, shown = FakeClient.watch, asyncio.Event()

    async def late(client: FakeClient, kind: scheme.Kind, *arguments: Any, **options: Any) -> AsyncIterator[WatchEvent]:
        async for event in watch(client, kind, *arguments, **options):
            if kind is scheme.PLACEMENT:
                await shown.wait()
            yield event

    def one(replicas: int, generation: int) -> Obj:
        obj = deployment("one", replicas=replicas)
        obj["metadata"]["generation"] = generation
        return obj

    monkeypatch.setattr(FakeClient, "watch", late)
    shown.set()
    small = {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}
    async with running(placement.setup, objects=(cluster("a", status=small), one(1, 1))) as (client, clock):
        await until(clock, lambda: events(client) == ["Placed"])
        await clock.advance(1)
        shown.clear()
        client.seed(one(5, 2))
        await until(clock, lambda: places(client, "deployment-one") == {"a": 5})
        client.seed(one(6, 3))
        await clock.advance(0.1)
        client.seed(sized("two", "600m"))
        await until(clock, lambda: client.find(scheme.PLACEMENT, "deployment-two", "shop"))
        shown.set()
        await until(clock, lambda: places(client, "deployment-one") == {"a": 6})
        assert places(client, "deployment-two") == {}


async def test_reasons_of_another_intent_that_met_a_conflict_are_told_all_the_same() -> None:
    def wish(target: dict[str, Any], generation: int) -> Obj:
        obj = intent(target)
        obj["metadata"] |= {"generation": generation, "uid": "wish"}
        return obj

    def terms() -> set[str]:
        scores = (client.find(scheme.PLACEMENT, "deployment-web", "shop") or {})["status"]["scores"]
        return {term["name"] for term in scores[0]["terms"] if term["weight"] > 1}

    async with running(placement.setup, objects=(cluster("a"), wish(CLEAN, 1), deployment())) as (client, clock):
        await until(clock, lambda: events(client) == ["Placed"])
        await clock.advance(1)
        assert terms() == {"carbon"}
        client.fail("update", errors.conflict("meta-os.eu", "placements", "deployment-web"))
        client.seed(wish({"name": "cost", "condition": "Minimize"}, 2))
        await until(clock, lambda: terms() == {"cost"})


@pytest.mark.parametrize("local", [False, True])
async def test_who_was_told_to_stop_holds_its_room_until_it_has(local: bool) -> None:
    """However long its successor elsewhere takes to begin; with volumes it may yet go on there."""
    small = {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}
    kept = {**sized("db", "700m"), "kind": "StatefulSet"}
    async with running(placement.setup, objects=(cluster("a", status=small), kept)) as (client, clock):
        await until(clock, lambda: places(client, "statefulset-db") == {"a": 1})
        there = client.find(scheme.STATEFUL_SET, "db", "shop") or {}
        left = work(ref(there), "a", [manifest(there)], 30.0)
        left["metadata"] |= {"generation": 1}
        if local:
            left["spec"]["manifests"][0]["spec"]["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": {}}]
        client.seed({**left, "spec": halt(left)})
        client.seed(cluster("b"), cluster("a", status=small, taints=[{"key": "k", "effect": "NoExecute"}]))
        await until(clock, lambda: places(client, "statefulset-db") == {"b": 1})
        client.seed(cluster("a", status=small), sized("next", "700m"), cluster("b", unschedulable=True))
        await until(clock, lambda: client.find(scheme.PLACEMENT, "deployment-next", "shop"))
        await clock.advance(2)
        assert places(client, "deployment-next") == {}, "its pods may be ending still"
        entry = {"kind": "StatefulSet", "name": "db", "observedGeneration": 1, "status": {"replicas": 0}}
        client.seed({**left, "spec": halt(left), "status": {"observedGeneration": 1, "manifests": [entry]}})
        if local:
            await clock.advance(5)
            assert places(client, "deployment-next") == {}
        else:
            await until(clock, lambda: places(client, "deployment-next") == {"a": 1})
