"""Which workloads are looked at again when sites change: those whose decisions may be others by now.

Where there are a thousand sites, some come or go at any time, and looking at everything each time would be most of what a hub
does. What is looked at goes through the queue of placements, one after another.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from metaos.clock import Clock
from metaos.controllers.facts import placeable, takes_room
from metaos.resources import scheme
from metaos.resources.devices import Mix
from metaos.resources.meta import Obj, ObjectRef, ref
from metaos.resources.reading import cluster_info
from metaos.resources.snapshot import Snapshot
from metaos.scheduler.scores import Score
from metaos.scheduler.standing import Firm, renewed, standing_alone

if TYPE_CHECKING:
    from metaos.scheduler.world import World

#: One key for changes of sites: however many there are at once, every workload is looked at once.
SITES = ObjectRef(scheme.CLUSTER.group, scheme.CLUSTER.kind, "", "")
SETTLE_SECONDS = 0.2
#: Between looks at all workloads, however many sites have other figures one after another, as with an hour's carbon. A site that
#: is lost or comes back is never waited with.
FULL_SECONDS = 2.0
#: A good site that comes back concerns nearly everybody, until those that went there first have filled it. So as many go first,
#: and then the others are asked once more whether it concerns them.
FIRST = 64


class Attention:
    """``enqueue(about, after seconds)`` has a workload, or ``SITES``, looked at; ``workloads()`` lists all; ``sites()`` are those
    of now with all that is decided to be there; ``mix()`` what those who have GPUs ask for. Bounded by both."""

    def __init__(
        self,
        enqueue: Callable[[ObjectRef, float], None],
        clock: Clock,
        workloads: Callable[[], Iterable[Obj]],
        sites: Callable[[], "World"],
        mix: Callable[[], Mix],
        scores: Sequence[Score],
    ) -> None:
        self._enqueue, self._clock, self._workloads = enqueue, clock, workloads
        self._sites, self._mix, self._scores = sites, mix, scores
        # Decisions that few sites can change.
        self._firm: dict[ObjectRef, Firm] = {}
        # Sites that came or went since workloads were last looked at for that, in this order; ``None``: more has changed.
        self._stood: dict[str, None] | None = {}
        #: Who was looked at for these sites already.
        self._done: set[ObjectRef] = set()
        #: When all workloads were last looked at, by the monotonic clock.
        self._looked = float("-inf")

    def forget(self, about: ObjectRef) -> None:
        """Whatever changes, it is looked at."""
        self._firm.pop(about, None)

    def rely(self, about: ObjectRef, sure: Firm) -> None:
        """Its decision stands until what ``sure`` says."""
        self._firm[about] = sure

    def site_changed(self, old: Obj | None, new: Obj | None) -> None:
        """Heartbeats and usage do not matter to decisions: only facts that a decision reads."""
        before, after = (None if obj is None else cluster_info(obj) for obj in (old, new))
        if before is not None and before == after:
            return
        wait = 0.0
        self._done.clear()
        if before is None or after is None or not standing_alone(before, after):
            self._stood = None
            # The first of many is looked at soon.
            wait = self._looked + FULL_SECONDS - self._clock.monotonic()
        elif self._stood is not None:
            self._stood[after.name] = None
        self._enqueue(SITES, max(SETTLE_SECONDS, wait))

    def look_around(self) -> None:
        """To be called for ``SITES``."""
        stood, self._stood = self._stood, {}
        if stood is None:
            self._looked = self._clock.monotonic()
        try:
            if stood is None or not self._firm:
                self._look_at_figures()
            elif not self._look_at(stood):
                self._stood = stood
                self._enqueue(SITES, SETTLE_SECONDS)
        except Exception:
            # The retry looks at everything.
            self._stood = None
            raise

    def _look_at_figures(self) -> None:
        """Anything about sites may have changed."""
        stands: dict[ObjectRef, Firm] = {}
        if self._firm:
            stands = renewed(Snapshot(self._clock.now(), self._sites()), self._firm, self._scores, self._mix())
            self._firm |= stands
        for about in self._all():
            if about not in stands:
                self._enqueue(about, 0.0)

    def _look_at(self, stood: Collection[str]) -> bool:
        """Sites have come or gone. False: of those whom they concern only the first are looked at yet."""
        now, world = self._clock.now(), self._sites()
        sites = [world.site(site) for site in stood]
        first = 0
        for about in self._all():
            if about in self._done:
                continue
            sure = self._firm.get(about)
            if sure is None or any(site is None or sure.concerned(site, now) for site in sites):
                if sure is not None and (first := first + 1) > FIRST:
                    return False
                self._done.add(about)
                self._enqueue(about, 0.0)
        self._done.clear()
        return True

    def _all(self) -> Iterable[ObjectRef]:
        return (ref(obj) for obj in self._workloads() if placeable(obj) or takes_room(obj))
