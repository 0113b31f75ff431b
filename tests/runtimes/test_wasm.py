"""The runtime class wasm: what a guest is given, what it is not, and how its end is told."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metaos.clock import SystemClock
from metaos.plugins.points import ContainerConfig, ContainerState
from metaos.runtimes import process, wasm
from metaos.runtimes.sandbox import SandboxRuntime
from metaos.runtimes.spares import MAX_SPARES, Spare
from tests.runtimes.conformance import execute, log, pod, state, until_ended, until_logged, uptime
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
GREETING = guest("(call $say (i32.const 64) (i32.const 6)) (loop $on (br $on))", '(data (i32.const 64) "hello\\n")')
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
    await runtime.start_container(pod().uid, config(bring(runtime, place, GREETING), mounts=mounts))
    await until_logged(runtime, pod().uid, b"hello")
    here = runtime._known()[pod().uid]
    monitor = here.containers["main"].monitor
    assert monitor is not None and here.holder is not None
    (compiled,) = (place / "runtime/compiled").iterdir()  # it is open while it is mapped
    shown = {os.stat(path).st_ino for path in (compiled, *(source for source, _, _ in mounts))}
    init = await only_child(monitor.pid)
    guest = await only_child(init)
    for each in (init, guest):
        for thread in os.listdir(f"/proc/{each}/task"):
            found = status(int(thread))
            assert [found[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == ["0" * 16] * 5
            assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
        beyond = [fd for fd in os.listdir(f"/proc/{each}/fd") if int(fd) > 2]
        beyond = [
            fd for fd in beyond if not os.readlink(f"/proc/{each}/fd/{fd}").startswith("anon_inode:[event")
        ]  # wasmtime's own
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
    await runtime.start_container(pod().uid, config(bring(runtime, place, GREETING)))
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


#: Says again what it reads first.
ECHO = guest(
    """(i32.store (i32.const 24) (i32.const 64)) (i32.store (i32.const 28) (i32.const 100))
    (drop (call $read (i32.const 0) (i32.const 24) (i32.const 1) (i32.const 32)))
    (call $say (i32.const 64) (i32.load (i32.const 32)))""",
    f'(import "{WASI}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))',
)


@pytest.mark.parametrize("tty", [False, True])
async def test_it_reads_what_those_who_attach_write(runtime: SandboxRuntime, place: Path, tty: bool) -> None:
    await runtime.start_container(pod().uid, config(bring(runtime, place, ECHO), stdin=True, tty=tty))
    attached = await runtime.attach(pod().uid, "main")
    await attached.write(b"typed\n")
    ended = await until_ended(runtime, pod().uid)
    assert (ended.exit_code, await log(runtime, pod().uid)) == (0, b"typed\r\ntyped\r\n" if tty else b"typed\n")
    await attached.kill()


# --- sandboxes that are made before (see spares.py) ---------------------------------------------------------------------


async def spares(runtime: SandboxRuntime, uid: str, count: int = 1) -> list[Spare]:
    """Of a pod that has just been started, once they wait."""
    await runtime.start_pod(pod(uid, runtime_class="wasm", containers=count))
    made = list(runtime._wasm.spares._made[uid])
    async with asyncio.timeout(20):
        await asyncio.wait(made)
    return [each.result() for each in made]


async def processes(spare: Spare) -> list[process.Identity]:
    """Monitor, process 1, and the guest's own."""
    monitor = spare._waiting.monitor
    init = await only_child(monitor.pid)
    found = [process.identity(each) for each in (init, await only_child(init))]
    return [monitor, *(each for each in found if each is not None)]


async def gone(those: list[process.Identity]) -> None:
    async with asyncio.timeout(20):
        for each in those:
            await process.ended(each)


