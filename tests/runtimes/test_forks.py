"""The zygote hung or killed, and what is started while the disk is full: a bounded time, an error, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from metaos.runtimes import forks, holders, process, records
from metaos.runtimes.bubblewrap import find_bwrap
from metaos.runtimes.pods import Pod
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import DEADLINE, container, pod, run
from tests.runtimes.test_sandbox import place, runtime

__all__ = ["place", "runtime"]
pytestmark = pytest.mark.system


def zygote(runtime: SandboxRuntime) -> int:
    found = runtime._isolation.forks._zygote
    assert found is not None and found.alive()
    return found.pid


def settle(runtime: SandboxRuntime) -> None:
    """As after a while: the pod's holder starts nothing any more."""
    launcher = runtime._networked(pod().uid).launcher
    assert launcher is not None
    launcher.close()


async def test_a_zygote_that_hangs_is_replaced(runtime: SandboxRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(runtime)
    await run(runtime, pod().uid, container("true"))
    hung = zygote(runtime)
    os.kill(hung, signal.SIGSTOP)
    monkeypatch.setattr(forks, "ANSWER_SECONDS", 0.3)
    long = ("echo", "x" * 100_000)
    starting = [runtime.start_container(pod().uid, container(*long, name=f"c{n}")) for n in range(3)]
    async with asyncio.timeout(DEADLINE):
        results = await asyncio.gather(*starting, return_exceptions=True)
    assert any(isinstance(each, TimeoutError) for each in results), results
    monkeypatch.undo()
    ended, said = await run(runtime, pod().uid, container("echo", "here"))
    assert (ended.exit_code, said) == (0, "here\n") and zygote(runtime) != hung


async def test_a_zygote_that_is_killed_is_replaced_and_pods_go_on(runtime: SandboxRuntime) -> None:
    settle(runtime)
    running = await runtime.start_container(pod().uid, container("sleep", "1000", name="goes-on"))
    os.kill(zygote(runtime), signal.SIGKILL)
    ended, said = await run(runtime, pod().uid, container("echo", "here"))
    assert (ended.exit_code, said) == (0, "here\n")
    assert running in (await runtime.pods())[pod().uid]


async def test_containers_are_the_same_whoever_starts_them(runtime: SandboxRuntime) -> None:
    """The pod's holder, and later the zygote: limits, rights, namespaces, cgroups, descriptors, signals (but for the C library's
    own two, which posix_spawn(3) has ignored)."""
    look = (  # by the shell alone: while it makes another process, it is different
        "cd /proc/self; while read -r line; do case $line in SigIgn*) echo ${line#SigIgn:??????????};; ",
        "Sig[BC]*|Cap*|*Priv*|Secc*) echo $line; esac; done <status; ",
        "for file in uid_map gid_map limits oom_score_adj cgroup; do while read -r line; do echo $line; done <$file; done; ",
        "echo fd/*; for kind in net ipc uts; do readlink ns/$kind; done; readlink fd/0; pwd; env",
    )
    command = container("sh", "-c", "".join(look))
    first = await run(runtime, pod().uid, command)
    settle(runtime)
    second = await run(runtime, pod().uid, command)
    assert first[0].exit_code == second[0].exit_code == 0
    assert first[1] == second[1]
    holder = runtime._networked(pod().uid).holder
    assert holder is not None
    for file in ("cgroup", "oom_score_adj"):
        assert Path(f"/proc/{holder.pid}/{file}").read_text() == Path(f"/proc/self/{file}").read_text()


async def test_a_holder_that_hangs_starts_nothing_later(runtime: SandboxRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = runtime._networked(pod().uid).holder
    assert holder is not None
    os.kill(holder.pid, signal.SIGSTOP)
    monkeypatch.setattr(forks, "ANSWER_SECONDS", 0.2)
    with pytest.raises(TimeoutError):
        await runtime.start_container(pod().uid, container("echo", "once"))
    monkeypatch.undo()
    os.kill(holder.pid, signal.SIGCONT)
    ended, said = await run(runtime, pod().uid, container("echo", "here"))
    assert (ended.exit_code, said) == (0, "here\n")


async def test_bubblewrap_runs_nothing_where_it_gets_no_filter(tmp_path: Path) -> None:
    """A holder that ends while it starts a container leaves one that has not run."""
    reads, writes = os.pipe()
    command = [find_bwrap(), "--unshare-user", "--bind", "/", "/", "--seccomp", str(reads), "--", "touch", str(tmp_path / "ran")]
    libraries = os.path.dirname(os.path.dirname(command[0])) + ".libs"
    started = process.spawn(command, env={"LD_LIBRARY_PATH": libraries, "PATH": "/usr/bin:/bin"}, pass_fds=(reads,))
    os.close(reads)
    os.close(writes)
    assert await process.ended(started) == 1
    assert not (tmp_path / "ran").exists()


async def test_a_pod_that_cannot_be_recorded_leaves_no_process(runtime: SandboxRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    await run(runtime, pod().uid, container("true"))
    before = set(process.children(os.getpid()))

    def full(self: Pod) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Pod, "record", full)
        with pytest.raises(OSError, match="No space"):
            await runtime.start_pod(pod("other"))
    assert set(process.children(os.getpid())) <= before, "also no zombie"
    await runtime.start_pod(pod("other"))


async def test_a_holder_that_does_not_end_is_not_waited_for_without_end(
    runtime: SandboxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "KILL_SECONDS", 0.1)
    with monkeypatch.context() as patched:
        patched.setattr(process.Identity, "kill", lambda *of: None)
        with pytest.raises(OSError, match="does not end"):
            await runtime.release_pod(pod().uid)
    await runtime.stop_pod(pod().uid)
    assert await runtime.pods() == {}


def test_a_record_of_which_a_line_is_torn_is_read(tmp_path: Path) -> None:
    whole = '{"name": "main"}\n'
    Path(records.path(str(tmp_path))).write_text(whole + '{"monitor": [1{"child-pid": 5}\n' + '{"exit-code": 3}\n{"exi')
    assert records.read(str(tmp_path)) == {"name": "main", "exit-code": 3}
