"""Intent: says whether each intent holds, by which measurement, since when, and what could be had instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.concern import workload_of
from metaos.controllers.facts import Jobs, concerned, concerning, decided, placeable, placement_name, ruling
from metaos.controllers.recorder import Recorder
from metaos.controllers.recovery import Recoveries
from metaos.controllers.settings import Settings
from metaos.network.intents import evaluate
from metaos.network.recovery import Recovery, holds_until, judge_recovery
from metaos.network.traffic import judge_traffic
from metaos.reconcile.manager import Manager
from metaos.reconcile.precedence import Turn
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import meta, scheme
from metaos.resources.backups import workload_of as backed_up
from metaos.resources.meta import Obj, ObjectRef, deleting, generation, labels, name, namespace, ref, uid
from metaos.resources.reading import cluster_info, concerns, targets_of, workload_info
from metaos.resources.snapshot import ClusterInfo, WorkloadInfo
from metaos.resources.targets import RECOVERY
from metaos.resources.traffic import edges_of, located
from metaos.scheduler.slack import of_job

NAME = "intent"
#: One key for changes of sites: however many there are at once, every intent is looked at once.
SITES = ObjectRef(scheme.CLUSTER.group, scheme.CLUSTER.kind, "", "")
SETTLE_SECONDS = 0.2
#: After a recovery point is too old, so that it is seen to be.
MARGIN_SECONDS = 0.5
#: For every so many workloads that an intent is about, news of one of them waits so much longer: they often come together, and
#: each look is at all of them.
MANY, MANY_SECONDS = 20, 0.1
_KINDS = {kind.kind: kind for kind in scheme.WORKLOADS}


class IntentReconciler:
    """See the module."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._manager, self._client, self._clock = manager, client, clock
        self._recorder = Recorder(client, clock, "intent-controller")
        self._intents = ruling(manager, scheme.INTENT)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._placements = manager.informer(scheme.PLACEMENT)
        self._workloads = {k.kind: manager.informer(k) for k in scheme.WORKLOADS}
        self._jobs, self._policies = Jobs(manager), manager.informer(scheme.PLACEMENT_POLICY)
        self._recoveries = Recoveries(manager, clock, settings)
        #: The sites as decisions see them, in the order of their names. Bounded by the sites.
        self._sites: dict[str, ClusterInfo] = {}
        #: Those that changed since intents were last looked at for that.
        self._changed: set[str] = set()
        #: Of intents that hold: the sites that they are measured at. Any other intent is held against all sites. Bounded by the
        #: intents.
        self._measured_at: dict[ObjectRef, frozenset[str]] = {}
        #: How many workloads each intent was about. Bounded by the intents.
        self._about: dict[ObjectRef, int] = {}
        #: Workloads as they were told last, by all that this was made from. Bounded by the workloads.
        self._told: dict[ObjectRef, tuple[object, WorkloadInfo]] = {}

    def workload_gone(self, about: ObjectRef) -> None:
        self._told.pop(about, None)

    def workload_changed(self, intent: Obj) -> None:
        """One of those that it is about may be placed elsewhere, or ask for something else, or be gone."""
        about = ref(intent)
        seconds = MANY_SECONDS * (self._about.get(about, 0) // MANY)
        self._manager.enqueue(NAME, about, seconds)

    def site_changed(self, site: str, info: ClusterInfo | None) -> None:
        """``None``: it is gone."""
        self._changed.add(site)
        if info is None:
            self._sites.pop(site, None)
            return
        joins = site not in self._sites
        self._sites[site] = info
        if joins:
            self._sites = dict(sorted(self._sites.items()))

    async def reconcile(self, about: ObjectRef) -> Result:
        if about == SITES:
            changed, self._changed = self._changed, set()
            for each in map(ref, self._intents.list()):
                if not changed.isdisjoint(self._measured_at.get(each, changed)):
                    self._manager.enqueue(NAME, each)
            return DONE
        self._measured_at.pop(about, None)
        intent = self._intents.get(about.name, about.namespace)
        if intent is None or deleting(intent):
            self._about.pop(about, None)
            return DONE
        clusters = self._sites
        found: list[tuple[WorkloadInfo, list[ClusterInfo]]] = []
        at: set[str] = set()
        places: dict[ObjectRef, list[ClusterInfo]] = {}
        order = list(self._workloads)
        for obj in sorted(concerned(intent, self._workloads), key=lambda o: (order.index(o["kind"]), name(o))):
            if placeable(obj):
                placement = self._placements.get(placement_name(ref(obj)), about.namespace)
                places[ref(obj)] = [clusters[s] for s in decided(placement) if s in clusters]
                at.update(decided(placement))
                if concerns(intent, obj):
                    rules = concerning(self._intents, obj)
                    found.append((self._info(obj, decided(placement), rules), places[ref(obj)]))
        self._about[about] = len(places)
        before = intent.get("status") or {}
        now, edges = self._clock.now(), judge_traffic(intent, places, clusters)
        recoveries = self._measured(intent, [workload.ref for workload, _ in found])
        others = [*edges, *judge_recovery(intent, recoveries, now)]
        status = evaluate(intent, found, list(clusters.values()), now, others)
        ends = holds_until(intent, recoveries, now)
        again = DONE if ends is None else Result(requeue_after=max(0.0, ends - now) + MARGIN_SECONDS)
        if status["fulfilment"] == "Fulfilled" and not others and not any(workload.traffic for workload, _ in found):
            self._measured_at[about] = frozenset(at)
        if status == before:
            return again
        await self._client.update(intent | {"status": status}, subresource="status")
        if status["fulfilment"] != before.get("fulfilment"):
            good = status["fulfilment"] == "Fulfilled"
            await self._recorder.event(intent, str(status["fulfilment"]), str(status["message"]), warning=not good)
        return again

    def _measured(self, intent: Obj, about: Iterable[ObjectRef]) -> list[Recovery]:
        """What would become of workloads if their site were lost, where the intent asks for that."""
        if not any(target.name in RECOVERY for target in targets_of(intent)):
            return []
        found = (self._workloads[each.kind].get(each.name, each.namespace) for each in about)
        policies = self._policies.list
        return [
            self._recoveries.measured(obj, [p for p in policies(namespace(obj)) if concerns(p, obj)])
            for obj in found
            if obj is not None
        ]

    def _info(self, obj: Obj, current: Mapping[str, int], rules: list[Obj]) -> WorkloadInfo:
        """As decisions are told of it, as far as targets are measured by that."""
        about = ref(obj)
        # Not from its status, nor the intents' own, which change at any time.
        said = uid(obj), generation(obj), labels(obj), meta.annotations(obj)
        made_from = said, current, [(uid(rule), generation(rule), deleting(rule)) for rule in rules]
        told = self._told.get(about)
        if told is None or told[0] != made_from:
            told = made_from, workload_info(obj, current=current, intents=rules, traffic=edges_of(about, rules))
            self._told[about] = told
        info = told[1]
        if about.kind == scheme.JOB.kind:
            info = of_job(info, obj, rules, self._jobs.earlier(obj), {}, {}, self._clock.now())
        return located(info, self._places, self._sites.get, self._holding)

    def _holding(self, dataset: str) -> list[ClusterInfo]:
        return [info for _, info in sorted(self._sites.items()) if dataset in info.datasets]

    def _places(self, about: ObjectRef) -> dict[str, int]:
        return decided(self._placements.get(placement_name(about), about.namespace))


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for every intent, and for those that a changed placement or site may concern."""
    reconciler = IntentReconciler(manager, client, clock, settings)
    intents = manager.informer(scheme.INTENT)
    manager.add(reconciler, [], turn=Turn.LAST)

    def on_intent(old: Obj | None, new: Obj | None) -> None:
        if new is not None:
            manager.enqueue(NAME, ref(new))

    def on_workload(old: Obj | None, new: Obj | None) -> None:
        # Status counts change often and decide nothing.
        if old is None or new is None or (generation(old), labels(old)) != (generation(new), labels(new)):
            for obj in (old, new):
                for intent in concerning(intents, obj) if obj is not None else ():
                    reconciler.workload_changed(intent)

    def on_gone(old: Obj | None, new: Obj | None) -> None:
        if new is None and old is not None:
            reconciler.workload_gone(ref(old))

    def on_placement(old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or old.get("spec") != new.get("spec"):
            about = workload_of(new or old or {})
            obj = manager.informer(_KINDS[about.kind]).get(about.name, about.namespace) if about is not None else None
            for intent in concerning(intents, obj) if obj is not None else ():
                reconciler.workload_changed(intent)

    def on_cluster(old: Obj | None, new: Obj | None) -> None:
        info = None if new is None else cluster_info(new)
        if old is not None and info is not None and cluster_info(old) == info:
            return
        reconciler.site_changed(name(new or old or {}), info)
        manager.enqueue(NAME, SITES, SETTLE_SECONDS)

    def on_schedule(old: Obj | None, new: Obj | None) -> None:
        # What is backed up to when may be asked of it.
        for schedule in (old, new):
            kind, called = backed_up(schedule or {})
            obj = manager.informer(_KINDS[kind]).get(called, namespace(schedule or {})) if kind in _KINDS else None
            for intent in concerning(intents, obj) if obj is not None else ():
                reconciler.workload_changed(intent)

    intents.on_change(on_intent)
    manager.informer(scheme.BACKUP_SCHEDULE).on_change(on_schedule)
    for kind in scheme.WORKLOADS[:-1]:
        manager.informer(kind).on_change(on_workload)
    for kind in scheme.WORKLOADS:
        manager.informer(kind).on_change(on_gone)
    manager.informer(scheme.PLACEMENT).on_change(on_placement)
    manager.informer(scheme.CLUSTER).on_change(on_cluster)
