"""Containers from their start to their end: watched, their end recorded, made to end, and what they left running removed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

from metaos import trees
from metaos.clock import Clock
from metaos.runtimes import logs, process, records, watchdog
from metaos.runtimes.cgroups import Cgroups
from metaos.runtimes.isolation import Isolation, signal_name
from metaos.runtimes.output import Outputs
from metaos.runtimes.pods import Container, End, Pod
from metaos.runtimes.process import Watch
from metaos.runtimes.wasm import REASONS, SAID

log = logging.getLogger(__name__)

#: Seconds that a killed process may take to vanish. After that it hangs in the kernel, and is waited for no longer.
KILL_SECONDS = 10.0
KILL_ROUNDS = 5
#: Who says that a command could not be started at all.
_COMPLAINTS = ("bwrap: ", "nemo: ")


class Lifetimes:
    """``changed`` is called when a container has ended."""

    def __init__(
        self, isolation: Isolation, cgroups: Cgroups, outputs: Outputs, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self._isolation, self._cgroups, self._outputs = isolation, cgroups, outputs
        self._clock, self._changed = clock, changed
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stops cleaning; containers run on."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def adopt(self, pod: Pod, container: Container, boot: str) -> None:
        """One that an earlier agent started. ``boot``: the machine's present one."""
        self._outputs.adopt(container.directory)
        if container.end is not None:
            self.clean_later(pod, container)
        elif pod.boot == boot and container.monitor is not None:
            self.watch(pod, container)
        else:
            self.ended(pod, container, "the machine was restarted")

    def clean_later(self, pod: Pod, container: Container) -> None:
        task = asyncio.get_running_loop().create_task(self._clean(pod, container))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def watch(self, pod: Pod, container: Container) -> None:
        assert container.monitor is not None
        container.watch = Watch(container.monitor, lambda: self.ended(pod, container))

    def ended(self, pod: Pod, container: Container, message: str = "") -> None:
        self._outputs.finish(container.directory)
        known = records.read(container.directory)
        if known.get("monitor", "unsaid") is None:
            # An agent was killed while it started this one: nobody waited for the answer any more, so its command was not run.
            self._cgroups.remove(pod.uid, container.group)
            pod.load_container(container.name)
            self._changed()
            return
        code = known.get("exit-code")
        finish = self._clock.now()
        if code is not None:
            finish = os.stat(records.path(container.directory)).st_mtime
        elif container.watch is not None and container.watch.code is not None:
            code = container.watch.code
        told, code = code is not None, 137 if code is None else code
        reason = "Completed" if code == 0 else "Error"
        measured = self._cgroups.measure(pod.uid, container.group)
        if code and measured is not None and measured.oom_kills:
            reason, message = "OOMKilled", "it used more memory than its limit, or than all pods of the site together may"
        elif code and os.path.exists(os.path.join(container.directory, watchdog.MARK)):
            reason, message = "Fenced", "the watchdog ended it: no heartbeat was confirmed in time, and it must not run twice"
        elif code in REASONS and (complaint := logs.last_line(container.directory)).startswith(SAID):
            reason, message = REASONS[code], complaint.removeprefix(SAID)
        elif (not told or code in (1, 126, 127)) and (complaint := logs.last_line(container.directory)).startswith(_COMPLAINTS):
            missing = "No such file" in complaint or "not found" in complaint
            reason, message, code = "ContainerCannotRun", complaint, 127 if missing else 128
        elif not message and (name := signal_name(code)):
            message = f"ended by {name}"
        waited = 0.0 if container.watch is None else container.watch.cpu
        end = End(code, finish, reason, message, max(container.cpu, waited if measured is None else measured.cpu))
        try:
            container.finish(end)
        except OSError as error:
            # It is known here, and an agent after this one finds it out again: its monitor has recorded it.
            log.warning("the end of container %s of pod %s cannot be written: %s", container.name, pod.uid, error)
        self.clean_later(pod, container)
        self._changed()

    async def _clean(self, pod: Pod, container: Container) -> None:
        """What the container's command left running, and its cgroups."""
        if container.monitor is not None and pod.boot == process.boot_id():
            for _ in range(KILL_ROUNDS):  # one of them may have started another meanwhile
                killed = self.kill(pod, container)
                if not killed:
                    break
                await self._gone(killed)
        leftover = [found for pid in self._cgroups.kill(pod.uid, container.group) if (found := process.identity(pid)) is not None]
        await self._gone(leftover)
        self._cgroups.remove(pod.uid, container.group)
        for name in ("upper", "work"):  # a new start begins with the image alone
            place = os.path.join(container.directory, name)
            if os.path.isdir(place):
                await asyncio.to_thread(trees.remove, place)

    def kill(self, pod: Pod, container: Container) -> list[process.Identity]:
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

    async def stop(self, pod: Pod, container: Container, grace_seconds: float) -> None:
        """SIGTERM, and after the grace period SIGKILL."""
        if container.end is None and container.watch is not None and container.monitor is not None and grace_seconds > 0:
            main = self._isolation.main(container.monitor, container.directory)
            if main is not None:
                main.kill(signal.SIGTERM)
                await self._within(grace_seconds, asyncio.ensure_future(container.watch.ended.wait()))
        await self.destroy(pod, container)

    async def destroy(self, pod: Pod, container: Container) -> None:
        """Ends it now and leaves nothing of it running. Raises ``OSError`` where it does not end."""
        if container.end is None and container.watch is not None and container.monitor is not None:
            self.kill(pod, container)
            if not await self._within(KILL_SECONDS, asyncio.ensure_future(container.watch.ended.wait())):
                container.monitor.kill()
                if not await self._within(KILL_SECONDS, asyncio.ensure_future(container.watch.ended.wait())):
                    raise OSError(f"container {container.name} was killed and does not end: its processes hang in the kernel")
        await self._clean(pod, container)
