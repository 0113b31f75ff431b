"""Preemption: only lower priorities give way, no more of them than needed, and every chain ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, Snapshot, WorkloadInfo
from metaos.scheduler.filters import FILTERS, room
from metaos.scheduler.framework import decide
from metaos.scheduler.preemption import Preemption, Tenant, preempt
from metaos.scheduler.scores import SCORES
from tests.scheduler import worlds

Sizes = dict[ObjectRef, tuple[WorkloadInfo, str]]


def ref(name: str) -> ObjectRef:
    return ObjectRef("apps", "StatefulSet", "shop", name)


def work(name: str, cpu: int, priority: int = 0, **more: object) -> WorkloadInfo:
    return replace(worlds.workload("StatefulSet", cpu=cpu, **more), ref=ref(name), priority=priority)


class Continuum:
    """Sites, and who is where."""

    def __init__(self, **cpu: int) -> None:
        self.sites = {name: worlds.site(name, cpu=milli, memory=1 << 40, pods=1000) for name, milli in cpu.items()}
        self.there: Sizes = {}

    def site(self, name: str) -> ClusterInfo:
        mine = [w for w, at in self.there.values() if at == name]
        return replace(
            self.sites[name],
            cpu_requested=sum(w.cpu for w in mine),
            memory_requested=sum(w.memory for w in mine),
            pods_requested=len(mine),
        )

    def snapshot(self) -> Snapshot:
        return Snapshot(worlds.NOW, [self.site(name) for name in self.sites])

    def tenants(self) -> dict[str, list[Tenant]]:
        found: dict[str, list[Tenant]] = {}
        for w, at in self.there.values():
            found.setdefault(at, []).append(Tenant(w.ref, w.priority, 1, w.cpu, w.memory))
        return found

    def ask(self, wanted: WorkloadInfo) -> Preemption | None:
        snapshot = self.snapshot()
        plan = decide(snapshot, wanted)
        return preempt(snapshot, wanted, plan, self.tenants(), FILTERS, SCORES)

    def settle(self, queue: Sequence[WorkloadInfo]) -> int:
        """Places all, those that are displaced too, until nothing changes. How many steps that took."""
        waiting, steps = list(queue), 0
        while waiting:
            steps += 1
            assert steps < 1000, "it goes round in circles"
            wanted = waiting.pop(0)
            placed = decide(self.snapshot(), wanted).clusters
            if not placed and (found := self.ask(wanted)) is not None:
                for victim in found.victims:
                    assert victim.priority < wanted.priority
                    waiting.append(self.there.pop(victim.ref)[0])
                placed = found.plan.clusters
                assert placed == ((found.site, 1),)
            if placed:
                self.there[wanted.ref] = wanted, placed[0][0]
        return steps


def test_the_lowest_goes_and_no_more_than_needed() -> None:
    world = Continuum(a=1000)
    world.settle([work("low", 300), work("middle", 300, 5), work("other", 300, 5)])
    found = world.ask(work("high", 400, 10))
    assert found is not None
    assert [v.ref.name for v in found.victims] == ["low"]
    assert found.plan.clusters == (("a", 1),)
    assert found.plan.reason.endswith("displaces StatefulSet shop/low (priority 0) at a")


def test_the_site_whose_victims_matter_least() -> None:
    world = Continuum(a=500, b=500)
    world.there = {ref("x"): (work("x", 500, 7), "a"), ref("y"): (work("y", 500, 3), "b")}
    found = world.ask(work("high", 500, 10))
    assert found is not None
    assert (found.site, [v.ref.name for v in found.victims]) == ("b", ["y"])


def test_nobody_of_the_same_priority_nor_for_nothing() -> None:
    world = Continuum(a=500)
    world.there = {ref("x"): (work("x", 500, 7), "a")}
    assert world.ask(work("same", 500, 7)) is None
    assert world.ask(work("huge", 800, 9)) is None, "it would not fit an empty site"
    assert world.ask(replace(work("meek", 500, 9), preempts=False)) is None
    assert world.ask(replace(work("bound", 500, 9), targets=(worlds.residency("US"),))) is None


def test_a_divided_workload_takes_what_it_lacks() -> None:
    world = Continuum(a=1000, b=1000)
    world.there = {ref(n): (work(n, 500), at) for n, at in (("p", "a"), ("q", "b"), ("r", "b"))}
    web = replace(worlds.workload("Deployment", cpu=500, replicas=2), priority=1)
    found = world.ask(web)
    assert found is not None
    assert len(found.victims) == 1
    assert sum(n for _, n in found.plan.clusters) == 2


def test_who_must_leave_and_has_nowhere_to_go_displaces_too() -> None:
    world = Continuum(a=500, b=500)
    world.there = {ref("x"): (work("x", 500), "b")}
    world.sites["a"] = replace(world.sites["a"], unschedulable=True)
    high = replace(work("high", 500, 10), current={"a": 1}, evicted=frozenset({"a"}))
    assert decide(world.snapshot(), high).clusters == (("a", 1),), "what may run on, runs on"
    for wanted in (high, replace(high, mode="Divided")):
        found = world.ask(wanted)
        assert found is not None
        assert found.plan.clusters == (("b", 1),)


def test_each_of_many_tenants_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Continuum(a=2_000)
    world.sites["a"] = replace(world.sites["a"], pods=3_000)
    world.there = {ref(f"w{n}"): (work(f"w{n}", 1), "a") for n in range(2_000)}
    calls = 0

    def counted(workload: WorkloadInfo, cluster: ClusterInfo) -> int:
        nonlocal calls
        calls += 1
        return room(workload, cluster)

    monkeypatch.setattr("metaos.scheduler.preemption.room", counted)
    found = world.ask(work("high", 1_000, 1))
    assert found is not None
    assert len(found.victims) == 1_000
    assert calls <= 2_001
    assert found.reason.endswith("and 995 of no higher priority at a")
    assert len(found.reason) < 300


jobs = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), min_size=1, max_size=12)


@settings(max_examples=60)
@given(sizes=jobs, rooms=st.lists(st.integers(1, 10), min_size=1, max_size=3))
def test_it_ends_and_who_waits_has_nobody_lower_that_would_make_room(sizes: list[tuple[int, int]], rooms: list[int]) -> None:
    world = Continuum(**{f"s{n}": room * 100 for n, room in enumerate(rooms)})
    wanted = [work(f"w{n}", cpu * 100, priority) for n, (cpu, priority) in enumerate(sizes)]
    world.settle(wanted)
    for site in world.sites.values():
        assert world.site(site.name).cpu_requested <= site.cpu
    for w in wanted:
        if w.ref not in world.there:
            assert world.ask(w) is None
