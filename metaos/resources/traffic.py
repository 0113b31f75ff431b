"""Traffic between the components of an application: what Intents state of it, and what it is worth between two sites. Pure.

Units: round trips in milliseconds, traffic in bytes a second, money per hour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from metaos.resources import affinity, quantity, scheme
from metaos.resources.meta import Obj, ObjectRef, deleting, name, namespace
from metaos.resources.snapshot import GIB, ClusterInfo, Edge, Snapshot, Target, WorkloadInfo

#: Light in fibre (km a second), and how much longer than the great circle its way is.
FIBRE_KM_PER_SECOND, DETOUR = 200_000.0, 1.5
EARTH_KM = 6371.0
#: Between sites of one region of which nothing else is known.
REGION_MILLISECONDS = 1.0
HOUR_SECONDS = 3600.0
#: kWh per GB between sites (Cloud Carbon Footprint's coefficient for traffic between data centres; the ledger uses it too).
NETWORK_KWH_PER_GB = 0.001
_KINDS = {k.kind: k for k in scheme.WORKLOADS}
USUAL_KIND = "Deployment"


# -- between two sites -------------------------------------------------------------------------------------


def round_trip(one: ClusterInfo, other: ClusterInfo) -> float | None:
    """Milliseconds between two sites; ``None`` where nothing is known of it. See :func:`known_by`."""
    return _known(one, other)[0]


def known_by(one: ClusterInfo, other: ClusterInfo) -> str:
    """Where a round trip comes from, in people's words."""
    return _known(one, other)[1]


def _known(one: ClusterInfo, other: ClusterInfo) -> tuple[float | None, str]:
    """In this order: what either site states of the way to the other, what either states of users in the other's region, their
    distance. Where both state something, the larger one."""
    if one.name == other.name:
        return 0.0, "the same site"
    links = (one.links.get(other.name), other.links.get(one.name))
    stated = [link.milliseconds for link in links if link is not None and link.milliseconds is not None]
    if stated:
        return max(stated), "the stated link"
    regions = [a.latencies.get(b.region) for a, b in ((one, other), (other, one)) if b.region]
    known = [r for r in regions if r is not None]
    if known:
        return max(known), "the stated round trips of their regions"
    if one.region and one.region == other.region:
        return REGION_MILLISECONDS, "both are in one region"
    apart = kilometres(one, other)
    if apart is not None:
        return 2 * apart * DETOUR / FIBRE_KM_PER_SECOND * 1000, f"estimated from {apart:.0f} km"
    return None, "nothing is stated"


def kilometres(one: ClusterInfo, other: ClusterInfo) -> float | None:
    """The great circle between two sites (haversine formula)."""
    if one.latitude is None or one.longitude is None or other.latitude is None or other.longitude is None:
        return None
    a, b = math.radians(one.latitude), math.radians(other.latitude)
    across = math.radians(other.longitude - one.longitude)
    h = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(across / 2) ** 2
    return 2 * EARTH_KM * math.asin(min(1.0, math.sqrt(h)))


def carries(one: ClusterInfo, other: ClusterInfo) -> float:
    """Bytes a second that the way from one site to another carries: the smaller that they state; infinite where neither does."""
    links = (one.links.get(other.name), other.links.get(one.name))
    return min((link.bytes_per_second for link in links if link and link.bytes_per_second is not None), default=math.inf)


# -- of one edge, were its workload on a site --------------------------------------------------------------


def shares(edge: Edge, cluster: ClusterInfo) -> list[tuple[ClusterInfo, float]]:
    """Where the peer's part of the traffic is, in shares of it. A site's own endpoints are tried first, so who asks where the
    peer is asks there alone. Of a data set the nearest copy is used, the first of equals."""
    here = [site for site, _ in edge.at if site.name == cluster.name]
    if here and (edge.asks or edge.dataset):
        return [(here[0], 1.0)]
    if edge.dataset and edge.at:
        return [(min((site for site, _ in edge.at), key=lambda site: _far(round_trip(cluster, site))), 1.0)]
    total = sum(max(1, count) for _, count in edge.at)
    return [(site, max(1, count) / total) for site, count in edge.at]


def _far(milliseconds: float | None) -> float:
    return math.inf if milliseconds is None else milliseconds


def trip(edge: Edge, cluster: ClusterInfo) -> float | None:
    """The mean round trip; ``None`` where the peer is nowhere yet, or one is not known."""
    found = 0.0
    for site, share in (parts := shares(edge, cluster)):
        between = round_trip(cluster, site)
        if between is None:
            return None
        found += share * between
    return found if parts else None


