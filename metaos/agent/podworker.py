"""One pod's life at a site: sandbox, init containers, sidecars, containers (:mod:`metaos.agent.podcontainers`), its end.

One task a pod. It looks at what the runtime says, takes the next step, and waits for a change; killed at any line, the next
agent goes on from the record on disk and the runtime's word.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from metaos.agent.containers import MountError, hostname
from metaos.agent.podcontainers import CONFIG_RETRY_SECONDS, NEVER, PodContainers
from metaos.agent.podend import stop_in_order
from metaos.agent.podrecord import PodRecord
from metaos.agent.podstatus import PodFacts, is_sidecar, phase_of, pod_status
from metaos.agent.workloads import PodView
from metaos.plugins.points import ContainerState, PodConfig
from metaos.resources.meta import Obj, annotations, format_time, is_true, labels, name, namespace, with_condition

if TYPE_CHECKING:
    from metaos.agent.supervisor import Supervisor

log = logging.getLogger(__name__)

SANDBOX_RETRY_SECONDS = 2.0
EVICTION_GRACE_SECONDS = 1.0


class PodWorker:
    """See the module. ``supervisor`` gives runtime, clock, volumes and the latest container states."""

    def __init__(self, supervisor: "Supervisor", record: PodRecord) -> None:
        self._supervisor, self.record = supervisor, record
        self.wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._containers = PodContainers(supervisor, record, self.wake.set, lambda: "readySince" in record.value)
        self._conditions: list[dict[str, Any]] = list(record.value.get("conditions") or ())
        self._ready_since: float | None = record.value.get("readySince")
        self._announced: tuple[Any, ...] = ()
        self._problem = ""
        self._missing = ""
        self._evicted = ""

    # -- seen from outside ----------------------------------------------------------------------------------

    @property
    def grace(self) -> float:
        return self.record.grace

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"pod {namespace(self.record.pod)}/{name(self.record.pod)}")

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        """Returns when its task has."""
        if self._task is not None:
            await asyncio.gather(asyncio.shield(self._task), return_exceptions=True)

    def delete(self, grace_seconds: float, *, dismiss: bool = False) -> None:
        """Begins its end. A shorter grace period than before counts. ``dismiss``: its workload does not need it; no failure."""
        value = self.record.value
        if self.record.deleting and float(value["deletingGrace"]) <= grace_seconds:
            return
        if dismiss:
            value["dismissed"] = True
        value.setdefault("deletingSince", self._supervisor.clock.now())
        value["deletingGrace"] = grace_seconds
        self.save()
        self.wake.set()
        self._supervisor.changed(self.record)

    def follow(self, obj: Obj) -> None:
        """A user's own Pod has changed at the hub: labels, annotations, images and deadline are taken over."""
        if self.record.deleting:
            return
        pod = self.record.pod
        spec, wanted = pod["spec"], obj.get("spec") or {}
        metadata = {k: v for k, v in (("labels", dict(labels(obj))), ("annotations", dict(annotations(obj)))) if v}
        images = {c["name"]: c.get("image") for key in ("initContainers", "containers") for c in wanted.get(key) or ()}
        changed: dict[str, Any] = {
            key: [{**c, "image": images.get(c["name"], c["image"])} for c in spec[key]]
            for key in ("initContainers", "containers")
            if spec.get(key) and any(images.get(c["name"], c["image"]) != c["image"] for c in spec[key])
        }
        for key in ("activeDeadlineSeconds", "terminationGracePeriodSeconds"):
            if wanted.get(key) != spec.get(key):
                changed[key] = wanted.get(key)
        if not changed and labels(pod) == labels(obj) and annotations(pod) == annotations(obj):
            return
        kept = {k: v for k, v in pod["metadata"].items() if k not in ("labels", "annotations")}
        self.record.value["pod"] = {**pod, "metadata": kept | metadata, "spec": {**spec, **changed}}
        self.save()
        self.wake.set()

    def save(self) -> None:
        self._supervisor.store(self.record)

    def view(self) -> PodView:
        value = self.record.value
        facts = self._facts()
        of_job = value["owner"][0] == "Job"
        exits = (
            [(s.name, int(s.exit_code or 0)) for s in facts.states.values() if not s.running and s.exit_code] if of_job else []
        )
        return PodView(
            self.record.uid,
            name(self.record.pod),
            str(value["hash"]),
            float(value["created"]),
            phase_of(self.record.pod["spec"], facts),
            self._ready_since,
            self.record.deleting,
            int(value["ordinal"]),
            sum(self.record.of("restarts").values()),
            float(value.get("finished") or value.get("deletingSince") or 0.0),
            tuple(exits),
            tuple((str(c["type"]), str(c["status"])) for c in self._conditions) if of_job else (),
            bool(value.get("dismissed")),
        )

    def pod(self) -> Obj:
        """The Pod object with its status."""
        found = dict(self.record.pod)
        metadata = dict(found["metadata"])
        if self.record.deleting:
            metadata["deletionTimestamp"] = format_time(self.record.value["deletingSince"] + self.record.value["deletingGrace"])
            metadata["deletionGracePeriodSeconds"] = int(self.record.value["deletingGrace"])
        facts = self._facts()
        found["metadata"] = metadata
        found["status"] = pod_status(found, facts, self._supervisor.clock.now())
        self._conditions = facts.conditions
        return found

    def _states(self) -> Mapping[str, ContainerState]:
        return self._supervisor.states.get(self.record.uid, {})

    def _facts(self) -> PodFacts:
        value = self.record.value
        return PodFacts(
            self._states(),
            self._containers.live,
            value.get("restarts") or {},
            value.get("last") or {},
            str(value.get("podIP") or ""),
            float(value.get("started") or value.get("created") or 0.0),
            str(value.get("phase") or ""),
            str(value.get("reason") or ""),
            str(value.get("message") or self._problem),
            self._conditions,
            self._containers.messages,
            bool(value.get("initialized")),
        )

    # -- the task -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                self.wake.clear()
                try:
                    wait = await self._end() if self.record.deleting else await self._step()
                except (OSError, LookupError, ValueError) as error:
                    self._problem = str(error)
                    log.warning("pod %s/%s: %s", namespace(self.record.pod), name(self.record.pod), error)
                    wait = SANDBOX_RETRY_SECONDS
                except Exception as error:
                    # A runtime that fails in a way of its own costs this pod another attempt, and not its worker.
                    self._problem = str(error) or type(error).__name__
                    log.exception("pod %s/%s: it is tried again", namespace(self.record.pod), name(self.record.pod))
                    wait = SANDBOX_RETRY_SECONDS
                if wait is None:
                    return
                self._announce()
                await self._until_woken(wait)
        finally:
            self._containers.unwatch_all()

    async def _until_woken(self, seconds: float, besides: "asyncio.Task[None] | None" = None) -> None:
        """Until something changes, the clock's seconds are over, or a task has ended."""
        if seconds == NEVER and besides is None:
            await self.wake.wait()
            return
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(self.wake.wait())]
        if seconds != NEVER:
            waiting.append(asyncio.create_task(self._supervisor.clock.sleep(seconds)))
        try:
            await asyncio.wait([*waiting, besides] if besides else waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _announce(self) -> None:
        """Tells the supervisor if the pod looks different from the last time."""
        ready = is_true(self.pod(), "Ready")
        now = self._supervisor.clock.now()
        before = self._ready_since
        self._ready_since = (self._ready_since or now) if ready else None
        shown = (
            ready,
            self.record.value.get("phase"),
            self._problem,
            tuple((s.id, s.running, s.exit_code) for s in self._states().values()),
            tuple(
                (c, v.ready, v.started, v.waiting.reason if v.waiting else "") for c, v in sorted(self._containers.live.items())
            ),
        )
        if self._ready_since != before:
            self.record.value["readySince"] = self._ready_since
            self.record.value["conditions"] = self._conditions
            self._supervisor.store_later(self.record)
        if shown != self._announced:
            self._announced = shown
            self._supervisor.changed(self.record)

    def disrupted(self, reason: str, message: str) -> None:
        """So that a Job's failure policy can tell it from a failure of its own."""
        now = self._supervisor.clock.now()
        found = with_condition(self._conditions, "DisruptionTarget", "True", reason, message, now)
        self.record.value["conditions"] = self._conditions = found

    def evict(self, message: str) -> None:
        """It has used more of the site's disk than it may."""
        self._evicted = message
        self.wake.set()

    async def _step(self) -> float | None:
        """One step of a pod that shall live; seconds until the next one at the latest."""
        if self.record.value.get("phase"):
            await self._supervisor.runtime.release_pod(self.record.uid)
            if self._supervisor.volumes.memory_directory(self.record.uid).exists():
                await asyncio.to_thread(self._supervisor.volumes.clear_memory, self.record.uid)
            return NEVER
        if self._evicted:
            self._containers.event("Warning", "Evicted", self._evicted)
            wait = await self._finish("Failed", "Evicted", self._evicted, EVICTION_GRACE_SECONDS)
            await asyncio.to_thread(self._supervisor.volumes.clear, self.record.uid)
            return wait
        await self._containers.read_messages()
        if self._deadline_left() <= 0:
            text = "Pod was active on the node longer than the specified deadline"
            return await self._finish("Failed", "DeadlineExceeded", text)
        if self.record.uid in self._supervisor.states:
            return await self._go_on()
        async with self._supervisor.starts:
            if self.record.deleting:
                return 0.0
            await self._sandbox()
            return await self._go_on()

    async def _go_on(self) -> float:
        """Starts what is due in its sandbox."""
        value, spec = self.record.value, self.record.pod["spec"]
        waits = [self._deadline_left(), self._refresh_volumes()]
        if not await self._initialize(waits):
            return min(waits) if not value.get("phase") else NEVER
        for container in spec.get("containers") or ():
            waits.append(await self._containers.advance(container, init=False))
            if self._containers.hook_pending(container):
                break  # The next container waits for it.
        await self._settle()
        return min(waits)

    def _refresh_volumes(self) -> float:
        """Seconds until it is tried again, where something is missing."""
        try:
            self._supervisor.volumes.refresh(self.record.pod)
        except MountError as error:
            if str(error) != self._missing:
                self._containers.event("Warning", "FailedMount", str(error))
            self._missing = str(error)
            return CONFIG_RETRY_SECONDS
        self._missing = ""
        return NEVER

    def _deadline_left(self) -> float:
        deadline, started = self.record.pod["spec"].get("activeDeadlineSeconds"), self.record.value.get("started")
        return NEVER if deadline is None or not started else started + float(deadline) - self._supervisor.clock.now()

    async def _initialize(self, waits: list[float]) -> bool:
        """Init containers one after another; sidecars among them run on. Whether the main containers may start."""
        value, spec = self.record.value, self.record.pod["spec"]
        done = bool(value.get("initialized")) or any(c["name"] in self._states() for c in spec.get("containers") or ())
        for container in spec.get("initContainers") or ():
            key = str(container["name"])
            if is_sidecar(container):
                waits.append(await self._containers.advance(container, init=True))
                if not done and not self._containers.live[key].started:
                    return False
                continue
            state = self._states().get(key)
            if done or (state is not None and not state.running and state.exit_code == 0):
                continue
            if state is not None and not state.running and not self._containers.restarts(container, state, init=True):
                await self._finish("Failed", "", "")
                return False
            waits.append(await self._containers.advance(container, init=True))
            return False
        if spec.get("initContainers") and not value.get("initialized"):
            value["initialized"] = True
            self.save()
        return True

    async def _sandbox(self) -> None:
        """Namespaces and network, also after the machine itself was restarted: then containers begin anew."""
        value, pod = self.record.value, self.record.pod
        where, spec = namespace(pod), pod["spec"]
        address = self._supervisor.address(where, name(pod))
        if value.get("podIP") != address or "started" not in value:
            value["podIP"] = address
            pod["status"] = {"podIP": address}
            value.setdefault("started", self._supervisor.clock.now())
            self._supervisor.store_later(self.record)
        config = PodConfig(
            self.record.uid,
            where,
            name(pod),
            hostname(pod),
            labels=labels(pod),
            runtime_class=str(spec.get("runtimeClassName") or ""),
            containers=len(spec.get("initContainers") or ()) + len(spec.get("containers") or ()),
        )
        await self._supervisor.runtime.start_pod(config)
        self._supervisor.began(self.record.uid)
        self._problem = ""

    # -- the end --------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Whether the pod has ended: all containers have, and none is to be started again. Sidecars do not count."""
        containers = self.record.pod["spec"].get("containers") or ()
        states = [(c, self._states().get(c["name"])) for c in containers]
        if any(s is None or s.running or self._containers.restarts(c, s, init=False) for c, s in states):
            return
        failed = any(s is not None and s.exit_code != 0 for _, s in states)
        await self._finish("Failed" if failed else "Succeeded", "", "")

    async def _finish(self, phase: str, reason: str, message: str, grace: float | None = None) -> float:
        """Ends what still runs of it; then it is over, but stays to be seen."""
        now = self._supervisor.clock.now()
        self._containers.images.cancel()
        if reason == "Evicted":
            self.disrupted("TerminationByKubelet", message)
        await self._stop_all(lambda: now + (self.grace if grace is None else grace))
        if self.record.deleting:
            return 0.0
        await self._containers.read_messages()
        value = self.record.value
        value |= {"phase": phase, "reason": reason, "message": message, "finished": self._supervisor.clock.now()}
        self.save()
        self._supervisor.changed(self.record)
        self.wake.set()
        return NEVER

    async def _end(self) -> float | None:
        """Stops everything within the grace period and removes what is left; ``None``: it is over."""
        value = self.record.value
        self._containers.unwatch_all()
        for live in self._containers.live.values():
            live.ready = False
        self._announce()
        await self._stop_all(lambda: float(value["deletingSince"]) + float(value["deletingGrace"]))
        await self._supervisor.runtime.stop_pod(self.record.uid)
        self._supervisor.volumes.remove(self.record.uid)
        self._supervisor.gone(self)
        return None

    async def _stop_all(self, until: Callable[[], float]) -> None:
        """Ends all containers in order. Asked meanwhile to be quicker, it is."""
        spec = self.record.pod["spec"]
        running = {k for k, s in self._states().items() if s.running}
        if not running:
            return
        for key in sorted(running):
            self._containers.unwatch(key)
            self._containers.event("Normal", "Killing", f"Stopping container {key}")
        clock = self._supervisor.clock
        while True:
            deadline = until()
            left = max(0.0, min(deadline - clock.now(), max(self.grace, float(self.record.value.get("deletingGrace") or 0.0))))
            work = stop_in_order(
                self._supervisor.runtime,
                clock,
                self.record.uid,
                spec,
                running,
                left,
                self._containers.caller,
                self._containers.hook_failed,
            )
            task = asyncio.create_task(work)
            try:
                while not task.done() and not until() < deadline:
                    self.wake.clear()
                    await self._until_woken(NEVER, task)
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled():
                task.result()
                break
        await self._supervisor.refresh_pod()
        self.wake.set()
