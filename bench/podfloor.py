"""What a pod's start takes at least: the kernel's work for its namespaces, network cards and cgroups, and its bubblewrap.

Each is made as often as there are pods, one after another in one process, which neither forks nor waits: what is above the sum of
it is ours (the agent, the forks of Python programs). And the processor time of everything that a stretch of a benchmark starts.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import metaos.runtimes
from metaos.runtimes import process, seccomp
from metaos.runtimes.bubblewrap import container, etc, find_bwrap
from metaos.runtimes.cgroups import Cgroups, locate
from metaos.runtimes.images import DEFAULT_IMAGE, host_image

#: As a holder does it (``zygote.hold``), but in one process for all pods.
_NAMESPACES = """
import os, sys, time
sys.path.append(sys.argv[1])
import enter, gateway, zygote
count, program = int(sys.argv[2]), sys.argv[3].encode()
user, group = os.geteuid(), os.getegid()
enter._checked(enter._libc.unshare(zygote._CLONE_NEWUSER), "a user namespace")
gateway.written("/proc/self/setgroups", "deny")
gateway.written("/proc/self/gid_map", f"1 {group} 1")
gateway.written("/proc/self/uid_map", f"1 {user} 1")
began = time.process_time()
for number in range(count):
    enter._checked(enter._libc.unshare(zygote._CLONE_NEWNET | zygote._CLONE_NEWUTS | zygote._CLONE_NEWIPC), "namespaces")
    gateway.loopback()
    made = zygote._sockets(8)
    copy, pod = zygote._copy(program, b"/tmp"), enter._open(os.getpid(), "net")
    gateway.make(pod, f"100.64.1.{number + 1}")
    for each in made + zygote._sockets(8):
        each.close()
    os.close(copy)
    os.close(pod)
print((time.process_time() - began) * 1000 / count)
"""


def namespaces(count: int) -> float:
    """Milliseconds of one pod's namespaces, network cards, sockets, and copy of bubblewrap."""
    runtimes = os.path.dirname(metaos.runtimes.__file__)
    command = [sys.executable, "-I", "-S", "-E", "-c", _NAMESPACES, runtimes, str(count), find_bwrap()]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def cgroups(count: int) -> float:
    """Milliseconds of one pod's cgroups; 0 where none can be made."""
    groups = Cgroups.here("bench-floor")
    began = time.process_time()
    for number in range(count):
        groups.create(str(number), "main-0", cpu=0, memory=0)
    taken = (time.process_time() - began) * 1000 / count
    for number in range(count):
        groups.remove(str(number), "main-0")
    return taken


@contextlib.contextmanager
def view(place: Path) -> Iterator[tuple[list[str], list[int]]]:
    """Arguments of a bubblewrap that shows what a pod's shows, with the descriptors that it needs; ``place`` as the volume /v."""
    image = host_image({"name": DEFAULT_IMAGE})
    for name in ("hosts", "message"):
        (place / name).touch()
    fds = [os.open(place / "message", os.O_PATH), os.open(place, os.O_PATH)]
    try:
        texts = {name: process.in_memory(text.encode()) for name, text in etc(image, "bench").items()}
        fds += [*texts.values(), process.in_memory(seccomp.program())]
        arguments = container(
            image,
            str(place),
            str(place / "hosts"),
            texts,
            user=0,
            group=0,
            working_dir="/",
            read_only_root=False,
            overlay=False,
            mounts=[(fds[0], "/dev/termination-log", False), (fds[1], "/v", False)],
            env=image.env,
        )
        yield [*arguments, *(["--seccomp", str(fds[-1])] if seccomp.program() else [])], fds
    finally:
        for fd in fds:
            os.close(fd)


class Counter:
    """Processor time of this process and of everything that it starts from now on, by a cgroup; ``usable`` says whether it can
    be counted here."""

    def __init__(self) -> None:
        with open("/proc/self/mountinfo", encoding="utf-8") as mounts, open("/proc/self/cgroup", encoding="utf-8") as own:
            version, roots = locate(mounts.read(), own.read())
        self._home = roots.get("cpuacct" if version == 1 else "", "")
        self._group, self._version = os.path.join(self._home, f"nemo-bench-{os.getpid()}"), version
        try:
            os.mkdir(self._group)
            self._move(self._group)
            self.usable = True
        except OSError as error:
            print(f"PROCESSOR TIME IS NOT COUNTED: no cgroup for it can be made ({error})", flush=True)
            self.usable = False

    def _move(self, group: str) -> None:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))

    def now(self) -> float:
        """Milliseconds so far."""
        if not self.usable:
            return 0.0
        if self._version == 1:
            return int(Path(self._group, "cpuacct.usage").read_text()) / 1e6
        rows = dict(line.split() for line in Path(self._group, "cpu.stat").read_text().splitlines())
        return int(rows["usage_usec"]) / 1e3

    def close(self) -> None:
        if self.usable:
            with contextlib.suppress(OSError):
                self._move(self._home)
                os.rmdir(self._group)
