"""What a site's workloads ask for next: which pods to make and to end, which jobs are due, and the status of each.

The decisions are :mod:`metaos.agent.workloads`, ``jobs``, ``cron`` and ``stateful``; here they are asked, carried out and kept.
"""

import logging
from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Any, Protocol

from metaos.agent.cache import Cache
from metaos.agent.cron import due_jobs, shown
from metaos.agent.jobs import finished, job, job_status
from metaos.agent.notes import Notes, key_of
from metaos.agent.podrecord import PodRecord
from metaos.agent.stateful import stateful, stateful_status
from metaos.agent.template import CRON_NAME, CRON_UID
from metaos.agent.workloads import (
    Actions,
    PodView,
    Revisions,
    daemon,
    daemon_status,
    deployment,
    deployment_status,
)
from metaos.resources.meta import Obj, ObjectRef, annotations, name, namespace, parse_time, ref, uid

log = logging.getLogger(__name__)

#: A full look at least this often, besides changes: also keeps container logs within their bound.
LOOK_SECONDS = 10.0
WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod"}
Record = Callable[[Obj, str, str, str], None]


class Planned(Protocol):
    """A pod, as far as planning knows it (:class:`metaos.agent.podworker.PodWorker`)."""

    record: PodRecord

    @property
    def grace(self) -> float: ...

    def view(self) -> PodView: ...

    def follow(self, obj: Obj) -> None: ...

    def delete(self, grace_seconds: float, *, dismiss: bool = False) -> None: ...


