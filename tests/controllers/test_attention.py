"""Who is looked at when sites come and go: whom it concerns, the first of them before the others, each once."""

from __future__ import annotations

import dataclasses
from typing import Any

from metaos.controllers.attention import FIRST, SITES, Attention
from metaos.resources.meta import Obj, ObjectRef, ref
from metaos.scheduler.framework import decide
from metaos.scheduler.scores import SCORES
from metaos.scheduler.standing import firm
from metaos.scheduler.world import World
from tests.clock import FakeClock
from tests.controllers.continuum import cluster, deployment
from tests.scheduler.worlds import site, workload, world

MANY = FIRST + 10


class Watched:
    """Workloads that are all on ``here`` and firm there, and ``best``, whose standing changes."""

    def __init__(self, count: int, best: float) -> None:
        self.asked: list[ObjectRef] = []
        self.workloads: list[Obj] = [deployment(f"w{number:03}") for number in range(count)]
        self.sites = [site("best", carbon=best), site("here", carbon=100.0)]
        enqueue = lambda about, seconds: self.asked.append(about)  # noqa: E731
        self.attention = Attention(enqueue, FakeClock(), lambda: self.workloads, lambda: World(self.sites), lambda: (), SCORES)
        there = world(site("here", carbon=100.0))
        for obj in self.workloads:
            what = dataclasses.replace(workload(current={"here": 1}), ref=ref(obj))
            sure = firm(what, decide(there, what))
            assert sure is not None
            self.attention.rely(ref(obj), sure)
        self.attention.look_around()
        self.asked.clear()

    def back(self) -> None:
        lost: dict[str, Any] = {"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}
        old = cluster("best")
        self.attention.site_changed(old | {"spec": old["spec"] | lost["spec"]}, old)

    def look(self) -> list[ObjectRef]:
        self.asked.clear()
        self.attention.look_around()
        return list(self.asked)


def test_a_good_site_that_is_back_has_the_first_looked_at_and_then_those_whom_it_still_concerns() -> None:
    watched = Watched(MANY, best=1.0)
    watched.back()
    first = watched.look()
    assert len(first) == FIRST + 1 and first[-1] == SITES
    second = watched.look()
    assert len(second) == MANY - FIRST and not set(second) & set(first)
    assert watched.look() == []


def test_when_it_is_full_the_others_are_not_looked_at() -> None:
    watched = Watched(MANY, best=1.0)
    watched.back()
    watched.look()
    watched.sites[0] = dataclasses.replace(watched.sites[0], cpu_requested=watched.sites[0].cpu)
    assert watched.look() == []


def test_another_site_meanwhile_has_all_looked_at_whom_it_concerns() -> None:
    watched = Watched(MANY, best=1.0)
    watched.back()
    first = watched.look()
    watched.back()
    assert watched.look()[:FIRST] == first[:FIRST]


def test_a_site_that_is_not_worth_a_move_concerns_nobody() -> None:
    watched = Watched(MANY, best=95.0)
    watched.back()
    assert watched.look() == []
    watched.attention.forget(ref(watched.workloads[0]))
    watched.back()
    assert watched.look() == [ref(watched.workloads[0])]
