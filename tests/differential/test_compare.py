"""The comparison itself, without any server."""

from __future__ import annotations

from tests.differential.cases import Step, cases
from tests.differential.compare import Difference, differences, known, unknown
from tests.differential.generated import requests
from tests.differential.peers import Answer, filled

GET = Step.of({"GET configmaps/a": None})


def config_map(**fields: object) -> Answer:
    metadata = {"name": "a", "uid": "00000000-0000-0000-0000-000000000001", "resourceVersion": "7"}
    return Answer(200, {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata} | fields)


def test_identities_do_not_differ_and_all_else_does() -> None:
    other = config_map()
    other.body["metadata"] |= {"uid": "00000000-0000-0000-0000-000000000002", "resourceVersion": "9"}
    assert differences(GET, config_map(), other, "ns") == []
    assert [d.path for d in differences(GET, config_map(data={"a": "b"}), config_map(data={"a": "c"}), "ns")] == ["body.data.a"]
    assert [d.path for d in differences(GET, config_map(), config_map(data={}), "ns")] == ["body.data"]
    assert [d.path for d in differences(GET, config_map(), Answer(404, {"message": "no"}), "ns")] == ["code"]


def test_causes_are_compared_without_order_and_values_without_notation() -> None:
    def refusal(*texts: str) -> Answer:
        causes = [{"reason": "FieldValueInvalid", "field": "spec", "message": text} for text in texts]
        message = f'Thing "a" is invalid: {texts}'
        return Answer(422, {"kind": "Status", "reason": "Invalid", "message": message, "details": {"causes": causes}})

    go, ours = 'Invalid value: map[string]string{"a":"b"}: is bad', 'Invalid value: {"a":"b"}: is bad'
    assert differences(GET, refusal(ours, "x"), refusal("x", go, go), "ns") == []
    assert differences(GET, refusal("y"), refusal("x"), "ns") != []


def test_known_differences_have_reasons_and_cover_no_more_than_they_say() -> None:
    assert all(len(each.reason) > 20 and each.title for each in known())
    strange = Difference("GET configmaps/a", "body.data.k", "'v'", "'w'")
    assert unknown([strange], 36) == [strange]


def test_a_known_difference_may_be_of_some_versions_only() -> None:
    found = Difference("POST services", "body.message", "'for each IP family'", "'for each IP family, i.e this'")
    assert unknown([found], 20) == [] and unknown([found], 36) == [found]


def test_there_are_a_thousand_requests_and_they_are_the_same_every_time() -> None:
    first, second = list(requests(25)), list(requests(25))
    assert first == second
    assert sum(len(steps) for _, steps in first) + sum(len(case.steps) for case in cases()) >= 1000


def test_variables() -> None:
    assert filled({"a": ["$ns/x", "$none"]}, {"ns": "n"}) == {"a": ["n/x", "$none"]}
