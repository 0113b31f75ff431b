"""Carbon APIs: what is asked, what is made of the documented answers, and what holds while there are none."""

import json
from typing import Any

import numpy as np
import pytest

from metaos.accounting.feeds import (
    FEEDS,
    FRESH_SECONDS,
    MOST_GRAMS,
    MOST_ZONES,
    REFRESH_SECONDS,
    FeedCarbonSource,
    hourly,
    points,
    request,
)
from metaos.resources.meta import format_time

NOW = 1_700_000_000.0 // 3600 * 3600


def answer(feed: str, values: list[Any], start: float = NOW, step: float = 3600.0) -> bytes:
    """As each API documents its answers."""
    at = [format_time(start + i * step) for i in range(len(values))]
    said: Any
    if feed == "electricity-maps":
        rows = [{"carbonIntensity": v, "datetime": t.replace("Z", ".000Z")} for v, t in zip(values, at, strict=True)]
        said = {"zone": "DE", "forecast": rows, "updatedAt": at[0]}
    elif feed == "watttime":
        rows = [{"point_time": t.replace("Z", "+00:00"), "value": v} for v, t in zip(values, at, strict=True)]
        said = {"data": rows, "meta": {"region": "CAISO_NORTH", "signal_type": "co2_moer", "units": "lbs_co2_per_mwh"}}
    elif feed == "uk-carbon-intensity":
        rows = [{"from": t[:16] + "Z", "intensity": {"forecast": v, "actual": None}} for v, t in zip(values, at, strict=True)]
        said = {"data": rows}
    else:
        rows = [{"location": "westeurope", "timestamp": t, "duration": 60, "value": v} for v, t in zip(values, at, strict=True)]
        said = [{"generatedAt": at[0], "forecastData": rows}]
    return json.dumps(said).encode()


@pytest.mark.parametrize("feed", FEEDS)
def test_documented_answers_are_understood(feed: str) -> None:
    found = hourly(points(feed, answer(feed, [100, 200.5, 300])), NOW + 1800)
    factor = 0.45359237 if feed == "watttime" else 1.0
    assert found == pytest.approx([100 * factor, 200.5 * factor, 300 * factor])


def test_a_region_of_great_britain_is_wrapped_once_more() -> None:
    inner = json.loads(answer("uk-carbon-intensity", [50, 70], step=1800))
    body = json.dumps({"data": {"regionid": 13, "shortname": "London", "data": inner["data"]}}).encode()
    assert hourly(points("uk-carbon-intensity", body), NOW) == [60.0]


