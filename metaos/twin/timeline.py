"""What became of a scenario's workloads and sites, and when: seen through the API, so that a real hub and the twin's are looked
at with the same eyes. ``samples`` reads the times from it. Bound: one entry for each change that a scenario causes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import TypeVar

from metaos.client import Client
from metaos.clock import Clock
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj, ObjectRef, controller_of, is_true, name, namespace, ref, uid
from metaos.twin.story import WorkloadText

V = TypeVar("V")
#: (seconds, what was so from then on), in the order of time.
Course = list[tuple[float, V]]
#: What is timed: key → what it says.
LEGS = {
    "placed": "applied to placed",
    "available": "applied to available",
    "scaled": "scaled to available",
    "deleted": "deleted to gone",
    "lost": "failure to counted as lost",
    "replaced": "failure to replaced",
    "returned": "site started to ready",
    "hub": "hub started to answering",
    "away": "applied to available, while the hub is away",
}
#: Of a workload's status, how many of its replicas serve, by kind. A Job that has ended did.
_SERVING = {
    "Deployment": "availableReplicas",
    "StatefulSet": "availableReplicas",
    "DaemonSet": "numberAvailable",
    "Job": "ready",
}


@dataclass(slots=True)
class Timeline:
    """Seconds since the story began. ``deeds``: (when, what, about, replicas that are wanted of a workload from then on) with the
    words of ``DEEDS``."""

    deeds: list[tuple[float, str, str, int]] = field(default_factory=list)
    #: Workload → site → replicas, as decided.
    placed: dict[str, Course[dict[str, int]]] = field(default_factory=dict)
    #: Workload → site → pods that are ready.
    served: dict[str, Course[dict[str, int]]] = field(default_factory=dict)
    #: Workload → how many pods of it there are.
    pods: dict[str, Course[int]] = field(default_factory=dict)
    #: Workload → how many of it its status says serve.
    available: dict[str, Course[int]] = field(default_factory=dict)
    #: Site → whether the hub counts it as ready.
    ready: dict[str, Course[bool]] = field(default_factory=dict)


#: What is done to a workload (applied, scaled, deleted), a site (failed, started) or the hub (killed, started,
#: answered).
DEEDS = ("applied", "scaled", "deleted", "failed", "started", "hubKilled", "hubStarted", "hubAnswered")


class Observer:
    """``start`` when the story begins, ``stop`` at its end. The way to the hub may come and go."""

    def __init__(self, client: Client, clock: Clock, random: Random, workloads: Iterable[WorkloadText]) -> None:
        self.timeline = Timeline()
        self._clock, self._began = clock, clock.monotonic()
        workloads = list(workloads)
        self._workloads = {text.ref: text.name for text in workloads}
        #: By namespace and name of their Placements.
        self._decided = {(text.namespace, f"{text.kind.kind.lower()}-{text.name}"): text.name for text in workloads}
        #: Workload → pod's uid → its site, empty while it is not ready.
        self._pods: dict[str, dict[str, str]] = {}
        self._manager = Manager(client, clock, random)
        for kind in sorted({text.kind for text in workloads}, key=lambda kind: kind.kind):
            self._manager.informer(kind).on_change(self._workload)
        self._manager.informer(scheme.PLACEMENT).on_change(self._placement)
        self._manager.informer(scheme.POD).on_change(self._pod)
        self._manager.informer(scheme.CLUSTER).on_change(self._site)

    @property
    def now(self) -> float:
        return self._clock.monotonic() - self._began

    async def start(self) -> None:
        await self._manager.start()
        self._began = self._clock.monotonic()

    async def stop(self) -> None:
        await self._manager.stop()

    def did(self, what: str, about: str, replicas: int = 0) -> None:
        """Just now."""
        self.timeline.deeds.append((self.now, what, about, replicas))

    def _note(self, courses: dict[str, Course[V]], about: str, value: V) -> None:
        course = courses.setdefault(about, [])
        if not course or course[-1][1] != value:
            course.append((self.now, value))

    def _placement(self, old: Obj | None, new: Obj | None) -> None:
        obj = new or old or {}
        found = self._decided.get((namespace(obj), name(obj)))
        if found is not None:
            clusters = ((new or {}).get("spec") or {}).get("clusters") or ()
            self._note(self.timeline.placed, found, {c["name"]: int(c["replicas"]) for c in clusters})

    def _workload(self, old: Obj | None, new: Obj | None) -> None:
        obj = new or old or {}
        found = self._workloads.get(ref(obj))
        if found is not None:
            status = (new or {}).get("status") or {}
            count = int(status.get(_SERVING[obj["kind"]]) or 0) + int(status.get("succeeded") or 0)
            self._note(self.timeline.available, found, count)

    def _pod(self, old: Obj | None, new: Obj | None) -> None:
        obj = new or old or {}
        owner = controller_of(obj)
        if owner is None:
            return
        group = str(owner["apiVersion"]).rpartition("/")[0]
        found = self._workloads.get(ObjectRef(group, str(owner["kind"]), namespace(obj), str(owner["name"])))
        if found is None:
            return
        pods = self._pods.setdefault(found, {})
        if new is None:
            pods.pop(uid(obj), None)
        else:
            pods[uid(obj)] = str((new.get("spec") or {}).get("nodeName") or "") if is_true(new, "Ready") else ""
        sites: dict[str, int] = {}
        for site in filter(None, pods.values()):
            sites[site] = sites.get(site, 0) + 1
        self._note(self.timeline.served, found, sites)
        self._note(self.timeline.pods, found, len(pods))

    def _site(self, old: Obj | None, new: Obj | None) -> None:
        self._note(self.timeline.ready, name(new or old or {}), is_true(new or {}, "Ready"))


# -- reading it --------------------------------------------------------------------------------------------


def samples(line: Timeline) -> dict[str, dict[str, float]]:
    """Leg → what it is about → seconds; what did not come about is not in it. Pure."""
    found: dict[str, dict[str, float]] = {leg: {} for leg in LEGS}
    wanted: dict[str, int] = {}
    away = False

    def tell(leg: str, about: str, since: float, until: float | None) -> None:
        if until is not None:
            found[leg][about if about not in found[leg] else f"{about} at {since:.0f} s"] = until - since

    for at, what, about, replicas in sorted(line.deeds, key=lambda deed: deed[0]):
        if what in ("applied", "scaled"):
            wanted[about] = replicas
        if what in ("hubKilled", "hubAnswered"):
            away = what == "hubKilled"
        elif away and what in ("applied", "scaled", "deleted"):
            # How long a hub is away says nothing of how fast it is.
            if what == "applied":
                tell("away", about, at, first(line.available.get(about, ()), at, _at_least(replicas)))
        elif what == "applied":
            tell("placed", about, at, first(line.placed.get(about, ()), at, bool))
            tell("available", about, at, first(line.available.get(about, ()), at, _at_least(replicas)))
        elif what == "scaled":
            tell("scaled", about, at, first(line.available.get(about, ()), at, _exactly(replicas)))
        elif what == "deleted":
            tell("deleted", about, at, first(line.pods.get(about, ()), at, lambda count: count == 0))
        elif what == "failed":
            tell("lost", about, at, first(line.ready.get(about, ()), at, lambda ready: not ready))
            for workload, course in sorted(line.placed.items()):
                if about in (last(course, at) or {}):
                    elsewhere = _elsewhere(about, wanted[workload])
                    tell("replaced", f"{workload} ({about})", at, first(line.served.get(workload, ()), at, elsewhere))
        elif what == "started":
            tell("returned", about, at, first(line.ready.get(about, ()), at, bool))
        elif what == "hubStarted":
            answers = [t for t, deed, _, _ in line.deeds if deed == "hubAnswered" and t >= at]
            tell("hub", "hub", at, min(answers, default=None))
    return found


def _at_least(count: int) -> Callable[[int], bool]:
    return lambda served: served >= count


def _exactly(count: int) -> Callable[[int], bool]:
    return lambda served: served == count


def _elsewhere(site: str, count: int) -> Callable[[dict[str, int]], bool]:
    return lambda sites: sum(n for each, n in sites.items() if each != site) >= count


def first(course: Sequence[tuple[float, V]], since: float, holds: Callable[[V], bool]) -> float | None:
    """When it first held, from ``since`` on: at once, where it did already."""
    before = [value for at, value in course if at <= since]
    if before and holds(before[-1]):
        return since
    return next((at for at, value in course if at > since and holds(value)), None)


def last(course: Sequence[tuple[float, V]], until: float) -> V | None:
    """What was so then."""
    return next((value for at, value in reversed(course) if at <= until), None)
