"""Metering at a site: what each pod used is added up over periods, which wait on disk until the hub has booked them.

Nothing here needs the hub. A period is closed in one transaction with the counters that the next one begins with, so a pod's CPU
time is in exactly one period whenever this process is killed: after a restart the counters go on from the last close. Memory is
integrated from looks; what lies between the last close and a restart is taken to have been as it is found, and
``estimatedSeconds`` says how much that was. A container that ends between two looks loses what it used since the last one.

Bounds: ``MAX_WAITING`` periods wait. When there are more, the two oldest that make up a day at most become one: coarser, nothing
is lost. Periods end at multiples of their length, so none lies in two hours where that divides an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from metaos.accounting.booking import MAX_PERIOD_SECONDS, POD_FIGURES
from metaos.accounting.metering import DEFAULT_IDLE_RULE, PodUse, apportion, attribute, integrated
from metaos.agent.cache import Cache

PERIOD_SECONDS = 300
MAX_WAITING = 4032
#: A longer silence is a clock that was set, not time in which something ran: its seconds count for nothing.
MAX_GAP_SECONDS = 30 * 86_400
_STATE, _WAITING = "meter", "period"


@dataclass(frozen=True, slots=True)
class Look:
    """One pod at one moment. ``counters``: container start → CPU seconds since that start."""

    uid: str
    namespace: str
    name: str
    kind: str
    workload: str
    counters: Mapping[str, float]
    memory: float
    requested_millis: int = 0
    requested_mib: int = 0


@dataclass(slots=True)
class _Sum:
    look: Look
    cpu: float = 0.0
    memory: float = 0.0
    present: float = 0.0
    last_memory: float | None = None


@dataclass(frozen=True, slots=True)
class Energy:
    """``measure(seconds, cpu_seconds)``: millijoules of the machine and, of it, idle, for the time since the last call."""

    name: str
    source: str
    basis: str
    uncertainty: str
    measure: Callable[[float, float], tuple[int, int]]


@dataclass(slots=True)
class Meter:
    """One site's. ``cores``: of the machine, in thousandths."""

    cache: Cache
    energy: Energy
    cores: int
    period_seconds: int = PERIOD_SECONDS
    idle_rule: str = DEFAULT_IDLE_RULE
    max_waiting: int = MAX_WAITING
    _sums: dict[str, _Sum] = field(default_factory=dict)
    _counters: dict[str, float] = field(default_factory=dict)
    _system: float = 0.0
    _start: int = 0
    _sequence: int = 0
    _looked: float | None = None
    _estimated: float = 0.0

    def __post_init__(self) -> None:
        state = self.cache.get(_STATE, "state")
        if state is not None:
            self._start, self._sequence, self._counters = state["start"], state["sequence"], state["counters"]

    def look(self, now: float, pods: Iterable[Look], system_cpu_seconds: float = 0.0) -> None:
        """To be called every few seconds with everything that runs. ``system_cpu_seconds``: used since the last look by the
        machine beside the pods. A clock that was put back holds the period open until it has caught up."""
        pods = list(pods)
        if not self._start:
            # What was used before anybody metered is nobody's.
            self._start = int(now)
            self._counters = {f"{pod.uid}/{key}": value for pod in pods for key, value in pod.counters.items()}
            self._keep(self._counters)
        elif self._looked is None:
            self._estimated += max(0.0, now - self._start)
        since = self._looked if self._looked is not None else float(self._start)
        seconds = max(0.0, now - since)
        if seconds > MAX_GAP_SECONDS:
            self._start += int(seconds)
            self._estimated, seconds = min(self._estimated, MAX_GAP_SECONDS), 0.0
        self._looked = now
        self._system += system_cpu_seconds
        counters: dict[str, float] = {}
        for pod in pods:
            self._add(pod, seconds, counters)
        # What is gone is forgotten at the next close: one look that missed a container must not count it twice.
        self._counters |= counters
        if int(now) // self.period_seconds * self.period_seconds > self._start:
            self._close(int(now), counters)

    def _add(self, pod: Look, seconds: float, counters: dict[str, float]) -> None:
        found = self._sums.setdefault(pod.uid, _Sum(pod))
        found.look = pod
        for key, value in pod.counters.items():
            before = self._counters.get(f"{pod.uid}/{key}", 0.0)
            found.cpu += value - before if value >= before else value
            counters[f"{pod.uid}/{key}"] = value
        found.memory += float(integrated(found.last_memory, pod.memory, seconds))
        found.present += seconds
        found.last_memory = pod.memory

    def _close(self, end: int, counters: dict[str, float]) -> None:
        seconds = end - self._start
        cpu = sum(each.cpu for each in self._sums.values())
        whole, idle = self.energy.measure(seconds, cpu + self._system)
        uses = {
            uid: PodUse(round(each.cpu * 1e6), min(round(each.present * 1000), seconds * 1000), each.look.requested_millis)
            for uid, each in self._sums.items()
        }
        shares, left = attribute(
            whole,
            idle,
            uses,
            system_cpu_microseconds=round(self._system * 1e6),
            capacity_millis=self.cores,
            milliseconds=seconds * 1000,
            rule=self.idle_rule,
        )
        period = {
            "sequence": self._sequence + 1,
            "start": self._start,
            "end": end,
            "estimatedSeconds": round(self._estimated),
            "meter": {key: getattr(self.energy, key) for key in ("name", "source", "basis", "uncertainty")},
            "idleRule": self.idle_rule,
            "cpuMillis": self.cores,
            "energy": {"millijoules": whole, "systemMillijoules": left.total},
            "pods": [_said(each, uses[uid], shares[uid].total) for uid, each in sorted(self._sums.items())],
        }
        self._start = end
        with self.cache.together():
            for part in parted(period):
                self._sequence = part["sequence"]
                self.cache.put(_WAITING, f"{self._sequence:012d}", part)
            self._keep(counters)
            self._make_room()
        self._counters, self._system, self._estimated = counters, 0.0, 0.0
        kept = {key.partition("/")[0] for key in counters}
        self._sums = {uid: _Sum(each.look, last_memory=each.last_memory) for uid, each in self._sums.items() if uid in kept}

    def _keep(self, counters: dict[str, float]) -> None:
        self.cache.put(_STATE, "state", {"start": self._start, "sequence": self._sequence, "counters": counters})

    def waiting(self, limit: int) -> list[dict[str, Any]]:
        """The oldest periods that are not booked yet."""
        return [period for _, period in self.cache.items(_WAITING)][:limit]

    def booked(self, sequence: int) -> None:
        """The hub has all periods up to this one."""
        with self.cache.together():
            for key, _ in self.cache.items(_WAITING):
                if int(key) <= sequence:
                    self.cache.delete(_WAITING, key)

    def _make_room(self) -> None:
        found = list(self.cache.items(_WAITING))
        for (old, first), (new, second) in pairwise(found):
            if len(found) <= self.max_waiting:
                return
            if second["end"] - first["start"] <= MAX_PERIOD_SECONDS:
                self.cache.delete(_WAITING, old)
                self.cache.put(_WAITING, new, merged(first, second))
                return


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two periods as one that bears the later's number. Pure."""
    pods: dict[tuple[str, str], dict[str, Any]] = {}
    for pod in (*first["pods"], *second["pods"]):
        before = pods.get((pod["namespace"], pod["name"]))
        if before is None:
            pods[pod["namespace"], pod["name"]] = dict(pod)
        else:
            kept = {key: max(before[key], pod[key]) for key in ("requestedMillis", "requestedMiB")}
            pods[pod["namespace"], pod["name"]] = pod | {key: before[key] + pod[key] for key in POD_FIGURES} | kept
    return {
        **second,
        "start": first["start"],
        "estimatedSeconds": first["estimatedSeconds"] + second["estimatedSeconds"],
        "energy": {key: first["energy"][key] + second["energy"][key] for key in second["energy"]},
        "pods": [pods[key] for key in sorted(pods)],
    }


