"""The work controller where volumes go along: what both sites are told, step by step, and when the old one's Work goes."""

from __future__ import annotations

from typing import Any

from metaos.controllers import migration, work
from metaos.controllers.fencing import halted
from metaos.controllers.moving import copy_of, under_way
from metaos.resources import scheme
from metaos.resources.meta import Obj, cluster_namespace, generation, owner_reference, uid
from tests.controllers.continuum import cluster, deployment, events, running, until
from tests.fake_client import FakeClient

KEY = "statefulset.shop.db"
MOVES = {"volumeMoves": True}


def database() -> Obj:
    found = deployment("db") | {"kind": "StatefulSet"}
    found["spec"]["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": {}}]
    return found


def placement(owner: Obj, site: str) -> Obj:
    reference = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": uid(owner)}
    return {
        **scheme.PLACEMENT.empty("statefulset-db", "shop"),
        "metadata": {"name": "statefulset-db", "namespace": "shop", "ownerReferences": [owner_reference(owner)]},
        "spec": {"workloadRef": reference, "clusters": [{"name": site, "replicas": 1}]},
    }


def of(client: FakeClient, site: str) -> Obj | None:
    return client.find(scheme.WORK, KEY, cluster_namespace(site))


def volumes(client: FakeClient, site: str) -> dict[str, Any]:
    return ((of(client, site) or {}).get("spec") or {}).get("volumes") or {}


def runs(client: FakeClient, site: str) -> bool:
    found = of(client, site)
    return found is not None and not halted(found)


def reports(client: FakeClient, site: str, pods: int, phase: str = "", attempt: int = 0, **more: Any) -> None:
    found = of(client, site)
    assert found is not None
    wanted = found["spec"]["manifests"][0]
    status = {"replicas": pods, "readyReplicas": pods, "availableReplicas": pods}
    entry = {"kind": "StatefulSet", "name": "db", "uid": uid(wanted), "observedGeneration": 1, "status": status}
    said: dict[str, Any] = {"observedGeneration": generation(found), "manifests": [entry]}
    if phase:
        said["volumes"] = {"phase": phase, "attempt": attempt, "rounds": 3, "bytes": 5, "sentBytes": 4, "sizeBytes": 5}
    if more:
        said["volumes"] = said.get("volumes", {}) | more
    client.seed(found | {"status": said})


async def test_a_move_step_by_step() -> None:
    sites = cluster("a", status=MOVES), cluster("b", status=MOVES)
    async with running(work.setup, migration.setup, objects=(*sites, database())) as (client, clock):
        owner = client.find(scheme.STATEFUL_SET, "db", "shop") or {}
        client.seed(placement(owner, "a"))
        await until(clock, lambda: runs(client, "a"))
        reports(client, "a", 1)
        client.seed(placement(owner, "b"))
        await until(clock, lambda: volumes(client, "a").get("send"))
        number = volumes(client, "a")["send"]["attempt"]
        assert number >= int(clock.now()) - 60, "above all that were used before, whatever a hub still knows"
        assert volumes(client, "b") == {"receive": {"from": "a", "attempt": number}}
        assert runs(client, "a") and not runs(client, "b")
        await clock.advance(10)
        assert runs(client, "a"), "it goes on until little is missing"
        reports(client, "b", 0, "Close", number)
        await until(clock, lambda: volumes(client, "a").get("stop"))
        assert not runs(client, "a") and not runs(client, "b")
        reports(client, "b", 0, "Complete", number)
        await clock.advance(10)
        assert not runs(client, "b"), "nobody has said yet that nothing runs at the old site"
        reports(client, "a", 0)
        await until(clock, lambda: runs(client, "b"))
        assert volumes(client, "b")["receive"]["adopt"] is True
        await clock.advance(10)
        assert of(client, "a") is not None and "discard" not in volumes(client, "a")["send"], "not before the new one is ready"
        reports(client, "b", 1, "Adopted", number)
        await until(clock, lambda: volumes(client, "a")["send"].get("discard"))
        await clock.advance(10)
        assert of(client, "a") is not None, "what it has is still there"
        reports(client, "a", 0, "Discarded", 0)
        await until(clock, lambda: of(client, "a") is None)
        assert runs(client, "b")
        said = (client.find(scheme.PLACEMENT, "statefulset-db", "shop") or {})["status"]["volumes"]
        assert (said["phase"], said["from"], said["to"], said["rounds"], said["sentBytes"]) == ("Done", "a", "b", 3, 4)
        assert said["downtimeSeconds"] > 0
        told = [reason for reason in events(client) if reason.startswith("Volumes")]
        assert sorted(told) == ["VolumesMoved", "VolumesMoving", "VolumesStopping", "VolumesSwitched"]


