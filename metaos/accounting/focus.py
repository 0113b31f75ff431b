"""Charges as the FinOps Open Cost and Usage Specification has them, version 1.2 (focus.finops.org). Pure.

One row for each group, thing that is paid for (core-hours, GiB-hours, GiB out of the site, kWh), price, pair of owners and month.
NEMO knows one price for each, so list, contracted, effective and billed cost are the same: unit price times quantity. Rows of a
group may differ from what was booked by the rounding of each line, 10^-9 of the currency. Columns that the specification makes
depend on what a provider does not have (commitments, availability zones, corrections) are left out or empty. Columns of its
own begin with ``x_``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from metaos.accounting.footprint import plain
from metaos.accounting.statement import written
from metaos.resources.meta import format_time

VERSION = "1.2"
#: Rate → (what it is of, unit, category and subcategory of service, as the specification lists them).
SKUS = {
    "cpuHour": ("CPU", "Core-Hours", "Compute", "Containers"),
    "memoryGiBHour": ("Memory", "GiB-Hours", "Compute", "Containers"),
    "egressGiB": ("Egress", "GiB", "Networking", "Other (Networking)"),
    "energyKWh": ("Energy", "kWh", "Other", "Other (Other)"),
}
COLUMNS = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart"),
    *("ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart"),
    *("ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "InvoiceIssuerName"),
    *("ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName"),
    *("ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "ServiceSubcategory"),
    *("SkuId", "SkuMeter", "SkuPriceId", "SubAccountId", "SubAccountName", "Tags", "x_PriceBasis", "x_PriceSource"),
)


def as_focus(groups: Iterable[Mapping[str, Any]], by: str) -> str:
    """CSV. ``groups``: as ``statement.Total.said`` gives them, with their charges; those without any are no rows."""
    rows = [row(group, charge, by) for group in groups for charge in group.get("charges") or ()]
    return written(COLUMNS, [[each.get(column) for column in COLUMNS] for each in rows])


def row(group: Mapping[str, Any], charge: Mapping[str, Any], by: str) -> dict[str, str]:
    """Every column that has a value."""
    what, unit, category, subcategory = SKUS[charge["rate"]]
    money = plain(Decimal(charge["quantity"]) * Decimal(charge["unitPrice"]))
    name = "/".join(group["key"])
    provider, consumer = charge["provider"] or "unknown", charge["consumer"] or "unknown"
    return {
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), money),
        **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice"), charge["unitPrice"]),
        **dict.fromkeys(("InvoiceIssuerName", "ProviderName", "PublisherName"), provider),
        **dict.fromkeys(("BillingAccountId", "BillingAccountName"), consumer),
        **dict.fromkeys(("ConsumedQuantity", "PricingQuantity"), charge["quantity"]),
        **dict.fromkeys(("ConsumedUnit", "PricingUnit"), unit),
        "BillingCurrency": charge["currency"],
        "BillingPeriodStart": _month(charge["month"], 0),
        "BillingPeriodEnd": _month(charge["month"], 1),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{what} of {provider}, used by {by} {name}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": charge["start"],
        "ChargePeriodEnd": charge["end"],
        "PricingCategory": "Standard",
        "ResourceId": name,
        "ResourceName": group["key"][-1],
        "ResourceType": by.capitalize(),
        "ServiceCategory": category,
        "ServiceName": "NEMO",
        "ServiceSubcategory": subcategory,
        "SkuId": charge["rate"],
        "SkuMeter": f"{what} {unit}",
        "SkuPriceId": f"{charge['rate']} {charge['unitPrice']} {charge['currency']} ({charge['source']})",
        **({} if by in ("site", "owner") else dict.fromkeys(("SubAccountId", "SubAccountName"), group["key"][0])),
        "Tags": json.dumps({f"nemo/{by}": name}),
        "x_PriceBasis": charge["basis"],
        "x_PriceSource": charge["source"],
    }


def _month(text: str, later: int) -> str:
    """The beginning of a month (``2026-11``), or of the one after it."""
    months = int(text[:4]) * 12 + int(text[5:7]) - 1 + later
    return format_time(datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC).timestamp())
