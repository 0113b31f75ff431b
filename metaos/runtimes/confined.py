"""Containers confined by bubblewrap: namespaces, no capabilities, no new privileges, a seccomp filter."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

from metaos import trees
from metaos.plugins.points import RuntimeUnavailable
from metaos.runtimes import bubblewrap, netns, process, records, seccomp
from metaos.runtimes.forks import Forks, Held
from metaos.runtimes.images import system_paths
from metaos.runtimes.isolation import FIRST_NUMBER, Launch, Start
from metaos.runtimes.process import Identity

#: Of the network card that is made to see whether one can be.
CHECKED_ADDRESS = "100.64.0.1"


class Bubblewrap:
    name = "bubblewrap"
    separate = True

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._bwrap = ""
        self._libraries = ""
        #: Whether a container may have an overlay of its own on its image; found out by :meth:`check`.
        self.overlay = True
        self.filter = seccomp.program()
        self.forks = Forks()
        #: Found out by :meth:`check` too.
        self.no_card = ""

    def _program(self) -> str:
        if not self._bwrap:
            self._bwrap = bubblewrap.find_bwrap()
            # Where a wheel keeps what its program is linked to.
            self._libraries = os.path.dirname(os.path.dirname(self._bwrap)) + ".libs"
        return self._bwrap

    async def check(self) -> None:
        place = os.path.join(self._directory, f"check-{os.getpid()}")
        os.makedirs(place, mode=0o700, exist_ok=True)
        try:
            await self._check(place)
        finally:
            trees.remove(place)

    async def _check(self, place: str) -> None:
        try:
            held = await self.hold("check", CHECKED_ADDRESS, place)
        except OSError as error:
            try:
                held = await self.hold("check", "", place)
            except OSError as namespaces:
                raise RuntimeUnavailable(bubblewrap.remedy(str(namespaces))) from namespaces
            self.no_card = str(error)
        try:
            view = ["--unshare-user", "--disable-userns", "--unshare-pid", "--cap-drop", "ALL"]
            for path in system_paths():
                view += bubblewrap.show(path)
            view += ["--proc", "/proc", "--dev", "/dev"]
            if self.filter and await self._filtered(held, place, view) != 0:
                self.filter = b""  # unless it was not the filter that failed, which the next attempt shows
            code, said = await self._try(held, place, [*view, "true"])
            if code != 0:
                raise RuntimeUnavailable(bubblewrap.remedy(said))
            code, _ = await self._try(held, place, [*view, "--overlay-src", "/usr", "--tmp-overlay", "/mnt", "true"])
            self.overlay = code == 0
        finally:
            held.let_go()
            for fd in held.sockets:
                os.close(fd)
            await process.ended(held.holder)

    async def _filtered(self, held: Held, place: str, view: list[str]) -> int:
        fd = process.in_memory(self.filter)
        try:
            code, _ = await self._try(held, place, [*view, "--seccomp", str(FIRST_NUMBER), "true"], fd)
        finally:
            os.close(fd)
        return code

    async def _try(self, held: Held, place: str, arguments: list[str], *fds: int) -> tuple[int, str]:
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            try:
                launch = Launch(["bwrap", *arguments], self._outside(), lent=fds, holder=held.holder, forks=self.forks)
                child = await launch.start(place, output=theirs)
            finally:
                os.close(theirs)
            said = await process.read_all(ours)
            return await process.ended(child) or 0, said.decode(errors="replace")
        finally:
            os.close(ours)

    def _outside(self) -> dict[str, str]:
        """The environment of the programs that make a container, not of the container."""
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": self._libraries}

    async def hold(self, hostname: str, address: str, directory: str) -> Held:
        counts = (netns.FIRST, netns.FIRST if address else 0)
        return await self.forks.hold(hostname[:64], address, self._program(), directory, counts)

    def container(self, start: Start) -> Launch:
        self._program()
        argv = ["bwrap"]
        lent = [mount.fd for mount in start.mounts]
        launch = Launch(argv, self._outside(), lent=lent, holder=start.holder, forks=self.forks)
        launch.launcher, launch.homes = start.launcher, start.homes
        texts: dict[str, int] = {}
        try:
            for name, text in bubblewrap.etc(start.image, start.hostname).items():
                texts[name] = launch.passed(process.in_memory(text.encode()))
            view = bubblewrap.container(
                start.image,
                start.directory,
                start.hosts,
                texts,
                user=start.user,
                group=start.group,
                working_dir=start.working_dir,
                read_only_root=start.read_only_root,
                overlay=self.overlay,
                mounts=[(FIRST_NUMBER + at, mount.target, mount.read_only) for at, mount in enumerate(start.mounts)],
                env=start.env,
            )
            if start.image.rootfs is not None and self.overlay:
                for name in ("upper", "work"):
                    os.mkdir(os.path.join(start.directory, name), 0o755)
            arguments = launch.passed(bubblewrap.packed(view))
            argv += ["--args", str(arguments)]
            ends = os.open(records.path(start.directory), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            argv += ["--json-status-fd", str(launch.passed(ends))]
            if self.filter:
                confined = launch.passed(process.in_memory(self.filter))
                argv += ["--seccomp", str(confined)]
                launch.gates = (arguments, confined)
        except BaseException:
            launch.close()
            raise
        argv += ["--", *start.argv]
        return launch

    def _init(self, monitor: Identity, directory: str) -> Identity | None:
        """bwrap's process 1 of the container. That it is still the same shows in its session, which the monitor leads."""
        pid = records.read(directory).get("child-pid")
        found = process.stat(pid) if pid else None
        leader = process.stat(monitor.pid)
        if found is None or found.session != monitor.pid or found.state in "ZX" or (leader and leader.start != monitor.start):
            return None
        return Identity(found.pid, found.start)

    def main(self, monitor: Identity, directory: str) -> Identity | None:
        init = self._init(monitor, directory)
        below = process.children(init.pid) if init else []
        return process.identity(below[0]) if below else None

    def members(self, pod: str, monitor: Identity, directory: str) -> list[Identity]:
        init = self._init(monitor, directory)
        if init is not None:
            return [init]  # its end ends everything in the container
        if "child-pid" in records.read(directory):
            return [monitor] if monitor.alive() else []
        # Before it is there, only the session tells; that is a walk through all processes of the machine.
        return process.session_of(monitor)

    def enter(
        self, pod: str, main: Identity, directory: str, command: Sequence[str], env: Sequence[tuple[str, str]], terminal: str
    ) -> Launch:
        known = records.read(directory)
        groups = [group for group in known.get("cgroups", ()) if os.path.isdir(group)]
        request = bubblewrap.exec_request(
            pid=main.pid,
            start=main.start,
            tty=bool(terminal),
            directory=known.get("workingDir", "/"),
            seccomp=self.filter,
            cgroups=groups,
            env=env,
            command=command,
        )
        return Launch(bubblewrap.enter_command("exec", str(request)), {}, [request], waits=True)

    def conditions(self) -> list[tuple[str, str]]:
        result = [("UserIds", "each container has one user id: programs that switch to another user inside it fail")]
        if not self.overlay:
            result.append(("WritableRoot", "this kernel allows no overlay in a user namespace: imported images are read-only"))
        if not self.filter:
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
