"""Lengths that nobody knows: the survival function is Kaplan's and Meier's, and no policy over it expects less."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.scheduler.survival import MORE, Survival, averages, stop

LENGTHS = st.lists(st.floats(0.1, 40), min_size=1, max_size=30)
PRICES = st.lists(st.integers(1, 500).map(float), min_size=12, max_size=60)


def test_what_still_runs_counts_as_longer_than_that() -> None:
    # The textbook's: two of four ended, one was seen for longer only.
    found = Survival([1.0, 3.0, 5.0], [2.0])
    outlives = 0.5 / 4
    at = np.array([0.5, 1.5, 2.5, 3.5, 4.9])
    kept = np.array([1.0, 0.75, 0.75, 0.375, 0.375])
    assert found.alive(at) == pytest.approx((1 - outlives) * kept + outlives, abs=0.02)


@given(LENGTHS, st.lists(st.floats(0, 60), max_size=10))
def test_a_survival_function_falls_and_what_outlives_it_goes_on(ended: list[float], running: list[float]) -> None:
    found = Survival(ended, running)
    alive = found.alive(np.linspace(0, 2 * found.longest, 50))
    assert alive[0] <= 1 and (np.diff(alive) <= 1e-12).all() and alive[-1] > 0
    assert found.left(np.array([10 * found.longest]))[0] == pytest.approx(MORE * found.longest, rel=0.05)
    hours, on = found.steps(np.array([0.0, found.longest]), 0.5, 40)
    assert ((hours >= 0) & (hours <= 0.5)).all() and ((on >= 0) & (on <= 1)).all()


@given(PRICES, LENGTHS, st.integers(0, 8), st.integers(0, 4))
@settings(max_examples=20)
def test_the_best_policy_beats_every_fixed_wait(prices: list[float], known: list[float], slack: int, ran: int) -> None:
    survival, found = Survival(known), averages(np.array(prices), 0.0, 1.0, 70)
    best = stop(found, survival, np.array([float(ran)]), np.array([float(slack)]), 1.0)
    assert best.best[0] <= best.direct[0] + 1e-6
    for wait in range(slack + 1):
        later = stop(found[wait:], survival, np.array([float(ran)]), np.zeros(1), 1.0).direct[0]
        # The ends of the prices differ by the wait, and what is left then is paid at their mean.
        rest = survival.left(np.array([ran + 60.0]))[0] * float(survival.alive(np.array([60.0 + ran]))[0]) * 500
        assert best.best[0] <= later + 60 * rest + 1e-6
    assert (best.worth[0] == math.inf) == (slack < 1)
    if slack:
        # Running now is best exactly where its price is no more than what it is worth.
        assert (best.start[0] == 0) == (found[0] <= best.worth[0] + 1e-9) or math.isclose(found[0], best.worth[0], rel_tol=1e-6)


def test_with_a_known_length_it_is_the_cheapest_hours_but_for_the_tail() -> None:
    prices = np.array([300.0, 200.0, 100.0, 500.0, 60.0, 400.0, *[400.0] * 60])
    found = stop(averages(prices, 0.0, 1.0, 60), Survival([2.0] * 2000), np.zeros(1), np.array([4.0]), 1.0)
    assert found.best[0] == pytest.approx(160, rel=0.05) and found.start[0] == 2


def test_means_of_steps_begin_within_an_hour_and_the_last_goes_on() -> None:
    found = averages(np.array([100.0, 200.0]), 0.5, 0.5, 5)
    assert found.tolist() == [100.0, 200.0, 200.0, 200.0, 200.0]


@pytest.mark.parametrize("bad", [[], [math.nan], [-1.0], [math.inf]])
def test_lengths_that_are_none_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="length"):
        Survival(bad)


def test_prices_that_do_not_reach_are_refused() -> None:
    with pytest.raises(ValueError, match="do not reach over a slack of 4 steps"):
        stop(np.ones(4), Survival([1.0]), np.zeros(1), np.array([4.0]), 1.0)
