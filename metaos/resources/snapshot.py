"""What a decision sees: immutable facts about sites, workloads, intents and policies.

Units: CPU in thousandths of a core, memory in bytes, time in seconds since the epoch, latency in milliseconds (round
trip), carbon in gCO2eq/kWh, power in watts, money in EUR per hour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metaos.resources.affinity import NodeWish, PodTerm, SpreadTerm
from metaos.resources.devices import Asked, Mix
from metaos.resources.meta import ObjectRef

GIB = 2**30
HOURS_PER_YEAR = 8760.0
MONTH_HOURS = HOURS_PER_YEAR / 12


@dataclass(frozen=True, slots=True)
class Taint:
    """``since`` is when it was added, where that is known."""

    key: str
    value: str
    effect: str
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """What is stated of the way to another site: round trip (ms), and bytes a second that it carries each way."""

    milliseconds: float | None = None
    bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Spot:
    """Capacity that may be taken back: its price per core and hour, how often that is expected in an hour, and the hours that
    starting again takes."""

    cpu_hour: float
    rate: float = 0.0
    restart: float = 0.0


@dataclass(frozen=True, slots=True)
class Licence:
    """What a licence costs by month: for each replica, and for a site that has any. ``None`` in both: its price is not stated."""

    name: str
    replica: float | None = None
    site: float | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Data that lies at a site: bytes (0: not stated), and the laws under which it is to be read; none: any."""

    size: int = 0
    residency: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Interruptible:
    """Work that may run on spot capacity: the hours that it takes, and whether it keeps what it has done."""

    hours: float
    keeps: bool


@dataclass(frozen=True, slots=True)
class Series:
    """Figures of the hours to come, the first one of the hour that begins at ``time`` (seconds since the epoch). ``hour``:
    seconds that one takes. ``error``: measured mean absolute error a day ahead, as a share of the mean."""

    values: tuple[float, ...] = ()
    time: float = 0.0
    hour: float = 3600.0
    error: float | None = None

    def after(self, now: float) -> tuple[tuple[float, ...], float]:
        """The figures from ``now`` on, and the share of the first hour that is over. A clock that was set back makes none younger
        than new."""
        age = max(0.0, now - self.time) / self.hour
        return self.values[math.floor(age) :], age % 1.0


