"""What-if: where everything would go if workloads came or the world changed, and what else could be had. Pure.

The same decisions as the controllers', one workload after the other, each seeing the room that the ones before it take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metaos.resources.measures import cost, grams, latency, watts
from metaos.resources.meta import TAINT_UNREACHABLE, ObjectRef
from metaos.resources.snapshot import ClusterInfo, Snapshot, Taint, WorkloadInfo
from metaos.resources.traffic import located, sending, sends
from metaos.resources.traffic import paid as egress
from metaos.scheduler.applications import Together, decide_among, expected, members_of
from metaos.scheduler.conflicts import impossible
from metaos.scheduler.explain import costs_status, traffic_status
from metaos.scheduler.filters import FILTERS, Filter
from metaos.scheduler.framework import Plan
from metaos.scheduler.preemption import Preemption, Tenant, preempt
from metaos.scheduler.ranking import Rejections
from metaos.scheduler.requirement import Impossible
from metaos.scheduler.scores import SCORES, Score, users
from metaos.scheduler.world import World, taking

#: Of how many workloads the alternatives are looked for: a plan has ``len(MIXES)`` times as many decisions.
MOST_WORKLOADS = 200
#: What an alternative's weights are multiples of; an intent of the highest priority weighs 10.
STRONG = 20.0
#: Shares of (cost, carbon, latency): a grid over what people trade against each other.
MIXES = tuple((a / 4, b / 4, (4 - a - b) / 4) for a in range(5) for b in range(5 - a))
_MIXED = ("cost", "carbon", "latency")


@dataclass(frozen=True, slots=True)
class Changes:
    """Of the world. ``price``: EUR per core and hour, by site. ``carbon``: gCO2eq/kWh, by site or electricity zone."""

    drain: frozenset[str] = frozenset()
    lose: frozenset[str] = frozenset()
    price: tuple[tuple[str, float], ...] = ()
    carbon: tuple[tuple[str, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.drain or self.lose or self.price or self.carbon)


@dataclass(frozen=True, slots=True)
class Measures:
    """Of a workload, or of several together: money and grams per hour, watts, and the worst round trip (ms) of those whose
    users are known. ``None``: not known."""

    cost: float | None
    carbon: float | None
    power: float | None
    latency: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one workload. ``before``: if it stayed where it is. ``impossible`` where not all of it has a place."""

    workload: WorkloadInfo
    plan: Plan
    before: Measures
    after: Measures
    impossible: Impossible | None
    #: See ``metaos.scheduler.explain.traffic_status``.
    traffic: tuple[Mapping[str, Any], ...] = ()
    #: See ``metaos.scheduler.explain.costs_status``.
    costs: tuple[Mapping[str, Any], ...] = ()

    @property
    def changed(self) -> bool:
        return dict(self.plan.clusters) != dict(self.workload.current)

    @property
    def held(self) -> bool:
        """Whether it would be better elsewhere, and its policy keeps it where it is: cool-down, budget, least improvement."""
        return not self.changed and self.plan.reason.startswith("stays")

    def in_short(self) -> Outcome:
        """Without what the plan says of each site, which keeps a table of all sites alive."""
        return replace(self, plan=replace(self.plan, scored=(), rejected=Rejections({}), totals={}))


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way that no other is better than in everything: its places, and its measures over all workloads in question."""

    mix: tuple[float, float, float]
    places: tuple[tuple[ObjectRef, tuple[tuple[str, int], ...]], ...]
    measures: Measures


def changed_sites(clusters: Iterable[ClusterInfo], changes: Changes, now: float) -> tuple[ClusterInfo, ...]:
    """The sites after the changes. Raises ``ValueError`` for a site or zone that is not there."""
    sites = {c.name: c for c in clusters}
    zones = {c.zone for c in sites.values() if c.zone}
    for word, names in (("drain", changes.drain), ("lose", changes.lose), ("price", {n for n, _ in changes.price})):
        for missing in sorted(names - sites.keys()):
            raise ValueError(f"{word}: there is no site {missing!r}; there are {', '.join(sorted(sites)) or 'none'}")
    for named, _ in changes.carbon:
        if named not in sites and named not in zones:
            known = ", ".join([*sorted(sites), *sorted(zones)])
            raise ValueError(f"carbon: there is no site or electricity zone {named!r}; there are {known or 'none'}")
    for site, price in changes.price:
        if foreign := sites[site].foreign:
            remedy = "state its spec.price.exchangeRate first"
            raise ValueError(
                f"price: {site} asks for {foreign}, whose worth in EUR is not stated; a price here is in EUR: {remedy}"
            )
        sites[site] = replace(sites[site], cpu_hour=price)
    for named, intensity in changes.carbon:
        for found in [c for c in sites.values() if named in (c.name, c.zone)]:
            sites[found.name] = replace(found, carbon=intensity, forecast=())
    for site in changes.drain:
        sites[site] = replace(sites[site], unschedulable=True)
    for site in changes.lose:
        # Lost for so long that nothing tolerates it any more.
        taint = Taint(TAINT_UNREACHABLE, "", "NoExecute", now - 1e9)
        sites[site] = replace(sites[site], ready=False, taints=(*sites[site].taints, taint))
    return tuple(sites[s] for s in sorted(sites))


def measures(workload: WorkloadInfo, places: Mapping[str, int], sites: Mapping[str, ClusterInfo]) -> Measures:
    """Of a workload with so many replicas on these sites."""
    money, carbon, power, trips, total = [], [], [], [], max(1, sum(places.values()))
    for site, count in sorted(places.items()):
        found = sites.get(site)
        if found is None:
            continue
        paid, left = cost(found, workload, count), egress(workload, found)
        money.append(None if paid is None or left is None else paid + left * count / total)
        power.append(watts(found, workload.cpu * count))
        carbon.append(grams(found, workload.cpu * count))
        if found_users := users(workload):
            trips.append(latency(found, found_users))
    return Measures(
        _sum(money), _sum(carbon), _sum(power), None if None in trips else max((t for t in trips if t is not None), default=None)
    )


def together(found: Sequence[Measures]) -> Measures:
    """Sums of money, grams and watts; the worst round trip."""
    trips = [m.latency for m in found if m.latency is not None]
    return Measures(
        _sum([m.cost for m in found]), _sum([m.carbon for m in found]), _sum([m.power for m in found]), max(trips, default=None)
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return None if len(known) < len(values) else sum(known)


def project(
    snapshot: Snapshot,
    changes: Changes,
    workloads: Sequence[WorkloadInfo],
    filters: Sequence[tuple[str, Filter]] = FILTERS,
    scores: Sequence[Score] = SCORES,
    *,
    present: Mapping[ObjectRef, WorkloadInfo] | None = None,
    places: Mapping[ObjectRef, Mapping[str, int]] | None = None,
    others: Sequence[WorkloadInfo] = (),
) -> Iterator[Outcome]:
    """Decides ``workloads`` in their order, one when it is asked for. ``snapshot`` counts everything that is decided already,
    theirs too, with what they ask for now. ``present``: those that asked for something else before. ``places``: where workloads
    are that these talk to. ``others``: those that may be displaced, though nothing else is decided of them.

    Who displaces others is followed by an outcome of each of them, in the place of one that they may have had before."""
    projected = _Projection(snapshot, changes, [*others, *workloads], (filters, scores), places or {}, present or {})
    for workload in workloads:
        if workload.ref not in projected.displaced:
            yield from projected.outcomes(workload)


class _Projection:
    """The world as it becomes, decision by decision."""

    def __init__(
        self,
        snapshot: Snapshot,
        changes: Changes,
        known: Sequence[WorkloadInfo],
        judges: tuple[Sequence[tuple[str, Filter]], Sequence[Score]],
        places: Mapping[ObjectRef, Mapping[str, int]],
        present: Mapping[ObjectRef, WorkloadInfo],
    ) -> None:
        self._snapshot, self._changes, self._present = snapshot, changes, present
        self._filters, self._scores = judges
        self._known = {w.ref: w for w in known}
        self._lowest = min((w.priority for w in known if not w.pinned), default=None)
        self._world = World(changed_sites(snapshot.clusters, changes, snapshot.now))
        self._after = {c.name: c for c in self._world}
        self._was = {**places, **{w.ref: w.current for w in known if w.current}}
        self._where: dict[ObjectRef, Mapping[str, int]] = dict(self._was)
        self._talking = [_evicted(w, changes) for w in known if w.traffic]
        #: Sites that workloads have to leave, and to whom.
        self.displaced: dict[ObjectRef, dict[str, str]] = {}

    def outcomes(self, workload: WorkloadInfo) -> Iterator[Outcome]:
        """Of one workload, and then of those that it displaces."""
        now, world, about = self._snapshot.now, self._world, workload.ref
        there = self._where.get(about, workload.current)
        asking = replace(_evicted(workload, self._changes), current=there, displaced=self.displaced.get(about, {}))
        asking = _located(asking, self._where, world)
        flows = _flows(self._snapshot, asking, self._talking, self._where, world)
        ahead = _ahead(Snapshot(now, world, flows), asking, self._talking, self._where, self._filters, self._scores)
        free = Snapshot(now, taking(world, asking, there, -1), flows)
        asking, plan = decide_among(free, asking, ahead, self._filters, self._scores)
        displacing = None if plan.complete else self._preemption(free, asking, plan)
        if displacing is not None:
            plan = displacing.plan
        self._world = taking(World.of(free.clusters), asking, dict(plan.clusters), 1)
        self._where[about] = dict(plan.clusters)
        earlier = _located(self._present.get(about, workload), self._was, world)
        yield Outcome(
            replace(asking, current=workload.current),
            plan,
            # Of staying where it is in the same changed world: figures of two worlds cannot be compared.
            measures(earlier, workload.current, self._after),
            measures(asking, dict(plan.clusters), self._after),
            None if plan.complete and plan.satisfies and plan.clusters else impossible(free, asking, self._filters),
            tuple(traffic_status(asking, [self._after[s] for s, _ in plan.clusters])) if asking.traffic else (),
            tuple(costs_status(asking, dict(plan.clusters), self._after.get)),
        )
        by = f"{about.kind} {about.namespace}/{about.name}, whose priority is {workload.priority}"
        # Only lower priorities give way, so this ends.
        for victim in displacing.victims if displacing is not None else ():
            self.displaced.setdefault(victim.ref, {})[displacing.site if displacing is not None else ""] = by
            yield from self.outcomes(self._known[victim.ref])

    def _preemption(self, free: Snapshot, asking: WorkloadInfo, plan: Plan) -> Preemption | None:
        if not asking.preempts or self._lowest is None or self._lowest >= asking.priority:
            return None
        tenants: dict[str, list[Tenant]] = {}
        for about, found in self._known.items():
            if found.priority < asking.priority and not found.pinned:
                for site, count in self._where.get(about, {}).items():
                    if count:
                        tenant = Tenant(about, found.priority, count, found.cpu, found.memory, found.devices)
                        tenants.setdefault(site, []).append(tenant)
        return preempt(free, asking, plan, tenants, self._filters, self._scores)


def _evicted(workload: WorkloadInfo, changes: Changes) -> WorkloadInfo:
    """Draining evicts pods: where none is, each site has its own, or Jobs of their own make them, nothing has to leave."""
    stays = workload.mode == "Everywhere" or workload.ref.kind == "CronJob"
    gone = frozenset(s for s, count in workload.current.items() if count and s in changes.drain and not stays)
    return replace(workload, evicted=workload.evicted | gone) if gone else workload


def _located(workload: WorkloadInfo, places: Mapping[ObjectRef, Mapping[str, int]], world: World) -> WorkloadInfo:
    return located(workload, lambda about: places.get(about, {}), world.site, world.holding)


def _ahead(
    snapshot: Snapshot,
    workload: WorkloadInfo,
    talking: Sequence[WorkloadInfo],
    places: Mapping[ObjectRef, Mapping[str, int]],
    filters: Sequence[tuple[str, Filter]],
    scores: Sequence[Score],
) -> Together | None:
    """Where those will be that it talks to. ``snapshot`` counts what it takes."""
    if not workload.traffic:
        return None
    world, known = World.of(snapshot.clusters), {w.ref: w for w in talking}

    def read(about: ObjectRef) -> WorkloadInfo | None:
        found = known.get(about)
        return None if found is None else replace(_located(found, places, world), current=places.get(about, {}))

    return expected(snapshot, members_of(workload, read), filters, scores)


def _flows(
    snapshot: Snapshot,
    workload: WorkloadInfo,
    talking: Sequence[WorkloadInfo],
    places: Mapping[ObjectRef, Mapping[str, int]],
    world: World,
) -> Mapping[tuple[str, str], float]:
    """What others send: those that are not decided here, and those that are, where they are by now."""
    if not sends(workload) or not world.bools["narrow"].any():
        return snapshot.flows
    found = dict(snapshot.flows)
    for other in talking:
        if other.ref != workload.ref:
            there = replace(_located(other, places, world), current=places.get(other.ref, {}))
            for way, amount in sending(there, world.site, workload.ref).items():
                found[way] = found.get(way, 0.0) + amount
    return found


def alternatives(
    snapshot: Snapshot,
    changes: Changes,
    outcomes: Sequence[Outcome],
    filters: Sequence[tuple[str, Filter]] = FILTERS,
    scores: Sequence[Score] = SCORES,
    *,
    within: Collection[str] | None = None,
    places: Mapping[ObjectRef, Mapping[str, int]] | None = None,
) -> list[Alternative]:
    """Ways to place the workloads that move or come, chosen anew by each of ``MIXES``: those that no other one beats in money,
    carbon and latency together (Pareto). What is hard in intents and policies is so in all of them. ``within``: namespaces;
    what moves in others goes where it was decided to go, and is not counted."""
    moving = [o for o in outcomes if o.changed]
    asked = [o.workload for o in moving if o.plan.clusters and (within is None or o.workload.ref.namespace in within)]
    if not asked or len(asked) > MOST_WORKLOADS:
        return []
    present = World(changed_sites(snapshot.clusters, changes, snapshot.now))
    names = {c.name: c for c in present}
    chosen = {w.ref for w in asked}
    for outcome in moving:
        present = taking(present, outcome.workload, outcome.workload.current, -1)
        if outcome.workload.ref not in chosen:
            present = taking(present, outcome.workload, dict(outcome.plan.clusters), 1)
    fixed = {**(places or {}), **{o.workload.ref: dict(o.plan.clusters) for o in outcomes if o.workload.ref not in chosen}}
    talking = [o.workload for o in outcomes if o.workload.traffic]
    afresh = [replace(w, moves=()) if w.ref in chosen and not w.pinned else w for w in talking]
    found: dict[object, Alternative] = {}
    for mix in MIXES:
        weights = dict(zip(_MIXED, mix, strict=True))
        weighed = [replace(s, weight=s.weight + STRONG * weights.get(s.name, 0.0)) for s in scores]
        world, taken = present, []
        where = {about: at for about, at in fixed.items() if about not in chosen}
        for workload in asked:
            fresh = _located(workload if workload.pinned else replace(workload, current={}, moves=()), where, world)
            seen = Snapshot(snapshot.now, world, _flows(snapshot, fresh, talking, where, world))
            ahead = _ahead(seen, fresh, afresh, where, filters, weighed)
            _, plan = decide_among(seen, fresh, ahead, filters, weighed)
            if not plan.complete:
                break
            world = taking(world, workload, dict(plan.clusters), 1)
            where[workload.ref] = dict(plan.clusters)
            taken.append((workload.ref, plan.clusters))
        else:
            settled = [(_located(w, where, world), dict(p)) for w, (_, p) in zip(asked, taken, strict=True)]
            total = together([measures(w, p, names) for w, p in settled])
            found.setdefault(tuple(taken), Alternative(mix, tuple(taken), total))
    ways = list(found.values())
    kept = [w for w in ways if not any(_beats(o.measures, w.measures) for o in ways)]
    return sorted(kept, key=lambda w: (_key(w.measures.cost), _key(w.measures.carbon), _key(w.measures.latency)))


def _key(value: float | None) -> float:
    return float("inf") if value is None else value


def _beats(one: Measures, other: Measures) -> bool:
    pairs = [(_key(getattr(one, f)), _key(getattr(other, f))) for f in ("cost", "carbon", "latency")]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
