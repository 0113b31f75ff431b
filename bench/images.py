"""Images from a registry, and WebAssembly modules: how long until they run. Beside each, in the same run, what it cannot be
faster than: the bytes alone, and a native program in the same sandbox.

Needs Debian's ``docker-registry``, and ``wasmtime``.
"""

from __future__ import annotations

import asyncio
import os
import struct
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import urllib3
import wasmtime

from bench.results import Figure, figure, write
from metaos.clock import SystemClock
from metaos.plugins.points import ContainerConfig, Pull
from metaos.runtimes.sandbox import SandboxRuntime
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
    runtime = SandboxRuntime(str(place / "starts"), clock=SystemClock(suspended=True))
    await runtime.check()
    await runtime.start_pod(pod())
    bring(runtime, place, HELLO)
    bring(runtime, place, LOOP, "loop:1")
    bring(runtime, place, CLOCK, "clock:1")

    async def first_words(what: ContainerConfig, attempt: int) -> float:
        asked = time.time_ns()
        await runtime.start_container(pod().uid, replace(what, attempt=attempt))
        await until_ended(runtime, pod().uid)
        said = await log(runtime, pod().uid)
        return ((int(said) if what.command else struct.unpack("<Q", said)[0]) - asked) / 1e9

    async def once(what: ContainerConfig, attempt: int) -> float:
        began = time.perf_counter()
        await runtime.start_container(pod().uid, replace(what, attempt=attempt))
        await until_ended(runtime, pod().uid)
        return time.perf_counter() - began

    first = await once(config("guest:1"), 0)
    warm = [await once(config("guest:1"), 1 + number) for number in range(ROUNDS)]
    native = [await once(container("true"), 1 + ROUNDS + number) for number in range(ROUNDS)]
    await first_words(config("clock:1"), 50)
    first_steps = [await first_words(config("clock:1"), 51 + number) for number in range(ROUNDS)]
    native_steps = [await first_words(container("date", "+%s%N"), 71 + number) for number in range(ROUNDS)]
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, HELLO)
    inner = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
        store.set_wasi(wasmtime.WasiConfig())
        linker.define_wasi()
        linker.instantiate(store, module)
        inner.append(time.perf_counter() - began)
    await runtime.start_container(pod().uid, config("loop:1", attempt=100))
    await asyncio.sleep(1)
    memory = (await runtime.usage())[pod().uid][-1].memory
    await runtime.stop_pod(pod().uid)
    await runtime.close()
    return [
        # Against "date", which is loaded and linked before it looks at the clock.
        figure(
            "wasm: from start to its first instructions, compiled before",
            _ms(first_steps),
            "ms",
            baseline=_ms(native_steps),
            aim=10,
        ),
        # Against a native program that does nothing ("true") in the same sandbox.
        figure("wasm: from start to end, compiled before", _ms(warm), "ms", baseline=_ms(native)),
        figure("    instantiating alone, in a process that has wasmtime", _ms(inner), "ms"),
        figure("wasm: the first start, compiled with it", _ms([first]), "ms"),
        figure("wasm: memory of one that runs", [memory / 1e6], "MB"),
    ]


def _ms(seconds: list[float]) -> list[float]:
    return [1000 * each for each in seconds]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nemo-bench-") as directory:
        place = Path(directory)
        (place / "registry").mkdir()
        with running(place / "registry") as registry:
            found = asyncio.run(pulls(place, registry))
        write("images", [*found, *asyncio.run(starts(place))])


if __name__ == "__main__":
    main()
