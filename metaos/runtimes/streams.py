"""Streams of a container: its log, its standard streams from now on (attach), and commands beside its own (exec)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence

from metaos.clock import Clock
from metaos.runtimes import logs, process
from metaos.runtimes.attachment import Attachment
from metaos.runtimes.execution import Execution
from metaos.runtimes.isolation import Isolation
from metaos.runtimes.output import Outputs
from metaos.runtimes.pods import Container

#: Processes started by exec that run at once, on the whole site.
MAX_EXECUTIONS = 64


class Streams:
    def __init__(self, isolation: Isolation, outputs: Outputs, clock: Clock) -> None:
        self._isolation, self._outputs, self._clock = isolation, outputs, clock
        self._executions: set[Execution] = set()

    async def close(self) -> None:
        """Commands beside containers' own end."""
        for each in list(self._executions):
            await each.kill()

    def look_at_log(self, container: Container) -> None:
        """On a full disk it is lost when its lines came, and more of them are shown of a given time."""
        with contextlib.suppress(OSError):
            self._outputs.note(container.directory, self._clock.now())

    async def logs(
        self, container: Container, *, follow: bool, tail: int | None, previous: bool, since: float | None
    ) -> AsyncIterator[bytes]:
        """Raises ``LookupError`` where there was no previous start."""
        self.look_at_log(container)
        if previous:
            place = os.path.dirname(container.directory)
            before = os.path.join(place, str(int(os.path.basename(container.directory)) - 1))
            if not os.path.isdir(before):
                raise LookupError(f"container {container.name} has no previous start")
            for block in logs.read(before, tail, since=since):
                yield block
        elif follow and container.watch is not None:
            following = self._outputs.follow(container.directory, tail, container.watch.ended, since)
            async with contextlib.aclosing(following) as blocks:  # type: ignore[type-var]
                async for block in blocks:
                    yield block
        else:
            for block in logs.read(container.directory, tail, since=since):
                yield block

    def attach(self, container: Container) -> Attachment:
        """Raises ``LookupError`` where it does not run."""
        if container.end is not None or container.watch is None:
            raise LookupError(f"container {container.name} does not run")
        lines = None
        if not container.tty:
            lines = self._outputs.follow(container.directory, 0, container.watch.ended, None)
        return Attachment(container.directory, stdin=container.stdin or container.tty, lines=lines)

    def exec(self, uid: str, container: Container, command: Sequence[str], *, stdin: bool, tty: bool) -> Execution:
        """Raises ``LookupError`` where the container does not run, ``OSError``."""
        main = None
        if container.end is None and container.monitor is not None:
            main = self._isolation.main(container.monitor, container.directory)
        if main is None:
            raise LookupError(f"container {container.name} of pod {uid} does not run")
        self._executions = {each for each in self._executions if each.running}
        if len(self._executions) >= MAX_EXECUTIONS:
            raise OSError(f"{MAX_EXECUTIONS} commands run in containers of this site already")
        env = dict(container.env or process.environ(main.pid))
        if self._isolation.name == "bubblewrap":
            # There is one user id: GNU tar, which finds itself root, would fail to give files to others ('kubectl cp').
            env.setdefault("TAR_OPTIONS", "--no-same-owner")
        master = slave = -1
        if tty:
            env.setdefault("TERM", "xterm")
            master, slave = os.openpty()
        terminal = os.ttyname(slave) if tty else ""
        try:
            launch = self._isolation.enter(uid, main, container.directory, command, tuple(env.items()), terminal)
        except BaseException:
            for fd in (master, slave) if tty else ():
                os.close(fd)
            raise
        result = Execution.terminal(launch, master, slave) if tty else Execution.pipes(launch, stdin=stdin)
        self._executions.add(result)
        return result
