"""The migration controller: what waits for a replacement, and what does not."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaos.controllers import migration, placement, render, work
from metaos.controllers.fencing import halted
from metaos.controllers.migration import Leftover, Step, step
from metaos.resources import scheme
from metaos.resources.meta import Obj, deleting, ref
from tests.controllers.continuum import cluster, deployment, events, intent, places, running, traffic, until
from tests.fake_client import FakeClient

EU = intent({"name": "residency", "condition": "IsOneOf", "value": ["EU"]}, name="home")
SETUPS = placement.setup, work.setup, migration.setup


@given(
    st.builds(
        Leftover,
        st.just("a"),
        st.booleans(),
        st.none() | st.floats(0, 100),
        st.booleans(),
        st.none() | st.booleans(),
    ),
    st.dictionaries(st.sampled_from("bc"), st.booleans()),
    st.floats(0, 100),
    st.floats(0, 300),
)
def test_what_is_barred_waits_for_nothing_but_its_end_and_all_else_for_its_replacement(
    leftover: Leftover, chosen: dict[str, bool], drain: float, now: float
) -> None:
    todo, wait = step(leftover, chosen, drain, now)
    assert 0 <= wait <= max(0.0, (leftover.draining_since or 0) + drain - now) + 1e-9
    if leftover.halted is not None:
        assert (todo is Step.STOP) == (leftover.halted and (leftover.barred or bool(chosen)))
    elif leftover.barred:
        assert todo is Step.STOP
    elif not (chosen and all(chosen.values()) and leftover.reachable):
        assert todo is Step.WAIT
    elif leftover.draining_since is None:
        assert todo is Step.SWITCH
    else:
        assert (todo is Step.STOP) == (leftover.draining_since + drain <= now)


def sites(client: FakeClient, kind: str = "deployment", name: str = "web") -> list[str]:
    found = [w for w in client.objects(scheme.WORK) if w["metadata"]["name"] == f"{kind}.shop.{name}"]
    return sorted(w["metadata"]["labels"]["meta-os.eu/cluster"] for w in found)


def secretive() -> Obj:
    found = deployment()
    found["spec"]["template"]["spec"]["containers"][0]["envFrom"] = [{"secretRef": {"name": "key"}}]
    return found


def key() -> Obj:
    return {**scheme.SECRET.empty("key", "shop"), "data": {}}


async def test_residency_that_comes_later_stops_work_that_has_nowhere_to_go_with_all_that_follows_it() -> None:
    objects = cluster("gb", jurisdictions=["GB"]), key(), secretive()
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: sites(client) == ["gb"] and sites(client, "secret", "key") == ["gb"])
        client.seed(EU)
        await until(clock, lambda: not client.objects(scheme.WORK))
        assert places(client) == {} and "Stopped" in events(client)
        client.drop(scheme.INTENT, "home", "shop")
        await until(clock, lambda: sites(client) == ["gb"])


async def test_residency_that_comes_later_does_not_wait_for_the_replacement() -> None:
    objects = cluster("gb", jurisdictions=["GB"]), cluster("eu", tier="edge"), deployment()
    async with running(*SETUPS, objects=objects[::2]) as (client, clock):
        await until(clock, lambda: sites(client) == ["gb"])
        client.seed(objects[1], EU)
        # Nobody ever reports that it runs at eu.
        await until(clock, lambda: sites(client) == ["eu"])


async def test_other_laws_at_a_site_count_as_an_intent_does_and_a_site_that_is_away_is_told_all_the_same() -> None:
    async with running(*SETUPS, objects=(cluster("a"), EU, deployment())) as (client, clock):
        await until(clock, lambda: sites(client) == ["a"])
        client.seed(cluster("a", jurisdictions=["US"], ready=False))
        await until(clock, lambda: not client.objects(scheme.WORK))


async def test_a_law_of_the_data_that_it_reads_counts_as_an_intent_does() -> None:
    edge = {"from": {"kind": "Deployment", "name": "web"}, "to": {"dataset": "patients"}}
    held = cluster("gb", jurisdictions=["GB"], datasets=[{"name": "patients"}])
    async with running(*SETUPS, objects=(held, traffic(edge), deployment())) as (client, clock):
        await until(clock, lambda: sites(client) == ["gb"])
        client.seed(cluster("gb", jurisdictions=["GB"], datasets=[{"name": "patients", "residency": ["EU"]}]))
        await until(clock, lambda: not client.objects(scheme.WORK))
        assert places(client) == {}


async def test_what_is_left_for_its_replacement_goes_at_once_where_the_data_that_it_reads_has_another_law() -> None:
    edge = {"from": {"kind": "Deployment", "name": "web"}, "to": {"dataset": "patients"}}
    web = deployment() | {"metadata": {"name": "web", "namespace": "shop", "uid": "u-web"}}
    # Among many sites, what its Placement tells does not change with the law.
    decided: Obj = {
        **scheme.PLACEMENT.empty("deployment-web", "shop"),
        "spec": {
            "workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u-web"},
            "clusters": [{"name": "eu", "replicas": 1}],
        },
    }
    left = render.work(ref(web), "gb", [web])
    objects = cluster("gb", jurisdictions=["GB"]), cluster("eu"), traffic(edge), web, decided, left
    async with running(migration.setup, objects=objects) as (client, clock):
        await clock.advance(60)
        assert sites(client) == ["gb"], "nobody reports that it runs at eu"
        client.seed(cluster("eu", datasets=[{"name": "patients", "residency": ["EU"]}]))
        await until(clock, lambda: sites(client) == [])


async def test_what_must_not_run_twice_is_halted_where_it_is_barred_and_goes_when_it_has_stopped() -> None:
    policy: Obj = {**scheme.PLACEMENT_POLICY.empty("once", "shop"), "spec": {"fencing": {"afterSeconds": 10}}}
    async with running(*SETUPS, objects=(cluster("gb", jurisdictions=["GB"]), policy, deployment())) as (client, clock):
        await until(clock, lambda: sites(client) == ["gb"])
        client.seed(EU)
        await until(clock, lambda: halted(client.objects(scheme.WORK)[0]))
        await clock.advance(30)
        (told,) = client.objects(scheme.WORK)
        entry = {"kind": "Deployment", "name": "web", "observedGeneration": 1, "status": {"replicas": 0}}
        told["spec"]["manifests"][0]["metadata"]["generation"] = 1
        client.seed(told | {"status": {"observedGeneration": 9, "manifests": [entry]}})
        await until(clock, lambda: not client.objects(scheme.WORK))


async def test_a_bare_pod_is_deleted_where_it_may_not_be_any_more() -> None:
    pod: Obj = {**scheme.POD.empty("one", "shop"), "spec": {"containers": [{"name": "c", "image": "x"}]}}
    async with running(*SETUPS, objects=(cluster("gb", jurisdictions=["GB"]), pod)) as (client, clock):
        await until(clock, lambda: (client.find(scheme.POD, "one", "shop") or {})["spec"].get("nodeName") == "gb")
        client.seed(EU)
        await until(clock, lambda: not client.objects(scheme.WORK))
        assert deleting(client.find(scheme.POD, "one", "shop") or {}), "its site has its grace period to stop it"
        assert "Removed" in events(client)


async def test_of_a_job_that_has_ended_nothing_stays_where_it_may_not_be() -> None:
    job = secretive() | {"kind": "Job", "apiVersion": "batch/v1"}
    async with running(*SETUPS, objects=(cluster("gb", jurisdictions=["GB"]), key(), job)) as (client, clock):
        await until(clock, lambda: sites(client, "job") == ["gb"] and sites(client, "secret", "key") == ["gb"])
        status = {"conditions": [{"type": "Complete", "status": "True"}]}
        client.seed((client.find(scheme.JOB, "web", "shop") or {}) | {"status": status})
        client.seed(EU)
        await until(clock, lambda: not client.objects(scheme.WORK))
        assert "it has ended" in (client.find(scheme.PLACEMENT, "job-web", "shop") or {})["spec"]["reason"]


def mirror(client: FakeClient, name: str) -> Obj:
    owner = (client.find(scheme.DEPLOYMENT, name, "shop") or {})["metadata"]["uid"]
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": owner, "controller": True}
    found: Obj = {**scheme.POD.empty(f"{name}-1", "shop"), "spec": {"nodeName": "be"}, "status": {"phase": "Running"}}
    found["metadata"]["ownerReferences"] = [reference]
    return found


async def test_who_is_displaced_has_stopped_before_the_other_one_comes() -> None:
    high: Obj = {**scheme.PRIORITY_CLASS.empty("high"), "value": 1000}
    room: dict[str, Any] = {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10"}}
    async with running(*SETUPS, objects=(cluster("be", status=room), high, deployment("low", cpu="700m"))) as (client, clock):
        await until(clock, lambda: sites(client, name="low") == ["be"])
        client.seed(mirror(client, "low"))
        urgent = deployment("urgent", cpu="600m")
        urgent["spec"]["template"]["spec"]["priorityClassName"] = "high"
        client.seed(urgent)
        await until(clock, lambda: not sites(client, name="low"))
        await clock.advance(20)
        assert not sites(client, name="urgent"), "the pod of the other one is still there"
        client.drop(scheme.POD, "low-1", "shop")
        await until(clock, lambda: sites(client, name="urgent") == ["be"])
        found = client.find(scheme.PLACEMENT, "deployment-low", "shop") or {}
        assert found["spec"]["displaced"] == ["be"] and not found["spec"]["clusters"]
        client.drop(scheme.DEPLOYMENT, "urgent", "shop")
        await until(clock, lambda: sites(client, name="low") == ["be"])
        assert "displaced" not in (client.find(scheme.PLACEMENT, "deployment-low", "shop") or {})["spec"]
