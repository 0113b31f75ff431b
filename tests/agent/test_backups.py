"""Backups at a site: when they begin, what is told of them, and that a volume is held until it has been brought back."""

from __future__ import annotations

import base64
import fcntl
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from metaos.data.backups import derived
from metaos.resources.backups import RESTORE
from metaos.resources.meta import API_VERSION, Obj, ObjectRef, parse_time
from metaos.runtimes.children import Ended
from tests.agent.machine import Site, container, workload

ABOUT = ObjectRef("meta-os.eu", "BackupSchedule", "shop", "db")


class Store:
    """Stands for the process that talks to a store: it notes what it is asked, and answers as it is told to."""

    def __init__(self, site: Site) -> None:
        self.site, self.asked, self.answers = site, list[dict[str, Any]](), list[Any]()

    async def __call__(self, module: str, request: bytes) -> dict[str, Any] | Ended:
        asked = json.loads(request)
        assert module == "metaos.volumes.backing"
        self.asked.append(asked)
        if self.answers:
            found: dict[str, Any] | Ended = self.answers.pop(0)
            return found
        now = self.site.clock.now()
        if asked["do"] == "bringBack":
            return {"backup": "b", "time": now - 60, "bytes": 100, "seconds": 2.0, "consistency": "Quiet", "digest": ""}
        if asked.get("ahead"):
            return {"seconds": 0.1}
        made = {"backup": f"b{len(self.asked)}", "time": now, "consistency": "Quiet", "bytes": 1000, "sentBytes": 500}
        return {**made, "sentChunks": 1, "seconds": 1.0, "backups": [made["backup"]]}

    def did(self) -> list[str]:
        return [f"{a['do']} {a['claim']}" for a in self.asked if not a.get("ahead")]


def schedule(**spec: Any) -> Obj:
    store = {"endpoint": "https://s3", "bucket": "b", "secretRef": {"name": "store"}}
    usual = {"store": store, "workload": {"kind": "StatefulSet", "name": "db"}, "claims": ["data-db-0"], "rpoSeconds": 100.0}
    metadata = {"name": "db", "namespace": "shop", "uid": "u-schedule", "generation": 1}
    return {"apiVersion": API_VERSION, "kind": "BackupSchedule", "metadata": metadata, "spec": {**usual, **spec}}


def secret() -> Obj:
    data = {key: base64.b64encode(b"x").decode() for key in ("accessKeyId", "secretAccessKey", "encryptionKey")}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store", "namespace": "shop"}, "data": data}


def database(order: dict[str, Any] | None = None, annotations: dict[str, str] | None = None) -> Obj:
    mounted = container(volumeMounts=[{"name": "data", "mountPath": "/data"}])
    found = workload("StatefulSet", name="db", template={"containers": [mounted]}, replicas=1)
    found["spec"]["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": {}}]
    found["spec"]["template"].setdefault("metadata", {})["annotations"] = annotations or {}
    if order is not None:
        found["metadata"]["annotations"] = {RESTORE: json.dumps(order)}
    return found


ORDER = {"id": "east@now", "schedule": "db", "claims": ["data-db-0"], "lostTime": "2026-01-01T00:00:00Z"}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    made.start()
    yield made
    await made.stop()


@pytest.fixture
def store(site: Site) -> Store:
    found = Store(site)
    site.supervisor.backups._ask = found
    return found


def told(site: Site) -> dict[str, Any]:
    found = site.supervisor.status_of(ABOUT)
    assert found is not None
    return found


async def test_backups_begin_as_the_recovery_point_asks(site: Site, store: Store) -> None:
    await site.apply(database(), schedule(), secret())
    assert store.did() == [], "there is nothing yet"
    await site.clock.advance(6)
    assert store.did() == ["backUp data-db-0"]
    (asked,) = store.asked
    assert asked["credentials"] == {"accessKeyId": "x", "secretAccessKey": "x", "encryptionKey": "x"}, "no key stays none"
    assert asked["directory"].endswith("claims/shop/data-db-0")
    (row,) = told(site)["volumes"]
    assert row["backup"] == "b1" and row["restoreSeconds"] == 2.0 and row["failures"] == 0
    assert parse_time(row["nextTime"]) - parse_time(row["lastTryTime"]) == 80
    await site.clock.advance(70)
    assert len(store.asked) == 1
    await site.clock.advance(11)
    assert len(store.asked) == 2


