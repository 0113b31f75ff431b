"""No flapping: whatever the world shows from minute to minute, and whoever chooses it, moves stay within what the policy allows.

A trace is a sequence of worlds; each decision is carried out and remembered, as the placement controller does it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.snapshot import ClusterInfo, Move, PolicyInfo, Snapshot, Spread, Taint, Target, Users, WorkloadInfo
from metaos.scheduler.framework import HOUR_SECONDS, MUST_LEAVE, Plan, decide
from tests.scheduler.worlds import NOW, site, workload

SITES = ("a", "b", "c", "d")
LOST = (Taint("meta-os.eu/unreachable", "", "NoExecute", NOW),)


@dataclasses.dataclass(frozen=True)
class Step:
    """One decision of a trace."""

    now: float
    before: WorkloadInfo
    plan: Plan

    @property
    def move(self) -> Move | None:
        if not self.plan.migrates:
            return None
        new = dict(self.plan.clusters).keys()
        left, joined = self.before.current.keys() - new, new - self.before.current.keys()
        return Move(self.now, tuple(sorted(left)), tuple(sorted(joined)), self.plan.forced)

    @property
    def must(self) -> set[str]:
        """Sites that had to be left whatever the budget says: gone, or somebody's word."""
        return {r.cluster for r in self.plan.rejected if r.filter in MUST_LEAVE} & self.before.current.keys()


def carried_out(worlds: Iterable[tuple[float, tuple[ClusterInfo, ...]]], what: WorkloadInfo) -> list[Step]:
    steps: list[Step] = []
    for now, sites in worlds:
        plan = decide(Snapshot(now, sites), what)
        assert plan == decide(Snapshot(now, tuple(reversed(sites))), what), "equal inputs, equal outputs"
        step = Step(now, what, plan)
        steps.append(step)
        moves = (*what.moves, step.move) if step.move else what.moves
        what = dataclasses.replace(what, current=dict(plan.clusters), moves=moves[-100:])
    return steps


def _mean(clusters: Mapping[str, int], totals: Mapping[str, float]) -> float:
    count = sum(clusters.values())
    return sum(totals[c] * n for c, n in clusters.items()) / count if count else 0.0


def check(steps: Sequence[Step], rule: PolicyInfo) -> None:
    moved = [s for s in steps if s.move]
    # What is not driven away stays within the budget, in any hour.
    for step in moved:
        if not step.must:
            within = [s for s in moved if step.now - HOUR_SECONDS < s.now <= step.now]
            assert len(within) <= rule.budget_per_hour, [s.plan.reason for s in within]
    # Nothing moves for a gain within the cool-down.
    for step in moved:
        assert step.move is not None
        if step.plan.forced:
            continue
        for old in step.before.moves:
            assert step.now - old.time >= rule.cool_down_seconds, (old, step.plan.reason)
        # And a move for a gain gains at least what the policy asks.
        totals = {s.cluster: s.total for s in step.plan.scored}

        if step.before.replicas:
            assert _mean(dict(step.plan.clusters), totals) - _mean(step.before.current, totals) >= rule.minimum_improvement - 1e-6
    # Sites change by a recorded migration only, or because more room or a first place was needed.
    for step in steps:
        left = step.before.current.keys() - dict(step.plan.clusters).keys()
        assert not left or step.move is not None or not step.plan.complete, step.plan.reason


targets = st.lists(
    st.builds(
        Target,
        name=st.sampled_from(["latency", "carbonIntensity", "cost", "energy"]),
        condition=st.sampled_from(["IsLessThan", "Minimize"]),
        value=st.floats(5, 300),
        hard=st.booleans(),
        users=st.just(Users(("users",))),
        intent=st.just("i"),
        priority=st.integers(0, 100),
    )
    | st.builds(
        Target, name=st.just("availability"), condition=st.just("IsGreaterThan"), value=st.floats(0.9, 0.999), hard=st.booleans()
    ),
    max_size=3,
)
rules = st.builds(
    PolicyInfo,
    budget_per_hour=st.integers(0, 6),
    cool_down_seconds=st.sampled_from([0.0, 60.0, 600.0]),
    minimum_improvement=st.sampled_from([0.0, 2.0, 5.0]),
    failback=st.sampled_from(["WhenBetter", "Never"]),
    spread=st.just(()) | st.just((Spread("site", 2),)),
)
kinds = st.sampled_from(["Deployment", "StatefulSet", "DaemonSet", "Job"])


def noisy(random: Random, name: str, now: float) -> ClusterInfo:
    lost = random.random() < 0.1
    return site(
        name,
        ready=not lost,
        taints=LOST if lost else (),
        carbon=random.choice([None, random.uniform(5, 800)]),
        cpu_hour=random.uniform(0, 0.3),
        latencies={"users": random.uniform(1, 200)} if random.random() < 0.9 else {},
        cpu=random.choice([0, 200, 4000]),
        pods_requested=random.choice([0, 39, 40]),
        availability=random.choice([0.9, 0.99, 0.9999]),
        unschedulable=random.random() < 0.05,
    )


