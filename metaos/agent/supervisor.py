"""The site's own head: from desired workloads to running pods, and back to their status. It needs no hub.

Level-triggered: whenever what is wanted, a container or the clock changes something, every workload is planned anew
(:mod:`metaos.agent.workloads`) and every pod takes its next step (:class:`PodWorker`). Pods outlive this process: their
records are on disk, their containers are found again through the runtime.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent.cache import Cache
from metaos.agent.cron import due_jobs, shown
from metaos.agent.jobs import finished, job, job_status
from metaos.agent.notes import Notes, key_of
from metaos.agent.podrecord import PodRecord
from metaos.agent.podworker import PodWorker
from metaos.agent.stateful import stateful, stateful_status
from metaos.agent.storage import Storage
from metaos.agent.template import CRON_NAME, CRON_UID, make_pod
from metaos.agent.volumes import Volumes
from metaos.agent.workloads import (
    Actions,
    PodView,
    Revisions,
    daemon,
    daemon_status,
    deployment,
    deployment_status,
)
from metaos.clock import Clock
from metaos.plugins.points import ContainerState, Exec, Runtime
from metaos.resources import workload
from metaos.resources.errors import ApiError, bad_request, not_found
from metaos.resources.meta import Obj, ObjectRef, annotations, name, namespace, parse_time, ref, uid

log = logging.getLogger(__name__)

SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
#: A full look at least this often, besides changes: also keeps container logs within their bound.
LOOK_SECONDS = 10.0
#: So many pods are brought up at once, in the order in which they were made; more would only make all of them wait.
STARTS = 4
_WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod"}
Record = Callable[[Obj, str, str, str], None]


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
    ) -> None:
        self.runtime, self.clock = runtime, clock
        self.site, self.address, self.record_event = site, address, record
        self.backoff_seconds = backoff_seconds
        self._cache, self._random = cache, random
        self._desired: dict[ObjectRef, Obj] = {}
        self._known = False
        self._directory, self._make_storage = directory, make_storage
        self.volumes = Volumes(directory, tuple(host_paths), self.find, machine)
        self.states: dict[str, dict[str, ContainerState]] = {}
        self._workers: dict[str, PodWorker] = {}
        self._statuses: dict[ObjectRef, dict[str, Any]] = {}
        self._listeners: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        for _, value in cache.items("pods"):
            record_ = PodRecord(value)
            self._workers[record_.uid] = PodWorker(self, record_)
        #: Jobs that CronJobs made here.
        self._jobs: dict[ObjectRef, Obj] = {ref(found): found for _, found in cache.items("jobs")}
        self._notes = Notes(cache)
        #: What was said last of a workload, so that it is not said again and again.
        self._said: dict[ObjectRef, list[tuple[str, str, str]]] = {}
        self._problems: dict[ObjectRef, str] = {}
        self._later: dict[str, PodRecord] = {}
        self.starts = asyncio.Semaphore(STARTS)
        for key, value in cache.items("status"):
            self._statuses[ObjectRef(*key.split("|"))] = value

    # -- what is wanted -------------------------------------------------------------------------------------

    def set_desired(self, objects: list[Obj]) -> None:
        """Everything that this site shall have; what is not in it goes."""
        self._desired = {ref(o): o for o in objects}
        for gone in self._said.keys() - self._desired.keys():
            del self._said[gone]
        for about, obj in self._desired.items():
            # A Job is not over because an earlier one of its name was.
            if about in self._statuses and self._notes.of_another(about, obj):
                self._forget_status(about)
        self._known = True
        for worker in self._workers.values():
            worker.wake.set()
        self._wake.set()

    def find(self, about: ObjectRef) -> Obj | None:
        """A desired object, or a claim that a StatefulSet's template makes."""
        return self._desired.get(about)

    def changed(self) -> None:
        """Something about a pod is different: plan anew, and tell."""
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
        beside = [asyncio.create_task(self._watch_runtime()), asyncio.create_task(storage.run())]
        try:
            for worker in self._workers.values():
                worker.start()
            while True:
                self._wake.clear()
                again = LOOK_SECONDS
                # All of a look's writes at once: nothing that they are about begins before they are durable.
                with self._cache.together():
                    self._store_later()
                    if self._known:
                        again = min(again, self._plan_all())
                with suppress(TimeoutError):
                    await self._wait(self._wake, again)
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
        wanted = [workload.pod_spec(obj) for about, obj in self._desired.items() if about.kind in _WORKLOADS]
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

    # -- planning -------------------------------------------------------------------------------------------

    def _plan_all(self) -> float:
        """One step for every workload; seconds until time alone changes something."""
        now = self.clock.now()
        again = LOOK_SECONDS
        wanted = {r: o for r, o in self._desired.items() if r.kind in _WORKLOADS}
        for about, cron in wanted.items():
            if about.kind == "CronJob":
                again = min(again, self._attempt(about, partial(self._plan_cron, about, cron, now)))
        for key, found in list(self._jobs.items()):
            owner = ObjectRef("batch", "CronJob", namespace(found), annotations(found)[CRON_NAME])
            if owner not in wanted or uid(wanted[owner]) != annotations(found)[CRON_UID]:
                self._forget_job(key)
        everything = {**self._jobs, **wanted}
        owned: dict[tuple[str, str, str], list[PodWorker]] = {}
        for worker in self._workers.values():
            owned.setdefault(worker.record.owner_key, []).append(worker)
        for about, obj in everything.items():
            if about.kind != "CronJob":
                mine = [w for w in owned.pop((about.kind, about.namespace, about.name), []) if self._belongs(w, obj)]
                again = min(again, self._attempt(about, partial(self._plan_one, about, obj, mine, now)))
        # What is left belongs to nothing that is wanted any more.
        for strays in owned.values():
            for worker in strays:
                worker.delete(worker.grace)
        for about in [a for a in self._statuses if a not in everything]:
            self._forget_status(about)
        self._notes.keep_only(everything)
        for gone in self._problems.keys() - everything.keys():
            del self._problems[gone]
        return max(0.02, again)

    def _forget_status(self, about: ObjectRef) -> None:
        if self._statuses.pop(about, None) is not None:
            self._cache.delete("status", key_of(about))

    def _attempt(self, about: ObjectRef, step: Callable[[], float]) -> float:
        """One workload that cannot be planned holds up no other."""
        try:
            again = step()
        except Exception as error:
            if self._problems.get(about) != repr(error):
                self._problems[about] = repr(error)
                log.exception("%s %s/%s cannot be planned; it is tried again in %g s", *about[1:], LOOK_SECONDS)
            return LOOK_SECONDS
        self._problems.pop(about, None)
        return again

    @staticmethod
    def _belongs(worker: PodWorker, obj: Obj) -> bool:
        """A pod of an earlier object of the same name is stopped, never adopted."""
        if worker.record.owner_uid == uid(obj):
            return True
        worker.delete(worker.grace)
        return False

    def _plan_one(self, about: ObjectRef, obj: Obj, mine: list[PodWorker], now: float) -> float:
        before = self._statuses.get(about, {})
        if about.kind == "Job" and finished(before):
            return self._retire_job(about, obj, mine, before, now)
        revisions = self._notes.revisions(about, obj, lambda: [w.view() for w in mine])
        views = [w.view() for w in mine]
        if about.kind == "Job":
            # How it ends is written down before anything is done about it: what decides it may be gone afterwards.
            before = self._report(about, job_status(obj, views, self._notes.past(obj), now, before), before)
        actions = self._decide(obj, views, revisions, now, before)
        for pod_uid in actions.dismiss:
            self._workers[pod_uid].delete(self._workers[pod_uid].grace, dismiss=True)
        for pod_uid in actions.delete:
            self._workers[pod_uid].delete(self._workers[pod_uid].grace)
        for ordinal, revision in actions.create:
            self._create(obj, revision, ordinal, now)
        if about.kind == "Pod":
            for worker in mine:
                worker.follow(obj)
            return LOOK_SECONDS
        views = [w.view() for w in self._workers.values() if w.record.owner_uid == uid(obj)]
        self._report(about, self._status(obj, views, revisions, now, before), before)
        return LOOK_SECONDS if actions.again is None else actions.again

    def _report(self, about: ObjectRef, found: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        if found != before:
            self._statuses[about] = found
            self._cache.put("status", key_of(about), found)
            self._wake.set()
            for listener in self._listeners:
                listener()
        return found

    def _decide(self, obj: Obj, views: list[PodView], revisions: Revisions, now: float, before: dict[str, Any]) -> Actions:
        kind = obj["kind"]
        if kind == "StatefulSet":
            return stateful(obj, views, revisions, now)
        if kind == "DaemonSet":
            return daemon(obj, views, revisions, now)
        if kind == "Job":
            return job(obj, views, self._notes.past(obj), revisions.update, now, before)
        if kind == "Pod":
            # One that has ended here never starts again, as long as it is the same one.
            over = self._notes.is_over(obj)
            return Actions(create=() if views or over else ((-1, revisions.update),))
        return deployment(obj, views, revisions, now)

    def _status(self, obj: Obj, views: list[PodView], revisions: Revisions, now: float, before: dict[str, Any]) -> dict[str, Any]:
        kind = obj["kind"]
        if kind == "StatefulSet":
            return stateful_status(obj, views, revisions, now)
        if kind == "DaemonSet":
            return daemon_status(obj, views, revisions, now)
        if kind == "Job":
            return job_status(obj, views, self._notes.past(obj), now, before)
        return deployment_status(obj, views, revisions, now, before)

    # -- jobs -----------------------------------------------------------------------------------------------

    def _retire_job(self, about: ObjectRef, obj: Obj, mine: list[PodWorker], before: dict[str, Any], now: float) -> float:
        """A job that has ended: what still runs of it is stopped; with a TTL, all of it goes."""
        for worker in mine:
            if not worker.view().ended:
                worker.delete(worker.grace)
        ttl = (obj.get("spec") or {}).get("ttlSecondsAfterFinished")
        if ttl is None or about in self._desired:
            return LOOK_SECONDS
        ended = next(parse_time(c["lastTransitionTime"]) for c in before["conditions"] if c["type"] in ("Complete", "Failed"))
        if now < ended + float(ttl):
            return ended + float(ttl) - now
        self._forget_job(about)
        return 0.0

    def _forget_job(self, about: ObjectRef) -> None:
        self._jobs.pop(about, None)
        self._cache.delete("jobs", f"{about.namespace}/{about.name}")

    def _plan_cron(self, about: ObjectRef, cron: Obj, now: float) -> float:
        """Starts what is due, and forgets jobs beyond the history limits."""
        since = self._notes.since(about, cron, now)
        mine = [j for j in self._jobs.values() if annotations(j)[CRON_UID] == uid(cron)]
        before = self._statuses.get(about, {})
        step = due_jobs(cron, mine, {ref(j): self._statuses.get(ref(j), {}) for j in mine}, before, since, now)
        with self._cache.together():
            for made in step.create:
                made["metadata"]["uid"] = self.new_uid()
                self._jobs[ref(made)] = made
                self._cache.put("jobs", f"{namespace(made)}/{name(made)}", made)
            for old in step.delete:
                self._forget_job(ref(old))
            here = [j for j in self._jobs.values() if annotations(j)[CRON_UID] == uid(cron)]
            if here:
                step.status["jobs"] = [shown(j, self._statuses.get(ref(j), {})) for j in sorted(here, key=name)]
            if step.status != before:
                self._cache.put("status", key_of(about), step.status)
        if step.events != self._said.get(about):
            self._said[about] = step.events
            for kind, reason, message in step.events:
                self.record_event(cron, kind, reason, message)
        if step.status != before:
            self._statuses[about] = step.status
            self.changed()
        return step.again

    # -- making pods ----------------------------------------------------------------------------------------

    def new_uid(self) -> str:
        digits = f"{self._random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def _create(self, obj: Obj, revision: str, ordinal: int, now: float) -> None:
        about = ref(obj)
        template = self._notes.template(obj, revision)
        suffix = "".join(self._random.choice(SUFFIX) for _ in range(5))
        pod = make_pod(obj, template, revision, ordinal, site=self.site, uid_=self.new_uid(), suffix=suffix, now=now)
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
        """Durable with the next look. For what would only be found out again, were it lost."""
        self._later[record.uid] = record
        self._wake.set()

    def _store_later(self) -> None:
        for record in list(self._later.values()):
            self.store(record)

    def gone(self, worker: PodWorker) -> None:
        """A pod has ended for good, and nothing of it is left but what its workload has to remember."""
        kind, where, owner = worker.record.owner_key
        self._later.pop(worker.record.uid, None)
        about = ObjectRef("batch" if kind == "Job" else "", kind, where, owner)
        obj = self._desired.get(about) or self._jobs.get(about)
        with self._cache.together():
            self._cache.delete("pods", worker.record.uid)
            if obj is not None and uid(obj) == worker.record.owner_uid:
                self._notes.pod_gone(obj, worker.view())
        self._workers.pop(worker.record.uid, None)
        self.changed()

    def pods(self) -> list[Obj]:
        """All pods with their status."""
        return [w.pod() for w in self._workers.values()]

    def status_of(self, about: ObjectRef) -> Obj | None:
        if about.kind == "Pod":
            worker = next((w for w in self._workers.values() if w.record.owner_key == ("Pod", about.namespace, about.name)), None)
            return None if worker is None else worker.pod()["status"]
        return self._statuses.get(about)

    def _worker(self, where: str, pod: str) -> PodWorker:
        found = [w for w in self._workers.values() if name(w.record.pod) == pod and namespace(w.record.pod) == where]
        if not found:
            raise not_found("", "pods", pod)
        return min(found, key=lambda w: w.record.deleting)

    async def delete_pod(self, where: str, pod: str, grace_seconds: float | None = None) -> None:
        """Ends one pod; returns when nothing of it is left. One that is gone already is no error."""
        try:
            worker = self._worker(where, pod)
        except ApiError:
            return
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
