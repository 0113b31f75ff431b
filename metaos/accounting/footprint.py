"""Emissions of a share of energy and hardware, after the Software Carbon Intensity (ISO/IEC 21031:2024): SCI = (E·I + M) per R.

Three intensities stand side by side: *location-based* (the grid's average), *market-based* (what the owner has contracted, GHG
Protocol Scope 2) and *marginal* (what one more kWh causes; the specification's recommendation). One that nobody has stated is
unknown, ``None``: it never takes another's value. Emissions are whole micrograms of CO2 equivalent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

BASES = ("location", "market", "marginal")
#: kWh per GB that crosses a network between sites: the Cloud Carbon Footprint's coefficient for traffic between data centres.
#: Access networks take more; studies differ by a factor of ten (Aslan et al. 2018), so it is kept apart from what is measured.
NETWORK_KWH_PER_GB = Decimal("0.001")
NETWORK_SOURCE = "0.001 kWh/GB, Cloud Carbon Footprint; an estimate"
HOURS_PER_YEAR = 8766
#: Years that hardware is spread over where a site states what making it emitted, but no lifetime (Cloud Carbon Footprint: 4).
DEFAULT_LIFETIME_YEARS = 4.0
_MILLIJOULES_PER_KWH = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Factor:
    """gCO2eq per kWh, and where it is from."""

    grams_per_kwh: Decimal
    source: str

    def said(self) -> dict[str, str]:
        return {"gramsPerKWh": plain(self.grams_per_kwh), "source": self.source}


def factor(value: Any, source: str) -> Factor | None:
    """``None`` for what is not known. Raises ``ValueError`` for what makes no sense."""
    if value is None:
        return None
    return Factor(decimal(value, "a carbon intensity in gCO2eq/kWh"), source)


def decimal(value: Any, what: str) -> Decimal:
    """A number of at least 0, as it was written. Raises ``ValueError`` naming it."""
    try:
        if isinstance(value, bool):
            raise ArithmeticError
        found = Decimal(str(value))
    except ArithmeticError:
        raise ValueError(f"{what} must be a number, not {str(value)[:80]!r}") from None
    if not found.is_finite() or found < 0 or found > Decimal(10) ** 15:
        raise ValueError(f"{what} must be a finite number from 0 to 10^15, not {str(value)[:80]!r}")
    return found


def plain(value: Decimal) -> str:
    """As people write it: no exponent, no trailing zeros."""
    text = format(value, "f")
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def micrograms(millijoules: int, intensity: Decimal, pue: Decimal = Decimal(1)) -> int:
    """Operational emissions (E·I) of energy at the computers; ``pue`` adds what their building takes."""
    return _whole(millijoules * pue * intensity * 1_000_000 / _MILLIJOULES_PER_KWH)


def network_millijoules(bytes_: int) -> int:
    """Energy of a transfer between sites, estimated."""
    return _whole(Decimal(bytes_) / 10**9 * NETWORK_KWH_PER_GB * _MILLIJOULES_PER_KWH)


def embodied_rate(power: Mapping[str, Any]) -> Decimal | None:
    """gCO2eq per hour from making the hardware (M before it is shared), as the site file says; ``None``: not known."""
    if power.get("embodiedGramsPerHour") is not None:
        return decimal(power["embodiedGramsPerHour"], "spec.power.embodiedGramsPerHour")
    if power.get("embodiedKilograms") is None:
        return None
    years = decimal(power.get("lifetimeYears", DEFAULT_LIFETIME_YEARS), "spec.power.lifetimeYears")
    if not years:
        raise ValueError("spec.power.lifetimeYears must be above 0: over it the hardware's emissions are spread")
    return decimal(power["embodiedKilograms"], "spec.power.embodiedKilograms") * 1000 / (years * HOURS_PER_YEAR)


def embodied_micrograms(rate: Decimal, seconds: int) -> int:
    """Of the whole machine in a period."""
    return _whole(rate * seconds * 1_000_000 / 3600)


def emissions(millijoules: int, pue: Decimal, factors: Mapping[str, Factor | None]) -> dict[str, int | None]:
    """Operational micrograms on each basis; ``None`` where its factor is not known."""
    found = {basis: factors.get(basis) for basis in BASES}
    return {basis: None if f is None else micrograms(millijoules, f.grams_per_kwh, pue) for basis, f in found.items()}


def _whole(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))
