"""Price: keeps what on-demand capacity costs at each site, now and in the hours to come, where there is a source."""

from __future__ import annotations

from typing import Any

from metaos.accounting.trace import FORECAST_HOURS, HOUR_SECONDS
from metaos.client import Client, PatchType
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.controllers.sources import figures
from metaos.plugins.points import PriceSource
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.meta import Obj, ObjectRef, deleting, format_time, ref

NAME = "price"
#: Seconds between looks.
LOOK_SECONDS = 300.0


class PriceReconciler:
    """Keys are Clusters."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, source: PriceSource) -> None:
        self._client, self._clock, self._source = client, clock, source
        self._clusters = manager.informer(scheme.CLUSTER)

    async def reconcile(self, about: ObjectRef) -> Result:
        cluster = self._clusters.get(about.name)
        if cluster is None or deleting(cluster):
            return DONE
        zone, now = str(((cluster.get("spec") or {}).get("electricity") or {}).get("zone") or ""), self._clock.now()
        series, problem = figures(self._source.price(about.name, zone, now))
        found: dict[str, Any] = {"source": self._source.says(about.name, zone, now) + problem}
        found["step"], error = self._source.step(about.name, zone, now)
        if error is not None:
            found["error"] = round(error, 4)
        if series is not None:
            values = [round(v, 6) for v in series[:FORECAST_HOURS]]
            found |= {"cpuHour": values[0], "forecast": values, "hourSeconds": HOUR_SECONDS}
        old = (cluster.get("status") or {}).get("price") or {}
        if {k: v for k, v in old.items() if k != "time"} != found:
            # What is not known any more goes: a merge would keep it.
            hour = format_time(now // HOUR_SECONDS * HOUR_SECONDS)
            patch = {"status": {"price": dict.fromkeys(old) | found | {"time": hour}}}
            await self._client.patch(scheme.CLUSTER, about.name, "", patch, type=PatchType.MERGE, subresource="status")
        return Result(requeue_after=LOOK_SECONDS)


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it, where there is a source."""
    if settings.price is None:
        return
    manager.add(PriceReconciler(manager, client, clock, settings.price), [])

    def joined(old: Obj | None, new: Obj | None) -> None:
        if new is not None and (old is None or (old.get("spec") or {}) != (new.get("spec") or {})):
            manager.enqueue(NAME, ref(new))

    manager.informer(scheme.CLUSTER).on_change(joined)
