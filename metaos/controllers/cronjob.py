"""CronJobs: the Jobs that a site makes of one are shown as Jobs at the hub, so that ``kubectl get jobs`` and ``logs job/…`` work.

Sites start them in time, also when they are cut off; what is here are read-only mirrors of what they report.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.concern import works_by_source
from metaos.controllers.render import cluster_of, reported, source_label, source_of
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    CLUSTER_LABEL,
    Obj,
    ObjectRef,
    controller_of,
    deleting,
    labels,
    name,
    namespace,
    owner_reference,
    ref,
    uid,
)

NAME = "cronjob"
SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
JOB_NAME = "batch.kubernetes.io/job-name"


def mirrors(cron: Obj, works: Iterable[Obj]) -> list[Obj]:
    """The Jobs that the sites of a CronJob report, with their status. Pure."""
    return [
        _mirror(cron, cluster_of(work), told)
        for work in sorted(works, key=cluster_of)
        for told in (reported(work).get("status") or {}).get("jobs") or ()
    ]


def _mirror(cron: Obj, site: str, told: Mapping[str, Any]) -> Obj:
    template = copy.deepcopy((cron.get("spec") or {}).get("jobTemplate") or {})
    said, spec = template.get("metadata") or {}, template.get("spec") or {}
    if spec.get("completions") is None and spec.get("parallelism") in (None, 1):
        spec["completions"] = 1
    # Its pods carry its name; its uid here is not the one that it has at the site.
    own = {JOB_NAME: told["name"], "job-name": told["name"]}
    metadata = spec.setdefault("template", {}).setdefault("metadata", {})
    metadata["labels"] = {**(metadata.get("labels") or {}), **own}
    job: Obj = dict(scheme.JOB.empty(str(told["name"]), namespace(cron)))
    job["metadata"] |= {
        "labels": {**(said.get("labels") or {}), CLUSTER_LABEL: site},
        "annotations": {**(said.get("annotations") or {}), SCHEDULED: str(told.get("scheduledTime") or "")},
        "ownerReferences": [owner_reference(cron)],
    }
    job["spec"] = spec | {"manualSelector": True, "selector": {"matchLabels": {JOB_NAME: told["name"]}}}
    job["status"] = dict(told.get("status") or {})
    return job


class CronJobReconciler:
    """Keys are CronJobs."""

    name = NAME

    def __init__(self, manager: Manager, client: Client) -> None:
        self._client = client
        self._crons, self._jobs = manager.informer(scheme.CRON_JOB), manager.informer(scheme.JOB)
        self._works = works_by_source(manager)
        self._jobs.add_index("controller", lambda j: [str((controller_of(j) or {}).get("uid") or "")])

    async def reconcile(self, about: ObjectRef) -> Result:
        cron = self._crons.get(about.name, about.namespace)
        if cron is None or deleting(cron):
            return DONE
        works = [w for w in self._works.by_index("source", source_label(about)) if not deleting(w)]
        wanted = {name(j): j for j in mirrors(cron, works)}
        held = {name(j): j for j in self._jobs.by_index("controller", uid(cron)) if CLUSTER_LABEL in labels(j)}
        for key, job in wanted.items():
            if key not in held or not deleting(held[key]):
                await self._write(held.get(key), job)
        for key, job in held.items():
            if key not in wanted and not deleting(job):
                await self._remove(job)
        return DONE

    async def _write(self, held: Obj | None, job: Obj) -> None:
        if held is None:
            try:
                held = await self._client.create({k: v for k, v in job.items() if k != "status"})
            except ApiError as error:
                # A Job of one's own has this name, or the informer is a moment behind: then its news comes here again.
                if error.reason != "AlreadyExists":
                    raise
                return
        if (held.get("status") or {}) != job["status"]:
            await self._client.update(held | {"status": job["status"]}, subresource="status")

    async def _remove(self, job: Obj) -> None:
        try:
            await self._client.delete(scheme.JOB, name(job), namespace(job), uid=uid(job), propagation="Background")
        except ApiError as error:
            if error.code not in (404, 409):
                raise


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: when a site reports, and when a mirror goes."""

    def of_work(obj: Obj) -> list[ObjectRef]:
        about = source_of(obj)
        return [about] if about.kind == "CronJob" else []

    def of_job(obj: Obj) -> list[ObjectRef]:
        owner = controller_of(obj) or {}
        if owner.get("kind") != "CronJob" or CLUSTER_LABEL not in labels(obj):
            return []
        return [ObjectRef("batch", "CronJob", namespace(obj), str(owner.get("name")))]

    manager.add(
        CronJobReconciler(manager, client),
        [(scheme.CRON_JOB, lambda obj: [ref(obj)]), (scheme.WORK, of_work), (scheme.JOB, of_job)],
    )
