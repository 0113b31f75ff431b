"""Schedules go to the sites of their workloads, and what is lost with a site is brought back elsewhere, or not, for a reason."""

from __future__ import annotations

import asyncio
import base64
from itertools import count
from typing import Any

import pytest

from metaos.controllers import backup, migration, placement, render, work
from metaos.controllers import intent as intents
from metaos.data.backups import derived
from metaos.resources import scheme
from metaos.resources.meta import Obj, condition, format_time, ref
from tests.clock import FakeClock
from tests.controllers.continuum import cluster, events, intent, places, running, until
from tests.fake_client import FakeClient

SETUPS = placement.setup, work.setup, migration.setup, backup.setup, intents.setup
RPO = {"name": "rpo", "condition": "IsLessThan", "value": 10, "unit": "min"}


def database() -> Obj:
    container = {"name": "c", "image": "python:3", "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}}}
    spec: dict[str, Any] = {"replicas": 1, "template": {"spec": {"containers": [container]}}}
    spec["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": {}}]
    metadata = {"name": "db", "namespace": "shop", "uid": "u-db", "generation": 1}
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec}


def store(jurisdictions: tuple[str, ...] = ("EU",)) -> Obj:
    spec = {"endpoint": "https://s3", "bucket": "b", "secretRef": {"name": "store"}, "jurisdictions": list(jurisdictions)}
    return {**scheme.BACKUP_STORE.empty("eu", "shop"), "spec": spec}


def schedule(**spec: Any) -> Obj:
    usual = {"workload": {"kind": "StatefulSet", "name": "db"}, "storeRef": {"name": "eu"}}
    found: Obj = {**scheme.BACKUP_SCHEDULE.empty("db", "shop"), "spec": {**usual, **spec}}
    found["metadata"] |= {"uid": "u-schedule", "generation": 1}
    return found


def secret() -> Obj:
    return {**scheme.SECRET.empty("store", "shop"), "data": {}}


ALL = database(), store(), schedule(), secret(), intent(RPO)


def at(client: FakeClient, name: str) -> list[str]:
    found = [w for w in client.objects(scheme.WORK) if w["metadata"]["name"] == name]
    return sorted(w["metadata"]["labels"]["meta-os.eu/cluster"] for w in found)


def said(client: FakeClient) -> dict[str, Any]:
    found = client.find(scheme.BACKUP_SCHEDULE, "db", "shop") or {}
    return condition(found, "BackedUp") or {}


def report(client: FakeClient, clock: FakeClock, site: str, age: float = 0.0, **more: Any) -> None:
    """A site's agent says that it has backed up."""
    found = client.find(scheme.WORK, "backupschedule.shop.db", f"nemo-cluster-{site}")
    assert found is not None
    row = {"claim": "data-db-0", "backup": "b", "recoveryPointTime": format_time(clock.now() - age), "bytes": 10, "seconds": 1.0}
    row |= {"restoreSeconds": 2.0, **more.pop("row", {})}
    entry = {"kind": "BackupSchedule", "name": "db", "uid": "u-schedule", "status": {"volumes": [row], **more}}
    client.seed({**found, "status": {"manifests": [entry]}})


async def test_a_schedule_goes_where_its_workload_is_and_its_secret_with_it() -> None:
    async with running(*SETUPS, objects=(cluster("a"), *ALL)) as (client, clock):
        await until(clock, lambda: at(client, "backupschedule.shop.db") == ["a"] == at(client, "secret.shop.store"))
        told = client.objects(scheme.WORK)
        (manifest,) = [m for w in told for m in w["spec"]["manifests"] if m["kind"] == "BackupSchedule"]
        assert manifest["spec"]["rpoSeconds"] == 600 and manifest["spec"]["claims"] == ["data-db-0"]
        assert "jurisdictions" not in manifest["spec"]["store"]
        assert said(client)["reason"] == "Pending"
        report(client, clock, "a")
        await until(clock, lambda: said(client).get("status") == "True")
        report(client, clock, "a", row={"reason": "StoreFull", "message": "it is full"})
        await until(clock, lambda: said(client).get("reason") == "StoreFull")
        assert "StoreFull" in events(client)
        client.drop(scheme.BACKUP_SCHEDULE, "db", "shop")
        await until(clock, lambda: at(client, "backupschedule.shop.db") == [] == at(client, "secret.shop.store"))


