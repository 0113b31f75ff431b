"""One pod's life at a site: sandbox, init containers, containers, restarts with back-off, probes, and its end.

One task a pod. It looks at what the runtime says, takes the next step, and waits for a change; killed at any line, the next
agent goes on from the record on disk and the runtime's word.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from metaos.agent.containers import ConfigError, container_config, hostname
from metaos.agent.podstatus import Live, PodFacts, Waiting, phase_of, pod_status, terminated
from metaos.agent.probes import Probes
from metaos.agent.workloads import PodView
from metaos.plugins.points import ContainerState, ImageError, PodConfig
from metaos.resources import workload
from metaos.resources.meta import Obj, format_time, is_true, labels, name, namespace, uid

if TYPE_CHECKING:
    from metaos.agent.supervisor import Supervisor

log = logging.getLogger(__name__)

BACKOFF_LIMIT_SECONDS = 300.0
#: A container that ran so long begins with a fresh back-off when it ends.
STABLE_SECONDS = 600.0
CONFIG_RETRY_SECONDS = 2.0
SANDBOX_RETRY_SECONDS = 2.0
_IMAGE_BACKOFF = {"ErrImagePull": "ImagePullBackOff"}


class PodRecord:
    """What is kept of a pod on disk. ``value`` is plain JSON: pod, owner, ownerUid, hash, created, ordinal, and what happened."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    @property
    def pod(self) -> Obj:
        found: Obj = self.value["pod"]
        return found

    @property
    def uid(self) -> str:
        return uid(self.pod)

    @property
    def owner_key(self) -> tuple[str, str, str]:
        kind, where, owner = self.value["owner"]
        return str(kind), str(where), str(owner)

    @property
    def owner_uid(self) -> str:
        return str(self.value["ownerUid"])

    @property
    def deleting(self) -> bool:
        return "deletingSince" in self.value


