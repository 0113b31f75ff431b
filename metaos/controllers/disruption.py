"""Disruption: keeps the status of PodDisruptionBudgets over the pods of all sites; evictions are decided by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.recorder import Recorder
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.meta import (
    Obj,
    ObjectRef,
    deleting,
    format_time,
    generation,
    namespace,
    parse_time,
    ref,
    uid,
    with_condition,
)
from metaos.scheduler.disruption import Budget, NoScale, assess, ended, eviction, pod_state, selects

NAME = "disruption"
#: Owners whose number of pods is known.
SCALED = (scheme.DEPLOYMENT, scheme.STATEFUL_SET, scheme.REPLICA_SET)


def status_of(budget: Obj, found: Budget, now: float) -> dict[str, Any]:
    """The whole status."""
    before = budget.get("status") or {}
    enough = found.allowed > 0
    reason, message = ("SufficientPods", "") if enough else ("InsufficientPods", "")
    conditions = with_condition(
        before.get("conditions") or (), "DisruptionAllowed", "True" if enough else "False", reason, message, now
    )
    return {
        "observedGeneration": generation(budget),
        "disruptedPods": {pod: format_time(since) for pod, since in found.disrupted.items()},
        "disruptionsAllowed": found.allowed,
        "currentHealthy": found.healthy,
        "desiredHealthy": found.desired,
        "expectedPods": found.expected,
        "conditions": _observed(conditions, budget),
    }


def _observed(conditions: Iterable[Mapping[str, Any]], budget: Obj) -> list[dict[str, Any]]:
    return [{**c, "observedGeneration": generation(budget)} for c in conditions]


async def noted(client: Client, budgets: Iterable[Obj], pods: Iterable[Obj], now: float) -> str:
    """Has all budgets note that these pods go, as an eviction does. Empty, or why they may not."""
    gone = [pod for pod in pods if not ended(pod) and not deleting(pod)]
    changed: list[Obj] = []
    for budget in budgets:
        wanted = budget
        for pod in gone:
            if selects(budget, pod):
                verdict = eviction(pod_state(pod), wanted, format_time(now))
                if not verdict.allowed:
                    return verdict.message
                wanted = wanted if verdict.status is None else {**wanted, "status": dict(verdict.status)}
        if wanted is not budget:
            changed.append(wanted)
    for wanted in changed:
        await client.update(wanted, subresource="status")
    return ""


class DisruptionReconciler:
    """See the module. Keys are budgets."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._recorder = Recorder(client, clock, "disruption-controller")
        self._budgets = manager.informer(scheme.POD_DISRUPTION_BUDGET)
        self._pods = manager.informer(scheme.POD)
        self._owners = [manager.informer(kind) for kind in SCALED]

    async def reconcile(self, about: ObjectRef) -> Result:
        budget = self._budgets.get(about.name, about.namespace)
        if budget is None or deleting(budget):
            return DONE
        now, before = self._clock.now(), budget.get("status") or {}
        pods = [pod_state(p) for p in self._pods.list(about.namespace) if selects(budget, p) and not ended(p)]
        disrupted = {pod: parse_time(since) for pod, since in (before.get("disruptedPods") or {}).items()}
        try:
            found = assess(budget["spec"], pods, self._replicas(about.namespace), disrupted, now)
        except NoScale as unknown:
            await self._fail(budget, str(unknown), now)
            return DONE
        status = status_of(budget, found, now)
        if not status["disruptedPods"]:
            del status["disruptedPods"]
        if status != before:
            # Compared and swapped: an eviction that was granted meanwhile is seen first.
            await self._client.update(budget | {"status": status}, subresource="status")
        return DONE if found.again is None else Result(requeue_after=max(0.0, found.again - now) + 0.1)

    def _replicas(self, where: str) -> dict[str, int]:
        found = {}
        for informer in self._owners:
            for owner in informer.list(where):
                found[uid(owner)] = int((owner.get("spec") or {}).get("replicas", 1))
        return found

    async def _fail(self, budget: Obj, message: str, now: float) -> None:
        """Nothing may be evicted as long as it is not known what the budget comes to."""
        before = budget.get("status") or {}
        conditions = with_condition(before.get("conditions") or (), "DisruptionAllowed", "False", "SyncFailed", message, now)
        status = {"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, **before}
        status |= {"observedGeneration": generation(budget), "disruptionsAllowed": 0, "conditions": _observed(conditions, budget)}
        if status != before:
            await self._client.update(budget | {"status": status}, subresource="status")
            await self._recorder.event(budget, "CalculateExpectedPodCountFailed", message, warning=True)


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for every budget, and for those that a changed pod or workload may concern."""
    budgets = manager.informer(scheme.POD_DISRUPTION_BUDGET)

    def of_pod(pod: Obj) -> Iterable[ObjectRef]:
        return [ref(b) for b in budgets.list(namespace(pod)) if selects(b, pod)]

    def of_namespace(obj: Obj) -> Iterable[ObjectRef]:
        return [ref(b) for b in budgets.list(namespace(obj))]

    manager.add(
        DisruptionReconciler(manager, client, clock),
        [
            (scheme.POD_DISRUPTION_BUDGET, lambda obj: [ref(obj)]),
            (scheme.POD, of_pod),
            *((kind, of_namespace) for kind in SCALED),
        ],
    )
