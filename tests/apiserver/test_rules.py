"""Rules in CEL: of users' kinds, what they may ask, and that none holds up the hub."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from metaos.apiserver.custom import judging
from metaos.apiserver.custom.judge import MOST_BYTES, Judge, Unjudged
from metaos.apiserver.registry import Registry
from metaos.resources.errors import ApiError
from tests.apiserver.conftest import ADMIN
from tests.apiserver.definitions import crontab, definition_of
from tests.apiserver.test_definitions import establish, said


def evaluate(expression: str, **data: Any) -> Any:
    found = judging.answer({"evaluate": [["x", expression]], "data": {"self": data}})["found"]["x"]
    return found.get("value", found.get("error"))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("quantity('1500m') == quantity('1.5') && quantity('1Gi').isGreaterThan(quantity('1Mi'))", True),
        ("quantity('2').add(quantity('500m')).sub(1).asApproximateFloat()", 1.5),
        ("quantity('5k').asInteger() + quantity('-1').sign()", 4999),
        ("isQuantity('1Zi') || isURL('x') || isIP('1.2.3') || isCIDR('1.2.3.4')", False),
        ("url('https://me@a.b:80/x?y=1').getHost() + url('http://[::1]:8/').getHostname()", "a.b:80::1"),
        ("url('https://a.b/x%20?y=1&y=2').getQuery()['y'].size()", 2),
        ("cidr('10.0.0.0/8').containsIP('10.1.1.1') && cidr('10.0.0.0/8').containsCIDR(cidr('10.9.0.0/16'))", True),
        ("ip('::1').family() + cidr('10.1.0.0/8').masked().prefixLength()", 14),
        ("ip('10.0.0.1').isGlobalUnicast() && !ip('127.0.0.1').isGlobalUnicast() && ip.isCanonical('::1')", True),
        ("'abc 12'.find('[0-9]+') + 'a1b2'.findAll('[0-9]', 1)[0]", "121"),
        ("[3, 1].max() - [3, 1].min() + [1, 2].sum()", 5),
        ("[1, 2].isSorted() && !['b', 'a'].isSorted()", True),
        ("format.dns1123Label().validate('web').size() + format.uuid().validate('x').size()", 1),
        ("self.?none.orValue(3)", 3),
        ("'%s-%d'.format(['a', 1]).upperAscii().split('-').size()", 2),
        ("[3, 1, 2].exists_one(x, x > 2) && has(self.a) && !has(self.b)", True),
        ("self.b", "no such key: b"),
        ("quantity('x')", "quantity 'x' must be a number"),
        ("self.a.isGreaterThan(quantity('1'))", "No matching overloads found"),
    ],
)
def test_what_an_expression_is(expression: str, expected: Any) -> None:
    found = evaluate(expression, a=1)
    assert str(expected) in found if isinstance(found, str) and isinstance(expected, str) else found == expected


def rules(schema: dict[str, Any], new: Any, old: Any = None) -> list[tuple[str, str]]:
    whole = {"type": "object", "properties": {"spec": schema}}
    asked = {"rules": repr(schema), "schema": whole, "object": {"spec": new}, "old": None if old is None else {"spec": old}}
    return [(each[1], each[3]) for each in judging.answer(asked)["found"]]


def with_rule(rule: str, schema: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "object", "x-kubernetes-validations": [{"rule": rule, **more}]} | (schema or {})


def test_messages_and_places() -> None:
    least = {"properties": {"min": {"type": "integer"}, "max": {"type": "integer"}}}
    assert rules(with_rule("self.min <= self.max", least), {"min": 3, "max": 2}) == [
        ("spec", "failed rule: self.min <= self.max")
    ]
    told = with_rule("false", message="no", messageExpression="'min is %d'.format([self.min])", fieldPath=".min")
    assert rules(told, {"min": 3}) == [("spec.min", "min is 3")]
    assert rules(with_rule("false", message="no", messageExpression="self.none"), {}) == [("spec", "no")]
    assert rules(with_rule("self.none"), {}) == [("spec", "rule evaluation error: no such key: none")]


def test_rules_of_changes() -> None:
    fixed = with_rule("self.a == oldSelf.a", message="fixed")
    assert rules(fixed, {"a": 1}) == [] and rules(fixed, {"a": 1}, {"a": 2}) == [("spec", "fixed")]
    first = with_rule("oldSelf.hasValue() || self.a == 1", optionalOldSelf=True, message="begin with 1")
    assert rules(first, {"a": 2}) == [("spec", "begin with 1")] and rules(first, {"a": 2}, {"a": 1}) == []
    # What was wrong before and has not changed is let be.
    assert rules(with_rule("false"), {"a": 1}, {"a": 1}) == []
    item = {"type": "object", "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "grow"}]}
    keyed = {"type": "array", "items": item, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"]}
    new, old = [{"n": "b", "v": 1}, {"n": "c", "v": 0}], [{"n": "a", "v": 9}, {"n": "b", "v": 2}]
    assert rules(keyed, new, old) == [("spec[0]", "grow")]


def test_values_are_as_their_schema_says() -> None:
    names = {"properties": {"x-y": {"type": "number"}, "namespace": {"type": "string"}}}
    assert (
        rules(with_rule("self.x__dash__y * 2.0 == 4.0 && self.__namespace__ == 'a'", names), {"x-y": 2, "namespace": "a"}) == []
    )
    when = {
        "type": "string",
        "format": "date-time",
        "x-kubernetes-validations": [{"rule": "self > timestamp('2020-01-01T00:00:00Z')"}],
    }
    assert rules(when, "2024-01-01T00:00:00Z") == [] and len(rules(when, "2019-01-01T00:00:00Z")) == 1


def with_rules(*found: dict[str, Any]) -> Any:
    obj = definition_of()
    for entry in obj["spec"]["versions"]:
        entry["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] = list(found)
    return obj


async def test_rules_of_a_definition(registry: Registry) -> None:
    with pytest.raises(ApiError) as error:
        await registry.create(ADMIN, with_rules({"rule": "self.replicas +"}, {"rule": "1"}, {"rule": "nobody == 1"}))
    found = said(error.value)
    path = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations"
    assert "compilation failed: ERROR: <input>:1:16: Syntax error" in found[f"{path}[0].rule"]
    assert found[f"{path}[1].rule"].endswith("must evaluate to bool")
    assert "undeclared reference to 'nobody'" in found[f"{path}[2].rule"]
    rule = {"rule": "self.replicas < 5", "message": "at most 4", "reason": "FieldValueForbidden", "fieldPath": ".replicas"}
    await establish(registry, with_rules(rule, {"rule": "self.image == oldSelf.image", "message": "stays"}))
    with pytest.raises(ApiError) as error:
        await registry.create(ADMIN, crontab(replicas=5))
    assert said(error.value) == {"spec.replicas": "Forbidden: at most 4"}
    await registry.create(ADMIN, crontab())
    kind = registry.kinds.kind_of(crontab())
    with pytest.raises(ApiError) as error:
        await registry.patch(ADMIN, kind, "one", "default", {"spec": {"image": "other"}})
    assert said(error.value) == {"spec": 'Invalid value: "object": stays'}


async def test_a_rule_that_takes_all_there_is_holds_up_nobody() -> None:
    judge = Judge()
    doubling = "['%s']" % ("x" * 100) + ".map(a, a + a)" * 40 + "[0].size() > 0"
    try:
        assert (await judge.ask({"evaluate": [["x", "1 + 1"]], "data": {}}))["found"]["x"]["value"] == 2
        began, ticks = time.monotonic(), 0
        asking = asyncio.ensure_future(judge.ask({"evaluate": [["x", doubling]], "data": {}}))
        while not asking.done() and time.monotonic() - began < 10:
            await asyncio.sleep(0.01)
            ticks += 1
        outcome = (await asyncio.gather(asking, return_exceptions=True))[0]
        assert type(outcome).__name__ == "Unjudged" or "error" in outcome["found"]["x"]
        assert ticks >= 1
        assert (await judge.ask({"evaluate": [["x", "2 + 2"]], "data": {}}))["found"]["x"]["value"] == 4
    finally:
        await judge.close()


def test_loops_end() -> None:
    assert "budget" in evaluate("self.n.all(a, self.n.all(b, self.n.all(c, true)))", n=list(range(500)))


async def test_an_answer_has_an_end() -> None:
    judge = Judge()
    try:
        asks = [[str(i), "object"] for i in range(MOST_BYTES // (1 << 20) + 1)]
        with pytest.raises(Unjudged):
            await judge.ask({"evaluate": asks, "data": {"object": "x" * (1 << 20)}})
        assert (await judge.ask({"evaluate": asks[:1], "data": {"object": "x"}}))["found"]["0"] == {"value": "x"}
    finally:
        await judge.close()


async def test_a_fault_of_ours_ends_nothing() -> None:
    judge = Judge()
    try:
        with pytest.raises(Unjudged, match="the hub's log says why"):
            await judge.ask({"rules": "k", "schema": 5, "object": {}})
        assert (await judge.ask({"evaluate": [["x", "1"]], "data": {}}))["found"]["x"]["value"] == 1
    finally:
        await judge.close()


async def test_who_goes_away_leaves_the_process_to_the_others() -> None:
    judge = Judge()
    try:
        await judge.ask({"evaluate": [["x", "1"]], "data": {}})
        process = judge._process
        gone = asyncio.ensure_future(judge.ask({"evaluate": [["x", "[1, 2].map(a, a)"]], "data": {}}))
        await asyncio.sleep(0)
        other = asyncio.ensure_future(judge.ask({"evaluate": [["x", "3"]], "data": {}}))
        gone.cancel()
        assert (await other)["found"]["x"]["value"] == 3
        assert gone.cancelled() and judge._process is process
    finally:
        await judge.close()


async def test_the_end_of_the_hub_waits_for_no_rule() -> None:
    judge = Judge()
    await judge.ask({"evaluate": [["x", "1"]], "data": {}})
    asking = asyncio.ensure_future(judge.ask({"evaluate": [["x", "2"]], "data": {"object": "x" * (1 << 22)}}))
    await asyncio.sleep(0)
    await judge.close()
    assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], Unjudged | dict)