async def test_a_spare_is_used_once_by_its_own_pod(runtime: SandboxRuntime, place: Path) -> None:
    bring(runtime, place, GREETING)
    (spare,) = await spares(runtime, "one")
    (other,) = await spares(runtime, "two")
    theirs = [await processes(each) for each in (spare, other)]
    holders = [runtime._known()[uid].holder for uid in ("one", "two")]
    for (_, _, waiting), holder in zip(theirs, holders, strict=True):
        assert holder is not None
        assert os.stat(f"/proc/{waiting.pid}/ns/net").st_ino == os.stat(f"/proc/{holder.pid}/ns/net").st_ino
        if not runtime._cgroups.problem:
            assert "sandboxes" in Path(f"/proc/{waiting.pid}/cgroup").read_text(), "what waits counts as its pod's"
    await runtime.start_container("one", config("guest:1"))
    await until_logged(runtime, "one", b"hello")
    container = runtime._known()["one"].containers["main"]
    assert container.monitor == theirs[0][0]
    assert not runtime._wasm.spares._made.get("one")
    for group in runtime._cgroups.directories("one", container.group):
        assert (Path(group) / "cgroup.procs").read_text().split() == [str(theirs[0][2].pid)], group
    await runtime.start_container("one", replace(config("guest:1"), name="more"))
    assert runtime._known()["one"].containers["more"].monitor not in (theirs[0][0], theirs[1][0])
    assert other.fits(other._tenant), "it waits on"
    for uid in ("one", "two"):
        await runtime.stop_pod(uid)
    for each in theirs:
        assert not any(who.alive() for who in each), "nothing is left when stopping has returned"
    assert not [found for level in runtime._cgroups.places() for found in Path(level).glob("**/sandboxes")]


