"""Saved against what: the ledger's period replayed in the twin under another policy, booked as the hub books, and held against
the replay of NEMO's own policy. How far that one is from what was booked is told with it: the replay's own error.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from metaos.accounting.booking import Owner, Site, book, same_work
from metaos.accounting.counterfactual import elsewhere
from metaos.accounting.footprint import BASES, Factor, plain
from metaos.accounting.metering import PodUse, attribute
from metaos.accounting.money import Price, agreed
from metaos.accounting.statement import Booked, Line
from metaos.agent.energy import Modelled
from metaos.controllers.accounting import site_of
from metaos.resources import scheme
from metaos.resources.meta import Obj, name
from metaos.twin.clock import Stalled, VirtualLoop
from metaos.twin.past import ASSUMED, HOUR, LEAD_SECONDS, NEMO, POLICIES, Deed, Key, Past, Ran, past, ran
from metaos.twin.play import Play, perform
from metaos.twin.site import Machine
from metaos.twin.story import KINDS

#: Wanted of a line: whether it is in the sums.
Wanted = Callable[[Line], bool]


@dataclass(frozen=True, slots=True)
class Stay:
    """A pod at a site, in seconds since the epoch."""

    site: str
    key: Key
    pod: str
    start: float
    end: float


class Replay(Play):
    """Writes down which pod was where, and when."""

    def __init__(self, loop: VirtualLoop, replayed: Past, folder: Any) -> None:
        super().__init__(loop, replayed.story, folder, scores=replayed.scores)
        self._since = replayed.story.start + LEAD_SECONDS
        self._deeds_of_people = replayed.deeds
        self.stays: list[Stay] = []
        self._there: dict[str, dict[tuple[str, str, str], tuple[Key, float]]] = {}
        self.world.on_site.append(self._look)

    async def _prepare(self) -> None:
        # The hours of the day are those of the ledger.
        await self.world.run(max(0.0, self._since - self.world.clock.now()))
        self._begun = self.world.now
        await super()._prepare()
        for deed in self._deeds_of_people:
            self._at(deed.at, "", partial(self._people, deed))

    async def _people(self, deed: Deed) -> None:
        kind, where, what = KINDS[deed.key[0]], deed.key[1], deed.key[2]
        if deed.replicas is None:
            await self._spawn(self.world.remove(kind, what, where))
        else:
            await self._spawn(self.world.scale(kind, what, where, deed.replicas))

    def _look(self, site: str) -> None:
        now = self.world.clock.now()
        found = {
            (c.namespace, c.pod, c.owner_uid): (c.owner.kind, c.owner.namespace, c.owner.name)
            for c in self.world.sites[site].copies()
        }
        there = self._there.setdefault(site, {})
        for pod in [pod for pod in there if pod not in found]:
            key, since = there.pop(pod)
            self.stays.append(Stay(site, key, pod[1], since, now))
        for pod, key in found.items():
            there.setdefault(pod, (key, now))

    def stalled(self, why: str) -> dict[str, Any]:
        """What was not replayed to its end can be held against nothing."""
        raise Stalled(why)

    async def _over(self) -> None:
        end = self._since + self.scenario.duration
        for site, there in self._there.items():
            self.stays += [Stay(site, key, pod[1], since, end) for pod, (key, since) in there.items()]
        self._there = {}


def replayed(found: Past) -> list[Stay]:
    """Plays it."""
    return perform(lambda loop, folder: Replay(loop, found, folder))[0].stays


# -- booking -----------------------------------------------------------------------------------------------


class Then:
    """What the ledger has of sites over time, and where it has nothing what they state now (``clusters``)."""

    def __init__(self, entries: Iterable[Booked], clusters: Iterable[Obj], tariffs: Sequence[Obj]) -> None:
        self._periods: dict[str, list[tuple[int, Site, int, str]]] = {}
        self._clusters = {name(cluster): cluster for cluster in clusters}
        self._tariffs = tariffs
        for header, lines in entries:
            found = (header["start"], _facts(header, lines), header["cpuMillis"], header["idleRule"])
            self._periods.setdefault(header["site"], []).append(found)
        for periods in self._periods.values():
            periods.sort(key=lambda period: period[0])

    def at(self, site: str, start: float, end: float) -> tuple[Site, int, str]:
        """Facts, milli-CPU of the machine, and how idle power is shared: of the period that began last by then, or the first."""
        periods = self._periods.get(site)
        if periods:
            index = max(0, bisect_right(periods, start, key=lambda period: period[0]) - 1)
            return periods[index][1], periods[index][2], periods[index][3]
        cluster = self._clusters[site]
        return site_of(cluster, {"start": start, "end": end}, end), Machine(cluster).cpu, "reserved"

    def price(self, site: str, consumer: str, when: float) -> Price | None:
        return agreed(self._tariffs, self._clusters.get(site) or scheme.CLUSTER.empty(site), consumer, when)


def _facts(header: Mapping[str, Any], lines: Sequence[Line]) -> Site:
    """The other way round than :func:`metaos.accounting.booking.book`."""
    factors = {
        basis: Factor(Decimal(said["gramsPerKWh"]), said["source"]) if (said := header["factors"].get(basis)) else None
        for basis in BASES
    }
    parts = [header["system"]["embodiedMicrograms"], *(line["embodiedMicrograms"] for line in lines)]
    seconds = header["end"] - header["start"]
    embodied = None if None in parts else Decimal(sum(parts)) * 3600 / (1_000_000 * seconds)
    watts = header.get("watts")
    return Site(
        header["site"],
        header["provider"],
        Decimal(header["pue"]),
        factors,
        embodied,
        None if watts is None else (Decimal(watts["idle"]), Decimal(watts["max"])),
    )


def booked(stays: Sequence[Stay], runs: Mapping[Key, Ran], then: Then, since: float, until: float) -> list[Booked]:
    """Entries as the hub would have booked them, of an hour each. Pure."""
    found: list[Booked] = []
    by_site: dict[str, list[Stay]] = {}
    for stay in stays:
        by_site.setdefault(stay.site, []).append(stay)
    for site, there in sorted(by_site.items()):
        start = int(since)
        while start < until:
            end = int(min(until, (start // HOUR + 1) * HOUR))
            now = [(stay, min(stay.end, end) - max(stay.start, start)) for stay in there if stay.start < end and stay.end > start]
            if now and end > start:
                found.append(_period(site, start, end, [(stay, seconds) for stay, seconds in now if seconds > 0], runs, then))
            start = max(end, start + 1)
    return found


def _period(site: str, start: int, end: int, there: Sequence[tuple[Stay, float]], runs: Mapping[Key, Ran], then: Then) -> Booked:
    facts, millis, rule = then.at(site, start, end)
    power = {} if facts.watts is None else {"idleWatts": float(facts.watts[0]), "maxWatts": float(facts.watts[1])}
    model = Modelled(power, millis)
    uses: dict[str, PodUse] = {}
    pods: dict[str, dict[str, Any]] = {}
    for number, (stay, seconds) in enumerate(there):
        ran_as, each = runs[stay.key], f"{number:06}"
        uses[each] = PodUse(round(ran_as.cores * seconds * 1e6), round(seconds * 1000), ran_as.requested_millis)
        pods[each] = {
            "namespace": stay.key[1],
            "name": stay.pod,
            "workload": {"kind": stay.key[0], "name": stay.key[2]},
            "presentMilliseconds": uses[each].present_milliseconds,
            "cpuMicroseconds": uses[each].cpu_microseconds,
            "memoryMiBSeconds": round(ran_as.mib * seconds),
            "requestedMillis": ran_as.requested_millis,
            "requestedMiB": ran_as.requested_mib,
        }
    reading = model.read(end - start, sum(use.cpu_microseconds for use in uses.values()) / 1e6)
    whole, idle = reading.millijoules, reading.idle_millijoules
    length = (end - start) * 1000
    shares, rest = attribute(whole, idle, uses, system_cpu_microseconds=0, capacity_millis=millis, milliseconds=length, rule=rule)
    period = {
        "sequence": 0,
        "start": start,
        "end": end,
        "meter": {key: getattr(model, key) for key in ("name", "source", "basis", "uncertainty")},
        "idleRule": rule,
        "cpuMillis": millis,
        "energy": {"millijoules": whole, "systemMillijoules": rest.total},
        "pods": [{**pod, "energyMillijoules": shares[each].total} for each, pod in pods.items()],
    }

    def owner_of(pod: Mapping[str, Any]) -> Owner:
        ran_as = runs[pod["workload"]["kind"], pod["namespace"], pod["workload"]["name"]]
        return Owner(ran_as.consumer, then.price(site, ran_as.consumer, (start + end) / 2), ran_as.intents)

    return book(period, facts, owner_of)


# -- figures -----------------------------------------------------------------------------------------------


def figures(entries: Iterable[Booked], wanted: Wanted) -> dict[str, Decimal | None]:
    """kWh, gCO2eq by basis, of the hardware and of work above idle (location-based), core hours, and money by currency; ``None``:
    of some line it is not known. Pure."""
    sums: dict[str, Decimal | None] = {"energyKWh": Decimal(0), "cpuHours": Decimal(0)}
    sums |= dict.fromkeys((*(f"{basis}Grams" for basis in BASES), "hardwareGrams", "aboveIdleGrams"), Decimal(0))

    def add(key: str, value: Decimal | int | None, unit: int) -> None:
        before = sums.get(key, Decimal(0))
        sums[key] = None if value is None or before is None else before + Decimal(value) / unit

    for header, lines in entries:
        site = elsewhere(header)
        for line in filter(wanted, lines):
            add("energyKWh", line["energyMillijoules"], 3_600_000_000)
            add("cpuHours", line["cpuMicroseconds"], 3_600_000_000)
            for basis in BASES:
                add(f"{basis}Grams", line["operationalMicrograms"].get(basis), 1_000_000)
            add("hardwareGrams", line["embodiedMicrograms"], 1_000_000)
            add("aboveIdleGrams", None if site is None else same_work(line["cpuMicroseconds"], site), 1_000_000)
            if (cost := line.get("cost")) is not None:
                add(f"cost {cost['currency']}", Decimal(cost["amount"]), 1)
    return sums


def against(
    entries: Sequence[Booked],
    copied: Mapping[str, Any],
    clusters: Sequence[Obj],
    tariffs: Sequence[Obj],
    created: Mapping[Key, float],
    policy: str,
    since: float,
    until: float,
    wanted: Wanted,
) -> dict[str, Any]:
    """The answer as data, decimals as texts. Raises ``ScenarioError``."""
    then = Then(entries, clusters, tariffs)
    sides: dict[str, dict[str, Decimal | None]] = {}
    left_out: tuple[str, ...] = ()
    summed = ran(entries)
    for each in dict.fromkeys((NEMO, policy)):
        found = past(entries, copied, created, each, since, until, summed)
        sides[each] = figures(booked(replayed(found), found.runs, then, since, until), wanted)
        left_out = found.left_out
    real = figures(entries, wanted)
    rows = []
    for key in dict.fromkeys([*real, *sides[NEMO], *sides[policy]]):
        values = [real.get(key), sides[NEMO].get(key), sides[policy].get(key)]
        rows.append(
            {
                "figure": key,
                **{side: _said(value) for side, value in zip(("booked", "nemo", "policy"), values, strict=True)},
                "saved": _said(None if None in values[1:] else values[2] - values[1]),  # type: ignore[operator]
                "replayError": f"{(values[1] / values[0] - 1):.4f}" if values[0] and values[1] is not None else None,
            }
        )
    return {
        "policy": policy,
        "meaning": POLICIES[policy],
        "control": POLICIES[NEMO],
        "figures": rows,
        "assumed": list(ASSUMED),
        "leftOut": list(left_out),
    }


def _said(value: Decimal | None) -> str | None:
    return None if value is None else plain(value.quantize(Decimal("1e-9")) + 0)
