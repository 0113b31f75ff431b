"""What this machine is and has: measured, bounded by what its owner allows. Reads files only.

Sources: Linux ``proc(5)``, cgroup v1 and v2 documentation of the kernel. ``root`` is ``/`` except in tests.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from metaos import __version__
from metaos.agent import memoryvolumes
from metaos.resources import quantity
from metaos.resources.devices import extended
from metaos.resources.meta import Obj, name, namespace, uid

#: Pods that a site takes where its owner says nothing.
DEFAULT_PODS = 110
#: Kept for the machine and the agent where the owner says nothing: this part, at most so much.
RESERVED_PART = Fraction(1, 20)
RESERVED_MILLI_CPU = 200
RESERVED_BYTES = 512 * 1024**2
#: Kubernetes' names for machine architectures (GOARCH).
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True, slots=True)
class Capacity:
    """Milli-CPU, bytes, pods, and extended resources by name: those its owner states, as nothing here looks for devices."""

    cpu: int
    memory: int
    pods: int
    devices: Mapping[str, int] = field(default_factory=dict)

    def quantities(self) -> dict[str, str]:
        return {
            "cpu": quantity.format_milli(self.cpu),
            "memory": quantity.format_bytes(self.memory // 1024 * 1024),
            "pods": str(self.pods),
            **{resource: str(amount) for resource, amount in sorted(self.devices.items())},
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """A cgroup's limits; ``None`` where it has none."""

    cpu: int | None
    memory: int | None


def measure(root: Path = Path("/"), processors: int | None = None) -> tuple[int, int]:
    """This process's share of the machine: milli-CPU and bytes, the smaller of the hardware's and its cgroups'."""
    if processors is None:
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = cgroup_limits(root)
    cpu, memory = processors * 1000, _meminfo(root)
    return min(cpu, limits.cpu or cpu), min(memory, limits.memory or memory)


def busy(root: Path = Path("/")) -> float:
    """CPU seconds that all of the machine has used since it was started; waiting is not using. Source: ``proc_stat(5)``."""
    line = _text(root / "proc/stat").partition("\n")[0].split()
    # user, nice, system, irq, softirq, steal; guests' time is in user and nice already.
    return sum(int(line[n]) for n in (1, 2, 3, 6, 7, 8)) / os.sysconf("SC_CLK_TCK") if len(line) > 8 else 0.0