async def test_what_is_scaled_to_nothing_keeps_its_volumes() -> None:
    async with running(*SETUPS, objects=(cluster("a"), *ALL)) as (client, clock):
        await until(clock, lambda: at(client, "backupschedule.shop.db") == ["a"])
        report(client, clock, "a")
        await until(clock, lambda: said(client).get("status") == "True")
        none = database()
        none["metadata"]["generation"], none["spec"]["replicas"] = 2, 0
        client.seed(none)
        await clock.advance(5)
        assert at(client, "backupschedule.shop.db") == ["a"] and said(client)["status"] == "True"


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ((store(), schedule(), intent(RPO)), "NoWorkload"),
        ((database(), schedule(), intent(RPO)), "NoStore"),
        ((database(), store(), schedule()), "NoSchedule"),
        (
            (
                database(),
                store(("US",)),
                schedule(),
                intent(RPO),
                intent({"name": "residency", "condition": "IsOneOf", "value": ["EU"]}, name="home"),
            ),
            "ResidencyForbids",
        ),
        (
            (
                database(),
                store(()),
                schedule(schedule="@daily"),
                intent({"name": "residency", "condition": "IsOneOf", "value": ["EU"]}, name="home"),
            ),
            "ResidencyForbids",
        ),
    ],
)
async def test_why_nothing_is_backed_up(objects: tuple[Obj, ...], reason: str) -> None:
    async with running(*SETUPS, objects=(cluster("a"), secret(), *objects)) as (client, clock):
        await until(clock, lambda: said(client).get("reason") == reason)
        assert said(client)["message"] and at(client, "backupschedule.shop.db") == []
        assert at(client, "secret.shop.store") == [], "what opens the store is not sent either"


async def lost(client: FakeClient, clock: FakeClock, age: float) -> None:
    """The database is at a, which has backed up so long ago, and is lost."""
    await until(clock, lambda: at(client, "statefulset.shop.db") == ["a"])
    await until(clock, lambda: at(client, "backupschedule.shop.db") == ["a"])
    if age >= 0:
        report(client, clock, "a", age)
        await until(clock, lambda: (client.find(scheme.BACKUP_SCHEDULE, "db", "shop") or {}).get("status", {}).get("site"))
    client.seed(cluster("b", tier="edge"))
    taint = {"key": "meta-os.eu/unreachable", "effect": "NoExecute", "timeAdded": format_time(clock.now())}
    gone = cluster("a", ready=False, taints=[taint])
    gone["status"]["conditions"][0]["lastTransitionTime"] = format_time(clock.now())
    client.seed(gone)


async def test_a_lost_database_goes_on_elsewhere_from_its_backup() -> None:
    lease: Obj = {**scheme.LEASE.empty("a", "nemo-cluster-a"), "spec": {"renewTime": "then"}}
    async with running(*SETUPS, objects=(cluster("a"), lease, *ALL)) as (client, clock):
        await lost(client, clock, 300.0)
        await until(clock, lambda: places(client, "statefulset-db") == {"b": 1}, 200)
        await until(clock, lambda: at(client, "statefulset.shop.db") == ["a", "b"], 200)
        fresh = client.find(scheme.WORK, "statefulset.shop.db", "nemo-cluster-b") or {}
        order = fresh["spec"]["restore"]
        assert order["schedule"] == "db" and order["claims"] == ["data-db-0"] and order["id"].startswith("a@")
        old = client.find(scheme.WORK, "statefulset.shop.db", "nemo-cluster-a") or {}
        assert old["spec"]["manifests"][0]["spec"]["replicas"] == 0 and old["spec"]["fencing"]
        await until(clock, lambda: at(client, "backupschedule.shop.db") == ["b"])
        row = {"id": order["id"], "claim": "data-db-0", "backup": "b", "recoveryPointTime": format_time(clock.now() - 900)}
        report(client, clock, "b", restores=[row], row={"recoveryPointTime": None, "backup": None})
        await until(clock, lambda: "Restored" in events(client))
        status = (client.find(scheme.BACKUP_SCHEDULE, "db", "shop") or {})["status"]
        assert status["restores"][0]["lostSeconds"] > 0 and status["site"] == "a", "until the new site has backed up itself"


