"""Why a workload is where it is: from its Placement, as data and as text."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from metaos.resources.measures import Costs, costs
from metaos.resources.meta import Obj, condition, name, namespace
from metaos.resources.snapshot import ClusterInfo, WorkloadInfo
from metaos.resources.traffic import Haul, daily, egress, haul, known_by, shares, worst
from metaos.scheduler import conflicts
from metaos.scheduler.capacity import RESERVED, RISK, SPOT
from metaos.scheduler.filters import haul_text
from metaos.scheduler.framework import Plan

#: Of how many sites a Placement keeps the scores and the rejections: what was chosen, the best others, and a rejection of each
#: kind. Of the others it keeps how many were rejected by what. Each costs all who store, send and watch Placements about 1 kB.
SITES_KEPT = 12
#: The part by which a figure of what a workload sends or costs may differ from what its Placement tells before it is told anew.
WORTH_TELLING = 0.1
#: What of a Placement's status :func:`placement_status` writes, and when it was so.
REASONS = ("scores", "rejected", "alternatives", "sitesLeftOut", "rejectedBy", "scoredTime")
#: What of a Placement's status a PlacementReview says as it is now.
FIGURES = (*REASONS, "conflict", "traffic", "costs")
#: How many of the latest migrations people are shown.
MOVES_SHOWN = 3


def placement_status(plan: Plan) -> dict[str, Any]:
    """A Plan's reasons in the form that ``Placement.status`` keeps."""
    status: dict[str, Any] = {
        "scores": [
            {
                "cluster": s.cluster,
                "total": round(s.total, 2),
                "terms": [
                    {
                        "name": t.name,
                        # Nothing is kept of a value that is not known; JSON has no word for infinity, which a plugin may say.
                        **({} if t.value is None or not math.isfinite(t.value) else {"value": round(t.value, 4)}),
                        "unit": t.unit,
                        "weight": round(t.weight, 2),
                        "points": round(t.points, 1),
                    }
                    for t in s.terms
                ],
            }
            for s in plan.scored[:SITES_KEPT]
        ],
        "rejected": [{"cluster": r.cluster, "filter": r.filter, "reason": r.reason} for r in plan.rejected.some(SITES_KEPT)],
        "alternatives": [],
    }
    left_out = _left_out(plan)
    if left_out:
        status["sitesLeftOut"] = left_out
        status["rejectedBy"] = plan.rejected.by_filter()
    if plan.runner_up:
        status["alternatives"] = [
            {"clusters": [{"name": c, "replicas": n} for c, n in plan.runner_up], "difference": round(plan.difference, 2)}
        ]
    return status


def _left_out(plan: Plan) -> int:
    return max(0, len(plan.scored) - SITES_KEPT) + max(0, len(plan.rejected) - SITES_KEPT)


def tells(status: Mapping[str, Any], plan: Plan) -> bool:
    """Whether the reasons that a Placement keeps still are those of its decision, which has not changed. As long as everything
    has a place they are: what the sites come to by now is worked out for who asks (``nemo why``). Carbon moves every total every
    hour, and were that written down, writing would be most of what a hub does. Where something has no place, who rejects it
    counts."""
    told = {s["cluster"] for s in status.get("scores") or ()}
    chosen = {site for site, _ in plan.clusters if site in plan.totals}
    if "scores" not in status or not (chosen <= told or (len(told) == SITES_KEPT and told <= chosen)):
        return False
    if plan.complete:
        return True
    if len(told) != min(SITES_KEPT, len(plan.scored)) or any(site not in plan.totals for site in told):
        return False
    rejected = {r["cluster"]: r["filter"] for r in status.get("rejected") or ()}
    if _left_out(plan):
        # Of those that are not listed, more or fewer may be rejected by now.
        return "sitesLeftOut" in status and all(plan.rejected.filters.get(c) == filter for c, filter in rejected.items())
    return "sitesLeftOut" not in status and rejected == plan.rejected.filters


