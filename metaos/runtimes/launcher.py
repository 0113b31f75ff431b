"""Starts one container in its pod: its directory, its cgroups, its mounts and environment, its processes."""

from __future__ import annotations

import contextlib
import os
from functools import partial

from metaos import trees
from metaos.clock import Clock
from metaos.plugins.points import ContainerConfig, ImageError
from metaos.runtimes.attachment import FOREGROUND, start_console
from metaos.runtimes.cgroups import Cgroups
from metaos.runtimes.images import DEFAULT_PATH, Image, ImageStore, python_program
from metaos.runtimes.isolation import Isolation, Mount, Start, Startable
from metaos.runtimes.mounts import Mounts
from metaos.runtimes.output import Outputs
from metaos.runtimes.pods import Container, Pod
from metaos.runtimes.process import Watch
from metaos.runtimes.spares import GROUP, Tenant
from metaos.runtimes.wasm import CLASS, Wasm


class Launcher:
    def __init__(
        self,
        isolation: Isolation,
        images: ImageStore,
        mounts: Mounts,
        cgroups: Cgroups,
        outputs: Outputs,
        clock: Clock,
        wasm: Wasm,
    ) -> None:
        self._wasm = wasm
        self._isolation, self._images, self._mounts = isolation, images, mounts
        self._cgroups, self._outputs, self._clock = cgroups, outputs, clock

    def expect(self, pod: Pod, count: int) -> None:
        """So many guests will be started in this pod: what they need can be made."""
        self._wasm.spares.expect(self._tenant(pod), count)

    def _tenant(self, pod: Pod) -> Tenant:
        if pod.holder is None:
            raise OSError("the pod has no namespaces")
        groups = self._cgroups.create(pod.uid, GROUP, cpu=0, memory=0)
        return Tenant(pod.uid, pod.holder, tuple(groups), self._isolation.filter)

    async def launch(self, pod: Pod, container: ContainerConfig, before: Container | None) -> Container:
        """``before``: its last start. Raises ``ImageError``, ``ValueError`` (what can never start), ``OSError``."""
        image = self._images.find(container.image)
        if container.run_as_non_root and not (image.user if container.run_as_user is None else container.run_as_user):
            raise ValueError("container has runAsNonRoot and image will run as root: say runAsUser, or take another image")
        if container.runtime_class not in ("", CLASS):
            raise ValueError(f"runtimeClassName {container.runtime_class!r} is not one of this site's: it has {CLASS}")
        with contextlib.ExitStack() as opened:
            mounts = tuple(self._mounts.open(opened, *mount) for mount in container.mounts)
            return await self._launch(pod, container, before, image, mounts, opened)

    async def _launch(
        self,
        pod: Pod,
        container: ContainerConfig,
        before: Container | None,
        image: Image,
        mounts: tuple[Mount, ...],
        opened: contextlib.ExitStack,
    ) -> Container:
        user = image.user if container.run_as_user is None else container.run_as_user
        group = image.group if container.run_as_group is None else container.run_as_group
        env = self._environment(pod, image, container, user)
        guest: Startable | None = None
        argv: tuple[str, ...] = ()
        if container.runtime_class == CLASS:
            if self._isolation.name != "bubblewrap":
                raise ValueError("runtimeClassName wasm needs a site with isolation bubblewrap")
            guest = await self._wasm.prepare(self._tenant(pod), image, container, env, mounts, opened, (user, group))
        else:
            argv = self._command(image, container)
        started = self._prepare(pod, container, before, image)
        try:
            groups = self._cgroups.create(pod.uid, started.group, cpu=container.cpu_limit, memory=container.memory_limit)
            working_dir = container.working_dir or image.working_dir or "/"
            started.stdin, started.stdin_once, started.tty = container.stdin, container.stdin_once, container.tty
            started.runtime_class = container.runtime_class
            started.record(container.image, working_dir, groups)
            start = Start(
                pod=pod.uid,
                address=pod.address,
                image=image,
                argv=argv,
                env=env,
                working_dir=working_dir,
                mounts=mounts,
                user=user,
                group=group,
                read_only_root=container.read_only_root,
                directory=started.directory,
                hostname=pod.hostname,
                hosts=pod.hosts_file,
                cgroups=tuple(groups),
                holder=pod.holder,
                launcher=pod.launcher,
                homes=self._cgroups.homes,
            )
            started.env = start.env
            await self._start(started, start, guest or self._isolation.container(start))
        except BaseException:
            self._cgroups.remove(pod.uid, started.group)
            self._outputs.drop(started.directory)
            trees.remove(started.directory)
            raise
        with contextlib.suppress(OSError):  # what cannot be removed now, the next start tries
            self._tidy(started, before)
        return started

    async def _start(self, started: Container, start: Start, command: Startable) -> None:
        """The container's processes. Who keeps its input comes first, and ends with it."""
        opened: list[int] = []
        begin = partial(command.start, started.directory, cgroups=start.cgroups, terminal=started.tty)
        try:
            log = self._outputs.open(started.directory)
            opened.append(log)
            if not (started.stdin or started.tty):
                started.monitor = await begin(output=log)
                return
            if started.tty:
                entry, theirs = os.openpty()
            else:
                theirs, entry = os.pipe2(os.O_CLOEXEC)
            opened += [entry, theirs]
            keeper = start_console(started.directory, entry, log if started.tty else -1, once=started.stdin_once)
            started.console = Watch(keeper, lambda: None)
            started.monitor = await begin(stdin=theirs, output=theirs if started.tty else log)
        finally:
            command.close()
            for fd in opened:
                os.close(fd)

    def _command(self, image: Image, container: ContainerConfig) -> tuple[str, ...]:
        if image.rootfs is not None and self._isolation.name == "none":
            raise ImageError(
                "ErrImagePull", f"image {container.image} is an imported one, and isolation none runs host images only"
            )
        argv = tuple(image.argv(container.command, container.args))
        if argv and container.tty and image.rootfs is None:
            argv = (python_program(), "-I", "-S", "-E", "-c", FOREGROUND, *argv)
        if not argv:
            raise ValueError(f"container {container.name} has no command, and neither has its image {container.image}")
        return argv

    def _prepare(self, pod: Pod, config: ContainerConfig, before: Container | None, image: Image) -> Container:
        """The directory of this start."""
        place = os.path.join(pod.directory, "containers", config.name)
        entries: list[str] = []
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            entries = os.listdir(place)
        sequence = 1 + max(map(int, entries), default=-1)
        directory = os.path.join(place, str(sequence))
        os.mkdir(directory, 0o700)
        self._images.hold(image, directory)
        started = Container(config.name, directory, self._clock.now(), config.attempt, f"{config.name}-{sequence}")
        started.before = None if before is None else before.usage(pod.uid)
        return started

    def _tidy(self, started: Container, before: Container | None) -> None:
        """Of earlier starts only the last is kept, for ``logs --previous``. Now that this one is on its way."""
        place, kept = os.path.dirname(started.directory), {started.directory, before.directory if before else ""}
        for directory in (os.path.join(place, entry) for entry in os.listdir(place)):
            if directory not in kept:
                self._outputs.drop(directory)
                trees.remove(directory)
        if before is not None:
            for name in ("upper", "work", "root"):
                trees.remove(os.path.join(before.directory, name))

    def _environment(self, pod: Pod, image: Image, container: ContainerConfig, user: int) -> tuple[tuple[str, str], ...]:
        env = {"PATH": DEFAULT_PATH, "HOSTNAME": pod.hostname}
        if container.tty:
            env["TERM"] = "xterm"
        if self._isolation.name != "none":
            env["HOME"] = "/root" if user == 0 else "/"
        env.update(image.env)
        env.update(container.env)
        for name, value in env.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(
                    f"container {container.name}: {name!r} cannot be the name of an environment variable, or its value"
                )
        return tuple(env.items())
