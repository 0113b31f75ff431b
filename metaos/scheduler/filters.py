"""Filters: each says of one site why a workload may not be there, or nothing. Reasons are for people, with numbers.

A filter is a function ``(snapshot, workload, cluster) -> str | None``; plugins add theirs under ``metaos.filter``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from metaos.resources import quantity, traffic
from metaos.resources.affinity import node_matches
from metaos.resources.measures import Costs, costs, holds_at, measure
from metaos.resources.meta import TAINT_UNREACHABLE
from metaos.resources.snapshot import ClusterInfo, Edge, Snapshot, Taint, Target, WorkloadInfo
from metaos.resources.targets import ALL_OF, NONE_OF, base_unit, lawful, wanted_text
from metaos.scheduler import lacking, proximity, quotas

Filter = Callable[[Snapshot, WorkloadInfo, ClusterInfo], str | None]


def residency(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """Data stays where intents say. Nothing outvotes this."""
    for target in workload.targets:
        if target.name == "residency" and not lawful(target, cluster.jurisdictions):
            where = ", ".join(sorted(cluster.jurisdictions)) or "no stated jurisdiction"
            named = target.values
            must = f"stay in {' or '.join(named)}"
            if target.condition in NONE_OF:
                must = f"stay out of {' and '.join(named)}"
            elif target.condition in ALL_OF:
                must = f"stay where {' and '.join(named)} hold together"
            about = f"{target.about} " if target.about else ""
            return f"{about}must {must} (intent {target.intent!r}), and the site is in {where}"
    return None


def leaving(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """A site that is being removed, or that evicted this workload, is left."""
    if cluster.deleting:
        return "the site is being removed"
    if cluster.unschedulable and cluster.name in workload.evicted:
        return "the site is being drained"
    return None


def displaced(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """Who has a higher priority gets the room."""
    by = workload.displaced.get(cluster.name)
    return None if by is None else f"its room is needed by {by}, and its own priority is {workload.priority}"


def cordon(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """A cordoned site takes nothing new."""
    if cluster.unschedulable and cluster.name not in workload.current:
        return "the site is cordoned"
    return None


def health(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """A site without heartbeat takes nothing new; what it has is left to the taint's toleration."""
    if not cluster.ready and cluster.name not in workload.current:
        return "the site does not answer"
    return None


def tolerated(taint: Taint, tolerations: tuple[Mapping[str, Any], ...], now: float) -> bool:
    """As Kubernetes decides it, including ``tolerationSeconds`` for NoExecute."""
    for found in tolerations:
        if found.get("effect") not in (None, "", taint.effect):
            continue
        if found.get("key") not in (None, "") and found.get("key") != taint.key:
            continue
        equal = found.get("operator", "Equal") == "Equal"
        if equal and (found.get("key") in (None, "") or str(found.get("value") or "") != taint.value):
            continue
        seconds = found.get("tolerationSeconds")
        if (
            taint.effect == "NoExecute"
            and seconds is not None
            and taint.since is not None
            and now >= taint.since + float(seconds)
        ):
            continue
        return True
    return False


