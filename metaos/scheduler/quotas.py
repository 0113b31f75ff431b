"""Room in a namespace of one site, where the site's owner has set a quota for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from metaos.resources import quantity
from metaos.resources.snapshot import ClusterInfo, Quota, WorkloadInfo

#: More replicas than any site has room for.
MANY = 2**31


def room(workload: WorkloadInfo, cluster: ClusterInfo) -> int:
    """How many replicas the namespace's quota lets in beside what is decided for others there."""
    quota = cluster.quotas.get(workload.ref.namespace)
    if quota is None:
        return MANY
    fits = MANY if quota.pods is None else max(0, quota.pods)
    for asked, usual, left, most in _resources(workload, quota):
        each = asked or usual
        if most is not None and each > most:
            return 0
        if left is not None:
            # Where a resource has an end, every pod has to say how much of it it asks for.
            fits = min(fits, max(0, left) // each if each else 0)
    return fits


def reason(workload: WorkloadInfo, cluster: ClusterInfo) -> str:
    """Why not one replica is let in; empty where one is."""
    quota, where = cluster.quotas.get(workload.ref.namespace), workload.ref.namespace
    if quota is None or room(workload, cluster):
        return ""
    if quota.pods is not None and quota.pods < 1:
        return f"the site's quota for namespace {where} leaves no pod"
    for word, show, (asked, usual, left, most) in zip(("CPU", "memory"), _SHOWN, _resources(workload, quota), strict=True):
        each = asked or usual
        if most is not None and each > most:
            return f"needs {show(each)} of {word}, and a pod of namespace {where} may ask for {show(most)} at the site"
        if left is not None and not each:
            return f"says no request for {word}, and the site's quota for namespace {where} wants one of every pod"
        if left is not None and left < each:
            return f"needs {show(each)} of {word}, and the site's quota for namespace {where} leaves {show(max(0, left))}"
    raise AssertionError("there is room for none, and a reason for that")


_SHOWN = (quantity.format_milli, quantity.format_bytes)


def _resources(workload: WorkloadInfo, quota: Quota) -> tuple[tuple[int, int, int | None, int | None], ...]:
    """(asked for, usual, left, most) of CPU and memory."""
    return (
        (workload.cpu, quota.default_cpu, quota.cpu, quota.most_cpu),
        (workload.memory, quota.default_memory, quota.memory, quota.most_memory),
    )


#: What pods take of a quota: milli-CPU, bytes, pods, and how many of them say no request for CPU, for memory.
Part = tuple[int, int, int, int, int]
NOTHING: Part = (0, 0, 0, 0, 0)


def part(cpu: int, memory: int, count: int) -> Part:
    """That of so many pods alike; fewer than none are given back."""
    return cpu * count, memory * count, count, 0 if cpu else count, 0 if memory else count


def less(quota: Quota, taken: Part) -> Quota:
    """What it leaves beside them."""
    cpu, memory, pods, silent_cpu, silent_memory = taken
    return replace(
        quota,
        cpu=None if quota.cpu is None else quota.cpu - cpu - silent_cpu * quota.default_cpu,
        memory=None if quota.memory is None else quota.memory - memory - silent_memory * quota.default_memory,
        pods=None if quota.pods is None else quota.pods - pods,
    )


def beside(cluster: ClusterInfo, namespace: str, taken: Part) -> Mapping[str, Quota]:
    """The quotas of a site where so much more is taken in a namespace."""
    quota = cluster.quotas.get(namespace)
    return cluster.quotas if quota is None else {**cluster.quotas, namespace: less(quota, taken)}
