"""Traffic that Intents state: what is refused, with which remedy, and whether it holds."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.apiserver.shaping import shape, validate
from metaos.network.traffic import MOST_EDGES, judge_traffic
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import API_VERSION, Obj, ObjectRef
from metaos.resources.snapshot import Dataset
from metaos.resources.traffic import edges_of
from tests.scheduler.worlds import site

WEB, DB = ObjectRef("apps", "Deployment", "shop", "web"), ObjectRef("apps", "StatefulSet", "shop", "db")
ENDS = {"from": {"name": "web"}, "to": {"kind": "StatefulSet", "name": "db"}}


def intent(*traffic: dict[str, Any], **spec: Any) -> Obj:
    return {
        "apiVersion": API_VERSION,
        "kind": "Intent",
        "metadata": {"name": "near", "namespace": "shop"},
        "spec": {"priority": 100, "traffic": list(traffic), **spec},
    }


def causes(found: Obj) -> list[tuple[str, str]]:
    try:
        validate(scheme.INTENT, shape(scheme.INTENT, found, None, "Strict", []), None)
    except ApiError as error:
        return [(c["field"], c["message"]) for c in error.details["causes"]]
    return []


def test_traffic_alone_is_an_intent() -> None:
    assert causes(intent(ENDS | {"bytesPerSecond": "2Mi", "maxMilliseconds": 5, "hard": True})) == []
    assert causes(intent({"from": {"cluster": "cam"}, "to": {"name": "web"}})) == []
    assert [field for field, _ in causes(intent())] == ["spec.expectations"]


@pytest.mark.parametrize(
    ("edge", "field", "remedy"),
    [
        ({"from": {}, "to": {"name": "db"}}, "spec.traffic[0].from", "one of them is needed"),
        ({"from": {"name": "a", "cluster": "b"}, "to": {"name": "db"}}, "spec.traffic[0].from", "not several"),
        ({"from": {"name": "a"}, "to": {"cluster": "b", "kind": "Job"}}, "spec.traffic[0].to.kind", "leave it out for a cluster"),
        ({"from": {"kind": "Secret", "name": "a"}, "to": {"name": "b"}}, "spec.traffic[0].from.kind", "must be one of CronJob"),
        ({"from": {"name": "a"}, "to": {"kind": "Deployment", "name": "a"}}, "spec.traffic[0].to", "is the same as from"),
        ({"from": {"cluster": "a"}, "to": {"cluster": "b"}}, "spec.traffic[0].to", "one end must be a workload"),
        ({"from": {"dataset": "a"}, "to": {"cluster": "b"}}, "spec.traffic[0].to", "one end must be a workload"),
        ({"from": {"name": "a"}, "to": {"dataset": "b", "kind": "Job"}}, "spec.traffic[0].to.kind", "leave it out for a dataset"),
        (ENDS | {"bytesPerSecond": "-2Mi"}, "spec.traffic[0].bytesPerSecond", "must not be negative"),
        (ENDS | {"maxMilliseconds": -1}, "spec.traffic[0].maxMilliseconds", "at least 0"),
        (ENDS | {"maxMilliseconds": float("nan")}, "spec.traffic[0].maxMilliseconds", "finite"),
        (ENDS | {"requestsPerSecond": 0}, "spec.traffic[0].requestsPerSecond", "above 0"),
        (ENDS | {"requestsPerSecond": 10**400}, "spec.traffic[0].requestsPerSecond", "finite"),
        (ENDS | {"hard": True}, "spec.traffic[0].maxMilliseconds", "hard needs the round trip"),
    ],
)
def test_what_is_wrong_is_told_with_field_and_remedy(edge: dict[str, Any], field: str, remedy: str) -> None:
    found = causes(intent(edge))
    assert [f for f, _ in found] == [field] and remedy in found[0][1]


def test_edges_are_told_once_weigh_by_one_measure_and_are_not_too_many() -> None:
    assert causes(intent(ENDS, ENDS))[0][1].endswith("it is stated in spec.traffic[0] already; keep one of them")
    other = {"from": {"name": "api"}, "to": {"name": "web"}}
    found = causes(intent(ENDS, other | {"requestsPerSecond": 5}))
    assert found == [
        ("spec.traffic[0].requestsPerSecond", "Required value: state it for every edge or for none, as edges weigh by it; "
         "spec.traffic[1] does")
    ]  # fmt: skip
    many = [{"from": {"name": "web"}, "to": {"name": f"x{i}"}} for i in range(MOST_EDGES + 1)]
    assert "state the others in another intent" in causes(intent(*many))[0][1]


def test_both_ends_see_the_edge_with_one_weight_and_the_bytes_their_way() -> None:
    found = intent(
        ENDS | {"bytesPerSecond": "1Ki", "responseBytesPerSecond": "3Ki", "requestsPerSecond": 5},
        {"from": {"name": "x"}, "to": {"name": "y"}, "requestsPerSecond": 50},
        expectations=[{"targets": [{"name": "cost", "condition": "Minimize"}]}],
    )
    (asks,), (asked,) = edges_of(WEB, [found]), edges_of(DB, [found])
    assert (asks.peer, asks.ref, asks.asks, asks.sent, asks.answered) == ("statefulset/db", DB, True, 1024.0, 3072.0)
    assert (asked.peer, asked.ref, asked.asks, asked.sent, asked.answered) == ("deployment/web", WEB, False, 3072.0, 1024.0)
    assert asks.weight == asked.weight == 1.0 and asks.money == asked.money == 10.0
    assert edges_of(ObjectRef("apps", "Deployment", "other", "web"), [found]) == ()


def test_an_intent_says_whether_its_round_trips_hold() -> None:
    near, far = site("near"), site("far", latencies={"region-near": 30.0})
    stated = intent(ENDS | {"maxMilliseconds": 5, "hard": True}, {"from": {"cluster": "cam"}, "to": {"name": "web"}})
    ((fulfilment, row, text),) = judge_traffic(stated, {WEB: [near], DB: [far]}, {})
    assert (fulfilment, row["value"], row["wanted"]) == ("NotFulfilled", 30.0, "at most 5 ms")
    assert text == "deployment/web to statefulset/db: the round trip shall be at most 5 ms, and it is 30 ms"
    ((fulfilment, _, text),) = judge_traffic(stated, {WEB: [near], DB: [near, far]}, {})
    assert (fulfilment, text) == ("Fulfilled", ""), "its own site's endpoint is asked first"
    ((fulfilment, row, text),) = judge_traffic(intent(ENDS | {"maxMilliseconds": 5}), {WEB: [near]}, {})
    assert (fulfilment, "value" in row) == ("Degraded", False) and text.endswith("statefulset/db is placed nowhere")


def test_of_a_data_set_the_nearest_copy_counts() -> None:
    held = {"images": Dataset()}
    web, near, far = site("web", region="x"), site("near", region="x", datasets=held), site("far", region="y", datasets=held)
    stated = intent({"from": {"dataset": "images"}, "to": {"name": "web"}, "maxMilliseconds": 5, "hard": True})
    ((fulfilment, row, text),) = judge_traffic(stated, {WEB: [web]}, {s.name: s for s in (web, near, far)})
    assert (fulfilment, row["value"], text) == ("Fulfilled", 1.0, "")
    ((fulfilment, row, text),) = judge_traffic(stated, {WEB: [web]}, {"web": web})
    assert (fulfilment, "value" in row) == ("NotFulfilled", False)
    assert text.endswith("at most 5 ms, and data set images lies nowhere")
