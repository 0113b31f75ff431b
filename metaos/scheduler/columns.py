"""Filters and scores over all sites at once. What a filter says in words of one site, its mask here says of every site.

A mask is true where the filter has something to say. A third party's filter or score that has a ``column`` attribute is asked
for all sites at once too; any other one is asked site by site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import numpy as np

from metaos.resources import traffic
from metaos.resources.affinity import node_matches
from metaos.resources.devices import GPU, GPU_MILLI, WHOLE, share
from metaos.resources.measures import cost
from metaos.resources.meta import TAINT_UNREACHABLE
from metaos.resources.snapshot import GIB, Edge, Snapshot, Target, WorkloadInfo
from metaos.resources.targets import ALL_OF, NONE_OF, TRUST_LEVELS, WISHES
from metaos.scheduler import filters, fragmentation, proximity, quotas, scores, timing
from metaos.scheduler.filters import Filter, tolerated
from metaos.scheduler.scores import Score
from metaos.scheduler.world import Bools, Floats, Ints, World, bounded

Mask = Callable[[Snapshot, WorkloadInfo, World], Bools | None]
Column = Callable[[WorkloadInfo, World], Floats]


def lawful(target: Target, world: World) -> Bools:
    """See ``metaos.resources.targets.lawful``."""
    named = [world.law(v) for v in target.values]
    if target.condition in NONE_OF:
        stated = world.bools["stated"]
        return stated & ~np.logical_or.reduce(named) if named else stated
    if not named:
        return np.full(len(world), target.condition in ALL_OF)
    found: Bools = np.logical_and.reduce(named) if target.condition in ALL_OF else np.logical_or.reduce(named)
    return found


def trusted(target: Target, world: World) -> Bools:
    """See ``metaos.resources.targets.trusted``."""
    named = [TRUST_LEVELS.get(v, 0) for v in target.values]
    if target.condition in NONE_OF or target.condition == "IsEqualTo":
        found = world.rows(lambda c: c.trust in target.values)
        return ~found if target.condition in NONE_OF else found
    enough: Bools = world.trust >= min(named, default=0)
    return enough


def measured(target: Target, workload: WorkloadInfo, world: World) -> Floats:
    """A target's value everywhere; NaN where it is not known. See ``metaos.resources.measures.measure``."""
    if target.name == "latency":
        return world.trip(target.users)
    if target.name == "carbonIntensity":
        return world.floats["carbon"]
    if target.name == "emissions":
        return world.floats["grams"] * (workload.cpu * workload.replicas)
    if target.name == "energy":
        return _energy(workload, world)
    if target.name == "cost":
        return _cost(workload, world) + paid(workload, world)
    if target.name == "availability":
        return world.floats["availability"]
    return np.full(len(world), np.nan)


def met(target: Target, values: Floats) -> Bools:
    """See ``metaos.resources.targets.meets``. NaN compares as false."""
    if target.condition in WISHES:
        return np.ones(len(values), np.bool_)
    found: dict[str, Callable[[], Bools]] = {
        "IsLessThan": lambda: values < target.value,
        "IsLessThanOrEqualTo": lambda: values <= target.value,
        "IsGreaterThan": lambda: values > target.value,
        "IsGreaterThanOrEqualTo": lambda: values >= target.value,
        "IsWithinRange": lambda: (values >= target.low) & (values <= target.high),
        "IsOutsideRange": lambda: (values < target.low) | (values > target.high),
    }
    judge = found.get(target.condition)
    return np.zeros(len(values), np.bool_) if judge is None else judge()


def holds(target: Target, workload: WorkloadInfo, world: World) -> Bools:
    """See ``metaos.resources.measures.holds_at``."""
    if target.name == "residency":
        return lawful(target, world)
    if target.name == "trust":
        return trusted(target, world)
    if target.name == "attestation":
        return world.rows(lambda c: c.attested in target.values)
    return met(target, measured(target, workload, world))