async def test_what_fails_is_told_once_and_tried_again_ever_later(site: Site, store: Store) -> None:
    store.answers = [
        {"reason": "BucketMissing", "message": "make it"},
        Ended(142),
        {"reason": "BucketMissing", "message": "make it"},
    ]
    await site.apply(database(), schedule(), secret())
    await site.clock.advance(5)
    (row,) = told(site)["volumes"]
    assert (row["reason"], row["message"], row["failures"]) == ("BucketMissing", "make it", 1)
    await site.clock.advance(9)
    assert len(store.asked) == 1
    await site.clock.advance(2)
    (row,) = told(site)["volumes"]
    assert row["reason"] == "Failed" and "in time" in row["message"] and len(store.asked) == 2
    await site.clock.advance(18)
    assert len(store.asked) == 2
    await site.clock.advance(50)
    (row,) = told(site)["volumes"]
    assert "reason" not in row and row["backup"] == "b4"
    assert [reason for reason in site.reasons() if reason == "BackupFailed"] == ["BackupFailed"] * 3


@pytest.mark.parametrize("missing", ["workload", "secret", "suspended"])
async def test_what_is_not_there_is_not_backed_up(site: Site, store: Store, missing: str) -> None:
    await site.apply(database(), secret())
    objects = [database(), secret(), schedule(suspend=missing == "suspended")]
    if missing == "workload":
        objects = objects[1:]
    if missing == "secret":
        del objects[1]
    await site.apply(*objects)
    await site.clock.advance(1)
    assert store.asked == []
    assert missing != "secret" or 'secret "store" not found' in told(site)["volumes"][0]["message"]


async def test_no_container_starts_before_its_volume_is_back(site: Site, store: Store) -> None:
    store.answers = [{"reason": "StoreUnreachable", "message": "no answer"}]
    # The workload comes first: it waits for the schedule, which knows the store.
    await site.apply(database(ORDER))
    await site.clock.advance(10)
    assert not site.machine.running()
    await site.apply(database(ORDER), schedule(), secret())
    assert store.did() == ["bringBack data-db-0"] and not site.machine.running()
    assert told(site)["restores"][0]["reason"] == "StoreUnreachable"
    await site.clock.advance(4)
    assert not site.machine.running() and len(store.asked) == 1
    await site.clock.advance(6)
    assert store.did()[:2] == ["bringBack data-db-0"] * 2
    assert site.machine.running(), "it is back"
    assert "backup" in told(site)["restores"][0]
    await site.clock.advance(20)
    assert store.did()[1:] == ["bringBack data-db-0", "backUp data-db-0"], "once; and only then it is backed up here"


async def test_it_stays_done_when_the_agent_comes_back(site: Site, store: Store, tmp_path: Path) -> None:
    await site.apply(database(ORDER), schedule(), secret())
    await site.clock.advance(5)
    assert store.did()[0] == "bringBack data-db-0" and site.machine.running()
    await site.stop()
    site.start()
    again = Store(site)
    site.supervisor.backups._ask = again
    await site.apply(database(ORDER), schedule(), secret())
    await site.clock.advance(5)
    assert "bringBack data-db-0" not in again.did() and site.machine.running()


