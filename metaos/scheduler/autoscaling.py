"""Horizontal autoscaling: how many replicas a workload should have, by what its pods use and what its rules allow. Pure.

The algorithm is Kubernetes' (``pkg/controller/podautoscaler``): the ratio of use and target with a tolerance; pods that start
count as idle when there is to be more, those without measurements as busy when there is to be less; the greatest proposal of
several metrics; then stabilisation windows, policies and bounds. Amounts are whole thousandths (of cores, of bytes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from metaos.resources import quantity

TOLERANCE = Fraction(1, 10)
#: A pod that is younger counts as starting while it is not ready, or was not ready for the whole of its measurement.
STARTING_SECONDS, FIRST_READY_SECONDS = 300.0, 30.0
DOWN_WINDOW_SECONDS, UP_WINDOW_SECONDS = 300.0, 0.0
_UP_POLICIES = ({"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15})
_DOWN_POLICIES = ({"type": "Percent", "value": 100, "periodSeconds": 15},)
#: Of one workload; the oldest are forgotten beyond it.
MAX_REMEMBERED = 1000

Amounts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class PodSample:
    """One living pod of the target. ``usage`` and ``requests``: container → resource → thousandths; ``usage`` is ``None`` where
    it is not measured. Times in seconds since the epoch."""

    name: str
    requests: Amounts
    usage: Amounts | None = None
    measured: float = 0.0
    window: float = 0.0
    pending: bool = False
    started: float | None = None
    ready: bool | None = None
    ready_since: float = 0.0

    def starting(self, now: float) -> bool:
        """Whether its CPU says nothing yet about its load."""
        if self.ready is None or self.started is None:
            return True
        if self.started + STARTING_SECONDS > now:
            return not self.ready or self.measured < self.ready_since + self.window
        return not self.ready and self.started + FIRST_READY_SECONDS > self.ready_since


class Unavailable(Exception):
    """A metric from which nothing can be computed; ``reason`` is that of the condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one metric asks for. ``status`` is its entry of ``status.currentMetrics``."""

    replicas: int
    text: str
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Remembered:
    """What earlier looks left: (time, replicas) recommended, and (time, how many) added and removed."""

    recommended: tuple[tuple[float, int], ...] = ()
    added: tuple[tuple[float, int], ...] = ()
    removed: tuple[tuple[float, int], ...] = ()

    def scaled(self, now: float, before: int, after: int) -> Remembered:
        """After the target was given another size."""
        if after > before:
            return replace(self, added=(*self.added, (now, after - before))[-MAX_REMEMBERED:])
        return replace(self, removed=(*self.removed, (now, before - after))[-MAX_REMEMBERED:])


@dataclass(frozen=True, slots=True)
class Decision:
    """``conditions``: type → (status, reason, message). ``failures``: (reason, message) of metrics that are not there."""

    replicas: int
    reason: str
    conditions: Mapping[str, tuple[str, str, str]]
    metrics: tuple[Mapping[str, Any], ...]
    failures: tuple[tuple[str, str], ...]
    remembered: Remembered


# -- one metric --------------------------------------------------------------------------------------------


def propose(metric: Mapping[str, Any], current: int, pods: Sequence[PodSample], now: float, rules: Rules) -> Proposal:
    """Raises :class:`Unavailable`."""
    kind = str(metric.get("type"))
    if kind not in ("Resource", "ContainerResource"):
        field = kind[:1].lower() + kind[1:]
        wanted = ((metric.get(field) or {}).get("metric") or {}).get("name", "")
        raise Unavailable(
            f"FailedGet{kind}Metric",
            f"{kind} metric {wanted!r} is not available: sites measure cpu and memory; use Resource or ContainerResource metrics",
        )
    source = metric["resource" if kind == "Resource" else "containerResource"]
    resource, target, container = str(source["name"]), source["target"], str(source.get("container") or "")
    failed = "FailedGetResourceMetric" if kind == "Resource" else "FailedGetContainerResourceMetric"
    if resource not in ("cpu", "memory"):
        raise Unavailable(failed, f"sites measure cpu and memory, not {resource}")
    if not pods:
        raise Unavailable(failed, "no pods returned by selector while calculating replica count")
    try:
        group = _grouped(resource, container, pods, now)
        if target.get("averageUtilization") is not None:
            aim = int(target["averageUtilization"])
            requests = {p.name: _requested(p, resource, container) for p in pods}
            replicas = _by_utilisation(group, requests, aim, current, rules)
            used, asked = sum(group.measured.values()), sum(requests[p] for p in group.measured)
            shown = {"averageUtilization": used * 100 // asked, "averageValue": _amount(resource, used // len(group.measured))}
            words = "resource utilization (percentage of request)"
        else:
            aim = int(quantity.parse(target["averageValue"]) * 1000)
            replicas = _by_value(group, aim, current, rules)
            shown = {"averageValue": _amount(resource, sum(group.measured.values()) // len(group.measured))}
            words = "resource"
    except ValueError as error:
        raise Unavailable(failed, f"failed to get {resource} {words_of(target)}: {error}") from None
    entry: dict[str, Any] = {"name": resource, "current": shown}
    if container:
        entry["container"] = container
    status = {"type": kind, "resource" if kind == "Resource" else "containerResource": entry}
    return Proposal(replicas, f"{resource} {'container ' if container else ''}{words}", status)


def words_of(target: Mapping[str, Any]) -> str:
    return "utilization" if target.get("averageUtilization") is not None else "usage"


def _amount(resource: str, thousandths: int) -> str:
    return quantity.format_milli(thousandths) if resource == "cpu" else quantity.format_bytes(thousandths // 1000)


@dataclass(frozen=True, slots=True)
class _Group:
    """``measured``: pod → use, of those that are ready; the others by name."""

    measured: dict[str, int]
    starting: tuple[str, ...]
    missing: tuple[str, ...]


def _grouped(resource: str, container: str, pods: Sequence[PodSample], now: float) -> _Group:
    measured: dict[str, int] = {}
    starting, missing = [], []
    for pod in pods:
        used = None if pod.usage is None else _sum(pod.usage, resource, container)
        if pod.pending:
            starting.append(pod.name)
        elif used is None:
            missing.append(pod.name)
        elif resource == "cpu" and pod.starting(now):
            starting.append(pod.name)
        else:
            measured[pod.name] = used
    if not measured:
        raise ValueError("did not receive metrics for targeted pods (pods might be unready)")
    return _Group(measured, tuple(starting), tuple(missing))


def _sum(amounts: Amounts, resource: str, container: str) -> int | None:
    found = [a[resource] for name, a in amounts.items() if resource in a and container in ("", name)]
    return sum(found) if found else None


def _requested(pod: PodSample, resource: str, container: str) -> int:
    if container and container not in pod.requests:
        raise ValueError(f"container {container} not present in pod {pod.name}")
    for name, amounts in sorted(pod.requests.items()):
        if container in ("", name) and not amounts.get(resource):
            raise ValueError(f"missing request for {resource} in container {name} of Pod {pod.name}")
    return _sum(pod.requests, resource, container) or 0


def _by_utilisation(group: _Group, requests: Mapping[str, int], aim: int, current: int, rules: Rules) -> int:
    def ratio(amounts: Mapping[str, int]) -> Fraction:
        asked = sum(requests[p] for p in amounts)
        return Fraction(sum(amounts.values()) * 100 // asked, aim)

    # Of a pod without measurements: that it is at its request, or at the target where that is more.
    busy = {p: requests[p] * max(100, aim) // 100 for p in group.missing}
    return _replicas(group, busy, ratio, current, rules)


def _by_value(group: _Group, aim: int, current: int, rules: Rules) -> int:
    def ratio(amounts: Mapping[str, int]) -> Fraction:
        return Fraction(sum(amounts.values()) // len(amounts), aim)

    return _replicas(group, dict.fromkeys(group.missing, aim), ratio, current, rules)


def _replicas(group: _Group, busy: Mapping[str, int], ratio: Any, current: int, rules: Rules) -> int:
    first = ratio(group.measured)
    more_with_starting = bool(group.starting) and first > 1
    if not more_with_starting and not group.missing:
        return current if rules.tolerates(first) else _ceil(first * len(group.measured))
    amounts = dict(group.measured)
    if first < 1:
        amounts |= busy
    elif first > 1:
        amounts |= dict.fromkeys(group.missing, 0)
    if more_with_starting:
        amounts |= dict.fromkeys(group.starting, 0)
    second = ratio(amounts)
    if rules.tolerates(second) or (first < 1 < second) or (second < 1 < first):
        return current
    wanted = _ceil(second * len(amounts))
    if (second < 1 and wanted > current) or (second > 1 and wanted < current):
        return current
    return wanted


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)


# -- rules -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Direction:
    """How fast it may grow, or shrink. ``policies``: (type, value, period in seconds)."""

    window: float
    tolerance: Fraction
    select: str
    policies: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """``spec.behavior``, with Kubernetes' defaults where it says nothing."""

    up: Direction
    down: Direction
    least: int
    most: int

    def tolerates(self, ratio: Fraction) -> bool:
        return 1 - self.down.tolerance <= ratio <= 1 + self.up.tolerance


