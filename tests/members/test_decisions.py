"""What is decided about a member's objects: order, ownership, drift, health, capacity, and what is said of it."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metaos.members.health import CURRENT, FAILED, IN_PROGRESS, TERMINATING, health
from metaos.members.manifests import (
    ADOPTED,
    MEMBER_LABEL,
    TRACKING,
    USE,
    WORK_LABEL,
    is_skipped,
    phase,
    prepared,
    refusal,
    tracking,
)
from metaos.members.metrics import measured
from metaos.members.nodes import totals
from metaos.members.others import taken_by
from metaos.members.ownership import (
    Action,
    Applied,
    Live,
    closed,
    desired_step,
    found_step,
    is_ours,
    own_fields,
    unwanted_step,
    values,
)
from metaos.members.quotas import left_by_namespace
from metaos.members.refusals import refusal_of
from metaos.members.status import Outcome, Seen, work_status
from metaos.resources import quantity
from metaos.resources.errors import ApiError
from metaos.resources.meta import ADOPT, Obj, labels, ref

KINDS = [
    ("", "Namespace"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("", "ServiceAccount"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("", "Secret"),
    ("", "ConfigMap"),
    ("", "Service"),
    ("apps", "Deployment"),
    ("batch", "Job"),
    ("example.com", "Database"),
    ("example.com", "Service"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
]
texts = st.sampled_from(["a", "b", "c-1"])
maps = st.dictionaries(texts, texts, max_size=3)


@st.composite
def objects(draw: st.DrawFn) -> Obj:
    group, kind = draw(st.sampled_from(KINDS))
    metadata: dict[str, Any] = {
        "name": draw(texts),
        "labels": draw(maps),
        "annotations": draw(maps),
        "uid": "hub",
        "generation": 4,
    }
    if draw(st.booleans()):
        metadata["namespace"] = draw(texts)
    spec = draw(st.dictionaries(texts, st.integers(0, 2) | maps, max_size=3))
    return {"apiVersion": f"{group}/v1" if group else "v1", "kind": kind, "metadata": metadata, "spec": spec, "status": {"x": 1}}


def test_namespaces_and_definitions_come_first_webhooks_last_and_custom_kinds_after_workloads() -> None:
    order = [phase(*kind) for kind in KINDS if kind != ("example.com", "Service")]
    assert order == sorted(order) and phase("example.com", "Service") == phase("example.com", "Database")
    assert (
        phase("apps", "Deployment")
        < phase("example.com", "Database")
        < phase("admissionregistration.k8s.io", "MutatingWebhookConfiguration")
    )


@settings(max_examples=30)
@given(objects())
def test_what_is_sent_says_what_the_user_said_and_whose_it_is_and_nothing_of_the_hub(obj: Obj) -> None:
    before = copy.deepcopy(obj)
    sent = prepared(obj, "m1", "w1")
    assert obj == before, "a Work is not changed"
    assert set(sent["metadata"]) <= {"name", "namespace", "labels", "annotations"} and "status" not in sent
    assert is_ours(sent, "m1") and not is_ours(sent, "m2")
    assert sent["metadata"]["labels"].items() >= obj["metadata"]["labels"].items()
    assert sent["spec"] == obj["spec"] and sent["metadata"]["labels"][WORK_LABEL] == "w1"


@settings(max_examples=30)
@given(objects(), objects())
def test_what_controllers_copy_of_our_labels_and_annotations_is_not_ours(obj: Obj, other: Obj) -> None:
    sent = prepared(obj, "m1", "w1")
    copied = other | {"metadata": other["metadata"] | {k: sent["metadata"][k] for k in ("labels", "annotations")}}
    assert is_ours(copied, "m1") == (ref(copied) == ref(obj))


def test_what_belongs_to_the_hub_or_to_newer_servers_alone_is_left_out() -> None:
    def sent(api_version: str, kind: str, **spec: Any) -> Any:
        return prepared({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, "spec": spec}, "m", "w")["spec"]

    assert sent("v1", "Service", clusterIP="10.0.0.1", clusterIPs=["10.0.0.1"], ipFamilies=["IPv4"], ports=[]) == {"ports": []}
    own = {"clusterIP": "None", "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}
    assert sent("v1", "Service", **own) == {"clusterIP": "None"}
    assert sent("v1", "Service", **own, selector={"a": "b"})["ipFamilyPolicy"] == "RequireDualStack"
    port = {"port": 80, "nodePort": 30080}
    assert sent("v1", "Service", type="NodePort", ports=[port])["ports"] == [port]
    balanced = sent(
        "v1", "Service", type="LoadBalancer", allocateLoadBalancerNodePorts=True, healthCheckNodePort=30081, ports=[port]
    )
    assert balanced == {"type": "LoadBalancer", "ports": [{"port": 80}]}
    assert sent("v1", "Service", clusterIP="None") == {"clusterIP": "None"}
    assert sent("v1", "Service", internalTrafficPolicy="Cluster") == {}
    assert sent("v1", "Service", internalTrafficPolicy="Local") == {"internalTrafficPolicy": "Local"}
    assert sent("v1", "Pod", nodeName="site", containers=[]) == {"containers": []}
    made = {"controller-uid": "u", "batch.kubernetes.io/controller-uid": "u", "job-name": "x", "mine": "y"}
    job = {"selector": {"matchLabels": {"controller-uid": "u"}}, "manualSelector": False, "suspend": False}
    assert sent("batch/v1", "Job", **job, template={"metadata": {"labels": made}}) == {
        "template": {"metadata": {"labels": {"mine": "y"}}}
    }
    assert sent("batch/v1", "Job", suspend=True) == {"suspend": True}
    manual = {"manualSelector": True, "selector": {"matchLabels": {"a": "b"}}}
    assert sent("batch/v1", "Job", **manual) == manual
    claims = [{"metadata": {"name": "d"}, "status": {"phase": "Pending"}}]
    assert sent("apps/v1", "StatefulSet", volumeClaimTemplates=claims) == {"volumeClaimTemplates": [{"metadata": {"name": "d"}}]}


def test_the_clusters_own_namespaces_are_not_for_a_hub_to_write_to() -> None:
    def manifest(kind: str, where: str) -> Obj:
        key = "name" if kind == "Namespace" else "namespace"
        return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "x", key: where}}

    assert refusal(manifest("ConfigMap", "kube-system"))[0] == refusal(manifest("Namespace", "kube-public"))[0] == "Refused"
    assert refusal(manifest("ConfigMap", "shop")) == ("", "")
    assert refusal({"kind": "ConfigMap"})[0] == "Invalid"


def test_endpoints_of_other_sites_are_not_carried() -> None:
    slices: Obj = {"kind": "EndpointSlice", "metadata": {"name": "s", "labels": {"meta-os.eu/cluster": "edge"}}}
    assert is_skipped(slices) and not is_skipped({"kind": "EndpointSlice", "metadata": {"name": "s"}})


# -- ownership and drift -----------------------------------------------------------------------------------------


def live_of(obj: Obj, fields: Any, **metadata: Any) -> Live:
    entry = {"manager": "nemo", "operation": "Apply", "fieldsV1": fields, "time": "2026-01-01T00:00:00Z"}
    others = [{"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {"f:status": {}}}]
    return Live.of(obj | {"metadata": obj["metadata"] | {"uid": "u1", "managedFields": [*others, entry]} | metadata})


trees = st.recursive(
    st.just({}), lambda inner: st.dictionaries(st.sampled_from(["f:a", "f:b", "f:c"]), inner, max_size=3), max_leaves=6
)


@settings(max_examples=30)
@given(objects(), trees, trees, st.dictionaries(texts, texts))
def test_drift_is_another_set_of_our_fields_and_nothing_else(obj: Obj, ours: Any, now: Any, defaulted: dict[str, str]) -> None:
    applied = Applied("d", live_of(obj, ours).fields)
    more = obj | {"spec": obj["spec"] | {f"x-{k}": v for k, v in defaulted.items()}, "status": {"replicas": 3}}
    assert desired_step(live_of(more, ours), applied, "d") is Action.NOTHING, "what a server fills in is nobody's drift"
    assert (desired_step(live_of(obj, now), applied, "d") is Action.NOTHING) == (now == ours)
    assert desired_step(live_of(obj, ours), applied, "another") is Action.APPLY
    assert desired_step(live_of(obj, ours), None, "d") is Action.APPLY


def test_what_stands_in_our_fields_is_compared_and_nothing_beside_them() -> None:
    def pod(*containers: Any, **spec: Any) -> Obj:
        return {"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 2, "containers": list(containers)} | spec}

    body = pod({"name": "main", "image": "x", "resources": {"limits": {"cpu": "0.5"}}})
    there = pod({"name": "main", "image": "x", "resources": {"limits": {"cpu": "500m"}}, "terminationMessagePath": "/dev"})
    same = values(body, there)
    sidecar = {"name": "proxy", "image": "y"}
    assert values(body, pod(sidecar, *there["spec"]["containers"], restartPolicy="Always") | {"status": {"replicas": 1}}) == same
    assert values(body, there | {"metadata": {"labels": {"a": "b", "theirs": "c"}}}) == same
    assert values(body, pod(*there["spec"]["containers"], replicas=1)) != same, "servers before 1.22 do not note who scales"
    assert values(body, pod({**there["spec"]["containers"][0], "image": "z"})) != same
    assert values(body, pod()) != same


@settings(max_examples=30)
@given(objects(), st.sampled_from(["m1", "m2", ""]), st.booleans(), st.booleans(), st.booleans())
def test_no_step_ever_touches_what_is_not_ours_unless_its_owner_says_so(
    obj: Obj, whose: str, known: bool, adopt: bool, ending: bool
) -> None:
    wanted = obj | {"metadata": obj["metadata"] | {"annotations": {ADOPT: "true"}}}  # Of the hub's users, which says nothing.
    there = prepared(obj, whose, "w") if whose else copy.deepcopy(obj)
    there["metadata"]["annotations"] |= {ADOPT: "true"} if adopt else {}
    there["metadata"] |= {"uid": "u1"} | ({"deletionTimestamp": "2026-01-01T00:00:00Z"} if ending else {})
    step = found_step(wanted, there, "m1", "u1" if known else "")
    if whose == "m1" or known:
        assert step is (Action.WAIT if ending else Action.APPLY)
    elif obj["kind"] == "Namespace":
        assert step is Action.REFUSE
        there["metadata"]["labels"] = {USE: "true"}
        assert found_step(wanted, there, "m1", "") is Action.NOTHING, "what its owner has opened is used as it is"
    elif adopt:
        assert step is (Action.WAIT if ending else Action.ADOPT)
    else:
        assert step is Action.REFUSE
    assert found_step(wanted, None, "m1", "") is Action.CREATE


@given(
    st.fixed_dictionaries(
        {}, optional={USE: st.sampled_from(["true", "false", ""]), MEMBER_LABEL: st.sampled_from(["m1", "m2"]), "team": texts}
    ),
    st.sampled_from(["", "m1:/Namespace:/shop", "m2:/Namespace:/shop", "m1:/Namespace:/other", "m1:/ConfigMap:/shop"]),
    st.sampled_from(["", "true"]),
)
def test_a_namespace_is_open_to_who_made_it_and_where_its_owner_says_so(said: dict[str, str], track: str, written: str) -> None:
    metadata = {"name": "shop", "labels": said, "annotations": {TRACKING: track, USE: written}}
    found = closed({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, "m1")
    sent = prepared({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, "m1", "w")
    assert USE not in labels(sent), "who writes at the hub is not the cluster's owner"
    made = said.get(MEMBER_LABEL) == "m1" and track == "m1:/Namespace:/shop"
    assert (found == "") == (made or said.get(USE) == "true")
    assert not found or ("'shop'" in found and f"kubectl label namespace shop {USE}=true" in found)


@settings(max_examples=30)
@given(objects(), st.booleans(), st.booleans(), st.booleans())
def test_only_what_was_made_is_deleted_and_only_when_the_hub_has_said_so(
    obj: Obj, sure: bool, adopted: bool, ending: bool
) -> None:
    more = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if ending else {}
    there = prepared(obj, "m1", "w")
    there["metadata"]["annotations"] |= {ADOPTED: "true"} if adopted else {}
    live = live_of(there, {}, **more)
    step = unwanted_step(obj["kind"], live, sure=sure)
    if step is Action.DELETE:
        assert sure and not adopted and obj["kind"] != "Namespace" and not ending
    if step is Action.RELEASE:
        assert sure and adopted
    assert unwanted_step(obj["kind"], None, sure=True) is Action.NOTHING


def test_only_what_nemo_applied_counts_as_its_fields() -> None:
    entries = [
        {"manager": "nemo", "operation": "Update", "fieldsV1": {"f:x": {}}},
        {"manager": "nemo", "operation": "Apply", "subresource": "status", "fieldsV1": {"f:y": {}}},
    ]
    assert own_fields({"metadata": {"managedFields": entries}}) == ""
    ours = {"manager": "nemo", "operation": "Apply", "fieldsV1": {"f:z": {}}}
    assert own_fields({"metadata": {"managedFields": [*entries, ours]}}) == '{"f:z":{}}'
    assert tracking("m", ref({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "w", "namespace": "s"}})) == (
        "m:apps/Deployment:s/w"
    )
    assert {MEMBER_LABEL, TRACKING, ADOPTED} == {"meta-os.eu/member", "meta-os.eu/tracking", "meta-os.eu/adopted"}


# -- health ------------------------------------------------------------------------------------------------------


def condition(kind: str, status: str = "True", **more: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": status, **more}]}


FULL = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2}
DAEMON = {"observedGeneration": 2, "desiredNumberScheduled": 2, "currentNumberScheduled": 2, "updatedNumberScheduled": 2}
CRASHING = {"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}


@pytest.mark.parametrize(
    ("api_version", "kind", "spec", "status", "expected"),
    [
        ("apps/v1", "Deployment", {"replicas": 2}, FULL, CURRENT),
        ("apps/v1", "Deployment", {"replicas": 2}, FULL | {"observedGeneration": 1}, IN_PROGRESS),
        ("apps/v1", "Deployment", {"replicas": 2}, FULL | {"updatedReplicas": 1}, IN_PROGRESS),
        ("apps/v1", "Deployment", {"replicas": 2}, FULL | {"replicas": 3}, IN_PROGRESS),
        ("apps/v1", "Deployment", {"replicas": 2}, {}, IN_PROGRESS),
        ("apps/v1", "Deployment", {}, FULL | condition("Progressing", "False", reason="ProgressDeadlineExceeded"), FAILED),
        ("apps/v1", "StatefulSet", {"replicas": 2}, FULL, CURRENT),
        ("apps/v1", "StatefulSet", {"replicas": 2}, FULL | {"updateRevision": "b", "currentRevision": "a"}, IN_PROGRESS),
        ("apps/v1", "StatefulSet", {"replicas": 2, "updateStrategy": {"type": "OnDelete"}}, FULL, CURRENT),
        ("apps/v1", "ReplicaSet", {"replicas": 2}, FULL, CURRENT),
        ("apps/v1", "ReplicaSet", {"replicas": 3}, FULL, IN_PROGRESS),
        ("apps/v1", "DaemonSet", {}, DAEMON | {"numberAvailable": 2, "numberReady": 2}, CURRENT),
        ("apps/v1", "DaemonSet", {}, DAEMON | {"numberAvailable": 1}, IN_PROGRESS),
        ("batch/v1", "Job", {}, {}, IN_PROGRESS),
        ("batch/v1", "Job", {}, {"startTime": "2026-01-01T00:00:00Z"}, CURRENT),
        ("batch/v1", "Job", {}, condition("Failed", message="no"), FAILED),
        ("v1", "Pod", {}, {"phase": "Running"} | condition("Ready"), CURRENT),
        ("v1", "Pod", {}, {"phase": "Pending"}, IN_PROGRESS),
        ("v1", "Pod", {}, {"phase": "Running", "containerStatuses": [CRASHING]}, FAILED),
        ("v1", "PersistentVolumeClaim", {}, {"phase": "Bound"}, CURRENT),
        ("v1", "PersistentVolumeClaim", {}, {"phase": "Pending"}, IN_PROGRESS),
        ("v1", "Service", {"type": "ClusterIP"}, {}, CURRENT),
        ("v1", "ConfigMap", {}, {}, CURRENT),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition", {}, {}, IN_PROGRESS),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition", {}, condition("Established"), CURRENT),
        ("example.com/v1", "Database", {}, {}, CURRENT),
        ("example.com/v1", "Database", {}, condition("Ready", "False", message="starting"), IN_PROGRESS),
        ("example.com/v1", "Database", {}, condition("Stalled", message="no disk"), FAILED),
        ("example.com/v1", "Database", {}, condition("Reconciling"), IN_PROGRESS),
        ("example.com/v1", "Job", {}, {}, CURRENT),
    ],
)
def test_health_is_as_kstatus_has_it(api_version: str, kind: str, spec: Obj, status: Obj, expected: str) -> None:
    obj = {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "generation": 2}, "spec": spec, "status": status}
    assert health(obj).status == expected
    assert bool(health(obj).message) == (expected != CURRENT), "what is not well says why"
    assert health(obj | {"metadata": {"name": "x", "deletionTimestamp": "2026-01-01T00:00:00Z"}}).status == TERMINATING


@example({"kind": "Database", "metadata": {"name": "x"}}, 3)
@settings(max_examples=30)
@given(
    objects(), st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda i: st.lists(i) | st.dictionaries(texts, i))
)
def test_no_status_of_a_custom_resource_is_too_strange_for_a_verdict(obj: Obj, status: Any) -> None:
    for said in (status, {"conditions": status}):
        assert health(obj | {"apiVersion": "example.com/v1", "status": said}).status in (CURRENT, IN_PROGRESS, FAILED)


# -- capacity ----------------------------------------------------------------------------------------------------


def node(cpu: int, memory: int, ready: bool = True, cordoned: bool = False) -> Obj:
    amounts = {"cpu": f"{cpu}m", "memory": f"{memory}Ki", "pods": "110", "hugepages-2Mi": "0", "ephemeral-storage": "1Gi"}
    conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
    return {
        "spec": {"unschedulable": cordoned},
        "status": {"capacity": amounts, "allocatable": amounts, "conditions": conditions},
    }


nodes = st.lists(st.builds(node, st.integers(0, 9000), st.integers(0, 10**6), st.booleans(), st.booleans()), max_size=5)


@settings(max_examples=30)
@given(nodes, st.integers(0, 20))
def test_capacity_is_the_sum_over_nodes_and_what_takes_pods_is_allocatable(found: list[Obj], most: int) -> None:
    has, free = totals(found, {"pods": str(most)})
    assert set(has) == {"cpu", "memory", "pods"}
    assert int(free["pods"]) <= int(has["pods"]) == min(most, 110 * len(found))
    taking = [n for n in found if n["status"]["conditions"][0]["status"] == "True" and not n["spec"]["unschedulable"]]
    assert int(free["pods"]) == min(most, 110 * len(taking))
    assert totals(taking, {})[1] == totals(found, {})[1]


@settings(max_examples=30)
@given(nodes, st.integers(0, 9000), st.booleans())
def test_what_others_take_and_what_is_tainted_is_no_room(found: list[Obj], cpu: int, known: bool) -> None:
    taint = {"key": "dedicated", "value": "db", "effect": "NoSchedule"}
    for number, each in enumerate(found):
        each["metadata"] = {"name": f"n-{number}"}
    found_free = totals(found, {})[1]
    taken = {"n-0": Counter({"cpu": cpu, "pods": 1})}
    free = totals(found, {}, taken)[1]
    gone = quantity.milli(found_free["cpu"]) - quantity.milli(free["cpu"])
    usable_cpu = quantity.milli(totals(found[:1], {})[1]["cpu"])
    assert gone == min(cpu, usable_cpu), "no more than there is, and of no other node"
    for each in found:
        each["spec"]["taints"] = [taint]
    tainted = totals(found, {}, {}, [taint] if known else [])[1]
    assert tainted == (found_free if known else {"cpu": "0", "memory": "0", "pods": "0"})


def test_a_pod_takes_its_requests_until_it_ends() -> None:
    spec: Obj = {
        "nodeName": "n",
        "containers": [{"name": "a", "resources": {"requests": {"cpu": "250m", "nvidia.com/gpu": "1"}}}],
    }
    assert taken_by({"spec": spec}) == ("n", Counter({"cpu": 250, "memory": 0, "pods": 1, "nvidia.com/gpu": 1}))
    assert taken_by({"spec": spec, "status": {"phase": "Succeeded"}}) is None
    assert taken_by({"spec": spec | {"nodeName": ""}}) is None
    spec["containers"][0]["resources"]["requests"]["cpu"] = "many"
    assert taken_by({"spec": spec}) == ("n", Counter({"pods": 1}))


def test_quotas_leave_what_others_do_not_use_and_ranges_fill_in() -> None:
    def of(where: str, **spec: Any) -> Obj:
        return {"metadata": {"namespace": where, "uid": f"{where}-{len(spec)}"}, "spec": spec}

    def ours(phase: str = "Running", **requests: str) -> Obj:
        spec = {"containers": [{"name": "main", "resources": {"requests": requests}}]}
        return {"metadata": {"namespace": "shop", "name": "x"}, "spec": spec, "status": {"phase": phase}}

    wide = of("shop", hard={"requests.cpu": "4", "cpu": "3", "pods": "10", "limits.cpu": "1", "secrets": "1"})
    wide["status"] = {"used": {"requests.cpu": "2500m", "cpu": "2500m", "pods": "4"}}
    narrow = of("shop", hard={"pods": "6"}) | {"status": {"used": {"pods": "4"}}}
    scoped = of("shop", hard={"pods": "0"}, scopes=["BestEffort"])
    limits = [
        {"type": "Container", "default": {"cpu": "200m"}, "defaultRequest": {"cpu": "100m"}},
        {"type": "Pod", "max": {"memory": "1Gi", "cpu": "odd"}},
    ]
    ranges = [of("shop", limits=limits), of("empty", limits=[])]
    told = left_by_namespace([wide, narrow, scoped], ranges, [ours(), ours(cpu="1"), ours("Succeeded")])
    # Of 2500m that are used 1100m are ours: one core, and 100m by default; of 4 pods two.
    assert told == [
        {
            "namespace": "shop",
            "requests": {"cpu": "1600m", "pods": "4"},
            "defaults": {"cpu": "100m"},
            "most": {"memory": str(1 << 30)},
        }
    ]


def test_use_is_told_of_our_pods_alone_and_what_cannot_be_read_is_left_out() -> None:
    def used(called: str, cpu: str) -> Obj:
        return {
            "metadata": {"name": called, "namespace": "shop"},
            "containers": [{"name": "c", "usage": {"cpu": cpu, "memory": "1Mi"}}],
        }

    found = measured([used("ours", "250m"), used("theirs", "1"), used("odd", "?")], {("shop", "ours"), ("shop", "odd")})
    assert found[0] == {"namespace": "shop", "name": "ours", "containers": {"c": {"cpu": 0.25, "memory": float(1 << 20)}}}
    assert found[1]["containers"] == {}


# -- what is said ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason", "patient"),
    [
        (ApiError(409, "Conflict", "x", details={"causes": [{"reason": "FieldManagerConflict"}]}), "Conflict", True),
        (ApiError(409, "Conflict", "uid mismatch"), "Conflict", False),
        (ApiError(422, "Invalid", "spec.selector: field is immutable"), "Invalid", True),
        (ApiError(500, "InternalError", ".spec.x: field not declared in schema"), "Invalid", True),
        (ApiError(403, "Forbidden", "exceeded quota"), "Forbidden", False),
        (ApiError(400, "BadRequest", 'admission webhook "no.example.com" denied the request'), "RefusedByWebhook", False),
        (ApiError(401, "Unauthorized", "Unauthorized"), "Unauthorized", False),
        (ApiError(429, "TooManyRequests", "later"), "Throttled", False),
        (ApiError(503, "ServiceUnavailable", "away"), "Unreachable", False),
        (ApiError(500, "InternalError", "etcd"), "ServerError", False),
        (ApiError(500, "InternalError", "etcdserver: mvcc: database space exceeded"), "StorageFull", False),
        (ApiError(507, "InsufficientStorage", "no space is left for the store"), "StorageFull", False),
    ],
)
def test_what_a_server_refuses_has_a_name_and_a_time_to_try_again(error: ApiError, reason: str, patient: bool) -> None:
    found = refusal_of(error)
    assert found.reason == reason and found.message and (found.seconds is not None) == patient
    if "immutable" in error.message:
        assert "delete and apply it anew" in found.message


def work(*names: str) -> Obj:
    manifests = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": n, "namespace": "shop", "uid": n, "generation": 5}}
        for n in names
    ]
    return {"metadata": {"generation": 9}, "spec": {"manifests": manifests}}


def seen(generation: int, observed: int, outcome: str = "") -> Seen:
    obj = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "generation": generation}}
    live = Live.of(obj | {"status": FULL | {"observedGeneration": observed}, "spec": {"replicas": 2}})
    return Seen(not outcome, Outcome("d", outcome, outcome and "because"), live)


def test_a_status_is_about_a_generation_of_the_hub_only_once_the_members_controllers_have_seen_it() -> None:
    first = work_status(work("web"), {}, lambda m: seen(1, 1), 0.0)
    assert first["manifests"][0]["observedGeneration"] == 5 and first["observedGeneration"] == 9
    assert first["manifests"][0]["status"]["availableReplicas"] == 2 and first["manifests"][0]["health"] == CURRENT
    newer = work("web")
    newer["spec"]["manifests"][0]["metadata"]["generation"] = 6
    second = work_status(newer, first, lambda m: seen(2, 1), 0.0)
    assert second["manifests"][0]["observedGeneration"] == 5 and second["manifests"][0]["health"] == IN_PROGRESS
    assert work_status(newer, {}, lambda m: seen(2, 1), 0.0)["manifests"][0]["observedGeneration"] == 0


def test_conditions_name_what_was_not_taken_and_what_is_waited_for() -> None:
    def look(manifest: Obj) -> Seen:
        return {"good": seen(1, 1), "slow": seen(2, 1), "bad": seen(1, 1, "Invalid")}[manifest["metadata"]["name"]]

    status = work_status(work("good", "slow", "bad"), {}, look, 0.0)
    found = {c["type"]: c for c in status["conditions"]}
    assert (found["Applied"]["status"], found["Applied"]["reason"]) == ("False", "Invalid")
    assert found["Applied"]["message"] == "Deployment shop/bad: because"
    assert "shop/slow" in found["Available"]["message"] and "shop/good" not in found["Available"]["message"]
    many = work_status(work(*(f"w{n}" for n in range(30))), {}, lambda m: Seen(False, None, None), 0.0)
    assert many["conditions"][0]["message"].endswith("and 20 more")


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet"])
def test_a_rollout_that_waits_for_other_sites_is_said_as_kubernetes_takes_it(kind: str) -> None:
    field = "strategy" if kind == "Deployment" else "updateStrategy"
    spec = {field: {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}
    obj = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec}
    assert prepared(obj, "m", "w")["spec"][field]["rollingUpdate"]["maxUnavailable"] == 1
    assert spec[field]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_agent_of_a_cluster_imports_nothing_that_runs_pods_or_reads_yaml() -> None:
    code = "import metaos.members.agent, sys; print(*sys.modules)"
    found = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    heavy = {"yaml", "sqlite3", "cryptography", "aiohttp", "orjson", "numpy", "h2"}
    assert found & (heavy | {"metaos.agent.supervisor", "metaos.agent.network", "metaos.agent.meter"}) == set()


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"hostNetwork": True}, "spec.hostNetwork"),
        ({"hostPID": True}, "spec.hostPID"),
        ({"hostIPC": True}, "spec.hostIPC"),
        ({"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}, "spec.volumes[root].hostPath"),
        ({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}, "spec.securityContext.sysctls"),
        ({"securityContext": {"privileged": True}}, "spec.containers[c].securityContext.privileged"),
        ({"securityContext": {"capabilities": {"add": ["CHOWN", "SYS_ADMIN"]}}}, "capabilities.add (SYS_ADMIN)"),
        ({"securityContext": {"procMount": "Unmasked"}}, "securityContext.procMount"),
        ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, "securityContext.seccompProfile"),
        ({"ports": [{"containerPort": 80, "hostPort": 80}]}, "spec.containers[c].ports.hostPort"),
        ({"securityContext": {"runAsUser": 0, "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}}}, ""),
        ({"volumes": [{"name": "tmp", "emptyDir": {}}], "securityContext": {"fsGroup": 1}}, ""),
    ],
)
@pytest.mark.parametrize("kind", ["Pod", "Deployment", "DaemonSet", "StatefulSet", "Job", "CronJob", "ReplicaSet"])
def test_pods_of_the_federation_get_nothing_of_a_clusters_nodes(kind: str, spec: dict[str, Any], field: str) -> None:
    of_pod = {"hostNetwork", "hostPID", "hostIPC", "volumes"} & spec.keys() or "sysctls" in spec.get("securityContext", {})
    pod = {"containers": [{"name": "c"}], **spec} if of_pod else {"containers": [{"name": "c", **spec}]}
    template = {"spec": pod}
    made: Obj = {"template": template}
    if kind == "CronJob":
        made = {"jobTemplate": {"spec": made}}
    group = {"Pod": "v1", "Job": "batch/v1", "CronJob": "batch/v1"}.get(kind, "apps/v1")
    obj = {
        "apiVersion": group,
        "kind": kind,
        "metadata": {"name": "x", "namespace": "shop"},
        "spec": pod if kind == "Pod" else made,
    }
    reason, message = refusal(obj)
    assert (reason == "Refused") == bool(field) and field in message


@pytest.mark.parametrize(
    "spec", ["x", {"template": "x"}, {"template": {"spec": [1]}}, {"template": {"spec": {"containers": [1]}}}]
)
def test_a_pod_template_of_another_form_is_invalid_and_that_of_another_group_is_its_own_business(spec: Any) -> None:
    obj = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "namespace": "shop"}, "spec": spec}
    assert refusal(obj)[0] == "Invalid"
    assert refusal(obj | {"apiVersion": "example.com/v1"}) == ("", "")
