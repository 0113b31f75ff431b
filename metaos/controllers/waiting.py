"""Workloads that wait for something besides sites: for room, for others' pods, or to be better off where there is no room yet."""

from collections.abc import Callable, Collection

from metaos.controllers.attention import SETTLE_SECONDS
from metaos.controllers.crowded import Crowded
from metaos.resources import scheme
from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import WorkloadInfo
from metaos.scheduler.framework import Plan

#: One key for those that wait for room: however much ends at once, each is looked at once.
WAITING = ObjectRef(scheme.PLACEMENT.group, scheme.PLACEMENT.kind, "", "")


class Waiting:
    """``enqueue(about, after seconds)`` has one, or ``WAITING``, looked at. Bounded by the workloads."""

    def __init__(self, enqueue: Callable[[ObjectRef, float], None]) -> None:
        self._enqueue = enqueue
        # Those that want more room than there is, with their priority: they are looked at again when some becomes free.
        self._waiting: dict[ObjectRef, int] = {}
        self._crowded = Crowded()
        # Those of them that wait for others' pods, or for these to be elsewhere.
        self._seeking: set[ObjectRef] = set()

    def note(self, found: WorkloadInfo, plan: Plan) -> None:
        """Whether it waits for room. What is to be everywhere waits for that of each site."""
        self._crowded.note(found.ref, plan.crowded)
        if plan.complete and not (found.mode == "Everywhere" and {"Capacity", "Displaced"} & set(plan.rejected.filters.values())):
            self._settle(found.ref)
            return
        self._waiting[found.ref] = found.priority
        if found.near:
            self._seeking.add(found.ref)

    def forget(self, about: ObjectRef) -> None:
        """It waits for nothing."""
        self._settle(about)
        self._crowded.note(about, ())

    def _settle(self, about: ObjectRef) -> None:
        self._waiting.pop(about, None)
        self._seeking.discard(about)

    def freed(self, sites: Collection[str]) -> None:
        """Who waits for room, or would be better off at one of these sites, is looked at again: there is more."""
        self.look_again()
        for about in self._crowded.at(sites):
            self._enqueue(about, SETTLE_SECONDS)

    def look_again(self) -> None:
        """At all that wait for room."""
        if self._waiting:
            self._enqueue(WAITING, SETTLE_SECONDS)

    def neighbours_changed(self) -> None:
        """Pods are elsewhere, or have other labels: who waits for such ones is looked at again."""
        if self._seeking:
            self._enqueue(WAITING, SETTLE_SECONDS)

    def each(self) -> None:
        """To be called for ``WAITING``. Who has a higher priority first; those of one are in the order in which they came to
        wait."""
        for one in sorted(self._waiting, key=lambda w: -self._waiting[w]):
            self._enqueue(one, 0.0)
