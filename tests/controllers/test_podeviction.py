"""Pods without a controller leave a site by being deleted, and whoever had them is told."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaos.controllers import cluster as controller
from metaos.controllers.podeviction import alone, overdue
from metaos.resources import scheme
from metaos.resources.meta import EVICTED, Obj, annotations, deleting, format_time
from tests.controllers.continuum import cluster, events, running, until

T = 1_700_000_000.0


def pod(name: str, *, owner: bool = False, **spec: Any) -> Obj:
    metadata: dict[str, Any] = {"name": name, "namespace": "shop", "uid": f"uid-{name}"}
    if owner:
        metadata["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "w", "uid": "w", "controller": True}
        ]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "a", **spec}}


def taint(key: str = "maintenance", effect: str = "NoExecute", **more: Any) -> dict[str, Any]:
    return {"key": key, "effect": effect, **more}


@given(
    st.lists(st.sampled_from(["NoExecute", "NoSchedule", "PreferNoSchedule", "unreachable"]), max_size=3),
    st.booleans(),
    st.sampled_from([None, 10.0]),
    st.floats(0, 30),
)
def test_a_pod_leaves_what_it_does_not_tolerate_any_more(
    effects: list[str], tolerates: bool, seconds: float | None, age: float
) -> None:
    taints = [
        taint("meta-os.eu/unreachable") if e == "unreachable" else taint(effect=e, timeAdded=format_time(T)) for e in effects
    ]
    toleration = {"key": "maintenance", "operator": "Exists"} | ({} if seconds is None else {"tolerationSeconds": seconds})
    found = pod("p", tolerations=[toleration] if tolerates else [])
    why, until_ = overdue(found, cluster("a", taints=taints), T + age)
    concerned = "NoExecute" in effects
    assert bool(why) == (concerned and (not tolerates or (seconds is not None and age >= seconds)))
    assert until_ == (T + 10.0 if concerned and tolerates and seconds is not None and age < seconds else None)
    assert overdue(found | {"status": {"phase": "Succeeded"}}, cluster("a", taints=taints), T) == ("", None)


def test_what_has_a_controller_is_not_alone() -> None:
    assert alone(pod("p")) and not alone(pod("p", owner=True))
    assert not alone({**pod("p"), "metadata": {"name": "p", "namespace": "nemo-system"}})


async def test_a_taint_and_a_removal_delete_pods_that_nobody_makes_anew() -> None:
    for changed in (cluster("a", taints=[taint()]), _removed(cluster("a"))):
        objects = cluster("a"), pod("alone"), pod("owned", owner=True), pod("tolerant", tolerations=[{"operator": "Exists"}])
        async with running(controller.setup, objects=objects) as (client, clock):
            await clock.advance(1)
            assert client.find(scheme.POD, "alone", "shop") is not None
            client.seed(changed)
            await until(clock, lambda: "TaintManagerEviction" in events(client))
            await until(
                clock, lambda: deleting(client.find(scheme.POD, "alone", "shop") or {"metadata": {"deletionTimestamp": T}})
            )
            if "deletionTimestamp" not in changed["metadata"]:
                assert client.find(scheme.POD, "owned", "shop") and client.find(scheme.POD, "tolerant", "shop")


async def test_a_site_that_takes_pods_again_has_evicted_nobody() -> None:
    mirror = pod("owned", owner=True)
    mirror["metadata"]["annotations"] = {EVICTED: "2026-01-01T00:00:00Z"}
    async with running(controller.setup, objects=(cluster("a", unschedulable=True), mirror)) as (client, clock):
        await clock.advance(1)
        assert EVICTED in annotations(client.find(scheme.POD, "owned", "shop") or {})
        client.seed(cluster("a"))
        await until(clock, lambda: EVICTED not in annotations(client.find(scheme.POD, "owned", "shop") or {}))


def _removed(site: Obj) -> Obj:
    stamp = {"deletionTimestamp": format_time(T), "finalizers": [controller.FINALIZER]}
    return {**site, "metadata": site["metadata"] | stamp}


def _leaves(found: Obj | None) -> bool:
    return found is None or deleting(found)
