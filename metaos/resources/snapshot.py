"""What a decision sees: immutable facts about sites, workloads, intents and policies, read from API objects.

Units: CPU in thousandths of a core, memory in bytes, time in seconds since the epoch, latency in milliseconds (round
trip), carbon in gCO2eq/kWh, power in watts, money in EUR per hour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from metaos.resources import quantity, workload
from metaos.resources.affinity import NodeWish, PodTerm, SpreadTerm, node_wishes, spread_terms
from metaos.resources.devices import Asked, Mix, extended
from metaos.resources.meta import (
    Obj,
    ObjectRef,
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

GIB = 2**30
#: Over which what a site's hardware embodies is spread, where nothing is stated (as the ledger does it).
LIFETIME_YEARS, HOURS_PER_YEAR = 4.0, 8760.0
MONTH_HOURS = HOURS_PER_YEAR / 12
#: What is assumed of a site that states nothing: the share of time that it is up, by tier.
TIER_AVAILABILITY = {"cloud": 0.9995, "edge": 0.995, "gateway": 0.98, "device": 0.95}
TRUST_LEVELS = {"low": 1, "medium": 2, "high": 3}
#: Units that a target may be given in, as factors of the first one of its name.
UNITS: dict[str, dict[str, float]] = {
    "latency": {"ms": 1.0, "s": 1000.0, "us": 0.001},
    "carbonIntensity": {"gCO2eq/kWh": 1.0, "kgCO2eq/kWh": 1000.0, "kgCO2eq/MWh": 1.0},
    "emissions": {"gCO2eq/h": 1.0, "kgCO2eq/h": 1000.0},
    "energy": {"W": 1.0, "kW": 1000.0, "mW": 0.001},
    "cost": {"EUR/h": 1.0, "EUR/month": 1 / MONTH_HOURS},
    "availability": {"": 1.0, "%": 0.01},
    "residency": {"": 1.0},
    "trust": {"": 1.0},
    "attestation": {"": 1.0},
}


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
    #: The currency of its prices, where what that is worth in EUR is not known: then none of them is.
    foreign: str = ""
    #: By name, where the site states a price of its own.
    licences: Mapping[str, Licence] = field(default_factory=dict)
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    #: gCO2eq per hour from making all of its hardware; 0 where nothing is stated.
    embodied: float = 0.0
    #: Bytes of the images that it holds, by full name. No decision but that about a move's cost goes by them.
    images: Mapping[str, int] = field(default_factory=dict, compare=False)
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
    #: Full names of its containers' images.
    images: tuple[str, ...] = ()
    #: Where claims lie that it uses, as others had them made there; and bytes that its claims ask for (0: not stated).
    homes: frozenset[str] = frozenset()
    claimed: int = 0
    #: That it needs, as Intents state it, by name.
    licences: tuple[Licence, ...] = ()
    #: ``None``: it does not stand being stopped by its site.
    interruptible: Interruptible | None = None
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


# -- targets ----------------------------------------------------------------------------------------------


#: Conditions by what they ask of a measured value.
UPPER, LOWER = ("IsLessThan", "IsLessThanOrEqualTo"), ("IsGreaterThan", "IsGreaterThanOrEqualTo")
RANGES, WISHES = ("IsWithinRange", "IsOutsideRange"), ("Minimize", "Maximize")
#: Conditions on names: one of them holds, none of them does, all of them do.
ANY_OF, NONE_OF, ALL_OF = ("IsOneOf", "IsEqualToOneOf", "IsEqualTo"), ("IsNotOneOf", "IsNotEqualToOneOf"), ("IsAllOf",)


def meets(target: Target, value: float | None) -> bool:
    """Whether a measured value satisfies a bound or range. Unknown values do not. Bounds of a range are within it."""
    if target.condition in WISHES:
        return True
    if value is None:
        return False
    return {
        "IsLessThan": value < target.value,
        "IsLessThanOrEqualTo": value <= target.value,
        "IsGreaterThan": value > target.value,
        "IsGreaterThanOrEqualTo": value >= target.value,
        "IsWithinRange": target.low <= value <= target.high,
        "IsOutsideRange": value < target.low or value > target.high,
    }.get(target.condition, False)


def distance(target: Target, value: float | None) -> float:
    """How far a measured value is from what is asked, in the target's unit; infinite for one that is not known."""
    if meets(target, value):
        return 0.0
    if value is None:
        return math.inf
    if target.condition == "IsWithinRange":
        return target.low - value if value < target.low else value - target.high
    if target.condition == "IsOutsideRange":
        return min(value - target.low, target.high - value)
    return abs(value - target.value)


