"""Budget: what a namespace has used of its month by the ledger, what is to come by its placements, and whether it is at a limit.

The API server refuses new work by the conditions that stand here (``metaos.apiserver.budgets``)."""

from __future__ import annotations

from typing import Any

from metaos.accounting.budget import USUAL_WARNING, Standing, conditions, month, rates, standings
from metaos.client import Client, PatchType
from metaos.clock import Clock
from metaos.controllers.recorder import Recorder
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, condition, deleting, format_time, name, namespace, ref, with_condition

NAME = "budget"
#: Seconds between looks at the ledger, and until the next one where too many statements are made at the moment.
LOOK_SECONDS, AGAIN_SECONDS = 60.0, 5.0


class BudgetReconciler:
    """Keys are Budgets."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._recorder = Recorder(client, clock, NAME)
        self._budgets = manager.informer(scheme.BUDGET)
        self._placements = manager.informer(scheme.PLACEMENT)

    async def reconcile(self, about: ObjectRef) -> Result:
        budget = self._budgets.get(about.name, about.namespace)
        if budget is None or deleting(budget):
            return DONE
        now, where, spec = self._clock.now(), namespace(budget), budget.get("spec") or {}
        named, start, _ = month(now)
        asked = {"by": "namespace", "namespaces": [where], "since": format_time(start)}
        try:
            statement = await self._client.create({**scheme.STATEMENT.empty(""), "spec": asked})
        except ApiError as error:
            if error.code != 429:
                raise
            return Result(requeue_after=AGAIN_SECONDS)
        rate = rates(self._placements.list(where))
        found = standings(spec, statement["status"]["groups"], rate, now)
        await self._say(budget, named, found, {"gramsPerHour": rate.grams, "costPerHour": rate.cost}, now)
        return Result(requeue_after=LOOK_SECONDS)

    async def _say(self, budget: Obj, named: str, found: list[Standing], rate: dict[str, float | None], now: float) -> None:
        old = budget.get("status") or {}
        figures: dict[str, Any] = {key: value if value is None else float(f"{value:.6g}") for key, value in rate.items()}
        for each in found:
            word = "Grams" if each.unit == "gCO2eq" else "Cost"
            figures |= {f"used{word}": each.used, f"projected{word}": None}
            if each.projected is not None:
                figures[f"projected{word}"] = float(f"{each.projected:.4g}")
        held = old.get("conditions") or ()
        percent = float((budget.get("spec") or {}).get("warnPercent") or USUAL_WARNING)
        for type_, status, reason, message in conditions(found, percent):
            before = condition(budget, type_)
            if status == "True" and (before or {}).get("status") != "True":
                await self._recorder.event(budget, reason, message, warning=True)
            held = with_condition(held, type_, status, reason, message, now)
        patch = {key: value for key, value in ({"month": named} | figures).items() if value is not None or key in old}
        wanted = {**patch, "conditions": list(held)}
        if any(old.get(key) != value for key, value in wanted.items()):
            # What is not known any more goes.
            await self._client.patch(
                scheme.BUDGET, name(budget), namespace(budget), {"status": wanted}, type=PatchType.MERGE, subresource="status"
            )


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it."""
    manager.add(BudgetReconciler(manager, client, clock), [(scheme.BUDGET, lambda budget: [ref(budget)])])
