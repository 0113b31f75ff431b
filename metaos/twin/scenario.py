"""Reads a scenario (:mod:`metaos.twin.story`) from a text file, and checks it whole.

The fields are described in ``docs/how-to/try-before.md``. A mistake is a ``ScenarioError`` with file, line, field and remedy.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from metaos.agent.sitefile import read_site, spec_problems
from metaos.apiserver.metadata import name_causes
from metaos.apiserver.shaping import shape, validate
from metaos.resources import quantity, scheme, workload
from metaos.resources.errors import ApiError, invalid
from metaos.resources.meta import Obj, name, namespace, parse_time
from metaos.twin.clock import EPOCH
from metaos.twin.network import Quality
from metaos.twin.story import ALWAYS, DEEDS, KINDS, Fault, Hope, Scenario, SiteText, WorkloadText
from metaos.twin.text import Part, ScenarioError, one_of, read
from metaos.twin.timing import SAID, Timing

MAX_SITES, MAX_WORKLOADS, MAX_FAULTS = 10_000, 100_000, 100_000
FIELDS = (
    "title", "seed", "duration", "settle", "start", "timing", "agents", "carbon", "link", "sites", "workloads", "objects",
    "faults", "chaos", "expect",
)  # fmt: skip
SITE_FIELDS = ("name", "count", "agent", "clock", "link", "labels", "spec", "file")
WORKLOAD_FIELDS = (
    "name", "namespace", "kind", "count", "replicas", "cpu", "memory", "run", "at", "until", "residency", "intents", "policy",
    "secret", "volume", "labels", "priorityClass",
)  # fmt: skip
#: These end by themselves after ``for``.
LASTING = (
    "cut", "link", "killHub", "killHubAfterWrites", "restoreHub", "slowDisk", "stopAgent", "stopAgentAfterWrites", "powerOff",
    "flap", "lie",
)  # fmt: skip
#: How long what has died stays away, where it is not said.
AWAY_SECONDS = 5.0
HOPES = ("ready", "runsOn", "placed", "lost", "unplaced", "done", "reason", "neverOn", "copiesAtMost", "readyAtLeast")


def load(path: Path) -> Scenario:
    """From a file. Raises ``ScenarioError``."""
    return scenario(read(path), path.parent)


def scenario(text: Part, folder: Path) -> Scenario:
    """``folder``: where the files that it names are looked for. Raises ``ScenarioError``."""
    raw = text.mapping(FIELDS, "title, duration, sites")
    duration = text.need("duration", Part.duration, "6h")
    if duration <= 0:
        text["duration"].wrong("it is 0", "write how long the scenario lasts, for example 6h")
    timing = text.get("timing", _timing, Timing())
    quality = text.get("link", lambda p: quality_of(p, Quality()), Quality())
    agents = text.get("agents", one_of("real", "light"), "")
    sites = _sites(text, agents, quality, folder)
    names = {name(s.obj) for s in sites}
    objects = _objects(text)
    workloads = (*_workloads(text, duration), *(_given(o) for o in objects if o["kind"] in KINDS))
    chaos = text.get("chaos", lambda p: p.fields(("faults", "until"), "faults: 5"), None)
    carbon = text.get("carbon", lambda p: p.fields(("trace", "startHour")), None)
    start = text.get("start", _time, EPOCH)
    return Scenario(
        file=text.file,
        title=text.need("title", Part.text, "A site is lost"),
        seed=text.get("seed", Part.count, 1),
        duration=duration,
        settle=text.get("settle", Part.duration, 900.0),
        start=start,
        timing=timing,
        sites=sites,
        workloads=workloads,
        objects=tuple(o for o in objects if o["kind"] not in KINDS),
        faults=_faults(text, names, workloads, duration),
        hopes=_hopes(text, names, workloads, duration),
        chaos=chaos.need("faults", Part.count, "5") if chaos else 0,
        chaos_until=min(chaos.get("until", Part.duration, duration / 2), duration) if chaos else 0.0,
        carbon=_trace(carbon, folder) if carbon else "",
        carbon_start_hour=carbon.get("startHour", Part.number, 0.0) if carbon else 0.0,
        raw=raw,
    )


def _time(part: Part) -> float:
    value = part.value
    try:
        return parse_time(value if isinstance(value, str) else value.strftime("%Y-%m-%dT%H:%M:%SZ"))
    except (ValueError, AttributeError):
        part.wrong(f"{value!r} is no time", "write UTC, for example '2022-06-01T00:00:00Z'")


def _trace(part: Part, folder: Path) -> str:
    from metaos.accounting.carbon import TraceCarbonSource

    file = part.need("trace", Part.text, "carbon.csv")
    try:
        text = (folder / file).read_text()
        TraceCarbonSource(text, start_time=0.0, name=file)
    except OSError as error:
        part["trace"].wrong(f"{file} cannot be read: {error.strerror}", "name a file, as seen from the scenario's folder")
    except ValueError as error:
        part["trace"].wrong(str(error), "mend the trace")
    return text


def _timing(part: Part) -> Timing:
    part.mapping(tuple(SAID), "heartbeat: 10s")
    usual = Timing()
    forms = {"period": _period, "share": Part.share, "cores": _cores}
    said: dict[str, Any] = {
        field: part.get(word, forms.get(form, Part.duration), getattr(usual, field)) for word, (field, form) in SAID.items()
    }
    found = Timing(**said)
    if found.heartbeat <= 0 or found.lease < 2 * found.heartbeat:
        part.wrong("a lease must outlast two heartbeats", "write for example 'heartbeat: 10s' and 'lease: 40s'")
    return found


def _cores(part: Part) -> float:
    found = part.number()
    if found < 0:
        part.wrong(f"{found:g} cores are in use", "write how many the agent itself uses, for example 0.05")
    return found


def _period(part: Part) -> int:
    found = part.duration()
    if found < 1 or 3600 % found:
        part.wrong(f"{found:g} s are no part of an hour", "write whole seconds that divide an hour, for example 10s or 5m")
    return int(found)


def quality_of(part: Part, usual: Quality) -> Quality:
    part.mapping(("delay", "jitter", "loss", "duplicates"), "delay: 20ms")
    return Quality(
        part.get("delay", Part.duration, usual.delay),
        part.get("jitter", Part.duration, usual.jitter),
        part.get("loss", Part.share, usual.loss),
        part.get("duplicates", Part.share, usual.duplicates),
    )


# -- sites -------------------------------------------------------------------------------------------------


def _sites(text: Part, agents: str, quality: Quality, folder: Path) -> tuple[SiteText, ...]:
    found: list[SiteText] = []
    seen: set[str] = set()
    parts = list(text.need("sites", lambda p: list(p), "[{name: edge}]"))
    total = sum(p.get("count", Part.count, 1) if isinstance(p.value, dict) else 1 for p in parts)
    if not 0 < total <= MAX_SITES:
        text["sites"].wrong(f"there are {total} sites", f"write 1 to {MAX_SITES}")
    # Real agents where there are few: they cost three to four times a light one.
    usual = agents or ("real" if total <= 20 else "light")
    for part in parts:
        part.mapping(SITE_FIELDS, "name: edge")
        base: Obj = part.get("file", lambda p: _site_file(p, folder), scheme.CLUSTER.empty("site"))
        word = part.get("name", Part.text, name(base) if "file" in part else "")
        if not word:
            part.wrong("'name' is missing", "say it, for example 'name: edge'")
        spec = {**(base.get("spec") or {}), **part.get("spec", lambda p: p.mapping(), {})}
        if "spec" in part:
            _check_spec(part["spec"], part["spec"].value)
        said = {key: value.text() for key, value in part["labels"].items()} if "labels" in part else {}
        marks = {**(base["metadata"].get("labels") or {}), **said}
        count = part.get("count", Part.count, 1)
        for number in range(count):
            each = word if count == 1 and "{n}" not in word else word.replace("{n}", f"{number:04}")
            each = each if "{n}" in word or count == 1 else f"{word}-{number:04}"
            if each in seen:
                part.wrong(f"there is a site {each!r} already", "choose another name")
            seen.add(each)
            obj: Obj = {**scheme.CLUSTER.empty(each), "spec": spec}
            if marks:
                obj["metadata"]["labels"] = marks
            agent = part.get("agent", one_of("real", "light"), usual)
            found.append(
                SiteText(
                    obj,
                    "agent" if agent == "real" else "light",
                    part.get("clock", Part.signed, 0.0),
                    part.get("link", lambda p: quality_of(p, quality), quality),
                )
            )
    return tuple(found)


def _site_file(part: Part, folder: Path) -> Obj:
    try:
        return read_site(folder / part.text())
    except OSError as error:
        part.wrong(f"{part.value} cannot be read: {error.strerror}", "name a site file, as seen from the scenario's folder")
    except ValueError as error:
        part.wrong(str(error), "mend the site file")


def _check_spec(part: Part, spec: Any) -> None:
    """A site's spec is as the Cluster's schema says: a field that nobody reads would be told as if it counted."""
    problem = next(spec_problems(spec), None)
    if problem is None:
        return
    path, _, told = problem.partition(": ")
    what, _, remedy = told.partition("; ")
    part.at(path.removeprefix("spec").removeprefix(".")).wrong(
        what, remedy or "the fields are described in docs/reference/kinds.md, under Cluster"
    )


# -- workloads ---------------------------------------------------------------------------------------------


def _workloads(text: Part, duration: float) -> tuple[WorkloadText, ...]:
    found: list[WorkloadText] = []
    seen: set[tuple[str, str, str]] = set()
    for part in text.parts("workloads"):
        part.mapping(WORKLOAD_FIELDS, "name: web")
        count = part.get("count", Part.count, 1)
        if len(found) + count > MAX_WORKLOADS:
            part.wrong(f"there are more than {MAX_WORKLOADS} workloads", "write fewer")
        word = part.need("name", Part.text, "web")
        for number in range(count):
            each = word.replace("{n}", f"{number:05}") if "{n}" in word else word if count == 1 else f"{word}-{number:05}"
            one = _workload(part, each, duration)
            for obj in one.objects if not number else ():
                _check(part, obj)
            key = (one.kind.kind, one.namespace, one.name)
            if key in seen:
                part.wrong(f"there is a {one.kind.kind} {one.name!r} in {one.namespace!r} already", "choose another name")
            seen.add(key)
            found.append(one)
    return tuple(found)


def _workload(part: Part, word: str, duration: float) -> WorkloadText:
    kind = KINDS[part.get("kind", one_of(*KINDS), "Deployment")]
    where = part.get("namespace", Part.text, "default")
    replicas = part.get("replicas", Part.count, 1)
    container: dict[str, Any] = {"name": "main", "image": "python:3", "command": ["sleep", "infinity"]}
    container["resources"] = {"requests": {r: _quantity(part, r, u) for r, u in (("cpu", "100m"), ("memory", "32Mi"))}}
    pod: dict[str, Any] = {"containers": [container], "terminationGracePeriodSeconds": 1}
    if "priorityClass" in part:
        pod["priorityClassName"] = part.get("priorityClass", Part.text, "")
    marks = {"app": word, **part.get("labels", lambda p: p.mapping(), {})}
    spec: dict[str, Any] = {"template": {"metadata": {"labels": marks}, "spec": pod}}
    if kind is scheme.JOB:
        seconds = part.need("run", Part.duration, "10m")
        container["command"] = ["sleep", f"{seconds:g}"]
        pod["restartPolicy"] = "Never"
        if replicas != 1:
            spec |= {"parallelism": replicas, "completions": replicas}
    else:
        if "run" in part:
            part["run"].wrong("only a Job runs for a time", "write 'kind: Job', or leave it out")
        spec |= {"selector": {"matchLabels": {"app": word}}}
        if kind is not scheme.DAEMON_SET:
            spec["replicas"] = replicas
    objects: list[Obj] = []
    referents: list[tuple[str, str]] = []
    if part.get("secret", lambda p: bool(p.value), False):
        objects.append({**scheme.SECRET.empty(f"{word}-key", where), "stringData": {"token": "kept at home"}})
        container["envFrom"] = [{"secretRef": {"name": f"{word}-key"}}]
        referents.append(("Secret", f"{word}-key"))
    if part.get("volume", lambda p: bool(p.value), False):
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        objects.append({**scheme.PERSISTENT_VOLUME_CLAIM.empty(f"{word}-data", where), "spec": claim})
        pod["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": f"{word}-data"}}]
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        referents.append(("PersistentVolumeClaim", f"{word}-data"))
    about = {"refs": [{"kind": kind.kind, "name": word}]}
    residency = part.get("residency", Part.texts, ())
    targets = [target.mapping() for target in part.parts("intents")]
    if residency:
        targets.append({"name": "residency", "condition": "IsOneOf", "value": list(residency), "hard": True})
    if targets:
        wish = {"priority": 50, "workloads": about, "expectations": [{"targets": targets}]}
        objects.append({**scheme.INTENT.empty(f"{word}-wish", where), "spec": wish})
    policy = part.get("policy", lambda p: p.mapping(), None)
    if policy is not None:
        objects.append({**scheme.PLACEMENT_POLICY.empty(f"{word}-rule", where), "spec": {"workloads": about, **policy}})
    objects.append({**kind.empty(word, where), "spec": spec})
    at = part.get("at", Part.duration, 0.0)
    until = part.get("until", Part.duration, None)
    if at >= duration:
        part["at"].wrong("that is after the end", "write a time before the scenario's 'duration'")
    return WorkloadText(kind, where, word, replicas, at, until, residency, tuple(objects), tuple(referents))


def _given(obj: Obj) -> WorkloadText:
    """A workload that stands among the objects, with its intents and whatever follows it."""
    kind = KINDS[obj["kind"]]
    return WorkloadText(kind, namespace(obj) or "default", name(obj), workload.replicas(obj), 0.0, None, (), (obj,), ())


def _quantity(part: Part, resource: str, usual: str) -> str:
    if resource not in part:
        return usual
    value = part.value[resource]
    try:
        if isinstance(value, bool) or quantity.parse(value) < 0:
            raise ValueError
    except ValueError:
        part[resource].wrong(f"{value!r} is no quantity of at least 0", "write for example 250m or 64Mi")
    return str(value)


def _objects(text: Part) -> list[Obj]:
    return [_object(part) for part in text.parts("objects")]


def _object(part: Part) -> Obj:
    obj = part.mapping(example="apiVersion, kind, metadata")
    try:
        scheme.kind_of(obj)
        if not obj["metadata"]["name"]:
            raise KeyError("name")
    except (KeyError, TypeError, ValueError, ScenarioError) as error:
        part.wrong(f"this is no object: {error}", "write a manifest with apiVersion, kind and metadata.name")
    except Exception as error:  # an ApiError: the kind is not known
        part.wrong(str(error), "write a kind that 'kubectl api-resources' lists")
    _check(part, obj)
    return obj


def _check(part: Part, obj: Obj) -> None:
    """What the hub would refuse or pass over is told before anything is played."""
    kind = scheme.kind_of(obj)
    try:
        if causes := name_causes(kind, name(obj)):
            raise invalid(kind.group, kind.kind, name(obj), causes)
        validate(kind, shape(kind, copy.deepcopy(obj), None, "Strict", []), None)
    except ApiError as error:
        where = {scheme.INTENT: "intents", scheme.PLACEMENT_POLICY: "policy"}.get(kind, "")
        found = part[where] if where and where in part else part
        found.wrong(f"the hub would refuse it: {error.message}", "mend that: docs/reference tells the fields")


# -- faults and expectations -------------------------------------------------------------------------------


def _known(part: Part, names: set[str]) -> tuple[str, ...]:
    chosen = part.texts() if isinstance(part.value, list) else (part.text(),)
    for each in chosen:
        if each not in names:
            part.wrong(f"there is no site {each!r}", f"write one of {', '.join(sorted(names)[:8])}")
    return chosen


def _faults(text: Part, names: set[str], workloads: tuple[WorkloadText, ...], duration: float) -> tuple[Fault, ...]:
    found: list[Fault] = []
    for part in text.parts("faults"):
        said = part.mapping(("at", "for", "every", "direction", "sites", *DEEDS), "at: 1h, cut: [edge]")
        deeds = [d for d in DEEDS if d in said]
        if len(deeds) != 1:
            part.wrong(f"it does {' and '.join(deeds) or 'nothing'}", f"write exactly one of {', '.join(DEEDS)}")
        found.append(_fault(part, deeds[0], names, {w.name for w in workloads}, duration))
    if len(found) > MAX_FAULTS:
        text["faults"].wrong(f"there are {len(found)} faults", f"write at most {MAX_FAULTS}")
    return tuple(found)


def _fault(part: Part, what: str, names: set[str], workloads: set[str], duration: float) -> Fault:
    at = part.need("at", Part.duration, "1h")
    if at >= duration:
        part["at"].wrong("that is after the end", "write a time before the scenario's 'duration'")
    seconds = part.get("for", Part.duration, None)
    if seconds is not None and what not in LASTING:
        part["for"].wrong(f"{what} does not end by itself", "leave it out, and write another fault that undoes it")
    one = part[what]
    more: dict[str, Any] = {}
    value: Any
    if what in ("cut", "stopAgent", "powerOff", "flap"):
        value = list(_known(one, names))
        if what == "cut" and "direction" in part:
            more["direction"] = part.get("direction", one_of("both", "up", "down"), "both")
        if what == "flap":
            more["every"] = part.need("every", Part.duration, "30s")
            if more["every"] < 1 or seconds is None:
                part.wrong("a flapping site needs 'every' of at least 1s and 'for'", "write for example 'every: 30s, for: 10m'")
    elif what == "link":
        quality_of(one, Quality())
        value, more["sites"] = one.mapping(), list(part.need("sites", lambda p: _known(p, names), "[edge]"))
    elif what == "killHub":
        value = one.duration()
        if seconds is not None:
            part["for"].wrong("how long it stays away is said already", "leave it out")
    elif what == "slowDisk":
        value = one.duration()
        if "sites" in part:
            more["sites"] = list(part.get("sites", lambda p: _known(p, names), ()))
    elif what == "restoreHub":
        value, seconds = one.duration(), seconds if seconds is not None else AWAY_SECONDS
        if value > at:
            one.wrong("that backup would be older than the scenario", "write an age of at most the fault's 'at'")
    elif what == "killHubAfterWrites":
        value, seconds = one.count(), seconds if seconds is not None else AWAY_SECONDS
    elif what == "stopAgentAfterWrites":
        value = {site: p.count() for site, p in one.items() if _known(Part(p.file, site, p._node, p.field), names)}
        seconds = seconds if seconds is not None else AWAY_SECONDS
    elif what == "hubClock":
        value = one.signed()
    elif what == "siteClock":
        value = {site: p.signed() for site, p in one.items() if _known(Part(p.file, site, p._node, p.field), names)}
    elif what in ("lie", "change"):
        for site in one.mapping():
            _check_spec(one[site], {"capacity": one[site].value} if what == "lie" else one[site].value)
        value = {site: p.mapping() for site, p in one.items() if _known(Part(p.file, site, p._node, p.field), names)}
    elif what == "apply":
        value = [_object(p) for p in one]
    elif what == "delete":
        value = list(one.texts())
        for each in value:
            if each not in workloads:
                one.wrong(f"there is no workload {each!r}", "name workloads of this scenario")
    else:
        value = {w: list(p.texts()) if what == "residency" else p.count() for w, p in one.items()}
        for each in value:
            if each not in workloads:
                one.wrong(f"there is no workload {each!r}", "name workloads of this scenario")
    return Fault(at, what, value, seconds, more)


def _hopes(text: Part, names: set[str], workloads: tuple[WorkloadText, ...], duration: float) -> tuple[Hope, ...]:
    found: list[Hope] = []
    known = {w.name for w in workloads}
    for part in text.parts("expect"):
        said = part.mapping(("at", "within", *HOPES), "at: 10m, ready: {web: 2}")
        at, within = part.get("at", Part.duration, duration), part.get("within", Part.duration, 0.0)
        if at > duration:
            part["at"].wrong("that is after the end", "write a time before the scenario's 'duration'")
        chosen = [h for h in HOPES if h in said]
        if not chosen:
            part.wrong("it expects nothing", f"write one of {', '.join(HOPES)}")
        for what in chosen:
            begin = 0.0 if what in ALWAYS and "at" not in part else at
            found.append(Hope(begin, within, what, _hoped(part[what], what, names, known), part.line))
    return tuple(found)


def _hoped(part: Part, what: str, names: set[str], known: set[str]) -> Any:
    def of_workload(each: str) -> None:
        if each not in known:
            part.wrong(f"there is no workload {each!r}", "name workloads of this scenario")

    if what in ("lost",):
        return sorted(_known(part, names)) if part.value else []
    if what in ("unplaced", "done"):
        for each in part.texts():
            of_workload(each)
        return list(part.texts())
    found: dict[str, Any] = {}
    for each, value in part.items():
        of_workload(each)
        if what in ("ready", "copiesAtMost", "readyAtLeast"):
            found[each] = value.count()
        elif what in ("runsOn", "neverOn"):
            found[each] = sorted(_known(value, names)) if value.value else []
        elif what == "placed":
            found[each] = {s: v.count() for s, v in value.items() if _known(Part(v.file, s, v._node, v.field), names)}
        else:
            found[each] = value.text()
    return found