def test_what_is_asked_holds_the_token_where_it_belongs() -> None:
    asked = request("electricity-maps", "https://e", "DE", "secret", NOW)
    assert (asked.url, asked.headers) == ("https://e/v3/carbon-intensity/forecast?zone=DE", {"auth-token": "secret"})
    assert "secret" not in repr(asked) and "secret" not in asked.url
    assert request("watttime", "https://w", "A/B", "t", NOW).url.startswith("https://w/v3/forecast?region=A%2FB&")
    assert request("uk-carbon-intensity", "https://u", "GB", "", NOW + 1900).url.endswith("Z/fw48h")
    assert request("uk-carbon-intensity", "https://u", "GB-13", "", NOW).url.endswith("/regionid/13")
    with pytest.raises(ValueError, match="'DE' must be GB"):
        request("uk-carbon-intensity", "https://u", "DE", "", NOW)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"<html>", "not JSON"),
        (b"{}", "forecast: a list is expected"),
        (b"[]", "forecast: a list is expected"),
        (b'{"forecast": []}', "0 points"),
        (b'{"forecast": [{"carbonIntensity": -1, "datetime": "2026-01-01T00:00:00Z"}]}', "point 0, carbonIntensity: -1 must be"),
        (b'{"forecast": [{"carbonIntensity": NaN, "datetime": "2026-01-01T00:00:00Z"}]}', "nan must be a number"),
        (b'{"forecast": [{"carbonIntensity": 1e9, "datetime": "2026-01-01T00:00:00Z"}]}', f"to {MOST_GRAMS:g} gCO2eq/kWh"),
        (b'{"forecast": [{"carbonIntensity": 5, "datetime": "soon"}]}', "point 0, datetime: 'soon' is no time"),
        (b'{"forecast": [7]}', "None must be a number"),
        (b" " * (3 << 20), "more than"),
    ],
)
def test_answers_that_make_no_sense_name_the_field(body: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        points("electricity-maps", body)


def test_the_units_of_watttime_are_looked_at() -> None:
    body = answer("watttime", [1]).replace(b"lbs_co2_per_mwh", b"percent")
    with pytest.raises(ValueError, match=r"meta.units: 'percent'"):
        points("watttime", body)


def test_gaps_end_a_forecast() -> None:
    found = [*points("electricity-maps", answer("electricity-maps", [1, 2])), (NOW + 5 * 3600, 9.0)]
    assert hourly(found, NOW) == [1, 2]
    assert hourly(found, NOW + 86400) == []


def test_steps_while_an_api_does_not_answer() -> None:
    source = FeedCarbonSource("electricity-maps", token=lambda: "t")
    source.validate()
    assert source.intensity("DE", NOW) is None and source.says("DE", NOW) == "electricity-maps: not asked yet"
    # Three days of answers, one an hour, each for two days.
    for hour in range(72):
        now = NOW + hour * 3600
        assert source.due("DE", now) is not None
        source.take("DE", 200, answer("electricity-maps", [100 + 10 * ((hour + i) % 24) for i in range(48)], start=now), now)
    last = NOW + 71 * 3600
    assert source.says("DE", last) == "electricity-maps, a day ahead 0 % wrong so far"
    # Then none: the last forecast, with its age, as far as it goes.
    source.take("DE", 500, b"", last + 60)
    later = last + 5 * 3600
    assert source.says("DE", later) == "electricity-maps, 5.0 h old (answered 500)"
    found = source.intensity("DE", later)
    assert found is not None and len(found) == 43 and found[0] == 100 + 10 * ((71 + 5) % 24)
    # Then what the hours seen lead one to expect.
    for hour in range(6, 48):
        source.intensity("DE", last + hour * 3600)
    beyond = last + 49 * 3600
    assert "seasonal model, as electricity-maps does not answer (answered 500)" in source.says("DE", beyond)
    foreseen = source.intensity("DE", beyond)
    assert foreseen is not None and len(foreseen) == 48
    assert foreseen[0] == pytest.approx(100 + 10 * ((71 + 49) % 24), abs=15)
    # Then nothing.
    gone = last + 200 * 3600
    assert source.intensity("DE", gone) is None and source.says("DE", gone).startswith("not known")


def test_a_forecast_that_was_wrong_before_counts_less_and_it_says_how_wrong() -> None:
    generator = np.random.default_rng(3)
    source, wave = FeedCarbonSource("electricity-maps", token=lambda: "t"), 200 + 100 * np.sin(np.arange(600) * np.pi / 12)
    for hour in range(24 * 10):
        now = NOW + hour * 3600
        # Right for the current hour, noise beyond.
        said = [wave[hour], *generator.uniform(100, 300, 47)]
        source.take("DE", 200, answer("electricity-maps", said, start=now), now)
        found = source.intensity("DE", now)
    assert found is not None and len(found) == 48 and found[0] == pytest.approx(wave[hour])
    wrong = np.abs(np.array(said[1:]) - wave[hour + 1 : hour + 48]).mean()
    assert np.abs(np.array(found[1:]) - wave[hour + 1 : hour + 48]).mean() < 0.5 * wrong
    error = source.error("DE", now)
    assert error is not None and 0.3 < error < 0.6
    assert f"a day ahead {error * 100:.0f} % wrong so far" in source.says("DE", now)


def test_it_asks_in_turn_less_often_after_failures_and_not_without_bound() -> None:
    source = FeedCarbonSource("carbon-aware-sdk", base="http://sdk")
    assert source.due("westeurope", NOW) is not None
    assert source.due("westeurope", NOW + 1) is None
    for _ in range(5):
        source.take("westeurope", 0, b"no answer within 10 s", NOW)
    assert source.due("westeurope", NOW + REFRESH_SECONDS + 1) is None
    assert source.due("westeurope", NOW + 7201) is not None
    assert source.due("westeurope", NOW - 1e6) is not None, "a clock that was set back does not hold it up"
    assert "no answer within 10 s" in source.says("westeurope", NOW)
    assert sum(source.due(f"z{i}", NOW) is not None for i in range(MOST_ZONES + 50)) == MOST_ZONES - 1
    assert FRESH_SECONDS > REFRESH_SECONDS


def test_settings_that_cannot_work_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="--carbon-token-file"):
        FeedCarbonSource("watttime").validate()
    with pytest.raises(ValueError, match="--carbon-url"):
        FeedCarbonSource("carbon-aware-sdk").validate()
    with pytest.raises(ValueError, match="there are electricity-maps"):
        FeedCarbonSource("tea-leaves")

    def unreadable() -> str:
        raise OSError(13, "Permission denied")

    source = FeedCarbonSource("electricity-maps", token=unreadable)
    assert source.due("DE", NOW) is None
    assert "its token cannot be read: Permission denied" in source.says("DE", NOW)