def capacity(site: Obj, measured: tuple[int, int]) -> tuple[Capacity, Capacity]:
    """(capacity, allocatable) of a site. The owner's limits hold where they are smaller than what was measured;
    of the machine itself a part is kept back."""
    wanted: Mapping[str, str] = (site.get("spec") or {}).get("capacity") or {}
    cpu, memory = measured
    has = Capacity(
        min(cpu, quantity.milli(wanted.get("cpu", cpu // 1000 + 1))),
        min(memory, quantity.whole(wanted.get("memory", memory))),
        quantity.whole(wanted.get("pods", DEFAULT_PODS)),
        {resource: quantity.whole(amount) for resource, amount in wanted.items() if extended(resource)},
    )
    free_cpu = cpu - min(RESERVED_MILLI_CPU, int(cpu * RESERVED_PART))
    free_memory = memory - min(RESERVED_BYTES, int(memory * RESERVED_PART))
    return has, Capacity(min(has.cpu, free_cpu), min(has.memory, free_memory), has.pods, has.devices)


def cgroup_limits(root: Path = Path("/")) -> Limits:
    """The tightest limits on the way from this process's cgroup up; version 2, or version 1's controllers."""
    cpu: list[int] = []
    memory: list[int] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mounted = root / "sys/fs/cgroup"
        for part in controllers.split(",") if controllers else [""]:
            for folder in _upwards(mounted / part if part else mounted, path):
                if part in ("", "cpu"):
                    cpu += _cpu_limit(folder)
                if part in ("", "memory"):
                    memory += _memory_limit(folder)
    return Limits(min(cpu, default=None), min(memory, default=None))


def _upwards(mount: Path, path: str) -> list[Path]:
    folders, here = [mount], mount
    for part in Path(path.lstrip("/")).parts:
        here = here / part
        folders.append(here)
    return folders


def _cpu_limit(folder: Path) -> list[int]:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    quota, period = quota.strip(), period.strip()
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return []
    return [max(1, int(quota) * 1000 // int(period))]


def _memory_limit(folder: Path) -> list[int]:
    text = (_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")).strip()
    # Version 1 writes "no limit" as a number near 2**63.
    return [int(text)] if text.isdigit() and int(text) < 2**62 else []


def _meminfo(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def node_info(isolation: str, runtime: str, root: Path = Path("/")) -> dict[str, str]:
    """``Cluster.status.nodeInfo``."""
    release = dict(line.split("=", 1) for line in _text(root / "etc/os-release").splitlines() if "=" in line)
    machine = platform.machine()
    return {
        "agentVersion": __version__,
        "kernelVersion": platform.release(),
        "osImage": release.get("PRETTY_NAME", platform.system()).strip('"'),
        "operatingSystem": platform.system().lower(),
        "architecture": _ARCHITECTURES.get(machine, machine),
        "isolation": isolation,
        "runtime": runtime,
    }


def usage(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, str]:
    """``Cluster.status.usage`` from :meth:`Runtime.usage`. Rounded (10 m, 1 Mi), so that noise is no news."""
    used = [container for pod in measured.values() for container in pod.values()]
    cpu = sum(container.get("cpu", 0.0) for container in used)
    memory = sum(container.get("memory", 0.0) for container in used)
    return {
        "cpu": quantity.format_milli(round(cpu * 100) * 10),
        "memory": f"{round(memory / 1024**2)}Mi",
        "pods": str(len(measured)),
    }


def by_pod(measured: Mapping[str, Mapping[str, Mapping[str, float]]], pods: Sequence[Obj]) -> list[dict[str, Any]]:
    """The same by name, for the hub's ``metrics.k8s.io``. CPU in cores, memory in bytes."""
    found = []
    for pod in pods:
        containers = measured.get(uid(pod))
        if containers:
            used = {n: {"cpu": round(c["cpu"], 6), "memory": round(c["memory"])} for n, c in containers.items()}
            found.append({"namespace": namespace(pod), "name": name(pod), "containers": used})
    return found


def worth_telling(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a new ``Cluster.status`` differs from the last one by more than a little usage (a tenth and 50 m or 16 Mi)."""
    if {k: v for k, v in old.items() if k != "usage"} != {k: v for k, v in new.items() if k != "usage"}:
        return True
    before, now = old.get("usage") or {}, new.get("usage") or {}
    if before.get("pods") != now.get("pods"):
        return True
    for resource, least in (("cpu", Fraction(1, 20)), ("memory", Fraction(16 * 1024**2))):
        was, is_ = quantity.parse(before.get(resource, 0)), quantity.parse(now.get(resource, 0))
        if abs(is_ - was) >= max(least, max(was, is_) / 10):
            return True
    return False


def condition_list(conditions: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """``Cluster.status.agentConditions`` in a stable order."""
    return sorted((dict(c) for c in conditions), key=lambda c: c.get("type", ""))


class Machine:
    """This one. Another takes its place where a machine is simulated."""

    def measure(self) -> tuple[int, int]:
        """Milli-CPU and bytes."""
        return measure()

    def busy(self, whole: bool) -> float:
        """CPU seconds used so far: of all that ran on it since it was started, or of this process alone."""
        return busy() if whole else sum(os.times()[:4])

    def conditions(self) -> Sequence[Mapping[str, str]]:
        """What it cannot give, whatever the runtime."""
        why = memoryvolumes.problem()
        return [{"type": "MemoryVolumes", "status": "False", "message": why}] if why else []

    def node_info(self, isolation: str, runtime: str) -> dict[str, str]:
        return node_info(isolation, runtime)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