class PodWorker:
    """See the module. ``supervisor`` gives runtime, clock, volumes and the latest container states."""

    def __init__(self, supervisor: "Supervisor", record: PodRecord) -> None:
        self._supervisor, self.record = supervisor, record
        self.wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._live: dict[str, Live] = {}
        self._probes: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._conditions: list[dict[str, Any]] = list(record.value.get("conditions") or ())
        self._next_start: dict[str, float] = {}
        self._image_failures: dict[str, int] = {}
        self._ready_since: float | None = record.value.get("readySince")
        self._announced: tuple[Any, ...] = ()
        self._problem = ""
        self._killing: dict[str, str] = {}

    # -- seen from outside ----------------------------------------------------------------------------------

    @property
    def grace(self) -> float:
        found = self.record.pod["spec"].get("terminationGracePeriodSeconds")
        return 30.0 if found is None else float(found)

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

    def delete(self, grace_seconds: float) -> None:
        """Begins its end. A shorter grace period than before counts."""
        value = self.record.value
        if self.record.deleting and float(value["deletingGrace"]) <= grace_seconds:
            return
        value.setdefault("deletingSince", self._supervisor.clock.now())
        value["deletingGrace"] = grace_seconds
        self.save()
        self.wake.set()
        self._supervisor.changed()

    def save(self) -> None:
        self._supervisor.store(self.record)

    def view(self) -> PodView:
        value = self.record.value
        facts = self._facts()
        return PodView(
            self.record.uid,
            name(self.record.pod),
            str(value["hash"]),
            float(value["created"]),
            phase_of(self.record.pod["spec"], facts),
            self._ready_since,
            self.record.deleting,
            int(value["ordinal"]),
            sum((value.get("restarts") or {}).values()),
            float(value.get("finished") or 0.0),
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
            self._live,
            value.get("restarts") or {},
            value.get("last") or {},
            str(value.get("podIP") or ""),
            float(value.get("started") or 0.0),
            str(value.get("phase") or ""),
            str(value.get("reason") or ""),
            str(value.get("message") or self._problem),
            self._conditions,
        )

    # -- the task -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        clock = self._supervisor.clock
        try:
            while True:
                self.wake.clear()
                try:
                    wait = await self._end() if self.record.deleting else await self._step()
                except (OSError, LookupError, ValueError) as error:
                    self._problem = str(error)
                    log.warning("pod %s/%s: %s", namespace(self.record.pod), name(self.record.pod), error)
                    wait = SANDBOX_RETRY_SECONDS
                if wait is None:
                    return
                self._announce()
                if wait == float("inf"):
                    await self.wake.wait()
                else:
                    waiting = [asyncio.ensure_future(self.wake.wait()), asyncio.ensure_future(clock.sleep(wait))]
                    try:
                        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for task in waiting:
                            task.cancel()
                        await asyncio.gather(*waiting, return_exceptions=True)
        finally:
            for container in list(self._probes):
                self._stop_probes(container)

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
            tuple((c, v.ready, v.started, v.waiting.reason if v.waiting else "") for c, v in sorted(self._live.items())),
        )
        if self._ready_since != before:
            self.record.value["readySince"] = self._ready_since
            self.record.value["conditions"] = self._conditions
            self.save()
        if shown != self._announced:
            self._announced = shown
            self._supervisor.changed()

    async def _step(self) -> float | None:
        """One step of a pod that shall live; seconds until the next one at the latest."""
        value = self.record.value
        if value.get("phase"):
            return float("inf")
        deadline = self.record.pod["spec"].get("activeDeadlineSeconds")
        if deadline is not None and value.get("started") and self._supervisor.clock.now() >= value["started"] + float(deadline):
            await self._finish("Failed", "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
            return float("inf")
        if self.record.uid not in self._supervisor.states:
            await self._sandbox()
        spec = self.record.pod["spec"]
        for container in spec.get("initContainers") or ():
            state = self._states().get(container["name"])
            if state is not None and not state.running and state.exit_code == 0:
                continue
            if any(c["name"] in self._states() for c in spec.get("containers") or ()):
                continue
            return await self._advance(container, init=True)
        waits = [await self._advance(container, init=False) for container in spec.get("containers") or ()]
        await self._settle()
        return min(waits, default=float("inf"))

    async def _sandbox(self) -> None:
        """Namespaces and network, also after the machine itself was restarted: then containers begin anew."""
        value, pod = self.record.value, self.record.pod
        where = namespace(pod)
        address = self._supervisor.address(where, name(pod))
        value["podIP"] = address
        pod["status"] = {"podIP": address}
        value.setdefault("started", self._supervisor.clock.now())
        self.save()
        config = PodConfig(self.record.uid, where, name(pod), hostname(pod), labels=labels(pod))
        await self._supervisor.runtime.start_pod(config)
        await self._supervisor.refresh_pod()
        self._problem = ""

    async def _advance(self, container: Mapping[str, Any], *, init: bool) -> float:
        """Starts a container, or starts it again, if it should run; seconds until the next look."""
        key = str(container["name"])
        live = self._live.setdefault(key, Live())
        state = self._states().get(key)
        if state is not None and state.running:
            live.waiting = None
            self._killing.pop(key, None) if key not in self._probes else None
            self._watch(container, state, init)
            return float("inf")
        self._stop_probes(key)
        live.ready = live.started = False
        now = self._supervisor.clock.now()
        if state is not None:
            if not self._restarts(state, init):
                live.waiting = None
                return float("inf")
            wait = self._restart_wait(key, state, now)
            if wait > 0:
                whose = f"{name(self.record.pod)}_{namespace(self.record.pod)}"
                text = f"back-off {wait:.0f}s restarting failed container={key} pod={whose}"
                if live.waiting is None or live.waiting.reason != "CrashLoopBackOff":
                    self._event("Warning", "BackOff", f"Back-off restarting failed container {key}")
                live.waiting = Waiting("CrashLoopBackOff", text)
                return wait
        elif self._next_start.get(key, 0.0) > now:
            return self._next_start[key] - now
        return await self._start(container, live, state, init)

    def _restarts(self, state: ContainerState, init: bool) -> bool:
        policy = self.record.pod["spec"].get("restartPolicy") or "Always"
        if state.exit_code == 0:
            return policy == "Always" and not init
        return policy != "Never"

    def _restart_wait(self, key: str, state: ContainerState, now: float) -> float:
        """The back-off of this restart that is still to be waited: none for the first, then doubling."""
        value = self.record.value
        finished = state.finish_time or now
        if finished - state.start_time >= STABLE_SECONDS:
            value.setdefault("backoff", {})[key] = 0
        count = int((value.get("backoff") or {}).get(key, 0))
        if count == 0 or key in self._killing:
            return 0.0
        delay = float(min(self._supervisor.backoff_seconds * 2 ** (count - 1), BACKOFF_LIMIT_SECONDS))
        return max(0.0, finished + delay - now)

    async def _start(self, container: Mapping[str, Any], live: Live, state: ContainerState | None, init: bool) -> float:
        key = str(container["name"])
        supervisor, value = self._supervisor, self.record.value
        attempt = int((value.get("restarts") or {}).get(key, 0)) + (1 if state is not None else 0)
        try:
            config = container_config(self.record.pod, container, supervisor.find, supervisor.volumes, attempt)
        except ConfigError as error:
            if live.waiting is None or live.waiting.reason != "CreateContainerConfigError":
                self._event("Warning", "Failed", f"Error: {error}")
            live.waiting = Waiting("CreateContainerConfigError", str(error))
            return CONFIG_RETRY_SECONDS
        if state is not None:
            # Before the start: a crash in between counts one restart too many rather than one too few.
            value.setdefault("restarts", {})[key] = attempt
            value.setdefault("backoff", {})[key] = int((value.get("backoff") or {}).get(key, 0)) + 1
            value.setdefault("last", {})[key] = terminated(state)
            self.save()
        self._killing.pop(key, None)
        try:
            await supervisor.runtime.start_container(self.record.uid, config)
        except ImageError as error:
            return self._image_problem(key, live, str(container["image"]), error)
        except ValueError as error:
            live.waiting = Waiting("CreateContainerError", str(error))
            self._event("Warning", "Failed", f"Error: {error}")
            return supervisor.backoff_seconds
        live.waiting = None
        self._image_failures.pop(key, None)
        self._event("Normal", "Started", f"Started container {key}")
        await supervisor.refresh_pod()
        started = self._states().get(key)
        if started is not None and started.running:
            self._watch(container, started, init)
        else:
            self.wake.set()
        return float("inf")

    def _image_problem(self, key: str, live: Live, image: str, error: ImageError) -> float:
        """First the error itself, then its back-off form, as kubectl users know it."""
        failures = self._image_failures[key] = self._image_failures.get(key, 0) + 1
        wait = float(min(self._supervisor.backoff_seconds * 2 ** (failures - 1), BACKOFF_LIMIT_SECONDS))
        self._next_start[key] = self._supervisor.clock.now() + wait
        reason = error.reason if failures == 1 else _IMAGE_BACKOFF.get(error.reason, error.reason)
        live.waiting = Waiting(reason, error.message if failures == 1 else f'Back-off pulling image "{image}": {error.message}')
        self._event("Warning", "Failed", f'Failed to pull image "{image}": {error.message}')
        return wait

    def _watch(self, container: Mapping[str, Any], state: ContainerState, init: bool) -> None:
        """Probes a running container, once for each of its lives."""
        key = str(container["name"])
        if init:
            return
        known = self._probes.get(key)
        if known is not None and known[0] == state.id:
            return
        self._stop_probes(key)
        live = self._live[key]

        async def fail(why: str) -> None:
            self._killing[key] = why
            self._event("Normal", "Killing", why)
            await self._supervisor.runtime.stop_container(self.record.uid, key, self.grace)
            await self._supervisor.refresh_pod()
            self.wake.set()

        probes = Probes(
            self._supervisor.runtime,
            self._supervisor.clock,
            self.record.uid,
            container,
            live,
            self.wake.set,
            fail,
            lambda message: self._event("Warning", "Unhealthy", message),
        )
        if not any(container.get(p) for p in ("startupProbe", "readinessProbe", "livenessProbe")):
            live.ready = live.started = True
            self._probes[key] = (state.id, asyncio.create_task(_nothing()))
            return
        if container.get("readinessProbe") and self._ready_since is not None and not live.started:
            # Found again after the agent's own restart: what was ready stays so until a probe says otherwise.
            live.ready = live.started = True
        self._probes[key] = (state.id, asyncio.create_task(probes.run()))

    def _stop_probes(self, key: str) -> None:
        known = self._probes.pop(key, None)
        if known is not None and known[1] is not asyncio.current_task():
            known[1].cancel()

    async def _settle(self) -> None:
        """Whether the pod has ended: all containers have, and none is to be started again."""
        spec = self.record.pod["spec"]
        states = [self._states().get(c["name"]) for c in spec.get("containers") or ()]
        if any(s is None or s.running or self._restarts(s, False) for s in states):
            return
        failed = [s for s in states if s is not None and s.exit_code != 0]
        await self._finish("Failed" if failed else "Succeeded", "", "")

    async def _finish(self, phase: str, reason: str, message: str) -> None:
        value = self.record.value
        if reason:
            for key in self._states():
                await self._supervisor.runtime.stop_container(self.record.uid, key, self.grace)
            await self._supervisor.refresh_pod()
        value |= {"phase": phase, "reason": reason, "message": message, "finished": self._supervisor.clock.now()}
        self.save()
        self._supervisor.changed()

    # -- the end --------------------------------------------------------------------------------------------

    async def _end(self) -> float | None:
        """Stops everything within the grace period and removes what is left; ``None``: it is over."""
        runtime, value = self._supervisor.runtime, self.record.value
        for container in list(self._probes):
            self._stop_probes(container)
        for live in self._live.values():
            live.ready = False
        self._announce()
        running = [c for c in workload.containers(self.record.pod["spec"]) if self._running(str(c["name"]))]
        if running:
            elapsed = self._supervisor.clock.now() - float(value["deletingSince"])
            grace = max(0.0, float(value["deletingGrace"]) - elapsed)
            for each in running:
                self._event("Normal", "Killing", f"Stopping container {each['name']}")
            await asyncio.gather(*(self._stop_one(c, grace) for c in running))
        await runtime.stop_pod(self.record.uid)
        self._supervisor.volumes.remove(self.record.uid)
        self._supervisor.gone(self)
        return None

    def _running(self, key: str) -> bool:
        state = self._states().get(key)
        return state is not None and state.running

    async def _stop_one(self, container: Mapping[str, Any], grace: float) -> None:
        runtime, key = self._supervisor.runtime, str(container["name"])
        hook = ((container.get("lifecycle") or {}).get("preStop") or {}).get("exec")
        if hook and grace > 0:
            with suppress(OSError, LookupError, ValueError, TimeoutError):
                async with asyncio.timeout(grace):
                    process = await runtime.exec(self.record.uid, key, [str(c) for c in hook.get("command") or ()])
                    async for _ in process.output():
                        pass
                    await process.wait()
        await runtime.stop_container(self.record.uid, key, grace)

    def _event(self, kind: str, reason: str, message: str) -> None:
        self._supervisor.record_event(self.record.pod, kind, reason, message)


async def _nothing() -> None:
    return
