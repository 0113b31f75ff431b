"""Pods on real processes: the supervisor with the sandbox runtime, also while its agent is killed again and again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest

from metaos.agent.cache import Cache
from metaos.agent.supervisor import Supervisor
from metaos.clock import SystemClock
from metaos.resources import meta
from metaos.resources.meta import Obj
from metaos.runtimes.sandbox import SandboxRuntime
from tests.agent.machine import container, workload
from tests.agent.test_supervisor import configmap, revised, sidecar, state

pytestmark = pytest.mark.system

T = TypeVar("T")
#: Also on a machine with other things to do.
DEADLINE = 60.0


class RealSite:
    """The parts of an agent that run pods, on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[tuple[str, str]] = []
        self._task: asyncio.Task[None] | None = None
        self.supervisor: Supervisor

    def start(self) -> None:
        self.cache = Cache(self.folder / "records.db")
        self.runtime = SandboxRuntime(str(self.folder / "runtime"), clock=SystemClock())
        self.supervisor = Supervisor(
            self.runtime,
            self.cache,
            SystemClock(),
            Random(),
            site="here",
            directory=self.folder / "runtime",
            address=lambda where, pod: "127.1.0.1",
            record=lambda pod, kind, reason, message: self.events.append((meta.name(pod), reason)),
            backoff_seconds=0.2,
        )
        self._task = asyncio.create_task(self.supervisor.run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.runtime.close()
            self.cache.close()

    def pods(self) -> dict[str, Obj]:
        return {meta.name(pod): pod for pod in self.supervisor.pods()}

    def ready(self, count: int) -> bool:
        found = self.pods().values()
        return len(found) == count and all(meta.is_true(p, "Ready") for p in found)

    async def until(self, condition: Callable[[], T]) -> T:
        """Looked at whenever something has changed."""
        changed = asyncio.Event()
        self.supervisor.on_change(changed.set)
        try:
            async with asyncio.timeout(DEADLINE):
                while not (found := condition()):
                    changed.clear()
                    try:
                        await asyncio.wait_for(changed.wait(), 0.2)
                    except TimeoutError:
                        continue
        except TimeoutError:
            shown = {n: p["status"] for n, p in self.pods().items()}
            raise AssertionError(f"{json.dumps(shown, indent=1)}\n{self.events}") from None
        return found

    async def log(self, pod: str, name: str = "c") -> str:
        return b"".join([block async for block in self.supervisor.logs("shop", pod, name)]).decode()


@pytest.fixture
def folder() -> Iterator[Path]:
    place = Path(os.path.realpath(tempfile.mkdtemp(prefix="nemo-pods-")))
    yield place
    shutil.rmtree(place)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[RealSite]:
    """A site that leaves nothing running."""
    found = RealSite(folder)
    found.start()
    yield found
    await ended(found)


async def ended(site: RealSite) -> None:
    """Stops everything there, and then the site."""
    site.supervisor.set_desired([])
    for pod in list(site.pods()):
        await site.supervisor.delete_pod("shop", pod, 0.0)
    await site.until(lambda: not site.pods())
    left = await site.runtime.pods()
    await site.stop()
    assert not left


@pytest.fixture
async def site(folder: Path) -> AsyncIterator[RealSite]:
    async with running(folder) as found:
        yield found


def shell(script: str, name: str = "c", **more: Any) -> dict[str, Any]:
    return container(name, command=["/bin/sh", "-c", script], **more)


async def test_a_whole_pod(site: RealSite) -> None:
    """Init container, sidecar with a startup probe, hooks, shared and projected volumes, a message at the end."""
    shared = [{"name": "shared", "mountPath": "/shared"}]
    up = {"exec": {"command": ["test", "-e", "/shared/up"]}, "periodSeconds": 1}
    pod = workload(
        "Pod",
        "p",
        template={
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "volumes": [
                {"name": "shared", "emptyDir": {}},
                {"name": "settings", "projected": {"sources": [{"configMap": {"name": "settings"}}]}},
            ],
            "initContainers": [
                shell("echo init >> /shared/order", "setup", volumeMounts=shared),
                sidecar(
                    "proxy",
                    command=[
                        "/bin/sh",
                        "-c",
                        "trap 'echo proxy-end >> /shared/order; exit 0' TERM; "
                        "echo proxy >> /shared/order; touch /shared/up; while true; do sleep 0.05; done",
                    ],
                    startupProbe=up,
                    volumeMounts=shared,
                ),
            ],
            "containers": [
                shell(
                    "trap 'exit 7' TERM; echo main >> /shared/order; cat /settings/mode; "
                    "while [ ! -e /shared/go ]; do sleep 0.05; done; echo done-for > /dev/termination-log; exit 3",
                    volumeMounts=[*shared, {"name": "settings", "mountPath": "/settings"}],
                    lifecycle={"postStart": {"exec": {"command": ["/bin/sh", "-c", "echo hook >> /shared/order"]}}},
                )
            ],
        },
    )
    site.supervisor.set_desired([pod, configmap("settings", mode="slow")])
    await site.until(lambda: site.ready(1))
    assert "slow" in await site.log("p")
    directory = site.supervisor.volumes.pod_directory("uid-p") / "volumes"
    lines = (directory / "shared" / "order").read_text().split()
    assert lines[:2] == ["init", "proxy"] and set(lines[2:]) == {"main", "hook"}
    # The running container sees the new content, all at once.
    site.supervisor.set_desired([pod, configmap("settings", mode="fast")])

    async def seen() -> bytes:
        process = await site.supervisor.exec("shop", "p", "c", ["cat", "/settings/mode"])
        return b"".join([data async for _, data in process.output()])

    async with asyncio.timeout(DEADLINE):
        while await seen() != b"fast":
            await asyncio.sleep(0.02)
    (directory / "shared" / "go").touch()
    await site.until(lambda: site.pods()["p"]["status"]["phase"] == "Failed")
    ended = state(site.pods()["p"])["state"]["terminated"]
    assert (ended["exitCode"], ended["message"]) == (3, "done-for\n")
    assert (directory / "shared" / "order").read_text().split()[-1] == "proxy-end"


async def test_an_indexed_job(site: RealSite) -> None:
    once = {"restartPolicy": "Never", "containers": [shell("echo index $JOB_COMPLETION_INDEX on $(hostname)")]}
    job = workload("Job", "work", template=once, completions=3, parallelism=3, completionMode="Indexed")
    site.supervisor.set_desired([job])
    await site.until(lambda: "completionTime" in (site.supervisor.status_of(meta.ref(job)) or {}))
    assert (site.supervisor.status_of(meta.ref(job)) or {})["completedIndexes"] == "0-2"
    said = sorted([await site.log(pod) for pod in site.pods()])
    assert said == [f"index {i} on work-{i}\n" for i in range(3)]


AGENT = """
import asyncio, json, sys
from pathlib import Path
from tests.agent.test_real_pods import RealSite
async def main():
    site = RealSite(Path(sys.argv[1]))
    site.start()
    site.supervisor.set_desired(json.loads(Path(sys.argv[1], "wanted.json").read_text()))
    print("up", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_agents_are_killed_while_pods_start_roll_and_end(folder: Path) -> None:
    await killed(folder, 3, completions=4)


@pytest.mark.slow
async def test_agents_are_killed_by_the_dozen(folder: Path) -> None:
    await killed(folder, 40, completions=40)


async def killed(folder: Path, times: int, completions: int) -> None:
    """SIGKILL at random moments. Every index of the Job runs once; the StatefulSet never has two of one name."""
    log = folder / "log"
    log.mkdir()
    mounts = {"volumeMounts": [{"name": "log", "mountPath": "/log"}]}
    volumes = [{"name": "log", "persistentVolumeClaim": {"claimName": "log"}}]
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "log", "namespace": "shop"}}
    once = {"restartPolicy": "Never", "containers": [shell("echo $JOB_COMPLETION_INDEX >> /log/job; sleep 0.2", **mounts)]}
    job = workload(
        "Job", "work", template=once | {"volumes": volumes}, completions=completions, parallelism=2, completionMode="Indexed"
    )
    # The lock is held as long as the process lives: a second one of the same name would say so.
    lock = "exec 9>>/log/$(hostname).lock; flock -n 9 || echo twice >> /log/twice; exec sleep 1000"
    db = workload("StatefulSet", "db", replicas=2, template={"containers": [shell(lock, **mounts)], "volumes": volumes})
    db["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    wanted: list[list[Obj]] = [[claim, job, db], [claim, job, revised(db, "docker.io/library/python:3")]]
    chance = random.Random(11)
    kills = 0
    for objects in wanted:
        (folder / "wanted.json").write_text(json.dumps(objects))
        for _ in range(times):
            agent = subprocess.Popen([sys.executable, "-c", AGENT, str(folder)], stdout=subprocess.PIPE)
            assert agent.stdout is not None
            assert await asyncio.to_thread(agent.stdout.readline) == b"up\n"
            await asyncio.sleep(chance.random() * 0.4)
            agent.send_signal(signal.SIGKILL)
            await asyncio.to_thread(agent.wait)
            agent.stdout.close()
            kills += 1
    site = RealSite(folder)
    site.start()
    try:
        site.supervisor.set_desired(wanted[-1])

        def settled() -> bool:
            of_job = site.supervisor.status_of(meta.ref(job)) or {}
            of_db = site.supervisor.status_of(meta.ref(db)) or {}
            rolled = of_db.get("currentRevision") == of_db.get("updateRevision") and of_db.get("readyReplicas") == 2
            return "completionTime" in of_job and rolled and of_db.get("updatedReplicas") == 2

        await site.until(settled)
        kept = site.supervisor.volumes.claim_directory("shop", "log")
        assert sorted((kept / "job").read_text().split(), key=int) == [str(i) for i in range(completions)], f"after {kills} kills"
        assert not (kept / "twice").exists()
        here = await site.runtime.pods()
        assert set(here) == {meta.uid(pod) for pod in site.supervisor.pods()}
    finally:
        await ended(site)
