"""Public carbon APIs as a source: what to ask them, what they answer, and what holds while they do not. Pure: the caller fetches.

Steps, each said in what :meth:`FeedCarbonSource.says` tells: a fresh forecast; the last one, with its age, as far as it reaches;
a seasonal forecast from the hours seen since the start; then nothing, and the caller falls back to what the site states itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from metaos.accounting.carbon import FORECAST_HOURS, HOUR_SECONDS
from metaos.accounting.forecast import DAY, LEAST_HOURS, MOST_HOURS, believed, seasonal
from metaos.plugins.points import FRESH, LOCATION, MARGINAL, SEASONAL, STALE, UNKNOWN, CarbonSource, Request
from metaos.resources.meta import format_time, parse_time

#: Where each answers, unless told otherwise.
FEEDS = {
    "electricity-maps": "https://api.electricitymaps.com",
    "watttime": "https://api.watttime.org",
    "uk-carbon-intensity": "https://api.carbonintensity.org.uk",
    "carbon-aware-sdk": "",
}
#: Seconds between two requests for a zone, doubled after each failure up to the second figure.
REFRESH_SECONDS, MOST_SECONDS = 900.0, 7200.0
#: A forecast is fresh for so long.
FRESH_SECONDS = 3 * REFRESH_SECONDS
MOST_POINTS, MOST_GRAMS, MOST_BYTES, MOST_ZONES = 5000, 5000.0, 2 << 20, 500
_POUNDS_PER_MWH = 453.59237 / 1000


def request(feed: str, base: str, zone: str, token: str, now: float) -> Request:
    """What to ask for a zone, under the name that the API gives it."""
    where = quote(zone, safe="")
    if feed == "electricity-maps":
        return Request(f"{base}/v3/carbon-intensity/forecast?zone={where}", {"auth-token": token})
    if feed == "watttime":
        path = f"/v3/forecast?region={where}&signal_type=co2_moer&horizon_hours={FORECAST_HOURS}"
        return Request(base + path, {"Authorization": f"Bearer {token}"})
    if feed == "uk-carbon-intensity":
        moment = format_time(now // 1800 * 1800)[:16] + "Z"
        country, _, region = zone.partition("-")
        if country != "GB" or (region and not region.isdigit()):
            raise ValueError(f"zone {zone!r} must be GB, or GB- and the number of a region, for example GB-13")
        path = f"/regional/intensity/{moment}/fw48h/regionid/{region}" if region else f"/intensity/{moment}/fw48h"
        return Request(base + path)
    if feed == "carbon-aware-sdk":
        return Request(
            f"{base}/emissions/forecasts/current?location={where}", {"Authorization": f"Bearer {token}"} if token else {}
        )
    raise ValueError(f"carbon feed {feed!r} is not known: there are {', '.join(FEEDS)}")


def points(feed: str, body: bytes) -> list[tuple[float, float]]:
    """(Time, gCO2eq/kWh) in order. Raises ``ValueError`` naming the field and what is wrong with it."""
    if len(body) > MOST_BYTES:
        raise ValueError(f"the answer has more than {MOST_BYTES} bytes")
    try:
        said = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the answer is not JSON: {error}") from None
    factor = 1.0
    if feed == "electricity-maps":
        rows, when, value = _rows(said, "forecast"), "datetime", "carbonIntensity"
    elif feed == "watttime":
        units = str(_at(said, "meta", "units"))
        if units not in ("lbs_co2_per_mwh", "lbs CO2/MWh"):
            raise ValueError(f"meta.units: {units!r} is not known, lbs_co2_per_mwh is")
        rows, when, value, factor = _rows(said, "data"), "point_time", "value", _POUNDS_PER_MWH
    elif feed == "uk-carbon-intensity":
        inner = said.get("data") if isinstance(said, dict) else None
        rows, when, value = _rows(inner if isinstance(inner, dict) else said, "data"), "from", "intensity"
    else:
        first = said[0] if isinstance(said, list) and said else None
        rows, when, value = _rows(first, "forecastData"), "timestamp", "value"
    if not rows or len(rows) > MOST_POINTS:
        raise ValueError(f"the answer has {len(rows)} points, and 1 to {MOST_POINTS} are taken")
    return sorted(_point(row, index, when, value, factor) for index, row in enumerate(rows))


def _at(said: Any, *keys: str) -> Any:
    for key in keys:
        said = said.get(key) if isinstance(said, Mapping) else None
    return said


def _rows(said: Any, key: str) -> list[Any]:
    found = _at(said, key)
    if not isinstance(found, list):
        raise ValueError(f"{key}: a list is expected, and there is {type(found).__name__}")
    return found


def _point(row: Any, index: int, when: str, value: str, factor: float) -> tuple[float, float]:
    amount = _at(row, value)
    if isinstance(amount, Mapping):
        amount = amount.get("forecast")
    grams = float(amount) * factor if isinstance(amount, int | float) and not isinstance(amount, bool) else math.nan
    if not 0 <= grams <= MOST_GRAMS:
        raise ValueError(f"point {index}, {value}: {amount!r} must be a number from 0 to {MOST_GRAMS:g} gCO2eq/kWh")
    try:
        return parse_time(str(_at(row, when))), grams
    except ValueError:
        raise ValueError(f"point {index}, {when}: {_at(row, when)!r} is no time") from None


def hourly(found: Sequence[tuple[float, float]], now: float) -> list[float]:
    """Means of clock hours, from the current one up to the first that is missing."""
    hours: dict[int, list[float]] = {}
    for time, grams in found:
        hours.setdefault(math.floor(time / HOUR_SECONDS), []).append(grams)
    first = math.floor(now / HOUR_SECONDS)
    result: list[float] = []
    while first in hours and len(result) < FORECAST_HOURS:
        result.append(sum(hours[first]) / len(hours[first]))
        first += 1
    return result


@dataclass(slots=True)
class _Zone:
    points: list[tuple[float, float]] = field(default_factory=list)
    taken: float = -math.inf
    asked: float = -math.inf
    failures: int = 0
    problem: str = ""
    #: Hour → what was said of it last, once it had come. Bounded by ``MOST_HOURS``.
    seen: dict[int, float] = field(default_factory=dict)
    #: Hour → what was said of it a day before. Bounded alike.
    said: dict[int, float] = field(default_factory=dict)


class FeedCarbonSource(CarbonSource):
    """A carbon source over one of :data:`FEEDS`. ``token`` is asked for each request; WattTime's is a bearer token."""

    def __init__(self, feed: str, *, base: str = "", token: Callable[[], str] = str) -> None:
        if feed not in FEEDS:
            raise ValueError(f"carbon feed {feed!r} is not known: there are {', '.join(FEEDS)}")
        self._feed, self._base, self._token = feed, (base or FEEDS[feed]).rstrip("/"), token
        self._zones: dict[str, _Zone] = {}

    @property
    def basis(self) -> str:
        """WattTime's signal (``co2_moer``) is marginal, the others' are averages."""
        return MARGINAL if self._feed == "watttime" else LOCATION

    def validate(self) -> None:
        """Raises ``ValueError`` with the remedy."""
        if not self._base:
            raise ValueError(f"carbon feed {self._feed} has no address of its own: say --carbon-url")
        if self._feed in ("electricity-maps", "watttime") and not self._token():
            raise ValueError(f"carbon feed {self._feed} needs a token: say --carbon-token-file")

    def due(self, zone: str, now: float) -> Request | None:
        """What to fetch now, if anything. One request a zone at a time, less often after failures."""
        if not zone or (zone not in self._zones and len(self._zones) >= MOST_ZONES):
            return None
        state = self._zones.setdefault(zone, _Zone())
        wait = min(MOST_SECONDS, REFRESH_SECONDS * 2.0**state.failures)
        # A clock that was set back does not hold it up.
        if 0 <= now - state.asked < wait:
            return None
        state.asked = now
        try:
            return request(self._feed, self._base, zone, self._token(), now)
        except ValueError as error:
            problem = str(error)
        except OSError as error:
            problem = f"its token cannot be read: {error.strerror}"
        self._failed(state, problem)
        return None

    def take(self, zone: str, status: int, body: bytes, now: float) -> None:
        """An answer; status 0: there was none, and ``body`` says why."""
        state = self._zones.setdefault(zone, _Zone())
        try:
            if status != 200:
                raise ValueError(f"answered {status}" if status else body.decode(errors="replace")[:200])
            found = points(self._feed, body)
            if not hourly(found, now):
                raise ValueError("the answer says nothing of the current hour")
        except ValueError as error:
            self._failed(state, str(error))
            return
        state.points, state.taken, state.failures, state.problem = found, now, 0, ""
        self._note(state, now)

    def _failed(self, state: _Zone, problem: str) -> None:
        state.failures, state.problem = min(state.failures + 1, 10), problem

    def _note(self, state: _Zone, now: float) -> None:
        first, current = math.floor(state.points[0][0] / HOUR_SECONDS), math.floor(now / HOUR_SECONDS)
        past = hourly(state.points, state.points[0][0])[: max(0, current - first + 1)]
        state.seen |= {first + step: grams for step, grams in enumerate(past)}
        if len(ahead := hourly(state.points, now)) > DAY and now - state.taken < HOUR_SECONDS:
            state.said.setdefault(current + DAY, ahead[DAY])
        for kept in (state.seen, state.said):
            for old in sorted(kept)[: max(0, len(kept) - MOST_HOURS - DAY)]:
                del kept[old]

    def _compared(self, state: _Zone, now: float) -> tuple[list[float], list[float]]:
        """The latest hours as they came, and as they were said a day before; both of the same hours, without gaps."""
        hour, true, told = math.floor(now / HOUR_SECONDS), [], []
        while hour in state.seen and hour in state.said:
            true.append(state.seen[hour])
            told.append(state.said[hour])
            hour -= 1
        return true[::-1], told[::-1]

    def error(self, zone: str, now: float) -> float | None:
        """How wrong forecasts for a day ahead were, as a share of the mean; ``None`` before a day of them has come."""
        true, told = self._compared(self._zones.get(zone, _Zone()), now)
        if len(true) < DAY or not sum(true):
            return None
        return sum(abs(a - b) for a, b in zip(true, told, strict=True)) / sum(true)

    def intensity(self, zone: str, now: float) -> Sequence[float] | None:
        state = self._zones.get(zone)
        if state is None:
            return None
        hours = hourly(state.points, now)
        if hours:
            self._note(state, now)
            return hours[:1] + corrected(*self._compared(state, now), hours[1:])
        found = self._season(state, now)
        return None if found is None else found[0]

    def _season(self, state: _Zone, now: float) -> tuple[Sequence[float], float] | None:
        """The seasonal forecast from the current hour on, and its measured error; ``None`` where too little was seen."""
        past = _unbroken(state.seen)
        if len(past) < LEAST_HOURS:
            return None
        missing = math.floor(now / HOUR_SECONDS) - max(state.seen)
        if not 0 <= missing < FORECAST_HOURS:
            return None
        found = seasonal(past, FORECAST_HOURS + missing)
        return found.values[missing : missing + FORECAST_HOURS], found.error

    def step(self, zone: str, now: float) -> tuple[str, float | None]:
        """How far it had to fall back for a zone and how wrong that was so
        far, a day ahead, as a share of the mean; ``None`` where it was not measured."""
        state = self._zones.get(zone)
        if state is None:
            return UNKNOWN, None
        if hourly(state.points, now):
            return (FRESH if now - state.taken < FRESH_SECONDS else STALE), self.error(zone, now)
        found = self._season(state, now)
        if found is None:
            return UNKNOWN, None
        return SEASONAL, None if math.isnan(found[1]) else found[1]

    def says(self, zone: str, now: float) -> str:
        """Which of the steps holds for a zone, and why not the one before."""
        state = self._zones.get(zone)
        if state is None or (math.isinf(state.taken) and not state.problem):
            return f"{self._feed}: not asked yet"
        why = f" ({state.problem})" if state.problem else ""
        age = now - state.taken
        if hourly(state.points, now):
            wrong = self.error(zone, now)
            erred = "" if wrong is None else f", a day ahead {wrong * 100:.0f} % wrong so far"
            return self._feed + erred if age < FRESH_SECONDS else f"{self._feed}{erred}, {age / HOUR_SECONDS:.1f} h old{why}"
        step, wrong = self.step(zone, now)
        if step == SEASONAL:
            erred = "" if wrong is None else f"; error ±{wrong * 100:.0f} %"
            return f"stale {age / HOUR_SECONDS:.0f} h: seasonal model, as {self._feed} does not answer{why}{erred}"
        return f"not known: {self._feed} does not answer{why}"

    def describe(self) -> str:
        return self._feed


def corrected(true: Sequence[float], told: Sequence[float], ahead: Sequence[float]) -> list[float]:
    """A forecast, believed as far as those before it were right; as it stands while too little is known of them."""
    if not ahead or len(true) < LEAST_HOURS + DAY:
        return list(ahead)
    import numpy as np

    found: list[float] = believed(np.array(true), np.array(told), np.array(ahead)).tolist()
    return found


def _unbroken(seen: Mapping[int, float]) -> list[float]:
    """The latest hours without gaps."""
    hour, found = max(seen, default=0), []
    while hour in seen:
        found.append(seen[hour])
        hour -= 1
    return found[::-1]
