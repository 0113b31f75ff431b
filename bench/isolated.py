"""Isolated processes at once, without NEMO: what the start of a pod's own process takes. A program (``python -m bench.isolated
PLACE COUNT``): it says when it is ready, starts them all at a line of its input, and ends them when that ends.

Each has what a pod's container has: network, uts and ipc namespaces with a network card, a gateway and sockets, a copy of
bubblewrap, cgroups, and bubblewrap with a pod's whole view. But one process makes all of them, which neither forks, waits,
records nor supervises, and has found out before what each one's view is. Those that are made run while it makes the others.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import podfloor
from metaos.runtimes import zygote
from metaos.runtimes.bubblewrap import find_bwrap, packed
from metaos.runtimes.cgroups import Cgroups

COMMAND = ("/bin/sh", "-c", ": >/v/started; exec sleep 3600")
SPACES = zygote._CLONE_NEWNET | zygote._CLONE_NEWUTS | zygote._CLONE_NEWIPC
END_SECONDS = 20.0


def _owned() -> None:
    """From here on this process owns the namespaces that it makes, as a pod's holder does."""
    user, group = os.geteuid(), os.getegid()
    zygote._checked(zygote._libc.unshare(zygote._CLONE_NEWUSER), "a user namespace")
    zygote.written("/proc/self/setgroups", "deny")
    zygote.written("/proc/self/gid_map", f"{zygote.INSIDE} {group} 1")
    zygote.written("/proc/self/uid_map", f"{zygote.INSIDE} {user} 1")


def _network(number: int) -> int:
    """Leaves this process in a pod's new namespaces; the descriptor that keeps its gateway."""
    zygote._checked(zygote._libc.unshare(SPACES), "namespaces")
    zygote.loopback()
    made = zygote._sockets(8)
    pod = zygote._open(os.getpid(), "net")
    zygote.make(pod, f"100.64.1.{number + 1}")
    made += zygote._sockets(8)
    gateway: int = zygote._open(os.getpid(), "net")
    zygote._setns(pod, "net")
    os.close(pod)
    for each in made:
        each.close()
    return gateway


def _prepared(place: Path, stack: ExitStack) -> list[int]:
    """Descriptors of what one's bubblewrap shows: first its arguments, then what these name."""
    view, fds = stack.enter_context(podfloor.view(place))
    arguments = packed(["--die-with-parent", *view])
    stack.callback(os.close, arguments)
    return [arguments, *fds]


def _start(place: Path, fds: Sequence[int], groups: Sequence[str], homes: Sequence[str]) -> int:
    program = find_bwrap()
    copy = zygote._copy(os.fsencode(program), os.fsencode(place))
    libraries = os.path.dirname(os.path.dirname(program)) + ".libs"
    env = {"LD_LIBRARY_PATH": libraries, "PATH": "/usr/bin:/bin"}
    argv = ["bwrap", "--args", str(fds[0]), "--", *COMMAND]
    passed = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds]

    def begin() -> int:
        return os.posix_spawn(f"/proc/self/fd/{copy}", argv, env, file_actions=passed)

    try:
        started: int = zygote._inside(os.fsencode(":".join(groups)), os.fsencode(":".join(homes)), begin)
        return started
    finally:
        os.close(copy)


def main(place: Path, count: int) -> None:
    cgroups, started, gateways = Cgroups.here("bench-isolated"), list[int](), list[int]()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _owned()
    with ExitStack() as stack:
        prepared = [_prepared(place / str(number), stack) for number in range(count)]
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            for number in range(count):
                gateways.append(_network(number))
                groups = cgroups.create(str(number), "main", cpu=0, memory=0)
                started.append(_start(place, prepared[number], groups, cgroups.homes))
            sys.stdin.readline()
        finally:
            for pid in started:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            ends = time.monotonic() + END_SECONDS
            while not all([cgroups.remove(str(number), "main") for number in range(count)]) and time.monotonic() < ends:
                time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
