"""TTL: a Job that has finished goes after the time that its author gave it, and its pods with it.

Source: ``pkg/controller/ttlafterfinished`` of Kubernetes. Jobs that CronJobs make at a site are removed there.
"""

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import CLUSTER_LABEL, Obj, ObjectRef, deleting, labels, name, namespace, parse_time, ref, uid

NAME = "ttl"
#: A finish that is said to lie in the future is not waited for in one go: the clock may be set right meanwhile.
LOOK_SECONDS = 3600.0


def expiry(job: Obj) -> float | None:
    """When a Job is to go (seconds since the epoch); ``None`` where it is not, or has not finished."""
    ttl = (job.get("spec") or {}).get("ttlSecondsAfterFinished")
    if ttl is None:
        return None
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition.get("type") in ("Complete", "Failed") and condition.get("status") == "True":
            when = condition.get("lastTransitionTime")
            return parse_time(str(when)) + float(ttl) if when else None
    return None


class TtlReconciler:
    """Keys are Jobs."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._jobs = manager.informer(scheme.JOB)

    async def reconcile(self, about: ObjectRef) -> Result:
        job = self._jobs.get(about.name, about.namespace)
        # What a site shows of a CronJob goes when the site says so.
        when = None if job is None or deleting(job) or CLUSTER_LABEL in labels(job) else expiry(job)
        if job is None or when is None:
            return DONE
        left = when - self._clock.now()
        if left > 0:
            return Result(requeue_after=min(left, LOOK_SECONDS))
        # As the server has it now: the TTL may have been made longer a moment ago.
        try:
            current = await self._client.get(scheme.JOB, name(job), namespace(job))
            later = expiry(current)
            if uid(current) != uid(job) or later is None or later > self._clock.now():
                return DONE
            version = current["metadata"].get("resourceVersion", "")
            await self._client.delete(
                scheme.JOB, name(job), namespace(job), uid=uid(job), resource_version=version, propagation="Background"
            )
        except ApiError as error:
            if error.code not in (404, 409):
                raise
        return DONE


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it."""
    manager.add(TtlReconciler(manager, client, clock), [(scheme.JOB, lambda job: [ref(job)])])
