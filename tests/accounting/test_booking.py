"""From a report to an entry: everything adds up, nothing unknown becomes a number, and nonsense is named."""

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.accounting.booking import Elsewhere, Owner, Site, book, problems, same_work
from metaos.accounting.footprint import Factor
from metaos.accounting.ledger import Entry, canonical
from metaos.accounting.metering import PodUse, PowerModel, attribute
from metaos.accounting.money import price_of

NOW = 1_700_000_400.0


def pod(name: str = "web-1", **changed: Any) -> dict[str, Any]:
    found = {
        "namespace": "shop",
        "name": name,
        "workload": {"kind": "Deployment", "name": "web"},
        "presentMilliseconds": 300_000,
        "cpuMicroseconds": 30_000_000,
        "memoryMiBSeconds": 60_000,
        "requestedMillis": 500,
        "requestedMiB": 256,
        "energyMillijoules": 4_000_000,
    }
    return found | changed


def period(*pods: Any, **changed: Any) -> dict[str, Any]:
    total = sum(p["energyMillijoules"] for p in pods if isinstance(p, dict) and isinstance(p.get("energyMillijoules"), int))
    found = {
        "sequence": 7,
        "start": 1_700_000_100,
        "end": 1_700_000_400,
        "meter": {"name": "model", "source": "the site file's power model", "basis": "stated", "uncertainty": "0.2"},
        "idleRule": "reserved",
        "cpuMillis": 4000,
        "energy": {"millijoules": total + 9_000_000, "systemMillijoules": 9_000_000},
        "pods": list(pods),
    }
    return found | changed


PARIS = Site("paris", "telco-a", Decimal("1.35"), {"location": Factor(Decimal(60), "stated by the site")}, Decimal(6))
SHOP = Owner("shop-inc", price_of({"cpuHour": "0.04", "currency": "EUR"}, "greater", "Tariff t"), ["green"])


def test_a_line_has_its_energy_carbon_and_cost() -> None:
    said = period(pod())
    assert not list(problems(said, NOW))
    header, (line,) = book(said, PARIS, lambda _: SHOP)
    assert line["operationalMicrograms"] == {"location": 90_000, "market": None, "marginal": None}
    assert line["embodiedMicrograms"] == 62_500, "an eighth of the machine for five minutes of 6 g/h"
    assert line["cost"] == {
        "amount": "0.001666667",
        "currency": "EUR",
        "price": SHOP.price.said() if SHOP.price else None,
    }
    assert (line["consumer"], line["intents"], line["networkBytes"], line["networkMicrograms"]) == (
        "shop-inc",
        ["green"],
        None,
        None,
    )
    assert header["system"]["embodiedMicrograms"] == 437_500 and header["factors"]["market"] is None
    assert header["meter"]["basis"] == "stated" and header["pue"] == "1.35"


def test_what_is_not_known_stays_unknown() -> None:
    _, (line,) = book(period(pod()), Site("x", ""), lambda _: Owner("", None))
    assert line["cost"] is None and line["embodiedMicrograms"] is None
    assert set(line["operationalMicrograms"].values()) == {None}


def test_what_crosses_the_network_is_estimated_apart() -> None:
    _, (line,) = book(period(pod(networkBytes=10**9)), PARIS, lambda _: SHOP)
    assert line["networkMillijoules"] == 3_600_000 and line["networkMicrograms"]["location"] == 60_000
    assert line["energyMillijoules"] == 4_000_000


uses = st.builds(PodUse, st.integers(0, 10**9), st.integers(0, 300_000), st.integers(0, 8000))


