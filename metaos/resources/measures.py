"""What a workload comes to at a site: round trips, power, carbon, and money in its parts. Pure.

Units: milliseconds, watts, gCO2eq per hour, EUR per hour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from metaos.resources import traffic
from metaos.resources.snapshot import GIB, MONTH_HOURS, ClusterInfo, Interruptible, Target, Users, WorkloadInfo
from metaos.resources.targets import lawful, meets, trusted

#: In e^x: more than this says only that it never ends.
_MOST = 50.0


def latency(cluster: ClusterInfo, users: Users) -> float | None:
    """The round trip of the users to the site, the worst one or their mean (see ``Users``); ``None`` where one is not known."""
    found = [cluster.latencies.get(r, 1.0 if r == cluster.region else None) for r in users.regions]
    known = [f for f in found if f is not None]
    if not known or len(known) < len(found):
        return None
    return sum(f * share for f, share in zip(known, users.shares, strict=True)) if users.shares else max(known)


def watts(cluster: ClusterInfo, cpu_milli: int) -> float | None:
    """Power that a load adds, by the site's linear power model and its PUE (W); ``None`` where it states no such model."""
    if not cluster.capacity_cpu or cluster.max_watts <= 0:
        return None
    return (cluster.max_watts - cluster.idle_watts) * cpu_milli / cluster.capacity_cpu * cluster.pue


def grams(cluster: ClusterInfo, cpu_milli: int) -> float | None:
    """gCO2eq per hour of a load: its energy, and its share by CPU of what the site's hardware embodies (SCI, ISO/IEC 21031)."""
    each = grams_each(cluster, cluster.carbon)
    return None if each is None else each * cpu_milli


def grams_each(cluster: ClusterInfo, intensity: float | None) -> float | None:
    """The same of a thousandth of a core, with electricity of this intensity (gCO2eq/kWh)."""
    power = watts(cluster, 1)
    if intensity is None or power is None:
        return None
    return power / 1000 * intensity + cluster.embodied / cluster.capacity_cpu


def embodied_intensity(cluster: ClusterInfo) -> float:
    """What the hardware embodies, by the energy of a load on it (gCO2eq/kWh): both go by CPU, so it is the same for any load."""
    slope = (cluster.max_watts - cluster.idle_watts) * cluster.pue / 1000
    return cluster.embodied / slope if slope > 0 else 0.0


# -- money -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Costs:
    """Money per hour; ``None``: not known. ``lost``: the part of ``computing`` that spot capacity is expected to have done again;
    ``capacity``: ``spot`` where it runs on
    such. ``egress``: for what leaves the site, or comes to it from a site that it reads."""

    computing: float | None
    licences: float | None
    egress: float | None
    lost: float = 0.0
    capacity: str = ""
    #: The currency that the site's prices are in, where it does not state what that is worth in EUR.
    foreign: str = ""

    @property
    def total(self) -> float | None:
        if self.computing is None or self.licences is None or self.egress is None:
            return None
        return self.computing + self.licences + self.egress

    @property
    def missing(self) -> str:
        """Which price is not stated, in people's words; empty where all are."""
        if self.foreign and self.total is None:
            return f"its prices are in {self.foreign}, and no exchangeRate is stated"
        parts = (("computing", self.computing), ("a licence", self.licences), ("egress", self.egress))
        return next((f"no price of {word} is stated" for word, found in parts if found is None), "")


def stretch(rate: float, restart: float, work: Interruptible) -> float:
    """So many times as long as without interruptions. Interruptions as a Poisson process with ``rate`` an hour, and ``restart``
    hours to begin again, which may be interrupted too; what keeps nothing begins anew (J. T. Daly, "A higher order estimate of
    the optimum checkpoint interval", 2006, without checkpoints)."""
    risk = rate * work.hours
    again = 1.0 if work.keeps or risk < 1e-9 else math.expm1(min(risk, _MOST)) / risk
    return again * math.exp(min(rate * restart, _MOST))


def rates(cluster: ClusterInfo, work: Interruptible | None) -> tuple[float | None, float, float, bool]:
    """Per core and hour, per GiB and hour, each with what is expected to be done again; the share of both that is that; whether
    it is on spot capacity: the cheaper one, where the work stands it."""
    price, spot = cluster.cpu_hour, cluster.spot
    if work is not None and spot is not None:
        times = stretch(spot.rate, spot.restart, work)
        if price is None or spot.cpu_hour * times <= price:
            return spot.cpu_hour * times, cluster.memory_gib_hour * times, 1.0 - 1.0 / times, True
    return price, cluster.memory_gib_hour, 0.0, False


def computing(cluster: ClusterInfo, cpu_milli: int, memory_bytes: int, work: Interruptible | None = None) -> float | None:
    """Money per hour for a load."""
    cpu, memory, _, _ = rates(cluster, work)
    return None if cpu is None else cpu * cpu_milli / 1000 + memory * memory_bytes / GIB


def licensed(cluster: ClusterInfo, workload: WorkloadInfo, count: int) -> float | None:
    """Money per hour for the licences of so many replicas. What the site states goes before what an Intent does."""
    found = 0.0
    for wanted in workload.licences if count else ():
        priced = cluster.licences.get(wanted.name, wanted)
        if priced.replica is None and priced.site is None:
            return None
        found += ((priced.replica or 0.0) * count + (priced.site or 0.0)) / MONTH_HOURS
    return found


def cost(cluster: ClusterInfo, workload: WorkloadInfo, count: int) -> float | None:
    """Money per hour of so many replicas at a site: computing with what spot capacity loses, and licences. Egress has a score of
    its own."""
    paid = computing(cluster, workload.cpu * count, workload.memory * count, workload.interruptible)
    if paid is None or not workload.licences:
        return paid
    licences = licensed(cluster, workload, count)
    return None if licences is None else paid + licences


def costs(cluster: ClusterInfo, workload: WorkloadInfo, count: int) -> Costs:
    """The same in its parts, and with egress."""
    paid = computing(cluster, workload.cpu * count, workload.memory * count, workload.interruptible)
    _, _, lost, spot = rates(cluster, workload.interruptible)
    licences, left = licensed(cluster, workload, count), traffic.paid(workload, cluster)
    return Costs(paid, licences, left, (paid or 0.0) * lost, "spot" if spot else "", cluster.foreign)


# -- of a target -------------------------------------------------------------------------------------------


def measure(target: Target, cluster: ClusterInfo, found: WorkloadInfo) -> float | None:
    """A target's value for the whole workload on one site, in its base unit; ``None`` where it is not known."""
    if target.name == "latency":
        return latency(cluster, target.users)
    if target.name == "carbonIntensity":
        return cluster.carbon
    if target.name == "emissions":
        return grams(cluster, found.cpu * found.replicas)
    if target.name == "energy":
        return watts(cluster, found.cpu * found.replicas)
    if target.name == "cost":
        paid, left = cost(cluster, found, found.replicas), traffic.paid(found, cluster)
        return None if paid is None or left is None else paid + left
    if target.name == "availability":
        return cluster.availability
    return None


def holds_at(target: Target, cluster: ClusterInfo, found: WorkloadInfo) -> bool:
    """Whether a target holds for a workload on one site. Availability is met by several sites together: not asked here."""
    if target.name == "residency":
        return lawful(target, cluster.jurisdictions)
    if target.name == "trust":
        return trusted(target, cluster.trust)
    if target.name == "attestation":
        return cluster.attested in target.values
    return meets(target, measure(target, cluster, found))
