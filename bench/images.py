"""Images from a registry, and WebAssembly modules: how long until they run. Beside each, in the same run, what it cannot be
faster than: the bytes alone, and a native program in the same sandbox.

Needs Debian's ``docker-registry``, and ``wasmtime``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import urllib3
import wasmtime

from bench.results import Figure, figure, write
from metaos.clock import SystemClock
from metaos.plugins.points import ContainerConfig, Pull
from metaos.runtimes.sandbox import SandboxRuntime
from metaos.runtimes.spares import GROUP
from tests.runtimes.conformance import container, log, pod, until_ended
from tests.runtimes.registries import Registry, running
from tests.runtimes.test_images import config_of, layer
from tests.runtimes.test_wasm import HELLO, LOOP, WASI, bring, config, guest

#: Guests that first of all write which time it is, in nanoseconds since the epoch: WASI's monotonic clock begins with the guest.
CLOCK = guest(
    "(drop (call $now (i32.const 0) (i64.const 0) (i32.const 64))) (call $say (i32.const 64) (i32.const 8))",
    f'(import "{WASI}" "clock_time_get" (func $now (param i32 i64 i32) (result i32)))',
)
ROUNDS, MEGABYTES = 20, 100
#: Seconds from a pod's start to its container's, where the two are not asked for at once.
WAIT = 0.1


async def pulls(place: Path, registry: Registry) -> list[Figure]:
    layers = [layer({f"part{number}": os.urandom(MEGABYTES << 18)}) for number in range(4)]
    registry.push("bench/app", "1", layers, config_of(layers))
    pull, took, again, floor = Pull("Always", registry.credentials), [], [], []
    runtime = SandboxRuntime(str(place / "pulls"), clock=SystemClock(), registries=[registry.settings])
    image = f"{registry.host}/bench/app:1"
    blobs = [path for path in (registry.place / "data").rglob("data") if path.stat().st_size > 1 << 20]
    for _ in range(3):
        began = time.perf_counter()
        await runtime.fetch_image(image, pull)
        took.append(time.perf_counter() - began)
        began = time.perf_counter()
        await runtime.fetch_image(image, pull)
        again.append(time.perf_counter() - began)
        await runtime.remove_image(image)
        began = time.perf_counter()
        await asyncio.to_thread(_plainly, registry, [path.parent.name for path in blobs])
        floor.append(time.perf_counter() - began)
    await runtime.close()
    return [
        # Against the same bytes over HTTPS, to nowhere.
        figure(f"pull of {MEGABYTES} MB in four layers, checked and unpacked", took, "s", baseline=floor),
        figure("pull of what is there (Always)", again, "s"),
    ]


def _plainly(registry: Registry, digests: list[str]) -> None:
    for digest in digests:
        signed = urllib3.make_headers(basic_auth=":".join(registry.credentials[0][1:]))
        with urllib3.PoolManager(ca_certs=registry.ca_file) as pool:
            url = f"https://{registry.host}/v2/bench/app/blobs/sha256:{digest}"
            answer = pool.request("GET", url, headers=signed, preload_content=False)
            while answer.read(1 << 18):
                pass


async def starts(place: Path) -> list[Figure]:
    """A start is counted from when the runtime is told to start the container."""
    runtime = SandboxRuntime(str(place / "starts"), clock=SystemClock(suspended=True))
    await runtime.check()
    bring(runtime, place, HELLO)
    bring(runtime, place, LOOP, "loop:1")
    bring(runtime, place, CLOCK, "clock:1")
    numbers = itertools.count()

    async def once(what: ContainerConfig, *, wait: float, first: bool = False, pod_too: bool = False) -> float:
        """Milliseconds to its known end, or to its ``first`` instructions, which say the time; in a pod of its own that was
        started ``wait`` seconds before."""
        uid = f"bench-{next(numbers)}"
        asked = time.time_ns()
        await runtime.start_pod(pod(uid, runtime_class=what.runtime_class, containers=1))
        await asyncio.sleep(wait)
        if not pod_too:
            asked = time.time_ns()
        await runtime.start_container(uid, what)
        await until_ended(runtime, uid)
        there = time.time_ns()
        if first:
            said = await log(runtime, uid)
            there = int(said) if what.command else struct.unpack("<Q", said)[0]
        await runtime.stop_pod(uid)
        return (there - asked) / 1e6

    async def rounds(what: ContainerConfig, **more: Any) -> list[float]:
        return [await once(what, **more) for _ in range(ROUNDS)]

    cold = await once(config("guest:1"), wait=WAIT)
    await once(config("clock:1"), wait=WAIT)
    clock, date = config("clock:1"), container("date", "+%s%N")
    first_steps, native_steps = await rounds(clock, wait=WAIT, first=True), await rounds(date, wait=WAIT, first=True)
    # Nobody waits between the two: the sandbox is made meanwhile.
    with_pod = await rounds(clock, wait=0, first=True, pod_too=True)
    native_with_pod = await rounds(date, wait=0, first=True, pod_too=True)
    warm, native = await rounds(config("guest:1"), wait=WAIT), await rounds(container("true"), wait=WAIT)
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, HELLO)
    inner = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
        store.set_wasi(wasmtime.WasiConfig())
        linker.define_wasi()
        linker.instantiate(store, module)
        inner.append(1000 * (time.perf_counter() - began))
    await runtime.start_pod(pod())
    await runtime.start_container(pod().uid, config("loop:1"))
    await asyncio.sleep(1)
    groups = ("main-0", GROUP)
    memory = sum(found.memory for each in groups if (found := runtime._cgroups.measure(pod().uid, each)) is not None)
    await runtime.stop_pod(pod().uid)
    await runtime.close()
    return [
        # Against "date", which is loaded and linked before it looks at the clock.
        figure("wasm: from start to its first instructions, compiled before", first_steps, "ms", baseline=native_steps, aim=10),
        figure("    from the start of its pod", with_pod, "ms", baseline=native_with_pod),
        # Against a native program that does nothing ("true") in the same sandbox.
        figure("wasm: from start to end, compiled before", warm, "ms", baseline=native),
        figure("    instantiating alone, in a process that has wasmtime", inner, "ms"),
        figure("wasm: the first start, compiled with it", [cold], "ms"),
        figure("wasm: memory of one that runs, with its sandbox's", [memory / 1e6], "MB"),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nemo-bench-") as directory:
        place = Path(directory)
        (place / "registry").mkdir()
        with running(place / "registry") as registry:
            found = asyncio.run(pulls(place, registry))
        write("images", [*found, *asyncio.run(starts(place))])


if __name__ == "__main__":
    main()
