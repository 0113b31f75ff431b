"""Intents: fulfilment, nearest offers, and refusals that say what to do."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.network.intents import ALLOWED, KNOWN, evaluate, judge, validate_intent
from metaos.network.threegpp import CONDITIONS
from metaos.resources.meta import API_VERSION, Obj, format_time
from metaos.resources.reading import targets_of
from metaos.resources.snapshot import Target
from metaos.resources.targets import distance, meets, wanted_text
from metaos.scheduler.framework import decide
from tests.scheduler.worlds import NOW, residency, site, workload, world

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


def test_emissions_are_judged_in_grams_or_kilograms() -> None:
    for value, unit, fulfilment in ((10, "gCO2eq/h", "Fulfilled"), (0.0001, "kgCO2eq/h", "Degraded")):
        found = intent({"name": "emissions", "condition": "IsLessThan", "value": value, "unit": unit})
        assert validate_intent(found) == []
        what = workload(targets=tuple(targets_of(found)), current={"a": 1})
        assert evaluate(found, [(what, [site("a")])], [site("a")], NOW)["fulfilment"] == fulfilment


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
    (
        intent({"name": "availability", "condition": "Maximize", "contexts": [{"name": "replicasUp", "value": 0}]}),
        "targets[0].contexts",
        "whole number from 1",
    ),
    (
        intent({"name": "cost", "condition": "Minimize", "contexts": [{"name": "replicasUp", "value": 2}]}),
        "targets[0].contexts",
        "goes with availability alone",
    ),
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


# -- conditions ---------------------------------------------------------------------------------------------

NUMBERS = ("latency", "carbonIntensity", "emissions", "energy", "cost")
ALL_CONDITIONS = tuple(CONDITIONS)
MEANING: dict[str, Any] = {
    "IsLessThan": lambda v: v < 50,
    "IsLessThanOrEqualTo": lambda v: v <= 50,
    "IsGreaterThan": lambda v: v > 50,
    "IsGreaterThanOrEqualTo": lambda v: v >= 50,
    "IsWithinRange": lambda v: 20 <= v <= 50,
    "IsOutsideRange": lambda v: not 20 <= v <= 50,
}


def measured(condition: str, **more: Any) -> dict[str, Any]:
    value: Any = [20, 50] if condition in ("IsWithinRange", "IsOutsideRange") else 50
    return {"name": "carbonIntensity", "condition": condition, "value": value, **more}


@given(st.sampled_from(sorted(MEANING)), st.floats(0, 100) | st.sampled_from([20.0, 50.0]))
def test_a_condition_means_what_it_says_for_filters_and_for_fulfilment(condition: str, value: float) -> None:
    found = intent(measured(condition, hard=True))
    assert validate_intent(found) == []
    what, where = workload(targets=tuple(targets_of(found))), site("a", carbon=value)
    good = MEANING[condition](value)
    assert bool(dict(decide(world(where), what).clusters)) == good
    assert (evaluate(found, [(what, [where])], [where], NOW)["fulfilment"] == "Fulfilled") == good


@given(st.sampled_from(sorted(MEANING)), st.floats(0, 100))
def test_the_distance_is_what_must_be_given_way(condition: str, value: float) -> None:
    (target,) = targets_of(intent(measured(condition)))
    gap = distance(target, value)
    assert (gap == 0) == meets(target, value) or value in (20.0, 50.0)  # at a bound that is excluded nothing is missing
    if gap:
        assert meets(target, value - gap * 1.001) or meets(target, value + gap * 1.001)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("condition", ALL_CONDITIONS)
def test_every_condition_is_decided_or_refused_with_a_remedy(name: str, condition: str) -> None:
    contexts = USERS if name == "latency" else []
    names, number = {"residency": ["EU"], "trust": ["high"], "attestation": ["software"]}.get(name), 0.5
    value: Any = names or ([0.1, 0.5] if "Range" in condition else number)
    if names and condition in ("IsEqualTo", "IsGreaterThanOrEqualTo"):
        value = names[0]
    target = {"name": name, "condition": condition, "value": value, "contexts": contexts, "hard": True}
    if condition in ("Minimize", "Maximize"):
        target.pop("value")
    found = intent(target)
    causes = validate_intent(found)
    if condition not in ALLOWED[name]:
        (cause,) = causes
        assert cause.field.endswith("targets[0].condition") and f"must be one of {ALLOWED[name][0]}" in cause.message
        return
    assert causes == []
    what = workload(targets=tuple(targets_of(found)))
    sites = [site("a", jurisdictions=frozenset({"EU"}), trust="high"), site("b", jurisdictions=frozenset({"GB"}), trust="low")]
    for where in sites:
        status = evaluate(found, [(what, [where])], sites, NOW)
        plan = decide(world(where), what)
        if name != "availability":
            assert (status["fulfilment"] == "Fulfilled") == bool(plan.clusters) or condition in ("Minimize", "Maximize")
        assert wanted_text(what.targets[0]) in status["targets"][0]["wanted"]


def test_residency_can_exclude_and_can_ask_for_all() -> None:
    both, eu, none = frozenset({"EU", "FR"}), frozenset({"EU"}), frozenset[str]()

    def allowed(condition: str, *values: str) -> list[bool]:
        target = Target("residency", condition, values=values, hard=True, intent="i")
        return [bool(decide(world(site("a", jurisdictions=j)), workload(targets=(target,))).clusters) for j in (both, eu, none)]

    assert allowed("IsOneOf", "FR", "GB") == [True, False, False]
    assert allowed("IsNotOneOf", "FR", "GB") == [False, True, False], "of a site that says nothing, nothing is known"
    assert allowed("IsAllOf", "EU", "FR") == [True, False, False]


def test_a_preferred_range_weighs() -> None:
    (target,) = targets_of(intent({"name": "cost", "condition": "IsWithinRange", "value": [0.01, 0.02]}, priority=90))
    what = workload(cpu=1000, targets=(target,))
    plan = decide(world(site("cheap", cpu_hour=0.001), site("right", cpu_hour=0.015)), what)
    assert dict(plan.clusters) == {"right": 1}


CONTRADICTIONS = [
    (measured("IsLessThan"), measured("IsGreaterThanOrEqualTo")),
    (measured("IsWithinRange"), {**measured("IsGreaterThan"), "value": 60}),
    (measured("IsWithinRange"), {**measured("IsLessThan"), "value": 20}),
]


@pytest.mark.parametrize("targets", CONTRADICTIONS, ids=str)
def test_contradictions_are_refused(targets: tuple[dict[str, Any], ...]) -> None:
    (cause,) = validate_intent(intent(*targets))
    assert "no value is both" in cause.message


def test_bounds_that_meet_in_one_value_are_no_contradiction() -> None:
    assert validate_intent(intent(measured("IsLessThanOrEqualTo"), measured("IsGreaterThanOrEqualTo"))) == []


def test_bounds_for_different_users_are_no_contradiction() -> None:
    def within(region: str, condition: str) -> dict[str, Any]:
        return {"name": "latency", "condition": condition, "value": 50, "contexts": [{"name": "usersIn", "value": region}]}

    assert validate_intent(intent(within("es", "IsLessThan"), within("fr", "IsGreaterThan"))) == []
    (cause,) = validate_intent(intent(within("es", "IsLessThan"), within("fr", "IsLessThan"), within("es", "IsGreaterThan")))
    assert "no value is both" in cause.message


# -- combinations -------------------------------------------------------------------------------------------


def test_the_nearest_offer_relaxes_the_fewest_targets() -> None:
    found = intent(
        latency(20, hard=True),
        {**CARBON, "value": 100, "hard": True},
        {"name": "cost", "condition": "IsLessThan", "value": 0.001, "hard": True},
    )
    dirty = site("dirty", latencies={"x": 12.0}, carbon=600.0, cpu_hour=0.001)
    slow = site("slow", latencies={"x": 24.0}, carbon=50.0, cpu_hour=0.001)
    worst = site("worst", latencies={"x": 21.0}, carbon=101.0, cpu_hour=0.03)
    what = workload(targets=tuple(targets_of(found)))
    assert not decide(world(dirty, slow, worst), what).clusters
    status = evaluate(found, [(what, [])], [dirty, slow, worst], NOW)
    assert [(o["cluster"], [r["name"] for r in o["relax"]]) for o in status["offers"]] == [
        ("slow", ["latency"]),
        ("dirty", ["carbonIntensity"]),
        ("worst", ["latency", "carbonIntensity", "cost"]),
    ]
    assert status["offers"][0]["relax"][0]["gap"] == 4.0
    assert "slow could take it if latency below 20 ms were relaxed by 4 ms to 24 ms" in status["message"]


def test_no_offer_breaks_the_law() -> None:
    found = intent({"name": "residency", "condition": "IsOneOf", "value": ["EU"]}, latency(20, hard=True))
    near = site("uk", latencies={"x": 30.0}, jurisdictions=frozenset({"GB"}))
    what = workload(targets=tuple(targets_of(found)))
    assert "offers" not in evaluate(found, [(what, [])], [near], NOW)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["EU", "high", "", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "value"]), inner, max_size=2),
    max_leaves=5,
)
any_target = st.fixed_dictionaries(
    {"name": st.sampled_from(KNOWN), "condition": st.sampled_from(ALL_CONDITIONS)},
    optional={
        "value": anything,
        "unit": st.sampled_from(["ms", "%", "", "parsec"]),
        "hard": st.booleans(),
        "contexts": st.lists(st.fixed_dictionaries({"name": st.just("usersIn")}, optional={"value": anything}), max_size=2),
    },
)


@given(st.lists(any_target, min_size=1, max_size=3))
def test_whatever_is_asked_is_refused_or_can_be_decided(targets: list[dict[str, Any]]) -> None:
    found = intent(*targets)
    if validate_intent(found):
        return
    what = workload(targets=tuple(targets_of(found)))
    decide(world(NEAR, FAR), what)
    status = evaluate(found, [(what, [NEAR]), (what, [])], [NEAR, FAR], NOW)
    assert status["fulfilment"] in ("Fulfilled", "Degraded", "NotFulfilled")


@pytest.mark.parametrize("users", [{}, {"es": 0}, {"es": -1}, {"es": "many"}, {"es": float("nan")}, 7, [["es"]], {"es": True}])
def test_users_that_make_no_sense_are_refused(users: object) -> None:
    contexts = [{"name": "usersIn", "value": users}]
    found = validate_intent(intent({"name": "latency", "condition": "IsLessThan", "value": 10, "contexts": contexts}))
    assert found
    assert found[0].field == "spec.expectations[0].targets[0].contexts"
    assert "usersIn" in found[0].message or "counted from users" in found[0].message
