"""What the replicas of a workload cannot meet together, though each site would take some: availability, spread, pods' own
affinity and how many there are. Which of these are in conflict, minimally, and ways out. Pure.

What can be met is what :func:`metaos.scheduler.solver.choose` finds: it divides the replicas as a decision does. So a conflict is
one of the division as NEMO makes it, and every way out was tried: with it, the division finds a place for everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metaos.resources.affinity import SpreadTerm
from metaos.resources.reliability import up
from metaos.resources.snapshot import ClusterInfo, Spread, Target, WorkloadInfo
from metaos.resources.targets import LOWER, wanted_text
from metaos.scheduler.requirement import (
    PLAIN_COST,
    RELAXATIONS_KEPT,
    Change,
    Impossible,
    Relaxation,
    Requirement,
    least,
    order,
    several,
)
from metaos.scheduler.solver import choose

#: Replicas more, and a spread wider, than is asked that are tried; sites that are thought of being opened.
MOST_MORE, SITES_OPENED = 8, 20

#: What would have to change, how far that is as a share, and the workload that asks for so much.
Weaker = tuple[str, float, WorkloadInfo]
Opened = Mapping[str, tuple[ClusterInfo, Mapping[int, Change]]]


@dataclass(frozen=True, slots=True)
class Want:
    """One thing that is asked of all replicas together. ``without`` takes it away. ``weaker``: the least first."""

    requirement: Requirement
    without: Callable[[WorkloadInfo], WorkloadInfo]
    weaker: Sequence[Weaker]
    #: Whether it is how many replicas there are; it comes last.
    counts: bool = False


def fits(workload: WorkloadInfo, sites: Sequence[ClusterInfo]) -> bool:
    """Whether all that is asked of the replicas together can be had on these sites."""
    choice = choose(workload, list(sites), {})
    return bool(choice.clusters) and choice.complete and choice.satisfies


def impossible(
    workload: WorkloadInfo, taking: Sequence[ClusterInfo], opened: Opened, facts: tuple[tuple[str, str], ...]
) -> Impossible:
    """``taking``: sites that each take a part. ``opened``: those that would, were they forgiven something. Nothing is in conflict
    where everything has a place."""
    if not taking or workload.mode == "Everywhere" or fits(workload, taking):
        return Impossible((), (), facts)
    asked = list(wants(workload, taking))
    kept = list(range(len(asked)))

    def meets(left: Sequence[int]) -> bool:
        found = workload
        for number, want in enumerate(asked):
            if number not in left:
                found = want.without(found)
        # Without their number, any will do.
        free = len(asked) > 0 and asked[-1].counts and len(asked) - 1 not in left
        return any(fits(replace(found, replicas=n), taking) for n in _numbers(workload)) if free else fits(found, taking)

    if meets(()):
        for number in list(kept):
            if not meets(rest := [k for k in kept if k != number]):
                kept = rest
    else:
        # Room is what is missing, and that is told by site.
        return Impossible((), (), facts)
    ways = []
    for want in asked:
        weaker = ((text, share) for text, share, found in want.weaker if fits(found, taking))
        if (found := next(weaker, None)) is not None:
            ways.append(Relaxation("", (Change(want.requirement, *found),)))
    for along, changes in by_what_opens(opened)[:SITES_OPENED]:
        # Taints are among what they are forgiven.
        if fits(workload, [*taking, *(replace(opened[name][0], taints=()) for name in along)]):
            ways.append(Relaxation(several(along), changes))
    conflict = tuple(asked[number].requirement for number in kept)
    return Impossible(conflict, tuple(sorted(least(ways), key=order)[:RELAXATIONS_KEPT]), facts, division=True)


def by_what_opens(opened: Opened) -> list[tuple[list[str], tuple[Change, ...]]]:
    """Sites that the same changes open, and these; the least change first. What is given up for one site opens all that need no
    more than that."""
    costs = {name: sum(c.share for c in changes.values()) for name, (_, changes) in opened.items()}
    found = []
    for name in sorted(opened, key=lambda n: (costs[n], n)):
        given = opened[name][1]
        others = (n for n, (_, mine) in opened.items() if all(i in given and c.share <= given[i].share for i, c in mine.items()))
        found.append((sorted(others, key=lambda n: (n != name, n)), tuple(given.values())))
    return found


def wants(workload: WorkloadInfo, taking: Sequence[ClusterInfo]) -> Iterator[Want]:
    """Everything that is asked of the replicas together, in the order in which it is told."""
    for target in workload.targets:
        if target.name == "availability" and target.hard:
            yield _availability(workload, target, taking)
    for spread in workload.policy.spread:
        yield _spread(workload, spread)
    for term in workload.near:
        if term.own and not term.weight and not term.by:
            text = f"one {term.key} takes one of its pods" if term.apart else f"all its pods go to one {term.key}"
            source = f"the pods' {'anti-' * term.apart}affinity"
            yield _dropped(workload, Requirement(text, source, "Affinity", workload), "near", term)
    for constraint in workload.spread:
        if constraint.strict:
            yield _constraint(workload, constraint)
    if workload.mode == "Whole" and workload.replicas > 1:
        divided = replace(workload, mode="Divided")
        text = f"to be on one site as a whole, as a {workload.ref.kind} is where no policy divides it"
        yield Want(
            Requirement(text, "its kind", "Division", workload),
            lambda found: replace(found, mode="Divided"),
            (("let a policy divide it (division.mode: Divided)", PLAIN_COST, divided),),
        )
    if workload.replicas:
        yield Want(
            Requirement(f"{workload.replicas} replica{'s' * (workload.replicas != 1)}", "its replicas", "Capacity", workload),
            lambda found: found,
            tuple(_counts(workload)),
            counts=True,
        )


def _other(workload: WorkloadInfo, field: str, old: object, new: object | None = None) -> WorkloadInfo:
    """With one of what a field holds in another form, or without it."""
    kept = [new if each == old else each for each in getattr(workload, field)]
    changed: dict[str, Any] = {field: tuple(each for each in kept if each is not None)}
    return replace(workload, **changed)


def _dropped(workload: WorkloadInfo, asked: Requirement, field: str, item: object, weaker: Sequence[Weaker] = ()) -> Want:
    given_up = f"give up that {asked.text}" if field == "near" else f"give up {asked.text}"
    last = (f"{given_up} ({asked.source})", PLAIN_COST, _other(workload, field, item))
    return Want(asked, lambda found: _other(found, field, item), (*weaker, last))


def _availability(workload: WorkloadInfo, target: Target, taking: Sequence[ClusterInfo]) -> Want:
    """What could be had is what a replica on each of the sites, the most available first, would give, or the division."""
    without = _other(workload, "targets", target)
    sites = {site.name: site for site in taking}
    divided = [(sites[name], count) for name, count in choose(without, list(taking), {}).clusters.items()]
    safest = sorted(taking, key=lambda c: (-c.availability, c.name))[: max(1, workload.replicas)]
    weaker: list[Weaker] = []
    for had in sorted({up(divided, target.at_least), up([(c, 1) for c in safest], target.at_least)}, reverse=True):
        if target.condition in LOWER and 0 < had < target.value:
            bound = (math.ceil(had * 1e6) - 1) / 1e6  # so little less that it may be asked to be above
            text = f"let availability be {bound:.6g} instead of {wanted_text(target)}"
            weaker.append((text, target.value - bound, _other(workload, "targets", target, replace(target, value=bound))))
    up_at_once = f", with {target.at_least} replicas up" if target.at_least > 1 else ""
    asked = Requirement(f"availability {wanted_text(target)}{up_at_once}", f"intent {target.intent!r}", "Availability", workload)
    return _dropped(workload, replace(asked, target=target), "targets", target, weaker)


def _spread(workload: WorkloadInfo, spread: Spread) -> Want:
    policy = workload.policy
    weaker: list[Weaker] = []

    def instead(new: Spread | None, found: WorkloadInfo = workload) -> WorkloadInfo:
        kept = [new if each == spread else each for each in found.policy.spread]
        return replace(found, policy=replace(found.policy, spread=tuple(each for each in kept if each is not None)))

    for skew in range(spread.max_skew + 1, spread.max_skew + MOST_MORE + 1) if spread.max_skew else ():
        text = f"let one {spread.by} have {skew} more than another instead of {spread.max_skew}"
        weaker.append((text, (skew - spread.max_skew) / spread.max_skew, instead(replace(spread, max_skew=skew))))
    for count in range(spread.min_groups - 1, 0, -1):
        text = f"be in {count} instead of {spread.min_groups} different by {spread.by}"
        weaker.append((text, 1 - count / spread.min_groups, instead(replace(spread, min_groups=count))))
    said = [f"at least {spread.min_groups} different by {spread.by}"] if spread.min_groups > 1 else []
    said += [f"at most {spread.max_skew} more in one {spread.by} than in another"] if spread.max_skew else []
    asked = Requirement(" and ".join(said), f"placement policy {', '.join(policy.names)}", "Spread", workload)
    weaker.append((f"give up {asked.text} ({asked.source})", PLAIN_COST, instead(None)))
    return Want(asked, lambda found: instead(None, found), tuple(weaker))


def _constraint(workload: WorkloadInfo, term: SpreadTerm) -> Want:
    text = f"at most {term.max_skew} more of its pods in one {term.key} than in another"
    weaker: list[Weaker] = []
    for skew in range(term.max_skew + 1, term.max_skew + MOST_MORE + 1):
        wider = _other(workload, "spread", term, replace(term, max_skew=skew))
        weaker.append(
            (f"let maxSkew over {term.key} be {skew} instead of {term.max_skew}", (skew - term.max_skew) / term.max_skew, wider)
        )
    asked = Requirement(text, "the pods' topology spread constraints", "Affinity", workload)
    return _dropped(workload, asked, "spread", term, weaker)


def _numbers(workload: WorkloadInfo) -> list[int]:
    """Of replicas that are tried: all up to a few more, of many only some, the nearest first."""
    wanted = workload.replicas
    some = range(1, wanted) if wanted <= 64 else [2**n for n in range(wanted.bit_length()) if 2**n < wanted - MOST_MORE]
    near = range(max(1, wanted - MOST_MORE), wanted + MOST_MORE + 1)
    return sorted({*some, *near}, key=lambda n: (abs(n - wanted), n))


def _counts(workload: WorkloadInfo) -> Iterator[Weaker]:
    for count in _numbers(workload)[1:]:
        share = abs(count - workload.replicas) / workload.replicas
        text = f"ask for {count} replica{'s' * (count != 1)} instead of {workload.replicas}"
        yield text, share, replace(workload, replicas=count)
