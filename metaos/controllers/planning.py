"""Answers PlacementReviews: where everything would go if objects were applied or the world changed. Nothing is done."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from metaos.clock import Clock
from metaos.controllers.facts import Facts, Jobs, decided, finished, placeable, placement_name, takes_room
from metaos.controllers.occupancy import Occupancy, Share
from metaos.controllers.settings import Settings
from metaos.controllers.worker import at_once
from metaos.plugins.registry import load_all
from metaos.reconcile.manager import Manager
from metaos.resources import scheme, workload
from metaos.resources.errors import ApiError, Cause, forbidden, invalid, too_many_requests
from metaos.resources.meta import Obj, ObjectRef, format_time, name, namespace, ref, uid
from metaos.resources.snapshot import Snapshot, WorkloadInfo
from metaos.resources.traffic import located, sending
from metaos.scheduler.conflicts import as_data
from metaos.scheduler.explain import placement_status
from metaos.scheduler.filters import FILTERS, Filter
from metaos.scheduler.scores import SCORES, Score
from metaos.scheduler.slack import planned

if TYPE_CHECKING:
    from metaos.scheduler.optimise import Optimum
    from metaos.scheduler.planning import Alternative, Changes, Measures, Outcome
    from metaos.scheduler.world import World

#: Workloads whose outcome is told one by one.
OUTCOMES_KEPT = 500
#: Workloads x sites that are placed at once: a table of 160 MB.
MOST_PAIRS = 20_000_000
#: From so many pairs on a plan takes longer than the event loop may (20 ms), and is made in the worker process.
MANY_PAIRS = 4_000
#: Workloads that stay though they would be better elsewhere, with what holds them, that an answer names.
HELD_KEPT = 20
#: Workloads that are read before others get their turn.
AT_ONCE = 50
#: Plans that are made or wait for the one that is.
MOST_WAITING = 8
_KINDS = {(k.api_version, k.kind) for k in scheme.WORKLOADS}


@dataclass(frozen=True, slots=True)
class Asked:
    """The world as it is, the workloads to decide anew, which of them the caller brought, and those that are there in another
    form as they are."""

    snapshot: Snapshot
    workloads: list[WorkloadInfo]
    brought: Set[ObjectRef]
    present: Mapping[ObjectRef, WorkloadInfo]
    #: Where everything is decided to be.
    places: Mapping[ObjectRef, Mapping[str, int]]
    #: Those that are not decided anew, unless they are displaced.
    others: list[WorkloadInfo]
    #: Of Jobs and CronJobs that the plan does not decide all of: what it leaves open.
    timing: Mapping[ObjectRef, str]


class Planner:
    """See the module. Reads the informers that the controllers have anyway."""

    def __init__(self, manager: Manager, clock: Clock, settings: Settings) -> None:
        self._clock, self._beside = clock, settings.decide
        self._facts = Facts(manager, clock, settings)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._placements = manager.informer(scheme.PLACEMENT)
        self._workloads = [manager.informer(k) for k in scheme.WORKLOADS]
        self._jobs = Jobs(manager)
        self._filters = load_all("metaos.filter", [n for n, _ in FILTERS])
        self._scores = [*(score for _, score in load_all("metaos.score", [score.name for score in SCORES])), *settings.scores]
        self._one, self._waiting = asyncio.Lock(), 0

    async def review(self, obj: Obj, visible: Callable[[str], bool]) -> Obj:
        """The review with its status. ``visible`` says of which namespaces the caller may see placements; of workloads in
        others it is told only how many would change. One is made at a time."""
        # With numpy, which a hub loads when it is needed.
        from metaos.scheduler.planning import Changes

        spec = obj.get("spec") or {}
        changes = Changes(
            frozenset(spec.get("drain") or ()),
            frozenset(spec.get("lose") or ()),
            tuple(sorted((spec.get("prices") or {}).items())),
            tuple(sorted((spec.get("carbonIntensities") or {}).items())),
        )
        if self._waiting >= MOST_WAITING:
            raise too_many_requests(f"{MOST_WAITING} plans are asked for already, and one is made at a time: ask again later")
        self._waiting += 1
        try:
            async with self._one:
                return {**obj, "metadata": {}, "status": await self._answer(spec, changes, visible)}
        finally:
            self._waiting -= 1

    async def _answer(self, spec: Mapping[str, Any], changes: Changes, visible: Callable[[str], bool]) -> dict[str, Any]:
        from metaos.scheduler.planning import alternatives, together

        objects = spec.get("objects") or ()
        for where in sorted({namespace(o) for o in objects}):
            if not visible(where):
                kind, why = scheme.PLACEMENT_REVIEW, f"you may not list placements in the namespace {where!r} of spec.objects"
                raise forbidden(kind.group, kind.plural, "", why)
        asked = await self.supposed(objects, changes)
        seen = {where for where in {w.ref.namespace for w in (*asked.workloads, *asked.others)} if visible(where)}
        # Beside the loop: agents' heartbeats do not wait for a large plan.
        decide = self._beside if len(asked.workloads) * len(asked.snapshot.clusters) >= MANY_PAIRS else at_once
        judges = self._filters, self._scores
        try:
            rows, left_out, outcomes = await decide(_outcomes, asked, changes, seen, *judges)
        except ValueError as error:
            raise _refused("spec", str(error)) from None
        told = [o for o in outcomes if o.workload.ref.namespace in seen]
        status = {
            "workloads": rows,
            "workloadsLeftOut": left_out + sum(o.changed for o in outcomes) - sum(o.changed for o in told),
            "unchanged": len(told) - len(rows) - left_out,
            "held": [_held(o) for o in told if o.held][:HELD_KEPT],
            "before": _measures(together([o.before for o in told])),
            "after": _measures(together([o.after for o in told])),
            "alternatives": [],
            "chosen": _measures(together([o.after for o in told if o.changed and o.plan.clusters])),
        }
        if spec.get("alternatives", True):
            found = await decide(alternatives, asked.snapshot, changes, outcomes, *judges, within=seen, places=asked.places)
            status["alternatives"] = [_alternative(a) for a in found]
        if spec.get("reoptimise"):
            status["reoptimised"] = await self._optimised(visible)
        return status

    async def optimum(self) -> tuple[Snapshot, Optimum]:
        """The world as it is, and all workloads placed in it at once. Raises ``ApiError`` 422 where these are too many."""
        from metaos.scheduler import exact
        from metaos.scheduler.optimise import optimise

        as_it_is = await self.supposed((), None)
        snapshot, everything = as_it_is.snapshot, as_it_is.workloads
        if len(everything) * len(snapshot.clusters) > MOST_PAIRS:
            pairs = f"{len(everything)} workloads x {len(snapshot.clusters)} sites"
            raise _refused("spec.reoptimise", f"{pairs} are too many at once, at most {MOST_PAIRS} pairs are possible")
        # Beside the loop, however few they are: small ones are solved exactly, which takes its time.
        # In the twin, where nothing is beside it, not at all.
        seconds = 0.0 if self._beside is at_once else exact.SECONDS
        return snapshot, await self._beside(optimise, snapshot, everything, self._filters, self._scores, seconds=seconds)

    async def _optimised(self, visible: Callable[[str], bool]) -> dict[str, Any]:
        _, found = await self.optimum()
        shown = [m for m in found.moves if visible(m.workload.ref.namespace)]
        return {
            "considered": found.considered,
            "before": round(found.before, 3),
            "after": round(found.after, 3),
            **({"gap": round(found.gap, 5)} if math.isfinite(found.gap) else {}),
            "movesLeftOut": len(found.moves) - len(shown[:OUTCOMES_KEPT]),
            "moves": [
                {
                    "kind": m.workload.ref.kind,
                    "namespace": m.workload.ref.namespace,
                    "name": m.workload.ref.name,
                    "from": sorted(m.workload.current),
                    "to": m.site,
                    "gain": round(m.gain, 3),
                }
                for m in shown[:OUTCOMES_KEPT]
            ],
        }

    async def supposed(self, objects: Iterable[Obj], changes: Changes | None) -> Asked:
        """The world with ``objects``, and what is to be decided in it; without ``changes`` all workloads are."""
        now = self._clock.now()
        there = {ref(o): o for informer in self._workloads for o in informer.list() if takes_room(o)}
        # A pod that is bound is never placed anew.
        present = {about: obj for about, obj in there.items() if placeable(obj)}
        brought: dict[ObjectRef, Obj] = {}
        rules: dict[str, dict[tuple[str, str], Obj]] = {}
        for found in objects:
            if (found.get("apiVersion"), found.get("kind")) in _KINDS and placeable(found) and not finished(found):
                brought[ref(found)] = found
            elif scheme.by_kind(str(found.get("apiVersion")), str(found.get("kind"))) in (scheme.INTENT, scheme.PLACEMENT_POLICY):
                rules.setdefault(namespace(found), {})[str(found["kind"]), name(found)] = found
        occupancy = Occupancy(self._clusters.list)
        places: dict[ObjectRef, dict[str, int]] = {}
        for about, obj in there.items():
            places[about] = self._places(obj)
            # What an update asks for counts where it is already, as when it is applied.
            spec = workload.pod_spec(brought.get(about, obj))
            each = workload.requests(spec)
            shown = brought.get(about, obj)
            priority, _ = self._facts.priority(shown)
            fixed = about.kind == "Pod" or workload.has_local_data(shown)
            share = Share(each["cpu"], each["memory"], places[about], workload.device_requests(spec), priority, fixed)
            occupancy.set(about, share)
        # What is there is asked first, as it holds its room already; then what comes, in the order in which it is brought:
        # applied like that, it is decided like that.
        everything = {about: present[about] for about in sorted(present)} | brought
        affected = [about for about in everything if changes is None or changes or about in brought or about.namespace in rules]
        world = occupancy.sites(ObjectRef("", "", "", ""))
        snapshot = Snapshot(now, world, self._flows(there, affected, places, world))
        updated, mix = present.keys() & brought.keys(), occupancy.mix()
        # Of each namespace once: looking at all its pods for each of its workloads would take long.
        evictions = {where: self._facts.evictions(where) for where in {about.namespace for about in affected}}
        merged = {where: self._rules(where, rules.get(where) or {}) for where in evictions}
        asked, timing = [], dict[ObjectRef, str]()
        for number, about in enumerate(affected):
            if number % AT_ONCE == AT_ONCE - 1:
                await self._clock.sleep(0)
            obj, where = everything[about], about.namespace
            placement, current = self._placement(about, obj), places.get(about) or {}
            info = self._facts.workload(obj, placement, current, now, merged[where], evictions[where], brought)
            asked.append(replace(info, mix=mix))
            # Of a Job that is there its Placement says when it starts.
            if about.kind == "CronJob" or (about.kind == "Job" and about not in present):
                timing[about] = planned(obj, merged[where][0], self._jobs.earlier(obj), now)
        highest = max((w.priority for w in asked if w.preempts), default=None)
        others = []
        if highest is not None and occupancy.lowest is not None and occupancy.lowest < highest:
            for about in sorted(present.keys() - set(affected)):
                obj = present[about]
                if places[about] and not workload.has_local_data(obj) and self._facts.priority(obj)[0] < highest:
                    info = self._facts.workload(obj, self._placement(about, obj), places[about], now)
                    others.append(replace(info, mix=mix))
                    if len(others) % AT_ONCE == 0:
                        await self._clock.sleep(0)
        earlier = {a: self._facts.workload(present[a], self._placement(a, present[a]), places[a], now) for a in updated}
        return Asked(snapshot, asked, frozenset(brought), earlier, places, others, timing)

    def _flows(
        self,
        there: Mapping[ObjectRef, Obj],
        affected: Iterable[ObjectRef],
        places: Mapping[ObjectRef, Mapping[str, int]],
        world: World,
    ) -> dict[tuple[str, str], float]:
        """What those send that are not decided anew, where links state what they carry."""
        found: dict[tuple[str, str], float] = {}
        if not world.bools["narrow"].any():
            return found
        for about in sorted(there.keys() - set(affected)):
            if places.get(about):
                info = self._facts.workload(there[about], None, places[about], self._clock.now())
                info = located(info, lambda peer: places.get(peer, {}), world.site, world.holding)
                for way, amount in sending(info, world.site).items():
                    found[way] = found.get(way, 0.0) + amount
        return found

    def _placement(self, about: ObjectRef, obj: Obj) -> Obj | None:
        found = self._placements.get(placement_name(about), about.namespace)
        of = ((found or {}).get("spec") or {}).get("workloadRef") or {}
        return found if not obj["metadata"].get("uid") or of.get("uid") == uid(obj) else None

    def _places(self, obj: Obj) -> dict[str, int]:
        return decided(self._placement(ref(obj), obj))

    def _rules(self, where: str, others: Mapping[tuple[str, str], Obj]) -> tuple[list[Obj], list[Obj]]:
        intents, policies = self._facts.rules(where)
        merged = {(str(o["kind"]), name(o)): o for o in (*intents, *policies)} | dict(others)
        ordered = [merged[key] for key in sorted(merged)]
        kinds = (scheme.INTENT.kind, scheme.PLACEMENT_POLICY.kind)
        return [o for o in ordered if o["kind"] == kinds[0]], [o for o in ordered if o["kind"] == kinds[1]]


def _outcomes(
    asked: Asked, changes: Changes, seen: Set[str], filters: Sequence[tuple[str, Filter]], scores: Sequence[Score]
) -> tuple[list[dict[str, Any]], int, list[Outcome]]:
    """What is told of each workload, how many of those are left out, and all outcomes in short. Of one that is displaced the last
    outcome counts."""
    from metaos.scheduler.planning import project

    rows: dict[ObjectRef, dict[str, Any]] = {}
    outcomes: dict[ObjectRef, Outcome] = {}
    telling: dict[ObjectRef, bool] = {}
    told = project(
        asked.snapshot,
        changes,
        asked.workloads,
        filters,
        scores,
        present=asked.present,
        places=asked.places,
        others=asked.others,
    )
    for found in told:
        about = found.workload.ref
        for kept in (rows, outcomes):
            kept.pop(about, None)
        telling[about] = about.namespace in seen and (found.changed or found.impossible is not None or about in asked.brought)
        if telling[about] and len(rows) < OUTCOMES_KEPT:
            rows[about] = _outcome(found) | ({"timing": said} if (said := _timing(asked, found)) else {})
        outcomes[about] = found.in_short()
    return list(rows.values()), sum(telling.values()) - len(rows), list(outcomes.values())


def _timing(asked: Asked, found: Outcome) -> str:
    """When it runs, as far as that is known before it is there."""
    said, waits = asked.timing.get(found.workload.ref, ""), found.workload.waits
    places = [site for site, _ in found.plan.clusters]
    here = next((site for site in asked.snapshot.clusters if site.name in places), None) if said and waits is not None else None
    if here is None or waits is None or waits.slack <= 0:
        return said
    from metaos.scheduler.timing import options

    best = options(found.workload, here)[0]
    when = f"in {best.hours:.3g} h" if best.hours > 0 else "at once"
    what = "" if best.carbon is None else f", at {best.carbon:.3g} gCO2eq/kWh"
    what += "" if best.price is None else f", on {best.option.kind} capacity"
    return f"{said}; by the forecasts of now it starts {when} on {here.name}{what}; the figures are of a start at once"


def _measures(found: Measures) -> dict[str, Any]:
    """``cost`` in EUR per hour, ``carbon`` in g/h, ``power`` in W, ``latency`` in ms; absent: not known."""
    values = {"cost": found.cost, "carbon": found.carbon, "power": found.power, "latency": found.latency}
    return {k: round(v, 6) for k, v in values.items() if v is not None and math.isfinite(v)}


def _clusters(places: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"name": site, "replicas": count} for site, count in sorted(places)]


def _outcome(found: Outcome) -> dict[str, Any]:
    about = found.workload.ref
    row: dict[str, Any] = {
        "kind": about.kind,
        "namespace": about.namespace,
        "name": about.name,
        "before": {"clusters": _clusters(found.workload.current.items()), **_measures(found.before)},
        "after": {"clusters": _clusters(found.plan.clusters), **_measures(found.after)},
        "reason": found.plan.reason,
        "complete": found.impossible is None,
        **placement_status(found.plan),
    }
    if found.traffic:
        row["traffic"] = list(found.traffic)
    if found.costs:
        row["costs"] = list(found.costs)
    if found.impossible is not None:
        row["conflict"] = as_data(found.impossible)
    return row


def _held(found: Outcome) -> dict[str, Any]:
    about, again = found.workload.ref, found.plan.again
    row = {"kind": about.kind, "namespace": about.namespace, "name": about.name, "reason": found.plan.reason}
    return row | ({} if again is None else {"until": format_time(again)})


def _refused(field: str, why: str) -> ApiError:
    kind = scheme.PLACEMENT_REVIEW
    return invalid(kind.group, kind.kind, "", [Cause("FieldValueInvalid", field, why)])


def _alternative(found: Alternative) -> dict[str, Any]:
    return {
        **_measures(found.measures),
        "weights": dict(zip(("cost", "carbon", "latency"), found.mix, strict=True)),
        "workloads": [
            {"kind": about.kind, "namespace": about.namespace, "name": about.name, "clusters": _clusters(places)}
            for about, places in found.places
        ],
    }
