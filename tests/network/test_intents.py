"""Intents: fulfilment, nearest offers, and refusals that say what to do."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.network.intents import evaluate, judge, validate_intent
from metaos.resources.meta import API_VERSION, Obj, format_time
from metaos.resources.snapshot import Target, targets_of
from tests.scheduler.worlds import NOW, residency, site, workload

USERS = [{"name": "usersIn", "value": "x"}]


def intent(*targets: dict[str, Any], **spec: Any) -> Obj:
    body = {"expectations": [{"targets": list(targets)}], **spec}
    return {"apiVersion": API_VERSION, "kind": "Intent", "metadata": {"name": "i", "generation": 3}, "spec": body}


def latency(value: Any, **more: Any) -> dict[str, Any]:
    return {"name": "latency", "condition": "IsLessThan", "value": value, "unit": "ms", "contexts": USERS, **more}


NEAR, FAR = site("near", latencies={"x": 12.0}), site("far", latencies={"x": 80.0})


def test_fulfilled_degraded_and_not_fulfilled() -> None:
    def fulfilment(target: dict[str, Any]) -> str:
        return str(evaluate(intent(target), [(workload(), [FAR])], [NEAR, FAR], NOW)["fulfilment"])

    assert fulfilment(latency(100)) == "Fulfilled"
    assert fulfilment(latency(40)) == "Degraded"
    assert fulfilment(latency(40, hard=True)) == "NotFulfilled"


def test_what_cannot_be_met_says_by_how_much_and_where_the_nearest_is() -> None:
    status = evaluate(intent(latency(1, hard=True)), [(workload(), [])], [NEAR, FAR], NOW)
    (target,) = status["targets"]
    assert target["nearest"] == {"cluster": "near", "value": 12.0, "gap": 11.0}
    assert "nearest offer: 12 ms on near, 11 ms short" in status["message"]
    assert target["measurement"] and target["unit"] == "ms" and target["wanted"] == "below 1 ms"


def test_the_worst_site_counts() -> None:
    (target,) = targets_of(intent(latency(40)))
    assert judge(target, workload(), [NEAR, FAR], [NEAR, FAR]).value == 80.0


def test_since_stays_while_the_fulfilment_does() -> None:
    found = intent(latency(40))
    first = evaluate(found, [(workload(), [NEAR])], [NEAR, FAR], NOW)
    again = evaluate(found | {"status": first}, [(workload(), [NEAR])], [NEAR, FAR], NOW + 60)
    turned = evaluate(found | {"status": again}, [(workload(), [FAR])], [NEAR, FAR], NOW + 120)
    assert first["since"] == again["since"] == format_time(NOW)
    assert turned["since"] == format_time(NOW + 120)
    assert first["observedGeneration"] == 3


def test_residency_names_the_site_that_breaks_it() -> None:
    found = judge(residency("EU"), workload(), [site("uk", jurisdictions=frozenset({"GB"}))], [])
    assert (found.fulfilment, found.value) == ("NotFulfilled", "uk")


def test_availability_is_that_of_all_sites_together() -> None:
    wanted = Target("availability", "IsGreaterThan", 0.999, hard=True)
    assert judge(wanted, workload(), [site("a"), site("b")], []).fulfilment == "Fulfilled"
    assert judge(wanted, workload(), [site("a")], []).fulfilment == "NotFulfilled"


@given(st.floats(0.001, 10_000))
def test_units_do_not_change_what_is_meant(value: float) -> None:
    (ms,) = targets_of(intent(latency(value)))
    (seconds,) = targets_of(intent(latency(value / 1000, unit="s")))
    assert math.isclose(ms.value, seconds.value)


# -- refusals -----------------------------------------------------------------------------------------------

CARBON = {"name": "carbonIntensity", "condition": "IsLessThan", "value": 200}

WRONG: list[tuple[Obj, str, str]] = [
    (intent({**CARBON, "value": math.nan}), "targets[0].value", "finite number"),
    (intent({**CARBON, "value": math.inf}), "targets[0].value", "finite number"),
    (intent({**CARBON, "value": -1}), "targets[0].value", "-1: must be a finite number of at least 0"),
    (intent({**CARBON, "value": True}), "targets[0].value", "finite number"),
    (intent({**CARBON, "value": "200"}), "targets[0].value", "finite number"),
    (intent({**CARBON, "unit": "parsec"}), "targets[0].unit", "'parsec': must be one of gCO2eq/kWh"),
    (intent({**CARBON, "name": "speed"}), "targets[0].name", "'speed': must be one of latency"),
    (intent({**CARBON, "condition": "IsPink"}), "targets[0].condition", "'IsPink': must be one of"),
    (intent({"name": "residency", "condition": "IsOneOf", "value": []}), "targets[0].value", "for example [EU]"),
    (intent({"name": "availability", "condition": "IsGreaterThan", "value": 99.9}), "targets[0].value", "at most 1 (or 100 %)"),
    (intent(CARBON, {**CARBON, "condition": "IsGreaterThan", "value": 300}), "expectations", "no value is both; remove one"),
    (intent(CARBON, priority=101), "spec.priority", "from 0 to 100"),
]


@pytest.mark.parametrize(("obj", "field", "text"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_refusals_name_field_value_and_remedy(obj: Obj, field: str, text: str) -> None:
    causes = validate_intent(obj)
    assert any(field in c.field and text in c.message for c in causes), causes


@pytest.mark.parametrize(
    "obj", [intent(CARBON), intent(latency(0.04, unit="s")), intent({"name": "cost", "condition": "Minimize"})], ids=str
)
def test_good_ones_pass(obj: Obj) -> None:
    assert validate_intent(obj) == []


def test_latency_without_users_is_refused() -> None:
    assert validate_intent(intent({"name": "latency", "condition": "IsLessThan", "value": 40}))


def test_residency_that_names_no_law_is_refused() -> None:
    assert validate_intent(intent({"name": "residency", "condition": "Minimize"}))


def test_a_number_beyond_all_bounds_is_refused() -> None:
    assert validate_intent(intent({**CARBON, "value": 10**400}))
