"""emptyDir volumes in memory: a tmpfs at the volume's directory. Only root may mount one; elsewhere they are on disk.

What is written counts to the memory of the container that writes it, and stays until the pod has run to its end
or goes, whatever restarts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from metaos.resources import quantity, workload
from metaos.resources.meta import Obj

_NOSUID, _NODEV, _DETACH = 2, 4, 2
_CAP_SYS_ADMIN = 21


def problem() -> str:
    """Why this agent cannot have any; "" if it can."""
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii") as file:
        rights = next((line.split()[1] for line in file if line.startswith("CapEff:")), "0")
        if int(rights, 16) >> _CAP_SYS_ADMIN & 1:
            return ""
    return (
        "emptyDir volumes with medium Memory are on disk, as only root may mount a tmpfs: run the agent as root (in a container: "
        "with CAP_SYS_ADMIN) to have them in memory"
    )


def size(pod: Obj, volume: Mapping[str, Any], machine: Mapping[str, str]) -> int:
    """Bytes that one may hold: its sizeLimit, the memory of all of the pod's containers where each has a limit, or what the site
    has, whichever is least. 0: nothing says."""
    bounds = [quantity.whole((volume.get("emptyDir") or {}).get("sizeLimit") or 0), quantity.whole(machine.get("memory") or 0)]
    limits = [workload.limits(dict(found))["memory"] for found in workload.containers(pod["spec"])]
    if limits and all(limits):
        bounds.append(sum(limits))
    return min((bound for bound in bounds if bound > 0), default=0)


def mount(directory: Path, size: int) -> None:
    """Unless it is there already. Raises ``OSError``."""
    if os.path.ismount(directory):
        return
    options = f"size={size}" if size else ""
    if _libc().mount(b"tmpfs", os.fsencode(directory), b"tmpfs", _NOSUID | _NODEV, options.encode()) < 0:
        raise _error("a tmpfs cannot be mounted", directory)


def remove(directory: Path) -> None:
    """All of one pod. Missing is fine. Raises ``OSError``."""
    with suppress(FileNotFoundError):
        for entry in os.scandir(directory):
            if os.path.ismount(entry.path) and _libc().umount2(os.fsencode(entry.path), _DETACH) < 0:
                raise _error("a tmpfs cannot be unmounted", Path(entry.path))
            os.rmdir(entry.path)
        os.rmdir(directory)


def _libc() -> Any:
    import ctypes  # half a megabyte, for those who need it

    return ctypes.CDLL(None, use_errno=True)


def _error(what: str, directory: Path) -> OSError:
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}", str(directory))