async def test_a_site_that_is_back_before_its_successor_began_goes_on_with_its_volumes() -> None:
    lease: Obj = {**scheme.LEASE.empty("a", "nemo-cluster-a"), "spec": {"renewTime": "then"}}
    async with running(*SETUPS, objects=(cluster("a"), lease, *ALL)) as (client, clock):
        await lost(client, clock, 300.0)
        # A hub that begins anew waits the whole time before it starts anything elsewhere.
        rest = asyncio.create_task(heard_now_and_then(client, clock))
        await until(clock, lambda: places(client, "statefulset-db") == {"b": 1}, 200)
        rest.cancel()
        assert at(client, "backupschedule.shop.db") == ["a"], "it is backed up where it is"
        client.seed(cluster("a"))
        await clock.advance(1)
        old = client.find(scheme.WORK, "statefulset.shop.db", "nemo-cluster-a") or {}
        # It answers, and stops what it was told to before it hears more.
        entry = {"kind": "StatefulSet", "name": "db", "uid": "u-db", "observedGeneration": 1, "status": {"replicas": 0}}
        generation = old["metadata"].get("generation", 1)
        client.seed({**old, "status": {"observedGeneration": generation, "manifests": [entry]}})
        await until(clock, lambda: places(client, "statefulset-db") == {"a": 1}, 60)
        await clock.advance(60)
        assert at(client, "statefulset.shop.db") == ["a"], "nowhere it began with nothing"
        old = client.find(scheme.WORK, "statefulset.shop.db", "nemo-cluster-a") or {}
        assert old["spec"]["manifests"][0]["spec"]["replicas"] == 1
        status = (client.find(scheme.BACKUP_SCHEDULE, "db", "shop") or {})["status"]
        assert status["site"] == "a"


async def test_what_is_on_its_way_is_backed_up_where_it_is_written() -> None:
    def told(site: str, volumes: Obj | None = None, restore: Obj | None = None) -> Obj:
        found = render.work(ref(database()), site, [database()], restore=restore)
        return {**found, "spec": found["spec"] | ({"volumes": volumes} if volumes else {})}

    def since() -> str:
        status = (client.find(scheme.BACKUP_SCHEDULE, "db", "shop") or {}).get("status") or {}
        return str(status.get("site") or "")

    placement: Obj = {**scheme.PLACEMENT.empty("statefulset-db", "shop")}
    about = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "u-db"}
    placement["spec"] = {"workloadRef": about, "clusters": [{"name": "b", "replicas": 1}]}
    arriving = told("b", {"receive": {"from": "a", "attempt": 1}})
    objects = (cluster("a"), cluster("b"), placement, told("a"), arriving, *ALL)
    async with running(backup.setup, objects=objects) as (client, clock):
        await until(clock, lambda: at(client, "backupschedule.shop.db") == ["a"])
        report(client, clock, "a", 10.0)
        await until(clock, lambda: since() == "a")
        client.seed(told("b", {"receive": {"from": "a", "attempt": 1, "adopt": True}}))
        await until(clock, lambda: at(client, "backupschedule.shop.db") == ["b"])
        report(client, clock, "b", 10.0)
        await until(clock, lambda: since() == "b")
        # Lost in turn: what c knows of an earlier time when the database was there says nothing about what is brought back.
        order = {"id": "b@then", "schedule": "db", "claims": ["data-db-0"], "lostTime": "2026-01-01T00:00:00Z"}
        placement["spec"]["clusters"] = [{"name": "c", "replicas": 1}]
        client.seed(cluster("c"))
        client.seed(placement)
        client.seed(told("c", restore=order))
        await until(clock, lambda: at(client, "backupschedule.shop.db") == ["c"])
        report(client, clock, "c", 5000.0)
        await clock.advance(5)
        assert since() == "b"
        row = {"id": "b@then", "claim": "data-db-0", "backup": "b", "recoveryPointTime": format_time(clock.now() - 900)}
        report(client, clock, "c", 1.0, restores=[row])
        await until(clock, lambda: since() == "c")


