"""Deferral: holds Jobs that may wait until the electricity of their site is cleaner or cheaper, and starts them in time.

What is decided stands in ``Placement.status.deferral``, written here alone. While ``started`` is false the work controller has
the site suspend the Job; once it is true, it stays so, unless the Job may be paused. The start is planned anew with every new
forecast; without one, or with one that is too old, the Job starts at once. Nothing holds a Job for good: where nothing can be
decided it starts after ``ERROR_SECONDS``, and the work controller holds none for longer than ``LATE_SECONDS`` after its time,
whatever becomes of this one. A hub that is down starts nothing: what it held starts when it is back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metaos.client import Client, PatchType
from metaos.clock import Clock
from metaos.controllers.concern import workload_of
from metaos.controllers.facts import Jobs, concerning, decided, decides, placeable, placement_name, ruling
from metaos.controllers.outlook import LATE_SECONDS, Ahead, ahead, in_its_currency, prices_ahead, unit_of
from metaos.controllers.recorder import Recorder
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme, workload
from metaos.resources.measures import watts
from metaos.resources.meta import Obj, ObjectRef, format_time, is_true, name, parse_time, ref, uid, with_condition
from metaos.resources.reading import concerns, workload_info
from metaos.resources.snapshot import ClusterInfo, Interruptible, Waits, WorkloadInfo
from metaos.scheduler.capacity import mean_along
from metaos.scheduler.deferral import Deferrable, Schedule, figure, schedule
from metaos.scheduler.slack import CARBON, COST, Waiting, asked, lengths, waits_at_most, waits_until

if TYPE_CHECKING:
    from metaos.scheduler.timing import Option, Timed

log = logging.getLogger(__name__)

NAME = "deferral"
HOUR_SECONDS = 3600.0
#: Waiting has to save this share, and stopping what runs this one: it starts anew each time.
LEAST_SHARE, PAUSE_SHARE = 0.01, 0.05
#: One that may be paused runs and rests for so long at least, an hour taken as 3600 s.
LEAST_SECONDS = 900.0
#: A start that moves by less than this is not worth an event.
TOLD_SECONDS = 900.0
#: What cannot be decided is tried so often, and started when it could not be for so long.
AGAIN_SECONDS, ERROR_SECONDS = 60.0, 300.0
#: A new forecast is looked at after the placement controller did: it may be better begun elsewhere.
AFTER_PLACEMENT_SECONDS = 2.0
_WRONG = ArithmeticError, AttributeError, LookupError, TypeError, ValueError


def deferral_of(job: Obj, placement: Obj | None) -> Mapping[str, Any]:
    """What was decided of this very Job so far."""
    found: Mapping[str, Any] = ((placement or {}).get("status") or {}).get("deferral") or {}
    return found if found.get("uid") == uid(job) else {}


def held_until(job: Obj, said: Waiting | None, placement: Obj | None) -> float | None:
    """Until when a site is to suspend the Job at most, in seconds since the epoch; ``None``: it is not."""
    found = deferral_of(job, placement)
    if said is None or found.get("started"):
        return None
    latest = parse_time(found["latestStartTime"]) if found.get("latestStartTime") else 0.0
    return max(latest, waits_at_most(job, said)) + LATE_SECONDS


def _ran(before: Mapping[str, Any], now: float, least: int) -> float:
    """Seconds of work at the least width that one which pauses has done: while it was told to, starting and stopping included."""
    ran = float(before.get("ranSeconds") or 0.0)
    if before.get("started") and before.get("countedTime"):
        ran += max(0.0, now - parse_time(before["countedTime"])) * int(before.get("width") or least) / least
    return ran


class DeferralReconciler:
    """Keys are Jobs."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._recorder = Recorder(client, clock, "deferral-controller")
        self._job_objects, self._placements = manager.informer(scheme.JOB), manager.informer(scheme.PLACEMENT)
        self._jobs = Jobs(manager)
        self._clusters, self._intents = manager.informer(scheme.CLUSTER), ruling(manager, scheme.INTENT)

    def asked(self, job: Obj) -> Waiting | None:
        return asked(job, concerning(self._intents, job))

    async def reconcile(self, about: ObjectRef) -> Result:
        job = self._job_objects.get(about.name, about.namespace)
        if job is None or not placeable(job) or is_true(job, "Failed") or is_true(job, "Complete"):
            return DONE
        placement = self._placements.get(placement_name(about), about.namespace)
        if placement is None or not decides(placement, job):
            return DONE
        said, before = self.asked(job), deferral_of(job, placement)
        now = self._clock.now()
        if said is None:
            if before and not before["started"]:
                why = "nothing asks for waiting any more"
                await self._write(job, placement, dict(before) | self._now(now, why), before)
            return DONE
        if before.get("started") and not said.suspendable:
            return DONE
        sites = [c for site in decided(placement) if (c := self._clusters.get(site)) is not None]
        if not sites or (job.get("spec") or {}).get("suspend"):
            return DONE
        try:
            found, again = self._decide(job, said, sites[0], before, now)
        except _WRONG as error:
            log.exception("the start of Job %s/%s cannot be decided", about.namespace, about.name)
            found, again = self._undecided(job, said, sites[0], before, now, f"{type(error).__name__}: {error}")
        if found != before:
            await self._write(job, placement, found, before)
        return DONE if found["started"] and not again else Result(requeue_after=again)

    async def _write(self, job: Obj, placement: Obj, found: dict[str, Any], before: Mapping[str, Any]) -> None:
        stored = (placement.get("status") or {}).get("deferral") or {}
        await self._client.patch(
            scheme.PLACEMENT,
            name(placement),
            job["metadata"]["namespace"],
            {"status": {"deferral": dict.fromkeys(stored) | found}},
            type=PatchType.MERGE,
            subresource="status",
        )
        await self._tell(job, found, before)

    def _undecided(
        self, job: Obj, said: Waiting, site: Obj, before: Mapping[str, Any], now: float, why: str
    ) -> tuple[dict[str, Any], float]:
        """It goes on as before for a while, and then starts."""
        since = parse_time(before["errorTime"]) if before.get("errorTime") else now
        since = min(since, now)
        due = min(since + ERROR_SECONDS, max(now, waits_at_most(job, said)))
        conditions = with_condition(before.get("conditions") or (), "Decided", "False", "Error", why, now)
        found = {"uid": uid(job), "cluster": name(site), "started": False, "startTime": format_time(due)} | dict(before)
        found |= {"errorTime": format_time(since), "conditions": conditions}
        if found["started"]:
            return found, AGAIN_SECONDS
        if now >= due:
            return found | self._now(now, f"its start cannot be decided since {format_time(since)}: {why}"), 0.0
        reason = f"its start cannot be decided: {why}; it starts then if that stays so"
        return found | {"startTime": format_time(due), "reason": reason}, min(AGAIN_SECONDS, due - now)

    def _decide(self, job: Obj, said: Waiting, site: Obj, before: Mapping[str, Any], now: float) -> tuple[dict[str, Any], float]:
        took = lengths(job, said, self._jobs.earlier(job))
        latest, why = waits_until(job, said, took)
        carbon, price = ahead(site, now), prices_ahead(site, now)
        found: dict[str, Any] = {"uid": uid(job), "cluster": name(site), "latestStartTime": format_time(latest)}
        if said.intent:
            found["intent"] = said.intent
        if before.get("conditions"):
            found["conditions"] = with_condition(before["conditions"], "Decided", "True", "Decided", "", now)
        widths = (said.least or workload.replicas(job), workload.replicas(job))
        cpus = workload.requests(workload.pod_spec(job))["cpu"]
        ran, running, pauses = _ran(before, now, widths[0]), bool(before.get("started")), said.suspendable and bool(took)
        left = tuple(t for each in took if (t := each - ran) > 0) if pauses else took
        if pauses:
            # What has run is not waiting. One that outlives what was expected is let run.
            latest += ran
            found["latestStartTime"] = format_time(latest)
        info = in_its_currency(site)
        wide = widths if said.least else (widths[1],) * 2
        waits = Waits(now, latest - now, left, pauses, wide, said.aims, tuple(sorted(self._jobs.taken(job).items())))
        hours = (sum(left) / len(left) if left else HOUR_SECONDS) / HOUR_SECONDS
        stands = Interruptible(hours, said.suspendable) if said.interruptible else None
        asks = replace(workload_info(job), interruptible=stands, waits=waits)
        currency = str(((site.get("spec") or {}).get("price") or {}).get("currency") or "EUR")
        found, best = self._on_capacity(found, before, asks, info, currency)
        wanted = [series for aim, series in ((CARBON, carbon), (COST, price)) if aim in said.aims]
        found["source"] = "; ".join(series.source for series in wanted)
        found["forecasts"] = [series.as_data() for series in wanted]
        known = [series for series in wanted if series.known]
        if not known:
            what = "electricity" if said.aims == (CARBON,) else "price" if said.aims == (COST,) else "electricity and price"
            return found | self._now(now, f"there is no forecast of the {what} of {name(site)} ({found['source']})"), 0.0
        if pauses and before.get("ranSeconds") is not None and not left:
            return dict(before) | {"started": True}, 0.0
        unit, hour, passed = unit_of(known), known[0].hour, known[0].passed
        load = watts(info, cpus)
        power = (load or 0.0) * widths[0]
        slack = (latest - now) / hour
        least = PAUSE_SHARE if running else LEAST_SHARE
        plan = schedule(
            Deferrable(slack, tuple(t / hour for t in left), pauses, widths if said.least else (widths[0],) * 2, power, unit),
            best.values,
            known=len(known[0].values),
            passed=passed,
            least=least,
        )
        found |= self._compared(before, plan, known, best.option, power, widths[0] * cpus / 1000, hour)
        emitted = self._emitted(before, site, power, now, widths[0])
        if load is None:
            found = {k: v for k, v in found.items() if k not in ("gramsAtOnce", "gramsThen")}
        if "gramsAtOnce" in found:
            found["savesGrams"] = round(found["gramsAtOnce"] - emitted - found.pop("gramsThen"), 3)
        if said.least:
            found["width"] = plan.runs[0][2]
        least_seconds = LEAST_SECONDS * hour / HOUR_SECONDS
        if pauses:
            found |= {"ranSeconds": round(ran, 3), "countedTime": format_time(now, micro=True)}
            found |= {} if load is None else {"ranGrams": round(emitted, 3)}
            held_for = now - parse_time(before["sinceTime"]) if before.get("sinceTime") else least_seconds
            # A clock that was set back does not make it wait for the same time again.
            held_for = least_seconds if held_for < 0 else held_for
            if running and (held_for < least_seconds or slack * hour < least_seconds):
                return dict(before) | _without(found, "width"), max(1.0, least_seconds - held_for) if slack > 0 else 0.0
            if before and not running and held_for < least_seconds and slack > 0:
                return dict(before) | found, max(0.1, min(least_seconds - held_for, slack * hour))
            toggled = not before or running == (plan.start > 0 and slack > 0) or found.get("width") != before.get("width")
            found |= {"sinceTime": format_time(now, micro=True) if toggled else before.get("sinceTime")}
        if plan.start <= 0 or slack <= 0:
            again = hour / 4 if pauses and slack > 0 else 0.0
            if running:
                return dict(before) | found, again
            return found | self._now(now, why if slack <= 0 else self._told(before, plan, found, unit)), again
        start = now + plan.start * hour
        told = self._told(before, plan, found, unit)
        return found | {"started": False, "startTime": format_time(start), "reason": told}, min(start - now, hour / 4)

    def _on_capacity(
        self, found: dict[str, Any], before: Mapping[str, Any], asks: WorkloadInfo, site: ClusterInfo, currency: str
    ) -> tuple[dict[str, Any], Timed]:
        """With the capacity that it goes on. What runs keeps the one that it has."""
        # With numpy, which a hub loads with its first decision.
        from metaos.scheduler.timing import options, told

        choices = options(asks, site)
        best = choices[0]
        if before.get("started") and before.get("capacity"):
            found |= {k: before[k] for k in ("capacity", "capacityReason", "cpuHourPrice") if k in before}
            best = next((c for c in choices if c.option.kind == before["capacity"]), best)
        elif best.price is not None:
            found |= {"capacity": best.option.kind, "capacityReason": told(asks, site, choices)}
            found["cpuHourPrice"] = round(best.price, 6)
        found["currency"] = currency
        return found, best

    def _compared(
        self,
        before: Mapping[str, Any],
        plan: Schedule,
        known: list[Ahead],
        option: Option,
        power: float,
        cpus: float,
        hour: float,
    ) -> dict[str, Any]:
        """Grams and money of the plan, against a start when it came, however often it is looked at again."""
        work = sum(hours * width for _, hours, width in plan.runs) / max(1, plan.runs[0][2]) * hour / HOUR_SECONDS
        at_once = ((0.0, sum(hours for _, hours, _ in plan.runs), 1),)
        found: dict[str, Any] = {}
        for series in known:
            if series.aim == CARBON:
                alone = len(known) == 1
                then = plan.intensity if alone else mean_along(series.values, plan.runs, series.passed)
                now = plan.intensity_now if alone else mean_along(series.values, at_once, series.passed)
                scale = hour / HOUR_SECONDS
                grams = plan.grams * scale if alone else power / 1000 * then * work
                first = plan.grams_now * scale if alone else power / 1000 * now * work
                found["gramsThen"] = grams
                found["gramsAtOnce"] = float(before.get("gramsAtOnce", round(first, 3)))
                found["intensityAtOnce"] = float(before.get("intensityAtOnce", round(now, 1)))
            else:
                prices = series.values if option.prices is None else option.prices.tolist()
                then = mean_along(prices, plan.runs, series.passed)
                money = mean_along(prices, at_once, series.passed)
                found["priceAtOnce"] = float(before.get("priceAtOnce", round(money, 6)))
                found["savesMoney"] = round((found["priceAtOnce"] - then) * cpus * work, 6)
        return found

    def _emitted(self, before: Mapping[str, Any], site: Obj, power: float, now: float, least: int) -> float:
        """Grams so far of one that pauses, by what the electricity is now."""
        ran = _ran(before, now, least) - float(before.get("ranSeconds") or 0.0)
        intensity = float(((site.get("status") or {}).get("carbon") or {}).get("intensity") or 0.0)
        return float(before.get("ranGrams") or 0.0) + power / 1000 * intensity * ran / HOUR_SECONDS

    def _told(self, before: Mapping[str, Any], plan: Schedule, found: Mapping[str, Any], unit: str) -> str:
        first = found.get("intensityAtOnce", found.get("priceAtOnce"))
        if not before or unit.startswith("of 100") or first is None or "reason" not in before:
            return plan.reason
        return f"{figure(plan.intensity)} {unit} then, {figure(first)} started at once"

    def _now(self, now: float, why: str) -> dict[str, Any]:
        return {"started": True, "startTime": format_time(now), "reason": why}

    async def _tell(self, job: Obj, found: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        saves = f"; saves about {found['savesGrams']:.3g} g" if found.get("savesGrams", 0) > 0 else ""
        wrong = any(c["type"] == "Decided" and c["status"] == "False" for c in found.get("conditions") or ())
        if found["started"] and before.get("started"):
            if found.get("width") != before.get("width"):
                await self._recorder.event(job, "Scaled", f"to {found.get('width')} pods at once: {found['reason']}")
        elif found["started"] and wrong:
            await self._recorder.event(job, "StartedUndecided", found["reason"], warning=True)
        elif found["started"]:
            where = f"; on {found['capacity']} capacity" if found.get("capacity") else ""
            await self._recorder.event(job, "Started", f"{found['reason']}{saves}{where}")
        elif before.get("started"):
            await self._recorder.event(job, "Paused", f"goes on at {found['startTime']}: {found['reason']}{saves}")
        elif not before or abs(parse_time(found["startTime"]) - parse_time(before["startTime"])) > TOLD_SECONDS:
            await self._recorder.event(
                job, "Deferred", f"starts at {found['startTime']}: {found['reason']}{saves}", warning=wrong
            )


def _sites_of_job(placement: Obj) -> list[str]:
    """The sites that a Placement of a Job names."""
    about = workload_of(placement)
    return list(decided(placement)) if about is not None and about.kind == "Job" else []


def _without(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in found.items() if k != key}


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for Jobs that may wait, where they are placed, and with every new forecast of their site."""
    reconciler = DeferralReconciler(manager, client, clock)
    jobs, placements = manager.informer(scheme.JOB), manager.informer(scheme.PLACEMENT)
    placements.add_index("jobs", _sites_of_job)

    def of_placement(obj: Obj) -> Iterable[ObjectRef]:
        about = workload_of(obj)
        if about is not None and about.kind == "Job":
            yield about

    def of_intent(intent: Obj) -> Iterable[ObjectRef]:
        return [ref(job) for job in jobs.list(intent["metadata"]["namespace"]) if concerns(intent, job)]

    manager.add(
        reconciler,
        [(scheme.JOB, lambda obj: [ref(obj)]), (scheme.PLACEMENT, of_placement), (scheme.INTENT, of_intent)],
    )

    def on_cluster(old: Obj | None, new: Obj | None) -> None:
        def figures(obj: Obj | None) -> Any:
            status = (obj or {}).get("status") or {}
            return status.get("carbon"), status.get("price"), ((obj or {}).get("spec") or {}).get("price")

        if new is None or figures(old) == figures(new):
            return
        for placement in placements.by_index("jobs", name(new)):
            about = workload_of(placement)
            job = jobs.get(about.name, about.namespace) if about is not None else None
            said = reconciler.asked(job) if job is not None and placeable(job) else None
            if job is not None and said is not None and (said.suspendable or held_until(job, said, placement)):
                manager.enqueue(NAME, ref(job), AFTER_PLACEMENT_SECONDS)

    manager.informer(scheme.CLUSTER).on_change(on_cluster)
