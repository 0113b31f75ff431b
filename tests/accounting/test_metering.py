"""Energy divided over pods: nothing is lost, nothing is made up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.accounting.metering import IDLE_RULES, Counter, PodUse, PowerModel, apportion, attribute, integrated

amounts = st.integers(0, 10**12)
uses = st.builds(PodUse, amounts, st.integers(0, 3_600_000), st.integers(0, 256_000))


@given(st.integers(0, 10**15), st.lists(amounts, min_size=1, max_size=30))
def test_parts_add_up_to_the_whole_and_follow_the_weights(total: int, weights: list[int]) -> None:
    parts = apportion(total, weights)
    assert sum(parts) == total and min(parts) >= 0
    if whole := sum(weights):
        assert all(abs(part - total * weight / whole) <= 1 + total * 1e-12 for part, weight in zip(parts, weights, strict=True))


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.dictionaries(st.text(max_size=4), uses, max_size=12),
    amounts,
    st.integers(0, 256_000),
    st.integers(0, 3_600_000),
    st.sampled_from(IDLE_RULES),
)
def test_shares_add_up_to_the_machines_energy_by_every_rule(
    energy: int, idle: int, pods: dict[str, PodUse], system: int, capacity: int, milliseconds: int, rule: str
) -> None:
    shares, left = attribute(
        energy, idle, pods, system_cpu_microseconds=system, capacity_millis=capacity, milliseconds=milliseconds, rule=rule
    )
    assert shares.keys() == pods.keys()
    assert sum(share.total for share in shares.values()) + left.total == energy
    assert all(part >= 0 for share in (*shares.values(), left) for part in (share.dynamic, share.idle))
    for one in pods:
        for other in pods:
            if pods[one].cpu_microseconds > pods[other].cpu_microseconds:
                assert shares[one].dynamic >= shares[other].dynamic, "who computes more does not pay less"


def test_idle_power_goes_by_what_was_reserved_and_the_rest_is_the_systems() -> None:
    """A machine of 4 cores for 100 s: 4 kJ idle, 2 kJ above it."""
    pods = {"a": PodUse(10_000_000, 100_000, 1000), "b": PodUse(30_000_000, 50_000, 0)}
    shares, system = attribute(
        6_000_000, 4_000_000, pods, system_cpu_microseconds=10_000_000, capacity_millis=4000, milliseconds=100_000
    )
    assert (shares["a"].dynamic, shares["a"].idle) == (400_000, 1_000_000)
    assert (shares["b"].dynamic, shares["b"].idle) == (1_200_000, 300_000), "it requested nothing and used 0.3 of a core"
    assert (system.dynamic, system.idle) == (400_000, 2_700_000)


def test_without_pods_all_of_it_is_the_systems() -> None:
    shares, system = attribute(5000, 3000, {}, system_cpu_microseconds=0, capacity_millis=0, milliseconds=1000)
    assert not shares and (system.dynamic, system.idle) == (2000, 3000)


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'fair' must be one of reserved, used, present"):
        attribute(1, 0, {}, system_cpu_microseconds=0, capacity_millis=0, milliseconds=1, rule="fair")


@given(st.integers(1, 10**9), st.lists(st.integers(0, 10**9), max_size=30))
def test_a_counter_that_wraps_around_loses_nothing(span: int, steps: list[int]) -> None:
    counter, value, seen = Counter(span), 0, 0
    counter.advance(0)
    steps = [step % span for step in steps]
    for step in steps:
        value = (value + step) % span
        seen += counter.advance(value)
    assert seen == sum(steps)


def test_a_linear_power_model() -> None:
    model = PowerModel(idle_watts=40, max_watts=180, cores=4)
    assert model.millijoules(100, 0) == (4_000_000, 4_000_000)
    assert model.millijoules(100, 400) == (18_000_000, 4_000_000)
    assert model.millijoules(100, 4000) == (18_000_000, 4_000_000), "not more than full load"
    assert PowerModel(0, 10, 0).millijoules(10, 5) == (0, 0)


def test_a_level_is_integrated_by_trapezoids() -> None:
    assert integrated(100, 300, 10) == 2000
    assert integrated(None, 300, 10) == 3000
