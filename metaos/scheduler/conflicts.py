"""What cannot be met: a minimal set of requirements that no site meets together, and the cheapest ways out, in order. Pure.

Every requirement is asked of every site by itself, with the filter that judges it and everything else that the workload
wants taken away. A set of requirements is in conflict when each site breaks one of them; it is minimal when none can be left
out (Junker, QuickXplain, AAAI 2004, calls it a preferred conflict). Giving up all that one site breaks is a way out; those
that contain no smaller one are the minimal correction sets.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from metaos.resources import quantity
from metaos.resources.devices import extended
from metaos.resources.measures import measure
from metaos.resources.meta import TAINT_UNREACHABLE
from metaos.resources.snapshot import ClusterInfo, PolicyInfo, Snapshot, WorkloadInfo
from metaos.resources.targets import base_unit, distance, wanted_text
from metaos.resources.traffic import worst
from metaos.scheduler import division, lacking
from metaos.scheduler.filters import FILTERS, Filter, room, tolerated
from metaos.scheduler.requirement import (
    PLAIN_COST,
    RELAXATIONS_KEPT,
    SITES_TOLD,
    Change,
    Impossible,
    Relaxation,
    Requirement,
    least,
    order,
    several,
)

#: Sites that are thought of being opened, the cheapest first.
SITES_OPENED = 50
#: Filters that judge what a workload asks for, and those that say what is the matter with a site, whatever is asked.
ASKED = ("Residency", "LocalData", "Policy", "Selectors", "RuntimeClass", "Taints", "Bounds", "Traffic", "Affinity", "Capacity")
STATES = ("Leaving", "Health", "Cordon")


def requirements(workload: WorkloadInfo, clusters: Sequence[ClusterInfo], now: float) -> list[Requirement]:
    """Everything that a workload asks of a site."""
    nothing = PolicyInfo(toleration_seconds=workload.policy.toleration_seconds)
    bare = replace(
        workload,
        cpu=0,
        memory=0,
        devices=(),
        node_selector={},
        node_affinity=(),
        runtime_class="",
        targets=(),
        policy=nothing,
        pinned=False,
        local_data=False,
        homes=frozenset(),
        traffic=(),
        near=(),
        spread=(),
    )
    everything = ({"operator": "Exists"},)
    free = replace(bare, tolerations=everything)
    # What a bound measures: power and money go by all of the workload, and by what it sends.
    measured = replace(free, cpu=workload.cpu, memory=workload.memory, traffic=workload.traffic)
    found = []
    for target in workload.targets:
        if target.name == "residency" or (target.hard and target.name != "availability"):
            law = target.name in ("residency", "trust", "attestation")
            about = target.users.text
            found.append(
                Requirement(
                    f"{f'{target.about}: ' if target.about else ''}{target.name}{about} {wanted_text(target)}",
                    f"intent {target.intent!r}",
                    "Residency" if target.name == "residency" else "Bounds",
                    replace(measured, targets=(target,)),
                    law,
                    target,
                )
            )
    for edge in workload.traffic:
        if edge.hard and edge.dataset and not edge.at:
            alone = replace(free, traffic=(edge,))
            text = f"{edge.peer}, which lies at no site that answers"
            found.append(Requirement(text, f"intent {edge.intent!r}", "Traffic", alone, True))
        elif edge.hard and edge.at:
            where = " and ".join(site.name for site, _ in edge.at)
            peer = edge.peer if edge.ref is None and not edge.dataset else f"{edge.peer}, which is on {where}"
            # Without the bytes, which the links are asked for below.
            alone = replace(free, traffic=(replace(edge, sent=0.0, answered=0.0),))
            text = f"round trip of at most {edge.most:g} ms to {peer}"
            found.append(Requirement(text, f"intent {edge.intent!r}", "Traffic", alone, edge=edge))
    if any(e.sent or e.answered for e in workload.traffic):
        edges = tuple(replace(e, hard=False) for e in workload.traffic)
        peers = ", ".join(dict.fromkeys(e.peer for e in edges if e.sent or e.answered))
        sources = ", ".join(dict.fromkeys(f"intent {e.intent!r}" for e in edges if e.sent or e.answered))
        found.append(Requirement(f"links that carry its traffic with {peers}", sources, "Traffic", replace(free, traffic=edges)))
    for term in workload.near:
        if not term.weight:
            source = f"the pod anti-affinity of {term.by}" if term.by else f"the pods' {'anti-' * term.apart}affinity"
            text = f"to be {'apart from' if term.apart else 'with'} {term.pods} in {'each' if term.apart else 'one'} {term.key}"
            found.append(Requirement(text, source, "Affinity", replace(free, near=(term,)), bool(term.by)))
    for spread in workload.spread:
        if spread.strict:
            text = f"to be spread over {spread.key}, at most {spread.max_skew} more in one than in another"
            alone = replace(free, spread=(spread,))
            found.append(Requirement(text, "the pods' topology spread constraints", "Affinity", alone))
    for key, value in sorted(workload.node_selector.items()):
        alone = replace(free, node_selector={key: value})
        found.append(Requirement(f"a site with the label {key}={value}", "the pods' node selector", "Selectors", alone))
    if workload.node_affinity:
        alone = replace(free, node_affinity=workload.node_affinity)
        found.append(Requirement("a site that the required node affinity matches", "the pods' affinity", "Selectors", alone))
    if workload.runtime_class:
        alone = replace(free, runtime_class=workload.runtime_class)
        text = f"a site that has runtimeClassName {workload.runtime_class}"
        found.append(Requirement(text, "the pods", "RuntimeClass", alone))
    policies = ", ".join(workload.policy.names)
    if workload.policy.allowed is not None:
        names = ", ".join(sorted(workload.policy.allowed)) or "no site"
        alone = replace(free, policy=replace(nothing, names=workload.policy.names, allowed=workload.policy.allowed))
        found.append(Requirement(f"only {names}", f"placement policy {policies}", "Policy", alone))
    if workload.policy.selectors:
        alone = replace(free, policy=replace(nothing, names=workload.policy.names, selectors=workload.policy.selectors))
        found.append(Requirement("a site that the cluster selector matches", f"placement policy {policies}", "Policy", alone))
    if workload.weights:
        alone = replace(free, policy=replace(nothing, names=workload.policy.names, weights=workload.policy.weights))
        text = f"only {', '.join(workload.weights)}, which have a weight"
        found.append(Requirement(text, f"placement policy {policies}", "Policy", alone))
    if workload.homes and not workload.current:
        alone = replace(free, homes=workload.homes)
        text = f"to be on {', '.join(sorted(workload.homes))}"
        found.append(Requirement(text, "a claim that it uses", "LocalData", alone, True))
    if workload.pinned:
        homes = ", ".join(sorted(workload.current))
        alone = replace(free, pinned=True, local_data=workload.local_data)
        found.append(
            Requirement(f"to stay on {homes}", "its data" if workload.local_data else "its kind", "LocalData", alone, True)
        )
    taints = {(t.key, t.value, t.effect) for c in clusters for t in c.taints if t.effect != "PreferNoSchedule"}
    if any(
        not tolerated(t, workload.tolerations, now) for c in clusters for t in c.taints if (t.key, t.value, t.effect) in taints
    ):
        alone = replace(bare, tolerations=workload.tolerations)
        found.append(Requirement("no site whose taints it does not tolerate", "the pods' tolerations", "Taints", alone))
    each = f" x {workload.replicas} on one site" if _together(workload) > 1 else ""
    for resource, text in (
        ("cpu", f"{quantity.format_milli(workload.cpu)} CPU{each}" if workload.cpu else ""),
        ("memory", f"{workload.memory >> 20} MiB of memory{each}" if workload.memory else ""),
        ("pods", f"room for {_together(workload)} more pods" if each else "room for one more pod"),
    ):
        if text:
            found.append(Requirement(text, "the pods' requests", "Capacity", workload, resource == "pods", None, resource))
    for resource, amount in workload.devices:
        found.append(Requirement(f"{amount} {resource}{each}", "the pods' requests", "Capacity", workload, False, None, resource))
    return found


def impossible(snapshot: Snapshot, workload: WorkloadInfo, filters: Sequence[tuple[str, Filter]] = FILTERS) -> Impossible:
    """Why nothing, or not all, of a workload has a place, and what to do."""
    facts, usable = _facts(snapshot, workload, filters)
    asked = requirements(workload, usable, snapshot.now)
    known = dict(filters)
    # A plugin's is one requirement, whatever it looks at.
    others = [name for name in known if name not in ASKED and name not in STATES]
    asked += [Requirement(f"what {name} asks for", f"filter {name}", name, workload) for name in others]
    broken = {
        site.name: tuple(i for i, r in enumerate(asked) if r.filter in known and _breaks(snapshot, r, site, known[r.filter]))
        for site in usable
    }
    if not usable:
        return Impossible((), (), facts)
    if not all(broken.values()):
        taking = [site for site in usable if not broken[site.name]]
        if workload.mode == "Divided" and sum(_space(workload, site) for site in taking) < workload.replicas:
            return _short(workload, asked, usable, broken, facts)
        return division.impossible(workload, taking, _opened(workload, asked, usable, broken), facts)
    conflict = _minimal(broken.values(), len(asked))
    ways = [
        Relaxation(site.name, tuple(_change(asked[i], workload, site) for i in broken[site.name]))
        for site in usable
        if not any(asked[i].fixed for i in broken[site.name])
    ]
    told = sorted(least(ways), key=order)[:RELAXATIONS_KEPT]
    return Impossible(tuple(asked[i] for i in conflict), tuple(told), facts)


def _short(
    workload: WorkloadInfo,
    asked: Sequence[Requirement],
    usable: Sequence[ClusterInfo],
    broken: Mapping[str, tuple[int, ...]],
    facts: tuple[tuple[str, str], ...],
) -> Impossible:
    """What limits a workload of which a part has a place, and the ways for all of it: fewer replicas, smaller requests, or what
    other sites would have to be forgiven."""
    wanted, taking = workload.replicas, [site for site in usable if not broken[site.name]]
    there = sum(_space(workload, site) for site in taking)
    ways = [Relaxation("", (_fewer(workload, there),))] if there else []
    ways += _smaller(workload, taking)
    opened = _opened(workload, asked, usable, broken)
    sites = {site.name: site for site in usable}
    for along, given in division.by_what_opens(opened)[:SITES_OPENED]:
        total = there + sum(room(workload, sites[n]) for n in along)
        rest = (_fewer(workload, total),) if total < wanted else ()
        ways.append(Relaxation(several(along), (*given, *rest)))
    ways.sort(key=order)
    # Sites that the same opens are told once.
    ways = list({tuple(sorted(c.text for c in way.changes)): way for way in reversed(ways)}.values())[::-1]
    return Impossible(_binding(workload, taking), tuple(least(ways)[:RELAXATIONS_KEPT]), facts, wanted, there)


def _opened(
    workload: WorkloadInfo, asked: Sequence[Requirement], usable: Sequence[ClusterInfo], broken: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[ClusterInfo, dict[int, Change]]]:
    """Sites with room that could take some, and what each would have to be forgiven."""
    return {
        site.name: (site, {i: _change(asked[i], workload, site) for i in broken[site.name]})
        for site in usable
        if broken[site.name] and room(workload, site) and not any(asked[i].fixed for i in broken[site.name])
    }


def _space(workload: WorkloadInfo, site: ClusterInfo) -> int:
    """For how many replicas there is room; what runs there has its own."""
    return max(room(workload, site), workload.current.get(site.name, 0))


def _fewer(workload: WorkloadInfo, count: int) -> Change:
    wanted = workload.replicas
    asked = Requirement(f"more than {count} of {wanted} replicas", "its replicas", "Capacity", workload)
    return Change(asked, f"ask for {count} replicas instead of {wanted}", 1 - count / wanted)


def _smaller(workload: WorkloadInfo, taking: Sequence[ClusterInfo]) -> list[Relaxation]:
    """The largest requests with which all replicas have room where some have: one of them smaller, or both alike where neither
    alone will do."""

    def less(resources: Sequence[str], part: int, whole: int) -> WorkloadInfo:
        cpu = max(1, workload.cpu * part // whole) if "cpu" in resources else workload.cpu
        memory = max(1, (workload.memory >> 20) * part // whole) << 20 if "memory" in resources else workload.memory
        return replace(workload, cpu=cpu, memory=memory)

    def fits(found: WorkloadInfo) -> bool:
        return sum(_space(found, site) for site in taking) >= workload.replicas

    amounts = {"cpu": workload.cpu, "memory": workload.memory >> 20}
    able = tuple(resource for resource, amount in amounts.items() if amount > 1)
    ways: list[Relaxation] = []
    for resources in (*((each,) for each in able), *((able,) if len(able) > 1 else ())):
        whole = max(amounts[r] for r in resources)
        if (len(resources) > 1 and ways) or not fits(less(resources, 0, whole)):
            continue
        part = bisect.bisect_left(range(1, whole), True, key=lambda part: not fits(less(resources, part, whole)))
        found = less(resources, part, whole)
        each = {"cpu": (found.cpu, workload.cpu), "memory": (found.memory, workload.memory)}
        changes = []
        for resource in resources:
            now, before = each[resource]
            requirement = Requirement(f"{_amount(resource, before)} each", "the pods' requests", "Capacity", workload)
            text = f"ask for {_amount(resource, now)} each instead of {_amount(resource, before)}"
            changes.append(Change(requirement, text, 1 - now / before))
        ways.append(Relaxation("", tuple(changes)))
    return ways


def _amount(resource: str, amount: int) -> str:
    return f"{quantity.format_milli(amount)} CPU" if resource == "cpu" else f"{amount >> 20} MiB of memory"


def _binding(workload: WorkloadInfo, taking: Sequence[ClusterInfo]) -> tuple[Requirement, ...]:
    """Each resource that no more replicas have on some site, with the sites and how many these are."""
    resources = ["cpu"] * bool(workload.cpu) + ["memory"] * bool(workload.memory) + [r for r, _ in workload.devices] + ["pods"]
    asks = {r: Requirement("", "the pods' requests", "Capacity", workload, False, None, r) for r in resources}
    found: dict[str, list[tuple[str, int]]] = {}
    for site in taking:
        least = min(resources, key=lambda r: _fit(asks[r], site))
        found.setdefault(least, []).append((site.name, _space(workload, site)))
    devices = dict(workload.devices)
    told = []
    for resource, sites in found.items():
        what = f"{devices[resource]} {resource}" if resource in devices else "a place for a pod"
        if resource in ("cpu", "memory"):
            what = f"{_amount(resource, workload.cpu if resource == 'cpu' else workload.memory)}"
        sites.sort(key=lambda each: (-each[1], each[0]))
        rooms = ", ".join(f"{count} on {name}" for name, count in sites[:SITES_TOLD])
        if more := sites[SITES_TOLD:]:
            rooms += f", and {sum(count for _, count in more)} on {len(more)} more sites"
        told.append(replace(asks[resource], text=f"{what}, of which there is enough for {rooms}"))
    return tuple(told)


def _fit(asked: Requirement, site: ClusterInfo) -> int:
    free, each = _free(asked, site)
    return max(0, free) // each


def _facts(
    snapshot: Snapshot, workload: WorkloadInfo, filters: Sequence[tuple[str, Filter]]
) -> tuple[tuple[tuple[str, str], ...], list[ClusterInfo]]:
    facts, usable = [], []
    # What runs on a silent site is driven off it by this taint alone.
    taints = next((judge for name, judge in filters if name == "Taints"), None)
    for site in sorted(snapshot.clusters, key=lambda c: c.name):
        reasons = [reason for name, judge in filters if name in STATES and (reason := judge(snapshot, workload, site))]
        if not reasons and taints is not None and any(t.key == TAINT_UNREACHABLE for t in site.taints):
            reasons = [r for r in (taints(snapshot, workload, site),) if r]
        if reasons:
            facts.append((site.name, reasons[0]))
        else:
            usable.append(site)
    return tuple(facts), usable


def _breaks(snapshot: Snapshot, asked: Requirement, site: ClusterInfo, judge: Filter) -> bool:
    if asked.resource:
        # The filter's own word is on the first replica alone. What runs there has its room.
        free, each = _free(asked, site)
        return free < each * (_together(asked.alone) - asked.alone.current.get(site.name, 0))
    return judge(snapshot, asked.alone, site) is not None


def _together(workload: WorkloadInfo) -> int:
    """How many replicas a site must take for anything to run there."""
    return max(1, workload.replicas) if workload.mode == "Whole" else 1


def _free(asked: Requirement, site: ClusterInfo) -> tuple[int, int]:
    """What is free of a resource, and what one replica asks of it."""
    if extended(asked.resource):
        # In pods, as no part of a GPU spans two.
        return lacking.room(_device(asked), site), 1
    return {
        "cpu": (site.cpu - site.cpu_requested, asked.alone.cpu),
        "memory": (site.memory - site.memory_requested, asked.alone.memory),
        "pods": (site.pods - site.pods_requested, 1),
    }[asked.resource]


def _device(asked: Requirement) -> WorkloadInfo:
    """Asks for this device alone."""
    return replace(asked.alone, devices=tuple(d for d in asked.alone.devices if d[0] == asked.resource))


def _minimal(broken: Iterable[tuple[int, ...]], count: int) -> list[int]:
    """Indices of a minimal conflict. What few sites break is left out first, so that what matters most remains."""
    sets = [frozenset(b) for b in broken]
    kept = set(range(count))
    weight = {i: sum(i in s for s in sets) for i in range(count)}
    for i in sorted(kept, key=lambda i: (weight[i], -i)):
        if all(s & (kept - {i}) for s in sets):
            kept.discard(i)
    return sorted(kept)


def _change(asked: Requirement, workload: WorkloadInfo, site: ClusterInfo) -> Change:
    target = asked.target
    if target is not None:
        value = measure(target, site, workload)
        if value is None:
            return Change(asked, f"do without {asked.text}, which is not known there", PLAIN_COST)
        unit, short = base_unit(target.name), distance(target, value)
        wanted = max(abs(v) for v in (target.value, target.low, target.high, 1e-9) if not math.isnan(v))
        text = f"let {target.name} be {value:.4g} {unit} instead of {wanted_text(target)} ({short:.4g} {unit} off)"
        return Change(asked, text.replace(" )", ")").replace("  ", " "), short / wanted)
    if asked.edge is not None:
        reached = worst(asked.edge, site)
        if reached is None or reached[0] is None:
            return Change(asked, f"do without a {asked.text}, of which nothing is known there", PLAIN_COST)
        short = reached[0] - asked.edge.most
        text = f"let the round trip to {asked.edge.peer} be {reached[0]:.4g} ms instead of at most {asked.edge.most:g} ms"
        return Change(asked, f"{text} ({short:.4g} ms off)", short / max(asked.edge.most, 1e-9))
    if extended(asked.resource):
        return Change(asked, f"do without {asked.text} ({lacking.reason(_device(asked), site)})", PLAIN_COST)
    if asked.resource:
        free, each = _free(asked, site)
        most = max(0, free) // _together(workload)
        if not most:
            return Change(asked, f"make room, where nothing is free, for {asked.text}", PLAIN_COST)
        amount = f"{quantity.format_milli(most)} CPU" if asked.resource == "cpu" else f"{most >> 20} MiB of memory"
        return Change(asked, f"ask for at most {amount} each instead of {asked.text}", 1 - most / each)
    if asked.filter == "Taints":
        taints = [t for t in site.taints if t.effect != "PreferNoSchedule" and not tolerated(t, workload.tolerations, 0.0)]
        named = ", ".join(f"{t.key}{f'={t.value}' if t.value else ''}:{t.effect}" for t in taints)
        return Change(asked, f"tolerate {named}", PLAIN_COST)
    return Change(asked, f"give up {asked.text} ({asked.source})", PLAIN_COST)


def as_data(found: Impossible) -> dict[str, Any]:
    """In the form that ``Placement.status.conflict`` and reviews keep."""
    data: dict[str, Any] = {
        "requirements": [{"text": r.text, "source": r.source} for r in found.conflict],
        "relaxations": [
            {"cluster": w.cluster, "changes": [c.text for c in w.changes], "cost": round(min(w.cost, 1e9), 4)}
            for w in found.relaxations
        ],
    }
    if found.room is not None:
        data["replicas"] = {"wanted": found.replicas, "room": found.room}
    if found.division:
        data["division"] = True
    if found.facts:
        data["facts"] = [{"cluster": site, "reason": reason} for site, reason in found.facts]
    return data


def lines(conflict: Mapping[str, Any]) -> list[str]:
    """For people."""
    asked = conflict.get("requirements") or ()
    if not asked:
        return [f"{f['cluster']}: {f['reason']}" for f in conflict.get("facts") or ()]
    count = conflict.get("replicas")
    if count:
        found = [f"the sites that may take it have room for {count['room']} of {count['wanted']} replicas; each asks for"]
    elif conflict.get("division"):
        found = ["the sites that may take it do not meet this, however it is divided over them:"]
    else:
        found = ["no site meets these together:" if len(asked) > 1 else "no site meets this:"]
    found += [f"  - {r['text']}  ({r['source']})" for r in asked]
    ways = conflict.get("relaxations") or ()
    if ways:
        found.append("what would do, the least first:")
        at = [f"{w['cluster']}: " if w["cluster"] else "" for w in ways]
        found += [
            f"  {n}. {where}{' and '.join(w['changes'])}" for n, (where, w) in enumerate(zip(at, ways, strict=True), start=1)
        ]
    else:
        found.append("no site could take it without giving up what is law, trust, attestation or where its data is")
    return found
