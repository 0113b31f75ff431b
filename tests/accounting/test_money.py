"""Money between owners: exact, and by the right tariff."""

from decimal import Decimal
from typing import Any

import pytest

from metaos.accounting.money import Use, agreed, amount, price_of
from metaos.resources.meta import Obj, parse_time

NOW = parse_time("2026-03-01T00:00:00Z")
HOUR = 3_600_000_000


def cluster(**spec: Any) -> Obj:
    return {"metadata": {"name": "paris", "labels": {"tier": "edge"}}, "spec": {"owner": "telco-a", **spec}}


def tariff(name: str, **spec: Any) -> Obj:
    return {"metadata": {"name": name}, "spec": {"provider": "telco-a", "currency": "EUR", "cpuHour": "0.05", **spec}}


def use(**changed: Any) -> Use:
    found = {
        "cpu_microseconds": HOUR // 2,
        "requested_cpu_microseconds": HOUR,
        "memory_mib_seconds": 1024 * 3600,
        "requested_memory_mib_seconds": 0,
        "egress_bytes": None,
        "energy_millijoules": 0,
    }
    return Use(**(found | changed))


def test_each_basis_charges_what_it_says() -> None:
    rates = {"currency": "EUR", "cpuHour": "0.10", "memoryGiBHour": 0.01}
    assert amount(price_of(rates, "greater", ""), use()) == Decimal("0.11")
    assert amount(price_of(rates, "used", ""), use()) == Decimal("0.06")
    assert amount(price_of(rates, "requested", ""), use()) == Decimal("0.10")


def test_floats_of_a_site_file_are_taken_as_they_were_written() -> None:
    price = price_of({"cpuHour": 0.1}, "used", "")
    assert sum(amount(price, use(cpu_microseconds=HOUR)) for _ in range(3)) == Decimal("0.3")
    assert price.said()["cpuHour"] == "0.1" and price.currency == "EUR"


def test_energy_and_egress_can_be_charged_and_what_was_not_measured_is_not() -> None:
    price = price_of({"egressGiB": "0.08", "energyKWh": "0.2"}, "used", "")
    assert amount(price, use(egress_bytes=2**30, energy_millijoules=HOUR)) == Decimal("0.28")
    assert amount(price, use()) == 0


def test_an_absurd_price_is_refused_in_words() -> None:
    price = price_of({"cpuHour": 10**15}, "used", "price of site paris")
    with pytest.raises(ValueError, match="by price of site paris: lower that"):
        amount(price, use(cpu_microseconds=HOUR * 10**5))


def test_the_tariff_for_this_consumer_comes_before_the_sites_own_price() -> None:
    tariffs = [
        tariff("a-all"),
        tariff("b-edge", clusterSelector={"matchLabels": {"tier": "edge"}}, cpuHour="0.04"),
        tariff("c-shop", consumer="shop-inc", cpuHour="0.03", basis="used"),
        tariff("d-cloud", clusterSelector={"matchLabels": {"tier": "cloud"}}, cpuHour="0.01"),
        tariff("e-other", provider="telco-b", consumer="shop-inc", cpuHour="0"),
    ]
    here = cluster(price={"cpuHour": 0.06})
    found = {who: agreed(tariffs, here, who, NOW) for who in ("shop-inc", "else")}
    assert {who: price and price.source for who, price in found.items()} == {"shop-inc": "Tariff c-shop", "else": "Tariff b-edge"}
    alone = agreed([], here, "shop-inc", NOW)
    assert alone is not None and alone.source == "price of site paris" and alone.cpu_hour == Decimal("0.06")
    assert agreed([], cluster(), "shop-inc", NOW) is None, "nobody has said a price: unknown, not free"


def test_a_tariff_holds_from_its_start_until_its_end() -> None:
    held = [tariff("t", validFrom="2026-02-01T00:00:00Z", validUntil="2026-03-01T00:00:00Z")]
    assert agreed(held, cluster(), "x", NOW - 1) is not None and agreed(held, cluster(), "x", NOW) is None
    assert agreed(held, cluster(), "x", parse_time("2026-01-31T23:59:59Z")) is None


@pytest.mark.parametrize("value", ["-1", "NaN", "cheap"])
def test_a_price_that_is_none_is_refused_by_its_field(value: str) -> None:
    with pytest.raises(ValueError, match="cpuHour must be"):
        price_of({"cpuHour": value}, "used", "")
