"""A hundred pods at once at one site: from desired until each one's own command runs, and until the site says so.

Beside it, in the same run: the same hundred commands started as bare processes, as bare bubblewraps with the namespaces of a
pod, as bubblewraps that show all that a pod's shows, and as isolated processes without NEMO (``isolated.py``), all at once. The
clock is the modification time of a file that each
command makes first. Processor time is that of all processes together, until the last command runs; beside it the floor of it
(see ``podfloor.py``).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from bench import isolated, podfloor
from bench.podfloor import Counter
from bench.results import Figure, figure, percentile, write
from metaos.agent.cache import Cache
from metaos.agent.supervisor import Supervisor
from metaos.clock import SystemClock
from metaos.runtimes.bubblewrap import find_bwrap, show
from metaos.runtimes.images import system_paths
from metaos.runtimes.sandbox import SandboxRuntime

PODS = 100
ROUNDS = 3
COMMAND = list(isolated.COMMAND)
DEADLINE = 120.0


def pod(number: int) -> dict[str, Any]:
    spec = {
        "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [
            {"name": "main", "image": "python:3", "command": COMMAND, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}
        ],
    }
    metadata = {"name": f"p-{number}", "namespace": "bench", "uid": f"uid-{number}"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def at_a_site(place: Path, counter: Counter) -> tuple[list[float], list[float], float]:
    """Milliseconds until the commands run, and until the pods are reported as running; processor time by pod."""
    cache = Cache(place / "records.db")
    runtime = SandboxRuntime(str(place / "runtime"), clock=SystemClock())
    await runtime.check()
    supervisor = Supervisor(
        runtime,
        cache,
        SystemClock(),
        Random(0),
        site="bench",
        directory=place / "runtime",
        address=lambda where, name: f"100.64.1.{int(name.rpartition('-')[2]) + 1}",
        record=lambda *told: None,
    )
    loop = asyncio.create_task(supervisor.run())
    reported: dict[str, float] = {}
    changed = asyncio.Event()
    supervisor.on_change(changed.set)
    try:
        await asyncio.sleep(0)
        began, before = time.time(), counter.now()
        supervisor.set_desired([pod(number) for number in range(PODS)])
        async with asyncio.timeout(DEADLINE):
            while len(reported) < PODS:
                await changed.wait()
                changed.clear()
                now = time.time()
                for uid, states in supervisor.states.items():
                    if states.get("main") is not None and states["main"].running:
                        reported.setdefault(uid, now)
            files = list((place / "runtime/pods").glob("*/volumes/v"))
            while not all((file / "started").exists() for file in files):
                await asyncio.sleep(0.01)
        used = (counter.now() - before) / PODS
        started = [((file / "started").stat().st_mtime - began) * 1000 for file in files]
        supervisor.set_desired([])
        while supervisor.pods():
            await asyncio.sleep(0.01)
        return started, [(when - began) * 1000 for when in reported.values()], used
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await runtime.close()
        cache.close()


def bare(place: Path, counter: Counter, *, isolated: bool = True, whole: bool = False) -> tuple[list[float], float]:
    """Milliseconds until each of as many bare processes runs, all started at once; processor time by process. ``isolated``: by
    bubblewrap; ``whole``: with the whole view of a pod, and with the namespaces that its container adds to the pod's."""
    bwrap = [find_bwrap(), "--unshare-user", "--unshare-all", "--die-with-parent", "--disable-userns", "--cap-drop", "ALL"]
    for path in system_paths():
        bwrap += show(path)
    bwrap += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    libraries = os.path.dirname(os.path.dirname(bwrap[0])) + ".libs"
    env = {"LD_LIBRARY_PATH": libraries, "PATH": "/usr/bin:/bin"}
    files = [place / f"bare-{number}" for number in range(PODS)]
    for file in files:
        file.mkdir()
    processes = []
    began, before = time.time(), counter.now()
    try:
        for file in files:
            if whole:
                with podfloor.view(file) as (view, fds):
                    command = [bwrap[0], "--die-with-parent", *view, "--", *COMMAND]
                    processes.append(subprocess.Popen(command, env=env, pass_fds=fds))
                continue
            own = [word.replace("/v/", f"{file}/") for word in COMMAND]
            command = [*bwrap, "--bind", str(file), str(file), *own] if isolated else own
            processes.append(subprocess.Popen(command, env=env))
        while not all((file / "started").exists() for file in files):
            if time.time() - began > DEADLINE:
                raise TimeoutError("the bare processes did not start")
            time.sleep(0.01)
        used = (counter.now() - before) / PODS
        return [((file / "started").stat().st_mtime - began) * 1000 for file in files], used
    finally:
        for each in processes:
            each.kill()
            each.wait()
        for file in files:
            shutil.rmtree(file)