async def heard_now_and_then(client: FakeClient, clock: FakeClock) -> None:
    """The lease of a site changes, though its status says that it is lost: so nobody knows yet that it runs nothing."""
    for beat in count():
        client.seed({**scheme.LEASE.empty("a", "nemo-cluster-a"), "spec": {"renewTime": str(beat)}})
        await clock.sleep(1.0)


@pytest.mark.parametrize(
    ("age", "targets"),
    [(-1.0, (RPO,)), (30.0, ()), (1200.0, ({**RPO, "hard": True},))],
    ids=["no backup", "nobody agreed to lose anything", "more is lost than may be"],
)
async def test_a_lost_database_waits(age: float, targets: tuple[dict[str, Any], ...]) -> None:
    objects = [database(), store(), schedule(schedule="@hourly"), secret()]
    objects += [intent(*targets)] if targets else []
    async with running(*SETUPS, objects=(cluster("a"), *objects)) as (client, clock):
        await lost(client, clock, age)
        await clock.advance(300)
        assert places(client, "statefulset-db") == {"a": 1} and at(client, "statefulset.shop.db") == ["a"]


async def test_what_an_intent_is_told() -> None:
    late = {"name": "rto", "condition": "IsLessThan", "value": 1, "unit": "s"}
    async with running(*SETUPS, objects=(cluster("a"), *ALL[:4], intent(RPO, late))) as (client, clock):
        await until(clock, lambda: at(client, "backupschedule.shop.db") == ["a"])

        def rows() -> dict[str, Any]:
            found = (client.find(scheme.INTENT, "wish", "shop") or {}).get("status") or {}
            return {row["name"]: row for row in found.get("targets") or ()}

        await until(clock, lambda: rows().get("rpo", {}).get("fulfilment") == "Degraded")
        report(client, clock, "a", 60.0)
        await until(clock, lambda: rows()["rpo"]["fulfilment"] == "Fulfilled")
        assert rows()["rto"]["fulfilment"] == "Degraded" and rows()["rto"]["value"] > 100
        await clock.advance(500)
        assert rows()["rpo"]["fulfilment"] == "Fulfilled"
        await clock.advance(60)
        assert rows()["rpo"]["fulfilment"] == "Degraded", "without a word from anybody"


async def test_what_was_brought_back_by_hand_is_not_brought_back_again_elsewhere() -> None:
    asked = [{"id": each, "claim": "data-db-0"} for each in ("cannot", "can")]
    objects = tuple(schedule(restores=asked) if each["kind"] == "BackupSchedule" else each for each in ALL)

    def wanted(client: FakeClient) -> list[str] | None:
        told = [m for w in client.objects(scheme.WORK) for m in w["spec"]["manifests"] if m["kind"] == "BackupSchedule"]
        return [each["id"] for each in told[0]["spec"]["restores"]] if told else None

    async with running(*SETUPS, objects=(cluster("a"), *objects)) as (client, clock):
        await until(clock, lambda: wanted(client) == ["can"])
        report(
            client,
            clock,
            "a",
            restores=[{"id": "can", "claim": "data-db-0", "backup": "b", "recoveryPointTime": "2026-01-01T00:00:00Z"}],
        )
        await until(clock, lambda: wanted(client) == [])
        assert "Restored" in events(client), "also of a site that does not tell the moment"


def all_events(client: FakeClient, reason: str) -> list[tuple[str, int]]:
    """(Kind of what it is about, how often it was said)."""
    found = [each for each in client.objects(scheme.EVENT) if each["reason"] == reason]
    return [(str(each["involvedObject"]["kind"]), int(each["count"])) for each in found]


