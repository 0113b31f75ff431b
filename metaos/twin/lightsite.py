"""A site for worlds with many: the agent's real contact, desired state, heartbeat, mirrors and reports; its pods are records.

What the real supervisor does that this does not: rollouts step by step, restarts, probes, volumes, Service addresses, CronJobs,
events of pods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent.contact import Contact
from metaos.agent.deadlines import Deadlines
from metaos.agent.inventory import capacity
from metaos.agent.mirror import PodMirrors
from metaos.agent.presence import Presence, Removed
from metaos.agent.report import WorkReports, local
from metaos.agent.sync import WorkFiles, Works
from metaos.agent.template import volumes
from metaos.agent.turns import Turns
from metaos.resources import workload
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    Obj,
    ObjectRef,
    cluster_namespace,
    format_time,
    generation,
    name,
    namespace,
    owner_reference,
    ref,
    uid,
)
from metaos.resources.scheme import CLUSTER, WORKLOADS
from metaos.twin.disk import SiteDisk
from metaos.twin.runtime import DEFAULT_MILLI, duration
from metaos.twin.site import Copy, Ground, Machine, held
from metaos.twin.watchdog import SimulatedWatchdog

_KINDS = {kind.kind for kind in WORKLOADS}


class Kept(WorkFiles):
    """The site's disk, in memory."""

    def __init__(self, disk: SiteDisk, changed: Callable[[], None]) -> None:
        self._works: dict[str, Obj] = {}
        self._disk, self._changed = disk, changed

    def load(self) -> list[Obj]:
        return [self._works[key] for key in sorted(self._works)]

    def save(self, work: Obj) -> None:
        self._disk.write()
        self._works[name(work)] = work
        self._changed()

    def remove(self, work: Obj) -> None:
        self._disk.write()
        self._works.pop(name(work), None)


class LightPod:
    """One running copy."""

    __slots__ = ("due", "milli", "obj", "over", "owner", "owner_uid", "ready", "stopping")

    def __init__(self, obj: Obj, owner: ObjectRef, owner_uid: str) -> None:
        self.obj, self.owner, self.owner_uid = obj, owner, owner_uid
        self.ready = self.stopping = False
        self.over: str = ""
        self.milli = float(workload.requests(obj["spec"])["cpu"] or DEFAULT_MILLI)
        self.due: asyncio.TimerHandle | None = None


