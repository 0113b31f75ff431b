"""What containers use of the machine: by cgroup where there are some, otherwise by process."""

from __future__ import annotations

from collections.abc import Mapping

from metaos.plugins.points import ContainerUsage
from metaos.runtimes import process
from metaos.runtimes.cgroups import Cgroups
from metaos.runtimes.pods import Container, Pod


def usage(pods: Mapping[str, Pod], cgroups: Cgroups) -> dict[str, list[ContainerUsage]]:
    """Of every start that runs, and of those that have ended and are still known."""
    memory: dict[tuple[str, str], float] = {}
    walked: list[tuple[Container, tuple[str, str]]] = []
    for uid, pod in pods.items():
        for container in pod.containers.values():
            if container.end is not None or container.monitor is None:
                continue
            measured = cgroups.measure(uid, container.group)
            if measured is None:
                walked.append((container, (uid, container.name)))
            else:
                container.cpu, memory[uid, container.name] = measured.cpu, measured.memory
    if walked:
        roots = [container.monitor.pid for container, _ in walked if container.monitor is not None]
        for (container, key), members in zip(walked, process.trees(roots).values(), strict=True):
            # Of what was reaped nothing is lost, but a process that reaps nobody leaves with what its children used.
            container.cpu = max(container.cpu, sum(each.cpu for each in members))
            memory[key] = sum(each.memory for each in members)
    return {uid: last_known(uid, pod, memory) for uid, pod in pods.items()}


def last_known(uid: str, pod: Pod, memory: Mapping[tuple[str, str], float]) -> list[ContainerUsage]:
    """As it was measured last."""
    found = []
    for container in pod.containers.values():
        if container.before is not None:
            found.append(container.before)
        found.append(container.usage(uid, memory.get((uid, container.name), 0.0)))
    return found
