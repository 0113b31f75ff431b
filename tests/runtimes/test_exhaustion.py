"""A container that uses up what it can: it hits its own limits, and a neighbour answers all the while."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator

import pytest

from metaos.clock import SystemClock
from metaos.config import allow_files
from metaos.runtimes import cgroups, isolation, process
from metaos.runtimes.cgroups import Cgroups
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import DEADLINE, SERVER, ask, container, execute, log, pod, run, state, until_logged

pytestmark = pytest.mark.system

PORT = 8080
FEW = 100


@pytest.fixture
async def runtime(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SandboxRuntime]:
    allow_files()  # as an agent does
    # The machine's own tests run beside: the same limits, only lower.
    monkeypatch.setattr(cgroups, "MAX_PIDS", FEW)
    monkeypatch.setattr(isolation, "MAX_PIDS", FEW)
    monkeypatch.setattr("metaos.runtimes.bubblewrap.MAX_FILES", 5000)
    place = tempfile.mkdtemp(prefix="nemo-exhaustion-")
    made = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock())
    await made.check()
    await made.start_pod(pod())
    await made.start_pod(pod("neighbour"))
    await made.start_container("neighbour", container("python3", "-c", SERVER, str(PORT)))
    await until_logged(made, "neighbour", b"listening")
    yield made
    for uid in list(await made.pods()):
        await made.stop_pod(uid)
    await made.close()
    shutil.rmtree(place)


async def unharmed(runtime: SandboxRuntime) -> None:
    """The neighbour answers, a command can be run in it, a new pod can be started, and logs can be followed."""
    async with asyncio.timeout(DEADLINE):
        for number in range(20):  # more than are in store
            assert await ask(await runtime.connect("neighbour", PORT), b"%d" % number) == b"hello %d" % number
        process_ = await runtime.exec("neighbour", "main", ("sh", "-c", "sleep 0 & wait; echo fine"))
        assert [data async for _, data in process_.output()] == [b"fine\n"]
        await runtime.start_pod(pod("new"))
        await runtime.start_container("new", container("sh", "-c", "echo fine"))
        assert await log(runtime, "new", follow=True) == b"fine\n"
        await runtime.stop_pod("new")
    assert (await state(runtime, "neighbour")).running  # type: ignore[union-attr]


async def test_a_fork_bomb_ends_at_the_limit_of_its_pod(runtime: SandboxRuntime) -> None:
    script = """
import os, time
count = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(1000)
    except BlockingIOError:
        print('stopped at', count, flush=True)
        break
    count += 1
time.sleep(1000)
"""
    await runtime.start_container(pod().uid, container("python3", "-c", script))
    said = await until_logged(runtime, pod().uid, b"\n")
    assert FEW // 2 < int(said.split()[-1]) <= FEW
    await unharmed(runtime)
    # Nothing more can be started in a pod that is full: that is said, and nobody waits for ever.
    code, _, _ = await execute(runtime, pod().uid, ("sh", "-c", "sleep 0 & wait $!"))
    assert code != 0
    await runtime.stop_container(pod().uid, "main", 0)
    # The bomb proper: everything in it forks for as long as it lives.
    await runtime.start_container(
        pod().uid, container("sh", "-c", "echo go; bomb() { bomb | bomb & }; while :; do bomb; done", name="b")
    )
    await until_logged(runtime, pod().uid, b"go", "b")
    await unharmed(runtime)
    async with asyncio.timeout(DEADLINE):
        await runtime.stop_pod(pod().uid)
    left = [each for each in process.everyone() if b"bomb" in _command(each.pid)]
    assert left == []


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


async def test_files_and_descriptors_under_way(runtime: SandboxRuntime) -> None:
    script = """
import array, os, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = []
try:
    while True: held.append(os.open('/dev/null', os.O_RDONLY))
except OSError as error:
    print(error.errno, len(held))
for fd in held: os.close(fd)
sent, keep = 0, []
try:
    while True:
        pair = socket.socketpair(); keep.append(pair)
        for _ in range(4):
            pair[0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0] * 250))])
            sent += 250
except OSError as error:
    print(error.errno, sent, flush=True)
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (10**6, 10**6)); print('raised')
except ValueError:
    print('kept', flush=True)
import time; time.sleep(1000)
"""
    await runtime.start_container(pod().uid, container("python3", "-c", script))
    lines = (await until_logged(runtime, pod().uid, b"kept\n")).splitlines()
    assert lines[0].split()[0] == b"24" and 4900 < int(lines[0].split()[1]) <= 5000
    assert lines[1].split()[0] == b"109" and int(lines[1].split()[1]) < 5500
    await unharmed(runtime)


async def test_what_users_share_in_the_kernel(runtime: SandboxRuntime) -> None:
    """Inotify instances, pipes and timers count by user, and containers have the agent's."""
    script = """
import ctypes, os, resource, time
libc = ctypes.CDLL(None)
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
print(sum(libc.inotify_init1(0) >= 0 for _ in range(1000)))
import fcntl
pipes = []
try:
    while len(pipes) < 1000:
        pipes.append(os.pipe()); fcntl.fcntl(pipes[-1][0], 1031, 1 << 20)
except OSError: pass
timer = ctypes.c_void_p()
while libc.timer_create(1, None, ctypes.byref(timer)) == 0: pass
print('full', flush=True); time.sleep(1000)
"""
    await runtime.start_container(pod().uid, container("python3", "-c", script))
    await until_logged(runtime, pod().uid, b"full\n")
    await unharmed(runtime)


