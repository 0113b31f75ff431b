"""Budgets: what they come to, and that evictions in any order never take more than they allow."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.meta import Obj
from metaos.scheduler.disruption import DISRUPTION_SECONDS, NoScale, PodState, assess, eviction, kept

T = "2026-01-01T00:00:00Z"


def pods(ready: int, unready: int = 0, owner: str = "w") -> list[PodState]:
    return [PodState(f"p{i}", i < ready, owner=owner) for i in range(ready + unready)]


@pytest.mark.parametrize(
    ("spec", "replicas", "state", "expected", "desired", "allowed"),
    [
        ({"minAvailable": 2}, 0, pods(3), 3, 2, 1),
        ({"minAvailable": 2}, 0, pods(2), 2, 2, 0),
        ({"minAvailable": 2}, 0, pods(1, 3), 4, 2, 0),
        ({"minAvailable": "50%"}, 5, pods(5), 5, 3, 2),
        ({"maxUnavailable": 1}, 4, pods(4), 4, 3, 1),
        ({"maxUnavailable": 1}, 4, pods(3), 4, 3, 0),
        ({"maxUnavailable": "50%"}, 3, pods(3), 3, 1, 2),
        ({"maxUnavailable": "100%"}, 3, pods(3), 3, 0, 3),
        ({"maxUnavailable": 9}, 3, pods(3), 3, 0, 3),
        ({}, 3, pods(3), 3, 0, 3),
        ({"minAvailable": 0}, 0, [], 0, 0, 0),
    ],
)
def test_what_a_budget_comes_to(
    spec: dict[str, int | str], replicas: int, state: list[PodState], expected: int, desired: int, allowed: int
) -> None:
    found = assess(spec, state, {"w": replicas}, {}, 0.0)
    assert (found.expected, found.desired, found.allowed) == (expected, desired, allowed)


def test_pods_on_their_way_do_not_count_until_they_have_stood_for_too_long() -> None:
    state = pods(3)
    state[2] = replace(state[2], deleting=True)
    found = assess({"minAvailable": 1}, state, {}, {"p0": 100.0, "p2": 100.0, "gone": 100.0}, 110.0)
    assert (found.healthy, found.allowed, found.disrupted) == (1, 0, {"p0": 100.0})
    assert found.again == 100.0 + DISRUPTION_SECONDS
    later = assess({"minAvailable": 1}, state, {}, found.disrupted, 100.0 + DISRUPTION_SECONDS)
    assert (later.healthy, later.allowed, later.disrupted, later.again) == (2, 1, {}, None)


def test_what_no_workload_counts_has_no_share() -> None:
    with pytest.raises(NoScale, match="p0"):
        assess({"maxUnavailable": 1}, pods(1, owner=""), {}, {}, 0.0)


def budget(spec: Obj, **status: object) -> Obj:
    return {"metadata": {"name": "b", "generation": 1}, "spec": spec, "status": {"observedGeneration": 1} | status}


def test_unhealthy_pods_may_go_where_the_budget_holds_without_them() -> None:
    sick = PodState("p", ready=False)
    full: dict[str, object] = {"disruptionsAllowed": 0, "currentHealthy": 2, "desiredHealthy": 2}
    short: dict[str, object] = {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 2}
    assert eviction(sick, budget({}, **full), T).allowed
    assert not eviction(sick, budget({}, **short), T).allowed
    assert eviction(sick, budget({"unhealthyPodEvictionPolicy": "AlwaysAllow"}, **short), T).allowed
    assert not eviction(replace(sick, ready=True), budget({}, **full), T).allowed
    refused = eviction(sick, budget({}, **short), T)
    assert refused.message == "The disruption budget b needs 2 healthy pods and has 1 currently"
    old = budget({}, disruptionsAllowed=5) | {"metadata": {"name": "b", "generation": 2}}
    assert "still being processed" in eviction(replace(sick, ready=True), old, T).message
    # Asked again about one that is on its way: the same answer, and nothing is taken twice.
    assert eviction(replace(sick, ready=True), budget({}, **full, disruptedPods={"p": T}), T).status is None


SPECS = st.one_of(
    st.integers(0, 6).map(lambda n: {"minAvailable": n}),
    st.integers(0, 6).map(lambda n: {"maxUnavailable": n}),
    st.integers(0, 100).map(lambda n: {"minAvailable": f"{n}%"}),
    st.integers(0, 100).map(lambda n: {"maxUnavailable": f"{n}%"}),
)
#: evict a pod; the controller looks; an evicted pod really goes; a replacement becomes ready; time passes.
STEPS = st.lists(
    st.tuples(st.sampled_from(["evict", "evict", "evict", "look", "go", "replace", "wait"]), st.integers(0, 50)), max_size=80
)


@given(spec=SPECS, replicas=st.integers(1, 6), steps=STEPS)
def test_no_order_of_evictions_goes_below_the_budget(spec: Obj, replicas: int, steps: list[tuple[str, int]]) -> None:
    """Whoever asks when, and however far behind the controller is: what is healthy and not on its way stays enough."""
    standing = {f"p{i}": True for i in range(replicas)}  # Whether it is on its way.
    for name in standing:
        standing[name] = False
    held, made, now = budget(spec), replicas, 0.0

    def look() -> None:
        state = [PodState(name, True, owner="w") for name in standing]
        noted = {name: float(since) for name, since in held["status"].get("disruptedPods", {}).items()}
        found = assess(spec, state, {"w": replicas}, noted, now)
        held["status"] = {
            "observedGeneration": 1,
            "disruptionsAllowed": found.allowed,
            "currentHealthy": found.healthy,
            "desiredHealthy": found.desired,
            "disruptedPods": {name: str(since) for name, since in found.disrupted.items()},
        }

    look()
    for step, which in steps:
        name = sorted(standing)[which % len(standing)] if standing else ""
        if step == "look":
            look()
        elif step == "evict" and name:
            verdict = eviction(PodState(name, True, owner="w"), held, str(now))
            if verdict.allowed:
                if verdict.status is not None:
                    held["status"] = dict(verdict.status)
                standing[name] = True
                desired = assess(spec, [PodState(n, True, owner="w") for n in standing], {"w": replicas}, {}, now).desired
                # All that were granted go at this very moment, in the worst case.
                assert sum(not going for going in standing.values()) >= min(desired, replicas)
        elif step == "go" and standing.get(name):
            del standing[name]
        elif step == "replace" and len(standing) < replicas:
            made += 1
            standing[f"p{made}"] = False
        elif step == "wait":
            # Those that were to go have gone in time.
            now += 10.0
            if now % 100 == 0:
                standing = {name: going for name, going in standing.items() if not going}


SHARES = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5), min_size=1)


@given(wanted=SHARES, running=SHARES)
def test_a_move_between_sites_never_leaves_fewer_than_there_should_be(wanted: dict[str, int], running: dict[str, int]) -> None:
    """Sites start what they are told, and what is told follows, until all is as wanted."""
    need = min(sum(wanted.values()), sum(running.values()))
    # What runs on sites that are not chosen any more is not this function's: the migration takes it down.
    left = sum(count for site, count in running.items() if site not in wanted)
    told = {site: running.get(site, 0) for site in wanted}
    for _ in range(40):
        available = dict(told)
        told = kept(wanted, told, available)
        assert all(told[site] >= wanted[site] for site in wanted)
        # A site stops at once what it is not told any more, and takes its time to start what is new.
        at_least = sum(min(available.get(site, 0), told[site]) for site in wanted)
        assert at_least + left >= min(need, sum(available.values()) + left)
    assert told == wanted


def test_scaling_down_waits_for_nobody() -> None:
    assert kept({"a": 1, "b": 1}, {"a": 3, "b": 3}, {}) == {"a": 2, "b": 2}
    assert kept({"a": 1, "b": 1}, {"a": 3, "b": 3}, {"a": 3, "b": 3}) == {"a": 1, "b": 1}
    assert kept({"a": 1, "b": 3}, {"a": 3, "b": 1}, {"a": 3, "b": 1}) == {"a": 3, "b": 3}
    assert kept({"a": 1, "b": 3}, {"a": 3, "b": 3}, {"a": 3, "b": 2}) == {"a": 2, "b": 3}
    assert kept({"a": 1, "b": 3}, {"a": 2, "b": 3}, {"a": 2, "b": 3}) == {"a": 1, "b": 3}
