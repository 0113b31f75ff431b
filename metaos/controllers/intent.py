"""Intent: says whether each intent holds, by which measurement, since when, and what could be had instead."""

from __future__ import annotations

from collections.abc import Iterable

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.facts import decided, placeable, placement_name
from metaos.controllers.recorder import Recorder
from metaos.controllers.settings import Settings
from metaos.network.intents import evaluate
from metaos.network.traffic import judge_traffic
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.meta import Obj, ObjectRef, deleting, name, namespace, ref
from metaos.resources.snapshot import ClusterInfo, WorkloadInfo, cluster_info, concerns, workload_info

NAME = "intent"


class IntentReconciler:
    """See the module."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._recorder = Recorder(client, clock, "intent-controller")
        self._intents = manager.informer(scheme.INTENT)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._placements = manager.informer(scheme.PLACEMENT)
        self._workloads = [manager.informer(k) for k in scheme.WORKLOADS]

    async def reconcile(self, about: ObjectRef) -> Result:
        intent = self._intents.get(about.name, about.namespace)
        if intent is None or deleting(intent):
            return DONE
        clusters = {name(c): cluster_info(c) for c in sorted(self._clusters.list(), key=name)}
        found: list[tuple[WorkloadInfo, list[ClusterInfo]]] = []
        places: dict[ObjectRef, list[ClusterInfo]] = {}
        for informer in self._workloads:
            for obj in sorted(informer.list(about.namespace), key=name):
                if placeable(obj):
                    placement = self._placements.get(placement_name(ref(obj)), about.namespace)
                    places[ref(obj)] = [clusters[s] for s in decided(placement) if s in clusters]
                    if concerns(intent, obj):
                        info = workload_info(
                            obj, current=decided(placement), intents=sorted(self._intents.list(about.namespace), key=name)
                        )
                        found.append((info, places[ref(obj)]))
        before = intent.get("status") or {}
        edges = judge_traffic(intent, places, clusters)
        status = evaluate(intent, found, list(clusters.values()), self._clock.now(), edges)
        if status == before:
            return DONE
        await self._client.update(intent | {"status": status}, subresource="status")
        if status["fulfilment"] != before.get("fulfilment"):
            good = status["fulfilment"] == "Fulfilled"
            await self._recorder.event(intent, str(status["fulfilment"]), str(status["message"]), warning=not good)
        return DONE


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for every intent, and for those that a changed placement or site may concern."""
    intents = manager.informer(scheme.INTENT)

    def of_namespace(obj: Obj) -> Iterable[ObjectRef]:
        return [ref(i) for i in intents.list(namespace(obj))]

    manager.add(
        IntentReconciler(manager, client, clock),
        [
            (scheme.INTENT, lambda obj: [ref(obj)]),
            (scheme.PLACEMENT, of_namespace),
            *((k, of_namespace) for k in scheme.WORKLOADS[:-1]),
        ],
    )

    def on_cluster(old: Obj | None, new: Obj | None) -> None:
        if old is not None and new is not None and cluster_info(old) == cluster_info(new):
            return
        for intent in intents.list():
            manager.enqueue(NAME, ref(intent))

    manager.informer(scheme.CLUSTER).on_change(on_cluster)
