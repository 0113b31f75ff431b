"""Migration (IBMC): takes down what is left on sites that a decision has left, make before break.

Start → ready → switch → drain → stop: a leftover goes only when every chosen site runs its share; first its endpoints are
no longer used (the draining annotation), then, after the drain time, its Work is deleted. All state is in the objects, so
the controller may crash at any line; how long something has drained is counted by the monotonic clock, and anew after a
start. What stands on an unreachable site waits there: it may still serve somebody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.concern import on_health, workload_of
from metaos.controllers.facts import concerning, placement_name, ruling
from metaos.controllers.fencing import stopped
from metaos.controllers.recorder import Recorder
from metaos.controllers.render import available, cluster_of, source_label, source_of
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    DRAINING,
    SOURCE_LABEL,
    Obj,
    ObjectRef,
    annotations,
    deleting,
    format_time,
    is_true,
    labels,
    name,
    namespace,
    uid,
)
from metaos.resources.snapshot import concerns

NAME = "migration"


class Step(StrEnum):
    """What to do with one leftover now."""

    WAIT = "Wait"
    SWITCH = "Switch"
    STOP = "Stop"


@dataclass(frozen=True, slots=True)
class Leftover:
    """A Work on a site that is not chosen any more. ``draining_since``: monotonic seconds, ``None`` before the switch."""

    site: str
    reachable: bool
    draining_since: float | None


def step(leftover: Leftover, chosen: Mapping[str, bool], drain_seconds: float, now: float) -> tuple[Step, float]:
    """The next step for a leftover and how long to wait for it. ``chosen``: site → whether it runs its share.

    With no chosen site at all, nothing is ever taken down: good work is not deleted for want of a better place.
    """
    if not chosen or not all(chosen.values()):
        return Step.WAIT, 0.0
    if not leftover.reachable:
        return Step.WAIT, 0.0
    if leftover.draining_since is None:
        return Step.SWITCH, 0.0
    remaining = leftover.draining_since + drain_seconds - now
    return (Step.STOP, 0.0) if remaining <= 0 else (Step.WAIT, remaining)


class MigrationReconciler:
    """See the module. Keys are workloads."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock, self._settings = client, clock, settings
        self._recorder = Recorder(client, clock, "migration-controller")
        self._workloads = {k.kind: manager.informer(k) for k in scheme.WORKLOADS}
        self._placements = manager.informer(scheme.PLACEMENT)
        self._policies = ruling(manager, scheme.PLACEMENT_POLICY)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._works = manager.informer(scheme.WORK)
        self._works.add_index("source", lambda w: [labels(w).get(SOURCE_LABEL, "")])
        #: Since when each Work is seen to drain. Bounded by the Works.
        self._draining: dict[str, float] = {}
        self._works.on_change(self._follow)

    def _follow(self, old: Obj | None, new: Obj | None) -> None:
        if new is None or DRAINING not in annotations(new):
            self._draining.pop(uid(new or old or {}), None)
        else:
            self._draining.setdefault(uid(new), self._clock.monotonic())

    async def reconcile(self, about: ObjectRef) -> Result:
        obj = self._workloads[about.kind].get(about.name, about.namespace)
        placement = self._placements.get(placement_name(about), about.namespace)
        if obj is None or placement is None or deleting(obj) or placement["spec"]["workloadRef"].get("uid") != uid(obj):
            return DONE
        works = {cluster_of(w): w for w in self._works.by_index("source", source_label(about)) if not deleting(w)}
        chosen = {c["name"] for c in placement["spec"].get("clusters") or ()}
        await self._keep(works, chosen)
        leftovers = {site: w for site, w in works.items() if site not in chosen}
        if not leftovers:
            await self._phase(placement, None, (), chosen)
            return DONE
        healthy = {c: (c in works and self._ready(c) and available(works[c])) for c in chosen}
        drain = self._drain(obj)
        now, waits, phase = self._clock.now(), [], "Starting"
        for site, found in sorted(leftovers.items()):
            left = Leftover(site, self._ready(site), self._draining.get(uid(found)))
            if "fencing" in found["spec"]:
                # What must not run twice is stopped first, by the work controller: break before make, as its owner asked.
                todo, wait = (Step.STOP if chosen and stopped(found) else Step.WAIT), 0.0
            else:
                todo, wait = step(left, healthy, drain, self._clock.monotonic())
            if todo is Step.SWITCH:
                await self._switch(obj, found, site, sorted(chosen), now)
                phase, wait = "Draining", drain
            elif todo is Step.STOP:
                await self._stop(obj, found, site)
                phase = "Stopped"
            elif left.draining_since is not None:
                phase = "Draining"
            if wait:
                waits.append(wait)
        await self._phase(placement, phase, sorted(leftovers), chosen)
        return Result(requeue_after=min(waits) + 0.01) if waits else DONE

    def _ready(self, site: str) -> bool:
        cluster = self._clusters.get(site)
        return cluster is not None and is_true(cluster, "Ready")

    def _drain(self, obj: Obj) -> float:
        for policy in concerning(self._policies, obj):
            stated = ((policy.get("spec") or {}).get("migration") or {}).get("drainSeconds")
            if stated is not None and concerns(policy, obj):
                return float(stated)
        return self._settings.drain

    async def _keep(self, works: Mapping[str, Obj], chosen: set[str]) -> None:
        """A site that was being left and is chosen again serves on."""
        for site, found in works.items():
            if site in chosen and DRAINING in annotations(found):
                patch = {"metadata": {"annotations": {DRAINING: None}}}
                await self._client.patch(scheme.WORK, name(found), namespace(found), patch)

    async def _switch(self, obj: Obj, found: Obj, site: str, chosen: Sequence[str], now: float) -> None:
        await self._recorder.event(obj, "ReplacementReady", f"ready on {', '.join(chosen)}")
        patch = {"metadata": {"annotations": {DRAINING: format_time(now, micro=True)}}}
        await self._client.patch(scheme.WORK, name(found), namespace(found), patch)
        await self._recorder.event(obj, "Switched", f"requests go to {', '.join(chosen)}; {site} drains")

    async def _stop(self, obj: Obj, found: Obj, site: str) -> None:
        try:
            await self._client.delete(scheme.WORK, name(found), namespace(found), uid=uid(found))
        except ApiError as error:
            if error.code != 404:
                raise
        await self._recorder.event(obj, "Stopped", f"stopped on {site}")

    async def _phase(self, placement: Obj, phase: str | None, leaving: Sequence[str], chosen: set[str]) -> None:
        """``Placement.status.migration``: what is under way, or how the last one ended."""
        before: dict[str, Any] = (placement.get("status") or {}).get("migration") or {}
        now = format_time(self._clock.now())
        if phase is None:
            if not before or before.get("phase") == "Done":
                return
            found: dict[str, Any] = {"phase": "Done", "endTime": now}
        else:
            # When it began is said once: what is read here may be older than what is stored.
            found = {"phase": phase, "from": list(leaving), "to": sorted(chosen)}
            if all(before.get(key) == value for key, value in found.items()):
                return
            going_on = before and before.get("phase") != "Done"
            found |= {"startTime": before.get("startTime", now) if going_on else now, "endTime": None}
        await self._client.patch(
            scheme.PLACEMENT, name(placement), namespace(placement), {"status": {"migration": found}}, subresource="status"
        )


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for workloads whose Placement or Works changed, and for all when a site comes or goes."""
    kinds = {k.kind for k in scheme.WORKLOADS}

    def of_placement(obj: Obj) -> list[ObjectRef]:
        about = workload_of(obj)
        return [about] if about is not None and about.kind in kinds else []

    def of_work(obj: Obj) -> list[ObjectRef]:
        about = source_of(obj)
        return [about] if about.kind in kinds else []

    manager.add(MigrationReconciler(manager, client, clock, settings), [(scheme.PLACEMENT, of_placement), (scheme.WORK, of_work)])
    on_health(manager, lambda about: manager.enqueue(NAME, about) if about.kind in kinds else None)
