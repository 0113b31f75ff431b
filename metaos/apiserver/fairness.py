"""Priority and fairness: which level a request belongs to, whose it is, and who is next. Pure.

Kubernetes' "API Priority and Fairness" in spirit. Levels share nothing but the processor: what one level's callers send
never takes another's seats. Within a level each caller has a queue of its own, and free seats go round by the work that
a request means (start-time fair queueing), so a caller with hundreds of requests waits for itself. Everything is
bounded; what does not fit is refused with 429 and a time to try again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from metaos.reconcile.precedence import Turn
from metaos.resources import scheme
from metaos.security.authz import AUTHENTICATED, MASTERS, UserInfo, cluster_of, is_bootstrap

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Level:
    """``seats`` are taken at a time, a request takes one or, where it means much work, several. ``waiting``: requests of
    one flow, and of all, that may wait."""

    name: str
    seats: int
    waiting_of_flow: int
    waiting: int


#: What a site's life depends on: Leases, status, certificates.
SYSTEM = Level("system", 64, 64, 4096)
CONTROLLERS = Level("controllers", 32, 128, 1024)
#: Everything else that agents ask for, and administrators.
WORKLOAD_HIGH = Level("workload-high", 32, 128, 2048)
GLOBAL_DEFAULT = Level("global-default", 32, 128, 1024)
#: Who has not said who they are, or only holds a join token.
CATCH_ALL = Level("catch-all", 8, 16, 128)
LEVELS = (SYSTEM, CONTROLLERS, WORKLOAD_HIGH, GLOBAL_DEFAULT, CATCH_ALL)

#: Objects that a list may go through for one seat; and what one request takes at most, as a part of its level.
OBJECTS_PER_SEAT = 250
MOST_SEATS = 0.5


def classify(user: UserInfo, resource: str, subresource: str, source: str) -> tuple[Level, str]:
    """The level and the flow (whose queue) of a request; ``source`` is the caller's address, which tells apart those who
    have no name."""
    if cluster_of(user) is not None:
        vital = subresource in ("status", "tunnel") or resource in _VITAL
        return (SYSTEM if vital else WORKLOAD_HIGH), user.name
    if AUTHENTICATED not in user.groups or is_bootstrap(user):
        return CATCH_ALL, source
    if user.name.startswith(("system:controller", "system:serviceaccount:kube-system:")):
        return CONTROLLERS, user.name
    return (WORKLOAD_HIGH if MASTERS in user.groups else GLOBAL_DEFAULT), user.name


def turn_of(user: UserInfo, resource: str, subresource: str) -> Turn:
    """Agents' reports wait for what users ask for, unless that takes long and goes to no site."""
    if cluster_of(user) is None:
        lasts = (resource, subresource) in _LASTING or AUTHENTICATED not in user.groups
        return Turn.ANY if lasts else Turn.FIRST
    return Turn.LAST if resource in _TOLD or (resource, subresource) == (scheme.WORK.resource, "status") else Turn.ANY


#: What agents tell of what runs at their sites.
_TOLD: Container[str] = frozenset((scheme.EVENT.resource, scheme.POD.resource))
#: What waits for a device, makes thousands of them, or works out a plan.
_LASTING: Container[tuple[str, str]] = frozenset(
    ((scheme.DEVICE.resource, "command"), (scheme.DEVICE_BATCH.resource, ""), (scheme.PLACEMENT_REVIEW.resource, ""))
)
_VITAL: Container[str] = frozenset((scheme.LEASE.resource, scheme.CERTIFICATE_SIGNING_REQUEST.resource))


def width(level: Level, objects: int, more: int = 0) -> int:
    """Seats of a request that goes through so many objects, or takes some more for another reason."""
    return max(1, min(1 + more + objects // OBJECTS_PER_SEAT, int(level.seats * MOST_SEATS)))


@dataclass(slots=True)
class Flow(Generic[T]):
    """One caller. ``start``: the virtual time at which its next request is due."""

    start: float = 0.0
    running: int = 0
    waiting: deque[tuple[int, T]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """The seats of one level. Tickets are the caller's own; each is let in at most once."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self.taken = self.waiting = 0
        self._now = 0.0
        self._flows: dict[str, Flow[T]] = {}

    @property
    def flows(self) -> int:
        """Callers with something that runs or waits; no others are remembered."""
        return len(self._flows)

    def arrive(self, flow: str, seats: int, ticket: T) -> bool | None:
        """``True``: it runs. ``False``: it waits until :meth:`next` names it. ``None``: it is refused."""
        held = self._flows.get(flow)
        if not self.waiting and self.taken + seats <= self.level.seats:
            self._run(held or self._new(flow), seats)
            return True
        if self.waiting >= self.level.waiting or (held is not None and len(held.waiting) >= self.level.waiting_of_flow):
            return None
        (held or self._new(flow)).waiting.append((seats, ticket))
        self.waiting += 1
        return False

    def next(self) -> T | None:
        """The ticket that may run now: the first of the flow that is due first. Nobody overtakes it, however small."""
        if not self.waiting:
            return None
        flow = min((held for held in self._flows.values() if held.waiting), key=self._due)
        seats, ticket = flow.waiting[0]
        if self.taken + seats > self.level.seats:
            return None
        flow.waiting.popleft()
        self.waiting -= 1
        self._run(flow, seats)
        return ticket

    def leave(self, flow: str, seats: int) -> None:
        """A request that ran has ended."""
        held = self._flows[flow]
        self.taken -= seats
        held.running -= 1
        self._forget(flow, held)

    def give_up(self, flow: str, ticket: T) -> None:
        """A request that waited does not wait any longer."""
        held = self._flows[flow]
        entry = next(each for each in held.waiting if each[1] is ticket)
        held.waiting.remove(entry)
        self.waiting -= 1
        self._forget(flow, held)

    def _new(self, flow: str) -> Flow[T]:
        made = self._flows[flow] = Flow(start=self._now)
        return made

    def _due(self, flow: Flow[T]) -> float:
        return flow.start

    def _run(self, flow: Flow[T], seats: int) -> None:
        self._now = max(self._now, flow.start)
        flow.start = max(flow.start, self._now) + seats
        flow.running += 1
        self.taken += seats

    def _forget(self, flow: str, held: Flow[T]) -> None:
        if not held.running and not held.waiting:
            del self._flows[flow]


class Budget:
    """Bytes that are held for callers: so many for one, so many for all."""

    def __init__(self, each: int, total: int) -> None:
        self.each, self.total = each, total
        self.held = 0
        self._of: dict[str, int] = {}

    def take(self, flow: str, count: int) -> bool:
        """Whether there was room. The first of a caller always fits its own part."""
        mine = self._of.get(flow, 0)
        if self.held + count > self.total or (mine and mine + count > self.each):
            return False
        self._of[flow] = mine + count
        self.held += count
        return True

    def give(self, flow: str, count: int) -> None:
        self.held -= count
        left = self._of[flow] - count
        if left:
            self._of[flow] = left
        else:
            del self._of[flow]
