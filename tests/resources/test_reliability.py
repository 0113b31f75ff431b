"""The probability that enough replicas are up: against all cases one by one, and what must hold of it."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.resources.reliability import SHARED, up
from metaos.resources.snapshot import ClusterInfo
from tests.scheduler.worlds import site

Places = list[tuple[ClusterInfo, int]]
places = st.lists(
    st.tuples(st.sampled_from(["", "north", "south"]), st.floats(0.5, 1.0), st.integers(0, 3)), max_size=4
).map(lambda made: [(site(f"s{i}", region=region, availability=a), n) for i, (region, a, n) in enumerate(made)])  # fmt: skip


def one_by_one(found: Places, needed: int) -> float:
    """Every combination of regions and sites that are up or down."""
    used = [(c, n) for c, n in found if n]
    shared = {}
    for region in {c.region for c, _ in used if c.region}:
        sites = [c for c, _ in used if c.region == region]
        if len(sites) > 1:
            shared[region] = SHARED * min(1 - c.availability for c in sites)
    total = 0.0
    for causes in itertools.product([True, False], repeat=len(shared)):
        lost = dict(zip(shared, causes, strict=True))
        chance = math.prod(q if lost[r] else 1 - q for r, q in shared.items())
        for each in itertools.product([True, False], repeat=len(used)):
            likely, count = chance, 0
            for alive, (c, n) in zip(each, used, strict=True):
                own = 0.0 if lost.get(c.region) else c.availability / (1 - shared.get(c.region, 0.0))
                likely *= own if alive else 1 - own
                count += n if alive else 0
            total += likely if count >= needed else 0.0
    return total


@settings(max_examples=50)
@given(places, st.integers(1, 4))
def test_it_is_what_all_cases_add_up_to(found: Places, needed: int) -> None:
    assert math.isclose(up(found, needed), one_by_one(found, needed), abs_tol=1e-9)


@settings(max_examples=50)
@given(places, st.integers(1, 4))
def test_more_that_is_needed_is_less_likely_and_one_site_alone_is_as_available_as_it_states(found: Places, needed: int) -> None:
    assert up(found, needed + 1) <= up(found, needed) + 1e-12
    for one, count in found:
        assert up([(one, max(1, count))]) == pytest.approx(one.availability)


def test_a_region_that_is_shared_is_worth_less_than_two() -> None:
    pair = [(site("a", region="x", availability=0.99), 1), (site("b", region="x", availability=0.99), 1)]
    apart = [(site("a", region="x", availability=0.99), 1), (site("b", region="y", availability=0.99), 1)]
    assert up(apart) == pytest.approx(0.9999)
    assert up(pair) == pytest.approx(1 - 0.001 - 0.999 * (1 - 0.99 / 0.999) ** 2)
    assert up(pair) < up(apart) and up(pair, 2) > up(apart, 2), "they fail together, and are up together"
    assert up([]) == 0.0 and up(apart, 0) == 1.0
