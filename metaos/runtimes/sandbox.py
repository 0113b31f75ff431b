"""The sandbox runtime: pods as confined processes, for machines without Kubernetes.

Per pod a *holder* keeps the network, ipc and uts namespaces; per container a *monitor* records the end. Both outlive the
agent, and a new agent finds them by the state directory (see ``pods.py``). Whoever ends is noticed by pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
from array import array
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from metaos import trees
from metaos.clock import Clock
from metaos.plugins.points import ContainerConfig, ContainerState, ContainerUsage, PodConfig, PodNetwork, Pull
from metaos.runtimes import former, netns, process, signatures
from metaos.runtimes.attachment import Attachment
from metaos.runtimes.cgroups import Cgroups, key_of
from metaos.runtimes.execution import Execution
from metaos.runtimes.fencing import Fencing
from metaos.runtimes.holders import Holders
from metaos.runtimes.images import ImageStore
from metaos.runtimes.isolation import Isolation, isolated
from metaos.runtimes.launcher import Launcher
from metaos.runtimes.lifetimes import Lifetimes
from metaos.runtimes.mounts import Mounts
from metaos.runtimes.output import Outputs
from metaos.runtimes.pods import Container, Pod, checked
from metaos.runtimes.pulls import Pulls
from metaos.runtimes.spares import GROUP
from metaos.runtimes.streams import Streams
from metaos.runtimes.usage import last_known, usage
from metaos.runtimes.wasm import CLASS, Wasm, problem

#: Of ioctl_iflags(2).
_GET_FLAGS, _SET_FLAGS, _TOP_OF_HIERARCHY = 0x80086601, 0x40086602, 0x20000

#: An image that was imported or used so recently is not collected.
IMAGE_SECONDS = 120.0
#: Pods that went and whose use nobody has asked for yet; of more, what they used last is forgotten.
MAX_GONE = 1000


class SandboxRuntime:
    """Implements ``Runtime``. ``directory``: all state; ``host_paths``: what may be mounted from outside of it.

    ``isolation``: ``bubblewrap``, or ``none`` for plain processes (only where an operator asked for it).
    ``host_images``: the site file's (see ``images.host_image``); ``registries`` and ``image_policy``: its fields of these names
    (see ``pulling.py``, ``signatures.rules``). ``most``: thousandths of a core and bytes of memory that all
    pods together may have.
    """

    # Made when the pods are looked at first (see :meth:`_known`).
    _cgroups: Cgroups
    _outputs: Outputs
    _lifetimes: Lifetimes
    _launcher: Launcher
    _streams: Streams

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
        self._directory = os.path.realpath(directory)
        self._clock = clock
        self._isolation: Isolation = isolated(isolation, self._directory)
        self._mounts = Mounts(directory, host_paths)
        images = os.path.join(self._directory, "images")
        self._images = ImageStore(images, host_images, signatures.rules(image_policy))
        self._pulls = Pulls(images, registries, image_policy)
        self._wasm = Wasm(os.path.join(self._directory, "compiled"))
        self._most = most
        self._holders = Holders(self._isolation, self._holder_ended)
        self._fencing = Fencing(self._directory, clock)
        self._pods: dict[str, Pod] | None = None
        self._gone: dict[str, list[ContainerUsage]] = {}
        self._changed = asyncio.Event()
        self._locks: dict[str, asyncio.Lock] = {}

    # --- life -------------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Raises ``RuntimeUnavailable`` with the remedy. Starts and ends a pod's worth of namespaces (30 ms)."""
        await self._isolation.check()
        self._known()

    async def close(self) -> None:
        """Lets go; the pods run on."""
        await self._fencing.close()
        if self._pods is not None:
            await self._lifetimes.close()
            await self._streams.close()
            containers = [container for pod in self._pods.values() for container in pod.containers.values()]
            for pod in self._pods.values():
                for held in (pod.sockets, pod.launcher):
                    if held is not None:
                        held.close()
            for watch in (
                *(pod.watch for pod in self._pods.values()),
                *(each for container in containers for each in (container.watch, container.console)),
            ):
                if watch is not None:
                    watch.close()
            await self._outputs.close(running=any(container.end is None for container in containers))
            self._pods = None
        self._isolation.forks.close()
        await self._wasm.close()

    def _known(self) -> dict[str, Pod]:
        """All pods; on first use those that an earlier process started are taken over."""
        if self._pods is None:
            os.makedirs(os.path.join(self._directory, "pods"), mode=0o700, exist_ok=True)
            _spread(os.path.join(self._directory, "pods"))
            os.chmod(self._directory, 0o700)
            isolation, clock = self._isolation, self._clock
            cgroups = self._cgroups = Cgroups.here(key_of(self._directory), self._most)
            outputs = self._outputs = Outputs(self._directory)
            self._launcher = Launcher(isolation, self._images, self._mounts, cgroups, outputs, clock, self._wasm)
            self._lifetimes = Lifetimes(isolation, cgroups, outputs, clock, self._changed.set)
            self._streams = Streams(isolation, outputs, clock)
            self._pods = {}
            boot = process.boot_id()
            for entry in sorted(os.listdir(os.path.join(self._directory, "pods"))):
                place = os.path.join(self._directory, "pods", entry)
                former.end(place, boot)
                pod = Pod.load(place, boot)
                if pod is None:
                    trees.remove(place)  # a start or a removal that was interrupted
                    continue
                self._pods[pod.uid] = pod
                for container in pod.containers.values():
                    self._lifetimes.adopt(pod, container, boot)
                self._holders.adopt(pod)
            cgroups.sweep()
            outputs.start()
        return self._pods

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

    # --- pods -------------------------------------------------------------------------------------------------------

    async def start_pod(self, pod: PodConfig) -> None:
        async with self._lock(pod.uid):
            known = self._known()
            found = known.get(pod.uid)
            if found is None:
                place = os.path.join(self._directory, "pods", checked(pod.uid, "pod uid"))
                # Where pods share the machine's network, a pod's loopback address is of use to its programs.
                address = "" if self._isolation.no_card and self._isolation.separate else pod.address
                found = Pod(pod.uid, place, pod.hostname or pod.name, pod.hosts, address, process.boot_id())
                os.makedirs(os.path.join(place, "containers"), mode=0o700, exist_ok=True)
                found.write_hosts()
                try:
                    await self._holders.start(found)
                except BaseException:
                    trees.remove(place)
                    raise
                known[pod.uid] = found
            elif found.holder is None or not found.holder.alive():
                await self._holders.start(found)
            else:
                return
            if pod.runtime_class in self.runtime_classes():
                self._launcher.expect(found, pod.containers)
                await self._clock.sleep(0)  # they are asked for now, and made while this process goes on

    def _holder_ended(self, pod: Pod) -> None:
        """Without its holder a pod has lost its network's owner: its containers end, and are started anew in a new one."""
        if not pod.stopping and pod.holder is not None:
            for container in pod.containers.values():
                self._lifetimes.kill(pod, container)
            self._changed.set()

    async def _end(self, pod: Pod) -> None:
        """Nothing of it runs when this returns."""
        containers = (self._lifetimes.destroy(pod, container) for container in pod.containers.values())
        await asyncio.gather(self._wasm.spares.drop(pod.uid), *containers)
        self._cgroups.remove(pod.uid, GROUP)
        await self._holders.end(pod)

    async def release_pod(self, uid: str) -> None:
        async with self._lock(uid):
            pod = self._known().get(uid)
            if pod is None or pod.holder is None:
                return
            await self._end(pod)
            pod.record()

    async def stop_pod(self, uid: str) -> None:
        async with self._lock(uid):
            pod = self._known().get(uid)
            if pod is None:
                return
            pod.stopping = True
            await self._end(pod)
            self._cgroups.remove_pod(uid)
            if len(self._gone) < MAX_GONE:
                self._gone[uid] = last_known(uid, pod, {})
            for each in pod.containers.values():
                self._outputs.drop(each.directory)
            written = [os.path.join(each.directory, "upper") for each in pod.containers.values()]
            if any(map(os.path.isdir, [*written, os.path.join(pod.directory, "volumes")])):
                await asyncio.get_running_loop().run_in_executor(None, trees.remove, pod.directory)
            else:
                trees.remove(pod.directory)
            self._known().pop(uid, None)
        self._locks.pop(uid, None)
        self._changed.set()

    async def pods(self) -> Mapping[str, Sequence[ContainerState]]:
        known = self._known()
        self._look_at_logs(known)
        return {uid: [container.state(uid) for container in pod.containers.values()] for uid, pod in known.items()}

    async def wait(self) -> None:
        self._known()
        await self._changed.wait()
        self._changed.clear()

    async def set_hosts(self, uid: str, hosts: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        pod = self._pod(uid)
        pod.hosts = tuple(hosts)
        pod.write_hosts()

    async def fence(self, renewed: float, limits: Mapping[str, float]) -> None:
        self._known()
        await self._fencing.keep(renewed, limits, self._cgroups.places())

    def renewed(self) -> float:
        return self._fencing.renewed

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
            self._fencing.check(uid)
            if self._isolation.name == "bubblewrap" and (pod.holder is None or pod.watch is None or pod.watch.ended.is_set()):
                await self._holders.start(pod)
            started = pod.containers[container.name] = await self._launcher.launch(pod, container, before)
            self._lifetimes.watch(pod, started)
            return started.state(uid)

    async def stop_container(self, uid: str, name: str, grace_seconds: float) -> None:
        await self._lifetimes.stop(self._pod(uid), self._container(uid, name), grace_seconds)

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
        lines = self._streams.logs(found, follow=follow, tail=tail, previous=previous, since=since)
        async with contextlib.aclosing(lines) as blocks:  # type: ignore[type-var]
            async for block in blocks:
                yield block

    def _look_at_logs(self, pods: Mapping[str, Pod]) -> None:
        for pod in pods.values():
            for container in pod.containers.values():
                if container.end is None:
                    self._streams.look_at_log(container)

    async def attach(self, uid: str, container: str) -> Attachment:
        """Raises ``LookupError`` where the container does not run."""
        return self._streams.attach(self._container(uid, container))

    async def exec(
        self, uid: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False
    ) -> Execution:
        """Raises ``LookupError`` where the container does not run, or there is no program in it to run."""
        found = self._container(uid, container)
        if found.runtime_class == CLASS:
            raise LookupError(f"container {container} is a WebAssembly module: it has no programs that could be executed in it")
        return self._streams.exec(uid, found, command, stdin=stdin, tty=tty)

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

    async def image_ready(self, image: str, pull: Pull) -> bool:
        """See :meth:`ImageStore.ready`."""
        return self._images.ready(image, pull.policy)

    async def fetch_image(self, image: str, pull: Pull) -> None:
        """Raises ``ImageError``."""
        await self._pulls.fetch(image, pull)

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

    async def usage(self) -> Mapping[str, Sequence[ContainerUsage]]:
        known = self._known()
        self._look_at_logs(known)
        found = usage(known, self._cgroups) | self._gone
        self._gone = {}
        return found

    async def storage(self, uid: str) -> Mapping[str, int]:
        """Raises ``LookupError``, ``TooDeep``."""
        places = {name: os.path.dirname(container.directory) for name, container in self._pod(uid).containers.items()}
        result = {}
        for name, place in places.items():
            result[name] = (await asyncio.to_thread(trees.measure, place)).bytes
        return result

    def runtime_classes(self) -> Sequence[str]:
        return () if self._isolation.name != "bubblewrap" or problem() else (CLASS,)

    def conditions(self) -> Sequence[Mapping[str, str]]:
        result = [{"type": kind, "status": "False", "message": message} for kind, message in self._isolation.conditions()]
        groups = Cgroups.here(key_of(self._directory), self._most) if self._pods is None else self._cgroups
        if groups.problem:
            message = f"not all limits are enforced, of a container nor of all together: {groups.problem}"
            result.append({"type": "ResourceLimits", "status": "False", "message": message})
        if groups.uncapped:
            result.append({"type": "SystemReserved", "status": "False", "message": groups.uncapped})
        return result


def _spread(directory: str) -> None:
    """Asks the file system to lay what is in one pod's directory apart from what is in another's. ext4 passes over inodes that
    were removed in the last minutes one by one: where pods come and go, each new file next to them costs ten times as much.
    Source: chattr(1), T; ``recently_deleted`` of ``fs/ext4/ialloc.c``."""
    flags = array("l", [0])
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # other file systems have no such flag
            fcntl.ioctl(fd, _GET_FLAGS, flags, True)
            flags[0] |= _TOP_OF_HIERARCHY
            fcntl.ioctl(fd, _SET_FLAGS, flags)
    finally:
        os.close(fd)
