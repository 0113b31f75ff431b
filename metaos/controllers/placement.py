"""Placement: decides for every workload which sites run it, and writes the decision down with its reasons.

A decision is made and accounted for in one step, so that no room is given away twice; a few are written at the same time, as they
then share a commit. Where others have to make way, nothing else is decided or written meanwhile. What a workload runs on is
changed by nobody here: the work and migration controllers carry the decision out.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers import written
from metaos.controllers.among import Among
from metaos.controllers.attention import SITES, Attention
from metaos.controllers.barred import Bar, Barred, displaced
from metaos.controllers.concern import workload_of, works_by_source
from metaos.controllers.facts import Facts, basis, concerned, decided, decides, finished, placeable, placement_name, takes_room
from metaos.controllers.fencing import halted, stopped
from metaos.controllers.flows import Flows
from metaos.controllers.occupancy import Occupancy, Share
from metaos.controllers.recorder import Recorder
from metaos.controllers.recovery import on_backing
from metaos.controllers.render import cluster_of, source_label, source_of
from metaos.controllers.reoptimising import SUGGESTED, suggestion
from metaos.controllers.settings import Settings
from metaos.controllers.waiting import WAITING, Waiting
from metaos.plugins.registry import load_all
from metaos.reconcile.manager import Manager
from metaos.reconcile.precedence import Turn
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme, workload
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    EVICTED,
    Obj,
    ObjectRef,
    annotations,
    controller_of,
    format_time,
    generation,
    is_true,
    name,
    namespace,
    owner_reference,
    parse_time,
    ref,
    uid,
)
from metaos.resources.snapshot import Snapshot, WorkloadInfo
from metaos.resources.traffic import edges_of, located, sends
from metaos.scheduler.conflicts import as_data, impossible
from metaos.scheduler.explain import REASONS, costs_status, kept, placement_status, tells, traffic_status
from metaos.scheduler.filters import FILTERS
from metaos.scheduler.framework import Plan, decide
from metaos.scheduler.scores import SCORES
from metaos.scheduler.standing import firm

if TYPE_CHECKING:
    from metaos.scheduler.preemption import Preemption

NAME = "placement"
#: Decisions that are written at the same time.
WORKERS = 4


class PlacementReconciler:
    """See the module."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock = client, clock
        self._recorder = Recorder(client, clock, "placement-controller")
        self._workloads = {k.kind: manager.informer(k) for k in scheme.WORKLOADS}
        self._placements = manager.informer(scheme.PLACEMENT)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._works = works_by_source(manager)
        self._facts = Facts(manager, clock, settings, self._places)
        self._filters = load_all("metaos.filter", [name for name, _ in FILTERS])
        self._scores = [*(score for _, score in load_all("metaos.score", [score.name for score in SCORES])), *settings.scores]
        # Decisions that the informer may not show yet, so that room is not given away twice. Bounded by the workloads.
        self._decided: dict[ObjectRef, dict[str, int]] = {}
        self._occupancy = Occupancy(self._clusters.list)
        self._clusters.on_change(self._occupancy.cluster_changed)
        self._flows = Flows(self._member, lambda site: self._occupancy.sites(SITES).site(site))
        self._enqueue: Callable[[ObjectRef, float], None] = lambda about, seconds: manager.enqueue(NAME, about, seconds)
        self._waiting = Waiting(self._enqueue)
        self.neighbours_changed = self._waiting.neighbours_changed
        self._attention = Attention(
            self._enqueue,
            clock,
            lambda: (obj for informer in self._workloads.values() for obj in informer.list()),
            lambda: self._occupancy.sites(SITES),
            self._occupancy.mix,
            self._scores,
        )
        self.site_changed = self._attention.site_changed
        self._other_classes = False
        #: The generations of the Intents and policies that each workload's reasons are of; ``None``: those were not written.
        #: Bounded by the workloads.
        self._ruled: dict[ObjectRef, list[tuple[str, int]] | None] = {}
        self._barred, self._among = Barred(manager), Among()

    async def reconcile(self, about: ObjectRef) -> Result:
        async with self._among.others():
            result = await self._look(about, alone=False)
        if result is None:
            async with self._among.nobody():
                result = await self._look(about, alone=True)
        return result or DONE

    async def _look(self, about: ObjectRef, *, alone: bool) -> Result | None:
        """``None``: others have to make way for it, for which it has to be ``alone``."""
        if about == SITES:
            self._attention.look_around()
            return DONE
        if about == WAITING:
            self._waiting.each()
            return DONE
        if self._other_classes:
            # Once, however many classes there are.
            self._other_classes = False
            for informer in self._workloads.values():
                for there in informer.list():
                    self.take_account(ref(there))
        self._attention.forget(about)
        obj = self._workloads[about.kind].get(about.name, about.namespace)
        placement = self._placements.get(placement_name(about), about.namespace)
        if obj is None or not placeable(obj):
            self._decided.pop(about, None)
            self._ruled.pop(about, None)
            self._waiting.forget(about)
            if obj is not None and placement is not None and takes_room(obj) and self._outlawed(obj, placement):
                await self._remove(obj, placement)
            return DONE
        if placement is not None and not decides(placement, obj):
            # Of an earlier object of the same name: garbage collection takes it away.
            placement, self._decided[about] = None, {}
            self.take_account(about)
        if placement is not None and finished(obj):
            self._waiting.forget(about)
            if sites := self._outlawed(obj, placement):
                await self._forget(placement, sites)
            return DONE
        now, world = self._clock.now(), self._occupancy.sites(about)
        rules = self._facts.rules_of(obj)
        asked = self._facts.workload(obj, placement, self._current(about, placement), now, rules)
        asked = replace(asked, mix=self._occupancy.mix(), displaced=self._stopping(about, placement))
        found = located(asked, self._places, world.site, world.holding)
        narrow = sends(found) and world.bools["narrow"].any()
        snapshot = Snapshot(now, world, self._flows.others(about) if narrow else {})
        found, plan = self._decide(snapshot, found, suggestion(placement, now))
        displacing = None if plan.complete else self._preemption(snapshot, found, plan)
        if displacing is not None and not alone:
            return None
        if displacing is not None:
            plan = displacing.plan
        # They are worked out at once, while the world is as it was decided upon.
        reasons = self._reasons(found, plan, placement, rules, snapshot)
        if displacing is not None:
            await self._displace(found, displacing)
        self._waiting.note(found, plan)
        await self._write(obj, placement, found, plan, reasons, now)
        if (sure := firm(found, plan, self._filters, self._scores)) is not None:
            self._attention.rely(about, sure)
        if not plan.complete and (word := self._facts.unknown_class(obj)):
            text = f"no PriorityClass with name {word} was found: its priority is 0 until there is one"
            await self._recorder.event(obj, "UnknownPriorityClass", text, warning=True)
        return self._again(found, plan, now)

    def _stopping(self, about: ObjectRef, placement: Obj | None) -> dict[str, str]:
        """Sites that it had to leave to who has a higher priority, and where it has not been stopped yet: should it be decided to
        be there again meanwhile, it is stopped all the same."""
        left = set(displaced(placement or {}))
        works = self._works.by_index("source", source_label(about)) if left else ()
        return {site: "a workload of a higher priority" for work in works if (site := cluster_of(work)) in left}

    def _reasons(
        self, found: WorkloadInfo, plan: Plan, placement: Obj | None, rules: tuple[list[Obj], list[Obj]], snapshot: Snapshot
    ) -> dict[str, Any]:
        """What the Placement's status tells of them. Those of a decision that stands are kept, as they were when it was made."""
        told, ruled = (placement or {}).get("status") or {}, [(uid(rule), generation(rule)) for each in rules for rule in each]
        world, now = self._occupancy.sites(found.ref), snapshot.now
        before, self._ruled[found.ref] = self._ruled.get(found.ref, ruled), ruled
        stands = dict(plan.clusters) == decided(placement) and before == ruled
        if stands and told.get("observedGeneration") == found.generation and tells(told, plan):
            reasons = {key: told[key] for key in REASONS if key in told}
        else:
            reasons = {**placement_status(plan), "scoredTime": format_time(now)}
        if found.traffic:
            places = [info for where, _ in plan.clusters if (info := world.site(where)) is not None]
            reasons["traffic"] = traffic_status(found, places)
        if parts := costs_status(found, dict(plan.clusters), world.site):
            reasons["costs"] = parts
        for key in ("traffic", "costs"):
            if key in reasons and kept(told.get(key) or (), reasons[key]):
                reasons[key] = told[key]
        if not plan.clusters or not plan.complete or not plan.satisfies:
            reasons["conflict"] = as_data(impossible(snapshot, found, self._filters))
        return reasons

    # -- what is not decided again --------------------------------------------------------------------------

    def _outlawed(self, obj: Obj, placement: Obj) -> set[str]:
        """Sites that it was decided to be on, and where it may not be any more."""
        if not decides(placement, obj):
            return set()
        bars = self._barred.why(obj, placement, decided(placement))
        return {site for site, bar in bars.items() if bar is Bar.RESIDENCY}

    async def _forget(self, placement: Obj, sites: Set[str]) -> None:
        """Of a Job that has ended nothing stays where it may not be: neither its manifest nor what it refers to."""
        spec = placement["spec"]
        left = [c for c in spec["clusters"] if c["name"] not in sites]
        reason = f"it has ended, and {', '.join(sorted(sites))} must forget it: {Bar.RESIDENCY.text}"
        stamped = spec | {"clusters": left, "reason": reason, "decidedTime": format_time(self._clock.now())}
        await self._client.update(placement | {"spec": stamped})

    async def _remove(self, obj: Obj, placement: Obj) -> None:
        """A bare Pod is placed once, so where it may not be any more it is deleted, as by a taint NoExecute."""
        sites = ", ".join(sorted(decided(placement)))
        await self._recorder.event(obj, "Removed", f"from {sites}: {Bar.RESIDENCY.text}", warning=True)
        try:
            await self._client.delete(scheme.POD, name(obj), namespace(obj), uid=uid(obj))
        except ApiError as error:
            if error.code != 404:
                raise

    # -- priority -------------------------------------------------------------------------------------------

    def _preemption(self, snapshot: Snapshot, found: WorkloadInfo, plan: Plan) -> "Preemption | None":
        """Which ones of lower priority give way, where that helps."""
        tenants = self._occupancy.tenants(found.priority) if found.preempts else {}
        if not tenants:
            return None
        # With numpy, as every decision.
        from metaos.scheduler.preemption import preempt

        return preempt(snapshot, found, plan, tenants, self._filters, self._scores)

    async def _displace(self, found: WorkloadInfo, chosen: "Preemption") -> None:
        """The victims are decided anew first: should the hub die between, there is room, and nobody is there twice."""
        about, stood = found.ref, self._decided.get(found.ref)
        self._decided[about] = dict(chosen.plan.clusters)
        self.take_account(about)
        by = f"{about.kind} {about.namespace}/{about.name}, whose priority is {found.priority}"
        try:
            for victim in chosen.victims:
                await self._leave(victim.ref, {chosen.site: by})
        except Exception:
            self._take_back(about, stood)
            raise
        # It is written now, with what stands until then.
        self._stands(about, stood)

    async def _leave(self, about: ObjectRef, claimed: Mapping[str, str]) -> None:
        obj = self._workloads[about.kind].get(about.name, about.namespace)
        self._attention.forget(about)
        if obj is None or not placeable(obj):
            return
        placement = self._placements.get(placement_name(about), about.namespace)
        now, world = self._clock.now(), self._occupancy.sites(about)
        rules = self._facts.rules_of(obj)
        there = self._facts.workload(obj, placement, self._current(about, placement), now, rules)
        found = replace(located(there, self._places, world.site, world.holding), displaced=claimed)
        snapshot = Snapshot(now, world, self._flows.others(about))
        plan = decide(snapshot, found, self._filters, self._scores)
        self._waiting.note(found, plan)
        await self._write(obj, placement, found, plan, self._reasons(found, plan, placement, rules, snapshot), now)

    # -- the snapshot ---------------------------------------------------------------------------------------

    def _current(self, about: ObjectRef, placement: Obj | None) -> dict[str, int]:
        if about in self._decided:
            return self._decided[about]
        return decided(placement)

    def _places(self, about: ObjectRef) -> dict[str, int]:
        """Where another workload is decided to be."""
        obj = self._workloads[about.kind].get(about.name, about.namespace)
        if obj is None or not takes_room(obj):
            return {}
        placement = self._placements.get(placement_name(about), about.namespace)
        if placement is not None and not decides(placement, obj):
            placement = None
        return self._current(about, placement)

    def _decide(self, snapshot: Snapshot, found: WorkloadInfo, suggested: str | None) -> tuple[WorkloadInfo, Plan]:
        """With the workload as it was decided on: where it was suggested, or near where those will be that it talks to."""
        if suggested is not None:
            plan = decide(snapshot, found, self._filters, self._scores, together=suggested, agreed=True)
            if dict(plan.clusters).keys() == {suggested}:
                return found, plan
        if not found.traffic:
            return found, decide(snapshot, found, self._filters, self._scores)
        # With numpy, which a hub loads with its first decision.
        from metaos.scheduler.applications import decide_among, expected, members_of

        everything = replace(snapshot, clusters=self._occupancy.sites(SITES))
        ahead = expected(everything, members_of(found, self._member), self._filters, self._scores)
        return decide_among(snapshot, found, ahead, self._filters, self._scores)

    def _member(self, about: ObjectRef) -> WorkloadInfo | None:
        """A workload with its traffic and where everybody is; ``None`` where it is not there, or has come to its end."""
        obj = self._workloads[about.kind].get(about.name, about.namespace)
        if obj is None or not placeable(obj) or finished(obj):
            return None
        placement = self._placements.get(placement_name(about), about.namespace)
        asked = self._facts.workload(obj, placement, self._places(about), self._clock.now())
        info = replace(asked, mix=self._occupancy.mix())
        world = self._occupancy.sites(SITES)
        return located(info, self._places, world.site, world.holding)

    def take_account(self, about: ObjectRef) -> None:
        """What a workload takes at which sites, and sends where, may have changed."""
        self._flows.changed(about)
        before = self._occupancy.places(about)
        obj = self._workloads[about.kind].get(about.name, about.namespace)
        if obj is None or not takes_room(obj):
            if self._occupancy.set(about, None):
                self._waiting.freed(before)
            return
        spec = workload.pod_spec(obj)
        asked = workload.requests(spec)
        placement = self._placements.get(placement_name(about), about.namespace)
        current = self._current(about, placement)
        # What a site was told to run has its room until it is told otherwise: where a new site is silent, that may take long. It
        # is taken away at once where it must leave for who has a higher priority.
        there, away = dict(current), displaced(placement or {})
        for work in self._works.by_index("source", source_label(about)):
            if (site := cluster_of(work)) not in away:
                told = _told(work)
                there[site] = max(there.get(site, 0), sum(current.values()) if told is None else told)
        fixed = about.kind == "Pod" or workload.has_local_data(obj)
        priority, _ = self._facts.priority(obj)
        devices = workload.device_requests(spec)
        if self._occupancy.set(about, Share(asked["cpu"], asked["memory"], there, devices, priority, fixed)):
            self._waiting.freed(before)

    def work_changed(self, old: Obj | None, new: Obj | None) -> None:
        """A Work came, went, or says another number."""
        about = source_of(new or old or {})
        if about.kind in self._workloads and (old is None or new is None or _told(old) != _told(new)):
            self.take_account(about)
            placement = self._placements.get(placement_name(about), about.namespace) if new is None else None
            if cluster_of(old or {}) in displaced(placement or {}):
                self._enqueue(about, 0.0)

    def classes_changed(self) -> None:
        """Priorities may be others. Before the next decision all are looked at again."""
        self._other_classes = True
        self._waiting.look_again()

    # -- the decision's object ------------------------------------------------------------------------------

    async def _write(
        self, obj: Obj, placement: Obj | None, found: WorkloadInfo, plan: Plan, reasons: dict[str, Any], now: float
    ) -> None:
        about = ref(obj)
        chosen = dict(plan.clusters)
        before, stood = found.current, self._decided.get(about)
        self._decided[about] = chosen
        ruled, self._ruled[about] = self._ruled.get(about), None
        self.take_account(about)
        told = placement is not None and placement.get("status") is not None
        try:
            if placement is None:
                placement = await self._create(obj, found, plan, reasons, now)
            else:
                placement = await self._write_spec(obj, placement, found, plan, now)
        except Exception as error:
            # The next look begins from what is stored: what was written before, which the informer may not show yet, unless
            # nobody knows.
            refused = isinstance(error, ApiError) and error.code < 500
            self._take_back(about, stood if refused else None)
            raise
        if set(chosen) != set(before):
            self.neighbours_changed()
        # Should this fail, the decision is stored all the same, and what the informer has of it may be older.
        await self._write_status(placement, obj, found, plan, reasons, now)
        self._ruled[about] = ruled
        if not told or set(chosen) != set(before):
            await self._tell(obj, before, plan)
        elif is_true(placement, "Scheduled") and not plan.complete:
            # It stays where it is, though it should not: who drains a site would wait, and not know what for.
            await self._recorder.event(obj, "Incomplete", plan.reason, warning=True)

    def _stands(self, about: ObjectRef, stood: dict[str, int] | None) -> None:
        """What was decided before; ``None``: the informer shows it."""
        if stood is None:
            self._decided.pop(about, None)
        else:
            self._decided[about] = stood

    def _take_back(self, about: ObjectRef, stood: dict[str, int] | None) -> None:
        self._stands(about, stood)
        self.take_account(about)

    async def _tell(self, obj: Obj, before: Mapping[str, int], plan: Plan) -> None:
        places = ", ".join(f"{c} ({n})" for c, n in plan.clusters)
        if not plan.clusters:
            await self._recorder.event(obj, "Unplaceable", plan.reason, warning=True)
        elif not before:
            await self._recorder.event(obj, "Placed", f"on {places}: {plan.reason}")
        elif set(dict(plan.clusters)) != set(before):
            await self._recorder.event(obj, "Moved", f"from {', '.join(sorted(before))} to {places}: {plan.reason}")

    async def _create(self, obj: Obj, found: WorkloadInfo, plan: Plan, reasons: dict[str, Any], now: float) -> Obj:
        fresh: Obj = {**scheme.PLACEMENT.empty(placement_name(ref(obj)), namespace(obj))}
        fresh["spec"] = written.stamped(fresh, written.spec(obj, plan), found, plan, now)
        fresh["metadata"]["ownerReferences"] = [owner_reference(obj)]
        return await self._client.create(fresh | {"status": written.status(fresh, obj, found, plan, reasons, now)})

    async def _write_spec(self, obj: Obj, placement: Obj, found: WorkloadInfo, plan: Plan, now: float) -> Obj:
        spec, present = written.spec(obj, plan), placement.get("spec") or {}
        # It may have to leave for others also where it was decided to be no more.
        told = found.displaced.keys() <= {*displaced(placement), *dict(plan.clusters)}
        if told and {k: present.get(k) for k in spec} == spec:
            return placement
        metadata = placement["metadata"] | {"ownerReferences": [owner_reference(obj)]}
        return await self._client.update(
            placement | {"metadata": metadata, "spec": written.stamped(placement, spec, found, plan, now)}
        )

    async def _write_status(
        self, placement: Obj, obj: Obj, found: WorkloadInfo, plan: Plan, reasons: dict[str, Any], now: float
    ) -> None:
        status = written.status(placement, obj, found, plan, reasons, now)
        if status != (placement.get("status") or {}):
            await self._client.update(placement | {"status": status}, subresource="status")

    def _again(self, found: WorkloadInfo, plan: Plan, now: float) -> Result:
        """When time alone will change the decision: at the end of a toleration, a cool-down, or the hour of a spent budget."""
        waits = [] if plan.again is None else [max(0.0, plan.again - now)]
        for site in found.current:
            cluster = self._clusters.get(site)
            for taint in ((cluster or {}).get("spec") or {}).get("taints") or ():
                if taint.get("effect") == "NoExecute" and taint.get("timeAdded"):
                    since = parse_time(taint["timeAdded"])
                    seconds = [
                        found.policy.toleration_seconds,
                        *(float(t.get("tolerationSeconds") or 0) for t in found.tolerations),
                    ]
                    waits += [since + s - now for s in seconds if since + s > now]
        return Result(requeue_after=min(waits) + 0.1) if waits else DONE


