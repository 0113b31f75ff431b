"""What an explanation of a conflict is made of: requirements, what would have to change of them, and ways out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metaos.resources.snapshot import Edge, Target, WorkloadInfo

#: What giving up something counts that has no amount, beside shares of amounts: 1 is "as much again as was asked".
PLAIN_COST = 1.0
#: Ways out that are told, and sites that one is told by name.
RELAXATIONS_KEPT, SITES_TOLD = 5, 5


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that is asked: in people's words, with where it was said, and the workload that asks for nothing else.

    ``fixed``: no way out, as it is the law, not for sale, or a fact. ``target``, ``resource``, ``edge``: what has an amount."""

    text: str
    source: str
    filter: str
    alone: WorkloadInfo
    fixed: bool = False
    target: Target | None = None
    resource: str = ""
    edge: Edge | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What would have to be given up of a requirement for one site. ``share``: how far, as a share of what is asked."""

    requirement: Requirement
    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Relaxation:
    """A way out: these changes, and the workload can run on ``cluster``; empty: on those sites that take a part of it already."""

    cluster: str
    changes: tuple[Change, ...]

    @property
    def cost(self) -> float:
        return sum(c.share for c in self.changes)


@dataclass(frozen=True, slots=True)
class Impossible:
    """``conflict`` is empty where no site could take anything at present: then ``facts`` says why, by site. ``room``: where
    there is room for some of ``replicas`` and not for all, for how many; ``conflict`` is then what limits them."""

    conflict: tuple[Requirement, ...]
    relaxations: tuple[Relaxation, ...]
    facts: tuple[tuple[str, str], ...]
    replicas: int = 0
    room: int | None = None
    #: Whether sites meet each of ``conflict``, and not all of them together however the replicas are divided.
    division: bool = False


def several(names: Sequence[str], told: int = SITES_TOLD) -> str:
    """``a, b and 3 more``."""
    more = f" and {len(names) - told} more" if len(names) > told else ""
    return ", ".join(names[:told]) + more


def order(way: Relaxation) -> tuple[float, int, str]:
    """The least is told first."""
    return way.cost, len(way.changes), way.cluster


def least(ways: Sequence[Relaxation]) -> list[Relaxation]:
    """Without those that give up all that another one does, and more."""
    sets = [frozenset(c.requirement.text for c in way.changes) for way in ways]
    return [way for way, mine in zip(ways, sets, strict=True) if not any(other < mine for other in sets)]
