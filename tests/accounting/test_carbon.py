"""Carbon traces and grams."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.accounting.carbon import StaticCarbonSource, TraceCarbonSource, grams

TRACE = "hour_utc,DE,FR\n0,400,50\n1,300,60\n2,200,70\n"


def test_a_kilowatt_for_an_hour_emits_the_intensity() -> None:
    assert grams(1000, 250, 3600) == 250


def test_a_trace_advances_at_its_speed_and_begins_again() -> None:
    source = TraceCarbonSource(TRACE, start_time=1000.0, start_hour=1, speed=3600, name="week.csv")
    assert list(source.intensity("DE", 1000.0) or ()) == [300, 200, 400]
    assert list(source.intensity("FR", 1001.5) or ()) == [70, 50, 60]
    assert source.intensity("XX", 1000.0) is None
    assert source.describe() == "replay of week.csv from row 1, at 3600 times real time"


def test_it_can_be_moved() -> None:
    source = TraceCarbonSource(TRACE, start_time=0.0)
    source.reset(start_time=10.0, start_hour=2, speed=1)
    assert source.row(10.0) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1"),
        ("hour_utc,DE\n", "no rows"),
        ("hour_utc,DE\n0,abc\n", "line 2, zone DE: 'abc'"),
        ("hour_utc,DE\n0,-1\n", "'-1'"),
        ("hour_utc,DE\n0,nan\n", "'nan'"),
        ("hour_utc,DE\n0,1,2\n", "line 2 has 3 columns"),
    ],
)
def test_a_malformed_trace_is_refused_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TraceCarbonSource(text, start_time=0.0, name="t.csv")


@pytest.mark.parametrize("speed", [math.nan, math.inf, -1])
def test_a_senseless_speed_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        TraceCarbonSource(TRACE, start_time=0.0, speed=speed)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e6))
def test_every_moment_has_a_row(now: float, speed: float) -> None:
    assert 0 <= TraceCarbonSource(TRACE, start_time=0.0, speed=speed).row(now) < 3


def test_static_sources_know_only_what_they_are_told() -> None:
    assert StaticCarbonSource({"DE": 300}).intensity("DE", 0.0) == [300]
    assert StaticCarbonSource().intensity("DE", 0.0) is None
