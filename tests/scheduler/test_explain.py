"""What ``nemo why`` says."""

from __future__ import annotations

import json

from hypothesis import given

from metaos.resources.meta import API_VERSION, Obj
from metaos.resources.snapshot import ClusterInfo, Snapshot, WorkloadInfo
from metaos.scheduler.explain import explain, placement_status, render
from metaos.scheduler.framework import decide
from tests.scheduler.worlds import NOW, clusters, residency, site, workload, workloads, world


def placement(what: WorkloadInfo, snapshot: Snapshot) -> Obj:
    plan = decide(snapshot, what)
    return {
        "metadata": {"name": "deployment-web", "namespace": "shop"},
        "spec": {
            "workloadRef": {"kind": what.ref.kind, "name": what.ref.name},
            "clusters": [{"name": c, "replicas": n} for c, n in plan.clusters],
            "reason": plan.reason,
            "decidedTime": "2026-01-01T00:00:00Z",
        },
        "status": {**placement_status(plan), "intents": ["stay"]},
    }


def objects(*names: str) -> list[Obj]:
    return [{"apiVersion": API_VERSION, "kind": "Cluster", "metadata": {"name": n}} for n in names]


@given(clusters(), workloads())
def test_every_site_appears_in_text_and_data(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    data = explain(placement(what, Snapshot(NOW, found)), objects(*(c.name for c in found)), [])
    text = render(data)
    json.dumps(data, allow_nan=False)
    accounted = {s["cluster"] for s in data["scores"]} | {r["cluster"] for r in data["rejected"]}
    assert accounted == {c.name for c in found} and all(c.name in text for c in found)


def test_it_shows_sites_terms_in_units_rejections_and_the_runner_up() -> None:
    sites = world(site("a", carbon=50.0), site("b", carbon=300.0), site("c", jurisdictions=frozenset({"GB"})))
    text = render(explain(placement(workload(targets=(residency("EU"),)), sites), objects("a", "b", "c"), []))
    assert "runs on   a (1)" in text and "carbon [gCO2eq/kWh]" in text and "50 (75x1)" in text
    assert "runner-up b (1)" in text and "c  must stay in EU" in text


def test_a_site_that_joined_later_is_named() -> None:
    found = explain(placement(workload(), world(site("a"))), objects("a", "new"), [])
    assert {"cluster": "new", "filter": "New", "reason": "joined after the decision"} in found["rejected"]


def test_intents_that_took_part_are_shown_with_their_offer() -> None:
    status = {"fulfilment": "NotFulfilled", "message": "nearest offer: 6 ms on a"}
    intents: list[Obj] = [{"metadata": {"name": n}, "status": status} for n in ("stay", "other")]
    found = explain(placement(workload(), world(site("a"))), objects("a"), intents)
    assert [i["name"] for i in found["intents"]] == ["stay"]
    assert "stay: NotFulfilled. nearest offer: 6 ms on a" in render(found)
