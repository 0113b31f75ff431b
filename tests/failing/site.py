"""Stand-ins for agents: simple and deterministic, at the level of the API. No process runs; a pod is a record.

They keep to the agreements of the real agent: a site that is cut off goes on with what it had, stops what must not run twice
once its lease could not be renewed for the agreed time, and takes it up again only when the hub, reached again, lists it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from metaos.clock import Clock
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    CLUSTER_LABEL,
    Obj,
    ObjectRef,
    cluster_namespace,
    format_time,
    generation,
    name,
    namespace,
    ref,
    uid,
)
from tests.failing.hub import Line

HEARTBEAT_SECONDS = 1.0
#: How often it looks at its Works and pods, in heartbeats.
TICK_SHARE = 0.5
START_SECONDS, STOP_SECONDS = 1.0, 1.0
COUNTED = ("Deployment", "StatefulSet")


@dataclass(slots=True)
class Pod:
    """One running copy."""

    name: str
    owner: ObjectRef
    owner_uid: str
    labels: dict[str, str]
    ready_time: float
    stop_time: float | None = None

    def ready(self, now: float) -> bool:
        return self.stop_time is None and now >= self.ready_time


class Site:
    """One site and its stand-in. ``pods`` is the truth, whatever the hub believes."""

    def __init__(self, site: str, clock: Clock, line: Line, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.name, self._clock, self.line = site, clock, line
        self._heartbeat = heartbeat_seconds
        self.works: dict[str, Obj] = {}
        self.pods: dict[tuple[str, str], Pod] = {}
        self.renewed = float("-inf")
        self._fenced: set[str] = set()
        self._next_beat = float("-inf")
        self._mirrors: dict[tuple[str, str], tuple[str, bool]] = {}
        self._told: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def copies(self, workload: str) -> list[Pod]:
        """What truly runs of a workload, also what is stopping."""
        return [p for p in self.pods.values() if p.owner.name == workload]

    async def _run(self) -> None:
        while True:
            try:
                await self._talk()
            except ApiError:
                self._mirrors.clear()
                self._told.clear()
            self._live()
            try:
                if self._clock.monotonic() - self.renewed < self._heartbeat * 2:
                    await self._report()
            except ApiError:
                self._mirrors.clear()
                self._told.clear()
            await self._clock.sleep(self._heartbeat * TICK_SHARE)

    # -- the hub ---------------------------------------------------------------------------------------------

    async def _talk(self) -> None:
        started = self._clock.monotonic()
        where = cluster_namespace(self.name)
        if started >= self._next_beat:
            spec = {"holderIdentity": self.name, "renewTime": format_time(self._clock.now(), micro=True)}
            try:
                await self.line.call("patch", scheme.LEASE, self.name, where, {"spec": spec})
            except ApiError as error:
                if error.code != 404:
                    raise
                await self.line.call("create", {**scheme.LEASE.empty(self.name, where), "spec": spec})
            self.renewed, self._next_beat = started, started + self._heartbeat
        listed = (await self.line.call("list", scheme.WORK, where)).items
        self.works = {name(w): w for w in listed}
        if self._fenced and self._clock.monotonic() - self.renewed < self._heartbeat * 2:
            self._fenced.clear()

    async def _report(self) -> None:
        mine = await self.line.call("list", scheme.POD, fields=f"spec.nodeName={self.name}")
        shown = {(namespace(p), name(p)): p for p in mine.items}
        now = self._clock.monotonic()
        for key, pod in sorted(self.pods.items()):
            if key not in shown:
                created = await self._mirror(key, pod)
                if created is None:
                    continue
                shown[key] = created
            ready = "True" if pod.ready(now) else "False"
            status = {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
            found = (shown[key].get("status") or {}).get("conditions") or []
            if [c["status"] for c in found if c["type"] == "Ready"] != [ready]:
                await self.line.call("patch", scheme.POD, key[1], key[0], {"status": status}, subresource="status")
        for key, mirror in sorted(shown.items()):
            if key not in self.pods:
                await self.line.call("delete", scheme.POD, key[1], key[0], uid=uid(mirror), grace_period_seconds=0)
        for key2, work in sorted(self.works.items()):
            status2 = self._status(work)
            if status2 != work.get("status"):
                await self.line.call(
                    "patch", scheme.WORK, key2, cluster_namespace(self.name), {"status": status2}, subresource="status"
                )

    async def _mirror(self, key: tuple[str, str], pod: Pod) -> Obj | None:
        owner = {
            "apiVersion": f"{pod.owner.group}/v1",
            "kind": pod.owner.kind,
            "name": pod.owner.name,
            "uid": pod.owner_uid,
            "controller": True,
        }
        metadata = {
            "name": key[1],
            "namespace": key[0],
            "labels": pod.labels | {CLUSTER_LABEL: self.name},
            "ownerReferences": [owner],
        }
        spec = {"nodeName": self.name, "containers": [{"name": "c", "image": "python:3"}]}
        try:
            return dict(await self.line.call("create", {**scheme.POD.empty(key[1], key[0]), "metadata": metadata, "spec": spec}))
        except ApiError as error:
            if error.code in (403, 409):
                # The Work has gone meanwhile, or another site's mirror of that name is not gone yet.
                return None
            raise

    def _status(self, work: Obj) -> Obj:
        entries = []
        for manifest in work["spec"]["manifests"]:
            entry: Obj = {
                "apiVersion": manifest["apiVersion"],
                "kind": manifest["kind"],
                "namespace": namespace(manifest),
                "name": name(manifest),
                "uid": uid(manifest),
                "observedGeneration": generation(manifest),
            }
            if manifest["kind"] in COUNTED:
                now = self._clock.monotonic()
                own = [p for p in self.pods.values() if p.owner_uid == uid(manifest)]
                ready = sum(p.ready(now) for p in own)
                counts = {"replicas": len(own), "readyReplicas": ready, "availableReplicas": ready, "updatedReplicas": ready}
                entry["status"] = {k: v for k, v in counts.items() if v or k == "replicas"} | {
                    "observedGeneration": generation(manifest)
                }
            entries.append(entry)
        return {"observedGeneration": generation(work), "manifests": entries}

    # -- the pods --------------------------------------------------------------------------------------------

    def _live(self) -> None:
        now = self._clock.monotonic()
        wanted: dict[tuple[str, str], tuple[Obj, int]] = {}
        for key, work in self.works.items():
            fence = (work["spec"].get("fencing") or {}).get("afterSeconds")
            if fence and now - self.renewed >= fence:
                self._fenced.add(key)
            if key in self._fenced:
                continue
            manifest = work["spec"]["manifests"][0]
            if manifest["kind"] in COUNTED:
                for number in range(manifest["spec"]["replicas"]):
                    infix = "" if manifest["kind"] == "StatefulSet" else f"{self.name}-"
                    wanted[(namespace(manifest), f"{name(manifest)}-{infix}{number}")] = manifest, number
        for pod_key, (manifest, _) in sorted(wanted.items()):
            if pod_key not in self.pods:
                template = manifest["spec"]["template"]["metadata"].get("labels") or {}
                self.pods[pod_key] = Pod(pod_key[1], ref(manifest), uid(manifest), template, now + START_SECONDS)
        for pod_key, pod in list(self.pods.items()):
            if pod.stop_time is not None:
                if now >= pod.stop_time:
                    del self.pods[pod_key]
            elif pod_key not in wanted or uid(wanted[pod_key][0]) != pod.owner_uid:
                pod.stop_time = now + STOP_SECONDS
