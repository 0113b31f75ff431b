"""Budgets: months, rates of placements, and where a limit stands."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaos.accounting.budget import Rates, Standing, asks_for_more, conditions, month, rates, refusal, standings, used

_NOW = st.floats(0, 4e9)


@given(_NOW)
def test_a_month_holds_its_time_and_joins_the_next(now: float) -> None:
    named, start, end = month(now)
    assert start <= now < end and 28 * 86400 <= end - start <= 31 * 86400
    assert month(start)[0] == named == month(end - 1)[0] and month(end)[1] == end


def placement(sites: dict[str, int], **terms: Any) -> dict[str, Any]:
    scores = [{"cluster": s, "terms": [{"name": k, "value": v} for k, v in terms.items()]} for s in (*sites, "elsewhere")]
    return {"spec": {"clusters": [{"name": s, "replicas": n} for s, n in sites.items()]}, "status": {"scores": scores}}


def test_rates_are_those_of_the_chosen_sites_by_their_share() -> None:
    found = rates([placement({"a": 1, "b": 3}, energy=20, carbon=300, cost=0.4)])
    assert found == Rates(6.0, 0.4)
    assert rates([]) == rates([placement({"a": 1}, energy=None, carbon=5)]) == Rates()
    assert rates([placement({"a": 0}, energy=20, carbon=300), placement({"b": 1}, cost=float("nan"))]) == Rates(6.0, None)


def test_grams_are_those_of_operation_and_hardware_and_money_stays_apart() -> None:
    groups = [
        {"operationalGrams": {"location": "1.5", "market": None}, "embodiedGrams": "0.5", "cost": {"EUR": "2"}},
        {"operationalGrams": {"location": "1"}, "embodiedGrams": None, "cost": {"EUR": "1", "USD": "9"}},
    ]
    assert used(groups, "location") == (3.0, {"EUR": 3.0, "USD": 9.0}) and used(groups, "market")[0] == 0.5
    assert used([], "location") == (None, {})


def test_what_is_to_come_is_counted_to_the_end_of_the_month() -> None:
    now = datetime(2026, 2, 28, 14, tzinfo=UTC).timestamp()
    groups = [{"operationalGrams": {"location": "50"}, "cost": {"EUR": "1"}}]
    spec = {"grams": 100, "cost": {"amount": 2, "currency": "EUR"}}
    assert standings(spec, groups, Rates(6.0, 0.25), now) == [Standing("gCO2eq", 100, 50, 110), Standing("EUR", 2, 1, 3.5)]
    other = standings(spec | {"cost": {"amount": 2, "currency": "USD"}}, groups, Rates(6.0, 0.25), now)
    assert other[1] == Standing("USD", 2, None, None)


_AMOUNT = st.none() | st.floats(0, 1e9)
_STANDING = st.builds(Standing, st.just("gCO2eq"), st.floats(0, 1e9), _AMOUNT, _AMOUNT)


@given(st.lists(_STANDING, max_size=2), st.integers(1, 100))
def test_at_the_limit_all_is_refused_before_it_is_warned_and_what_is_unknown_limits_nothing(
    found: list[Standing], percent: int
) -> None:
    said = {type_: status for type_, status, _, _ in conditions(found, percent)}
    assert (said["Exhausted"] == "True") == any(s.used is not None and s.used >= s.limit for s in found)
    if said["Exhausted"] == "True":
        assert said["NearLimit"] == "True"
    if all(s.used is None and s.projected is None for s in found):
        assert set(said.values()) == {"False"}
    held = [{"type": t, "status": s, "message": m} for t, s, _, m in conditions(found, percent)]
    why, warnings = refusal([{"metadata": {"name": "b"}, "status": {"conditions": held}}])
    assert bool(why) == (said["Exhausted"] == "True")
    assert bool(warnings) == (said["NearLimit"] == "True" and not why)


def test_who_asks_for_more() -> None:
    assert asks_for_more({}, None)
    assert asks_for_more({"spec": {"replicas": 3}}, {"spec": {"replicas": 2}})
    assert asks_for_more({"spec": {"suspend": False}}, {"spec": {"suspend": True}})
    for now, before in (({"replicas": 2}, {"replicas": 2}), ({"replicas": 0}, {"replicas": 2}), ({"suspend": True}, {})):
        assert not asks_for_more({"spec": now}, {"spec": before})
