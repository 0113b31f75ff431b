"""Ends pods that must not run twice when nobody says any more that they may go on. A program of its own
(``python -I -S -E watchdog.py DIRECTORY``), one for each runtime's directory; it outlives the agent, as the pods do.

``DIRECTORY/fences`` says what to do: its first line is the machine's boot id, ``cgroup PATH`` where the pods' cgroups are, and
``pod UID MILLISECONDS`` by when a pod has to be gone, counted from the file's own time of modification: the last confirmed
heartbeat in seconds of ``CLOCK_BOOTTIME``. So a heartbeat only sets that time, which needs no room on a full disk, and no
clock that can be set or that stands still while the machine is suspended decides anything.

Where the file is missing or damaged, what it said last holds. The watchdog ends when nothing is left to fence, and when its
place is taken: whoever begins writes who it is into ``fences.lock`` and waits for the lock. Only the standard library, and
little of it: it is resident while there is something to fence.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import fcntl
import os
import sys
import time

#: Between two looks: how late a pod is ended at most, besides the time that its killing takes.
TICK_SECONDS = 0.5
#: Rounds of killing in one look, and the pause after each: who was hit needs a moment, and may have started others.
ROUNDS, ROUND_SECONDS = 10, 0.02
#: Rounds in which a container's first process is spared, as it records the end of the others.
SPARED = 5
#: By how much a file's time may differ from what it was set to.
DRIFT_SECONDS = 1.0
#: In the directory of a container that was ended here.
MARK = "fenced"
#: Marks a process of a pod without a pid namespace, in its environment.
COOKIE = b"NEMO_POD_UID="
_SIGKILL = 9


class Fences:
    """What the file says. ``renewed``: seconds of ``CLOCK_BOOTTIME``; ``limits``: pod uid → seconds after it."""

    def __init__(self, boot: str, groups: list[str], renewed: float, limits: dict[str, float]) -> None:
        self.boot, self.groups, self.renewed, self.limits = boot, groups, renewed, limits

    @classmethod
    def load(cls, path: str) -> Fences | None:
        """``None`` where there is none that can be read whole, or its time is still to come: somebody has touched it."""
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
                renewed = os.fstat(file.fileno()).st_mtime_ns / 1e9
            boot, *rest, last = lines
            if last != "end" or renewed > now() + DRIFT_SECONDS:
                return None
            words = [line.split(" ", 1) for line in rest]
            pods = [value.rsplit(" ", 1) for key, value in words if key == "pod"]
            return cls(
                boot,
                [value for key, value in words if key == "cgroup"],
                renewed,
                {uid: int(milliseconds) / 1000 for uid, milliseconds in pods},
            )
        except (OSError, ValueError):
            return None

    def save(self, path: str) -> None:
        """Whole or not at all; it need not outlast the machine's run. Raises ``OSError``."""
        lines = [self.boot, *(f"cgroup {group}" for group in self.groups)]
        lines += [f"pod {uid} {round(seconds * 1000)}" for uid, seconds in sorted(self.limits.items())]
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write("\n".join([*lines, "end\n"]))
        renew(path + ".new", self.renewed)
        if abs(os.stat(path + ".new").st_mtime - max(0.0, self.renewed)) > DRIFT_SECONDS:
            raise OSError(f"the file system of {path} does not keep the times of files: move the data directory to another one")
        os.rename(path + ".new", path)

    def due(self, moment: float) -> list[str]:
        return [uid for uid, seconds in self.limits.items() if moment >= self.renewed + seconds]


