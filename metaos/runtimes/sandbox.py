"""The sandbox runtime: pods as confined processes, for machines without Kubernetes.

Per pod a *holder* keeps the network, ipc and uts namespaces; per container a *monitor* records the end. Both outlive the
agent, and a new agent finds them by the state directory (see ``pods.py``). Whoever ends is noticed by pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from metaos import trees
from metaos.clock import Clock
from metaos.plugins.points import ContainerConfig, ContainerState, ImageError, PodConfig, PodNetwork
from metaos.runtimes import logs, netns, process
from metaos.runtimes.attachment import FOREGROUND, Attachment, start_console
from metaos.runtimes.cgroups import Cgroups
from metaos.runtimes.execution import Execution
from metaos.runtimes.images import DEFAULT_PATH, Image, ImageStore, python_program
from metaos.runtimes.isolation import Isolation, Launch, Mount, Start, isolated, on_terminal, signal_name
from metaos.runtimes.output import Outputs
from metaos.runtimes.pods import Container, End, Pod, checked
from metaos.runtimes.process import Watch

#: Processes started by exec that run at once, on the whole site.
MAX_EXECUTIONS = 64
#: Seconds that a killed process may take to vanish before we go on without it (it hangs in the kernel).
KILL_SECONDS = 10.0
KILL_ROUNDS = 5
#: An image that was imported or used so recently is not collected.
IMAGE_SECONDS = 120.0
#: Pods whose namespaces and network are made at the same time.
HOLDERS_AT_ONCE = 4
#: Who says that a command could not be started at all.
_COMPLAINTS = ("bwrap: ", "nsenter: ", "nemo: ")


class SandboxRuntime:
    """Implements ``Runtime``. ``directory``: all state; ``host_paths``: what may be mounted from outside of it.

    ``isolation``: ``bubblewrap``, or ``none`` for plain processes (only where an operator asked for it).
    ``host_images``: the site file's (see ``images.host_image``). ``most``: thousandths of a core and bytes of memory that all
    pods together may have.
    """

    def __init__(
        self,
        directory: str,
        *,
        clock: Clock,
        isolation: str = "bubblewrap",
        host_images: Sequence[Mapping[str, Any]] = (),
        host_paths: Sequence[str] = (),
        most: tuple[int, int] | None = None,
    ) -> None:
        self._given = os.path.normpath(directory)
        self._directory = os.path.realpath(directory)
        self._clock = clock
        self._isolation: Isolation = isolated(isolation, self._directory)
        self._allowed = [self._directory, *(os.path.realpath(path) for path in host_paths)]
        self._images = ImageStore(os.path.join(self._directory, "images"), host_images)
        self._most = most
        self._cgroups: Cgroups | None = None
        self._outputs: Outputs | None = None
        self._holding = asyncio.Semaphore(HOLDERS_AT_ONCE)
        self._pods: dict[str, Pod] | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._executions: set[Execution] = set()
        self._locks: dict[str, asyncio.Lock] = {}

    # --- life -------------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Raises ``RuntimeUnavailable`` with the remedy. Starts and ends a pod's worth of namespaces (30 ms)."""
        await self._isolation.check()
        self._known()

    async def close(self) -> None:
        """Lets go; the pods run on."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for each in list(self._executions):
            await each.kill()
        for pod in (self._pods or {}).values():
            for watch in (pod.watch, *(each for c in pod.containers.values() for each in (c.watch, c.console))):
                if watch is not None:
                    watch.close()
            if pod.sockets is not None:
                pod.sockets.close()
        if self._isolation.networks is not None:
            self._isolation.networks.close()
        if self._outputs is not None:
            await self._outputs.close(running=self._running())
            self._outputs = None
        self._pods = None

    def _running(self) -> bool:
        pods = (self._pods or {}).values()
        return any(container.end is None for pod in pods for container in pod.containers.values())

    def _known(self) -> dict[str, Pod]:
        """All pods; on first use those that an earlier process started are taken over."""
        if self._pods is None:
            os.makedirs(os.path.join(self._directory, "pods"), mode=0o700, exist_ok=True)
            os.chmod(self._directory, 0o700)
            self._cgroups = Cgroups.here(_key(self._directory), self._most)
            self._outputs = Outputs(self._directory)
            self._pods = {}
            boot = process.boot_id()
            for entry in sorted(os.listdir(os.path.join(self._directory, "pods"))):
                place = os.path.join(self._directory, "pods", entry)
                pod = Pod.load(place, boot)
                if pod is None:
                    trees.remove(place)  # a start or a removal that was interrupted
                else:
                    self._pods[pod.uid] = pod
                    self._adopt(pod, boot)
            self._outputs.start()
        return self._pods

    def _adopt(self, pod: Pod, boot: str) -> None:
        same_boot = pod.boot == boot
        for container in pod.containers.values():
            self._output().adopt(container.directory)
            if container.end is not None:
                self._background(self._clean(pod, container))
            elif same_boot and container.monitor is not None:
                self._watch_container(pod, container)
            else:
                self._ended(pod, container, "the machine was restarted")
        if pod.holder is not None and not pod.containers and pod.address and not netns.has_gateway(pod.holder):
            pod.holder.kill()  # its start was interrupted before it had a network
            pod.holder = None
        if pod.holder is not None:
            self._watch_holder(pod)

    def _group(self) -> Cgroups:
        self._known()
        assert self._cgroups is not None
        return self._cgroups

    def _output(self) -> Outputs:
        self._known()
        assert self._outputs is not None
        return self._outputs

    def _pod(self, uid: str) -> Pod:
        pod = self._known().get(uid)
        if pod is None or pod.stopping:
            raise LookupError(f"pod {uid} is not on this site")
        return pod

    def _networked(self, uid: str) -> Pod:
        pod = self._pod(uid)
        if pod.holder is None and self._isolation.name == "bubblewrap":
            raise LookupError(f"pod {uid} has ended: it has no network any more")
        return pod

    def _container(self, uid: str, name: str) -> Container:
        container = self._pod(uid).containers.get(name)
        if container is None:
            raise LookupError(f"container {name} of pod {uid} has not been started")
        return container

    def _lock(self, uid: str) -> asyncio.Lock:
        return self._locks.setdefault(uid, asyncio.Lock())

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- pods -------------------------------------------------------------------------------------------------------

    async def start_pod(self, pod: PodConfig) -> None:
        async with self._lock(pod.uid):
            known = self._known()
            found = known.get(pod.uid)
            if found is None:
                place = os.path.join(self._directory, "pods", checked(pod.uid, "pod uid"))
                # Where pods share the machine's network, a pod's loopback address is of use to its programs.
                address = "" if self._isolation.no_card and self._isolation.networks is not None else pod.address
                found = Pod(pod.uid, place, pod.hostname or pod.name, pod.hosts, address, process.boot_id())
                os.makedirs(os.path.join(place, "containers"), mode=0o700, exist_ok=True)
                found.write_etc()
                try:
                    await self._hold(found)
                except BaseException:
                    trees.remove(place)
                    raise
                known[pod.uid] = found
            elif found.holder is None or not found.holder.alive():
                await self._hold(found)

    async def _hold(self, pod: Pod) -> None:
        """Starts the pod's holder, makes its network, and records both. Few at a time: the first ones' containers then start
        while later ones wait, instead of all waiting for all."""
        async with self._holding:
            await self._hold_now(pod)

    async def _hold_now(self, pod: Pod) -> None:
        holder = await self._isolation.hold(pod.hostname, pod.directory)
        pod.holder, pod.boot = holder, process.boot_id()
        pod.record()  # before anything else: whoever comes after us finds it
        made = None
        if holder is not None and pod.address and self._isolation.networks is not None:
            try:
                made = await self._isolation.networks.make(holder, pod.address)
            except BaseException:
                holder.kill()
                await process.ended(holder)
                raise
        if pod.sockets is not None:
            pod.sockets.close()
            pod.sockets = None
        if pod.holder is not None:
            self._watch_holder(pod, made)

    def _watch_holder(self, pod: Pod, made: netns.Sockets | None = None) -> None:
        assert pod.holder is not None and self._isolation.networks is not None
        pod.watch = Watch(pod.holder, lambda: self._holder_ended(pod))
        pod.sockets = made or self._isolation.networks.of(pod.holder, pod.address)

    def _holder_ended(self, pod: Pod) -> None:
        """Without its holder a pod has lost its network's owner: its containers end, and are started anew in a new one."""
        if not pod.stopping and pod.holder is not None:
            for container in pod.containers.values():
                self._kill(pod, container)
            self._changed.set()

    async def _let_go(self, pod: Pod) -> None:
        """Ends the pod's holder, and with it its namespaces."""
        holder, watch = pod.holder, pod.watch
        pod.holder = pod.watch = None
        if pod.sockets is not None:
            pod.sockets.close()
            pod.sockets = None
        if holder is not None and watch is not None:
            holder.kill()
            await watch.ended.wait()
            watch.close()

    async def release_pod(self, uid: str) -> None:
        async with self._lock(uid):
            pod = self._known().get(uid)
            if pod is None or pod.holder is None:
                return
            await asyncio.gather(*(self._destroy(pod, container) for container in pod.containers.values()))
            await self._let_go(pod)
            pod.record()

    async def stop_pod(self, uid: str) -> None:
        async with self._lock(uid):
            pod = self._known().get(uid)
            if pod is None:
                return
            pod.stopping = True
            await asyncio.gather(*(self._destroy(pod, container) for container in pod.containers.values()))
            await self._let_go(pod)
            for each in pod.containers.values():
                self._output().drop(each.directory)
            written = [os.path.join(each.directory, "upper") for each in pod.containers.values()]
            if any(map(os.path.isdir, [*written, os.path.join(pod.directory, "volumes")])):
                await asyncio.get_running_loop().run_in_executor(None, trees.remove, pod.directory)
            else:
                trees.remove(pod.directory)
            self._known().pop(uid, None)
        self._locks.pop(uid, None)
        self._changed.set()

    async def pods(self) -> Mapping[str, Sequence[ContainerState]]:
        result: dict[str, Sequence[ContainerState]] = {}
        for uid, pod in self._known().items():
            for container in pod.containers.values():
                if container.end is None:
                    self._look_at_log(container)
            result[uid] = [container.state(uid) for container in pod.containers.values()]
        return result

    async def wait(self) -> None:
        self._known()
        await self._changed.wait()
        self._changed.clear()

    async def set_hosts(self, uid: str, hosts: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        pod = self._pod(uid)
        pod.hosts = tuple(hosts)
        pod.write_hosts()

    # --- containers -------------------------------------------------------------------------------------------------

    async def start_container(self, uid: str, container: ContainerConfig) -> ContainerState:
        """Raises ``ImageError``, ``LookupError`` (no such pod), ``ValueError`` (what can never start)."""
        async with self._lock(uid):
            pod = self._pod(uid)
            before = pod.containers.get(checked(container.name, "container name"))
            if before is not None and before.end is None:
                if before.attempt == container.attempt:
                    return before.state(uid)
                raise ValueError(f"container {container.name} of pod {uid} still runs (attempt {before.attempt})")
            if self._isolation.name == "bubblewrap" and (pod.holder is None or not pod.holder.alive()):
                await self._hold(pod)
            image = self._images.find(container.image)
            argv = self._command(image, container)
            with contextlib.ExitStack() as opened:
                mounts = tuple(self._mount(opened, *mount) for mount in container.mounts)
                started = self._launch(pod, container, before, image, argv, mounts)
            pod.containers[container.name] = started
            self._watch_container(pod, started)
            return started.state(uid)

    def _launch(
        self,
        pod: Pod,
        container: ContainerConfig,
        before: Container | None,
        image: Image,
        argv: tuple[str, ...],
        mounts: tuple[Mount, ...],
    ) -> Container:
        started = self._prepare(pod, container, before, image)
        try:
            groups = self._group().create(pod.uid, started.group, cpu=container.cpu_limit, memory=container.memory_limit)
            working_dir = container.working_dir or image.working_dir or "/"
            started.record(container.image, working_dir, groups)
            user = image.user if container.run_as_user is None else container.run_as_user
            start = Start(
                pod=pod.uid,
                address=pod.address,
                image=image,
                argv=argv,
                env=self._environment(pod, image, container, user),
                working_dir=working_dir,
                mounts=mounts,
                user=user,
                group=image.group if container.run_as_group is None else container.run_as_group,
                read_only_root=container.read_only_root,
                directory=started.directory,
                etc=pod.etc,
                cgroups=tuple(groups),
                holder=pod.holder,
            )
            started.env = start.env
            started.stdin, started.stdin_once, started.tty = container.stdin, container.stdin_once, container.tty
            self._spawn(started, self._isolation.container(start))
            started.record(container.image, working_dir, groups)
        except BaseException:
            self._group().remove(pod.uid, started.group)
            self._output().drop(started.directory)
            trees.remove(started.directory)
            raise
        return started

    def _spawn(self, started: Container, launch: Launch) -> None:
        """The container's processes. Who keeps its input comes first, and ends with it."""
        log = self._output().open(started.directory)
        opened = [log]
        try:
            if not (started.stdin or started.tty):
                started.monitor = launch.spawn(stdout=log, stderr=log)
                return
            if started.tty:
                entry, theirs = os.openpty()
            else:
                theirs, entry = os.pipe2(os.O_CLOEXEC)
            opened += [entry, theirs]
            keeper = start_console(started.directory, entry, log if started.tty else -1, once=started.stdin_once)
            started.console = Watch(keeper, lambda: None)
            if started.tty:
                launch.argv = on_terminal(os.ttyname(theirs), launch.argv)
                started.monitor = launch.spawn(stdin=theirs, stdout=theirs, stderr=theirs)
            else:
                started.monitor = launch.spawn(stdin=theirs, stdout=log, stderr=log)
        finally:
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

    def _mount(self, opened: contextlib.ExitStack, source: str, target: str, read_only: bool) -> Mount:
        """Opened first and looked at afterwards, so that no container can put a link in between. Links may not lead out of
        what is allowed; below our own directory, where containers write, there may be none at all."""
        normal = os.path.normpath(target)
        if not normal.startswith("/") or normal == "/":
            raise ValueError(f"mount path {target!r} must be absolute and must not be /")
        try:
            fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            self._permit(source, os.path.normpath(source))  # whether it exists is nobody's business elsewhere
            raise ValueError(f"host path {source} cannot be mounted: {error.strerror}") from None
        opened.callback(os.close, fd)
        real = os.readlink(f"/proc/self/fd/{fd}")
        self._permit(source, real)
        plain = os.path.normpath(source)
        if plain.startswith(self._given + "/"):
            plain = self._directory + plain[len(self._given) :]
        if real.startswith(self._directory + "/") and real != plain:
            raise ValueError(f"{source} is a symbolic link, or is below one: it may not be mounted")
        return Mount(fd, real, normal, read_only)

    def _permit(self, source: str, real: str) -> None:
        if not any(real == allowed or real.startswith(allowed.rstrip("/") + "/") for allowed in self._allowed):
            raise ValueError(f"host path {source} may not be mounted: list it under hostPaths in the site file")

    def _prepare(self, pod: Pod, config: ContainerConfig, before: Container | None, image: Image) -> Container:
        """The directory of this start; of earlier ones only the last is kept, for ``logs --previous``."""
        place = os.path.join(pod.directory, "containers", config.name)
        os.makedirs(place, mode=0o700, exist_ok=True)
        sequence = 1 + max((int(entry) for entry in os.listdir(place)), default=-1)
        for entry in os.listdir(place):
            if before is None or entry != os.path.basename(before.directory):
                self._output().drop(os.path.join(place, entry))
                trees.remove(os.path.join(place, entry))
        if before is not None:
            for name in ("upper", "work", "root"):
                trees.remove(os.path.join(before.directory, name))
        directory = os.path.join(place, str(sequence))
        os.mkdir(directory, 0o700)
        self._images.hold(image, directory)
        return Container(config.name, directory, self._clock.now(), config.attempt, f"{config.name}-{sequence}")

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

    def _watch_container(self, pod: Pod, container: Container) -> None:
        assert container.monitor is not None
        container.watch = Watch(container.monitor, lambda: self._ended(pod, container))

    def _ended(self, pod: Pod, container: Container, message: str = "") -> None:
        self._output().finish(container.directory)
        code = self._isolation.exit_code(container.directory)
        finish = self._clock.now()
        if code is not None:
            finish = os.stat(os.path.join(container.directory, "status")).st_mtime
        elif container.watch is not None and container.watch.code is not None:
            code = container.watch.code
        else:
            code = 137
        reason = "Completed" if code == 0 else "Error"
        measured = self._group().measure(pod.uid, container.group)
        if code and measured is not None and measured.oom_kills:
            reason, message = "OOMKilled", "it used more memory than its limit, or than all pods of the site together may"
        elif code in (1, 126, 127) and (complaint := logs.last_line(container.directory)).startswith(_COMPLAINTS):
            missing = "No such file" in complaint or "not found" in complaint
            reason, message, code = "ContainerCannotRun", complaint, 127 if missing else 128
        elif not message and (name := signal_name(code)):
            message = f"ended by {name}"
        container.finish(End(code, finish, reason, message))
        self._background(self._clean(pod, container))
        self._changed.set()

    async def _clean(self, pod: Pod, container: Container) -> None:
        """What the container's command left running, and its cgroups."""
        if container.monitor is not None and pod.boot == process.boot_id():
            for _ in range(KILL_ROUNDS):  # one of them may have started another meanwhile
                killed = self._kill(pod, container)
                if not killed:
                    break
                await self._gone(killed)
        group = self._group()
        leftover = [found for pid in group.kill(pod.uid, container.group) if (found := process.identity(pid)) is not None]
        await self._gone(leftover)
        group.remove(pod.uid, container.group)
        for name in ("upper", "work"):  # a new start begins with the image alone
            place = os.path.join(container.directory, name)
            if os.path.isdir(place):
                await asyncio.to_thread(trees.remove, place)

    def _kill(self, pod: Pod, container: Container) -> list[process.Identity]:
        """SIGKILL to everything in it; who is hit."""
        if container.monitor is None:
            return []
        members = self._isolation.members(pod.uid, container.monitor, container.directory)
        for each in members:
            each.kill()
        return members

    async def _gone(self, processes: Iterable[process.Identity]) -> None:
        waiting = [asyncio.ensure_future(process.ended(each)) for each in processes]
        if waiting:
            await self._within(KILL_SECONDS, asyncio.gather(*waiting))

    async def _within(self, seconds: float, work: asyncio.Future[Any]) -> bool:
        """Whether it was done in time; otherwise it is given up."""
        alarm = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((work, alarm), return_when=asyncio.FIRST_COMPLETED)
            return work.done()
        finally:
            for each in (work, alarm):
                if each.cancel():
                    await asyncio.wait((each,))
                    # Looked at: to a gather that was cancelled this is a result, and asyncio logs results that nobody took.
                    _ = each.cancelled() or each.exception()

    async def stop_container(self, uid: str, name: str, grace_seconds: float) -> None:
        container = self._container(uid, name)
        pod = self._pod(uid)
        if container.end is None and container.watch is not None and container.monitor is not None and grace_seconds > 0:
            main = self._isolation.main(container.monitor, container.directory)
            if main is not None:
                main.kill(signal.SIGTERM)
                await self._within(grace_seconds, asyncio.ensure_future(container.watch.ended.wait()))
        await self._destroy(pod, container)

    async def _destroy(self, pod: Pod, container: Container) -> None:
        """Ends it now and leaves nothing of it running."""
        if container.end is None and container.watch is not None and container.monitor is not None:
            self._kill(pod, container)
            if not await self._within(KILL_SECONDS, asyncio.ensure_future(container.watch.ended.wait())):
                container.monitor.kill()
                await container.watch.ended.wait()
        await self._clean(pod, container)

    async def logs(
        self,
        uid: str,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
        since: float | None = None,
    ) -> AsyncIterator[bytes]:
        """Raises ``LookupError``. ``tail``: lines; of a restarted container ``previous`` is the start before; ``since``: seconds
        since the epoch, exact to the pace at which this runtime is looked at."""
        found = self._container(uid, container)
        self._look_at_log(found)
        if previous:
            place = os.path.dirname(found.directory)
            before = os.path.join(place, str(int(os.path.basename(found.directory)) - 1))
            if not os.path.isdir(before):
                raise LookupError(f"container {container} of pod {uid} has no previous start")
            for block in logs.read(before, tail, since=since):
                yield block
        elif follow and found.watch is not None:
            following = self._output().follow(found.directory, tail, found.watch.ended, since)
            async with contextlib.aclosing(following) as blocks:  # type: ignore[type-var]
                async for block in blocks:
                    yield block
        else:
            for block in logs.read(found.directory, tail, since=since):
                yield block

    def _look_at_log(self, container: Container) -> None:
        self._output().note(container.directory, self._clock.now())

    async def attach(self, uid: str, container: str) -> Attachment:
        """Raises ``LookupError`` where the container does not run."""
        found = self._container(uid, container)
        if found.end is not None or found.watch is None:
            raise LookupError(f"container {container} of pod {uid} does not run")
        lines = None
        if not found.tty:
            lines = self._output().follow(found.directory, 0, found.watch.ended, None)
        return Attachment(found.directory, stdin=found.stdin or found.tty, lines=lines)

    async def exec(
        self, uid: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False
    ) -> Execution:
        """Raises ``LookupError`` where the container does not run."""
        found = self._container(uid, container)
        main = None
        if found.end is None and found.monitor is not None:
            main = self._isolation.main(found.monitor, found.directory)
        if main is None:
            raise LookupError(f"container {container} of pod {uid} does not run")
        self._executions = {each for each in self._executions if each.running}
        if len(self._executions) >= MAX_EXECUTIONS:
            raise OSError(f"{MAX_EXECUTIONS} commands run in containers of this site already")
        env = dict(found.env or process.environ(main.pid))
        if self._isolation.name == "bubblewrap":
            # There is one user id: GNU tar, which finds itself root, would fail to give files to others ('kubectl cp').
            env.setdefault("TAR_OPTIONS", "--no-same-owner")
        master = slave = -1
        if tty:
            env.setdefault("TERM", "xterm")
            master, slave = os.openpty()
        terminal = os.ttyname(slave) if tty else ""
        launch = self._isolation.enter(uid, main, found.directory, command, tuple(env.items()), terminal)
        result = Execution.terminal(launch, master, slave) if tty else Execution.pipes(launch, stdin=stdin)
        self._executions.add(result)
        return result

    # --- network ----------------------------------------------------------------------------------------------------

    def network(self, uid: str = "") -> PodNetwork:
        """Raises ``LookupError`` where there is no such pod."""
        if not uid:
            return PodNetwork("", not self._isolation.no_card)
        sockets = self._networked(uid).sockets
        return PodNetwork("", False) if sockets is None else PodNetwork(sockets.id, bool(sockets.address))

    async def connect(self, uid: str, port: int) -> socket.socket:
        """Raises ``OSError`` where nobody listens, ``LookupError`` where there is no such pod."""
        pod = self._networked(uid)
        if pod.sockets is None:
            return await netns.connect_shared(pod.address, port)
        return await pod.sockets.connect(port)

    async def listen(self, uid: str, address: str, port: int) -> socket.socket:
        """Raises ``OSError`` where the address is in use."""
        pod = self._networked(uid)
        if pod.sockets is None:
            return netns.listen_shared(address, port)
        return await pod.sockets.listen(address, port)

    async def datagrams(self, uid: str, port: int) -> socket.socket:
        """Raises ``OSError`` where the pod has no network card, ``LookupError`` where there is no such pod."""
        return await self._carded(uid).datagrams(port)

    async def receive(self, uid: str, port: int) -> socket.socket:
        """Raises ``OSError`` where the pod has no network card, ``LookupError`` where there is no such pod."""
        return await self._carded(uid).receive(port)

    def _carded(self, uid: str) -> netns.Sockets:
        sockets = self._networked(uid).sockets
        if sockets is None:
            raise OSError(errno.EOPNOTSUPP, "pods share the machine's network: nothing is carried by UDP")
        return sockets

    # --- images and the machine -------------------------------------------------------------------------------------

    async def image_exists(self, image: str) -> bool:
        """Raises ``ImageError`` only where the name is none."""
        try:
            self._images.find(image)
        except ImageError as error:
            if error.reason == "InvalidImageName":
                raise
            return False
        return True

    async def images(self) -> Sequence[Mapping[str, Any]]:
        return [{"names": list(each.names), "sizeBytes": each.size, "host": each.rootfs is None} for each in self._images.all()]

    async def import_archive(self, path: str) -> Sequence[str]:
        """A docker archive or an OCI layout; the names that it brought. Blocks for as long as unpacking takes."""
        return self._images.import_archive(path)

    async def collect_images(self, keep: Collection[str], wanted: int) -> Sequence[str]:
        """See :meth:`ImageStore.collect`."""
        return await asyncio.to_thread(self._images.collect, keep, wanted, self._clock.now() - IMAGE_SECONDS)

    async def remove_image(self, image: str) -> None:
        self._images.remove(image)

    async def usage(self) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """By cgroup where there are some, otherwise by process. CPU is the mean since the last call, or since the start."""
        known = self._known()
        now, wall = self._clock.monotonic(), self._clock.now()
        totals: dict[tuple[str, str], tuple[float, float]] = {}
        walked: list[tuple[tuple[str, str], int]] = []
        for uid, pod in known.items():
            for container in pod.containers.values():
                if container.end is not None or container.monitor is None:
                    continue
                self._look_at_log(container)
                measured = self._group().measure(uid, container.group)
                if measured is None:
                    walked.append(((uid, container.name), container.monitor.pid))
                else:
                    totals[uid, container.name] = measured.cpu, measured.memory
        if walked:
            for (key, _), members in zip(walked, process.trees([pid for _, pid in walked]).values(), strict=True):
                totals[key] = sum(each.cpu for each in members), sum(each.memory for each in members)
        result: dict[str, dict[str, Mapping[str, float]]] = {uid: {} for uid in known}
        for (uid, name), (cpu, memory) in totals.items():
            container = known[uid].containers[name]
            since, before = container.sample or (now - max(0.0, wall - container.start_time), 0.0)
            container.sample = now, cpu
            result[uid][name] = {"cpu": max(0.0, cpu - before) / (now - since) if now > since else 0.0, "memory": memory}
        return result

    async def storage(self, uid: str) -> Mapping[str, int]:
        """Raises ``LookupError``, ``TooDeep``."""
        places = {name: os.path.dirname(container.directory) for name, container in self._pod(uid).containers.items()}
        result = {}
        for name, place in places.items():
            result[name] = (await asyncio.to_thread(trees.measure, place)).bytes
        return result

    def conditions(self) -> Sequence[Mapping[str, str]]:
        result = [{"type": kind, "status": "False", "message": message} for kind, message in self._isolation.conditions()]
        groups = self._cgroups or Cgroups.here(_key(self._directory), self._most)
        if groups.problem:
            message = f"not all limits are enforced, of a container nor of all together: {groups.problem}"
            result.append({"type": "ResourceLimits", "status": "False", "message": message})
        if groups.uncapped:
            result.append({"type": "SystemReserved", "status": "False", "message": groups.uncapped})
        return result


def _key(directory: str) -> str:
    """Of this runtime in the machine's cgroups: several agents may share a machine."""
    import hashlib

    return hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
