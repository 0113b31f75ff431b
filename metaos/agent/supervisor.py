"""The site's own head: from desired workloads to running pods, and back to their status. It needs no hub.

Level-triggered: whenever what is wanted, a container or the clock changes something, every workload is planned anew
(:mod:`metaos.agent.planning`) and every pod takes its next step (:class:`PodWorker`). Pods outlive this process: their
records are on disk, their containers are found again through the runtime.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent.accounts import PodTokens, with_token
from metaos.agent.backups import Backups
from metaos.agent.cache import Cache
from metaos.agent.planning import LOOK_SECONDS, WORKLOADS, Planning, Record
from metaos.agent.podrecord import PodRecord
from metaos.agent.podworker import PodWorker
from metaos.agent.storage import Storage
from metaos.agent.template import make_pod
from metaos.agent.volumes import Volumes
from metaos.clock import Clock
from metaos.plugins.points import ContainerState, Exec, Runtime
from metaos.resources import workload
from metaos.resources.errors import ApiError, bad_request, not_found
from metaos.resources.meta import EVICTION, Obj, ObjectRef, name, namespace, ref, uid
from metaos.resources.scheme import BACKUP_SCHEDULE

log = logging.getLogger(__name__)

SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
#: So many pods are brought up at once, in the order in which they were made; more would only make all of them wait.
STARTS = 4
#: After which :meth:`Supervisor.store_later` has stored. While many pods start, that is one write for many of them.
LATER_SECONDS = 0.2


class Supervisor:
    """``address(namespace, pod)`` is a pod's own address at this site; ``record(pod, type, reason, message)`` takes events."""

    def __init__(
        self,
        runtime: Runtime,
        cache: Cache,
        clock: Clock,
        random: Random,
        *,
        site: str,
        directory: Path,
        address: Callable[[str, str], str],
        record: Record,
        host_paths: Sequence[str] = (),
        backoff_seconds: float = 10.0,
        machine: Mapping[str, str] | None = None,
        make_storage: Callable[..., Storage] = Storage,
        tokens: PodTokens | None = None,
    ) -> None:
        self.runtime, self.clock = runtime, clock
        self.site, self.address, self.record_event = site, address, record
        self.backoff_seconds = backoff_seconds
        self._cache, self._random = cache, random
        self._desired: dict[ObjectRef, Obj] = {}
        self._known = False
        self._directory, self._make_storage = directory, make_storage
        self.volumes = Volumes(directory, tuple(host_paths), self.find, machine)
        self.volumes.tokens = tokens
        if tokens is not None:
            tokens.on_change(self._wake_pod)
        self.backups = Backups(
            runtime,
            cache,
            clock,
            site=site,
            find=self.find,
            pods=self.pods,
            directory=self.volumes.claim_directory,
            state=directory / "backups",
            record=record,
            changed=self.changed,
        )
        self.volumes.held = self.backups.held
        self.states: dict[str, dict[str, ContainerState]] = {}
        self._workers: dict[str, PodWorker] = {}
        self._listeners: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        #: Owners whose pods have changed since the last look; ``None``: all are to be looked at.
        self._due: set[tuple[str, str, str] | None] = {None}
        for _, value in cache.items("pods"):
            record_ = PodRecord(value)
            self._workers[record_.uid] = PodWorker(self, record_)
        self._later: dict[str, PodRecord] = {}
        #: When (monotonic) these are written.
        self._later_at = float("inf")
        self.starts = asyncio.Semaphore(STARTS)
        self._planning = Planning(cache, self._workers, self._create, self.new_uid, self.changed, record)

    # -- what is wanted -------------------------------------------------------------------------------------

    def set_desired(self, objects: list[Obj]) -> None:
        """Everything that this site shall have; what is not in it goes."""
        self._desired = {ref(o): o for o in objects}
        self._planning.forget_others(self._desired)
        self.backups.set_desired(self._desired)
        self._known = True
        self._due.add(None)
        for worker in self._workers.values():
            worker.wake.set()
        self._wake.set()

    def _wake_pod(self, pod_uid: str) -> None:
        if (worker := self._workers.get(pod_uid)) is not None:
            worker.wake.set()

    def find(self, about: ObjectRef) -> Obj | None:
        """A desired object, or a claim that a StatefulSet's template makes."""
        return self._desired.get(about)

    def changed(self, pod: PodRecord | None = None) -> None:
        """Something is different, of this pod or of anything: plan its workload anew, or all, and tell."""
        self._due.add(None if pod is None else pod.owner_key)
        self._wake.set()
        for listener in self._listeners:
            listener()

    def on_change(self, callback: Callable[[], None]) -> None:
        self._listeners.append(callback)

    # -- the loop -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Never returns. Cancelled, it leaves all pods running."""
        await self._refresh()
        storage = self._make_storage(self.runtime, self.clock, self._directory, self._occupying, self._images, self._evict)
        beside = [asyncio.create_task(part) for part in (self._watch_runtime(), storage.run(), self.backups.run())]
        try:
            for worker in self._workers.values():
                worker.start()
            until = self.clock.monotonic()
            while True:
                self._wake.clear()
                if self.clock.monotonic() >= until:
                    self._due.add(None)
                    until = self.clock.monotonic() + LOOK_SECONDS
                due, self._due = self._due, set()
                # All of a look's writes at once: nothing that they are about begins before they are durable.
                with self._cache.together():
                    if self.clock.monotonic() >= self._later_at:
                        self._store_later()
                    if self._known and due:
                        only = None if None in due else {each for each in due if each is not None}
                        again = self._planning.plan(self._desired, self.clock.now(), only)
                        until = min(until, self.clock.monotonic() + again)
                with suppress(TimeoutError):
                    await self._wait(self._wake, max(0.0, min(until, self._later_at) - self.clock.monotonic()))
        finally:
            for task in beside:
                task.cancel()
            for worker in self._workers.values():
                worker.cancel()
            await asyncio.gather(*beside, *(w.ended() for w in self._workers.values()), return_exceptions=True)
            self._store_later()

    def _occupying(self) -> list[Obj]:
        return [w.record.pod for w in self._workers.values() if not w.record.value.get("phase") and not w.record.deleting]

    def _images(self) -> set[str]:
        wanted = [workload.pod_spec(obj) for about, obj in self._desired.items() if about.kind in WORKLOADS]
        specs = [*wanted, *(worker.record.pod["spec"] for worker in self._workers.values())]
        return {str(container["image"]) for spec in specs for container in workload.containers(spec)}

    def _evict(self, pod_uid: str, message: str) -> None:
        worker = self._workers.get(pod_uid)
        if worker is not None:
            worker.evict(message)

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        """Until the event, or the clock's seconds are over."""
        tasks = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self.clock.sleep(seconds))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_runtime(self) -> None:
        while True:
            waiting = asyncio.Event()

            async def changed(event: asyncio.Event = waiting) -> None:
                await self.runtime.wait()
                event.set()

            task = asyncio.create_task(changed())
            try:
                await self._wait(waiting, LOOK_SECONDS)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            try:
                await self._refresh()
            except OSError:
                log.exception("the runtime cannot be asked; it is asked again in %g s", LOOK_SECONDS)

    async def _refresh(self) -> None:
        """Reads the runtime and wakes the pods whose containers are different."""
        before = self.states
        self.states = {pod: {s.name: s for s in found} for pod, found in (await self.runtime.pods()).items()}
        for pod_uid, worker in self._workers.items():
            if self.states.get(pod_uid) != before.get(pod_uid):
                worker.wake.set()
        # Sandboxes that nobody knows are what a crash between two writes left.
        for stray in sorted(self.states.keys() - self._workers.keys()):
            await self.runtime.stop_pod(stray)

    async def refresh_pod(self) -> None:
        await self._refresh()

    def began(self, pod_uid: str, state: ContainerState | None = None) -> None:
        """A pod has a sandbox, or a container was started, as the runtime has just said: all need not be read again."""
        found = self.states.setdefault(pod_uid, {})
        if state is not None:
            found[state.name] = state

    # -- making pods ----------------------------------------------------------------------------------------

    def new_uid(self) -> str:
        digits = f"{self._random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def _create(self, obj: Obj, revision: str, ordinal: int, now: float) -> None:
        about = ref(obj)
        template = self._planning.notes.template(obj, revision)
        suffix = "".join(self._random.choice(SUFFIX) for _ in range(5))
        pod = make_pod(obj, template, revision, ordinal, site=self.site, uid_=self.new_uid(), suffix=suffix, now=now)
        if self.volumes.tokens is not None:
            pod = with_token(pod, self.find)
        record = PodRecord(
            {
                "pod": pod,
                "owner": list((about.kind, about.namespace, about.name)),
                "ownerUid": uid(obj),
                "hash": revision,
                "created": now,
                "ordinal": ordinal,
            }
        )
        worker = PodWorker(self, record)
        self._workers[record.uid] = worker
        worker.save()
        worker.start()
        for listener in self._listeners:
            listener()

    # -- pods -----------------------------------------------------------------------------------------------

    def store(self, record: PodRecord) -> None:
        """Durable on return."""
        self._later.pop(record.uid, None)
        self._cache.put("pods", record.uid, record.value)

    def store_later(self, record: PodRecord) -> None:
        """Durable soon. For what would only be found out again, were it lost."""
        if not self._later:
            self._later_at = self.clock.monotonic() + LATER_SECONDS
            self._wake.set()
        self._later[record.uid] = record

    def _store_later(self) -> None:
        self._later_at = float("inf")
        for record in list(self._later.values()):
            self.store(record)

    def gone(self, worker: PodWorker) -> None:
        """A pod has ended for good, and nothing of it is left but what its workload has to remember."""
        kind, where, owner = worker.record.owner_key
        self._later.pop(worker.record.uid, None)
        about = ObjectRef("batch" if kind == "Job" else "", kind, where, owner)
        with self._cache.together():
            self._cache.delete("pods", worker.record.uid)
            self._planning.pod_gone(worker, about, self._desired.get(about))
        self._workers.pop(worker.record.uid, None)
        self.changed()

    def pods(self) -> list[Obj]:
        """All pods with their status."""
        return [w.pod() for w in self._workers.values()]

    def status_of(self, about: ObjectRef) -> Obj | None:
        if about.kind == "Pod":
            worker = next((w for w in self._workers.values() if w.record.owner_key == ("Pod", about.namespace, about.name)), None)
            return None if worker is None else worker.pod()["status"]
        if about.kind == BACKUP_SCHEDULE.kind:
            return self.backups.status_of(about)
        return self._planning.statuses.get(about)

    def _worker(self, where: str, pod: str) -> PodWorker:
        found = [w for w in self._workers.values() if name(w.record.pod) == pod and namespace(w.record.pod) == where]
        if not found:
            raise not_found("", "pods", pod)
        return min(found, key=lambda w: w.record.deleting)

    async def delete_pod(self, where: str, pod: str, grace_seconds: float | None = None, evicted: bool = False) -> None:
        """Ends one pod; returns when nothing of it is left. One that is gone already is no error. ``evicted``: for its Job's
        failure policy."""
        try:
            worker = self._worker(where, pod)
        except ApiError:
            return
        if evicted:
            worker.disrupted(*EVICTION)
        worker.delete(worker.grace if grace_seconds is None else grace_seconds)
        await worker.ended()

    def _container(self, where: str, pod: str, container: str, *, running: bool) -> tuple[str, str]:
        """(pod uid, container) for logs and commands. Raises ``ApiError`` as a kubelet words it."""
        worker = self._worker(where, pod)
        known = [c["name"] for c in workload.containers(worker.record.pod["spec"])]
        container = container or str(worker.record.pod["spec"]["containers"][0]["name"])
        if container not in known:
            raise bad_request(f"container {container} is not valid for pod {pod}")
        state = self.states.get(worker.record.uid, {}).get(container)
        if state is None:
            shown = worker.pod()["status"]
            rows = [*shown["containerStatuses"], *shown.get("initContainerStatuses", ())]
            reason = next(((r["state"].get("waiting") or {}).get("reason") for r in rows if r["name"] == container), None)
            raise bad_request(f'container "{container}" in pod "{pod}" is waiting to start: {reason or "ContainerCreating"}')
        if running and not state.running:
            raise bad_request(f"container {container} of pod {pod} is not running")
        return worker.record.uid, container

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
        newest_seconds: float | None = None,
    ) -> AsyncIterator[bytes]:
        pod_uid, found = self._container(namespace, pod, container, running=False)
        if previous and not (self._worker(namespace, pod).record.value.get("restarts") or {}).get(found):
            raise bad_request(f'previous terminated container "{found}" in pod "{pod}" not found')
        since = None if newest_seconds is None else self.clock.now() - newest_seconds
        return self.runtime.logs(pod_uid, found, follow=follow, tail=tail, previous=previous, since=since)

    async def exec(
        self, namespace: str, pod: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False
    ) -> Exec:
        pod_uid, found = self._container(namespace, pod, container, running=True)
        return await self.runtime.exec(pod_uid, found, command, stdin=stdin, tty=tty)

    async def attach(self, namespace: str, pod: str, container: str) -> Exec:
        pod_uid, found = self._container(namespace, pod, container, running=True)
        return await self.runtime.attach(pod_uid, found)

    async def connect(self, namespace: str, pod: str, port: int) -> Any:
        return await self.runtime.connect(self._worker(namespace, pod).record.uid, port)
