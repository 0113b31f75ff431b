"""Re-optimisation: every so often all workloads are placed at once, and those that would move are suggested to move.

A suggestion is an annotation of the Placement, so that it outlives the hub and everybody sees it. The placement controller
follows it where the site still has room, within cool-down and budget, and whatever the workload itself gains: somebody else may
gain by its leaving. One that is older than ``FRESH_SECONDS`` is not followed. Moves are suggested in an order in which each has
its room, at most ``MOST_MOVES`` at a time; the next ones follow after the next look.
"""

import logging

from metaos.client import Client, PatchType
from metaos.clock import Clock
from metaos.controllers.facts import decided, placement_name
from metaos.controllers.planning import Planner
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, annotations, format_time, parse_time

NAME = "reoptimisation"
ALL = ObjectRef(scheme.PLACEMENT.group, scheme.PLACEMENT.kind, "", "")
SUGGESTED = "meta-os.eu/suggested-site"
FRESH_SECONDS = 300.0
MOST_MOVES = 50

log = logging.getLogger(__name__)


def suggestion(placement: Obj | None, now: float) -> str | None:
    """The site that a Placement's workload should move to, where that was found a moment ago and has not been done."""
    site, _, when = annotations(placement or {}).get(SUGGESTED, "").rpartition("@")
    try:
        fresh = bool(site) and 0 <= now - parse_time(when) <= FRESH_SECONDS
    except ValueError:
        return None
    return site if fresh and decided(placement).keys() != {site} else None


class ReoptimisationReconciler:
    """See the module."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock, self._interval = client, clock, settings.reoptimise_interval
        self._planner = Planner(manager, clock, settings)
        self._placements = manager.informer(scheme.PLACEMENT)
        self._next = clock.monotonic() + self._interval

    async def reconcile(self, about: ObjectRef) -> Result:
        left = self._next - self._clock.monotonic()
        if left <= 0:
            self._next = self._clock.monotonic() + self._interval
            left = self._interval
            try:
                await self._look()
            except ApiError as error:
                # Once more at the next time: what is there may be less by then.
                log.warning("all workloads at once were not placed anew: %s", error.message)
        return Result(requeue_after=left)

    async def _look(self) -> None:
        # With numpy, which a hub loads when it is needed.
        from metaos.scheduler.optimise import in_turn

        snapshot, found = await self._planner.optimum()
        moves = in_turn(snapshot, [move for move in found.moves if move.workload.current])
        for move in moves[:MOST_MOVES]:
            about = move.workload.ref
            placement = self._placements.get(placement_name(about), about.namespace)
            if placement is None or decided(placement) != move.workload.current:
                continue
            metadata, said = placement["metadata"], {SUGGESTED: f"{move.site}@{format_time(self._clock.now(), micro=True)}"}
            patch = {"metadata": {"annotations": said, "uid": metadata["uid"]}}
            try:
                await self._client.patch(scheme.PLACEMENT, metadata["name"], about.namespace, patch, type=PatchType.MERGE)
            except ApiError as error:
                if error.code not in (404, 409, 422):
                    raise


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it, where the operator wants it."""
    if settings.reoptimise_interval > 0:
        manager.add(ReoptimisationReconciler(manager, client, clock, settings), [])
        manager.enqueue(NAME, ALL)
