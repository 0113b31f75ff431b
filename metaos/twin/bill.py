"""What runs, as sums over virtual time: energy, emissions, money and what was waited for, site by site. What rewards are made of.

Rates are constant between two changes of what runs at a site, but for the carbon intensity, which changes by the hour: sums are
split there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

from metaos.accounting.carbon import grams
from metaos.resources import scheme
from metaos.resources.measures import cost, holds_at
from metaos.resources.meta import ObjectRef
from metaos.resources.reading import cluster_info
from metaos.resources.snapshot import WorkloadInfo
from metaos.twin.site import Site, watts

HOUR = 3600.0


@dataclass(slots=True)
class Bill:
    """``waiting``: replicas that are wanted and do not serve, times seconds; ``unmet``: workloads for which some target of an
    intent does not hold at a site that they run on, times seconds."""

    joules: float = 0.0
    grams: float = 0.0
    money: float = 0.0
    waiting: float = 0.0
    unmet: float = 0.0

    def add(self, other: Bill) -> None:
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))


@dataclass(frozen=True, slots=True)
class Prices:
    """What things are worth, in money. Defaults: emissions at 100 per tonne; a replica that is missing for an hour costs as much
    as a target that is not met for an hour, 0.36; what sites charge is in ``money`` already, with their energy."""

    gram: float = 1e-4
    joule: float = 0.0
    money: float = 1.0
    waiting: float = 1e-4
    unmet: float = 1e-4

    def of(self, bill: Bill) -> float:
        return (
            self.gram * bill.grams
            + self.joule * bill.joules
            + self.money * bill.money
            + self.waiting * bill.waiting
            + self.unmet * bill.unmet
        )


class Meter:
    """``settle`` up to now before anything is read. ``intensity``: (site, seconds since the epoch) → gCO2eq/kWh."""

    def __init__(self, sites: Iterable[Site], now: Callable[[], float], intensity: Callable[[Site, float], float]) -> None:
        self._sites = {site.name: site for site in sites}
        self._now, self._intensity = now, intensity
        self.of_site = {name: Bill() for name in self._sites}
        self._wanted: dict[ObjectRef, tuple[WorkloadInfo, int]] = {}
        self._served: set[ObjectRef] = set()
        self._shared = Bill()
        self._since = now()
        self._rates: dict[str, tuple[float, float]] = {}
        self._missing = self._breaches = 0.0
        self._read()

    def want(self, workload: WorkloadInfo) -> None:
        """From now on it is waited for."""
        self.settle()
        self._wanted[workload.ref] = workload, workload.replicas
        self._read()

    def forget(self, about: ObjectRef) -> None:
        self.settle()
        self._wanted.pop(about, None)
        self._read()

    def changed(self) -> None:
        """What runs has just changed."""
        self.settle()
        self._read()

    def settle(self) -> None:
        """Everything until now is summed."""
        now = self._now()
        while self._since < now:
            end = min(now, (self._since // HOUR + 1) * HOUR)
            seconds = end - self._since
            for name, (power, price) in self._rates.items():
                bill = self.of_site[name]
                bill.joules += power * seconds
                bill.grams += grams(power, self._intensity(self._sites[name], self._since), seconds)
                bill.money += price * seconds / HOUR
            self._shared.waiting += self._missing * seconds
            self._shared.unmet += self._breaches * seconds
            self._since = end
            if end % HOUR == 0:
                # Another intensity: what an intent says of it may hold no longer.
                self._read()

    @property
    def total(self) -> Bill:
        self.settle()
        found = Bill()
        for bill in (*self.of_site.values(), self._shared):
            found.add(bill)
        return found

    def _read(self) -> None:
        serving: dict[ObjectRef, int] = {}
        places: dict[ObjectRef, set[str]] = {}
        for name, site in self._sites.items():
            info, counts = cluster_info(site.obj), Counter[ObjectRef]()
            for copy in site.copies():
                counts[copy.owner] += 1
                places.setdefault(copy.owner, set()).add(name)
                serving[copy.owner] = serving.get(copy.owner, 0) + copy.ready
                if copy.ready:
                    self._served.add(copy.owner)
            known = [(self._wanted[about][0], count) for about, count in counts.items() if about in self._wanted]
            self._rates[name] = watts(site.obj, site.busy_milli()), sum(cost(info, what, count) or 0.0 for what, count in known)
        self._missing = float(sum(self._lacks(about, count, serving) for about, (_, count) in self._wanted.items()))
        self._breaches = float(sum(self._breached(w, places.get(about, ())) for about, (w, _) in self._wanted.items()))

    def _lacks(self, about: ObjectRef, wanted: int, serving: dict[ObjectRef, int]) -> int:
        if about.kind == scheme.JOB.kind:
            return 0 if about in self._served else 1
        return max(0, wanted - serving.get(about, 0))

    def _breached(self, found: WorkloadInfo, places: Iterable[str]) -> bool:
        asked = [t for t in found.targets if t.name != "availability"]
        sites = [self._sites[place] for place in places]
        infos = [replace(cluster_info(s.obj), carbon=self._intensity(s, self._since)) for s in sites]
        return any(not holds_at(target, info, found) for target in asked for info in infos)
