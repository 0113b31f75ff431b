"""Reserved, on-demand and spot: the cheapest that fits and is stood, with what interruptions cost."""

import math

import pytest

from metaos.scheduler.capacity import ON_DEMAND, RESERVED, SPOT, Offer, blended, choose, mean_along

OFFERS = Offer(RESERVED, 0.0, 2.0), Offer(SPOT, 0.2, rate=0.5), Offer(ON_DEMAND, 1.0)


def test_the_cheapest_that_fits_and_is_stood() -> None:
    assert choose(OFFERS, 2.0, 1.0, interruptible=False, keeps=False).kind == RESERVED  # type: ignore[union-attr]
    found = choose(OFFERS, 3.0, 1.0, interruptible=False, keeps=False)
    assert found is not None and found.kind == ON_DEMAND
    assert found.reason == "reserved 0: 2 of 3 CPUs free; spot 0.2: it does not stand interruptions; on-demand 1"
    assert choose((), 1.0, 1.0, interruptible=True, keeps=True) is None


def test_spot_capacity_that_is_taken_back_too_often_is_dearer_than_on_demand() -> None:
    short = choose(OFFERS[1:], 1.0, 1.0, interruptible=True, keeps=False)
    assert short is not None and short.kind == SPOT and short.price == pytest.approx(0.2 * math.expm1(0.5) / 0.5)
    long = choose(OFFERS[1:], 1.0, 10.0, interruptible=True, keeps=False)
    assert long is not None and long.kind == ON_DEMAND
    kept = choose(OFFERS[1:], 1.0, 10.0, interruptible=True, keeps=True)
    assert kept is not None and kept.kind == SPOT and kept.price == 0.2


def test_beginning_again_takes_its_time_also_where_nothing_is_lost() -> None:
    slow = Offer(SPOT, 0.2, rate=0.5, restart=0.5), Offer(ON_DEMAND, 1.0)
    kept = choose(slow, 1.0, 10.0, interruptible=True, keeps=True)
    assert kept is not None and kept.kind == SPOT and kept.price == pytest.approx(0.2 * math.exp(0.25))


def test_two_series_count_alike_whatever_their_units() -> None:
    assert blended([100.0, 300.0, 1.0], [0.03, 0.01]) == pytest.approx([100.0, 100.0])
    assert blended([0.0, 0.0], [1.0, 3.0]) == pytest.approx([75.0, 125.0])


def test_a_mean_along_runs_counts_the_parts_of_hours_and_the_width() -> None:
    assert mean_along([100.0, 200.0], ((0.5, 1.0, 1),), 0.0) == 150.0
    assert mean_along([100.0, 200.0], ((0.0, 1.0, 1), (1.0, 1.0, 3)), 0.0) == 175.0
    assert mean_along([100.0], ((5.0, 1.0, 1),), 0.5) == 100.0
