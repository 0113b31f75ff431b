"""What a Placement says of a decision: its spec with the moves so far, its status with the reasons. Pure."""

import re
from typing import Any

from metaos.controllers.barred import displaced
from metaos.controllers.facts import decided
from metaos.resources.meta import Obj, condition, format_time, generation, ref, uid, with_condition
from metaos.resources.snapshot import WorkloadInfo
from metaos.scheduler.framework import Plan

#: Migrations that are remembered: enough for the largest budget.
MOVES_KEPT = 100
#: Says that a policy's spread does not hold for a workload.
SPREAD = "Spread"
_WHOLE = "a {} goes to one site as a whole, and its policy's spread is not followed; division.mode: Divided has it divided"
_FIGURES = re.compile(r"\d+(\.\d+)?")


def spec(obj: Obj, plan: Plan) -> dict[str, Any]:
    """What is decided, without when and why: as long as that is what is stored, nothing is written."""
    about = ref(obj)
    return {
        "workloadRef": {"apiVersion": obj["apiVersion"], "kind": about.kind, "name": about.name, "uid": uid(obj)},
        "clusters": [{"name": c, "replicas": n} for c, n in plan.clusters],
    }


def stamped(placement: Obj, spec: dict[str, Any], found: WorkloadInfo, plan: Plan, now: float) -> dict[str, Any]:
    """A decision with when and why it was made, and what of earlier ones still counts."""
    before, chosen = found.current, dict(plan.clusters)
    made = spec | {"decidedTime": format_time(now), "reason": plan.reason}
    moves = list((placement.get("spec") or {}).get("moves") or ())
    if plan.migrates:
        # In the same write as the decision: the budget forgets no move, whenever the hub dies.
        moved: dict[str, Any] = {"time": format_time(now, micro=True)}
        moved |= {"from": sorted(before.keys() - chosen.keys()), "to": sorted(chosen.keys() - before.keys())}
        moves = [*moves, moved | ({"forced": True} if plan.forced else {})][-MOVES_KEPT:]
    if moves:
        made["moves"] = moves
    # Until it is there again: what it has there is stopped first, whenever the hub dies. Bounded by the sites.
    if left := sorted({*displaced(placement), *found.displaced} - chosen.keys()):
        made["displaced"] = left
    return made


def status(placement: Obj, obj: Obj, found: WorkloadInfo, plan: Plan, reasons: dict[str, Any], now: float) -> dict[str, Any]:
    """Why it is so. ``reasons``: of scores and filters."""
    old = placement.get("status") or {}
    done = "True" if plan.clusters and plan.complete else "False"
    reason = "Placed" if done == "True" else "Unplaceable" if not plan.clusters else "Incomplete"
    conditions = with_condition(old.get("conditions") or (), "Scheduled", done, reason, _message(placement, plan), now)
    if found.local_data:
        homes = ", ".join(sorted(dict(plan.clusters))) or "no site yet"
        conditions = with_condition(conditions, "DataPinned", "True", "LocalData", f"its data is on {homes}", now)
    if found.policy.spread and found.mode == "Whole":
        conditions = with_condition(conditions, SPREAD, "False", "OneSite", _WHOLE.format(found.ref.kind), now)
    else:
        conditions = [c for c in conditions if c["type"] != SPREAD]
    return {
        **{k: v for k, v in old.items() if k in ("migration", "deferral", "volumes")},
        "observedGeneration": generation(obj),
        "conditions": conditions,
        "intents": sorted({t.intent for t in found.targets} | {e.intent for e in found.traffic}),
        "limits": {
            "minimumImprovement": found.policy.minimum_improvement,
            "budgetPerHour": found.policy.budget_per_hour,
            "coolDownSeconds": found.policy.cool_down_seconds,
        },
        **reasons,
    }


def _message(placement: Obj, plan: Plan) -> str:
    """What is thought of a decision now. It is not written again to say what the decision says already, or other figures for the
    same thing: those change with every site."""
    said = str((condition(placement, "Scheduled") or {}).get("message") or "")
    spec = placement.get("spec") or {}
    if plan.confirms and spec.get("reason") and decided(placement) == dict(plan.clusters):
        return str(spec["reason"])
    return said if _FIGURES.sub("0", said) == _FIGURES.sub("0", plan.reason) else plan.reason
