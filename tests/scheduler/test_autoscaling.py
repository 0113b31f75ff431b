"""How many replicas a load asks for: Kubernetes' arithmetic, its caution, and what always holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.scheduler.autoscaling import PodSample, Remembered, Unavailable, decide, propose, rules_of

NOW = 10_000.0


def pod(number: int = 0, use: int | None = 100, request: int | None = 200, **more: Any) -> PodSample:
    """Milli-CPU; long ready."""
    usage = None if use is None else {"main": {"cpu": use, "memory": 50 << 20}}
    requests = {"main": {} if request is None else {"cpu": request, "memory": 100 << 20}}
    times = {"measured": NOW - 2, "window": 10.0, "started": NOW - 1000, "ready": True, "ready_since": NOW - 990}
    return PodSample(f"web-{number}", requests, usage, **(times | more))


def pods(*uses: int | None, **more: Any) -> list[PodSample]:
    return [pod(n, use, **more) for n, use in enumerate(uses)]


def cpu(percent: int | None = None, average: str | None = None) -> dict[str, Any]:
    target: dict[str, Any] = {"type": "AverageValue", "averageValue": average}
    if percent is not None:
        target = {"type": "Utilization", "averageUtilization": percent}
    return {"type": "Resource", "resource": {"name": "cpu", "target": target}}


def spec(*metrics: dict[str, Any], least: int = 1, most: int = 10, **behavior: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"minReplicas": least, "maxReplicas": most, "metrics": list(metrics or (cpu(50),))}
    return found | ({"behavior": behavior} if behavior else {})


def asked(metric: dict[str, Any], current: int, found: list[PodSample]) -> int:
    return propose(metric, current, found, NOW, rules_of(spec(metric))).replicas


@pytest.mark.parametrize(
    ("uses", "wanted"),
    [
        ((100, 100), 2),  # 50 % of the request, as wanted
        ((109, 109), 2),  # within the tolerance
        ((120, 120), 3),
        ((200, 200), 4),
        ((20, 20), 1),
        ((300, 100), 4),
        ((0, 0), 0),  # below the least: for the bounds to mend
    ],
)
def test_the_ratio_of_use_and_target(uses: tuple[int, ...], wanted: int) -> None:
    assert asked(cpu(50), len(uses), pods(*uses)) == wanted


def test_an_average_value_needs_no_requests() -> None:
    assert asked(cpu(average="50m"), 2, pods(100, 100, request=None)) == 4
    memory = {"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 25}}}
    found = propose(memory, 1, pods(0), NOW, rules_of(spec(memory)))
    assert found.replicas == 2 and found.status["resource"]["current"]["averageUtilization"] == 50
    assert found.text == "memory resource utilization (percentage of request)"


def test_one_container_alone() -> None:
    target = {"type": "Utilization", "averageUtilization": 50}
    metric = {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "main", "target": target}}
    found = [
        PodSample("a", {"main": {"cpu": 100}, "side": {}}, {"main": {"cpu": 100}, "side": {"cpu": 900}}, ready=True, started=0.0)
    ]
    shown = propose(metric, 1, found, NOW, rules_of(spec(metric)))
    assert shown.replicas == 2 and shown.status["containerResource"]["container"] == "main"
    metric["containerResource"]["container"] = "none"
    with pytest.raises(Unavailable, match="did not receive"):
        propose(metric, 1, found, NOW, rules_of(spec(metric)))


def test_pods_that_start_count_as_idle_for_more_and_not_at_all_for_less() -> None:
    young = {"started": NOW - 20, "ready": False, "ready_since": NOW - 20}
    assert asked(cpu(50), 2, [*pods(200), pod(9, 400, **young)]) == 2, "twice the target in one of two: enough already"
    assert asked(cpu(50), 2, [*pods(400), pod(9, 400, **young)]) == 4
    assert asked(cpu(50), 2, [*pods(10), pod(9, None, pending=True)]) == 1
    fresh = {"started": NOW - 20, "ready": True, "ready_since": NOW - 5}
    assert asked(cpu(50), 2, [*pods(200), pod(9, 400, **fresh)]) == 2, "measured before it was ready"
    with pytest.raises(Unavailable, match="might be unready"):
        asked(cpu(50), 1, [pod(0, 400, **young)])


def test_pods_without_measurements_are_taken_for_what_changes_least() -> None:
    assert asked(cpu(50), 3, pods(20, 20, None)) == 3, "one that may be at its request keeps the others"
    assert asked(cpu(50), 2, pods(180, None)) == 2
    assert asked(cpu(50), 2, pods(400, None)) == 4


@pytest.mark.parametrize(
    ("metric", "found", "text"),
    [
        (
            {"type": "Pods", "pods": {"metric": {"name": "requests"}}},
            pods(1),
            "Pods metric 'requests' is not available: sites measure",
        ),
        ({"type": "External", "external": {"metric": {"name": "queue"}}}, pods(1), "External metric 'queue'"),
        ({"type": "Object", "object": {"metric": {"name": "hits"}}}, pods(1), "Object metric 'hits'"),
        (cpu(50), [], "no pods returned by selector"),
        (cpu(50), pods(None), "did not receive metrics"),
        (cpu(50), pods(10, request=None), "missing request for cpu in container main of Pod web-0"),
        ({"type": "Resource", "resource": {"name": "gpu", "target": {}}}, pods(1), "cpu and memory, not gpu"),
    ],
)
def test_what_cannot_be_computed_says_why(metric: dict[str, Any], found: list[PodSample], text: str) -> None:
    decision = decide(spec(metric), 2, found, Remembered(), NOW)
    status, reason, message = decision.conditions["ScalingActive"]
    assert decision.replicas == 2 and status == "False" and reason.startswith("FailedGet") and text in message


def test_the_greatest_of_several_and_no_shrinking_without_all() -> None:
    idle, busy = cpu(50), cpu(average="10m")
    assert decide(spec(idle, busy), 2, pods(60, 60), Remembered(), NOW).replicas == 6, "as fast as the policies permit"
    unknown = {"type": "External", "external": {"metric": {"name": "queue"}}}
    held = Remembered(((0.0, 1),))
    assert decide(spec(idle, unknown), 4, pods(1, 1, 1, 1), held, NOW).replicas == 4
    assert decide(spec(idle, unknown), 2, pods(300, 300), held, NOW).replicas == 6
    assert decide(spec(idle), 4, pods(1, 1, 1, 1), held, NOW).replicas == 1


def test_bounds_and_zero() -> None:
    assert decide(spec(most=3), 7, [], Remembered(), NOW).replicas == 3
    assert decide(spec(least=2), 1, [], Remembered(), NOW).replicas == 2
    off = decide(spec(), 0, [], Remembered(), NOW)
    assert off.replicas == 0 and off.conditions["ScalingActive"][1] == "ScalingDisabled"
    full = decide(spec(most=5), 4, pods(200, 200, 200, 200), Remembered(), NOW)
    assert full.replicas == 5 and full.conditions["ScalingLimited"][:2] == ("True", "TooManyReplicas")
    fast = decide(spec(most=100), 5, pods(*[2000] * 5), Remembered(), NOW)
    assert fast.replicas == 10 and fast.conditions["ScalingLimited"][1] == "ScaleUpLimit"


def test_what_was_added_just_now_counts_against_the_policy() -> None:
    up = {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]}
    first = decide(spec(most=50, scaleUp=up), 3, pods(*[1000] * 3), Remembered(), NOW)
    assert first.replicas == 5
    held = first.remembered.scaled(NOW, 3, 5)
    assert decide(spec(most=50, scaleUp=up), 5, pods(*[1000] * 5), held, NOW + 30).replicas == 5
    assert decide(spec(most=50, scaleUp=up), 5, pods(*[1000] * 5), held, NOW + 61).replicas == 7
    off = {"selectPolicy": "Disabled"}
    assert decide(spec(scaleUp=off), 2, pods(900, 900), Remembered(), NOW).replicas == 2
    slow = {"policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}], "stabilizationWindowSeconds": 0}
    assert decide(spec(scaleDown=slow, most=50), 20, pods(*[0] * 20), Remembered(((0.0, 1),)), NOW).replicas == 18


def test_the_windows() -> None:
    held, size = Remembered(), 4
    low = pods(*[10] * 4)
    for second in range(0, 300, 15):
        decision = decide(spec(), size, low, held, NOW + second)
        assert decision.replicas == 4 and decision.conditions["AbleToScale"][1] == "ScaleDownStabilized"
        held = decision.remembered
    assert decide(spec(), size, low, held, NOW + 301).replicas == 1
    up = {"stabilizationWindowSeconds": 60}
    waits = decide(spec(scaleUp=up), 2, pods(400, 400), Remembered(((NOW - 30, 2),)), NOW)
    assert waits.replicas == 2 and waits.conditions["AbleToScale"][1] == "ScaleUpStabilized"
    assert decide(spec(scaleUp=up), 2, pods(400, 400), Remembered(((NOW - 61, 2),)), NOW).replicas == 6


LOADS = st.lists(st.one_of(st.none(), st.integers(0, 2000)), min_size=1, max_size=12)
CPU = st.builds(lambda p: cpu(p), st.integers(1, 200))


@given(LOADS, st.integers(1, 30), st.integers(1, 8), st.integers(8, 30), CPU)
def test_it_stays_within_its_bounds(uses: list[int | None], current: int, least: int, most: int, metric: dict[str, Any]) -> None:
    found = decide(spec(metric, least=least, most=most), current, pods(*uses), Remembered(), NOW).replicas
    assert min(least, current) <= found <= max(most, current)
    assert least <= found <= most or (least <= current <= most) is False


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=12), st.integers(0, 1000), CPU)
def test_more_load_never_asks_for_less(uses: list[int], more: int, metric: dict[str, Any]) -> None:
    current = len(uses)
    assert asked(metric, current, pods(*uses)) <= asked(metric, current, pods(*(u + more for u in uses)))


@given(LOADS, CPU)
def test_a_missing_measurement_never_turns_or_widens_the_step(uses: list[int | None], metric: dict[str, Any]) -> None:
    known = [u for u in uses if u is not None]
    if not known:
        return
    current = len(uses)
    without, full = asked(metric, current, pods(*uses)), asked(metric, len(known), pods(*known))
    if full > len(known):
        assert without >= current
    elif full < len(known):
        assert without <= current


@given(st.lists(st.integers(0, 1500), min_size=2, max_size=60), st.integers(30, 600))
def test_it_does_not_flap_within_the_window(loads: list[int], window: int) -> None:
    """A size that was recommended is not gone below before the window has passed, whatever the load does."""
    rules = spec(most=40, scaleDown={"stabilizationWindowSeconds": window})
    held, size, history = Remembered(), 4, list[tuple[float, int]]()
    for step, load in enumerate(loads):
        now = NOW + 15 * step
        before = [n for time, n in history if time > now - window]
        decision = decide(rules, size, pods(*[load] * size, measured=now, ready_since=0.0), held, now)
        assert decision.replicas >= min(size, min(before, default=size)) and decision.replicas <= 40
        if decision.replicas < size:
            assert decision.replicas >= max(before, default=0), "it shrank below what was recommended within the window"
        history.append((now, decision.remembered.recommended[-1][1]))
        held = decision.remembered.scaled(now, size, decision.replicas) if decision.replicas != size else decision.remembered
        size = decision.replicas
        assert len(held.recommended) <= window / 15 + 2
