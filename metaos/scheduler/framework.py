"""One decision: filter, score, choose, and say why. Pure: equal inputs give equal outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metaos.resources.reliability import up
from metaos.resources.snapshot import ClusterInfo, Snapshot, WorkloadInfo
from metaos.resources.targets import meets, wanted_text
from metaos.scheduler import proximity
from metaos.scheduler.churn import EARNED_BACK_HOURS, churn
from metaos.scheduler.filters import FILTERS, Filter, brought_along, closed, room
from metaos.scheduler.requirement import several
from metaos.scheduler.scores import SCORES, Score
from metaos.scheduler.solver import Choice, Ranked, choose, distribute

if TYPE_CHECKING:
    from metaos.scheduler.ranking import Ranking, Rejection, Rejections, Scored

HOUR_SECONDS = 3600.0
STILL_BEST = "still the best choice"
#: Filters whose word makes a site be left whatever the budget says: the site is gone, or somebody said so. What other filters
#: reject (measured values above all) may change from minute to minute, so leaving for it is within the budget.
MUST_LEAVE = frozenset({"Residency", "LocalData", "Policy", "Selectors", "Leaving", "Displaced", "Health", "Taints", "Cordon"})
#: Sites that are kept in mind as better ones without room.
CROWDED_KEPT = 4
#: In one sentence about why there is no place.
REASONS_LOOKED_AT, REASONS_TOLD, SITES_TOLD = 200, 6, 6


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision. ``clusters``: (name, replicas) by name. ``reason`` says why it is this and why now."""

    clusters: tuple[tuple[str, int], ...]
    #: Worked out when they are looked at, from the snapshot: look before the world changes.
    scored: Sequence[Scored]
    rejected: Rejections
    #: Of every site that was considered.
    totals: Mapping[str, float]
    runner_up: tuple[tuple[str, int], ...]
    difference: float
    reason: str
    #: Whether everything that is wanted has a place.
    complete: bool
    #: Whether this leaves a site for another one, and whether it had to.
    migrates: bool = False
    forced: bool = False
    #: When time alone may change the decision (seconds since the epoch): a cool-down ends, the budget is filled again.
    again: float | None = None
    #: The best sites that there were, where points and room alone decided: what earns less than all of these could not have
    #: changed it. ``None``: anything could have.
    rests_on: frozenset[str] | None = None
    #: Whether it stays where it is and nothing but points was in question: the decision stands, for the reasons that it has.
    confirms: bool = False
    #: Whether spread and availability hold, too.
    satisfies: bool = True
    #: The best sites that would be worth a move, were there room.
    crowded: tuple[str, ...] = ()


def decide(
    snapshot: Snapshot,
    workload: WorkloadInfo,
    filters: Sequence[tuple[str, Filter]] = FILTERS,
    scores: Sequence[Score] = SCORES,
    *,
    together: str | None = None,
    agreed: bool = False,
) -> Plan:
    """Where a workload shall be. Staying is preferred unless a site must be left or the gain is worth the move. ``together``: the
    site that is best for it and those that it talks to (see ``metaos.scheduler.applications``). ``agreed``: all workloads
    together are better with it there, whatever it gains itself (see ``metaos.scheduler.optimise``)."""
    from metaos.scheduler.ranking import Ranking

    ranking = Ranking(snapshot, workload, filters, scores, MUST_LEAVE, endures=_spent(snapshot, workload))
    feasible, totals, endured = ranking.feasible, ranking.totals, ranking.endured
    best = choose(workload, feasible, totals)
    near = None
    if together is not None and together in totals:
        near = choose(workload, feasible.among((together,)), totals)
        near = near if near.complete and near.satisfies else None
        best = near or best

    def plan(
        choice: Choice,
        reason: str,
        *,
        migrates: bool = False,
        forced: bool = False,
        again: float | None = None,
        points_alone: bool = False,
        confirms: bool = False,
    ) -> Plan:
        runner_up = _runner_up(workload, feasible, totals, choice)
        sure = points_alone and together is None and _plain(workload) and all(c.complete and c.satisfies for c in (choice, best))
        rests = not choice.clusters or workload.mode == "Everywhere" or workload.settled or workload.pinned
        difference = choice.mean(totals) - runner_up.mean(totals) if runner_up.clusters else 0.0
        return Plan(
            tuple(sorted(choice.clusters.items())),
            ranking.scored(choice.clusters),
            ranking.rejected,
            totals,
            tuple(sorted(runner_up.clusters.items())),
            difference,
            reason if choice.satisfies or not choice.clusters else f"{reason}{_unavailable(workload, choice, feasible)}",
            choice.complete,
            migrates,
            migrates and forced,
            again if again is not None and math.isfinite(again) else None,
            frozenset(best.clusters) if sure else None,
            confirms,
            choice.satisfies,
            () if rests else ranking.crowded(choice.mean(totals) + workload.policy.minimum_improvement, CROWDED_KEPT),
        )

    if not workload.current:
        if not best.clusters:
            return plan(best, _nowhere(ranking.rejected, workload, feasible))
        if not best.complete:
            return plan(best, f"first placement, not of all replicas: {_nowhere(ranking.rejected, workload, feasible)}")
        return plan(best, best.why or "first placement: best score")
    if endured:
        stay = Choice(dict(workload.current), True)
        if all(c in totals for c in workload.current) and sum(workload.current.values()) == workload.replicas:
            why = "; ".join(f"{r.cluster}: {r.reason}" for r in endured)
            return plan(stay, f"stays, though {why}: {_budget(workload)}", again=_refill(workload))
    return _reconsider(snapshot, workload, ranking, best, near, plan, agreed=agreed and near is not None)


