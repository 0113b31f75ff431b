"""A pod's *holder*: the process that keeps its network, ipc and uts namespaces, and with them the pod's network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from metaos.runtimes import process
from metaos.runtimes.isolation import Isolation
from metaos.runtimes.lifetimes import KILL_SECONDS
from metaos.runtimes.netns import Sockets
from metaos.runtimes.pods import Pod
from metaos.runtimes.process import Watch

#: Pods whose namespaces and network are made at the same time.
HOLDERS_AT_ONCE = 4


class Holders:
    """``ended(pod)`` is called when a holder has ended that was not told to."""

    def __init__(self, isolation: Isolation, ended: Callable[[Pod], None]) -> None:
        self._isolation, self._ended = isolation, ended
        self._free = asyncio.Semaphore(HOLDERS_AT_ONCE)

    async def start(self, pod: Pod) -> None:
        """Starts it, makes the pod's network, and records both. Few at a time: the first ones' containers then start while later
        ones wait, instead of all waiting for all."""
        async with self._free:
            await self._start(pod)

    async def _start(self, pod: Pod) -> None:
        held = await self._isolation.hold(pod.hostname, pod.address, pod.directory)
        pod.holder, pod.boot = None if held is None else held.holder, process.boot_id()
        try:
            pod.record()  # before anything else: whoever comes after us finds it
            if held is not None:
                if pod.launcher is not None:
                    pod.launcher.close()
                pod.launcher = held.stay()
        except BaseException:
            if held is not None:
                pod.holder = None
                for fd in held.sockets:
                    os.close(fd)
                held.let_go()
                held.holder.kill()
                await process.ended(held.holder)
            raise
        if pod.sockets is not None:
            pod.sockets.close()
            pod.sockets = None
        if held is not None:
            self._watch(pod, held.sockets)

    def adopt(self, pod: Pod) -> None:
        """That of a pod which an earlier agent started."""
        if pod.holder is not None:
            self._watch(pod)

    def _watch(self, pod: Pod, made: Sequence[int] | None = None) -> None:
        assert pod.holder is not None
        pod.watch = Watch(pod.holder, lambda: self._ended(pod), ours=made is not None)
        pod.sockets = Sockets(self._isolation.forks, pod.holder, pod.address, made or ())

    async def end(self, pod: Pod) -> None:
        """Ends the pod's holder, and with it its namespaces. Raises ``OSError`` where it does not end."""
        holder, watch = pod.holder, pod.watch
        pod.holder = pod.watch = None
        if pod.launcher is not None:
            pod.launcher.close()
            pod.launcher = None
        if pod.sockets is not None:
            pod.sockets.close()
            pod.sockets = None
        if holder is not None and watch is not None:
            holder.kill()
            try:
                async with asyncio.timeout(KILL_SECONDS):
                    await watch.ended.wait()
            except TimeoutError:
                pod.holder, pod.watch = holder, watch
                raise OSError(f"the holder of pod {pod.uid} was killed and does not end: it hangs in the kernel") from None
            watch.close()
