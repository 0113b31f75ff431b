"""Small worlds for tests of decisions, and hypothesis strategies that make any."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

import metaos.scheduler.ranking  # noqa: F401  (with numpy, so that no example waits for it)
from metaos.resources.devices import GPU, GPU_MILLI
from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import (
    ClusterInfo,
    Interruptible,
    Licence,
    Move,
    PolicyInfo,
    Quota,
    Snapshot,
    Spot,
    Spread,
    Taint,
    Target,
    Users,
    WorkloadInfo,
)

NOW = 1_700_000_000.0
GIB = 2**30
GROUPS = {"Deployment": "apps", "StatefulSet": "apps", "DaemonSet": "apps", "Job": "batch", "Pod": ""}


def site(name: str, **more: Any) -> ClusterInfo:
    """A ready site in the EU with room for 40 pods, 4 CPU and 8 GiB."""
    usual: dict[str, Any] = {
        "ready": True,
        "jurisdictions": frozenset({"EU"}),
        "cpu": 4000,
        "memory": 8 * GIB,
        "pods": 40,
        "capacity_cpu": 4000,
        "max_watts": 100.0,
        "carbon": 200.0,
        "cpu_hour": 0.03,
        "tier": "cloud",
        "region": f"region-{name}",
        "availability": 0.99,
    }
    return ClusterInfo(name=name, **(usual | more))


def workload(kind: str = "Deployment", **more: Any) -> WorkloadInfo:
    """One replica of 100m and 32 MiB, not placed yet."""
    mode = {"Deployment": "Divided", "DaemonSet": "Everywhere"}.get(kind, "Whole")
    usual: dict[str, Any] = {"uid": "u", "generation": 1, "replicas": 1, "cpu": 100, "memory": 32 << 20, "mode": mode}
    return WorkloadInfo(ref=ObjectRef(GROUPS[kind], kind, "shop", "web"), **(usual | more))


def world(*sites: ClusterInfo) -> Snapshot:
    return Snapshot(NOW, sites)


def residency(*laws: str) -> Target:
    return Target("residency", "IsOneOf", values=laws, hard=True, intent="stay")


names = st.sampled_from(["a", "b", "c", "d", "e"])
taints = st.builds(
    Taint,
    key=st.sampled_from(["k", "meta-os.eu/unreachable"]),
    value=st.just(""),
    effect=st.sampled_from(["NoSchedule", "NoExecute", "PreferNoSchedule"]),
    since=st.sampled_from([None, NOW - 100, NOW - 1]),
)


DEVICE = "example.com/device"
asks = [((GPU_MILLI, 300),), ((GPU_MILLI, 700),), ((GPU, 1),), ((DEVICE, 1), (GPU, 2)), ((DEVICE, 2),)]

mix = (((100, GIB, asks[0]), 40), ((300, GIB, asks[2]), 20), ((0, 0, asks[1]), 4))


quotas = st.builds(
    Quota,
    cpu=st.none() | st.integers(0, 500),
    memory=st.none() | st.integers(0, GIB),
    pods=st.none() | st.integers(0, 3),
    default_cpu=st.sampled_from([0, 50]),
    most_cpu=st.none() | st.integers(0, 400),
)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[ClusterInfo, ...]:
    """Up to five sites, in any order; some full, cordoned, lost or under another law."""
    return tuple(draw(_site(name)) for name in draw(st.lists(names, unique=True, max_size=5)))


@st.composite
def _site(draw: st.DrawFn, name: str) -> ClusterInfo:
    return site(
        name,
        ready=draw(st.sampled_from([True, True, True, False])),
        unschedulable=draw(st.sampled_from([False, False, True])),
        deleting=draw(st.sampled_from([False, False, False, True])),
        taints=tuple(draw(st.lists(taints, max_size=1))),
        jurisdictions=frozenset(draw(st.lists(st.sampled_from(["EU", "GB"]), max_size=2))),
        region=draw(st.sampled_from(["north", "south"])),
        cpu=draw(st.integers(0, 1000)),
        pods=draw(st.integers(0, 6)),
        cpu_requested=draw(st.integers(0, 400)),
        pods_requested=draw(st.integers(0, 2)),
        carbon=draw(st.none() | st.floats(10, 800)),
        cpu_hour=draw(st.none() | st.floats(0, 1)),
        runtime_classes=draw(st.sampled_from([None, frozenset(), frozenset({"wasm"})])),
        spot=draw(st.none() | st.builds(Spot, st.floats(0, 1), st.sampled_from([0.0, 0.5]))),
        licences=draw(st.dictionaries(st.just("db"), st.builds(Licence, st.just("db"), st.none() | st.floats(0, 9)))),
        latencies=draw(st.dictionaries(st.just("users"), st.floats(1, 200))),
        availability=draw(st.sampled_from([0.9, 0.99, 0.999])),
        devices=draw(st.sampled_from([{}, {}, {GPU: 1}, {GPU: 3, DEVICE: 1}])),
        quotas=draw(st.just({}) | st.dictionaries(st.sampled_from(["shop", "other"]), quotas, max_size=1)),
        devices_requested=draw(st.dictionaries(st.sampled_from(asks), st.integers(1, 3), max_size=2)),
    )


targets = st.one_of(
    st.builds(residency, st.sampled_from(["EU", "GB"])),
    st.builds(
        Target,
        name=st.sampled_from(["latency", "carbonIntensity", "emissions", "cost", "energy"]),
        condition=st.sampled_from(["IsLessThan", "IsGreaterThan", "Minimize"]),
        value=st.floats(0, 400),
        hard=st.booleans(),
        users=st.just(Users(("users",))),
        intent=st.just("i"),
        priority=st.integers(0, 100),
    ),
)
policies = st.builds(
    PolicyInfo,
    names=st.just(("p",)),
    allowed=st.none() | st.frozensets(names),
    preferred=st.frozensets(names, max_size=2),
    spread=st.just(()) | st.tuples(st.builds(Spread, by=st.sampled_from(["site", "region"]), min_groups=st.integers(1, 2))),
    weights=st.just({}) | st.dictionaries(names, st.floats(0.1, 9.0), max_size=3),
    failback=st.sampled_from(["WhenBetter", "Never"]),
    toleration_seconds=st.sampled_from([0.0, 30.0, 300.0]),
)


moves = st.builds(
    Move,
    time=st.sampled_from([NOW - 10, NOW - 400, NOW - 7200]),
    left=st.tuples(names),
    joined=st.tuples(names),
    forced=st.booleans(),
)


@st.composite
def workloads(draw: st.DrawFn, *, fresh: bool = False) -> WorkloadInfo:
    """Any kind, placed somewhere already or not."""
    kind = draw(st.sampled_from(["Deployment", "StatefulSet", "DaemonSet", "Job"]))
    current = {} if fresh else draw(st.dictionaries(names, st.integers(1, 3), max_size=2))
    return workload(
        kind,
        replicas=draw(st.integers(0, 4)),
        cpu=draw(st.sampled_from([0, 50, 100, 300])),
        devices=draw(st.sampled_from([(), (), (), *asks])),
        mix=draw(st.sampled_from([(), mix])),
        current=current,
        evicted=draw(st.frozensets(names, max_size=1)),
        moves=tuple(sorted(draw(st.lists(moves, max_size=3)), key=lambda m: m.time)),
        targets=tuple(draw(st.lists(targets, max_size=2))),
        policy=draw(policies),
        settled=kind == "Job",
        runtime_class=draw(st.sampled_from(["", "", "", "wasm", "other"])),
        licences=draw(st.sampled_from([(), (), (Licence("db", 1.0),), (Licence("db"), Licence("os", None, 8.0))])),
        interruptible=draw(st.sampled_from([None, None, Interruptible(2.0, False)])),
    )
