"""The two ways in which the sandbox runtime runs a container: confined by bubblewrap, or as a plain process.

Both leave in the container's directory: ``pid`` (the ``/proc/PID/stat`` line of its *monitor*, the process that outlives
us and records the end), ``log``, and ``status`` (the exit code, written by the monitor; the file's time is that of the end).
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from metaos.plugins.points import RuntimeUnavailable
from metaos.runtimes import bubblewrap, process, seccomp
from metaos.runtimes.cgroups import MAX_PIDS
from metaos.runtimes.images import Image, python_program, system_paths
from metaos.runtimes.netns import Networks
from metaos.runtimes.process import Identity

#: Marks every process of a plain pod, in its environment: how they are found where there is no pid namespace.
COOKIE = "NEMO_POD_UID"
#: Of the network card that is made to see whether one can be.
CHECKED_ADDRESS = "100.64.0.1"

_PLAIN = """status=$1; shift; "$@"; code=$?; printf '%s\\n' "$code" >"$status" """
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
            for fd in self.fds:
                os.close(fd)


class Isolation(Protocol):
    name: str
    #: Makes sockets in pods' networks; ``None`` where pods share the machine's.
    networks: Networks | None
    #: Why pods have no network card of their own; empty where they have.
    no_card: str

    async def check(self) -> None: ...

    async def hold(self, hostname: str, directory: str) -> Identity | None:
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


def _launch(start: Start, processes: int | None) -> list[str]:
    limits = [str(bubblewrap.files_limit()), "" if processes is None else str(processes)]
    return ["/bin/sh", "-c", bubblewrap.LAUNCH, "nemo", os.path.join(start.directory, "pid"), ":".join(start.cgroups), *limits]


def _copy(program: str, target: str) -> None:
    """bwrap is process 1 of its containers, so they reach its file as ``/proc/1/exe``, and as its owner they may change its
    mode: each pod has a copy of its own to spoil."""
    with open(program, "rb") as original, open(target + ".new", "wb") as file:
        file.write(original.read())
        os.fchmod(file.fileno(), 0o500)
    os.rename(target + ".new", target)


class Bubblewrap:
    """Namespaces, no capabilities, no new privileges, a seccomp filter."""

    name = "bubblewrap"

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._bwrap = ""
        self._nsenter = ""
        self._libraries = ""
        #: Whether a container may have an overlay of its own on its image; found out by :meth:`check`.
        self.overlay = True
        self._filter = seccomp.program()
        self.networks: Networks | None = Networks()
        #: Found out by :meth:`check` too.
        self.no_card = ""

    def _programs(self) -> tuple[str, str]:
        if not self._bwrap:
            self._bwrap, self._nsenter = bubblewrap.find_bwrap(), bubblewrap.find_nsenter()
            # Where a wheel keeps what its program is linked to.
            self._libraries = os.path.dirname(os.path.dirname(self._bwrap)) + ".libs"
        return self._bwrap, self._nsenter

    async def check(self) -> None:
        self._programs()
        place = os.path.join(self._directory, f"check-{os.getpid()}")
        os.makedirs(place, mode=0o700, exist_ok=True)
        try:
            await self._check(place)
        finally:
            if os.path.exists(os.path.join(place, "bwrap")):
                os.unlink(os.path.join(place, "bwrap"))
            os.rmdir(place)

    async def _check(self, place: str) -> None:
        holder = await self.hold("check", place)
        try:
            view = [os.path.join(place, "bwrap"), "--unshare-user", "--disable-userns", "--unshare-pid", "--cap-drop", "ALL"]
            for path in system_paths():
                view += bubblewrap.show(path)
            view += ["--proc", "/proc", "--dev", "/dev"]
            if self._filter and await self._filtered([*self._join(holder), *view]) != 0:
                self._filter = b""  # unless it was not the filter that failed, which the next attempt shows
            code, said = await self._try([*self._join(holder), *view, "true"])
            if code != 0:
                raise RuntimeUnavailable(bubblewrap.remedy(said))
            code, _ = await self._try([*self._join(holder), *view, "--overlay-src", "/usr", "--tmp-overlay", "/mnt", "true"])
            self.overlay = code == 0
            try:
                assert self.networks is not None
                (await self.networks.make(holder, CHECKED_ADDRESS)).close()
            except (OSError, TimeoutError) as error:
                self.no_card = str(error) or type(error).__name__
        finally:
            holder.kill()
            await process.ended(holder)

    async def _filtered(self, argv: list[str]) -> int:
        fd = bubblewrap.readable(self._filter)
        try:
            code, _ = await self._try([*argv, "--seccomp", str(fd), "true"], fd)
        finally:
            os.close(fd)
        return code

    async def _try(self, argv: list[str], *fds: int) -> tuple[int, str]:
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            try:
                child = process.spawn(argv, env=self._outside(), stderr=theirs, pass_fds=fds)
            finally:
                os.close(theirs)
            said = await process.read_all(ours)
            return await process.ended(child) or 0, said.decode(errors="replace")
        finally:
            os.close(ours)

    def _outside(self) -> dict[str, str]:
        """The environment of the programs that make a container, not of the container."""
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": self._libraries}

    async def hold(self, hostname: str, directory: str) -> Identity:
        bwrap, _ = self._programs()
        _copy(bwrap, os.path.join(directory, "bwrap"))
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        status, records = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            arguments = bubblewrap.packed(bubblewrap.holder(system_paths(), hostname))
            argv = [bwrap, "--args", str(arguments), "--json-status-fd", str(records), "--", *bubblewrap.hold_command()]
            try:
                launch = Launch(argv, {"NEMO_SANDBOX": self._directory}, [arguments, records])
                monitor = launch.spawn(stdout=theirs, stderr=theirs)
            finally:
                os.close(theirs)
            try:
                said = b""
                while b"ready\n" not in said:
                    await process.readable(ours)
                    piece = os.read(ours, 1 << 16)
                    if not piece:
                        raise RuntimeUnavailable(bubblewrap.remedy(said.decode(errors="replace")))
                    said += piece
                child = int(json.loads(os.read(status, 1 << 16).splitlines()[0])["child-pid"])
                holder = process.identity(child)
                if holder is None:
                    raise RuntimeUnavailable("the process that holds the pod's namespaces has ended at once")
            finally:
                # bwrap's own waiting process has nothing to wait for: a megabyte less.
                monitor.kill()
                await process.ended(monitor)
            return holder
        finally:
            os.close(ours)
            os.close(status)

    def _join(self, holder: Identity) -> list[str]:
        _, nsenter = self._programs()
        return [nsenter, "-t", str(holder.pid), "-U", "-n", "-i", "-u", "--preserve-credentials", "--"]

    def container(self, start: Start) -> Launch:
        self._programs()
        assert start.holder is not None
        view = bubblewrap.container(
            start.image,
            start.directory,
            start.etc,
            user=start.user,
            group=start.group,
            working_dir=start.working_dir,
            read_only_root=start.read_only_root,
            overlay=self.overlay,
            mounts=[(mount.fd, mount.target, mount.read_only) for mount in start.mounts],
            env=start.env,
        )
        if start.image.rootfs is not None and self.overlay:
            for name in ("upper", "work"):
                os.mkdir(os.path.join(start.directory, name), 0o755)
        arguments = bubblewrap.packed(view)
        status = os.open(os.path.join(start.directory, "status"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        argv = [*_launch(start, MAX_PIDS), *self._join(start.holder), os.path.join(os.path.dirname(start.etc), "bwrap")]
        argv += ["--args", str(arguments), "--json-status-fd", str(status)]
        fds = [arguments, status]
        if self._filter:
            fds.append(bubblewrap.readable(self._filter))
            argv += ["--seccomp", str(fds[-1])]
        return Launch([*argv, "--", *start.argv], self._outside(), fds, lent=[mount.fd for mount in start.mounts])

    def _records(self, directory: str) -> dict[str, int]:
        merged: dict[str, int] = {}
        try:
            with open(os.path.join(directory, "status"), encoding="utf-8") as file:
                for line in file:
                    if line.endswith("}\n"):
                        merged.update(json.loads(line))
        except FileNotFoundError:
            pass
        return merged

    def _init(self, monitor: Identity, directory: str) -> Identity | None:
        """bwrap's process 1 of the container. That it is still the same shows in its session, which the monitor leads."""
        pid = self._records(directory).get("child-pid")
        found = process.stat(pid) if pid else None
        leader = process.stat(monitor.pid)
        if found is None or found.session != monitor.pid or found.state in "ZX" or (leader and leader.start != monitor.start):
            return None
        return Identity(found.pid, found.start)

    def main(self, monitor: Identity, directory: str) -> Identity | None:
        init = self._init(monitor, directory)
        below = process.children(init.pid) if init else []
        return process.identity(below[0]) if below else None

    def exit_code(self, directory: str) -> int | None:
        return self._records(directory).get("exit-code")

    def members(self, pod: str, monitor: Identity, directory: str) -> list[Identity]:
        init = self._init(monitor, directory)
        if init is not None:
            return [init]  # its end ends everything in the container
        if "child-pid" in self._records(directory):
            return [monitor] if monitor.alive() else []
        # Before it is there, only the session tells; that is a walk through all processes of the machine.
        return process.session_of(monitor)

    def enter(
        self, pod: str, main: Identity, directory: str, command: Sequence[str], env: Sequence[tuple[str, str]], terminal: str
    ) -> Launch:
        groups: list[str] = []
        try:
            with open(os.path.join(directory, "container.json"), encoding="utf-8") as file:
                known = json.load(file)
            groups = [group for group in known["cgroups"] if os.path.isdir(group)]
            working_dir = known["workingDir"]
        except FileNotFoundError:
            working_dir = "/"
        request = bubblewrap.exec_request(
            pid=main.pid,
            start=main.start,
            tty=bool(terminal),
            directory=working_dir,
            seccomp=self._filter,
            cgroups=groups,
            env=env,
            command=command,
        )
        return Launch(bubblewrap.enter_command("exec", str(request)), {}, [request], waits=True)

    def conditions(self) -> list[tuple[str, str]]:
        result = [("UserIds", "each container has one user id: programs that switch to another user inside it fail")]
        if not self.overlay:
            result.append(("WritableRoot", "this kernel allows no overlay in a user namespace: imported images are read-only"))
        if not self._filter:
            why = "this kernel takes no seccomp filter" if seccomp.program() else f"none is known for {platform.machine()}"
            result.append(("Seccomp", f"containers may make every system call that their missing rights allow: {why}"))
        if self.no_card:
            result.append(
                (
                    "PodNetwork",
                    f"pods have a loopback and no network card ({self.no_card}): a pod that listens on a port cannot reach "
                    "Services on the same port, nor any by UDP; load the kernel module veth ('modprobe veth'), restart the agent",
                )
            )
        return result