@given(st.integers(0, 2**32), kinds, st.integers(0, 4), targets, rules)
def test_noise_moves_no_more_than_the_policy_allows(
    seed: int, kind: str, replicas: int, wanted: list[Target], rule: PolicyInfo
) -> None:
    random = Random(seed)
    now, worlds = NOW, []
    for _ in range(60):
        now += random.choice([1.0, 20.0, 120.0, 600.0])
        worlds.append((now, tuple(noisy(random, name, now) for name in SITES)))
    what = workload(kind, replicas=replicas, targets=tuple(wanted), policy=rule, settled=kind == "Job")
    check(carried_out(worlds, what), rule)


@given(kinds, st.integers(1, 3), targets, rules, st.booleans())
def test_an_adversary_moves_no_more_either(
    kind: str, replicas: int, wanted: list[Target], rule: PolicyInfo, breaks_bounds: bool
) -> None:
    """Who sees the decision and makes its site the worst of all, each time, by everything that is measured."""
    what = workload(kind, replicas=replicas, targets=tuple(wanted), policy=rule, settled=kind == "Job")
    steps: list[Step] = []
    for number in range(90):
        bad = what.current.keys()
        worlds = [
            (
                NOW + 60.0 * number,
                tuple(
                    site(
                        name,
                        carbon=900.0 if name in bad else 1.0,
                        cpu_hour=2.0 if name in bad else 0.001,
                        latencies={"users": (500.0 if breaks_bounds else 100.0) if name in bad else 1.0},
                        availability=0.5 if name in bad else 0.99999,
                        cpu=200 if name in bad else 8000,
                    )
                    for name in SITES
                ),
            )
        ]
        steps += carried_out(worlds, what)
        last = steps[-1]
        moves = (*what.moves, last.move) if last.move else what.moves
        what = dataclasses.replace(what, current=dict(last.plan.clusters), moves=moves[-100:])
    check(steps, rule)
    if kind != "DaemonSet":
        assert sum(1 for s in steps if s.move) <= 2 * rule.budget_per_hour, "ninety minutes hold two budgets at most"


@given(st.integers(0, 2**32), st.integers(2, 5), rules)
def test_noise_does_not_shift_replicas_between_the_same_sites(seed: int, replicas: int, rule: PolicyInfo) -> None:
    random = Random(seed)
    what = workload(replicas=replicas, policy=rule, current={})
    before: dict[str, int] = {}
    for number in range(20):
        sites = tuple(site(name, carbon=random.uniform(5, 800), cpu_hour=random.uniform(0, 0.3)) for name in SITES)
        (step,) = carried_out([(NOW + 30.0 * number, sites)], dataclasses.replace(what, current=before))
        now = dict(step.plan.clusters)
        if now.keys() == before.keys():
            assert now == before, step.plan.reason
        before = now


def test_a_spent_budget_says_when_it_looks_again() -> None:
    sites = (site("a", carbon=500.0), site("b", carbon=30.0))
    rule = PolicyInfo(budget_per_hour=1, cool_down_seconds=0)
    what = workload(current={"a": 1}, policy=rule, moves=(Move(NOW - 600, ("c",), ("a",)),))
    plan = decide(Snapshot(NOW, sites), what)
    assert plan.again == NOW + 3000 and "budget of 1" in plan.reason


@pytest.mark.parametrize("left", ["b", "c"])
@pytest.mark.parametrize("forced", [True, False])
def test_what_has_moved_stays_for_the_cool_down(left: str, forced: bool) -> None:
    sites = (site("a", carbon=500.0), site("b", carbon=30.0))
    what = workload(current={"a": 1}, moves=(Move(NOW - 100, (left,), ("a",), forced),))
    plan = decide(Snapshot(NOW, sites), what)
    assert dict(plan.clusters) == {"a": 1} and plan.again == NOW + 200
    assert f"but it moved from {left} to a less than 300 s ago (cool-down)" in plan.reason
    assert dict(decide(Snapshot(NOW, sites[1:]), what).clusters) == {"b": 1}, "what must be left is left at once"
    later = decide(Snapshot(NOW + 200, sites), what)
    assert dict(later.clusters) == {"b": 1}


def test_a_measured_bound_that_breaks_is_endured_when_the_budget_is_spent() -> None:
    bound = (Target("latency", "IsLessThan", 40.0, hard=True, users=Users(("users",)), intent="near"),)
    sites = (site("a", latencies={"users": 60.0}), site("b", latencies={"users": 10.0}))
    spent = PolicyInfo(budget_per_hour=1)
    what = workload(current={"a": 1}, targets=bound, policy=spent, moves=(Move(NOW - 60, ("b",), ("a",)),))
    plan = decide(Snapshot(NOW, sites), what)
    assert dict(plan.clusters) == {"a": 1} and "round trip" in plan.reason and "budget" in plan.reason
    assert dict(decide(Snapshot(NOW + 3600, sites), what).clusters) == {"b": 1}


def test_a_site_that_had_to_be_left_is_not_gone_back_to_where_the_policy_says_never() -> None:
    sites = (site("a", carbon=500.0), site("b", carbon=30.0), site("c", carbon=31.0))
    rule = PolicyInfo(failback="Never")
    what = workload(current={"a": 1}, policy=rule, moves=(Move(NOW - 9000, ("b",), ("a",), True),))
    plan = decide(Snapshot(NOW, sites[:2]), what)
    assert dict(plan.clusters) == {"a": 1} and "never to move back" in plan.reason
    assert dict(decide(Snapshot(NOW, sites), what).clusters) == {"c": 1}, "another good site is no way back"
