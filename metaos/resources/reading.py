"""What decisions see, read from API objects: sites, workloads, and the intents and policies that concern them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metaos.resources import quantity, workload
from metaos.resources.affinity import REQUIRED, PodTerm, node_wishes, spread_terms
from metaos.resources.devices import Asked, extended
from metaos.resources.meta import (
    Obj,
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
from metaos.resources.snapshot import (
    HOURS_PER_YEAR,
    ClusterInfo,
    Dataset,
    Edge,
    Licence,
    Link,
    Move,
    PolicyInfo,
    Quota,
    Series,
    Spot,
    Spread,
    Taint,
    Target,
    Users,
    WorkloadInfo,
)
from metaos.resources.targets import RANGES, RECOVERY, UNITS, base_unit

#: Over which what a site's hardware embodies is spread, where nothing is stated (as the ledger does it).
LIFETIME_YEARS = 4.0
#: What is assumed of a site that states nothing: the share of time that it is up, by tier.
TIER_AVAILABILITY = {"cloud": 0.9995, "edge": 0.995, "gateway": 0.98, "device": 0.95}


def is_kubernetes(cluster: Obj) -> bool:
    """Whether a site is a Kubernetes cluster, which runs and heals its share by itself."""
    return bool((cluster.get("spec") or {}).get("runtime") == "kubernetes")


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
        volumes=bool(status.get("volumeMoves")),
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
        reserved=float(quantity.parse((price.get("reserved") or {}).get("cpu") or 0)),
        intensities=_series(carbon),
        prices=_series(status.get("price") or {}, _rate(spec.get("price") or {})),
        licences={found["name"]: _licence(found) for found in price.get("licences") or ()},
        datasets={
            str(d["name"]): Dataset(quantity.whole(d.get("size") or 0), tuple(d.get("residency") or ()))
            for d in spec.get("datasets") or ()
        },
        embodied=_embodied(power),
        runtime_classes=None if is_kubernetes(obj) else frozenset(status.get("runtimeClasses") or ()),
        images={
            workload.image_name(str(n)): int(i.get("sizeBytes") or 0)
            for i in status.get("images") or ()
            for n in i.get("names") or ()
        },
        quotas={str(q["namespace"]): _quota(q) for q in status.get("quotas") or ()},
        links={
            str(e["cluster"]): Link(
                _optional(e.get("milliseconds")),
                None if e.get("bytesPerSecond") is None else float(quantity.whole(e["bytesPerSecond"])),
            )
            for e in spec.get("links") or ()
        },
    )


def _quota(said: Mapping[str, Any]) -> Quota:
    left, usual, most = (said.get(word) or {} for word in ("requests", "defaults", "most"))
    return Quota(
        cpu=None if "cpu" not in left else quantity.milli(left["cpu"]),
        memory=None if "memory" not in left else quantity.whole(left["memory"]),
        pods=None if "pods" not in left else quantity.whole(left["pods"]),
        default_cpu=quantity.milli(usual.get("cpu", 0)),
        default_memory=quantity.whole(usual.get("memory", 0)),
        most_cpu=None if "cpu" not in most else quantity.milli(most["cpu"]),
        most_memory=None if "memory" not in most else quantity.whole(most["memory"]),
    )


def _embodied(power: Mapping[str, Any]) -> float:
    if power.get("embodiedGramsPerHour") is not None:
        return float(power["embodiedGramsPerHour"])
    years = float(power.get("lifetimeYears") or LIFETIME_YEARS)
    return float(power.get("embodiedKilograms") or 0.0) * 1000 / (years * HOURS_PER_YEAR)


def _series(figures: Mapping[str, Any], worth: float | None = 1.0) -> Series:
    """Of a site's status; nothing where it is of no use. Some sources count what a load displaces, which may be less than
    nothing. ``worth``: what one of the figures is worth, where that is known."""
    values = tuple(float(v) for v in figures.get("forecast") or ())
    hour = float(figures.get("hourSeconds") or 3600.0)
    if len(values) < 2 or not figures.get("time") or worth is None:
        return Series()
    if not all(math.isfinite(v) for v in (*values, hour)) or hour <= 0:
        return Series()
    return Series(tuple(max(0.0, v) * worth for v in values), parse_time(figures["time"]), hour, _optional(figures.get("error")))


def _rate(stated: Mapping[str, Any]) -> float | None:
    """What a unit of a site's currency is worth in EUR."""
    rate = 1.0 if str(stated.get("currency") or "EUR") == "EUR" else stated.get("exchangeRate")
    return None if rate is None else float(rate)


def _in_euros(stated: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """A site's prices in EUR, and the currency that hides them where its rate is not stated."""
    currency, rate = str(stated.get("currency") or "EUR"), _rate(stated)
    if currency == "EUR":
        return stated, ""
    if rate is None:
        return {}, currency

    def worth(found: Any, key: str) -> Any:
        return float(found) * rate if key in _PRICES and isinstance(found, int | float) else found

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
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(REQUIRED) or {}
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
        targets=tuple(t for i in wanted for t in targets_of(i) if t.name not in RECOVERY),
        policy=merged,
        traffic=tuple(traffic),
        runtime_class=str(spec.get("runtimeClassName") or ""),
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
