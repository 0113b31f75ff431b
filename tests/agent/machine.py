"""A machine for tests of the supervisor: its pods outlive every agent, and its containers do as they are told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from metaos.agent.cache import Cache
from metaos.agent.supervisor import Supervisor
from metaos.plugins.points import ContainerConfig, ContainerState, ImageError, PodConfig, Pull, Runtime
from metaos.resources import meta
from metaos.resources.meta import Obj
from tests.clock import FakeClock


class Killed(BaseException):
    """The agent's process ends here and now."""


@dataclass
class Machine:
    """A container runs until it is stopped, or ends by :meth:`end`. Those whose command is ``exit N`` end at once; ``deaf``
    ones do not hear SIGTERM. ``kill_at``: the agent is killed at its so-many-th call or write."""

    clock: FakeClock
    found: dict[str, dict[str, ContainerState]] = field(default_factory=dict)
    configs: dict[tuple[str, str], ContainerConfig] = field(default_factory=dict)
    pod_configs: dict[str, PodConfig] = field(default_factory=dict)
    #: Everything that happened: (what, pod name, container).
    history: list[tuple[str, str, str]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    missing_images: set[str] = field(default_factory=set)
    #: Images that are not here, and come when told so.
    coming: dict[str, asyncio.Event] = field(default_factory=dict)
    #: What was asked of registries: (image, how).
    asked: list[tuple[str, Pull]] = field(default_factory=list)
    #: What a command in a container answers: exit code.
    answers: dict[tuple[str, ...], int] = field(default_factory=dict)
    hanging: set[tuple[str, ...]] = field(default_factory=set)
    logged: dict[str, bytes] = field(default_factory=dict)
    steps: int = 0
    kill_at: int = -1
    dead: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ids: Any = field(default_factory=itertools.count)

    def step(self) -> None:
        """A dead agent does nothing any more."""
        self.steps += 1
        if self.dead or self.steps == self.kill_at:
            self.dead = True
            raise Killed

    def as_runtime(self) -> Runtime:
        found: Any = self
        return found  # type: ignore[no-any-return]

    async def start_pod(self, pod: PodConfig) -> None:
        self.step()
        self.names[pod.uid], self.pod_configs[pod.uid] = pod.name, pod
        self.found.setdefault(pod.uid, {})

    async def stop_pod(self, uid: str) -> None:
        self.step()
        if self.found.pop(uid, None) is not None:
            self.history.append(("gone", self.names[uid], ""))
        self.step()
        self.changed.set()

    async def release_pod(self, uid: str) -> None:
        self.step()
        assert not any(state.running for state in self.found.get(uid, {}).values())

    async def pods(self) -> Mapping[str, Sequence[ContainerState]]:
        return {uid: list(states.values()) for uid, states in self.found.items()}

    async def image_ready(self, image: str, pull: Pull) -> bool:
        return image not in self.missing_images and image not in self.coming

    async def fetch_image(self, image: str, pull: Pull) -> None:
        self.asked.append((image, pull))
        if image in self.missing_images:
            raise ImageError("ErrImagePull", f"{image} is not on this machine")
        await self.coming[image].wait()
        self.coming.pop(image, None)

    async def start_container(self, uid: str, container: ContainerConfig) -> ContainerState:
        self.step()
        if uid not in self.found:
            raise LookupError(uid)
        before = self.found[uid].get(container.name)
        if before is not None and before.running:
            raise ValueError(f"{container.name} still runs")
        state = ContainerState(container.name, f"{container.name}-{next(self.ids)}", True, self.clock.now())
        self.found[uid][container.name] = state
        self.configs[uid, container.name] = container
        self.history.append(("start", self.names[uid], container.name))
        if container.command[:1] == ("exit",):
            self._ended(uid, container.name, int(container.command[1]))
        self.step()
        self.changed.set()
        return self.found[uid][container.name]

    async def stop_container(self, uid: str, name: str, grace_seconds: float) -> None:
        self.step()
        state = self.found.get(uid, {}).get(name)
        if state is None:
            raise LookupError(name)
        if not state.running:
            return
        self.history.append(("term" if grace_seconds > 0 else "kill", self.names[uid], name))
        if "deaf" in self.configs[uid, name].command and grace_seconds > 0:
            await self.clock.sleep(grace_seconds)
            self.history.append(("kill", self.names[uid], name))
        self._ended(uid, name, 143 if grace_seconds > 0 and "deaf" not in self.configs[uid, name].command else 137)

    def _ended(self, uid: str, name: str, code: int, reason: str = "") -> None:
        state = self.found.get(uid, {}).get(name)
        if state is None or not state.running:
            return
        self.history.append(("end", self.names[uid], name))
        self.found[uid][name] = replace(state, running=False, exit_code=code, finish_time=self.clock.now(), reason=reason)
        self.changed.set()

    def end(self, pod: str, code: int = 0, container: str = "c", reason: str = "") -> None:
        """A container ends by itself."""
        self._ended(self.uid(pod), container, code, reason)

    def say(self, pod: str, text: str, container: str = "c") -> None:
        """A container writes its termination message."""
        path = next(s for s, t, _ in self.configs[self.uid(pod), container].mounts if t.startswith("/dev/term"))
        Path(path).write_text(text)

    def uid(self, pod: str) -> str:
        return next(uid for uid, name in self.names.items() if name == pod and uid in self.found)

    def running(self) -> list[str]:
        return sorted(self.names[uid] for uid, states in self.found.items() if any(s.running for s in states.values()))

    async def wait(self) -> None:
        await self.changed.wait()
        self.changed.clear()

    async def collect_images(self, keep: set[str], wanted: int) -> list[str]:
        return []

    async def storage(self, uid: str) -> dict[str, int]:
        return {}

    async def exec(self, uid: str, container: str, command: Sequence[str], **_: Any) -> FakeCommand:
        self.history.append(("exec", self.names[uid], " ".join(command)))
        return FakeCommand(self.answers.get(tuple(command), 0), tuple(command) in self.hanging)

    async def logs(self, uid: str, container: str, **_: Any) -> AsyncIterator[bytes]:
        yield self.logged.get(container, b"")

    async def connect(self, uid: str, port: int) -> Any:
        raise ConnectionRefusedError(f"nobody listens on port {port}")


class FakeCommand:
    def __init__(self, code: int, hangs: bool) -> None:
        self._code, self._hangs = code, hangs

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while self._hangs:
            await asyncio.Event().wait()
        for nothing in ():
            yield nothing

    async def wait(self) -> int:
        return self._code

    async def kill(self) -> None: ...


class WatchedCache(Cache):
    """Counts writes as steps of the machine, before and after each."""

    def __init__(self, path: Path, step: Callable[[], None]) -> None:
        super().__init__(path)
        self._database.execute("PRAGMA synchronous=OFF")  # no machine loses its power here
        self._step = step

    def put(self, space: str, key: str, value: dict[str, Any]) -> None:
        self._step()
        super().put(space, key, value)

    def delete(self, space: str, key: str) -> None:
        self._step()
        super().delete(space, key)


class Site:
    """One machine with an agent that can be started and killed. ``wanted`` is what the hub says."""

    def __init__(self, folder: Path, clock: FakeClock | None = None) -> None:
        self.folder, self.clock = folder, clock or FakeClock()
        self.machine = Machine(self.clock)
        self.events: list[tuple[str, str, str, str]] = []
        self.wanted: list[Obj] = []
        #: How many agents there have been.
        self.starts = 0
        self._random = Random(3)
        self._task: asyncio.Task[None] | None = None
        self.supervisor: Supervisor
        self._cache: WatchedCache

    def start(self) -> None:
        self.starts += 1
        if self.machine.dead:
            self.machine.dead, self.machine.kill_at = False, -1
        self._cache = WatchedCache(self.folder / "records.db", self.machine.step)
        self.supervisor = Supervisor(
            self.machine.as_runtime(),
            self._cache,
            self.clock,
            self._random,
            site="here",
            directory=self.folder,
            address=lambda where, pod: "127.1.0.1",
            record=lambda pod, kind, reason, message: self.events.append((meta.name(pod), kind, reason, message)),
            machine={"cpu": "2", "memory": "1Gi"},
        )
        self.supervisor.set_desired(self.wanted)
        self._task = asyncio.create_task(self.supervisor.run())

    async def stop(self) -> None:
        """As if killed: nothing of it goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            self._cache.close()

    async def apply(self, *objects: Obj) -> None:
        self.wanted = list(objects)
        self.supervisor.set_desired(self.wanted)
        await self.settle()

    async def settle(self) -> None:
        """Let everything run that time does not hold back (as long as less than a second)."""
        await self.clock.settle(200)
        await self.clock.advance(0.5)
        await self.clock.settle(200)

    def pods(self) -> dict[str, Obj]:
        return {meta.name(pod): pod for pod in self.supervisor.pods()}

    def status(self, obj: Obj) -> Obj:
        return self.supervisor.status_of(meta.ref(obj)) or {}

    def reasons(self) -> list[str]:
        return [reason for _, _, reason, _ in self.events]


def workload(kind: str, name: str = "web", uid: str = "", template: dict[str, Any] | None = None, **spec: Any) -> Obj:
    """A rendered manifest. ``template`` is the pod's spec: one container ``c`` unless it says otherwise."""
    pod = {"containers": [{"name": "c", "image": "python:3"}], **(template or {})}
    group = {"Job": "batch/v1", "CronJob": "batch/v1", "Pod": "v1"}.get(kind, "apps/v1")
    metadata = {"name": name, "namespace": "shop", "uid": uid or f"uid-{name}", "generation": 1}
    if kind == "Pod":
        return {"apiVersion": group, "kind": kind, "metadata": metadata, "spec": pod}
    template_ = {"metadata": {"labels": {"app": name}}, "spec": pod}
    if kind == "CronJob":
        job = {"spec": {"template": template_, **spec.pop("job", {})}}
        return {"apiVersion": group, "kind": kind, "metadata": metadata, "spec": {"jobTemplate": job, **spec}}
    return {"apiVersion": group, "kind": kind, "metadata": metadata, "spec": {"template": template_, **spec}}


def container(name: str = "c", **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "python:3", **more}