def without_nemo(place: Path, counter: Counter) -> tuple[list[float], float]:
    """As :func:`bare`, of processes with all that isolates a pod (see ``isolated.py``)."""
    files = [place / str(number) for number in range(PODS)]
    for file in files:
        file.mkdir()
    command = [sys.executable, "-m", "bench.isolated", str(place), str(PODS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdin is not None and starter.stdout is not None
        starter.stdout.readline()
        began, before = time.time(), counter.now()
        starter.stdin.write("go\n")
        starter.stdin.flush()
        while not all((file / "started").exists() for file in files):
            if time.time() - began > DEADLINE or starter.poll() is not None:
                raise TimeoutError("the isolated processes did not start")
            time.sleep(0.01)
        used = (counter.now() - before) / PODS
        started = [((file / "started").stat().st_mtime - began) * 1000 for file in files]
    for file in files:
        shutil.rmtree(file)
    return started, used


def main() -> None:
    found: dict[str, list[list[float]]] = {"process": [], "bwrap": [], "view": [], "isolated": []}
    found |= {"started": [], "reported": []}
    used: dict[str, list[float]] = {"bwrap": [], "view": [], "isolated": [], "pod": [], "namespaces": [], "cgroups": []}
    counter = Counter()
    for _ in range(ROUNDS):
        place = Path(os.path.realpath(tempfile.mkdtemp(prefix="nemo-bench-")))
        try:
            found["process"].append(bare(place, counter, isolated=False)[0])
            for which, whole in (("bwrap", False), ("view", True)):
                times, each = bare(place, counter, whole=whole)
                found[which].append(times)
                used[which].append(each)
            used["namespaces"].append(podfloor.namespaces(PODS))
            used["cgroups"].append(podfloor.cgroups(PODS))
            times, each = without_nemo(place, counter)
            found["isolated"].append(times)
            used["isolated"].append(each)
            started, reported, each = asyncio.run(at_a_site(place, counter))
            found["started"].append(started)
            found["reported"].append(reported)
            used["pod"].append(each)
        finally:
            shutil.rmtree(place)
    counter.close()

    def of(which: str, share: float) -> list[float]:
        return [percentile(values, share) for values in found[which]]

    figures: list[Figure] = []
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        figures += [
            figure(f"{PODS} bare processes at once, {name}", of("process", share), "ms"),
            figure(f"{PODS} bare bubblewraps at once, {name}", of("bwrap", share), "ms", baseline=of("process", share)),
            figure(
                f"{PODS} isolated processes at once without NEMO, {name}",
                of("isolated", share),
                "ms",
                baseline=of("bwrap", share),
            ),
            figure(
                f"{PODS} pods at once until the command runs, {name}", of("started", share), "ms", baseline=of("bwrap", share)
            ),
            figure(f"{PODS} pods at once until reported, {name}", of("reported", share), "ms", baseline=of("bwrap", share)),
        ]
    for name, which in (("isolated processes without NEMO", "isolated"), ("bare bubblewraps", "bwrap")):
        beyond = [mine - floor for mine, floor in zip(of("started", 0.5), of(which, 0.5), strict=True)]
        figures.append(figure(f"p50 of pods beyond p50 of {name}", beyond, "ms", aim=100.0))
    # All share the machine's cores: this is what one takes of them, and what it would take alone.
    each = [max(values) / PODS for values in found["started"]]
    floor = [max(values) / PODS for values in found["bwrap"]]
    figures.append(figure("time of all pods by their number", each, "ms", baseline=floor))
    if counter.usable:
        least = [sum(parts) for parts in zip(used["view"], used["namespaces"], used["cgroups"], strict=True)]
        figures += [
            figure("processor time of a bubblewrap with a pod's view", used["view"], "ms", baseline=used["bwrap"]),
            figure("processor time of a pod's namespaces and cards", used["namespaces"], "ms", baseline=used["bwrap"]),
            figure("processor time of a pod's cgroups", used["cgroups"], "ms", baseline=used["bwrap"]),
            figure("processor time of an isolated process without NEMO", used["isolated"], "ms", baseline=used["bwrap"]),
            figure("processor time of a pod, beside the sum of these", used["pod"], "ms", baseline=least),
        ]
    write("pods", figures)


if __name__ == "__main__":
    main()
