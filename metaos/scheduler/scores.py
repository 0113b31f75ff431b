"""Scores: each measures one thing about a workload on a site, in its unit, and turns it into 0 to 100 points.

Points use a fixed reference per term (half the points at the reference), not the best site of the day: so a score means
the same tomorrow, and hysteresis has something to hold on to. Weights are explicit: a default, and more where an intent
asks. A score is a function ``(workload, cluster) -> (value, unit)``; plugins add theirs under ``metaos.score``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from metaos.resources import traffic
from metaos.resources.measures import cost, embodied_intensity, grams_each, holds_at, latency, watts
from metaos.resources.snapshot import ClusterInfo, Target, Users, WorkloadInfo
from metaos.resources.targets import LOWER, UPPER, WISHES
from metaos.scheduler import proximity

Measure = Callable[[WorkloadInfo, ClusterInfo], float | None]
#: How many hours of forecast count beside the present one.
FORECAST_HOURS = 4


@dataclass(frozen=True, slots=True)
class Score:
    """``reference`` is the value that earns half of the points. ``weight`` counts without any intent; ``target`` is the
    intent's word for it."""

    name: str
    unit: str
    measure: Measure
    reference: float
    weight: float
    target: str = ""
    more_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Term:
    """One term of one site's score. ``value`` is ``None`` where the site does not say; it then earns no points."""

    name: str
    value: float | None
    unit: str
    weight: float
    points: float


def users(workload: WorkloadInfo) -> Users:
    """Those that any latency target names: the worst counts, unless all of them say how many are where."""
    named = [t.users for t in workload.targets if t.name == "latency" and t.users]
    regions: dict[str, float] = {}
    for found in named:
        for region, share in zip(found.regions, found.shares or (0.0,) * len(found.regions), strict=True):
            regions[region] = regions.get(region, 0.0) + share / len(named)
    names = tuple(sorted(regions))
    weighted = bool(named) and all(found.shares for found in named)
    return Users(names, tuple(regions[region] for region in names) if weighted else ())


