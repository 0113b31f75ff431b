"""What a scenario came to on real processes and in the twin, side by side; and the twin's settings for which both agree. Pure.

A scenario says what machines take in ``timing`` and ``link``; ``fitted`` moves each of those by what its own leg differs in
the middle. The judgement is by stated tolerances, and a machine that does other things at the same time is slower.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metaos.twin.observed import Metered, Observed
from metaos.twin.story import Scenario
from metaos.twin.timeline import LEGS, Timeline
from metaos.twin.timing import SAID, Timing

#: How often the twin is fitted and played again, at most.
ROUNDS = 4
#: Writes between a workload's being applied and placed, until the first fit has shown how many count.
FIRST_WRITES = 4.0
#: Legs that begin with a failure: when in a heartbeat that was is chance.
_BY_HEARTBEAT = ("lost", "replaced")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Medians of a leg may differ by ``share`` of the real one or by ``seconds``, whichever is more; those that begin with a
    failure by one heartbeat more; mean power of a site by ``energy`` of the real one."""

    share: float = 0.25
    seconds: float = 0.5
    energy: float = 0.1

    def said(self, heartbeat: float) -> str:
        return (
            f"medians of times within {self.share:.0%} or {self.seconds:g} s, whichever is more, and {heartbeat:g} s "
            f"(a heartbeat) more after a failure; mean power of a site within {self.energy:.0%}; placements alike"
        )


ENERGY_METHOD = (
    "both sides: the agents' own meter with the site's linear power model (idle to full load by CPU time in use), booked by the "
    "hub with the intensity that the site states; CPU time is measured on the real side, and 'load' times the limit in the twin"
)


def compared(real: Observed, twin: Observed, timing: Timing, tolerance: Tolerance) -> dict[str, Any]:
    """The report's three parts, each row with its verdict (``held``)."""
    placement = _placement(real.timeline, twin.timeline)
    times = [_leg(leg, real.times[leg], twin.times[leg], timing.heartbeat, tolerance) for leg in LEGS]
    energy = [_energy(site, real.sites.get(site), twin.sites.get(site), tolerance) for site in sorted({*real.sites, *twin.sites})]
    shown = [row for row in times if row is not None]
    return {
        "held": all(row["held"] for row in (*placement, *shown, *energy)),
        "placement": placement,
        "timing": shown,
        "energy": energy,
    }


def _placement(real: Timeline, twin: Timeline) -> list[dict[str, Any]]:
    """Where a workload was put first, and where it was when it last was anywhere."""
    rows = []
    for workload in sorted({*real.placed, *twin.placed}):
        sides = []
        for line in (real, twin):
            courses = [sites for _, sites in line.placed.get(workload, ()) if sites]
            sides.append((courses[0], courses[-1]) if courses else ({}, {}))
        mine, other = sides
        row = {"workload": workload, "realFirst": mine[0], "twinFirst": other[0], "realLast": mine[1], "twinLast": other[1]}
        rows.append({**row, "held": mine == other})
    return rows


def _leg(
    leg: str, real: Mapping[str, float], twin: Mapping[str, float], heartbeat: float, tolerance: Tolerance
) -> dict[str, Any] | None:
    """``None`` where nothing of that happened on either side. What came about on one side only does not hold."""
    if not real and not twin:
        return None
    row: dict[str, Any] = {"leg": leg, "what": LEGS[leg], "samples": _pairs(real, twin)}
    row |= {"onlyReal": sorted(real.keys() - twin.keys()), "onlyTwin": sorted(twin.keys() - real.keys())}
    for side, times in (("real", real), ("twin", twin)):
        row |= {f"{side}P50": round(statistics.median(times.values()), 3) if times else None}
        row |= {f"{side}Max": round(max(times.values()), 3) if times else None}
    row |= {"ratio": None, "allowed": None, "held": False}
    if real and twin:
        allowed = max(tolerance.share * row["realP50"], tolerance.seconds) + (heartbeat if leg in _BY_HEARTBEAT else 0.0)
        row |= {"allowed": round(allowed, 3), "ratio": round(row["realP50"] / row["twinP50"], 3) if row["twinP50"] else None}
        alike = not row["onlyReal"] and not row["onlyTwin"]
        row["held"] = alike and abs(row["realP50"] - row["twinP50"]) <= allowed
    return row


def _pairs(real: Mapping[str, float], twin: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {"about": about, **{side: round(times[about], 3) for side, times in (("real", real), ("twin", twin)) if about in times}}
        for about in sorted({*real, *twin})
    ]


def _energy(site: str, real: Metered | None, twin: Metered | None, tolerance: Tolerance) -> dict[str, Any]:
    row: dict[str, Any] = {"site": site, "held": False}
    for side, found in (("real", real), ("twin", twin)):
        row |= {f"{side}Watts": round(found.watts, 3) if found else None}
        row |= {f"{side}GramsPerHour": round(found.grams, 3) if found and found.grams is not None else None}
        row |= {f"{side}CpuSeconds": round(found.cpu_seconds, 2) if found else None}
        row |= {f"{side}Seconds": found.seconds if found else None}
    if real and twin:
        row |= {"uncertainty": max(real.uncertainty, twin.uncertainty), "basis": sorted({*real.basis, *twin.basis})}
        row["held"] = abs(real.watts - twin.watts) <= tolerance.energy * real.watts
    return row


# -- fitting -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tried:
    """A play in the twin with these settings."""

    timing: Timing
    twin: Observed


