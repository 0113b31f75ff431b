"""How containers are ended: preStop hooks, then main containers together, then sidecars in the reverse of their order.

Source: ``killContainer`` and ``termination_order.go`` of the kubelet. All of it shares one grace period.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from metaos.agent.calls import Caller
from metaos.agent.podstatus import is_sidecar
from metaos.clock import Clock
from metaos.plugins.points import Runtime

#: A container gets so long after its signal, however long hooks and others took, unless it was to go at once.
MINIMUM_SECONDS = 2.0


async def stop_one(
    runtime: Runtime, clock: Clock, caller: Caller, pod_uid: str, container: Mapping[str, Any], grace: float
) -> str | None:
    """One container that nothing waits for; why its hook failed, or nothing."""
    began = clock.monotonic()
    problem = await _hook(caller, container, grace)
    await _stop(runtime, pod_uid, container, _left(grace, clock.monotonic() - began))
    return problem


def _left(grace: float, passed: float) -> float:
    """Without a grace period nothing is waited for at all."""
    return max(MINIMUM_SECONDS, grace - passed) if grace > 0 else 0.0


async def _hook(caller: Caller, container: Mapping[str, Any], grace: float) -> str | None:
    hook = (container.get("lifecycle") or {}).get("preStop")
    return await caller.call(hook, grace) if hook and grace > 0 else None


async def _stop(runtime: Runtime, pod_uid: str, container: Mapping[str, Any], grace: float) -> None:
    try:
        await runtime.stop_container(pod_uid, str(container["name"]), grace)
    except LookupError:
        return  # It went by itself.


async def stop_in_order(
    runtime: Runtime,
    clock: Clock,
    pod_uid: str,
    spec: Mapping[str, Any],
    running: set[str],
    grace: float,
    caller: Callable[[Mapping[str, Any]], Caller],
    complain: Callable[[str], None],
) -> None:
    """``running``: the containers to end. Returns when all have."""
    began = clock.monotonic()
    inits = [c for c in spec.get("initContainers") or () if c["name"] in running]
    mains = [c for c in spec.get("containers") or () if c["name"] in running]
    sidecars = [c for c in inits if is_sidecar(c)]
    plain = [c for c in inits if not is_sidecar(c)]

    async def end(container: Mapping[str, Any], after: list[asyncio.Event], done: asyncio.Event) -> None:
        try:
            problem = await _hook(caller(container), container, grace)
            if problem:
                complain(problem)
            for other in after:
                await other.wait()
            await _stop(runtime, pod_uid, container, _left(grace, clock.monotonic() - began))
        finally:
            done.set()

    ended: list[asyncio.Event] = []
    async with asyncio.TaskGroup() as group:
        for container in (*plain, *mains):
            ended.append(asyncio.Event())
            group.create_task(end(container, [], ended[-1]))
        for container in reversed(sidecars):
            before = list(ended)
            ended.append(asyncio.Event())
            group.create_task(end(container, before, ended[-1]))
