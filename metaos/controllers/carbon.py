"""Carbon: keeps every site's carbon intensity, past, now and forecast, in its status.

A replay can be moved while the hub runs: ConfigMap ``nemo-system/carbon-replay``, ``startHour`` and ``speed``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from metaos.accounting.carbon import FORECAST_HOURS, HOUR_SECONDS, TraceCarbonSource
from metaos.accounting.intensities import extended
from metaos.client import Client, PatchType
from metaos.clock import Clock
from metaos.controllers.settings import Get, Settings
from metaos.controllers.sources import figures
from metaos.plugins.points import LOCATION, UNKNOWN, CarbonSource
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, ObjectRef, deleting, format_time, ref

log = logging.getLogger(__name__)

NAME = "carbon"
REPLAY = "carbon-replay"
#: Seconds between looks: an hour of the source, within these bounds.
LEAST_SECONDS, MOST_SECONDS = 0.5, 300.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


class CarbonReconciler:
    """See the module."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, source: CarbonSource, get: Get | None = None) -> None:
        self._get = get
        self._client, self._clock, self._source = client, clock, source
        self._clusters = manager.informer(scheme.CLUSTER)
        self._speed = 1.0
        #: What a lasting source's figures of a site follow from, as they were last worked out. Bounded by the sites.
        self._basis: dict[str, tuple[float, float, dict[str, Any]]] = {}

    async def reconcile(self, about: ObjectRef) -> Result:
        cluster = self._clusters.get(about.name)
        if cluster is None or deleting(cluster):
            self._basis.pop(about.name, None)
            return DONE
        electricity = (cluster.get("spec") or {}).get("electricity") or {}
        zone = str(electricity.get("zone") or "")
        await self._fetch(zone)
        now, step = self._clock.now(), HOUR_SECONDS / (self._speed or 1.0)
        again = Result(requeue_after=min(MOST_SECONDS, max(LEAST_SECONDS, min(step / 2, step - now % step))))
        old = (cluster.get("status") or {}).get("carbon") or {}
        basis = now // step, self._speed, electricity
        if old and self._basis.get(about.name) == basis:
            # What a lasting source says changes with the step alone.
            return again
        series, problem = figures(self._source.intensity(zone, now))
        says = self._source.says(zone, now) + problem
        found: dict[str, Any] = {"source": says}
        found["step"], error = self._source.step(zone, now)
        if error is not None:
            found["error"] = round(error, 4)
        if series is not None:
            # One that stands still goes on by the hour.
            found["hourSeconds"] = step
            found |= {"intensity": series[0], "forecast": [round(v, 2) for v in series[:FORECAST_HOURS]]}
        elif electricity.get("carbonIntensity") is not None:
            # A zone that the source does not know: what the site states itself, and saying so.
            stated = float(electricity["carbonIntensity"])
            found = {"intensity": stated, "forecast": [], "source": "stated by the site", "step": "Stated"}
            if problem or not self._source.lasting:
                found["source"] += f"; {says}"
        elif zone:
            lacks = f"not known: {says}; it has no zone {zone!r}, and the site states no carbonIntensity"
            found = {"source": lacks if self._source.lasting else says, "step": UNKNOWN}
        else:
            found = {"source": "not known: the site file names no electricity zone and no carbonIntensity", "step": UNKNOWN}
        found["basis"] = self._source.basis if series is not None else LOCATION
        # Without how old it is: that changes all the time.
        said = found["source"].partition(",")[0].partition(" (")[0]
        now_and_who = _rounded(found.get("intensity")), f"{said} ({found['basis']})"
        # Averages and marginal figures are not mixed.
        before = old.get("past") if old.get("basis") == found["basis"] else None
        found["past"] = extended(before, now, step, *now_and_who, self._missed(zone, electricity))
        if {k: v for k, v in old.items() if k != "time"} != found:
            # What is not known any more goes: a merge would keep it.
            patch = {"status": {"carbon": dict.fromkeys(old) | found | {"time": format_time(now)}}}
            await self._client.patch(scheme.CLUSTER, about.name, "", patch, type=PatchType.MERGE, subresource="status")
        if self._source.lasting:
            self._basis[about.name] = basis
        return again

    def _missed(self, zone: str, electricity: dict[str, Any]) -> Callable[[float], float | None]:
        """What held while the hub was away: a replay knows, and so does a site that states one figure for all time."""

        def at(time: float) -> float | None:
            if not self._source.lasting:
                return None
            series = self._source.intensity(zone, time)
            return _rounded(series[0] if series else electricity.get("carbonIntensity"))

        return at

    async def _fetch(self, zone: str) -> None:
        """Asks an API, where it is time to. Whatever it does, the loop goes on: the source knows what to fall back to."""
        if self._get is None:
            return
        asked = self._source.due(zone, self._clock.now())
        if asked is not None:
            status, body = await self._get(asked.url, asked.headers)
            self._source.take(zone, status, body, self._clock.now())
            if status != 200:
                log.warning("carbon of zone %s: %s", zone, self._source.says(zone, self._clock.now()))

    def move(self, replay: Obj) -> None:
        """Follows the ConfigMap. A value that is no number is reported and ignored."""
        if not isinstance(self._source, TraceCarbonSource):
            return
        data = replay.get("data") or {}
        try:
            speed, hour = float(data.get("speed", 1)), float(data.get("startHour", 0))
            self._source.reset(start_time=self._clock.now(), start_hour=hour, speed=speed)
        except ValueError as error:
            log.error("ConfigMap %s/%s: %s; the replay goes on as before", SYSTEM_NAMESPACE, REPLAY, error)
            return
        self._speed = speed
        self._basis.clear()


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it, where there is a source."""
    if settings.carbon is None:
        return
    reconciler = CarbonReconciler(manager, client, clock, settings.carbon, settings.get)
    clusters = manager.informer(scheme.CLUSTER)

    manager.add(reconciler, [])

    def joined(old: Obj | None, new: Obj | None) -> None:
        if new is not None and (
            old is None or (old.get("spec") or {}).get("electricity") != (new.get("spec") or {}).get("electricity")
        ):
            manager.enqueue(NAME, ref(new))

    clusters.on_change(joined)

    def moved(old: Obj | None, new: Obj | None) -> None:
        if new is None or ref(new)[2:] != (SYSTEM_NAMESPACE, REPLAY) or (old is not None and old.get("data") == new.get("data")):
            return
        reconciler.move(new)
        for cluster in clusters.list():
            manager.enqueue(NAME, ref(cluster))

    manager.informer(scheme.CONFIG_MAP, SYSTEM_NAMESPACE).on_change(moved)


async def ensure_replay(client: Client, start_hour: float, speed: float) -> None:
    """Makes the ConfigMap by which a replay can be moved, where there is none."""
    obj: Obj = {
        **scheme.CONFIG_MAP.empty(REPLAY, SYSTEM_NAMESPACE),
        "data": {"startHour": f"{start_hour:g}", "speed": f"{speed:g}"},
    }
    try:
        await client.create(obj)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
