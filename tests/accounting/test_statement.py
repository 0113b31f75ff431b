"""Statements: exact sums of what is known, and exports that others can read."""

import csv
import io
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.accounting.booking import Owner, Site, book
from metaos.accounting.focus import COLUMNS as FOCUS_COLUMNS
from metaos.accounting.focus import as_focus
from metaos.accounting.money import price_of
from metaos.accounting.series import Series
from metaos.accounting.statement import COLUMNS, GROUPINGS, SYSTEM, Booked, as_csv, totals
from tests.accounting.test_booking import PARIS, SHOP, period, pod

SAID = period(pod(), pod("web-2", cpuMicroseconds=10), pod("=job", namespace="lab", workload={"kind": "Job", "name": "train"}))
HERE = book(SAID, PARIS, lambda _: SHOP)
DOLLARS = replace(SHOP, price=price_of({"cpuHour": 1, "currency": "USD"}, "greater", ""), intents=())
THERE = book(period(pod()), Site("lyon", "telco-b"), lambda _: DOLLARS)


def test_sums_by_everything_that_one_may_ask_by() -> None:
    found = {by: [total.key for total in totals([HERE, THERE], by)] for by in GROUPINGS}
    assert found == {
        "pod": [("lab", "=job"), ("shop", "web-1"), ("shop", "web-2")],
        "workload": [("lab", "Job", "train"), ("shop", "Deployment", "web")],
        "namespace": [("lab",), ("shop",)],
        "site": [("lyon",), ("paris",)],
        "intent": [("lab", "green"), ("shop", "(none)"), ("shop", "green")],
        "owner": [("shop-inc",)],
    }
    with pytest.raises(ValueError, match="by pod, workload, namespace, intent, site, owner, not by 'colour'"):
        totals([], "colour")


def test_what_is_unknown_is_counted_and_never_zero() -> None:
    lyon, paris = totals([HERE, THERE], "site")
    assert lyon.said()["operationalGrams"] == {"location": None, "market": None, "marginal": None}
    assert lyon.said()["embodiedGrams"] is None and lyon.unknown["location"] == 1
    assert paris.said()["operationalGrams"] == {"location": "0.27", "market": None, "marginal": None}
    unpriced = totals([book(period(pod()), PARIS, lambda _: Owner("x", None))], "site")[0]
    assert unpriced.said()["cost"] == {} and unpriced.unknown["cost"] == 1


def test_what_a_site_gave_up_counts_once_whatever_a_group_has_of_lines() -> None:
    lost = book(SAID | {"lostSeconds": 600}, PARIS, lambda _: SHOP)
    after = book(SAID | {"sequence": 9, "lostSeconds": 60}, PARIS, lambda _: SHOP)
    (paris,) = totals([lost, after], "site", system=True)
    assert paris.lost == 660 and paris.lines == 8


def test_a_picture_holds_a_bounded_number_of_points_and_all_of_the_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaos.accounting.series.MOST_POINTS", 3)
    series = Series("pod", SAID["start"], SAID["start"] + 86_400)
    for n in range(4):
        header, lines = book(
            period(pod(f"web-{n}"), pod(f"job-{n}"), start=SAID["start"] + n * 3600, end=SAID["start"] + n * 3600 + 300),
            PARIS,
            lambda _: SHOP,
        )
        series.add(header, lines)
        series.add(header, [])
    found = series.said()
    assert [len(step["groups"]) for step in found] == [2, 2, 1, 1]
    assert found[2]["groups"][0]["key"] == ["(others)"]
    assert sum(float(group["energyKWh"]) for step in found for group in step["groups"]) == pytest.approx(8 * 4_000_000 / 3.6e9)


def test_currencies_are_never_added() -> None:
    (shop,) = (total for total in totals([HERE, THERE], "namespace") if total.key == ("shop",))
    assert shop.said()["cost"] == {"EUR": "0.003333334", "USD": "0.041666667"}


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
def test_by_whatever_one_asks_the_sum_is_the_machines(energies: list[int]) -> None:
    said = period(*(pod(f"web-{n}", energyMillijoules=energy) for n, energy in enumerate(energies)))
    entry = book(said, PARIS, lambda _: SHOP)
    for by in GROUPINGS:
        found = totals([entry], by, system=True)
        assert sum(total.millijoules for total in found) == said["energy"]["millijoules"]
        assert sum(total.embodied or 0 for total in found) == 500_000
        assert sum((total.cost.get("EUR", Decimal(0)) for total in found), Decimal(0)) == sum(
            Decimal(line["cost"]["amount"]) for line in entry[1]
        )


def said(entries: list[Booked], by: str, **how: bool) -> list[dict[str, Any]]:
    return [total.said() for total in totals(entries, by, **how)]