def fitted(real: Observed, tried: Sequence[Tried]) -> Timing:
    """Settings for which the next play in the twin should come nearer to the real one, from those that were tried (the last one
    counts; the one before it shows how much of a setting arrives)."""
    timing, twin = tried[-1].timing, tried[-1].twin
    found = timing
    if (apart := _apart(real.times["placed"], twin.times["placed"])) is not None:
        found = replace(found, write=_moved(timing.write, apart, _writes(tried)))
    if (apart := _apart(_runs(real), _runs(twin))) is not None:
        found = replace(found, pod_start=_moved(timing.pod_start, apart, 1.0))
    if (apart := _apart(real.times["deleted"], twin.times["deleted"])) is not None:
        found = replace(found, pod_stop=_moved(timing.pod_stop, apart, 1.0))
    if (apart := _apart(real.times["returned"], twin.times["returned"])) is not None:
        found = replace(found, agent_start=_moved(timing.agent_start, apart, 1.0))
    if (apart := _apart(real.times["hub"], twin.times["hub"])) is not None:
        found = replace(found, hub_start=_moved(timing.hub_start, apart, 1.0))
    used = [sum(site.cpu_seconds for site in side.sites.values()) for side in (real, twin)]
    if all(used):
        found = replace(found, load=round(min(1.0, timing.load * used[0] / used[1]), 4))
    own = [_own_cores(side) for side in (real, twin)]
    if None not in own:
        found = replace(found, agent_cpu=_moved(timing.agent_cpu, (own[0] or 0.0) - (own[1] or 0.0), 1.0))
    return found


def _own_cores(side: Observed) -> float | None:
    """Cores in use beside pods, in the middle of the sites."""
    found = [site.own_cores for site in side.sites.values() if site.own_cores is not None]
    return statistics.median(found) if found else None


def _runs(side: Observed) -> dict[str, float]:
    """From placed to available."""
    placed, available = side.times["placed"], side.times["available"]
    return {about: available[about] - placed[about] for about in placed if about in available}


def _writes(tried: Sequence[Tried]) -> float:
    """How many writes' time is in a placement."""
    if len(tried) > 1:
        steps = [each.timing.write for each in tried[-2:]]
        times = _apart(tried[-1].twin.times["placed"], tried[-2].twin.times["placed"])
        if times and steps[1] != steps[0] and (slope := times / (steps[1] - steps[0])) >= 1:
            return slope
    return FIRST_WRITES


def _apart(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """By how much the medians of what both have differ; ``None``: they have nothing in common."""
    both = sorted(one.keys() & other.keys())
    if not both:
        return None
    return statistics.median(one[about] for about in both) - statistics.median(other[about] for about in both)


def _moved(value: float, apart: float, slope: float) -> float:
    """To the millisecond, and not below 0."""
    return round(max(0.0, value + apart / slope), 4 if slope > 1 else 3)


def as_text(timing: Timing, delay: float) -> dict[str, Any]:
    """The ``timing`` and ``link`` of a scenario, as in its file."""
    said: dict[str, Callable[[float], Any]] = {
        "seconds": lambda value: f"{value:g}s",
        "period": lambda value: f"{value:g}s",
        "milliseconds": lambda value: f"{value * 1000:g}ms",
        "share": lambda value: round(value, 4),
        "cores": lambda value: value,
    }
    # A world with fences is not played on real processes.
    words = {word: each for word, each in SAID.items() if not word.startswith("fencing")}
    found = {word: said[form](getattr(timing, field)) for word, (field, form) in words.items()}
    return {"timing": found, "link": {"delay": f"{delay * 1000:.1f}ms"}}


def settled(timing: Timing, before: Timing) -> bool:
    """Whether a fit changed nothing that matters: times by less than 20 ms, a write by less than 1 ms, the load by less than
    1 %, the agent by less than 2 thousandths of a core."""
    return (
        abs(timing.write - before.write) < 0.001
        and all(
            abs(getattr(timing, k) - getattr(before, k)) < 0.02 for k in ("pod_start", "pod_stop", "agent_start", "hub_start")
        )
        and abs(timing.load - before.load) < 0.01
        and abs(timing.agent_cpu - before.agent_cpu) < 0.002
    )


# -- the whole ---------------------------------------------------------------------------------------------


def calibrated(story: Scenario, real: Observed, play: Callable[[Scenario], Observed], tolerance: Tolerance) -> dict[str, Any]:
    """The report: the twin as the scenario has it (``before``) and with fitted settings (``after``), each beside the real one.
    ``play`` plays a scenario in the twin."""
    tried = [Tried(story.timing, play(story))]
    delay = real.delay if real.delay is not None else story.sites[0].quality.delay
    for _ in range(ROUNDS):
        timing = fitted(real, tried)
        if len(tried) > 1 and settled(timing, tried[-1].timing):
            break
        tried.append(Tried(timing, play(with_settings(story, timing, delay))))
    before, after = tried[0], tried[-1]
    compare = [compared(real, each.twin, story.timing, tolerance) for each in (before, after)]
    return {
        "title": story.title,
        "scenario": story.file,
        "seconds": story.duration,
        "held": compare[1]["held"],
        "tolerance": tolerance.said(story.timing.heartbeat),
        "energyMethod": ENERGY_METHOD,
        "before": compare[0],
        "after": compare[1],
        "settings": {
            "before": as_text(before.timing, story.sites[0].quality.delay),
            "after": as_text(after.timing, delay),
            "plays": len(tried),
        },
        "series": {
            side: {workload: [(round(at, 3), sum(sites.values())) for at, sites in course] for workload, course in served.items()}
            for side, served in (
                ("real", real.timeline.served),
                ("before", before.twin.timeline.served),
                ("after", after.twin.timeline.served),
            )
        },
    }


def with_settings(story: Scenario, timing: Timing, delay: float) -> Scenario:
    """``delay``: seconds one way, of all sites."""
    sites = tuple(replace(site, quality=replace(site.quality, delay=delay)) for site in story.sites)
    return replace(story, timing=timing, sites=sites)