def lawful(target: Target, jurisdictions: Set[str]) -> bool:
    """Whether data may be where these laws hold. Where none is stated, nothing is known, and it may not."""
    named = set(target.values)
    if target.condition in NONE_OF:
        return bool(jurisdictions) and not jurisdictions & named
    if target.condition in ALL_OF:
        return named <= jurisdictions
    return bool(jurisdictions & named)


def trusted(target: Target, trust: str) -> bool:
    """Whether a level of trust is what is asked: with IsOneOf at least the lowest that is named, as more does no harm."""
    level, named = TRUST_LEVELS.get(trust, 0), [TRUST_LEVELS.get(v, 0) for v in target.values]
    if target.condition in NONE_OF:
        return trust not in target.values
    if target.condition == "IsEqualTo":
        return trust in target.values
    return level >= min(named, default=0)


def wanted_text(target: Target) -> str:
    """A target as people say it."""
    unit, condition = base_unit(target.name), target.condition
    names = ", ".join(target.values)
    if condition in RANGES:
        where = "from" if condition == "IsWithinRange" else "outside"
        return f"{where} {target.low:g} to {target.high:g} {unit}".rstrip()
    if target.name == "trust" and condition in ("IsOneOf", "IsGreaterThanOrEqualTo"):
        return f"at least {min(target.values, key=lambda v: TRUST_LEVELS.get(v, 0), default='')}"
    if condition in NONE_OF:
        return f"none of {names}"
    if condition in ALL_OF:
        return f"all of {names}"
    if condition in ANY_OF:
        return f"one of {names}"
    if condition in WISHES:
        return "as little as possible" if condition == "Minimize" else "as much as possible"
    words = {
        "IsLessThan": "below",
        "IsLessThanOrEqualTo": "at most",
        "IsGreaterThan": "above",
        "IsGreaterThanOrEqualTo": "at least",
    }
    several = f" with {target.at_least} replicas up" if target.at_least > 1 else ""
    return f"{words.get(condition, condition)} {target.value:g} {unit}".rstrip() + several


def base_unit(target: str) -> str:
    return next(iter(UNITS.get(target, {"": 1.0})))


# -- reading API objects -----------------------------------------------------------------------------------


