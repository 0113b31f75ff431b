"""Grams by the SCI specification, and what is not known stays so."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.accounting.footprint import (
    BASES,
    Factor,
    embodied_micrograms,
    embodied_rate,
    emissions,
    factor,
    micrograms,
    network_millijoules,
    plain,
)

KWH = 3_600_000_000


def test_a_kilowatt_hour_at_300_grams() -> None:
    assert micrograms(KWH, Decimal(300)) == 300_000_000
    assert micrograms(KWH, Decimal(300), Decimal("1.5")) == 450_000_000


def test_what_nobody_has_stated_is_unknown_and_not_another_basis_value() -> None:
    found = emissions(KWH, Decimal(1), {"location": Factor(Decimal(60), "grid"), "market": None})
    assert found == {"location": 60_000_000, "market": None, "marginal": None}
    assert emissions(KWH, Decimal(1), {"market": factor(0, "contract")})["market"] == 0, "nothing emitted is known"


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.decimals(0, 2000, places=2))
def test_emissions_of_parts_add_up_to_those_of_the_whole(a: int, b: int, intensity: Decimal) -> None:
    assert abs(micrograms(a, intensity) + micrograms(b, intensity) - micrograms(a + b, intensity)) <= 1


def test_embodied_emissions_are_spread_over_the_life() -> None:
    rate = embodied_rate({"embodiedKilograms": 1000, "lifetimeYears": 5})
    assert rate is not None and round(rate, 3) == Decimal("22.815")
    assert embodied_micrograms(Decimal("6"), 1800) == 3_000_000
    assert embodied_rate({"embodiedGramsPerHour": 6, "embodiedKilograms": 1}) == 6
    assert embodied_rate({}) is None


def test_a_gigabyte_takes_a_watt_hour() -> None:
    assert network_millijoules(10**9) == KWH // 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "many", True, "1e99"])
def test_what_is_no_intensity_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(ValueError, match="a carbon intensity in gCO2eq/kWh must be"):
        factor(value, "grid")


def test_a_life_of_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"spec.power.lifetimeYears must be above 0"):
        embodied_rate({"embodiedKilograms": 1, "lifetimeYears": "0"})


def test_figures_are_written_plainly() -> None:
    assert [plain(Decimal(text)) for text in ("1E+3", "0.500", "0", "12")] == ["1000", "0.5", "0", "12"]
    assert set(BASES) == {"location", "market", "marginal"}
