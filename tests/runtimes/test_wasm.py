"""The runtime class wasm: what a guest is given, what it is not, and how its end is told."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metaos.clock import SystemClock
from metaos.plugins.points import ContainerConfig, ContainerState
from metaos.runtimes import process
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import execute, log, pod, state, until_ended, until_logged
from tests.runtimes.registries import digest_of
from tests.runtimes.test_images import layer

wasmtime = pytest.importorskip("wasmtime", reason="wasmtime is not installed: pip install nemo-metaos[wasm]")
pytestmark = pytest.mark.system

WASI = "wasi_snapshot_preview1"
#: What the guests below have in common: memory, and a function that writes what lies at (address, length) to a descriptor.
HEAD = f"""
(import "{WASI}" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
(import "{WASI}" "proc_exit" (func $exit (param i32)))
(func $say (param $at i32) (param $size i32)
  (i32.store (i32.const 8) (local.get $at)) (i32.store (i32.const 12) (local.get $size))
  (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 16))))
"""


def guest(body: str, head: str = "", memory: str = '(memory (export "memory") 2)') -> bytes:
    """A WASI command. Imports come first."""
    imports = [line for line in (head + HEAD).splitlines() if line.startswith("(import")]
    rest = [line for line in (head + HEAD).splitlines() if not line.startswith("(import")]
    text = "\n".join(["(module", *imports, memory, *rest, f'(func (export "_start") {body}))'])
    return bytes(wasmtime.wat2wasm(text))


HELLO = guest("(call $say (i32.const 64) (i32.const 6)) (call $exit (i32.const 7))", '(data (i32.const 64) "hello\\n")')
LOOP = guest("(loop $on (br $on))")
TRAP = guest("unreachable")
#: Arguments and environment as they are: each buffer is written out whole.
SHOW = guest(
    """(local $n i32)
    (drop (call $args_sizes (i32.const 0) (i32.const 4))) (drop (call $args (i32.const 1024) (i32.const 4096)))
    (call $say (i32.const 4096) (i32.load (i32.const 4)))
    (drop (call $env_sizes (i32.const 0) (i32.const 4))) (drop (call $env (i32.const 1024) (i32.const 8192)))
    (call $say (i32.const 8192) (i32.load (i32.const 4)))""",
    f"""
