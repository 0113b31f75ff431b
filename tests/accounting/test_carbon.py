"""Carbon traces and grams."""

import math
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.accounting.carbon import StaticCarbonSource, TraceCarbonSource, grams
from metaos.accounting.price import StaticPriceSource, TracePriceSource

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


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("0,1\n0,2\n", "line 3, hour_utc: hour '0' is there already; remove one of the lines"),
        ("5,1\n3,2\n", "line 3, hour_utc: hour '3' is before the line above; sort the lines"),
        ("0,1\n9,2\n", "line 3, hour_utc: 8 hours are missing before '9'; at most 3 in a row are filled in"),
        ("2022-01-01T00:00:00Z,1\n2022-01-01T00:30:00Z,2\n", "is not the beginning of an hour; one line an hour"),
        ("monday,1\n", "line 2, hour_utc: 'monday' must be a whole number of hours, or a time"),
        ("0,1\n1,90000\n", "line 3, zone DE: '90000' is more than 5000 gCO2eq/kWh: is it in another unit"),
        ("0,120 g\n", "line 2, zone DE: '120 g' must be a finite number of gCO2eq/kWh, at least 0; remove the line, or mend"),
        ("0,\n", "line 2, zone DE: ''"),
        ("0,inf\n", "'inf' must be a finite number"),
    ],
)
def test_hours_that_are_wrong_are_refused_with_the_line_and_the_remedy(rows: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        TraceCarbonSource("hour_utc,DE\n" + rows, start_time=0.0, name="t.csv")


def test_short_gaps_are_filled_between_their_ends_and_it_says_so() -> None:
    source = TraceCarbonSource("hour_utc,DE,FR\n0,100,10\n1,200,20\n4,500,80\n", start_time=0.0, name="t.csv")
    assert list(source.intensity("DE", 0.0) or ()) == [100, 200, 300, 400, 500]
    assert list(source.intensity("FR", 0.0) or ()) == [10, 20, 40, 60, 80]
    assert "2 missing hours of it were filled in" in source.describe()
    with pytest.raises(ValueError, match="names zone 'DE' twice"):
        TraceCarbonSource("hour_utc,DE,DE\n0,1,2\n", start_time=0.0)


def test_times_will_do_for_hours() -> None:
    text = "hour_utc,DE\n2022-01-01T00:00:00Z,1\n2022-01-01T01:00:00Z,2\n"
    assert list(TraceCarbonSource(text, start_time=0.0).intensity("DE", 3600.0) or ()) == [2, 1]


def test_prices_are_those_of_the_site_or_of_its_zone() -> None:
    source = TracePriceSource("hour_utc,DE,edge\n0,0.05,0.01\n1,0.06,0.02\n", start_time=0.0)
    assert list(source.price("edge", "DE", 0.0) or ()) == [0.01, 0.02]
    assert list(source.price("other", "DE", 0.0) or ()) == [0.05, 0.06]
    assert source.price("other", "FR", 0.0) is None
    with pytest.raises(ValueError, match="is it in another unit"):
        TracePriceSource("hour_utc,DE\n0,4000\n", start_time=0.0)
    assert StaticPriceSource({"edge": 0.1}).price("edge", "DE", 0.0) == [0.1]
    assert StaticPriceSource().price("edge", "DE", 0.0) is None


MILLION = """
import resource
from metaos.accounting.carbon import TraceCarbonSource

def lines():
    yield "hour_utc,DE,FR\\n"
    for hour in range(1_000_000):
        yield f"{hour},{hour % 700}.5,50\\n"

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = TraceCarbonSource(lines(), start_time=0.0)
print(found.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_million_rows_are_read_line_by_line_in_bounded_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, timeout=110, check=True)
    rows, grown = map(int, done.stdout.split())
    assert rows == 1_000_000
    # 16 MB of figures, and their array as it grows: KiB.
    assert grown < 48 << 10, grown


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
