"""Migration (IBMC): takes down what is left on sites that a decision has left, make before break.

Start → ready → switch → drain → stop: a leftover goes only when every chosen site runs its share; first its endpoints are
no longer used (the draining annotation), then, after the drain time, its Work is deleted. All state is in the objects, so
the controller may crash at any line; how long something has drained is counted by the monotonic clock, and anew after a
start. What stands on an unreachable site waits there: it may still serve somebody.

What intents forbid and what was displaced waits for nothing: its Work is deleted at once, whatever becomes of availability.
A site that cannot be reached is told when it is back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.barred import Bar, Barred
from metaos.controllers.concern import on_health, workload_of, works_by_source
from metaos.controllers.facts import basis, concerned, concerning, placement_name, ruling
from metaos.controllers.fencing import fencing, stopped
from metaos.controllers.moving import given_up, moves, volumes_of
from metaos.controllers.recorder import Recorder
from metaos.controllers.recovery import Recoveries
from metaos.controllers.render import available, cluster_of, source_label, source_of
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    DRAINING,
    Obj,
    ObjectRef,
    annotations,
    cluster_namespace,
    deleting,
    format_time,
    is_true,
    name,
    namespace,
    ref,
    uid,
)
from metaos.resources.reading import concerns
from metaos.resources.workload import has_local_data

NAME = "migration"


class Step(StrEnum):
    """What to do with one leftover now."""

    WAIT = "Wait"
    SWITCH = "Switch"
    STOP = "Stop"


@dataclass(frozen=True, slots=True)
class Leftover:
    """A Work on a site that is not chosen any more. ``draining_since``: monotonic seconds, ``None`` before the switch.
    ``barred``: it may not stay, see ``metaos.controllers.barred``. ``halted``: whether nothing of it runs there any more, of what
    must not run twice; ``None`` for other work."""

    site: str
    reachable: bool
    draining_since: float | None
    barred: bool = False
    halted: bool | None = None


def step(leftover: Leftover, chosen: Mapping[str, bool], drain_seconds: float, now: float) -> tuple[Step, float]:
    """The next step for a leftover and how long to wait for it. ``chosen``: site → whether it runs its share.

    With no chosen site at all, only what is barred is taken down: good work is not deleted for want of a better place.
    """
    if leftover.halted is not None:
        # What must not run twice is stopped first, by the work controller: break before make, as its owner asked.
        return (Step.STOP if leftover.halted and (chosen or leftover.barred) else Step.WAIT), 0.0
    if leftover.barred:
        return Step.STOP, 0.0
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
        self._works = works_by_source(manager)
        #: Since when each Work is seen to drain. Bounded by the Works.
        self._draining: dict[str, float] = {}
        self._works.on_change(self._follow)
        self._barred, self._recoveries = Barred(manager), Recoveries(manager, clock, settings)

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
        bars = self._barred.why(obj, placement, leftovers)
        for site, found in sorted(leftovers.items()):
            barred = bars.get(site)
            restored = any(works[c]["spec"].get("restore") for c in chosen if c in works)
            if has_local_data(obj) and not restored and (volumes_of(found) or moves(self._clusters.get(site))):
                # Only once its volumes are elsewhere and none are left here; until then the work controller sees to it.
                if given_up(found):
                    await self._stop(obj, found, site, None)
                    phase = "Stopped"
                continue
            once = "fencing" in found["spec"] or (barred is not None and self._fenced(obj))
            since = self._draining.get(uid(found))
            # What was stopped stays known until its successor is told to begin: where its volumes are it may yet go on.
            halted = stopped(found) and (barred is not None or chosen <= works.keys()) if once else None
            left = Leftover(site, self._ready(site), since, barred is not None, halted)
            todo, wait = step(left, healthy, drain, self._clock.monotonic())
            if todo is Step.SWITCH:
                await self._switch(obj, found, site, sorted(chosen), now)
                phase, wait = "Draining", drain
            elif todo is Step.STOP:
                await self._stop(obj, found, site, barred)
                phase = "Stopped"
            elif barred is not None:
                phase = "Stopping"
            elif left.draining_since is not None:
                phase = "Draining"
            if wait:
                waits.append(wait)
        await self._phase(placement, phase, sorted(leftovers), chosen)
        return Result(requeue_after=min(waits) + 0.01) if waits else DONE

    def _ready(self, site: str) -> bool:
        cluster = self._clusters.get(site)
        return cluster is not None and is_true(cluster, "Ready")

    def _fenced(self, obj: Obj) -> bool:
        policies = [p for p in concerning(self._policies, obj) if concerns(p, obj)]
        return fencing(obj, policies, self._settings.fencing_after, self._recoveries.backed(obj)) is not None

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

    async def _stop(self, obj: Obj, found: Obj, site: str, barred: Bar | None) -> None:
        try:
            await self._client.delete(scheme.WORK, name(found), namespace(found), uid=uid(found))
        except ApiError as error:
            if error.code != 404:
                raise
        await self._recorder.event(obj, "Stopped", f"stopped on {site}" + (f": {barred.text}" if barred else ""))

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
    """Runs it: for workloads whose Placement or Works changed, for all when a site comes or goes, and for whatever has a Work
    where other laws hold now, also of data that it reads, or other intents."""
    kinds = {k.kind for k in scheme.WORKLOADS}
    informers = {k.kind: manager.informer(k) for k in scheme.WORKLOADS}
    works, intents = manager.informer(scheme.WORK), manager.informer(scheme.INTENT)

    def of_placement(obj: Obj) -> list[ObjectRef]:
        about = workload_of(obj)
        return [about] if about is not None and about.kind in kinds else []

    def of_work(obj: Obj) -> list[ObjectRef]:
        about = source_of(obj)
        return [about] if about.kind in kinds else []

    manager.add(MigrationReconciler(manager, client, clock, settings), [(scheme.PLACEMENT, of_placement), (scheme.WORK, of_work)])
    on_health(manager, lambda about: manager.enqueue(NAME, about) if about.kind in kinds else None)

    def on_intent(old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or basis(old) != basis(new):
            for rule in (old, new):
                for obj in concerned(rule, informers) if rule is not None else ():
                    manager.enqueue(NAME, ref(obj))

    def on_law(old: Obj | None, new: Obj | None) -> None:
        if old is not None and new is not None and _laws(old) != _laws(new):
            for found in works.list(cluster_namespace(name(new))):
                for about in of_work(found):
                    manager.enqueue(NAME, about)
        # Who reads it may have been left on any site.
        data = {word for word, _ in _data_laws(old) ^ _data_laws(new)}
        for intent in intents.list() if data else ():
            edges = (intent.get("spec") or {}).get("traffic") or ()
            if any(edge[end].get("dataset") in data for edge in edges for end in ("from", "to")):
                for obj in concerned(intent, informers):
                    manager.enqueue(NAME, ref(obj))

    intents.on_change(on_intent)
    manager.informer(scheme.CLUSTER).on_change(on_law)


def _laws(cluster: Obj) -> list[str]:
    return list((cluster.get("spec") or {}).get("jurisdictions") or ())


def _data_laws(cluster: Obj | None) -> set[tuple[str, tuple[str, ...]]]:
    """(Data set, laws under which it is to be read), as a site states it."""
    stated = ((cluster or {}).get("spec") or {}).get("datasets") or ()
    return {(str(data["name"]), tuple(data.get("residency") or ())) for data in stated}