(import "{WASI}" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
(import "{WASI}" "args_get" (func $args (param i32 i32) (result i32)))
(import "{WASI}" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
(import "{WASI}" "environ_get" (func $env (param i32 i32) (result i32)))""",
)
#: Says 16 random bytes.
RANDOM = guest(
    "(drop (call $random (i32.const 64) (i32.const 16))) (call $say (i32.const 64) (i32.const 16))",
    f'(import "{WASI}" "random_get" (func $random (param i32 i32) (result i32)))',
)
#: Touches memory until it gets no more.
EATER = guest(
    """(local $at i32)
    (loop $on
      (if (i32.eq (memory.grow (i32.const 256)) (i32.const -1)) (then unreachable))
      (memory.fill (local.get $at) (i32.const 1) (i32.const 16777216))
      (local.set $at (i32.add (local.get $at) (i32.const 16777216)))
      (br $on))"""
)


def opener(path: str, flags: int = 0, rights: int = 2, descriptor: int = 3) -> bytes:
    """Opens a path below its first directory, and exits with WASI's error number, 0 where it could. ``flags``: 1 creates;
    ``rights``: 2 reads, 64 writes."""
    opened = f'(import "{WASI}" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))'
    call = f"""(call $exit (call $open (i32.const {descriptor}) (i32.const 1) (i32.const 64) (i32.const {len(path.encode())})
      (i32.const {flags}) (i64.const {rights}) (i64.const 0) (i32.const 0) (i32.const 32)))"""
    return guest(call, f'{opened}\n(data (i32.const 64) "{path}")')


COMPONENT = """(component
  (core module $m (func (export "run") (result i32) {body}))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))"""


@pytest.fixture
def place() -> Iterator[Path]:
    found = Path(os.path.realpath(tempfile.mkdtemp(prefix="nemo-wasm-")))
    yield found
    shutil.rmtree(found)


@pytest.fixture
async def runtime(place: Path) -> AsyncIterator[SandboxRuntime]:
    made = SandboxRuntime(str(place / "runtime"), clock=SystemClock(suspended=True))
    await made.check()
    await made.start_pod(pod())
    yield made
    await made.stop_pod(pod().uid)
    await made.close()


def artifact(place: Path, data: bytes, kind: str = "application/wasm", lie: bool = False) -> Path:
    """An OCI layout of one WebAssembly file, as ``wkg`` and ``oras`` push it."""
    shutil.rmtree(place, ignore_errors=True)
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, written: bytes | None = None) -> str:
        (blobs / digest_of(content)[7:]).write_bytes(content if written is None else written)
        return digest_of(content)

    config = {"mediaType": "application/vnd.wasm.config.v0+json", "digest": blob(b"{}"), "size": 2}
    rows = [{"mediaType": kind, "digest": blob(data, data + b"x" if lie else None), "size": len(data)}]
    manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": rows}).encode()
    index = {"schemaVersion": 2, "manifests": [{"digest": blob(manifest), "size": len(manifest)}]}
    (place / "index.json").write_text(json.dumps(index))
    return place


def bring(runtime: SandboxRuntime, place: Path, data: bytes, name: str = "guest:1") -> str:
    runtime._images.import_archive(str(artifact(place / "artifact", data)), name)
    return name


def config(image: str, *args: str, **more: Any) -> ContainerConfig:
    fields: dict[str, Any] = {"command": (), "env": (), "working_dir": "", "mounts": ()} | more
    return ContainerConfig(name="main", image=image, args=args, runtime_class="wasm", **fields)


async def run(runtime: SandboxRuntime, place: Path, data: bytes, *args: str, **more: Any) -> ContainerState:
    await runtime.start_container(pod().uid, config(bring(runtime, place, data), *args, **more))
    return await until_ended(runtime, pod().uid)


async def test_a_module_runs_and_its_exit_code_is_told(runtime: SandboxRuntime, place: Path) -> None:
    assert runtime.runtime_classes() == ("wasm",)
    ended = await run(runtime, place, HELLO)
    assert (ended.exit_code, ended.reason) == (7, "Error")
    assert await log(runtime, pod().uid) == b"hello\n"
    (compiled,) = (place / "runtime/compiled").iterdir()
    stamp = compiled.stat().st_ino
    await runtime.start_container(pod().uid, config("guest:1", attempt=1))
    assert (await until_ended(runtime, pod().uid)).exit_code == 7
    assert compiled.stat().st_ino == stamp, "it is compiled once"


async def test_each_has_random_numbers_of_its_own(runtime: SandboxRuntime, place: Path) -> None:
    seen = set()
    for attempt in range(3):
        assert (await run(runtime, place, RANDOM, attempt=attempt)).exit_code == 0
        seen.add(await log(runtime, pod().uid))
    assert [len(each) for each in seen] == [16, 16, 16], "what has been used before the fork must not be what guests draw from"


async def test_a_component_runs(runtime: SandboxRuntime, place: Path) -> None:
    for attempt, (body, code) in enumerate((("i32.const 0", 0), ("i32.const 1", 1), ("unreachable", 134))):
        made = bytes(wasmtime.wat2wasm(COMPONENT.format(body=body)))
        ended = await run(runtime, place, made, attempt=attempt)
        assert ended.exit_code == code, (ended, await log(runtime, pod().uid))


async def test_it_has_its_arguments_and_environment_and_no_others(runtime: SandboxRuntime, place: Path) -> None:
    ended = await run(runtime, place, SHOW, "a b", env=(("COLOUR", "blue"), ("LD_PRELOAD", "/evil.so"), ("PYTHONPATH", "/evil")))
    assert ended.exit_code == 0
    words = (await log(runtime, pod().uid)).rstrip(b"\0").split(b"\0")
    assert words[:2] == [b"/module.wasm", b"a b"]
    assert {word.partition(b"=")[0] for word in words[2:]} == {
        b"PATH",
        b"HOSTNAME",
        b"HOME",
        b"COLOUR",
        b"LD_PRELOAD",
        b"PYTHONPATH",
    }


async def test_a_component_has_the_same_limits(runtime: SandboxRuntime, place: Path) -> None:
    made = bytes(wasmtime.wat2wasm(COMPONENT.format(body="(loop $on (br $on)) i32.const 0")))
    assert (await run(runtime, place, made, fuel=1_000_000)).reason == "FuelExhausted"
    assert (await run(runtime, place, made, seconds=0.2, attempt=1)).reason == "DeadlineExceeded"


async def test_how_it_was_ended_is_told_apart(runtime: SandboxRuntime, place: Path) -> None:
    ended = await run(runtime, place, TRAP)
    assert (ended.exit_code, ended.reason) == (134, "Trapped") and "unreachable" in ended.message
    ended = await run(runtime, place, LOOP, fuel=1_000_000, attempt=1)
    assert (ended.exit_code, ended.reason, ended.message) == (152, "FuelExhausted", "it has used its fuel of 1000000")
    ended = await run(runtime, place, LOOP, seconds=0.2, attempt=2)
    assert (ended.exit_code, ended.reason, ended.message) == (142, "DeadlineExceeded", "it has run for 0.2 s, which is its limit")
    if not runtime._cgroups.problem:
        ended = await run(runtime, place, EATER, memory_limit=200 << 20, attempt=3)
        # The guest's own bound and the cgroup's are the same: what it is made of decides which comes first.
        assert (ended.exit_code, ended.reason) in ((137, "OOMKilled"), (134, "Trapped"))


async def test_its_memory_is_bounded_where_there_are_no_cgroups(runtime: SandboxRuntime, place: Path) -> None:
    runtime._cgroups._usable = False
    ended = await run(runtime, place, EATER, memory_limit=64 << 20)
    assert (ended.exit_code, ended.reason) == (134, "Trapped")


async def test_it_sees_its_volumes_alone(runtime: SandboxRuntime, place: Path) -> None:
    volume = place / "runtime/volumes"
    (volume / "inside").mkdir(parents=True)
    (volume / "file").write_text("x")
    (volume / "absolute").symlink_to("/etc/passwd")
    (volume / "relative").symlink_to("../../../../../etc/passwd")
    (volume / "self").symlink_to("/proc/self/environ")
    mounts = ((str(volume), "/data", False),)
    attempt = 0
    for path, good in [
        ("file", True),
        ("inside/../file", True),
        ("../etc/passwd", False),
        ("/etc/passwd", False),
        ("inside/../../etc/passwd", False),
        ("absolute", False),
        ("relative", False),
        ("self", False),
    ]:
        ended = await run(runtime, place, opener(path), mounts=mounts, attempt=attempt)
        assert (ended.exit_code == 0) is good, (path, ended)
        attempt += 1
    assert (await run(runtime, place, opener("made", 1, 64), mounts=mounts, attempt=attempt)).exit_code == 0
    assert (volume / "made").exists()
    read_only = ((str(volume), "/data", True),)
    assert (await run(runtime, place, opener("more", 1, 64), mounts=read_only, attempt=attempt + 1)).exit_code != 0
    assert not (volume / "more").exists()
    assert (await run(runtime, place, opener("etc/passwd"), attempt=attempt + 2)).exit_code == 8, "EBADF: no volume, no directory"


def status(pid: int) -> dict[str, str]:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}


async def only_child(pid: int) -> int:
    async with asyncio.timeout(20):
        while not (found := process.children(pid)):
            await asyncio.sleep(0.01)
    (child,) = found
    return child


async def test_its_process_can_do_and_see_nothing_else(runtime: SandboxRuntime, place: Path) -> None:
    for name in ("open", "sealed"):
        (place / "runtime/volumes" / name).mkdir(parents=True)
    mounts = tuple(
        (str(place / "runtime/volumes" / name), f"/{name}", read_only) for name, read_only in (("open", False), ("sealed", True))
    )
    await runtime.start_container(pod().uid, config(bring(runtime, place, LOOP), mounts=mounts))
    here = runtime._known()[pod().uid]
    monitor = here.containers["main"].monitor
    assert monitor is not None and here.holder is not None
    (compiled,) = (place / "runtime/compiled").iterdir()  # it is open while it is mapped
    shown = {os.stat(path).st_ino for path in (compiled, *(source for source, _, _ in mounts))}
    init = await only_child(monitor.pid)
    guest = await only_child(init)
    for each in (init, guest):
        found = status(each)
        assert [found[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == ["0" * 16] * 5
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
        beyond = [fd for fd in os.listdir(f"/proc/{each}/fd") if int(fd) > 2]
        assert {os.stat(f"/proc/{each}/fd/{fd}").st_ino for fd in beyond} <= shown
        for kind, same in (("net", True), ("ipc", True), ("uts", True), ("user", False), ("mnt", False), ("pid", False)):
            theirs = os.stat(f"/proc/{each}/ns/{kind}").st_ino
            assert (theirs == os.stat(f"/proc/{here.holder.pid}/ns/{kind}").st_ino) is same, kind
            assert theirs != os.stat(f"/proc/self/ns/{kind}").st_ino, kind
    seen = [line.split() for line in Path(f"/proc/{guest}/mountinfo").read_text().splitlines()]
    mounted = {words[4]: set(words[5].split(",")) for words in seen}
    assert set(mounted) == {"/", "/module", "/volumes/0", "/volumes/1"}
    assert {place for place, options in mounted.items() if "ro" in options} == {"/", "/module", "/volumes/1"}
    assert all({"nosuid", "nodev"} <= options for options in mounted.values())
    assert all("noexec" in options for place, options in mounted.items() if place != "/module")
    assert set(os.listdir(f"/proc/{guest}/root")) == {"volumes", "module"}
    last = process.identity(guest)
    monitor.kill()
    await until_ended(runtime, pod().uid)
    assert last is not None
    await process.ended(last)


async def test_guests_outlive_what_they_were_forked_from(runtime: SandboxRuntime, place: Path) -> None:
    name = bring(runtime, place, LOOP)
    await runtime.start_container(pod().uid, config(name))
    zygote = runtime._wasm._forks._zygote
    assert zygote is not None
    zygote.kill()
    await process.ended(zygote)
    found = await state(runtime, pod().uid)
    assert found is not None and found.running
    await runtime.start_container(pod().uid, replace(config(bring(runtime, place, HELLO, "hello:1")), name="other"))
    assert (await until_ended(runtime, pod().uid, "other")).exit_code == 7


async def test_commands_are_refused_and_signals_end_it(runtime: SandboxRuntime, place: Path) -> None:
    greeting = guest("(call $say (i32.const 64) (i32.const 6)) (loop $on (br $on))", '(data (i32.const 64) "hello\\n")')
    await runtime.start_container(pod().uid, config(bring(runtime, place, greeting)))
    await until_logged(runtime, pod().uid, b"hello")
    with pytest.raises(LookupError, match="no programs that could be executed"):
        await execute(runtime, pod().uid, ("sh",))
    await runtime.close()
    later = SandboxRuntime(str(place / "runtime"), clock=SystemClock(suspended=True))
    found = await state(later, pod().uid)
    assert found is not None and found.running
    with pytest.raises(LookupError, match="no programs that could be executed"):
        await execute(later, pod().uid, ("sh",))
    await later.stop_container(pod().uid, "main", 30)
    found = await state(later, pod().uid)
    assert found is not None and found.exit_code == 143
    await later.stop_pod(pod().uid)
    await later.close()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no wasm", "neither a WebAssembly module nor a component"),
        (b"\0asm\x01\0\0\0garbage", "cannot be compiled"),
        (b"\0asm\x0d\0\x01\0garbage", "cannot be compiled"),
    ],
)
async def test_what_is_no_module_can_never_start(runtime: SandboxRuntime, place: Path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await run(runtime, place, data)
    assert not runtime._wasm._compiling  # Nothing is remembered of it: there may be any number of such.


async def test_what_it_lacks_is_said(runtime: SandboxRuntime, place: Path) -> None:
    ended = await run(runtime, place, bytes(wasmtime.wat2wasm("(module)")))
    assert (ended.exit_code, ended.reason) == (128, "ContainerCannotRun") and "_start" in ended.message
    unknown = bytes(wasmtime.wat2wasm('(module (import "host" "secret" (func)) (func (export "_start")))'))
    ended = await run(runtime, place, unknown, attempt=1)
    assert (ended.exit_code, ended.reason) == (128, "ContainerCannotRun") and "host" in ended.message
    with pytest.raises(ValueError, match="has no WebAssembly module"):
        await runtime.start_container(pod().uid, config("python:3", attempt=2))
    with pytest.raises(ValueError, match="'kata' is not one of this site's: it has wasm"):
        await runtime.start_container(pod().uid, replace(config("guest:1", attempt=2), runtime_class="kata"))


async def test_an_image_with_a_wasm_entrypoint_cannot_lead_out(runtime: SandboxRuntime, place: Path) -> None:
    from tests.runtimes.test_images import docker_archive

    (place / "image").mkdir()
    layers = [layer({"app.wasm": HELLO, "out.wasm": "/usr/bin/env", "up.wasm": "../../../../../../usr/bin/env"})]
    path = docker_archive(place / "image", layers, ["app:1"], Entrypoint=["/app.wasm"])
    await runtime.import_archive(str(path))
    await runtime.start_container(pod().uid, config("app:1"))
    assert (await until_ended(runtime, pod().uid)).exit_code == 7
    for name in ("/out.wasm", "/up.wasm", "/../../../etc/passwd", "/missing.wasm"):
        with pytest.raises(ValueError, match="has no file"):
            await runtime.start_container(pod().uid, config("app:1", command=(name,), attempt=1))


def test_artifacts_are_checked_by_their_digest(place: Path) -> None:
    from metaos.plugins.points import ImageError

    runtime = SandboxRuntime(str(place / "runtime"), clock=SystemClock())
    with pytest.raises(ImageError, match="does not have the content of its digest"):
        runtime._images.import_archive(str(artifact(place / "a", HELLO, lie=True)), "guest:1")
    one = runtime._images.import_archive(str(artifact(place / "a", HELLO)), "guest:1")
    runtime._images.import_archive(str(artifact(place / "a", TRAP, "application/vnd.wasm.content.layer.v1+wasm")), "guest:2")
    found = [runtime._images.find(name).rootfs for name in (*one, "guest:2")]
    assert [Path(str(each), "module.wasm").read_bytes() for each in found] == [HELLO, TRAP], (
        "the same configuration, and not the same file"
    )
