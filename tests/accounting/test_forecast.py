"""Forecasts: the seasonal model, its measured error, and how far others are believed."""

import math

import numpy as np
import pytest

from metaos.accounting.forecast import LEAST_HOURS, backtest, believed, filled, seasonal


def days(count: int) -> np.ndarray:
    return 300 + 100 * np.sin(np.arange(24 * count) * 2 * np.pi / 24)


def test_a_day_like_all_others_is_foreseen() -> None:
    past = days(10)
    found = seasonal(past.tolist())
    assert len(found.values) == len(found.low) == len(found.high) == 48
    assert found.values[0] == past[-1]
    assert np.allclose(found.values[1:], days(12)[240:287], atol=1e-6)
    assert found.error < 1e-6


def test_quantiles_hold_as_often_as_they_say() -> None:
    noise = np.random.default_rng(1).normal(0, 30, 24 * 60)
    true = days(60) + noise
    inside = []
    for at in range(24 * 30, 24 * 58, 24):
        found = seasonal(true[:at].tolist())
        truth = true[at : at + 47]
        inside.append(np.mean((truth >= found.low[1:]) & (truth <= found.high[1:])))
    assert 0.7 < np.mean(inside) < 0.9


def test_errors_are_measured_on_what_the_model_had_not_seen() -> None:
    past = days(6)
    assert np.abs(backtest(past, 24)).max() < 1e-9
    jump = np.concatenate([days(3), days(3) + 200])
    assert np.abs(backtest(jump, 24)).max() > 50


def test_short_gaps_are_filled_and_long_ones_refused() -> None:
    assert filled([1.0, math.nan, 3.0]) == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="4 hours are missing before hour 5; at most 3"):
        filled([1.0, *[math.nan] * 4, 2.0])
    with pytest.raises(ValueError, match="ends with 1 missing"):
        filled([1.0, math.nan])
    with pytest.raises(ValueError, match=r"hour 1: -2.0 must be"):
        filled([1.0, -2.0])
    with pytest.raises(ValueError, match=f"needs {LEAST_HOURS} hours"):
        seasonal([1.0])


def test_a_forecast_is_believed_as_far_as_it_was_right() -> None:
    generator = np.random.default_rng(2)
    true = days(30) + generator.normal(0, 60, 720)
    past, ahead = true[:672], true[672:]
    right = believed(past, past, ahead)
    assert np.abs(right - ahead).mean() < 3
    wrong = generator.permutation(true)
    shrunk = believed(past, wrong[:672], wrong[672:])
    assert np.abs(shrunk - ahead).mean() < 0.75 * np.abs(wrong[672:] - ahead).mean()
    assert believed(past[:10], past[:10], ahead) is ahead
