"""Processes that are killed: forked from a server that has everything imported, so that hundreds of them are cheap.

Each can be told to kill itself before its Nth step on the disk (``tests.store.disk``), which hits every moment between two
writes, or is killed from outside at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.wire import Connection, Endpoint
from tests.store.disk import Kind, Step, watched

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["tests.crashing", "tests.store.killed_writer", "metaos.server", "metaos.controllers"])


def start(
    work: Callable[..., None], *arguments: Any, kill_at: int = 0, output: Any = None, log: Path | None = None
) -> BaseProcess:
    """Runs ``work(*arguments)`` in a process of its own. ``kill_at``: before which step on the disk it kills itself (0: never).
    ``output``: a connection that becomes its standard output."""
    process = _FORKSERVER.Process(target=_run, args=(work, arguments, kill_at, output, log), daemon=True)
    process.start()
    return process


def _run(work: Callable[..., None], arguments: tuple[Any, ...], kill_at: int, output: Any, log: Path | None) -> None:
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    if output is not None:
        os.dup2(output.fileno(), 1)
    if not kill_at:
        sys.exit(work(*arguments))
    left = kill_at

    def count(step: Step) -> int:
        nonlocal left
        left -= 1
        if left <= 0:
            if step.kind is Kind.WRITE and left == 0 and kill_at % 2:
                # Half of it, as a kernel may have it that is interrupted.
                with open(step.path, "r+b") as file:
                    file.seek(step.offset)
                    file.write(step.data[: len(step.data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with watched(count):
        sys.exit(work(*arguments))


class Hub:
    """A real hub that may be killed, and started again where it was."""

    def __init__(self, directory: Path, port: int, *, name: str = "hub", store: str = "", hub_key: Path | None = None) -> None:
        self.data, self.port = directory / name, port
        self.store, self.hub_key = store, hub_key
        self.log = directory / f"{name}.log"
        self.kubeconfig = self.data / "admin.kubeconfig"
        self.process: BaseProcess | None = None

    async def start(self, *, kill_at: int = 0) -> bool:
        """Whether it came to serve before it was killed."""
        self.process = start(serve, self.data, self.port, self.store, self.hub_key, kill_at=kill_at, log=self.log)
        deadline = time.monotonic() + 30
        while self.process.exitcode is None:
            if self.kubeconfig.exists():
                connection = Connection(Endpoint.of(self.kubeconfig))
                with contextlib.suppress(ConnectionError), contextlib.closing(connection):
                    if (await connection.call("GET", "/readyz"))[0] == 200:
                        return True
            assert time.monotonic() < deadline, f"the hub is not ready: {self.log.read_text()[-2000:]}"
            await asyncio.sleep(0.01)
        self.killed()
        return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    def killed(self) -> None:
        """Waits for its end, which must have been SIGKILL."""
        assert self.process is not None
        self.process.join(30)
        assert self.process.exitcode == -signal.SIGKILL, self.log.read_text()[-2000:]
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.join(30)
            self.process = None


def serve(data: Path, port: int, store: str = "", hub_key: Path | None = None) -> int:
    """A hub without a site of its own. ``store``: a database that it shares with others."""
    from metaos.config import Address, HubConfig, set_up_logging
    from metaos.server import run_hub

    set_up_logging()
    config = HubConfig(data=data, listen=Address("127.0.0.1", port), store=store, hub_key=hub_key)
    return run_hub(config, local=False)
