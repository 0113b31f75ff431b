"""What a placement makes unusable for others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import gpu as bench
from metaos.resources.devices import GPU, GPU_MILLI, WHOLE
from metaos.scheduler.fragmentation import Ask, Gradient
from metaos.scheduler.framework import decide
from metaos.scheduler.scores import FRAGMENTATION
from tests.scheduler.worlds import GIB, mix, site, workload, world

KINDS = [Ask(1000, 4, 1, 470), Ask(3000, 6, 1, 810), Ask(11_000, 48, 1, WHOLE), Ask(64_000, 200, 8, WHOLE), Ask(8000, 30, 0, 0)]
nodes = st.lists(
    st.tuples(st.integers(0, 96_000), st.integers(0, 400), st.lists(st.sampled_from([0, 60, 190, 530, WHOLE]), max_size=8)),
    min_size=1,
    max_size=6,
)


def arrays(found: list[tuple[int, int, list[int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gpus = np.zeros((len(found), 8), np.int64)
    for row, (_, _, free) in enumerate(found):
        gpus[row, : len(free)] = sorted(free, reverse=True)
    return np.array([n[0] for n in found]), np.array([n[1] for n in found]), gpus


def plain(gradient_of: dict[Ask, float], cpu: float, memory: float, gpus: list[int]) -> float:
    """GPUs that are usable, kind by kind."""
    total = sum(often for ask, often in gradient_of.items() if ask.gpus)
    usable = 0.0
    for ask, often in gradient_of.items():
        if ask.gpus:
            fit = sum(g // ask.milli for g in gpus) // ask.gpus
            usable += often / total * ask.gpus * ask.milli / WHOLE * min(fit, cpu / ask.cpu, memory / ask.memory)
    return usable


@given(nodes, st.sampled_from(KINDS), st.dictionaries(st.sampled_from(KINDS), st.integers(1, 9).map(float)))
@settings(max_examples=60)
def test_what_is_remembered_is_what_is_worked_out_anew(
    found: list[tuple[int, int, list[int]]], ask: Ask, often: dict[Ask, float]
) -> None:
    cpu, memory, gpus = arrays(found)
    gradient = Gradient(often)
    first = gradient.losses(cpu, memory, gpus, ask)
    assert np.array_equal(first, gradient.losses(cpu, memory, gpus, ask))
    assert np.array_equal(first, Gradient(often).losses(cpu, memory, gpus, ask))
    for row, (c, m, _) in enumerate(found):
        free = gpus[row].tolist()
        for column in range(8):
            shared = ask.gpus and ask.milli < WHOLE
            fits = c >= ask.cpu and m >= ask.memory
            if shared:
                fits = fits and free[column] >= ask.milli and free.index(free[column]) == column
            else:
                fits = fits and column == 0 and free.count(WHOLE) >= ask.gpus
            assert np.isfinite(first[row, column]) == fits
            if fits:
                then = list(free)
                then[column : column + ask.gpus] = [g - ask.milli for g in then[column : column + ask.gpus]]
                expected = plain(often, c, m, free) - plain(often, c - ask.cpu, m - ask.memory, then)
                assert first[row, column] == pytest.approx(expected, abs=1e-9)
                assert first[row, column] >= -1e-9


def test_a_part_goes_where_it_strands_least() -> None:
    """470 beside 470 leaves 60; beside 320 it leaves a hole that 320 would fill."""
    usual = (((100, GIB // 4, ((GPU_MILLI, 470),)), 32), ((100, GIB // 4, ((GPU_MILLI, 320),)), 32))
    asks = workload(devices=((GPU_MILLI, 470),), mix=usual)
    sites = [
        site("fresh", devices={GPU: 1}),
        site("half", devices={GPU: 1}, devices_requested={((GPU_MILLI, 470),): 1}),
    ]
    plan = decide(world(*sites), asks, scores=(FRAGMENTATION,))
    assert [c for c, _ in plan.clusters] == ["half"]
    terms = {s.cluster: s.terms[0] for s in plan.scored}
    assert terms["half"].unit == "GPU"
    assert terms["half"].value < terms["fresh"].value  # type: ignore[operator]


def test_work_without_gpus_leaves_the_cores_of_gpus_alone() -> None:
    asks = workload(cpu=3000, mix=mix)
    sites = [site("gpus", devices={GPU: 8}), site("plain")]
    assert [c for c, _ in decide(world(*sites), asks, scores=(FRAGMENTATION,)).clusters] == ["plain"]
    # Where nobody has GPUs, the term does not count.
    assert decide(world(*sites), replace(asks, mix=()), scores=(FRAGMENTATION,)).scored[0].terms == ()


@given(st.lists(st.sampled_from(KINDS), max_size=25), st.sampled_from(["fgd", "best-fit", "ours"]))
@settings(max_examples=30)
def test_no_policy_overfills_a_node_and_power_adds_up(asks: list[Ask], which: str) -> None:
    gpus, cpu = np.array([8, 2, 0, 1]), np.array([96_000, 16_000, 32_000, 104_000])
    trace = bench.Trace(cpu, np.array([390, 120, 64, 500]), gpus, ("G2", "P100", "T4", "T4"), tuple(KINDS))
    meter = bench.Meter(trace, {"Skylake": (0.6, 4.1), "Ice Lake": (0.8, 3.8), "Broadwell": (0.7, 3.7)})
    policy = {
        "fgd": bench.fgd(bench.Fragmentation(KINDS)),
        "best-fit": bench.best_fit,
        "ours": bench.saving(bench.ours(Gradient(bench.typical(KINDS))), bench.WEIGHT),
    }[which]
    # An overfull node and power that does not add up raise.
    if asks:
        found = bench.run(trace, asks, policy, meter)
        assert 0 <= found.allocated <= 100
        assert found.least_watts <= found.watts + 1e-6
