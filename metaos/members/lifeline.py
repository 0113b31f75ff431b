"""Becomes an agent that ends with the hub's process that started it, and where that process stands still.

The kernel ends it with its parent. A hub that was stopped (SIGSTOP, a suspended machine) cannot end anything, and another leads
after a while with agents of its own: so the leader of several hubs sends a byte again and again, and without one for too long the
agent ends by itself. Imports the standard library alone, as the agent's memory is counted.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import select
import signal
import sys
from threading import Thread

_PR_SET_PDEATHSIG = 1
#: What is left to an agent that is to end.
GRACE_SECONDS = 0.5


def watch(descriptor: int, seconds: float) -> None:
    """Returns once nothing came for ``seconds``, or nothing will."""
    while select.select([descriptor], [], [], seconds)[0]:
        if not os.read(descriptor, 4096):
            return


def _keep(seconds: float) -> None:
    watch(sys.stdin.fileno(), seconds)
    os.kill(os.getpid(), signal.SIGTERM)
    select.select([], [], [], GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def main(seconds: float, arguments: list[str]) -> None:
    """``seconds``: how long nothing may come by standard input; 0: nothing is waited for."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() == 1:  # the hub has gone before it was said
        return
    if seconds:
        Thread(target=_keep, args=(seconds,), name="lifeline", daemon=True).start()
    sys.argv = ["nemo", "agent", *arguments]
    runpy.run_module("metaos", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
