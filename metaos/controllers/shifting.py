"""Shifting: lets the runs of a CronJob that may wait start later than they are due, when electricity is cleaner or cheaper.

Sites start CronJobs by themselves, so that a site that is cut off does so in time. What is decided of the next run stands in
``Placement.status.deferral.runs``, written here alone; the work controller tells the site. A run never waits beyond its slack,
the next run, or its ``startingDeadlineSeconds``; of one that nothing was decided of, nothing is told, and it starts in time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from metaos.client import Client, PatchType
from metaos.clock import Clock
from metaos.controllers.concern import workload_of
from metaos.controllers.facts import Jobs, concerning, decided, decides, placeable, placement_name, ruling
from metaos.controllers.outlook import ahead, index, prices_ahead, unit_of
from metaos.controllers.recorder import Recorder
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme, workload
from metaos.resources.cron import due_times, starts_text
from metaos.resources.measures import watts
from metaos.resources.meta import Obj, ObjectRef, format_time, name, parse_time, ref, uid
from metaos.resources.reading import cluster_info, concerns
from metaos.scheduler.deferral import Deferrable, schedule
from metaos.scheduler.slack import CARBON, COST, Waiting, asked, lengths

log = logging.getLogger(__name__)

NAME = "shifting"
#: A run keeps so far from the next one, and from the end of its ``startingDeadlineSeconds``.
CLEAR_SECONDS = 60.0
#: Looked at anew so often, and a change by less is not worth an event.
LOOK_SECONDS = 900.0


def starts_of(cron: Obj, placement: Obj | None) -> str:
    """What the site is told: runs that start later than they are due."""
    found = ((placement or {}).get("status") or {}).get("deferral") or {}
    runs = found.get("runs") or () if found.get("uid") == uid(cron) else ()
    pairs = {parse_time(r["scheduledTime"]): parse_time(r["startTime"]) for r in runs}
    return starts_text({due: start for due, start in pairs.items() if start > due})


class ShiftingReconciler:
    """Keys are CronJobs."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._recorder = Recorder(client, clock, "shifting-controller")
        self._crons, self._jobs = manager.informer(scheme.CRON_JOB), Jobs(manager)
        self._placements, self._clusters = manager.informer(scheme.PLACEMENT), manager.informer(scheme.CLUSTER)
        self._intents = ruling(manager, scheme.INTENT)

    async def reconcile(self, about: ObjectRef) -> Result:
        cron = self._crons.get(about.name, about.namespace)
        placement = self._placements.get(placement_name(about), about.namespace)
        if cron is None or placement is None or not placeable(cron) or not decides(placement, cron):
            return DONE
        stored = (placement.get("status") or {}).get("deferral") or {}
        before = stored if stored.get("uid") == uid(cron) else {}
        said = asked(cron, concerning(self._intents, cron))
        sites = [c for site in decided(placement) if (c := self._clusters.get(site)) is not None]
        now, found = self._clock.now(), None
        if said is not None and sites and not (cron.get("spec") or {}).get("suspend"):
            try:
                found = self._decide(cron, said, sites[0], before, now)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                # It starts in time then, which is what a site does that was told nothing.
                log.exception("the runs of CronJob %s/%s cannot be shifted", about.namespace, about.name)
        if found != (stored or None):
            patch = {"status": {"deferral": None if found is None else dict.fromkeys(stored) | found}}
            await self._client.patch(
                scheme.PLACEMENT, name(placement), about.namespace, patch, type=PatchType.MERGE, subresource="status"
            )
            await self._tell(cron, found or {}, before)
        return DONE if said is None else Result(requeue_after=self._again(cron, found, now))

    def _again(self, cron: Obj, found: Mapping[str, Any] | None, now: float) -> float:
        runs = (found or {}).get("runs") or ()
        due = [t for r in runs if (t := parse_time(r["scheduledTime"])) > now]
        return max(1.0, min(LOOK_SECONDS, min(due, default=math.inf) - now + 1.0))

    def _decide(self, cron: Obj, said: Waiting, site: Obj, before: Mapping[str, Any], now: float) -> dict[str, Any] | None:
        spec = cron.get("spec") or {}
        # What is due already and waits still does as it was told.
        runs = [r for r in before.get("runs") or () if parse_time(r["scheduledTime"]) <= now < parse_time(r["startTime"])]
        carbon, price = ahead(site, now), prices_ahead(site, now)
        wanted = [series for aim, series in ((CARBON, carbon), (COST, price)) if aim in said.aims]
        known = [series for series in wanted if series.known]
        coming = [t.timestamp() for t in islice(due_times(spec, now), 2)]
        if coming and known:
            due = coming[0]
            most = min(said.slack or 0.0, coming[1] - due - CLEAR_SECONDS if len(coming) > 1 else math.inf)
            if spec.get("startingDeadlineSeconds") is not None:
                most = min(most, float(spec["startingDeadlineSeconds"]) - CLEAR_SECONDS)
            values, unit = index(known), unit_of(known)
            hour = known[0].hour
            offset = known[0].passed + (due - now) / hour
            values, passed = values[math.floor(offset) :], offset % 1.0
            if most > 0 and values:
                cpus = workload.requests(workload.pod_spec(cron))["cpu"]
                took = lengths(cron, said, self._jobs.earlier(cron))
                power = watts(cluster_info(site), cpus) or 0.0
                job = Deferrable(most / hour, tuple(t / hour for t in took), watts=power, unit=unit)
                plan = schedule(job, values, passed=passed)
                start = due + plan.start * hour
                runs.append({"scheduledTime": format_time(due), "startTime": format_time(start), "reason": plan.reason})
        if not runs:
            return None
        found = {"uid": uid(cron), "cluster": name(site), "started": True, "runs": runs}
        found |= {"source": "; ".join(s.source for s in wanted), "forecasts": [s.as_data() for s in wanted]}
        return found | ({"intent": said.intent} if said.intent else {})

    async def _tell(self, cron: Obj, found: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        known = {r["scheduledTime"]: parse_time(r["startTime"]) for r in before.get("runs") or ()}
        for run in found.get("runs") or ():
            due, start = run["scheduledTime"], parse_time(run["startTime"])
            if start > parse_time(due) and abs(start - known.get(due, 0.0)) > LOOK_SECONDS:
                text = f"the run that is due at {due} starts at {run['startTime']}: {run['reason']}"
                await self._recorder.event(cron, "RunDeferred", text)


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for CronJobs whose runs may wait, where they are placed; forecasts are looked at every quarter of an hour."""
    reconciler = ShiftingReconciler(manager, client, clock)
    crons = manager.informer(scheme.CRON_JOB)

    def of_placement(obj: Obj) -> Iterable[ObjectRef]:
        about = workload_of(obj)
        if about is not None and about.kind == "CronJob":
            yield about

    def of_intent(intent: Obj) -> Iterable[ObjectRef]:
        return [ref(cron) for cron in crons.list(intent["metadata"]["namespace"]) if concerns(intent, cron)]

    manager.add(
        reconciler,
        [(scheme.CRON_JOB, lambda obj: [ref(obj)]), (scheme.PLACEMENT, of_placement), (scheme.INTENT, of_intent)],
    )
