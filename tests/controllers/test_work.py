"""The work controller: what sites are told while a workload moves between them."""

from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers import disruption, work
from metaos.controllers.fencing import halted
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj, name, namespace, owner_reference, uid
from tests.controllers.continuum import cluster, deployment, events, running, until
from tests.controllers.test_disruption import budget, pod
from tests.fake_client import FakeClient


def placement(owner: Obj, **clusters: int) -> Obj:
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": uid(owner)}
    return {
        **scheme.PLACEMENT.empty("deployment-web", "shop"),
        "metadata": {"name": "deployment-web", "namespace": "shop", "ownerReferences": [owner_reference(owner)]},
        "spec": {"workloadRef": reference, "clusters": [{"name": c, "replicas": n} for c, n in clusters.items()]},
    }


def told(client: FakeClient) -> dict[str, int]:
    found = {}
    for each in client.objects(scheme.WORK):
        found[each["metadata"]["labels"]["meta-os.eu/cluster"]] = each["spec"]["manifests"][0]["spec"]["replicas"]
    return found


def reports(client: FakeClient, site: str, available: int) -> None:
    for each in client.objects(scheme.WORK):
        if each["metadata"]["labels"]["meta-os.eu/cluster"] == site:
            status: dict[str, Any] = {"kind": "Deployment", "name": "web", "status": {"availableReplicas": available}}
            client.seed(each | {"status": {"manifests": [status]}})


async def test_a_site_gives_up_replicas_only_when_others_have_them() -> None:
    objects = cluster("a"), cluster("b"), deployment(replicas=3)
    async with running(work.setup, objects=objects) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed(placement(owner, a=3))
        await until(clock, lambda: told(client) == {"a": 3})
        reports(client, "a", 3)
        client.seed(placement(owner, a=1, b=2))
        await until(clock, lambda: told(client) == {"a": 3, "b": 2})
        reports(client, "b", 1)
        await until(clock, lambda: told(client) == {"a": 2, "b": 2})
        reports(client, "b", 2)
        await until(clock, lambda: told(client) == {"a": 1, "b": 2})


async def test_what_was_just_made_is_no_news_and_what_sites_tell_at_once_is_looked_at_once() -> None:
    managers: list[Manager] = []

    def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        managers.append(manager)
        work.setup(manager, client, clock, settings)

    objects = *map(cluster, "abc"), deployment(replicas=3)
    async with running(setup, objects=objects) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        await clock.advance(1)

        def looks() -> int:
            return managers[0].metrics[work.NAME]["reconciles"]

        before = looks()
        client.seed(placement(owner, a=1, b=1, c=1))
        await until(clock, lambda: told(client) == {"a": 1, "b": 1, "c": 1})
        await clock.advance(1)
        assert looks() == before + 1
        for site in "abc":
            reports(client, site, 0)
        await clock.advance(1)
        assert looks() == before + 2
        found = client.objects(scheme.WORK)[0]
        client.drop(scheme.WORK, name(found), namespace(found))
        await until(clock, lambda: told(client) == {"a": 1, "b": 1, "c": 1})


async def test_what_a_lost_site_reported_replaces_nothing() -> None:
    objects = cluster("a"), cluster("b"), deployment(replicas=2)
    async with running(work.setup, objects=objects) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed(placement(owner, a=1, b=1))
        await until(clock, lambda: told(client) == {"a": 1, "b": 1})
        reports(client, "a", 1)
        reports(client, "b", 1)
        client.seed(cluster("b", ready=False), placement(owner, a=2, b=1))
        await until(clock, lambda: told(client) == {"a": 2, "b": 1})
        client.seed(placement(owner, a=1, b=1))
        await clock.advance(5)
        assert told(client) == {"a": 2, "b": 1}


async def test_recreate_stops_the_old_template_at_the_site_that_is_left_before_the_new_one_starts() -> None:
    web = deployment()
    web["spec"]["strategy"] = {"type": "Recreate"}
    async with running(work.setup, objects=(cluster("a"), cluster("b"), web)) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed(placement(owner, a=1))
        await until(clock, lambda: told(client) == {"a": 1})
        client.seed(placement(owner, b=1))
        new = {"spec": {"containers": [{"name": "c", "image": "python:4"}]}}
        client.seed(owner | {"spec": owner["spec"] | {"template": new}})
        await until(clock, lambda: told(client) == {"a": 0})
        await clock.advance(5)
        found = client.objects(scheme.WORK)[0]
        assert told(client) == {"a": 0} and halted(found), "its pods may still be there"
        entry = {"kind": "Deployment", "name": "web", "observedGeneration": 1, "status": {}}
        client.seed(found | {"status": {"observedGeneration": 99, "manifests": [entry]}})
        await until(clock, lambda: told(client) == {"a": 0, "b": 1})
        images = [
            w["spec"]["manifests"][0]["spec"]["template"]["spec"]["containers"][0]["image"] for w in client.objects(scheme.WORK)
        ]
        assert sorted(images) == ["python:3", "python:4"]


async def test_fewer_on_the_whole_go_at_once() -> None:
    objects = cluster("a"), deployment(replicas=3)
    async with running(work.setup, objects=objects) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed(placement(owner, a=3))
        await until(clock, lambda: told(client) == {"a": 3})
        client.seed(placement(owner, a=1))
        await until(clock, lambda: told(client) == {"a": 1})


