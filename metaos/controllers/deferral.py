"""Deferral: holds Jobs that may wait until the electricity of their site is cleaner, and starts them in time.

What is decided stands in ``Placement.status.deferral``, written here alone. While ``started`` is false the work controller has
the site suspend the Job; once it is true, it stays so, unless the Job may be paused. The start is planned anew with every new
forecast; without one, or with one that is too old, the Job starts at once. A hub that is down starts nothing: what it held
starts when it is back.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from metaos.client import Client, PatchType
from metaos.clock import Clock
from metaos.controllers.concern import workload_of
from metaos.controllers.facts import placeable, placement_name
from metaos.controllers.recorder import Recorder
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme, workload
from metaos.resources.meta import Obj, ObjectRef, format_time, is_true, name, parse_time, ref, uid
from metaos.resources.snapshot import cluster_info, watts
from metaos.scheduler.deferral import Deferrable, Schedule, schedule
from metaos.scheduler.slack import causes, deferrable, lengths, suspendable, waits_until

NAME = "deferral"
HOUR_SECONDS = 3600.0
#: Waiting has to save this share, and stopping what runs this one: it starts anew each time.
LEAST_SHARE, PAUSE_SHARE = 0.01, 0.05
#: One that may be paused runs and rests for so long at least, an hour taken as 3600 s.
LEAST_SECONDS = 900.0
#: A start that moves by less than this is not worth an event.
TOLD_SECONDS = 900.0


def held(job: Obj, placement: Obj | None) -> bool:
    """Whether a site is to suspend the Job for now."""
    deferral = ((placement or {}).get("status") or {}).get("deferral") or {}
    return deferrable(job) and not next(causes(job), None) and not (deferral.get("started") and deferral.get("uid") == uid(job))


def ahead(cluster: Obj, now: float) -> tuple[list[float], float, float, str]:
    """(Intensity from the current hour on, share of that hour which is over, seconds an hour takes, where it comes from).
    Hours that have passed since the forecast was made are left out; none is left of one that is too old."""
    carbon: Mapping[str, Any] = (cluster.get("status") or {}).get("carbon") or {}
    source, hour = str(carbon.get("source") or "no source"), float(carbon.get("hourSeconds") or HOUR_SECONDS)
    # Some sources count what a load displaces, which may be less than nothing.
    forecast = [max(0.0, float(v)) for v in carbon.get("forecast") or ()]
    if len(forecast) < 2 or not carbon.get("time"):
        return [], 0.0, hour, source
    # A clock that was set back makes no forecast younger than new.
    age = max(0.0, now - parse_time(carbon["time"])) / hour
    if age >= 1:
        source += f", {age:.0f} h old"
    return forecast[math.floor(age) :], age % 1.0, hour, source


def _ran(before: Mapping[str, Any], now: float) -> float:
    """Seconds that one which pauses has run: while it was told to, starting and stopping included."""
    ran = float(before.get("ranSeconds") or 0.0)
    if before.get("started") and before.get("countedTime"):
        ran += max(0.0, now - parse_time(before["countedTime"]))
    return ran


class DeferralReconciler:
    """Keys are Jobs."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._recorder = Recorder(client, clock, "deferral-controller")
        self._jobs, self._placements = manager.informer(scheme.JOB), manager.informer(scheme.PLACEMENT)
        self._clusters = manager.informer(scheme.CLUSTER)

    async def reconcile(self, about: ObjectRef) -> Result:
        job = self._jobs.get(about.name, about.namespace)
        if job is None or not placeable(job) or not deferrable(job) or next(causes(job), None):
            return DONE
        placement = self._placements.get(placement_name(about), about.namespace)
        spec = (placement or {}).get("spec") or {}
        before = ((placement or {}).get("status") or {}).get("deferral") or {}
        mine = spec.get("workloadRef", {}).get("uid") == uid(job)
        if placement is None or not mine or is_true(job, "Failed") or is_true(job, "Complete"):
            return DONE
        if not held(job, placement) and not suspendable(job):
            return DONE
        sites = [c for s in spec.get("clusters") or () if (c := self._clusters.get(s["name"])) is not None]
        if not sites or (job.get("spec") or {}).get("suspend"):
            return DONE
        stored, before = before, before if before.get("uid") == uid(job) else {}
        now = self._clock.now()
        found, again = self._decide(job, sites[0], before, now)
        if found != before:
            await self._client.patch(
                scheme.PLACEMENT,
                name(placement),
                about.namespace,
                {"status": {"deferral": dict.fromkeys(stored) | found}},
                type=PatchType.MERGE,
                subresource="status",
            )
            await self._tell(job, found, before)
        return DONE if found["started"] and not again else Result(requeue_after=again)

    def _decide(self, job: Obj, site: Obj, before: Mapping[str, Any], now: float) -> tuple[dict[str, Any], float]:
        took = lengths(job, self._jobs.list(job["metadata"]["namespace"]))
        latest, why = waits_until(job, took)
        forecast, passed, hour, source = ahead(site, now)
        found: dict[str, Any] = {"uid": uid(job), "cluster": name(site), "source": source, "latestStartTime": format_time(latest)}
        if not forecast:
            return found | self._now(now, f"there is no forecast of the electricity of {name(site)} ({source})"), 0.0
        ran = _ran(before, now)
        pauses = suspendable(job) and bool(took)
        left = tuple(max(0.0, t - ran) / hour for t in took[: 1 if pauses else None])
        if pauses:
            # What has run is not waiting. One that outlives what was expected is let run.
            latest += ran
            found["latestStartTime"] = format_time(latest)
            if before.get("ranSeconds") is not None and not left[0]:
                return dict(before) | {"started": True}, 0.0
        power = watts(cluster_info(site), workload.requests(workload.pod_spec(job))["cpu"]) * workload.replicas(job)
        slack = (latest - now) / hour
        least = PAUSE_SHARE if before.get("started") else LEAST_SHARE
        plan = schedule(Deferrable(slack, left, pauses, watts=power), forecast, passed=passed, least=least)
        scale = hour / HOUR_SECONDS
        # Compared with a start when it came, however often it is looked at again.
        first = {
            "gramsAtOnce": float(before.get("gramsAtOnce", round(plan.grams_now * scale, 3))),
            "intensityAtOnce": float(before.get("intensityAtOnce", round(plan.intensity_now, 1))),
        }
        emitted = self._emitted(before, site, power, now)
        found |= first | {"savesGrams": round(first["gramsAtOnce"] - emitted - plan.grams * scale, 3)}
        least_seconds, running = LEAST_SECONDS * scale, bool(before.get("started"))
        if pauses:
            found |= {"ranSeconds": round(ran, 3), "ranGrams": round(emitted, 3), "countedTime": format_time(now, micro=True)}
            held_for = now - parse_time(before["sinceTime"]) if before.get("sinceTime") else least_seconds
            if running and (held_for < least_seconds or slack * hour < least_seconds):
                return dict(before) | found, max(1.0, least_seconds - held_for) if slack > 0 else 0.0
            if before and not running and held_for < least_seconds and slack > 0:
                return dict(before) | found, max(0.1, min(least_seconds - held_for, slack * hour))
            toggled = not before or running == (plan.start > 0 and slack > 0)
            found |= {"sinceTime": format_time(now, micro=True) if toggled else before.get("sinceTime")}
        if plan.start <= 0 or slack <= 0:
            again = hour / 4 if pauses and slack > 0 else 0.0
            if running:
                return dict(before) | found, again
            reason = self._compared(plan, first) if before else why if slack <= 0 else plan.reason
            return found | self._now(now, reason), again
        start = now + plan.start * hour
        told = self._compared(plan, first) if before else plan.reason
        return found | {"started": False, "startTime": format_time(start), "reason": told}, min(start - now, hour / 4)

    def _emitted(self, before: Mapping[str, Any], site: Obj, power: float, now: float) -> float:
        """Grams so far of one that pauses, by what the electricity is now."""
        ran = _ran(before, now) - float(before.get("ranSeconds") or 0.0)
        intensity = float(((site.get("status") or {}).get("carbon") or {}).get("intensity") or 0.0)
        return float(before.get("ranGrams") or 0.0) + power / 1000 * intensity * ran / HOUR_SECONDS

    def _compared(self, plan: Schedule, first: Mapping[str, float]) -> str:
        return f"{plan.intensity:.0f} gCO2eq/kWh then, {first['intensityAtOnce']:.0f} started at once"

    def _now(self, now: float, why: str) -> dict[str, Any]:
        return {"started": True, "startTime": format_time(now), "reason": why}

    async def _tell(self, job: Obj, found: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        saves = f"; saves about {found['savesGrams']:.3g} g" if found.get("savesGrams", 0) > 0 else ""
        if found["started"] and before.get("started"):
            return
        if found["started"]:
            await self._recorder.event(job, "Started", f"{found['reason']}{saves}")
        elif before.get("started"):
            await self._recorder.event(job, "Paused", f"goes on at {found['startTime']}: {found['reason']}{saves}")
        elif not before or abs(parse_time(found["startTime"]) - parse_time(before["startTime"])) > TOLD_SECONDS:
            await self._recorder.event(job, "Deferred", f"starts at {found['startTime']}: {found['reason']}{saves}")


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for Jobs that may wait, where they are placed, and with every new forecast of their site."""
    reconciler = DeferralReconciler(manager, client, clock)
    jobs, placements = manager.informer(scheme.JOB), manager.informer(scheme.PLACEMENT)

    def of_placement(obj: Obj) -> Iterable[ObjectRef]:
        about = workload_of(obj)
        if about is not None and about.kind == "Job":
            yield about

    manager.add(reconciler, [(scheme.JOB, lambda obj: [ref(obj)] if deferrable(obj) else []), (scheme.PLACEMENT, of_placement)])

    def on_cluster(old: Obj | None, new: Obj | None) -> None:
        def carbon(obj: Obj | None) -> Any:
            return ((obj or {}).get("status") or {}).get("carbon")

        if new is None or carbon(old) == carbon(new):
            return
        for job in jobs.list():
            if (
                deferrable(job)
                and placeable(job)
                and (suspendable(job) or held(job, placements.get(placement_name(ref(job)), ref(job).namespace)))
            ):
                manager.enqueue(NAME, ref(job))

    manager.informer(scheme.CLUSTER).on_change(on_cluster)
