"""The verbs over a real store."""

import asyncio
from random import Random

import orjson
import pytest

from metaos.apiserver import reading
from metaos.apiserver.registry import Registry
from metaos.client import PatchType
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.store.sqlite import SqliteStore
from tests.apiserver.conftest import ADMIN
from tests.apiserver.objects import config_map, deployment, pod, take
from tests.clock import FakeClock


async def test_create_defaults_and_identifies(registry: Registry) -> None:
    made = await registry.create(ADMIN, deployment())
    assert made["metadata"]["uid"] and made["metadata"]["generation"] == 1
    assert made["metadata"]["creationTimestamp"] == "2023-11-14T22:13:20Z"
    assert made["spec"]["replicas"] == 1
    assert made["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
    container = made["spec"]["template"]["spec"]["containers"][0]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert await registry.get(ADMIN, scheme.DEPLOYMENT, "web", "default") == made
    assert orjson.loads(await registry.get_encoded(ADMIN, scheme.DEPLOYMENT, "web", "default")) == made


async def test_create_twice_and_in_no_namespace(registry: Registry) -> None:
    await registry.create(ADMIN, config_map())
    with pytest.raises(ApiError) as refused:
        await registry.create(ADMIN, config_map())
    assert (refused.value.code, refused.value.reason) == (409, "AlreadyExists")
    with pytest.raises(ApiError, match='namespaces "shop" not found') as missing:
        await registry.create(ADMIN, config_map(namespace="shop"))
    assert missing.value.code == 404


async def test_generate_name(registry: Registry) -> None:
    names = set()
    for _ in range(3):
        made = config_map()
        made["metadata"] = {"generateName": "settings-", "namespace": "default"}
        names.add((await registry.create(ADMIN, made))["metadata"]["name"])
    assert len(names) == 3 and all(n.startswith("settings-") and len(n) == 14 for n in names)


async def test_update_conflicts_and_generation(registry: Registry) -> None:
    made = await registry.create(ADMIN, deployment())
    changed = orjson.loads(orjson.dumps(made))
    changed["spec"]["replicas"] = 3
    changed["status"] = {"replicas": 9}
    updated = await registry.update(ADMIN, changed)
    assert updated["metadata"]["generation"] == 2 and updated["status"] == {}
    with pytest.raises(ApiError) as stale:
        await registry.update(ADMIN, changed)
    assert (stale.value.code, stale.value.reason) == (409, "Conflict")
    updated["metadata"]["labels"]["x"] = "y"
    relabelled = await registry.update(ADMIN, updated)
    assert relabelled["metadata"]["generation"] == 2
    same = await registry.update(ADMIN, relabelled)
    assert same["metadata"]["resourceVersion"] == relabelled["metadata"]["resourceVersion"]


async def test_native_kinds_have_a_status_from_the_first_moment_on(registry: Registry) -> None:
    """kr8s and others read fields of it before a controller has written there; Kubernetes' types always have it."""
    made = await registry.create(ADMIN, deployment())
    assert made["status"] == {}
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b", "namespace": "default"}}
    found = await registry.create(ADMIN, budget | {"spec": {"minAvailable": 1}})
    assert found["status"] == dict.fromkeys(("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"), 0)
    assert not any("f:status" in each["fieldsV1"] for each in found["metadata"]["managedFields"])


async def test_status_is_apart(registry: Registry) -> None:
    made = await registry.create(ADMIN, deployment())
    made["status"] = {"replicas": 1, "observedGeneration": 1}
    made["spec"]["replicas"] = 5
    updated = await registry.update(ADMIN, made, subresource="status")
    assert updated["spec"]["replicas"] == 1 and updated["status"] == {"replicas": 1, "observedGeneration": 1}
    assert updated["metadata"]["generation"] == 1
    patched = await registry.patch(
        ADMIN, scheme.DEPLOYMENT, "web", "default", {"status": {"readyReplicas": 1}}, subresource="status"
    )
    assert patched["status"]["readyReplicas"] == 1


async def test_list_pages_are_of_one_revision(registry: Registry) -> None:
    for i in range(7):
        await registry.create(ADMIN, config_map(f"c{i}"))
    first = await registry.list(ADMIN, scheme.CONFIG_MAP, "default", limit=3)
    assert [o["metadata"]["name"] for o in first.items] == ["c0", "c1", "c2"] and first.continue_token
    await registry.delete(ADMIN, scheme.CONFIG_MAP, "c4", "default")
    second = await registry.list(ADMIN, scheme.CONFIG_MAP, "default", limit=3, continue_token=first.continue_token)
    assert [o["metadata"]["name"] for o in second.items] == ["c3", "c4", "c5"]
    assert second.resource_version == first.resource_version
    last = await registry.list(ADMIN, scheme.CONFIG_MAP, "default", limit=3, continue_token=second.continue_token)
    assert [o["metadata"]["name"] for o in last.items] == ["c6"] and not last.continue_token
    body = orjson.loads((await registry.list_page(ADMIN, scheme.CONFIG_MAP, limit=2)).encoded(scheme.CONFIG_MAP))
    assert body["kind"] == "ConfigMapList" and body["metadata"]["remainingItemCount"] == 4


async def test_a_list_of_many_is_of_one_moment_and_others_have_their_turns(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "TURN_OBJECTS", 2)
    monkeypatch.setattr(reading, "TURN_TAKEN", 2)
    names = [f"c{i:02}" for i in range(40)]

    async def make(name: str) -> None:
        obj = config_map(name)
        obj["metadata"]["labels"] = {"app": "web"}
        await registry.create(ADMIN, obj)

    for each in names:
        await make(each)
    for labels, limit in (("", 0), ("app=web", 0), ("app=web", 30)):
        before = registry.cache.revision
        listing = asyncio.ensure_future(registry.list(ADMIN, scheme.CONFIG_MAP, "default", labels=labels, limit=limit))
        watch = registry.watch(ADMIN, scheme.CONFIG_MAP, "default", labels="app=web")
        first = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        assert not listing.done()
        await registry.delete(ADMIN, scheme.CONFIG_MAP, "c29", "default")
        await make("c29a")
        found = await listing
        assert int(found.resource_version) == before
        assert [o["metadata"]["name"] for o in found.items] == names[: limit or 40]
        # A watch that begins with what there is goes on from the same moment.
        told = [await first, *[await anext(watch) for _ in range(41)]]
        assert [event.type for event in told] == ["ADDED"] * 40 + ["DELETED", "ADDED"]
        await watch.aclose()
        await registry.delete(ADMIN, scheme.CONFIG_MAP, "c29a", "default")
        await make("c29")


async def test_a_page_that_is_too_old_is_refused(registry: Registry, store: SqliteStore) -> None:
    for i in range(4):
        await registry.create(ADMIN, config_map(f"c{i}"))
    first = await registry.list(ADMIN, scheme.CONFIG_MAP, "default", limit=2)
    made = await registry.create(ADMIN, config_map("c9"))
    second = await registry.list(ADMIN, scheme.CONFIG_MAP, "default", limit=2, continue_token=first.continue_token)
    assert [o["metadata"]["name"] for o in second.items] == ["c2", "c3"] and second.resource_version == first.resource_version
    await store.compact(int(made["metadata"]["resourceVersion"]))
    with pytest.raises(ApiError) as expired:
        await registry.list(ADMIN, scheme.CONFIG_MAP, "default", limit=2, continue_token=first.continue_token)
    assert (expired.value.code, expired.value.reason) == (410, "Expired")
    # The rest can be had as it is now, by the token of the refusal.
    token = expired.value.status()["metadata"]["continue"]
    rest = await registry.list(ADMIN, scheme.CONFIG_MAP, "default", continue_token=token)
    assert [o["metadata"]["name"] for o in rest.items] == ["c2", "c3", "c9"] and rest.resource_version != first.resource_version


async def test_selectors(registry: Registry) -> None:
    await registry.create(ADMIN, pod("a", nodeName="edge"))
    await registry.create(ADMIN, pod("b"))
    on_edge = await registry.list(ADMIN, scheme.POD, fields="spec.nodeName=edge")
    assert [o["metadata"]["name"] for o in on_edge.items] == ["a"]
    named = await registry.list(ADMIN, scheme.POD, "default", fields="metadata.name=b,status.phase!=Running")
    assert [o["metadata"]["name"] for o in named.items] == ["b"]
    assert len((await registry.list(ADMIN, scheme.POD, labels="app in (web)")).items) == 2
    assert not (await registry.list(ADMIN, scheme.POD, labels="app!=web")).items
    with pytest.raises(ApiError, match="field label not supported"):
        await registry.list(ADMIN, scheme.POD, fields="spec.foo=1")


async def test_watch_sees_what_the_selector_sees(registry: Registry) -> None:
    await registry.create(ADMIN, pod("old"))
    events = registry.watch(ADMIN, scheme.POD, "default", labels="app=web")
    [first] = await take(events, 1)
    assert (first.type, first.object["metadata"]["name"]) == ("ADDED", "old")
    await registry.patch(ADMIN, scheme.POD, "old", "default", {"metadata": {"labels": {"x": "y"}}})
    await registry.patch(ADMIN, scheme.POD, "old", "default", {"metadata": {"labels": {"app": "other"}}})
    await registry.patch(ADMIN, scheme.POD, "old", "default", {"metadata": {"labels": {"app": "web"}}})
    await registry.delete(ADMIN, scheme.POD, "old", "default")
    seen = await take(events, 4)
    assert [e.type for e in seen] == ["MODIFIED", "DELETED", "ADDED", "DELETED"]
    versions = [int(e.object["metadata"]["resourceVersion"]) for e in seen]
    assert versions == sorted(set(versions))
    assert orjson.loads(seen[0].line)["object"]["metadata"]["labels"] == {"app": "web", "x": "y"}
    await events.aclose()


async def test_watch_from_a_revision_and_streamed_list(registry: Registry, clock: FakeClock) -> None:
    before = (await registry.list(ADMIN, scheme.CONFIG_MAP)).resource_version
    await registry.create(ADMIN, config_map("a"))
    events = registry.watch(ADMIN, scheme.CONFIG_MAP, resource_version=before, bookmarks=True)
    assert [e.type for e in await take(events, 1)] == ["ADDED"]
    waiting = asyncio.ensure_future(anext(events))
    await clock.advance(61)
    assert (await waiting).type == "BOOKMARK"
    await events.aclose()
    streamed = registry.watch(ADMIN, scheme.CONFIG_MAP, initial_events=True, bookmarks=True)
    added, mark = await take(streamed, 2)
    assert added.type == "ADDED" and mark.object["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    await streamed.aclose()


async def test_watch_goes_on_after_a_restart(store: SqliteStore, clock: FakeClock) -> None:
    first = Registry(store, clock, Random(1))
    await first.start()
    version = (await first.create(ADMIN, config_map("a")))["metadata"]["resourceVersion"]
    await first.create(ADMIN, config_map("b"))
    await first.stop()
    second = Registry(store, clock, Random(2))
    await second.start()
    events = second.watch(ADMIN, scheme.CONFIG_MAP, resource_version=version)
    assert [e.object["metadata"]["name"] for e in await take(events, 1)] == ["b"]
    await events.aclose()
    await store.compact(await store.revision())
    await second.stop()
    third = Registry(store, clock, Random(3))
    await third.start()
    with pytest.raises(ApiError) as expired:
        await take(third.watch(ADMIN, scheme.CONFIG_MAP, resource_version=version), 1)
    assert (expired.value.code, expired.value.reason) == (410, "Expired")
    assert len((await third.list(ADMIN, scheme.CONFIG_MAP)).items) == 2
    await third.stop()


async def test_concurrent_patches_all_arrive(registry: Registry) -> None:
    await registry.create(ADMIN, config_map("a"))
    patches = (registry.patch(ADMIN, scheme.CONFIG_MAP, "a", "default", {"data": {f"k{i}": "v"}}) for i in range(12))
    await asyncio.gather(*patches)
    held = await registry.get(ADMIN, scheme.CONFIG_MAP, "a", "default")
    assert len(held["data"]) == 13


async def test_finalizers_hold_and_preconditions(registry: Registry) -> None:
    made = config_map()
    made["metadata"]["finalizers"] = ["example.com/hold"]
    made = await registry.create(ADMIN, made)
    with pytest.raises(ApiError) as other:
        await registry.delete(ADMIN, scheme.CONFIG_MAP, "settings", "default", uid="another")
    assert other.value.code == 409
    left = await registry.delete(ADMIN, scheme.CONFIG_MAP, "settings", "default")
    assert left["metadata"]["deletionTimestamp"]
    more = {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}
    with pytest.raises(ApiError, match="no new finalizers can be added"):
        await registry.patch(ADMIN, scheme.CONFIG_MAP, "settings", "default", more)
    await registry.patch(ADMIN, scheme.CONFIG_MAP, "settings", "default", {"metadata": {"finalizers": None}})
    with pytest.raises(ApiError) as gone:
        await registry.get(ADMIN, scheme.CONFIG_MAP, "settings", "default")
    assert gone.value.code == 404


async def test_a_pod_on_a_site_dies_gracefully(registry: Registry) -> None:
    await registry.create(ADMIN, pod("here", nodeName="edge", terminationGracePeriodSeconds=5))
    await registry.create(ADMIN, pod("nowhere"))
    left = await registry.delete(ADMIN, scheme.POD, "here", "default")
    assert left["metadata"]["deletionGracePeriodSeconds"] == 5
    again = await registry.delete(ADMIN, scheme.POD, "here", "default")
    assert again["metadata"]["resourceVersion"] == left["metadata"]["resourceVersion"]
    now = await registry.delete(ADMIN, scheme.POD, "here", "default", grace_period_seconds=0)
    assert now["metadata"]["deletionGracePeriodSeconds"] == 0
    assert (await registry.delete(ADMIN, scheme.POD, "nowhere", "default"))["metadata"]["deletionGracePeriodSeconds"] == 0


async def test_what_is_gone_at_once_is_answered_by_kind(registry: Registry) -> None:
    await registry.create(ADMIN, config_map())
    assert (await registry.delete(ADMIN, scheme.CONFIG_MAP, "settings", "default"))["kind"] == "Status"
    account = scheme.SERVICE_ACCOUNT.empty("a", "default")
    made = await registry.create(ADMIN, account)
    said = await registry.delete(ADMIN, scheme.SERVICE_ACCOUNT, "a", "default", dry_run=True)
    assert said == made
    said = await registry.delete(ADMIN, scheme.SERVICE_ACCOUNT, "a", "default")
    revision = said["metadata"].pop("resourceVersion")
    assert int(revision) > int(made["metadata"].pop("resourceVersion")) and said == made


async def test_namespaces_end_in_two_steps(registry: Registry) -> None:
    await registry.create(ADMIN, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    dying = await registry.delete(ADMIN, scheme.NAMESPACE, "shop")
    assert dying["status"]["phase"] == "Terminating"
    with pytest.raises(ApiError, match="because it is being terminated") as refused:
        await registry.create(ADMIN, config_map(namespace="shop"))
    assert refused.value.code == 403
    dying["spec"] = {}
    await registry.update(ADMIN, dying, subresource="finalize")
    with pytest.raises(ApiError):
        await registry.get(ADMIN, scheme.NAMESPACE, "shop")


async def test_a_namespace_that_is_deleted_while_a_webhook_thinks(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    await registry.create(ADMIN, scheme.NAMESPACE.empty("going"))

    async def thinking(*asked: object) -> None:
        monkeypatch.undo()
        await registry.delete(ADMIN, scheme.NAMESPACE, "going")

    monkeypatch.setattr(registry, "_approve", thinking)
    with pytest.raises(ApiError, match="being terminated"):
        await registry.create(ADMIN, scheme.CONFIG_MAP.empty("late", "going"))


async def test_scale(registry: Registry) -> None:
    await registry.create(ADMIN, deployment())
    scale = await registry.get(ADMIN, scheme.DEPLOYMENT, "web", "default", subresource="scale")
    assert scale["spec"] == {"replicas": 1} and scale["status"] == {"replicas": 0, "selector": "app=web"}
    scale["spec"]["replicas"] = 4
    scaled = await registry.update(ADMIN, scale, kind=scheme.DEPLOYMENT, name="web", namespace="default", subresource="scale")
    assert scaled["kind"] == "Scale" and scaled["spec"]["replicas"] == 4
    patch = {"spec": {"replicas": 2}}
    await registry.patch(ADMIN, scheme.DEPLOYMENT, "web", "default", patch, subresource="scale")
    held = await registry.get(ADMIN, scheme.DEPLOYMENT, "web", "default")
    assert held["spec"]["replicas"] == 2 and held["metadata"]["generation"] == 3


async def test_dry_run_writes_nothing(registry: Registry) -> None:
    made = await registry.create(ADMIN, deployment(), dry_run=True)
    assert made["spec"]["replicas"] == 1
    assert not (await registry.list(ADMIN, scheme.DEPLOYMENT)).items
    await registry.create(ADMIN, deployment())
    shown = await registry.patch(ADMIN, scheme.DEPLOYMENT, "web", "default", {"spec": {"replicas": 7}}, dry_run=True)
    assert shown["spec"]["replicas"] == 7
    await registry.delete(ADMIN, scheme.DEPLOYMENT, "web", "default", dry_run=True)
    assert (await registry.get(ADMIN, scheme.DEPLOYMENT, "web", "default"))["spec"]["replicas"] == 1


async def test_string_data_is_folded(registry: Registry) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default"}, "stringData": {"a": "b"}}
    made = await registry.create(ADMIN, secret)
    assert made["data"] == {"a": "Yg=="} and "stringData" not in made and made["type"] == "Opaque"


async def test_unknown_fields(registry: Registry) -> None:
    wrong = deployment(foo=1)
    said: list[str] = []
    made = await registry.create(ADMIN, wrong, warnings=said, dry_run=True)
    assert said == ['unknown field "spec.foo"'] and "foo" not in made["spec"]
    with pytest.raises(ApiError, match="strict decoding error: unknown field") as strict:
        await registry.create(ADMIN, wrong, field_validation="Strict")
    assert strict.value.code == 400


async def test_delete_collection_and_client(registry: Registry) -> None:
    client = registry.client(ADMIN)
    for name in ("a", "b"):
        await client.create(config_map(name))
    await client.delete_collection(scheme.CONFIG_MAP, "default", fields="metadata.name!=b")
    assert [o["metadata"]["name"] for o in (await client.list(scheme.CONFIG_MAP)).items] == ["b"]
    await client.patch(scheme.CONFIG_MAP, "b", "default", [{"op": "add", "path": "/data/x", "value": "y"}], type=PatchType.JSON)
    assert (await client.get(scheme.CONFIG_MAP, "b", "default"))["data"] == {"key": "value", "x": "y"}


async def test_watches_have_no_gap_and_never_go_back(registry: Registry) -> None:
    """Sixteen writers on a few objects; what a watcher replays is what a list shows."""
    random = Random(3)
    start = (await registry.list(ADMIN, scheme.CONFIG_MAP)).resource_version
    models: dict[str, dict[str, int]] = {"": {}, "g=1": {}}

    async def follow(labels: str) -> None:
        model, last = models[labels], 0
        async for event in registry.watch(ADMIN, scheme.CONFIG_MAP, resource_version=start, labels=labels):
            metadata = event.object["metadata"]
            version, name = int(metadata["resourceVersion"]), metadata["name"]
            assert version > last
            assert (event.type == "ADDED") == (name not in model)
            last = version
            if event.type == "DELETED":
                del model[name]
            else:
                model[name] = version

    async def write() -> None:
        for _ in range(40):
            name, labels, chance = f"c{random.randrange(9)}", {"g": str(random.randrange(2))}, random.random()
            try:
                if chance < 0.4:
                    obj = config_map(name)
                    await registry.create(ADMIN, obj | {"metadata": obj["metadata"] | {"labels": labels}})
                elif chance < 0.8:
                    patch = {"metadata": {"labels": labels}, "data": {"x": str(chance)}}
                    await registry.patch(ADMIN, scheme.CONFIG_MAP, name, "default", patch)
                else:
                    await registry.delete(ADMIN, scheme.CONFIG_MAP, name, "default")
            except ApiError as refused:
                assert refused.code in (404, 409)

    followers = [asyncio.create_task(follow(labels)) for labels in models]
    await asyncio.gather(*(write() for _ in range(16)))
    shown = {}
    for labels in models:
        found = await registry.list(ADMIN, scheme.CONFIG_MAP, labels=labels)
        shown[labels] = {o["metadata"]["name"]: int(o["metadata"]["resourceVersion"]) for o in found.items}
    await registry.stop()  # Ends the watches, after all that has happened was delivered.
    await asyncio.wait_for(asyncio.gather(*followers), 5)
    assert models == shown