def cluster_info(
    obj: Obj, requested: tuple[int, int, int] = (0, 0, 0), devices_requested: Mapping[Asked, int] | None = None
) -> ClusterInfo:
    """A site from its Cluster object."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    place, power = spec.get("location") or {}, spec.get("power") or {}
    price, foreign = _in_euros(spec.get("price") or {})
    electricity, carbon = spec.get("electricity") or {}, status.get("carbon") or {}
    room = status.get("allocatable") or status.get("capacity") or spec.get("capacity") or {}
    tier = str(spec.get("tier") or "")
    # The power model is of the machine that the site's owner describes, so the declared size comes first.
    capacity = (spec.get("capacity") or {}).get("cpu") or (status.get("capacity") or {}).get("cpu") or 0
    found = carbon.get("intensity", electricity.get("carbonIntensity"))
    return ClusterInfo(
        name=name(obj),
        ready=is_true(obj, "Ready"),
        unschedulable=bool(spec.get("unschedulable")),
        deleting=deleting(obj),
        taints=tuple(_taint(t) for t in spec.get("taints") or ()),
        labels={**_facts(spec, name(obj)), **labels(obj)},
        tier=tier,
        region=str(place.get("region") or ""),
        country=str(place.get("country") or ""),
        zone=str(electricity.get("zone") or ""),
        owner=str(spec.get("owner") or ""),
        trust=str(spec.get("trust") or "medium"),
        attested=str(status.get("attested") or ""),
        jurisdictions=frozenset(spec.get("jurisdictions") or ()),
        cpu=quantity.milli(room.get("cpu", 0)),
        memory=quantity.whole(room.get("memory", 0)),
        pods=quantity.whole(room.get("pods", 110)),
        cpu_requested=requested[0],
        memory_requested=requested[1],
        pods_requested=requested[2],
        devices={key: quantity.whole(amount) for key, amount in room.items() if extended(key)},
        devices_requested=devices_requested or {},
        carbon=None if found is None else float(found),
        forecast=tuple(float(f) for f in carbon.get("forecast") or ()),
        pue=float(electricity.get("pue") or 1.0),
        idle_watts=float(power.get("idleWatts") or 0.0),
        max_watts=float(power.get("maxWatts") or 0.0),
        capacity_cpu=quantity.milli(capacity),
        cpu_hour=None if price.get("cpuHour") is None else float(price["cpuHour"]),
        memory_gib_hour=float(price.get("memoryGiBHour") or 0.0),
        latencies={str(e["region"]): float(e["milliseconds"]) for e in spec.get("latencies") or ()},
        availability=float(TIER_AVAILABILITY.get(tier, 0.99) if spec.get("availability") is None else spec["availability"]),
        latitude=_optional(place.get("latitude")),
        longitude=_optional(place.get("longitude")),
        egress_gib=_optional(price.get("egressGiB")),
        foreign=foreign,
        spot=spot_of(price),
        licences={found["name"]: _licence(found) for found in price.get("licences") or ()},
        datasets={
            str(d["name"]): Dataset(quantity.whole(d.get("size") or 0), tuple(d.get("residency") or ()))
            for d in spec.get("datasets") or ()
        },
        embodied=_embodied(power),
        images={
            workload.image_name(str(n)): int(i.get("sizeBytes") or 0)
            for i in status.get("images") or ()
            for n in i.get("names") or ()
        },
        links={
            str(e["cluster"]): Link(
                _optional(e.get("milliseconds")),
                None if e.get("bytesPerSecond") is None else float(quantity.whole(e["bytesPerSecond"])),
            )
            for e in spec.get("links") or ()
        },
    )


def _embodied(power: Mapping[str, Any]) -> float:
    if power.get("embodiedGramsPerHour") is not None:
        return float(power["embodiedGramsPerHour"])
    years = float(power.get("lifetimeYears") or LIFETIME_YEARS)
    return float(power.get("embodiedKilograms") or 0.0) * 1000 / (years * HOURS_PER_YEAR)


def _in_euros(stated: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """A site's prices in EUR, and the currency that hides them where its rate is not stated."""
    currency, rate = str(stated.get("currency") or "EUR"), stated.get("exchangeRate")
    if currency == "EUR":
        return stated, ""
    if rate is None:
        return {}, currency

    def worth(found: Any, key: str) -> Any:
        return float(found) * float(rate) if key in _PRICES and isinstance(found, int | float) else found

    prices = {key: worth(found, key) for key, found in stated.items()}
    prices["spot"] = {key: worth(found, key) for key, found in (stated.get("spot") or {}).items()}
    prices["licences"] = [{key: worth(found, key) for key, found in one.items()} for one in stated.get("licences") or ()]
    return prices, ""


#: Of ``spec.price``, its ``spot`` and its ``licences``: what is money.
_PRICES = frozenset({"cpuHour", "memoryGiBHour", "egressGiB", "energyKWh", "perReplicaMonth", "perSiteMonth"})


def _optional(found: Any) -> float | None:
    return None if found is None else float(found)


def spot_of(price: Mapping[str, Any]) -> Spot | None:
    """What a site's prices say of spot capacity, in the currency that they are in."""
    found = price.get("spot") or {}
    if found.get("cpuHour") is None:
        return None
    rate, restart = float(found.get("interruptionsPerHour") or 0.0), float(found.get("restartSeconds") or 0.0)
    return Spot(float(found["cpuHour"]), rate, restart / 3600)


def _licence(found: Mapping[str, Any]) -> Licence:
    return Licence(str(found["name"]), _optional(found.get("perReplicaMonth")), _optional(found.get("perSiteMonth")))


def _higher(one: float | None, other: float | None) -> float | None:
    return max((price for price in (one, other) if price is not None), default=None)


