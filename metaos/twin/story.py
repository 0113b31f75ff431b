"""What a scenario says, as data: sites, workloads, faults with their times, and what is expected. Read by
:mod:`metaos.twin.scenario`, made by replays and copies of what is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from metaos.resources import scheme
from metaos.resources.meta import Obj, ObjectRef
from metaos.resources.scheme import Kind
from metaos.twin.network import Quality
from metaos.twin.timing import Timing

KINDS: dict[str, Kind] = {
    "Deployment": scheme.DEPLOYMENT,
    "StatefulSet": scheme.STATEFUL_SET,
    "DaemonSet": scheme.DAEMON_SET,
    "Job": scheme.JOB,
}
#: What a fault does: exactly one of these beside ``at`` and ``for``.
DEEDS = (
    "cut", "link", "killHub", "killHubAfterWrites", "restoreHub", "hubClock", "siteClock", "slowDisk", "stopAgent",
    "stopAgentAfterWrites", "powerOff", "flap", "lie", "change", "apply", "delete", "scale", "residency",
)  # fmt: skip
#: What is expected all the time.
ALWAYS = ("neverOn", "copiesAtMost", "readyAtLeast")


@dataclass(frozen=True, slots=True)
class SiteText:
    """One site (``count`` of them are many of these)."""

    obj: Obj
    agent: str
    clock: float
    quality: Quality


@dataclass(frozen=True, slots=True)
class WorkloadText:
    """One workload with what belongs to it. ``until``: when it is deleted."""

    kind: Kind
    namespace: str
    name: str
    replicas: int
    at: float
    until: float | None
    residency: tuple[str, ...]
    objects: tuple[Obj, ...]
    #: (kind, name) in its namespace, of what follows it.
    referents: tuple[tuple[str, str], ...]

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef(self.kind.group, self.kind.kind, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Fault:
    """``what`` from ``DEEDS``, for so many seconds where it ends."""

    at: float
    what: str
    value: Any
    seconds: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> dict[str, Any]:
        """As in a scenario file."""
        found: dict[str, Any] = {"at": f"{self.at:g}s", self.what: self.value, **self.more}
        return found if self.seconds is None else found | {"for": f"{self.seconds:g}s"}


@dataclass(frozen=True, slots=True)
class Hope:
    """What must hold at ``at``, or come about ``within`` so many seconds of it; from ``at`` on, for those of ``ALWAYS``."""

    at: float
    within: float
    what: str
    value: Any
    line: int

    def __str__(self) -> str:
        when = (
            f"from {self.at:g} s on"
            if self.what in ALWAYS
            else f"at {self.at:g} s" + (f" or within {self.within:g} s" if self.within else "")
        )
        return f"{self.what} {self.value} {when} (line {self.line})"


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything, read and checked."""

    file: str
    title: str
    seed: int
    duration: float
    settle: float
    start: float
    timing: Timing
    sites: tuple[SiteText, ...]
    workloads: tuple[WorkloadText, ...]
    objects: tuple[Obj, ...]
    faults: tuple[Fault, ...]
    hopes: tuple[Hope, ...]
    #: How many faults are drawn from the seed, and until when they are over.
    chaos: int = 0
    chaos_until: float = 0.0
    carbon: str = ""
    carbon_start_hour: float = 0.0
    #: The text as it was, for scenarios that are made from this one.
    raw: Mapping[str, Any] = field(default_factory=dict)

    def with_seed(self, seed: int | None) -> Scenario:
        return self if seed is None else replace(self, seed=seed)

    def named(self, words: Collection[str]) -> list[WorkloadText]:
        """The workloads of these names, in their order."""
        return [text for text in self.workloads if text.name in words]