def parted(period: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One that is longer than the hub takes, as several with even use. Nothing is lost. Pure."""
    start, end = period["start"], period["end"]
    count = -(-(end - start) // MAX_PERIOD_SECONDS)
    if count <= 1:
        return [dict(period)]
    bounds = [start + (end - start) * n // count for n in range(count + 1)]
    lengths = [b - a for a, b in pairwise(bounds)]
    system = apportion(period["energy"]["systemMillijoules"], lengths)
    estimated = apportion(period["estimatedSeconds"], lengths)
    summed = [key for key in POD_FIGURES if key not in ("requestedMillis", "requestedMiB")]
    shares = [{key: apportion(pod[key], lengths) for key in summed} for pod in period["pods"]]
    found = []
    for n in range(count):
        pods = [{**pod, **{key: share[key][n] for key in summed}} for pod, share in zip(period["pods"], shares, strict=True)]
        whole = system[n] + sum(pod["energyMillijoules"] for pod in pods)
        found.append(
            {
                **period,
                "sequence": period["sequence"] + n,
                "start": bounds[n],
                "end": bounds[n + 1],
                "estimatedSeconds": estimated[n],
                "energy": {"millijoules": whole, "systemMillijoules": system[n]},
                "pods": pods,
            }
        )
    return found


def _said(each: _Sum, use: PodUse, millijoules: int) -> dict[str, Any]:
    return {
        "namespace": each.look.namespace,
        "name": each.look.name,
        "workload": {"kind": each.look.kind, "name": each.look.workload},
        "presentMilliseconds": use.present_milliseconds,
        "cpuMicroseconds": use.cpu_microseconds,
        "memoryMiBSeconds": round(each.memory / 2**20),
        "requestedMillis": use.requested_millis,
        "requestedMiB": each.look.requested_mib,
        "energyMillijoules": millijoules,
    }