def kept(told: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows of figures say the same as those that a Placement keeps: no figure is off by more than ``WORTH_TELLING``."""
    return _alike(list(told), list(found))


def _alike(told: object, found: object) -> bool:
    if isinstance(told, Mapping) and isinstance(found, Mapping):
        return told.keys() == found.keys() and all(_alike(told[key], found[key]) for key in told)
    if isinstance(told, list) and isinstance(found, list):
        return len(told) == len(found) and all(map(_alike, told, found))
    if isinstance(told, int | float) and isinstance(found, int | float) and not isinstance(told, bool):
        return math.isclose(told, found, rel_tol=WORTH_TELLING)
    return told == found


def traffic_status(workload: WorkloadInfo, places: Iterable[ClusterInfo]) -> list[dict[str, Any]]:
    """Whom a workload talks to, from where it is: ``Placement.status.traffic``."""
    here, found = list(places), []
    for edge in workload.traffic:
        away = [site for c in here for site, _ in shares(edge, c) if edge.dataset and site.name != c.name]
        row: dict[str, Any] = {
            "peer": edge.peer,
            "asks": edge.asks,
            "clusters": [site.name for site, _ in edge.at],
            "intent": edge.intent,
            "weight": round(edge.weight, 2),
        }
        # What is not known counts as the longest.
        trips = [(math.inf if t[0] is None else t[0], c, t[1]) for c in here if (t := worst(edge, c)) is not None]
        if trips:
            longest, one, other = max(trips, key=lambda t: t[0])
            row |= {"known": known_by(one, other)} | ({} if math.isinf(longest) else {"milliseconds": round(longest, 4)})
        if not math.isinf(edge.most):
            row |= {"maxMilliseconds": edge.most, "hard": edge.hard}
        money = [egress(edge, c) for c in here] if edge.money and edge.at else []
        if money and None not in money:
            row["egressPerHour"] = round(sum(m for m in money if m is not None) / len(money), 6)
        if edge.dataset:
            row["gigabytesPerDay"] = round(daily(edge) if away else 0.0, 6)
            # Of the data set's own size and of a day: what a copy here would take, and what reading from afar does.
            day = haul(daily(edge) * 1e9, away[0], here[0]) if away else None
            if day is not None and day.grams is not None:
                row["gramsPerDay"] = round(day.grams, 6)
            copy = haul(away[0].datasets[edge.dataset].size, away[0], here[0]) if away else None
            if copy is not None and copy.bytes:
                parts = {"bytes": copy.bytes, "seconds": copy.seconds, "money": copy.money, "grams": copy.grams}
                row["copy"] = {k: round(v, 6) for k, v in parts.items() if v is not None}
        found.append(row)
    return found


def costs_status(
    workload: WorkloadInfo, places: Mapping[str, int], site: Callable[[str], ClusterInfo | None]
) -> list[dict[str, Any]]:
    """What a workload costs by site and in parts: ``Placement.status.costs``. Empty where it is for computing alone. Of work that
    may wait it is what its own hours cost, on the capacity that is best then."""
    if not (workload.licences or workload.interruptible or any(e.sent or e.answered for e in workload.traffic)):
        return []
    found, total = [], max(1, sum(places.values()))
    for where, count in sorted(places.items()):
        if (cluster := site(where)) is not None:
            paid = costs(cluster, workload, count) if workload.waits is None else _costs_then(cluster, workload)
            egress = None if paid.egress is None else paid.egress * count / total
            parts = {"computing": paid.computing, "licences": paid.licences, "egress": egress, "lost": paid.lost}
            row: dict[str, Any] = {"cluster": where, **{k: round(v, 6) for k, v in parts.items() if v is not None}}
            found.append(row | ({"capacity": paid.capacity} if paid.capacity else {}))
    return found


def _costs_then(cluster: ClusterInfo, workload: WorkloadInfo) -> Costs:
    from metaos.scheduler import timing  # with numpy

    best = timing.options(workload, cluster)[0]
    whole, now = timing.cost(workload, cluster, best), costs(cluster, workload, workload.replicas)
    computing = None if whole is None else whole - (now.licences or 0.0)
    special = best.option.kind if best.option.kind in (SPOT, RESERVED) else ""
    return replace(now, computing=computing, lost=(computing or 0.0) * (1 - 1 / best.option.times), capacity=special)


def explain(
    placement: Obj, clusters: Iterable[Obj], intents: Iterable[Obj], present: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything about one decision. Every present site is chosen, scored or rejected, where there are not too many. ``present``:
    what a PlacementReview says of the workload as it is, so that figures are those of now; without it they are of
    ``scoredTime``."""
    spec, status = placement.get("spec") or {}, placement.get("status") or {}
    scheduled = condition(placement, "Scheduled") or {}
    message = scheduled.get("message", "")
    if present is not None:
        message = present.get("reason", message)
        status = {k: v for k, v in status.items() if k not in FIGURES} | {k: present[k] for k in FIGURES if k in present}
    chosen = {c["name"]: c.get("replicas", 0) for c in spec.get("clusters") or ()}
    scores = status.get("scores") or []
    rejected = status.get("rejected") or []
    accounted = {s["cluster"] for s in scores} | {r["cluster"] for r in rejected}
    took_part = set(status.get("intents") or ())
    left_out = int(status.get("sitesLeftOut") or 0)
    unknown = [
        {"cluster": name(c), "filter": "New", "reason": "joined after the decision"}
        for c in clusters
        if name(c) not in accounted and not left_out
    ]
    return {
        "workload": {**(spec.get("workloadRef") or {}), "namespace": namespace(placement)},
        "clusters": [{"name": n, "replicas": r} for n, r in chosen.items()],
        "reason": spec.get("reason", ""),
        "decidedTime": spec.get("decidedTime", ""),
        "scheduled": scheduled.get("status", "Unknown"),
        "message": message,
        # Empty: of now.
        "scoredTime": status.get("scoredTime", ""),
        "scores": scores,
        "rejected": [*rejected, *unknown],
        "sitesLeftOut": left_out,
        "rejectedBy": status.get("rejectedBy") or {},
        "alternatives": status.get("alternatives") or [],
        "conflict": status.get("conflict"),
        "traffic": status.get("traffic") or [],
        "costs": status.get("costs") or [],
        "migration": status.get("migration"),
        "deferral": status.get("deferral"),
        "moves": spec.get("moves") or [],
        "limits": status.get("limits") or {},
        "intents": [
            {
                "name": name(i),
                **{k: v for k, v in (i.get("status") or {}).items() if k in ("fulfilment", "message", "targets", "since")},
            }
            for i in intents
            if name(i) in took_part
        ],
    }


def render(found: dict[str, Any], width: int = 0) -> str:
    """For people: chosen sites, the table of terms, the runner-up, each rejected site, intents and their nearest offers.
    ``width``: columns of the screen; 0 where lines may be as long as they are."""
    return "\n".join(part for line in _lines(found, width) for part in wrapped(line, width))


def wrapped(line: str, width: int) -> list[str]:
    """A line for a screen of so many columns (0: of any). What follows two spaces and more in its first half stays below that."""
    if not width or len(line) <= width:
        return [line]
    hang = max((m.end() for m in _GAP.finditer(line[: width // 2])), default=0)
    rest = textwrap.wrap(line[hang:], max(20, width - hang), break_long_words=False, break_on_hyphens=False)
    return [line[:hang] + rest[0], *(" " * hang + part for part in rest[1:])]


def _forecast(found: Mapping[str, Any]) -> str:
    error = f", wrong by {found['errorPercent']:g} % a day ahead so far" if "errorPercent" in found else ""
    if found.get("countsPercent"):
        error += f", so later hours count as {found['countsPercent']:g} % of the mean more (their {RISK * 100:.0f} % quantile)"
    step = f"{found['step'].lower()}{error}" if found.get("step") else error.removeprefix(", ")
    return f"  forecast  {found['of']}: {step}; {found.get('hours', 0)} h were left of it"


_GAP = re.compile(r" {2,}(?=\S)")


def _lines(found: dict[str, Any], screen: int) -> list[str]:
    about = found["workload"]
    lines = [f"{about.get('kind')} {about.get('namespace')}/{about.get('name')}"]
    places = ", ".join(f"{c['name']} ({c['replicas']})" for c in found["clusters"]) or "nowhere"
    lines.append(f"  runs on   {places}")
    lines.append(f"  because   {found['reason']}  [{found['decidedTime']}]")
    if found["scheduled"] != "True" and found["message"]:
        lines.append(f"  problem   {found['message']}")
    elif found["message"] and found["message"] != found["reason"]:
        # The decision was made once; what is thought of it now is looked at again with every change.
        lines.append(f"  now       {found['message']}")
    lines += [
        f"  run       due {run['scheduledTime']} starts {run['startTime']}: {run.get('reason')}"
        for run in (found.get("deferral") or {}).get("runs") or ()
    ]
    if (deferral := found.get("deferral")) and "runs" not in deferral:
        verb = "started" if deferral.get("started") else "starts"
        saves = (
            f", saves about {deferral['savesGrams']:.3g} g against starting at once" if deferral.get("savesGrams", 0) > 0 else ""
        )
        lines.append(f"  {verb:<9} {deferral.get('startTime')}: {deferral.get('reason')}{saves}")
        lines.append(f"  waits     until {deferral.get('latestStartTime')} at most; forecast: {deferral.get('source')}")
        lines += [_forecast(f) for f in deferral.get("forecasts") or () if f.get("step") or "errorPercent" in f]
        if deferral.get("capacity"):
            lines.append(f"  capacity  {deferral['capacity']}: {deferral.get('capacityReason')}")
        if deferral.get("savesMoney"):
            lines.append(
                f"  saves     {deferral['savesMoney']:.3g} {deferral.get('currency', '')} against starting at once".rstrip()
            )
        if deferral.get("width"):
            lines.append(f"  width     {deferral['width']} pods at once")
    migration = found.get("migration")
    if migration:
        old, new = (", ".join(migration.get(side) or ()) for side in ("from", "to"))
        way = f"moving    {old} -> {new}" if new else f"leaving   {old}"
        lines.append(f"  {way}: {migration.get('phase')}")
    lines += [f"  {talk_line(talk)}" for talk in found.get("traffic") or ()]
    lines += [f"  {costs_line(row)}" for row in found.get("costs") or ()]
    if found.get("limits"):
        lines.append(f"  moves     {_limits(found['limits'])}")
    lines += [f"  moved     {_moved(move)}" for move in (found.get("moves") or ())[-MOVES_SHOWN:]]
    if found["scores"]:
        when = f"as of {found['scoredTime']}" if found.get("scoredTime") else "as it is now"
        waits = found.get("deferral") and not found["deferral"].get("started")
        hours = "; carbon and cost of the hours in which it would run there" if waits else ""
        lines += ["", f"  considered, {when} (points of 100; value, points x weight{hours})"]
        chosen = {c["name"] for c in found["clusters"]}
        table = _table(found["scores"], chosen)
        lines += _narrow_table(found["scores"], chosen) if screen and max(map(len, table)) > screen else table
    for other in found["alternatives"]:
        names = ", ".join(f"{c['name']} ({c['replicas']})" for c in other["clusters"])
        lines.append(f"  runner-up {names}: {_difference(float(other['difference']))}")
    if found["rejected"]:
        lines += ["", "  rejected"]
        width = max(len(r["cluster"]) for r in found["rejected"])
        lines += [f"    {r['cluster']:<{width}}  {r['reason']}" for r in found["rejected"]]
    if found.get("conflict"):
        lines += ["", "  conflict", *(f"    {line}" for line in conflicts.lines(found["conflict"]))]
    if found.get("sitesLeftOut"):
        counts = ", ".join(f"{filter} {count}" for filter, count in (found.get("rejectedBy") or {}).items())
        lines.append(
            f"  and {found['sitesLeftOut']} more sites, which are not listed" + (f"; rejected by {counts}" if counts else "")
        )
    if found["intents"]:
        lines += ["", "  intents"]
        lines += [f"    {i['name']}: {i.get('fulfilment', 'Unknown')}. {i.get('message', '')}" for i in found["intents"]]
    return lines


def talk_line(found: dict[str, Any]) -> str:
    """``asks      statefulset/db on a: 0 ms (the same site), at most 10 ms must hold; egress 0.0012 EUR an hour``."""
    verb = "asks" if found.get("asks") else "answers"
    if not found["clusters"]:
        return f"{verb:<9} {found['peer']}, which has no place yet  (intent {found['intent']!r})"
    peer = found["peer"] if found["peer"].startswith("site ") else f"{found['peer']} on {', '.join(found['clusters'])}"
    trip = f"{found['milliseconds']:.4g} ms" if "milliseconds" in found else "round trip unknown"
    wanted = (
        f", at most {found['maxMilliseconds']:g} ms {'must hold' if found.get('hard') else 'wanted'}" if "hard" in found else ""
    )
    money = f"; egress {found['egressPerHour']:.3g} EUR an hour" if "egressPerHour" in found else ""
    if "gigabytesPerDay" in found:
        grams = f" ({found['gramsPerDay']:.3g} gCO2eq)" if "gramsPerDay" in found else ""
        money += f"; {found['gigabytesPerDay']:.4g} GB a day over the network{grams}"
    if "copy" in found:
        copy = found["copy"]
        parts = haul_text(Haul(copy["bytes"], copy.get("seconds"), copy.get("money"), copy.get("grams")))
        money += f"; a copy here would take {parts.removeprefix('up to ')}"
    return f"{verb:<9} {peer}: {trip} ({found.get('known', 'nothing is stated')}){wanted}{money}  (intent {found['intent']!r})"


def costs_line(found: Mapping[str, Any]) -> str:
    """``costs     a: computing 0.02, licences 0.1, egress 0 EUR an hour``."""
    again = f"{found.get('lost', 0.0):.3g} of it for what is done again"
    spot = f" on {found['capacity']} capacity" if found.get("capacity") else ""
    spot += f" ({again})" if found.get("capacity") == SPOT else ""
    parts = [f"{word} {found[word]:.4g}" if word in found else f"{word} unknown" for word in ("computing", "licences", "egress")]
    return f"{'costs':<9} {found['cluster']}: {parts[0]}{spot}, {parts[1]}, {parts[2]} EUR an hour"


def _limits(limits: dict[str, Any]) -> str:
    return (
        f"for a gain of {limits['minimumImprovement']:g} points or more, at most {limits['budgetPerHour']} times an hour, "
        f"and not within {limits['coolDownSeconds']:g} s of the last move"
    )


def _moved(move: dict[str, Any]) -> str:
    old, new = (", ".join(move.get(side) or ()) or "no other site" for side in ("from", "to"))
    return f"{old} -> {new}, {'because it had to' if move.get('forced') else 'for a gain'}  [{move.get('time', '')}]"


def _difference(points: float) -> str:
    if points < 0:
        return f"{-points:.1f} points better, but not worth a move"
    return f"{points:.1f} points less"


def _table(scores: list[dict[str, Any]], chosen: set[str]) -> list[str]:
    names = list(dict.fromkeys(t["name"] for s in scores for t in s["terms"]))
    units = {t["name"]: t["unit"] for s in scores for t in s["terms"]}
    rows = [["", "site", "total", *(f"{n} [{units[n]}]" for n in names)]]
    for score in scores:
        terms = {t["name"]: t for t in score["terms"]}
        cells = [_cell(terms.get(n)) for n in names]
        rows.append(["*" if score["cluster"] in chosen else "", score["cluster"], f"{score['total']:.1f}", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _narrow_table(scores: list[dict[str, Any]], chosen: set[str]) -> list[str]:
    """The same in two lines a site: values, and below them points x weight."""
    names = list(dict.fromkeys(t["name"] for s in scores for t in s["terms"]))
    units = {t["name"]: t["unit"].replace("CO2eq", "") for s in scores for t in s["terms"]}
    rows = [["", "site", "total", *(n if len(n) <= 8 else f"{n[:7]}." for n in names)], ["", "", "", *(units[n] for n in names)]]
    for score in scores:
        terms = {t["name"]: t for t in score["terms"]}
        cells = [_cell(terms.get(n)).rstrip(")").partition(" (") for n in names]
        rows.append(
            ["*" if score["cluster"] in chosen else "", score["cluster"], f"{score['total']:.1f}", *(c[0] for c in cells)]
        )
        rows.append(["", "", "", *(c[2] for c in cells)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(term: dict[str, Any] | None) -> str:
    if term is None:
        return "-"
    # Nothing is kept of a value that is not known.
    value = "unknown" if term.get("value") is None else f"{term['value']:.4g}"
    return f"{value} ({term['points']:.0f}x{term['weight']:.3g})"
