"""Rollouts over several sites: from what sites were told and report to the manifest that each gets now. Pure; the decision
is :mod:`metaos.scheduler.rollout`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metaos.controllers.fencing import stopped
from metaos.controllers.render import paused, reported, template_of
from metaos.resources.meta import Obj, generation, is_true
from metaos.resources.workload import replicas, template_hash
from metaos.scheduler.rollout import NONE, Bounds, Progress, Turn, bounds_of, recreated, turns

_STRATEGY = {"Deployment": "strategy", "DaemonSet": "updateStrategy"}


def staged(
    obj: Obj,
    wanted: Mapping[str, Obj],
    existing: Mapping[str, Obj],
    answering: Mapping[str, bool],
    leaving: Mapping[str, Obj],
) -> dict[str, Obj]:
    """What each chosen site is told now, and of those that are left each that is to run none. ``wanted``: site → the manifest
    that it gets in the end; ``existing``: site → its Work; ``answering``: site → whether it is heard from; ``leaving``: sites
    with a Work that are not chosen any more → the manifest that they would get. One site alone keeps the user's own bounds; so
    does everything that sites do not replace by themselves."""
    field = _STRATEGY.get(str(obj.get("kind")), "")
    strategy = (obj.get("spec") or {}).get(field) or {}
    if paused(obj) and existing:
        return _paused(wanted, existing)
    recreates = strategy.get("type") == "Recreate"
    if not recreates or not wanted:
        leaving = {}  # Others may run two templates at a time, and good work does not stop for want of a better place.
    if len(wanted) + len(leaving) < 2 or not field or strategy.get("type") == "OnDelete":
        return dict(wanted)
    both = {**leaving, **wanted}
    sites = {
        site: replace(progress(both[site], existing.get(site), answering.get(site, False)), leaving=site not in wanted)
        for site in sorted(both)
    }
    if recreates:
        found: Mapping[str, Turn | None] = recreated(
            {s: _emptied(p, existing[s]) if s in existing else p for s, p in sites.items()}
        )
    else:
        whole = len(wanted) if obj["kind"] == "DaemonSet" else replicas(obj)
        found = turns(sites, bounds_of(obj, whole) or NONE)
    told = {}
    for site, turn in found.items():
        present = existing[site]["spec"]["manifests"][0] if site in existing else None
        if turn is None:
            if present is not None:
                told[site] = _with(both[site], replicas=0, template=present["spec"].get("template"))
            continue
        if site not in wanted:
            continue
        # An operator's own strategy for a site stands.
        own = wanted[site]["spec"].get(field) != (obj.get("spec") or {}).get(field)
        spec: dict[str, Any] = {}
        if present is not None and not turn.current:
            spec["template"] = present["spec"].get("template")
        if not own and not recreates:
            spec[field] = _strategy(strategy, turn.bounds, present and present["spec"].get(field))
        told[site] = _with(wanted[site], **spec)
    return told


def _paused(wanted: Mapping[str, Obj], existing: Mapping[str, Obj]) -> dict[str, Obj]:
    """Sites go on with the template that they have; a new one gets that of the first."""
    first, told = existing[min(existing)], {}
    for site, manifest in wanted.items():
        spec = existing.get(site, first)["spec"]["manifests"][0]["spec"]
        kept = ("template", "strategy") if site in existing and len(wanted) > 1 else ("template",)
        told[site] = _with(manifest, **{key: spec[key] for key in kept if key in spec})
    return told


def progress(wanted: Obj, found: Obj | None, answers: bool) -> Progress:
    """How far a site is with a workload. ``found``: its Work."""
    share = replicas(wanted)
    if found is None:
        return Progress(share, answers=answers, told=False)
    told = found["spec"]["manifests"][0]
    status: Mapping[str, Any] = reported(found).get("status") or {}
    to_run = replicas(told)
    if told.get("kind") == "DaemonSet":
        words = ("currentNumberScheduled", "updatedNumberScheduled", "numberAvailable")
        # A Kubernetes cluster has one for each node.
        share = to_run = max(1, int(status.get("desiredNumberScheduled") or 0))
    else:
        words = ("replicas", "updatedReplicas", "availableReplicas")
    running, updated, available = (int(status.get(word) or 0) for word in words)
    seen = _is_about(found, told, status)
    return Progress(
        share,
        running,
        available,
        bounds_of(told, replicas(told)) or Bounds(0, replicas(told)),
        template_of(found) == wanted["spec"].get("template"),
        seen,
        seen and running != updated,
        seen and running == updated == to_run,
        answers,
    )


def _is_about(found: Obj, told: Obj, status: Mapping[str, Any]) -> bool:
    """Whether a site's counts are about what it was told last. A Kubernetes cluster does not say which template it counts: its
    are when its server has taken what it was told, and has finished with it."""
    if int((found.get("status") or {}).get("observedGeneration") or 0) < generation(found) or not is_true(found, "Applied"):
        return False
    entry: Mapping[str, Any] = ((found.get("status") or {}).get("manifests") or ({},))[0]
    if "health" in entry:
        return bool(entry["health"] == "Current")
    digest = template_hash(told)
    return bool(status.get("updateRevision", digest) == digest)


def _emptied(found: Progress, work: Obj) -> Progress:
    """For ``Recreate``: settled is who has stopped everything, not even a pod is ending."""
    return replace(found, settled=stopped(work))


def _with(manifest: Obj, **spec: Any) -> Obj:
    return manifest | {"spec": manifest["spec"] | spec}


def _strategy(stated: Mapping[str, Any], bounds: Bounds | None, present: Mapping[str, Any] | None) -> dict[str, Any]:
    """The user's strategy with a site's part of the bounds; without a new part the one that it has, at first none."""
    if bounds is None:
        rolling = (present or {}).get("rollingUpdate") or {"maxSurge": 0, "maxUnavailable": 0}
    else:
        rolling = {"maxSurge": bounds.surge, "maxUnavailable": bounds.unavailable}
    return {**stated, "rollingUpdate": dict(rolling)}