def _latency(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    return latency(cluster, users(workload))


def electricity_ahead(cluster: ClusterInfo) -> float | None:
    """Its intensity (gCO2eq/kWh), where the present hour counts as much as all the following ones together."""
    if cluster.carbon is None:
        return None
    later = cluster.forecast[1 : FORECAST_HOURS + 1]
    return cluster.carbon if not later else (cluster.carbon + sum(later) / len(later)) / 2


def carbon_ahead(cluster: ClusterInfo) -> float | None:
    """That of the electricity, and of the hardware."""
    ahead = electricity_ahead(cluster)
    return None if ahead is None else ahead + embodied_intensity(cluster)


def grams_ahead(cluster: ClusterInfo) -> float | None:
    """gCO2eq per hour of a thousandth of a core, with the electricity of the hours to come and the hardware."""
    return grams_each(cluster, electricity_ahead(cluster))


def _carbon(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    if workload.waits is not None:
        from metaos.scheduler import timing  # with numpy, which few roles load

        return timing.at_site(timing.carbon, workload, cluster)
    return carbon_ahead(cluster)


def _emissions(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    if workload.waits is not None:
        from metaos.scheduler import timing  # with numpy

        return timing.at_site(timing.emissions, workload, cluster)
    each = grams_ahead(cluster)
    return None if each is None else each * (workload.cpu * workload.replicas)


def _energy(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    return watts(cluster, workload.cpu * workload.replicas)


def _cost(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    if workload.waits is not None:
        from metaos.scheduler import timing  # with numpy

        return timing.at_site(timing.cost, workload, cluster)
    return cost(cluster, workload, workload.replicas)


def _availability(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    return cluster.availability * 100


def _free(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    if not cluster.cpu:
        return 0.0
    return max(0.0, 100.0 * (cluster.cpu - cluster.cpu_requested) / cluster.cpu)


def _preferred(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    return 100.0 if cluster.name in workload.policy.preferred else 0.0


def _along(score: Score, target: Target) -> bool:
    """Whether a target asks for what the score rewards: less of it, or more."""
    return target.condition in (("Maximize", *LOWER) if score.more_is_better else ("Minimize", *UPPER))


def wishes(workload: WorkloadInfo) -> list[Target]:
    """Preferred targets that no score measures by itself: ranges, trust, attestation, and bounds against a score's direction."""
    measured = {s.target: s for s in SCORES if s.target}
    return [
        t
        for t in workload.targets
        if not t.hard and t.condition not in WISHES and not (t.name in measured and _along(measured[t.name], t))
    ]


def _wished(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    found = wishes(workload)
    good = sum(t.priority + 1 for t in found if holds_at(t, cluster, workload))
    return 100.0 * good / sum(t.priority + 1 for t in found) if found else None


#: What earns half of the points: a round trip between components (ms), and money for what leaves a site (per hour).
TRIP_REFERENCE, EGRESS_REFERENCE = 10.0, 0.02


def blend(reference: float, parts: Iterable[tuple[float, float | None]]) -> float | None:
    """The mean over (weight, value) whose points are the mean of the values' points; what is not known earns none. So the points
    of an edge count the same at both of its ends whatever else they do, and components that each go for their own gain come to
    rest (Monderer and Shapley, "Potential games", Games and Economic Behavior 14, 1996)."""
    weight = good = 0.0
    for importance, value in parts:
        weight += importance
        good += 0.0 if value is None else importance / (1.0 + max(0.0, value) / reference)
    return reference * (weight / good - 1.0) if good else None


def _traffic(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    return blend(TRIP_REFERENCE, ((e.weight, traffic.trip(e, cluster)) for e in workload.traffic if traffic.timed(e)))


def _egress(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    return blend(EGRESS_REFERENCE, ((e.money, traffic.egress(e, cluster)) for e in workload.traffic if e.at and e.money))


def _gravity(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    return traffic.gravity(workload, cluster)


def _fragmentation(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    from metaos.scheduler.fragmentation import lost  # with numpy, which few roles load

    return lost(workload, cluster)


LATENCY = Score("latency", "ms", _latency, 30.0, 0.0, "latency")
CARBON = Score("carbon", "gCO2eq/kWh", _carbon, 150.0, 1.0, "carbonIntensity")
#: Unlike ``carbon`` it sees how much power a site takes for the same work. An intent asks for it.
EMISSIONS = Score("emissions", "gCO2eq/h", _emissions, 1.0, 0.0, "emissions")
ENERGY = Score("energy", "W", _energy, 5.0, 0.5, "energy")
COST = Score("cost", "EUR/h", _cost, 0.02, 1.0, "cost")
AVAILABILITY = Score("availability", "%", _availability, 0.0, 0.5, "availability", True)
FREE = Score("free", "%", _free, 0.0, 0.5, "", True)
PREFERRED = Score("preferred", "%", _preferred, 0.0, 0.0, "", True)
WISHED = Score("wishes", "%", _wished, 0.0, 0.0, "", True)
TRAFFIC = Score("traffic", "ms", _traffic, TRIP_REFERENCE, 0.0)
EGRESS = Score("egress", "EUR/h", _egress, EGRESS_REFERENCE, 0.0)
#: Of data sets, over the network.
GRAVITY = Score("gravity", "GB/day", _gravity, 10.0, 0.0)
AFFINITY = Score("affinity", "%", proximity.wished, 0.0, 0.0, "", True)
#: GPUs that one replica makes unusable for those who usually ask, its own included.
FRAGMENTATION = Score("fragmentation", "GPU", _fragmentation, 1.0, 2.0)

#: The built-in ones; a hub runs whatever is registered under ``metaos.score``.
SCORES: tuple[Score, ...] = (
    LATENCY,
    CARBON,
    EMISSIONS,
    ENERGY,
    COST,
    AVAILABILITY,
    FREE,
    PREFERRED,
    WISHED,
    TRAFFIC,
    EGRESS,
    GRAVITY,
    AFFINITY,
    FRAGMENTATION,
)


def weight(score: Score, workload: WorkloadInfo) -> float:
    """The default, plus one to ten for an intent of priority 0 to 100 that asks for it; 5 for a policy's preference; the sum over
    its edges for traffic and its egress, as far as the peers have a place, and over those to data sets for their gravity; that of
    its wishes for affinity; fragmentation counts once anybody has a GPU."""
    if score.name == "preferred":
        return 5.0 if workload.policy.preferred else 0.0
    if score.name == "wishes":
        return max((1.0 + t.priority * 0.09 for t in wishes(workload)), default=0.0)
    if score.name == "fragmentation":
        return score.weight if workload.mix else 0.0
    if score.name == "traffic":
        return sum(e.weight for e in workload.traffic if traffic.timed(e))
    if score.name == "affinity":
        return proximity.weight(workload)
    if score.name == "egress":
        return sum(e.money for e in workload.traffic if e.at)
    if score.name == "gravity":
        return sum(e.weight for e in workload.traffic if e.dataset and (e.sent or e.answered))
    if not score.target:
        return score.weight
    asked = [1.0 + t.priority * 0.09 for t in workload.targets if t.name == score.target and _along(score, t)]
    return score.weight + max(asked, default=0.0)


def points(score: Score, value: float | None) -> float:
    """0 to 100. NaN, which a plugin may say, is not known."""
    if value is None or value != value:
        return 0.0
    if score.more_is_better:
        return min(100.0, max(0.0, value))
    return 100.0 / (1.0 + max(0.0, value) / score.reference)


def weighted(workload: WorkloadInfo, scores: Sequence[Score] = SCORES) -> list[tuple[Score, float]]:
    """The scores that count for a workload, with their weights."""
    return [(score, importance) for score in scores if (importance := weight(score, workload))]


def evaluate(
    workload: WorkloadInfo, cluster: ClusterInfo, counting: Sequence[tuple[Score, float]] | None = None
) -> tuple[float, tuple[Term, ...]]:
    """The site's total (weighted mean of points, 0 to 100) and its terms. ``counting``: see :func:`weighted`."""
    terms = []
    for score, importance in weighted(workload) if counting is None else counting:
        value = score.measure(workload, cluster)
        terms.append(Term(score.name, value, score.unit, importance, points(score, value)))
    total_weight = sum(t.weight for t in terms)
    total = sum(t.weight * t.points for t in terms) / total_weight if total_weight else 0.0
    return total, tuple(terms)