def taints(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """NoSchedule keeps new work away, NoExecute also what is there."""
    for taint in cluster.taints:
        if taint.effect == "PreferNoSchedule" or (taint.effect == "NoSchedule" and cluster.name in workload.current):
            continue
        if tolerated(taint, workload.tolerations, snapshot.now):
            continue
        if taint.key == TAINT_UNREACHABLE:
            waited = workload.policy.toleration_seconds
            if waited and taint.since is not None and snapshot.now < taint.since + waited and cluster.name in workload.current:
                continue
            return "the site does not answer"
        value = f"={taint.value}" if taint.value else ""
        return f"has the taint {taint.key}{value}:{taint.effect}, which the workload does not tolerate"
    return None


def selectors(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """Node selector and required node affinity of the pods, over the labels of the site."""
    for key, value in sorted(workload.node_selector.items()):
        if cluster.labels.get(key) != value:
            return f"the node selector wants {key}={value}, and the site has {cluster.labels.get(key, 'no such label')}"
    if workload.node_affinity and not any(node_matches(term, cluster) for term in workload.node_affinity):
        return "the required node affinity does not match the site's labels"
    return None


def runtime_class(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """The runtime class of the pods, over those that the site has."""
    wanted, has = workload.runtime_class, cluster.runtime_classes
    if not wanted or has is None or wanted in has:
        return None
    return f"the pods want runtimeClassName {wanted}, and the site has {', '.join(sorted(has)) or 'none'}"


def policy(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """What operators fix: allowed sites and selectors."""
    found = workload.policy
    if found.allowed is not None and cluster.name not in found.allowed:
        return f"placement policy {', '.join(found.names)} allows only {', '.join(sorted(found.allowed)) or 'no site'}"
    if not all(selects(cluster.labels) for selects in found.selectors):
        return f"placement policy {', '.join(found.names)} selects other sites"
    if (weights := workload.weights) and cluster.name not in weights:
        return f"placement policy {', '.join(found.names)} gives weight only to {', '.join(weights)}"
    return None


def local_data(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """Work with data on a site's own disk stays with it, and what shares a claim comes to it."""
    if workload.pinned and cluster.name not in workload.current:
        if not workload.local_data:
            return f"a {workload.ref.kind} is placed once, and it is on {', '.join(sorted(workload.current))}"
        return f"its data is on {', '.join(sorted(workload.current))}{_hauled(snapshot, workload, cluster)}"
    if workload.homes and cluster.name not in workload.homes:
        if workload.current:
            return f"its data is on {', '.join(sorted(workload.current))}, and volumes cannot be taken there"
        return f"a claim that it uses lies on {', '.join(sorted(workload.homes))}"
    return None


def _hauled(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str:
    """What bringing its volumes along would take, were that done by hand."""
    homes = [c for c in snapshot.clusters if c.name in workload.current] if workload.claimed else []
    if not homes:
        return ""
    return f"; {haul_text(traffic.haul(workload.claimed, homes[0], cluster))} to bring it"


#: What a move of volumes stops the work for at least, beside what has to be sent then: its end, a last look, and its start. An
#: aim, which bench/volumes.py holds against what is measured.
MOVE_STOPS_SECONDS = 3.0


def brought_along(snapshot: Snapshot, workload: WorkloadInfo, places: Iterable[str], *, at_once: bool) -> str:
    """What it takes to bring its volumes to where it is to be; empty for work without any. ``at_once``: it may not run on while
    they are on their way."""
    homes = [c for c in snapshot.clusters if c.name in workload.current]
    targets = [c for c in snapshot.clusters if c.name in places and c.name not in workload.current]
    if not workload.local_data or workload.pinned or not homes or not targets:
        return ""
    if not workload.claimed:
        return "; its volumes go along, whose size not all claims state"
    found = traffic.haul(workload.claimed, homes[0], targets[0])
    energy = workload.claimed / 1e9 * traffic.NETWORK_KWH_PER_GB
    stops = MOVE_STOPS_SECONDS + ((found.seconds or 0.0) if at_once else 0.0)
    down = f"at least {stops:.3g} s without a writer" + (" and the time to copy" if at_once and found.seconds is None else "")
    return f"; its volumes go along: {haul_text(found)}, {energy:.3g} kWh, {down}"


def haul_text(found: traffic.Haul) -> str:
    """``up to 20 GiB, 170 s, 1.8 EUR, 0.4 gCO2eq``."""
    parts = [f"up to {bytes_text(found.bytes)}"]
    parts += [f"{found.seconds:.3g} s"] if found.seconds is not None else []
    parts += [f"{found.money:.3g} EUR"] if found.money is not None else []
    parts += [f"{found.grams:.3g} gCO2eq"] if found.grams is not None else []
    return ", ".join(parts)


def bounds(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """Hard targets of intents on this site, each that does not hold: all but residency, which has its own filter. Availability
    is met by several sites together, so it is the solver's."""
    asked = [t for t in workload.targets if t.hard and t.name not in ("residency", "availability")]
    reasons = [reason for target in asked if (reason := broken_bound(target, workload, cluster))]
    return "; ".join(reasons) or None


_WORDS = {"latency": "round trip", "carbonIntensity": "carbon intensity", "emissions": "what it emits", "energy": "power"}


def broken_bound(target: Target, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """Why a target does not hold on a site, with both numbers."""
    if holds_at(target, cluster, workload):
        return None
    wanted = f"must be {wanted_text(target)} (intent {target.intent!r})"
    if target.name == "trust":
        return f"trust {wanted}, and it is {cluster.trust}"
    if target.name == "attestation":
        return f"attestation {wanted}, and the site has {cluster.attested or 'none that holds'}"
    value, unit = measure(target, cluster, workload), base_unit(target.name)
    about = target.users.text
    words = _WORDS.get(target.name, target.name)
    if target.name == "cost":
        return _broken_cost(costs(cluster, workload, workload.replicas), wanted)
    if value is None:
        return f"{words}{about} is not known here, and {wanted}"
    return f"{words}{about} is {value:.4g} {unit}, and {wanted}"


def _broken_cost(found: Costs, wanted: str) -> str:
    if found.total is None:
        return f"cost is not known here ({found.missing}), and {wanted}"
    parts = costs_text(found)
    return f"cost is {found.total:.4g} EUR/h{f' ({parts})' if parts else ''}, and {wanted}"


def costs_text(found: Costs) -> str:
    """Money per hour in its parts; empty where it is for computing alone."""
    spot = f" on spot capacity ({found.lost:.3g} of it for what is done again)" if found.capacity else ""
    parts = [f"computing {found.computing or 0:.4g}{spot}"]
    parts += [f"{word} {paid:.4g}" for word, paid in (("licences", found.licences), ("egress", found.egress)) if paid]
    return ", ".join(parts) if spot or len(parts) > 1 else ""


def distant(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """Components that must be near each other are, and links carry what is sent over them. What runs there keeps its share of a
    link."""
    reasons = [reason for edge in workload.traffic if edge.hard and (reason := broken_edge(edge, cluster))]
    if reasons:
        return "; ".join(reasons)
    over = None if cluster.name in workload.current else traffic.too_much(snapshot, workload, cluster)
    if over is None:
        return None
    start, end, asked, free = over
    return f"sends {bytes_text(asked)}/s from {start} to {end}, and {bytes_text(free)}/s are free on that link"


def broken_edge(edge: Edge, cluster: ClusterInfo) -> str | None:
    """Why a peer is out of reach, with both numbers and where they come from."""
    found = traffic.worst(edge, cluster)
    if found is None and edge.dataset and edge.hard:
        return f"{edge.peer} lies at no site that answers (intent {edge.intent!r})"
    if found is None or (found[0] is not None and found[0] <= edge.most):
        return None
    between, site = found
    here = edge.peer if edge.ref is None and not edge.dataset else f"{edge.peer} on {site.name}"
    wanted = f"must be at most {edge.most:g} ms (intent {edge.intent!r})"
    if between is None:
        return f"round trip to {here} is not known, and {wanted}"
    return f"round trip to {here} is {between:.4g} ms ({traffic.known_by(cluster, site)}), and {wanted}"


def bytes_text(amount: float) -> str:
    """``4.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} GiB"


def capacity(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """Room for at least one replica beside what is decided already; what runs there has its room."""
    if cluster.name in workload.current or room(workload, cluster) >= 1:
        return None
    cpu, memory = cluster.cpu - cluster.cpu_requested, cluster.memory - cluster.memory_requested
    if workload.cpu > cpu:
        free = quantity.format_milli(max(0, cpu))
        return f"needs {quantity.format_milli(workload.cpu)} CPU, and {free} of {quantity.format_milli(cluster.cpu)} is free"
    if workload.memory > memory:
        return (
            f"needs {workload.memory >> 20} MiB of memory, and {max(0, memory) >> 20} MiB of {cluster.memory >> 20} MiB is free"
        )
    if cluster.pods_requested >= cluster.pods:
        return f"already has {cluster.pods_requested} of at most {cluster.pods} pods"
    return quotas.reason(workload, cluster) or lacking.reason(workload, cluster)


def room(workload: WorkloadInfo, cluster: ClusterInfo) -> int:
    """How many replicas fit beside what is decided for others."""
    fits = [max(0, cluster.pods - cluster.pods_requested)]
    if workload.cpu:
        fits.append(max(0, cluster.cpu - cluster.cpu_requested) // workload.cpu)
    if workload.memory:
        fits.append(max(0, cluster.memory - cluster.memory_requested) // workload.memory)
    if workload.devices:
        fits.append(lacking.room(workload, cluster))
    if cluster.quotas:
        fits.append(quotas.room(workload, cluster))
    return min(fits)


def closed(workload: WorkloadInfo, cluster: ClusterInfo) -> bool:
    """Whether a site keeps what it has and takes nothing new: cordoned, silent, or tainted NoSchedule."""
    if cluster.unschedulable or cluster.deleting or not cluster.ready:
        return True
    return any(t.effect == "NoSchedule" and not tolerated(t, workload.tolerations, 0.0) for t in cluster.taints)


#: The built-in ones, in the order in which reasons are worth hearing: the first one that rejects is the site's reason. A hub
#: runs whatever is registered under ``metaos.filter``, unknown ones last.
FILTERS: tuple[tuple[str, Filter], ...] = (
    ("Residency", residency),
    ("LocalData", local_data),
    ("Policy", policy),
    ("Selectors", selectors),
    ("RuntimeClass", runtime_class),
    ("Leaving", leaving),
    ("Displaced", displaced),
    ("Health", health),
    ("Taints", taints),
    ("Cordon", cordon),
    ("Bounds", bounds),
    ("Traffic", distant),
    ("Affinity", proximity.affinity),
    ("Capacity", capacity),
)
