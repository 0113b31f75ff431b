"""Limits and measurements by cgroups, version 1 and 2, where this process may make some.

Below the cgroup that we are in: ``nemo/KEY/POD/CONTAINER`` (in version 1 in each of the memory, cpu, cpuacct and pids
hierarchies). Source: Linux ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/``. Memory is what Kubernetes
calls the working set: use less inactive file cache.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

#: Processes and threads of one pod.
MAX_PIDS = 4096
#: Of those that the machine can have, the part that all pods of a site may have.
PIDS_PART = 0.75
_PERIOD_US = 100_000
_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")


@dataclass(frozen=True, slots=True)
class Measured:
    """``cpu``: seconds used so far; ``memory``: bytes now; ``oom_kills``: processes that the kernel killed for memory."""

    cpu: float
    memory: float
    oom_kills: int


def locate(mountinfo: str, own: str) -> tuple[int, dict[str, str]]:
    """Version (2, 1, or 0 for none) and controller → directory of the cgroup that we are in (version 2: key ``""``).

    ``mountinfo``, ``own``: texts of ``/proc/self/mountinfo`` and ``/proc/self/cgroup``.
    """
    paths: dict[str, str] = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    first: dict[str, str] = {}
    second = ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, point = left.split(" ")[3:5]
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup":
            for controller in options.split(","):
                if controller in _CONTROLLERS and controller in paths:
                    first.setdefault(controller, _below(point, root, paths[controller]))
        elif kind == "cgroup2" and "" in paths:
            second = second or _below(point, root, paths[""])
    if all(controller in first for controller in ("memory", "cpu", "pids")):
        return 1, first
    return (2, {"": second}) if second else (0, {})


def _below(point: str, root: str, path: str) -> str:
    inner = path[len(root) :] if root != "/" and path.startswith(root) else path
    return os.path.normpath(point + "/" + inner.lstrip("/"))


class Cgroups:
    """The containers' cgroups of one runtime. ``problem`` says why there are none; then nothing here does anything."""

    def __init__(self, key: str, version: int, roots: Mapping[str, str]) -> None:
        self._version = version
        self._key = key
        self._parents = {controller: os.path.join(root, "nemo") for controller, root in roots.items()}
        self.problem = "" if roots else "this machine mounts no cgroups with memory, cpu and pids controllers"
        if self.problem:
            return
        try:
            self._prepare(roots)
        except OSError as error:
            who = "root" if os.geteuid() == 0 else "a plain user without delegated cgroups"
            self.problem = (
                f"cgroups cannot be made as {who} ({error.strerror}: {error.filename}): run the agent as root, "
                "or as a systemd unit with Delegate=yes"
            )

    @classmethod
    def here(cls, key: str) -> Cgroups:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8") as mounts, open("/proc/self/cgroup", encoding="utf-8") as own:
                version, roots = locate(mounts.read(), own.read())
        except OSError:
            version, roots = 0, {}
        return cls(key, version, roots)

    def _prepare(self, roots: Mapping[str, str]) -> None:
        if self._version == 2:
            self._delegate(roots[""])
        for parent in self._parents.values():
            os.makedirs(os.path.join(parent, self._key), exist_ok=True)
        if self._version == 2:
            for level in (self._parents[""], os.path.join(self._parents[""], self._key)):
                _write(level, "cgroup.subtree_control", "+memory +cpu +pids")
        self._tidy()

    def _delegate(self, root: str) -> None:
        """Version 2 wants no process beside child cgroups: if we are the only one there, we move into a leaf."""
        try:
            _write(root, "cgroup.subtree_control", "+memory +cpu +pids")
        except OSError:
            if _read(root, "cgroup.procs").split() != [str(os.getpid())]:
                raise
            leaf = os.path.join(root, "nemo-agent")
            os.makedirs(leaf, exist_ok=True)
            _write(leaf, "cgroup.procs", str(os.getpid()))
            _write(root, "cgroup.subtree_control", "+memory +cpu +pids")

    def _tidy(self) -> None:
        """Our level is made again when it is needed: an empty one is not left behind."""
        for parent in self._parents.values():
            for level in (os.path.join(parent, self._key), parent):
                with contextlib.suppress(OSError):
                    os.rmdir(level)

    def _places(self, pod: str, container: str) -> dict[str, str]:
        return {name: os.path.join(parent, self._key, pod, container) for name, parent in self._parents.items()}

    def create(self, pod: str, container: str, *, cpu: int, memory: int) -> list[str]:
        """Directories that its first process has to join. ``cpu``: thousandths of a core, ``memory``: bytes, 0: no limit."""
        if self.problem:
            return []
        places = self._places(pod, container)
        if not cpu:
            places.pop("cpu", None)  # in version 1 it is for the limit only, and each directory takes its time
        for place in places.values():
            os.makedirs(place, exist_ok=True)
        if self._version == 2:
            place = places[""]
            for level in (self._parents[""], os.path.join(self._parents[""], self._key), os.path.dirname(place)):
                _write(level, "cgroup.subtree_control", "+memory +cpu +pids")
            self._bound(os.path.dirname(place))
            if memory:
                _write(place, "memory.max", str(memory))
                _write(place, "memory.oom.group", "1")
            if cpu:
                _write(place, "cpu.max", f"{max(1000, cpu * _PERIOD_US // 1000)} {_PERIOD_US}")
            return [place]
        self._bound(os.path.dirname(places["pids"]))
        if memory:
            _write(places["memory"], "memory.limit_in_bytes", str(memory))
        if cpu:
            _write(places["cpu"], "cpu.cfs_period_us", str(_PERIOD_US))
            _write(places["cpu"], "cpu.cfs_quota_us", str(max(1000, cpu * _PERIOD_US // 1000)))
        return sorted(set(places.values()))

    def _bound(self, pod: str) -> None:
        _write(pod, "pids.max", str(MAX_PIDS))
        _write(os.path.dirname(pod), "pids.max", str(max(1, int(pids_of_the_machine() * PIDS_PART))))

    def directories(self, pod: str, container: str) -> list[str]:
        """Those that exist of a container's."""
        if self.problem:
            return []
        return sorted({place for place in self._places(pod, container).values() if os.path.isdir(place)})

    def measure(self, pod: str, container: str) -> Measured | None:
        """``None`` where it has no cgroup."""
        if self.problem:
            return None
        places = self._places(pod, container)
        try:
            if self._version == 2:
                place = places[""]
                cpu = _table(_read(place, "cpu.stat")).get("usage_usec", 0) / 1e6
                memory = int(_read(place, "memory.current")) - _table(_read(place, "memory.stat")).get("inactive_file", 0)
                kills = _table(_read(place, "memory.events")).get("oom_kill", 0)
            else:
                cpu = int(_read(places["cpuacct"], "cpuacct.usage")) / 1e9 if "cpuacct" in places else 0.0
                stat = _table(_read(places["memory"], "memory.stat"))
                memory = int(_read(places["memory"], "memory.usage_in_bytes")) - stat.get("total_inactive_file", 0)
                kills = _table(_read(places["memory"], "memory.oom_control")).get("oom_kill", 0)
        except FileNotFoundError:
            return None
        return Measured(cpu, max(0, memory), kills)

    def members(self, pod: str, container: str) -> list[int]:
        """Pids of everything that runs in it."""
        found: set[int] = set()
        for place in self.directories(pod, container):
            with contextlib.suppress(OSError):
                found.update(int(word) for word in _read(place, "cgroup.procs").split())
        return sorted(found)

    def kill(self, pod: str, container: str) -> list[int]:
        """SIGKILL to everything in it; the pids."""
        found = self.members(pod, container)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def remove(self, pod: str, container: str) -> bool:
        """Whether it is gone: it cannot go while a process is in it."""
        gone = True
        for place in self.directories(pod, container):
            try:
                os.rmdir(place)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        for parent in self._parents.values() if not self.problem else ():
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(parent, self._key, pod))
        if gone:
            self._tidy()
        return gone


def pids_of_the_machine() -> int:
    with (
        open("/proc/sys/kernel/pid_max", encoding="ascii") as file,
        open("/proc/sys/kernel/threads-max", encoding="ascii") as threads,
    ):
        return min(int(file.read()), int(threads.read()))


def _write(directory: str, name: str, value: str) -> None:
    with open(os.path.join(directory, name), "w", encoding="ascii") as file:
        file.write(value)


def _read(directory: str, name: str) -> str:
    with open(os.path.join(directory, name), encoding="ascii") as file:
        return file.read()


def _table(text: str) -> dict[str, int]:
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
