"""Dividing replicas over sites."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.reliability import up
from metaos.resources.snapshot import ClusterInfo, PolicyInfo, Spread, Target
from metaos.scheduler.framework import decide
from metaos.scheduler.solver import choose, distribute, group
from tests.scheduler.worlds import clusters, site, workload, world

FLAT = {"a": 90.0, "b": 80.0, "c": 70.0, "d": 60.0}


def spread(by: str, groups: int = 1, skew: int = 0) -> PolicyInfo:
    return PolicyInfo(spread=(Spread(by, groups, skew),))


def test_one_site_is_enough_where_nothing_asks_for_more() -> None:
    assert choose(workload(replicas=3), [site("b"), site("a")], FLAT).clusters == {"a": 3}


def test_what_does_not_fit_goes_to_the_next_best() -> None:
    choice = choose(workload(replicas=5), [site("a", pods=2), site("b", pods=2), site("c")], FLAT)
    assert choice.clusters == {"a": 2, "b": 2, "c": 1} and choice.complete


def test_what_fits_nowhere_is_said() -> None:
    choice = choose(workload(replicas=5), [site("a", pods=2)], FLAT)
    assert choice.clusters == {"a": 2} and not choice.complete


def test_whole_work_takes_the_best_site_that_holds_all_of_it() -> None:
    assert choose(workload("StatefulSet", replicas=3), [site("a", pods=2), site("b")], FLAT).clusters == {"b": 3}


def test_a_daemon_set_is_on_every_site() -> None:
    assert choose(workload("DaemonSet"), [site("b"), site("a")], FLAT).clusters == {"a": 1, "b": 1}


def test_scaled_to_zero_it_keeps_a_home() -> None:
    assert distribute(workload(replicas=0), [site("b")], [site("a"), site("b")], FLAT).clusters == {"b": 0}


def test_ties_go_to_the_first_name() -> None:
    assert choose(workload(), [site("c"), site("b")], {"b": 50.0, "c": 50.0}).clusters == {"b": 1}


def test_spread_uses_as_many_groups_as_the_policy_asks() -> None:
    sites = [site("a", region="north"), site("b", region="north"), site("c", region="south")]
    choice = choose(workload(replicas=2, policy=spread("region", 2)), sites, FLAT)
    assert choice.clusters == {"a": 1, "c": 1} and choice.satisfies


def test_spread_that_cannot_be_had_is_said() -> None:
    sites = [site("a", region="north"), site("b", region="north")]
    assert not choose(workload(replicas=2, policy=spread("region", 2)), sites, FLAT).satisfies


def test_skew_beyond_the_policy_is_said() -> None:
    sites = [site("a", region="north"), site("b", region="south", pods=1)]
    choice = choose(workload(replicas=4, policy=spread("region", 2, 1)), sites, FLAT)
    counts = [choice.clusters.get(name, 0) for name in ("a", "b")]
    assert max(counts) - min(counts) <= 1 or not choice.satisfies


def test_skew_is_counted_by_group() -> None:
    sites = [site("a", region="north", pods=2), site("b", region="north"), site("c", region="south")]
    choice = choose(workload(replicas=6, policy=spread("region", 2, 1)), sites, FLAT)
    north, south = choice.clusters.get("a", 0) + choice.clusters.get("b", 0), choice.clusters.get("c", 0)
    assert abs(north - south) <= 1 and choice.complete and choice.satisfies


def test_hard_availability_takes_sites_together() -> None:
    wanted = (Target("availability", "IsGreaterThan", 0.999, hard=True, intent="i"),)
    choice = choose(workload(replicas=2, targets=wanted), [site("a"), site("b")], FLAT)
    assert choice.clusters == {"a": 1, "b": 1} and choice.satisfies
    assert up([(site("a"), 1), (site("b"), 1)]) > 0.999 > up([(site("a"), 1)])


def test_availability_that_one_replica_cannot_have_is_said() -> None:
    wanted = (Target("availability", "IsGreaterThan", 0.999, hard=True, intent="i"),)
    assert not choose(workload(replicas=1, targets=wanted), [site("a"), site("b")], FLAT).satisfies
    plan = decide(world(site("a"), site("b")), workload(replicas=1, targets=wanted))
    assert plan.reason == (
        "first placement: best score; but availability is 0.99 and must be above 0.999 (intent 'i'): "
        "0.9999 could be had with a replica on each of 2 sites"
    )
    assert "availability" not in decide(world(site("a"), site("b")), workload(replicas=2, targets=wanted)).reason


def test_availability_of_whole_work_is_checked_too() -> None:
    wanted = (Target("availability", "IsGreaterThan", 0.999, hard=True, intent="i"),)
    assert not choose(workload("StatefulSet", targets=wanted), [site("a")], FLAT).satisfies


@given(clusters(), st.integers(0, 8))
def test_no_more_and_no_fewer_than_wanted(found: tuple[ClusterInfo, ...], count: int) -> None:
    choice = choose(workload(replicas=count), list(found), {c.name: 50.0 for c in found})
    total = sum(choice.clusters.values())
    assert total <= count and (total == count) == (choice.complete or (count == 0 and not found))


weights = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 9).map(float) | st.floats(0.001, 1000), min_size=1)


def by(stated: dict[str, float]) -> PolicyInfo:
    return PolicyInfo(weights=stated)


def test_weights_divide_and_scores_do_not() -> None:
    sites = [site("a"), site("b"), site("c")]
    what = workload(replicas=6, policy=by({"b": 1.0, "c": 2.0}))
    choice = choose(what, sites, FLAT)
    assert choice.clusters == {"b": 2, "c": 4} and choice.complete and choice.satisfies
    assert choice.why == "divided by the policy's weights (b 1, c 2)"
    full = choose(what, [site("a"), site("b"), site("c", pods=1)], FLAT)
    assert full.clusters == {"b": 5, "c": 1} and full.complete
    assert not choose(what, [site("a"), site("b", pods=2)], FLAT).complete
    assert choose(workload("StatefulSet", replicas=2, policy=by({"b": 1.0})), sites, FLAT).clusters == {"a": 2}, "whole"


@given(weights, clusters(), st.integers(0, 40), st.dictionaries(st.sampled_from("abcde"), st.integers(1, 3)))
def test_weighted_division(stated: dict[str, float], found: tuple[ClusterInfo, ...], count: int, current: dict[str, int]) -> None:
    def divided(replicas: int) -> dict[str, int]:
        return dict(choose(workload(replicas=replicas, policy=by(stated), current=current), found, FLAT).clusters)

    now, more = divided(count), divided(count + 1)
    if count:
        assert now.keys() <= stated.keys() & {c.name for c in found} and sum(now.values()) <= count
        # One more adds one, and moves none.
        assert all(more.get(s, 0) >= n for s, n in now.items()) and sum(more.values()) - sum(now.values()) in (0, 1)
    # With room everywhere all have a place, and the heavier never gets less.
    wide = [site(s, cpu=10**9, memory=1 << 60, pods=10**6) for s in stated]
    choice = choose(workload(replicas=count or 1, policy=by(stated)), wide, FLAT)
    assert choice.complete and sum(choice.clusters.values()) == (count or 1)
    for one in stated:
        for other in stated:
            assert stated[one] <= stated[other] or choice.clusters.get(one, 0) >= choice.clusters.get(other, 0)


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 9), min_size=1), st.integers(1, 5))
def test_what_divides_evenly_by_weight_is_divided_exactly(stated: dict[str, int], times: int) -> None:
    wide = [site(s, cpu=10**9, memory=1 << 60, pods=10**6) for s in stated]
    what = workload(replicas=sum(stated.values()) * times, policy=by({s: float(w) for s, w in stated.items()}))
    assert choose(what, wide, FLAT).clusters == {s: w * times for s, w in stated.items()}


def test_groups_are_what_policies_name() -> None:
    where = site("a", region="r", tier="edge", country="ES", zone="z", owner="o", labels={"rack": "7"})
    assert [group(where, by) for by in ("site", "region", "tier", "country", "zone", "owner", "rack")] == [
        *("a", "r", "edge", "ES", "z", "o", "7")
    ]


def several(value: float, needed: int) -> Target:
    return Target("availability", "IsGreaterThan", value, hard=True, at_least=needed)


def test_sites_are_added_until_enough_replicas_are_up_with_the_probability_that_is_asked_for() -> None:
    sites = [site(n, region=f"r{n}", availability=0.99) for n in "abc"]
    totals = {"a": 90.0, "b": 80.0, "c": 70.0}
    for needed, bound, used in ((1, 0.98, 1), (1, 0.999, 2), (2, 0.9, 1), (2, 0.999, 3)):
        choice = choose(workload(replicas=3, targets=(several(bound, needed),)), sites, totals)
        assert (len(choice.clusters), choice.satisfies) == (used, True), (needed, bound, choice)
    assert not choose(workload(replicas=3, targets=(several(0.9999999, 2),)), sites, totals).satisfies


def test_sites_of_one_region_do_not_suffice_where_sites_of_two_do() -> None:
    near = [site(n, region="r", availability=0.99) for n in "ab"]
    what = workload(replicas=2, targets=(several(0.9995, 1),))
    assert not choose(what, near, {"a": 9.0, "b": 8.0}).satisfies
    choice = choose(what, [*near, site("c", region="other", availability=0.99)], {"a": 9.0, "b": 8.0, "c": 1.0})
    assert choice.satisfies and "c" in choice.clusters
