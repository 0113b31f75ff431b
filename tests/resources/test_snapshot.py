"""Reading API objects into decision snapshots."""

from __future__ import annotations

from typing import Any

from metaos.resources.measures import computing, latency, watts
from metaos.resources.meta import API_VERSION, Obj
from metaos.resources.reading import cluster_info, concerns, merge_policies, targets_of, workload_info
from metaos.resources.snapshot import Users

CLUSTER: Obj = {
    "apiVersion": API_VERSION,
    "kind": "Cluster",
    "metadata": {"name": "edge", "labels": {"rack": "7"}},
    "spec": {
        "tier": "edge",
        "location": {"region": "europe-west9", "country": "FR"},
        "electricity": {"zone": "FR", "carbonIntensity": 90, "pue": 1.5},
        "jurisdictions": ["EU", "FR"],
        "capacity": {"cpu": "4", "memory": "8Gi", "pods": "40"},
        "power": {"idleWatts": 20, "maxWatts": 100},
        "price": {"cpuHour": 0.03, "memoryGiBHour": 0.004},
        "latencies": [{"region": "x", "milliseconds": 24}],
        "taints": [{"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}],
    },
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}


def obj(kind: str = "Deployment", **spec: Any) -> Obj:
    container = {"name": "c", "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}}}
    template = {"spec": {"containers": [container], "nodeSelector": {"disk": "ssd"}}}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"replicas": 2, "template": template, **spec},
    }


def rule(kind: str, name: str = "r", **spec: Any) -> Obj:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def test_a_site_is_read_with_its_units() -> None:
    found = cluster_info(CLUSTER, (100, 200, 3))
    assert found.ready and found.jurisdictions == {"EU", "FR"} and found.labels["rack"] == "7"
    assert (found.cpu, found.memory, found.pods) == (4000, 8 << 30, 40)
    assert (found.cpu_requested, found.memory_requested, found.pods_requested) == (100, 200, 3)
    assert found.carbon == 90 and found.taints[0].since == 1767225600.0
    assert found.labels["topology.kubernetes.io/region"] == "europe-west9"


def test_measured_carbon_outdoes_the_stated_one() -> None:
    status = CLUSTER["status"] | {"carbon": {"intensity": 50.0, "forecast": [50.0, 60.0]}}
    found = cluster_info(CLUSTER | {"status": status})
    assert found.carbon == 50.0 and found.forecast == (50.0, 60.0)


def test_power_price_and_latency() -> None:
    found = cluster_info(CLUSTER)
    assert watts(found, 1000) == (100 - 20) / 4 * 1.5
    assert computing(found, 1000, 1 << 30) == 0.03 + 0.004
    assert latency(found, Users(("x",))) == 24 and latency(found, Users(("x", "unknown"))) is None


def test_a_workload_is_read_with_what_concerns_it() -> None:
    targets = [{"targets": [{"name": "residency", "condition": "IsOneOf", "value": ["EU"]}]}]
    found = workload_info(
        obj(),
        current={"edge": 2},
        intents=[rule("Intent", expectations=targets), rule("Intent", workloads={"refs": []}, expectations=[])],
        policies=[rule("PlacementPolicy", division={"mode": "Whole"})],
    )
    assert (found.replicas, found.cpu, found.memory, found.mode) == (2, 100, 32 << 20, "Whole")
    assert found.node_selector == {"disk": "ssd"} and not found.pinned
    (target,) = found.targets
    assert target.hard and target.values == ("EU",)


def test_claimed_volumes_pin_it_once_it_is_placed() -> None:
    stateful = obj("StatefulSet", volumeClaimTemplates=[{}])
    assert not workload_info(stateful).pinned
    assert workload_info(stateful, current={"edge": 1}).pinned


def test_rules_concern_by_reference_by_label_or_all() -> None:
    web = obj()
    assert concerns(rule("Intent"), web)
    assert concerns(rule("Intent", workloads={"refs": [{"kind": "Deployment", "name": "web"}]}), web)
    assert not concerns(rule("Intent", workloads={"refs": [{"kind": "Job", "name": "web"}]}), web)
    assert concerns(rule("Intent", workloads={"selector": {"matchLabels": {"app": "web"}}}), web)
    assert not concerns(rule("Intent", workloads={"selector": {"matchLabels": {"app": "db"}}}), web)
    elsewhere = rule("Intent")
    elsewhere["metadata"]["namespace"] = "other"
    assert not concerns(elsewhere, web)


def test_policies_together_are_the_stricter_of_both() -> None:
    found = merge_policies(
        [
            rule("PlacementPolicy", "b", clusters={"allowed": ["x", "y"]}, tolerationSeconds=30),
            rule("PlacementPolicy", "a", clusters={"allowed": ["y", "z"]}, migration={"budgetPerHour": 2}),
        ]
    )
    assert found.names == ("a", "b") and found.allowed == {"y"}
    assert (found.toleration_seconds, found.budget_per_hour) == (30.0, 2)
    assert (found.minimum_improvement, found.cool_down_seconds) == (5.0, 300.0), "where nothing is said"


def test_a_policy_that_says_nothing_of_moves_changes_nothing_of_what_another_says() -> None:
    quick = rule("PlacementPolicy", "a", migration={"coolDownSeconds": 5, "budgetPerHour": 50, "minimumImprovement": 1})
    found = merge_policies([quick, rule("PlacementPolicy", "b", division={"weights": {"x": 2, "y": 0}})])
    assert (found.minimum_improvement, found.budget_per_hour, found.cool_down_seconds) == (1.0, 50, 5.0)
    assert found.weights == {"x": 2.0}


def test_contexts_of_an_expectation_hold_for_all_its_targets() -> None:
    contexts = [{"name": "usersIn", "value": ["x", "y"]}]
    targets = [{"name": "latency", "condition": "IsLessThan", "value": 0.04, "unit": "s"}]
    (found,) = targets_of(rule("Intent", expectations=[{"contexts": contexts, "targets": targets}]))
    assert (found.value, found.users) == (40.0, Users(("x", "y")))
