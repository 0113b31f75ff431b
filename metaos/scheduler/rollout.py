"""Rollouts over several sites: which site replaces pods now, and how many at once, so that a workload's bounds hold for
all its sites together. Pure.

Each site replaces its pods by itself, within the bounds that it was told. So what the sites have been told is the whole state
of a rollout: a hub that dies in the middle goes on from it. A site that may replace none yet keeps the template that it has.
Bounds are counted over the sites that answer: one that is cut off holds up no other, and waits for its turn when it is back.
Source: ``pkg/controller/deployment/rolling.go`` and ``pkg/controller/daemon/update.go`` of Kubernetes, for one site.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from metaos.resources.meta import Obj
from metaos.resources.workload import resolve, rolling_limits


@dataclass(frozen=True, slots=True)
class Bounds:
    """In pods: how many more than wanted there may be, and how many fewer may be available. Both zero, for a site: it
    replaces only what is not available anyway."""

    surge: int = 0
    unavailable: int = 0


NONE = Bounds()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a site is. ``share``: pods that it is to run; ``bounds``: what it was told last; ``current``: whether it was
    told the wanted template; ``seen``: what it reports is about what it was told last; ``mixed``: it runs pods of another
    template beside; ``settled``: all its pods, as many as it was told to run, are of the template that it was told. ``told``
    is false for a site that was told nothing yet; ``leaving``: it is not chosen any more, and has its share until others do."""

    share: int
    replicas: int = 0
    available: int = 0
    bounds: Bounds = NONE
    current: bool = False
    seen: bool = False
    mixed: bool = False
    settled: bool = False
    answers: bool = True
    told: bool = True
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """What a site is told now: the wanted template or the one that it has, and its bounds (``None``: as before)."""

    current: bool
    bounds: Bounds | None = None


def bounds_of(workload: Obj, total: int) -> Bounds | None:
    """What the user allows, of ``total`` pods; percentages are rounded as Kubernetes does it. ``None``: nothing is rolled out
    step by step (``Recreate``, ``OnDelete``, other kinds)."""
    spec, kind = workload.get("spec") or {}, workload.get("kind")
    strategy = spec.get("strategy" if kind == "Deployment" else "updateStrategy") or {}
    rolling = strategy.get("rollingUpdate") or {}
    if strategy.get("type", "RollingUpdate") != "RollingUpdate" or kind not in ("Deployment", "DaemonSet"):
        return None
    if kind == "DaemonSet":
        surge = resolve(rolling.get("maxSurge", 0), total, up=True)
        return Bounds(surge, resolve(rolling.get("maxUnavailable", 0 if surge else 1), total, up=True))
    return Bounds(*rolling_limits(rolling, total))


def turns(sites: Mapping[str, Progress], bounds: Bounds) -> dict[str, Turn]:
    """One step of a rolling update: site → what it is told now.

    Whoever is replacing pods keeps what it was given until it has settled, and has none of the bounds afterwards: so whoever
    has some replaces pods. What is left is divided over the sites that wait, in proportion to their shares. Where nothing is
    left because pods of the old template are not available themselves, the first site with such pods replaces those, and no
    others."""
    told = {site: Turn(found.current or not found.told) for site, found in sorted(sites.items())}
    counted = {site: found for site, found in sorted(sites.items()) if found.answers}
    busy = {site for site, found in counted.items() if found.told and not found.settled and found.bounds != NONE}
    for site, found in counted.items():
        if found.told:
            told[site] = Turn(True) if site in busy else Turn(found.current, NONE)
    waiting = {s: f for s, f in counted.items() if f.told and s not in busy and (f.mixed or not f.current)}
    if not waiting:
        return told
    wanted = sum(found.share for found in counted.values())
    down = bounds.unavailable - wanted + sum(_least(found) for found in counted.values())
    up = bounds.surge + wanted - sum(_most(found) for found in counted.values())
    room = {site: found.share for site, found in waiting.items()}
    fewer = _divided(down, room, ())
    more = _divided(up, room, [site for site, count in fewer.items() if count])
    begun = bool(busy) or any(found.current and not found.settled for found in counted.values())
    for site in waiting:
        granted = Bounds(more[site], fewer[site])
        if granted != NONE or not room[site]:
            told[site] = Turn(True, granted)
        begun |= granted != NONE
    if not begun and all(found.available >= found.share for found in counted.values() if found.current):
        broken = next((site for site, found in waiting.items() if found.available < found.share), None)
        if broken is not None and not told[broken].current:
            told[broken] = Turn(True, NONE)
    return told


def recreated(sites: Mapping[str, Progress]) -> dict[str, Turn | None]:
    """One step of ``Recreate``: nowhere a pod of the new template before those of the old one are gone everywhere, also where the
    workload is leaving. ``None``: the site is to run none for now. Who leaves is never told the new template."""
    old = [s for s, found in sites.items() if found.told and not found.current]
    running = [site for site in old if sites[site].answers and not (sites[site].settled and not sites[site].replicas)]
    found: dict[str, Turn | None] = {}
    for site, progress in sorted(sites.items()):
        if progress.leaving:
            found[site] = None if site in old and progress.answers else Turn(False)
        elif site in old and not progress.answers:
            found[site] = Turn(False)
        elif progress.current or not running:
            found[site] = Turn(True)
        else:
            found[site] = None
    return found


def _least(found: Progress) -> int:
    """How few of its pods may be available before the site is told anything else."""
    available = min(found.available, found.share)
    return available if found.settled else min(available, max(0, found.share - found.bounds.unavailable))


def _most(found: Progress) -> int:
    """How many pods it may come to have."""
    return max(found.replicas, found.share + (0 if found.settled else found.bounds.surge))


def _divided(amount: int, room: Mapping[str, int], last: Collection[str]) -> dict[str, int]:
    """``amount`` in proportion to ``room``, none more than its own; what does not divide goes by largest remainder, to those in
    ``last`` after the others, and by name."""
    amount, whole = max(0, amount), sum(room.values())
    if amount >= whole:
        return dict(room)
    found = {site: amount * share // whole for site, share in room.items()}
    order = sorted(room, key=lambda site: (site in last, -(amount * room[site] % whole), site))
    for site in order[: amount - sum(found.values())]:
        found[site] += room[site] > found[site]
    return found
