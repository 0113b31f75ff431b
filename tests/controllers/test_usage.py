"""What is decided for each site, kept change by change, is what a count of everything gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaos.controllers.usage import Share, Usage
from metaos.resources.devices import GPU, GPU_MILLI, Asked, asking
from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import cluster_info
from tests.controllers.continuum import cluster

SITES = ["a", "b", "c"]
shares = st.builds(
    Share,
    cpu=st.integers(0, 500),
    memory=st.integers(0, 1000),
    replicas=st.dictionaries(st.sampled_from(SITES), st.integers(0, 4), max_size=3),
    devices=st.sampled_from([(), ((GPU_MILLI, 300),), (("example.com/device", 1), (GPU, 2))]),
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
    usage = Usage(lambda: list(clusters.values()))
    for what, which, value in steps:
        usage.sites(about(0))
        if what == "share":
            usage.set(about(which), value)
            held.pop(which, None)
            if value is not None:
                held[which] = value
        else:
            old = clusters.pop(which, None)
            new = None if value is None else cluster(which, capacity={"cpu": str(value), "memory": "1Gi", "pods": "10"})
            if new is not None:
                clusters[which] = new
            if old is not None or new is not None:
                usage.cluster_changed(old, new)
        for number in (0, 9):
            expected = []
            for site in sorted(clusters):
                others = [(s, s.replicas.get(site, 0)) for n, s in held.items() if n != number]
                total = sum(s.cpu * n for s, n in others), sum(s.memory * n for s, n in others), sum(n for _, n in others)
                devices: Mapping[Asked, int] = {}
                for share, count in others:
                    devices = asking(devices, share.devices, count)
                expected.append(cluster_info(clusters[site], total, devices))
            assert tuple(usage.sites(about(number))) == tuple(expected)