def _told(work: Obj) -> int | None:
    """How many a site was told to run; ``None`` where it was told to stop, and may not have yet, or goes on there should its
    volumes not arrive elsewhere."""
    first = work["spec"]["manifests"][0]
    if halted(work):
        return 0 if stopped(work) and not workload.has_local_data(first) else None
    return workload.replicas(first)


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for every workload, and for all that a changed site, intent or policy may concern."""
    reconciler = PlacementReconciler(manager, client, clock, settings)
    informers = {k.kind: manager.informer(k) for k in scheme.WORKLOADS}

    def pod(obj: Obj) -> Iterable[ObjectRef]:
        if EVICTED in annotations(obj):
            owner = controller_of(obj)
            if owner:
                yield ObjectRef(str(owner["apiVersion"]).rpartition("/")[0], owner["kind"], namespace(obj), owner["name"])
        if placeable(obj):
            yield ref(obj)

    intents = manager.informer(scheme.INTENT)

    def of_rule(obj: Obj) -> Iterable[ObjectRef]:
        for found in concerned(obj, informers):
            if placeable(found) or takes_room(found):
                # Its traffic may be another one.
                reconciler.take_account(ref(found))
                yield ref(found)

    def of_placement(obj: Obj) -> Iterable[ObjectRef]:
        about = workload_of(obj)
        if about is not None:
            yield about

    manager.add(
        reconciler,
        [
            (scheme.POD, pod),
            (scheme.PLACEMENT_POLICY, of_rule),
        ],
        workers=WORKERS,
        turn=Turn.FIRST,
    )

    manager.informer(scheme.CLUSTER).on_change(reconciler.site_changed)
    manager.informer(scheme.WORK).on_change(reconciler.work_changed)
    manager.informer(scheme.PRIORITY_CLASS).on_change(lambda old, new: reconciler.classes_changed())

    def on_intent(old: Obj | None, new: Obj | None) -> None:
        # Whether it is fulfilled, which its status says, follows from decisions.
        if old is None or new is None or basis(old) != basis(new):
            for obj in (old, new):
                for about in of_rule(obj) if obj is not None else ():
                    manager.enqueue(NAME, about)

    manager.informer(scheme.INTENT).on_change(on_intent)
    on_backing(manager, lambda about: manager.enqueue(NAME, about))

    def on_workload(old: Obj | None, new: Obj | None) -> None:
        reconciler.take_account(ref(new or old or {}))
        if old is not None and new is not None and basis(old) == basis(new):
            return
        reconciler.neighbours_changed()
        for obj in (old, new):
            if obj is not None and obj.get("kind") != "Pod" and placeable(obj):
                manager.enqueue(NAME, ref(obj))

    for informer in informers.values():
        informer.on_change(on_workload)

    def on_placement(old: Obj | None, new: Obj | None) -> None:
        # Also of one that has no place: others may have to make way.
        moved = old is None or new is None or decided(old).keys() != decided(new).keys()
        for about in of_placement(new or old or {}):
            reconciler.take_account(about)
            # Who talks to it is looked at again: it may come nearer, or be out of reach now.
            for edge in edges_of(about, intents.by_index("about", about.namespace)) if moved else ():
                if edge.ref is not None:
                    manager.enqueue(NAME, edge.ref)
        if new is not None and annotations(old or {}).get(SUGGESTED) != annotations(new).get(SUGGESTED):
            for about in of_placement(new):
                manager.enqueue(NAME, about)
        # A decision that somebody deleted is made again.
        if new is None and old is not None:
            for about in of_placement(old):
                manager.enqueue(NAME, about)

    manager.informer(scheme.PLACEMENT).on_change(on_placement)