async def test_what_is_stopped_before_it_moves_waits_for_its_budget() -> None:
    policy = {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "PlacementPolicy",
        "metadata": {"name": "once", "namespace": "shop"},
        "spec": {"fencing": {"afterSeconds": 10}},
    }
    objects = cluster("a"), cluster("b"), deployment(replicas=1), policy, budget(minAvailable=1)
    async with running(work.setup, disruption.setup, objects=objects) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed(placement(owner, a=1))
        await until(clock, lambda: told(client) == {"a": 1})
        reports(client, "a", 1)
        client.seed(pod("p1", "a", owner), placement(owner, b=1))
        await until(clock, lambda: "DisruptionBudget" in events(client))
        await clock.advance(30)
        (only,) = client.objects(scheme.WORK)
        assert only["spec"]["manifests"][0]["spec"]["replicas"] == 1 and told(client) == {"a": 1}
        held = client.find(scheme.POD_DISRUPTION_BUDGET, "b", "shop") or {}
        client.seed(held | {"spec": held["spec"] | {"minAvailable": 0}})
        await until(clock, lambda: halted(client.objects(scheme.WORK)[0]), 30)
        noted = client.find(scheme.POD_DISRUPTION_BUDGET, "b", "shop") or {}
        assert list(noted["status"]["disruptedPods"]) == ["p1"]


async def test_a_kubernetes_cluster_is_not_asked_to_fence_itself_as_it_goes_on_without_its_agent() -> None:
    policy = {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "PlacementPolicy",
        "metadata": {"name": "once", "namespace": "shop"},
        "spec": {"fencing": {"afterSeconds": 10}},
    }
    objects = cluster("a"), cluster("kube", runtime="kubernetes"), deployment(replicas=1), policy
    async with running(work.setup, objects=objects) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed(placement(owner, kube=1))
        await until(clock, lambda: told(client) == {"kube": 1})
        assert "fencing" not in client.objects(scheme.WORK)[0]["spec"]
        # Lost: nothing shows that it runs none of it, so nobody takes its place.
        client.seed(cluster("kube", ready=False, runtime="kubernetes"), placement(owner, a=1))
        await clock.advance(120)
        assert told(client) == {"kube": 1}


def template_of(client: FakeClient) -> dict[str, str]:
    found = {}
    for each in client.objects(scheme.WORK):
        containers = each["spec"]["manifests"][0]["spec"]["template"]["spec"]["containers"]
        found[each["metadata"]["labels"]["meta-os.eu/cluster"]] = containers[0]["image"]
    return found


APPLIED = [{"type": "Applied", "status": "True"}]


def settles(client: FakeClient, site: str, available: int) -> None:
    """The site has done what it was told."""
    for each in client.objects(scheme.WORK):
        if each["metadata"]["labels"]["meta-os.eu/cluster"] == site:
            share = each["spec"]["manifests"][0]["spec"]["replicas"]
            counts = {"replicas": share, "updatedReplicas": share, "availableReplicas": available}
            entry = {"kind": "Deployment", "name": "web", "status": counts}
            status = {"observedGeneration": each["metadata"].get("generation", 0), "manifests": [entry], "conditions": APPLIED}
            client.seed(each | {"status": status})


async def test_sites_take_turns_where_the_bounds_do_not_reach_for_all() -> None:
    web = deployment(replicas=2)
    web["spec"]["strategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    async with running(work.setup, objects=(cluster("a"), cluster("b"), cluster("c", ready=False), web)) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed(placement(owner, a=1, b=1, c=1))
        await until(clock, lambda: told(client) == {"a": 1, "b": 1, "c": 1})
        for site in "abc":
            settles(client, site, 1)
        changed = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        changed["spec"]["template"]["spec"]["containers"][0]["image"] = "python:4"
        client.seed(changed)
        await until(clock, lambda: template_of(client) == {"a": "python:4", "b": "python:3", "c": "python:3"})
        settles(client, "a", 0)
        await clock.advance(5)
        assert template_of(client)["b"] == "python:3"
        settles(client, "a", 1)
        await until(clock, lambda: template_of(client)["b"] == "python:4")
        settles(client, "b", 1)
        await clock.advance(5)
        assert template_of(client)["c"] == "python:3"  # cut off: its turn comes when it is back
        client.seed(cluster("c"))
        await until(clock, lambda: template_of(client)["c"] == "python:4")


async def test_of_a_paused_one_whose_last_site_is_going_nothing_is_started_elsewhere() -> None:
    objects = cluster("a"), cluster("b"), deployment(replicas=1)
    async with running(work.setup, objects=objects) as (client, clock):
        owner = client.find(scheme.DEPLOYMENT, "web", "shop") or {}
        client.seed(placement(owner, a=1))
        await until(clock, lambda: told(client) == {"a": 1})
        (only,) = client.objects(scheme.WORK)
        client.seed(only | {"metadata": only["metadata"] | {"finalizers": ["test/held"]}})
        await client.delete(scheme.WORK, name(only), namespace(only))
        client.seed(owner | {"spec": owner["spec"] | {"paused": True}}, placement(owner, b=1))
        await clock.advance(30)
        assert told(client) == {"a": 1}
