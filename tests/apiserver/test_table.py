"""What ``kubectl get`` shows."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver import cells
from metaos.apiserver.table import columns, table
from metaos.resources import scheme
from metaos.resources.meta import Obj, format_time
from tests.apiserver.objects import cluster, deployment, pod

NOW = 1_700_000_000.0


def shown(kind: scheme.Kind, obj: Obj) -> dict[str, Any]:
    obj["metadata"].setdefault("creationTimestamp", format_time(NOW - 90))
    found = table(kind, [obj], NOW, metadata={})
    names = [c["name"] for c in found["columnDefinitions"]]
    return dict(zip(names, found["rows"][0]["cells"], strict=True))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (599, "9m59s"), (3600, "60m"), (10800, "3h"), (11100, "3h5m"), (86400, "24h"),
     (172800, "2d"), (8 * 86400, "8d"), (3 * 365 * 86400, "3y"), (-0.5, "0s"), (-10, "<invalid>")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert cells.human_duration(seconds) == text


@given(st.floats(0, 1e10))
def test_durations_are_short(seconds: float) -> None:
    assert 2 <= len(cells.human_duration(seconds)) <= 8


@pytest.mark.parametrize("kind", [k for k in scheme.KINDS if "list" in k.verbs], ids=lambda k: k.resource)
def test_every_kind_has_a_name_and_a_time_and_bears_emptiness(kind: scheme.Kind) -> None:
    obj: Obj = kind.empty("a")
    found = table(kind, [obj], NOW, metadata={})
    cells_ = found["rows"][0]["cells"]
    assert len(cells_) == len(found["columnDefinitions"]) and "a" in cells_
    assert {c["name"] for c in found["columnDefinitions"]} & {"Age", "Created At", "Last Seen"}
    for value, column in zip(cells_, found["columnDefinitions"], strict=True):
        assert type(value) is {"integer": int, "boolean": bool, "string": str, "date": str}[column["type"]], column["name"]


@pytest.mark.parametrize(
    ("spec", "ingress", "text"),
    [
        ({"type": "LoadBalancer"}, [], "<pending>"),
        ({"type": "LoadBalancer"}, [{"ip": "192.0.2.1"}, {"hostname": "lb.example.org"}], "192.0.2.1,lb.example.org"),
        ({"type": "LoadBalancer", "externalIPs": ["192.0.2.9"]}, [], "192.0.2.9"),
        ({"type": "NodePort"}, [], "<none>"),
        ({"type": "ExternalName", "externalName": "db.example.org"}, [], "db.example.org"),
    ],
)
def test_where_a_service_is_reached_from_outside(spec: Obj, ingress: list[Obj], text: str) -> None:
    service: Obj = scheme.SERVICE.empty("web", "shop") | {"spec": spec, "status": {"loadBalancer": {"ingress": ingress}}}
    assert shown(scheme.SERVICE, service)["External-IP"] == text


def running(**state: Any) -> Obj:
    found = pod(nodeName="edge")
    found["status"] = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "web", "ready": True, "restartCount": 0, "state": {"running": {}}}],
    } | state
    return found


def container(reason: str = "", **more: Any) -> dict[str, Any]:
    return {"name": "web", "ready": False, "restartCount": 3, "state": {"waiting": {"reason": reason}}} | more


def test_pods() -> None:
    assert shown(scheme.POD, running()) == {
        "Name": "web-1", "Ready": "1/1", "Status": "Running", "Restarts": "0", "Age": "90s", "IP": "<none>", "Node": "edge",
        "Nominated Node": "<none>", "Readiness Gates": "<none>",
    }  # fmt: skip
    looping = running(
        containerStatuses=[
            container("CrashLoopBackOff", lastState={"terminated": {"finishedAt": format_time(NOW - 30), "exitCode": 1}})
        ]
    )
    assert shown(scheme.POD, looping)["Status"] == "CrashLoopBackOff"
    assert shown(scheme.POD, looping)["Restarts"] == "3 (30s ago)"
    ended = running(phase="Failed", containerStatuses=[container(state={"terminated": {"exitCode": 3}})])
    assert shown(scheme.POD, ended)["Status"] == "ExitCode:3"
    starting = running(phase="Pending", initContainerStatuses=[{"name": "i", "state": {"running": {}}}])
    assert shown(scheme.POD, starting)["Status"] == "Init:0/1"
    failing = running(
        phase="Pending", initContainerStatuses=[{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]
    )
    assert shown(scheme.POD, failing)["Status"] == "Init:Error"


def test_pods_that_go_or_are_lost() -> None:
    going = running()
    going["metadata"]["deletionTimestamp"] = format_time(NOW)
    assert shown(scheme.POD, going)["Status"] == "Terminating"
    going["status"]["reason"] = "NodeLost"
    assert shown(scheme.POD, going)["Status"] == "Unknown"
    lost = running(conditions=[{"type": "Ready", "status": "Unknown", "reason": "NodeLost"}])
    assert shown(scheme.POD, lost)["Status"] == "Unknown"
    done = running(phase="Succeeded", conditions=[{"type": "Ready", "status": "Unknown"}],
                   containerStatuses=[container(state={"terminated": {"exitCode": 0, "reason": "Completed"}})])  # fmt: skip
    assert shown(scheme.POD, done)["Status"] == "Completed"


def test_workloads() -> None:
    found = deployment(replicas=3) | {"status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}
    line = shown(scheme.DEPLOYMENT, found)
    assert (line["Ready"], line["Up-to-date"], line["Available"], line["Selector"]) == ("2/3", 3, 2, "app=web")
    job: Obj = scheme.JOB.empty("j")
    job |= {"spec": {"completions": 2}, "status": {"succeeded": 1, "startTime": format_time(NOW - 30)}}
    assert list(shown(scheme.JOB, job).values())[:4] == ["j", "Running", "1/2", "30s"]
    service: Obj = scheme.SERVICE.empty("s") | {"spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}]}}
    assert (shown(scheme.SERVICE, service)["Port(s)"], shown(scheme.SERVICE, service)["Selector"]) == ("80/TCP", "app=web")


def test_sites() -> None:
    site = cluster(electricity={"zone": "BE", "carbonIntensity": 150})
    site["status"] = {
        "conditions": [{"type": "Ready", "status": "True"}],
        "usage": {"cpu": "1500m", "pods": "3"},
        "allocatable": {"cpu": "4", "pods": "40"},
        "carbon": {"intensity": 211.6},
    }
    line = shown(scheme.CLUSTER, site)
    assert list(line.values())[:9] == ["edge", "True", "edge", "europe-west1", "BE", "212 g/kWh", "3/40", "1.5/4", "90s"]
    site["spec"]["unschedulable"] = True
    assert shown(scheme.CLUSTER, site)["Ready"] == "True,SchedulingDisabled"


def test_decisions() -> None:
    intent: Obj = scheme.INTENT.empty("i") | {"spec": {"expectations": [{"targets": [{}, {}]}]}}
    assert shown(scheme.INTENT, intent)["Targets"] == "-/2"
    intent["status"] = {"fulfilment": "Degraded", "targets": [{"fulfilment": "Fulfilled"}, {"fulfilment": "Degraded"}]}
    assert (shown(scheme.INTENT, intent)["Fulfilment"], shown(scheme.INTENT, intent)["Targets"]) == ("Degraded", "1/2")
    placement: Obj = scheme.PLACEMENT.empty("deployment-web") | {
        "spec": {"clusters": [{"name": "a", "replicas": 2}, {"name": "b", "replicas": 1}]},
        "status": {"scores": [{"cluster": "c", "total": 9}, {"cluster": "a", "total": 81.25}], "rejected": [{}]},
    }
    line = shown(scheme.PLACEMENT, placement)
    assert (line["Clusters"], line["Score"], line["Rejected"]) == ("a(2),b", "81.2", 1)
    work: Obj = scheme.WORK.empty("w") | {"status": {"conditions": [{"type": "Applied", "status": "True"}]}}
    assert (shown(scheme.WORK, work)["Applied"], shown(scheme.WORK, work)["Available"]) == ("True", "Unknown")


def test_what_rows_carry() -> None:
    obj = pod()
    assert "object" not in table(scheme.POD, [obj], NOW, metadata={}, include="None")["rows"][0]
    assert table(scheme.POD, [obj], NOW, metadata={}, include="Object")["rows"][0]["object"] == obj
    assert table(scheme.POD, [obj], NOW, metadata={})["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    assert sum(c.priority for c in columns(scheme.POD)) == 4


def test_what_a_site_has_metered_and_is_not_booked() -> None:
    meter = {"name": "rapl", "basis": "measured", "uncertainty": "0.05"}
    periods = [{"sequence": n, "start": NOW - 300 * (4 - n), "end": NOW - 300 * (3 - n), "meter": meter} for n in (1, 2, 3)]
    usage = {**scheme.USAGE.empty("edge"), "spec": {"periods": periods}, "status": {"booked": 1, "refused": [{"sequence": 1}]}}
    row = shown(scheme.USAGE, usage)
    assert row["Booked"] == 1 and row["Waiting"] == 2 and row["Since"] == "10m" and row["Refused"] == 1
    assert row["Meter"] == "rapl (measured, ±0.05)"


def test_priority_classes() -> None:
    found = shown(scheme.PRIORITY_CLASS, {**scheme.PRIORITY_CLASS.empty("high"), "value": 1000, "preemptionPolicy": "Never"})
    assert found == {"Name": "high", "Value": 1000, "Global-Default": False, "Age": "90s", "PreemptionPolicy": "Never"}
