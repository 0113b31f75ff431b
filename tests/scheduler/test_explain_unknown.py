"""What is not known is said to be unknown, also after it went through the store, which keeps no nulls."""

from metaos.scheduler.explain import render


def test_a_term_without_a_value_is_shown_as_unknown() -> None:
    term = {"name": "carbon", "unit": "gCO2eq/kWh", "weight": 1.0, "points": 0.0}
    found = {
        "workload": {"kind": "Deployment", "namespace": "shop", "name": "web"},
        "clusters": [{"name": "local", "replicas": 1}],
        "reason": "first placement: best score",
        "decidedTime": "2026-01-01T00:00:00Z",
        "scheduled": "True",
        "message": "",
        "scores": [{"cluster": "local", "total": 50.0, "terms": [term]}],
        "rejected": [],
        "alternatives": [],
        "migration": None,
        "intents": [],
    }
    assert "unknown (0x1)" in render(found)
