"""What ``nemo why`` says."""

from __future__ import annotations

import json

from hypothesis import given

from metaos.resources.meta import API_VERSION, Obj
from metaos.resources.snapshot import ClusterInfo, Snapshot, WorkloadInfo
from metaos.scheduler.explain import SITES_KEPT, explain, kept, placement_status, render, tells
from metaos.scheduler.framework import Plan, decide
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


def test_of_many_sites_the_best_are_listed_one_of_each_rejection_and_how_many_were_rejected_by_what() -> None:
    good = [site(f"good-{n:02}", carbon=float(n)) for n in range(20)]
    abroad = [site(f"gb-{n:02}", jurisdictions=frozenset({"GB"})) for n in range(30)]
    down = [site("zz-down", ready=False)]
    found = placement(workload(targets=(residency("EU"),)), world(*good, *abroad, *down))
    status = found["status"]
    assert [s["cluster"] for s in status["scores"]] == [f"good-{n:02}" for n in range(SITES_KEPT)]
    assert len(status["rejected"]) == SITES_KEPT and "zz-down" in {r["cluster"] for r in status["rejected"]}
    assert status["rejectedBy"] == {"Residency": 30, "Health": 1}
    assert status["sitesLeftOut"] == len(good) + len(abroad) + len(down) - 2 * SITES_KEPT
    text = render(explain(found, objects(*(s.name for s in (*good, *abroad, *down))), []))
    assert "and 27 more sites, which are not listed; rejected by Residency 30, Health 1" in text


@given(clusters(), workloads())
def test_what_was_just_told_need_not_be_told_again(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    plan = decide(Snapshot(NOW, found), what)
    assert tells(json.loads(json.dumps(placement_status(plan))), plan) and not tells({}, plan)


def test_reasons_of_a_decision_that_stands_are_kept_whatever_the_figures_are_now() -> None:
    sites = [site(f"s{n:02}", carbon=100.0 + n) for n in range(30)]
    what = workload(current={"s00": 1})

    def plan(*changed: ClusterInfo) -> Plan:
        by_name = {s.name: s for s in (*sites, *changed)}
        return decide(world(*by_name.values()), what)

    told = placement_status(plan())
    assert tells(told, plan(site("s01", carbon=900.0))) and tells(told, plan(site("s01", ready=False)))
    assert not tells({**told, "scores": told["scores"][1:]}, plan()), "where it is is not among them"


def test_of_what_has_no_place_it_is_told_anew_who_rejects_it() -> None:
    few = [site(f"s{n}", cpu=50) for n in range(3)]
    told = placement_status(decide(world(*few), workload()))
    assert tells(told, decide(world(*few[:2], site("s2", cpu=60)), workload()))
    assert not tells(told, decide(world(*few[:2], site("s2", ready=False)), workload()))


def test_figures_are_told_anew_from_a_tenth_on() -> None:
    row = {"peer": "deployment/db", "clusters": ["a"], "gramsPerDay": 10.0, "hard": True}
    assert kept([row], [row | {"gramsPerDay": 10.9}]) and kept((), [])
    for other in ({"gramsPerDay": 11.5}, {"hard": False}, {"clusters": ["b"]}, {"milliseconds": 1.0}):
        assert not kept([row], [row | other])
    assert not kept([], [row])


def test_what_a_site_comes_to_now_is_shown_where_the_hub_says_it() -> None:
    decided = placement(workload(), world(site("a", carbon=100.0)))
    decided["status"]["scoredTime"] = "2026-01-01T00:00:00Z"
    assert "considered, as of 2026-01-01T00:00:00Z" in render(explain(decided, objects("a"), []))
    present = {"reason": "still the best choice", **placement_status(decide(world(site("a", carbon=900.0)), workload()))}
    found = explain(decided, objects("a"), [], present)
    assert found["scores"] == present["scores"] and found["message"] == "still the best choice" and not found["scoredTime"]
    assert "considered, as it is now" in render(found)
