"""The 3GPP form: nothing is lost, in either direction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metaos.network.threegpp import DOCUMENT_ANNOTATION, from_3gpp, to_3gpp
from metaos.resources.meta import API_VERSION, Obj

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/intents"

text = st.text("abcxyz-0189", min_size=1, max_size=8)
number = st.integers(0, 10_000) | st.floats(0, 1e6, allow_nan=False)
comparisons = st.sampled_from(["IsLessThan", "IsGreaterThan", "IsEqualTo", "IsLessThanOrEqualTo", "IsOneOf", "Minimize"])
context = st.fixed_dictionaries({"name": text}, optional={"value": text | st.lists(text, max_size=2), "condition": comparisons})
target = st.fixed_dictionaries(
    {"name": st.sampled_from(["latency", "carbonIntensity", "residency", "cost"]), "condition": comparisons},
    optional={
        "value": number | st.lists(text, max_size=3),
        "unit": st.sampled_from(["ms", "s", "EUR/h"]),
        "hard": st.booleans(),
        "contexts": st.lists(context, min_size=1, max_size=2),
    },
)
expectation = st.fixed_dictionaries(
    {"targets": st.lists(target, max_size=3)},
    optional={"verb": st.sampled_from(["Ensure", "Deliver", "Maintain"]), "contexts": st.lists(context, max_size=2)},
)
workloads = st.fixed_dictionaries(
    {},
    optional={
        "selector": st.fixed_dictionaries({"matchLabels": st.dictionaries(text, text, max_size=2)}),
        "refs": st.lists(st.fixed_dictionaries({"kind": st.just("Deployment"), "name": text}), max_size=2),
    },
)
plain = st.fixed_dictionaries(
    {"expectations": st.lists(expectation, min_size=1, max_size=3)},
    optional={"priority": st.integers(0, 100), "workloads": workloads},
)
labelled = st.fixed_dictionaries(
    {"name": text},
    optional={"namespace": text, "labels": st.dictionaries(text, text), "annotations": st.dictionaries(text, text)},
)
intents = st.builds(lambda m, s: {"apiVersion": API_VERSION, "kind": "Intent", "metadata": m, "spec": s}, labelled, plain)


@given(intents)
def test_an_intent_comes_back_as_it_was(intent: Obj) -> None:
    document = to_3gpp(intent)
    assert from_3gpp(json.loads(json.dumps(document))) == intent


@given(intents, st.dictionaries(st.sampled_from(["userLabel", "observationPeriod", "vendorData"]), text))
def test_a_document_comes_back_as_it_was(intent: Obj, more: dict[str, Any]) -> None:
    document = to_3gpp(intent) | more
    assert to_3gpp(from_3gpp(document)) == document


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_examples_come_back(path: Path) -> None:
    intent = yaml.safe_load(path.read_text())
    assert from_3gpp(to_3gpp(intent)) == intent


def test_names_are_those_of_the_standard() -> None:
    document = to_3gpp(yaml.safe_load((EXAMPLES / "10-latency.yaml").read_text()))
    expectation = document["intentExpectations"][0]
    assert expectation["expectationVerb"] == "ENSURE"
    assert expectation["expectationObject"]["objectType"] == "NEMO_WORKLOAD"
    found = expectation["expectationTargets"][0]
    assert (found["targetName"], found["targetCondition"], found["targetValueRange"]) == ("latency", "IS_LESS_THAN", 40)
    assert {"contextAttribute": "usersIn", "contextValueRange": "europe-southwest1"} in found["targetContexts"]


def test_release_17_documents_are_kept_whole_until_edited() -> None:
    document = {
        "userLabel": "near",
        "intentFulfilmentInfo": {"fulfilStatus": "NOT_FULFILLED"},
        "intentExpectations": [
            {
                "expectationId": "a7",
                "expectationVerb": "ENSURE",
                "expectationObjects": [{"objectType": "NEMO_WORKLOAD", "objectInstance": "SubNetwork=1"}],
                "expectationTargets": [{"targetName": "energy", "targetCondition": "IS_LESS_THAN", "targetValueRange": 9}],
            }
        ],
    }
    intent = from_3gpp(document)
    assert intent["metadata"]["name"] == "near"
    assert DOCUMENT_ANNOTATION in intent["metadata"]["annotations"]
    assert to_3gpp(intent) == document
    intent["spec"]["priority"] = 80
    edited = to_3gpp(intent)
    assert edited["intentPriority"] == 80 and edited["userLabel"] == "near"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "intentExpectations: None must be a list"),
        ({"intentExpectations": [{"expectationObject": {"objectType": "RAN_SubNetwork"}}]}, "use NEMO_WORKLOAD"),
        ({"intentExpectations": [{"expectationTargets": [{"targetName": "x"}]}]}, "targetCondition: None must be one of"),
        (
            {"intentExpectations": [{"expectationTargets": [{"targetCondition": "IS_EQUAL_TO"}]}]},
            "targetName: None must be the name",
        ),
        ({"intentExpectations": [{"expectationContexts": [{}]}]}, "lacks contextAttribute"),
    ],
)
def test_refusals_name_attribute_and_remedy(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        from_3gpp(document)
