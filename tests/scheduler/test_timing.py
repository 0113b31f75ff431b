"""Where and when together: every site at its own best time, on its own best capacity."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.resources.snapshot import ClusterInfo, Interruptible, Series, Snapshot, Spot, Target, Waits, WorkloadInfo
from metaos.scheduler.along import extended
from metaos.scheduler.capacity import ON_DEMAND, RESERVED, SPOT, margin
from metaos.scheduler.deferral import Deferrable, schedule
from metaos.scheduler.framework import decide
from metaos.scheduler.timing import at_sites, options, told
from metaos.scheduler.world import World
from tests.scheduler.worlds import NOW, site, workload

HOUR = 3600.0
hours = st.lists(st.integers(0, 500).map(float), min_size=2, max_size=30)


def job(slack: float = 6.0, lengths: tuple[float, ...] = (1.0,), *, cpu: int = 1000, **more: Any) -> WorkloadInfo:
    """Hours in place of seconds."""
    kept = {k: more.pop(k) for k in ("interruptible", "targets", "settled", "current") if k in more}
    said = {"aims": ("carbonIntensity",), **more}
    return workload("Job", cpu=cpu, waits=Waits(NOW, slack * HOUR, tuple(x * HOUR for x in lengths), **said), **kept)


def forecast(*values: float) -> Series:
    return Series(values, NOW)


@given(hours, st.floats(0, 30), st.lists(st.floats(0.1, 9), max_size=3), st.booleans(), st.floats(0, 0.9))
def test_a_site_alone_comes_to_what_its_own_plan_says(
    values: list[float], slack: float, lengths: list[float], pauses: bool, passed: float
) -> None:
    asked = job(slack, tuple(lengths), suspendable=pauses and bool(lengths))
    here = site("a", intensities=Series(tuple(values), NOW - passed * HOUR))
    found = at_sites(asked, [here])[0]
    plan = schedule(Deferrable(slack, tuple(lengths), pauses and bool(lengths)), values, passed=passed)
    assert found.carbon is not None
    if pauses and len(lengths) > 1:
        # Plans in steps of an hour are not as fine as in quarters; the little beyond the horizon is a guess.
        at_once = at_sites(replace(asked, waits=replace(asked.waits, slack=0.0)), [here])[0]  # type: ignore[type-var]
        assert at_once.carbon is not None and found.carbon <= at_once.carbon * 1.05 + 1e-6
        return
    assert math.isclose(found.carbon, plan.intensity, rel_tol=1e-6, abs_tol=1e-6)
    assert math.isclose(found.start, plan.start, rel_tol=1e-6, abs_tol=1e-6)


@given(st.lists(hours, min_size=1, max_size=5), st.floats(0, 30), st.lists(st.floats(0.1, 9), max_size=3), st.booleans())
def test_many_sites_come_to_what_each_does_alone(
    series: list[list[float]], slack: float, lengths: list[float], pauses: bool
) -> None:
    asked = job(slack, tuple(lengths), suspendable=pauses and bool(lengths))
    sites = [site(f"s{i}", intensities=forecast(*values)) for i, values in enumerate(series)]
    for together, alone in zip(at_sites(asked, sites), (at_sites(asked, [s])[0] for s in sites), strict=True):
        assert together.start == alone.start and together.carbon == alone.carbon
    totals = {s.cluster: s.total for s in decide(Snapshot(NOW, World(sites)), asked).scored}
    assert all(0 <= total <= 100 for total in totals.values())


def test_a_site_that_is_dirty_now_and_clean_at_noon_is_chosen_by_who_can_wait_for_it() -> None:
    noon = site("noon", carbon=500.0, intensities=forecast(500, 500, 500, 20, 20, 500, 500), forecast=(500.0, 500.0, 500.0))
    even = site("even", carbon=150.0, intensities=forecast(*[150] * 7), forecast=(150.0,) * 3)
    wish = (Target("carbonIntensity", "Minimize"),)
    plan = decide(Snapshot(NOW, World([noon, even])), job(6, targets=wish))
    assert dict(plan.clusters) == {"noon": 1}
    assert next(t for t in plan.scored[0].terms if t.name == "carbon").value == 20.0
    # Who may wait for less, or runs for longer, is better off elsewhere.
    assert dict(decide(Snapshot(NOW, World([noon, even])), job(2, targets=wish)).clusters) == {"even": 1}
    assert dict(decide(Snapshot(NOW, World([noon, even])), job(6, (12.0,), targets=wish)).clusters) == {"even": 1}


def test_prices_of_the_hours_to_come_choose_the_site_too() -> None:
    night = site("night", cpu_hour=0.09, prices=forecast(0.09, 0.09, 0.01, 0.09))
    flat = site("flat", cpu_hour=0.03)
    cheap = job(4, aims=("cost",), targets=(Target("cost", "Minimize"),))
    assert dict(decide(Snapshot(NOW, World([night, flat])), cheap).clusters) == {"night": 1}
    assert dict(decide(Snapshot(NOW, World([night, flat])), replace(cheap, waits=None)).clusters) == {"flat": 1}


def _offering(**more: Any) -> ClusterInfo:
    usual: dict[str, Any] = {"cpu_hour": 1.0, "prices": forecast(1.0, 1.0), "spot": Spot(0.2, 0.5), "reserved": 2.0}
    return site("a", **(usual | more))


def test_the_cheapest_capacity_that_fits_and_is_stood() -> None:
    asked = job(0, aims=("cost",), cpu=2000)
    assert options(asked, _offering())[0].option.kind == RESERVED
    wide = job(0, aims=("cost",), cpu=3000)
    found = options(wide, _offering())
    assert found[0].option.kind == ON_DEMAND
    assert (
        told(wide, _offering(), found) == "reserved 0: 2 of 3 CPUs free; spot 0.2: it does not stand interruptions; on-demand 1"
    )
    others = job(0, aims=("cost",), cpu=1000, taken=(("a", 1.5),))
    assert options(others, _offering())[0].option.kind == ON_DEMAND, "others have it"
    assert options(job(0), site("a", cpu_hour=None))[0].price is None


@pytest.mark.parametrize(
    ("hours", "keeps", "restart", "kind", "price"),
    [
        (1.0, False, 0.0, SPOT, 0.2 * math.expm1(0.5) / 0.5),
        (10.0, False, 0.0, ON_DEMAND, 1.0),
        (10.0, True, 0.0, SPOT, 0.2),
        (10.0, True, 0.5, SPOT, 0.2 * math.exp(0.25)),
    ],
)
def test_spot_capacity_counts_with_what_interruptions_cost(
    hours: float, keeps: bool, restart: float, kind: str, price: float
) -> None:
    asked = job(0, (hours,), aims=("cost",), interruptible=Interruptible(hours, keeps))
    best = options(asked, _offering(reserved=0.0, spot=Spot(0.2, 0.5, restart)))[0]
    assert best.option.kind == kind and best.price == pytest.approx(price)


def test_capacity_is_chosen_with_the_time() -> None:
    # Spot capacity is cheaper now, and on-demand capacity in three hours: who can wait takes that.
    offering = _offering(reserved=0.0, spot=Spot(0.2), prices=forecast(1.0, 1.0, 1.0, 0.1, 1.0))
    spot = Interruptible(1.0, True)
    later = options(job(5, aims=("cost",), interruptible=spot), offering)[0]
    assert (later.option.kind, later.start, later.price) == (ON_DEMAND, 3.0, pytest.approx(0.1))
    soon = options(job(1, aims=("cost",), interruptible=spot), offering)[0]
    assert (soon.option.kind, soon.start, soon.price) == (SPOT, 0.0, pytest.approx(0.2))


@given(hours, hours, st.floats(0, 20), st.booleans())
def test_where_both_count_waiting_costs_no_more_of_both_together(
    carbon: list[float], price: list[float], slack: float, pauses: bool
) -> None:
    asked = job(slack, (2.0,), aims=("carbonIntensity", "cost"), suspendable=pauses)
    found = at_sites(asked, [site("a", intensities=forecast(*carbon), prices=forecast(*price), cpu_hour=1.0)])[0]
    assert found.start <= slack + 1e-9 and found.carbon is not None and found.price is not None
    usual = [float(extended(series, len(found.values)).mean()) for series in (carbon, price)]
    both = sum(
        50.0 * (v / mean if mean > 0 else m) for v, mean, m in zip((found.carbon, found.price), usual, (1, 0), strict=True)
    )
    assert both <= float(found.values[:2].mean()) + 1e-6


def test_where_nothing_is_known_of_prices_to_come_carbon_counts_alone_also_on_reserved_capacity() -> None:
    here = site("a", intensities=forecast(300, 100, 300), cpu_hour=1.0, reserved=4.0)
    best = options(job(3, aims=("carbonIntensity", "cost")), here)[0]
    assert (best.option.kind, best.start, best.values[:3].tolist()) == (RESERVED, 1.0, [300, 100, 300])


def test_a_forecast_that_ends_early_repeats_its_days_and_one_that_is_too_old_counts_no_more() -> None:
    two = site("a", carbon=77.0, intensities=Series((300.0, 100.0), NOW))
    assert at_sites(job(20, (1.0,)), [two])[0].carbon == 100.0
    old = replace(two, intensities=Series((300.0, 100.0), NOW - 90 * HOUR))
    found = at_sites(job(20, (1.0,)), [old])[0]
    assert (found.start, found.carbon) == (0.0, 77.0), "it starts at once, with what is known of the present"
    assert at_sites(job(3), [site("a", carbon=None)])[0].carbon is None


def test_a_forecast_that_was_wrong_before_is_not_waited_for_on_its_word_alone() -> None:
    said = forecast(100.0, 95.0, 90.0, 95.0)
    trusted, doubted = site("a", intensities=said), site("b", intensities=replace(said, error=0.5))
    good, bad = at_sites(job(3), [trusted, doubted])
    assert (good.start, good.carbon) == (2.0, 90.0) and (bad.start, bad.carbon) == (0.0, 100.0)
    # What is said to be much better is waited for all the same, and counts as it is doubted.
    clear = at_sites(job(3), [site("c", intensities=Series((300.0, 300.0, 10.0, 300.0), NOW, error=0.2))])[0]
    assert clear.start == 2.0 and clear.carbon == pytest.approx(10.0 + margin(0.2) * clear_mean(300.0, 10.0))
    assert margin(None) == margin(math.nan) == 0.0 and margin(9.0) == margin(1.0)


def clear_mean(usual: float, low: float) -> float:
    """Of four hours as they are extended to the six that are looked at: the rest is like the mean."""
    four = (3 * usual + low) / 4
    return (3 * usual + low + 3 * four) / 7
