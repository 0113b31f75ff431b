"""A site with the real agent and supervisor, unchanged, on a simulated runtime and an in-memory line to the hub."""

from __future__ import annotations

import asyncio
import copy
import json
import socket
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent import inventory
from metaos.agent.accounts import PodTokens
from metaos.agent.agent import Agent, Record
from metaos.agent.cache import Cache
from metaos.agent.energy import Modelled
from metaos.agent.entry import AgentConfig
from metaos.agent.meter import Meter
from metaos.agent.network import ServiceNetwork
from metaos.agent.presence import Removed
from metaos.agent.site import Pods
from metaos.agent.supervisor import Supervisor
from metaos.agent.sync import WorkFiles
from metaos.client import Client
from metaos.plugins.points import PodConfig, Runtime
from metaos.resources import workload
from metaos.resources.meta import Obj, ObjectRef, name, uid
from metaos.tunnel import Stream, TunnelError
from metaos.twin.disk import SiteDisk
from metaos.twin.network import Line
from metaos.twin.runtime import SimulatedRuntime
from metaos.twin.site import Copy, Ground, Machine, held
from metaos.twin.timing import Timing

PROBES = ("readinessProbe", "livenessProbe", "startupProbe")


class AgentSite:
    """``folder`` is its data directory: it outlives the agent."""

    fidelity = "agent"

    def __init__(self, obj: Obj, ground: Ground, folder: Path) -> None:
        self.name, self.obj, self._ground = name(obj), obj, ground
        self.clock, self.line = ground.clock, ground.line(name(obj))
        folder.mkdir(parents=True)
        self.disk = ground.disk(self.name)
        self._config = AgentConfig(
            "in memory",
            folder,
            folder / "site.yaml",
            heartbeat_seconds=ground.timing.heartbeat,
            metering_seconds=ground.timing.metering,
        )
        self.runtime = Watched(self, ground.timing)
        self.agent: Told | None = None
        self._task: asyncio.Task[None] | None = None
        self._cache: Cache | None = None
        #: Of pods whose sandbox is there.
        self.owners: dict[str, tuple[ObjectRef, str]] = {}
        self._starts = 0
        self._lie: dict[str, Any] | None = None

    def start(self) -> None:
        self._starts += 1
        random = Random(f"{self._ground.random.random()} {self._starts}")  # noqa: S311
        cache = self._cache = Records(self._config.data / "records.db", self.disk)
        machine: Any = Machine(self.obj, self._own_seconds)
        storage: Any = Endless

        def make_pods(runtime: Runtime, network: ServiceNetwork, record: Record, tokens: PodTokens) -> Pods:
            return Simulated(
                runtime,
                cache,
                self.clock,
                random,
                site=self.name,
                directory=self._config.data / "runtime",
                address=network.pod_address,
                record=record,
                machine=inventory.capacity(self.obj, machine.measure())[1].quantities(),
                make_storage=storage,
                tokens=tokens,
            )

        runtime: Any = self.runtime
        size = inventory.capacity(self.obj, machine.measure())[0].cpu
        meter = Meter(cache, Modelled((self.obj.get("spec") or {}).get("power") or {}, size), size, self._config.metering_seconds)
        agent = self.agent = Told(
            self._config,
            self.obj,
            lambda contact, access: Wire(self.line),
            runtime,
            make_pods,
            self.clock,
            random,
            machine,
            meter,
            Files(self._config.data / "works", self.disk),
        )
        agent.lie = self._lie or {}
        self._task = asyncio.create_task(self._run(agent), name=f"agent {self.name}")

    def _own_seconds(self) -> float:
        return self.clock.monotonic() * self._ground.timing.agent_cpu

    async def _run(self, agent: Agent) -> None:
        with suppress(Removed):
            await agent.run()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._cache is not None:
            self._cache.close()
        self._task = self._cache = self.agent = None

    def power_off(self) -> None:
        self.runtime.power_off()
        self._ground.changed(self.name)

    def lie(self, status: dict[str, Any] | None) -> None:
        self._lie = status
        if self.agent is not None:
            self.agent.lie = status or {}

    def copies(self) -> list[Copy]:
        found = []
        for pod_uid, sandbox in self.runtime.sandboxes.items():
            states = sandbox.containers.values()
            owner = self.owners.get(pod_uid)
            # One whose containers have all ended runs no more.
            if owner is not None and (not states or any(s.running for s in states)):
                ready = bool(states) and all(s.running or s.exit_code == 0 for s in states)
                found.append(Copy(self.name, *owner, sandbox.config.namespace, sandbox.config.name, ready))
        return found

    def holds(self) -> list[ObjectRef]:
        return held(json.loads(path.read_text()) for path in sorted((self._config.data / "works").glob("*.json")))

    def busy_milli(self) -> float:
        return (
            1000
            * self.runtime.utilisation
            * sum(
                sandbox.used[key]
                for sandbox in self.runtime.sandboxes.values()
                for key, state in sandbox.containers.items()
                if state.running
            )
        )

    def owner_of(self, pod_uid: str) -> tuple[ObjectRef, str] | None:
        for pod in self.agent.pods.pods() if self.agent else ():
            if uid(pod) == pod_uid:
                owner = (pod["metadata"].get("ownerReferences") or [{}])[0]
                if not owner:
                    return ObjectRef("", "Pod", str(pod["metadata"]["namespace"]), name(pod)), pod_uid
                group = str(owner["apiVersion"]).rpartition("/")[0]
                about = ObjectRef(group, str(owner["kind"]), str(pod["metadata"]["namespace"]), str(owner["name"]))
                return about, str(owner["uid"])
        return None

    def changed(self) -> None:
        self._ground.changed(self.name)


