"""What cannot be met: the set is in conflict and minimal, and every way out leads out."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.devices import GPU
from metaos.resources.quantity import milli
from metaos.resources.snapshot import ClusterInfo, PolicyInfo, Snapshot, Taint, Target, Users, WorkloadInfo
from metaos.scheduler.conflicts import Impossible, Requirement, _breaks, as_data, impossible, lines, requirements
from metaos.scheduler.filters import FILTERS
from metaos.scheduler.framework import decide
from tests.scheduler.worlds import GIB, NOW, clusters, residency, site, workload, workloads, world

JUDGES = dict(FILTERS)


def below(name: str, value: float, **more: object) -> Target:
    return Target(name, "IsLessThan", value, hard=True, intent="wish", **more)  # type: ignore[arg-type]


def texts(found: Impossible) -> list[str]:
    return [r.text for r in found.conflict]


def broken(found: tuple[ClusterInfo, ...], asked: Requirement) -> set[str]:
    snapshot = Snapshot(NOW, found)
    return {c.name for c in found if _breaks(snapshot, asked, c, JUDGES[asked.filter])}


@given(clusters(), workloads(fresh=True))
def test_a_conflict_is_one_and_nothing_in_it_is_too_much(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    told = impossible(Snapshot(NOW, found), what)
    facts = {name for name, _ in told.facts}
    usable = tuple(c for c in found if c.name not in facts)
    if not told.conflict or told.room is not None:
        return
    sets = [broken(usable, r) for r in told.conflict]
    assert set().union(*sets) == {c.name for c in usable}
    for index in range(len(sets)):
        assert set().union(*sets[:index], *sets[index + 1 :]) != {c.name for c in usable}


@given(clusters(), workloads(fresh=True))
def test_what_has_no_place_has_a_conflict_or_facts(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    plan = decide(Snapshot(NOW, found), what)
    if found and what.replicas and not plan.clusters and what.mode != "Whole":
        told = impossible(Snapshot(NOW, found), what)
        assert told.conflict or {n for n, _ in told.facts} == {c.name for c in found}


@given(clusters(), workloads(fresh=True))
def test_no_way_out_contains_a_smaller_one_or_gives_up_the_law(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    told = impossible(Snapshot(NOW, found), what)
    sets = [frozenset(c.requirement.text for c in way.changes) for way in told.relaxations]
    assert not any(a < b for a in sets for b in sets)
    assert not any(c.requirement.fixed for way in told.relaxations for c in way.changes)
    assert [w.cost for w in told.relaxations] == sorted(w.cost for w in told.relaxations)


def test_two_wishes_that_no_site_meets_together_are_named_and_a_third_is_not() -> None:
    near = site("near", latencies={"es": 10.0}, carbon=400.0)
    clean = site("clean", latencies={"es": 60.0}, carbon=30.0)
    what = workload(
        targets=(below("latency", 40, users=Users(("es",))), below("carbonIntensity", 100), below("cost", 1.0), residency("EU"))
    )
    told = impossible(world(near, clean), what)
    assert texts(told) == ["latency from users in es below 40 ms", "carbonIntensity below 100 gCO2eq/kWh"]
    assert [(w.cluster, round(w.cost, 2)) for w in told.relaxations] == [("clean", 0.5), ("near", 3.0)]
    assert lines(as_data(told)) == [
        "no site meets these together:",
        "  - latency from users in es below 40 ms  (intent 'wish')",
        "  - carbonIntensity below 100 gCO2eq/kWh  (intent 'wish')",
        "what would do, the least first:",
        "  1. clean: let latency be 60 ms instead of below 40 ms (20 ms off)",
        "  2. near: let carbonIntensity be 400 gCO2eq/kWh instead of below 100 gCO2eq/kWh (300 gCO2eq/kWh off)",
    ]


def test_the_law_is_named_and_never_offered() -> None:
    told = impossible(world(site("a"), site("b")), workload(targets=(residency("CH"),)))
    assert texts(told) == ["residency one of CH"] and not told.relaxations
    assert lines(as_data(told))[-1].startswith("no site could take it without giving up what is law, trust, attestation or where")


def test_room_selectors_policies_and_taints_are_requirements_too() -> None:
    small = site("small", cpu=500, labels={"gpu": "yes"})
    large = site("large", cpu=8000)
    tainted = site("tainted", labels={"gpu": "yes"}, taints=(Taint("only", "ml", "NoSchedule"),))
    what = workload(cpu=2000, node_selector={"gpu": "yes"})
    told = impossible(world(small, large, tainted), what)
    assert texts(told) == ["a site with the label gpu=yes", "no site whose taints it does not tolerate", "2 CPU"]
    ways = {w.cluster: [c.text for c in w.changes] for w in told.relaxations}
    assert ways == {
        "small": ["ask for at most 500m CPU each instead of 2 CPU"],
        "large": ["give up a site with the label gpu=yes (the pods' node selector)"],
        "tainted": ["tolerate only=ml:NoSchedule"],
    }
    barred = workload(policy=PolicyInfo(names=("p",), allowed=frozenset({"gone"})))
    assert texts(impossible(world(small), barred)) == ["only gone"]


def test_whole_work_needs_all_its_room_on_one_site() -> None:
    what = dataclasses.replace(workload("StatefulSet", replicas=3, memory=4 * GIB))
    told = impossible(world(site("a"), site("b")), what)
    assert texts(told) == ["4096 MiB of memory x 3 on one site"]
    assert (
        told.relaxations[0].changes[0].text
        == "ask for at most 2730 MiB of memory each instead of 4096 MiB of memory x 3 on one site"
    )


sizes = st.tuples(st.integers(50, 4000), st.integers(40, 4000), st.integers(1, 30))


@given(st.lists(sizes, min_size=1, max_size=4), st.integers(2, 40), st.integers(10, 900), st.integers(8, 900))
def test_of_a_part_without_room_every_way_out_leads_out(
    found: list[tuple[int, int, int]], replicas: int, cpu: int, memory: int
) -> None:
    sites = [site(f"s{n}", cpu=c, memory=m << 20, pods=p) for n, (c, m, p) in enumerate(found)]
    what = workload(replicas=replicas, cpu=cpu, memory=memory << 20)
    plan, told = decide(world(*sites), what), impossible(world(*sites), what)
    placed = sum(n for _, n in plan.clusters)
    assert told.room == (placed if plan.clusters and not plan.complete else None)
    if told.room is None:
        return
    assert told.conflict and told.replicas == replicas
    for way in told.relaxations:
        changed = what
        for change in way.changes:
            number, words = change.text.removeprefix("ask for ").split(" ", 1)
            if words.startswith("replicas"):
                changed = dataclasses.replace(changed, replicas=int(number))
            elif "CPU" in words:
                changed = dataclasses.replace(changed, cpu=milli(number))
            else:
                changed = dataclasses.replace(changed, memory=int(number) << 20)
        assert decide(world(*sites), changed).complete, way


def test_what_limits_a_part_and_what_would_open_other_sites_is_told() -> None:
    sites = (
        site("a", cpu=2000),
        site("b", cpu=6400, memory=512 << 20),
        site("c", cpu=6400, taints=(Taint("gpu", "", "NoSchedule"),)),
        site("d", cpu=800, carbon=900.0),
        site("e", ready=False),
    )
    what = workload(replicas=30, cpu=400, targets=(below("carbonIntensity", 500.0),))
    assert lines(as_data(impossible(world(*sites), what))) == [
        "the sites that may take it have room for 21 of 30 replicas; each asks for",
        "  - 400m CPU, of which there is enough for 16 on b, 5 on a  (the pods' requests)",
        "what would do, the least first:",
        "  1. ask for 21 replicas instead of 30",
        "  2. ask for 142m CPU each instead of 400m CPU",
        "  3. c: tolerate gpu:NoSchedule",
        "  4. d: let carbonIntensity be 900 gCO2eq/kWh instead of below 500 gCO2eq/kWh (400 gCO2eq/kWh off)"
        " and ask for 23 replicas instead of 30",
    ]


def test_what_opens_several_sites_is_told_once() -> None:
    tainted = [site(f"t{n}", cpu=1000, taints=(Taint("edge", "", "NoSchedule"),)) for n in range(7)]
    told = impossible(world(site("a", cpu=1000), *tainted), workload(replicas=40, cpu=200, memory=0))
    way = next(w for w in told.relaxations if w.cluster)
    assert way.cluster == "t0, t1, t2, t3, t4 and 2 more" and [c.text for c in way.changes] == ["tolerate edge:NoSchedule"]


def test_devices_and_pods_limit_too_and_where_there_is_room_nothing_is_told() -> None:
    gpus = impossible(world(site("a", devices={GPU: 2})), workload(replicas=3, devices=((GPU, 1),)))
    assert texts(gpus) == [f"1 {GPU}, of which there is enough for 2 on a"]
    assert [c.text for w in gpus.relaxations for c in w.changes] == ["ask for 2 replicas instead of 3"]
    assert texts(impossible(world(site("a", pods=1)), workload(replicas=3))) == [
        "a place for a pod, of which there is enough for 1 on a"
    ]
    assert impossible(world(site("a")), workload(replicas=3)).room is None


def test_sites_that_take_nothing_are_facts() -> None:
    told = impossible(world(site("dead", ready=False), site("off", unschedulable=True)), workload())
    assert not told.conflict and dict(told.facts) == {"dead": "the site does not answer", "off": "the site is cordoned"}
    assert lines(as_data(told)) == ["dead: the site does not answer", "off: the site is cordoned"]


def test_a_plugins_word_counts_as_one_requirement() -> None:
    filters = (*FILTERS, ("Moon", lambda snapshot, workload, cluster: "no full moon"))
    told = impossible(world(site("a")), workload(), filters)
    assert texts(told) == ["what Moon asks for"] and told.relaxations[0].changes[0].share == 1.0


def test_every_requirement_is_alone() -> None:
    what = workload(cpu=10_000_000, node_selector={"x": "y"}, targets=(residency("CH"),))
    for asked in requirements(what, [site("a")], NOW):
        fits = asked.resource in ("memory", "pods")
        assert broken((site("a"),), asked) == (set() if fits else {"a"})


def test_weights_that_no_site_has_are_a_requirement() -> None:
    what = workload(policy=PolicyInfo(names=("p",), weights={"b": 1.0}))
    found = as_data(impossible(world(site("a")), what))
    assert found["requirements"] == [{"text": "only b, which have a weight", "source": "placement policy p"}]
    assert found["relaxations"][0]["changes"] == ["give up only b, which have a weight (placement policy p)"]


@pytest.mark.parametrize("name, value, unit", [("cost", 0.002, "EUR/h"), ("energy", 1.0, "W"), ("emissions", 0.2, "gCO2eq/h")])
def test_bounds_on_what_goes_by_the_load_are_seen_to_be_broken(name: str, value: float, unit: str) -> None:
    what = workload(targets=(Target(name, "IsLessThan", value, hard=True, intent="i"),))
    found = as_data(impossible(world(site("a")), what))
    assert found["requirements"] == [{"text": f"{name} below {value:g} {unit}", "source": "intent 'i'"}]
    assert f"instead of below {value:g} {unit}" in found["relaxations"][0]["changes"][0]