async def test_the_old_copy_goes_on_where_the_rest_does_not_come() -> None:
    sites = cluster("a", status=MOVES), cluster("b", status=MOVES)
    async with running(work.setup, migration.setup, objects=(*sites, database())) as (client, clock):
        owner = client.find(scheme.STATEFUL_SET, "db", "shop") or {}
        client.seed(placement(owner, "a"))
        await until(clock, lambda: runs(client, "a"))
        reports(client, "a", 1)
        client.seed(placement(owner, "b"))
        await until(clock, lambda: volumes(client, "a").get("send"))
        first = volumes(client, "a")["send"]["attempt"]
        reports(client, "b", 0, "Close", first)
        await until(clock, lambda: volumes(client, "a").get("stop"))
        reports(client, "a", 0)
        await until(clock, lambda: runs(client, "a"), 140)
        again = volumes(client, "b")["receive"]["attempt"]
        assert again > first
        reports(client, "b", 0, "Complete", first)  # late, and of the attempt that was given up
        await clock.advance(20)
        assert runs(client, "a") and not runs(client, "b")


async def test_a_line_that_is_stated_is_not_filled() -> None:
    link = [{"cluster": "b", "bytesPerSecond": "10M"}]
    sites = cluster("a", status=MOVES, links=link), cluster("b", status=MOVES)
    async with running(work.setup, migration.setup, objects=(*sites, database())) as (client, clock):
        owner = client.find(scheme.STATEFUL_SET, "db", "shop") or {}
        client.seed(placement(owner, "a"))
        await until(clock, lambda: runs(client, "a"))
        client.seed(placement(owner, "b"))
        await until(clock, lambda: volumes(client, "a").get("send"))
        assert volumes(client, "a")["send"]["bytesPerSecond"] == 8_000_000


async def test_where_it_shall_stay_after_all_what_came_is_dropped() -> None:
    sites = cluster("a", status=MOVES), cluster("b", status=MOVES)
    async with running(work.setup, migration.setup, objects=(*sites, database())) as (client, clock):
        owner = client.find(scheme.STATEFUL_SET, "db", "shop") or {}
        client.seed(placement(owner, "a"))
        await until(clock, lambda: runs(client, "a"))
        reports(client, "a", 1)
        client.seed(placement(owner, "b"))
        await until(clock, lambda: volumes(client, "a").get("send"))
        client.seed(placement(owner, "a"))
        await until(clock, lambda: of(client, "b") is None and volumes(client, "a").keys() == {"kept"})
        assert runs(client, "a")


async def test_sites_that_take_no_part_are_left_as_they_were() -> None:
    async with running(work.setup, migration.setup, objects=(cluster("a"), cluster("b"), database())) as (client, clock):
        owner = client.find(scheme.STATEFUL_SET, "db", "shop") or {}
        client.seed(placement(owner, "a"))
        await until(clock, lambda: runs(client, "a"))
        assert not volumes(client, "a")


def test_whose_volumes_move() -> None:
    works = {"a": {"spec": {"manifests": [database()]}}}
    job = database() | {"kind": "Job"}

    def all_(site: str) -> bool:
        return True

    assert under_way(database(), ["b"], works, all_)
    assert not under_way(database(), ["a"], works, all_)
    assert not under_way(database(), ["b", "c"], works, all_), "divided"
    assert not under_way(database(), ["b"], works, lambda site: site == "a")
    assert not under_way(job, ["b"], works, all_)
    assert not under_way(deployment(), ["b"], works, all_), "no volumes"


def test_a_report_of_another_attempt_says_nothing() -> None:
    body = database()
    found = {"metadata": {"labels": {"meta-os.eu/cluster": "b"}}, "spec": {"manifests": [body]}}
    found["spec"]["volumes"] = {"receive": {"from": "a", "attempt": 2}}
    found["status"] = {"volumes": {"phase": "Complete", "attempt": 1}}
    assert not copy_of(found, ready=True, barred=False).complete
    found["status"] = {"volumes": {"phase": "Complete", "attempt": 2}}
    assert copy_of(found, ready=True, barred=False).complete


def test_a_number_that_no_attempt_ever_had_is_not_taken_from_a_site() -> None:
    """There would be none above it, and the workload could never move again."""
    for number, holds in ((1 << 40, True), ((1 << 63) - 1, False)):
        spec = {"manifests": [database()], "volumes": {"asked": "x"}}
        found = {"metadata": {"labels": {"meta-os.eu/cluster": "b"}}, "spec": spec}
        for said in ({"holds": number}, {"left": {"attempt": number, "to": "a"}}, {"left": {"attempt": number, "kept": True}}):
            copy = copy_of(found | {"status": {"volumes": said | {"asked": "x"}}}, ready=True, barred=False)
            assert bool(copy.holds or copy.left or copy.voided) == holds


