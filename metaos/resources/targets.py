"""What a target of an intent asks of a measured value, or of names: units, conditions, and how far something is from it. Pure."""

from __future__ import annotations

import math
from collections.abc import Set

from metaos.resources.snapshot import MONTH_HOURS, Target

TRUST_LEVELS = {"low": 1, "medium": 2, "high": 3}
#: Units that a target may be given in, as factors of the first one of its name.
UNITS: dict[str, dict[str, float]] = {
    "latency": {"ms": 1.0, "s": 1000.0, "us": 0.001},
    "carbonIntensity": {"gCO2eq/kWh": 1.0, "kgCO2eq/kWh": 1000.0, "kgCO2eq/MWh": 1.0},
    "emissions": {"gCO2eq/h": 1.0, "kgCO2eq/h": 1000.0},
    "energy": {"W": 1.0, "kW": 1000.0, "mW": 0.001},
    "cost": {"EUR/h": 1.0, "EUR/month": 1 / MONTH_HOURS},
    "availability": {"": 1.0, "%": 0.01},
    "residency": {"": 1.0},
    "trust": {"": 1.0},
    "attestation": {"": 1.0},
    "rpo": {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0},
    "rto": {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0},
}
#: Targets that say what the loss of a site may cost. They hold or not by what was backed up, at whatever site.
RECOVERY = ("rpo", "rto")

#: Conditions by what they ask of a measured value.
UPPER, LOWER = ("IsLessThan", "IsLessThanOrEqualTo"), ("IsGreaterThan", "IsGreaterThanOrEqualTo")
RANGES, WISHES = ("IsWithinRange", "IsOutsideRange"), ("Minimize", "Maximize")
#: Conditions on names: one of them holds, none of them does, all of them do.
ANY_OF, NONE_OF, ALL_OF = ("IsOneOf", "IsEqualToOneOf", "IsEqualTo"), ("IsNotOneOf", "IsNotEqualToOneOf"), ("IsAllOf",)


def meets(target: Target, value: float | None) -> bool:
    """Whether a measured value satisfies a bound or range. Unknown values do not. Bounds of a range are within it."""
    if target.condition in WISHES:
        return True
    if value is None:
        return False
    return {
        "IsLessThan": value < target.value,
        "IsLessThanOrEqualTo": value <= target.value,
        "IsGreaterThan": value > target.value,
        "IsGreaterThanOrEqualTo": value >= target.value,
        "IsWithinRange": target.low <= value <= target.high,
        "IsOutsideRange": value < target.low or value > target.high,
    }.get(target.condition, False)


def distance(target: Target, value: float | None) -> float:
    """How far a measured value is from what is asked, in the target's unit; infinite for one that is not known."""
    if meets(target, value):
        return 0.0
    if value is None:
        return math.inf
    if target.condition == "IsWithinRange":
        return target.low - value if value < target.low else value - target.high
    if target.condition == "IsOutsideRange":
        return min(value - target.low, target.high - value)
    return abs(value - target.value)


def lawful(target: Target, jurisdictions: Set[str]) -> bool:
    """Whether data may be where these laws hold. Where none is stated, nothing is known, and it may not."""
    named = set(target.values)
    if target.condition in NONE_OF:
        return bool(jurisdictions) and not jurisdictions & named
    if target.condition in ALL_OF:
        return named <= jurisdictions
    return bool(jurisdictions & named)


def trusted(target: Target, trust: str) -> bool:
    """Whether a level of trust is what is asked: with IsOneOf at least the lowest that is named, as more does no harm."""
    level, named = TRUST_LEVELS.get(trust, 0), [TRUST_LEVELS.get(v, 0) for v in target.values]
    if target.condition in NONE_OF:
        return trust not in target.values
    if target.condition == "IsEqualTo":
        return trust in target.values
    return level >= min(named, default=0)


def wanted_text(target: Target) -> str:
    """A target as people say it."""
    unit, condition = base_unit(target.name), target.condition
    names = ", ".join(target.values)
    if condition in RANGES:
        where = "from" if condition == "IsWithinRange" else "outside"
        return f"{where} {target.low:g} to {target.high:g} {unit}".rstrip()
    if target.name == "trust" and condition in ("IsOneOf", "IsGreaterThanOrEqualTo"):
        return f"at least {min(target.values, key=lambda v: TRUST_LEVELS.get(v, 0), default='')}"
    if condition in NONE_OF:
        return f"none of {names}"
    if condition in ALL_OF:
        return f"all of {names}"
    if condition in ANY_OF:
        return f"one of {names}"
    if condition in WISHES:
        return "as little as possible" if condition == "Minimize" else "as much as possible"
    words = {
        "IsLessThan": "below",
        "IsLessThanOrEqualTo": "at most",
        "IsGreaterThan": "above",
        "IsGreaterThanOrEqualTo": "at least",
    }
    several = f" with {target.at_least} replicas up" if target.at_least > 1 else ""
    return f"{words.get(condition, condition)} {target.value:g} {unit}".rstrip() + several


def base_unit(target: str) -> str:
    return next(iter(UNITS.get(target, {"": 1.0})))