def rules_of(spec: Mapping[str, Any]) -> Rules:
    """Of a HorizontalPodAutoscaler's spec."""
    behavior = spec.get("behavior") or {}
    least = spec.get("minReplicas")
    return Rules(
        _direction(behavior.get("scaleUp") or {}, UP_WINDOW_SECONDS, _UP_POLICIES),
        _direction(behavior.get("scaleDown") or {}, DOWN_WINDOW_SECONDS, _DOWN_POLICIES),
        1 if least is None else int(least),
        int(spec["maxReplicas"]),
    )


def _direction(said: Mapping[str, Any], window: float, policies: Sequence[Mapping[str, Any]]) -> Direction:
    stated, tolerance = said.get("stabilizationWindowSeconds"), said.get("tolerance")
    return Direction(
        window if stated is None else float(stated),
        TOLERANCE if tolerance is None else quantity.parse(tolerance),
        str(said.get("selectPolicy") or "Max"),
        tuple((str(p["type"]), int(p["value"]), float(p["periodSeconds"])) for p in said.get("policies") or policies),
    )


def _changed(events: Sequence[tuple[float, int]], period: float, now: float) -> int:
    return sum(count for time, count in events if time > now - period)


def _limit(direction: Direction, current: int, remembered: Remembered, now: float, *, up: bool) -> int:
    """How far the policies let it go now."""
    if direction.select == "Disabled":
        return current
    found = []
    for kind, value, period in direction.policies:
        start = current - _changed(remembered.added, period, now) + _changed(remembered.removed, period, now)
        step = Fraction(value, 100)
        if up:
            found.append(start + value if kind == "Pods" else _ceil(start * (1 + step)))
        else:
            found.append(start - value if kind == "Pods" else int(start * (1 - step)))
    if up:
        return max(current, max(found) if direction.select == "Max" else min(found))
    return min(current, min(found) if direction.select == "Max" else max(found))