class Plain:
    """No isolation: processes in sessions of their own, in a private directory. Only when asked for outright."""

    name = "none"
    overlay = False
    networks: Networks | None = None
    no_card = "pods share the machine's network"

    def __init__(self, directory: str) -> None:
        self._directory = directory

    async def check(self) -> None:
        """Nothing is needed but a shell."""

    async def hold(self, hostname: str, directory: str) -> None:
        return None

    def _links(self) -> str:
        """A directory in which ``python`` and ``python3`` are this very Python."""
        place = os.path.join(self._directory, "bin")
        if not os.path.isdir(place):
            os.makedirs(place, exist_ok=True)
            for name in ("python", "python3"):
                os.symlink(python_program(), os.path.join(place, name))
        return place

    def container(self, start: Start) -> Launch:
        root = os.path.join(start.directory, "root")
        os.mkdir(root, 0o700)
        for mount in start.mounts:
            place = os.path.join(root, mount.target.lstrip("/"))
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if not os.path.lexists(place):
                os.symlink(mount.source, place)
        env = dict(start.env)
        env["PATH"] = self._links() + ":" + env.get("PATH", "/usr/local/bin:/usr/bin:/bin")
        env |= {
            COOKIE: start.pod,
            "NEMO_POD_ADDRESS": start.address,
            "NEMO_ROOT": root,
            "NEMO_HOSTS_FILE": os.path.join(start.etc, "hosts"),
        }
        env |= {"HOME": root, "TMPDIR": root} | {name: env[name] for name in ("HOME", "TMPDIR") if name in env}
        # No limit of processes: it would count all that this user runs on the machine.
        argv = [*_launch(start, None), "/bin/sh", "-c", _PLAIN, "nemo", os.path.join(start.directory, "status"), *start.argv]
        return Launch(argv, env, directory=root)

    def main(self, monitor: Identity, directory: str) -> Identity | None:
        below = process.children(monitor.pid) if monitor.alive() else []
        return process.identity(below[0]) if below else None

    def exit_code(self, directory: str) -> int | None:
        try:
            with open(os.path.join(directory, "status"), encoding="ascii") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        return int(text) if text.endswith("\n") else None

    def members(self, pod: str, monitor: Identity, directory: str) -> list[Identity]:
        found = {each.pid: each for each in process.session_of(monitor)}
        root = os.path.join(directory, "root")
        for each in process.everyone():
            if each.pid not in found and each.state not in "ZX":
                env = dict(process.environ(each.pid))
                if env.get(COOKIE) == pod and env.get("NEMO_ROOT") == root:
                    found[each.pid] = Identity(each.pid, each.start)
        return [found[pid] for pid in sorted(found)]

    def enter(
        self, pod: str, main: Identity, directory: str, command: Sequence[str], env: Sequence[tuple[str, str]], terminal: str
    ) -> Launch:
        argv = on_terminal(terminal, list(command)) if terminal else ["/bin/sh", "-c", 'exec "$@"', "nemo", *command]
        merged = dict(env) | dict(process.environ(main.pid))
        return Launch(argv, merged, directory=os.path.join(directory, "root"))

    def conditions(self) -> list[tuple[str, str]]:
        return [
            ("Isolation", "isolation is none, as the site file asks: containers are plain processes and see the whole machine"),
            (
                "PodNetwork",
                "pods share the machine's network: two pods cannot listen on the same port, unless each listens only at the "
                "address that NEMO_POD_ADDRESS names; Services are not reached by UDP",
            ),
            (
                "ServiceNames",
                "Service names are not resolved: /etc/hosts is the machine's; the pod's is the file that NEMO_HOSTS_FILE names",
            ),
            (
                "VolumePaths",
                "volumes are not at their paths: they are below the directory that NEMO_ROOT names, where containers start",
            ),
        ]


def isolated(name: str, directory: str) -> Isolation:
    """By the name that a site file uses. Raises ``ValueError``."""
    if name == "bubblewrap":
        return Bubblewrap(directory)
    if name == "none":
        return Plain(directory)
    raise ValueError(f"isolation {name!r} is not known: it must be bubblewrap or none")


def signal_name(code: int) -> str:
    """Of an exit code above 128; "" for others."""
    try:
        return signal.Signals(code - 128).name if code > 128 else ""
    except ValueError:
        return ""