def worst(edge: Edge, cluster: ClusterInfo) -> tuple[float | None, ClusterInfo] | None:
    """The longest round trip that a request may take, and to which site; ``None`` where the peer is nowhere yet."""
    found: tuple[float | None, ClusterInfo] | None = None
    for site, _ in shares(edge, cluster):
        between = round_trip(cluster, site)
        if between is None:
            return None, site
        if found is None or (found[0] or 0.0) < between:
            found = between, site
    return found


def egress(edge: Edge, cluster: ClusterInfo) -> float | None:
    """Money per hour for what leaves either site; ``None`` where a price is not stated."""
    found = 0.0
    for site, share in shares(edge, cluster):
        if site.name == cluster.name:
            continue
        for bytes_per_second, price in ((edge.sent, cluster.egress_gib), (edge.answered, site.egress_gib)):
            if bytes_per_second and price is None:
                return None
            found += share * bytes_per_second * HOUR_SECONDS / GIB * (price or 0.0)
    return found


@dataclass(frozen=True, slots=True)
class Haul:
    """What it takes to bring so many bytes from one site to another: seconds over the link, money for what leaves the one, and
    gCO2eq of the network's energy by its electricity. ``None``: nothing is stated."""

    bytes: float
    seconds: float | None
    money: float | None
    grams: float | None


def haul(amount: float, one: ClusterInfo, other: ClusterInfo) -> Haul:
    """Nothing within a site."""
    if one.name == other.name:
        return Haul(0.0, 0.0, 0.0, 0.0)
    speed = carries(one, other)
    return Haul(
        amount,
        None if math.isinf(speed) else amount / speed,
        None if one.egress_gib is None else amount / GIB * one.egress_gib,
        None if one.carbon is None else amount / 1e9 * NETWORK_KWH_PER_GB * one.carbon,
    )


def timed(edge: Edge) -> bool:
    """Whether its round trip counts: that to a data set does where an Intent says how long it may be; else its bytes do."""
    return bool(edge.at) and (not edge.dataset or not math.isinf(edge.most))


