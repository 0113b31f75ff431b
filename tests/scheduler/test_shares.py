"""Shares of load: nobody is lost, no site is overfull, no hour emits more than before; others make way where that gains."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.scheduler.shares import Floats, serve


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, Floats, Floats]:
    count = draw(st.integers(1, 4))
    loads = np.array([float(draw(st.integers(0, 5))) for _ in range(count)])
    cost = st.sampled_from([1.0, 2.0, 5.0, 40.0, math.inf])
    costs = np.array([[[draw(cost) for _ in range(count)] for _ in range(count)] for _ in range(3)])
    for site in range(count):
        costs[:, site, site] = draw(st.sampled_from([1.0, 3.0, 50.0]))
    return costs, np.diag(loads), loads * draw(st.sampled_from([1.0, 1.5, 3.0]))


def total(costs: Floats, flow: Floats) -> Floats:
    found: Floats = np.where(flow > 0, flow * np.where(np.isfinite(costs), costs, 0.0), 0.0).sum(axis=(1, 2))
    return found


@given(cases())
def test_everybody_is_served_within_the_room_and_never_dearer(case: tuple[Floats, Floats, Floats]) -> None:
    costs, present, room = case
    flow = serve(costs, present, room)
    assert np.allclose(flow.sum(axis=2), present.sum(axis=1)) and (flow >= -1e-12).all()
    assert (flow.sum(axis=1) <= room + 1e-9).all()
    assert not ((flow > 1e-12) & np.isinf(costs)).any()
    before = total(costs, np.repeat(present[None], len(costs), axis=0))
    assert (total(costs, flow) <= before + 1e-9).all()


def test_others_make_way_where_that_gains() -> None:
    # The first may go to the second's site only, which is full; its own users do not mind to go to the third.
    costs = np.array([[[90.0, 10.0, math.inf], [90.0, 10.0, 11.0], [math.inf, 10.0, 11.0]]])
    flow = serve(costs, np.diag([1.0, 1.0, 1.0]), np.array([1.0, 1.0, 2.0]))
    assert flow[0].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("costs", "present", "room", "said"),
    [
        (np.ones((1, 2, 2)), np.ones((1, 2)), np.ones(2), "do not fit together"),
        (np.full((1, 1, 1), np.nan), np.ones((1, 1)), np.ones(1), "must be numbers"),
        (np.ones((1, 1, 1)), np.full((1, 1), 2.0), np.ones(1), "more than it has room for"),
    ],
)
def test_what_makes_no_sense_is_refused(costs: Floats, present: Floats, room: Floats, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        serve(costs, present, room)
