"""Limits and measurements by cgroups, version 1 and 2, where this process may make some.

Below the cgroup that we are in: ``nemo/KEY/POD/CONTAINER`` (in version 1 in each of the memory, cpu, cpuacct and pids
hierarchies). ``nemo/KEY`` holds all pods of a runtime together to what the site offers. Where version 2 has only some of the
controllers, what they can do is done. Source: Linux ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/``. Memory is
what Kubernetes calls the working set: use less inactive file cache.
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
#: Those of version 2, and what each is for.
_LIMITS = {"memory": "memory", "cpu": "CPU", "pids": "the number of processes"}


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


def key_of(directory: str) -> str:
    """Of the runtime with this directory (its real path) among the machine's cgroups: several agents may share a machine."""
    import hashlib

    return hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]


def forget(directory: str) -> bool:
    """For who has ended a site with everything on it, and takes its directory away: its cgroups go. Whether none is left; what is
    being killed stays in its cgroup for a moment."""
    places = [os.path.join(root, "nemo", key_of(directory)) for root in _roots()[1].values()]
    for place in places:
        _sweep(place)
    return not any(os.path.isdir(place) for place in places)


def _roots() -> tuple[int, dict[str, str]]:
    """See :func:`locate`."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as mounts, open("/proc/self/cgroup", encoding="utf-8") as own:
            return locate(mounts.read(), own.read())
    except OSError:
        return 0, {}


def _sweep(level: str) -> None:
    for place, _, _ in os.walk(level, topdown=False):
        with contextlib.suppress(OSError):  # something runs in it
            os.rmdir(place)


def _below(point: str, root: str, path: str) -> str:
    inner = path[len(root) :] if root != "/" and path.startswith(root) else path
    return os.path.normpath(point + "/" + inner.lstrip("/"))


class Cgroups:
    """The containers' cgroups of one runtime. ``problem`` says which limits do not hold, why, and what to do.

    ``most``: thousandths of a core and bytes that all pods together may have; ``uncapped`` says why that does not hold.
    """

    def __init__(self, key: str, version: int, roots: Mapping[str, str], most: tuple[int, int] | None = None) -> None:
        self._version = version
        self._key = key
        self._most = most
        self._parents = {controller: os.path.join(root, "nemo") for controller, root in roots.items()}
        #: Those that we are in ourselves.
        self.homes = sorted(set(roots.values()))
        #: Of version 2: the controllers that child groups get.
        self._controllers = frozenset(_LIMITS)
        #: Made and not removed: one of them may be about to join what has no process in it yet.
        self._open: set[tuple[str, str]] = set()
        self.uncapped = ""
        self.problem = "" if roots else _absent()
        self._usable = bool(roots)
        if not roots:
            return
        try:
            self._prepare(roots)
        except OSError as error:
            self._usable = False
            who = "root" if os.geteuid() == 0 else "a plain user without delegated cgroups"
            self.problem = (
                f"cgroups cannot be made as {who} ({error.strerror}: {error.filename}): run the agent as root, "
                "or as a systemd unit with Delegate=yes"
            )

    @classmethod
    def here(cls, key: str, most: tuple[int, int] | None = None) -> Cgroups:
        version, roots = _roots()
        return cls(key, version, roots, most)

    def _prepare(self, roots: Mapping[str, str]) -> None:
        if self._version == 2:
            self._find_controllers(roots[""])
            self._delegate(roots[""])
        for parent in self._parents.values():
            os.makedirs(os.path.join(parent, self._key), exist_ok=True)
        self._prepare_level()
        self._tidy()

    def _prepare_level(self) -> None:
        """That of all pods together, which has just been made."""
        if self._version == 2:
            for level in (self._parents[""], os.path.join(self._parents[""], self._key)):
                self._pass_on(level)
        self._cap()
        if "pids" in self._controllers:
            level = os.path.join(self._parents["" if self._version == 2 else "pids"], self._key)
            _write(level, "pids.max", str(max(1, int(pids_of_the_machine() * PIDS_PART))))

    def _find_controllers(self, root: str) -> None:
        available = set(_read(root, "cgroup.controllers").split())
        self._controllers = frozenset(_LIMITS) & available
        missing = [name for name in _LIMITS if name not in available]
        if missing:
            self.problem = (
                f"{' and '.join(_LIMITS[name] for name in missing)} cannot be limited: the cgroup {root} has no "
                f"{', '.join(missing)} controller{'s' if len(missing) > 1 else ''} (it has: "
                f"{', '.join(sorted(available)) or 'none'}). "
                "Where the agent is a systemd unit, say Delegate=yes; where it runs in a user's session, say "
                "'Delegate=cpu memory pids' in a drop-in of user@.service; where the controllers are mounted in version 1, boot "
                "with systemd.unified_cgroup_hierarchy=1"
            )

    def _pass_on(self, level: str) -> None:
        if self._controllers:
            _write(level, "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(self._controllers)))

    def _cap(self) -> None:
        """All pods together. What cannot be had is said, and does not keep pods from running."""
        if self._most is None:
            return
        cpu, memory = self._most
        wanted = (
            [("", "memory.max", memory, "memory"), ("", "cpu.max", _quota(cpu), "cpu")]
            if self._version == 2
            else [
                ("memory", "memory.limit_in_bytes", memory, "memory"),
                ("cpu", "cpu.cfs_period_us", _PERIOD_US, "cpu"),
                ("cpu", "cpu.cfs_quota_us", _quota(cpu).split(" ")[0], "cpu"),
            ]
        )
        self.uncapped = ""
        for parent, file, value, controller in wanted:
            if controller not in self._controllers:
                continue
            try:
                _write(os.path.join(self._parents[parent], self._key), file, str(value))
            except OSError as error:
                self.uncapped = (
                    f"all pods together are not held to the site's allocatable {_LIMITS[controller]}: {error.filename} cannot be "
                    f"set to {value} ({error.strerror}). Pods that run already may have more than that: it holds when they have "
                    "ended and the agent is restarted"
                )

    def _delegate(self, root: str) -> None:
        """Version 2 wants no process beside child cgroups: if we are the only one there, we move into a leaf."""
        try:
            self._pass_on(root)
        except OSError:
            if _read(root, "cgroup.procs").split() != [str(os.getpid())]:
                raise
            leaf = os.path.join(root, "nemo-agent")
            os.makedirs(leaf, exist_ok=True)
            _write(leaf, "cgroup.procs", str(os.getpid()))
            self.homes = [leaf]
            self._pass_on(root)

    def _tidy(self) -> None:
        """Our level is made again when it is needed: an empty one is not left behind."""
        for parent in () if self._open else self._parents.values():
            for level in (os.path.join(parent, self._key), parent):
                with contextlib.suppress(OSError):
                    os.rmdir(level)

    def sweep(self) -> None:
        """What an agent left that was killed together with its pods. For one that begins: nothing is about to be started yet."""
        for level in self.places():
            _sweep(level)
        self._tidy()

    def remove_pod(self, pod: str) -> None:
        """What is left of one that has ended: where a start was cancelled, who was killed was still in its cgroup."""
        for level in self.places():
            _sweep(os.path.join(level, pod))
        self._open = {each for each in self._open if each[0] != pod}
        self._tidy()

    def _places(self, pod: str, container: str) -> dict[str, str]:
        return {name: os.path.join(parent, self._key, pod, container) for name, parent in self._parents.items()}

    def create(self, pod: str, container: str, *, cpu: int, memory: int) -> list[str]:
        """Directories that its first process has to join. ``cpu``: thousandths of a core, ``memory``: bytes, 0: no limit."""
        if not self._usable:
            return []
        places = self._places(pod, container)
        if self._most is not None and cpu:
            cpu = min(cpu, self._most[0])  # version 1 takes no more than the parent's
        if not cpu and "cpu" in places:
            # In version 1 a directory of its own is for the limit only, and each takes its time.
            if self._most is None:
                del places["cpu"]
            else:
                places["cpu"] = os.path.join(self._parents["cpu"], self._key)
        self._open.add((pod, container))
        new = any(not os.path.isdir(os.path.join(self._parents[controller], self._key)) for controller in places)
        for place in places.values():
            _make(place)
        if new:
            self._prepare_level()
        if self._version == 2:
            place = places[""]
            self._pass_on(os.path.dirname(place))
            if "pids" in self._controllers:
                _write(os.path.dirname(place), "pids.max", str(MAX_PIDS))
            if memory and "memory" in self._controllers:
                _write(place, "memory.max", str(memory))
                _write(place, "memory.oom.group", "1")
            if cpu and "cpu" in self._controllers:
                _write(place, "cpu.max", _quota(cpu))
            return [place]
        _write(os.path.dirname(places["pids"]), "pids.max", str(MAX_PIDS))
        if memory:
            _write(places["memory"], "memory.limit_in_bytes", str(memory))
        if cpu:
            _write(places["cpu"], "cpu.cfs_period_us", str(_PERIOD_US))
            _write(places["cpu"], "cpu.cfs_quota_us", _quota(cpu).split(" ")[0])
        return sorted(set(places.values()))

    def directories(self, pod: str, container: str) -> list[str]:
        """Those that exist of a container's."""
        if not self._usable:
            return []
        return sorted({place for place in self._places(pod, container).values() if os.path.isdir(place)})

    def measure(self, pod: str, container: str) -> Measured | None:
        """``None`` where it has no cgroup, or one that does not measure memory."""
        if not self._usable:
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
        except OSError:  # ENODEV: it went while it was read
            return None
        return Measured(cpu, max(0, memory), kills)

    def places(self) -> list[str]:
        """Below which the pods of this runtime have theirs."""
        return [os.path.join(parent, self._key) for parent in self._parents.values()] if self._usable else []

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
        if found and self._version == 2:
            with contextlib.suppress(OSError):  # before Linux 5.14
                _write(self._places(pod, container)[""], "cgroup.kill", "1")  # all at once: nobody escapes by forking
                return found
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
        for parent in self._parents.values() if self._usable else ():
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(parent, self._key, pod))
        if gone:
            self._open.discard((pod, container))
            self._tidy()
        return gone


