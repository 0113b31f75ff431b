"""Each filter: what it rejects, what it lets pass, and that its reason names the numbers."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.resources.snapshot import ClusterInfo, PolicyInfo, Taint, Target, Users, WorkloadInfo
from metaos.scheduler import filters
from metaos.scheduler.filters import FILTERS, Filter
from tests.scheduler.worlds import NOW, residency, site, workload, world


def reason(filter: Filter, what: WorkloadInfo, where: ClusterInfo) -> str | None:
    return filter(world(where), what, where)


def bound(name: str, condition: str, value: float, **more: Any) -> WorkloadInfo:
    return workload(targets=(Target(name, condition, value, hard=True, intent="i", **more),))


LOST = Taint("meta-os.eu/unreachable", "", "NoExecute", NOW - 10)

REJECTED: list[tuple[Filter, WorkloadInfo, ClusterInfo, str]] = [
    (filters.residency, workload(targets=(residency("EU"),)), site("a", jurisdictions=frozenset({"GB"})), "the site is in GB"),
    (filters.residency, workload(targets=(residency("EU"),)), site("a", jurisdictions=frozenset()), "no stated jurisdiction"),
    (filters.leaving, workload(), site("a", deleting=True), "being removed"),
    (filters.leaving, workload(evicted=frozenset("a")), site("a", unschedulable=True), "being drained"),
    (filters.cordon, workload(), site("a", unschedulable=True), "cordoned"),
    (filters.health, workload(), site("a", ready=False), "does not answer"),
    (filters.taints, workload(), site("a", taints=(Taint("k", "v", "NoSchedule"),)), "k=v:NoSchedule"),
    (filters.taints, workload(current={"a": 1}), site("a", taints=(Taint("k", "", "NoExecute"),)), "k:NoExecute"),
    (filters.taints, workload(current={"a": 1}), site("a", taints=(LOST,)), "does not answer"),
    (
        filters.selectors,
        workload(node_selector={"disk": "ssd"}),
        site("a", labels={"disk": "hdd"}),
        "disk=ssd, and the site has hdd",
    ),
    (
        filters.runtime_class,
        workload(runtime_class="wasm"),
        site("a", runtime_classes=frozenset({"micropython"})),
        "want runtimeClassName wasm, and the site has micropython",
    ),
    (filters.runtime_class, workload(runtime_class="wasm"), site("a", runtime_classes=frozenset()), "the site has none"),
    (filters.policy, workload(policy=PolicyInfo(names=("p",), allowed=frozenset({"b", "c"}))), site("a"), "allows only b, c"),
    (filters.local_data, workload(current={"b": 1}, pinned=True, local_data=True), site("a"), "its data is on b"),
    (filters.bounds, bound("latency", "IsLessThan", 40, users=Users(("x",))), site("a", latencies={"x": 55.5}), "55.5 ms"),
    (filters.bounds, bound("latency", "IsLessThan", 40, users=Users(("x",))), site("a"), "not known here"),
    (
        filters.bounds,
        bound("carbonIntensity", "IsLessThan", 100),
        site("a", carbon=212.0),
        "212 gCO2eq/kWh, and must be below 100",
    ),
    (filters.bounds, bound("energy", "IsLessThan", 1), site("a", max_watts=100.0), "power is 2.5 W"),
    (filters.bounds, bound("cost", "IsLessThan", 0.001), site("a", cpu_hour=0.1), "cost is 0.01 EUR/h"),
    (filters.capacity, workload(cpu=500), site("a", cpu=1000, cpu_requested=700), "needs 500m CPU, and 300m of 1 is free"),
    (filters.capacity, workload(memory=2 << 30), site("a", memory=1 << 30), "needs 2048 MiB of memory, and 1024 MiB"),
    (filters.capacity, workload(), site("a", pods=3, pods_requested=3), "already has 3 of at most 3 pods"),
]


@pytest.mark.parametrize(("filter", "what", "where", "text"), REJECTED, ids=lambda v: getattr(v, "__name__", ""))
def test_rejects_with_its_reason(filter: Filter, what: WorkloadInfo, where: ClusterInfo, text: str) -> None:
    assert text in (reason(filter, what, where) or "")


@pytest.mark.parametrize("found", FILTERS, ids=lambda f: f[0])
def test_an_ordinary_site_passes_every_filter(found: tuple[str, Filter]) -> None:
    assert reason(found[1], workload(), site("a")) is None


@pytest.mark.parametrize("classes", [None, frozenset({"wasm"})])
def test_a_kubernetes_cluster_knows_its_own_runtime_classes(classes: frozenset[str] | None) -> None:
    assert reason(filters.runtime_class, workload(runtime_class="wasm"), site("a", runtime_classes=classes)) is None


def test_what_runs_there_outlives_cordon_silence_and_no_schedule() -> None:
    where = site("a", unschedulable=True, ready=False, taints=(Taint("k", "", "NoSchedule"),))
    for filter in (filters.cordon, filters.health, filters.taints, filters.leaving):
        assert reason(filter, workload(current={"a": 1}), where) is None


@pytest.mark.parametrize(
    ("toleration", "holds"),
    [
        ({"key": "k", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "k", "value": "v"}, True),
        ({"key": "k", "value": "other"}, False),
        ({"key": "other", "operator": "Exists"}, False),
        ({"key": "k", "operator": "Exists", "effect": "NoSchedule"}, False),
        ({"key": "k", "operator": "Exists", "tolerationSeconds": 60}, True),
        ({"key": "k", "operator": "Exists", "tolerationSeconds": 5}, False),
    ],
)
def test_tolerations_are_those_of_kubernetes(toleration: dict[str, Any], holds: bool) -> None:
    assert filters.tolerated(Taint("k", "v", "NoExecute", NOW - 10), (toleration,), NOW) is holds


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ({"key": "tier", "operator": "In", "values": ["edge"]}, True),
        ({"key": "tier", "operator": "NotIn", "values": ["edge"]}, False),
        ({"key": "gpu", "operator": "DoesNotExist"}, True),
        ({"key": "cores", "operator": "Gt", "values": ["4"]}, True),
    ],
)
def test_required_node_affinity_is_over_the_sites_labels(rule: dict[str, Any], holds: bool) -> None:
    what = workload(node_affinity=({"matchExpressions": [rule]},))
    assert (reason(filters.selectors, what, site("a", labels={"tier": "edge", "cores": "8"})) is None) is holds


def test_an_unknown_carbon_intensity_does_not_pass_a_hard_bound() -> None:
    assert "not known" in (reason(filters.bounds, bound("carbonIntensity", "IsLessThan", 100), site("a", carbon=None)) or "")


def test_a_preferred_bound_rejects_nothing() -> None:
    what = workload(targets=(Target("carbonIntensity", "IsLessThan", 1.0, intent="i"),))
    assert reason(filters.bounds, what, site("a")) is None
