"""Pods that want to be with others, apart from them, or evenly spread: as Kubernetes says it of nodes, between sites."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metaos.resources.affinity import NodeWish, PodTerm, SpreadTerm
from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, WorkloadInfo
from metaos.scheduler import columns, proximity
from metaos.scheduler.conflicts import impossible
from metaos.scheduler.filters import room
from metaos.scheduler.framework import decide
from metaos.scheduler.optimise import movable
from metaos.scheduler.world import World
from tests.scheduler.worlds import NOW, Snapshot, site, workload, world

HOST, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
DB = ObjectRef("apps", "Deployment", "shop", "db")


def at(name: str, zone: str | None = None, **more: Any) -> ClusterInfo:
    return site(name, labels={HOST: name} | ({ZONE: zone} if zone else {}), **more)


def placed(what: WorkloadInfo, *sites: ClusterInfo) -> dict[str, int]:
    return dict(decide(world(*sites), what).clusters)


THREE = at("a", "z1", availability=0.9999), at("b", "z1", availability=0.99), at("c", "z2", availability=0.9)


def test_beside_pods_that_are_there() -> None:
    near = workload(near=(PodTerm(ZONE, "pods with app=db", refs=(DB,), at=frozenset({"z2"})),))
    assert placed(near, *THREE) == {"c": 1}
    plan = decide(world(*THREE), near)
    assert {r.cluster: r.reason for r in plan.rejected}["a"] == (
        f"must be with pods with app=db in one {ZONE}: they are in z2, and this one is z1"
    )


def test_apart_from_pods_that_are_there_whoever_says_it() -> None:
    apart = PodTerm(ZONE, "pods with app=db", apart=True, refs=(DB,), at=frozenset({"z1"}))
    assert placed(workload(near=(apart,)), *THREE) == {"c": 1}
    kept_out = PodTerm(ZONE, "pods with app=web", apart=True, by="deployment/db", refs=(DB,), at=frozenset({"z1"}))
    plan = decide(world(*THREE), workload(near=(kept_out,)))
    assert dict(plan.clusters) == {"c": 1}
    assert plan.rejected[0].reason == f"deployment/db keeps pods with app=web out of its {ZONE}, and this one is z1"


def test_what_runs_there_stays() -> None:
    apart = PodTerm(HOST, "pods with app=db", apart=True, refs=(DB,), at=frozenset({"a"}))
    assert placed(workload(near=(apart,), current={"a": 1}), *THREE) == {"a": 1}


def test_nobody_comes_first_where_nobody_is_there() -> None:
    waits = workload(near=(PodTerm(ZONE, "pods with app=db", refs=(DB,)),))
    plan = decide(world(*THREE), waits)
    assert not plan.clusters
    assert "deployment/db has no place yet" in plan.reason
    found = impossible(world(*THREE), waits)
    assert [r.text for r in found.conflict] == [f"to be with pods with app=db in one {ZONE}"]


def test_pods_that_want_each_other_begin_somewhere_and_stay_together() -> None:
    own = workload(near=(PodTerm(ZONE, "pods with app=web", own=True),), replicas=6)
    full = [at(c.name, c.labels[ZONE], availability=c.availability, pods=4) for c in THREE]
    found = placed(own, *full)
    assert sum(found.values()) == 6
    assert set(found) == {"a", "b"}


def test_one_in_each_domain_and_no_more_than_there_are() -> None:
    alone = workload(near=(PodTerm(HOST, "pods with app=web", apart=True, own=True),), replicas=3)
    assert placed(alone, *THREE) == {"a": 1, "b": 1, "c": 1}
    zones = workload(near=(PodTerm(ZONE, "pods with app=web", apart=True, own=True),), replicas=3)
    plan = decide(world(*THREE), zones)
    assert dict(plan.clusters) == {"a": 1, "c": 1}
    assert not plan.complete
    assert f"one {ZONE} takes one of its pods" in plan.reason


def test_what_goes_to_one_site_as_a_whole_cannot_be_apart() -> None:
    alone = workload("StatefulSet", near=(PodTerm(HOST, "pods with app=web", apart=True, own=True),), replicas=3)
    plan = decide(world(*THREE), alone)
    assert not plan.clusters
    assert "a StatefulSet goes to one site as a whole: a PlacementPolicy with division.mode Divided divides it" in plan.reason
    assert placed(workload("StatefulSet", near=alone.near), *THREE) == {"a": 1}


def test_evenly_over_domains() -> None:
    spread = workload(spread=(SpreadTerm(ZONE, 1, True),), replicas=4)
    found = placed(spread, *THREE)
    assert sum(n for c, n in found.items() if c != "c") == found["c"] == 2
    small = at("c", "z2", pods=1)
    plan = decide(world(*THREE[:2], small), spread)
    assert sum(dict(plan.clusters).values()) == 3
    assert not plan.complete
    anyway = placed(workload(spread=(SpreadTerm(ZONE, 1, False),), replicas=4), *THREE[:2], small)
    assert sum(anyway.values()) == 4
    assert anyway["c"] == 1


def test_with_fewer_domains_than_are_asked_for() -> None:
    spread = workload(spread=(SpreadTerm(ZONE, 1, True, min_domains=3),), replicas=4)
    plan = decide(world(*THREE), spread)
    assert sum(dict(plan.clusters).values()) == 2


def test_wishes_earn_points_by_their_weights() -> None:
    wishes = workload(
        near=(PodTerm(ZONE, "pods with app=db", weight=100, refs=(DB,), at=frozenset({"z2"})),),
        node_wishes=(NodeWish({"matchExpressions": [{"key": HOST, "operator": "In", "values": ["b"]}]}, 50),),
    )
    assert [proximity.wished(wishes, c) for c in THREE] == pytest.approx([0.0, 100 / 3, 200 / 3])
    assert proximity.weight(wishes) == 7.5
    assert placed(wishes, *THREE) == {"c": 1}
    apart = workload(near=(PodTerm(ZONE, "pods with app=web", apart=True, weight=1, own=True),), replicas=2)
    assert placed(apart, *THREE) == {"a": 1, "c": 1}


def test_who_has_terms_is_not_moved_with_all_others() -> None:
    assert movable(workload())
    assert not movable(workload(near=(PodTerm(HOST, "pods"),)))
    assert not movable(workload(spread=(SpreadTerm(HOST, 1, False),)))


# -- any world ---------------------------------------------------------------------------------------------

zones = st.sampled_from([None, "z1", "z2", "z3"])
sites = st.lists(st.tuples(zones, st.integers(0, 4)), min_size=1, max_size=5).map(
    lambda found: tuple(at("abcde"[n], zone, pods=pods) for n, (zone, pods) in enumerate(found))
)
keys = st.sampled_from([HOST, ZONE])
domains = st.frozensets(st.sampled_from(["a", "b", "z1", "z2"]), max_size=2)
terms = st.builds(
    PodTerm,
    key=keys,
    pods=st.just("pods"),
    apart=st.booleans(),
    weight=st.sampled_from([0.0, 50.0]),
    own=st.booleans(),
    at=domains,
)
spreads = st.builds(SpreadTerm, keys, st.integers(1, 2), st.booleans(), st.integers(1, 3))
any_workload = st.builds(
    lambda near, spread, replicas, kind, current: workload(
        kind, near=tuple(near), spread=tuple(spread), replicas=replicas, current=current
    ),
    st.lists(terms, max_size=2),
    st.lists(spreads, max_size=2),
    st.integers(1, 6),
    st.sampled_from(["Deployment", "StatefulSet", "DaemonSet"]),
    st.dictionaries(st.sampled_from(["a", "b"]), st.integers(1, 2), max_size=2),
)


@given(sites, any_workload)
def test_all_sites_at_once_says_what_one_after_the_other_says(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    snapshot, everywhere = Snapshot(NOW, found), World(found)
    mask = columns.mask(proximity.affinity, snapshot, what, everywhere)
    says = [proximity.affinity(snapshot, what, c) is not None for c in everywhere]
    assert (np.zeros(len(found), np.bool_) if mask is None else mask).tolist() == says


def lawful(what: WorkloadInfo, found: Sequence[ClusterInfo], places: Mapping[str, int]) -> bool:
    """Written down from the documentation of Kubernetes, for replicas that are all placed at once."""
    by_name, used = {c.name: c for c in found}, [c for c, n in places.items() if n]
    for term in what.near:
        if term.weight:
            continue
        domain = Counter[str | None]()
        for name in used:
            domain[by_name[name].labels.get(term.key)] += places[name]
        if term.apart and ((set(domain) - {None}) & term.at or (term.own and any(n > 1 for d, n in domain.items() if d))):
            return False
        if not term.apart:
            first = term.own and not term.at
            if None in domain or not (len(domain) <= 1 if first else set(domain) <= term.at):
                return False
    for spread in what.spread:
        if spread.strict:
            counts = Counter({c.labels[spread.key]: 0 for c in found if spread.key in c.labels})
            for name in used:
                if spread.key not in by_name[name].labels:
                    return False
                counts[by_name[name].labels[spread.key]] += places[name]
            least = min(counts.values(), default=0) if len(counts) >= spread.min_domains else 0
            if max(counts.values(), default=0) - least > spread.max_skew:
                return False
    return True


fresh = st.builds(
    lambda near, spread, replicas: workload(near=tuple(near), spread=tuple(spread), replicas=replicas),
    st.lists(terms, max_size=2),
    st.lists(spreads, max_size=2),
    st.integers(1, 4),
)


@given(sites, fresh)
def test_what_is_decided_keeps_to_all_that_is_required(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    open_to = [c for c in found if proximity.affinity(Snapshot(NOW, found), what, c) is None and c.pods]
    assert lawful(what, open_to, placed(what, *found))


one_term = st.one_of(
    terms.map(lambda t: workload(near=(t,), replicas=3)), spreads.map(lambda s: workload(spread=(s,), replicas=3))
)


@given(sites, one_term)
@example((at("a", "z1", pods=4), at("b", "z2", pods=1)), workload(near=(PodTerm(ZONE, "pods", own=True),), replicas=3))
def test_as_many_are_placed_as_one_term_lets_be(found: tuple[ClusterInfo, ...], what: WorkloadInfo) -> None:
    open_to = [c for c in found if proximity.affinity(Snapshot(NOW, found), what, c) is None and c.pods]
    most = 0
    for counts in itertools.product(*(range(min(what.replicas, room(what, c)) + 1) for c in open_to)):
        if most < sum(counts) <= what.replicas:
            places = {c.name: n for c, n in zip(open_to, counts, strict=True)}
            most = sum(counts) if lawful(what, open_to, places) else most
    assert sum(placed(what, *found).values()) == most
