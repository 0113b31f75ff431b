"""Extended resources: GPUs in thousandths and whole."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.resources import devices
from metaos.resources.devices import GPU, GPU_MILLI, WHOLE, asking, gpus_free, packed
from metaos.resources.workload import device_requests, requests

parts = st.lists(st.sampled_from([50, 160, 230, 320, 470, 500, 530, 590, 650, 810]), max_size=7)


@given(st.integers(0, 4), st.integers(0, 2), parts)
def test_no_part_spans_two_gpus_and_none_gives_more_than_it_has(count: int, whole: int, asked: list[int]) -> None:
    free = packed(count, whole, tuple(sorted(asked, reverse=True)))
    assert len(free) == count
    assert list(free) == sorted(free, reverse=True)
    assert all(0 <= left <= WHOLE for left in free)
    if sum(free):
        assert count * WHOLE - sum(free) == whole * WHOLE + sum(asked)


@given(st.integers(1, 3), st.lists(st.sampled_from([160, 320, 470, 530, 650, 810]), max_size=5))
def test_a_packing_is_found_wherever_there_is_one(count: int, asked: list[int]) -> None:
    there_is = any(
        all(sum(p for p, at in zip(asked, places, strict=True) if at == gpu) <= WHOLE for gpu in range(count))
        for places in product(range(count), repeat=len(asked))
    )
    free = packed(count, 0, tuple(sorted(asked, reverse=True)))
    assert (count * WHOLE - sum(free) == sum(asked)) == there_is or sum(asked) == count * WHOLE


@given(st.integers(1, 4), st.lists(st.sampled_from([50, 160, 320, 470, 650, 810, WHOLE]), max_size=12))
def test_what_fits_what_is_free_still_fits_together(count: int, arriving: list[int]) -> None:
    """What is free is one packing of many; a pod that fits it makes no site overfull."""
    requested: devices.Mapping[devices.Asked, int] = {}
    taken = 0
    for milli in arriving:
        free = gpus_free(count, requested)
        if max(free) < milli:
            continue
        requested = asking(requested, ((GPU, 1),) if milli == WHOLE else ((GPU_MILLI, milli),), 1)
        taken += milli
        assert sum(gpus_free(count, requested)) == count * WHOLE - taken


def test_best_fit_fails_and_a_search_does_not() -> None:
    # Best fit, the largest first, puts 350 beside 600 and has no place for the last 300.
    asked = (600, 350, 350, 300, 200, 200)
    assert devices._best_fit(2, asked) is None
    assert packed(2, 0, asked) == (0, 0)
    assert devices._search(2, asked) == [0, 0]


def test_a_site_that_has_less_than_was_decided_for_it_is_full() -> None:
    assert gpus_free(1, {((GPU, 1),): 2}) == (0,)
    assert gpus_free(2, {((GPU_MILLI, 600),): 3}) == (0, 0)
    assert gpus_free(0, {((GPU, 1),): 1}) == ()


def test_what_pods_ask_for() -> None:
    def container(**limits: str) -> dict[str, object]:
        return {"resources": {"limits": {k.replace("__", "/").replace("_", "."): v for k, v in limits.items()}}}

    spec = {
        "initContainers": [{"resources": {"limits": {GPU: "1"}}}],
        "containers": [container(cpu="1"), {"resources": {"limits": {GPU: "2", "example.com/device": 1}}}],
    }
    assert device_requests(spec) == (("example.com/device", 1), (GPU, 2))
    assert requests(spec) == {"cpu": 1000, "memory": 0}
    assert devices.share(device_requests(spec)) == (2, WHOLE)
    assert devices.share(((GPU_MILLI, 300),)) == (1, 300)
    assert device_requests({"containers": [{"resources": {"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}}}]}) == ()


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("nvidia.com/gpu", True),
        ("cpu", False),
        ("hugepages-2Mi", False),
        ("kubernetes.io/x", False),
        ("a.kubernetes.io/x", False),
    ],
)
def test_which_names_are_devices(name: str, is_one: bool) -> None:
    assert devices.extended(name) == is_one