def _reconsider(
    snapshot: Snapshot,
    workload: WorkloadInfo,
    ranking: Ranking,
    best: Choice,
    near: Choice | None,
    make: Callable[..., Plan],
    *,
    agreed: bool,
) -> Plan:
    feasible, totals = ranking.feasible, ranking.totals
    kept = feasible.among(workload.current)
    forced = sorted(c for c in workload.current if c not in totals)
    if forced:
        reasons = {c: found.reason if (found := ranking.rejection(c)) else "the site has been removed" for c in forced}
        why = "; ".join(f"{c}: {reason}" for c, reason in reasons.items())
        # Sites that are still good keep what they have; only what must leave is placed anew.
        choice = near if near is not None and not kept else distribute(workload, kept, feasible, totals)
        if not choice.clusters:
            # Nowhere to go: what may still run there, runs on. Residency takes it away, and who has a higher priority.
            staying = {c: n for c, n in workload.current.items() if _may_stay(ranking.rejection(c))}
            return make(Choice(staying, False), f"must leave {why}; but {_nowhere(ranking.rejected, workload, feasible)}")
        at_once = any(not _may_stay(ranking.rejection(c)) for c in forced)
        along = brought_along(snapshot, workload, choice.clusters, at_once=at_once)
        return make(choice, f"had to leave {why}{along}", migrates=True, forced=True)
    if workload.weights and workload.replicas:
        return _reweigh(snapshot, workload, feasible, totals, make)
    stay = distribute(workload, kept, kept if workload.mode != "Everywhere" else feasible, totals)
    if workload.mode == "Everywhere":
        return make(stay, "every site that matches")
    if not stay.complete or (not stay.satisfies and best.satisfies):
        # Whole work that outgrew every site goes on with what it has: it is never stopped for want of more.
        kept_on = stay if stay.clusters else Choice(dict(workload.current), False)
        grown = distribute(workload, kept, feasible, totals)
        if grown.complete and grown.satisfies:
            choice, why = grown, "more room is needed than its sites have"
        elif best.complete or len(best.clusters) > len(stay.clusters):
            choice, why = best, "its sites no longer suffice"
        else:
            return make(kept_on, f"not all replicas have a place: {_nowhere(ranking.rejected, workload, feasible)}")
        leaves = bool(workload.current.keys() - choice.clusters.keys())
        if leaves and _spent(snapshot, workload):
            return make(kept_on, f"stays, though {why}: {_budget(workload)}", again=_refill(workload))
        return make(choice, why, migrates=leaves, forced=True)
    return _improve(snapshot, workload, feasible, totals, best, stay, make, agreed=agreed)