async def test_a_site_takes_no_workload_that_left_it() -> None:
    """It may say what it likes of moves that this hub, whose state is its own, never told it of."""
    sites = cluster("a", status=MOVES), cluster("b", status=MOVES)
    async with running(work.setup, migration.setup, objects=(*sites, database())) as (client, clock):
        owner = client.find(scheme.STATEFUL_SET, "db", "shop") or {}
        client.seed(placement(owner, "a"))
        await until(clock, lambda: runs(client, "a"))
        for said in ({"left": {"attempt": 7, "to": "b", "discarded": True}}, {"holds": 7}):
            reports(client, "a", 1, **said)
            await clock.advance(60)
            assert runs(client, "a") and of(client, "b") is None and not volumes(client, "a")


def put_back(client: FakeClient, site: str) -> None:
    """The hub is one whose state was: it asks the site."""
    found = of(client, site) or {}
    client.seed(found | {"spec": found["spec"] | {"volumes": {"asked": "x"}}})


async def test_a_hub_that_was_put_back_follows_what_was_given_up() -> None:
    sites = cluster("a", status=MOVES), cluster("b", status=MOVES)
    async with running(work.setup, migration.setup, objects=(*sites, database())) as (client, clock):
        owner = client.find(scheme.STATEFUL_SET, "db", "shop") or {}
        client.seed(placement(owner, "a"))
        await until(clock, lambda: runs(client, "a"))
        put_back(client, "a")
        client.seed(placement(owner, "b"))
        reports(client, "a", 0, asked="x", left={"attempt": 7, "to": "b", "discarded": True})
        await until(clock, lambda: runs(client, "b") and volumes(client, "a").get("stop"))
        assert volumes(client, "b")["receive"] == {"from": "a", "attempt": 7, "adopt": True}
        assert volumes(client, "a")["send"] == {"to": "b", "attempt": 7, "discard": True} and not runs(client, "a")
        assert "VolumesFound" in events(client)
        reports(client, "b", 1, "Adopted", 7, asked=volumes(client, "b")["asked"])
        reports(client, "a", 0, "Discarded", 0, asked="x", left={"attempt": 7, "to": "b", "discarded": True})
        await until(clock, lambda: of(client, "a") is None)
        assert runs(client, "b")


async def test_a_hub_that_was_put_back_decides_nothing_before_it_has_heard_both_sites() -> None:
    sites = cluster("a", status=MOVES), cluster("b", status=MOVES)
    async with running(work.setup, migration.setup, objects=(*sites, database())) as (client, clock):
        owner = client.find(scheme.STATEFUL_SET, "db", "shop") or {}
        client.seed(placement(owner, "a"))
        await until(clock, lambda: runs(client, "a"))
        put_back(client, "a")
        reports(client, "a", 1)
        client.seed(placement(owner, "b"))
        await clock.advance(30)
        assert of(client, "b") is None, "nobody knows yet what it has"
        # It was stopped for a move that is not over, as far as it knows.
        reports(client, "a", 0, asked="x", left={"attempt": 7, "to": "b"})
        await until(clock, lambda: of(client, "b") is not None and volumes(client, "a").get("stop"))
        assert volumes(client, "b")["receive"] == {"from": "a", "attempt": 7} and not runs(client, "b")
        reports(client, "a", 0, asked="x", left={"attempt": 7, "to": "b"})
        client.seed(placement(owner, "a"))
        await clock.advance(200)
        assert not runs(client, "a"), "the other one may have written since"
        reports(client, "b", 0, "Complete", 7, asked=volumes(client, "b")["asked"], holds=7)
        await until(clock, lambda: runs(client, "b"))
        assert not runs(client, "a") and volumes(client, "b")["receive"]["adopt"] is True


async def test_where_the_volumes_went_to_a_site_that_is_not_known() -> None:
    async with running(work.setup, migration.setup, objects=(cluster("a", status=MOVES), database())) as (client, clock):
        owner = client.find(scheme.STATEFUL_SET, "db", "shop") or {}
        client.seed(placement(owner, "a"))
        await until(clock, lambda: runs(client, "a"))
        put_back(client, "a")
        reports(client, "a", 0, asked="x", left={"attempt": 7, "to": "gone", "discarded": True})
        await until(clock, lambda: "VolumesElsewhere" in events(client))
        assert of(client, "gone") is None
