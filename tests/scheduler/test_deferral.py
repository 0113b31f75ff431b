"""Deferral: deadlines hold, work is conserved, capacity is kept, nothing flaps; and the rule is the best there is."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.scheduler.deferral import (
    ON_DEMAND,
    RESERVED,
    SPOT,
    WAITS,
    Deferrable,
    Prices,
    Weights,
    assign,
    schedule,
)
from metaos.scheduler.survival import Survival, averages, stop

PRICES = st.lists(st.integers(0, 500).map(float), min_size=1, max_size=60)
WHOLE = st.integers(1, 12)


@given(PRICES, WHOLE, st.integers(0, 24))
def test_following_the_price_displaced_hour_by_hour_is_the_cheapest_schedule(hours: list[float], work: int, slack: int) -> None:
    everything = Prices(hours).hours[: work + slack]
    left, budget, paid = float(work), float(slack), 0.0
    for hour in range(work + slack):
        if left < 1:
            break
        prices = Prices(Prices(hours).hours[hour:])
        value = prices.displaced(np.array([left]), np.array([budget]))[0]
        if budget < 1 or prices.now <= value:
            paid, left = paid + prices.now, left - 1
        else:
            budget -= 1
    assert left == 0 and budget >= 0
    assert paid == pytest.approx(np.sort(everything)[:work].sum())


@given(PRICES, st.lists(st.floats(0.1, 70), min_size=1, max_size=20), st.floats(0, 12), st.floats(0.1, 30), st.integers(0, 500))
@settings(max_examples=20)
def test_with_unknown_lengths_no_deadline_is_missed(
    hours: list[float], known: list[float], slack: float, truth: float, now_price: int
) -> None:
    step, ran, budget = 1.0, 0.0, slack
    means, survival = averages(Prices(hours).hours, 0.0, step, 60), Survival(known)
    for _ in range(400):
        if ran >= truth:
            break
        value = stop(means, survival, np.array([ran]), np.array([budget]), step).worth
        must = np.array([budget < step])
        one = np.ones(1)
        kind = assign(float(now_price), one, value, must, one, np.array([False]), np.zeros(1, np.int8), 0.0, Weights())
        if kind[0] == WAITS:
            budget -= step
        else:
            ran += step
    assert ran >= truth and budget >= 0


JOBS = st.lists(st.tuples(st.integers(1, 8), st.floats(0, 500), st.booleans(), st.booleans(), st.integers(0, 3)), max_size=15)


@given(JOBS, st.integers(0, 12), st.floats(0, 500), st.floats(0, 1000), st.floats(0, 100), st.integers(0, 20))
def test_capacity_is_never_exceeded_and_the_same_world_gives_the_same_answer(
    jobs: list[tuple[int, float, bool, bool, int]], reserved: int, price: float, money: float, patience: float, limit: int
) -> None:
    cpus, value, must, spot, held = (np.array([j[i] for j in jobs]) for i in range(5))
    rest = (np.where(spot.astype(bool), 0.2, 1.0), spot.astype(bool), held.astype(np.int8), float(reserved))
    arguments = (price, cpus.astype(float), value.astype(float), must.astype(bool), *rest, Weights(money, patience))
    kinds = assign(*arguments, float(limit))
    assert cpus[kinds == RESERVED].sum() <= reserved
    assert cpus[kinds == ON_DEMAND].sum() <= limit
    # With as much to rent as is wanted, what must run does.
    free = assign(*arguments)
    assert not (free[must.astype(bool)] == WAITS).any()
    assert not (free[~spot.astype(bool)] == SPOT).any()
    # What was decided is decided again: nothing flaps in a world that stands still.
    again = assign(*arguments[:6], free, *arguments[7:])
    assert (again == assign(*arguments[:6], again, *arguments[7:])).all()


@given(PRICES, WHOLE, st.integers(0, 24), st.booleans(), st.integers(1, 4), st.floats(0, 0.99))
def test_a_schedule_does_all_the_work_within_its_window(
    hours: list[float], work: int, slack: int, pauses: bool, widest: int, passed: float
) -> None:
    found = schedule(Deferrable(slack, (float(work),), pauses, (1, widest), 100.0), hours, passed=passed)
    assert sum(h * w for _, h, w in found.runs) == pytest.approx(work)
    assert found.start >= 0 and found.runs[-1][0] + found.runs[-1][1] <= work + slack + 1e-6
    assert all(a + h <= b + 1e-9 for (a, h, _), (b, _, _) in zip(found.runs, found.runs[1:], strict=False))
    assert found.saved >= -1e-9


def test_one_that_cannot_pause_starts_with_the_cheapest_run() -> None:
    found = schedule(Deferrable(5, (2.0,), watts=1000), [300, 200, 100, 50, 60, 400])
    assert found.runs == ((3.0, 2.0, 1),)
    assert (found.grams, found.grams_now, found.saved) == (110.0, 500.0, 390.0)
    assert found.reason == "55 gCO2eq/kWh then, 250 started at once"


def test_one_that_pauses_takes_the_cheapest_hours_and_an_elastic_one_is_wide_in_them() -> None:
    hours = [300, 200, 100, 500, 60, 400]
    assert schedule(Deferrable(4, (2.0,), True), hours).runs == ((2.0, 1.0, 1), (4.0, 1.0, 1))
    assert schedule(Deferrable(4, (2.0,), True, (1, 4)), hours).runs == ((4.0, 1.0, 2),)


def test_what_saves_next_to_nothing_does_not_wait() -> None:
    found = schedule(Deferrable(5, (1.0,)), [100, 99.5, 99.9])
    assert found.start == 0
    assert "no later start within 5 h saves enough" in found.reason


def test_no_slack_or_a_deadline_in_the_past_starts_now() -> None:
    assert schedule(Deferrable(0, (1.0,)), [300, 1]).start == 0
    late = schedule(Deferrable(-3, (1.0,)), [300, 1])
    assert (late.start, late.reason) == (0, "no time is left to wait")


def test_a_forecast_that_ends_early_says_so() -> None:
    assert "the forecast ends in 2 h" in schedule(Deferrable(20, (1.0,)), [300, 100]).reason


@pytest.mark.parametrize("bad", [[], [math.nan], [100, -1], [100, math.inf]])
def test_bad_forecasts_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"forecast"):
        Prices(bad)


def test_slack_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="slack nan must be a finite number"):
        schedule(Deferrable(math.nan), [100])


@given(PRICES, st.lists(st.floats(0.1, 60), min_size=2, max_size=20), st.floats(0, 24), st.integers(1, 4), st.floats(0, 0.99))
@settings(max_examples=20)
def test_what_pauses_and_takes_nobody_knows_how_long_costs_no_more_than_started_at_once(
    hours: list[float], known: list[float], slack: float, widest: int, passed: float
) -> None:
    found = schedule(Deferrable(slack, tuple(known), True, (1, widest), 100.0), hours, passed=passed)
    assert 0 <= found.start <= slack + 1e-9 and found.saved >= -1e-9
    assert 1 <= found.runs[0][2] <= widest


@pytest.mark.parametrize("length", [0.0, 1e-12])
@pytest.mark.parametrize("suspendable", [True, False])
def test_what_takes_no_time_is_planned_all_the_same(length: float, suspendable: bool) -> None:
    found = schedule(Deferrable(5.0, (length,), suspendable), [300.0, 100.0, *[400.0] * 22])
    assert found.start == 1.0 and found.intensity == pytest.approx(100.0)
