"""Metering at a site: what each pod used is added up over periods, which wait on disk until the hub has booked them.

Nothing here needs the hub. A period is closed in one transaction with the counters that the next one begins with, so a pod's CPU
time is in exactly one period whenever this process is killed: after a restart the counters go on from the last close. Memory is
integrated from looks, and energy read at each; what lies between the last close and a restart is taken to have been as it is
found, its energy by the power model, and ``estimatedSeconds`` says how much that was.

Numbers: a period's is its place in the spool plus ``offset``, which is found out when the hub is first asked what it has booked,
so that a site that lost its disk goes on where the one before it ended. What was once handed out is never changed.

Bounds: ``MAX_WAITING`` periods and ``MAX_BYTES`` characters wait. When there are more, the two oldest that make up a day at most
become one: coarser, nothing is lost. When nothing is left to join, the oldest is given up, and the one after it says in
``lostSeconds`` for how long nothing is known any more. Periods end at multiples of their length when they are looked at on time,
so none lies in two hours where that divides an hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from metaos.accounting.booking import MAX_PERIOD_SECONDS, MAX_PODS, POD_FIGURES
from metaos.accounting.metering import DEFAULT_IDLE_RULE, PERIOD_SECONDS, PodUse, apportion, attribute, integrated
from metaos.agent.cache import Cache
from metaos.agent.energy import Energy

MAX_WAITING = 4032
MAX_BYTES = 32 * 1024 * 1024
#: Of those that are handed out at once: so many pods in all, or one period.
MAX_SENT_PODS = 1000
#: A longer silence is a clock that was set, not time in which something ran: its seconds count for nothing.
MAX_GAP_SECONDS = 30 * 86_400
_STATE, _WAITING = "meter", "period"
#: Of a pod, only where they were counted.
_OPTIONAL = ("networkBytes", "acceleratorMillijoules")
NETWORK_SOURCE = "bytes that left for other sites through the agent; what pods exchange otherwise is not counted"


@dataclass(frozen=True, slots=True)
class Look:
    """One pod at one moment. ``counters``: container start → CPU seconds since that start. ``sent``: bytes that left the site for
    other sites since the last look, ``None`` where they are not counted. ``accelerators``: what it
    asks for, in thousandths of one."""

    uid: str
    namespace: str
    name: str
    kind: str
    workload: str
    counters: Mapping[str, float]
    memory: float
    requested_millis: int = 0
    requested_mib: int = 0
    sent: int | None = None
    accelerators: int = 0
    #: Whether a container of it runs: one that has ended keeps its counters, and nothing is reserved for it.
    running: bool = True


@dataclass(slots=True)
class _Sum:
    look: Look
    cpu: float = 0.0
    memory: float = 0.0
    present: float = 0.0
    last_memory: float | None = None
    sent: int | None = None
    #: Millijoules of accelerators.
    devices: int = 0


@dataclass(slots=True)
class Meter:
    """One site's. ``cores``: of the machine, in thousandths."""

    cache: Cache
    energy: Energy
    cores: int
    period_seconds: int = PERIOD_SECONDS
    idle_rule: str = DEFAULT_IDLE_RULE
    max_waiting: int = MAX_WAITING
    max_bytes: int = MAX_BYTES
    #: Whether all that the machine does is metered, or pods and the agent alone: where the site is a part of it.
    whole: bool = True
    _sums: dict[str, _Sum] = field(default_factory=dict)
    _counters: dict[str, float] = field(default_factory=dict)
    _system: float = 0.0
    _start: int = 0
    _sequence: int = 0
    _looked: float | None = None
    _estimated: float = 0.0
    #: Millijoules of the machine in this period, of it idle, and of it accelerators that no pod asked for.
    _whole: int = 0
    _idle: int = 0
    _loose: int = 0
    #: ``None``: the hub has never been asked.
    _offset: int | None = None
    #: Key of the last period that was handed out.
    _sent: str = ""
    #: Up to here nothing can be joined any more.
    _full: str = ""
    _count: int = 0
    _bytes: int = 0

    def __post_init__(self) -> None:
        state = self.cache.get(_STATE, "state")
        if state is not None:
            self._start, self._sequence, self._counters = state["start"], state["sequence"], state["counters"]
            self._offset, self._sent = state.get("offset"), state.get("sent", "")
        self._count, self._bytes = self.cache.size(_WAITING)

    # -- looking -------------------------------------------------------------------------------------------

    def look(self, now: float, pods: Iterable[Look], system_cpu_seconds: float = 0.0) -> None:
        """To be called every few seconds with everything that runs. ``system_cpu_seconds``: used since the last look by the
        machine beside the pods. A clock that was put back holds the period open until it has caught up, or, by more than a day,
        begins it anew."""
        pods = list(pods)
        first = self._looked is None
        if not self._start:
            # What was used before anybody metered is nobody's.
            self._start = int(now)
            self._counters = {f"{pod.uid}/{key}": value for pod in pods for key, value in pod.counters.items()}
            self._keep(self._start, self._counters)
        elif first:
            self._estimated += max(0.0, now - self._start)
        since = self._looked if self._looked is not None else float(self._start)
        seconds = max(0.0, now - since)
        if seconds > MAX_GAP_SECONDS:
            self._start += int(seconds)
            self._estimated, seconds = min(self._estimated, MAX_GAP_SECONDS), 0.0
        if now < self._start - MAX_PERIOD_SECONDS:
            # A clock that was far ahead: it will not catch up, and what was closed by it the hub does not take.
            self._start = int(now)
        self._looked = now
        self._system += system_cpu_seconds
        counters: dict[str, float] = {}
        cpu = sum([self._add(pod, seconds, counters) for pod in pods])
        self._read(pods, seconds, cpu + system_cpu_seconds, estimate=first)
        # What is gone is forgotten at the next close: one look that missed a container must not count it twice.
        self._counters |= counters
        if int(now) // self.period_seconds * self.period_seconds > self._start:
            self._close(int(now), counters)

    def _add(self, pod: Look, seconds: float, counters: dict[str, float]) -> float:
        """CPU seconds since the last look."""
        found = self._sums.setdefault(pod.uid, _Sum(pod))
        found.look = pod
        used = 0.0
        for key, value in pod.counters.items():
            before = self._counters.get(f"{pod.uid}/{key}", 0.0)
            used += value - before if value >= before else value
            counters[f"{pod.uid}/{key}"] = value
        found.cpu += used
        found.memory += float(integrated(found.last_memory, pod.memory, seconds))
        found.present += seconds if pod.running else 0.0
        found.last_memory = pod.memory
        if pod.sent is not None:
            found.sent = (found.sent or 0) + pod.sent
        return used

    def _read(self, pods: list[Look], seconds: float, cpu_seconds: float, *, estimate: bool) -> None:
        reading = self.energy.read(seconds, cpu_seconds)
        if estimate:
            # What a meter counted while nobody was there is not known.
            reading = self.energy.estimate(seconds, cpu_seconds)
        self._whole += reading.millijoules
        self._idle += reading.idle_millijoules
        if reading.devices:
            # Which pod is on which of them is not known: each pays for the part of all that it asks for.
            asking = [pod for pod in pods if pod.running and pod.accelerators]
            free = max(0, len(reading.devices) * 1000 - sum(pod.accelerators for pod in asking))
            parts = apportion(sum(reading.devices.values()), [*(pod.accelerators for pod in asking), free])
            for pod, part in zip(asking, parts, strict=False):
                self._sums[pod.uid].devices += part
            self._loose += parts[-1]

    # -- closing -------------------------------------------------------------------------------------------

    def _close(self, end: int, counters: dict[str, float]) -> None:
        parts = parted(self._period(end))
        with self.cache.together():
            added = 0
            for part in parts:
                added += self.cache.put(_WAITING, _key(part["sequence"]), part)
            self._keep(end, counters, self._sequence + len(parts))
        # Only what is on disk is over: where it could not be written, the period goes on.
        self._start, self._sequence = end, self._sequence + len(parts)
        self._count, self._bytes = self._count + len(parts), self._bytes + added
        self._counters, self._system, self._estimated = counters, 0.0, 0.0
        self._whole = self._idle = self._loose = 0
        kept = {key.partition("/")[0] for key in counters}
        self._sums = {uid: _Sum(each.look, last_memory=each.last_memory) for uid, each in self._sums.items() if uid in kept}
        self._make_room()

    def _period(self, end: int) -> dict[str, Any]:
        milliseconds = (end - self._start) * 1000
        uses = {
            uid: PodUse(round(each.cpu * 1e6), min(round(each.present * 1000), milliseconds), each.look.requested_millis)
            for uid, each in self._sums.items()
        }
        held = {uid: each.devices for uid, each in self._sums.items()}
        devices = sum(held.values()) + self._loose
        if devices > self._whole:
            # One meter counts all of the machine, another one its devices, and they do not agree.
            scaled = apportion(self._whole, [*held.values(), self._loose])
            held, devices = dict(zip(held, scaled, strict=False)), self._whole
        shares, _ = attribute(
            self._whole - devices,
            self._idle,
            uses,
            system_cpu_microseconds=round(self._system * 1e6),
            capacity_millis=self.cores,
            milliseconds=milliseconds,
            rule=self.idle_rule,
        )
        pods = [
            _said(each, uses[uid], shares[uid].total + held[uid], held[uid])
            for uid, each in sorted(self._sums.items())
            if each.look.running or each.cpu or each.present
        ]
        # More pods than a period may have: those with least energy are not told apart from the system.
        pods = sorted(pods, key=lambda pod: -pod["energyMillijoules"])[:MAX_PODS] if len(pods) > MAX_PODS else pods
        counted = any("networkBytes" in pod for pod in pods)
        return {
            "sequence": self._sequence + 1,
            "start": self._start,
            "end": end,
            "estimatedSeconds": round(self._estimated),
            "meter": {key: getattr(self.energy, key) for key in ("name", "source", "basis", "uncertainty")},
            "idleRule": self.idle_rule,
            "cpuMillis": self.cores,
            **({"networkSource": NETWORK_SOURCE} if counted else {}),
            "energy": {
                "millijoules": self._whole,
                "systemMillijoules": self._whole - sum(pod["energyMillijoules"] for pod in pods),
            },
            "pods": pods,
        }

    def _keep(self, start: int, counters: dict[str, float], sequence: int | None = None) -> None:
        state = {"start": start, "sequence": self._sequence if sequence is None else sequence, "counters": counters}
        self.cache.put(_STATE, "state", state | {"offset": self._offset, "sent": self._sent})

    # -- what waits ----------------------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Numbers up to this one are of a spool that was here before."""
        return self._offset or 0

    def __len__(self) -> int:
        """Periods that wait."""
        return self._count

    def settle(self, booked: int, held: int = 0) -> None:
        """The hub has all periods up to ``booked``. ``held``: the highest number that it has been sent, as it says."""
        if self._offset is None or booked > self._offset + self._sequence:
            # Numbers of a spool that was here before this one, or of this one before it was put back from a copy.
            first = self._offset is None
            self._offset = max(booked, held) if first else booked - self._sequence
            self._keep_beside()
        key = _key(booked - self._offset)
        if booked > self._offset and self.cache.delete_until(_WAITING, key):
            self._count, self._bytes = self.cache.size(_WAITING)

    def next(self, limit: int) -> list[dict[str, Any]]:
        """The oldest periods, with their numbers. They stay what they are from now on. To be called after :meth:`settle`."""
        found: list[tuple[str, dict[str, Any]]] = []
        pods = 0
        for key, period in self.cache.first(_WAITING, limit):
            pods += len(period["pods"])
            if found and pods > MAX_SENT_PODS:
                break
            found.append((key, period))
        if found and found[-1][0] > self._sent:
            self._sent = found[-1][0]
            self._keep_beside()
        return [period | {"sequence": period["sequence"] + self.offset} for _, period in found]

    def _keep_beside(self) -> None:
        """The counters on disk stay those of the last close."""
        state = self.cache.get(_STATE, "state") or {"start": self._start, "sequence": self._sequence, "counters": self._counters}
        self.cache.put(_STATE, "state", state | {"offset": self._offset, "sent": self._sent})

    def _make_room(self) -> None:
        while self._count > self.max_waiting or self._bytes > self.max_bytes:
            pair = self.cache.first(_WAITING, 2, max(self._full, self._sent))
            if len(pair) == 2 and joinable(pair[0][1], pair[1][1]):
                (old, one), (new, other) = pair
                with self.cache.together():
                    self.cache.delete(_WAITING, old)
                    self.cache.put(_WAITING, new, merged(one, other))
            elif len(pair) == 2:
                self._full = pair[0][0]
                continue
            elif not self._give_up():
                return
            self._count, self._bytes = self.cache.size(_WAITING)

    def _give_up(self) -> bool:
        """The oldest that nobody was sent."""
        found = self.cache.first(_WAITING, 2, self._sent)
        if len(found) < 2:
            return False
        (old, lost), (new, after) = found
        seconds = lost["end"] - lost["start"] + lost.get("lostSeconds", 0) + after.get("lostSeconds", 0)
        with self.cache.together():
            self.cache.delete(_WAITING, old)
            self.cache.put(_WAITING, new, after | {"lostSeconds": seconds})
        return True


