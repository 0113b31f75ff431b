"""The agent is killed at every single write and call, in the middle of everything; the next one ends in the right state.

The machine goes on meanwhile, as real containers do. Nothing runs twice, nothing is lost, nothing is left over.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from metaos.resources import meta
from tests.agent.machine import Site, container, workload
from tests.agent.test_supervisor import revised, sidecar

Story = Callable[[Site], Awaitable[None]]
Check = Callable[[Site], None]


# Stories: what the hub wants, one after another.

WEB = workload("Deployment", replicas=2)
DB = workload("StatefulSet", "db", replicas=2)
POD = workload(
    "Pod",
    "p",
    template={
        "initContainers": [sidecar("proxy"), container("setup", command=["exit", "0"])],
        "containers": [
            container(lifecycle={"postStart": {"exec": {"command": ["warm"]}}, "preStop": {"exec": {"command": ["bye"]}}})
        ],
    },
)
ONCE = {"restartPolicy": "Never", "containers": [container(command=["exit", "0"])]}
JOB = workload("Job", "work", template=ONCE, completions=4, parallelism=2, completionMode="Indexed")
CRON = workload("CronJob", "tick", template=ONCE, schedule="* * * * *", successfulJobsHistoryLimit=1)


async def rollout(site: Site) -> None:
    site.wanted = [WEB]
    await _again(site, 3)
    site.wanted = [revised(WEB)]
    await _again(site, 6)


def rolled_out(site: Site) -> None:
    assert [p["spec"]["containers"][0]["image"] for p in site.pods().values()] == ["python:4"] * 2
    assert all(meta.is_true(p, "Ready") for p in site.pods().values())
    assert site.status(WEB)["updatedReplicas"] == 2


async def stateful(site: Site) -> None:
    site.wanted = [DB]
    await _again(site, 4)
    site.wanted = [revised(DB)]
    await _again(site, 8)


def stateful_done(site: Site) -> None:
    assert site.machine.running() == ["db-0", "db-1"]
    assert [p["spec"]["containers"][0]["image"] for p in site.pods().values()] == ["python:4"] * 2
    status = site.status(DB)
    assert status["currentRevision"] == status["updateRevision"] and status["readyReplicas"] == 2
    alive: set[str] = set()
    for what, pod, _ in site.machine.history:
        if what == "start":
            assert pod not in alive, "two pods of one name at once"
            alive.add(pod)
        elif what in ("end", "gone"):
            alive.discard(pod)


async def life(site: Site) -> None:
    site.wanted = [POD]
    await _again(site, 4)


def alive(site: Site) -> None:
    (pod,) = site.pods().values()
    assert meta.is_true(pod, "Ready")
    started = [h[2] for h in site.machine.history if h[0] == "start"]
    assert started == ["proxy", "setup", "c"], "every container is started once, in order"
    assert ("exec", "p", "warm") in site.machine.history


async def life_and_death(site: Site) -> None:
    await life(site)
    site.wanted = []
    await _again(site, 6)


def dead(site: Site) -> None:
    assert not site.pods() and not site.machine.found
    ended = [h[2] for h in site.machine.history if h[0] == "end" and h[2] != "setup"]
    assert ended == ["c", "proxy"], "sidecars end last"
    assert ("exec", "p", "bye") in site.machine.history


async def work(site: Site) -> None:
    site.wanted = [JOB]
    await _again(site, 8)


def worked(site: Site) -> None:
    status = site.status(JOB)
    assert (status["completedIndexes"], status["succeeded"], status.get("failed", 0)) == ("0-3", 4, 0)
    assert len([h for h in site.machine.history if h[0] == "start"]) == 4, "each index ran once"


async def tick(site: Site) -> None:
    site.wanted = [CRON]
    await _again(site, 130)


def ticked(site: Site) -> None:
    starts = [h[1] for h in site.machine.history if h[0] == "start"]
    assert len(starts) == len(set(starts)) and len(starts) in (2, 3), "every start happens once"
    assert len(site.pods()) == 1


async def _again(site: Site, seconds: int) -> None:
    """Lets time pass; whenever the agent has been killed, another one is started."""
    site.supervisor.set_desired(site.wanted)
    await site.settle()
    for _ in range(seconds):
        if site.machine.dead:
            await site.stop()
            site.start()
        await site.settle()
        await site.clock.advance(0.5)


STORIES: dict[str, tuple[Story, Check]] = {
    "rollout": (rollout, rolled_out),
    "stateful": (stateful, stateful_done),
    "start": (life, alive),
    "end": (life_and_death, dead),
    "job": (work, worked),
    "cron": (tick, ticked),
}


async def _tell(folder: Path, story: Story, check: Check, kill_at: int) -> int:
    site = Site(folder)
    site.machine.kill_at = kill_at
    site.start()
    try:
        await story(site)
        for _ in range(3):
            await site.clock.advance(1)
        check(site)
        assert site.starts == (2 if kill_at > 0 else 1)
        assert set(site.machine.found) <= {meta.uid(p) for p in site.supervisor.pods()}, "no sandbox is left over"
        return site.machine.steps
    finally:
        await site.stop()


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Who was killed has left errors that nobody asks for. They are logged when they are collected: here, and not wherever it
    happens next, as within a compilation, which Python 3.11 does not bear."""
    yield
    gc.collect()


@pytest.mark.parametrize("name", STORIES)
async def test_killed_at_every_step(name: str, tmp_path: Path) -> None:
    story, check = STORIES[name]
    (tmp_path / "whole").mkdir()
    steps = await _tell(tmp_path / "whole", story, check, -1)
    assert steps > 10
    every = range(1, steps + 1) if name != "cron" else range(1, steps + 1, 7)
    for step in every:
        folder = tmp_path / str(step)
        folder.mkdir()
        try:
            await _tell(folder, story, check, step)
        except AssertionError as error:
            raise AssertionError(f"killed at step {step} of {steps}: {error}") from error
