"""Isolated processes at once, without NEMO: what the start of a pod's own process takes. A program (``python -m bench.isolated
PLACE COUNT``): it says when it is ready, starts them all at a line of its input, and ends them when that ends.

Each has what a pod's container has: network, uts and ipc namespaces with a network card, a gateway and sockets, a copy of
bubblewrap, cgroups, and bubblewrap with a pod's whole view. But one process makes all of them, which neither forks, waits,
records nor supervises. Those that are made run while it makes the others, as a pod's do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import podfloor
from metaos.runtimes import zygote
from metaos.runtimes.bubblewrap import find_bwrap
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


def _start(place: Path, number: int, groups: Sequence[str], homes: Sequence[str]) -> subprocess.Popen[bytes]:
    copy = zygote._copy(os.fsencode(find_bwrap()), os.fsencode(place))
    libraries = os.path.dirname(os.path.dirname(find_bwrap())) + ".libs"

    def begin() -> subprocess.Popen[bytes]:
        with podfloor.view(place / str(number)) as (view, fds):
            return subprocess.Popen(
                ["bwrap", "--die-with-parent", *view, "--", *COMMAND],
                executable=f"/proc/self/fd/{copy}",
                env={"LD_LIBRARY_PATH": libraries, "PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                pass_fds=[*fds, copy],
            )

    try:
        started: subprocess.Popen[bytes] = zygote._inside(os.fsencode(":".join(groups)), os.fsencode(":".join(homes)), begin)
        return started
    finally:
        os.close(copy)


def main(place: Path, count: int) -> None:
    cgroups = Cgroups.here("bench-isolated")
    _owned()
    processes, gateways = list[subprocess.Popen[bytes]](), list[int]()
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        for number in range(count):
            gateways.append(_network(number))
            groups = cgroups.create(str(number), "main", cpu=0, memory=0)
            processes.append(_start(place, number, groups, cgroups.homes))
        sys.stdin.readline()
    finally:
        for each in processes:
            each.kill()
            each.wait()
        ends = time.monotonic() + END_SECONDS
        while not all([cgroups.remove(str(number), "main") for number in range(count)]) and time.monotonic() < ends:
            time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
