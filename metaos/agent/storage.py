"""What pods use of a site's disk: measured now and then, and who has to go, in the words of a kubelet's eviction manager.

A pod whose volume, container or whole exceeds a limit of its own is evicted at the next look (:data:`LOOK_SECONDS`). Where the
disk itself runs full, the pod that uses most of it goes, one at a time. Meanwhile the agent writes on: it keeps
:data:`RESERVE_BYTES` in a file that it gives up when it needs them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaos import trees
from metaos.clock import Clock
from metaos.plugins.points import Runtime
from metaos.resources import quantity
from metaos.resources.meta import Obj, uid
from metaos.resources.workload import containers

log = logging.getLogger(__name__)

#: Between two looks at a full disk, and between two at the limits of pods. Measuring takes a tenth of the time at most.
PRESSURE_SECONDS = 2.0
LOOK_SECONDS = 10.0
#: The disk is full when less than this part of it, at most so many bytes, is free.
FREE_PART = 0.05
FREE_BYTES = 1 << 30
#: Above the first part of the disk in use, imported images that nothing needs go, until the second is reached.
IMAGES_HIGH, IMAGES_LOW = 0.85, 0.80
RESERVE_BYTES = 32 << 20
RESOURCE = "ephemeral-storage"


@dataclass(frozen=True, slots=True)
class Used:
    """Bytes on disk: of emptyDir volumes, and of containers (what they wrote elsewhere, and their logs)."""

    volumes: Mapping[str, int]
    containers: Mapping[str, int]
    #: What cannot be measured, and so is not borne.
    problem: str = ""

    @property
    def total(self) -> int:
        return sum(self.volumes.values()) + sum(self.containers.values())


def _volumes(pod: Obj) -> dict[str, Any]:
    """Name → size limit or ``None``, of emptyDir volumes on disk."""
    return {
        str(volume["name"]): (volume["emptyDir"] or {}).get("sizeLimit")
        for volume in pod["spec"].get("volumes") or ()
        if "emptyDir" in volume
    }


def _limits(pod: Obj) -> dict[str, Any]:
    """Container → its limit, where it has one."""
    found = {}
    for container in containers(pod["spec"]):
        limit = ((container.get("resources") or {}).get("limits") or {}).get(RESOURCE)
        if limit is not None:
            found[str(container["name"])] = limit
    return found


def limited(pod: Obj) -> bool:
    return bool(_limits(pod)) or any(limit is not None for limit in _volumes(pod).values())


def exceeded(pod: Obj, used: Used) -> str:
    """Why the pod has to go; "" if it may stay."""
    if used.problem:
        return used.problem
    for name, limit in _volumes(pod).items():
        if limit is not None and used.volumes.get(name, 0) > quantity.parse(limit) > 0:
            return f'Usage of EmptyDir volume "{name}" exceeds the limit "{limit}". '
    limits = _limits(pod)
    for name, limit in limits.items():
        if used.containers.get(name, 0) > quantity.parse(limit):
            return f'Container {name} exceeded its local ephemeral storage limit "{limit}". '
    total = sum((quantity.parse(limit) for limit in limits.values()), start=quantity.parse(0))
    if limits and used.total > total:
        text = quantity.format_bytes(int(total))
        return f"Pod ephemeral local storage usage exceeds the total limit of containers {text}. "
    return ""


def enough(size: int) -> int:
    """Bytes that must be free on a disk of so many."""
    return min(FREE_BYTES, int(size * FREE_PART))


class Storage:
    """``pods`` are those that run, ``images`` the names of those that anything wanted names; ``evict(uid, message)`` ends a pod.
    ``directory``: where volumes and the reserve are."""

    def __init__(
        self,
        runtime: Runtime,
        clock: Clock,
        directory: Path,
        pods: Callable[[], Sequence[Obj]],
        images: Callable[[], set[str]],
        evict: Callable[[str, str], None],
    ) -> None:
        self._runtime, self._clock, self._directory = runtime, clock, directory
        self._pods, self._images, self._evict = pods, images, evict
        self._reserve = directory / "reserve"

    async def run(self) -> None:
        """Never returns."""
        due = 0.0
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            try:
                began = self._clock.monotonic()
                if not await self._relieve() and began >= due:
                    await self.look()
                    await self._collect()
                    due = began + max(LOOK_SECONDS, 10 * (self._clock.monotonic() - began))
            except OSError:
                log.exception("what pods use of the disk cannot be measured; it is tried again in %g s", LOOK_SECONDS)
            await self._clock.sleep(PRESSURE_SECONDS)

    async def look(self) -> None:
        """Evicts every pod that exceeds a limit of its own."""
        for pod in [pod for pod in self._pods() if limited(pod)]:
            if message := exceeded(pod, await self._measure(pod)):
                self._evict(uid(pod), message)

    async def _collect(self) -> bool:
        """Whether any image went. One that had been imported has to be imported again when it is wanted again."""
        disk = os.statvfs(self._directory)
        used, size = disk.f_blocks - disk.f_bavail, disk.f_blocks
        if used <= size * IMAGES_HIGH:
            return False
        wanted = int((used - size * IMAGES_LOW) * disk.f_frsize)
        removed = await self._runtime.collect_images(self._images(), wanted)
        if removed:
            log.warning("the disk is %d %% full: images that nothing here uses were removed: %s", 100 * used / size, removed)
        return bool(removed)

    async def _relieve(self) -> bool:
        """Whether the disk is full; then the pod that uses most of it goes."""
        disk = os.statvfs(self._directory)
        size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        if free >= enough(size):
            self._keep_reserve(free)
            return False
        self._reserve.unlink(missing_ok=True)
        if await self._collect():
            return True
        used = {uid(pod): (await self._measure(pod)).total for pod in self._pods()}
        if not used:
            return True
        most = max(used, key=lambda key: (used[key], key))
        text = (
            f"The node was low on resource: {RESOURCE}. Threshold quantity: {enough(size)}, available: {free // 1024}Ki. "
            f"The pod was using {used[most] // 1024}Ki, more than any other. "
        )
        log.warning("the disk is full: %s", text)
        self._evict(most, text)
        return True

    def _keep_reserve(self, free: int) -> None:
        if not self._reserve.exists() and free > 4 * RESERVE_BYTES:
            fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                with suppress(OSError):  # a file system that cannot: then there is none
                    os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)

    async def _measure(self, pod: Obj) -> Used:
        place = self._directory / "pods" / uid(pod) / "volumes"
        volumes: dict[str, int] = {}
        found: Mapping[str, int] = {}
        try:
            for name in _volumes(pod):
                volumes[name] = (await asyncio.to_thread(trees.measure, str(place / name))).bytes
            with suppress(LookupError):
                found = await self._runtime.storage(uid(pod))
        except trees.TooDeep as error:
            return Used(volumes, found, f"Pod ephemeral local storage cannot be measured: {error}. ")
        return Used(volumes, found)
