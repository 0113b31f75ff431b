"""The podman runtime: pods as containers of a podman on the same machine, through its API socket.

Per pod a *holder*, a container that keeps its network, ipc and uts namespaces; the pod's containers join it. Podman's conmon
outlives us both and records the end. What is on disk here is what the sandbox runtime has (see ``pods.py``), so that fencing,
adoption and measuring are the same code; podman's names of containers are made from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from metaos import trees
from metaos.clock import Clock
from metaos.plugins.points import (
    ContainerConfig,
    ContainerState,
    ContainerUsage,
    ImageError,
    PodConfig,
    PodNetwork,
    Pull,
    RuntimeUnavailable,
)
from metaos.runtimes import bubblewrap, netns, podmanlogs, podmanspec, process, records, watchdog
from metaos.runtimes.cgroups import Cgroups, key_of, locate
from metaos.runtimes.fencing import Fencing
from metaos.runtimes.forks import Forks
from metaos.runtimes.images import Image
from metaos.runtimes.isolation import Mount, signal_name
from metaos.runtimes.libpod import Libpod, PodmanError
from metaos.runtimes.mounts import Mounts, misplaced
from metaos.runtimes.podmanexec import Session, Talk
from metaos.runtimes.podmanimages import PodmanImages
from metaos.runtimes.pods import Container, End, Pod, checked
from metaos.runtimes.process import Identity, Watch
from metaos.runtimes.usage import last_known

SOCKET = "/run/podman/podman.sock"
KILL_SECONDS = 10.0
_MISSING = ("no such file or directory", "executable file not found")


class PodmanRuntime:
    """Implements ``Runtime``. The arguments are those of the sandbox runtime. The socket is that of ``CONTAINER_HOST``, as for
    podman itself, or :data:`SOCKET`."""

    def __init__(
        self,
        directory: str,
        *,
        clock: Clock,
        isolation: str = "bubblewrap",
        host_images: Sequence[Mapping[str, Any]] = (),
        host_paths: Sequence[str] = (),
        registries: Sequence[Mapping[str, Any]] = (),
        image_policy: Sequence[Mapping[str, Any]] = (),
        most: tuple[int, int] | None = None,
    ) -> None:
        if isolation == "none":
            raise ValueError("spec.isolation: podman isolates its containers itself; leave it out with spec.runtime podman")
        self._directory = os.path.realpath(directory)
        self._clock, self._most = clock, most
        self._key = key_of(self._directory)
        self._podman = Libpod(os.environ.get("CONTAINER_HOST", f"unix://{SOCKET}").removeprefix("unix://"))
        self._images = PodmanImages(self._podman, self._directory, host_images, registries, image_policy, clock)
        self._mounts = Mounts(directory, host_paths)
        self._fencing = Fencing(self._directory, clock)
        self._forks = Forks()
        self._cgroups = _cgroups(self._key, most)
        self._files = min(1 << 16, resource.getrlimit(resource.RLIMIT_NOFILE)[1] % (1 << 62))
        self._pods: dict[str, Pod] | None = None
        self._gone: dict[str, list[ContainerUsage]] = {}
        self._changed = asyncio.Event()
        self._locks: dict[str, asyncio.Lock] = {}
        #: Directories of containers that we are ending.
        self._killed: set[str] = set()
        self._loading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life -------------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Raises ``RuntimeUnavailable`` with the remedy."""
        try:
            await self._podman.call("GET", "/info")
            await self._known()
        except (OSError, PodmanError) as error:
            raise RuntimeUnavailable(
                f"podman does not answer at {self._podman.path} ({error}): start its API with 'systemctl start podman.socket', "
                f"or 'podman system service --time 0 unix://{self._podman.path}'; CONTAINER_HOST=unix://… names another socket"
            ) from error

    async def close(self) -> None:
        """Lets go; the pods run on."""
        await self._fencing.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pod in (self._pods or {}).values():
            if pod.sockets is not None:
                pod.sockets.close()
            for watch in (pod.watch, *(each.watch for each in pod.containers.values())):
                if watch is not None:
                    watch.close()
        self._pods = None
        self._forks.close()

    async def _known(self) -> dict[str, Pod]:
        """All pods; on first use those that an earlier process started are taken over."""
        async with self._loading:
            if self._pods is None:
                self._pods = await self._load()
            return self._pods

    async def _load(self) -> dict[str, Pod]:
        place = os.path.join(self._directory, "pods")
        os.makedirs(place, mode=0o700, exist_ok=True)
        boot, found = process.boot_id(), {}
        rows = await self._podman.call("GET", "/containers/json", all=True, filters=json.dumps({"label": self._owned()}))
        ours: dict[str, dict[str, Any]] = {row["Names"][0]: row for row in rows or ()}
        for row in list(ours.values()):
            labels = row["Labels"]
            directory = os.path.join(place, labels[podmanspec.POD], "containers", labels.get(podmanspec.CONTAINER, ""))
            directory = os.path.join(directory, labels.get(podmanspec.SEQUENCE, ""))
            if not os.path.isdir(directory) or row["State"] in ("created", "initialized", "configured"):
                if podmanspec.CONTAINER in labels:
                    await self._delete(row["Names"][0])  # it never ran, or its pod is gone
            elif podmanspec.CONTAINER in labels and "monitor" not in records.read(directory):
                await self._started(directory, row["Names"][0])  # we were killed between its start and its record
        for entry in sorted(os.listdir(place)):
            pod = Pod.load(os.path.join(place, entry), boot)
            if pod is None:
                trees.remove(os.path.join(place, entry))  # a start or a removal that was interrupted
                continue
            found[pod.uid] = pod
            for container in pod.containers.values():
                container.runtime = "podman"
                if container.end is None:
                    self._watch(pod, container)
            if pod.holder is not None and pod.holder.alive():
                pod.sockets = netns.Sockets(self._forks, pod.holder, "")
                pod.watch = Watch(pod.holder, self._changed.set)
            else:
                pod.holder = None
        for name, row in ours.items():
            if row["Labels"][podmanspec.POD] not in found:
                await self._delete(name)
        return found

    def _owned(self) -> list[str]:
        return [f"{podmanspec.OWNER}={self._key}"]

    def _name(self, uid: str, container: str = "", sequence: str = "") -> str:
        return "-".join(["nemo", self._key[:8], uid, *([container, sequence] if container else [])])

    def _of(self, pod: Pod, container: Container) -> str:
        return self._name(pod.uid, container.name, os.path.basename(container.directory))

    def _labels(self, uid: str, container: str = "", sequence: str = "") -> dict[str, str]:
        more = {podmanspec.CONTAINER: container, podmanspec.SEQUENCE: sequence} if container else {}
        return {podmanspec.OWNER: self._key, podmanspec.POD: uid} | more

    async def _delete(self, name: str) -> None:
        with contextlib.suppress(PodmanError):
            await self._podman.call("DELETE", f"/containers/{name}", force=True, ignore=True, timeout=0, v=True)

    async def _pod(self, uid: str) -> Pod:
        pod = (await self._known()).get(uid)
        if pod is None or pod.stopping:
            raise LookupError(f"pod {uid} is not on this site")
        return pod

    async def _container(self, uid: str, name: str) -> tuple[Pod, Container]:
        pod = await self._pod(uid)
        if name not in pod.containers:
            raise LookupError(f"container {name} of pod {uid} has not been started")
        return pod, pod.containers[name]

    def _lock(self, uid: str) -> asyncio.Lock:
        return self._locks.setdefault(uid, asyncio.Lock())

    # --- pods -------------------------------------------------------------------------------------------------------

    async def start_pod(self, pod: PodConfig) -> None:
        async with self._lock(pod.uid):
            known = await self._known()
            found = known.get(pod.uid)
            if found is None:
                place = os.path.join(self._directory, "pods", checked(pod.uid, "pod uid"))
                found = Pod(pod.uid, place, pod.hostname or pod.name, pod.hosts, "", process.boot_id())
                os.makedirs(os.path.join(place, "containers"), mode=0o700, exist_ok=True)
                found.write_hosts()
                try:
                    await self._hold(found)
                except BaseException:
                    await self._delete(self._name(pod.uid))
                    trees.remove(place)
                    raise
                known[pod.uid] = found
            elif found.holder is None or not found.holder.alive():
                await self._hold(found)

    async def _hold(self, pod: Pod) -> None:
        """A holder for it, with new namespaces. Raises ``OSError``."""
        name = self._name(pod.uid)
        await self._delete(name)
        image = self._images.host_default()
        rootfs = self._rootfs(image)
        paths = [path for path in image.paths if not os.path.islink(path)]
        spec = podmanspec.holder(name, self._labels(pod.uid), pod.hostname, rootfs, paths, self._files)
        try:
            await self._podman.call("POST", "/containers/create", spec)
            await self._podman.call("POST", f"/containers/{name}/start")
            state = (await self._podman.call("GET", f"/containers/{name}/json"))["State"]
        except PodmanError as error:
            raise OSError(errno.EIO, f"podman cannot make the pod's namespaces: {error.message}") from error
        holder = process.identity(int(state["Pid"]))
        if holder is None:
            raise OSError(errno.EIO, "the pod's holder has ended at once")
        pod.holder, pod.boot = holder, process.boot_id()
        pod.sockets = netns.Sockets(self._forks, holder, "")
        pod.watch = Watch(holder, self._changed.set)
        pod.record()

    def _rootfs(self, image: Image) -> str:
        """A directory in which a host image's paths can be mounted, with its links and accounts."""
        texts = bubblewrap.etc(image, "localhost")
        key = hashlib.sha256(json.dumps([image.paths, image.links, sorted(texts.items())]).encode()).hexdigest()[:16]
        root = os.path.join(self._directory, "rootfs", key)
        if os.path.isdir(root):
            return root
        new = f"{root}.{os.getpid()}"
        for name in ("proc", "sys", "dev", "tmp", "etc", "run", "root"):
            os.makedirs(os.path.join(new, name), exist_ok=True)
        for path in image.paths:
            inside = new + path
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            if os.path.islink(path):
                os.symlink(os.readlink(path), inside)
            elif os.path.isdir(path):
                os.makedirs(inside, exist_ok=True)
            elif not os.path.lexists(inside):
                open(inside, "x").close()
        for link, target in image.links:
            os.makedirs(os.path.dirname(new + link), exist_ok=True)
            os.symlink(target, new + link)
        for name, text in texts.items():
            with open(os.path.join(new, "etc", name), "w", encoding="utf-8") as file:
                file.write(text)
        os.rename(new, root)
        return root

    async def release_pod(self, uid: str) -> None:
        async with self._lock(uid):
            pod = (await self._known()).get(uid)
            if pod is None or pod.holder is None:
                return
            await self._let_go(pod)
            pod.record()

    async def _let_go(self, pod: Pod) -> None:
        """Nothing of it runs when this returns."""
        for container in pod.containers.values():
            if container.end is None:
                await self._stop(pod, container, 0.0)
        if pod.watch is not None:
            pod.watch.close()
        if pod.sockets is not None:
            pod.sockets.close()
        await self._delete(self._name(pod.uid))
        pod.holder = pod.sockets = pod.watch = None

    async def stop_pod(self, uid: str) -> None:
        async with self._lock(uid):
            pod = (await self._known()).get(uid)
            if pod is None:
                return
            pod.stopping = True
            await self._let_go(pod)
            self._gone[uid] = last_known(uid, pod, {})
            for name, container in pod.containers.items():
                for sequence in range(int(os.path.basename(container.directory)) + 1)[-2:]:
                    await self._delete(self._name(uid, name, str(sequence)))
                self._cgroups.remove(uid, container.group)
            _remove_cgroups(self._key, uid)
            await asyncio.to_thread(trees.remove, pod.directory)
            (await self._known()).pop(uid, None)
        self._locks.pop(uid, None)
        self._changed.set()

    async def pods(self) -> Mapping[str, Sequence[ContainerState]]:
        known = await self._known()
        return {uid: [container.state(uid) for container in pod.containers.values()] for uid, pod in known.items()}

    async def wait(self) -> None:
        await self._known()
        await self._changed.wait()
        self._changed.clear()

    async def set_hosts(self, uid: str, hosts: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        pod = await self._pod(uid)
        pod.hosts = tuple(hosts)
        pod.write_hosts()

    async def fence(self, renewed: float, limits: Mapping[str, float]) -> None:
        await self._known()
        await self._fencing.keep(renewed, limits, self._cgroups.places())

    def renewed(self) -> float:
        return self._fencing.renewed

    # --- containers -------------------------------------------------------------------------------------------------

    async def start_container(self, uid: str, container: ContainerConfig) -> ContainerState:
        """Raises ``ImageError``, ``LookupError`` (no such pod), ``ValueError`` (what can never start)."""
        async with self._lock(uid):
            pod = await self._pod(uid)
            before = pod.containers.get(checked(container.name, "container name"))
            if before is not None and before.end is None:
                if before.attempt == container.attempt:
                    return before.state(uid)
                raise ValueError(f"container {container.name} of pod {uid} still runs (attempt {before.attempt})")
            if container.runtime_class:
                raise ValueError(f"runtimeClassName {container.runtime_class!r} is not one of this site's: it has none")
            self._fencing.check(uid)
            image = await self._images.find(container.image)
            if container.run_as_non_root and not container.run_as_user and not await self._images.user(image):
                raise ValueError("container has runAsNonRoot and image will run as root: say runAsUser, or take another image")
            if isinstance(image, Image) and not image.argv(container.command, container.args):
                raise ValueError(f"container {container.name} has no command, and neither has its image {container.image}")
            if pod.holder is None or not pod.holder.alive():
                await self._hold(pod)
            started = await self._launch(pod, container, image, before)
            pod.containers[container.name] = started
            return started.state(uid)

    async def _launch(self, pod: Pod, config: ContainerConfig, image: Image | str, before: Container | None) -> Container:
        place = os.path.join(pod.directory, "containers", config.name)
        sequence = 0 if before is None else 1 + int(os.path.basename(before.directory))
        if sequence >= 2:  # of earlier ones only the last is kept, for logs --previous
            await self._delete(self._name(pod.uid, config.name, str(sequence - 2)))
            trees.remove(os.path.join(place, str(sequence - 2)))
        directory = os.path.join(place, str(sequence))
        trees.remove(directory)
        os.makedirs(directory, mode=0o700)
        group = f"{config.name}-{sequence}"
        started = Container(config.name, directory, self._clock.now(), config.attempt, group, runtime="podman")
        started.stdin, started.stdin_once, started.tty = config.stdin, config.stdin_once, config.tty
        started.before = None if before is None else before.usage(pod.uid)
        name = self._of(pod, started)
        assert pod.holder is not None
        groups = self._cgroups.create(pod.uid, group, cpu=0, memory=0)
        try:
            with contextlib.ExitStack() as opened:
                mounts = [self._mounts.open(opened, *mount) for mount in config.mounts]
                spec = podmanspec.container(
                    name,
                    config,
                    image,
                    self._rootfs(image) if isinstance(image, Image) else "",
                    mounts,
                    labels=self._labels(pod.uid, config.name, str(sequence)),
                    hostname=pod.hostname,
                    hosts=pod.hosts_file,
                    holder=pod.holder.pid,
                    cgroup=_cgroup(groups),
                    files=self._files,
                )
                started.record(config.image, config.working_dir, groups)
                _say(directory, memory=config.memory_limit)
                await self._delete(name)
                try:
                    await self._podman.call("POST", "/containers/create", spec)
                except PodmanError as error:
                    raise ValueError(f"podman refuses container {config.name}: {error.message}") from error
                try:
                    if mounts:
                        await self._look(name, mounts)
                    await self._podman.call("POST", f"/containers/{name}/start")
                except PodmanError as error:
                    started.finish(_cannot_run(error.message, self._clock.now()))
                    return started
            started.monitor = await self._started(directory, name)
        except BaseException:
            await asyncio.shield(self._delete(name))
            self._cgroups.remove(pod.uid, group)
            trees.remove(directory)
            raise
        self._watch(pod, started)
        return started

    async def _look(self, name: str, mounts: Sequence[Mount]) -> None:
        """Podman mounts by paths, which containers that write above them can change after we have looked: so once more, when all
        is mounted and nothing runs yet. Raises ``ValueError``, ``PodmanError``."""
        await self._podman.call("POST", f"/containers/{name}/init")
        state = (await self._podman.call("GET", f"/containers/{name}/json"))["State"]
        if target := misplaced(int(state["Pid"]), mounts):
            raise ValueError(f"what is mounted at {target} was changed meanwhile, perhaps to a link: it is not used")

    async def _started(self, directory: str, name: str) -> Identity | None:
        """Its conmon, which is written down: who outlives us, and what the watchdog looks at."""
        state = (await self._podman.call("GET", f"/containers/{name}/json"))["State"]
        found = process.identity(int(state.get("ConmonPid") or 0)) or Identity(int(state.get("ConmonPid") or 1 << 22), 0)
        _say(directory, monitor=[found.pid, found.start])  # as a monitor of the sandbox says itself who it is
        return found

    def _watch(self, pod: Pod, container: Container) -> None:
        def ended() -> None:
            task = asyncio.create_task(self._ended(pod, container))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        assert container.monitor is not None
        container.watch = Watch(container.monitor, ended)

    async def _ended(self, pod: Pod, container: Container) -> None:
        try:
            found = await self._podman.call("GET", f"/containers/{self._of(pod, container)}/json")
        except PodmanError as error:
            found = {"State": {"ExitCode": 137, "Error": f"podman knows it no more: {error.message}"}}
        state = found["State"]
        if container.end is not None:
            return
        measured = self._cgroups.measure(pod.uid, container.group)
        finished = _seconds(str(state.get("FinishedAt") or "")) or self._clock.now()
        cpu = max(container.cpu, 0.0 if measured is None else measured.cpu)
        code, message, reason = int(state.get("ExitCode") or 0), str(state.get("Error") or ""), ""
        if code and (
            state.get("OOMKilled") or (measured is not None and measured.oom_kills) or self._starved(pod, container, code)
        ):
            reason, message = "OOMKilled", "it used more memory than its limit"
        elif code and os.path.exists(os.path.join(container.directory, watchdog.MARK)):
            reason, message = "Fenced", "the watchdog ended it: no heartbeat was confirmed in time, and it must not run twice"
        elif code in (1, 126, 127) and (complaint := await self._complaint(pod, container)):
            words = [*(found["Config"].get("Entrypoint") or ()), *(found["Config"].get("Cmd") or ())]
            reason, message = "ContainerCannotRun", f"{words[0] if words else 'its command'}: {complaint}"
            code = 127 if any(text in complaint.lower() for text in _MISSING) else 128
        elif not message and (name := signal_name(code)):
            message = f"ended by {name}"
        self._killed.discard(container.directory)
        container.finish(End(code, finished, reason or ("Error" if code else "Completed"), message, cpu))
        self._cgroups.remove(pod.uid, container.group)
        self._changed.set()

    def _starved(self, pod: Pod, container: Container, code: int) -> bool:
        """With cgroups of version 1 podman does not always hear of it, and the kernel counts it where podman has cleaned up. So:
        killed, not by us, and having reached its limit."""
        limit = int(records.read(container.directory).get("memory") or 0)
        if code != 137 or not limit or container.directory in self._killed:
            return False
        for place in self._cgroups.directories(pod.uid, container.group):
            with contextlib.suppress(OSError, ValueError), open(f"{place}/memory.max_usage_in_bytes", encoding="ascii") as file:
                return int(file.read()) >= limit
        return False

    async def _complaint(self, pod: Pod, container: Container) -> str:
        """What podman's init said of a program that it could not start."""
        path = await self._log_file(self._of(pod, container))
        line = b"".join([] if path is None else podmanlogs.last(path, 1)).decode(errors="replace").strip()
        return line if "catatonit" in line else ""

    async def stop_container(self, uid: str, name: str, grace_seconds: float) -> None:
        pod, container = await self._container(uid, name)
        await self._stop(pod, container, grace_seconds)

    async def _stop(self, pod: Pod, container: Container, grace: float) -> None:
        """Raises ``OSError`` where it does not end."""
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_SECONDS)):
            if container.end is not None or (number == signal.SIGTERM and grace <= 0):
                continue
            self._killed.add(container.directory)
            with contextlib.suppress(PodmanError):
                await self._podman.call("POST", f"/containers/{self._of(pod, container)}/kill", signal=number.name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while container.end is None:
                        if container.watch is not None:
                            await container.watch.ended.wait()
                        await asyncio.gather(*self._tasks, return_exceptions=True)
                        if container.end is None:
                            await self._ended(pod, container)
        if container.end is None:
            raise OSError(errno.EBUSY, f"container {container.name} of pod {pod.uid} does not end")

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
        """Raises ``LookupError``."""
        pod, found = await self._container(uid, container)
        sequence = int(os.path.basename(found.directory)) - previous
        name = self._name(uid, container, str(sequence))

        def running() -> bool:
            return not previous and found.end is None and not pod.stopping

        path = await self._log_file(name)
        if path is None:
            return  # it never ran
        blocks = podmanlogs.read(path, self._clock, running, follow=follow, tail=tail, since=since)
        async with contextlib.aclosing(blocks) as pieces:  # type: ignore[type-var]
            async for block in pieces:
                yield block

    async def _log_file(self, name: str) -> str | None:
        try:
            found = await self._podman.call("GET", f"/containers/{name}/json")
        except PodmanError as error:
            raise LookupError(f"podman does not know {name}: {error.message}") from error
        path = str(found["HostConfig"]["LogConfig"].get("Path") or "")
        return path if os.path.exists(path) else None

    async def attach(self, uid: str, container: str) -> Talk:
        """Raises ``LookupError`` where the container does not run."""
        pod, found = await self._container(uid, container)
        if found.end is not None:
            raise LookupError(f"container {container} of pod {uid} does not run")
        return await Talk.open(self._podman, self._of(pod, found), tty=found.tty, stdin=found.stdin)

    async def exec(self, uid: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False) -> Session:
        """Raises ``LookupError`` where the container does not run."""
        pod, found = await self._container(uid, container)
        if found.end is not None:
            raise LookupError(f"container {container} of pod {uid} does not run")
        return await Session.start(self._podman, self._of(pod, found), command, stdin=stdin, tty=tty)

    # --- network ----------------------------------------------------------------------------------------------------

    def network(self, uid: str = "") -> PodNetwork:
        """Raises ``LookupError`` where there is no such pod."""
        if not uid:
            return PodNetwork("", False)
        return PodNetwork(self._sockets(uid).id, False)

    def _sockets(self, uid: str) -> netns.Sockets:
        pod = (self._pods or {}).get(uid)
        if pod is None or pod.stopping or pod.sockets is None:
            raise LookupError(f"pod {uid} has no network on this site")
        return pod.sockets

    async def connect(self, uid: str, port: int) -> socket.socket:
        """Raises ``OSError`` where nobody listens, ``LookupError`` where there is no such pod."""
        await self._known()
        return await self._sockets(uid).connect(port)

    async def listen(self, uid: str, address: str, port: int) -> socket.socket:
        """Raises ``OSError`` where the address is in use."""
        await self._known()
        return await self._sockets(uid).listen(address, port)

    async def datagrams(self, uid: str, port: int) -> socket.socket:
        """Raises ``OSError``: pods have their loopback only."""
        return await self._sockets(uid).datagrams(port)

    async def receive(self, uid: str, port: int) -> socket.socket:
        """Raises ``OSError``: pods have their loopback only."""
        return await self._sockets(uid).receive(port)

    # --- images and the machine -------------------------------------------------------------------------------------

    async def image_ready(self, image: str, pull: Pull) -> bool:
        """Raises ``ImageError``."""
        return await self._images.ready(image, pull.policy)

    async def fetch_image(self, image: str, pull: Pull) -> None:
        """Raises ``ImageError``."""
        try:
            await self._images.fetch(image, pull)
        except PodmanError as error:
            raise ImageError("ErrImagePull", f"podman does not take image {image}: {error.message}") from error

    async def images(self) -> Sequence[Mapping[str, Any]]:
        return await self._images.all()

    async def collect_images(self, keep: Collection[str], wanted: int) -> Sequence[str]:
        return await self._images.collect(keep, wanted)

    async def usage(self) -> Mapping[str, Sequence[ContainerUsage]]:
        found: dict[str, Sequence[ContainerUsage]] = {}
        for uid, pod in (await self._known()).items():
            rows = []
            for container in pod.containers.values():
                if container.before is not None:
                    rows.append(container.before)
                measured = self._cgroups.measure(uid, container.group) if container.end is None else None
                container.cpu = max(container.cpu, 0.0 if measured is None else measured.cpu)
                rows.append(container.usage(uid, 0.0 if measured is None else measured.memory))
            found[uid] = rows
        found |= self._gone
        self._gone = {}
        return found

    async def storage(self, uid: str) -> Mapping[str, int]:
        """Raises ``LookupError``."""
        pod = await self._pod(uid)
        result = {}
        for name, container in pod.containers.items():
            with contextlib.suppress(PodmanError):
                row = await self._podman.call("GET", f"/containers/{self._of(pod, container)}/json", size=True)
                log = str(row["HostConfig"]["LogConfig"].get("Path") or "")
                size = os.path.getsize(log) if os.path.exists(log) else 0
                result[name] = int(row.get("SizeRw") or 0) + size
        return result

    def runtime_classes(self) -> Sequence[str]:
        return ()

    def conditions(self) -> Sequence[Mapping[str, str]]:
        message = (
            "pods have their loopback only: nothing is carried by UDP, and a pod cannot reach a Service on a port that it uses"
        )
        result = [{"type": "PodNetwork", "status": "False", "message": message}]
        if self._cgroups.problem:
            message = f"what containers use is not measured, and all together are not limited: {self._cgroups.problem}"
            result.append({"type": "ResourceLimits", "status": "False", "message": message})
        if self._cgroups.uncapped:
            result.append({"type": "SystemReserved", "status": "False", "message": self._cgroups.uncapped})
        return result


def _say(directory: str, **known: Any) -> None:
    """One more line of a container's record."""
    with open(records.path(directory), "a", encoding="utf-8") as file:
        file.write(json.dumps(known) + "\n")


def _cannot_run(message: str, now: float) -> End:
    missing = any(text in message.lower() for text in _MISSING)
    return End(127 if missing else 128, now, "ContainerCannotRun", message[:500])


def _seconds(text: str) -> float:
    """Of podman's times, which have nanoseconds; 0 where there is none."""
    try:
        head, _, tail = text.partition(".")
        digits = "".join(each for each in tail if each.isdigit())[:6] if tail else "0"
        moment = datetime.fromisoformat(f"{head.removesuffix('Z')[:19]}.{digits}+00:00")
        return 0.0 if moment.year < 1970 else moment.timestamp()
    except ValueError:
        return 0.0


def _cgroup(groups: Sequence[str]) -> str:
    """The path of our cgroup below its hierarchy's mount, as podman names it; empty where there is none."""
    paths = {group.partition("/nemo/")[2] for group in groups} - {""}
    longest = max(paths, key=len, default="")
    return f"/nemo/{longest}" if longest else ""


def _cgroups(key: str, most: tuple[int, int] | None) -> Cgroups:
    """Below the hierarchies' roots, and not below ours: podman takes no others."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as mounts, open("/proc/self/cgroup", encoding="utf-8") as own:
            top = "".join(f"{line.rpartition(':')[0]}:/\n" for line in own.read().splitlines())
            version, roots = locate(mounts.read(), top)
    except OSError:
        version, roots = 0, {}
    return Cgroups(key, version, roots, most)


def _remove_cgroups(key: str, uid: str) -> None:
    """What podman has made for a pod in all hierarchies, ours or not."""
    for entry in os.listdir("/sys/fs/cgroup"):
        ours = os.path.join("/sys/fs/cgroup", entry if os.path.ismount(f"/sys/fs/cgroup/{entry}") else "", "nemo")
        below = [place for place, _, _ in os.walk(os.path.join(ours, key, uid))]
        for place in (*reversed(below), os.path.join(ours, key), ours):
            with contextlib.suppress(OSError):
                os.rmdir(place)
