"""A pod's *holder*: the process that keeps its network, ipc and uts namespaces, and with them the pod's network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from metaos.runtimes import netns, process
from metaos.runtimes.isolation import Isolation
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
        held = await self._isolation.hold(pod.hostname, pod.directory)
        holder = held.holder if held is not None else None
        pod.holder, pod.boot = holder, process.boot_id()
        try:
            pod.record()  # before anything else: whoever comes after us finds it
            if held is not None:
                held.stay()
        finally:
            if held is not None:
                held.let_go()
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
            self._watch(pod, made)

    def adopt(self, pod: Pod) -> None:
        """That of a pod which an earlier agent started."""
        running = any(each.end is None and each.monitor is not None and each.monitor.alive() for each in pod.containers.values())
        if pod.holder is not None and not running and pod.address and not netns.has_gateway(pod.holder):
            pod.holder.kill()  # its start was interrupted before it had a network; ended containers were in one before
            pod.holder = None
        if pod.holder is not None:
            self._watch(pod)

    def _watch(self, pod: Pod, made: netns.Sockets | None = None) -> None:
        assert pod.holder is not None and self._isolation.networks is not None
        pod.watch = Watch(pod.holder, lambda: self._ended(pod))
        pod.sockets = made or self._isolation.networks.of(pod.holder, pod.address)

    async def end(self, pod: Pod) -> None:
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