def _reweigh(
    snapshot: Snapshot,
    workload: WorkloadInfo,
    feasible: Ranked,
    totals: Mapping[str, float],
    make: Callable[..., Plan],
) -> Plan:
    """Where weights divide, no score does: what changes is who is there. A site is left for that as for a gain."""
    if workload.settled and sum(workload.current.values()) == workload.replicas:
        return make(Choice(dict(workload.current), True), "stays: a started job is not divided anew")
    barred = _had_to_leave(workload) - workload.current.keys() if workload.policy.failback == "Never" else set()
    choice = choose(workload, feasible.without(barred), totals)
    if not choice.complete:
        choice = choose(workload, feasible, totals)
    if not choice.complete:
        kept = choice if choice.clusters else Choice(dict(workload.current), False)
        return make(kept, f"not all replicas have a place: {_nowhere((), workload, feasible)}")
    leaving = workload.current.keys() - choice.clusters.keys()
    if not leaving:
        return make(choice, choice.why)
    stay = distribute(workload, (), feasible.among(workload.current), totals)
    why = f"stays, though it shall be {choice.why}"
    if stay.complete and (until := _cooled(workload)) > snapshot.now:
        return make(stay, f"{why}, but {_moved(workload)}", again=until)
    if stay.complete and _spent(snapshot, workload):
        return make(stay, f"{why}, but {_budget(workload)}", again=_refill(workload))
    return make(choice, choice.why, migrates=True)


def _improve(
    snapshot: Snapshot,
    workload: WorkloadInfo,
    feasible: Ranked,
    totals: Mapping[str, float],
    best: Choice,
    stay: Choice,
    make: Callable[..., Plan],
    *,
    agreed: bool,
) -> Plan:
    """Moves for a gain only where it is worth it: hysteresis, cool-down, fail-back, budget and what
    the move itself costs are looked at in this order."""
    if workload.policy.failback == "Never" and (left := _had_to_leave(workload) & best.clusters.keys()):
        barred = ", ".join(sorted(left))
        best = choose(workload, feasible.without(left), totals)
        if not best.complete or best.mean(totals) - stay.mean(totals) < workload.policy.minimum_improvement:
            return make(stay, f"stays: it had to leave {barred}, and the policy says never to move back")
    if set(best.clusters) == set(stay.clusters):
        return make(stay, STILL_BEST, points_alone=True, confirms=True)
    gain = best.mean(totals) - stay.mean(totals)
    names = ", ".join(sorted(best.clusters))
    if workload.settled:
        return make(stay, "stays: a started job is not moved for a gain")
    if gain < workload.policy.minimum_improvement and not agreed:
        least = workload.policy.minimum_improvement
        why = f"stays: {names} would be only {gain:.1f} points better, a move is worth it from {least:g}"
        return make(stay, why, points_alone=True, confirms=True)
    if (until := _cooled(workload)) > snapshot.now:
        return make(stay, f"stays: {names} would be {gain:.1f} points better, but {_moved(workload)}", again=until)
    if _spent(snapshot, workload):
        return make(stay, f"stays: {names} would be {gain:.1f} points better, but {_budget(workload)}", again=_refill(workload))
    # Looked at last, as it looks at all sites.
    costs = churn(snapshot.clusters, workload, best.clusters)
    if costs.earned_back is not None and costs.earned_back > EARNED_BACK_HOURS:
        return make(stay, f"stays: {names} would be {gain:.1f} points better, but {costs.text}", points_alone=True)
    if agreed:
        why = f"all workloads together are better with it on {names} ({gain:+.1f} points for itself)"
        return make(best, f"{why}; {costs.text}", migrates=True)
    return make(best, f"{names} is {gain:.1f} points better; {costs.text}", migrates=True)


def _plain(workload: WorkloadInfo) -> bool:
    """Whether nothing but points and room decides where its replicas go, among the sites that pass the filters."""
    policy, bounded = workload.policy, any(t.name == "availability" and t.hard for t in workload.targets)
    divided = workload.mode != "Everywhere" and workload.replicas > 0 and not policy.spread and not workload.weights
    others = workload.tolerations or workload.traffic or workload.near or workload.spread or workload.waits
    return divided and not bounded and not others and policy.failback != "Never"


