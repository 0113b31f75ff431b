"""Disruption budgets: how many pods must stay healthy, how many may be taken away, and whether this one may. Pure.

Source: ``pkg/controller/disruption/disruption.go`` and ``pkg/registry/core/pod/storage/eviction.go`` of Kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaos.resources.meta import Obj, controller_of, deleting, generation, is_true, label_selector, labels, name, namespace
from metaos.resources.workload import resolve

#: A pod that was to go and still stands after this long counts again.
DISRUPTION_SECONDS = 120.0
#: Pods that may be on their way at a time, of one budget.
MAX_DISRUPTED = 2000


@dataclass(frozen=True, slots=True)
class PodState:
    """One pod that a budget selects. ``owner``: uid of the workload that it belongs to, if any."""

    name: str
    ready: bool
    deleting: bool = False
    owner: str = ""


def selects(budget: Obj, pod: Obj) -> bool:
    """Whether a budget is about a pod: of the same namespace, by its selector; an empty one selects all, none nothing."""
    selector = (budget.get("spec") or {}).get("selector")
    return selector is not None and namespace(budget) == namespace(pod) and label_selector(selector)(labels(pod))


def ended(pod: Obj) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def pod_state(pod: Obj) -> PodState:
    owner = controller_of(pod) or {}
    return PodState(name(pod), is_true(pod, "Ready"), deleting(pod), str(owner.get("uid") or ""))


@dataclass(frozen=True, slots=True)
class Budget:
    """What a budget comes to. ``disrupted``: pods on their way → since when. ``again``: when time alone will change it."""

    expected: int
    desired: int
    healthy: int
    allowed: int
    disrupted: Mapping[str, float]
    again: float | None = None


class NoScale(Exception):
    """How many pods there should be is not known, which this budget would need. The message names the pod."""


def assess(
    spec: Mapping[str, Any],
    pods: Sequence[PodState],
    replicas: Mapping[str, int],
    disrupted: Mapping[str, float],
    now: float,
) -> Budget:
    """``replicas``: what each owner wants. ``disrupted``: what evictions have noted. Raises :class:`NoScale`."""
    least, most = spec.get("minAvailable"), spec.get("maxUnavailable")
    if most is not None:
        expected = _expected(pods, replicas)
        desired = max(0, expected - resolve(most, expected, up=True))
    elif isinstance(least, str) and least.endswith("%"):
        expected = _expected(pods, replicas)
        desired = resolve(least, expected, up=True)
    else:
        expected, desired = len(pods), int(least or 0)
    standing = {pod.name for pod in pods if not pod.deleting}
    going = {which: since for which, since in disrupted.items() if which in standing and now < since + DISRUPTION_SECONDS}
    healthy = sum(pod.ready and not pod.deleting and pod.name not in going for pod in pods)
    allowed = max(0, healthy - desired) if expected > 0 else 0
    again = min((since + DISRUPTION_SECONDS for since in going.values()), default=None)
    return Budget(expected, desired, healthy, allowed, going, again)


def _expected(pods: Iterable[PodState], replicas: Mapping[str, int]) -> int:
    owners = set()
    for pod in pods:
        if pod.owner not in replicas:
            raise NoScale(f"pod {pod.name} belongs to nothing that says how many of it there should be")
        owners.add(pod.owner)
    return sum(replicas[owner] for owner in owners)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a pod may be evicted. ``status``: what the budget's status becomes, where it changes. ``message``: of the
    refusal's cause."""

    allowed: bool
    status: Mapping[str, Any] | None = None
    message: str = ""


def eviction(pod: PodState, budget: Obj, now: str) -> Verdict:
    """Of a pod that the budget selects."""
    spec, status = budget.get("spec") or {}, budget.get("status") or {}
    disrupted = status.get("disruptedPods") or {}
    if pod.deleting or pod.name in disrupted:
        return Verdict(True)
    desired, healthy = int(status.get("desiredHealthy") or 0), int(status.get("currentHealthy") or 0)
    if not pod.ready and (spec.get("unhealthyPodEvictionPolicy") == "AlwaysAllow" or healthy >= desired > 0):
        return Verdict(True)
    if int(status.get("observedGeneration") or 0) < generation(budget):
        return Verdict(False, message=f"The disruption budget {name(budget)} is still being processed by the server.")
    allowed = int(status.get("disruptionsAllowed") or 0)
    if allowed <= 0 or len(disrupted) >= MAX_DISRUPTED:
        counts = f"needs {desired} healthy pods and has {healthy} currently"
        return Verdict(False, message=f"The disruption budget {name(budget)} {counts}")
    return Verdict(True, {**status, "disruptionsAllowed": allowed - 1, "disruptedPods": {**disrupted, pod.name: now}})


def kept(wanted: Mapping[str, int], running: Mapping[str, int], available: Mapping[str, int]) -> dict[str, int]:
    """How many replicas each chosen site is told to run now, on the way from ``running`` (what it was told last) to
    ``wanted``: a site gives up a replica only when another has one more that is available, so that a move never leaves
    fewer than there should be. Fewer replicas on the whole (a workload scaled down) go at once."""
    need = sum(wanted.values())
    told: dict[str, int] = {}
    for site, share_ in wanted.items():
        now = running.get(site, 0)
        if now <= share_:
            told[site] = share_
            continue
        elsewhere = sum(min(available.get(other, 0), wanted[other]) for other in wanted if other != site)
        told[site] = max(share_, min(now, need - elsewhere))
    return told
