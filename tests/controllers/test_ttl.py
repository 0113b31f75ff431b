"""Finished Jobs go in their time."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.controllers import ttl as controller
from metaos.controllers.ttl import expiry
from metaos.resources import scheme
from metaos.resources.meta import Obj, format_time
from tests.controllers.continuum import running, until


def job(seconds: int | None, finished: float | None = None, kind: str = "Complete", **spec: Any) -> Obj:
    found: Obj = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work", "namespace": "shop", "uid": "u"}}
    found["spec"] = {**({} if seconds is None else {"ttlSecondsAfterFinished": seconds}), **spec}
    if finished is not None:
        condition = {"type": kind, "status": "True", "lastTransitionTime": format_time(finished)}
        found["status"] = {"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}, condition]}
    return found


@pytest.mark.parametrize(
    ("found", "when"),
    [(job(60), None), (job(None, 100.0), None), (job(60, 100.0), 160.0), (job(0, 100.0, "Failed"), 100.0)],
)
def test_when_it_goes(found: Obj, when: float | None) -> None:
    assert expiry(found) == when


async def test_it_goes_in_time_and_not_before() -> None:
    async with running(controller.setup, objects=(job(60),)) as (client, clock):
        await clock.advance(100)
        assert client.find(scheme.JOB, "work", "shop")
        client.seed(job(60, clock.now()))
        await clock.advance(58)
        assert client.find(scheme.JOB, "work", "shop")
        await until(clock, lambda: client.find(scheme.JOB, "work", "shop") is None)


async def test_a_ttl_that_is_made_longer_counts() -> None:
    async with running(controller.setup) as (client, clock):
        client.seed(job(60, clock.now()))
        await clock.advance(50)
        client.seed(job(600, clock.now() - 50))
        await clock.advance(300)
        assert client.find(scheme.JOB, "work", "shop")
