"""What decisions are told of a workload: read from the informers by all who decide or ask what would be decided."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from metaos.clock import Clock
from metaos.controllers.fencing import tolerated_seconds
from metaos.controllers.recovery import Recoveries, restores
from metaos.controllers.settings import Settings
from metaos.devices.workload import on_devices
from metaos.reconcile.informer import Informer
from metaos.reconcile.manager import Manager
from metaos.resources import affinity, scheme, workload
from metaos.resources.meta import (
    CLUSTER_LABEL,
    EVICTED,
    Obj,
    ObjectRef,
    annotations,
    controller_of,
    deleting,
    generation,
    is_true,
    label_selector,
    labels,
    name,
    namespace,
    parse_time,
    ref,
    uid,
)
from metaos.resources.reading import concerns, workload_info
from metaos.resources.scheme import Kind
from metaos.resources.snapshot import Move, WorkloadInfo
from metaos.resources.traffic import edges_of
from metaos.scheduler.capacity import RESERVED
from metaos.scheduler.slack import alike, of_job

#: These two exist in every cluster.
#: Kinds whose volumes go along to another site. Others stay where their data is.
MOVABLE = ("StatefulSet", "Deployment")
SYSTEM_PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}


def placement_name(about: ObjectRef) -> str:
    """``deployment-web``."""
    return f"{about.kind.lower()}-{about.name}"


def placeable(obj: Obj) -> bool:
    """Whether this is a workload that users want placed at sites: no mirror, no pod that a controller owns, none of NEMO's own,
    none for devices."""
    if namespace(obj).startswith("nemo-") or deleting(obj) or on_devices(obj):
        return False
    if obj.get("kind") == "Pod":
        return not controller_of(obj) and not (obj.get("spec") or {}).get("nodeName")
    return CLUSTER_LABEL not in labels(obj)


def finished(obj: Obj) -> bool:
    """A Job that has ended is not moved any more."""
    return obj.get("kind") == "Job" and (is_true(obj, "Complete") or is_true(obj, "Failed"))


def basis(obj: Obj) -> tuple[Any, ...]:
    """What decisions read of a workload, an intent or a policy, in short. The status, which changes most often, is not in it."""
    return uid(obj), generation(obj), labels(obj), annotations(obj), deleting(obj)


def takes_room(obj: Obj) -> bool:
    """Whether it counts at the sites that its Placement names: also a pod that is there, until it has ended."""
    if obj.get("kind") != "Pod":
        return placeable(obj) and not finished(obj)
    ended = (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return not (ended or deleting(obj) or controller_of(obj) or namespace(obj).startswith("nemo-"))


def decides(placement: Obj, obj: Obj) -> bool:
    """Whether a Placement is of this very object, not of an earlier one of its name."""
    return bool(((placement.get("spec") or {}).get("workloadRef") or {}).get("uid") == uid(obj))


def decided(placement: Obj | None) -> dict[str, int]:
    """Site → replicas, as a Placement says it."""
    return {c["name"]: int(c.get("replicas", 0)) for c in ((placement or {}).get("spec") or {}).get("clusters") or ()}


def about(rule: Obj) -> list[str]:
    """Index function of Intents and PlacementPolicies: the workloads that they name; a namespace where they may concern any, as
    with a selector, or with traffic between workloads."""
    where, refs = namespace(rule), _named(rule)
    return [f"{where}/{r.get('kind')}/{r.get('name')}" for r in refs] if refs else [where]


def _named(rule: Obj) -> list[Obj]:
    spec = rule.get("spec") or {}
    return [] if spec.get("traffic") else (spec.get("workloads") or {}).get("refs") or []


def ruling(manager: Manager, kind: Kind) -> Informer:
    """The informer of Intents or PlacementPolicies, in a form that :func:`concerning` can ask."""
    found = manager.informer(kind)
    found.add_index("about", about)
    return found


def concerning(rules: Informer, obj: Obj) -> list[Obj]:
    """The rules that may concern a workload, by name: of those that name their workloads only those that name this one."""
    where = namespace(obj)
    own, all_of_it = rules.by_index("about", f"{where}/{obj.get('kind')}/{name(obj)}"), rules.by_index("about", where)
    return sorted((*own, *all_of_it), key=name) if own and all_of_it else own or all_of_it


def concerned(rule: Obj, informers: Mapping[str, Informer]) -> Iterable[Obj]:
    """The workloads that an Intent or PlacementPolicy may concern, of the informers by kind."""
    if refs := _named(rule):
        found = (informers[r["kind"]].get(r.get("name", ""), namespace(rule)) for r in refs if r.get("kind") in informers)
        yield from (obj for obj in found if obj is not None)
        return
    for informer in informers.values():
        yield from informer.list(namespace(rule))


def _has_reserved(placement: Obj) -> list[str]:
    """Index function of Placements: of Jobs that have reserved capacity."""
    found = (placement.get("status") or {}).get("deferral") or {}
    return [RESERVED] if found.get("capacity") == RESERVED and found.get("started") else []


def _ended(job: Obj) -> list[str]:
    """Index function of Jobs: those that came to a good end, by what they run."""
    return [f"{namespace(job)}/{alike(job)}"] if is_true(job, "Complete") else []


class Jobs:
    """What decisions about a Job look at of others."""

    def __init__(self, manager: Manager) -> None:
        self._jobs, self._placements = manager.informer(scheme.JOB), manager.informer(scheme.PLACEMENT)
        self._jobs.add_index("ended", _ended)
        self._placements.add_index(RESERVED, _has_reserved)

    def earlier(self, job: Obj) -> list[Obj]:
        """Those of its namespace that ran the same and have ended."""
        return self._jobs.by_index("ended", f"{namespace(job)}/{alike(job)}")

    def taken(self, job: Obj) -> dict[str, float]:
        """CPUs of what sites reserve that others have, by site."""
        found: dict[str, float] = {}
        for placement in self._placements.by_index(RESERVED, RESERVED):
            word = str((placement["spec"].get("workloadRef") or {}).get("name", ""))
            other = self._jobs.get(word, namespace(placement))
            if other is None or not decides(placement, other) or finished(other) or uid(other) == uid(job):
                continue
            site = str(placement["status"]["deferral"].get("cluster", ""))
            cpus = workload.requests(workload.pod_spec(other))["cpu"] / 1000 * workload.replicas(other)
            found[site] = found.get(site, 0.0) + cpus
        return found


class Facts:
    """See the module. ``places``: where a workload is decided to be, where somebody knows it sooner than the informer of
    Placements."""

    def __init__(
        self,
        manager: Manager,
        clock: Clock,
        settings: Settings,
        places: Callable[[ObjectRef], Mapping[str, int]] | None = None,
    ) -> None:
        self._places = places or self._stored
        self._settings, self._jobs, self._recoveries = settings, Jobs(manager), Recoveries(manager, clock, settings)
        self._pods = manager.informer(scheme.POD)
        self._intents, self._policies = ruling(manager, scheme.INTENT), ruling(manager, scheme.PLACEMENT_POLICY)
        self._classes = manager.informer(scheme.PRIORITY_CLASS)
        self._namespaces = manager.informer(scheme.NAMESPACE)
        self._placements, self._claims = manager.informer(scheme.PLACEMENT), manager.informer(scheme.PERSISTENT_VOLUME_CLAIM)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._objects = {kind.kind: manager.informer(kind) for kind in scheme.WORKLOADS}
        self._workloads = list(self._objects.values())
        for informer in self._workloads:
            informer.add_index("claim", lambda obj: [f"{namespace(obj)}/{claim}" for claim in workload.claims(obj)])
            informer.add_index("repels", lambda obj: affinity.repels(obj) if takes_room(obj) else ())
        self._pods.add_index("evicted", lambda pod: [namespace(pod)] if EVICTED in annotations(pod) else [])

    def priority(self, obj: Obj) -> tuple[int, bool]:
        """Of a workload's pods, and whether they may displace others. Without a class of theirs it is the default one's; without
        any, and for a class that is not there, 0 and yes, as for pods in Kubernetes."""
        spec = workload.pod_spec(obj)
        word = str(spec.get("priorityClassName") or "")
        if word in SYSTEM_PRIORITIES:
            return SYSTEM_PRIORITIES[word], True
        if word:
            found = self._classes.get(word)
        else:
            usual = [c for c in self._classes.list() if c.get("globalDefault")]
            found = min(usual, key=lambda c: (c["value"], name(c)), default=None)
        if found is None:
            return 0, True
        return int(found.get("value") or 0), "Never" not in (found.get("preemptionPolicy"), spec.get("preemptionPolicy"))

    def unknown_class(self, obj: Obj) -> str:
        """The name of a PriorityClass that a workload names and that is not there."""
        word = str(workload.pod_spec(obj).get("priorityClassName") or "")
        return "" if not word or word in SYSTEM_PRIORITIES or self._classes.get(word) is not None else word

    def rules(self, where: str) -> tuple[list[Obj], list[Obj]]:
        """The Intents, by name, and PlacementPolicies of a namespace."""
        return sorted(self._intents.list(where), key=name), self._policies.list(where)

    def rules_of(self, obj: Obj) -> tuple[list[Obj], list[Obj]]:
        """Those that may concern a workload."""
        return concerning(self._intents, obj), concerning(self._policies, obj)

    def near(self, obj: Obj, instead: Mapping[ObjectRef, Obj] | None = None) -> tuple[affinity.PodTerm, ...]:
        """What a workload's pods and others' say of each other, where they are left open. ``instead``: workloads that are
        supposed to be there, or to be as these are."""
        supposed = instead or {}

        def pods_in(where: str) -> Iterable[Obj]:
            yield from (o for about, o in supposed.items() if about.namespace == where)
            yield from (o for i in self._workloads for o in i.list(where) if takes_room(o) and ref(o) not in supposed)

        def selected(selector: Mapping[str, Any]) -> Iterable[str]:
            selects = label_selector(selector)
            return (name(found) for found in self._namespaces.list() if selects(labels(found)))

        words = affinity.repelled_by(obj)
        there = (o for i in self._workloads for word in words for o in i.by_index("repels", word))
        repelling = [o for o in there if ref(o) not in supposed]
        repelling += [o for o in supposed.values() if not set(words).isdisjoint(affinity.repels(o))]
        return affinity.pod_terms(obj, pods_in, selected, repelling)

    def evictions(self, where: str) -> dict[str, set[str]]:
        """The sites that pods of a namespace were evicted from, by the UID of their controller or, without one, their own."""
        found: dict[str, set[str]] = {}
        for pod in self._pods.by_index("evicted", where):
            about = (controller_of(pod) or {}).get("uid") or uid(pod)
            found.setdefault(str(about), set()).add(str((pod.get("spec") or {}).get("nodeName", "")))
        return found

    def workload(
        self,
        obj: Obj,
        placement: Obj | None,
        current: Mapping[str, int],
        now: float,
        rules: tuple[list[Obj], list[Obj]] | None = None,
        evictions: Mapping[str, Iterable[str]] | None = None,
        instead: Mapping[ObjectRef, Obj] | None = None,
    ) -> WorkloadInfo:
        """Where its peers are is left open (see ``metaos.resources.traffic.located``). ``current``: where it is decided to be.
        ``rules``: others than those that hold (see :meth:`rules`). ``now``: seconds since the epoch.
        ``evictions``: those of the namespace, where they were looked
        for already. ``instead``: see :meth:`near`."""
        intents, policies = rules if rules is not None else self.rules_of(obj)
        if current and workload.has_local_data(obj) and (home := self._recoveries.returned(obj, current)):
            current = {home: sum(current.values())}
        found = workload_info(
            obj,
            current=current,
            intents=intents,
            policies=policies,
            evicted=(self.evictions(namespace(obj)) if evictions is None else evictions).get(uid(obj), ()),
            moves=[_move(m) for m in ((placement or {}).get("spec") or {}).get("moves") or ()],
            traffic=edges_of(ref(obj), intents),
            near=self.near(obj, instead),
        )
        priority, preempts = self.priority(obj)
        if found.local_data:
            others, claimed = self._homes(obj), workload.claimed_bytes(obj, self._claim_of(obj))
            found = replace(found, homes=frozenset() if current else others, claimed=claimed)
            if current and not others and (places := self._movable(found)):
                found = replace(found, pinned=False, mode="Whole", homes=places)
        found = replace(found, priority=priority, preempts=preempts)
        if found.ref.kind == "Job":
            deferral = ((placement or {}).get("status") or {}).get("deferral") or {}
            begun = deferral if deferral.get("uid") == uid(obj) else {}
            found = of_job(found, obj, intents, self._jobs.earlier(obj), begun, self._jobs.taken(obj), now)
        backed = found.local_data and self._recoveries.backed(obj)
        if backed and found.pinned and self._recoveries.leaves(obj, found.current):
            able = frozenset(name(c) for c in self._clusters.list() if restores(c))
            found = replace(found, pinned=False, settled=True, homes=able.union(found.current))
        fenced = tolerated_seconds(obj, [p for p in policies if concerns(p, obj)], self._settings, backed)
        if fenced > found.policy.toleration_seconds:
            found = replace(found, policy=replace(found.policy, toleration_seconds=fenced))
        if found.policy.drain_seconds is None:
            found = replace(found, policy=replace(found.policy, drain_seconds=self._settings.drain))
        return found

    def _claim_of(self, obj: Obj) -> Callable[[str], Obj | None]:
        return lambda claim: self._claims.get(claim, namespace(obj))

    def _movable(self, found: WorkloadInfo) -> frozenset[str]:
        """Where its volumes can be taken, the site that has them among them; empty: they stay."""
        places = frozenset(name(c) for c in self._clusters.list() if (c.get("status") or {}).get("volumeMoves"))
        home = self._clusters.get(next(iter(found.current))) if len(found.current) == 1 else None
        if found.ref.kind not in MOVABLE or home is None or name(home) not in places or not is_true(home, "Ready"):
            return frozenset()
        return places

    def _homes(self, obj: Obj) -> frozenset[str]:
        """Where others are decided to be that use a claim of this workload: its volume is made there."""
        found: set[str] = set()
        for claim in workload.claims(obj):
            for informer in self._workloads:
                for other in informer.by_index("claim", f"{namespace(obj)}/{claim}"):
                    if uid(other) != uid(obj) and takes_room(other):
                        found |= set(self._places(ref(other)))
        return frozenset(found)

    def _stored(self, about: ObjectRef) -> dict[str, int]:
        """Where another one is decided to be, as the informers have it."""
        obj = self._objects[about.kind].get(about.name, about.namespace)
        placement = self._placements.get(placement_name(about), about.namespace)
        return decided(placement) if obj is not None and placement is not None and decides(placement, obj) else {}


def _move(raw: Mapping[str, Any]) -> Move:
    """As the Placement keeps it."""
    return Move(parse_time(raw["time"]), tuple(raw.get("from") or ()), tuple(raw.get("to") or ()), bool(raw.get("forced")))