def gravity(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    """GB a day of data sets that a workload there has to get from elsewhere, or bring there; ``None`` where one lies nowhere."""
    found = 0.0
    for edge in workload.traffic:
        if edge.dataset:
            if not edge.at:
                return None
            if all(site.name != cluster.name for site, _ in edge.at):
                found += daily(edge)
    return found


def daily(edge: Edge) -> float:
    """GB a day, both ways."""
    return (edge.sent + edge.answered) * 24 * HOUR_SECONDS / 1e9


def paid(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    """Money per hour for what a workload there has leave the site, and for what it has a site send to it. What another workload
    sends is that one's: so no byte is paid for twice. ``None`` where a price is not stated; peers without a place cost nothing
    yet."""
    found = 0.0
    for edge in workload.traffic:
        if edge.sent or (edge.answered and edge.ref is None):
            each = egress(edge if edge.ref is None else replace(edge, answered=0.0), cluster)
            if each is None:
                return None
            found += each
    return found


def flows(edge: Edge, cluster: ClusterInfo) -> dict[tuple[str, str], float]:
    """Bytes a second by (from site, to site)."""
    found: dict[tuple[str, str], float] = {}
    for site, share in shares(edge, cluster):
        if site.name != cluster.name:
            for way, amount in (((cluster.name, site.name), edge.sent), ((site.name, cluster.name), edge.answered)):
                if amount:
                    found[way] = found.get(way, 0.0) + share * amount
    return found


def sending(
    workload: WorkloadInfo, where: Callable[[str], ClusterInfo | None], apart_from: ObjectRef | None = None
) -> dict[tuple[str, str], float]:
    """Bytes a second by (from site, to site) of a workload that is where ``current`` says: what it asks for, and what it has to
    do with sites and data sets. What others ask of it is theirs. ``apart_from``: without its traffic with this one."""
    found: dict[tuple[str, str], float] = {}
    total = sum(max(1, count) for count in workload.current.values())
    for edge in workload.traffic:
        if (edge.asks or edge.ref is None) and (edge.ref is None or edge.ref != apart_from):
            for name, count in workload.current.items():
                site = where(name)
                for way, amount in flows(edge, site).items() if site is not None else ():
                    found[way] = found.get(way, 0.0) + amount * max(1, count) / total
    return found


def sends(workload: WorkloadInfo) -> bool:
    """Whether links have to carry something for it."""
    return any(e.sent or e.answered for e in workload.traffic)


def too_much(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> tuple[str, str, float, float] | None:
    """The first way that does not carry all of a workload's traffic beside that of others: from, to, bytes a second that are
    asked for, and that are free."""
    asked: dict[tuple[str, str], float] = {}
    sites = {site.name: site for edge in workload.traffic for site, _ in edge.at}
    for edge in workload.traffic:
        for way, amount in flows(edge, cluster).items():
            asked[way] = asked.get(way, 0.0) + amount
    for (start, end), amount in sorted(asked.items()):
        free = carries(cluster, sites[end if start == cluster.name else start]) - snapshot.flows.get((start, end), 0.0)
        if amount > free:
            return start, end, amount, max(0.0, free)
    return None


# -- reading Intents ---------------------------------------------------------------------------------------


def edges_of(about: ObjectRef, intents: Iterable[Obj]) -> tuple[Edge, ...]:
    """What the Intents of a workload's namespace state of its traffic, the peers' places left open."""
    found: list[Edge] = []
    for intent in intents:
        stated = (intent.get("spec") or {}).get("traffic")
        if stated and namespace(intent) == about.namespace and not deleting(intent):
            busiest = max(float(raw.get("requestsPerSecond") or 1.0) for raw in stated)
            for raw in stated:
                for asks in (True, False):
                    mine, other = raw["from" if asks else "to"], raw["to" if asks else "from"]
                    if endpoint(mine, about.namespace) == about:
                        found.append(_edge(intent, raw, other, asks, busiest))
    return tuple(found)


def endpoint(raw: Mapping[str, Any], where: str) -> ObjectRef | None:
    """The workload that an end of an edge names; ``None`` for a site and a data set."""
    kind = _KINDS.get(str(raw.get("kind") or USUAL_KIND))
    return ObjectRef(kind.group, kind.kind, where, str(raw["name"])) if kind is not None and raw.get("name") else None


def _edge(intent: Obj, raw: Mapping[str, Any], other: Mapping[str, Any], asks: bool, busiest: float) -> Edge:
    spec = intent["spec"]
    peer, priority = endpoint(other, namespace(intent)), int(spec.get("priority", 50))
    asked = float(quantity.parse(raw.get("bytesPerSecond") or 0))
    answered = float(quantity.parse(raw.get("responseBytesPerSecond") or 0))
    data = str(other.get("dataset") or "")
    elsewhere = f"data set {data}" if data else f"site {other.get('cluster')}"
    # The same at both ends, so that what one of them gains by coming nearer is no loss to the other.
    pays = any(t.get("name") == "cost" for e in spec.get("expectations") or () for t in e.get("targets") or ())
    return Edge(
        peer=f"{peer.kind.lower()}/{peer.name}" if peer is not None else elsewhere,
        dataset=data,
        ref=peer,
        asks=asks,
        intent=name(intent),
        weight=(1.0 + priority * 0.09) * float(raw.get("requestsPerSecond") or 1.0) / busiest,
        money=0.0 if not asked and not answered else 1.0 + (priority * 0.09 if pays else 0.0),
        most=math.inf if raw.get("maxMilliseconds") is None else float(raw["maxMilliseconds"]),
        hard=bool(raw.get("hard")),
        sent=asked if asks else answered,
        answered=answered if asks else asked,
    )


def holders(dataset: str, sites: Iterable[ClusterInfo]) -> list[ClusterInfo]:
    """Of these sites those that hold a data set, and answer who reads it."""
    return [site for site in sites if dataset in site.datasets and site.ready and not site.deleting]


def law_of(edge: Edge, sites: Iterable[ClusterInfo]) -> list[Target]:
    """Where who reads a data set may be, by what the sites say that hold it; nothing for other traffic."""
    found = (site.datasets[edge.dataset].residency for site in sites) if edge.dataset else ()
    return [Target("residency", "IsOneOf", values=r, hard=True, intent=edge.intent, about=edge.peer) for r in found if r]


def located(
    workload: WorkloadInfo,
    places: Callable[[ObjectRef], Mapping[str, int]],
    site: Callable[[str], ClusterInfo | None],
    holding: Callable[[str], Iterable[ClusterInfo]],
) -> WorkloadInfo:
    """The workload with where its peers are, the residency of the data that it reads, and the pods that it wants to be with
    or apart from. ``places``: site → replicas of a workload. ``holding``: the sites that hold a data set, by name; the
    law of those that do not answer counts all the same. Sites that are gone count as nowhere."""
    if workload.near:
        workload = replace(workload, near=affinity.located(workload.near, places, site))
    if not workload.traffic:
        return workload

    def at(edge: Edge) -> tuple[tuple[ClusterInfo, int], ...]:
        if edge.dataset:
            return tuple((info, 1) for info in holders(edge.dataset, holding(edge.dataset)))
        named = {edge.peer.removeprefix("site "): 1} if edge.ref is None else places(edge.ref)
        return tuple((info, count) for one, count in sorted(named.items()) if (info := site(one)) is not None)

    edges = tuple(replace(edge, at=at(edge)) for edge in workload.traffic)
    targets = dict.fromkeys(t for t in workload.targets if not t.about)
    for edge in edges:
        targets |= dict.fromkeys(law_of(edge, holding(edge.dataset) if edge.dataset else ()))
    return replace(workload, traffic=edges, targets=tuple(targets))
