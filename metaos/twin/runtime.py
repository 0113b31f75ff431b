"""A simulated machine: the ``Runtime`` that the twin's agents use. Pods are records in virtual time; nothing is executed.

What is simulated: starting takes ``start_seconds``; a container whose command is ``sleep N`` ends after N seconds, with the code
of an ``exit C`` that follows (``sh -c "sleep 60; exit 1"``), any other runs until it is stopped; a machine that loses its power
loses its pods. CPU in use is ``utilisation`` times a container's limit. Not simulated: output, commands (all succeed),
connections, images, disks that fill.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from metaos.clock import Clock
from metaos.plugins.points import ContainerConfig, ContainerState, ContainerUsage, Exec, PodConfig, PodNetwork, Pull
from metaos.twin.watchdog import SimulatedWatchdog

_SLEEP = re.compile(r"\bsleep (\d+(?:\.\d+)?)\b(?:.*?\bexit (\d+))?", re.DOTALL)
#: Milli-CPU of a container without a limit.
DEFAULT_MILLI = 100


def duration(command: Sequence[str]) -> tuple[float, int] | None:
    """Seconds until a container with this command ends, and its exit code; ``None``: it runs until it is stopped."""
    found = _SLEEP.search(" ".join(command))
    return (float(found[1]), int(found[2] or 0)) if found else None


@dataclass(slots=True)
class Sandbox:
    """One pod."""

    config: PodConfig
    containers: dict[str, ContainerState] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)


class Silent:
    """A command in a container, or a socket in a pod: says nothing, ends well."""

    async def write(self, data: bytes) -> None: ...

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        return
        yield 1, b""

    async def resize(self, columns: int, rows: int) -> None: ...

    async def wait(self) -> int:
        return 0

    async def kill(self) -> None: ...

    def close(self) -> None: ...


class SimulatedRuntime:
    """Implements :class:`metaos.plugins.points.Runtime`. It outlives the agent, as real pods do."""

    def __init__(self, clock: Clock, start_seconds: float, stop_seconds: float, utilisation: float) -> None:
        self._clock = clock
        self.start_seconds, self.stop_seconds, self.utilisation = start_seconds, stop_seconds, utilisation
        self.sandboxes: dict[str, Sandbox] = {}
        self._gone: dict[str, list[ContainerUsage]] = {}
        self._news = asyncio.Event()
        self._ends: dict[str, asyncio.Task[None]] = {}
        self.watchdog = SimulatedWatchdog(self._kill)
        self._number = 0

    def power_off(self) -> None:
        """Nothing survives."""
        for task in self._ends.values():
            task.cancel()
        self._ends.clear()
        self.sandboxes.clear()
        self.watchdog.power_off()
        self._gone.clear()
        self._news.set()

    async def check(self) -> None: ...

    async def start_pod(self, pod: PodConfig) -> None:
        self.sandboxes.setdefault(pod.uid, Sandbox(pod))

    async def stop_pod(self, uid: str) -> None:
        found = self.sandboxes.pop(uid, None)
        if found is not None:
            self._gone[uid] = self._used(found)
        for state in found.containers.values() if found else ():
            self._forget(state.id)
        self._news.set()

    async def release_pod(self, uid: str) -> None: ...

    async def pods(self) -> Mapping[str, Sequence[ContainerState]]:
        return {uid: tuple(sandbox.containers.values()) for uid, sandbox in self.sandboxes.items()}

    async def start_container(self, uid: str, container: ContainerConfig) -> ContainerState:
        await self._clock.sleep(self.start_seconds)
        sandbox = self.sandboxes.get(uid)
        if sandbox is None:
            raise LookupError(f"pod {uid} has no sandbox")
        if self.watchdog.is_due(uid):
            raise ValueError("no heartbeat was confirmed in time: this pod must not run twice, and is not started again")
        self._number += 1
        state = ContainerState(container.name, f"{uid}-{container.name}-{self._number}", True, self._clock.now())
        sandbox.containers[container.name] = state
        sandbox.used[container.name] = (container.cpu_limit or DEFAULT_MILLI) / 1000
        ends = duration((*container.command, *container.args))
        if ends is not None:
            self._ends[state.id] = asyncio.create_task(self._run_out(uid, state, *ends), name=state.id)
        self._news.set()
        return state

    async def _run_out(self, uid: str, state: ContainerState, seconds: float, code: int) -> None:
        await self._clock.sleep(seconds)
        self._end(uid, state, code)

    def _end(self, uid: str, state: ContainerState, code: int) -> None:
        sandbox = self.sandboxes.get(uid)
        self._forget(state.id)
        if sandbox is not None and sandbox.containers.get(state.name) is state:
            reason = "Completed" if code == 0 else "Error"
            sandbox.containers[state.name] = replace(
                state, running=False, exit_code=code, finish_time=self._clock.now(), reason=reason
            )
            self._news.set()

    def _kill(self, uid: str) -> None:
        sandbox = self.sandboxes.get(uid)
        for state in list(sandbox.containers.values()) if sandbox else ():
            if state.running:
                self._end(uid, state, 137)

    def _forget(self, container: str) -> None:
        task = self._ends.pop(container, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def stop_container(self, uid: str, name: str, grace_seconds: float) -> None:
        sandbox = self.sandboxes.get(uid)
        state = sandbox.containers.get(name) if sandbox else None
        if state is not None and state.running:
            await self._clock.sleep(min(grace_seconds, self.stop_seconds))
            self._end(uid, state, 143)

    async def wait(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def logs(self, uid: str, container: str, **how: Any) -> AsyncIterator[bytes]:
        return
        yield b""

    async def exec(self, uid: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False) -> Exec:
        return Silent()

    async def attach(self, uid: str, container: str) -> Exec:
        return Silent()

    def network(self, uid: str = "") -> PodNetwork:
        if uid and uid not in self.sandboxes:
            raise LookupError(uid)
        return PodNetwork("simulated", True)

    async def connect(self, uid: str, port: int) -> Any:
        raise ConnectionRefusedError("a simulated pod takes no connections")

    async def listen(self, uid: str, address: str, port: int) -> Any:
        return Silent()

    async def datagrams(self, uid: str, port: int) -> Any:
        raise ConnectionRefusedError("a simulated pod takes no datagrams")

    async def receive(self, uid: str, port: int) -> Any:
        return Silent()

    async def fence(self, renewed: float, limits: Mapping[str, float]) -> None:
        await self.watchdog.fence(renewed, limits)

    def renewed(self) -> float:
        return self.watchdog.renewed()

    async def set_hosts(self, uid: str, hosts: Sequence[tuple[str, tuple[str, ...]]]) -> None: ...

    async def image_ready(self, image: str, pull: Pull) -> bool:
        return True

    async def fetch_image(self, image: str, pull: Pull) -> None: ...

    def runtime_classes(self) -> Sequence[str]:
        return ()

    async def images(self) -> Sequence[Mapping[str, Any]]:
        return ()

    async def collect_images(self, keep: Collection[str], wanted: int) -> Sequence[str]:
        return ()

    async def usage(self) -> Mapping[str, Sequence[ContainerUsage]]:
        found = {uid: self._used(sandbox) for uid, sandbox in self.sandboxes.items()} | self._gone
        self._gone = {}
        return found

    def _used(self, sandbox: Sandbox) -> list[ContainerUsage]:
        """Its clock may be put back: nothing is used before the start."""
        now = self._clock.now()
        return [
            ContainerUsage(
                name,
                state.id,
                max(0.0, (state.finish_time or now) - state.start_time) * sandbox.used[name] * self.utilisation,
                float(32 << 20) if state.running else 0.0,
                state.start_time,
                state.running,
            )
            for name, state in sandbox.containers.items()
        ]

    async def storage(self, uid: str) -> Mapping[str, int]:
        return {}

    def conditions(self) -> Sequence[Mapping[str, str]]:
        return ()

    async def close(self) -> None: ...
