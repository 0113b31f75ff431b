"""The containers of one pod: starts, restarts with back-off, hooks, probes, and what they say at their end."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from metaos.agent.calls import Caller
from metaos.agent.containers import ConfigError, MountError, Pending, container_config
from metaos.agent.podend import stop_one
from metaos.agent.podimages import PodImages
from metaos.agent.podrecord import PodRecord
from metaos.agent.podstatus import Live, Waiting, is_sidecar, terminated
from metaos.agent.probes import Probes, asked
from metaos.plugins.points import ContainerState, ImageError
from metaos.resources.meta import name, namespace

if TYPE_CHECKING:
    from metaos.agent.supervisor import Supervisor

BACKOFF_LIMIT_SECONDS = 300.0
#: A container that ran so long begins with a fresh back-off when it ends.
STABLE_SECONDS = 600.0
CONFIG_RETRY_SECONDS = 2.0
#: Of a container's log, where that is to say why it failed.
FALLBACK_LINES, FALLBACK_BYTES = 80, 2048
NEVER = float("inf")


class PodContainers:
    """``wake`` is called when the pod's next step is due; ``was_ready`` says whether the pod is known to have been ready."""

    def __init__(
        self, supervisor: "Supervisor", record: PodRecord, wake: Callable[[], None], was_ready: Callable[[], bool]
    ) -> None:
        self._supervisor, self._record, self._wake, self._was_ready = supervisor, record, wake, was_ready
        self.live: dict[str, Live] = {}
        #: What ended containers have said, by their ids.
        self.messages: dict[str, str] = {}
        #: Per running container, for one of its lives: what hooks and probes it, by the container's id.
        self._watches: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self.images = PodImages(supervisor, record, wake, self.event, self._delay)

    @property
    def states(self) -> Mapping[str, ContainerState]:
        return self._supervisor.states.get(self._record.uid, {})

    def caller(self, container: Mapping[str, Any]) -> Caller:
        return Caller(self._supervisor.runtime, self._supervisor.clock, self._record.uid, container)

    def event(self, kind: str, reason: str, message: str) -> None:
        self._supervisor.record_event(self._record.pod, kind, reason, message)

    # -- starting -------------------------------------------------------------------------------------------

    async def advance(self, container: Mapping[str, Any], *, init: bool) -> float:
        """Starts a container, or starts it again, if it should run; seconds until the next look."""
        key = str(container["name"])
        live = self.live.setdefault(key, Live())
        state = self.states.get(key)
        if state is not None and state.running:
            live.waiting = None
            started = self._record.of("images").get(key)
            if started is not None and started != container["image"]:
                self.event("Normal", "Killing", f"Container {key} definition changed, will be restarted")
                self.unwatch(key)
                await self._stop(container, self._record.grace)
                return 0.0
            self._watch(container, state, init)
            return NEVER
        self.unwatch(key)
        live.ready = live.started = False
        if state is not None:
            if not self.restarts(container, state, init=init):
                live.waiting = None
                return NEVER
            wait = self._restart_wait(key, state, self._supervisor.clock.now())
            if wait > 0:
                self._show_back_off(key, live, wait)
                return wait
        return await self._start(container, live, state, init)

    def restarts(self, container: Mapping[str, Any], state: ContainerState, *, init: bool) -> bool:
        """Whether a container that has ended is started again: by its own policy, otherwise by the pod's."""
        policy = container.get("restartPolicy") or self._record.pod["spec"].get("restartPolicy") or "Always"
        if init and is_sidecar(container):
            return True
        for rule in container.get("restartPolicyRules") or ():
            found = rule.get("exitCodes") or {}
            if (state.exit_code in (found.get("values") or ())) is (found.get("operator") == "In"):
                return True  # the only action that there is
        if state.exit_code == 0:
            return policy == "Always" and not init
        return policy != "Never"

    def _restart_wait(self, key: str, state: ContainerState, now: float) -> float:
        """The back-off of this restart that is still to be waited: none for the first, then doubling."""
        backoff = self._record.of("backoff")
        finished = state.finish_time or now
        if finished - state.start_time >= STABLE_SECONDS:
            backoff[key] = 0
        count = int(backoff.get(key, 0))
        if count == 0:
            return 0.0
        delay = self._delay(count)
        # A clock that was set back does not prolong it.
        return max(0.0, min(delay, finished + delay - now))

    def _delay(self, count: int) -> float:
        return float(min(self._supervisor.backoff_seconds * 2 ** min(count - 1, 16), BACKOFF_LIMIT_SECONDS))

    def _show_back_off(self, key: str, live: Live, wait: float) -> None:
        pod = self._record.pod
        if live.waiting is None or live.waiting.reason != "CrashLoopBackOff":
            self.event("Warning", "BackOff", f"Back-off restarting failed container {key}")
        text = f"back-off {wait:.0f}s restarting failed container={key} pod={name(pod)}_{namespace(pod)}"
        live.waiting = Waiting("CrashLoopBackOff", text)

    async def _start(self, container: Mapping[str, Any], live: Live, state: ContainerState | None, init: bool) -> float:
        key = str(container["name"])
        supervisor, record = self._supervisor, self._record
        attempt = int(record.of("restarts").get(key, 0)) + (1 if state is not None else 0)
        said = self.messages.get(state.id, "") if state is not None else ""
        try:
            config = container_config(record.pod, container, supervisor.find, supervisor.volumes, attempt)
        except ConfigError as error:
            return self._config_problem(live, error)
        if (wait := await self.images.ready(container, live)) is not None:
            return wait
        record.of("images")[key] = container["image"]
        if state is not None:
            # Before the start: a crash in between counts one restart too many rather than one too few.
            record.of("restarts")[key] = attempt
            record.of("backoff")[key] = int(record.of("backoff").get(key, 0)) + 1
            record.of("last")[key] = terminated(state, said)
            supervisor.store(record)
        else:
            supervisor.store_later(record)
        try:
            started = await supervisor.runtime.start_container(record.uid, config)
        except ImageError as error:
            return self.images.failed(container, live, error)
        except ValueError as error:
            live.waiting = Waiting("CreateContainerError", str(error))
            self.event("Warning", "Failed", f"Error: {error}")
            return supervisor.backoff_seconds
        live.waiting = None
        self.images.started(key)
        self.event("Normal", "Started", f"Started container {key}")
        supervisor.began(record.uid, started)
        if started.running:
            self._watch(container, started, init)
        else:
            self._wake()
        return NEVER

    def _config_problem(self, live: Live, error: ConfigError) -> float:
        if isinstance(error, Pending):
            live.waiting = Waiting("ContainerCreating", str(error))
            return CONFIG_RETRY_SECONDS
        mount = isinstance(error, MountError)
        if live.waiting is None or live.waiting.message != str(error):
            self.event("Warning", "FailedMount" if mount else "Failed", str(error) if mount else f"Error: {error}")
        live.waiting = Waiting("ContainerCreating" if mount else "CreateContainerConfigError", str(error))
        return CONFIG_RETRY_SECONDS

    # -- hooks and probes of a running container ------------------------------------------------------------

    def hook_pending(self, container: Mapping[str, Any]) -> bool:
        """Whether a container runs, but its postStart hook has not come to its end."""
        state = self.states.get(str(container["name"]))
        hook = (container.get("lifecycle") or {}).get("postStart")
        return bool(hook) and state is not None and state.running and self._record.of("hooked").get(state.name) != state.id

    def _watch(self, container: Mapping[str, Any], state: ContainerState, init: bool) -> None:
        """Hooks and probes a running container, once for each of its lives."""
        key = str(container["name"])
        known = self._watches.get(key)
        if known is not None and known[0] == state.id:
            return
        self.unwatch(key)
        if init and not is_sidecar(container):
            return
        live = self.live[key]
        if not self.hook_pending(container):
            if not any(asked(container, p) for p in ("startupProbe", "readinessProbe", "livenessProbe")):
                live.ready = live.started = True
                self._watches[key] = (state.id, asyncio.create_task(_nothing()))
                return
            if self._record.of("began").get(key) == state.id:
                # Found again after the agent's own restart: what was ready stays so until a probe says otherwise.
                live.started, live.ready = True, self._was_ready()
        self._watches[key] = (state.id, asyncio.create_task(self._attend(container, state, live)))

    async def _attend(self, container: Mapping[str, Any], state: ContainerState, live: Live) -> None:
        key, caller = state.name, self.caller(container)
        if self.hook_pending(container):
            problem = await caller.hook(container["lifecycle"]["postStart"])
            if problem is not None:
                self.event("Warning", "FailedPostStartHook", f"PostStartHook failed: {problem}")
                self.event("Normal", "Killing", f"FailedPostStartHook: container {key} will be restarted")
                await self._stop(container, self._record.grace)
                return
            self._record.of("hooked")[key] = state.id
            self._supervisor.store(self._record)
            self._wake()

        async def fail(why: str, probe: Mapping[str, Any]) -> None:
            self.event("Normal", "Killing", why)
            grace = probe.get("terminationGracePeriodSeconds")
            await self._stop(container, self._record.grace if grace is None else float(grace))

        def changed() -> None:
            if live.started and self._record.of("began").get(key) != state.id:
                self._record.of("began")[key] = state.id
                self._supervisor.store_later(self._record)
            self._wake()

        def unhealthy(message: str) -> None:
            self.event("Warning", "Unhealthy", message)

        await Probes(caller, self._supervisor.clock, container, live, changed, fail, unhealthy).run()

    async def _stop(self, container: Mapping[str, Any], grace: float) -> None:
        """Ends one container of a pod that lives on."""
        runtime, clock = self._supervisor.runtime, self._supervisor.clock
        problem = await stop_one(runtime, clock, self.caller(container), self._record.uid, container, grace)
        if problem:
            self.hook_failed(problem)
        await self._supervisor.refresh_pod()
        self._wake()

    def hook_failed(self, problem: str) -> None:
        self.event("Warning", "FailedPreStopHook", f"PreStopHook failed: {problem}")

    def unwatch(self, key: str) -> None:
        known = self._watches.pop(key, None)
        if known is not None and known[1] is not asyncio.current_task():
            known[1].cancel()

    def unwatch_all(self) -> None:
        self.images.cancel()
        for key in list(self._watches):
            self.unwatch(key)

    # -- last words -----------------------------------------------------------------------------------------

    async def read_messages(self) -> None:
        """What ended containers have said, each once."""
        ended = {s.id for s in self.states.values() if not s.running}
        self.messages = {k: v for k, v in self.messages.items() if k in ended}
        spec = self._record.pod["spec"]
        for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
            state = self.states.get(str(container["name"]))
            if state is None or state.running or state.id in self.messages:
                continue
            said = self._supervisor.volumes.message(self._record.uid, state.name)
            if not said and state.exit_code and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
                lines = [b async for b in self._supervisor.runtime.logs(self._record.uid, state.name, tail=FALLBACK_LINES)]
                said = b"".join(lines)[-FALLBACK_BYTES:].decode(errors="replace")
            self.messages[state.id] = said


async def _nothing() -> None:
    return
