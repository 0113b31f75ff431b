"""What containers use of the machine: by cgroup where there are some, otherwise by process."""

from __future__ import annotations

from collections.abc import Mapping

from metaos.clock import Clock
from metaos.runtimes import process
from metaos.runtimes.cgroups import Cgroups
from metaos.runtimes.pods import Pod


def usage(pods: Mapping[str, Pod], cgroups: Cgroups, clock: Clock) -> dict[str, dict[str, Mapping[str, float]]]:
    """CPU is the mean since the last call, or since the start."""
    now, wall = clock.monotonic(), clock.now()
    totals: dict[tuple[str, str], tuple[float, float]] = {}
    walked: list[tuple[tuple[str, str], int]] = []
    for uid, pod in pods.items():
        for container in pod.containers.values():
            if container.end is not None or container.monitor is None:
                continue
            measured = cgroups.measure(uid, container.group)
            if measured is None:
                walked.append(((uid, container.name), container.monitor.pid))
            else:
                totals[uid, container.name] = measured.cpu, measured.memory
    if walked:
        for (key, _), members in zip(walked, process.trees([pid for _, pid in walked]).values(), strict=True):
            totals[key] = sum(each.cpu for each in members), sum(each.memory for each in members)
    result: dict[str, dict[str, Mapping[str, float]]] = {uid: {} for uid in pods}
    for (uid, name), (cpu, memory) in totals.items():
        container = pods[uid].containers[name]
        since, before = container.sample or (now - max(0.0, wall - container.start_time), 0.0)
        container.sample = now, cpu
        result[uid][name] = {"cpu": max(0.0, cpu - before) / (now - since) if now > since else 0.0, "memory": memory}
    return result