def now() -> float:
    """Seconds since the machine's start, suspended ones too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def renew(path: str, renewed: float) -> None:
    """Says that a heartbeat which began then was confirmed. Raises ``OSError``."""
    moment = max(0, int(renewed * 1e9))
    os.utime(path, ns=(moment, moment))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


class Process:
    """A line of ``/proc/PID/stat``. ``start``: ticks since boot."""

    def __init__(self, line: str) -> None:
        head, _, tail = line.rpartition(")")
        fields = tail.split()
        self.pid, self.state, self.session, self.start = int(head.split(" ", 1)[0]), fields[0], int(fields[3]), int(fields[19])


def process(pid: int) -> Process | None:
    line = _read(f"/proc/{pid}/stat")
    return Process(line) if line else None


def _monitor(record: str) -> tuple[int, int] | None:
    """Pid and start time of a container's first process, as it says itself in the container's record (``records.py``)."""
    for line in record.splitlines():
        if line.startswith('{"monitor": [') and line.endswith("]}"):
            pid, _, start = line[len('{"monitor": [') : -2].partition(", ")
            return int(pid), int(start)
    return None


class Pod:
    """What runs of a pod: what is in its cgroups, in the sessions of its containers, or carries its name in the environment."""

    def __init__(self, directory: str, uid: str, groups: list[str]) -> None:
        self._uid = uid
        self._groups = [os.path.join(group, uid) for group in groups]
        #: Those in the paths of cgroups: another runtime of this machine may have a pod of the same uid.
        self._places = {f"/{os.path.basename(group)}/{uid}/" for group in groups}
        self._containers = os.path.join(directory, "pods", uid, "containers")
        #: Directories of the containers whose end is not recorded, and the first processes of all that were ever seen among them:
        #: each leads its container's session.
        self._open: list[str] = []
        self._leaders: set[int] = set()
        self.look()

    def look(self) -> None:
        """Which containers there are by now: one may have been started since the last look."""
        self._open = []
        for name in _entries(self._containers):
            for sequence in _entries(os.path.join(self._containers, name)):
                container = os.path.join(self._containers, name, sequence)
                if os.path.exists(os.path.join(container, "end.json")):
                    continue
                self._open.append(container)
                leader = _monitor(_read(os.path.join(container, "record")))
                if leader is not None:
                    pid, start = leader
                    found = process(pid)
                    # The kernel does not give a number out again while it is a session's.
                    if found is None or found.start == start:
                        self._leaders.add(pid)

    def _belongs(self, pid: int) -> Process | None:
        found = process(pid)
        if found is None or found.state in "ZX":
            return None
        if found.session in self._leaders:
            return found
        lines = [line + "/" for line in _read(f"/proc/{pid}/cgroup").splitlines()] if self._groups else []
        if any(place in line for line in lines for place in self._places):
            return found
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                marked = COOKIE + self._uid.encode() in file.read().split(b"\0")
        except OSError:
            return None
        return found if marked else None

    def running(self) -> list[int]:
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and self._belongs(int(entry))]

    def mark(self) -> None:
        """So that whoever comes finds why its containers ended."""
        for container in self._open:
            try:
                os.close(os.open(os.path.join(container, MARK), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError:
                continue  # a full disk keeps nothing running

    def kill(self, found: list[int], *, everyone: bool) -> None:
        """Through pidfds, so that no other process can be hit."""
        for pid in found:
            if pid in self._leaders and not everyone:
                continue
            try:
                fd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if self._belongs(pid):
                    _signal.pidfd_send_signal(fd, _SIGKILL)
            except OSError:
                pass
            finally:
                os.close(fd)
        if everyone:
            for group in self._groups:  # all at once (version 2): nobody escapes by forking
                try:
                    with open(os.path.join(group, "cgroup.kill"), "w", encoding="ascii") as file:
                        file.write("1")
                except OSError:
                    continue

    def end(self) -> bool:
        """Whether nothing of it runs."""
        for turn in range(ROUNDS):
            found = self.running()
            if not found:
                return True
            self.look()  # whoever was found had its directory before it ran
            self.mark()
            self.kill(found, everyone=turn >= SPARED)
            _sleep(ROUND_SECONDS)
        return not self.running()


def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # noqa: TID251  (a program of its own)


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id").strip()


def watch(directory: str, lock: int, own: str) -> None:
    """Until nothing is left to fence, or another one has begun."""
    path = os.path.join(directory, "fences")
    known: Fences | None = None
    boot = _boot()
    #: What was ended since the last heartbeat.
    done: set[str] = set()
    while os.pread(lock, 4096, 0).decode(errors="replace") == own:
        before, known = known, Fences.load(path) or known
        if known is None or known.boot != boot:
            return
        if before is None or before.renewed != known.renewed:
            done.clear()
        moment = now()
        done.update(uid for uid in known.due(moment) if uid not in done and Pod(directory, uid, known.groups).end())
        left = [known.renewed + seconds - moment for uid, seconds in known.limits.items() if uid not in done]
        if not left:
            return
        _sleep(max(0.0, min([TICK_SECONDS, *left])))


def main(directory: str) -> None:
    own = _read("/proc/self/stat")
    lock = os.open(os.path.join(directory, "fences.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(lock, 0)
    os.pwrite(lock, own.encode(), 0)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:  # noqa: SIM105  (one more module that would be resident)
        os.write(1, b"ready\n")
    except OSError:
        pass  # the agent that asked for it is gone, which is what it is for
    nothing = os.open("/dev/null", os.O_RDWR)
    for fd in (1, 2):
        os.dup2(nothing, fd)
    watch(directory, lock, own)


if __name__ == "__main__":
    main(sys.argv[1])