class LightSite:
    """See the module."""

    fidelity = "light"

    def __init__(self, obj: Obj, ground: Ground) -> None:
        self.name, self.obj, self._ground = name(obj), obj, ground
        self.clock, self.line = ground.clock, ground.line(name(obj))
        self.line.bookmarks = False
        self._watchdog = SimulatedWatchdog(self._killed)
        self.disk = ground.disk(self.name)
        self._files = Kept(self.disk, lambda: ground.changed(self.name))
        self.pods: dict[tuple[str, str], LightPod] = {}
        #: Jobs that have ended here, by uid.
        self._ended: dict[str, str] = {}
        self._lie: dict[str, Any] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._works: Works | None = None
        self._tell: Callable[[], None] = lambda: None
        self._starts = 0
        self._number = 0

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._starts += 1
        random = Random(f"{self._ground.random.random()} {self._starts}")  # noqa: S311
        contact = Contact(self.clock, random, self._watchdog.renewed())
        works = self._works = Works(self.line, contact, self.clock, self._files, self.name)
        mirrors = PodMirrors(self.line, contact, self.clock, random, self.name, self._delete)

        def show(work: Obj) -> Awaitable[None]:
            return mirrors.show(work, [pod.obj for pod in self.pods.values()])

        judge, where = local(self._status_of), cluster_namespace(self.name)
        reports = WorkReports(self.line, contact, self.clock, random, works, judge, show, where)
        presence = Presence(self.line, contact, self.clock, self.name, self._ground.timing.heartbeat, self._status)
        status: Turns[str] = Turns(contact, self.clock, random, lambda _: self._report(), "Cluster", 1)
        status.add(self.name, 0.0)

        watchdog: Any = self._watchdog
        deadlines = Deadlines(watchdog, contact, works, lambda: [pod.obj for pod in self.pods.values() if not pod.over])

        def tell() -> None:
            deadlines.refresh()
            mirrors.refresh([pod.obj for pod in self.pods.values()])
            reports.refresh()

        self._tell = tell
        works.on_change(self._live)
        self._live()
        parts = (works.follower.run(), works.keep_fences(), reports.run(), mirrors.follower.run(), mirrors.run(), status.run())
        self._tasks = [asyncio.create_task(part) for part in (*parts, deadlines.run(), self._beat(presence))]

    async def _beat(self, presence: Presence) -> None:
        # Spread, so that a thousand sites do not beat in the same moment.
        await self.clock.sleep(self._ground.timing.heartbeat * self._ground.random.random() / 2)
        try:
            await presence.keep_lease()
        except Removed:
            assert self._works is not None
            self._works.forget_all()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks, self._tell = [], lambda: None

    def power_off(self) -> None:
        for pod in self.pods.values():
            if pod.due is not None:
                pod.due.cancel()
        self.pods.clear()
        self._watchdog.power_off()
        self._ground.changed(self.name)

    async def _report(self) -> None:
        status = await self._status()
        await self.line.patch(CLUSTER, self.name, "", {"status": status}, subresource="status", field_manager="nemo-agent")

    async def _status(self) -> dict[str, Any]:
        machine = Machine(self.obj)
        has, free = capacity(self.obj, machine.measure())
        found = {"capacity": has.quantities(), "allocatable": free.quantities(), "nodeInfo": machine.node_info("none", "")}
        return {**found, **(self._lie or {})}

    def lie(self, status: dict[str, Any] | None) -> None:
        self._lie = status
        self._tasks.append(asyncio.create_task(self._report_lie()))

    async def _report_lie(self) -> None:
        while True:
            try:
                await self._report()
                return
            except ApiError:
                await self.clock.sleep(self._ground.timing.heartbeat)

    # -- what runs -------------------------------------------------------------------------------------------

    def copies(self) -> list[Copy]:
        return [
            Copy(self.name, pod.owner, pod.owner_uid, key[0], key[1], pod.ready and not pod.stopping)
            for key, pod in self.pods.items()
            if not pod.over
        ]

    def holds(self) -> list[ObjectRef]:
        return held(self._files.load())

    def busy_milli(self) -> float:
        return sum(pod.milli for pod in self.pods.values() if not pod.over) * self._ground.timing.load

    def _live(self) -> None:
        """From what is desired to what runs."""
        assert self._works is not None
        wanted: dict[tuple[str, str], tuple[Obj, int]] = {}
        for obj in self._works.desired():
            if obj["kind"] in _KINDS and obj["kind"] != "CronJob" and uid(obj) not in self._ended:
                for number in range(_copies(obj)):
                    wanted[namespace(obj), self._pod_name(obj, number)] = obj, number
        for key, pod in list(self.pods.items()):
            if key not in wanted or uid(wanted[key][0]) != pod.owner_uid:
                if pod.over:
                    if pod.owner_uid not in self._ended or not any(uid(o) == pod.owner_uid for o in self._works.desired()):
                        del self.pods[key]
                else:
                    self._stop(key, pod)
        for key, (obj, _) in wanted.items():
            if key not in self.pods:
                self._begin(key, obj)
        self._changed()

    def _pod_name(self, obj: Obj, number: int) -> str:
        if obj["kind"] == "Pod":
            return name(obj)
        infix = "" if obj["kind"] == "StatefulSet" else f"{self.name}-"
        return f"{name(obj)}-{infix}{number}"

    def _begin(self, key: tuple[str, str], obj: Obj) -> None:
        self._number += 1
        template = (obj.get("spec") or {}).get("template") or {}
        metadata: dict[str, Any] = {"name": key[1], "namespace": key[0], "uid": f"{self.name}-{self._number}"}
        if obj["kind"] == "Pod":
            metadata["uid"] = uid(obj)
            found: Obj = {**obj, "metadata": {**obj["metadata"]}}
        else:
            metadata |= {
                "labels": dict((template.get("metadata") or {}).get("labels") or {}),
                "ownerReferences": [owner_reference(obj)],
            }
            spec = template.get("spec") or {}
            if obj["kind"] == "StatefulSet":
                spec = {**spec, "volumes": volumes(obj, spec, key[1])}
            found = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        found["status"] = {"phase": "Pending"}
        pod = self.pods[key] = LightPod(found, ref(obj), uid(obj))
        pod.due = asyncio.get_running_loop().call_later(self.clock.held + self._ground.timing.pod_start, self._is_ready, key, pod)

    def _is_ready(self, key: tuple[str, str], pod: LightPod) -> None:
        pod.ready = True
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": format_time(self.clock.now())}
        pod.obj = {**pod.obj, "status": {"phase": "Running", "conditions": [ready]}}
        spec = pod.obj["spec"]["containers"][0]
        ends = duration((*(spec.get("command") or ()), *(spec.get("args") or ()))) if pod.owner.kind in ("Job", "Pod") else None
        pod.due = asyncio.get_running_loop().call_later(ends[0], self._over, key, pod, ends[1]) if ends else None
        self._changed()

    def _over(self, key: tuple[str, str], pod: LightPod, code: int) -> None:
        pod.over, pod.ready = ("Succeeded" if code == 0 else "Failed"), False
        pod.obj = {**pod.obj, "status": {"phase": pod.over}}
        if all(p.over for p in self.pods.values() if p.owner_uid == pod.owner_uid):
            self._ended[pod.owner_uid] = pod.over
        self._changed()

    def _stop(self, key: tuple[str, str], pod: LightPod) -> None:
        if pod.stopping:
            return
        if pod.due is not None:
            pod.due.cancel()
        pod.stopping = True
        pod.due = asyncio.get_running_loop().call_later(self._ground.timing.pod_stop, self._gone, key, pod)

    def _gone(self, key: tuple[str, str], pod: LightPod) -> None:
        if self.pods.get(key) is pod:
            del self.pods[key]
        if self._tasks:
            self._live()  # something else may have been waiting for its name
        else:
            self._changed()

    def _killed(self, pod_uid: str) -> None:
        for key, pod in list(self.pods.items()):
            if uid(pod.obj) == pod_uid and not pod.over:
                if pod.due is not None:
                    pod.due.cancel()
                self._gone(key, pod)

    async def _delete(self, where: str, pod: str, grace_seconds: float | None, evicted: bool) -> None:
        found = self.pods.get((where, pod))
        if found is not None:
            self._stop((where, pod), found)

    def _changed(self) -> None:
        self._tell()
        self._ground.changed(self.name)

    def _status_of(self, about: ObjectRef) -> Obj | None:
        if about.kind not in _KINDS:
            return {}
        assert self._works is not None
        obj = next((o for o in self._works.desired() if ref(o) == about), None)
        if obj is None:
            return None
        own = [pod for pod in self.pods.values() if pod.owner_uid == uid(obj)]
        ready = sum(pod.ready and not pod.stopping for pod in own)
        if about.kind == "Job":
            return self._job_status(obj, own, ready)
        if about.kind == "Pod":
            return own[0].obj["status"] if own else None
        seen = {"observedGeneration": generation(obj)}
        if about.kind == "DaemonSet":
            return (
                seen
                | {"desiredNumberScheduled": 1, "currentNumberScheduled": len(own), "numberReady": ready}
                | {
                    "numberAvailable": ready,
                    "updatedNumberScheduled": len(own),
                    "numberMisscheduled": 0,
                }
            )
        counts = {"replicas": len(own), "readyReplicas": ready, "availableReplicas": ready, "updatedReplicas": len(own)}
        return seen | {key: count for key, count in counts.items() if count or key == "replicas"}

    def _job_status(self, obj: Obj, own: list[LightPod], ready: int) -> Obj:
        ended = self._ended.get(uid(obj))
        status: Obj = {"active": sum(not pod.over for pod in own), "ready": ready}
        done = sum(pod.over == "Succeeded" for pod in own)
        if done:
            status["succeeded"] = done
        if ended:
            kind = "Complete" if ended == "Succeeded" else "Failed"
            status["conditions"] = [{"type": kind, "status": "True"}]
        return status


def _copies(obj: Obj) -> int:
    kind, spec = obj["kind"], obj.get("spec") or {}
    if kind in ("Pod", "DaemonSet"):
        return 1
    if kind == "Job":
        return 0 if spec.get("suspend") else int(spec.get("parallelism", 1) or 0)
    return int(spec.get("replicas", 1))
