"""Sandboxes that are made before the containers that will run in them: a *spare* belongs to one pod, runs one container, and ends
unused with its pod, with the agent (whatever that dies of), or after a time.

Everything that does not depend on the container is there in it: processes, the pod's namespaces and its own, an empty root,
limits. Nothing of any container is, and none of its code has run. What a spare takes counts as the pod's, in a cgroup beside its
containers'; a guest's process moves from there into its container's before it begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from metaos.runtimes import bubblewrap, process
from metaos.runtimes.cgroups import MAX_PIDS
from metaos.runtimes.forks import Forks, Waiting
from metaos.runtimes.process import Identity, Watch

#: Of one runtime, those that wait; each has 4 MB. Where there are so many, a container's sandbox is made when it is started.
MAX_SPARES = 4
#: How long one waits.
SPARE_SECONDS = 60.0
#: How long it may take to end.
END_SECONDS = 10.0
#: Of a pod's cgroups the one of its sandboxes. A container's has a number at its end.
GROUP = "sandboxes"


@dataclass(frozen=True, slots=True)
class Tenant:
    """The pod that a spare is for. ``groups``: directories of the cgroup of its sandboxes; ``filter``: of system calls."""

    uid: str
    holder: Identity
    groups: tuple[str, ...]
    filter: bytes


class Spare:
    """``mounts``: the machine's table of them, opened before the spare was made, which it takes over."""

    def __init__(self, forks: Forks, waiting: Waiting, tenant: Tenant, mounts: int) -> None:
        self._forks, self._waiting, self._tenant, self._mounts = forks, waiting, tenant, mounts
        self._watch = Watch(waiting.monitor, lambda: None, ours=True)

    @classmethod
    async def make(cls, forks: Forks, tenant: Tenant) -> Spare:
        """Raises ``OSError``."""
        mounts = os.open("/proc/self/mounts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            steps = process.in_memory(tenant.filter)
            try:
                words = [str(bubblewrap.files_limit()), str(MAX_PIDS), str(tenant.holder.pid), str(tenant.holder.start)]
                return cls(forks, await forks.prepare([*words, ":".join(tenant.groups)], [steps]), tenant, mounts)
            finally:
                os.close(steps)
        except BaseException:
            os.close(mounts)
            raise

    def fits(self, tenant: Tenant) -> bool:
        """Whether it is this pod's, as it is now, and sees what the machine has mounted."""
        changed = select.poll()
        changed.register(self._mounts, select.POLLPRI)  # source: proc(5), /proc/mounts
        return tenant == self._tenant and not self._watch.ended.is_set() and not changed.poll(0)

    async def begin(self, words: Sequence[str], fds: Sequence[int]) -> Identity:
        """See :meth:`Forks.begin`; the container's monitor. Afterwards this is no spare any more."""
        try:
            await self._forks.begin(self._waiting, words, fds)
        except BaseException:
            await self.end()
            raise
        self._watch.close()
        self._close()
        return self._waiting.monitor

    def _close(self) -> None:
        self._waiting.channel.close()
        if self._mounts >= 0:
            os.close(self._mounts)
            self._mounts = -1

    async def end(self) -> None:
        """Nothing of it is left when this returns, unless it hangs in the kernel."""
        self._close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._watch.ended.wait()
        self._waiting.monitor.kill()
        self._watch.close()


class Spares:
    def __init__(self, forks: Forks) -> None:
        self._forks = forks
        self._made: dict[str, list[asyncio.Task[Spare]]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def expect(self, tenant: Tenant, count: int) -> None:
        """So many containers will be started in this pod."""
        for _ in range(min(count, MAX_SPARES - len(self._ending) - sum(map(len, self._made.values())))):
            made = asyncio.get_running_loop().create_task(Spare.make(self._forks, tenant))
            self._made.setdefault(tenant.uid, []).append(made)
            made.add_done_callback(partial(self._bound, tenant.uid))

    def _bound(self, uid: str, made: asyncio.Task[Spare]) -> None:
        asyncio.get_running_loop().call_later(SPARE_SECONDS, self._expire, uid, made)

    def _expire(self, uid: str, made: asyncio.Task[Spare]) -> None:
        if made in self._made.get(uid, ()):
            self._forget(uid, made)
            self._end(made)

    def _forget(self, uid: str, made: asyncio.Task[Spare]) -> None:
        self._made[uid].remove(made)
        if not self._made[uid]:
            del self._made[uid]

    async def take(self, tenant: Tenant) -> Spare:
        """One that waits, or is being made; otherwise a new one. Raises ``OSError``."""
        while tenant.uid in self._made:
            made = self._made[tenant.uid][0]
            self._forget(tenant.uid, made)
            try:
                await asyncio.wait((made,))
            except asyncio.CancelledError:
                self._end(made)
                raise
            if made.exception() is None and made.result().fits(tenant):
                return made.result()
            self._end(made)
        return await Spare.make(self._forks, tenant)

    async def drop(self, uid: str) -> None:
        """Nothing of the pod's spares is left when this returns."""
        if ending := [self._end(made) for made in self._made.pop(uid, ())]:
            await asyncio.wait(ending)

    async def close(self) -> None:
        for made in (made for each in self._made.values() for made in each):
            self._end(made)
        self._made.clear()
        if self._ending:
            await asyncio.wait(self._ending)

    def _end(self, made: asyncio.Task[Spare]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(_ended(made))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task


async def _ended(made: asyncio.Task[Spare]) -> None:
    made.cancel()  # where it is not made yet
    await asyncio.wait((made,))
    if not made.cancelled() and made.exception() is None:
        await made.result().end()
