"""ResourceQuotas and LimitRanges: what is counted, what is refused, and what is given."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver.registry import Registry
from metaos.resources import quotas, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import CLUSTER_LABEL, Obj
from metaos.store.log import StoreUnreachable
from metaos.store.memory import MemoryStore
from tests.apiserver.conftest import ADMIN
from tests.apiserver.definitions import controllers
from tests.clock import FakeClock

POD = {
    "containers": [
        {"name": "c", "image": "x", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "1Gi"}}}
    ]
}


def workload(kind: scheme.Kind = scheme.DEPLOYMENT, name: str = "web", pod: Any = None, **spec: Any) -> Obj:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod or POD}
    return kind.empty(name, "default") | {"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template} | spec}


def quota(name: str = "q", spec: Any = None, **hard: str) -> Obj:
    names = {key.replace("__", "/").replace("_", "."): value for key, value in hard.items()}
    return scheme.RESOURCE_QUOTA.empty(name, "default") | {"spec": {"hard": names} | (spec or {})}


async def refused(registry: Registry, obj: Obj) -> str:
    with pytest.raises(ApiError) as error:
        await registry.create(ADMIN, obj)
    assert error.value.code == 403
    return error.value.message


# -- what counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "obj", "pods"),
    [
        (scheme.DEPLOYMENT, workload(replicas=3), 3),
        (scheme.DEPLOYMENT, workload(), 1),
        (scheme.STATEFUL_SET, workload(scheme.STATEFUL_SET, replicas=0), 0),
        (scheme.DAEMON_SET, workload(scheme.DAEMON_SET) | {"status": {"desiredNumberScheduled": 4}}, 4),
        (scheme.JOB, workload(scheme.JOB, parallelism=5, completions=2), 2),
        (scheme.JOB, workload(scheme.JOB, parallelism=5, suspend=True), 0),
        (scheme.JOB, workload(scheme.JOB) | {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}, 0),
        (scheme.CRON_JOB, workload(scheme.CRON_JOB), 0),
        (scheme.POD, scheme.POD.empty("p", "default") | {"spec": POD, "status": {"phase": "Succeeded"}}, 0),
        (scheme.REPLICA_SET, workload(scheme.REPLICA_SET) | {"metadata": {"ownerReferences": [{"controller": True}]}}, 0),
        (scheme.DEPLOYMENT, workload(replicas=3) | {"metadata": {"ownerReferences": [{"controller": True}]}}, 3),
        (scheme.STATEFUL_SET, workload(scheme.STATEFUL_SET) | {"metadata": {"ownerReferences": [{"controller": True}]}}, 1),
    ],
)  # fmt: skip
def test_how_many_pods_an_object_stands_for(kind: scheme.Kind, obj: Obj, pods: int) -> None:
    found = quotas.usage(kind, obj)
    assert found.get("pods", 0) == pods and found[f"count/{kind.resource}"] == 1
    if pods:
        assert found["requests.cpu"] == found["cpu"] == Fraction(pods, 10) and found["limits.memory"] == pods * 2**30


def test_the_largest_init_container_counts_beside_sidecars() -> None:
    def container(cpu: str, **more: str) -> Obj:
        return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **more}

    pod = {"containers": [container("1")], "initContainers": [container("3"), container("500m", restartPolicy="Always")]}
    assert quotas.resources_of(pod, "requests") == {"cpu": 3}
    assert quotas.resources_of({**pod, "initContainers": pod["initContainers"][1:]}, "requests") == {"cpu": Fraction(3, 2)}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2000)), max_size=6), st.integers(0, 12))
def test_no_order_of_writes_uses_more_than_is_allowed(writes: list[tuple[int, int]], allowed: int) -> None:
    """By the same arithmetic as at admission: what is let in never adds up to more."""
    held: list[Obj] = []
    limit = quota(pods=str(allowed), requests_cpu="4")
    for count, milli in writes:
        pod = {"containers": [{"name": "c", "resources": {"requests": {"cpu": f"{milli}m"}}}]}
        obj = workload(pod=pod, replicas=count)
        now = quotas.counted(limit, scheme.DEPLOYMENT, obj)
        used = {
            key: sum((quotas.counted(limit, scheme.DEPLOYMENT, o).get(key, Fraction(0)) for o in held), Fraction(0))
            for key in now
        }
        if all(used[key] + value <= quotas.hard(limit)[key] for key, value in now.items()):
            held.append(obj)
    assert sum(quotas.pods_of(scheme.DEPLOYMENT, o) for o in held) <= allowed


# -- quotas --------------------------------------------------------------------------------------------------


async def test_what_a_quota_refuses(registry: Registry) -> None:
    await registry.create(ADMIN, quota(pods="4", requests_cpu="1", count__configmaps="1"))
    await registry.create(ADMIN, workload(replicas=3))
    message = await refused(registry, workload(name="other", replicas=2))
    assert message == 'deployments.apps "other" is forbidden: exceeded quota: q, requested: pods=2, used: pods=3, limited: pods=4'
    with pytest.raises(ApiError, match="requested: pods=2, used: pods=3, limited: pods=4"):
        await registry.update(
            ADMIN, {"spec": {"replicas": 5}}, kind=scheme.DEPLOYMENT, name="web", namespace="default", subresource="scale"
        )
    await registry.patch(ADMIN, scheme.DEPLOYMENT, "web", "default", {"spec": {"replicas": 1}})
    await registry.create(ADMIN, workload(name="other", replicas=2))
    await registry.create(ADMIN, scheme.CONFIG_MAP.empty("one", "default"))
    assert "requested: count/configmaps=1, used: count/configmaps=1" in await refused(
        registry, scheme.CONFIG_MAP.empty("two", "default")
    )
    bare = {"containers": [{"name": "c", "image": "x"}]}
    assert "failed quota: q: must specify requests.cpu for: c" in await refused(registry, workload(name="bare", pod=bare))
    # What does not use more is let be, though there is too much.
    await registry.patch(ADMIN, scheme.RESOURCE_QUOTA, "q", "default", {"spec": {"hard": {"pods": "1"}}})
    await registry.patch(ADMIN, scheme.DEPLOYMENT, "web", "default", {"metadata": {"labels": {"x": "y"}}})
    await registry.patch(ADMIN, scheme.DEPLOYMENT, "other", "default", {"spec": {"replicas": 1}})


async def test_who_reports_or_changes_no_pods_is_let_be(registry: Registry) -> None:
    daemon = await registry.create(ADMIN, workload(scheme.DAEMON_SET, pod={"containers": [{"name": "c", "image": "x"}]}))
    await registry.create(ADMIN, quota(pods="2"))
    await registry.create(ADMIN, limits(defaultRequest={"cpu": "1"}))
    status = {"desiredNumberScheduled": 5, "currentNumberScheduled": 5, "numberMisscheduled": 0, "numberReady": 5}
    await registry.update(ADMIN, {**daemon, "status": status}, subresource="status")
    changed = await registry.patch(ADMIN, scheme.DAEMON_SET, "web", "default", {"metadata": {"labels": {"a": "b"}}})
    assert changed["spec"] == daemon["spec"]


async def test_no_label_makes_a_pod_count_for_nothing(registry: Registry) -> None:
    await registry.create(ADMIN, quota(pods="1"))
    pod = scheme.POD.empty("p", "default") | {"spec": POD}
    pod["metadata"]["labels"] = {CLUSTER_LABEL: "madrid"}
    await registry.create(ADMIN, pod)
    assert "exceeded quota" in await refused(registry, {**pod, "metadata": {**pod["metadata"], "name": "other"}})


async def test_a_mirror_counts_for_nothing_until_it_is_none(registry: Registry) -> None:
    await registry.create(ADMIN, quota(count__pods="0"))
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": True}
    pod = scheme.POD.empty("p", "default") | {"spec": {**POD, "nodeName": "madrid"}}
    pod["metadata"] |= {"labels": {CLUSTER_LABEL: "madrid"}, "ownerReferences": [owner]}
    await registry.create(ADMIN, pod)
    with pytest.raises(ApiError, match="exceeded quota"):
        await registry.patch(ADMIN, scheme.POD, "p", "default", {"metadata": {"labels": {CLUSTER_LABEL: None}}})


async def test_those_who_write_at_once_share_what_is_there(registry: Registry) -> None:
    await registry.create(ADMIN, quota(pods="5"))
    made = await asyncio.gather(
        *(registry.create(ADMIN, workload(name=f"w{i}", replicas=2)) for i in range(10)), return_exceptions=True
    )
    assert sum(not isinstance(each, BaseException) for each in made) == 2
    assert all(isinstance(each, dict) or "exceeded quota" in str(each) for each in made)


async def test_scopes(registry: Registry) -> None:
    await registry.create(ADMIN, quota("best", {"scopes": ["BestEffort"]}, pods="1"))
    selector = {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}
    await registry.create(ADMIN, quota("high", {"scopeSelector": selector}, pods="0"))
    await registry.create(ADMIN, workload(replicas=9))
    bare = {"containers": [{"name": "c", "image": "x"}]}
    await registry.create(ADMIN, workload(name="bare", pod=bare))
    assert "exceeded quota: best" in await refused(registry, workload(name="bare-too", pod=bare))
    await registry.create(ADMIN, scheme.PRIORITY_CLASS.empty("high") | {"value": 5})
    assert "exceeded quota: high" in await refused(registry, workload(name="high", pod=POD | {"priorityClassName": "high"}))


async def test_the_status_follows(registry: Registry) -> None:
    from metaos.clock import SystemClock

    async with controllers(registry, SystemClock()):
        await registry.create(ADMIN, quota(pods="4", limits_memory="10Gi", count__configmaps="3"))
        await registry.create(ADMIN, workload(replicas=3))
        await registry.create(ADMIN, scheme.CONFIG_MAP.empty("one", "default"))
        for _ in range(500):
            status = (await registry.get(ADMIN, scheme.RESOURCE_QUOTA, "q", "default")).get("status") or {}
            if status.get("used") == {"pods": "3", "limits.memory": "3Gi", "count/configmaps": "1"}:
                break
            await asyncio.sleep(0.01)
        assert status["used"] == {"pods": "3", "limits.memory": "3Gi", "count/configmaps": "1"}, status
        assert status["hard"] == {"pods": "4", "limits.memory": "10Gi", "count/configmaps": "3"}


# -- limit ranges --------------------------------------------------------------------------------------------


def limits(**item: Any) -> Obj:
    return scheme.LIMIT_RANGE.empty("l", "default") | {"spec": {"limits": [{"type": "Container"} | item]}}


async def test_what_a_limit_range_gives_and_refuses(registry: Registry) -> None:
    made = await registry.create(ADMIN, limits(max={"memory": "1Gi"}, min={"cpu": "50m"}, defaultRequest={"memory": "64Mi"}))
    item = made["spec"]["limits"][0]
    assert item["default"] == {"memory": "1Gi"} and item["defaultRequest"] == {"memory": "64Mi", "cpu": "50m"}
    bare = {"containers": [{"name": "c", "image": "x"}]}
    found = await registry.create(ADMIN, workload(pod=bare))
    resources = found["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources == {"limits": {"memory": "1Gi"}, "requests": {"memory": "64Mi", "cpu": "50m"}}
    much = {
        "containers": [
            {"name": "c", "image": "x", "resources": {"limits": {"memory": "2Gi", "cpu": "10m"}, "requests": {"cpu": "10m"}}}
        ]
    }
    message = await refused(registry, scheme.POD.empty("p", "default") | {"spec": much})
    assert message == (
        'pods "p" is forbidden: [minimum cpu usage per Container is 50m, but request is 10m, '
        "maximum memory usage per Container is 1Gi, but limit is 2Gi]"
    )


def test_of_pods_claims_and_ratios() -> None:
    def said(kind: scheme.Kind, obj: Obj, **item: Any) -> list[str]:
        return quotas.problems([{"spec": {"limits": [item]}}], kind, obj)

    two = {"containers": [*POD["containers"], *POD["containers"]]}
    assert said(scheme.DEPLOYMENT, workload(pod=two), type="Pod", max={"memory": "1Gi"}) == [
        "maximum memory usage per Pod is 1Gi, but limit is 2Gi"
    ]
    assert said(scheme.DEPLOYMENT, workload(), type="Container", maxLimitRequestRatio={"cpu": "1"}) == [
        "cpu max limit to request ratio per Container is 1, but provided ratio is 2.000000"
    ]
    claim = {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}
    assert said(scheme.PERSISTENT_VOLUME_CLAIM, claim, type="PersistentVolumeClaim", min={"storage": "2Gi"}) == [
        "minimum storage usage per PersistentVolumeClaim is 2Gi, but request is 1Gi"
    ]
    assert said(scheme.SERVICE, {}, type="Container", max={"cpu": "1"}) == []


async def test_a_quota_that_is_made_anew_counts_anew(registry: Registry) -> None:
    def notes(name: str) -> Obj:
        return scheme.CONFIG_MAP.empty(name, "default")

    await registry.create(ADMIN, quota(count__configmaps="2"))
    await registry.create(ADMIN, notes("a"))
    await registry.delete(ADMIN, scheme.RESOURCE_QUOTA, "q", "default")
    await registry.create(ADMIN, quota(count__configmaps="2", configmaps="1"))
    assert "used: configmaps=1" in await refused(registry, notes("b"))
    await registry.delete(ADMIN, scheme.RESOURCE_QUOTA, "q", "default")
    await registry.create(ADMIN, quota(count__configmaps="2"))
    await registry.create(ADMIN, notes("b"))
    assert "count/configmaps=2" in await refused(registry, notes("c"))


@pytest.mark.parametrize(
    ("obj", "said"),
    [
        (quota(podz="3"), r"spec.hard\[podz\].*is nothing that is counted: for example pods"),
        (quota(pods="-3"), r"spec.hard\[pods\].*must be greater than or equal to 0"),
        (quota(spec={"scopes": ["Galaxy"]}, pods="3"), r"spec.scopes\[0\].*supported values: \"BestEffort\""),
        (limits(type="Contain"), r"spec.limits\[0\].type.*supported values: \"Container\""),
        (limits(type="Pod", default={"cpu": "1"}), r"spec.limits\[0\].default: Forbidden"),
        (limits(defaultRequest={"cpu": "2"}, max={"cpu": "1"}), r"defaultRequest\[cpu\].*must be at most max, which is 1"),
        (limits(min={"cpu": "2"}, max={"cpu": "1500m"}), r"min\[cpu\].*must be at most max, which is 1500m"),
    ],
)
async def test_what_would_count_nothing_or_admit_nothing_is_refused(registry: Registry, obj: Obj, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        await registry.create(ADMIN, obj)


async def test_what_is_yet_to_come_may_be_counted(registry: Registry) -> None:
    hard = {"count/sensors.example.com": "1", "requests.nvidia.com/gpu": "0", "services.nodeports": "2", "requests.cpu": 2}
    made = await registry.create(ADMIN, quota(spec={"hard": hard, "scopes": ["BestEffort"]}))
    assert set(made["spec"]["hard"]) == set(hard)


async def test_what_is_written_is_acknowledged_though_the_database_is_lost_right_after() -> None:
    class Lost(MemoryStore):
        lost = False

        async def revision(self) -> int:
            if self.lost:
                raise StoreUnreachable("the database is away")
            return await super().revision()

        async def create(self, key: str, value: bytes) -> int:
            found = await super().create(key, value)
            self.lost = "/last" in key
            return found

    store = Lost()
    registry = Registry(store, FakeClock(), Random(1), shared=True)
    await registry.start()
    await registry.create(ADMIN, quota(count__configmaps="2"))
    assert (await registry.create(ADMIN, scheme.CONFIG_MAP.empty("last", "default")))["metadata"]["uid"]
    store.lost = False
    assert await registry.get(ADMIN, scheme.CONFIG_MAP, "last", "default")
    await registry.stop()
