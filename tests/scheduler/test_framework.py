"""What holds of every decision, whatever the world is like; and what moves work, and what does not."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.snapshot import ClusterInfo, Move, PolicyInfo, Snapshot, Taint, Target, WorkloadInfo
from metaos.scheduler.filters import room
from metaos.scheduler.framework import Plan, decide
from tests.scheduler.worlds import NOW, clusters, residency, site, workload, workloads, world


def placed(plan: Plan) -> dict[str, int]:
    return dict(plan.clusters)


# -- always -------------------------------------------------------------------------------------------------


@given(clusters(), workloads())
def test_residency_is_never_violated(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    by_name = {c.name: c for c in found}
    for name in placed(decide(Snapshot(NOW, found), what)):
        for target in what.targets:
            if target.name == "residency" and name in by_name:
                assert by_name[name].jurisdictions & set(target.values)


@given(clusters(), workloads(fresh=True))
def test_capacity_is_never_exceeded(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    by_name = {c.name: c for c in found}
    for name, count in placed(decide(Snapshot(NOW, found), what)).items():
        assert count <= room(what, by_name[name])


@given(clusters(), workloads())
def test_sites_that_have_room_for_it_are_not_filled_beyond_it(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    by_name = {c.name: c for c in found}
    for name, count in placed(decide(Snapshot(NOW, found), what)).items():
        if name in by_name:
            assert count <= max(room(what, by_name[name]), what.current.get(name, 0), 1 if what.mode == "Everywhere" else 0)


@given(clusters(), workloads(), st.randoms(use_true_random=False))
def test_order_does_not_matter(found: tuple[ClusterInfo, ...], what: WorkloadInfo, random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = dataclasses.replace(what, current=dict(reversed(what.current.items())), targets=what.targets)
    assert decide(Snapshot(NOW, tuple(shuffled)), again) == decide(Snapshot(NOW, found), what)


@given(clusters(), workloads())
def test_every_site_is_scored_or_rejected_and_never_both(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    plan = decide(Snapshot(NOW, found), what)
    scored, rejected = [s.cluster for s in plan.scored], [r.cluster for r in plan.rejected]
    assert sorted(scored + rejected) == sorted(c.name for c in found)
    assert all(r.reason and r.filter for r in plan.rejected) and plan.reason


@given(clusters(), workloads())
def test_a_decision_settles(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    """Decided again on its own outcome, nothing moves any more."""
    first = decide(Snapshot(NOW, found), what)
    if first.complete and first.clusters:
        settled = dataclasses.replace(what, current=placed(first))
        assert set(placed(decide(Snapshot(NOW, found), settled))) == set(placed(first))


@given(clusters(), workloads(fresh=True))
def test_whole_work_stays_together(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    if what.mode == "Whole":
        assert len(decide(Snapshot(NOW, found), what).clusters) <= 1


@given(st.lists(st.floats(50, 400), min_size=2, max_size=12))
def test_hysteresis_stops_flapping(intensities: list[float]) -> None:
    """However the carbon of one site swings, each move gains at least what the policy asks."""
    what = workload(current={"a": 1}, targets=(Target("carbonIntensity", "Minimize", intent="clean"),))
    for intensity in intensities:
        plan = decide(world(site("a"), site("b", carbon=intensity)), what)
        if plan.migrates:
            totals = {s.cluster: s.total for s in plan.scored}
            (old,), (new,) = what.current, placed(plan)
            assert totals[new] - totals[old] >= what.policy.minimum_improvement
        what = dataclasses.replace(what, current=placed(plan))


# -- moving, and staying ------------------------------------------------------------------------------------

CLEAN = (Target("carbonIntensity", "Minimize", intent="clean", priority=60),)


def test_a_clear_gain_moves_it() -> None:
    plan = decide(world(site("a", carbon=500.0), site("b", carbon=30.0)), workload(current={"a": 1}, targets=CLEAN))
    assert placed(plan) == {"b": 1} and plan.migrates and "points better" in plan.reason


def test_a_small_gain_does_not() -> None:
    plan = decide(world(site("a", carbon=100.0), site("b", carbon=95.0)), workload(current={"a": 1}, targets=CLEAN))
    assert placed(plan) == {"a": 1} and not plan.migrates and "worth it from 5" in plan.reason


def test_weights_decide_who_is_where_whatever_the_scores_say() -> None:
    sites = (site("a", carbon=500.0), site("b", carbon=500.0), site("c", carbon=20.0))
    policy = PolicyInfo(names=("p",), weights={"a": 2.0, "b": 1.0})
    first = decide(world(*sites), workload(replicas=3, targets=CLEAN, policy=policy))
    assert placed(first) == {"a": 2, "b": 1} and first.reason == "divided by the policy's weights (a 2, b 1)"
    assert [(r.cluster, r.reason) for r in first.rejected] == [("c", "placement policy p gives weight only to a, b")]
    # A site that is lost is left; healed, it gets its share back, and that is no move.
    alone = decide(world(*sites[1:]), workload(replicas=3, policy=policy, current={"a": 2, "b": 1}))
    assert placed(alone) == {"b": 3} and alone.forced
    driven = Move(NOW - 10, ("a",), ("b",), True)
    back = decide(world(*sites), workload(replicas=3, policy=policy, current={"b": 3}, moves=(driven,)))
    assert placed(back) == {"a": 2, "b": 1} and not back.migrates
    # To leave a site for it is a move, with its limits.
    one = workload(policy=policy, current={"b": 1}, moves=(driven,))
    waits = decide(world(*sites), one)
    assert placed(waits) == {"b": 1} and "cool-down" in waits.reason and waits.again == NOW + 290
    assert placed(decide(Snapshot(NOW + 290, sites), one)) == {"a": 1}
    never = dataclasses.replace(one, policy=dataclasses.replace(policy, failback="Never"))
    assert placed(decide(Snapshot(NOW + 290, sites), never)) == {"b": 1}
    done = workload("Job", mode="Divided", settled=True, policy=policy, current={"b": 1})
    assert placed(decide(world(*sites), done)) == {"b": 1}


def test_a_spent_budget_keeps_it_until_the_hour_is_over() -> None:
    sites = world(site("a", carbon=500.0), site("b", carbon=30.0))
    policy = PolicyInfo(budget_per_hour=1, cool_down_seconds=0)
    recent = workload(current={"a": 1}, targets=CLEAN, policy=policy, moves=(Move(NOW - 60),))
    assert placed(decide(sites, recent)) == {"a": 1}
    assert "budget" in decide(sites, recent).reason
    assert placed(decide(sites, dataclasses.replace(recent, moves=(Move(NOW - 3601),)))) == {"b": 1}


def test_a_started_job_is_not_moved_for_a_gain_but_leaves_a_lost_site() -> None:
    job = workload("Job", current={"a": 1}, targets=CLEAN, settled=True)
    assert placed(decide(world(site("a", carbon=500.0), site("b", carbon=30.0)), job)) == {"a": 1}
    lost = site("a", ready=False, taints=(Taint("meta-os.eu/unreachable", "", "NoExecute", NOW),))
    assert placed(decide(world(lost, site("b")), job)) == {"b": 1}


def test_a_lost_site_is_left_against_budget_and_hysteresis() -> None:
    lost = site("a", ready=False, taints=(Taint("meta-os.eu/unreachable", "", "NoExecute", NOW - 1),))
    what = workload(replicas=2, current={"a": 1, "b": 1}, policy=PolicyInfo(budget_per_hour=0, minimum_improvement=99.0))
    plan = decide(world(lost, site("b"), site("c")), what)
    assert "a" not in placed(plan) and sum(placed(plan).values()) == 2 and "does not answer" in plan.reason


def test_a_lost_site_is_waited_for_as_long_as_the_policy_says() -> None:
    def after(seconds: float) -> dict[str, int]:
        taint = Taint("meta-os.eu/unreachable", "", "NoExecute", NOW - seconds)
        what = workload(current={"a": 1}, policy=PolicyInfo(toleration_seconds=30.0))
        return placed(decide(world(site("a", ready=False, taints=(taint,)), site("b")), what))

    assert after(29) == {"a": 1}
    assert after(30) == {"b": 1}


def test_local_data_is_not_left_and_the_reason_says_so() -> None:
    lost = site("a", ready=False, taints=(Taint("meta-os.eu/unreachable", "", "NoExecute", NOW - 1),))
    plan = decide(world(lost, site("b")), workload("StatefulSet", current={"a": 1}, local_data=True, pinned=True))
    assert placed(plan) == {"a": 1} and not plan.complete
    assert "its data is on a" in plan.reason


def test_a_drained_site_is_left_and_a_cordoned_one_kept() -> None:
    sites = world(site("a", unschedulable=True), site("b"))
    assert placed(decide(sites, workload(current={"a": 1}))) == {"a": 1}
    assert placed(decide(sites, workload(current={"a": 1}, evicted=frozenset("a")))) == {"b": 1}


def test_nothing_new_starts_on_a_cordoned_site() -> None:
    plan = decide(world(site("a", unschedulable=True), site("b")), workload(replicas=3, current={"a": 1}))
    assert placed(plan).get("a", 0) <= 1 and sum(placed(plan).values()) == 3


def test_nothing_new_starts_on_a_site_that_does_not_answer() -> None:
    plan = decide(world(site("a", ready=False), site("b")), workload(replicas=3, current={"a": 1}))
    assert placed(plan).get("a", 0) <= 1 and sum(placed(plan).values()) == 3


def test_nothing_new_starts_against_a_taint() -> None:
    tainted = site("a", taints=(Taint("k", "", "NoSchedule"),))
    plan = decide(world(tainted, site("b")), workload(replicas=3, current={"a": 1}))
    assert placed(plan).get("a", 0) <= 1 and sum(placed(plan).values()) == 3


def test_work_that_outgrows_every_site_is_not_stopped() -> None:
    plan = decide(world(site("a"), site("b")), workload("StatefulSet", replicas=99, current={"a": 1}))
    assert "a" in placed(plan) and not plan.complete


def test_residency_takes_work_away_even_where_nothing_else_will_do() -> None:
    plan = decide(world(site("a", jurisdictions=frozenset({"GB"}))), workload(current={"a": 1}, targets=(residency("EU"),)))
    assert placed(plan) == {} and not plan.complete


# -- telling ------------------------------------------------------------------------------------------------


def test_where_no_site_fits_the_reason_names_each() -> None:
    sites = world(site("a", jurisdictions=frozenset({"GB"})), site("b", cpu=50))
    plan = decide(sites, workload(targets=(residency("EU"),)))
    assert not plan.clusters and "GB" in plan.reason and "50m of 50m is free" in plan.reason


def test_where_none_holds_all_replicas_the_reason_does_not_ask_for_the_first_site() -> None:
    plan = decide(world(site("a")), workload("StatefulSet", replicas=99))
    assert not plan.clusters and "there is no site yet" not in plan.reason


def test_without_sites_it_says_how_to_get_one() -> None:
    assert "nemo join-token" in decide(world(), workload()).reason


def test_the_runner_up_is_not_what_was_chosen() -> None:
    sites = world(site("a", carbon=100.0), site("b", carbon=95.0), site("c", carbon=400.0))
    plan = decide(sites, workload(current={"a": 1}, targets=CLEAN))
    assert placed(plan) == {"a": 1}
    assert dict(plan.runner_up) != placed(plan)
