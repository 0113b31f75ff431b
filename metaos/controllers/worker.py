"""Where large decisions are made: in a process beside the hub's, on a pickled snapshot. Nothing in the hub waits for them.

One process, started when it is first needed, with numpy and the solvers in its own memory. What is asked of it waits in line; who
asks bounds how many do. It ends with the hub, also where that is killed. A process that dies is replaced, and what it was asked
is asked once more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from metaos.resources.errors import unavailable

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

#: How much it gives way to the hub's own process.
NICENESS = 5
_PR_SET_PDEATHSIG = 1


class Decide(Protocol):
    """Makes a decision: calls a function that everybody can import, with what can be pickled."""

    def __call__(self, function: Callable[P, R], /, *arguments: P.args, **named: P.kwargs) -> Awaitable[R]: ...


async def at_once(function: Callable[P, R], /, *arguments: P.args, **named: P.kwargs) -> R:
    """Here and now: for what is small, and in the twin, where nothing runs beside the loop."""
    return function(*arguments, **named)


class WorkerProcess:
    """See the module. Of one event loop."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    async def decide(self, function: Callable[P, R], /, *arguments: P.args, **named: P.kwargs) -> R:
        """Raises what ``function`` does; ``ApiError`` 503 where the process died twice, as for want of memory."""
        for again in (True, False):
            pool = self._pool = self._pool or _started()
            try:
                return await asyncio.wrap_future(pool.submit(function, *arguments, **named))
            except BrokenExecutor:
                if self._pool is pool:
                    self._pool = None
                pool.shutdown(wait=False)
                log.warning("the process that makes large decisions has died%s", "; it is started again" if again else "")
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                # A plugin that is no function of a module cannot go to another process.
                if not _unpicklable((function, arguments, named)):
                    raise
                log.warning("decided beside the loop, as it cannot be sent to another process: %s", error)
                return await asyncio.to_thread(function, *arguments, **named)
        raise unavailable("the process that makes large decisions died twice, as for want of memory: ask for less at once")

    def close(self) -> None:
        """What it does is given up."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return next(iter(self._pool._processes or {}), None) if self._pool is not None else None


def _started() -> ProcessPoolExecutor:
    # A hub that never makes a large plan does without them.
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Not forked: the hub has threads, sockets and secrets that the process has no business with.
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_settle, initargs=(os.getpid(),))


def _settle(hub: int) -> None:
    """In the process: it ends with the hub, and gives way to it."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != hub:
        os._exit(1)
    # The terminal's interrupt is for the hub, which ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)


def _unpicklable(found: Any) -> bool:
    try:
        pickle.dumps(found)
    except (pickle.PicklingError, AttributeError, TypeError):
        return True
    return False