async def test_spares_are_few_and_do_not_wait_for_ever(
    runtime: SandboxRuntime, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(await spares(runtime, "many", MAX_SPARES + 3)) == MAX_SPARES
    await runtime.start_pod(pod("more", runtime_class="wasm", containers=1))
    assert "more" not in runtime._wasm.spares._made
    await runtime.start_container("more", config(bring(runtime, place, HELLO)))
    assert (await until_ended(runtime, "more")).exit_code == 7, "it is made when it is needed"
    await runtime.stop_pod("many")
    monkeypatch.setattr("metaos.runtimes.spares.SPARE_SECONDS", 0.05)
    (spare,) = await spares(runtime, "late")
    await gone([spare._waiting.monitor])
    assert "late" not in runtime._wasm.spares._made
    for uid in ("more", "late"):
        await runtime.stop_pod(uid)


async def test_a_guest_does_not_begin_beside_a_thread_that_is_not_confined(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another wasmtime might start one when it is used first."""
    copy = Path(shutil.copytree(os.path.dirname(wasm._ZYGOTE), place / "runtimes"))
    with (copy / "wasmworker.py").open("a") as file:
        file.write("\n\ndef warm() -> None:\n    threading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    monkeypatch.setattr(wasm, "_ZYGOTE", str(copy / "wasmzygote.py"))
    made = SandboxRuntime(str(place / "runtime"), clock=SystemClock(suspended=True))
    await made.check()
    (spare,) = await spares(made, "one")
    waiting = (await processes(spare))[2]
    async with asyncio.timeout(20):
        while len(os.listdir(f"/proc/{waiting.pid}/task")) < 2:
            await asyncio.sleep(0.01)
    await made.start_container("one", config(bring(made, place, GREETING)))
    ended = await until_ended(made, "one")
    assert ended.exit_code == 128 and "before that was closed" in ended.message
    await made.stop_pod("one")
    await made.close()


async def test_pods_of_other_classes_have_none(runtime: SandboxRuntime) -> None:
    await runtime.start_pod(pod("native", containers=2))
    assert not runtime._wasm.spares._made
    await runtime.stop_pod("native")


async def test_a_spare_that_has_ended_or_is_of_before_is_not_used(runtime: SandboxRuntime, place: Path) -> None:
    bring(runtime, place, HELLO)
    for at, uid in enumerate(("monitor", "init", "guest")):
        (spare,) = await spares(runtime, uid)
        those = await processes(spare)
        those[at].kill()
        await gone(those[2:])
        await runtime.start_container(uid, config("guest:1"))
        assert (await until_ended(runtime, uid)).exit_code == 7, uid
        assert runtime._known()[uid].containers["main"].monitor != spare._waiting.monitor
        await runtime.stop_pod(uid)
    (spare,) = await spares(runtime, "moved")
    assert spare.fits(spare._tenant)
    holder = runtime._known()["moved"].holder
    assert holder is not None
    holder.kill()
    await process.ended(holder)
    await runtime.start_container("moved", config("guest:1"))
    assert (await until_ended(runtime, "moved")).exit_code == 7
    await gone([spare._waiting.monitor])
    await runtime.stop_pod("moved")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts something on the machine")
async def test_what_was_mounted_after_a_spare_was_made_is_seen(runtime: SandboxRuntime, place: Path) -> None:
    bring(runtime, place, opener("file"))
    (spare,) = await spares(runtime, "mounted")
    volume = place / "runtime/volumes/late"
    volume.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", volume], check=True)
    try:
        (volume / "file").write_text("x")
        await runtime.start_container("mounted", config("guest:1", mounts=((str(volume), "/data", True),)))
        assert (await until_ended(runtime, "mounted")).exit_code == 0
        await gone([spare._waiting.monitor])
        await runtime.stop_pod("mounted")
    finally:
        subprocess.run(["umount", volume], check=True)


STARTER = """
import asyncio, sys
from metaos.clock import SystemClock
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import pod
async def main():
    runtime = SandboxRuntime(sys.argv[1], clock=SystemClock(suspended=True))
    await runtime.check()
    await runtime.start_pod(pod("left", runtime_class="wasm", containers=1))
    (made,) = runtime._wasm.spares._made["left"]
    print((await made)._waiting.monitor.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_spares_end_with_an_agent_that_is_killed(place: Path) -> None:
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTER, str(place / "runtime"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert starter.stdout is not None
        async with asyncio.timeout(30):
            monitor = int(await starter.stdout.readline())
        init = await only_child(monitor)
        those = [process.identity(each) for each in (monitor, init, await only_child(init))]
    finally:
        starter.kill()
        await starter.wait()
    await gone([each for each in those if each is not None])
    later = SandboxRuntime(str(place / "runtime"), clock=SystemClock(suspended=True))
    assert set(await later.pods()) == {"left"}
    await later.stop_pod("left")
    await later.close()


async def test_nothing_of_a_pod_that_must_not_run_twice_outlasts_its_time(runtime: SandboxRuntime, place: Path) -> None:
    (one, spare) = await spares(runtime, "fenced", 2)
    those = [*await processes(one), *await processes(spare)]
    await runtime.start_container("fenced", config(bring(runtime, place, GREETING)))
    await until_logged(runtime, "fenced", b"hello")
    await runtime.fence(uptime(), {"fenced": 0.0})
    assert (await until_ended(runtime, "fenced")).reason == "Fenced"
    if not runtime._cgroups.problem:
        await gone(those)
    await runtime.fence(uptime(), {})
    await runtime.stop_pod("fenced")


async def test_a_sandbox_holds_nothing_of_other_pods(runtime: SandboxRuntime, place: Path) -> None:
    """What a guest was given never passes through the program from which others are forked."""
    bring(runtime, place, GREETING)
    secret = os.urandom(20).hex()
    for attempt in range(3):
        await runtime.start_container(pod().uid, config("guest:1", env=(("TOKEN", secret),), attempt=attempt))
        await until_logged(runtime, pod().uid, b"hello")
        await runtime.stop_container(pod().uid, "main", 0)
    (spare,) = await spares(runtime, "other")
    await runtime.start_container("other", config("guest:1"))
    await until_logged(runtime, "other", b"hello")
    zygote = runtime._wasm._forks._zygote
    assert zygote is not None
    for each in (zygote.pid, *(who.pid for who in await processes(spare))):
        assert secret.encode() not in memory_of(each)
    await runtime.stop_pod("other")


def memory_of(pid: int) -> bytes:
    """All that it may write to."""
    found = b""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for span, rights in (line.split()[:2] for line in maps):
            if rights.startswith("rw"):
                begin, end = (int(each, 16) for each in span.split("-"))
                memory.seek(begin)
                found += memory.read(end - begin)
    return found