def licences_of(intents: Iterable[Obj]) -> tuple[Licence, ...]:
    """What Intents state of licences, by name; of several prices the highest."""
    found: dict[str, Licence] = {}
    for intent in intents:
        for raw in (intent.get("spec") or {}).get("licences") or ():
            new, old = _licence(raw), found.get(str(raw["name"]), Licence(str(raw["name"])))
            found[new.name] = Licence(new.name, _higher(old.replica, new.replica), _higher(old.site, new.site))
    return tuple(found[name] for name in sorted(found))


def _taint(found: Mapping[str, Any]) -> Taint:
    since = found.get("timeAdded")
    return Taint(
        str(found.get("key", "")),
        str(found.get("value") or ""),
        str(found.get("effect", "")),
        parse_time(since) if since else None,
    )


def _facts(spec: Mapping[str, Any], cluster: str) -> dict[str, str]:
    """Labels that every site has, under the well-known names, for selectors and affinity."""
    place = spec.get("location") or {}
    facts = {
        "kubernetes.io/hostname": cluster,
        "topology.kubernetes.io/region": place.get("region"),
        "topology.kubernetes.io/zone": (spec.get("electricity") or {}).get("zone"),
        "meta-os.eu/tier": spec.get("tier"),
        "meta-os.eu/country": place.get("country"),
    }
    return {k: str(v) for k, v in facts.items() if v}


_MODES = {"DaemonSet": "Everywhere", "Deployment": "Divided", "ReplicaSet": "Divided"}


def workload_info(
    obj: Obj,
    *,
    current: Mapping[str, int] | None = None,
    intents: Iterable[Obj] = (),
    policies: Iterable[Obj] = (),
    evicted: Iterable[str] = (),
    moves: Sequence[Move] = (),
    traffic: Sequence[Edge] = (),
    near: Sequence[PodTerm] = (),
) -> WorkloadInfo:
    """A workload with the intents and policies of its namespace that concern it."""
    spec = workload.pod_spec(obj)
    asked = workload.requests(spec)
    about = ref(obj)
    merged = merge_policies(p for p in policies if concerns(p, obj))
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    mode = _MODES.get(about.kind, "Whole")
    if merged.mode and mode != "Everywhere":
        mode = merged.mode
    local = workload.has_local_data(obj)
    wanted = [i for i in intents if concerns(i, obj) and not deleting(i)]
    return WorkloadInfo(
        ref=about,
        uid=uid(obj),
        generation=generation(obj),
        replicas=workload.replicas(obj),
        cpu=asked["cpu"],
        memory=asked["memory"],
        mode=mode,
        devices=workload.device_requests(spec),
        labels=labels(obj),
        node_selector=spec.get("nodeSelector") or {},
        node_affinity=tuple(affinity.get("nodeSelectorTerms") or ()),
        tolerations=(*(spec.get("tolerations") or ()), *merged.tolerations),
        local_data=local,
        pinned=bool(current) and (local or about.kind == "Pod"),
        settled=about.kind == "Job",
        current=dict(current or {}),
        evicted=frozenset(evicted),
        moves=tuple(moves),
        targets=tuple(t for i in wanted for t in targets_of(i)),
        policy=merged,
        traffic=tuple(traffic),
        images=tuple(sorted({workload.image_name(str(c["image"])) for c in workload.containers(spec) if c.get("image")})),
        licences=licences_of(wanted),
        near=tuple(near),
        spread=spread_terms(obj),
        node_wishes=node_wishes(obj),
    )


def concerns(rule: Obj, obj: Obj) -> bool:
    """Whether an Intent or PlacementPolicy concerns a workload: by reference or by label selector; none: all of the namespace."""
    if namespace(rule) != namespace(obj):
        return False
    chosen = (rule.get("spec") or {}).get("workloads") or {}
    if chosen.get("refs"):
        return any(r.get("kind") == obj.get("kind") and r.get("name") == name(obj) for r in chosen["refs"])
    return label_selector(chosen.get("selector") or {})(labels(obj))


