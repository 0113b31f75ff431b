"""Probes: startup, readiness and liveness of one container, as a kubelet does them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from metaos.agent.calls import Caller
from metaos.agent.podstatus import Live
from metaos.clock import Clock

#: Until a container is ready for the first time it is asked so often: a kubelet asks whenever the pod changes, too.
QUICK_SECONDS, QUICK_FAILURES = 0.1, 50


def asked(container: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """A probe that says what to ask."""
    probe: Mapping[str, Any] | None = container.get(kind)
    return probe if probe and any(probe.get(way) for way in ("exec", "httpGet", "tcpSocket", "grpc")) else None


class Probes:
    """Watches one running container: sets ``live.ready`` and ``live.started``, calls ``changed`` when they change, and
    ``fail`` (with the reason and the probe) when startup or liveness has failed for good."""

    def __init__(
        self,
        caller: Caller,
        clock: Clock,
        container: Mapping[str, Any],
        live: Live,
        changed: Callable[[], None],
        fail: Callable[[str, Mapping[str, Any]], Awaitable[None]],
        unhealthy: Callable[[str], None],
    ) -> None:
        self._caller, self._clock = caller, clock
        self._container, self._live = container, live
        self._changed, self._fail, self._unhealthy = changed, fail, unhealthy

    async def run(self) -> None:
        """Until cancelled, or until the container is to be restarted."""
        startup = asked(self._container, "startupProbe")
        if startup and not self._live.started and not await self._startup(startup):
            return
        self._live.started = True
        readiness, liveness = asked(self._container, "readinessProbe"), asked(self._container, "livenessProbe")
        if not readiness:
            self._live.ready = True
        self._changed()
        parts = []
        if readiness:
            parts.append(self._readiness(readiness))
        if liveness:
            parts.append(self._liveness(liveness))
        if parts:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(part)

    async def _startup(self, probe: Mapping[str, Any]) -> bool:
        failures = 0
        await self._delay(probe)
        while True:
            problem = await self._attempt(probe)
            if problem is None:
                return True
            failures += 1
            self._unhealthy(f"Startup probe failed: {problem}")
            if failures >= int(probe.get("failureThreshold") or 3):
                await self._fail(f"Container {self._container['name']} failed startup probe, will be restarted", probe)
                return False
            await self._clock.sleep(self._period(probe))

    async def _readiness(self, probe: Mapping[str, Any]) -> None:
        failures = successes = 0
        was_ready = self._live.ready
        await self._delay(probe)
        while True:
            problem = await self._attempt(probe)
            if problem is None:
                failures, successes = 0, successes + 1
                if not self._live.ready and successes >= int(probe.get("successThreshold") or 1):
                    self._live.ready = True
                    self._changed()
            else:
                failures, successes = failures + 1, 0
                if self._live.ready and failures >= int(probe.get("failureThreshold") or 3):
                    self._live.ready = False
                    self._changed()
                if failures <= 3 or failures % 60 == 0:
                    self._unhealthy(f"Readiness probe failed: {problem}")
            was_ready |= self._live.ready
            quick = not was_ready and not successes and failures <= QUICK_FAILURES
            await self._clock.sleep(min(QUICK_SECONDS, self._period(probe)) if quick else self._period(probe))

    async def _liveness(self, probe: Mapping[str, Any]) -> None:
        failures = 0
        await self._delay(probe)
        while True:
            problem = await self._attempt(probe)
            failures = 0 if problem is None else failures + 1
            if problem is not None:
                self._unhealthy(f"Liveness probe failed: {problem}")
                if failures >= int(probe.get("failureThreshold") or 3):
                    await self._fail(f"Container {self._container['name']} failed liveness probe, will be restarted", probe)
                    return
            await self._clock.sleep(self._period(probe))

    async def _delay(self, probe: Mapping[str, Any]) -> None:
        if probe.get("initialDelaySeconds"):
            await self._clock.sleep(float(probe["initialDelaySeconds"]))

    @staticmethod
    def _period(probe: Mapping[str, Any]) -> float:
        return float(probe.get("periodSeconds") or 10)

    async def _attempt(self, probe: Mapping[str, Any]) -> str | None:
        """Why one attempt failed, or nothing."""
        return await self._caller.call(probe, float(probe.get("timeoutSeconds") or 1))
