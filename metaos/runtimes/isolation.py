"""What the two ways have in common in which the sandbox runtime runs a container: confined by bubblewrap (``confined.py``), or
as a plain process (``plain.py``).

Both leave in the container's directory: ``pid`` (the ``/proc/PID/stat`` line of its *monitor*, the process that outlives
us and records the end), ``log``, and ``status`` (the exit code, written by the monitor; the file's time is that of the end).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from metaos.runtimes import bubblewrap, process
from metaos.runtimes.images import Image
from metaos.runtimes.netns import Networks
from metaos.runtimes.process import Identity

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
    etc: str
    cgroups: tuple[str, ...]
    holder: Identity | None


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

    def close(self) -> None:
        """Also where it never came to executing it."""
        while self.fds:
            os.close(self.fds.pop())


@dataclass(slots=True)
class Held:
    """A pod's holder that has just been started. It ends when we do, until it is told to stay."""

    holder: Identity
    _life: int

    def stay(self) -> None:
        """It is recorded: from now on it outlives us."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, which its watch will say
            os.write(self._life, b"stay\n")
        self.let_go()

    def let_go(self) -> None:
        """Without having been told to stay, it ends."""
        if self._life >= 0:
            os.close(self._life)
            self._life = -1


class Isolation(Protocol):
    name: str
    #: Makes sockets in pods' networks; ``None`` where pods share the machine's.
    networks: Networks | None
    #: Why pods have no network card of their own; empty where they have.
    no_card: str

    async def check(self) -> None: ...

    async def hold(self, hostname: str, directory: str) -> Held | None:
        """Starts the process that holds a pod's namespaces; ``None`` where there are none. ``directory``: the pod's."""
        ...

    def container(self, start: Start) -> Launch: ...

    def main(self, monitor: Identity, directory: str) -> Identity | None:
        """The command's own process, for signals and for entering; ``None`` while it is not there yet."""
        ...

    def exit_code(self, directory: str) -> int | None:
        """As the monitor recorded it."""
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


def first_steps(start: Start, processes: int | None) -> list[str]:
    """A command that begins with :data:`metaos.runtimes.bubblewrap.LAUNCH`."""
    limits = [str(bubblewrap.files_limit()), "" if processes is None else str(processes)]
    return ["/bin/sh", "-c", bubblewrap.LAUNCH, "nemo", os.path.join(start.directory, "pid"), ":".join(start.cgroups), *limits]


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
