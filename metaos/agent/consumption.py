"""Looking at what the pods of this site use, every few seconds: for the hub's metrics, and for the meter. It needs no hub."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metaos.agent.flows import Counts
from metaos.agent.inventory import Machine
from metaos.agent.meter import Look, Meter
from metaos.clock import Clock
from metaos.plugins.points import ContainerUsage, Runtime
from metaos.resources import devices, workload
from metaos.resources.meta import Obj, name, namespace, uid

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
_OVER = ("Succeeded", "Failed")


class Consumption:
    """``pods``: all of the site, with their status."""

    def __init__(
        self,
        runtime: Runtime,
        pods: Callable[[], Sequence[Obj]],
        clock: Clock,
        machine: Machine,
        counts: Counts,
        meter: Meter | None,
    ) -> None:
        self._runtime, self._pods, self._clock = runtime, pods, clock
        self._machine, self._counts, self._meter = machine, counts, meter
        #: Pod uid → container → cores in use (mean since the look before, or since its start) and bytes of memory.
        self.rates: dict[str, dict[str, Mapping[str, float]]] = {}
        #: When (monotonic) that was looked at, ``None``: never; and for how long.
        self.time: float | None = None
        self.window = 0.0
        #: Container start → CPU seconds, at the last look.
        self._cpu: dict[str, float] = {}
        self._busy: float | None = None
        #: What pods were at the last look: one that has gone meanwhile is still told of.
        self._known: dict[str, Look] = {}
        self._failed = False
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Never returns. Looks at the end of each of the meter's periods, too."""
        while True:
            now, period = self._clock.now(), self._meter.period_seconds if self._meter else LOOK_SECONDS
            await self._clock.sleep(min(LOOK_SECONDS, period - now % period))
            ended = now // period != self._clock.now() // period
            if ended or self.time is None or self._clock.monotonic() - self.time >= LOOK_SECONDS / 2:
                try:
                    await self.look()
                except OSError:
                    log.exception("what pods use cannot be measured; it is tried again in %g s", LOOK_SECONDS)

    async def look(self) -> None:
        async with self._lock:
            used = await self._runtime.usage()
            pods = {uid(pod): pod for pod in self._pods()}
            now, wall = self._clock.monotonic(), self._clock.now()
            self.window = 0.0 if self.time is None else now - self.time
            self.rates = {
                pod: {each.name: self._rate(each, wall) for each in starts if each.running}
                for pod, starts in used.items()
                if pod in pods and (pods[pod].get("status") or {}).get("phase") not in _OVER
            }
            starts = {each.id: each.cpu_seconds for found in used.values() for each in found}
            spent = sum(max(0.0, cpu - self._cpu.get(start, 0.0)) for start, cpu in starts.items())
            first, self.time, self._cpu = self.time is None, now, starts
            if self._meter is not None:
                system = self._system(self._meter.whole, 0.0 if first else spent)
                self._tell(self._meter, wall, pods, used, system)

    def _rate(self, found: ContainerUsage, now: float) -> Mapping[str, float]:
        before = self._cpu.get(found.id)
        seconds = self.window if before is not None else now - found.start_time
        cpu = max(0.0, found.cpu_seconds - (before or 0.0)) / seconds if seconds > 0 else 0.0
        return {"cpu": cpu, "memory": found.memory}

    def _system(self, whole: bool, pods: float) -> float:
        """CPU seconds since the last look that no pod used: of the machine, or, where the site is a part of it, of the agent."""
        busy = self._machine.busy(whole)
        before, self._busy = self._busy, busy
        if before is None:
            return 0.0
        return max(0.0, busy - before - (pods if whole else 0.0))

    def _tell(
        self, meter: Meter, now: float, pods: Mapping[str, Obj], used: Mapping[str, Sequence[ContainerUsage]], system: float
    ) -> None:
        looks = {}
        for pod_uid, starts in used.items():
            known = self._known.get(pod_uid) or (_identified(pods[pod_uid]) if pod_uid in pods else None)
            if known is not None:
                looks[pod_uid] = self._look(known, starts)
        self._counts.left.clear()
        self._known = {pod: look for pod, look in looks.items() if pod in pods}
        try:
            meter.look(now, looks.values(), system)
            self._failed = False
        except sqlite3.Error as error:
            if not self._failed:
                log.error("what pods used cannot be written down (%s): the period goes on until it can be", error)
            self._failed = True

    def _look(self, known: Look, starts: Sequence[ContainerUsage]) -> Look:
        left = self._counts.left
        return Look(
            known.uid,
            known.namespace,
            known.name,
            known.kind,
            known.workload,
            {each.id: each.cpu_seconds for each in starts},
            sum(each.memory for each in starts),
            known.requested_millis,
            known.requested_mib,
            sent=left.get(known.uid, 0) + left.get((known.namespace, known.name), 0),
            accelerators=known.accelerators,
            running=any(each.running for each in starts),
        )


def _identified(pod: Obj) -> Look:
    owner: dict[str, Any] = next(iter(pod["metadata"].get("ownerReferences") or ()), {})
    asked = workload.requests(pod.get("spec") or {})
    count, each = devices.share(workload.device_requests(pod.get("spec") or {}))
    return Look(
        uid(pod),
        namespace(pod),
        name(pod),
        str(owner.get("kind") or "Pod"),
        str(owner.get("name") or name(pod)),
        {},
        0.0,
        asked.get("cpu", 0),
        asked.get("memory", 0) // 2**20,
        accelerators=count * each,
    )
