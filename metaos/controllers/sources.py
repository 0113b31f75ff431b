"""Sources of carbon intensities and prices: those that ship with NEMO and plugins, made alike by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metaos.accounting.carbon import StaticCarbonSource, TraceCarbonSource
from metaos.accounting.feeds import FeedCarbonSource
from metaos.accounting.price import StaticPriceSource, TracePriceSource
from metaos.accounting.trace import HOUR_SECONDS
from metaos.plugins.points import CarbonSource, PriceSource
from metaos.plugins.registry import provision

CARBON_SOURCES, PRICE_SOURCES = "metaos.carbon_source", "metaos.price_source"
GROUPS: dict[str, type] = {CARBON_SOURCES: CarbonSource, PRICE_SOURCES: PriceSource}


def source(group: str, name: str, text: str, now: float) -> Any:
    """A ready source, of what the operator said of it.

    Raises ``UnknownPlugin``, ``OSError`` where its file cannot be read, and ``ValueError`` naming the plugin and what it lacks.
    """
    try:
        found = provision(group, name, text, now=now)
    except (TypeError, ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"plugin {name!r} of {group} cannot be made of {text!r}: {type(error).__name__}: {error}") from error
    protocol = GROUPS[group]
    if lacks := [part for part in vars(protocol) if not part.startswith("_") and not hasattr(found, part)]:
        remedy = f"derive it from {protocol.__module__}.{protocol.__name__}"
        raise ValueError(f"plugin {name!r} of {group} has no {', '.join(lacks)}: {remedy}")
    return found


def figures(said: Sequence[float] | None) -> tuple[list[float] | None, str]:
    """What a source says of the hours to come, or ``None`` and why none of it is used: a plugin may say anything."""
    if said is None:
        return None, ""
    found: list[float] = []
    try:
        for value in said:
            found.append(float(value))
            if not math.isfinite(found[-1]):
                return None, f"; its figure of hour {len(found) - 1} is no number ({value})"
    except (TypeError, ValueError, OverflowError) as error:
        return None, f"; its figure of hour {len(found)} is no number ({error})"
    return (found, "") if found else (None, "; its forecast is empty")


# -- what ships with NEMO ----------------------------------------------------------------------------------


def _nothing(text: str) -> None:
    if text:
        raise ValueError(f"source static={text!r}: it takes nothing: what the sites state themselves holds")


def static_carbon(text: str, *, now: float) -> StaticCarbonSource:
    """What the sites state."""
    _nothing(text)
    return StaticCarbonSource()


def trace_carbon(text: str, *, now: float, start_hour: float = 0.0, speed: float = 1.0) -> TraceCarbonSource:
    """Replays the file named ``text``."""
    file = Path(text)
    with file.open() as lines:
        return TraceCarbonSource(lines, start_time=now, start_hour=start_hour, speed=speed, name=file.name)


def feed_carbon(text: str, *, now: float, base: str = "", token: Callable[[], str] = str) -> FeedCarbonSource:
    """The public API named ``text``."""
    return FeedCarbonSource(text, base=base, token=token)


def static_price(text: str, *, now: float) -> StaticPriceSource:
    """What the sites state."""
    _nothing(text)
    return StaticPriceSource()


def trace_price(text: str, *, now: float) -> TracePriceSource:
    """Replays the file named ``text``, whose first row is the current hour."""
    file = Path(text)
    with file.open() as lines:
        return TracePriceSource(lines, start_time=now // HOUR_SECONDS * HOUR_SECONDS, name=file.name)