def _unavailable(workload: WorkloadInfo, choice: Choice, feasible: Sequence[ClusterInfo]) -> str:
    """Which hard availability a choice has not got, with what all sites together would have; empty where it has what is asked."""
    asked = [t for t in workload.targets if t.name == "availability" and t.hard]
    text = ""
    for target in asked:
        value = up([(c, choice.clusters[c.name]) for c in feasible if c.name in choice.clusters], target.at_least)
        if not meets(target, value):
            most = up([(c, 1) for c in feasible], target.at_least)
            text += f"; but availability is {value:.6g} and must be {wanted_text(target)} (intent {target.intent!r}): "
            text += f"{most:.6g} could be had with a replica on each of {len(feasible)} sites"
    return text


def may_move(snapshot: Snapshot, workload: WorkloadInfo) -> bool:
    """Whether neither cool-down nor budget bar a move for a gain."""
    return _cooled(workload) <= snapshot.now and not _spent(snapshot, workload)


def _had_to_leave(workload: WorkloadInfo) -> set[str]:
    """Sites that it was driven from and has not come back to since."""
    found: set[str] = set()
    for move in workload.moves:
        found -= set(move.joined)
        if move.forced:
            found |= set(move.left)
    return found


def _cooled(workload: WorkloadInfo) -> float:
    """Until when the cool-down after the last move bars another one."""
    return workload.moves[-1].time + workload.policy.cool_down_seconds if workload.moves else -math.inf


def _moved(workload: WorkloadInfo) -> str:
    """Which move it cools down from, as far as that is remembered."""
    last, seconds = workload.moves[-1], workload.policy.cool_down_seconds
    left, joined = ", ".join(sorted(last.left)), ", ".join(sorted(last.joined))
    where = (f" from {left}" if left else "") + (f" to {joined}" if joined else "")
    return f"it moved{where} less than {seconds:g} s ago (cool-down)"


def _spent(snapshot: Snapshot, workload: WorkloadInfo) -> bool:
    """Whether as many moves as the budget has lie within the last hour. Forced ones count too."""
    return _refill(workload) > snapshot.now


def _refill(workload: WorkloadInfo) -> float:
    """When the budget allows the next move."""
    budget = workload.policy.budget_per_hour
    if budget == 0:
        return math.inf
    return workload.moves[-budget].time + HOUR_SECONDS if len(workload.moves) >= budget else -math.inf


def _budget(workload: WorkloadInfo) -> str:
    return f"its budget of {workload.policy.budget_per_hour} migrations an hour is spent"


def _may_stay(found: Rejection | None) -> bool:
    return found is None or found.filter not in ("Residency", "Displaced")


def _nowhere(rejected: Sequence[Rejection], workload: WorkloadInfo, feasible: Sequence[ClusterInfo]) -> str:
    if feasible:
        told = sorted(feasible, key=lambda c: c.name)[:SITES_TOLD]
        rooms = ", ".join(f"{c.name} has room for {0 if closed(workload, c) else room(workload, c)}" for c in told)
        if len(feasible) > len(told):
            rooms += f", and {len(feasible) - len(told)} more sites do not suffice either"
        others = f"; {_nowhere(rejected, workload, ())}" if rejected else ""
        among = f", where {said}" if (said := proximity.in_words(workload)) else ""
        return f"{workload.replicas} replicas are wanted, and {rooms}{among}{others}"
    if not rejected:
        return "there is no site yet: join one with 'nemo join-token NAME' and 'nemo agent'"
    counted: dict[str, list[str]] = {}
    for found in rejected[:REASONS_LOOKED_AT]:
        counted.setdefault(found.reason, []).append(found.cluster)
    reasons = list(counted.items())[:REASONS_TOLD]
    left = len(rejected) - sum(len(sites) for _, sites in reasons)
    more = f"; and {left} more sites" if left else ""
    return "no site can take it: " + "; ".join(f"{several(sites, SITES_TOLD)}: {reason}" for reason, sites in reasons) + more


def _runner_up(workload: WorkloadInfo, feasible: Ranked, totals: Mapping[str, float], chosen: Choice) -> Choice:
    """The best choice without the chosen one's first site."""
    if not chosen.clusters or workload.mode == "Everywhere":
        return Choice({}, False)
    first = max(chosen.clusters, key=lambda c: (totals.get(c, 0.0), c))
    return choose(workload, feasible.without((first,)), totals)