def _stabilised(wanted: int, current: int, rules: Rules, remembered: Remembered, now: float) -> int:
    """Not more than was recommended throughout the window for growing, not less than throughout that for shrinking."""
    up = min([wanted, *(n for time, n in remembered.recommended if time > now - rules.up.window)])
    down = max([wanted, *(n for time, n in remembered.recommended if time > now - rules.down.window)])
    return up if up > current else down if down < current else current


def _limited(wanted: int, current: int, rules: Rules, remembered: Remembered, now: float) -> tuple[int, str, str]:
    """(replicas, reason and message of ``ScalingLimited``); the reason is empty where nothing limits it."""
    if wanted > current:
        rate = _limit(rules.up, current, remembered, now, up=True)
        if wanted > min(rate, rules.most):
            if rate < rules.most:
                return rate, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"
            return rules.most, "TooManyReplicas", "the desired replica count is more than the maximum replica count"
    elif wanted < current:
        rate = _limit(rules.down, current, remembered, now, up=False)
        if wanted < max(rate, rules.least):
            if rate > rules.least:
                return rate, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"
            return rules.least, "TooFewReplicas", "the desired replica count is less than the minimum replica count"
    return wanted, "", "the desired count is within the acceptable range"


# -- the decision ------------------------------------------------------------------------------------------


