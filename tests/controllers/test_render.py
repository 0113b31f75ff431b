"""What the hub takes from a site's report: of the right kind, bounded, and about its own share only."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaos.controllers.render import MAX_ACTIVE, MAX_CONDITIONS, MAX_TEXT, available, is_idle, reported
from metaos.controllers.status import COUNTS, rolled_up
from metaos.resources.meta import Obj

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
said = st.dictionaries(
    st.sampled_from([*COUNTS["Deployment"], *COUNTS["Job"], *COUNTS["DaemonSet"], "conditions", "active", "startTime", "x"]),
    anything
    | st.lists(
        st.fixed_dictionaries(
            {"type": st.text(max_size=9) | anything, "status": st.sampled_from(["True", "False", "Unknown"]) | anything},
            optional={"message": st.text(min_size=2000, max_size=2100)},
        ),
        max_size=40,
    ),
)


def work(kind: str, replicas: int, status: Any, observed: Any = 1) -> Obj:
    metadata = {"name": "web", "namespace": "shop", "uid": "u", "generation": 4}
    manifest = {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": {"replicas": replicas}}
    entry = {"kind": kind, "name": "web", "uid": "u", "observedGeneration": observed, "status": status}
    return {"metadata": {"namespace": "nemo-cluster-a"}, "spec": {"manifests": [manifest]}, "status": {"manifests": [entry]}}


@given(st.sampled_from(list(COUNTS)), st.integers(0, 5), anything | said, anything)
def test_whatever_a_site_reports_is_made_of_plausible_parts(kind: str, replicas: int, status: Any, observed: Any) -> None:
    found = work(kind, replicas, status, observed)
    entry = reported(found)
    assert 0 <= entry["observedGeneration"] <= 4
    for key, value in entry["status"].items():
        if key == "conditions":
            assert len(value) <= MAX_CONDITIONS
            assert all(len(text) <= MAX_TEXT for c in value for text in c.values())
        elif key == "active" and isinstance(value, list):
            assert len(value) <= MAX_ACTIVE
        elif isinstance(value, int):
            assert value >= 0 and not isinstance(value, bool)
    if kind in ("Deployment", "StatefulSet"):
        assert entry["status"].get("readyReplicas", 0) <= replicas
    available(found)
    rolled_up(found["spec"]["manifests"][0], {"a": entry}, [], 0.0)


def test_a_site_cannot_stand_in_for_the_others() -> None:
    """Of four replicas on two sites, one site claims them all."""
    liar = reported(work("Deployment", 2, {"replicas": 99, "readyReplicas": 99, "availableReplicas": 99, "updatedReplicas": 99}))
    honest = reported(work("Deployment", 2, {"replicas": 2, "readyReplicas": 0, "availableReplicas": 0, "updatedReplicas": 2}))
    whole = {"kind": "Deployment", "metadata": {"generation": 4}, "spec": {"replicas": 4}}
    status = rolled_up(whole, {"a": liar, "b": honest}, [], 0.0)
    assert status["availableReplicas"] == 2 and status["unavailableReplicas"] == 2
    negative = reported(work("Deployment", 2, {"availableReplicas": -5}))
    assert rolled_up(whole, {"a": negative, "b": honest}, [], 0.0).get("availableReplicas", 0) == 0


def test_a_job_that_is_held_does_not_hold_up_a_move() -> None:
    found = work("Job", 1, {"active": 0}, observed=4)
    assert not available(found)
    found["spec"]["manifests"][0]["spec"]["suspend"] = True
    assert available(found)


@given(st.sampled_from(list(COUNTS)), st.integers(0, 5), anything | said)
def test_where_nothing_runs_nothing_is_available(kind: str, replicas: int, status: Any) -> None:
    found = work(kind, max(1, replicas), status)
    if is_idle(found) and kind not in ("Job", "CronJob"):
        assert not available(found)


def test_what_never_ran_is_not_waited_for_and_what_runs_or_keeps_data_is() -> None:
    assert is_idle(work("Deployment", 3, {"replicas": 3, "unavailableReplicas": 3}))
    assert not is_idle(work("Deployment", 3, {"replicas": 3, "readyReplicas": 1}))
    assert not is_idle(work("Deployment", 3, {})), "nothing is known of it"
    assert not is_idle(work("CronJob", 1, {"active": [{"name": "x"}]}))
    kept = work("StatefulSet", 3, {"replicas": 3})
    assert is_idle(kept)
    kept["spec"]["manifests"][0]["spec"]["volumeClaimTemplates"] = [{"metadata": {"name": "data"}}]
    assert not is_idle(kept)