def read(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_units_in_its_header_and_empty_cells_for_what_is_unknown() -> None:
    rows = read(as_csv(said([HERE, THERE], "pod", system=True)))
    assert tuple(rows[0]) == COLUMNS and [row["group"] for row in rows][:2] == [SYSTEM, "lab/=job"]
    assert rows[1]["operational_location_gco2eq"] == "0.09" and rows[1]["operational_market_gco2eq"] == ""
    assert (rows[1]["energy_uncertainty"], rows[1]["estimated_share"], rows[1]["unknown"]) == (
        *("0.2", "0", "marginal=1 market=1 network=1"),
    )
    (odd,) = (each for each in said([HERE], "pod") if each["key"] == ["lab", "=job"])
    assert read(as_csv([{**odd, "key": ["=job"]}]))[0]["group"] == "'=job", "no spreadsheet takes a name for a formula"


def test_the_uncertainty_of_a_sum_is_that_of_its_energy_and_gaps_are_told() -> None:
    rapl = {"name": "rapl", "source": "intel-rapl:0", "basis": "measured", "uncertainty": "0.05"}
    exact = book(
        period(pod(energyMillijoules=12_000_000), sequence=8, meter=rapl, estimatedSeconds=60, lostSeconds=900),
        PARIS,
        lambda _: SHOP,
    )
    (shop,) = said([book(period(pod()), PARIS, lambda _: SHOP), exact], "namespace")
    assert shop["energyUncertainty"] == "0.088", "(4 x 20 % + 12 x 5 %) / 16"
    assert shop["energyKWhByBasis"] == {"measured": "0.003333333", "stated": "0.001111111"}
    assert (shop["estimatedShare"], shop["lostSeconds"]) == ("0.1", 900)


def test_focus_rows_are_charges_of_a_month_between_two_owners() -> None:
    rows = read(as_focus(said([HERE, THERE], "namespace", charged=True), "namespace"))
    assert tuple(rows[0]) == FOCUS_COLUMNS and len(rows) == 3
    (row,) = (row for row in rows if (row["ResourceId"], row["BillingCurrency"]) == ("shop", "EUR"))
    assert row["BilledCost"] == row["EffectiveCost"] == row["ListCost"] == row["ContractedCost"]
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2023-11-01T00:00:00Z", "2023-12-01T00:00:00Z")
    assert (row["ChargeCategory"], row["ChargeFrequency"], row["BillingAccountId"]) == ("Usage", "Usage-Based", "shop-inc")
    assert row["ChargePeriodStart"] < row["ChargePeriodEnd"] and row["ServiceCategory"] == "Compute"
    free = book(period(pod()), PARIS, lambda _: Owner("x", None))
    assert not read(as_focus(said([free], "pod", charged=True), "pod"))


#: What FOCUS 1.2 wants of charges for use (ChargeCategory Usage, ChargeClass empty): columns that are never empty.
NEVER_EMPTY = (
    *("BilledCost", "BillingAccountId", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory"),
    *("ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "ContractedUnitPrice", "EffectiveCost"),
    *("InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit", "ProviderName"),
    *("PublisherName", "ServiceCategory", "ServiceName", "ServiceSubcategory", "SkuId", "SkuPriceId", "ConsumedUnit"),
)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**9), st.integers(0, 10**10)), min_size=1, max_size=4))
def test_focus_rows_keep_the_rules_between_columns_and_add_up_to_what_was_booked(used: list[tuple[int, int, int]]) -> None:
    price = {"cpuHour": "0.04", "memoryGiBHour": "0.005", "egressGiB": "0.01", "energyKWh": "0.3", "currency": "EUR"}
    owner = Owner("acme", price_of(price, "greater", "Tariff t"))
    pods = [
        pod(f"web-{n}", cpuMicroseconds=cpu, memoryMiBSeconds=memory, networkBytes=sent)
        for n, (cpu, memory, sent) in enumerate(used)
    ]
    entry = book(period(*pods), PARIS, lambda _: owner)
    rows = read(as_focus(said([entry], "workload", charged=True), "workload"))
    assert {row["SkuId"] for row in rows} == {"cpuHour", "memoryGiBHour", "egressGiB", "energyKWh"}
    for row in rows:
        assert all(row[column] for column in NEVER_EMPTY) and not row["ChargeClass"]
        assert Decimal(row["ListCost"]) == Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"])
        assert (row["ConsumedUnit"] != "") == (row["ConsumedQuantity"] != "")
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
    booked = sum(Decimal(line["cost"]["amount"]) for line in entry[1])
    assert abs(sum(Decimal(row["BilledCost"]) for row in rows) - booked) < Decimal("1e-8")
