"""Evictions and disruption budgets: a pod may be taken away only where every budget that selects it allows one more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, deleting
from metaos.scheduler.disruption import ended, eviction, pod_state, selects

#: Writes the status of a budget: reads it, has it changed, compares and swaps, and again where another writer came between.
Note = Callable[[Obj, Callable[[Obj], Obj]], Awaitable[None]]


async def permitted(pod: Obj, budgets: Iterable[Obj], now: str, note: Note) -> None:
    """Has every budget note that the pod goes. Raises ``ApiError`` 429 where one does not allow it."""
    phase = (pod.get("status") or {}).get("phase")
    if ended(pod) or deleting(pod) or phase in (None, "Pending"):
        return
    concerned = [budget for budget in budgets if selects(budget, pod)]
    for budget in concerned:
        # Where one refuses, none of the others is changed.
        _asked(pod, budget, now)
    for budget in concerned:
        await note(budget, lambda current: _asked(pod, current, now))


def _asked(pod: Obj, budget: Obj, now: str) -> Obj:
    """The budget with the pod noted. Raises ``ApiError`` 429."""
    verdict = eviction(pod_state(pod), budget, now)
    if verdict.allowed:
        return budget if verdict.status is None else {**budget, "status": dict(verdict.status)}
    processed = "still being processed" not in verdict.message
    raise ApiError(
        429,
        "TooManyRequests",
        "Cannot evict pod as it would violate the pod's disruption budget.",
        details={
            "causes": [{"reason": "DisruptionBudget", "message": verdict.message}],
            **({} if processed else {"retryAfterSeconds": 10}),
        },
    )
