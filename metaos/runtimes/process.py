"""Processes that outlive us: who one is (pid and start time), when it ends (pidfd), whose children run.

A pid alone proves nothing after a restart of the agent, as the kernel gives numbers out again; with the start time
from ``/proc/PID/stat`` it does (man 5 proc). No polling: a pidfd becomes readable when its process has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Stat:
    """A line of ``/proc/PID/stat``. ``start``: ticks since boot; ``cpu``: seconds, with reaped children; ``memory``: bytes."""

    pid: int
    state: str
    parent: int
    session: int
    start: int
    cpu: float
    memory: int


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, for as long as the machine is up."""

    pid: int
    start: int

    def alive(self) -> bool:
        """Whether this very process runs; a zombie does not."""
        found = stat(self.pid)
        return found is not None and found.start == self.start and found.state not in "ZX"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal through a pidfd, so that no other process can be hit; one that has ended is fine."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            found = stat(self.pid)
            if found is not None and found.start == self.start:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)

    def end(self) -> None:
        """SIGKILL, and waits until it is gone."""
        import select

        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():
                self.kill()
                waiting = select.poll()
                waiting.register(fd, select.POLLIN)
                waiting.poll(5000)
                reap(self.pid)
        finally:
            os.close(fd)


def parse_stat(line: str) -> Stat | None:
    """The command name may hold spaces and brackets: fields are counted from the last one."""
    head, _, tail = line.rpartition(")")
    fields = tail.split()
    if len(fields) < 22:
        return None
    return Stat(
        pid=int(head.split(" ", 1)[0]),
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        start=int(fields[19]),
        cpu=sum(int(n) for n in fields[11:15]) / TICKS,
        memory=int(fields[21]) * PAGE,
    )


def stat(pid: int) -> Stat | None:
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return parse_stat(os.read(fd, 4096).decode(errors="replace"))
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None


def identity(pid: int) -> Identity | None:
    found = stat(pid)
    return None if found is None else Identity(pid, found.start)


def everyone() -> Iterator[Stat]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := stat(int(entry))) is not None:
            yield found


def children(pid: int) -> list[int]:
    """Pids of the direct children, oldest first."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def in_sessions(sessions: Collection[int]) -> list[Identity]:
    """Everything that runs in one of these sessions (numbered by their leaders)."""
    if not sessions:
        return []
    return [Identity(each.pid, each.start) for each in everyone() if each.session in sessions and each.state not in "ZX"]


def session_of(leader: Identity) -> list[Identity]:
    """Everything that runs in the session that this process led, itself too. The kernel does not give a number out again
    while it is a session's: if somebody else has it now, nothing of the session is left."""
    found = stat(leader.pid)
    return [] if found is not None and found.start != leader.start else in_sessions({leader.pid})


def trees(roots: Sequence[int]) -> dict[int, list[Stat]]:
    """Root pid → itself and all its descendants, from one walk through ``/proc``."""
    below: dict[int, list[Stat]] = {}
    known: dict[int, Stat] = {}
    for found in everyone():
        known[found.pid] = found
        below.setdefault(found.parent, []).append(found)
    result: dict[int, list[Stat]] = {}
    for root in roots:
        members = [known[root]] if root in known else []
        for member in members:
            members.extend(below.get(member.pid, ()))
        result[root] = members
    return result


def environ(pid: int) -> tuple[tuple[str, str], ...]:
    """The environment that the process was started with. Empty where it may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return ()
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if b"=" in entry)
    return tuple((name, value) for name, _, value in pairs)


def boot_id() -> str:
    """Changes with every boot of the machine: a remembered pid means nothing after one."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


class Watch:
    """Calls back once, in the event loop, when the process has ended. Reaps it if it is a child of ours. ``ours``: it is one, and
    nobody has, so its number is still its own."""

    __slots__ = ("_callback", "_fd", "code", "cpu", "ended", "identity")

    def __init__(self, who: Identity, callback: Callable[[], None], *, ours: bool = False) -> None:
        self.identity = who
        self.ended = asyncio.Event()
        #: The exit code (128 + signal), known only if it was our child.
        self.code: int | None = None
        #: CPU seconds that it used, with all that it waited for; 0 where it was not our child.
        self.cpu = 0.0
        self._callback: Callable[[], None] | None = callback
        self._fd = -1
        try:
            self._fd = os.pidfd_open(who.pid)
        except ProcessLookupError:
            self._schedule()
            return
        found = None if ours else stat(who.pid)
        if not ours and (found is None or found.start != who.start):
            self._release()
            self._schedule()
            return
        asyncio.get_running_loop().add_reader(self._fd, self._ready)

    def _schedule(self) -> None:
        asyncio.get_running_loop().call_soon(self._ready)

    def _ready(self) -> None:
        if self.ended.is_set():
            return
        self.code, self.cpu = reap(self.identity.pid)
        self._release()
        self.ended.set()
        # Not kept: it holds what holds this, and would be garbage only when somebody looks for circles.
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    def _release(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Stop watching; the process goes on."""
        self._callback = None
        self._release()


def reap(pid: int) -> tuple[int | None, float]:
    """The exit code of an ended child of ours (``None`` for everybody else's), and the CPU seconds that it used."""
    try:
        done, status, used = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return None, 0.0
    if done == 0:
        return None, 0.0
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code, used.ru_utime + used.ru_stime


async def ended(who: Identity) -> int | None:
    """Waits until the process has ended; its exit code if it was our child."""
    watch = Watch(who, lambda: None)
    try:
        await watch.ended.wait()
    finally:
        watch.close()
    return watch.code


def spawn(
    argv: Sequence[str],
    *,
    env: dict[str, str],
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    cwd: str = "/",
) -> Identity:
    """Starts a process in a session of its own. Raises ``OSError``. It is reaped by its :class:`Watch`."""
    process = subprocess.Popen(
        argv, env=env, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds, cwd=cwd, start_new_session=True
    )
    # Popen would complain, and reap behind our back, when it is collected before the process has ended.
    process.returncode = 0
    found = identity(process.pid)
    assert found is not None  # an unreaped child is always in /proc
    return found


def in_memory(data: bytes) -> int:
    """A descriptor from which a program that inherits it reads these bytes. The caller closes it."""
    fd = os.memfd_create("nemo")
    try:
        while data:
            data = data[os.write(fd, data) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


async def readable(fd: int) -> None:
    """Waits until the descriptor can be read (or is at its end)."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def read_all(fd: int, bound: int = 1 << 16) -> bytes:
    """What comes until the end of a non-blocking pipe, at most ``bound`` bytes."""
    data = b""
    while len(data) < bound:
        await readable(fd)
        try:
            more = os.read(fd, bound - len(data))
        except BlockingIOError:
            continue
        if not more:
            break
        data += more
    return data