async def test_what_was_brought_back_is_said_once_and_what_was_superseded_is_not_shown() -> None:
    asked = [{"id": each, "claim": "data-db-0"} for each in ("cannot", "can")]
    objects = tuple(schedule(restores=asked) if each["kind"] == "BackupSchedule" else each for each in ALL)

    def restores(client: FakeClient) -> list[Obj]:
        found = client.find(scheme.BACKUP_SCHEDULE, "db", "shop") or {}
        rows: list[Obj] = (found.get("status") or {}).get("restores") or []
        return rows

    async with running(*SETUPS, objects=(cluster("a"), *objects)) as (client, clock):
        await until(clock, lambda: at(client, "backupschedule.shop.db") == ["a"])
        failed = {"id": "cannot", "claim": "data-db-0", "reason": "NoBackup", "message": "there is none"}
        waits = failed | {"id": "can", "reason": "InUse", "message": "scale it down"}
        report(client, clock, "a", restores=[failed, waits])
        await until(clock, lambda: [row["id"] for row in restores(client)] == ["can"])
        done = {"id": "can", "claim": "data-db-0", "backup": "b", "recoveryPointTime": "2026-01-01T00:00:00Z"}
        for _ in range(3):
            report(client, clock, "a", restores=[failed, done])
            await clock.advance(3)
        assert [row["id"] for row in restores(client)] == ["can"] and restores(client)[0]["backup"] == "b"
        assert all_events(client, "Restored") == [("StatefulSet", 1)], "its site tells the schedule"


async def test_who_waits_for_volumes_is_told_that_the_schedule_is_gone() -> None:
    lease: Obj = {**scheme.LEASE.empty("a", "nemo-cluster-a"), "spec": {"renewTime": "then"}}
    async with running(*SETUPS, objects=(cluster("a"), lease, *ALL)) as (client, clock):
        await lost(client, clock, 300.0)
        await until(clock, lambda: at(client, "statefulset.shop.db") == ["a", "b"], 400)
        client.drop(scheme.BACKUP_SCHEDULE, "db", "shop")
        await until(clock, lambda: ("StatefulSet", 1) in all_events(client, "NotRestored"))


async def test_a_site_of_an_earlier_release_is_not_told_to_bring_volumes_back() -> None:
    lease: Obj = {**scheme.LEASE.empty("a", "nemo-cluster-a"), "spec": {"renewTime": "then"}}
    async with running(*SETUPS, objects=(cluster("a"), lease, *ALL)) as (client, clock):
        await lost(client, clock, 300.0)
        client.seed(cluster("b", tier="edge", status={"volumeRestores": False}))
        await clock.advance(300)
        assert at(client, "statefulset.shop.db") == ["a"], "it would begin there with nothing"
        client.seed(cluster("c", tier="edge"))
        await until(clock, lambda: at(client, "statefulset.shop.db") == ["a", "c"], 300)


async def test_a_site_gets_the_keys_of_its_own_workloads_alone() -> None:
    key = base64.b64encode(bytes(range(32))).decode()
    data = {k: base64.b64encode(v.encode()).decode() for k, v in (("accessKeyId", "me"), ("encryptionKey", key))}
    opens = secret() | {"data": data}

    def told(client: FakeClient) -> dict[str, str]:
        found = client.find(scheme.WORK, "secret.shop.store", "nemo-cluster-a")
        given = found["spec"]["manifests"][0]["data"] if found is not None else {}
        return {k: base64.b64decode(v).decode() for k, v in given.items()}

    objects = (database(), store(), schedule(), opens, intent(RPO))
    async with running(*SETUPS, objects=(cluster("a"), *objects)) as (client, clock):
        await until(clock, lambda: told(client))
        own = derived(key, "shop", "StatefulSet", "db")
        assert told(client) == {"accessKeyId": "me", "encryptionKey.StatefulSet.db": own} and key != own
        # What was sealed with another key: it is said for this workload, and no other's is told.
        given = {"encryptionKey.StatefulSet.db": "old", "encryptionKey.StatefulSet.other": "secret"}
        earlier = {k: base64.b64encode(v.encode()).decode() for k, v in given.items()}
        client.seed(opens | {"data": data | earlier})
        await until(clock, lambda: told(client) == {"accessKeyId": "me", "encryptionKey.StatefulSet.db": "old"})
        # Its owner has a pod read it: that is its owner's choice.
        user = database()
        user["metadata"]["generation"] = 2
        user["spec"]["template"]["spec"]["volumes"] = [{"name": "s", "secret": {"secretName": "store"}}]
        client.seed(user)
        await until(clock, lambda: told(client).get("encryptionKey") == key)
