"""What is decided for each site, kept change by change, is what a count of everything gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaos.controllers.occupancy import Occupancy, Share
from metaos.resources.devices import GPU, GPU_MILLI, Asked, asking
from metaos.resources.meta import ObjectRef
from metaos.resources.reading import cluster_info
from tests.controllers.continuum import cluster

SITES = ["a", "b", "c"]
shares = st.builds(
    Share,
    cpu=st.integers(0, 500),
    memory=st.integers(0, 1000),
    replicas=st.dictionaries(st.sampled_from(SITES), st.integers(0, 4), max_size=3),
    devices=st.sampled_from([(), ((GPU_MILLI, 300),), (("example.com/device", 1), (GPU, 2))]),
    priority=st.integers(-2, 2),
    fixed=st.booleans(),
)
changes = st.lists(
    st.tuples(st.just("share"), st.integers(0, 4), st.none() | shares)
    | st.tuples(st.just("site"), st.sampled_from(SITES), st.none() | st.integers(1, 8)),
    max_size=30,
)


def about(number: int) -> ObjectRef:
    return ObjectRef("apps", "Deployment", "shop", f"w{number}")


@given(changes)
def test_it_follows_every_change(steps: list[tuple[str, Any, Any]]) -> None:
    clusters = {site: cluster(site) for site in SITES}
    held: dict[int, Share] = {}
    occupancy = Occupancy(lambda: list(clusters.values()))
    for what, which, value in steps:
        occupancy.sites(about(0))
        if what == "share":
            occupancy.set(about(which), value)
            held.pop(which, None)
            if value is not None:
                held[which] = value
        else:
            old = clusters.pop(which, None)
            new = None if value is None else cluster(which, capacity={"cpu": str(value), "memory": "1Gi", "pods": "10"})
            if new is not None:
                clusters[which] = new
            if old is not None or new is not None:
                occupancy.cluster_changed(old, new)
        for number in (0, 9):
            expected = []
            for site in sorted(clusters):
                others = [(s, s.replicas.get(site, 0)) for n, s in held.items() if n != number]
                total = sum(s.cpu * n for s, n in others), sum(s.memory * n for s, n in others), sum(n for _, n in others)
                devices: Mapping[Asked, int] = {}
                for share, count in others:
                    devices = asking(devices, share.devices, count)
                expected.append(cluster_info(clusters[site], total, devices))
            assert tuple(occupancy.sites(about(number))) == tuple(expected)


@given(changes, st.integers(-2, 3))
def test_tenants_are_those_of_a_lower_priority_and_nothing_is_kept_of_who_went(
    steps: list[tuple[str, Any, Any]], below: int
) -> None:
    held: dict[int, Share] = {}
    occupancy = Occupancy(lambda: [cluster(site) for site in SITES])
    for _, which, value in (step for step in steps if step[0] == "share"):
        occupancy.set(about(which), value)
        held.pop(which, None)
        if value is not None:
            held[which] = value
        expected = {
            (site, about(number), share.priority, count)
            for number, share in held.items()
            for site, count in share.replicas.items()
            if count and share.priority < below and not share.fixed
        }
        assert {(s, t.ref, t.priority, t.replicas) for s, there in occupancy.tenants(below).items() for t in there} == expected
    for number in list(held):
        occupancy.set(about(number), None)
    assert occupancy.lowest is None
    assert not occupancy._asks and not occupancy._priorities and not occupancy.totals()


def test_room_is_freed_also_by_who_asks_for_less_or_matters_less() -> None:
    occupancy = Occupancy(lambda: [cluster("a")])
    share = Share(500, 100, {"a": 2}, ((GPU, 1),), 5, True)
    assert not occupancy.set(about(1), share)
    for changed, freed in (
        ({"cpu": 400}, True),
        ({"cpu": 600}, False),
        ({"memory": 50}, True),
        ({"devices": ()}, True),
        ({"devices": ((GPU, 2),)}, False),
        ({"replicas": {"a": 1}}, True),
        ({"replicas": {"a": 2, "b": 1}}, False),
        ({"priority": 4}, True),
        ({"priority": 6}, False),
        ({"fixed": False}, True),
    ):
        occupancy.set(about(1), share)
        assert occupancy.set(about(1), replace(share, **changed)) is freed, changed
    occupancy.set(about(1), share)
    assert occupancy.set(about(1), None)


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | shares), max_size=12))
def test_quotas_leave_what_others_of_the_namespace_do_not_take(steps: list[tuple[int, Share | None]]) -> None:
    one = cluster("a")
    one["status"]["quotas"] = [
        {"namespace": "shop", "requests": {"cpu": "5", "pods": "20"}, "defaults": {"cpu": "100m"}},
        {"namespace": "other", "requests": {"pods": "1"}},
    ]
    occupancy, held = Occupancy(lambda: [one]), dict[int, Share]()
    for number, share in steps:
        occupancy.sites(about(0))
        occupancy.set(about(number), share)
        held.pop(number, None)
        if share is not None:
            held[number] = share
    others = [(share.cpu or 100, share.replicas.get("a", 0)) for number, share in held.items() if number]
    found = occupancy.sites(about(0)).site("a")
    assert found is not None and found.quotas["other"].pods == 1
    left = found.quotas["shop"]
    assert left.cpu == 5000 - sum(cpu * count for cpu, count in others) and left.pods == 20 - sum(n for _, n in others)
