"""An agent that takes over the pods of an earlier release: they are found and ended, not left running beside new ones."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from metaos.clock import SystemClock
from metaos.runtimes import process
from metaos.runtimes.process import Identity
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import DEADLINE, container, pod, run
from tests.runtimes.test_sandbox import place

__all__ = ["place"]
pytestmark = pytest.mark.system


def start(where: Path, name: str, monitor: Identity | None, status: str, **end: Any) -> None:
    """A container's start as the release before recorded it."""
    directory = where / "containers" / name / "0"
    directory.mkdir(parents=True)
    known = {"name": name, "attempt": 0, "startTime": 1.0, "image": "python:3", "workingDir": "/", "cgroups": []}
    # The agent may have ended before it wrote the monitor down, which says so itself.
    known |= {"input": [False, False, False], "monitor": None}
    (directory / "container.json").write_text(json.dumps(known))
    if monitor is not None:
        (directory / "pid").write_text(Path(f"/proc/{monitor.pid}/stat").read_text())
    if status:
        (directory / "status").write_text(status)
    (directory / "log").write_text("")
    if end:
        (directory / "end.json").write_text(json.dumps(end))


@pytest.mark.parametrize("isolation", ["bubblewrap", "none"])
async def test_pods_of_the_release_before_are_ended_and_started_anew(isolation: str, place: str) -> None:
    where = Path(place, "pods", pod().uid)
    (where / "etc").mkdir(parents=True)
    (where / "etc" / "hosts").write_text("127.0.0.1\tlocalhost\n")
    holder = process.spawn(["sleep", "1000"], env={})
    monitor = process.spawn(["sh", "-c", "sleep 1001 & sleep 1002"], env={})
    async with asyncio.timeout(DEADLINE):
        while len(process.session_of(monitor)) < 3:
            await asyncio.sleep(0.01)
    everybody = [holder, *process.session_of(monitor)]
    child = process.children(monitor.pid)[0]
    start(where, "main", monitor, f'{{ "child-pid": {child} }}\n' if isolation == "bubblewrap" else "")
    start(where, "done", None, "3\n" if isolation == "none" else '{ "child-pid": 5 }\n{ "exit-code": 3 }\n')
    os.utime(where / "containers/done/0/status", (77, 77))
    late = process.spawn(["true"], env={})
    await process.ended(late)
    (where / "containers/done/0/pid").write_text(f"{late.pid} (sh) R " + "1 " * 18 + f"{late.start} " + "0 " * 30)
    start(where, "never", None, "")
    document = {"uid": pod().uid, "hostname": "p", "address": "", "boot": process.boot_id()}
    document["holder"] = [holder.pid, holder.start] if isolation == "bubblewrap" else None
    (where / "pod.json").write_text(json.dumps(document))
    if isolation == "none":
        holder.kill()

    made = SandboxRuntime(place, clock=SystemClock(suspended=True), isolation=isolation)
    async with asyncio.timeout(DEADLINE):
        while any(each.running for each in (await made.pods())[pod().uid]):
            await asyncio.sleep(0.01)
        while any(each.alive() for each in everybody):
            await asyncio.sleep(0.01)
    found = {each.name: each for each in (await made.pods())[pod().uid]}
    assert found.keys() == {"main", "done"}
    assert (found["done"].exit_code, found["done"].finish_time) == (3, 77.0), "it ended while no agent was there"
    assert found["main"].exit_code == 137
    await made.start_pod(pod())
    ended, said = await run(made, pod().uid, container("cat", "/etc/hosts" if isolation == "bubblewrap" else "/dev/null"))
    assert ended.exit_code == 0 and ("localhost" in said) is (isolation == "bubblewrap")
    running = await made.start_container(pod().uid, container("sleep", "1000", name="stays"))
    await made.close()
    again = SandboxRuntime(place, clock=SystemClock(suspended=True), isolation=isolation)
    assert running in (await again.pods())[pod().uid], "what this release has started is taken over"
    await again.stop_pod(pod().uid)
    await again.close()
    for each in everybody:
        process.reap(each.pid)


async def test_numbers_of_another_run_of_the_machine_hit_nobody(place: str) -> None:
    where = Path(place, "pods", pod().uid)
    (where / "etc").mkdir(parents=True)
    other = process.spawn(["sleep", "1000"], env={})
    start(where, "main", other, "")
    document = {"uid": pod().uid, "hostname": "p", "boot": "another", "holder": [other.pid, other.start]}
    (where / "pod.json").write_text(json.dumps(document))
    made = SandboxRuntime(place, clock=SystemClock(suspended=True), isolation="none")
    assert [each.running for each in (await made.pods())[pod().uid]] == [False]
    await made.stop_pod(pod().uid)
    await made.close()
    assert other.alive()
    other.kill(signal.SIGKILL)
    await process.ended(other)
