"""What the judge says of residency that comes later and of sites that are too full, also where the controllers do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metaos.controllers.barred import Barred
from metaos.twin.overdue import Overdue
from metaos.twin.play import play
from metaos.twin.report import summary
from metaos.twin.scenario import scenario
from metaos.twin.story import Scenario
from metaos.twin.text import parse

AWAY = {word: ["gb", "us"] for word in ("web", "db", "disk")}
LATER: dict[str, Any] = {
    "title": "Residency comes later",
    "duration": "14m",
    "agents": "light",
    "sites": [{"name": s, "spec": {"jurisdictions": [s.upper()], "capacity": {"cpu": "4"}}} for s in ("gb", "us")],
    "workloads": [
        {"name": "web", "replicas": 2, "secret": True},
        {"name": "db", "kind": "StatefulSet", "secret": True},
        {"name": "disk", "volume": True},
        {"name": "batch", "kind": "Job", "run": "1m", "secret": True},
    ],
    "faults": [{"at": "5m", "residency": {word: ["EU"] for word in ("web", "db", "disk", "batch")}}],
    "expect": [{"at": "8m", "neverOn": AWAY, "unplaced": ["web", "db", "disk"]}],
}
FULL: dict[str, Any] = {
    "title": "Room for one",
    "duration": "10m",
    "agents": "light",
    "sites": [{"name": "be", "spec": {"capacity": {"cpu": "1200m"}}}],
    "objects": [
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "rescue"}, "value": 1000},
    ],
    "workloads": [
        {"name": "low", "replicas": 2, "cpu": "500m"},
        {"name": "hi", "cpu": "1", "priorityClass": "rescue", "at": "3m"},
    ],
    "expect": [{"at": "4m", "ready": {"hi": 1, "low": 0}, "unplaced": ["low"]}],
}
#: What reads the data fits only where it is not.
DATA: dict[str, Any] = {
    "title": "The data says later where it may be read",
    "duration": "14m",
    "agents": "light",
    "sites": [
        {"name": "eu", "spec": {"jurisdictions": ["EU"], "capacity": {"cpu": "100m"}, "datasets": [{"name": "patients"}]}},
        {"name": "us", "spec": {"jurisdictions": ["US"], "capacity": {"cpu": "4"}}},
    ],
    "objects": [
        {
            "apiVersion": "meta-os.eu/v1alpha1",
            "kind": "Intent",
            "metadata": {"name": "reads", "namespace": "default"},
            "spec": {"traffic": [{"from": {"name": "web"}, "to": {"dataset": "patients"}, "bytesPerSecond": 10}]},
        }
    ],
    "workloads": [{"name": "web", "cpu": "500m", "secret": True}, {"name": "other", "cpu": "500m"}],
    "faults": [{"at": "5m", "change": {"eu": {"datasets": [{"name": "patients", "residency": ["EU"]}]}}}],
    "expect": [
        {"at": "4m", "ready": {"web": 1, "other": 1}},
        {"at": "8m", "neverOn": {"web": ["us"]}, "unplaced": ["web"], "ready": {"other": 1}},
    ],
}


def of(text: dict[str, Any], **changed: Any) -> Scenario:
    return scenario(parse(yaml.safe_dump(text | changed), "law.yaml"), Path())


def test_what_may_be_nowhere_any_more_is_nowhere_and_nothing_of_it_stays() -> None:
    report = play(of(LATER))
    assert report["passed"], summary(report)


def test_who_reads_data_leaves_where_it_may_not_be_read_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    report = play(of(DATA))
    assert report["passed"], summary(report)
    monkeypatch.setattr(Barred, "why", lambda self, obj, placement, sites: {})
    told = " ".join(v["what"] for v in play(of(DATA, expect=[]))["violations"])
    assert "Deployment default/web" in told and "Secret default/web-key" in told and "default/other" not in told, told


def test_a_site_that_is_away_when_the_law_comes_obeys_when_it_is_back() -> None:
    cut = {"at": "4m", "cut": ["gb", "us"], "for": "4m"}
    hope = {"at": "11m", "neverOn": AWAY}
    report = play(of(LATER, faults=[*LATER["faults"], cut], expect=[hope]))
    assert report["passed"], summary(report)


def test_without_the_controllers_part_the_judge_sees_pods_secrets_and_claims_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Barred, "why", lambda self, obj, placement, sites: {})
    told = " ".join(v["what"] for v in play(of(LATER, expect=[]))["violations"])
    for what in ("Deployment default/web", "StatefulSet default/db", "Secret default/web-key", "PersistentVolumeClaim", "Job"):
        assert f"{what}" in told, told


def test_who_is_displaced_is_gone_and_the_site_is_never_too_full_for_long() -> None:
    report = play(of(FULL))
    assert report["passed"], summary(report)


def test_a_site_that_stays_too_full_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Barred, "why", lambda self, obj, placement, sites: {})
    monkeypatch.setattr("metaos.controllers.work.WorkReconciler._is_given_up", lambda self, about, site: False)
    found = [v["what"] for v in play(of(FULL))["violations"]]
    assert any("what has run on site be for 180 s asks for 860 m CPU" in what for what in found), found


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 50)), max_size=40))
def test_something_is_overdue_once_when_it_was_wrong_for_long_enough_without_a_break(
    looks: list[tuple[bool, bool, float]],
) -> None:
    overdue, seconds, wrong_before = Overdue(60), 0.0, False
    for reached, wrong, passed in looks:
        told = overdue.look("a", ["x"] if wrong else [], passed, reached=reached)
        before = seconds
        seconds = seconds + passed if wrong and reached and wrong_before else 0.0
        wrong_before = wrong and reached
        assert told == (["x"] if before <= 60 < seconds else [])