class Files(WorkFiles):
    """On a simulated disk: what is written lasts, and takes its time."""

    def __init__(self, folder: Path, disk: SiteDisk) -> None:
        super().__init__(folder)
        self._disk = disk

    def save(self, work: Obj) -> None:
        self._disk.write()
        super().save(work)

    def remove(self, work: Obj) -> None:
        self._disk.write()
        super().remove(work)


class Records(Cache):
    """On the same."""

    def __init__(self, path: Path, disk: SiteDisk) -> None:
        super().__init__(path)
        self._disk = disk

    def put(self, space: str, key: str, value: dict[str, Any]) -> int:
        self._disk.write()
        return super().put(space, key, value)

    def delete(self, space: str, key: str) -> None:
        self._disk.write()
        super().delete(space, key)

    def delete_until(self, space: str, key: str) -> int:
        self._disk.write()
        return super().delete_until(space, key)


class Told(Agent):
    """May be told to report something else than it measures."""

    lie: dict[str, Any]

    async def measure(self) -> dict[str, Any]:
        return {**await super().measure(), **self.lie}


class Watched(SimulatedRuntime):
    """Tells the world of what begins and ends, with the workload that it is of."""

    def __init__(self, site: AgentSite, timing: Timing) -> None:
        super().__init__(site.clock, timing.pod_start, timing.pod_stop, timing.load)
        self._site = site

    async def start_pod(self, pod: PodConfig) -> None:
        owner = self._site.owner_of(pod.uid)
        if owner is not None:
            self._site.owners[pod.uid] = owner
        await super().start_pod(pod)
        self._site.changed()

    async def start_container(self, uid: str, container: Any) -> Any:
        state = await super().start_container(uid, container)
        self._site.changed()
        return state

    def _end(self, uid: str, state: Any, code: int) -> None:
        super()._end(uid, state, code)
        self._site.changed()

    async def stop_pod(self, uid: str) -> None:
        await super().stop_pod(uid)
        self._site.owners.pop(uid, None)
        self._site.changed()


class Simulated(Supervisor):
    """Without probes: nobody in a simulated container could answer them."""

    def set_desired(self, objects: list[Obj]) -> None:
        super().set_desired([_without_probes(obj) for obj in objects])


def _without_probes(obj: Obj) -> Obj:
    spec = workload.pod_spec(obj)
    if not spec or not any(probe in c for c in workload.containers(spec) for probe in PROBES):
        return obj
    lean = copy.deepcopy(obj)
    for container in workload.containers(workload.pod_spec(lean)):
        for probe in PROBES:
            container.pop(probe, None)
    return lean


class Endless:
    """In place of :class:`metaos.agent.storage.Storage`: simulated disks do not fill."""

    def __init__(self, *parts: Any) -> None: ...

    async def run(self) -> None:
        await asyncio.Event().wait()


class Wire:
    """In place of :class:`metaos.agent.connection.HubConnection`."""

    def __init__(self, line: Line) -> None:
        self.client: Client = line

    def parts(self) -> list[Coroutine[Any, Any, Any]]:
        return []

    async def dial(self, header: dict[str, Any]) -> Stream:
        raise TunnelError("the twin carries no streams between pods")

    async def api(self) -> socket.socket:
        raise OSError("the twin carries no streams to the hub")

    async def token(self, namespace: str, account: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Nothing simulated shows one."""
        return {"token": "simulated", "expirationTimestamp": "9999-01-01T00:00:00Z"}

    def authorities(self) -> str:
        return ""

    def certificate(self) -> dict[str, Any]:
        return {}

    def attestation(self) -> dict[str, Any]:
        return {}

    def renew(self) -> None: ...

    async def close(self) -> None: ...