async def test_memory(runtime: SandboxRuntime) -> None:
    if Cgroups.here("probe").problem:
        pytest.skip(f"no memory limits here: {Cgroups.here('probe').problem}")
    eat = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    ended, _ = await run(runtime, pod().uid, container("python3", "-c", eat, memory_limit=64 << 20))
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    # Killed below the command: the container lives on, as Kubernetes has it where the kernel does not kill it whole.
    config = container("sh", "-c", f'python3 -c "{eat}"; echo "child $?"; exit 3', memory_limit=64 << 20, attempt=1)
    ended, said = await run(runtime, pod().uid, config)
    assert ended.reason == "OOMKilled" and (ended.exit_code, said[-10:]) in ((3, "child 137\n"), (137, ""))
    # Files in memory count as its memory.
    fill = "head -c 200000000 /dev/zero >/tmp/x; echo $?"
    ended, said = await run(runtime, pod().uid, container("sh", "-c", fill, memory_limit=64 << 20, attempt=2))
    assert ended.reason == "OOMKilled" or said.split()[-1] == "137"
    await unharmed(runtime)


async def test_the_kernel_kills_containers_before_the_agent(runtime: SandboxRuntime) -> None:
    _, said = await run(
        runtime, pod().uid, container("sh", "-c", "cat /proc/self/oom_score_adj; echo -1 >/proc/$$/oom_score_adj || echo no")
    )
    assert said.startswith("500\n") and said.endswith("no\n")  # whatever else it may do, it cannot go below the agent
    await runtime.start_container(pod().uid, container("sh", "-c", "echo ready; sleep 100"))
    await until_logged(runtime, pod().uid, b"ready")
    assert (await execute(runtime, pod().uid, ("cat", "/proc/self/oom_score_adj")))[1] == b"500\n"


async def test_private_file_systems_are_bounded(runtime: SandboxRuntime) -> None:
    script = (
        "for f in /tmp/x /dev/shm/x; do head -c 300000000 /dev/zero >$f 2>/dev/null; stat -c %s $f; rm $f; done; rm -f /tmp/x"
    )
    _, said = await run(runtime, pod().uid, container("sh", "-c", script))
    assert said.splitlines() == [str(256 << 20), str(64 << 20)]
    await unharmed(runtime)


async def test_no_core_is_dumped(runtime: SandboxRuntime) -> None:
    ended, said = await run(runtime, pod().uid, container("sh", "-c", "cd /tmp; ulimit -c; sh -c 'kill -ABRT $$'; ls"))
    assert ended.exit_code == 0 and "core" not in said and said.startswith("0\n")


@pytest.fixture
async def small() -> AsyncIterator[SandboxRuntime]:
    """A site that gives all pods together 200 MiB and a third of a core."""
    place = tempfile.mkdtemp(prefix="nemo-capped-")
    made = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock(), most=(333, 200 << 20))
    await made.check()
    said = {found["type"]: found["message"] for found in made.conditions()}
    if {"ResourceLimits", "SystemReserved"} & set(said):
        await made.close()
        shutil.rmtree(place)
        pytest.skip(f"pods cannot be held together here: {said}")
    for uid in ("a", "b"):
        await made.start_pod(pod(uid))
    yield made
    for uid in list(await made.pods()):
        await made.stop_pod(uid)
    await made.close()
    shutil.rmtree(place)


async def test_pods_without_limits_have_together_what_the_site_offers(small: SandboxRuntime) -> None:
    # Each alone would fit.
    hold = "import sys, time; held = bytearray(120 << 20); print('up', flush=True); time.sleep(1000)"
    await small.start_container("a", container("python3", "-c", hold, name="hold"))
    await until_logged(small, "a", b"up", "hold")
    await small.start_container("b", container("python3", "-c", hold, name="hold"))
    async with asyncio.timeout(DEADLINE):
        while not (ended := [s for uid in ("a", "b") if (s := await state(small, uid, "hold")) and not s.running]):
            await small.wait()
    assert [s.reason for s in ended] == ["OOMKilled"] and "all pods of the site together" in ended[0].message
    for uid in ("a", "b"):
        await small.stop_container(uid, "hold", 0)


async def test_busy_pods_leave_the_rest_of_the_machine_alone(small: SandboxRuntime) -> None:
    script = """
import os, time
for _ in range(2): os.fork()
end = time.monotonic() + 3
while time.monotonic() < end: pass
print(os.times().user + os.times().system, flush=True)
try:
    while True: os.wait()
except ChildProcessError: pass
"""
    started = time.monotonic()
    for uid, limit in (("a", 0), ("b", 2000)):  # b's own limit is more than there is
        await small.start_container(uid, container("python3", "-c", script, cpu_limit=limit))
    used = [float(line) for uid in ("a", "b") for line in (await log(small, uid, follow=True)).split()]
    # Who is held back looks at the time later: what counts is how long all of it took.
    assert len(used) == 8 and sum(used) < (time.monotonic() - started) * 0.333 * 1.5, used
