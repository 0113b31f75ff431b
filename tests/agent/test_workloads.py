"""Planning as properties: whatever happens to pods, the bounds hold at every step, and in the end all is as wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.agent.stateful import complete, ordinals, revision_of, stateful, stateful_status
from metaos.agent.workloads import (
    Actions,
    PodView,
    Revisions,
    daemon,
    daemon_status,
    deployment,
    deployment_limits,
    deployment_status,
    resolve,
)
from tests.agent.machine import workload

Plan = Callable[[Sequence[PodView], float], Actions]


class World:
    """Pods that become ready, break and end as ``chance`` says; ``settle`` makes all go well."""

    def __init__(self, pods: Sequence[PodView] = ()) -> None:
        self.pods = list(pods)
        self.now, self._count = 1000.0, 0

    def step(self, plan: Plan) -> Actions:
        actions = plan(self.pods, self.now)
        gone = {*actions.delete, *actions.dismiss}
        self.pods = [replace(p, deleting=True, ready_since=None) if p.uid in gone else p for p in self.pods]
        for ordinal, digest in actions.create:
            self._count += 1
            self.pods.append(PodView(f"new-{self._count}", f"p-{self._count}", digest, self.now, ordinal=ordinal))
        return actions

    def happen(self, what: str, which: int) -> None:
        self.now += 1
        if not self.pods:
            return
        pod = self.pods[which % len(self.pods)]
        if what == "gone" and (pod.deleting or pod.ended):
            self.pods.remove(pod)
        elif what == "ready" and pod.living:
            self._change(pod, phase="Running", ready_since=self.now)
        elif what == "unready" and pod.living:
            self._change(pod, ready_since=None)
        elif what == "ended" and pod.living:
            self._change(pod, phase="Failed", ready_since=None, finished=self.now)
        elif what == "deleted":
            self._change(pod, deleting=True, ready_since=None)

    def _change(self, pod: PodView, **changes: Any) -> None:
        self.pods[self.pods.index(pod)] = replace(pod, **changes)

    def settle(self) -> None:
        """Who is stopping has gone, who starts is ready."""
        self.now += 10
        self.pods = [p for p in self.pods if not p.deleting]
        self.pods = [replace(p, phase="Running", ready_since=p.ready_since or self.now) if p.living else p for p in self.pods]
        self.now += 100


def view(number: int, digest: str, ordinal: int = -1, ready: bool = True) -> PodView:
    return PodView(f"uid-{number}", f"pod-{number}", digest, float(number), "Running", 500.0 if ready else None, ordinal=ordinal)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["ready", "ready", "gone", "unready", "ended", "deleted", "ready"]), st.integers(0, 50)),
    max_size=40,
)
LIMIT = st.one_of(st.integers(0, 5), st.sampled_from(["0%", "25%", "34%", "100%"]))


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[dict[str, Any], World]:
    replicas = draw(st.integers(0, 7))
    # Both zero is what no user may say: it is how the hub has a site wait for others.
    surge, unavailable = draw(st.tuples(LIMIT, LIMIT).filter(lambda both: both != (0, 0)))
    minimum = draw(st.sampled_from([0, 0, 3]))
    web = workload(
        "Deployment",
        replicas=replicas,
        minReadySeconds=minimum,
        strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
    )
    pods = [
        view(i, draw(st.sampled_from(["old", "older", "new"])), ready=draw(st.booleans())) for i in range(draw(st.integers(0, 9)))
    ]
    return web, World(pods)


@settings(deadline=None)
@given(rollouts(), EVENTS)
def test_rolling_updates_stay_within_bounds_and_arrive(
    start: tuple[dict[str, Any], World], events: list[tuple[str, int]]
) -> None:
    web, world = start
    replicas, minimum = web["spec"]["replicas"], web["spec"]["minReadySeconds"]
    surge, unavailable = deployment_limits(web)
    revisions = Revisions("new", "new")

    def plan(pods: Sequence[PodView], now: float) -> Actions:
        return deployment(web, pods, revisions, now)

    def available() -> int:
        return sum(p.available(minimum, world.now) for p in world.pods)

    for what, which in [("nothing", 0), *events]:
        world.happen(what, which)
        before, living = available(), sum(p.living for p in world.pods)
        actions = world.step(plan)
        if actions.create:
            assert sum(p.living for p in world.pods) <= replicas + surge or living > replicas + surge
            assert sum(p.living for p in world.pods) <= max(living, replicas + surge)
        assert available() >= min(before, replicas - unavailable)
        # Planning again at once changes nothing: what is under way is known.
        again = plan(world.pods, world.now)
        assert not again.create or actions.delete
    for _ in range(60):
        world.step(plan)
        world.settle()
    assert [p.hash for p in world.pods] == ["new"] * replicas
    assert all(p.available(minimum, world.now) for p in world.pods)
    assert plan(world.pods, world.now) == Actions()


@settings(deadline=None)
@given(rollouts(), EVENTS)
def test_recreate_never_mixes_revisions(start: tuple[dict[str, Any], World], events: list[tuple[str, int]]) -> None:
    web, world = start
    web["spec"]["strategy"] = {"type": "Recreate"}

    def plan(pods: Sequence[PodView], now: float) -> Actions:
        return deployment(web, pods, Revisions("new", "new"), now)

    for what, which in events:
        world.happen(what, which)
        actions = world.step(plan)
        if actions.create:
            assert all(p.hash == "new" or p.ended for p in world.pods)
            assert sum(p.living for p in world.pods) <= web["spec"]["replicas"]
    for _ in range(20):
        world.step(plan)
        world.settle()
    assert [p.hash for p in world.pods] == ["new"] * web["spec"]["replicas"]


@given(st.integers(0, 300), st.integers(0, 50))
def test_percentages(percent: int, total: int) -> None:
    up, down = resolve(f"{percent}%", total, up=True), resolve(f"{percent}%", total, up=False)
    assert up - 1 < percent * total / 100 <= up and down <= percent * total / 100 < down + 1


def test_the_progress_deadline_counts_from_the_last_progress() -> None:
    web = workload("Deployment", replicas=2, progressDeadlineSeconds=10)
    revisions = Revisions("new", "new")
    pods = [view(1, "new", ready=False), view(2, "new", ready=False)]
    status = deployment_status(web, pods, revisions, 1000.0, {})
    status = deployment_status(web, pods, revisions, 1009.0, status)
    assert _condition(status, "Progressing")["reason"] == "ReplicaSetUpdated"
    one = [replace(pods[0], ready_since=1009.0), pods[1]]
    status = deployment_status(web, one, revisions, 1009.0, status)
    status = deployment_status(web, one, revisions, 1019.0, status)
    assert _condition(status, "Progressing")["reason"] == "ReplicaSetUpdated"
    status = deployment_status(web, one, revisions, 1021.0, status)
    assert _condition(status, "Progressing")["reason"] == "ProgressDeadlineExceeded"
    assert _condition(status, "Progressing")["status"] == "False"
    status = deployment_status(web, one, revisions, 1030.0, status)
    assert _condition(status, "Progressing")["reason"] == "ProgressDeadlineExceeded"
    both = [replace(p, ready_since=1031.0) for p in pods]
    assert (
        _condition(deployment_status(web, both, revisions, 1031.0, status), "Progressing")["reason"] == "NewReplicaSetAvailable"
    )


def _condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(c for c in status["conditions"] if c["type"] == kind)


def test_a_clock_that_was_set_back_makes_nothing_unavailable() -> None:
    web = workload("Deployment", replicas=2, minReadySeconds=5)
    pods = [view(1, "new"), view(2, "new")]
    revisions = Revisions("new", "new")
    for now in (1000.0, 1000.0 - 3600.0):
        assert deployment(web, pods, revisions, now) == Actions()
        assert deployment_status(web, pods, revisions, now, {})["availableReplicas"] == 2


# -- StatefulSet -------------------------------------------------------------------------------------------


@st.composite
def sets(draw: st.DrawFn) -> tuple[dict[str, Any], World]:
    replicas, start = draw(st.integers(0, 6)), draw(st.sampled_from([0, 0, 2]))
    rolling: dict[str, Any] = {"partition": draw(st.sampled_from([0, 0, 1, 3]))}
    if draw(st.booleans()):
        rolling["maxUnavailable"] = draw(st.sampled_from([1, 2, "50%"]))
    db = workload(
        "StatefulSet",
        "db",
        replicas=replicas,
        minReadySeconds=draw(st.sampled_from([0, 3])),
        podManagementPolicy=draw(st.sampled_from(["OrderedReady", "Parallel"])),
        updateStrategy={"type": "RollingUpdate", "rollingUpdate": rolling},
        ordinals={"start": start},
    )
    here = draw(st.sets(st.integers(0, 9), max_size=8))
    return db, World([view(i, draw(st.sampled_from(["old", "new"])), i, draw(st.booleans())) for i in sorted(here)])


@settings(deadline=None)
@given(sets(), EVENTS)
def test_stateful_sets(start: tuple[dict[str, Any], World], events: list[tuple[str, int]]) -> None:
    db, world = start
    spec, revisions = db["spec"], Revisions("old", "new")
    minimum, rolling = spec["minReadySeconds"], spec["updateStrategy"]["rollingUpdate"]
    limit = max(1, resolve(rolling.get("maxUnavailable", 1), spec["replicas"], up=True))

    def plan(pods: Sequence[PodView], now: float) -> Actions:
        return stateful(db, pods, revisions, now)

    def missing() -> int:
        good = {p.ordinal for p in world.pods if p.available(minimum, world.now)}
        return sum(i not in good for i in ordinals(db))

    for what, which in [("nothing", 0), *events]:
        world.happen(what, which)
        before = missing()
        healthy = {p.ordinal for p in world.pods if p.available(minimum, world.now)}
        actions = world.step(plan)
        held = [p.ordinal for p in world.pods]
        assert len(held) == len(set(held)), "one pod for an ordinal"
        assert all(digest == revision_of(db, ordinal, revisions) for ordinal, digest in actions.create)
        assert missing() <= max(before, limit)
        if spec["podManagementPolicy"] == "OrderedReady":
            assert len(actions.create) <= 1 and all(i in healthy for o, _ in actions.create for i in range(ordinals(db).start, o))
            assert len(actions.delete) <= limit
    for _ in range(80):
        world.step(plan)
        world.settle()
    found = {p.ordinal: p.hash for p in world.pods}
    assert set(found) == set(ordinals(db))
    first = ordinals(db).start + rolling["partition"]
    assert all(digest == "new" for ordinal, digest in found.items() if ordinal >= first)
    assert plan(world.pods, world.now).create == plan(world.pods, world.now).delete == ()
    assert complete(db, world.pods, revisions) == all(digest == "new" for digest in found.values())


def test_a_broken_update_goes_no_further_and_back() -> None:
    db = workload("StatefulSet", "db", replicas=3)
    pods = [view(i, "old", i) for i in range(3)]
    revisions = Revisions("old", "bad")
    assert stateful(db, pods, revisions, 1000.0).delete == ("uid-2",)
    broken = [*pods[:2], view(9, "bad", 2, ready=False)]
    assert stateful(db, broken, revisions, 1000.0) == Actions()
    assert stateful(db, broken, Revisions("old", "old"), 1000.0).delete == ("uid-9",)


def test_on_delete_waits_for_someone_to_delete() -> None:
    db = workload("StatefulSet", "db", replicas=2, updateStrategy={"type": "OnDelete"})
    pods = [view(0, "old", 0), view(1, "old", 1)]
    assert stateful(db, pods, Revisions("old", "new"), 1000.0) == Actions()
    assert stateful(db, pods[:1], Revisions("old", "new"), 1000.0).create == ((1, "new"),)
    status = stateful_status(db, pods, Revisions("old", "new"), 1000.0)
    assert (status["currentReplicas"], status["updatedReplicas"]) == (2, 0)


# -- DaemonSet ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [{}, {"maxSurge": 1, "maxUnavailable": 0}])
@settings(deadline=None)
@given(events=EVENTS, old=st.lists(st.tuples(st.sampled_from(["old", "new"]), st.booleans()), max_size=3))
def test_daemon_sets(strategy: dict[str, Any], events: list[tuple[str, int]], old: list[tuple[str, bool]]) -> None:
    agent = workload("DaemonSet", "agent", updateStrategy={"type": "RollingUpdate", "rollingUpdate": strategy})
    world = World([view(i, digest, ready=good) for i, (digest, good) in enumerate(old)])

    def plan(pods: Sequence[PodView], now: float) -> Actions:
        return daemon(agent, pods, Revisions("new", "new"), now)

    for what, which in events:
        world.happen(what, which)
        before = any(p.available(0, world.now) for p in world.pods)
        world.step(plan)
        living = [p for p in world.pods if p.living]
        assert sum(p.hash == "new" for p in living) <= 1
        assert len(living) <= (2 if strategy else 1)
        if strategy and before:
            assert any(p.available(0, world.now) for p in world.pods)
    for _ in range(20):
        world.step(plan)
        world.settle()
    assert [p.hash for p in world.pods] == ["new"]
    assert plan(world.pods, world.now) == Actions()


def test_a_daemon_that_waits_for_other_sites_goes_only_when_it_does_not_serve() -> None:
    agent = workload("DaemonSet", updateStrategy={"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}})
    revisions = Revisions("new", "new")
    assert daemon(agent, [view(1, "old")], revisions, 1000.0) == Actions()
    assert daemon(agent, [view(1, "old", ready=False)], revisions, 1000.0).delete == ("uid-1",)


def test_a_daemon_beside_an_older_one_does_not_count_yet() -> None:
    agent, revisions = workload("DaemonSet"), Revisions("new", "new")
    both = [view(1, "old"), view(2, "new")]
    assert daemon_status(agent, both, revisions, 1000.0)["updatedNumberScheduled"] == 0
    assert daemon_status(agent, both[1:], revisions, 1000.0)["updatedNumberScheduled"] == 1
