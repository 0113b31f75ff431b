"""What Kubernetes refuses in affinity and topology spread constraints, in its words."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.apiserver.rules.affinity import affinity_causes
from metaos.resources.affinity import PREFERRED, REQUIRED

TERM = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}
ODD = {**TERM, "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "?"}]}}
WRONG_TERM = f"podAffinity.{REQUIRED}[0]"
SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (
            {"affinity": {"podAffinity": {REQUIRED: [{**TERM, "topologyKey": ""}]}}},
            f"podAffinity.{REQUIRED}[0].topologyKey",
            "empty",
        ),
        (
            {"affinity": {"podAntiAffinity": {PREFERRED: [{"weight": 101, "podAffinityTerm": TERM}]}}},
            f"podAntiAffinity.{PREFERRED}[0].weight",
            "must be in the range 1-100",
        ),
        ({"affinity": {"nodeAffinity": {PREFERRED: [{"weight": 0}]}}}, f"nodeAffinity.{PREFERRED}[0].weight", "1-100"),
        (
            {
                "affinity": {
                    "podAffinity": {
                        REQUIRED: [{**TERM, "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "?"}]}}]
                    }
                }
            },
            "namespaceSelector.matchExpressions[0].operator",
            "not a valid selector operator",
        ),
        ({"topologySpreadConstraints": [{**SPREAD, "maxSkew": 0}]}, "topologySpreadConstraints[0].maxSkew", "greater than zero"),
        ({"topologySpreadConstraints": [{**SPREAD, "topologyKey": ""}]}, "[0].topologyKey", "can not be empty"),
        (
            {"topologySpreadConstraints": [{**SPREAD, "whenUnsatisfiable": "x"}]},
            "[0].whenUnsatisfiable",
            'Unsupported value: "x"',
        ),
        ({"topologySpreadConstraints": [{**SPREAD, "minDomains": 0}]}, "[0].minDomains", "greater than zero"),
        (
            {"topologySpreadConstraints": [{**SPREAD, "minDomains": 2, "whenUnsatisfiable": "ScheduleAnyway"}]},
            "[0].minDomains",
            "can only use minDomains if whenUnsatisfiable=DoNotSchedule",
        ),
        ({"topologySpreadConstraints": [SPREAD, SPREAD]}, "[1].{topologyKey, whenUnsatisfiable}", "Duplicate value"),
    ],
)
def test_refused(spec: dict[str, Any], field: str, words: str) -> None:
    (cause,) = affinity_causes(spec, "spec")
    assert field in cause.field
    assert words in cause.message


def test_what_is_right_passes() -> None:
    spec = {
        "affinity": {"podAffinity": {REQUIRED: [TERM]}, "podAntiAffinity": {PREFERRED: [{"weight": 1, "podAffinityTerm": TERM}]}},
        "topologySpreadConstraints": [{**SPREAD, "minDomains": 2}, {**SPREAD, "whenUnsatisfiable": "ScheduleAnyway"}],
    }
    assert list(affinity_causes(spec, "spec")) == []