def _key(sequence: int) -> str:
    return f"{sequence:012d}"


def joinable(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two periods can be one that the hub takes. Pure."""
    pods = {(pod["namespace"], pod["name"]) for pod in (*first["pods"], *second["pods"])}
    whole = second["end"] - first["start"] <= MAX_PERIOD_SECONDS and not second.get("lostSeconds")
    whole = whole and first["end"] <= second["start"]
    return whole and len(pods) <= MAX_PODS and first["meter"] == second["meter"] and first["idleRule"] == second["idleRule"]


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two periods as one that bears the later's number. Pure."""
    pods: dict[tuple[str, str], dict[str, Any]] = {}
    for pod in (*first["pods"], *second["pods"]):
        before = pods.get((pod["namespace"], pod["name"]))
        if before is None:
            pods[pod["namespace"], pod["name"]] = dict(pod)
        else:
            kept = {key: max(before[key], pod[key]) for key in ("requestedMillis", "requestedMiB")}
            also = {key: before.get(key, 0) + pod.get(key, 0) for key in _OPTIONAL if key in before or key in pod}
            pods[pod["namespace"], pod["name"]] = pod | {key: before[key] + pod[key] for key in POD_FIGURES} | kept | also
    lost = {"lostSeconds": first["lostSeconds"]} if "lostSeconds" in first else {}
    source = {"networkSource": NETWORK_SOURCE} if any("networkBytes" in pod for pod in pods.values()) else {}
    return {
        **second,
        **lost,
        **source,
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
    summed = [key for key in (*POD_FIGURES, *_OPTIONAL) if key not in ("requestedMillis", "requestedMiB")]
    shares = [{key: apportion(pod[key], lengths) for key in summed if key in pod} for pod in period["pods"]]
    found = []
    for n in range(count):
        pods = [
            {**pod, **{key: parts[n] for key, parts in share.items()}} for pod, share in zip(period["pods"], shares, strict=True)
        ]
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


def _said(each: _Sum, use: PodUse, millijoules: int, devices: int) -> dict[str, Any]:
    said = {
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
    if each.sent is not None:
        said["networkBytes"] = each.sent
    if devices:
        said["acceleratorMillijoules"] = devices
    return said
