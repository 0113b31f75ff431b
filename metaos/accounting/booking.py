"""From what a site reports of a period to an entry of the ledger: checked, with its emissions and its price. Pure.

A period is plain JSON in whole numbers: ``sequence``, ``start`` and ``end`` (seconds since the epoch), ``meter`` (``name``,
``source``, ``basis``: measured, stated or assumed; ``uncertainty``: a decimal fraction), ``idleRule``, ``cpuMillis`` (of the
machine), ``energy`` (``millijoules``, ``systemMillijoules``) and ``pods``, each with ``namespace``, ``name``, ``workload``
(``kind``, ``name``), and the figures in ``POD_FIGURES``; ``networkBytes`` only where they were counted (``networkSource`` says
which). ``estimatedSeconds`` of the period nobody looked; ``lostSeconds`` before it were given up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from metaos.accounting.footprint import BASES, Factor, decimal, embodied_micrograms, emissions, network_millijoules, plain
from metaos.accounting.metering import IDLE_RULES, MAX_CORES, MAX_WATTS, PodUse, PowerModel, apportion
from metaos.accounting.money import Price, amount, used
from metaos.resources.meta import Obj

MAX_PODS = 2000
#: Longer ones are not taken: what happened in them, and at which carbon intensity, is not known well enough.
MAX_PERIOD_SECONDS = 86_400
#: How far a site's clock may be ahead of the hub's.
MAX_AHEAD_SECONDS = 300
#: No machine has more memory: a PiB.
MAX_MIB = 2**30
#: Pods and system must make up the machine's energy to within this part.
TOLERANCE = Decimal("0.01")
METER_BASES = ("measured", "stated", "assumed")
POD_FIGURES = (
    *("presentMilliseconds", "cpuMicroseconds", "memoryMiBSeconds", "requestedMillis", "requestedMiB"),
    "energyMillijoules",
)
_GAPS = ("estimatedSeconds", "lostSeconds")
_MOST = 2**53 - 1
#: As Kubernetes has them.
_NAME, _KIND = re.compile(r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?"), re.compile(r"[A-Za-z]{1,63}")


def problems(period: Any, now: float) -> Iterator[str]:
    """What is wrong with a reported period: each names the field, the value and what it must be. Nothing is mended."""
    if not isinstance(period, dict):
        yield f"a period must be a map, not {_shown(period)}"
        return
    wrong = [_whole(period, key) for key in ("sequence", "start", "end", "cpuMillis")]
    energy = _map(period, "energy")
    wrong += [_whole(energy, key, "energy.") for key in ("millijoules", "systemMillijoules")]
    wrong += [_whole(period, key) for key in _GAPS if key in period]
    if not isinstance(period.get("networkSource", ""), str) or len(period.get("networkSource", "")) > 200:
        wrong.append(f"networkSource: {_shown(period['networkSource'])} must be a text of at most 200 characters")
    pods = period.get("pods")
    if not isinstance(pods, list) or len(pods) > MAX_PODS:
        wrong.append(f"pods: there must be a list of at most {MAX_PODS}")
        pods = []
    for index, pod in enumerate(pods):
        wrong += _pod_problems(pod, f"pods[{index}].")
    wrong += _meter_problems(period)
    yield from (text for text in wrong if text)
    if any(wrong):
        return
    start, end = int(period["start"]), int(period["end"])
    seconds = end - start
    if not 0 < seconds <= MAX_PERIOD_SECONDS:
        yield f"end: {end} must be after start ({start}), by {MAX_PERIOD_SECONDS} s at most"
        return
    if end > now + MAX_AHEAD_SECONDS:
        yield f"end: {end} is {end - now:.0f} s ahead of the hub: set the site's clock"
    if period["cpuMillis"] > MAX_CORES * 1000:
        yield f"cpuMillis: {period['cpuMillis']} must be at most {MAX_CORES * 1000}"
    total = energy["millijoules"]
    if total > MAX_WATTS * seconds * 1000:
        yield f"energy.millijoules: {total} in {seconds} s is more than {MAX_WATTS} W"
    parts = energy["systemMillijoules"] + sum(pod["energyMillijoules"] for pod in pods)
    if abs(parts - total) > total * TOLERANCE:
        yield f"energy.millijoules: {total} must be what pods and system add up to ({parts}), to within 1 %"
    for index, pod in enumerate(pods):
        if pod["presentMilliseconds"] > seconds * 1000:
            yield f"pods[{index}].presentMilliseconds: {pod['presentMilliseconds']} must be at most the period's {seconds * 1000}"
        if pod["cpuMicroseconds"] > MAX_CORES * seconds * 1_000_000:
            yield f"pods[{index}].cpuMicroseconds: {pod['cpuMicroseconds']} is more than {MAX_CORES} cores can do in {seconds} s"
        most = {"requestedMillis": MAX_CORES * 1000, "requestedMiB": MAX_MIB, "memoryMiBSeconds": MAX_MIB * seconds}
        for key, bound in most.items():
            if pod[key] > bound:
                yield f"pods[{index}].{key}: {pod[key]} must be at most {bound}"


def _pod_problems(pod: Any, path: str) -> list[str]:
    if not isinstance(pod, dict):
        return [f"{path.rstrip('.')}: must be a map, not {_shown(pod)}"]
    found = [_whole(pod, key, path) for key in POD_FIGURES]
    if pod.get("networkBytes") is not None:
        found.append(_whole(pod, "networkBytes", path))
    workload = _map(pod, "workload")
    names = ((pod, "namespace", path), (pod, "name", path), *((workload, key, f"{path}workload.") for key in ("kind", "name")))
    for where, key, before in names:
        said, pattern = where.get(key), _KIND if key == "kind" else _NAME
        if not isinstance(said, str) or not pattern.fullmatch(said):
            found.append(f"{before}{key}: {_shown(said)} must be a name")
    return found


def _meter_problems(period: Mapping[str, Any]) -> list[str]:
    meter = _map(period, "meter")
    found = []
    if period.get("idleRule") not in IDLE_RULES:
        found.append(f"idleRule: {_shown(period.get('idleRule'))} must be one of {', '.join(IDLE_RULES)}")
    if meter.get("basis") not in METER_BASES:
        found.append(f"meter.basis: {_shown(meter.get('basis'))} must be one of {', '.join(METER_BASES)}")
    found += [
        f"meter.{key}: {_shown(meter.get(key))} must be a text of 1 to 200 characters"
        for key in ("name", "source")
        if not isinstance(meter.get(key), str) or not 0 < len(meter[key]) <= 200
    ]
    try:
        if not isinstance(meter.get("uncertainty"), str) or decimal(meter["uncertainty"], "") > 10:
            raise ValueError
    except ValueError:
        found.append(f"meter.uncertainty: {_shown(meter.get('uncertainty'))} must be a decimal fraction as text, from 0 to 10")
    return found


def _whole(where: Mapping[str, Any], key: str, path: str = "") -> str:
    value = where.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST:
        return ""
    return f"{path}{key}: {_shown(value)} must be a whole number from 0 to 2^53-1"


def _map(where: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = where.get(key)
    return found if isinstance(found, dict) else {}


def _shown(value: Any) -> str:
    return repr(value)[:80]


# -- what the hub knows ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Site:
    """Of a site in a period. ``embodied``: gCO2eq per hour from making its hardware; ``watts``: idle and at full load; both
    ``None`` where they are not known."""

    name: str
    owner: str
    pue: Decimal = Decimal(1)
    factors: Mapping[str, Factor | None] = field(default_factory=dict)
    embodied: Decimal | None = None
    watts: tuple[Decimal, Decimal] | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """Who pays for a namespace's pods at a site, and at which price; ``intents`` are those of the workload, by name. ``given``:
    whether the hub gave the site that workload; what it did not give is charged to nobody."""

    consumer: str
    price: Price | None
    intents: Sequence[str] = ()
    given: bool = True


def book(period: Mapping[str, Any], site: Site, owner_of: Callable[[Mapping[str, Any]], Owner]) -> tuple[Obj, list[Obj]]:
    """Header and lines of the entry for a period that has no problems. What is not known is ``None`` there, never 0."""
    pods: Sequence[Mapping[str, Any]] = period["pods"]
    seconds = period["end"] - period["start"]
    embodied = None if site.embodied is None else embodied_micrograms(site.embodied, seconds)
    weights = [PodUse(p["cpuMicroseconds"], p["presentMilliseconds"], p["requestedMillis"]).reserved for p in pods]
    # Hardware that nobody reserved is its owner's.
    spare = max(0, period["cpuMillis"] * seconds * 1000 - sum(weights))
    shares = apportion(embodied, [*weights, spare]) if embodied is not None else [None] * (len(pods) + 1)
    system = period["energy"]["systemMillijoules"]
    header = {
        "site": site.name,
        "provider": site.owner,
        "sequence": period["sequence"],
        "start": period["start"],
        "end": period["end"],
        "meter": {key: period["meter"][key] for key in ("name", "source", "basis", "uncertainty")},
        "idleRule": period["idleRule"],
        **{key: period.get(key, 0) for key in _GAPS},
        "networkSource": period.get("networkSource"),
        "cpuMillis": period["cpuMillis"],
        "watts": None if site.watts is None else {"idle": plain(site.watts[0]), "max": plain(site.watts[1])},
        "energyMillijoules": period["energy"]["millijoules"],
        "pue": plain(site.pue),
        "factors": {basis: f.said() if (f := site.factors.get(basis)) else None for basis in BASES},
        "system": _carbon(system, shares[-1], site) | {"energyMillijoules": system},
    }
    return header, [_line(pod, share, site, owner_of(pod)) for pod, share in zip(pods, shares, strict=False)]


def _carbon(millijoules: int, embodied: int | None, site: Site) -> Obj:
    return {"operationalMicrograms": emissions(millijoules, site.pue, site.factors), "embodiedMicrograms": embodied}


def _line(pod: Mapping[str, Any], embodied: int | None, site: Site, owner: Owner) -> Obj:
    moved = pod.get("networkBytes")
    use = used({**pod, "networkBytes": moved})
    network = None if moved is None else network_millijoules(moved)
    cost = None
    if owner.price is not None and owner.given:
        cost = {"amount": plain(amount(owner.price, use)), "currency": owner.price.currency, "price": owner.price.said()}
    return {
        **{key: pod[key] for key in ("namespace", "name", *POD_FIGURES)},
        "workload": {key: pod["workload"][key] for key in ("kind", "name")},
        "networkBytes": moved,
        "networkMillijoules": network,
        # No building adds to what the network between sites takes.
        "networkMicrograms": None if network is None else emissions(network, Decimal(1), site.factors),
        "consumer": owner.consumer,
        "given": owner.given,
        "intents": list(owner.intents),
        "cost": cost,
        **_carbon(pod["energyMillijoules"], embodied, site),
    }


# -- saved against what ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A site where the same work might have been done: its power model, building and grid."""

    model: PowerModel
    pue: Decimal
    grams_per_kwh: Decimal


def same_work(cpu_microseconds: int, there: Elsewhere) -> int:
    """Micrograms that the same CPU time would have caused at another site, above idle: its machines are on either way. Taken
    is that a core-second does the same there, and that the work would fit."""
    seconds = cpu_microseconds / 1e6
    whole, idle = there.model.millijoules(max(1.0, seconds / max(there.model.cores, 1e-9)), seconds)
    found = emissions(whole - idle, there.pue, {"location": Factor(there.grams_per_kwh, "")})["location"]
    assert found is not None
    return found