@dataclass(frozen=True, slots=True)
class Waits:
    """Work that need not run at once. ``now``: when that is asked, seconds since the epoch; it starts ``slack`` seconds after
    that at the latest. ``lengths``: seconds that it may take at the least of its ``widths``, equally likely; none where nothing
    is known. ``aims``: what is waited for. ``taken``: CPUs of what sites reserve that others have, by site."""

    now: float
    slack: float
    lengths: tuple[float, ...] = ()
    suspendable: bool = False
    widths: tuple[int, int] = (1, 1)
    aims: tuple[str, ...] = ()
    taken: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Quota:
    """What one namespace of a site may still take; ``None``: any. In milli-CPU, bytes and pods. ``default``: what a pod that asks
    for nothing counts as; ``most``: what one pod may ask for."""

    cpu: int | None = None
    memory: int | None = None
    pods: int | None = None
    default_cpu: int = 0
    default_memory: int = 0
    most_cpu: int | None = None
    most_memory: int | None = None


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """One site. ``requested`` counts what is already decided for it, by (cpu, memory, pods)."""

    name: str
    ready: bool
    unschedulable: bool = False
    deleting: bool = False
    taints: tuple[Taint, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    tier: str = ""
    region: str = ""
    country: str = ""
    zone: str = ""
    owner: str = ""
    trust: str = "medium"
    #: The verifier that its evidence satisfies now; empty: none.
    attested: str = ""
    #: Whether its agent sends and receives volumes of work that moves.
    volumes: bool = False
    jurisdictions: frozenset[str] = frozenset()
    cpu: int = 0
    memory: int = 0
    pods: int = 0
    cpu_requested: int = 0
    memory_requested: int = 0
    pods_requested: int = 0
    #: Extended resources by name, and how many pods ask for what of them.
    devices: Mapping[str, int] = field(default_factory=dict)
    devices_requested: Mapping[Asked, int] = field(default_factory=dict)
    carbon: float | None = None
    forecast: tuple[float, ...] = ()
    pue: float = 1.0
    idle_watts: float = 0.0
    max_watts: float = 0.0
    capacity_cpu: int = 0
    cpu_hour: float | None = None
    memory_gib_hour: float = 0.0
    latencies: Mapping[str, float] = field(default_factory=dict)
    availability: float = 0.99
    latitude: float | None = None
    longitude: float | None = None
    #: Money for a GiB that leaves the site.
    egress_gib: float | None = None
    spot: Spot | None = None
    #: CPUs that are paid for anyway, for work that may wait.
    reserved: float = 0.0
    #: Of electricity (gCO2eq/kWh), and of on-demand capacity per core.
    intensities: Series = Series()
    prices: Series = Series()
    #: The currency of its prices, where what that is worth in EUR is not known: then none of them is.
    foreign: str = ""
    #: By name, where the site states a price of its own.
    licences: Mapping[str, Licence] = field(default_factory=dict)
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    #: gCO2eq per hour from making all of its hardware; 0 where nothing is stated.
    embodied: float = 0.0
    #: What pods may say in ``runtimeClassName`` there; ``None``: it has its own way to know.
    runtime_classes: frozenset[str] | None = None
    #: Bytes of the images that it holds, by full name. No decision but that about a move's cost goes by them.
    images: Mapping[str, int] = field(default_factory=dict, compare=False)
    #: By namespace, where there is any.
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Edge:
    """Traffic between a workload and another one, a site where data comes from or goes to, or a data set, as an Intent states it.
    ``sent`` and ``answered``: bytes a second from this workload to its peer, and back. ``weight`` and ``money``: what its round
    trip and its egress count in the scores of both ends."""

    #: In people's words: ``deployment/db``, ``site edge-paris`` or ``data set images``.
    peer: str
    #: The workload; ``None`` for a site and a data set.
    ref: ObjectRef | None
    #: Whether this workload is the one that asks.
    asks: bool
    intent: str
    weight: float = 1.0
    money: float = 0.0
    #: At most so long a round trip (ms); ``inf``: nothing is said.
    most: float = math.inf
    hard: bool = False
    sent: float = 0.0
    answered: float = 0.0
    #: Of a data set, of which the nearest copy is used.
    dataset: str = ""
    #: Where the peer is, with its replicas there. Empty: nowhere yet.
    at: tuple[tuple[ClusterInfo, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Users:
    """Regions where users are. ``shares``: how many of them, in parts of 1: then their mean round trip counts, else the worst."""

    regions: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.regions)

    @property
    def text(self) -> str:
        """`` from users in es (0.8), fr (0.2)``; empty where none are known."""
        if not self.shares:
            return f" from users in {', '.join(self.regions)}" if self.regions else ""
        said = (f"{region} ({share:.3g})" for region, share in zip(self.regions, self.shares, strict=True))
        return f" from users in {', '.join(said)}"


@dataclass(frozen=True, slots=True)
class Target:
    """One target of an intent, in the base unit of its name. ``condition``: one of TS 28.312's. ``value`` is what a bound
    compares with, ``low`` and ``high`` what a range does, ``values`` are names. ``users``: for latency. ``at_least``:
    replicas that must be up, for availability."""

    name: str
    condition: str
    value: float = math.nan
    values: tuple[str, ...] = ()
    low: float = math.nan
    high: float = math.nan
    hard: bool = False
    users: Users = Users()
    intent: str = ""
    priority: int = 50
    at_least: int = 1
    #: Whose residency it is, where that is not the workload's: ``data set images``.
    about: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """Use at least ``min_groups`` different values of ``by``, none with more than ``max_skew`` replicas over the least."""

    by: str
    min_groups: int = 1
    max_skew: int = 0
    #: Of a pod's topology spread constraint: with fewer groups in use than ``domains`` the least is none; ``strict``: a replica
    #: that would break it has no place. What is there already is not divided anew for it.
    domains: int = 0
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """One migration of the past: sites that were left and sites that joined. ``forced``: its site had to be left."""

    time: float
    left: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    forced: bool = False


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """Every PlacementPolicy that concerns a workload, merged: the strictest wins."""

    names: tuple[str, ...] = ()
    selectors: tuple[Callable[[Mapping[str, str]], bool], ...] = ()
    allowed: frozenset[str] | None = None
    preferred: frozenset[str] = frozenset()
    tolerations: tuple[Mapping[str, Any], ...] = ()
    spread: tuple[Spread, ...] = ()
    mode: str = ""
    #: By which divided replicas go to the sites that are named, and to no others; empty where scores decide.
    weights: Mapping[str, float] = field(default_factory=dict)
    failback: str = "WhenBetter"
    toleration_seconds: float = 0.0
    minimum_improvement: float = 5.0
    budget_per_hour: int = 12
    #: For so long after a move nothing moves for a gain.
    cool_down_seconds: float = 300.0
    #: For so long the old site goes on serving beside the new one; ``None``: as the hub is set.
    drain_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """One workload. ``cpu`` and ``memory`` are per replica. ``current`` is where it is decided to be now. ``moves`` are
    its latest migrations, newest last. ``mode``: Divided, Whole or Everywhere."""

    ref: ObjectRef
    uid: str
    generation: int
    replicas: int
    cpu: int
    memory: int
    mode: str
    #: Extended resources that one replica asks for.
    devices: Asked = ()
    #: What all workloads that have GPUs ask for: those who usually ask.
    mix: Mix = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    node_affinity: tuple[Mapping[str, Any], ...] = ()
    tolerations: tuple[Mapping[str, Any], ...] = ()
    local_data: bool = False
    pinned: bool = False
    #: Never moved for a gain, only when its site must be left.
    settled: bool = False
    current: Mapping[str, int] = field(default_factory=dict)
    evicted: frozenset[str] = frozenset()
    #: Of its PriorityClass; whether it may displace those of a lower one; sites that it has to leave, and to whom.
    priority: int = 0
    preempts: bool = True
    displaced: Mapping[str, str] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    targets: tuple[Target, ...] = ()
    policy: PolicyInfo = PolicyInfo()
    #: See ``metaos.resources.traffic``.
    traffic: tuple[Edge, ...] = ()
    runtime_class: str = ""
    #: Full names of its containers' images.
    images: tuple[str, ...] = ()
    #: Where claims lie that it uses, as others had them made there; and bytes that its claims ask for (0: not stated).
    homes: frozenset[str] = frozenset()
    claimed: int = 0
    #: That it needs, as Intents state it, by name.
    licences: tuple[Licence, ...] = ()
    #: ``None``: it does not stand being stopped by its site.
    interruptible: Interruptible | None = None
    #: ``None``: it runs from when it is placed.
    waits: Waits | None = None
    #: See ``metaos.resources.affinity``.
    near: tuple[PodTerm, ...] = ()
    spread: tuple[SpreadTerm, ...] = ()
    node_wishes: tuple[NodeWish, ...] = ()

    @property
    def weights(self) -> Mapping[str, float]:
        """Site → weight, where they decide how replicas are divided."""
        return self.policy.weights if self.mode == "Divided" else {}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The world at ``now``. Decisions are quickest where ``clusters`` is a ``metaos.scheduler.world.World``. ``flows``: bytes a
    second that others send already, by (from site, to site)."""

    now: float
    clusters: Sequence[ClusterInfo]
    flows: Mapping[tuple[str, str], float] = field(default_factory=dict)
