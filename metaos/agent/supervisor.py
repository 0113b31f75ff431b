"""The site's own head: from desired workloads to running pods, and back to their status. It needs no hub.

Level-triggered: whenever what is wanted, a container or the clock changes something, every workload is planned anew
(:mod:`metaos.agent.workloads`) and every pod takes its next step (:class:`PodWorker`). Pods outlive this process: their
records are on disk, their containers are found again through the runtime.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent.cache import Cache
from metaos.agent.containers import Volumes
from metaos.agent.cron import due_jobs
from metaos.agent.podworker import PodRecord, PodWorker
from metaos.agent.workloads import plan, status
from metaos.clock import Clock
from metaos.plugins.points import ContainerState, Exec, Runtime
from metaos.resources import workload
from metaos.resources.errors import ApiError, bad_request, not_found
from metaos.resources.meta import Obj, ObjectRef, format_time, labels, name, namespace, parse_time, ref, uid

log = logging.getLogger(__name__)

SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
#: A full look at least this often, besides changes: also keeps container logs within their bound.
LOOK_SECONDS = 10.0
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
    ) -> None:
        self.runtime, self.clock = runtime, clock
        self.site, self.address, self.record_event = site, address, record
        self.backoff_seconds = backoff_seconds
        self._cache, self._random = cache, random
        self._desired: dict[ObjectRef, Obj] = {}
        self._known = False
        self.volumes = Volumes(directory, tuple(host_paths), self.find)
        self.states: Mapping[str, Mapping[str, ContainerState]] = {}
        self._workers: dict[str, PodWorker] = {}
        self._statuses: dict[ObjectRef, dict[str, Any]] = {}
        self._listeners: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        for _, value in cache.items("pods"):
            record_ = PodRecord(value)
            self._workers[record_.uid] = PodWorker(self, record_)
        for key, value in cache.items("status"):
            self._statuses[ObjectRef(*key.split("|"))] = value

    # -- what is wanted -------------------------------------------------------------------------------------

    def set_desired(self, objects: list[Obj]) -> None:
        """Everything that this site shall have; what is not in it goes."""
        self._desired = {ref(o): o for o in objects}
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
        watching = asyncio.create_task(self._watch_runtime())
        try:
            for worker in self._workers.values():
                worker.start()
            while True:
                self._wake.clear()
                again = LOOK_SECONDS
                if self._known:
                    try:
                        again = min(again, self._plan_all())
                    except Exception:
                        log.exception("planning failed; it is tried again in %g s", LOOK_SECONDS)
                with suppress(TimeoutError):
                    await self._wait(self._wake, again)
        finally:
            watching.cancel()
            for worker in self._workers.values():
                worker.cancel()
            await asyncio.gather(watching, *(w.ended() for w in self._workers.values()), return_exceptions=True)

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
        for stray in set(self.states) - set(self._workers):
            await self.runtime.stop_pod(stray)

    async def refresh_pod(self) -> None:
        await self._refresh()

    # -- planning -------------------------------------------------------------------------------------------

    def _plan_all(self) -> float:
        """One step for every workload; seconds until time alone changes something."""
        now = self.clock.now()
        again = LOOK_SECONDS
        wanted = {r: o for r, o in self._desired.items() if r.kind in _WORKLOADS}
        again = min(again, self._plan_cron(wanted, now))
        jobs = {ref(job): job for _, job in self._cache.items("jobs")}
        everything = {**jobs, **wanted}
        owned: dict[tuple[str, str, str], list[PodWorker]] = {}
        for worker in self._workers.values():
            owned.setdefault(worker.record.owner_key, []).append(worker)
        for about, obj in everything.items():
            if about.kind == "CronJob":
                continue
            key = (about.kind, about.namespace, about.name)
            mine = [w for w in owned.pop(key, []) if self._belongs(w, obj)]
            again = min(again, self._plan_one(about, obj, mine, now))
        # What is left belongs to nothing that is wanted any more.
        for strays in owned.values():
            for worker in strays:
                worker.delete(worker.grace)
        for about in [a for a in self._statuses if a not in everything]:
            del self._statuses[about]
            self._cache.delete("status", "|".join(about))
        return max(0.02, again)

    @staticmethod
    def _belongs(worker: PodWorker, obj: Obj) -> bool:
        """A pod of an earlier object of the same name is stopped, never adopted."""
        if worker.record.owner_uid == uid(obj):
            return True
        worker.delete(worker.grace)
        return False

    def _plan_one(self, about: ObjectRef, obj: Obj, mine: list[PodWorker], now: float) -> float:
        digest = workload.template_hash(obj)
        before = self._statuses.get(about, {})
        finished = any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in before.get("conditions") or ())
        if about.kind == "Job" and finished:
            return self._retire_job(about, obj, mine, before, now)
        views = [w.view() for w in mine]
        actions = plan(obj, views, digest, now)
        for pod_uid in actions.delete:
            self._workers[pod_uid].delete(self._workers[pod_uid].grace)
        for ordinal in actions.create:
            self._create(about, obj, digest, ordinal, now)
        found = status(obj, [w.view() for w in self._workers.values() if w.record.owner_uid == uid(obj)], digest, now, before)
        if found != before:
            self._statuses[about] = found
            self._cache.put("status", "|".join(about), found)
            for listener in self._listeners:
                listener()
        return LOOK_SECONDS if actions.again is None else actions.again

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
        self._cache.delete("jobs", f"{about.namespace}/{about.name}")
        return 0.0

    def _plan_cron(self, wanted: Mapping[ObjectRef, Obj], now: float) -> float:
        """Starts what is due, and forgets jobs beyond the history limits."""
        again = LOOK_SECONDS
        jobs = list(self._cache.items("jobs"))
        for key, job in jobs:
            owner = ObjectRef("batch", "CronJob", namespace(job), str(job["metadata"]["annotations"]["meta-os.eu/cronjob"]))
            if owner not in wanted or uid(wanted[owner]) != job["metadata"]["annotations"]["meta-os.eu/cronjob-uid"]:
                self._cache.delete("jobs", key)
        for about, cron in wanted.items():
            if about.kind != "CronJob":
                continue
            mine = [
                j for _, j in self._cache.items("jobs") if j["metadata"]["annotations"]["meta-os.eu/cronjob-uid"] == uid(cron)
            ]
            before = self._statuses.get(about, {})
            done = {ref(j): self._statuses.get(ref(j), {}) for j in mine}
            step = due_jobs(cron, mine, done, before, now)
            for job in step.create:
                job["metadata"]["uid"] = self.new_uid()
                self._cache.put("jobs", f"{namespace(job)}/{name(job)}", job)
            for job in step.delete:
                self._cache.delete("jobs", f"{namespace(job)}/{name(job)}")
            if step.status != before:
                self._statuses[about] = step.status
                self._cache.put("status", "|".join(about), step.status)
                self.changed()
            again = min(again, step.again)
        return again

    def new_uid(self) -> str:
        digits = f"{self._random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def _suffix(self) -> str:
        return "".join(self._random.choice(SUFFIX) for _ in range(5))

    def _create(self, about: ObjectRef, obj: Obj, digest: str, ordinal: int, now: float) -> None:
        pod = self._pod(about, obj, digest, ordinal, now)
        record = PodRecord(
            {
                "pod": pod,
                "owner": list((about.kind, about.namespace, about.name)),
                "ownerUid": uid(obj),
                "hash": digest,
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

    def _pod(self, about: ObjectRef, obj: Obj, digest: str, ordinal: int, now: float) -> Obj:
        """The Pod object, as the workload's template makes it."""
        template = workload.pod_template(obj)
        metadata: dict[str, Any] = {"namespace": about.namespace, "uid": self.new_uid(), "creationTimestamp": format_time(now)}
        found_labels = dict((template.get("metadata") or {}).get("labels") or {})
        notes = dict((template.get("metadata") or {}).get("annotations") or {})
        spec = {**(template.get("spec") or {}), "nodeName": self.site}
        if about.kind == "Pod":
            metadata |= {"name": about.name, "uid": uid(obj), "labels": dict(labels(obj))}
            return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        owner = {"apiVersion": obj["apiVersion"], "kind": about.kind, "name": about.name, "uid": uid(obj), "controller": True}
        if about.kind == "StatefulSet":
            metadata["name"] = f"{about.name}-{ordinal}"
            found_labels |= {
                "controller-revision-hash": f"{about.name}-{digest}",
                "statefulset.kubernetes.io/pod-name": metadata["name"],
                "apps.kubernetes.io/pod-index": str(ordinal),
            }
            spec["hostname"] = metadata["name"]
            spec["volumes"] = [*(spec.get("volumes") or ()), *self._claims(obj, metadata["name"])]
            if (obj.get("spec") or {}).get("serviceName"):
                spec["subdomain"] = obj["spec"]["serviceName"]
        elif about.kind == "Deployment":
            metadata["name"] = f"{about.name[:46]}-{digest}-{self._suffix()}"
            found_labels["pod-template-hash"] = digest
        elif about.kind == "DaemonSet":
            metadata["name"] = f"{about.name[:57]}-{self._suffix()}"
            found_labels["controller-revision-hash"] = digest
        else:
            metadata["name"] = f"{about.name[:50]}-{f'{ordinal}-' if ordinal >= 0 else ''}{self._suffix()}"
            found_labels |= {"job-name": about.name, "batch.kubernetes.io/job-name": about.name}
            if ordinal >= 0:
                found_labels["batch.kubernetes.io/job-completion-index"] = str(ordinal)
                notes["batch.kubernetes.io/job-completion-index"] = str(ordinal)
                index = {"name": "JOB_COMPLETION_INDEX", "value": str(ordinal)}
                spec["containers"] = [{**c, "env": [*(c.get("env") or ()), index]} for c in spec["containers"]]
            cron = (obj["metadata"].get("annotations") or {}).get("meta-os.eu/cronjob")
            if cron:
                owner |= {"kind": "CronJob", "name": cron, "uid": obj["metadata"]["annotations"]["meta-os.eu/cronjob-uid"]}
        metadata |= {"labels": found_labels, "ownerReferences": [owner | {"blockOwnerDeletion": True}]}
        if notes:
            metadata["annotations"] = notes
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    @staticmethod
    def _claims(obj: Obj, pod: str) -> list[dict[str, Any]]:
        """Volumes for a StatefulSet's claim templates: local directories named after claim and pod, which stay."""
        found = []
        for claim in (obj.get("spec") or {}).get("volumeClaimTemplates") or ():
            what = claim["metadata"]["name"]
            found.append({"name": what, "persistentVolumeClaim": {"claimName": f"{what}-{pod}"}, "template": True})
        return found

    # -- pods -----------------------------------------------------------------------------------------------

    def store(self, record: PodRecord) -> None:
        self._cache.put("pods", record.uid, record.value)

    def gone(self, worker: PodWorker) -> None:
        """A pod has ended for good, and nothing of it is left."""
        self._cache.delete("pods", worker.record.uid)
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

    async def connect(self, namespace: str, pod: str, port: int) -> Any:
        return await self.runtime.connect(self._worker(namespace, pod).record.uid, port)