async def test_it_is_never_done_again_however_often_others_are_brought_back_by_hand(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaos.agent.backups.MOST_REMEMBERED", 2)
    await site.apply(database(ORDER), schedule(), secret())
    await site.clock.advance(5)
    stopped = database(ORDER)
    stopped["spec"]["replicas"] = 0
    for number in range(5):
        asked = schedule(restores=[{"id": str(number), "claim": "data-db-0"}], suspend=True)
        await site.apply(stopped, asked, secret())
        await site.clock.advance(40)
    assert store.did().count("bringBack data-db-0") == 6
    await site.apply(stopped, schedule(suspend=True), secret())
    await site.clock.advance(20)
    assert store.did().count("bringBack data-db-0") == 6


async def test_what_was_backed_up_here_long_ago_is_not_told_of_what_was_brought_back(site: Site, store: Store) -> None:
    await site.apply(database(), schedule(), secret())
    await site.clock.advance(6)
    assert "recoveryPointTime" in told(site)["volumes"][0]
    await site.apply(schedule(suspend=True), secret())
    await site.clock.advance(40)
    await site.apply(database(ORDER), schedule(suspend=True), secret())
    await site.clock.advance(6)
    assert "backup" in told(site)["restores"][0] and told(site)["volumes"] == [{"claim": "data-db-0"}]


async def test_by_hand_what_cannot_be_done_does_not_end_the_backups(site: Site, store: Store) -> None:
    await site.apply(database(), schedule(), secret())
    await site.clock.advance(6)
    store.asked.clear()
    store.answers = [{"reason": "NoBackup", "message": "there is none"}] * 3
    stopped = database()
    stopped["spec"]["replicas"] = 0
    await site.apply(stopped, schedule(restores=[{"id": "1", "claim": "data-db-0", "backup": "nonsense"}]), secret())
    await site.clock.advance(90)
    assert "bringBack data-db-0" in store.did()
    await site.clock.advance(400)
    assert "backUp data-db-0" in store.did()


async def test_by_hand_it_waits_until_nobody_uses_the_volume(site: Site, store: Store) -> None:
    asked = schedule(restores=[{"id": "1", "claim": "data-db-0", "time": "2026-01-01T00:00:00Z"}], suspend=True)
    await site.apply(database())
    await site.apply(database(), asked, secret())
    assert store.asked == [] and told(site)["restores"][0]["reason"] == "InUse"
    stopped = database()
    stopped["spec"]["replicas"] = 0
    await site.apply(stopped, asked, secret())
    await site.clock.advance(40)
    assert store.did() == ["bringBack data-db-0"] and store.asked[0]["at"] == parse_time("2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"meta-os.eu/backup-before": "no list"}, "JSON list"),
        ({"meta-os.eu/backup-before": '["a"]', "meta-os.eu/backup-container": "other"}, "has no container 'other'"),
        ({"meta-os.eu/backup-before": '["a"]', "meta-os.eu/backup-timeout-seconds": "never"}, "number of seconds"),
    ],
)
async def test_hooks_that_make_no_sense(site: Site, store: Store, annotations: dict[str, str], said: str) -> None:
    await site.apply(database(annotations=annotations), schedule(), secret())
    await site.clock.advance(6)
    assert said in told(site)["volumes"][0]["message"] and store.did() == []


@pytest.mark.parametrize("fails", [False, True])
async def test_a_workloads_own_command_brings_it_to_rest(site: Site, store: Store, fails: bool) -> None:
    if fails:
        site.machine.answers["rest",] = 3
    hooks = {"meta-os.eu/backup-before": '["rest"]', "meta-os.eu/backup-after": '["go", "on"]'}
    await site.apply(database(annotations=hooks), schedule(), secret())
    await site.clock.advance(6)
    assert [step[-1] for step in site.machine.history if step[0] == "exec"] == ["rest", "go on"], "the second one in any case"
    sent = [(bool(asked.get("ahead")), bool(asked.get("hooked"))) for asked in store.asked]
    assert sent == ([(True, False)] if fails else [(True, False), (False, True)]), "what can be sent before is"
    (row,) = told(site)["volumes"]
    assert row.get("reason") == ("HookFailed" if fails else None)


async def test_the_key_is_that_of_the_workload(site: Site, store: Store) -> None:
    whole = base64.b64encode(bytes(range(32))).decode()
    own = derived(whole, "shop", "StatefulSet", "db")
    for given in ({"encryptionKey": whole}, {"encryptionKey.StatefulSet.db": own, "encryptionKey.StatefulSet.other": "y"}):
        found = secret()
        found["data"] = {key: base64.b64encode(value.encode()).decode() for key, value in given.items()}
        store.asked.clear()
        await site.apply(database(), schedule(), found)
        await site.clock.advance(100)
        assert {asked["credentials"]["encryptionKey"] for asked in store.asked} == {own}


async def test_a_volume_whose_schedule_is_gone_says_so(site: Site, store: Store) -> None:
    await site.apply(database(ORDER), secret())
    await site.clock.advance(3)
    (pod,) = site.supervisor.pods()
    assert "BackupSchedule db, which says from where, is gone" in site.supervisor.backups.held(pod, "data-db-0")
    await site.apply(database(ORDER), secret(), schedule())
    await site.clock.advance(10)
    assert store.did()[0] == "bringBack data-db-0" and site.supervisor.backups.held(pod, "data-db-0") == ""


async def test_what_a_killed_agent_is_still_bringing_back_is_held(site: Site, store: Store) -> None:
    store.answers = [{"reason": "Failed", "message": "not yet"}]
    await site.apply(database(), secret())
    await site.clock.advance(3)
    (pod,) = site.supervisor.pods()
    await site.apply(database(), secret(), schedule(suspend=True, restores=[{"id": "now", "claim": "data-db-0"}]))
    backups = site.supervisor.backups
    assert backups.held(pod, "data-db-0") == ""
    lock = backups._state / "shop" / "data-db-0.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is being brought back" in backups.held(pod, "data-db-0")
    assert backups.held(pod, "data-db-0") == ""
