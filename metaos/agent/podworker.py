"""One pod's life at a site: sandbox, init containers, sidecars, containers, restarts with back-off, hooks, probes, its end.

One task a pod. It looks at what the runtime says, takes the next step, and waits for a change; killed at any line, the next
agent goes on from the record on disk and the runtime's word.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from metaos.agent.calls import Caller
from metaos.agent.containers import ConfigError, MountError, container_config, hostname
from metaos.agent.podend import stop_in_order, stop_one
from metaos.agent.podstatus import Live, PodFacts, Waiting, is_sidecar, phase_of, pod_status, terminated
from metaos.agent.probes import Probes, asked
from metaos.agent.workloads import PodView
from metaos.plugins.points import ContainerState, ImageError, PodConfig
from metaos.resources.meta import Obj, annotations, format_time, is_true, labels, name, namespace, uid

if TYPE_CHECKING:
    from metaos.agent.supervisor import Supervisor

log = logging.getLogger(__name__)

BACKOFF_LIMIT_SECONDS = 300.0
#: A container that ran so long begins with a fresh back-off when it ends.
STABLE_SECONDS = 600.0
CONFIG_RETRY_SECONDS = 2.0
SANDBOX_RETRY_SECONDS = 2.0
#: Of a container's log, where that is to say why it failed.
FALLBACK_LINES, FALLBACK_BYTES = 80, 2048
_IMAGE_BACKOFF = {"ErrImagePull": "ImagePullBackOff"}
_NEVER = float("inf")


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

    def of(self, part: str) -> dict[str, Any]:
        """A table by container: ``restarts``, ``backoff``, ``last``, ``began``, ``hooked``, ``images``."""
        found: dict[str, Any] = self.value.setdefault(part, {})
        return found


class PodWorker:
    """See the module. ``supervisor`` gives runtime, clock, volumes and the latest container states."""

    def __init__(self, supervisor: "Supervisor", record: PodRecord) -> None:
        self._supervisor, self.record = supervisor, record
        self.wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._live: dict[str, Live] = {}
        #: Per running container, for one of its lives: what hooks and probes it, by the container's id.
        self._watches: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._conditions: list[dict[str, Any]] = list(record.value.get("conditions") or ())
        self._next_start: dict[str, float] = {}
        self._image_failures: dict[str, int] = {}
        self._messages: dict[str, str] = {}
        self._ready_since: float | None = record.value.get("readySince")
        self._announced: tuple[Any, ...] = ()
        self._problem = ""

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
        self._supervisor.changed()

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
            self._live,
            value.get("restarts") or {},
            value.get("last") or {},
            str(value.get("podIP") or ""),
            float(value.get("started") or value.get("created") or 0.0),
            str(value.get("phase") or ""),
            str(value.get("reason") or ""),
            str(value.get("message") or self._problem),
            self._conditions,
            self._messages,
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
            for container in list(self._watches):
                self._unwatch(container)

    async def _until_woken(self, seconds: float, besides: "asyncio.Task[None] | None" = None) -> None:
        """Until something changes, the clock's seconds are over, or a task has ended."""
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(self.wake.wait())]
        if seconds != _NEVER:
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
            tuple((c, v.ready, v.started, v.waiting.reason if v.waiting else "") for c, v in sorted(self._live.items())),
        )
        if self._ready_since != before:
            self.record.value["readySince"] = self._ready_since
            self.record.value["conditions"] = self._conditions
            self._supervisor.store_later(self.record)
        if shown != self._announced:
            self._announced = shown
            self._supervisor.changed()

    async def _step(self) -> float | None:
        """One step of a pod that shall live; seconds until the next one at the latest."""
        value, spec = self.record.value, self.record.pod["spec"]
        if value.get("phase"):
            return _NEVER
        await self._read_messages()
        deadline, left = spec.get("activeDeadlineSeconds"), _NEVER
        if deadline is not None and value.get("started"):
            left = value["started"] + float(deadline) - self._supervisor.clock.now()
            if left <= 0:
                text = "Pod was active on the node longer than the specified deadline"
                return await self._finish("Failed", "DeadlineExceeded", text)
        if self.record.uid not in self._supervisor.states:
            await self._sandbox()
        try:
            self._supervisor.volumes.refresh(self.record.pod)
        except MountError as error:
            self._event("Warning", "FailedMount", str(error))
        waits = [left]
        if not await self._initialize(waits):
            return min(waits) if not value.get("phase") else _NEVER
        for container in spec.get("containers") or ():
            waits.append(await self._advance(container, init=False))
            if self._hook_pending(container):
                break  # The next container waits for it.
        await self._settle()
        return min(waits)

    async def _initialize(self, waits: list[float]) -> bool:
        """Init containers one after another; sidecars among them run on. Whether the main containers may start."""
        value, spec = self.record.value, self.record.pod["spec"]
        done = bool(value.get("initialized")) or any(c["name"] in self._states() for c in spec.get("containers") or ())
        for container in spec.get("initContainers") or ():
            key = str(container["name"])
            if is_sidecar(container):
                waits.append(await self._advance(container, init=True))
                if not done and not self._live[key].started:
                    return False
                continue
            state = self._states().get(key)
            if done or (state is not None and not state.running and state.exit_code == 0):
                continue
            if state is not None and not state.running and not self._restarts(container, state, init=True):
                await self._finish("Failed", "", "")
                return False
            waits.append(await self._advance(container, init=True))
            return False
        if spec.get("initContainers") and not value.get("initialized"):
            value["initialized"] = True
            self.save()
        return True

    async def _sandbox(self) -> None:
        """Namespaces and network, also after the machine itself was restarted: then containers begin anew."""
        value, pod = self.record.value, self.record.pod
        where = namespace(pod)
        address = self._supervisor.address(where, name(pod))
        if value.get("podIP") != address or "started" not in value:
            value["podIP"] = address
            pod["status"] = {"podIP": address}
            value.setdefault("started", self._supervisor.clock.now())
            self._supervisor.store_later(self.record)
        config = PodConfig(self.record.uid, where, name(pod), hostname(pod), labels=labels(pod), address=address)
        await self._supervisor.runtime.start_pod(config)
        await self._supervisor.refresh_pod()
        self._problem = ""

    # -- one container --------------------------------------------------------------------------------------

    async def _advance(self, container: Mapping[str, Any], *, init: bool) -> float:
        """Starts a container, or starts it again, if it should run; seconds until the next look."""
        key = str(container["name"])
        live = self._live.setdefault(key, Live())
        state = self._states().get(key)
        if state is not None and state.running:
            live.waiting = None
            started = self.record.of("images").get(key)
            if started is not None and started != container["image"]:
                self._event("Normal", "Killing", f"Container {key} definition changed, will be restarted")
                self._unwatch(key)
                await self._stop(container, self.grace)
                return 0.0
            self._watch(container, state, init)
            return _NEVER
        self._unwatch(key)
        live.ready = live.started = False
        now = self._supervisor.clock.now()
        if state is not None:
            if not self._restarts(container, state, init=init):
                live.waiting = None
                return _NEVER
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

    def _restarts(self, container: Mapping[str, Any], state: ContainerState, *, init: bool) -> bool:
        """Whether a container that has ended is started again: by its own policy, otherwise by the pod's."""
        policy = container.get("restartPolicy") or self.record.pod["spec"].get("restartPolicy") or "Always"
        if init and is_sidecar(container):
            return True
        if state.exit_code == 0:
            return policy == "Always" and not init
        return policy != "Never"

    def _restart_wait(self, key: str, state: ContainerState, now: float) -> float:
        """The back-off of this restart that is still to be waited: none for the first, then doubling."""
        backoff = self.record.of("backoff")
        finished = state.finish_time or now
        if finished - state.start_time >= STABLE_SECONDS:
            backoff[key] = 0
        count = int(backoff.get(key, 0))
        if count == 0:
            return 0.0
        delay = float(min(self._supervisor.backoff_seconds * 2 ** min(count - 1, 16), BACKOFF_LIMIT_SECONDS))
        # A clock that was set back does not prolong it.
        return max(0.0, min(delay, finished + delay - now))

    async def _start(self, container: Mapping[str, Any], live: Live, state: ContainerState | None, init: bool) -> float:
        key = str(container["name"])
        supervisor, record = self._supervisor, self.record
        attempt = int(record.of("restarts").get(key, 0)) + (1 if state is not None else 0)
        said = self._messages.get(state.id, "") if state is not None else ""
        try:
            config = container_config(record.pod, container, supervisor.find, supervisor.volumes, attempt)
        except ConfigError as error:
            mount = isinstance(error, MountError)
            reason = "ContainerCreating" if mount else "CreateContainerConfigError"
            if live.waiting is None or live.waiting.message != str(error):
                self._event("Warning", "FailedMount" if mount else "Failed", str(error) if mount else f"Error: {error}")
            live.waiting = Waiting(reason, str(error))
            return CONFIG_RETRY_SECONDS
        record.of("images")[key] = container["image"]
        if state is not None:
            # Before the start: a crash in between counts one restart too many rather than one too few.
            record.of("restarts")[key] = attempt
            record.of("backoff")[key] = int(record.of("backoff").get(key, 0)) + 1
            record.of("last")[key] = terminated(state, said)
            self.save()
        else:
            supervisor.store_later(record)
        try:
            await supervisor.runtime.start_container(record.uid, config)
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
        return _NEVER

    def _image_problem(self, key: str, live: Live, image: str, error: ImageError) -> float:
        """First the error itself, then its back-off form, as kubectl users know it."""
        failures = self._image_failures[key] = self._image_failures.get(key, 0) + 1
        wait = float(min(self._supervisor.backoff_seconds * 2 ** min(failures - 1, 16), BACKOFF_LIMIT_SECONDS))
        self._next_start[key] = self._supervisor.clock.now() + wait
        reason = error.reason if failures == 1 else _IMAGE_BACKOFF.get(error.reason, error.reason)
        live.waiting = Waiting(reason, error.message if failures == 1 else f'Back-off pulling image "{image}": {error.message}')
        self._event("Warning", "Failed", f'Failed to pull image "{image}": {error.message}')
        return wait

    # -- hooks and probes of a running container ------------------------------------------------------------

    def _hook_pending(self, container: Mapping[str, Any]) -> bool:
        """Whether a container runs, but its postStart hook has not come to its end."""
        state = self._states().get(str(container["name"]))
        hook = (container.get("lifecycle") or {}).get("postStart")
        return bool(hook) and state is not None and state.running and self.record.of("hooked").get(state.name) != state.id

    def _caller(self, container: Mapping[str, Any]) -> Caller:
        return Caller(self._supervisor.runtime, self._supervisor.clock, self.record.uid, container)

    def _watch(self, container: Mapping[str, Any], state: ContainerState, init: bool) -> None:
        """Hooks and probes a running container, once for each of its lives."""
        key = str(container["name"])
        known = self._watches.get(key)
        if known is not None and known[0] == state.id:
            return
        self._unwatch(key)
        if init and not is_sidecar(container):
            return
        live = self._live[key]
        if not self._hook_pending(container):
            if not any(asked(container, p) for p in ("startupProbe", "readinessProbe", "livenessProbe")):
                live.ready = live.started = True
                self._watches[key] = (state.id, asyncio.create_task(_nothing()))
                return
            if self.record.of("began").get(key) == state.id:
                # Found again after the agent's own restart: what was ready stays so until a probe says otherwise.
                live.started = True
                live.ready = self._ready_since is not None
        self._watches[key] = (state.id, asyncio.create_task(self._attend(container, state, live)))

    async def _attend(self, container: Mapping[str, Any], state: ContainerState, live: Live) -> None:
        key, caller = state.name, self._caller(container)
        if self._hook_pending(container):
            problem = await caller.hook(container["lifecycle"]["postStart"])
            if problem is not None:
                self._event("Warning", "FailedPostStartHook", f"PostStartHook failed: {problem}")
                self._event("Normal", "Killing", f"FailedPostStartHook: container {key} will be restarted")
                await self._stop(container, self.grace)
                return
            self.record.of("hooked")[key] = state.id
            self.save()
            self.wake.set()

        async def fail(why: str, probe: Mapping[str, Any]) -> None:
            self._event("Normal", "Killing", why)
            grace = probe.get("terminationGracePeriodSeconds")
            await self._stop(container, self.grace if grace is None else float(grace))

        def changed() -> None:
            if live.started and self.record.of("began").get(key) != state.id:
                self.record.of("began")[key] = state.id
                self._supervisor.store_later(self.record)
            self.wake.set()

        unhealthy: Callable[[str], None] = lambda message: self._event("Warning", "Unhealthy", message)  # noqa: E731
        await Probes(caller, self._supervisor.clock, container, live, changed, fail, unhealthy).run()

    async def _stop(self, container: Mapping[str, Any], grace: float) -> None:
        """Ends one container of a pod that lives on."""
        problem = await stop_one(self._supervisor.runtime, self._caller(container), self.record.uid, container, grace)
        if problem:
            self._event("Warning", "FailedPreStopHook", f"PreStopHook failed: {problem}")
        await self._supervisor.refresh_pod()
        self.wake.set()

    def _unwatch(self, key: str) -> None:
        known = self._watches.pop(key, None)
        if known is not None and known[1] is not asyncio.current_task():
            known[1].cancel()

    async def _read_messages(self) -> None:
        """What ended containers have said, each once."""
        ended = {s.id: s for s in self._states().values() if not s.running}
        self._messages = {k: v for k, v in self._messages.items() if k in ended}
        spec = self.record.pod["spec"]
        for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
            state = self._states().get(str(container["name"]))
            if state is None or state.running or state.id in self._messages:
                continue
            said = self._supervisor.volumes.message(self.record.uid, state.name)
            if not said and state.exit_code and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
                lines = [b async for b in self._supervisor.runtime.logs(self.record.uid, state.name, tail=FALLBACK_LINES)]
                said = b"".join(lines)[-FALLBACK_BYTES:].decode(errors="replace")
            self._messages[state.id] = said

    # -- the end --------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Whether the pod has ended: all containers have, and none is to be started again. Sidecars do not count."""
        containers = self.record.pod["spec"].get("containers") or ()
        states = [(c, self._states().get(c["name"])) for c in containers]
        if any(s is None or s.running or self._restarts(c, s, init=False) for c, s in states):
            return
        failed = any(s is not None and s.exit_code != 0 for _, s in states)
        await self._finish("Failed" if failed else "Succeeded", "", "")

    async def _finish(self, phase: str, reason: str, message: str) -> float:
        """Ends what still runs of it; then it is over, but stays to be seen."""
        began = self._supervisor.clock.now()
        await self._stop_all(lambda: began + self.grace)
        if self.record.deleting:
            return 0.0
        await self._read_messages()
        value = self.record.value
        value |= {"phase": phase, "reason": reason, "message": message, "finished": self._supervisor.clock.now()}
        self.save()
        self._supervisor.changed()
        return _NEVER

    async def _end(self) -> float | None:
        """Stops everything within the grace period and removes what is left; ``None``: it is over."""
        value = self.record.value
        for container in list(self._watches):
            self._unwatch(container)
        for live in self._live.values():
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
            self._unwatch(key)
            self._event("Normal", "Killing", f"Stopping container {key}")
        clock = self._supervisor.clock
        while True:
            deadline = until()
            left = max(0.0, min(deadline - clock.now(), max(self.grace, float(self.record.value.get("deletingGrace") or 0.0))))
            work: Coroutine[Any, Any, None] = stop_in_order(
                self._supervisor.runtime,
                clock,
                self.record.uid,
                spec,
                running,
                left,
                self._caller,
                lambda problem: self._event("Warning", "FailedPreStopHook", f"PreStopHook failed: {problem}"),
            )
            task = asyncio.create_task(work)
            try:
                while not task.done() and not until() < deadline:
                    self.wake.clear()
                    await self._until_woken(_NEVER, task)
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled():
                task.result()
                break
        await self._supervisor.refresh_pod()
        self.wake.set()

    def _event(self, kind: str, reason: str, message: str) -> None:
        self._supervisor.record_event(self.record.pod, kind, reason, message)


async def _nothing() -> None:
    return
