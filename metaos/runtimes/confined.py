"""Containers confined by bubblewrap: namespaces, no capabilities, no new privileges, a seccomp filter."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence

from metaos.plugins.points import RuntimeUnavailable
from metaos.runtimes import bubblewrap, process, seccomp
from metaos.runtimes.cgroups import MAX_PIDS
from metaos.runtimes.images import system_paths
from metaos.runtimes.isolation import Held, Launch, Start, first_steps
from metaos.runtimes.netns import Networks
from metaos.runtimes.process import Identity

#: Of the network card that is made to see whether one can be.
CHECKED_ADDRESS = "100.64.0.1"


def _copy(program: str, target: str) -> None:
    """bwrap is process 1 of its containers, so they reach its file as ``/proc/1/exe``, and as its owner they may change its
    mode: each pod has a copy of its own to spoil."""
    with open(program, "rb") as original, open(target + ".new", "wb") as file:
        file.write(original.read())
        os.fchmod(file.fileno(), 0o500)
    os.rename(target + ".new", target)


class Bubblewrap:
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
        held = await self.hold("check", place)
        holder = held.holder
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
            held.let_go()
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

    async def hold(self, hostname: str, directory: str) -> Held:
        bwrap, _ = self._programs()
        _copy(bwrap, os.path.join(directory, "bwrap"))
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # No pipe: bwrap would end with us when it writes there, and leave a child that waits for it for ever.
        records = os.memfd_create("nemo")
        waits, life = os.pipe2(os.O_CLOEXEC)
        held: Held | None = None
        try:
            arguments = bubblewrap.packed(bubblewrap.holder(system_paths(), hostname))
            argv = [bwrap, "--args", str(arguments), "--json-status-fd", str(records), "--", *bubblewrap.hold_command()]
            try:
                launch = Launch(argv, {"NEMO_SANDBOX": self._directory}, [arguments], lent=[records])
                monitor = launch.spawn(stdin=waits, stdout=theirs, stderr=theirs)
            finally:
                os.close(theirs)
                os.close(waits)
            try:
                said = b""
                while b"ready\n" not in said:
                    await process.readable(ours)
                    piece = os.read(ours, 1 << 16)
                    if not piece:
                        raise RuntimeUnavailable(bubblewrap.remedy(said.decode(errors="replace")))
                    said += piece
                child = int(json.loads(os.pread(records, 1 << 16, 0).splitlines()[0])["child-pid"])
                holder = process.identity(child)
                if holder is None:
                    raise RuntimeUnavailable("the process that holds the pod's namespaces has ended at once")
            except BaseException:
                for each in process.in_sessions({monitor.pid}):  # whoever waits for the others, too
                    each.kill()
                raise
            finally:
                # bwrap's own waiting process has nothing to wait for: a megabyte less.
                monitor.kill()
                await process.ended(monitor)
            held = Held(holder, life)
            return held
        finally:
            os.close(ours)
            os.close(records)
            if held is None:
                os.close(life)

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
        argv = [*first_steps(start, MAX_PIDS), *self._join(start.holder), os.path.join(os.path.dirname(start.etc), "bwrap")]
        launch = Launch(argv, self._outside(), lent=[mount.fd for mount in start.mounts])
        status = os.path.join(start.directory, "status")
        try:
            launch.fds.append(bubblewrap.packed(view))
            argv += ["--args", str(launch.fds[-1])]
            launch.fds.append(os.open(status, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
            argv += ["--json-status-fd", str(launch.fds[-1])]
            if self._filter:
                launch.fds.append(bubblewrap.readable(self._filter))
                argv += ["--seccomp", str(launch.fds[-1])]
        except BaseException:
            launch.close()
            raise
        argv += ["--", *start.argv]
        return launch

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
