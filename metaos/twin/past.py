"""What the hub's ledger has of a period, as a scenario: the same workloads, sizes, times and sites. Pure.

A ledger knows pods by periods of some minutes, so times are known to a period; what a workload asked for beside CPU and memory is
known of those that the hub still has.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from metaos.accounting.carbon import FORECAST_HOURS
from metaos.accounting.statement import Booked, Line
from metaos.resources import scheme, workload
from metaos.resources.meta import Obj, name, namespace
from metaos.scheduler.scores import COST, LATENCY, Score
from metaos.scheduler.slack import CONTEXT, WAITING
from metaos.twin.network import Quality
from metaos.twin.story import KINDS, Scenario, SiteText, WorkloadText
from metaos.twin.text import ScenarioError
from metaos.twin.timing import Timing

HOUR = 3600.0
MAX_HOURS, MAX_SITES, MAX_WORKLOADS = 7 * 24, 200, 2000
NEMO = "nemo"
#: What may be held against NEMO's own decisions, and what that means.
POLICIES = {
    NEMO: "NEMO's own policy, as it is set now",
    "cheapest": "every workload goes where its sites charge least, as far as what is hard allows",
    "nearest": "every workload goes where its users' round trip is shortest, as far as what is hard allows; users are those that "
    "intents name",
    "no-intents": "nobody has stated an intent, so neither residency nor anything else that is hard: NEMO's defaults alone",
    "start-at-once": "nothing waits: every Job starts when it comes",
}
#: What every answer states.
ASSUMED = (
    "workloads are of the sizes and at the times that the ledger has (to a metering period), with the CPU and memory that they "
    "used on average, wherever they run",
    "sites have the power, building, intensities and hardware that were booked (the nearest period's where there is none), and "
    "otherwise what they state now; they are all reachable; forecasts of intensity are right",
    "intents, policies and tariffs are those of now; data between sites and accelerators are left out",
    "energy is by the sites' power models, shared as the ledger does it: a pod bears part of its machine's idle power, which is "
    "on either way; 'above idle' leaves that out",
)
#: So long before the time that is asked for a replay's sites begin, to be ready by then.
LEAD_SECONDS = 900.0
#: Beside such a score no other one decides.
_DECIDES = 1000.0

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Ran:
    """One workload in the ledger. Times in seconds since the epoch; ``course``: (when, replicas from then on); ``cores`` and
    ``mib``: what a replica used on average; ``longest``: seconds of its longest pod."""

    key: Key
    begin: float
    end: float
    course: tuple[tuple[float, int], ...]
    pods: int
    cores: float
    mib: float
    requested_millis: int
    requested_mib: int
    longest: float
    consumer: str
    intents: tuple[str, ...]


@dataclass(slots=True)
class _Sum:
    spans: list[tuple[int, int, float]] = field(default_factory=list)
    pods: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    cpu: int = 0
    memory: int = 0
    present: int = 0
    last: Line = field(default_factory=dict)


def ran(entries: Iterable[Booked]) -> list[Ran]:
    """By namespace and name. Lines without presence say nothing."""
    sums: dict[Key, _Sum] = {}
    for header, lines in entries:
        for line in lines:
            present = line["presentMilliseconds"] / 1000
            if present <= 0:
                continue
            found = sums.setdefault((line["workload"]["kind"], line["namespace"], line["workload"]["name"]), _Sum())
            found.spans.append((header["start"], header["end"], present))
            found.pods.setdefault(f"{header['site']}/{line['name']}", []).append((header["start"], header["end"], present))
            found.cpu += line["cpuMicroseconds"]
            found.memory += line["memoryMiBSeconds"]
            found.present += line["presentMilliseconds"]
            found.last = line
    return [_ran(key, found) for key, found in sorted(sums.items(), key=lambda item: (item[0][1], item[0][2], item[0][0]))]


def _ran(key: Key, found: _Sum) -> Ran:
    seconds = found.present / 1000
    firsts = [min(spans) for spans in found.pods.values()]
    lasts = [max(spans) for spans in found.pods.values()]
    end = max(start + present for start, _, present in lasts)
    return Ran(
        key,
        min(end - present for _, end, present in firsts),
        end,
        _course(found.spans),
        len(found.pods),
        found.cpu / 1e6 / seconds,
        found.memory / seconds,
        found.last["requestedMillis"],
        found.last["requestedMiB"],
        max(sum(present for _, _, present in spans) for spans in found.pods.values()),
        str(found.last.get("consumer") or ""),
        tuple(found.last.get("intents") or ()),
    )


def _course(spans: Sequence[tuple[int, int, float]]) -> tuple[tuple[float, int], ...]:
    """How many replicas there were: presence over time, rounded, and at least one where there was any."""
    changes: dict[int, float] = {}
    for start, end, present in spans:
        level = present / (end - start)
        changes[start] = changes.get(start, 0.0) + level
        changes[end] = changes.get(end, 0.0) - level
    found: list[tuple[float, int]] = []
    level = 0.0
    for at in sorted(changes):
        level += changes[at]
        count = max(1, round(level)) if level > 1e-6 else 0
        if not found or found[-1][1] != count:
            found.append((float(at), count))
    return tuple(found)


# -- the scenario ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deed:
    """What people did to a workload then (seconds since the scenario's begin): ``replicas``, or its end (``None``)."""

    at: float
    key: Key
    replicas: int | None


@dataclass(frozen=True, slots=True)
class Past:
    """A scenario of a period. ``left_out``: what could not be played, and why."""

    story: Scenario
    deeds: tuple[Deed, ...]
    runs: Mapping[Key, Ran]
    scores: tuple[Score, ...]
    left_out: tuple[str, ...]


def past(
    entries: Sequence[Booked],
    copied: Mapping[str, Any],
    created: Mapping[Key, float],
    policy: str,
    since: float,
    until: float,
    summed: Sequence[Ran] | None = None,
) -> Past:
    """``copied``: the continuum of now, as ``twin.live.copy_of`` gives it; ``created``: when those Jobs came that the hub still
    has; ``summed``: what :func:`ran` says of the entries, where that is known already. Raises ``ScenarioError`` saying what is
    too much and what to do."""
    if policy not in POLICIES:
        raise ScenarioError(f"there is no policy {policy!r} to replay: write twin: and one of {', '.join(POLICIES)}")
    hours = (until - since) / HOUR
    runs = {found.key: found for found in (ran(entries) if summed is None else summed)}
    if hours > MAX_HOURS or len(runs) > MAX_WORKLOADS:
        most = f"{MAX_HOURS} h and {MAX_WORKLOADS} workloads"
        raise ScenarioError(f"{hours:.0f} h with {len(runs)} workloads are too much, {most} can be replayed: say a later --since")

    headers = [header for header, _ in entries]
    sites = _sites(headers, copied)
    if len(sites) > MAX_SITES:
        raise ScenarioError(f"there are {len(sites)} sites, and {MAX_SITES} at most can be replayed")
    kept = {(obj["kind"], namespace(obj), name(obj)): obj for obj in copied["objects"] if obj["kind"] in KINDS}
    texts, deeds, left_out = [], [], []
    for key, found in runs.items():
        if key[0] not in KINDS:
            left_out.append(f"{'/'.join(key)}: what is no {', '.join(KINDS)} is not replayed")
            continue
        if key not in kept:
            left_out.append(f"{'/'.join(key)} is gone: replayed with its size alone, without labels")
        text, more = _workload(found, kept.get(key), created.get(key), since)
        texts.append(text)
        deeds += more
    story = Scenario(
        file="the ledger",
        title=f"{hours:.4g} h of the ledger, replayed.",
        seed=1,
        duration=until - since,
        settle=0.0,
        start=since - LEAD_SECONDS,
        timing=Timing(heartbeat=600.0, lease=2400.0),
        sites=tuple(sites),
        workloads=tuple(texts),
        objects=tuple(_asked(copied["objects"], policy)),
        faults=(),
        hopes=(),
        carbon=_trace(headers, since, until),
        carbon_start_hour=-LEAD_SECONDS / HOUR,
    )
    if policy == "start-at-once":
        story = replace(story, workloads=tuple(replace(t, objects=tuple(map(_at_once, t.objects))) for t in story.workloads))
    return Past(story, tuple(sorted(deeds, key=lambda deed: deed.at)), runs, _scores(policy), tuple(left_out))


def _scores(policy: str) -> tuple[Score, ...]:
    decides = {"cheapest": COST, "nearest": LATENCY}.get(policy)
    return () if decides is None else (replace(decides, name=policy, weight=_DECIDES),)


def _asked(objects: Iterable[Obj], policy: str) -> list[Obj]:
    """What people ask for beside workloads, under a policy."""
    found = [obj for obj in objects if obj["kind"] not in KINDS and obj["kind"] not in ("CronJob", "Pod")]
    if policy == "no-intents":
        return [obj for obj in found if obj["kind"] != "Intent"]
    return [_at_once(obj) for obj in found] if policy == "start-at-once" else found


def _at_once(obj: Obj) -> Obj:
    """Without what lets it wait."""
    found = copy.deepcopy(obj)
    annotations = found["metadata"].get("annotations") or {}
    for key in WAITING:
        annotations.pop(key, None)
    if obj["kind"] == "Intent":
        for expectation in found["spec"].get("expectations") or ():
            for part in (expectation, *(expectation.get("targets") or ())):
                if contexts := part.get("contexts"):
                    part["contexts"] = [context for context in contexts if context.get("name") != CONTEXT]
    return found


def _workload(found: Ran, kept: Obj | None, created: float | None, since: float) -> tuple[WorkloadText, list[Deed]]:
    kind = KINDS[found.key[0]]
    obj = copy.deepcopy(kept) if kept is not None else _made(found)
    begin = max(0.0, (created if created is not None else found.begin) - since)
    replicas = found.course[0][1] if found.course else 1
    deeds: list[Deed] = []
    if kind is scheme.JOB:
        spec = obj["spec"]
        spec.pop("suspend", None)
        if kept is None:
            spec |= {"parallelism": found.pods, "completions": found.pods}
        container = workload.pod_spec(obj)["containers"][0]
        container["command"] = ["sleep", f"{max(1.0, found.longest):.0f}"]
        container.pop("args", None)
        replicas = int(spec.get("parallelism") or 1)
    else:
        if kind is not scheme.DAEMON_SET:
            obj["spec"]["replicas"] = replicas
            deeds += [Deed(at - since, found.key, count) for at, count in found.course[1:] if at < found.end]
        deeds.append(Deed(found.end - since, found.key, None))
    text = WorkloadText(kind, found.key[1], found.key[2], replicas, begin, None, (), (obj,), ())
    return text, [deed for deed in deeds if deed.at > begin]


def _made(found: Ran) -> Obj:
    """Of one that is gone: what the ledger knows of it."""
    kind = KINDS[found.key[0]]
    marks = {"app": found.key[2]}
    requests = {"cpu": f"{max(1, found.requested_millis)}m", "memory": f"{max(1, found.requested_mib)}Mi"}
    pod: dict[str, Any] = {"containers": [{"name": "main", "image": "python:3", "resources": {"requests": requests}}]}
    spec: dict[str, Any] = {"template": {"metadata": {"labels": marks}, "spec": pod}}
    if kind is scheme.JOB:
        pod["restartPolicy"] = "Never"
    else:
        spec["selector"] = {"matchLabels": marks}
    return {**kind.empty(found.key[2], found.key[1]), "spec": spec}


# -- sites -------------------------------------------------------------------------------------------------


def _sites(headers: Sequence[Mapping[str, Any]], copied: Mapping[str, Any]) -> list[SiteText]:
    """Those of now, and those that were booked and are gone; with the power and building that were booked last."""
    specs = {site["name"]: dict(site["spec"]) for site in copied["sites"]}
    for header in headers:
        spec = specs.setdefault(header["site"], {"owner": header["provider"]})
        spec["capacity"] = {"cpu": f"{header['cpuMillis']}m", "memory": "64Gi", **(spec.get("capacity") or {})}
        if header["watts"] is not None:
            watts = {"idleWatts": float(header["watts"]["idle"]), "maxWatts": float(header["watts"]["max"])}
            spec["power"] = {**(spec.get("power") or {}), **watts}
        spec["electricity"] = {**(spec.get("electricity") or {}), "zone": header["site"], "pue": float(header["pue"])}
    return [
        SiteText({**scheme.CLUSTER.empty(site), "spec": spec}, "light", 0.0, Quality()) for site, spec in sorted(specs.items())
    ]


def _trace(headers: Sequence[Mapping[str, Any]], since: float, until: float) -> str:
    """Hourly intensities, a zone for each site that some are known of: booked ones (location-based), the hour's before where
    there is none, at the beginning the first."""
    known: dict[str, dict[int, float]] = {}
    for header in headers:
        located = header["factors"].get("location")
        if located is not None:
            for hour in range(int((header["start"] - since) // HOUR), int((header["end"] - 1 - since) // HOUR) + 1):
                known.setdefault(header["site"], {})[hour] = float(located["gramsPerKWh"])
    if not known:
        return ""
    zones = sorted(known)
    lines = [",".join(["hour_utc", *zones])]
    now = {zone: known[zone][min(known[zone])] for zone in zones}
    for hour in range(max(1, math.ceil((until - since) / HOUR))):
        now |= {zone: known[zone][hour] for zone in zones if hour in known[zone]}
        lines.append(",".join([str(hour), *(f"{now[zone]:g}" for zone in zones)]))
    # A forecast goes beyond the end: there it stays as it was.
    lines += [",".join([str(len(lines) - 1 + more), lines[-1].partition(",")[2]]) for more in range(FORECAST_HOURS)]
    return "\n".join(lines) + "\n"
