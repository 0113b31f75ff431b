"""A site that comes or goes and concerns nobody by what a firm decision says does not change that decision."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from metaos.resources.affinity import SpreadTerm
from metaos.resources.devices import GPU, Mix
from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, Snapshot, Taint, WorkloadInfo
from metaos.scheduler.framework import Plan, decide
from metaos.scheduler.scores import SCORES, Score
from metaos.scheduler.standing import Firm, firm, renewed, standing_alone
from tests.scheduler.worlds import GIB, NOW, mix, residency, site, workload, workloads, world

HERE = [f"s{number:02}" for number in range(27)] + ["a", "b", "c"]
LOST = {"ready": False, "taints": (Taint("meta-os.eu/unreachable", "", "NoSchedule", NOW - 5),)}
BACK = {"ready": True, "taints": (), "unschedulable": False, "deleting": False}
GPUS: dict[str, Any] = {"devices": {GPU: 4}, "cpu": 2500}
standings = st.sampled_from([LOST, BACK, {"unschedulable": True}, {"ready": False}, {"deleting": True}])


@st.composite
def many(draw: st.DrawFn) -> dict[str, ClusterInfo]:
    """Thirty sites: some alike, some full, some lost, some under another law."""
    carbons = draw(st.lists(st.sampled_from([20.0, 100.0, 103.0, 200.0, 400.0]), min_size=len(HERE), max_size=len(HERE)))
    odd: dict[int, dict[str, Any]] = draw(
        st.dictionaries(
            st.integers(0, len(HERE) - 1),
            st.sampled_from([LOST, {"pods": 0}, {"cpu": 150}, {"cpu_hour": 0.001}, {"jurisdictions": frozenset({"US"})}, GPUS]),
            max_size=8,
        )
    )
    return {name: site(name, **({"carbon": c} | odd.get(n, {}))) for n, (name, c) in enumerate(zip(HERE, carbons, strict=True))}


@st.composite
def simple(draw: st.DrawFn) -> WorkloadInfo:
    kind = draw(st.sampled_from(["Deployment", "Job", "StatefulSet"]))
    return workload(
        kind,
        replicas=draw(st.integers(1, 3)),
        cpu=draw(st.sampled_from([100, 2000])),
        current=draw(st.sampled_from([{}, {"s03": 1}, {"s03": 1, "s07": 1}, {"a": 2}])),
        targets=draw(st.sampled_from([(), (residency("EU"),)])),
        settled=kind == "Job",
    )


def _said(plan: Plan) -> str:
    return re.sub(r"\d+(\.\d+)?", "0", plan.reason)


@given(many(), simple() | workloads(), st.lists(st.tuples(st.sampled_from(HERE), standings), min_size=1, max_size=6))
def test_who_is_not_concerned_would_decide_the_same(
    there: dict[str, ClusterInfo], what: WorkloadInfo, steps: list[tuple[str, dict[str, Any]]]
) -> None:
    first = decide(Snapshot(NOW, tuple(there.values())), what)
    assert firm(what, first) is None or dict(first.clusters) == what.current
    what = dataclasses.replace(what, current=dict(first.clusters))
    before = decide(Snapshot(NOW, tuple(there.values())), what)
    sure = firm(what, before)
    assume(sure is not None)
    assert sure is not None
    for name, stands in steps:
        changed = dataclasses.replace(there[name], **stands)
        assert standing_alone(there[name], changed)
        if sure.concerned(changed, NOW):
            return
        there = there | {name: changed}
        after = decide(Snapshot(NOW, tuple(there.values())), what)
        assert after.clusters == before.clusters
        # Of a decision that stands nobody tells which sites it was compared with.
        assert _said(after) == _said(before) or (after.confirms and before.confirms)


changes = st.sampled_from([LOST, BACK, {"carbon": 1.0}, {"carbon": 900.0}, {"cpu_hour": 9.0}, {"cpu": 150}, {"pods": 0}])


@given(
    many(),
    simple() | workloads(),
    st.lists(st.tuples(st.sampled_from(HERE), changes), max_size=12),
    st.booleans(),
    st.sampled_from([(), mix]),
)
def test_a_decision_that_stands_would_be_the_same(
    there: dict[str, ClusterInfo], what: WorkloadInfo, steps: list[tuple[str, dict[str, Any]]], dirty: bool, asked: Mix
) -> None:
    what = dataclasses.replace(what, current=dict(decide(Snapshot(NOW, tuple(there.values())), what).clusters))
    sure = firm(what, decide(Snapshot(NOW, tuple(there.values())), what))
    assume(sure is not None and sure.asks)
    assert sure is not None
    for name, figures in steps:
        there[name] = dataclasses.replace(there[name], **figures)
    (here,) = what.current
    if dirty:
        there[here] = dataclasses.replace(there[here], carbon=500.0)
    taken = there[here]
    taken = dataclasses.replace(
        taken,
        cpu_requested=taken.cpu_requested + what.cpu * what.replicas,
        memory_requested=taken.memory_requested + what.memory * what.replicas,
        pods_requested=taken.pods_requested + what.replicas,
    )
    stands = renewed(Snapshot(NOW, tuple((there | {here: taken}).values())), {what.ref: sure}, mix=asked)
    what = dataclasses.replace(what, mix=asked)
    after = decide(Snapshot(NOW, tuple(there.values())), what)
    if stands:
        assert after.clusters == tuple(what.current.items()) and (after.confirms or what.settled)
        # Who comes back and is not concerned by what is known now changes nothing either.
        for name in HERE:
            back = dataclasses.replace(there[name], **BACK)
            if not stands[what.ref].concerned(back, NOW):
                assert decide(Snapshot(NOW, tuple((there | {name: back}).values())), what).clusters == after.clusters


def test_who_asks_for_the_same_is_looked_at_once_and_only_where_a_move_may_be_worth_it() -> None:
    sites = [site(name, carbon=100.0) for name in ("a", "b", "c")]
    firms = {}
    for number, here in enumerate(("a", "b", "c")):
        what = dataclasses.replace(workload(current={here: 1}), ref=ObjectRef("apps", "Deployment", "shop", f"w{number}"))
        firms[what.ref] = firm(what, decide(world(*sites), what))
    assert len({id(sure.asks) for sure in firms.values() if sure is not None}) == 1
    left = renewed(world(*sites[:2], site("c", carbon=900.0)), {about: sure for about, sure in firms.items() if sure is not None})
    assert {about.name for about in left} == {"w0", "w1"}


def test_what_others_ask_gpus_for_by_now_counts_whoever_is_looked_at_first() -> None:
    """A GPU site that is greener takes what needs none, until somebody comes who needs its GPUs."""
    here, gpus = site("a", carbon=150.0), site("b", carbon=60.0, devices={GPU: 4})
    new = (((1000, GIB, ((GPU, 1),)), 4),)
    before, now = workload(cpu=1000, current={"a": 1}), workload(cpu=1000, current={"a": 1}, mix=new)
    firms: dict[ObjectRef, Firm] = {}
    for number, what in enumerate((before, now)):
        ours = dataclasses.replace(what, ref=ObjectRef("apps", "Deployment", "shop", f"w{number}"))
        sure = firm(ours, decide(world(here, site("b", carbon=150.0, devices={GPU: 4})), ours))
        assert sure is not None and sure.asks
        firms[ours.ref] = sure
    for usual in ((), new):
        would = decide(world(here, gpus), dataclasses.replace(before, mix=usual)).clusters == (("a", 1),)
        for some in (firms, dict(reversed(firms.items()))):
            assert len(renewed(world(here, gpus), some, mix=usual)) == (2 if would else 0)


def test_a_site_that_nobody_thinks_of_concerns_nobody() -> None:
    sites = [site(f"s{number:02}", carbon=100.0 + 10 * number) for number in range(30)]
    what = workload(current={"s00": 1})
    plan = decide(world(*sites), what)
    sure = firm(what, plan)
    assert sure is not None
    worst, second, chosen = (dataclasses.replace(sites[number], **LOST) for number in (29, 1, 0))
    assert not sure.concerned(worst, NOW) and not sure.concerned(second, NOW) and sure.concerned(chosen, NOW)
    assert not sure.concerned(sites[29], NOW), "it is back, and is as bad as it was"
    assert sure.concerned(dataclasses.replace(sites[29], carbon=1.0), NOW)


def test_what_looks_at_more_than_points_is_firm_nowhere() -> None:
    sites = [site(f"s{number:02}") for number in range(30)]
    here = {"s00": 1}
    for what in (
        workload("DaemonSet", current={s.name: 1 for s in sites}),
        workload(replicas=0, current={"s00": 0}),
        workload(tolerations=({"key": "k", "operator": "Exists"},), current=here),
        workload(spread=(SpreadTerm("k", 1, False),), current=here),
    ):
        plan = decide(world(*sites), what)
        assert firm(what, plan) is None
    usual = workload(current=here)
    plan = decide(world(*sites), usual)
    assert firm(usual, plan) is not None
    strange = Score("mine", "%", lambda w, c: 1.0, 0.0, 1.0, "", True)
    assert firm(usual, plan, scores=(*SCORES, strange)) is None


def test_other_facts_are_more_than_standing() -> None:
    assert standing_alone(site("a"), site("a", **LOST)) and standing_alone(site("a"), site("a"))
    assert not standing_alone(site("a"), site("a", carbon=1.0))
