"""What the two ways have in common in which the sandbox runtime runs a container: confined by bubblewrap (``confined.py``), or
as a plain process (``plain.py``).

Both leave in the container's directory its ``log`` and its record (see ``records.py``).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from metaos.runtimes import bubblewrap, process, records
from metaos.runtimes.cgroups import MAX_PIDS
from metaos.runtimes.forks import Forks, Held, Launcher
from metaos.runtimes.images import Image
from metaos.runtimes.process import Identity

#: The first number of the descriptors in a command that is started by the zygote or a holder: small ones, as those of a process
#: that holds many pods are beyond the limit of a container.
FIRST_NUMBER = 10
_TERMINAL = """terminal=$1; shift; exec "$@" <>"$terminal" >&0 2>&0"""


@dataclass(frozen=True, slots=True)
class Mount:
    """``fd``: what is mounted, opened (O_PATH) and looked at before: what a path means, a container may change at any time."""

    fd: int
    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Start:
    """A container ready to start: the image found, the command complete, its directories made."""

    pod: str
    address: str
    image: Image
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    working_dir: str
    mounts: tuple[Mount, ...]
    user: int
    group: int
    read_only_root: bool
    directory: str
    hostname: str
    #: The file that is its ``/etc/hosts``.
    hosts: str
    cgroups: tuple[str, ...]
    holder: Identity | None
    #: The pod's holder, for as long as that starts containers, and the cgroups in which it stays itself.
    launcher: Launcher | None
    homes: Sequence[str]


class Startable(Protocol):
    """A container's command, ready to start: a program, or a guest (see ``wasm.py``)."""

    async def start(
        self,
        directory: str,
        *,
        cgroups: Sequence[str] = (),
        stdin: int | None = None,
        output: int,
        terminal: bool = False,
    ) -> Identity:
        """Its monitor: its record in ``directory`` says who that is. The command joins its cgroups and its pod's namespaces, and
        takes on its limits (files, processes; whom the kernel kills first where memory ends). ``terminal``: its standard input
        is one. Raises ``OSError``, ``ValueError`` (it can never start)."""
        ...

    def close(self) -> None:
        """Also where it never came to being started."""
        ...


@dataclass(slots=True)
class Launch:
    """What to execute. ``fds`` are passed on, and closed here afterwards; ``lent`` ones are passed on only."""

    argv: list[str]
    env: dict[str, str]
    fds: list[int] = field(default_factory=list)
    lent: Sequence[int] = ()
    directory: str = "/"
    #: Whether the command is a child of what is started, which then only waits for it.
    waits: bool = False
    #: The numbers of the descriptors without whose content the command does nothing: of bubblewrap's arguments, and of its
    #: seccomp filter. Empty where it has no filter.
    gates: tuple[int, ...] = ()
    #: Whose pod it is in; who starts it as a container's command: the launcher where it can, and the cgroups in which that stays.
    holder: Identity | None = None
    forks: Forks | None = None
    launcher: Launcher | None = None
    homes: Sequence[str] = ()

    async def start(
        self,
        directory: str,
        *,
        cgroups: Sequence[str] = (),
        stdin: int | None = None,
        output: int,
        terminal: bool = False,
    ) -> Identity:
        """See :class:`Startable`."""
        assert self.forks is not None
        try:
            given = [*self.lent, *self.fds]
            numbers = [*(() if stdin is None else (0,)), 1, 2, *range(FIRST_NUMBER, FIRST_NUMBER + len(given))]
            fds = [*(() if stdin is None else (stdin,)), output, output, *given]
            words = [records.path(directory), ":".join(cgroups), str(bubblewrap.files_limit())]
            if self.holder is None:  # no limit of processes: it would count all that this user runs on the machine
                words += ["", "1" if terminal else "", "", ""]
            else:
                words += [str(MAX_PIDS), "1" if terminal else "", str(self.holder.pid), str(self.holder.start)]
            words += [":".join(self.homes), " ".join(map(str, self.gates))]
            words += [self.directory, " ".join(map(str, numbers)), str(len(self.env))]
            words += [f"{name}={value}" for name, value in self.env.items()]
            return await self.forks.start([*words, *self.argv], fds, self.launcher if self.gates and not terminal else None)
        finally:
            self.close()

    def spawn(
        self, *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL, stderr: int = subprocess.DEVNULL
    ) -> Identity:
        try:
            fds = [*self.fds, *self.lent]
            return process.spawn(
                self.argv, env=self.env, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=fds, cwd=self.directory
            )
        finally:
            self.close()

    def passed(self, fd: int) -> int:
        """Takes the descriptor over, to pass it on; its number in the command that :meth:`start` starts."""
        self.fds.append(fd)
        return FIRST_NUMBER + len(self.lent) + len(self.fds) - 1

    def close(self) -> None:
        """Also where it never came to executing it."""
        while self.fds:
            os.close(self.fds.pop())


class Isolation(Protocol):
    name: str
    forks: Forks
    #: Of system calls (see ``seccomp.py``); empty where there is none.
    filter: bytes
    #: Whether pods have networks of their own.
    separate: bool
    #: Why pods have no network card of their own; empty where they have.
    no_card: str

    async def check(self) -> None: ...

    async def hold(self, hostname: str, address: str, directory: str) -> Held | None:
        """Starts the process that holds a pod's namespaces, with a network card where the pod has an address; ``None`` where
        there are no namespaces. ``directory``: the pod's. Raises ``OSError``."""
        ...

    def container(self, start: Start) -> Launch:
        """What :meth:`Launch.start` starts."""
        ...

    def main(self, monitor: Identity, directory: str) -> Identity | None:
        """The command's own process, for signals and for entering; ``None`` while it is not there yet."""
        ...

    def members(self, pod: str, monitor: Identity, directory: str) -> list[Identity]:
        """Everything to kill that the container has left."""
        ...

    def enter(
        self, pod: str, main: Identity, directory: str, command: Sequence[str], env: Sequence[tuple[str, str]], terminal: str
    ) -> Launch:
        """A further process beside the container's command."""
        ...

    def conditions(self) -> list[tuple[str, str]]:
        """(type, why it does not hold)."""
        ...


def on_terminal(terminal: str, argv: list[str]) -> list[str]:
    """A command whose session has this terminal: it must be the session's first process that opens it."""
    return ["/bin/sh", "-c", _TERMINAL, "nemo", terminal, *argv]


def isolated(name: str, directory: str) -> Isolation:
    """By the name that a site file uses. Raises ``ValueError``."""
    if name == "bubblewrap":
        from metaos.runtimes.confined import Bubblewrap

        return Bubblewrap(directory)
    if name == "none":
        from metaos.runtimes.plain import Plain

        return Plain(directory)
    raise ValueError(f"isolation {name!r} is not known: it must be bubblewrap or none")


def signal_name(code: int) -> str:
    """Of an exit code above 128; "" for others."""
    try:
        return signal.Signals(code - 128).name if code > 128 else ""
    except ValueError:
        return ""