def _absent() -> str:
    return (
        "this machine mounts no cgroups that can limit memory, CPU and processes: mount version 2 ('mount -t cgroup2 none "
        "/sys/fs/cgroup'), or, in a container, hand the machine's in (for Docker: '--cgroupns=host -v "
        "/sys/fs/cgroup:/sys/fs/cgroup')"
    )


def _quota(cpu: int) -> str:
    """As in ``cpu.max``. ``cpu``: thousandths of a core."""
    return f"{max(1000, cpu * _PERIOD_US // 1000)} {_PERIOD_US}"


def pids_of_the_machine() -> int:
    with (
        open("/proc/sys/kernel/pid_max", encoding="ascii") as file,
        open("/proc/sys/kernel/threads-max", encoding="ascii") as threads,
    ):
        return min(int(file.read()), int(threads.read()))


def _make(place: str) -> None:
    """A container's; most often its pod's is missing, and nothing above it."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(place))
        with contextlib.suppress(FileExistsError):
            os.mkdir(place)
    except FileNotFoundError:
        os.makedirs(place, exist_ok=True)


def _write(directory: str, name: str, value: str) -> None:
    path = os.path.join(directory, name)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None  # which a failing write does not say


def _read(directory: str, name: str) -> str:
    with open(os.path.join(directory, name), encoding="ascii") as file:
        return file.read()


def _table(text: str) -> dict[str, int]:
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
