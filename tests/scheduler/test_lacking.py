"""Why devices do not fit, in words, and what is decided for them."""

from __future__ import annotations

import pytest

from metaos.resources.devices import GPU, GPU_MILLI, MODEL
from metaos.scheduler.conflicts import as_data, impossible, lines
from metaos.scheduler.framework import decide
from metaos.scheduler.world import World, taking
from tests.scheduler.worlds import DEVICE, NOW, Snapshot, site, workload, world


@pytest.mark.parametrize(
    ("asks", "has", "taken", "reason"),
    [
        (((GPU, 1),), {}, {}, f"needs 1 {GPU}, and the site has no {GPU}"),
        (((GPU, 2),), {GPU: 2}, {((GPU_MILLI, 300),): 1}, f"needs 2 {GPU}, and 1 of 2 T4 is free (1 more are shared)"),
        (
            ((GPU_MILLI, 300),),
            {GPU: 2},
            {((GPU_MILLI, 810),): 2},
            f"needs 300 of 1000 thousandths of one {GPU}, and no T4 of 2 has more than 190 thousandths free",
        ),
        (((DEVICE, 2),), {DEVICE: 2}, {((DEVICE, 1),): 1}, f"needs 2 {DEVICE}, and 1 of 2 is free"),
    ],
)
def test_reasons_have_numbers(asks, has, taken, reason) -> None:  # type: ignore[no-untyped-def]
    here = site("a", devices=has, devices_requested=taken, labels={MODEL: "T4"})
    plan = decide(world(here), workload(devices=asks))
    assert [r.reason for r in plan.rejected] == [reason]
    found = impossible(world(here), workload(devices=asks))
    assert reason in "\n".join(lines(as_data(found)))


def test_parts_fill_gpus_one_by_one_and_no_part_spans_two() -> None:
    sites = World([site("a", devices={GPU: 2}), site("b", devices={GPU: 1})])
    asks, placed = workload(devices=((GPU_MILLI, 400),), replicas=1), []
    for _ in range(8):
        plan = decide(Snapshot(NOW, sites), asks)
        sites = taking(sites, asks, dict(plan.clusters), 1)
        placed += [c for c, _ in plan.clusters]
    # Two of 400 on each of three GPUs: the 200 that are left of each make no third.
    assert sorted(placed) == ["a"] * 4 + ["b"] * 2
    assert sites.gpus().tolist() == [[200, 200], [200, 0]]
    gone = taking(sites, asks, {"a": 1}, -1)
    assert gone.gpus().tolist() == [[600, 200], [200, 0]]
    assert sites.gpus().tolist() == [[200, 200], [200, 0]], "a world beside another has its own"


def test_replicas_divide_by_the_devices_that_there_are() -> None:
    sites = [site("a", devices={GPU: 2}), site("b", devices={GPU: 1})]
    plan = decide(world(*sites), workload(devices=((GPU, 1),), replicas=3))
    assert dict(plan.clusters) == {"a": 2, "b": 1}
    assert plan.complete