def decide(spec: Mapping[str, Any], current: int, pods: Sequence[PodSample], remembered: Remembered, now: float) -> Decision:
    """The size that the target of a HorizontalPodAutoscaler should have. ``current`` is the size it is to have now."""
    rules = rules_of(spec)
    conditions = {"AbleToScale": ("True", "SucceededGetScale", "the HPA controller was able to get the target's current scale")}

    def decided(replicas: int, reason: str, kept: Remembered, *more: Any) -> Decision:
        metrics, failures = more or ((), ())
        return Decision(replicas, reason, conditions, tuple(metrics), tuple(failures), kept)

    if current == 0 and rules.least != 0:
        message = "scaling is disabled since the replica count of the target is zero"
        conditions["ScalingActive"] = ("False", "ScalingDisabled", message)
        return decided(0, "", remembered)
    if current > rules.most:
        return decided(rules.most, "Current number of replicas above Spec.MaxReplicas", remembered)
    if current < rules.least:
        return decided(rules.least, "Current number of replicas below Spec.MinReplicas", remembered)
    proposals, failures = [], []
    for metric in spec.get("metrics") or ():
        try:
            proposals.append(propose(metric, current, pods, now, rules))
        except Unavailable as error:
            failures.append((error.reason, str(error)))
    best = max(proposals, key=lambda p: p.replicas, default=None)
    statuses = [p.status for p in proposals]
    # With a part of the metrics it may grow; to shrink it would need all.
    if best is None or (failures and best.replicas < current):
        reason, message = failures[0] if failures else ("InvalidMetricSourceType", "there is no metric to scale by")
        conditions["ScalingActive"] = ("False", reason, f"the HPA was unable to compute the replica count: {message}")
        return decided(current, "", remembered, statuses, failures)
    found = f"the HPA was able to successfully calculate a replica count from {best.text}"
    conditions["ScalingActive"] = ("True", "ValidMetricFound", found)
    if not remembered.recommended:
        # Of what was before nothing is known: as if the present size had just been recommended.
        remembered = replace(remembered, recommended=((now, current),))
    steady = _stabilised(best.replicas, current, rules, remembered, now)
    replicas, limited, why = _limited(steady, current, rules, remembered, now)
    conditions["ScalingLimited"] = ("True" if limited else "False", limited or "DesiredWithinRange", why)
    conditions["AbleToScale"] = _able(best.replicas, steady)
    reason = f"{best.text} above target" if replicas > current else "All metrics below target" if replicas < current else ""
    return decided(replicas, reason, _kept(remembered, best.replicas, rules, now), statuses, failures)


def _able(wanted: int, steady: int) -> tuple[str, str, str]:
    if steady > wanted:
        message = "recent recommendations were higher than current one, applying the highest recent recommendation"
        return "True", "ScaleDownStabilized", message
    if steady < wanted:
        message = "recent recommendations were lower than current one, applying the lowest recent recommendation"
        return "True", "ScaleUpStabilized", message
    return "True", "ReadyForNewScale", "recommended size matches current size"


def _kept(remembered: Remembered, wanted: int, rules: Rules, now: float) -> Remembered:
    """With the present recommendation, without what no window and no policy looks at any more."""
    window = max(rules.up.window, rules.down.window)
    period = max((period for way in (rules.up, rules.down) for _, _, period in way.policies), default=0.0)
    recommended = [(time, n) for time, n in remembered.recommended if time > now - window]
    return Remembered(
        (*recommended, (now, wanted))[-MAX_REMEMBERED:],
        tuple(e for e in remembered.added if e[0] > now - period),
        tuple(e for e in remembered.removed if e[0] > now - period),
    )