def room(workload: WorkloadInfo, world: World) -> Ints:
    """How many replicas fit beside what is decided for others."""
    free = np.maximum(world.free, 0)
    fits: Ints = free[:, 2]
    if workload.cpu:
        fits = np.minimum(fits, free[:, 0] // bounded(workload.cpu))
    if workload.memory:
        fits = np.minimum(fits, free[:, 1] // bounded(workload.memory))
    if workload.devices:
        fits = np.minimum(fits, device_room(workload, world))
    for row in np.flatnonzero(world.bools["quotas"]):
        fits[row] = min(int(fits[row]), quotas.room(workload, world[int(row)]))
    return fits


def device_room(workload: WorkloadInfo, world: World) -> Ints:
    """See ``metaos.scheduler.lacking.room``."""
    gpus, milli = share(workload.devices)
    fits = np.full(len(world), np.iinfo(np.int64).max)
    if gpus:
        each = world.gpus()
        fits = (each // milli).sum(axis=1) if milli < WHOLE else (each == WHOLE).sum(axis=1) // gpus
    for resource, amount in workload.devices:
        if resource not in (GPU, GPU_MILLI):
            fits = np.minimum(fits, world.device(resource) // bounded(amount))
    return fits


def closed(workload: WorkloadInfo, world: World) -> Bools:
    """Where nothing new is taken: cordoned, silent, or tainted NoSchedule."""
    found = world.bools["unschedulable"] | world.bools["deleting"] | ~world.bools["ready"]
    for taint, where in world.taints().items():
        if taint.effect == "NoSchedule" and not tolerated(taint, workload.tolerations, 0.0):
            found |= where
    return found


# -- masks -------------------------------------------------------------------------------------------------


def _residency(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    asked = [t for t in workload.targets if t.name == "residency"]
    return ~np.logical_and.reduce([lawful(t, world) for t in asked]) if asked else None


def _local_data(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    if workload.pinned:
        return ~world.at(workload.current)
    return ~world.at(workload.homes) if workload.homes else None


def _policy(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    asked = workload.policy
    found: Bools | None = None if asked.allowed is None else ~world.at(asked.allowed)
    for selects in asked.selectors:
        other = ~world.rows(lambda c, selects=selects: selects(c.labels))  # type: ignore[misc]
        found = other if found is None else found | other
    if workload.weights:
        other = ~world.at(workload.weights)
        found = other if found is None else found | other
    return found


def _selectors(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    found = [~world.label(key, value) for key, value in workload.node_selector.items()]
    if workload.node_affinity:
        found.append(~world.rows(lambda c: any(node_matches(term, c) for term in workload.node_affinity)))
    return np.logical_or.reduce(found) if found else None


def _runtime_class(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    wanted = workload.runtime_class
    return world.rows(lambda c: c.runtime_classes is not None and wanted not in c.runtime_classes) if wanted else None


def _leaving(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    gone = world.bools["deleting"]
    return gone | (world.bools["unschedulable"] & world.at(workload.evicted)) if workload.evicted else gone


def _displaced(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    return world.at(workload.displaced) if workload.displaced else None


def _health(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    return ~world.bools["ready"] & ~world.at(workload.current)


def _taints(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    taints = world.taints()
    if not taints:
        return None
    found, here = np.zeros(len(world), np.bool_), world.at(workload.current)
    waited = workload.policy.toleration_seconds
    for taint, where in taints.items():
        if taint.effect == "PreferNoSchedule" or tolerated(taint, workload.tolerations, snapshot.now):
            continue
        waits = (
            taint.key == TAINT_UNREACHABLE and bool(waited) and taint.since is not None and snapshot.now < taint.since + waited
        )
        found |= where & ~here if taint.effect == "NoSchedule" or waits else where
    return found


def _cordon(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    return world.bools["unschedulable"] & ~world.at(workload.current)


def _bounds(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    asked = [t for t in workload.targets if t.hard and t.name not in ("residency", "availability")]
    return ~np.logical_and.reduce([holds(t, workload, world) for t in asked]) if asked else None


def _distant(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    if any(e.hard and e.dataset and not e.at for e in workload.traffic):
        return np.ones(len(world), np.bool_)
    edges = [e for e in workload.traffic if e.at]
    found: Bools | None = None
    for edge in edges:
        if edge.hard:
            # What is not known is out of reach.
            far = ~(_worst(edge, world) <= edge.most)
            found = far if found is None else found | far
    if any(e.sent or e.answered for e in edges):
        # Few sites state what their links carry: these alone are looked at.
        peers = {site.name: site for e in edges for site, _ in e.at}
        ends = {name for site in peers.values() for name in (site.name, *site.links)}
        for row in np.flatnonzero(world.bools["narrow"] | world.at(ends)):
            cluster = world[int(row)]
            if cluster.name not in workload.current and traffic.too_much(snapshot, workload, cluster) is not None:
                found = np.zeros(len(world), np.bool_) if found is None else found
                found[row] = True
    return found


def _worst(edge: Edge, world: World) -> Floats:
    """See ``metaos.resources.traffic.worst``."""
    if edge.dataset:
        return trip(edge, world)
    found: Floats = np.maximum.reduce([world.between(site) for site, _ in edge.at])
    return _here(edge, world, found)


def _nearest(edge: Edge, world: World) -> tuple[Floats, Ints]:
    """The round trip to the nearest copy of a data set, and which one that is; infinite where none is known."""
    found, which = np.full(len(world), np.inf), np.zeros(len(world), np.int64)
    for number, (site, _) in enumerate(edge.at):
        between = world.between(site)
        nearer = between < found
        found, which = np.where(nearer, between, found), np.where(nearer, number, which)
    return found, which


def _here(edge: Edge, world: World, found: Floats) -> Floats:
    """Who asks where the peer is asks there alone."""
    return np.where(world.at(site.name for site, _ in edge.at), 0.0, found) if edge.asks or edge.dataset else found


def trip(edge: Edge, world: World) -> Floats:
    """See ``metaos.resources.traffic.trip``."""
    if edge.dataset:
        near, _ = _nearest(edge, world)
        return _here(edge, world, np.where(np.isinf(near), np.nan, near))
    total = sum(max(1, count) for _, count in edge.at)
    found = np.zeros(len(world))
    for site, count in edge.at:
        found += max(1, count) / total * world.between(site)
    return _here(edge, world, found)


def egress(edge: Edge, world: World) -> Floats:
    """See ``metaos.resources.traffic.egress``."""
    total = sum(max(1, count) for _, count in edge.at)
    found = np.zeros(len(world))
    which = _nearest(edge, world)[1] if edge.dataset else None
    for number, (site, count) in enumerate(edge.at):
        each = np.zeros(len(world))
        if edge.sent:
            each += edge.sent * traffic.HOUR_SECONDS / GIB * world.floats["egress_gib"]
        if edge.answered:
            each += edge.answered * traffic.HOUR_SECONDS / GIB * (math.nan if site.egress_gib is None else site.egress_gib)
        row = world.row_of.get(site.name)
        if row is not None:
            each[row] = 0.0
        found = found + max(1, count) / total * each if which is None else np.where(which == number, each, found)
    return _here(edge, world, found)


def paid(workload: WorkloadInfo, world: World) -> Floats:
    """See ``metaos.resources.traffic.paid``."""
    found = np.zeros(len(world))
    for edge in workload.traffic:
        if edge.at and (edge.sent or (edge.answered and edge.ref is None)):
            found += egress(edge if edge.ref is None else replace(edge, answered=0.0), world)
    return found


def _capacity(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    return (room(workload, world) < 1) & ~world.at(workload.current)


def _affinity(snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    if not proximity.asks(workload):
        return None

    @cache
    def domains(key: str) -> frozenset[str]:
        return frozenset(c.labels[key] for c in world if key in c.labels)

    return ~world.at(workload.current) & world.rows(lambda c: proximity.rejects(workload, domains, c) is not None)


MASKS: dict[Filter, Mask] = {
    filters.residency: _residency,
    filters.local_data: _local_data,
    filters.policy: _policy,
    filters.selectors: _selectors,
    filters.runtime_class: _runtime_class,
    filters.leaving: _leaving,
    filters.displaced: _displaced,
    filters.health: _health,
    filters.taints: _taints,
    filters.cordon: _cordon,
    filters.bounds: _bounds,
    filters.distant: _distant,
    proximity.affinity: _affinity,
    filters.capacity: _capacity,
}


def mask(judge: Filter, snapshot: Snapshot, workload: WorkloadInfo, world: World) -> Bools | None:
    """Where a filter rejects; ``None``: nowhere."""
    found: Mask | None = MASKS.get(judge) or getattr(judge, "column", None)
    if found is not None:
        return found(snapshot, workload, world)
    return world.rows(lambda c: judge(snapshot, workload, c) is not None)


# -- scores ------------------------------------------------------------------------------------------------


def _latency(workload: WorkloadInfo, world: World) -> Floats:
    return world.trip(scores.users(workload))


def _carbon(workload: WorkloadInfo, world: World) -> Floats:
    if workload.waits is not None:
        return timing.column(timing.carbon, workload, world)
    return world.floats["carbon_ahead"]


def _emissions(workload: WorkloadInfo, world: World) -> Floats:
    if workload.waits is not None:
        return timing.column(timing.emissions, workload, world)
    return world.floats["grams_ahead"] * (workload.cpu * workload.replicas)


def _energy(workload: WorkloadInfo, world: World) -> Floats:
    return world.floats["slope"] * (workload.cpu * workload.replicas)


def _cost(workload: WorkloadInfo, world: World) -> Floats:
    if workload.interruptible is not None or workload.licences:
        key = ("cost", workload.cpu, workload.memory, workload.replicas, workload.licences, workload.interruptible)
        return world.stated(key, lambda c: cost(c, workload, workload.replicas))
    cpu, memory = workload.cpu * workload.replicas / 1000, workload.memory * workload.replicas / GIB
    return world.floats["cpu_hour"] * cpu + world.floats["memory_gib_hour"] * memory


def _paid_by_hour(workload: WorkloadInfo, world: World) -> Floats:
    return _cost(workload, world) if workload.waits is None else timing.column(timing.cost, workload, world)


def _availability(workload: WorkloadInfo, world: World) -> Floats:
    return world.floats["availability"] * 100


def _free(workload: WorkloadInfo, world: World) -> Floats:
    whole = world.floats["cpu"]
    share = world.free[:, 0] / np.where(whole > 0, whole, np.inf)
    return np.maximum(0.0, 100.0 * share)


def _preferred(workload: WorkloadInfo, world: World) -> Floats:
    return world.at(workload.policy.preferred).astype(np.float64) * 100.0


def _wished(workload: WorkloadInfo, world: World) -> Floats:
    asked = scores.wishes(workload)
    if not asked:
        return np.full(len(world), np.nan)
    good = np.zeros(len(world))
    for target in asked:
        good += holds(target, workload, world) * float(target.priority + 1)
    return 100.0 * good / sum(t.priority + 1 for t in asked)


def _blend(reference: float, parts: Iterable[tuple[float, Floats]], size: int) -> Floats:
    """See ``metaos.scheduler.scores.blend``."""
    weight, good = 0.0, np.zeros(size)
    for importance, found in parts:
        weight += importance
        good += np.where(np.isnan(found), 0.0, importance / (1.0 + np.maximum(found, 0.0) / reference))
    return reference * (weight / np.where(good > 0, good, np.nan) - 1.0)


def _traffic(workload: WorkloadInfo, world: World) -> Floats:
    edges = [e for e in workload.traffic if traffic.timed(e)]
    return _blend(scores.TRIP_REFERENCE, ((e.weight, trip(e, world)) for e in edges), len(world))


def _egress(workload: WorkloadInfo, world: World) -> Floats:
    edges = [e for e in workload.traffic if e.at and e.money]
    return _blend(scores.EGRESS_REFERENCE, ((e.money, egress(e, world)) for e in edges), len(world))


def _gravity(workload: WorkloadInfo, world: World) -> Floats:
    found = np.zeros(len(world))
    for edge in workload.traffic:
        if edge.dataset:
            away = ~world.at(site.name for site, _ in edge.at)
            found += away * traffic.daily(edge) if edge.at else np.nan
    return found


COLUMNS: dict[scores.Measure, Column] = {
    scores.LATENCY.measure: _latency,
    scores.CARBON.measure: _carbon,
    scores.EMISSIONS.measure: _emissions,
    scores.ENERGY.measure: _energy,
    scores.COST.measure: _paid_by_hour,
    scores.AVAILABILITY.measure: _availability,
    scores.FREE.measure: _free,
    scores.PREFERRED.measure: _preferred,
    scores.WISHED.measure: _wished,
    scores.TRAFFIC.measure: _traffic,
    scores.FRAGMENTATION.measure: fragmentation.losses,
    scores.EGRESS.measure: _egress,
    scores.GRAVITY.measure: _gravity,
}


def values(score: Score, workload: WorkloadInfo, world: World) -> Floats:
    """What a score measures everywhere; NaN where it is not known."""
    found: Column | None = COLUMNS.get(score.measure) or getattr(score.measure, "column", None)
    if found is not None:
        return found(workload, world)
    each = (score.measure(workload, c) for c in world)
    return np.fromiter((np.nan if v is None else v for v in each), np.float64, len(world))


def points(score: Score, found: Floats) -> Floats:
    """See ``metaos.scheduler.scores.points``."""
    earned = np.clip(found, 0.0, 100.0) if score.more_is_better else 100.0 / (1.0 + np.maximum(found, 0.0) / score.reference)
    return np.where(np.isnan(found), 0.0, earned)


def totals(workload: WorkloadInfo, world: World, counting: list[tuple[Score, float]]) -> Floats:
    """Weighted means of points, 0 to 100."""
    weight = sum(importance for _, importance in counting)
    if not weight:
        return np.zeros(len(world))
    found = np.zeros(len(world))
    for score, importance in counting:
        found += importance * points(score, values(score, workload, world))
    return found / weight
