"""Answers PlacementReviews: where everything would go if objects were applied or the world changed. Nothing is done."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from metaos.clock import Clock
from metaos.controllers.facts import Facts, decided, finished, placeable, placement_name
from metaos.controllers.settings import Settings
from metaos.controllers.usage import Share, Usage
from metaos.plugins.registry import load_all
from metaos.reconcile.manager import Manager
from metaos.resources import scheme, workload
from metaos.resources.errors import Cause, invalid
from metaos.resources.meta import Obj, ObjectRef, name, namespace, ref, uid
from metaos.resources.snapshot import Snapshot, WorkloadInfo
from metaos.scheduler.conflicts import as_data
from metaos.scheduler.explain import placement_status
from metaos.scheduler.filters import FILTERS
from metaos.scheduler.scores import SCORES

if TYPE_CHECKING:
    from metaos.scheduler.planning import Alternative, Changes, Measures, Outcome

#: Workloads whose outcome is told one by one.
OUTCOMES_KEPT = 500
#: Workloads x sites that are placed at once: a table of 160 MB.
MOST_PAIRS = 20_000_000
_KINDS = {(k.api_version, k.kind) for k in scheme.WORKLOADS}


class Planner:
    """See the module. Reads the informers that the controllers have anyway."""

    def __init__(self, manager: Manager, clock: Clock, settings: Settings) -> None:
        self._clock = clock
        self._facts = Facts(manager, settings)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._placements = manager.informer(scheme.PLACEMENT)
        self._workloads = [manager.informer(k) for k in scheme.WORKLOADS]
        self._filters = load_all("metaos.filter", [n for n, _ in FILTERS])
        self._scores = [score for _, score in load_all("metaos.score", [score.name for score in SCORES])]

    async def review(self, obj: Obj, visible: Callable[[str], bool]) -> Obj:
        """The review with its status. ``visible`` says of which namespaces the caller may see placements; of workloads in
        others it is told only how many would move."""
        # With numpy, which a hub loads when it is needed.
        from metaos.scheduler.planning import Changes, alternatives, project, together

        spec = obj.get("spec") or {}
        objects = spec.get("objects") or []
        changes = Changes(
            frozenset(spec.get("drain") or ()),
            frozenset(spec.get("lose") or ()),
            tuple(sorted((spec.get("prices") or {}).items())),
            tuple(sorted((spec.get("carbonIntensities") or {}).items())),
        )
        snapshot, asked, shown = self._asked(objects, changes)
        # Beside the loop: agents' heartbeats do not wait for a large plan.
        try:
            outcomes = await asyncio.to_thread(project, snapshot, changes, asked, self._filters, self._scores)
        except ValueError as error:
            kind, cause = scheme.PLACEMENT_REVIEW, Cause("FieldValueInvalid", "spec", str(error))
            raise invalid(kind.group, kind.kind, "", [cause]) from None
        found: list[Alternative] = []
        if spec.get("alternatives", True):
            found = await asyncio.to_thread(alternatives, snapshot, changes, outcomes, self._filters, self._scores)
        worth = [o for o in outcomes if o.changed or o.impossible is not None or o.workload.ref in shown]
        told = [o for o in worth if visible(o.workload.ref.namespace)]
        hidden = sum(o.changed and not visible(o.workload.ref.namespace) for o in outcomes)
        moving = [o for o in outcomes if o.changed]
        status = {
            "workloads": [_outcome(o) for o in told[:OUTCOMES_KEPT]],
            "workloadsLeftOut": max(0, len(told) - OUTCOMES_KEPT) + hidden,
            "unchanged": len(outcomes) - len(told) - hidden,
            "before": _measures(together([o.before for o in outcomes])),
            "after": _measures(together([o.after for o in outcomes])),
            "alternatives": [_alternative(a, visible) for a in found],
            **({"reoptimised": await self._optimised(snapshot, visible)} if spec.get("reoptimise") else {}),
            "chosen": _measures(together([o.after for o in moving if o.plan.clusters])),
        }
        return {**obj, "metadata": {}, "status": status}

    async def _optimised(self, snapshot: Snapshot, visible: Callable[[str], bool]) -> dict[str, Any]:
        """All workloads as they are, placed at once."""
        from metaos.scheduler.optimise import optimise

        everything = self._asked((), None)[1]
        if len(everything) * len(snapshot.clusters) > MOST_PAIRS:
            pairs = f"{len(everything)} workloads x {len(snapshot.clusters)} sites"
            kind, cause = scheme.PLACEMENT_REVIEW, Cause("FieldValueInvalid", "spec.reoptimise", f"{pairs} are too many at once")
            raise invalid(kind.group, kind.kind, "", [cause])
        found = await asyncio.to_thread(optimise, snapshot, everything, self._filters, self._scores)
        shown = [m for m in found.moves if visible(m.workload.ref.namespace)]
        return {
            "considered": found.considered,
            "before": round(found.before, 3),
            "after": round(found.after, 3),
            **({"gap": round(found.gap, 5)} if math.isfinite(found.gap) else {}),
            "movesLeftOut": len(found.moves) - len(shown[:OUTCOMES_KEPT]),
            "moves": [
                {
                    "kind": m.workload.ref.kind,
                    "namespace": m.workload.ref.namespace,
                    "name": m.workload.ref.name,
                    "from": sorted(m.workload.current),
                    "to": m.site,
                    "gain": round(m.gain, 3),
                }
                for m in shown[:OUTCOMES_KEPT]
            ],
        }

    def _asked(self, objects: Iterable[Obj], changes: Changes | None) -> tuple[Snapshot, list[WorkloadInfo], set[ObjectRef]]:
        """The world as it is, the workloads to decide anew (all of them without ``changes``), and those of them that the caller
        brought."""
        present = {ref(o): o for informer in self._workloads for o in informer.list() if placeable(o) and not finished(o)}
        brought: dict[ObjectRef, Obj] = {}
        rules: dict[str, dict[tuple[str, str], Obj]] = {}
        for found in objects:
            if (found.get("apiVersion"), found.get("kind")) in _KINDS and placeable(found):
                brought[ref(found)] = found
            elif found.get("kind") in (scheme.INTENT.kind, scheme.PLACEMENT_POLICY.kind):
                rules.setdefault(namespace(found), {})[str(found["kind"]), name(found)] = found
        usage = Usage(self._clusters.list)
        places: dict[ObjectRef, dict[str, int]] = {}
        for about, obj in present.items():
            places[about] = self._places(obj)
            each = workload.requests(workload.pod_spec(obj))
            usage.set(about, Share(each["cpu"], each["memory"], places[about]))
        everything = present | brought
        affected = [about for about in everything if changes is None or changes or about in brought or about.namespace in rules]
        # What is there is asked first, as it holds its room already; then what comes.
        affected.sort(key=lambda about: (about not in present, about))
        asked = []
        for about in affected:
            obj = everything[about]
            merged = self._rules(about.namespace, rules.get(about.namespace) or {})
            asked.append(self._facts.workload(obj, self._placement(about, obj), places.get(about) or {}, merged))
        return Snapshot(self._clock.now(), usage.sites(ObjectRef("", "", "", ""))), asked, set(brought)

    def _placement(self, about: ObjectRef, obj: Obj) -> Obj | None:
        found = self._placements.get(placement_name(about), about.namespace)
        of = ((found or {}).get("spec") or {}).get("workloadRef") or {}
        return found if not obj["metadata"].get("uid") or of.get("uid") == uid(obj) else None

    def _places(self, obj: Obj) -> dict[str, int]:
        return decided(self._placement(ref(obj), obj))

    def _rules(self, where: str, others: Mapping[tuple[str, str], Obj]) -> tuple[list[Obj], list[Obj]]:
        intents, policies = self._facts.rules(where)
        merged = {(str(o["kind"]), name(o)): o for o in (*intents, *policies)} | dict(others)
        ordered = [merged[key] for key in sorted(merged)]
        kinds = (scheme.INTENT.kind, scheme.PLACEMENT_POLICY.kind)
        return [o for o in ordered if o["kind"] == kinds[0]], [o for o in ordered if o["kind"] == kinds[1]]


def _measures(found: Measures) -> dict[str, Any]:
    """``cost`` in the sites' currency per hour, ``carbon`` in g/h, ``power`` in W, ``latency`` in ms; absent: not known."""
    values = {"cost": found.cost, "carbon": found.carbon, "power": found.power, "latency": found.latency}
    return {k: round(v, 6) for k, v in values.items() if v is not None}


def _clusters(places: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"name": site, "replicas": count} for site, count in sorted(places)]


def _outcome(found: Outcome) -> dict[str, Any]:
    about = found.workload.ref
    row: dict[str, Any] = {
        "kind": about.kind,
        "namespace": about.namespace,
        "name": about.name,
        "before": {"clusters": _clusters(found.workload.current.items()), **_measures(found.before)},
        "after": {"clusters": _clusters(found.plan.clusters), **_measures(found.after)},
        "reason": found.plan.reason,
        "complete": found.impossible is None,
        **placement_status(found.plan),
    }
    if found.impossible is not None:
        row["conflict"] = as_data(found.impossible)
    return row


def _alternative(found: Alternative, visible: Callable[[str], bool]) -> dict[str, Any]:
    return {
        **_measures(found.measures),
        "weights": dict(zip(("cost", "carbon", "latency"), found.mix, strict=True)),
        "workloads": [
            {"kind": about.kind, "namespace": about.namespace, "name": about.name, "clusters": _clusters(places)}
            for about, places in found.places
            if visible(about.namespace)
        ],
    }
