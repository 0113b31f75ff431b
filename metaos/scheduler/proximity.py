"""Pod affinity, anti-affinity and topology spread in a decision: what they say of one site, and of a workload's own replicas.

What they say of other workloads' pods rejects sites or earns points. What they say of its own is the division's: at most one
replica in a domain, all in one domain, or evenly over domains. Source: Kubernetes, "Assigning Pods to Nodes" and "Pod Topology
Spread Constraints"; what differs is told in ``docs/how-to/place-an-application.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from metaos.resources.affinity import PodTerm, SpreadTerm, node_matches
from metaos.resources.snapshot import ClusterInfo, Snapshot, Spread, WorkloadInfo

DIVIDE = "a PlacementPolicy with division.mode Divided divides it"


def alone(workload: WorkloadInfo) -> list[str]:
    """Keys of whose domains each takes one replica at most."""
    return [t.key for t in workload.near if t.own and t.apart and not t.weight and not t.by]


def together(workload: WorkloadInfo) -> list[str]:
    """Keys of which all replicas are in one domain: they ask for each other, and for nobody who is there already."""
    return [t.key for t in workload.near if t.own and not t.apart and not t.weight and not t.at]


# -- of one site -------------------------------------------------------------------------------------------


def asks(workload: WorkloadInfo) -> bool:
    """Whether any of it can reject a site."""
    return any(not t.weight for t in workload.near) or any(s.strict for s in workload.spread)


def rejects(workload: WorkloadInfo, domains: Callable[[str], Collection[str]], cluster: ClusterInfo) -> str | None:
    """Why a new replica may not come to a site. ``domains``: the values of a key over all sites."""
    for term in workload.near:
        if not term.weight and (reason := _unmet(term, cluster)):
            return reason
    for spread in workload.spread:
        if spread.strict and cluster.labels.get(spread.key) is None:
            return f"its pods are spread over {spread.key}, and the site has no such label"
    if workload.mode == "Whole" and workload.replicas > 1 and (reason := _whole(workload, domains)):
        return reason
    return None


def _unmet(term: PodTerm, cluster: ClusterInfo) -> str | None:
    mine = cluster.labels.get(term.key)
    if term.apart:
        if mine is None or mine not in term.at:
            return None
        whose = f"{term.by} keeps {term.pods} out of its" if term.by else f"must not be with {term.pods} in one"
        return f"{whose} {term.key}, and this one is {mine}"
    if mine is None:
        return f"must be with {term.pods} in one {term.key}, and the site has no such label"
    if mine in term.at or (term.own and not term.at):
        return None
    if term.at:
        return f"must be with {term.pods} in one {term.key}: they are in {', '.join(sorted(term.at))}, and this one is {mine}"
    waits = ", ".join(f"{r.kind.lower()}/{r.name}" for r in term.refs)
    why = f"{waits} {'have' if len(term.refs) > 1 else 'has'} no place yet" if term.refs else "there are none"
    return f"must be with {term.pods} in one {term.key}, and {why}"


def _whole(workload: WorkloadInfo, domains: Callable[[str], Collection[str]]) -> str | None:
    kind = f"a {workload.ref.kind} goes to one site as a whole: {DIVIDE}"
    if keys := alone(workload):
        return f"its pods must not be in one {keys[0]} (pod anti-affinity), and {kind}"
    for spread in workload.spread:
        if spread.strict and workload.replicas > spread.max_skew and len(domains(spread.key)) > 1:
            return f"its pods must be spread over {spread.key}, at most {spread.max_skew} more in one than in another, and {kind}"
    return None


def affinity(snapshot: Snapshot, workload: WorkloadInfo, cluster: ClusterInfo) -> str | None:
    """Pods that must be near each other, or must not. What runs there already stays, as in Kubernetes."""
    if not asks(workload) or cluster.name in workload.current:
        return None
    return rejects(workload, lambda key: {c.labels[key] for c in snapshot.clusters if key in c.labels}, cluster)


# -- as a wish ---------------------------------------------------------------------------------------------


def wished(workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    """The share of the wishes' weights that a site fulfils (%); ``None`` where nothing is wished."""
    total = good = 0.0
    for term in wishes(workload):
        total += term.weight
        good += term.weight if (cluster.labels.get(term.key) in term.at) != term.apart else 0.0
    for wish in workload.node_wishes:
        total += wish.weight
        good += wish.weight if node_matches(wish.term, cluster) else 0.0
    return 100.0 * good / total if total else None


def wishes(workload: WorkloadInfo) -> Iterator[PodTerm]:
    """Preferred terms about others' pods that have a place."""
    return (t for t in workload.near if t.weight and t.at)


def weight(workload: WorkloadInfo) -> float:
    """In scores: a wish of weight 100 counts as much as a policy's preferred site; twice that at most."""
    return min(10.0, (sum(t.weight for t in wishes(workload)) + sum(w.weight for w in workload.node_wishes)) / 20.0)


# -- of its own replicas -----------------------------------------------------------------------------------


def arranged(workload: WorkloadInfo, sites: Sequence[ClusterInfo]) -> WorkloadInfo:
    """The workload with what its pods say of their own spread, as a policy would say it. ``sites``: all that are possible."""
    found = []
    wished = [SpreadTerm(t.key, 1, False) for t in workload.near if t.weight and t.own and t.apart]
    for term in (*workload.spread, *wished):
        count = len({c.labels[term.key] for c in sites if term.key in c.labels})
        if count > 1 or term.min_domains > 1:
            used = min(count, math.ceil(workload.replicas / term.max_skew))
            found.append(Spread(term.key, max(1, used), term.max_skew, max(count, term.min_domains), term.strict))
    if not found:
        return workload
    return replace(workload, policy=replace(workload.policy, spread=(*workload.policy.spread, *found)))


def in_words(workload: WorkloadInfo) -> str:
    """What its replicas have to keep to among each other; empty where that is nothing."""
    said = [f"one {key} takes one of its pods" for key in alone(workload)]
    said += [f"all its pods go to one {key}" for key in together(workload)]
    said += [f"one {s.key} takes at most {s.max_skew} more of its pods than another" for s in workload.spread if s.strict]
    return ", ".join(said)


def apart(workload: WorkloadInfo, ranked: Sequence[ClusterInfo]) -> list[ClusterInfo]:
    """The best site of each domain that takes one replica."""
    chosen: list[ClusterInfo] = []
    taken: set[tuple[str, str]] = set()
    for cluster in ranked:
        mine = {(key, cluster.labels[key]) for key in alone(workload) if key in cluster.labels}
        if not mine & taken:
            taken |= mine
            chosen.append(cluster)
    return chosen


def domains(workload: WorkloadInfo, ranked: Sequence[ClusterInfo]) -> list[list[ClusterInfo]]:
    """Groups of sites of which one has to take all replicas, the best first."""
    keys = together(workload)
    found: dict[tuple[str | None, ...], list[ClusterInfo]] = {}
    for cluster in ranked:
        found.setdefault(tuple(cluster.labels.get(key) for key in keys), []).append(cluster)
    return list(found.values())