def targets_of(intent: Obj) -> list[Target]:
    """All targets of an Intent, in base units."""
    spec = intent.get("spec") or {}
    found = []
    for expectation in spec.get("expectations") or ():
        for target in expectation.get("targets") or ():
            kind, raw = str(target.get("name", "")), target.get("value")
            condition = str(target.get("condition") or "IsLessThan")
            texts = tuple(str(v) for v in raw) if isinstance(raw, list) and condition not in RANGES else ()
            factor = UNITS.get(kind, {}).get(str(target.get("unit") or base_unit(kind)), 1.0)
            contexts = [*(expectation.get("contexts") or ()), *(target.get("contexts") or ())]
            ends = [_number(v, factor) for v in raw] if isinstance(raw, list) and condition in RANGES else []
            low, high = ends if len(ends) == 2 else (math.nan, math.nan)
            found.append(
                Target(
                    name=kind,
                    condition=condition,
                    value=_number(raw, factor),
                    low=low,
                    high=high,
                    values=texts or ((str(raw),) if isinstance(raw, str) else ()),
                    hard=bool(target.get("hard")) or kind == "residency",
                    users=_users(contexts),
                    intent=name(intent),
                    priority=int(spec.get("priority", 50)),
                    at_least=next((int(c["value"]) for c in reversed(contexts) if c.get("name") == "replicasUp"), 1),
                )
            )
    return found


def residency_of(obj: Obj, intents: Iterable[Obj]) -> list[Target]:
    """Where the intents that concern a workload allow it to be. See :func:`lawful`."""
    said = [i for i in intents if concerns(i, obj) and not deleting(i)]
    return [target for intent in said for target in targets_of(intent) if target.name == "residency"]


def _number(raw: object, factor: float) -> float:
    try:
        return float(raw) * factor if isinstance(raw, int | float) else math.nan
    except OverflowError:
        return math.inf


def _users(contexts: Iterable[Mapping[str, Any]]) -> Users:
    regions: dict[str, float | None] = {}
    for context in contexts:
        if context.get("name") == "usersIn":
            value = context.get("value")
            named = value if isinstance(value, Mapping) else dict.fromkeys(value if isinstance(value, list) else [value])
            regions |= {str(region): None if share is None else float(share) for region, share in named.items()}
    shares = [share for share in regions.values() if share is not None]
    if len(shares) < len(regions) or not shares:
        return Users(tuple(regions))
    return Users(tuple(regions), tuple(share / sum(shares) for share in shares))


def _weights(stated: Mapping[str, Any]) -> dict[str, float]:
    return {site: float(stated[site]) for site in sorted(stated) if 0 < float(stated[site]) < math.inf}


def merge_policies(policies: Iterable[Obj]) -> PolicyInfo:
    """Several policies as one: selectors all hold, allowed sites are the intersection, the larger bound wins."""
    ordered = sorted(policies, key=name)
    found = [p.get("spec") or {} for p in ordered]
    allowed: frozenset[str] | None = None
    for spec in found:
        stated = (spec.get("clusters") or {}).get("allowed")
        if stated:
            allowed = frozenset(stated) if allowed is None else allowed & frozenset(stated)
    migration = [spec.get("migration") or {} for spec in found]
    default = PolicyInfo()

    def said(figure: str) -> list[float]:
        """Who says nothing of it changes nothing."""
        return [float(m[figure]) for m in migration if m.get(figure) is not None]

    return PolicyInfo(
        names=tuple(name(p) for p in ordered),
        selectors=tuple(label_selector(spec["clusterSelector"]) for spec in found if spec.get("clusterSelector")),
        allowed=allowed,
        preferred=frozenset(c for spec in found for c in (spec.get("clusters") or {}).get("preferred") or ()),
        tolerations=tuple(t for spec in found for t in spec.get("tolerations") or ()),
        spread=tuple(
            Spread(str(s.get("by", "site")), int(s.get("minGroups") or 1), int(s.get("maxSkew") or 0))
            for spec in found
            for s in spec.get("spread") or ()
        ),
        mode=next((str(spec["division"]["mode"]) for spec in found if (spec.get("division") or {}).get("mode")), ""),
        weights=next((_weights(w) for spec in found if (w := (spec.get("division") or {}).get("weights"))), {}),
        failback="Never" if any(spec.get("failback") == "Never" for spec in found) else default.failback,
        toleration_seconds=max([float(spec.get("tolerationSeconds") or 0) for spec in found], default=0.0),
        minimum_improvement=max(said("minimumImprovement"), default=default.minimum_improvement),
        budget_per_hour=int(min(said("budgetPerHour"), default=default.budget_per_hour)),
        cool_down_seconds=max(said("coolDownSeconds"), default=default.cool_down_seconds),
        drain_seconds=next(iter(said("drainSeconds")), None),
    )