@given(st.lists(uses, max_size=8), st.integers(0, 10**9), st.integers(0, 10**9))
def test_what_an_agent_shares_out_is_accepted_and_adds_up(found: list[PodUse], energy: int, idle: int) -> None:
    shares, system = attribute(
        energy,
        idle,
        {str(n): use for n, use in enumerate(found)},
        system_cpu_microseconds=5,
        capacity_millis=4000,
        milliseconds=300_000,
    )
    pods = [
        pod(
            f"web-{n}",
            cpuMicroseconds=use.cpu_microseconds,
            presentMilliseconds=use.present_milliseconds,
            requestedMillis=use.requested_millis,
            energyMillijoules=shares[str(n)].total,
        )
        for n, use in enumerate(found)
    ]
    said = period(*pods, energy={"millijoules": energy, "systemMillijoules": system.total})
    assert not list(problems(said, NOW))
    header, lines = book(said, PARIS, lambda _: SHOP)
    assert sum(line["energyMillijoules"] for line in lines) + header["system"]["energyMillijoules"] == energy
    embodied = [line["embodiedMicrograms"] for line in (*lines, header["system"])]
    assert sum(embodied) == 500_000, "all of the hardware is somebody's"
    assert canonical(header) and Entry(1, bytes(32), header, lines).digest(), "it can be booked"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (None, "a period must be a map"),
        (period(start=1_700_000_400), "end: 1700000400 must be after start"),
        (period(end=1_700_000_100 + 90_000), "by 86400 s at most"),
        (period(start=1_700_009_000, end=1_700_009_300), "ahead of the hub: set the site's clock"),
        (period(sequence=-1), "sequence: -1 must be a whole number"),
        (period(sequence=float("nan")), "sequence: nan must be a whole number"),
        (period(sequence=True), "sequence: True must be a whole number"),
        (period(cpuMillis=10**9), "cpuMillis: 1000000000 must be at most 4096000"),
        (period(energy={"millijoules": 10**13, "systemMillijoules": 10**13}), "is more than 1000000 W"),
        (period(pod(), energy={"millijoules": 10**7, "systemMillijoules": 5}), "must be what pods and system add up to"),
        (period(pod(cpuMicroseconds=1.5)), r"pods\[0\].cpuMicroseconds: 1.5 must be a whole number"),
        (period(pod(cpuMicroseconds=10**13)), r"pods\[0\].cpuMicroseconds: 10000000000000 is more than 4096 cores"),
        (period(pod(requestedMillis=10**12)), r"pods\[0\].requestedMillis: 1000000000000 must be at most 4096000"),
        (period(pod(requestedMiB=2**31)), r"pods\[0\].requestedMiB: 2147483648 must be at most"),
        (period(pod(memoryMiBSeconds=2**50)), r"pods\[0\].memoryMiBSeconds: 1125899906842624 must be at most"),
        (period(pod(presentMilliseconds=300_001)), r"pods\[0\].presentMilliseconds: 300001 must be at most"),
        (period(pod(workload="web")), r"pods\[0\].workload.kind: None must be a name"),
        (period(pod(namespace="")), r"pods\[0\].namespace: '' must be a name"),
        (period(pod(networkBytes=-1)), r"pods\[0\].networkBytes: -1 must be"),
        (period("web"), r"pods\[0\]: must be a map"),
        (period(pods="many"), "there must be a list of at most 2000"),
        (period(idleRule="fair"), "idleRule: 'fair' must be one of reserved, used, present"),
        (period(meter={"name": "m", "source": "s", "basis": "guess", "uncertainty": "1"}), "must be one of measured, stated"),
        (period(meter={"name": "m", "source": "s", "basis": "stated"}), "meter.uncertainty: None must be a decimal fraction"),
    ],
)
def test_nonsense_is_named_with_its_field(said: Any, message: str) -> None:
    found = list(problems(said, NOW))
    assert any(re.search(message, text) for text in found), found


@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["start", "end", "pods", "energy", "meter", "sequence"]), inner, max_size=6)
        ),
    )
)
def test_whatever_a_site_says_is_answered_in_words(said: Any) -> None:
    assert all(isinstance(text, str) for text in problems(said, NOW)) and list(problems(said, NOW))


def test_the_same_work_elsewhere() -> None:
    """One core-hour at 33.75 W per core above idle, PUE 1.2, 400 g/kWh."""
    there = Elsewhere(PowerModel(45, 180, 4), Decimal("1.2"), Decimal(400))
    assert same_work(3_600_000_000, there) == 16_200_000
    assert same_work(0, there) == 0