class Planning:
    """``pods``: those that there are, by uid; ``create(object, revision, ordinal, now)`` makes one; ``changed`` is told of a
    changed status; ``record(object, type, reason, message)`` takes events."""

    def __init__(
        self,
        cache: Cache,
        pods: Mapping[str, Planned],
        create: Callable[[Obj, str, int, float], None],
        new_uid: Callable[[], str],
        changed: Callable[[], None],
        record: Record,
    ) -> None:
        self._cache, self._pods, self._create, self._new_uid = cache, pods, create, new_uid
        self._changed, self._record_event = changed, record
        self._desired: Mapping[ObjectRef, Obj] = {}
        self.statuses: dict[ObjectRef, dict[str, Any]] = {ObjectRef(*k.split("|")): v for k, v in cache.items("status")}
        #: Jobs that CronJobs made here.
        self._jobs: dict[ObjectRef, Obj] = {ref(found): found for _, found in cache.items("jobs")}
        self.notes = Notes(cache)
        #: What was said last of a workload, so that it is not said again and again.
        self._said: dict[ObjectRef, list[tuple[str, str, str]]] = {}
        self._problems: dict[ObjectRef, str] = {}

    def pod_gone(self, pod: Planned, owner: ObjectRef, wanted: Obj | None) -> None:
        """Nothing is left of it but what its workload has to remember. ``wanted``: its workload, if it comes from the hub."""
        obj = wanted or self._jobs.get(owner)
        if obj is not None and uid(obj) == pod.record.owner_uid:
            self.notes.pod_gone(obj, pod.view())

    def plan(self, desired: Mapping[ObjectRef, Obj], now: float, only: Container[tuple[str, str, str]] | None = None) -> float:
        """One step for every workload, or for those ``only`` (kind, namespace, name) of whose pods something has changed;
        seconds until time alone changes something about them."""
        self._desired = desired
        again = LOOK_SECONDS
        wanted = {r: o for r, o in desired.items() if r.kind in WORKLOADS}
        for about, cron in wanted.items() if only is None else ():
            if about.kind == "CronJob":
                again = min(again, self._attempt(about, partial(self._plan_cron, about, cron, now)))
        for key, found in list(self._jobs.items()) if only is None else ():
            owner = ObjectRef("batch", "CronJob", namespace(found), annotations(found)[CRON_NAME])
            if owner not in wanted or uid(wanted[owner]) != annotations(found)[CRON_UID]:
                self._forget_job(key)
        everything = {**self._jobs, **wanted}
        owned: dict[tuple[str, str, str], list[Planned]] = {}
        for worker in self._pods.values():
            owned.setdefault(worker.record.owner_key, []).append(worker)
        for about, obj in everything.items():
            owner_key = (about.kind, about.namespace, about.name)
            if about.kind != "CronJob" and (only is None or owner_key in only):
                mine = [w for w in owned.pop(owner_key, []) if self._belongs(w, obj)]
                again = min(again, self._attempt(about, partial(self._plan_one, about, obj, mine, now)))
        if only is not None:
            return max(0.02, again)
        # What is left belongs to nothing that is wanted any more.
        for strays in owned.values():
            for worker in strays:
                worker.delete(worker.grace)
        for about in [a for a in self.statuses if a not in everything]:
            self._forget_status(about)
        self.notes.keep_only(everything)
        for gone in self._problems.keys() - everything.keys():
            del self._problems[gone]
        for gone in self._said.keys() - desired.keys():
            del self._said[gone]
        return max(0.02, again)

    def forget_others(self, desired: Mapping[ObjectRef, Obj]) -> None:
        """A Job is not over because an earlier one of its name was."""
        for about, obj in desired.items():
            if about in self.statuses and self.notes.of_another(about, obj):
                self._forget_status(about)

    def _forget_status(self, about: ObjectRef) -> None:
        if self.statuses.pop(about, None) is not None:
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
    def _belongs(worker: Planned, obj: Obj) -> bool:
        """A pod of an earlier object of the same name is stopped, never adopted."""
        if worker.record.owner_uid == uid(obj):
            return True
        worker.delete(worker.grace)
        return False

    def _plan_one(self, about: ObjectRef, obj: Obj, mine: list[Planned], now: float) -> float:
        before = self.statuses.get(about, {})
        if about.kind == "Job" and finished(before):
            return self._retire_job(about, obj, mine, before, now)
        revisions = self.notes.revisions(about, obj, lambda: [w.view() for w in mine])
        views = [w.view() for w in mine]
        if about.kind == "Job":
            # How it ends is written down before anything is done about it: what decides it may be gone afterwards.
            before = self._report(about, job_status(obj, views, self.notes.past(obj), now, before), before)
        actions = self._decide(obj, views, revisions, now, before)
        for pod_uid in actions.dismiss:
            self._pods[pod_uid].delete(self._pods[pod_uid].grace, dismiss=True)
        for pod_uid in actions.delete:
            self._pods[pod_uid].delete(self._pods[pod_uid].grace)
        for ordinal, revision in actions.create:
            self._create(obj, revision, ordinal, now)
        if about.kind == "Pod":
            for worker in mine:
                worker.follow(obj)
            return LOOK_SECONDS
        views = [w.view() for w in self._pods.values() if w.record.owner_uid == uid(obj)]
        self._report(about, self._status(obj, views, revisions, now, before), before)
        return LOOK_SECONDS if actions.again is None else actions.again

    def _report(self, about: ObjectRef, found: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        if found != before:
            self.statuses[about] = found
            self._cache.put("status", key_of(about), found)
            self._changed()
        return found

    def _decide(self, obj: Obj, views: list[PodView], revisions: Revisions, now: float, before: dict[str, Any]) -> Actions:
        kind = obj["kind"]
        if kind == "StatefulSet":
            return stateful(obj, views, revisions, now)
        if kind == "DaemonSet":
            return daemon(obj, views, revisions, now)
        if kind == "Job":
            return job(obj, views, self.notes.past(obj), revisions.update, now, before)
        if kind == "Pod":
            # One that has ended here never starts again, as long as it is the same one.
            over = self.notes.is_over(obj)
            return Actions(create=() if views or over else ((-1, revisions.update),))
        return deployment(obj, views, revisions, now)

    def _status(self, obj: Obj, views: list[PodView], revisions: Revisions, now: float, before: dict[str, Any]) -> dict[str, Any]:
        kind = obj["kind"]
        if kind == "StatefulSet":
            return stateful_status(obj, views, revisions, now)
        if kind == "DaemonSet":
            return daemon_status(obj, views, revisions, now)
        if kind == "Job":
            return job_status(obj, views, self.notes.past(obj), now, before)
        return deployment_status(obj, views, revisions, now, before)

    # -- jobs -----------------------------------------------------------------------------------------------

    def _retire_job(self, about: ObjectRef, obj: Obj, mine: list[Planned], before: dict[str, Any], now: float) -> float:
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
        since = self.notes.since(about, cron, now)
        mine = [j for j in self._jobs.values() if annotations(j)[CRON_UID] == uid(cron)]
        before = self.statuses.get(about, {})
        step = due_jobs(cron, mine, {ref(j): self.statuses.get(ref(j), {}) for j in mine}, before, since, now)
        with self._cache.together():
            for made in step.create:
                made["metadata"]["uid"] = self._new_uid()
                self._jobs[ref(made)] = made
                self._cache.put("jobs", f"{namespace(made)}/{name(made)}", made)
            for old in step.delete:
                self._forget_job(ref(old))
            here = [j for j in self._jobs.values() if annotations(j)[CRON_UID] == uid(cron)]
            if here:
                step.status["jobs"] = [shown(j, self.statuses.get(ref(j), {})) for j in sorted(here, key=name)]
            if step.status != before:
                self._cache.put("status", key_of(about), step.status)
        if step.events != self._said.get(about):
            self._said[about] = step.events
            for kind, reason, message in step.events:
                self._record_event(cron, kind, reason, message)
        if step.status != before:
            self.statuses[about] = step.status
            self._changed()
        return step.again
